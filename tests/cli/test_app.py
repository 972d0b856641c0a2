"""The program as a whole: help, completion, exit statuses, JSON, keys and addresses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cli.app import build
from cli.failures import Status
from config.settings import ROOT
from tests.cli.conftest import PROGRAM
from tests.operations.checkout import clean_environment
from tests.service import KeyedService

HELP_SECONDS = 0.5  # of the processor


def _commands() -> Iterator[tuple[str, ...]]:
    for info in build().registered_commands:
        yield (info.name,)
    for group in build().registered_groups:
        for info in group.typer_instance.registered_commands:
            yield (group.typer_instance.info.name, info.name)


COMMANDS = list(_commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_has_help_and_takes_json(flux, words: tuple[str, ...]) -> None:
    done = flux(*words, "--help")
    assert (done.status, done.err) == (0, "")
    assert "--json" in done.out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_is_in_the_document(words: tuple[str, ...]) -> None:
    assert f"flux {' '.join(words)}" in (ROOT / "docs" / "cli.md").read_text()


def test_exit_statuses_are_in_the_document() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for status in Status:
        assert f"| {int(status)} |" in text


def test_without_a_command_there_is_help_and_status_2(flux) -> None:
    assert flux().status == Status.USAGE


@pytest.mark.parametrize(
    "arguments",
    [("nonesuch",), ("generate",), ("queue", "nonesuch"), ("generate", "a", "--nonesuch")],
)
def test_usage_errors_are_json_where_it_is_asked_for(flux, arguments: tuple[str, ...]) -> None:
    plain = flux(*arguments)
    assert (plain.status, plain.out) == (Status.USAGE, "") and "--help" in plain.err
    done = flux(*arguments, "--json")
    assert (done.status, done.error["code"]) == (Status.USAGE, "usage")


def test_address_comes_from_the_option_then_the_environment_then_the_settings(
    flux, engine_service, monkeypatch
) -> None:
    monkeypatch.setenv("BF16_PORT", str(engine_service.port))
    monkeypatch.setenv("FP4_PORT", "1")
    assert flux("gpu", "--json").json["services"][0]["service"] == "bf16"
    monkeypatch.setenv("FLUX_URL", "http://127.0.0.1:1")
    assert flux("gpu").status == Status.UNREACHABLE
    assert flux("gpu", "--url", engine_service.url).status == 0
    assert flux("gpu", "--url", engine_service.url.removeprefix("http://")).status == 0
    assert flux("gpu", "--service", "bf16").status == 0  # a name is more than the environment


def test_no_service_is_a_status_of_its_own_and_says_what_to_do(flux, monkeypatch) -> None:
    monkeypatch.setenv("BF16_PORT", "1")
    monkeypatch.setenv("FP4_PORT", "2")
    done = flux("queue", "list", "--json")
    assert (done.status, done.error["code"]) == (Status.UNREACHABLE, "unreachable")
    assert "./flux serve" in done.error["message"]


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "http://", "http://a:b@127.0.0.1", "http://x?y=1", "http://h:0", ":"]
)
def test_address_that_is_none_is_refused(flux, url: str) -> None:
    done = flux("gpu", "--url", url)
    assert done.status == Status.USAGE and "--url" in done.err


def test_setting_that_is_wrong_is_a_status_of_its_own(flux, monkeypatch) -> None:
    monkeypatch.setenv("FLUX_PRT", "8001")
    done = flux("gpu", "--json")
    assert done.status == Status.SETTINGS and "FLUX_PORT" in done.error["message"]


def test_ctrl_c_is_a_status_of_its_own_and_one_line_of_json(flux, monkeypatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.doctor.examine", interrupted)
    done = flux("doctor", "--json")
    assert done.status == Status.INTERRUPTED and done.error["code"] == "interrupted"
    assert len(done.out.splitlines()) == 1 and "Ctrl-C" in done.err


def test_ctrl_c_while_the_commands_are_loaded_is_the_same() -> None:
    code = """if True:
        import runpy, sys
        class Interrupted:
            def find_spec(self, name, *_):
                if name == "cli.app":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        sys.argv = ["flux", "gpu", "--json"]
        runpy.run_path("cli/__main__.py", run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == Status.INTERRUPTED
    assert json.loads(done.stdout)["error"]["code"] == "interrupted" and "Ctrl-C" in done.stderr


@pytest.mark.parametrize("command", [("gpu",), ("keys", "list"), ("backup", "backup")])
def test_settings_that_are_no_text_are_named(flux, monkeypatch, command: tuple[str, ...]) -> None:
    def unreadable(*_: object) -> None:
        b"\xff".decode()

    monkeypatch.setattr("config.settings._dotenv", unreadable)
    monkeypatch.setattr("utils.backup.places.dotenv", unreadable)
    done = flux(*command, "--json")
    assert done.status == Status.SETTINGS and ".env" in done.error["message"]


def test_proxy_is_not_asked_for_services_of_this_machine(flux, engine_service, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert flux("gpu", "--url", engine_service.url).status == 0


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another program's web server."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>It works</html>"
            self.send_response(200 if self.path != "/queue" else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("command", [("gpu",), ("queue", "list")])
def test_stranger_at_the_address_is_told_apart(flux, stranger: str, command) -> None:
    done = flux(*command, "--url", stranger)
    assert done.status == Status.UNREACHABLE and "no service of this project" in done.err


def test_stranger_at_the_port_of_the_settings_is_no_service(flux, stranger: str, monkeypatch):
    port = stranger.rpartition(":")[2]
    monkeypatch.setenv("BF16_PORT", port)
    monkeypatch.setenv("FP4_PORT", port)
    assert flux("gpu").status == Status.UNREACHABLE


def test_key_is_asked_for_and_taken_from_option_or_environment(
    flux, keyed_service: KeyedService, monkeypatch
) -> None:
    at = ("--url", keyed_service.url)
    without = flux("gpu", "--json", *at)
    assert (without.status, without.error["http_status"]) == (Status.NOT_ALLOWED, 401)
    assert "FLUX_API_KEY" in without.error["message"]
    assert flux("gpu", "--key", "flux_wrong-key-that-is-long", *at).status == Status.NOT_ALLOWED
    assert flux("gpu", "--key", keyed_service.key, *at).status == 0
    monkeypatch.setenv("FLUX_API_KEY", keyed_service.key)
    assert flux("gpu", *at).status == 0


def test_key_of_the_environment_is_no_setting_that_is_wrong(
    flux, keyed_service: KeyedService, monkeypatch
) -> None:
    """A service refuses the name; a command that reads the services' settings does not."""
    monkeypatch.setenv("FLUX_API_KEY", keyed_service.key)
    monkeypatch.setenv("BF16_PORT", str(keyed_service.port))
    monkeypatch.setenv("FP4_PORT", "1")
    assert flux("gpu").status == 0
    assert flux("keys", "list").status == 0
    assert flux("backup", "backup").status == 0


def test_key_without_the_scope_is_told_so(flux, keyed_service: KeyedService) -> None:
    key = keyed_service.make_key("generate")
    done = flux("queue", "pause", "--url", keyed_service.url, "--key", key)
    assert done.status == Status.NOT_ALLOWED and "scope" in done.err and key not in done.err


def test_limit_that_is_reached_is_a_status_to_come_again(flux, keyed_service: KeyedService) -> None:
    key = keyed_service.make_key("generate", requests_per_minute=1)
    arguments = ("usage", "--url", keyed_service.url, "--key", key, "--json")
    assert flux(*arguments).status == 0
    done = flux(*arguments)
    assert (done.status, done.error["code"]) == (Status.LATER, "rate_limited")
    assert int(done.error["retry_after_seconds"]) > 0


# The launcher


def test_launcher_runs_by_a_link_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flux").symlink_to(PROGRAM)
    (tmp_path / "flux2").symlink_to("bin/flux")
    done = subprocess.run([tmp_path / "flux2", "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"generate" in done.stdout


def checkout_without(venv: str | None, tmp_path: Path) -> Path:
    """The launcher and what it starts alone, with `.venv/bin/python` as given, or none."""
    folder = tmp_path / 'a "quoted" checkout'
    folder.mkdir()
    shutil.copy(PROGRAM, folder / "flux")
    for room in ("cli", "scripts", "models", "utils", "config"):
        (folder / room).symlink_to(ROOT / room)
    if venv is not None:
        (folder / ".venv" / "bin").mkdir(parents=True)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(venv)
        python.chmod(0o755)
    return folder


@pytest.mark.parametrize("venv", [None, "#!/bin/sh\nexit 1\n"], ids=["none", "too old"])
def test_launcher_without_an_environment_says_what_to_run(tmp_path: Path, venv) -> None:
    folder = checkout_without(venv, tmp_path)
    done = subprocess.run([folder / "flux", "gpu", "--json"], capture_output=True, text=True)
    assert done.returncode == Status.WRONG
    assert "scripts/setup_env.sh" in done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "no_environment" and str(folder) in error["message"]


def test_launcher_without_packages_says_which_is_missing(tmp_path: Path) -> None:
    """An environment whose Python is well and in which nothing is installed."""
    folder = checkout_without(None, tmp_path)
    bare = f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n'  # without site-packages
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(bare)
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    done = subprocess.run([folder / "flux", "gpu", "--json"], capture_output=True, text=True)
    assert done.returncode == Status.WRONG and "typer" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "no_package"


@pytest.mark.timing
def test_help_takes_little_of_the_processor() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([PROGRAM, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < HELP_SECONDS


def test_commands_load_nothing_that_is_heavy() -> None:
    """Neither torch at any time, nor what a command needs before it is called."""
    code = (
        "import sys; sys.path.insert(0, '.'); from cli.app import build; build();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} &"
        " {'torch', 'numpy', 'PIL', 'pydantic', 'httpx2', 'diffusers', 'fastapi', 'psutil'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_shown(shell: str) -> None:
    environ = clean_environment(_FLUX_COMPLETE=f"source_{shell}")
    done = subprocess.run([PROGRAM], env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "_FLUX_COMPLETE" in done.stdout


def test_completion_knows_commands_models_and_loras(engine_service) -> None:
    def offered(words: str) -> str:
        environ = clean_environment(
            _FLUX_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1),
            BF16_PORT=engine_service.port,
            FP4_PORT=1,
        )
        return subprocess.run([PROGRAM], env=environ, capture_output=True, text=True).stdout

    assert "generate" in offered("flux gen")
    assert "flux-schnell" in offered("flux generate a --model flux-s")
    assert "sketch" in offered("flux generate a --lora ske")


def test_reader_that_has_enough_is_no_error(engine_service) -> None:
    reader, writer = socket.socketpair()
    reader.close()
    with writer:
        done = subprocess.run(
            [PROGRAM, "models", "list", "--url", engine_service.url],
            env=clean_environment(),
            stdout=writer.fileno(),
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_environment_of_a_command_is_not_changed() -> None:
    """What is started from here is not led to this checkout's modules."""
    assert "PYTHONPATH" not in (ROOT / "flux").read_text()
    assert os.access(ROOT / "flux", os.X_OK)
