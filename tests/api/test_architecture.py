"""The house as its plan says: who imports whom, where torch lives, how the main files differ."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from config.settings import ROOT
from models.precision import profile_of
from tests.service import RunningService

# A room may import itself and the rooms below it.
ROOMS = ["main", "api", "utils", "models", "fleet", "config"]
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
MAINS = sorted(ROOT.glob("main_*.py"))
SOURCES = [
    *MAINS,
    *sorted(path for room in ROOMS[1:] for path in (ROOT / room).rglob("*.py")),
]


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return "main" if first.startswith("main_") else first


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its room"
            found.add(node.module or "")
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rooms_of_imports(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def wrong(found: Iterable[tuple[Path, set[str]]]) -> dict[str, set[str]]:
    """The files in which something was found, and what."""
    return {name_of(path): names for path, names in found if names}


def test_imports_point_one_way() -> None:
    rooms = {*ROOMS[1:], "scripts", "tests"}
    above = {room: rooms - set(ROOMS[ROOMS.index(room) :]) for room in ROOMS}
    assert wrong((path, rooms_of_imports(path) & above[room_of(path)]) for path in SOURCES) == {}


def test_heavy_libraries_are_imported_by_models_alone() -> None:
    others = [path for path in SOURCES if room_of(path) != "models"]
    assert wrong((path, rooms_of_imports(path) & set(HEAVY)) for path in others) == {}


# The command line stands outside of the house: it speaks to services over HTTP, and nobody imports it.
COMMANDS = sorted((ROOT / "cli").rglob("*.py"))


@pytest.mark.parametrize("path", COMMANDS, ids=name_of)
def test_command_line_reaches_services_over_http_alone(path: Path) -> None:
    names = imports(path)
    rooms = {name.partition(".")[0] for name in names if name != "api.version"}
    assert not rooms & {"api", "tests", *HEAVY}
    assert {"httpx2", "requests", "urllib.request"} & names <= {"httpx2"}
    assert "httpx2" not in names or path.name == "client.py"


def test_command_line_is_imported_by_nobody() -> None:
    assert wrong((path, rooms_of_imports(path) & {"cli"}) for path in SOURCES) == {}


def test_there_are_sources_in_every_room() -> None:
    assert {room_of(path) for path in SOURCES} == set(ROOMS)
    assert {path.name for path in MAINS} >= {"main_bf16.py", "main_fp4.py"}


def test_building_the_app_loads_no_heavy_library() -> None:
    code = (
        "import sys, main_bf16; main_bf16.build_app();"
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"FLUX_GPUS": "none"}, capture_output=True
    )
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()


def test_building_the_app_opens_and_writes_nothing(tmp_path: Path) -> None:
    environ = {"FLUX_DATA_DIR": str(tmp_path / "data"), "FLUX_OUTPUT_DIR": str(tmp_path / "out")}
    done = subprocess.run(
        [sys.executable, "-c", "import main_bf16; main_bf16.build_app()"], cwd=ROOT, env=environ
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_running_service_has_no_torch_mapped(service: RunningService) -> None:
    assert service.generate(width=128, height=128, steps=1).status_code == 200
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    (worker,) = service.workers()
    assert "libtorch" in Path(f"/proc/{worker['pid']}/maps").read_text()


def test_main_files_differ_in_docstring_and_constant_only() -> None:
    def bare(name: str) -> str:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        (constant,) = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRECISION"
        ]
        assert constant.value == name.removeprefix("main_").removesuffix(".py")
        constant.value = "precision"
        tree.body = tree.body[1:]
        return ast.unparse(tree)

    assert bare("main_bf16.py") == bare("main_fp4.py")


@pytest.mark.parametrize("precision", ["bf16", "fp4"])
def test_profile_has_a_loader_or_says_why_not(precision: str) -> None:
    profile = profile_of(precision)
    if profile.loader is None:
        assert "not built" in profile.not_built
    else:
        module = profile.loader.partition(":")[0]
        assert importlib.util.find_spec(module) is not None


def calls_at_import(path: Path) -> set[str]:
    """The names of what is called at the module's top level."""
    calls: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call):
                    name = inner.func
                    calls.add(name.attr if isinstance(name, ast.Attribute) else ast.unparse(name))
    return calls


def test_modules_run_nothing_at_import() -> None:
    """Calls at a module's top level may build values, but read no file, clock or environment."""
    banned = {
        "open",
        "print",
        "load_settings",
        "create_app",
        "basicConfig",
        "configure",
        "read_text",
    }
    assert wrong((path, calls_at_import(path) & banned) for path in SOURCES) == {}
