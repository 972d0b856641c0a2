"""What nunchaku runs on, as data: GPUs by compute capability, wheels, the packages around it.

nunchaku multiplies 4-bit weights by 4-bit activations in its own CUDA kernels. They are compiled for
the architectures of `ARCHITECTURES` that have a precision and for no other, and a wheel is built
against one version of torch. Nothing here imports torch or nunchaku: a folder of packages is read,
not run, so that the doctor and the start scripts can ask before gigabytes are fetched.

Sources: nunchaku 1.2.1, `setup.py` (what the kernels are compiled for), `nunchaku/utils.py`
(`get_precision`, `check_hardware_compatibility`), `.github/workflows/release-build.yaml` (the wheels
of a release), `docs/source/usage` (Turing; the quantised T5).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution
from pathlib import Path
from types import MappingProxyType

RELEASE = "1.2.1"
MAX_TORCH = (2, 11)  # the newest torch that the release has wheels for
TORCH = "2.11.0"
TORCHVISION = "0.26.0"
CUDA_OF_PYPI = (13, 0)  # of PyPI's torch 2.11, and so of the wheels that are installed with it
PYTHONS = ((3, 11), (3, 12), (3, 13))  # the release has wheels for 3.10 too, this project not
REQUIREMENTS = "requirements/fp4-nunchaku.txt"
ENVIRONMENT = ".venv-nunchaku"
SETUP = "scripts/setup_env.sh --nunchaku"
# What only the right package has; PyPI's has one name in common with it, and that is all.
MARK = "NunchakuFluxTransformer2dModel"

_WHEELS = "https://github.com/nunchux-ai/nunchaku/releases/download"
_SUPPORTED = (
    "Turing (7.5), Ampere (8.0, 8.6), Ada (8.9) or Blackwell as in the GeForce RTX 50 series (12.0)"
)
_INSTEAD = "use the engine nvfp4 (or auto), which runs on any GPU and on the CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A GPU generation. `checkpoint` None: nunchaku has no kernels for it, because `why_not`."""

    name: str
    checkpoint: str | None = None  # "int4" or "fp4", as in the names of the checkpoint files
    dtype: str = "bfloat16"  # of everything that is not 4-bit
    has_quantised_t5: bool = True
    why_not: str = ""


_NO_INT4 = "it has no 4-bit tensor cores"
_OLD = "its tensor cores, if any, do not multiply 4-bit integers"
_NOT_COMPILED = "the wheels hold no kernels for it"

ARCHITECTURES: Mapping[tuple[int, int], Architecture] = MappingProxyType(
    {
        (6, 0): Architecture(name="Pascal", why_not=_OLD),
        (6, 1): Architecture(name="Pascal", why_not=_OLD),
        (7, 0): Architecture(name="Volta", why_not=_OLD),
        # Turing has no BF16, and its quantised T5 is announced but not there.
        (7, 5): Architecture(
            name="Turing", checkpoint="int4", dtype="float16", has_quantised_t5=False
        ),
        (8, 0): Architecture(name="Ampere", checkpoint="int4"),
        (8, 6): Architecture(name="Ampere", checkpoint="int4"),
        (8, 7): Architecture(name="Ampere (Jetson Orin)", why_not=_NOT_COMPILED),
        (8, 9): Architecture(name="Ada", checkpoint="int4"),
        (9, 0): Architecture(name="Hopper", why_not=_NO_INT4),
        (10, 0): Architecture(name="datacenter Blackwell", why_not=_NOT_COMPILED),
        (10, 3): Architecture(name="datacenter Blackwell", why_not=_NOT_COMPILED),
        (11, 0): Architecture(name="Blackwell (Jetson Thor)", why_not=_NOT_COMPILED),
        (12, 0): Architecture(name="Blackwell", checkpoint="fp4"),
        (12, 1): Architecture(name="Blackwell (GB10)", checkpoint="fp4"),
    }
)


