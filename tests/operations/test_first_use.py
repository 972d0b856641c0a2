"""A service whose model has no four-bit copy of its weights: it makes one, says so, and keeps it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.fp4.conftest import PROMPTS, put_tiny_transformer
from tests.operations.checkout import copy_checkout
from tests.service import RunningService


class FirstUse:
    """A checkout whose small model has other weights than its four-bit copy was made from."""

    def __init__(self, folder: Path) -> None:
        self._checkout = copy_checkout(folder / "flux", models=True)
        models = self._checkout / "models"
        put_tiny_transformer(models / "embedded" / "transformer")
        (models / "embedded-fp4" / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        self._folder, self._started = folder, 0
        self.copies = folder / "models" / "fp4"

    def start(self) -> RunningService:
        self._started += 1
        main = self._checkout / "main_fp4.py"
        models = str(self._folder / "models")
        service = RunningService(
            self._folder / f"service-{self._started}", main=main, FLUX_MODELS_DIR=models
        )
        service.start().wait_for_workers()
        return service


@pytest.fixture
def first_use(tmp_path: Path) -> FirstUse:
    return FirstUse(tmp_path)


@pytest.fixture
def service(first_use: FirstUse) -> Iterator[RunningService]:
    service = first_use.start()
    yield service
    service.close()


def loading(service: RunningService) -> tuple[str, float]:
    """What a worker says that it does, and how much of it is done."""
    (worker,) = service.client.get("/model-status").json()["workers"]
    said = worker["loading"] or {}
    return said.get("what") or "", said.get("fraction") or 0.0


def draw(service: RunningService) -> dict:
    answer = service.generate(width=128, height=128, steps=1, seed=3)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(copies: Path) -> dict[str, int]:
    """The parts of the copy that a worker has noted as whole, with their times."""
    folder = copies / "embedded.partial"
    notes = folder / "progress.json"
    files = json.loads(notes.read_text())["files"] if notes.exists() else {}
    parts = [name for name in files if name.startswith("transformer/")]
    return {name: (folder / name).stat().st_mtime_ns for name in parts}


@pytest.mark.timeout(900)  # what is made in half a minute takes many on a busy machine
def test_first_picture_makes_the_copy_also_where_a_service_was_killed_and_a_later_one_takes_it(
    first_use: FirstUse, service: RunningService
) -> None:
    whole = first_use.copies / "embedded"
    seen: set[tuple[str, float]] = set()

    def has_a_part() -> bool:
        seen.add(loading(service))
        return bool(finished(first_use.copies))

    service.submit(steps=1)
    service.wait_until(has_a_part, 600, "has no part of the copy")
    service.kill()
    before = finished(first_use.copies)

    again = first_use.start()
    try:
        pictures: list[dict] = []
        thread = threading.Thread(target=lambda: pictures.append(draw(again)))
        thread.start()
        while thread.is_alive():
            seen.add(loading(again))
            thread.join(0.02)
        made = (whole / "fp4.json").stat().st_mtime_ns
    finally:
        again.close()
    fractions = [fraction for what, fraction in seen if what == "quantising the transformer"]
    assert fractions and all(0.4 < fraction < 1 for fraction in fractions)
    assert pictures[0]["engine"] == "nvfp4"
    assert {name: (whole / name).stat().st_mtime_ns for name in before} == before
    assert [path.name for path in first_use.copies.iterdir()] == ["embedded"]

    later = first_use.start()
    try:
        assert draw(later)["image"] == pictures[0]["image"]
    finally:
        later.close()
    assert (whole / "fp4.json").stat().st_mtime_ns == made
