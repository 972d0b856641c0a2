"""README and docs/*.md: their commands run, their links lead somewhere, what they name is there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.lora_files import lora
from tests.operations.checkout import clean_environment, copy_checkout
from tests.operations.documents import (
    READ,
    REASONS,
    RUN,
    SHELLS,
    Block,
    Document,
    documents,
)
from tests.pictures import file_of, gradient
from tests.service import RunningService

DOCUMENTS = documents()
BLOCKS = [block for document in DOCUMENTS for block in document.blocks()]
COMMANDS = [block for block in BLOCKS if block.language in RUN]
TO_RUN = [document for document in DOCUMENTS if any(b.language in RUN and not b.is_marked for b in document.blocks())]  # fmt: skip

# Errors are failures, and a picture goes nowhere.
PRELUDE = 'curl() { command curl --silent --show-error --fail-with-body --max-time 60 "$@"; }\n'
INTERPRETERS = {"bash": "bash", "sh": "bash", "python": sys.executable, "js": "node"}
# A line that is one of these is a command, whatever its block says.
COMMAND_WORDS = re.compile(r"^(?:\$ |\./|curl |python3? |pip3? |docker |sudo |git |apt)", re.MULTILINE)  # fmt: skip
# A service stays, so the block would never end.
STARTS_SOMETHING = re.compile(r"^\s*(?:\./start\w*\.sh|\./flux serve|sudo|docker)\b", re.MULTILINE)


class Reader:
    """Somebody who follows a document in a checkout of the project, beside a service that runs."""

    def __init__(self, folder: Path, service: RunningService) -> None:
        self.folder = folder
        self.words = {
            "127.0.0.1:8001": f"127.0.0.1:{service.port}",
            "127.0.0.1:8000": f"127.0.0.1:{service.port}",
        }
        job = service.wait_for_job(service.submit("kept for the reader"))
        image = job["result"]["images"][0]["id"]
        # What stands for something of the reader's own, in capitals.
        self.placeholders = {"IMAGE_ID": image, "JOB_ID": job["id"]}
        self.environ = clean_environment(
            BF16_PORT=service.port, FP4_PORT=service.port, FLUX_GPUS="none", HOME=folder / "home"
        )
        self.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        (folder / "home").mkdir()
        (folder / "my-style.safetensors").write_bytes(lora(11.0))
        for name in ("photo.png", "picture.png"):
            (folder / name).write_bytes(file_of(gradient(128, 128)))

    def follow(self, block: Block) -> subprocess.CompletedProcess[str]:
        text = block.text
        for words, ours in (*self.words.items(), *self.placeholders.items()):
            text = text.replace(words, ours)
        script = ["-euo", "pipefail", "-c", PRELUDE + text] if block.language in SHELLS else ["-"]
        running = subprocess.Popen(
            [INTERPRETERS[block.language], *script],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = running.communicate("" if block.language in SHELLS else text, timeout=100)
        finally:
            if running.poll() is None:  # with all that it has started
                os.killpg(running.pid, signal.SIGKILL)
                running.communicate()
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, engine_service: RunningService) -> Reader:
    return Reader(copy_checkout(tmp_path_factory.mktemp("reader") / "flux"), engine_service)


@pytest.mark.parametrize("document", TO_RUN, ids=lambda document: document.name)
def test_commands_of_a_document_run_in_their_order(reader: Reader, document: Document) -> None:
    for block in document.blocks():
        if block.language not in RUN or block.is_marked:
            continue
        assert not STARTS_SOMETHING.search(
            block.text
        ), f"{block.name}: `shown by` the test that does"
        done = reader.follow(block)
        assert done.returncode == 0, (block.name, block.text, done.stdout, done.stderr)


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_command_that_is_not_run_says_why(block: Block) -> None:
    if block.reason is not None:
        assert block.reason in REASONS, f"{block.name}: one of {sorted(REASONS)} is a reason"
    if block.test is not None:
        path = ROOT / block.test
        assert path.is_file(), f"{block.name}: there is no {block.test}"
        shown = path.read_text(encoding="utf-8")
        words = _what_it_runs(block)
        assert any(word in shown for word in words), f"{block.name}: {block.test} has no {words}"


def _what_it_runs(block: Block) -> set[str]:
    """Scripts, modules, what is imported; and the document, which a test may follow line by line."""
    scripts = {Path(word).name for word in re.findall(r"\S+\.sh\b|\./\w+", block.text)}
    modules = {name.rpartition(".")[2] for name in re.findall(r"-m (\S+)", block.text)}
    imported = set(re.findall(r"^(?:from \S+ )?import (\w+)", block.text, re.MULTILINE))
    return scripts | modules | imported | {block.path.name}


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_command_that_is_run_touches_nothing_of_the_machine(block: Block) -> None:
    if block.is_marked or block.language not in SHELLS:
        return
    absolute = re.findall(r"(?:^|[\s=\"'>])(/[\w.-]+)", block.text, re.MULTILINE)
    assert set(absolute) <= {"/dev"}, (block.name, absolute)  # `~` is a folder of the test's own
    assert not re.search(r"\b(sudo|apt|apt-get|systemctl|docker)\b", block.text), block.name
    assert not STARTS_SOMETHING.search(block.text), f"{block.name}: `shown by` the test that does"


def test_reasons_are_all_used_and_there_is_much_to_run() -> None:
    used = {block.reason for block in COMMANDS} - {None}
    assert used <= REASONS and len(TO_RUN) >= 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_blocks_say_what_they_are(document: Document) -> None:
    for block in document.blocks():
        assert block.language in RUN | READ, f"{block.name}: ```{block.language} is not known here"
        if block.language not in RUN:
            assert not COMMAND_WORDS.search(block.text), f"{block.name}: commands are ```bash"
    assert document.text.count("\n```") % 2 == 0, f"{document.name}: a block is not closed"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Document) -> None:
    for link in document.links():
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "http://127.0.0.1:")), (document.name, link)
            continue
        name, _, anchor = link.partition("#")
        target = (document.path.parent / name).resolve() if name else document.path
        assert target.exists() and target.is_relative_to(ROOT), (document.name, link)
        if anchor and target.suffix == ".md":
            anchors = Document(target, target.read_text(encoding="utf-8")).anchors()
            assert anchor in anchors, (document.name, link, sorted(anchors))


def test_every_page_is_in_the_index_of_the_readme() -> None:
    linked = {link.partition("#")[0] for link in DOCUMENTS[0].links()}
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= linked, pages - linked


def test_every_variable_that_is_named_is_read_somewhere() -> None:
    suffixes = {".py", ".sh", ".yml", ".toml", ".example", ".service", ""}
    rooms = ("api", "cli", "config", "fleet", "models", "scripts", "utils")
    read = "".join(
        path.read_text(encoding="utf-8")
        for path in [*ROOT.iterdir(), *(p for room in rooms for p in (ROOT / room).rglob("*"))]
        if path.is_file() and path.suffix in suffixes and path.name != ".env"
    )
    for document in DOCUMENTS:
        for name in set(re.findall(r"\b(?:FLUX|SD)_[A-Z0-9]+(?:_[A-Z0-9]+)*\b", document.text)):
            assert name in NOT_OURS or re.search(rf"\b{name}\b", read), (document.name, name)


def test_every_route_that_is_named_is_there(engine_service: RunningService) -> None:
    paths = engine_service.client.get("/openapi.json").json()["paths"]
    known = [
        (method.upper(), re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(ending))))
        for path, methods in paths.items()
        for method in methods
        for ending in _endings(path.rstrip("/"))
    ]
    named = {
        (document.name, method, path.rstrip("/"))
        for document in DOCUMENTS
        for method, path in re.findall(
            r"`(GET|POST|PUT|PATCH|DELETE) (/[^`?\s]*)", _COMMENTS.sub("", document.text)
        )
        if path not in NOT_OURS
    }
    assert len(named) > 30
    for name, method, path in named:
        assert any(m == method and p.fullmatch(path) for m, p in known), (name, method, path)


def _endings(path: str) -> list[str]:
    """The path, and what is left of it after a base address: other programs' routes are named so."""
    return [path[found.start() :] for found in re.finditer("/", path)] or [path]


