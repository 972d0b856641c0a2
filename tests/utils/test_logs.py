"""What is logged where: levels, libraries, workers, and what never is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigurationError
from config.settings import ROOT, load_settings
from utils import logs


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """The root's handlers and every level that `logs` sets."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()  # pytest's own, which `force` would close
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in (*logs.OURS, *logs.WORDY):
        logging.getLogger(name).setLevel(logging.NOTSET)


def configured(folder: Path, **environ: str) -> None:
    logs.configure(load_settings("bf16", {"FLUX_LOG_DIR": str(folder), **environ}), "bf16")


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bf16.log").read_text().splitlines()]


def test_configure_line_goes_to_the_console_and_the_file(tmp_path, capsys) -> None:
    configured(tmp_path)
    logging.getLogger("utils.ledger").info("queued", extra={"action": "job_queued", "job_id": "7"})
    assert capsys.readouterr().err.endswith("INFO queued action=job_queued job_id=7\n")
    [line] = written(tmp_path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "service": "bf16",
        "logger": "utils.ledger",
        "message": "queued",
        "action": "job_queued",
        "job_id": "7",
    }


@pytest.mark.parametrize(("level", "told"), [("debug", "diw"), ("info", "iw"), ("warning", "w")])
def test_configure_level_is_the_least_of_ours(tmp_path, capsys, level: str, told: str) -> None:
    configured(tmp_path, FLUX_LOG_LEVEL=level)
    log = logging.getLogger("api.access")
    log.debug("d")
    log.info("i")
    log.warning("w")
    assert "".join(line["message"] for line in written(tmp_path)) == told


@pytest.mark.parametrize("library", ["uvicorn.error", "websockets.server", "multipart", "asyncio"])
def test_configure_libraries_tell_no_details_at_any_level(tmp_path, library: str) -> None:
    """Of websockets they are the headers, keys included."""
    configured(tmp_path, FLUX_LOG_LEVEL="debug")
    logging.getLogger(library).debug("< X-API-Key: secret")
    assert written(tmp_path) == []


def test_configure_console_has_a_level_of_its_own(tmp_path, capsys) -> None:
    configured(tmp_path, FLUX_CONSOLE_LEVEL="error")
    logging.getLogger("api").warning("for the file alone")
    assert capsys.readouterr().err == "" and len(written(tmp_path)) == 1


def test_configure_console_speaks_json_when_asked(tmp_path, capsys) -> None:
    configured(tmp_path, FLUX_CONSOLE_FORMAT="json")
    logging.getLogger("api").warning("here")
    assert json.loads(capsys.readouterr().err)["message"] == "here"


def test_configure_without_a_file_writes_none(tmp_path, capsys) -> None:
    configured(tmp_path / "logs", FLUX_LOG_TO_FILE="false")
    logging.getLogger("api").warning("here")
    assert "here" in capsys.readouterr().err and not (tmp_path / "logs").exists()


def test_configure_folder_that_is_a_file_is_named_with_its_remedy(tmp_path) -> None:
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(ConfigurationError, match="FLUX_LOG_DIR = .*logs.*FLUX_LOG_TO_FILE=false"):
        configured(tmp_path / "logs")


@pytest.mark.parametrize(
    ("environ", "secret"),
    [
        ({"FLUX_API_KEYS": 'a-key-of-"many"-signs'}, 'a-key-of-"many"-signs'),
        ({"FLUX_BFL_API_KEY": "0123456789abcdef"}, "0123456789abcdef"),
        ({"FLUX_HF_TOKEN": "token-without-a-form"}, "token-without-a-form"),
        ({}, "flux_" + "k" * 43),
        ({}, "hf_" + "t" * 34),
        ({}, "bfl_" + "b" * 32),
    ],
)
def test_configure_secret_is_taken_out_wherever_it_stands(
    tmp_path, capsys, environ: dict[str, str], secret: str
) -> None:
    configured(tmp_path, **environ)
    try:
        raise ValueError(f"no {secret}")
    except ValueError:
        logging.getLogger("api").exception("with %s", secret, extra={"path": f"/x/{secret}"})
    console, file = capsys.readouterr().err, (tmp_path / "bf16.log").read_text()
    for text in (console, file):
        assert text.count("(hidden)") == 3
        assert secret not in text and json.dumps(secret)[1:-1] not in text


def test_configure_scheme_of_a_key_stays_and_the_key_goes(tmp_path) -> None:
    configured(tmp_path)
    logging.getLogger("api").warning("Authorization: Bearer abcdefgh12345678 was sent")
    assert written(tmp_path)[0]["message"] == "Authorization: Bearer (hidden) was sent"


# Workers


def worker_says(code: str) -> list[str]:
    """The lines of a process that logs as a worker does."""
    begin = "import logging, sys, warnings\nfrom utils import logs\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}logs.configure_worker('gpu0', 'info')\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_relay_worker_line_keeps_its_level_logger_fields_and_trace(tmp_path) -> None:
    [line] = worker_says(
        "try: 1 / 0\n"
        "except Exception: logging.getLogger('worker').exception('cannot', "
        "extra={'action': 'save_failed', 'job_id': ['a', 'b']})"
    )
    configured(tmp_path)
    logs.relay(line, "gpu0")
    [line] = written(tmp_path)
    assert (line["level"], line["logger"], line["worker"]) == ("error", "worker", "gpu0")
    assert (line["action"], line["job_id"]) == ("save_failed", ["a", "b"])
    assert "ZeroDivisionError" in line["exception"] and line["service"] == "bf16"


@pytest.mark.parametrize(
    "text",
    ["Segmentation fault", '{"time": "x"}', '{"time": "x", "level": 7}', '{"time": "no json'],
)
def test_relay_what_is_no_log_line_is_what_the_worker_said(tmp_path, text: str) -> None:
    configured(tmp_path)
    logs.relay(text, "gpu0")
    [line] = written(tmp_path)
    assert (line["message"], line["action"], line["worker"]) == (text, "worker_said", "gpu0")


def test_relay_below_the_level_is_not_told(tmp_path) -> None:
    [line] = worker_says("logging.getLogger('worker').info('loaded')")
    configured(tmp_path, FLUX_LOG_LEVEL="warning")
    logs.relay(line, "gpu0")
    assert written(tmp_path) == []


def test_worker_library_that_tells_the_end_of_a_prompt_tells_none() -> None:
    said = worker_says(
        "log = logging.getLogger('diffusers.pipelines.flux')\n"
        "log.warning('The following part of your input was truncated because CLIP can only handle "
        "sequences up to 77 tokens: %s', ['a secret garden'])"
    )
    assert "longer than the text encoder reads" in said[0] and "garden" not in "".join(said)


def test_worker_warnings_are_log_lines() -> None:
    [line] = worker_says("warnings.warn('an old way')")
    assert json.loads(line)["level"] == "warning" and "an old way" in json.loads(line)["message"]
