"""Uploads that are hostile, broken or slow: refused by their code, at once, with nothing left behind."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.settings import ROOT
from tests.faults.handles import StartEngine
from tests.faults.sender import Sender, head
from tests.lora_files import lora, padded
from tests.models.lora.test_header import BROKEN, Canary, pack
from tests.service import RunningService

KEY = "a-key-of-this-service-0123456789"
PATIENCE_SECONDS = 2.0
MAX_BYTES = 320 * 2**20
SMALL_BYTES = 10 * 2**20
LARGE_BYTES = 120 * 2**20
GROWTH_MIB = 50
SECONDS = 1.0


@pytest.fixture(scope="module")
def library(start_module_engine: StartEngine) -> RunningService:
    return start_module_engine(
        wait_for_workers=False,
        FLUX_UPLOAD_PATIENCE_SECONDS=str(PATIENCE_SECONDS),
        FLUX_MAX_LORA_BYTES=str(MAX_BYTES),
    )


@pytest.fixture(scope="module")
def guarded(start_module_engine: StartEngine) -> RunningService:
    """One that asks for a key, takes little, and has the patience of default: half of an upload lies there until it
    is looked at.
    """
    service = start_module_engine(
        wait_for_workers=False, FLUX_API_KEYS=KEY, FLUX_MAX_LORA_BYTES=str(SMALL_BYTES)
    )
    service.client.headers["X-API-Key"] = KEY
    return service


def left(service: RunningService) -> set[str]:
    """Every file of the library but those of LoRAs that are listed, and the lock."""
    listed = service.client.get("/loras").json()["loras"]
    stems = {each["sha256"] for each in listed}
    found = (path for path in service.lora_dir.rglob("*") if path.is_file())
    return {path.name for path in found if path.name != ".lock" and path.stem not in stems}


def names(service: RunningService) -> list[str]:
    return [e["name"] for e in service.client.get("/loras").json()["loras"] if not e["builtin"]]


@pytest.fixture(autouse=True)
def nothing_left(library: RunningService) -> Iterator[None]:
    yield
    library.wait_until(lambda: left(library) == set(), what=f"keeps {left(library)}")
    for name in names(library):
        library.client.delete(f"/loras/{name}")


def memory_mib(service: RunningService) -> float:
    return psutil.Process(service.process.pid).memory_info().rss / 2**20


@contextlib.contextmanager
def cheap(service: RunningService, *, growth_mib: float = GROWTH_MIB) -> Iterator[None]:
    """What happens meanwhile costs the service little memory at its peak."""
    clear = Path(f"/proc/{service.process.pid}/clear_refs")
    clear.write_text("5")  # the peak begins anew
    before = memory_mib(service)
    yield
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak / 1024 - before < growth_mib


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


# Files that break a rule


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused_by_its_code_quickly_and_cheaply(
    library: RunningService, name: str
) -> None:
    content, word = BROKEN[name]
    library.client.put("/loras/warm.safetensors", content=lora())  # what is imported once
    process = psutil.Process(library.process.pid)
    with cheap(library):
        before = sum(process.cpu_times()[:2])  # not the clock's, which is others' time too
        answer = library.client.put("/loras/a.safetensors", content=content)
        took = sum(process.cpu_times()[:2]) - before
    told = answer.json()
    is_safetensors = content[8:9] in (b"", b"{")
    assert (answer.status_code, told["code"]) == (422 if is_safetensors else 415, "bad_file"), told
    assert word in told["detail"]
    assert took < SECONDS
    assert names(library) == ["warm"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_file_with_a_number_that_is_none_is_refused(library: RunningService, number: float) -> None:
    answer = library.client.put("/loras/a.safetensors", content=lora(number))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_file")
    assert "NaN or an infinity" in answer.json()["detail"]


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize("kind", ["pickle2", "pickle5", "zip", "gzip"])
def test_pickle_or_archive_is_refused_unopened(
    library: RunningService, tmp_path: Path, kind: str, suffix: str
) -> None:
    canary = tmp_path / "canary"
    content = {
        "zip": b"PK\3\4" + b"\0" * 1000,
        "gzip": b"\x1f\x8b\x08" + b"\xee" * 1000,
    }.get(
        kind
    ) or pickle.dumps({"a": Canary(canary), "b": b"x" * 200}, int(kind[-1]))
    answer = library.client.put(f"/loras/a.{suffix}", content=content)
    assert (answer.status_code, answer.json()["code"]) == (415, "bad_file")
    form = {"file": (f"a.{suffix}", content)}
    assert library.client.post("/loras", files=form).status_code == 415
    assert not canary.exists()


def test_pickle_of_many_megabytes_is_refused_by_its_first_bytes(library: RunningService) -> None:
    with Sender(library) as sender:
        sender.send(head(Content_Length=MAX_BYTES))
        sender.send(b"\x80\x04" + b"x" * 2**20)  # of 320 MiB
        status, told = sender.answer()
    assert (status, told["code"]) == (415, "bad_file") and "pickle" in told["detail"]


# Senders that do not keep to the rules


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_upload_cut_half_way_leaves_nothing(guarded: RunningService, how: str) -> None:
    data = lora(rank=2000)
    with Sender(guarded) as sender:
        if how == "length":
            sender.send(head(X_API_Key=KEY, Content_Length=len(data)) + data[: len(data) // 2])
        else:
            start = head(X_API_Key=KEY, Transfer_Encoding="chunked")
            sender.send(start + chunk(data[: len(data) // 2]))
        guarded.wait_until(lambda: left(guarded) != set(), what="has not begun")
        sender.close()
        guarded.wait_until(lambda: left(guarded) == set(), what="keeps half an upload")
    assert names(guarded) == []


def test_form_cut_half_way_leaves_nothing(guarded: RunningService) -> None:
    start = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
        + lora(rank=2000)
    )
    headers = head("/loras", "POST", Content_Type="multipart/form-data; boundary=x",
                   X_API_Key=KEY, Content_Length=len(start) * 2)  # fmt: skip
    with Sender(guarded) as sender:
        sender.send(headers + start)
        guarded.wait_until(lambda: left(guarded) != set(), what="has not begun")
        sender.close()
        guarded.wait_until(lambda: left(guarded) == set(), what="keeps half an upload")


def test_service_killed_half_way_leaves_nothing_after_the_next_start(
    guarded: RunningService,
) -> None:
    data = lora(rank=2000)
    with Sender(guarded) as sender:
        sender.send(head(X_API_Key=KEY, Content_Length=len(data)) + data[:-100])
        guarded.wait_until(lambda: left(guarded) != set(), what="has not begun")
        guarded.kill()
    assert list(guarded.lora_dir.rglob("*.part"))
    guarded.start()
    assert left(guarded) == set() and names(guarded) == []


@pytest.mark.parametrize("path", ["/loras/a.safetensors", "/loras"])
def test_slow_sender_is_ended(library: RunningService, path: str) -> None:
    form = {"Content_Type": "multipart/form-data; boundary=x"} if path == "/loras" else {}
    with Sender(library) as sender:
        sender.send(head(path, "POST" if form else "PUT", Content_Length=10_000, **form))
        started = time.perf_counter()
        with contextlib.suppress(ConnectionError):
            while time.perf_counter() - started < 2 * PATIENCE_SECONDS:
                sender.send(b"-")  # 10 bytes a second
                time.sleep(0.1)
        status, told = sender.answer()
    assert (status, told["code"]) == (408, "too_slow")
    assert "FLUX_UPLOAD_PATIENCE_SECONDS" in told["detail"]


def test_sender_that_is_slow_and_steady_enough_is_taken(library: RunningService) -> None:
    data = lora(
        rank=900
    )  # 2 MiB over more than two patiences, in steps of what one of them wants thrice
    steps = 10
    with Sender(library) as sender:
        sender.send(head(Content_Length=len(data)))
        for start in range(0, len(data), len(data) // steps + 1):
            sender.send(data[start : start + len(data) // steps + 1])
            time.sleep(2.5 * PATIENCE_SECONDS / steps)
        status, _ = sender.answer()
    assert status == 201


def test_declared_size_over_the_limit_is_refused_before_the_body(library: RunningService) -> None:
    with Sender(library) as sender:
        sender.send(head(Content_Length=MAX_BYTES + 1))
        status, told = sender.answer()
    assert (status, told["code"]) == (413, "too_large")
    assert "FLUX_MAX_LORA_BYTES" in told["detail"]


def test_ten_times_the_declared_size_is_cut_there(library: RunningService) -> None:
    data = lora()
    with Sender(library) as sender:
        sender.send(head(Content_Length=len(data)) + data * 10)
        status, told = sender.answer()
    assert status == 201 and told["size_bytes"] == len(data)


def test_declared_size_that_cuts_the_file_is_refused(library: RunningService) -> None:
    data = lora()
    with Sender(library) as sender:
        sender.send(head(Content_Length=len(data) // 10) + data)
        status, told = sender.answer()
    assert (status, told["code"]) == (422, "bad_file")


def test_chunked_body_without_a_length_is_taken(library: RunningService) -> None:
    data = lora()
    with Sender(library) as sender:
        sender.send(head(Transfer_Encoding="chunked") + chunk(data[:100]) + chunk(data[100:]))
        sender.send(b"0\r\n\r\n")
        status, told = sender.answer()
    assert status == 201 and told["sha256"] == hashlib.sha256(data).hexdigest()


def test_chunked_body_over_the_limit_is_cut_at_the_limit(guarded: RunningService) -> None:
    start = head(X_API_Key=KEY, Transfer_Encoding="chunked")
    with Sender(guarded) as sender:
        sender.send(start + chunk(lora().ljust(SMALL_BYTES)))
        time.sleep(0.3)
        sender.send(chunk(b"x"))
        status, told = sender.answer()
    assert (status, told["code"]) == (413, "too_large")
    assert left(guarded) == set()


@pytest.mark.parametrize("length", [{"Content_Length": 10**9}, {"Transfer_Encoding": "chunked"}])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/loras/a.safetensors"), ("POST", "/loras")])
def test_wrong_key_is_answered_before_the_body(
    guarded: RunningService, method: str, path: str, length: dict[str, Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in guarded.lora_dir.rglob("*")}
    with Sender(guarded) as sender:
        sender.send(head(path, method, X_API_Key="x" * 20, **length))
        status, told = sender.answer()
    assert (status, told["code"]) == (401, "unauthorized")
    assert {path: path.stat().st_mtime_ns for path in guarded.lora_dir.rglob("*")} == before


# Hostile names

NAMES = {
    "../x.safetensors": (404, None),  # no such route: a slash ends a name
    "%2e%2e%2fx.safetensors": (404, None),
    "..%5cx.safetensors": (201, "x"),
    "C%3a%5cUsers%5cx.safetensors": (201, "x"),
    "%2e%2e": (415, None),
    "x%00.safetensors": (400, None),
    "x%0d%0aX-Evil:1.safetensors": (400, None),
    "a" * 300 + ".safetensors": (400, None),
    "CON.safetensors": (201, "con"),
    "%F0%9F%8E%A8.safetensors": (201, "lora"),
    "%FF%FE.safetensors": (201, "lora"),
    ".safetensors": (201, "lora"),
    "..safetensors": (201, "lora"),
    "%E2%80%AEgpj.safetensors": (201, "gpj"),
    "x.safetensors%2f..%2f..%2fy.safetensors": (404, None),
    "~root.safetensors": (201, "root"),
    "$(touch%20x);.safetensors": (201, "touch-x"),
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
def test_hostile_name_is_cleaned_or_refused_and_never_a_path(
    library: RunningService, name: str
) -> None:
    data, (expected, cleaned) = lora(), NAMES[name]
    with Sender(library) as sender:
        sender.send(head(f"/loras/{name}", Content_Length=len(data)) + data)
        status, told = sender.answer()
    assert status == expected, told
    sha256 = hashlib.sha256(data).hexdigest()
    files = {path.name for path in library.lora_dir.iterdir() if path.is_file()} - {".lock"}
    assert files == (set() if cleaned is None else {f"{sha256}.safetensors", f"{sha256}.json"})
    assert names(library) == ([] if cleaned is None else [cleaned])


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "..\\x.safetensors", "/etc/x.safetensors", "a\0b.safetensors"]
)
def test_hostile_name_in_a_form_is_cleaned_or_refused(library: RunningService, name: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
        + lora() + b"\r\n--b--\r\n"
    )  # fmt: skip
    answer = library.client.post(
        "/loras", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == (400 if "\0" in name else 201)
    assert names(library) == ([] if "\0" in name else ["x"])


def test_two_forms_of_one_name_are_two_entries(library: RunningService) -> None:
    for seed, name in enumerate(["Caf%C3%A9.safetensors", "Cafe%CC%81.safetensors"]):
        assert library.client.put(f"/loras/{name}", content=lora(seed)).status_code == 201
    listed = [e for e in library.client.get("/loras").json()["loras"] if not e["builtin"]]
    assert [each["name"] for each in listed] == ["cafe-2", "cafe"]
    assert len({each["filename"] for each in listed}) == 1


# Much at once


@pytest.mark.parametrize("how", ["body", "form"])
def test_large_upload_grows_the_service_by_little(library: RunningService, how: str) -> None:
    library.client.put("/loras/warm.safetensors", content=lora())  # what is imported once
    start, zeros = padded(LARGE_BYTES)
    block = bytes(2**20)

    def content() -> Iterator[bytes]:
        yield start
        for _ in range(zeros // len(block)):
            yield block
        yield bytes(zeros % len(block))

    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
        yield from content()
        yield b"\r\n--b--\r\n"

    with cheap(library):
        if how == "body":
            answer = library.client.put("/loras/a.safetensors", content=content())
        else:
            answer = library.client.post(
                "/loras",
                content=form(),
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            )
    assert answer.status_code == 201, answer.text
    assert answer.json()["size_bytes"] == len(start) + zeros


def test_many_uploads_of_one_content_at_once_are_one_entry(library: RunningService) -> None:
    data = lora(rank=50)
    senders = [Sender(library) for _ in range(12)]
    with contextlib.ExitStack() as stack:
        for number, sender in enumerate(senders):
            stack.enter_context(sender)
            sender.send(head(f"/loras/{number}.safetensors", Content_Length=len(data)))
        for sender in senders:
            sender.send(data)
        answers = [sender.answer() for sender in senders]
    assert sorted(status for status, _ in answers) == [200] * 11 + [201]
    assert len({told["sha256"] for _, told in answers}) == 1
    assert len(names(library)) == 1


def test_service_answers_others_while_an_upload_comes_in(library: RunningService) -> None:
    start, zeros = padded(100 * 2**20)
    code = (
        "import sys, httpx2; start, zeros = bytes.fromhex(sys.argv[2]), int(sys.argv[3]);"
        "content = iter([start, *[bytes(2**20)] * (zeros // 2**20), bytes(zeros % 2**20)]);"
        "print(httpx2.put(sys.argv[1], content=content, timeout=60).status_code)"
    )
    url = f"{library.url}/loras/a.safetensors"
    upload = subprocess.Popen(
        [sys.executable, "-c", code, url, start.hex(), str(zeros)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    answered = 0
    while upload.poll() is None:
        is_coming = any(library.lora_dir.rglob("*.part"))
        assert library.client.get("/health/live").status_code == 200
        answered += is_coming and any(library.lora_dir.rglob("*.part"))
    assert upload.communicate()[0].strip() == "201"
    # One that reads its body without a pause would have answered once.
    assert answered >= 5


def test_header_of_honest_size_and_many_tensors_is_taken(library: RunningService) -> None:
    """At the limit, not over it: the largest honest file costs no more than a broken one."""
    modules = {f"lora_unet_single_blocks_{n}_linear2": (2, 10) for n in range(9_000)}
    content = lora(modules=modules)
    with cheap(library):
        answer = library.client.put("/loras/a.safetensors", content=content)
    assert answer.status_code == 201, answer.text


def test_pack_of_the_header_tests_is_a_file_when_nothing_is_broken(library: RunningService) -> None:
    """The corpus above is refused for what is broken in it, not for how it is made."""
    fine = {
        f"lora_unet_single_blocks_0_linear2.lora_{part}.weight": {
            "dtype": "F32", "shape": [1, 1], "data_offsets": [4 * n, 4 * n + 4],
        }
        for n, part in enumerate(("down", "up"))
    }  # fmt: skip
    assert library.client.put("/loras/a.safetensors", content=pack(fine)).status_code == 201
