"""mflux's commands under a whole service: a request, a cancel, a failure, and the service's death."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest

from config.settings import ROOT
from tests import mflux_stand_in
from tests.safety_weights import classifier
from tests.service import RunningService


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("mac")
    mflux_stand_in.install(folder / "bin")
    running = RunningService(
        folder,
        main=ROOT / "tests" / "main_mflux.py",
        FLUX_MODEL="mflux-schnell",
        FLUX_MFLUX_QUANTIZE="8",
        FLUX_ALLOW_DOWNLOAD="true",  # the stand-in has no weights, and fetches none
        FLUX_SAFETY_MODEL=str(classifier(tmp_path_factory.mktemp("weights") / "judge")),
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
        TMPDIR=str(folder),
    ).start()
    yield running
    running.close()


@pytest.fixture
def mac(installed: RunningService) -> RunningService:
    """The service, which a test may kill."""
    if installed.process.poll() is not None:
        installed.start()
    installed.wait_for_workers()
    return installed


def commands(service: RunningService) -> list[psutil.Process]:
    """mflux's processes, and those that hold them."""
    worker = psutil.Process(service.workers()[0]["pid"])
    return worker.children(recursive=True)


def test_mflux_request_is_drawn_by_the_command(mac: RunningService) -> None:
    answer = mac.generate(backend="mflux", width=256, height=256, seed=3, num_images=2)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["model"], told["engine"], told["seed"]) == ("mflux-schnell", "mflux-q8", 3)
    assert [image["seed"] for image in told["images"]] == [3, 4]


def test_mflux_picture_that_is_flagged_is_kept_nowhere_as_it_was_drawn(mac: RunningService) -> None:
    """The stand-in's red follows from the seed; what lies in TMPDIR lies in the service's folder."""
    told = mac.generate(backend="mflux", width=256, height=256, seed=250, num_images=2).json()
    assert [image["nsfw_flagged"] for image in told["images"]] == [True, True]
    pictures = {path.name for path in mac.folder.rglob("*.png")}
    assert {image["filename"] for image in told["images"]} <= pictures
    assert "picture.png" not in pictures and not list(mac.folder.glob("mflux-*"))


def test_mflux_failure_is_told_with_its_last_words(mac: RunningService) -> None:
    answer = mac.generate(prompt="crash", width=256, height=256)
    assert answer.status_code == 500
    assert "ValueError: the tensors do not fit" in answer.json()["detail"]


def test_mflux_job_that_is_cancelled_while_it_loads_leaves_no_command(
    mac: RunningService,
) -> None:
    job = mac.submit(f"slow {mac.folder / 'never'}", width=256, height=256)
    mac.wait_until(lambda: len(commands(mac)) >= 2)
    left = commands(mac)
    mac.client.post(f"/jobs/{job}/cancel")
    assert mac.wait_for_job(job)["status"] == "cancelled"
    assert not psutil.wait_procs(left, timeout=120)[1]
    assert not list(mac.folder.glob("mflux-*"))


def test_mflux_command_ends_with_a_service_that_is_killed(mac: RunningService) -> None:
    """The job is drawn by the next start, whose command finds its file."""
    gate = mac.folder / "later"
    mac.submit(f"slow {gate}", width=256, height=256)
    mac.wait_until(lambda: len(commands(mac)) >= 2)
    mac.kill()  # and looks that no child is left
    assert not list(mac.folder.glob("mflux-*"))
    gate.touch()
