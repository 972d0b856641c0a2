"""The locked requirements: complete, checked by hash, and free of this or that machine's places."""

import re
import tomllib

import pytest

from config.settings import ROOT
from models.fp4 import nunchaku_support

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = ("torch", "runtime", "fleet", "dev")


def text_of(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text_of(name), flags=re.MULTILINE))


def pinned(requirements: list[str]) -> dict[str, str]:
    pairs = (requirement.split("==") for requirement in requirements)
    return {normal(name.partition("[")[0]): version for name, version in pairs}


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


@pytest.mark.parametrize("name", ["runtime", "fleet", "dev"])
def test_lock_leaves_torch_and_cuda_to_the_build(name: str) -> None:
    assert not [p for p in locked(name) if re.match(r"torch$|cuda|triton|nvidia-(?!ml-py$)", p)]


def test_lock_agrees_with_pyproject() -> None:
    runtime = pinned(PROJECT["dependencies"])
    fleet, dev = (pinned(PROJECT["optional-dependencies"][extra]) for extra in ("fleet", "dev"))
    assert locked("torch") == {"torch": runtime.pop("torch")}
    assert runtime.items() <= locked("runtime").items()
    assert (runtime | fleet).items() <= locked("fleet").items()
    assert (runtime | fleet | dev).items() <= locked("dev").items()


def test_lock_each_set_holds_the_one_before() -> None:
    assert locked("runtime").items() <= locked("fleet").items() <= locked("dev").items()


@pytest.mark.parametrize("name", FILES)
def test_lock_has_none_of_the_impostors(name: str) -> None:
    assert not locked(name).keys() & {"nunchaku", "pynvml"}


# nunchaku's own environment: pinned, but with a wheel that no index has, so not locked.


def nunchaku_lines() -> list[str]:
    lines = text_of("fp4-nunchaku").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def nunchaku_pins() -> dict[str, str]:
    return pinned([line for line in nunchaku_lines() if "==" in line and " @ " not in line])


def test_nunchaku_environment_pins_all_but_the_wheel() -> None:
    wheels = [line for line in nunchaku_lines() if " @ " in line]
    assert len(nunchaku_pins()) + len(wheels) == len(nunchaku_lines())


def test_nunchaku_environment_takes_the_wheel_of_the_release_for_each_python() -> None:
    wheels = {line for line in nunchaku_lines() if " @ " in line}
    assert wheels == {
        f"nunchaku @ {nunchaku_support.wheel_url(python)} ; "
        f'python_version == "{python[0]}.{python[1]}"'
        for python in nunchaku_support.PYTHONS
    }


def test_nunchaku_environment_has_a_torch_that_the_wheel_is_built_for() -> None:
    pins = nunchaku_pins()
    wheel = f"{nunchaku_support.RELEASE}+cu13.0torch2.11"
    assert nunchaku_support.why_not_torch(pins["torch"], "13.0", wheel) is None
    assert (pins["torch"], pins["torchvision"]) == (
        nunchaku_support.TORCH,
        nunchaku_support.TORCHVISION,
    )


def test_nunchaku_environment_differs_from_the_services_where_it_must_alone() -> None:
    """Everything the service imports is there, in the tested version but for what nunchaku needs older."""
    service = pinned(PROJECT["dependencies"])
    pins = nunchaku_pins()
    other = {name for name, version in service.items() if pins.get(name) != version}
    assert other == {"torch", "diffusers", "transformers", "tokenizers", "peft"}
    assert "tokenizers" not in pins, "transformers 4 chooses its own"


def test_nunchaku_is_no_requirement_of_the_project() -> None:
    listed = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    assert not [requirement for requirement in listed if "nunchaku" in requirement.lower()]
