"""The README, followed to the letter by someone who has just cloned the repository."""

import importlib
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from config.settings import ROOT
from models.precision import known_precisions, profile_of
from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import free_port
from utils.metadata import read_request

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
DEFAULT_PORTS = {"BF16_PORT": 8001, "FP4_PORT": 8000, "PAGE_PORT": 9000}
INSTALL_SECONDS = 900


def commands(word: str) -> list[str]:
    return [command for command in COMMANDS if shlex.split(command)[0] == word]


class Newcomer:
    """Clones what is committed, and runs commands there on ports that are free."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports = {name: free_port() for name in DEFAULT_PORTS}
        # Only what is imported is compiled, when it is: of the rest there is more than of anything else.
        # pip reads the variables of its --no- options as what is left of them: 0 is "do not".
        self.environ = clean_environment(
            **self.ports, FLUX_GPUS="none", FLUX_MIN_FREE_MIB=0, PIP_NO_COMPILE=0
        )
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)

    def start(self) -> tuple[subprocess.Popen[str], str]:
        """The running start.sh and what it said until it was up."""
        (start,) = commands("./start.sh")
        running = subprocess.Popen(
            shlex.split(start),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert running.stdout is not None
        said = ""
        for line in running.stdout:
            said += line
            if line == "setup: ready\n":
                lend_compiled(self.folder / ".venv")
            if line.lstrip().startswith("curl "):
                return running, said
        running.communicate()
        raise AssertionError(f"start.sh ended with {running.returncode}: {said}")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        for name, port in DEFAULT_PORTS.items():
            command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[name]}")
        if command.startswith("curl "):
            command = command.replace(
                "curl ", "curl --fail-with-body ", 1
            )  # an error is no success
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environ, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    def ctrl_c(self, running: subprocess.Popen[str]) -> int:
        family = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=120)
        _, alive = psutil.wait_procs(family, timeout=120)
        assert family and not alive
        return running.returncode


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is nothing to clone")
    return Newcomer(tmp_path_factory.mktemp("newcomer") / "flux")


def lend_compiled(venv: Path) -> None:
    """What is compiled of the same sources here already, dated as theirs: two workers that compile torch and diffusers
    take more of the processor than pip takes for all of it. Python takes it as its own.
    """
    importlib.import_module("tests.tiny_models")  # it brings what a worker imports
    for module in list(sys.modules.values()):
        source, compiled = getattr(module, "__file__", None), getattr(module, "__cached__", None)
        if not (source and compiled and Path(source).is_relative_to(sys.prefix)):
            continue
        theirs = venv / Path(source).relative_to(sys.prefix)
        if not (Path(compiled).is_file() and theirs.is_file()):
            continue
        # The file's head: four bytes of version, four of kind (none: it goes by time), the source's time and size.
        code = Path(compiled).read_bytes()
        if code[4:8] == bytes(4) and theirs.read_bytes() == Path(source).read_bytes():
            there = venv / Path(compiled).relative_to(sys.prefix)
            there.parent.mkdir(exist_ok=True)
            unfinished = there.with_suffix(f".{os.getpid()}.pyc")
            changed = struct.pack("<I", int(theirs.stat().st_mtime) & 0xFFFFFFFF)
            unfinished.write_bytes(code[:8] + changed + code[12:])
            unfinished.rename(there)


def draw_with_both(newcomer: Newcomer) -> dict[str, bytes]:
    """A picture of the same request from each service, asked for at once."""

    def draw(precision: str) -> bytes:
        port = newcomer.ports[f"{precision.upper()}_PORT"]
        body = {"prompt": "a red balloon", "width": 128, "height": 128, "steps": 2, "seed": 7}
        url = f"http://127.0.0.1:{port}/generate?format=raw"
        answer = httpx2.post(url, json=body, timeout=120)
        assert answer.status_code == 200, (precision, answer.text)
        return answer.content

    with ThreadPoolExecutor() as pool:
        return dict(zip(known_precisions(), pool.map(draw, known_precisions()), strict=True))


@pytest.mark.timeout(INSTALL_SECONDS)
def test_readme_first_start_draws_with_both_and_second_start_installs_nothing(
    newcomer: Newcomer,
) -> None:
    running, said = newcomer.start()
    try:
        assert "installing the runtime requirements" in said
        for command in commands("curl"):
            done = newcomer.run(command)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        with Image.open(newcomer.folder / "picture.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (256, 256))
            picture.load()
        pictures = draw_with_both(newcomer)
        for precision, drawn in pictures.items():
            described = read_request(drawn)
            assert described["precision"] == precision
            assert described["engine"] in profile_of(precision).engines
        assert len(set(pictures.values())) == len(pictures), "each has its own weights"
        assert newcomer.ctrl_c(running) == 0
    finally:
        if running.poll() is None:
            newcomer.ctrl_c(running)

    installed = _installed_files(newcomer.folder)
    again = newcomer.run("PAGE_PORT=nine ./start.sh")
    # It came past its setup, where it ends: that a service starts and stops is seen above.
    assert again.returncode == 2 and "PAGE_PORT takes a port" in again.stderr, again
    assert "setup:" not in again.stderr
    assert _installed_files(newcomer.folder) == installed
    # What the starts wrote is ignored, all of it.
    status = newcomer.run("git status --porcelain")
    assert status.stdout == ""


def _installed_files(folder: Path) -> dict[str, int]:
    """Everything in .venv but compiled caches, with its time."""
    return {
        str(path.relative_to(folder)): path.lstat().st_mtime_ns
        for path in (folder / ".venv").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


# In place of the service: ends well once it was started with accepted flags.
STAND_IN = "print('started')\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = copy_checkout(tmp_path_factory.mktemp("readme") / "flux")
    for main in ("main_bf16.py", "main_fp4.py"):
        (copy / main).write_text(STAND_IN)
    return copy


@pytest.mark.parametrize(
    "command", [*commands("./start_bf16_api.sh"), *commands("./start_fp4_api.sh")]
)
def test_readme_start_script_command_is_accepted(checkout: Path, command: str) -> None:
    # A flag wins over the environment, so a port in the command is replaced in the command.
    command = re.sub(r"--port \d+", f"--port {free_port()}", command)
    done = subprocess.run(
        shlex.split(command),
        cwd=checkout,
        env=clean_environment(BF16_PORT=free_port(), FP4_PORT=free_port()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_readme_has_no_command_that_these_tests_do_not_run() -> None:
    # ./scripts/test.sh runs this test; that it is what everybody runs is checked instead.
    known = {
        "./start.sh",
        "curl",
        "./start_bf16_api.sh",
        "./start_fp4_api.sh",
        "./scripts/test.sh",
    }
    assert {shlex.split(command)[0] for command in COMMANDS} == known
    assert "exec ./scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_readme_files_table_names_what_is_there() -> None:
    section = README.partition("\n## Files\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `") and "write |" not in row]
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(paths) >= 8
    assert not [path for path in paths if not (ROOT / path).exists()]
