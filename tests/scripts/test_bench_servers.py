"""The service beside other servers: what is compared, and what is said of one that cannot be."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from scripts.bench import rivals, servers
from scripts.bench.rival_servers import diffusers_async_app, drawing
from scripts.bench.servers import RIVALS, Rival, Server, Side, compare, look_alike, rows


def png(colour: str, side_px: int = servers.SIZE_PX) -> bytes:
    return drawing.png(Image.new("RGB", (side_px, side_px), colour))


def answering(*pictures: bytes) -> Server:
    """A server that answers these in turns."""
    left = iter(pictures * 50)
    client = httpx2.Client(
        base_url="http://test", transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=next(left)))
    )  # fmt: skip
    return Server(client=client, path="/draw")


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(rounds=1)


def test_rival_that_is_not_installed_is_named_with_what_to_do(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Rival(title="Nobody", module="none", path="/", needs="no_such_package")
    assert compare(answering(png("red")), absent, {1: 1}, options)
    said = capsys.readouterr().out
    assert said.startswith("not run: Nobody: no_such_package not installed; scripts/setup_env.sh")


def test_rival_that_does_not_come_up_has_failed_with_its_last_words(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Rival(title="Broken", module="no_such_module", path="/", needs="psutil")
    assert not compare(answering(png("red")), broken, {1: 1}, options)
    said = capsys.readouterr().out
    assert said.startswith("failed: Broken") and "no_such_module" in said


def test_picture_of_other_content_is_not_compared() -> None:
    with pytest.raises(RuntimeError, match="another than ours: 85.0 grey levels"):
        look_alike("it", answering(png("red")), answering(png("black")))


def test_picture_of_another_size_is_not_compared() -> None:
    with pytest.raises(RuntimeError, match=r"PNG of \(64, 64\) px"):
        look_alike("it", answering(png("red")), answering(png("red", 64)))


def test_equal_pictures_are_compared() -> None:
    look_alike("it", answering(png("red")), answering(png("red")))


def test_rows_say_who_is_ahead() -> None:
    ours = Side(rates=[4.0] * 2, p50_ms=[250.0] * 2, p95_ms=[260.0] * 2)
    theirs = Side(rates=[2.0] * 2, p50_ms=[500.0] * 2, p95_ms=[520.0] * 2)
    rate, p95 = rows("it, 1 client", ours, theirs)
    assert (
        rate
        == "| it, 1 client: pictures a second | 4.00 /s | 2.00 /s | 2.00 (2.00 to 2.00) | > 1 |"
    )
    assert "| 260 ms (p50 250 ms) | 520 ms (p50 500 ms) | 0.50 (0.50 to 0.50) | < 1 |" in p95


def test_round_counts_every_picture() -> None:
    side = Side()
    side.add(answering(png("red")), clients=2, count=6)
    assert len(side.rates) == 1 and side.rates[0] > 0 and 0 < side.p50_ms[0] <= side.p95_ms[0]


@pytest.mark.parametrize(("enough_seconds", "rounds"), [(45, 3), (-1, 1)])
def test_who_takes_long_gets_one_round_and_the_row_says_so(
    enough_seconds: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ENOUGH_SECONDS", enough_seconds)
    ours, theirs = servers.take_turns(answering(png("red")), answering(png("red")), 1, 2, 3)
    assert len(ours.rates) == len(theirs.rates) == rounds
    assert [", one round:" in row for row in rows("it", ours, theirs)] == [rounds == 1] * 2


def test_batches_and_single_pictures_of_a_rival_are_both_there() -> None:
    assert {"litserve", "litserve-batch", "ray", "ray-batch"} <= set(RIVALS)
    for rival in RIVALS.values():
        module = Path(servers.__file__).parent / "rival_servers" / f"{rival.module}.py"
        assert f'"{rival.path}"' in module.read_text() or rival.needs == "litserve"


class Pipeline:
    """Its tokenizers and its scheduler are looked at by the server around it."""

    scheduler = {"steps": 0}
    tokenizer = tokenizer_2 = staticmethod(lambda text: [text])
    vae = argparse.Namespace(decode=lambda latents: latents + 1)
    image_processor = argparse.Namespace(postprocess=lambda pixels: -pixels)


def draw(pipeline: Pipeline, asked: list[drawing.Asked]) -> list[Image.Image]:
    assert pipeline.tokenizer(asked[0].prompt) == [asked[0].prompt]
    assert pipeline.image_processor.postprocess(pipeline.vae.decode(1)) == -2
    assert pipeline.scheduler is not Pipeline.scheduler, "every request has one of its own"
    return [Image.new("RGB", (each.width, each.height), "red") for each in asked]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestClient]:
    monkeypatch.setattr(drawing, "load", Pipeline)
    monkeypatch.setattr(drawing, "draw", draw)
    with TestClient(diffusers_async_app.build(tmp_path)) as client:
        yield client


def test_request_scoped_server_answers_where_the_picture_is(app: TestClient) -> None:
    rival = RIVALS["diffusers-async"]
    where = app.post(rival.path, json={"prompt": "a red balloon", "width": 64, "height": 64})
    for key in rival.address:
        where = where.json()[key] if not isinstance(where, list) else where[key]
    with Image.open(io.BytesIO(app.get(where).content)) as picture:
        assert picture.format == "PNG" and picture.size == (64, 64)


def test_rivals_run_on_our_python_but_for_those_in_their_own_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert RIVALS["diffusers"].python() == sys.executable
    monkeypatch.setattr(rivals, "install", lambda part: None)
    monkeypatch.setattr(rivals, "python", lambda part: f"python of {part}")
    assert RIVALS["litserve"].python() == "python of servers"
