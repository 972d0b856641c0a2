"""Pictures in a terminal: which way it can show one, and the characters that do it.

kitty and iTerm2 take a file in base64, sixel is rows of six pixels by colour, and where there is only true colour a
character cell is two pixels, drawn by its upper half block. What a terminal can do is read off its environment: a
question to it would have to be answered before anything is shown, and is not by those that cannot.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 12  # of a preview
CELL_PX = (8, 16)  # of a terminal that does not say; only sixel is drawn by it
KITTY_CHUNK = 4096
SIXEL_COLOURS = 64
UPPER_HALF = "\u2580"
RESET = "\x1b[0m"


class Way(StrEnum):
    KITTY = "kitty"
    ITERM = "iterm2"
    SIXEL = "sixel"
    BLOCKS = "blocks"


def way_of(environ: Mapping[str, str], stream: TextIO) -> Way | None:
    """How pictures are shown on a stream; None where they are not."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if not stream.isatty() or term in ("", "dumb"):
        return None
    # tmux and screen keep what they do not know from the terminal below.
    is_wrapped = bool(environ.get("TMUX")) or term.startswith(("screen", "tmux"))
    if not is_wrapped:
        if term == "xterm-kitty" or environ.get("KITTY_WINDOW_ID") or term == "xterm-ghostty":
            return Way.KITTY
        if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
            return Way.ITERM
        if "sixel" in term or term.startswith(("foot", "mlterm", "yaft", "contour")):
            return Way.SIXEL
    is_coloured = environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return Way.BLOCKS if is_coloured and not environ.get("NO_COLOR") else None


def cells(width: int, height: int, columns: int, rows: int = ROWS) -> tuple[int, int]:
    """Columns and rows that a picture takes: as high as may be, in its own shape."""
    wide = max(1, round(2 * rows * width / height))
    if wide > columns:
        rows = max(1, round(columns * height / width / 2))
        wide = columns
    return wide, rows


def drawn(way: Way, picture: Image, columns: int, rows: int) -> str:
    """The characters that draw a picture from the cursor on; where it stands afterwards is not said."""
    if way is Way.BLOCKS:
        return "\n\r".join(_blocks(picture, columns, rows))
    if way is Way.SIXEL:
        return _sixel(picture, columns * CELL_PX[0], rows * CELL_PX[1])
    if way is Way.KITTY:
        return "".join(_kitty(_encoded(picture, "PNG"), columns, rows))
    content = _encoded(picture, "JPEG")
    size = f"width={columns};height={rows};size={len(content)}"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(content).decode()}\x07"


def _encoded(picture: Image, format: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


def _kitty(content: bytes, columns: int, rows: int) -> Iterator[str]:
    """One picture under one id, so that the next takes its place; the cursor stays (C=1), nothing answers (q=2)."""
    text = base64.b64encode(content).decode()
    head = f"a=T,f=100,i=1,p=1,C=1,q=2,c={columns},r={rows},"
    for start in range(0, len(text), KITTY_CHUNK):
        more = int(start + KITTY_CHUNK < len(text))
        yield f"\x1b_G{head}m={more};{text[start : start + KITTY_CHUNK]}\x1b\\"
        head = ""


def _blocks(picture: Image, columns: int, rows: int) -> Iterator[str]:
    pixels: Any = picture.convert("RGB").resize((columns, 2 * rows)).load()
    for row in range(rows):
        line = ""
        for column in range(columns):
            upper, lower = pixels[column, 2 * row], pixels[column, 2 * row + 1]
            line += "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*upper, *lower) + UPPER_HALF
        yield line + RESET


def _sixel(picture: Image, width_px: int, height_px: int) -> str:
    """Bands of six rows; in each, for each colour that it has, a character per column says which of the six are it."""
    height_px -= height_px % 6
    small = picture.convert("RGB").resize((width_px, max(6, height_px)))
    indexed = small.quantize(SIXEL_COLOURS)
    palette: Any = indexed.getpalette() or []
    colours = sorted({index for _, index in indexed.getcolors() or []})
    out = ["\x1bPq", f'"1;1;{small.width};{small.height}']
    for index in colours:
        red, green, blue = (
            round(value / 255 * 100) for value in palette[3 * index : 3 * index + 3]
        )
        out.append(f"#{index};2;{red};{green};{blue}")
    data = indexed.tobytes()
    for top in range(0, small.height, 6):
        band = [data[(top + y) * small.width : (top + y + 1) * small.width] for y in range(6)]
        for index in sorted(set(b"".join(band))):
            bits = (sum((band[y][x] == index) << y for y in range(6)) for x in range(small.width))
            out.append(f"#{index}" + _run_lengths("".join(chr(63 + value) for value in bits)) + "$")
        out.append("-")
    return "".join(out) + "\x1b\\"


def _run_lengths(text: str) -> str:
    out, start = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or text[end] != text[start]:
            count = end - start
            out.append(f"!{count}{text[start]}" if count > 3 else text[start] * count)
            start = end
    return "".join(out)
