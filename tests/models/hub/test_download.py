"""Bytes from the Hub: whole, checked, gone on with after whatever ended them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from config.errors import ModelUnavailable, StorageUnavailable
from config.settings import ROOT
from models.hub import download
from models.hub.cache import RepoCache
from models.hub.download import Patience, Progress, fetch, require_room
from models.hub.repository import RepoFile, ask
from models.hub.snapshot import download as download_all
from tests.hub import Hub

REPO = "somebody/tiny-flux"
VAE = "vae/diffusion_pytorch_model.safetensors"
QUICK = Patience(first_pause_seconds=0.01, silence_seconds=5, tries=3)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    cache = RepoCache(tmp_path / "hub", REPO)
    cache.make()
    return cache


def vae() -> RepoFile:
    return ask(REPO).file(VAE)


def bring(
    cache: RepoCache,
    *files: RepoFile,
    patience: Patience = QUICK,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    fetch(ask(REPO), files, cache, on_progress=on_progress, patience=patience)


def ranges(hub: Hub) -> list[str | None]:
    return [headers.get("range") for name, headers in hub.got if name == f"{REPO}/{VAE}"]


def left_over(cache: RepoCache) -> list[str]:
    return [path.name for path in (cache.folder / "blobs").iterdir() if path.suffix == ".part"]


def test_file_comes_whole_under_its_digest(hub: Hub, cache: RepoCache) -> None:
    file = vae()
    bring(cache, file)
    assert cache.blob(file).read_bytes() == hub.files[f"{REPO}/{VAE}"]
    assert cache.blob(file).name == file.sha256
    assert left_over(cache) == []


def test_file_that_is_here_is_not_asked_for(hub: Hub, cache: RepoCache) -> None:
    file = vae()
    bring(cache, file)
    hub.got.clear()
    bring(cache, file)
    assert hub.got == []


def test_small_file_is_checked_by_gits_digest(hub: Hub, cache: RepoCache) -> None:
    name = f"{REPO}/vae/config.json"
    hub.spoilt[name] = hub.files[name].replace(b"0", b"1")
    with pytest.raises(ModelUnavailable, match="vae/config.json came twice with another checksum"):
        bring(cache, ask(REPO).file("vae/config.json"))


def test_large_file_with_other_bytes_is_refused_and_not_kept(hub: Hub, cache: RepoCache) -> None:
    data = hub.files[f"{REPO}/{VAE}"]
    hub.spoilt[f"{REPO}/{VAE}"] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(ModelUnavailable, match="another checksum") as caught:
        bring(cache, vae())
    assert vae().sha256 in caught.value.message
    assert left_over(cache) == [] and not cache.has(vae())
    assert len(ranges(hub)) == 2, "once more from the start, then no more"


def test_rest_is_asked_for_where_it_broke_off(hub: Hub, cache: RepoCache) -> None:
    hub.breaks = 1
    bring(cache, vae())
    size = len(hub.files[f"{REPO}/{VAE}"])
    assert ranges(hub) == [None, f"bytes={size - 1000}-"]


def test_part_of_an_earlier_process_is_gone_on_with(hub: Hub, cache: RepoCache) -> None:
    file, data = vae(), hub.files[f"{REPO}/{VAE}"]
    cache.part(file).write_bytes(data[:5000])
    bring(cache, file)
    assert ranges(hub) == ["bytes=5000-"]
    assert cache.blob(file).read_bytes() == data


@pytest.mark.parametrize("length", ["short", "long"])
def test_part_that_was_spoilt_is_fetched_anew(hub: Hub, cache: RepoCache, length: str) -> None:
    file, data = vae(), hub.files[f"{REPO}/{VAE}"]
    cache.part(file).write_bytes(b"\0" * (5000 if length == "short" else len(data) + 1))
    bring(cache, file)
    assert cache.blob(file).read_bytes() == data


def test_server_that_sends_the_whole_file_again_is_understood(hub: Hub, cache: RepoCache) -> None:
    file, data = vae(), hub.files[f"{REPO}/{VAE}"]
    hub.takes_ranges = False
    cache.part(file).write_bytes(data[:5000])
    bring(cache, file)
    assert cache.blob(file).read_bytes() == data


def test_file_that_is_longer_than_the_hub_tells_is_refused(hub: Hub, cache: RepoCache) -> None:
    hub.sizes[f"{REPO}/{VAE}"] = 1000
    with pytest.raises(ModelUnavailable, match="more bytes came than the Hub tells"):
        bring(cache, vae())
    assert not cache.has(vae())


def test_file_that_is_shorter_than_the_hub_tells_is_refused(hub: Hub, cache: RepoCache) -> None:
    name = f"{REPO}/vae/config.json"
    hub.sizes[name] = len(hub.files[name]) + 1
    with pytest.raises(ModelUnavailable, match="vae/config.json.*3 times"):
        bring(cache, ask(REPO).file("vae/config.json"))


def test_file_without_a_byte_comes_too(hub: Hub, cache: RepoCache) -> None:
    hub.files[f"{REPO}/tokenizer/empty.txt"] = b""
    file = ask(REPO).file("tokenizer/empty.txt")
    bring(cache, file)
    assert cache.blob(file).read_bytes() == b""


def test_server_in_trouble_is_asked_again(hub: Hub, cache: RepoCache) -> None:
    hub.statuses += [503, 429]
    bring(cache, vae())
    assert len(ranges(hub)) == 3


def test_server_that_stays_in_trouble_ends_it_and_what_came_is_kept(
    hub: Hub, cache: RepoCache
) -> None:
    file = vae()
    cache.part(file).write_bytes(hub.files[f"{REPO}/{VAE}"][:5000])
    hub.statuses += [500] * 10
    with pytest.raises(ModelUnavailable, match="answers 500.*3 times.*4.9 KiB of .*goes on"):
        bring(cache, file)
    assert cache.part(file).stat().st_size == 5000


def test_gated_file_says_how_to_accept_the_licence(hub: Hub, cache: RepoCache) -> None:
    hub.licensed.add(REPO)
    with pytest.raises(ModelUnavailable, match=f"https://huggingface.co/{REPO}.*HF_TOKEN"):
        bring(cache, vae())
    assert len(ranges(hub)) == 1, "a refusal is not asked about twice"


def test_token_of_the_environment_opens_a_gated_file(
    hub: Hub, cache: RepoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.licensed.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    bring(cache, vae())
    assert cache.has(vae())


def test_token_is_not_sent_on_to_another_server(
    hub: Hub, cache: RepoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import hub as stand_in

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with stand_in.serving() as other:
        other.files.update(hub.files)
        hub.elsewhere = other.url
        bring(cache, vae())
        ((_, headers),) = other.got
    assert "authorization" not in headers and cache.has(vae())
    assert hub.got[0][1]["authorization"] == "Bearer hf_secret"


def test_silent_server_is_given_up(cache: RepoCache, hub: Hub) -> None:
    file = vae()
    hub.gate.clear()
    impatient = Patience(silence_seconds=0.5, tries=2, first_pause_seconds=0.01)
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="ReadTimeout.*2 times without progress"):
        bring(cache, file, patience=impatient)
    assert time.monotonic() - began < 60  # the stand-in goes on later
    assert cache.part(file).stat().st_size > 0, "what came is kept"


def test_server_that_trickles_is_given_up(hub: Hub, cache: RepoCache) -> None:
    """Each byte comes in time, and the file never would."""
    file, trickle = vae(), _Trickle()
    hub.elsewhere = trickle.url
    impatient = Patience(
        silence_seconds=5, window_seconds=0.2, window_bytes=2000, tries=2, first_pause_seconds=0.01
    )
    try:
        with pytest.raises(ModelUnavailable, match=r"bytes came in \d+ s"):
            bring(cache, file, patience=impatient)
    finally:
        trickle.close()


def test_progress_counts_every_byte_of_every_file(hub: Hub, cache: RepoCache) -> None:
    told: list[Progress] = []
    files = [vae(), ask(REPO).file("vae/config.json")]
    bring(cache, *files, on_progress=told.append)
    total = sum(file.size_bytes for file in files)
    assert told[-1].received_bytes == told[-1].total_bytes == total
    assert told[-1].fraction == 1.0 and "2 of 2 files" in str(told[-1])
    assert [path for path, _, _ in told[-1].files] == [file.path for file in files]


def test_who_raises_from_progress_ends_the_download(hub: Hub, cache: RepoCache) -> None:
    class Enough(Exception):
        pass

    def on_progress(progress: Progress) -> None:
        raise Enough

    hub.gate.clear()
    with pytest.raises(Enough):
        bring(cache, vae(), on_progress=on_progress)
    hub.gate.set()


def test_two_at_once_fetch_a_file_once(hub: Hub, cache: RepoCache) -> None:
    hub.gate.clear()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            bring(cache, vae())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not ranges(hub):
        time.sleep(0.01)
    hub.gate.set()
    for thread in threads:
        thread.join()
    assert failed == [] and cache.has(vae()) and len(ranges(hub)) == 1


def test_disk_without_room_is_refused_with_numbers_before_anything_is_asked(
    hub: Hub, cache: RepoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = vae()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(10**9, 0, 2**20))
    with pytest.raises(StorageUnavailable, match=r"[\d.]+ (Ki|Mi)B are still .*1.0 MiB free"):
        require_room(cache, [file], reserve_bytes=2**20)
    hub.got.clear()
    with pytest.raises(StorageUnavailable, match="FLUX_MODELS_DIR or HF_HOME"):
        download_all(REPO, cache.folder.parent, reserve_bytes=2**20, patience=QUICK)
    assert [name for name, _ in hub.got if name.endswith("safetensors")] == []


def test_room_is_asked_for_what_is_missing_alone(
    hub: Hub, cache: RepoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = vae()
    cache.part(file).write_bytes(b"\0" * (file.size_bytes - 10))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage(10**9, 0, 10))
    require_room(cache, [file], reserve_bytes=0)


def test_disk_that_fills_up_meanwhile_is_said_and_nothing_is_lost(
    hub: Hub, cache: RepoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(StorageUnavailable, match="full; what came is kept"):
        bring(cache, vae())
    assert not cache.has(vae())


def test_process_killed_in_the_middle_goes_on_when_it_is_run_again(
    hub: Hub, tmp_path: Path
) -> None:
    """`kill -9` of a real process; the next one asks for the rest."""
    hub.held.add(f"{REPO}/{VAE}")
    hub.gate.clear()
    file, folder = vae(), tmp_path / "hub"
    code = (
        "import sys; from pathlib import Path; from models.hub.snapshot import download;"
        "download(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, REPO, str(folder)]
    environ = {**os.environ, "HF_ENDPOINT": hub.url}
    part = RepoCache(folder, REPO).part(file)
    process = subprocess.Popen(command, cwd=ROOT, env=environ)
    try:
        deadline = time.monotonic() + 120
        while not (part.exists() and part.stat().st_size == file.size_bytes - 1000):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.gate.set()
    hub.got.clear()
    subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=120)
    assert ranges(hub) == [f"bytes={file.size_bytes - 1000}-"]
    assert RepoCache(folder, REPO).blob(file).read_bytes() == hub.files[f"{REPO}/{VAE}"]


class _Trickle:
    """A server that answers any request with a byte now and then."""

    def __init__(self) -> None:
        from http.server import BaseHTTPRequestHandler

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100000000")
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"x" * 10)
                        self.wfile.flush()
                        time.sleep(0.02)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
