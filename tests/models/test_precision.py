"""Precision is data: where its words stand, and what a third one takes."""

from __future__ import annotations

import ast
import difflib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from config.errors import ConfigurationError
from config.settings import ROOT
from models.precision import PrecisionProfile, known_precisions, profile_of
from tests.operations.checkout import clean_environment, copy_checkout
from tests.service import NO_CERTIFICATES, free_port
from utils.metadata import read_request

WORDS = re.compile(rf"(?<![a-z])(?:{'|'.join(known_precisions())})(?![a-z0-9])")
# The places that are about precisions. Elsewhere code asks a profile for a property.
PLACES = (
    "config/abilities.py",  # what a model can, a column for each
    "config/models.toml",  # memory_gib of each
    "config/reasons.toml",  # why a model has none
    "frontend/js/config.js",  # the addresses of the services
    "main_bf16.py",
    "main_fp4.py",
    "models/bf16_flux_model.py",
    "models/fp4/",
    "models/fp4_flux_model.py",
    "models/precision.py",
    "scripts/bench/",
    "scripts/containers/",  # which service a container runs
    "scripts/diagnosis/",  # which engines run here: nunchaku's facts stand in models/fp4/
    "scripts/download_models.py",  # of which a copy is made besides
    "scripts/fake_bfl.py",  # a service to try it with
    "scripts/quantize_fp4.py",
    "scripts/setup_env.sh",  # the requirements of one engine
    "scripts/take_screenshots.py",  # the addresses of the services
    "scripts/write_env_example.py",  # the names of the ports, for people
    "scripts/write_models_table.py",  # a column for each
    "start.sh",
    "start_bf16_api.sh",
    "start_fp4_api.sh",
)
SCANNED = ("api", "config", "frontend/js", "models", "scripts", "utils")


def sources() -> list[Path]:
    """Everything that runs or is read at run time; not tests, not documents, not weights."""
    found = [path for kind in ("*.py", "*.sh", "*.toml") for path in ROOT.glob(kind)]
    for folder in SCANNED:
        for kind in ("*.py", "*.sh", "*.toml", "*.js", "*.sql"):
            found += (ROOT / folder).rglob(kind)
    return sorted(found)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_place(path: Path) -> bool:
    return any(
        name_of(path).startswith(place) if place.endswith("/") else name_of(path) == place
        for place in PLACES
    )


def words_in(path: Path) -> set[str]:
    """The precisions' names in what a file does: identifiers and strings, not prose for people."""
    text = path.read_text(encoding="utf-8")
    parts = _python_parts(text) if path.suffix == ".py" else _code_lines(path.suffix, text)
    return {word for part in parts for word in WORDS.findall(part)}


