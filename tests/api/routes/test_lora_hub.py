"""LoRAs named by a Hugging Face id: fetched once, by the checks of an upload. Against a stand-in of the Hub."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import hub as stand_in
from tests.hub import Hub
from tests.lora_files import FLUX2, lora, padded
from tests.service import ENGINE_MAIN, RunningService

MAX_BYTES = 32 * 2**20
FILE = "someone/inks/wash/Ink Wash.safetensors".replace(" ", "-")


@pytest.fixture(scope="module")
def started_hub() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def running(started_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    service = RunningService(
        tmp_path_factory.mktemp("hub"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        HF_ENDPOINT=started_hub.url,
        FLUX_ALLOW_DOWNLOAD="true",
        FLUX_MAX_LORA_BYTES=str(MAX_BYTES),
    ).start()
    try:
        service.wait_for_workers()
        service.client.post("/queue/pause")
        yield service
    finally:
        service.close()


@pytest.fixture
def hub(started_hub: Hub, running: RunningService) -> Iterator[Hub]:
    yield started_hub
    started_hub.forget()
    running.client.post("/queue/clear")
    for name in names(running):
        running.client.delete(f"/loras/{name}")


@pytest.fixture
def service(running: RunningService, hub: Hub) -> RunningService:
    return running


def listed(service: RunningService) -> list[dict[str, Any]]:
    return [e for e in service.client.get("/loras").json()["loras"] if not e.get("builtin")]


def names(service: RunningService) -> list[str]:
    return [each["name"] for each in listed(service) if each["status"] == "ready"]


def submit(service: RunningService, name: str) -> httpx2.Response:
    return service.client.post("/jobs", json={"prompt": "a", "loras": [{"name": name}]})


def refused(service: RunningService, name: str, status: int, code: str) -> dict[str, Any]:
    """Refused by name, with nothing fetched, nothing queued and nothing left."""
    answer = submit(service, name)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert [each["field"] for each in answer.json()["errors"]] == ["loras.0.name"]
    assert listed(service) == [] and service.client.get("/queue").json()["queued"] == 0
    assert not list(service.lora_dir.rglob("*.part"))
    return answer.json()


@pytest.mark.parametrize("name", ["someone/inks", FILE])
def test_hub_id_is_fetched_into_the_library(service: RunningService, hub: Hub, name: str) -> None:
    data = lora(metadata={"trigger_word": "1nk"})
    hub.files[FILE] = data
    hub.files["someone/inks/README.md"] = b"text"
    answer = submit(service, name)
    assert answer.status_code == 202, answer.text
    (entry,) = listed(service)
    assert (entry["name"], entry["source"], entry["hub_ids"]) == ("ink-wash", "huggingface", [FILE])
    (used,) = service.job(answer.json()["id"])["request"]["loras"]
    assert (used["sha256"], used["trigger_words"]) == (entry["sha256"], ["1nk"])
    assert (service.lora_dir / entry["stored_filename"]).read_bytes() == data


def test_hub_id_is_fetched_once(service: RunningService, hub: Hub) -> None:
    hub.files[FILE] = lora()
    for name in ("someone/inks", FILE, "ink-wash", "someone/inks"):
        assert submit(service, name).status_code == 202
    assert sum("/resolve/" in path for path in hub.asked) == 1


def test_hub_id_of_content_that_was_uploaded_is_known_from_then_on(
    service: RunningService, hub: Hub
) -> None:
    hub.files[FILE] = lora()
    service.client.put("/loras/mine.safetensors", content=lora())
    for _ in range(2):
        assert submit(service, "someone/inks").status_code == 202
    assert names(service) == ["mine"]
    assert sum("/resolve/" in path for path in hub.asked) == 1


def test_hub_id_asked_for_by_many_at_once_is_fetched_once(
    service: RunningService, hub: Hub
) -> None:
    hub.files[FILE] = lora()
    hub.gate.clear()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(submit(service, FILE).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    service.wait_until(lambda: any("/resolve/" in path for path in hub.asked), what="asks nobody")
    time.sleep(0.3)
    hub.gate.set()
    for thread in threads:
        thread.join()
    assert answers == [202] * 4
    assert sum("/resolve/" in path for path in hub.asked) == 1


def test_hub_download_tells_how_far_it_is(service: RunningService, hub: Hub) -> None:
    start, zeros = padded(25 * 2**20)
    hub.files[FILE] = start + bytes(zeros)
    hub.gate.clear()
    told: list[dict[str, Any]] = []
    with httpx2.Client(base_url=service.url, timeout=120) as listener:
        with listener.stream("GET", "/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            asking = threading.Thread(target=submit, args=(service, FILE))
            asking.start()
            service.wait_until(
                lambda: any((e.get("fraction") or 0) > 0.5 for e in listed(service)),
                what="tells no progress",
            )
            (entry,) = listed(service)
            assert (entry["name"], entry["status"]) == (FILE, "fetching")
            assert 0.5 < entry["fraction"] < 1 and entry["size_bytes"] == len(start) + zeros
            for line in lines:
                if line.startswith("data:") and '"status"' in line and "ink" in line:
                    told.append(json.loads(line.removeprefix("data:")))
                    if 0.5 < (told[-1].get("fraction") or 0) < 1:
                        hub.gate.set()  # it was told half-way
                    if told[-1]["status"] == "ready":
                        break
            asking.join()
    fractions = [each["fraction"] for each in told if each["status"] == "fetching"]
    assert fractions[0] is None and any(0.5 < (each or 0) < 1 for each in fractions)
    assert told[-1]["name"] == "ink-wash"


def test_hub_download_that_breaks_goes_on_where_it_broke(service: RunningService, hub: Hub) -> None:
    start, zeros = padded(12 * 2**20)
    hub.files[FILE], hub.breaks = start + bytes(zeros), 1
    assert submit(service, FILE).status_code == 202
    assert listed(service)[0]["size_bytes"] == len(start) + zeros
    assert sum("/resolve/" in path for path in hub.asked) == 2


def test_hub_repository_with_several_files_asks_which(service: RunningService, hub: Hub) -> None:
    hub.files |= {"someone/inks/a.safetensors": lora(1.0), "someone/inks/b.safetensors": lora(2.0)}
    told = refused(service, "someone/inks", 400, "invalid_request")
    assert "someone/inks/a.safetensors, someone/inks/b.safetensors" in told["detail"]
    assert submit(service, "someone/inks/b.safetensors").status_code == 202


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("someone/none", "does not exist"), ("someone/inks", "no .safetensors"),
        ("someone/inks/x.safetensors", "x.safetensors is not in it"), ("someone/gated", "HF_TOKEN"),
    ],
)  # fmt: skip
def test_hub_id_of_nothing_is_404_that_says_what(
    service: RunningService, hub: Hub, name: str, word: str
) -> None:
    hub.files["someone/inks/README.md"] = b"text"
    hub.gated.add("someone/gated")
    assert word in refused(service, name, 404, "not_found")["detail"]


def test_hub_file_over_the_limit_is_refused_before_it_is_fetched(
    service: RunningService, hub: Hub
) -> None:
    hub.files[FILE], hub.sizes[FILE] = lora(), MAX_BYTES + 1
    assert "FLUX_MAX_LORA_BYTES" in refused(service, FILE, 413, "too_large")["detail"]
    assert not any("/resolve/" in path for path in hub.asked)


def test_hub_file_that_is_longer_than_told_is_cut_at_the_limit(
    service: RunningService, hub: Hub
) -> None:
    hub.files[FILE], hub.sizes[FILE] = lora().ljust(MAX_BYTES + 1), 1000
    refused(service, FILE, 413, "too_large")


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"PK\3\4" + b"\0" * 2000, 415), (lora(float("nan")), 422), (lora()[:-1], 422)],
    ids=["zip", "nan", "cut"],
)
def test_hub_file_that_fails_a_check_is_refused(
    service: RunningService, hub: Hub, data: bytes, status: int
) -> None:
    hub.files[FILE] = data
    refused(service, FILE, status, "bad_file")


def test_hub_lora_of_another_model_is_409_and_stays_in_the_library(
    service: RunningService, hub: Hub
) -> None:
    hub.files[FILE] = lora(modules=FLUX2)
    answer = submit(service, FILE)
    assert (answer.status_code, answer.json()["code"]) == (409, "lora_incompatible")
    assert names(service) == ["ink-wash"]


def test_request_at_fault_fetches_nothing(service: RunningService, hub: Hub) -> None:
    hub.files[FILE] = lora()
    body = {"prompt": "a", "width": 100, "loras": [{"name": FILE}]}
    assert service.client.post("/jobs", json=body).status_code == 400
    assert hub.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "https://huggingface.co/someone/inks", "someone/../inks", "/someone/inks", "someone/inks/x.bin",
        "someone/inks@main", "file:///etc/passwd", "../../etc/passwd",
    ],
)  # fmt: skip
def test_address_or_path_asks_nobody(service: RunningService, hub: Hub, name: str) -> None:
    refused(service, name, 404, "not_found")
    assert hub.asked == []


def test_hub_id_with_downloads_switched_off_says_so(engine_service: RunningService) -> None:
    answer = submit(engine_service, "someone/inks")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "FLUX_ALLOW_DOWNLOAD" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("environ", "word"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be fetched"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE")],
)  # fmt: skip
def test_hub_that_is_not_there_is_503(
    start_engine: Callable[..., RunningService], environ: dict[str, str], word: str
) -> None:
    service = start_engine(FLUX_ALLOW_DOWNLOAD="true", wait_for_workers=False, **environ)
    answer = submit(service, "someone/inks")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert word in answer.json()["detail"] and "someone/inks" in answer.json()["detail"]


def test_service_stops_at_once_while_a_download_waits(
    start_engine: Callable[..., RunningService], started_hub: Hub, tmp_path: Path
) -> None:
    service = start_engine(
        FLUX_ALLOW_DOWNLOAD="true",
        HF_ENDPOINT=started_hub.url,
        FLUX_DRAIN_SECONDS="0",
        wait_for_workers=False,
    )
    started_hub.files[FILE] = lora()
    started_hub.gate.clear()
    asking = threading.Thread(target=lambda: _quietly(service))
    asking.start()
    service.wait_until(lambda: any("/resolve/" in path for path in started_hub.asked), what="asks")
    assert service.stop() == 0  # it does not wait for a hub that says nothing
    asking.join()
    started_hub.forget()
    again = start_engine(folder=service.folder, wait_for_workers=False)
    assert not list(again.lora_dir.rglob("*.part"))


def _quietly(service: RunningService) -> None:
    try:
        submit(service, FILE)
    except httpx2.TransportError:
        pass


def test_service_that_fetched_has_no_torch(service: RunningService, hub: Hub) -> None:
    hub.files[FILE] = lora()
    assert submit(service, FILE).status_code == 202
    assert "libtorch" not in Path(f"/proc/{service.process.pid}/maps").read_text()
