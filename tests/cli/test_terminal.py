"""Pictures in a terminal: which way, and that the characters say the picture."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from cli import terminal
from cli.client import Event
from cli.progress import Progress
from cli.terminal import Way
from tests.pictures import file_of, gradient


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "way"),
    [
        ({"TERM": "xterm-kitty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Way.KITTY),
        ({"TERM": "xterm-ghostty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Way.ITERM),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Way.ITERM),
        ({"TERM": "foot"}, Way.SIXEL),
        ({"TERM": "xterm-sixel"}, Way.SIXEL),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, Way.BLOCKS),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "COLORTERM": "24bit"}, Way.BLOCKS),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x", "COLORTERM": "truecolor"}, Way.BLOCKS),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({}, None),
    ],
)
def test_way_follows_from_the_environment(environ: dict[str, str], way: Way | None) -> None:
    assert terminal.way_of(environ, Screen()) is way


def test_way_of_what_is_no_terminal_is_none() -> None:
    assert terminal.way_of({"TERM": "xterm-kitty"}, io.StringIO()) is None


@pytest.mark.parametrize(
    ("size", "columns", "expected"),
    [((256, 256), 80, (24, 12)), ((512, 256), 80, (48, 12)), ((512, 256), 20, (20, 5))],
)
def test_cells_keep_the_shape(size, columns: int, expected: tuple[int, int]) -> None:
    assert terminal.cells(*size, columns) == expected


def test_blocks_say_two_pixels_a_cell() -> None:
    picture = gradient(4, 4)
    text = terminal.drawn(Way.BLOCKS, picture, 4, 2)
    cells = re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m\u2580", text)
    rows = [row.split(terminal.UPPER_HALF) for row in text.split("\n")]
    assert (len(cells), len(rows)) == (8, 2)
    assert tuple(map(int, cells[1][:3])) == picture.getpixel((1, 0))
    assert tuple(map(int, cells[1][3:])) == picture.getpixel((1, 1))


def test_kitty_sends_the_whole_file_in_chunks() -> None:
    picture = gradient(128, 128)
    text = terminal.drawn(Way.KITTY, picture, 24, 12)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "c=24,r=12" in chunks[0][0] and "C=1" in chunks[0][0]
    assert [keys.rpartition("m=")[2] for keys, _ in chunks] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(part) <= 4096 for _, part in chunks)
    sent = Image.open(io.BytesIO(base64.b64decode("".join(part for _, part in chunks))))
    assert sent.tobytes() == picture.tobytes()


def test_iterm_sends_a_file_of_its_size() -> None:
    text = terminal.drawn(Way.ITERM, gradient(64, 64), 24, 12)
    size, content = re.fullmatch(
        r"\x1b\]1337;File=inline=1;width=24;height=12;size=(\d+):(.*)\x07", text
    ).groups()
    assert len(base64.b64decode(content)) == int(size)
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (64, 64)


def test_sixel_read_back_is_the_picture() -> None:
    picture = Image.new("RGB", (64, 96), (200, 40, 40))
    picture.paste((20, 60, 220), (32, 0, 64, 48))
    read = read_sixel(terminal.drawn(Way.SIXEL, picture, 8, 6))
    assert read.size == (64, 96)
    for place in ((5, 5), (60, 5), (60, 90), (31, 47), (32, 47), (32, 48)):
        wanted, got = picture.getpixel(place), read.getpixel(place)
        assert all(abs(a - b) <= 3 for a, b in zip(wanted, got, strict=True)), place


def read_sixel(text: str) -> Image.Image:
    """What a terminal makes of it."""
    body = re.fullmatch(r"\x1bPq(.*)\x1b\\", text).group(1)
    width, height = map(int, re.match(r'"1;1;(\d+);(\d+)', body).groups())
    picture, palette = Image.new("RGB", (width, height)), {}
    x = y = colour = 0
    tokens = re.findall(r'#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|"[\d;]+|([$-])|([?-~])', body)
    for defined, red, green, blue, chosen, count, repeated, move, one in tokens:
        if defined:
            palette[int(defined)] = tuple(
                round(int(value) * 255 / 100) for value in (red, green, blue)
            )
        elif chosen:
            colour = int(chosen)
        elif move:
            x, y = 0, y + 6 * (move == "-")
        elif one or repeated:
            for _ in range(int(count or 1)):
                for bit in range(6):
                    if (ord(one or repeated) - 63) >> bit & 1:
                        picture.putpixel((x, y + bit), palette[colour])
                x += 1
    return picture


# The line and the picture above it


def step(number: int, preview: bool = False) -> Event:
    data = {"step": number, "steps": 4, "eta_ms": 1500}
    if preview:
        jpeg = base64.b64encode(file_of(gradient(64, 64), "JPEG")).decode()
        data["preview"] = f"data:image/jpeg;base64,{jpeg}"
    return Event("progress", data)


COLOURED = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def test_progress_shows_steps_and_what_is_left() -> None:
    screen = Screen()
    with Progress(screen, environ=COLOURED) as shown:
        shown.tell(Event("queued", {"position": 3}))
        shown.tell(step(2))
    text = screen.getvalue()
    assert "number 3 in line" in text
    assert f"{'█' * 12}{'░' * 12} step 2 of 4, 1.5 s left" in text
    assert text.endswith("\r\x1b[2K")  # the line is taken away in the end


def test_progress_draws_previews_in_one_place() -> None:
    screen = Screen()
    with Progress(screen, environ=COLOURED) as shown:
        shown.tell(step(1, preview=True))
        shown.tell(step(2, preview=True))
    text = screen.getvalue()
    assert text.count("\x1b[12A") == 2 and text.count("\x1b[12B") == 2
    assert text.count("\n") == 12 + 2 * 11  # room once, and the rows of two pictures


def test_progress_of_two_shows_the_first_ones_picture() -> None:
    screen = Screen()
    with Progress(screen, environ=COLOURED) as shown:
        shown.tell(step(1, preview=True), "bf16")
        shown.tell(step(3, preview=True), "fp4")
    assert screen.getvalue().count("\x1b[12A") == 1
    assert "bf16" in screen.getvalue() and "fp4" in screen.getvalue()


@pytest.mark.parametrize("options", [{"preview": False}, {"environ": {"TERM": "dumb"}}])
def test_progress_without_pictures_is_a_line(options) -> None:
    screen = Screen()
    with Progress(screen, **{"environ": COLOURED, **options}) as shown:
        shown.tell(step(1, preview=True))
    assert "step 1 of 4" in screen.getvalue() and "\x1b[12A" not in screen.getvalue()


def test_progress_is_silent_where_nobody_watches() -> None:
    pipe = io.StringIO()
    with Progress(pipe, environ=COLOURED) as shown:
        shown.tell(step(1, preview=True))
    assert pipe.getvalue() == ""