_COMMENTS = re.compile(r"<!--.*?-->", re.DOTALL)
# Names of others: the stand-in's, a model in BFL's address, LibreChat's variable.
NOT_OURS = {"/__calls", "/MODEL", "SD_WEBUI_URL"}


def test_troubleshooting_quotes_what_the_code_says() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for room in ("api", "config", "models", "scripts", "utils")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".sh", ".yml")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings that go on in the next line
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    seen = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    quoted = {words for cell in seen for words in re.findall(r"`([^`]+)`", cell)} - QUOTED_OF_OTHERS
    assert len(quoted) > 30
    assert not [words for words in quoted if words not in code]


QUOTED_OF_OTHERS = {"connection refused", "could not select device driver", "unhealthy"}


def test_files_that_are_named_are_there() -> None:
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:tests|scripts|config|models|utils|api)/[\w./-]+)`", document.prose):  # fmt: skip
            assert (ROOT / path).exists(), (document.name, path)


# What the tests above are made of


def document(text: str) -> Document:
    return Document(ROOT / "docs" / "sample.md", text)


def test_marker_belongs_to_the_block_after_it_alone() -> None:
    text = "<!-- not run: needs root -->\n```bash\na\n```\n\n```bash\nb\n```\n\n<!-- shown by tests/x.py -->\n\n```bash\nc\n```\n"
    marked = [(block.text, block.reason, block.test) for block in document(text).blocks()]
    assert marked == [("a\n", "needs root", None), ("b\n", None, None), ("c\n", None, "tests/x.py")]


def test_anchors_are_githubs() -> None:
    text = "# Other programs' APIs\n\n## `nvfp4` & co.\n\n## A b\n\n## A b\n"
    assert document(text).anchors() == {"other-programs-apis", "nvfp4--co", "a-b", "a-b-1"}


def test_links_in_code_are_none() -> None:
    text = "[a](b.md#c) `[d](e)` ![f](g.png)\n\n```bash\n[h](i)\n```\n[`j`](k.md)\n"
    assert document(text).links() == ["b.md#c", "g.png", "k.md"]


def test_command_that_fails_is_seen(reader: Reader) -> None:
    (ok,) = document("```bash\ntrue\n```\n").blocks()
    (refused,) = document("```bash\ncurl http://127.0.0.1:8001/jobs/nobody\ntrue\n```\n").blocks()
    (wrong,) = document("```python\nraise SystemExit(3)\n```\n").blocks()
    assert [reader.follow(block).returncode != 0 for block in (ok, refused, wrong)] == [False, True, True]  # fmt: skip