def why_not_gpu(capability: tuple[int, int], gpu: str = "this GPU") -> str | None:
    """Why the kernels do not run on a GPU of this compute capability; None when they do."""
    version = ".".join(map(str, capability))
    known = ARCHITECTURES.get(capability)
    if known is None:
        return (
            f"nunchaku does not run on {gpu}: {_NOT_COMPILED} (compute capability {version}). "
            f"It needs {_SUPPORTED}; {_INSTEAD}"
        )
    if known.checkpoint is None:
        return (
            f"nunchaku does not run on {gpu}: it is {known.name} (compute capability {version}), and "
            f"{known.why_not}. It needs {_SUPPORTED}; {_INSTEAD}"
        )
    return None


def why_not_cpu(why_no_gpu: str = "") -> str:
    """Why the kernels do not run without a GPU."""
    because = f" ({why_no_gpu})" if why_no_gpu else ""
    return f"nunchaku does not run on the CPU{because}. It needs {_SUPPORTED}; {_INSTEAD}"


def why_wrong_package(path: Sequence[str] | None = None) -> str | None:
    """Whether `nunchaku`, looked for in `path` or sys.path, is PyPI's unrelated package; in words."""
    if not _is_there(path) or _is_real(path):
        return None
    found = _distribution("nunchaku", path)
    which = f" {found.version}" if found else ""
    about = f" ({found.metadata['Summary']})" if found and found.metadata["Summary"] else ""
    return (
        f"the package nunchaku{which} that is installed is not the engine: PyPI has an unrelated package "
        f"of the same name{about}. Remove it with `{_python(path)} -m pip uninstall nunchaku`; the engine comes "
        f"from its own wheel, which `{SETUP}` installs"
    )


def why_no_package(path: Sequence[str] | None = None) -> str | None:
    """Why nunchaku cannot work with the packages in `path` or sys.path; None when it can."""
    reason = why_not_installed(path)
    if reason:
        return reason
    torch = torch_version(path)
    if torch is None:
        return f"nunchaku needs torch {TORCH}, and no torch is installed; `{SETUP}` makes {ENVIRONMENT} with both"
    return why_not_torch(torch, torch_cuda(path), nunchaku_version(path))


def why_not_installed(path: Sequence[str] | None = None) -> str | None:
    """Whether nunchaku is missing in `path` or sys.path, or another package has its name."""
    if not _is_there(path):
        return f"nunchaku is not installed; `{SETUP}` makes {ENVIRONMENT} with it"
    return why_wrong_package(path)


def why_not_torch(torch: str, cuda: str | None, nunchaku: str | None) -> str | None:
    """Why a nunchaku wheel cannot work with this torch; None when it can.

    `torch` is a version such as "2.11.0+cu130", `cuda` that of its CUDA libraries, `nunchaku` the
    wheel's, whose local part says what it is built for ("1.2.1+cu13.0torch2.11"); None: not known.
    """
    numbers = _numbers(torch)
    if numbers > MAX_TORCH:
        return (
            f"nunchaku's wheels stop at torch {_dotted(MAX_TORCH)}, and torch {torch} is installed; "
            f"`{SETUP}` makes {ENVIRONMENT}, an environment of its own with torch {TORCH}"
        )
    built_for = re.search(r"(?:\+cu(\d+)[.\d]*)?\+?torch(\d+\.\d+)", nunchaku or "")
    if built_for and _numbers(built_for[2]) != numbers:
        return (
            f"nunchaku {nunchaku} is built for torch {built_for[2]}, and torch {torch} is installed; "
            f"install the wheel for it, or let `{SETUP}` make {ENVIRONMENT}"
        )
    if built_for and built_for[1] and cuda and cuda.split(".")[0] != built_for[1]:
        return (
            f"nunchaku {nunchaku} is built for CUDA {built_for[1]}, and torch {torch} comes with CUDA {cuda}; "
            f"install the wheel for it, or let `{SETUP}` make {ENVIRONMENT}"
        )
    return None


def torch_version(path: Sequence[str] | None = None) -> str | None:
    """The version of the torch in `path` or sys.path; None when there is none."""
    found = _distribution("torch", path)
    return found.version if found else None


