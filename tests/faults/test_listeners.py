"""Previews, crowds of listeners, and listeners that do not listen."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy
import psutil
import pytest
from PIL import Image

from tests.faults.handles import gate, hold, paused, picture
from tests.faults.listener import ENDS, Listener, connect, listen, rest_of
from tests.service import RunningService

MIB = 2**20
IDLE_LISTENERS = 200
PASSING_LISTENERS = 1000
# Of a process that has seen as many before: what its allocator moves.
GROWTH_MIB = 10
QUIET_SECONDS = 0.5  # a watched job has previews made ten times a second
PREVIEW_PX = 256


# Previews


@pytest.fixture(scope="module")
def previewed(service: RunningService) -> tuple[list[Image.Image], Image.Image]:
    """The previews of a job of the embedded model, and its picture."""
    with Listener(service, "/events") as listener:  # so that the worker knows that somebody looks
        listener.wait_for("gpu")
        listener.wait_for("gpu", after=len(listener.events))
        job_id = service.submit(
            "a red balloon over a green field",
            width=512,
            height=256,
            num_inference_steps=12,
            seed=3,
        )
        end = listener.wait_for("succeeded", lambda job: job["id"] == job_id)
        assert end.data["id"] == job_id
        urls = [
            event.data["preview"]
            for event in listener.named("progress")
            if event.data["job_id"] == job_id and "preview" in event.data
        ]
    head = "data:image/jpeg;base64,"
    assert urls and all(url.startswith(head) for url in urls)
    previews = [
        Image.open(io.BytesIO(base64.b64decode(url.removeprefix(head), validate=True)))
        for url in urls
    ]
    return previews, Image.open(io.BytesIO(picture(service, job_id)))


def test_preview_is_a_jpeg_of_the_pictures_shape_and_at_most_256_px(
    previewed: tuple[list[Image.Image], Image.Image],
) -> None:
    assert {(image.format, image.size) for image in previewed[0]} == {("JPEG", (PREVIEW_PX, 128))}


def test_preview_at_the_end_looks_like_the_picture(
    previewed: tuple[list[Image.Image], Image.Image],
) -> None:
    previews, final = previewed
    small = [
        numpy.asarray(image.convert("RGB").resize((32, 16)), dtype=float).ravel()
        for image in (previews[-1], final)
    ]
    assert numpy.corrcoef(*small)[0, 1] > 0.9


# Listeners that do not listen


def resident_mib(service: RunningService) -> float:
    return psutil.Process(service.process.pid).memory_info().rss / MIB


def come_and_go(service: RunningService, path: str, number: int) -> None:
    """So many listeners that hang up at the first event."""

    def visit(_: int) -> None:
        with connect(service, path) as connection:
            while b"event:" not in connection.recv(65536):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(number)))


def nobody_has_previews_made(service: RunningService, mark: str) -> bool:
    """A worker makes previews while somebody listens, to anything: the count of listeners from outside."""
    seen = service.folder / "models" / f"{mark}.seen"
    seen.unlink(missing_ok=True)
    time.sleep(QUIET_SECONDS)
    return not seen.exists()


@pytest.fixture(scope="module")
def crowd(engine_service: RunningService) -> dict:
    """Two hundred listeners to one job while a thousand others come and go."""
    with paused(engine_service):
        job_id = engine_service.submit()
        paths = (f"/jobs/{job_id}/events", "/events")
        idle = [connect(engine_service, paths[0]) for _ in range(IDLE_LISTENERS)]
        for path in paths:
            come_and_go(engine_service, path, PASSING_LISTENERS // 10)
        before = resident_mib(engine_service)
        for path in paths:
            come_and_go(engine_service, path, PASSING_LISTENERS // 2)
        after = resident_mib(engine_service)
    streams = [rest_of(connection) for connection in idle]
    for connection in idle:
        connection.close()
    return {"growth": after - before, "streams": streams}


def test_crowd_misses_no_end(crowd: dict) -> None:
    ends = [
        sum(stream.count(f"event: {name}".encode()) for name in ENDS) for stream in crowd["streams"]
    ]
    assert ends == [1] * IDLE_LISTENERS


def test_crowd_that_comes_and_goes_leaves_memory_flat(crowd: dict) -> None:
    assert crowd["growth"] < GROWTH_MIB


def test_crowd_that_is_gone_is_forgotten(engine_service: RunningService, crowd: dict) -> None:
    job_id, name = hold(engine_service, "watched")
    engine_service.wait_until(
        lambda: nobody_has_previews_made(engine_service, name), what="still has listeners"
    )
    engine_service.release(name)
    engine_service.wait_for_job(job_id)


def test_listener_makes_the_worker_make_previews(engine_service: RunningService) -> None:
    """What the count above is read from."""
    job_id, name = hold(engine_service, "watched")
    with listen(engine_service, job_id):
        engine_service.wait_until(lambda: not nobody_has_previews_made(engine_service, name))
    engine_service.release(name)
    engine_service.wait_for_job(job_id)


def test_listener_that_does_not_read_keeps_nobody_waiting(engine_service: RunningService) -> None:
    deaf = connect(engine_service, "/events", buffer_bytes=4096)
    with deaf, Listener(engine_service, "/events") as other:
        other.wait_for("queue")
        job_ids = [engine_service.submit(gate()) for _ in range(60)]
        for job_id in job_ids:
            other.wait_for("succeeded", lambda job, job_id=job_id: job["id"] == job_id)
        assert engine_service.client.get("/health/live").status_code == 200


def test_listener_that_reads_late_still_gets_the_end(engine_service: RunningService) -> None:
    job_id, name = hold(engine_service)
    with connect(engine_service, f"/jobs/{job_id}/events", buffer_bytes=4096) as late:
        with listen(engine_service, job_id) as other:
            for _ in range(20):
                other.wait_for("progress", after=len(other.events))
        engine_service.release(name)
        engine_service.wait_for_job(job_id)
        stream = rest_of(late)
    assert stream.count(b"event: succeeded") == 1