def _python_parts(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # a docstring
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value.lower()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # "FP4" is a title; "FP4_PORT" is a name that decides.
            yield re.sub(r"\b[A-Z0-9]+_[A-Z_]+\b", lambda name: name[0].lower(), node.value)


def _code_lines(suffix: str, text: str) -> Iterator[str]:
    comment = {".js": r"//.*|/\*.*?\*/", ".sql": r"--.*"}.get(suffix, r"(?<![\w$])#.*")
    flags = re.DOTALL if suffix == ".js" else 0
    for line in re.sub(comment.replace(".*|", "[^\n]*|"), "", text, flags=flags).splitlines():
        yield line.lower()


def test_words_are_found_where_they_decide(tmp_path: Path) -> None:
    """The scan itself: what it must see, and what it must leave to people."""
    deciding = {
        "a.py": 'if precision == "fp4": pass',
        "b.py": "def load_bf16(): pass",
        "c.py": "import models.fp4.nvfp4",
        "d.py": 'port = environ["BF16_PORT"]',
        "e.py": 'x = f"main_{1}_fp4.py"',
        "f.js": 'const PORT = "bf16";',
        "g.sh": "exec main_fp4.py # why",
        "h.toml": "memory = { bf16 = 1 }",
        "i.py": "row.memory(fp4=1)",
        "j.py": "x = profile.fp4",
    }
    prose = {
        "a.py": '"""The fp4 service."""\n# bf16\nx = "FP4 is not built"',
        "b.js": "// fp4\n/* bf16\n fp4 */ let x;",
        "c.sh": "# fp4\necho bfloat16",
        "d.toml": "# bf16\na = 1",
        "e.sql": "-- fp4\nselect 1",
    }
    for texts, expected in ((deciding, 1), (prose, 0)):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            assert len(words_in(tmp_path / name)) == expected, (name, text)


def test_words_stand_in_the_places_for_them_alone() -> None:
    elsewhere = {name_of(path): words_in(path) for path in sources() if not is_place(path)}
    assert len(elsewhere) > 60
    assert {name: words for name, words in elsewhere.items() if words} == {}


def test_places_for_the_words_have_them() -> None:
    """A place in the list that has none is an open door."""
    names = {name_of(path) for path in sources() if is_place(path) and words_in(path)}
    unused = [place for place in PLACES if not any(name.startswith(place) for name in names)]
    assert not [place for place in unused if (ROOT / place).exists()]


def bare(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = tree.body[1:]  # without the docstring
    return ast.unparse(tree)


def test_main_files_differ_by_one_word() -> None:
    first, second = (re.findall(r"\S+", bare(ROOT / f"main_{name}.py")) for name in ("bf16", "fp4"))
    changes = [
        (first[a:b], second[c:d])
        for kind, a, b, c, d in difflib.SequenceMatcher(None, first, second).get_opcodes()
        if kind != "equal"
    ]
    assert changes == [(["'bf16'"], ["'fp4'"])]


def test_start_scripts_differ_by_the_name() -> None:
    bf16, fp4 = ((ROOT / f"start_{name}_api.sh").read_text() for name in ("bf16", "fp4"))
    assert fp4.replace("fp4", "bf16").replace("FP4", "BF16") == bf16


@pytest.mark.parametrize("name", known_precisions())
def test_profile_has_every_property_and_its_files(name: str) -> None:
    profile = profile_of(name)
    assert profile.name == name
    assert all(
        getattr(profile, each.name) is not None for each in fields(profile) if each.name != "loader"
    )
    assert profile.engines
    for path in (f"main_{name}.py", f"start_{name}_api.sh", f"config/{name}.toml"):
        assert (ROOT / path).is_file()


def test_profiles_differ_in_what_they_are() -> None:
    ports = {(ROOT / f"config/{name}.toml").read_text() for name in known_precisions()}
    assert len(ports) == len(known_precisions())
    engines = [engine for name in known_precisions() for engine in profile_of(name).engines]
    assert len(set(engines)) == len(engines)


def test_unknown_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="'fp8'.*bf16, fp4"):
        profile_of("fp8")


def test_profile_cannot_be_changed() -> None:
    profile = profile_of("bf16")
    assert isinstance(profile, PrecisionProfile)
    with pytest.raises(AttributeError):
        profile.name = "fp4"  # type: ignore[misc]


# A third precision, dry: eight-bit weights. What is written here is all that it takes.

FP8_PROFILE = """

_PROFILES["fp8"] = PrecisionProfile(
    name="fp8",
    title="FP8",
    weights="8-bit floating point",
    engines=("rounded",),
    lora_mode=LoraMode.NATIVE,
    loader="models.fp8_flux_model:load",
)
"""

FP8_LOADER = '''"""Loads a FLUX model and rounds the transformer's linear weights to E4M3, one scale per row."""

from dataclasses import replace

import torch

from models import bf16_flux_model


def load(row, options):
    model = bf16_flux_model.load(row, replace(options, engine="diffusers"))
    model.engine, model.compute = "rounded", "8-bit weights widened to FP32"
    for layer in model._image.transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            scale = layer.weight.data.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 448
            rounded = (layer.weight.data / scale).to(torch.float8_e4m3fn)
            layer.weight.data = rounded.to(layer.weight.dtype) * scale
    return model
'''


class ThirdService:
    """A checkout with FP8 added, and its service, started with its own start script."""

    def __init__(self, folder: Path) -> None:
        self.checkout = copy_checkout(folder / "flux", models=True)
        self.port = free_port()
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=120, verify=NO_CERTIFICATES
        )
        self._add()
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None

    def _add(self) -> None:
        """One profile, one loader, one TOML, the memory that each model needs, and two files that differ by a word."""
        with open(self.checkout / "models" / "precision.py", "a") as file:
            file.write(FP8_PROFILE)
        (self.checkout / "models" / "fp8_flux_model.py").write_text(FP8_LOADER)
        (self.checkout / "config" / "fp8.toml").write_text(f"[server]\nport = {self.port}\n")
        catalog = self.checkout / "config" / "models.toml"
        catalog.write_text(
            catalog.read_text().replace("memory_gib = {", "memory_gib = { fp8 = 0.6,")
        )
        for name in ("main_{}.py", "start_{}_api.sh"):
            path = self.checkout / name.format("fp8")
            path.write_text(
                (self.checkout / name.format("bf16")).read_text().replace("bf16", "fp8")
            )
            path.chmod(0o755)

    def start(self) -> None:
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [self.checkout / "start_fp8_api.sh"],
                env=clean_environment(FLUX_GPUS="none", FLUX_MIN_FREE_MIB=0),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 180  # a start asks several Pythons; machines may be busy
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        self.client.close()
        if self.process is None or self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0
        _, alive = psutil.wait_procs(children, timeout=120)
        assert not alive


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThirdService]:
    service = ThirdService(tmp_path_factory.mktemp("fp8"))
    try:
        service.start()
        yield service
    finally:
        service.stop()


def test_third_precision_draws_over_http_and_every_place_names_it(third: ThirdService) -> None:
    info = third.client.get("/info").json()
    assert (info["service"], info["precision"]) == ("flux-api-fp8", "fp8")
    assert info["weights"] == "8-bit floating point"
    assert info["engines"] == ["rounded"]
    assert third.client.get("/health").json()["precision"] == "fp8"

    answer = third.client.post(
        "/generate?format=raw",
        json={"prompt": "a red balloon over green hills at noon", "width": 128, "height": 128, "seed": 3},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    described = read_request(answer.content)
    assert described["precision"] == "fp8"
    assert described["engine"] == "rounded"

    databases = {path.stem for path in (third.checkout / "data").glob("*.sqlite3")}
    assert databases - {"keys"} == {"fp8"}  # the keys are the machine's, whatever its services
    (picture,) = (third.checkout / "generated_images").rglob("*.png")
    with Image.open(picture) as image:
        assert image.size == (128, 128)
        assert len(image.convert("RGB").getcolors(128 * 128) or []) > 1000, "it is a picture"


def test_third_precision_refuses_another_ones_engine(third: ThirdService) -> None:
    done = subprocess.run(
        [third.checkout / "start_fp8_api.sh", "--engine", "nvfp4"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 2
    assert "which are: rounded" in done.stderr


def test_third_precision_is_known_to_the_doctor(third: ThirdService) -> None:
    done = subprocess.run(
        [third.checkout / ".venv" / "bin" / "python", "-m", "scripts.doctor"],
        cwd=third.checkout,
        env=clean_environment(FLUX_GPUS="none", FLUX_MIN_FREE_MIB=0),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "FP8 can draw with embedded" in done.stdout, done.stdout + done.stderr
    assert f"{third.port} on 127.0.0.1: ours, it is running" in done.stdout
