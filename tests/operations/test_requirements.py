"""The locked requirements: complete, checked by hash, and free of this or that machine's places."""

import re
import tomllib

import pytest

from config.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = ("torch", "runtime", "dev")


def text_of(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text_of(name), flags=re.MULTILINE))


def pinned(requirements: list[str]) -> dict[str, str]:
    return {normal(name): version for name, version in (r.split("==") for r in requirements)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", FILES)
def test_lock_names_no_index_and_no_folder(name: str) -> None:
    assert not re.search(r"https?://|file:|^--|^-|find-links|\s/\w", text_of(name), re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_lock_every_requirement_is_exact_and_hashed(name: str) -> None:
    lines = (
        re.sub(r"^\s*#.*\n", "", text_of(name), flags=re.MULTILINE).replace("\\\n", " ").split("\n")
    )
    for line in filter(str.strip, lines):
        assert re.fullmatch(r"[a-z0-9.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+ *", line), line


@pytest.mark.parametrize("name", ["runtime", "dev"])
def test_lock_leaves_torch_and_cuda_to_the_build(name: str) -> None:
    assert not [p for p in locked(name) if re.match(r"torch$|cuda|triton|nvidia-(?!ml-py$)", p)]


def test_lock_agrees_with_pyproject() -> None:
    runtime = pinned(PROJECT["dependencies"])
    dev = pinned(PROJECT["optional-dependencies"]["dev"])
    assert locked("torch") == {"torch": runtime.pop("torch")}
    assert runtime.items() <= locked("runtime").items()
    assert (runtime | dev).items() <= locked("dev").items()


def test_lock_dev_holds_all_of_runtime() -> None:
    assert locked("runtime").items() <= locked("dev").items()


@pytest.mark.parametrize("name", FILES)
def test_lock_has_none_of_the_impostors(name: str) -> None:
    assert not locked(name).keys() & {"nunchaku", "pynvml"}