def torch_cuda(path: Sequence[str] | None = None) -> str | None:
    """The CUDA version that the torch in `path` is built with; None for a CPU build or none at all."""
    found = _distribution("torch", path)
    if found is None:
        return None
    try:
        text = Path(str(found.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except OSError:
        return None
    cuda = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, flags=re.MULTILINE)
    return cuda[1] if cuda else None


def nunchaku_version(path: Sequence[str] | None = None) -> str | None:
    """The version of what is installed by that name; None when nothing is, or nothing says."""
    found = _distribution("nunchaku", path)
    return found.version if found else None


def why_no_wheel(python: tuple[int, int], system: str, machine: str) -> str | None:
    """Why the release has no wheel for a platform, as `platform` names it; None when it has one."""
    if (system, machine) != ("Linux", "x86_64"):
        return (
            f"nunchaku {RELEASE} has wheels for Linux on x86_64 (and for Windows, where this project does not run), "
            f"not for {system} on {machine}"
        )
    if python not in PYTHONS:
        there = ", ".join(map(_dotted, PYTHONS))
        return (
            f"nunchaku {RELEASE} has wheels for Python {there}, and this is Python {_dotted(python)}; "
            f"name another: PYTHON=/path/to/python3.12 {SETUP}"
        )
    return None


def wheel_url(python: tuple[int, int], cuda: str = "13.0") -> str:
    """Where the wheel for a Python and one of the CUDA versions 12.8 and 13.0 lies."""
    tag = f"cp{python[0]}{python[1]}"
    torch = _dotted(MAX_TORCH)
    return (
        f"{_WHEELS}/v{RELEASE}/nunchaku-{RELEASE}+cu{cuda}torch{torch}-{tag}-{tag}-linux_x86_64.whl"
    )


def install_command(python: tuple[int, int], driver_cuda: tuple[int, int] | None = None) -> str:
    """What makes `.venv-nunchaku`, as shell lines: the newest CUDA of the driver decides which builds.

    PyPI's torch 2.11 is built with CUDA 13, which needs a driver that has it; drivers that stop at
    CUDA 12 take the builds for 12.8, from PyTorch's own index.
    """
    pip = f"{ENVIRONMENT}/bin/python -m pip install"
    make = f"python{_dotted(python)} -m venv {ENVIRONMENT}"
    if not is_old_driver(driver_cuda):
        return f"{make}\n{pip} -r {REQUIREMENTS}"
    index = "https://download.pytorch.org/whl/cu128"
    return (
        f"{make}\n"
        f"{pip} torch=={TORCH} torchvision=={TORCHVISION} --index-url {index}\n"
        f"grep -v '^nunchaku @' {REQUIREMENTS} | {pip} -r /dev/stdin\n"
        f"{pip} --no-deps '{wheel_url(python, '12.8')}'"
    )


def is_old_driver(driver_cuda: tuple[int, int] | None) -> bool:
    """Whether a driver is known to stop before the CUDA of the builds in the requirements file."""
    return driver_cuda is not None and driver_cuda < CUDA_OF_PYPI


def site_packages(environment: Path) -> list[str]:
    """The package folders of a virtual environment."""
    return [str(folder) for folder in sorted(environment.glob("lib/python3*/site-packages"))]


def _is_there(path: Sequence[str] | None) -> bool:
    if path is None and "nunchaku" in sys.modules:
        return True
    return PathFinder.find_spec("nunchaku", path) is not None


def _is_real(path: Sequence[str] | None) -> bool:
    if path is None and "nunchaku" in sys.modules:
        return hasattr(sys.modules["nunchaku"], MARK)
    spec = PathFinder.find_spec("nunchaku", path)
    if spec is None or not spec.origin:
        return False
    try:
        return MARK in Path(spec.origin).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _distribution(name: str, path: Sequence[str] | None) -> Distribution | None:
    given = {} if path is None else {"path": list(path)}
    return next(iter(Distribution.discover(name=name, **given)), None)


def _python(path: Sequence[str] | None) -> str:
    """The interpreter whose packages these are."""
    if path is None:
        return sys.executable
    return str(Path(path[0]).parents[2] / "bin" / "python") if path else "python"


def _numbers(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
