"""Services' folders as they are found after some use, in a project of their own."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from tests.lora_files import lora
from tests.utils.test_migrations import make_schema_1, upgrade
from utils.backup import making, restoring
from utils.backup.manifest import Manifest
from utils.backup.places import Places, dotenv
from utils.backup.restoring import Restored
from utils.keys import Limits, Scope, key_file

NOW = "2026-11-26T12:00:00.000Z"
STAMP = "20261126T120000Z"
PICTURES = ("job1-0.png", "job1-1.png")  # of the rows that make_schema_1 writes


@dataclass(frozen=True, slots=True)
class Machine:
    """A checkout's root, with its .env, and the folders that it names."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def loras(self) -> Path:
        return self.root / "loras"

    @property
    def output(self) -> Path:
        return self.root / "out"

    @property
    def jobs(self) -> Path:
        return self.data / "bf16.sqlite3"

    @property
    def places(self) -> Places:
        return Places.of(dotenv(self.root / ".env"), self.root)

    def use(self, databases: Path) -> None:
        """As after some use: jobs of every state, keys, LoRAs, inputs, pictures."""
        shutil.copytree(databases, self.data)
        for folder in (
            self.data / "inputs" / "bf16",
            self.loras,
            self.output,
            self.root / "config",
        ):
            folder.mkdir(parents=True)
        for name in ("bf16.toml", "fp4.toml"):
            shutil.copy(ROOT / "config" / name, self.root / "config" / name)
        (self.root / ".env").write_text(
            f"FLUX_DATA_DIR={self.data}\nFLUX_LORA_DIR={self.loras}\nFLUX_OUTPUT_DIR={self.output}\n"
        )
        (self.data / "inputs" / "bf16" / "abc").write_bytes(b"a picture")
        content = lora(0.5)
        name = hashlib.sha256(content).hexdigest()
        (self.loras / f"{name}.safetensors").write_bytes(content)
        (self.loras / f"{name}.json").write_text("{}")
        (self.loras / ".incoming").mkdir()
        (self.loras / ".incoming" / "half.safetensors").write_bytes(b"half")
        pins = self.places.pins("bf16")
        pins.mkdir(parents=True)
        (pins / f"{name}.safetensors").write_bytes(content)
        for index, picture in enumerate(PICTURES):
            (self.output / picture).write_bytes(b"picture %d" % index)
        (self.output / "mine.png").write_bytes(b"of the user")

    def make(self, folder: Path, **options: Any) -> Manifest:
        values = {"now": NOW, "version": "0.1.0", "with_images": False, "tell": lambda _: None}
        return making.make(folder, self.places, **{**values, **options})

    def restore(self, folder: Path, **options: Any) -> Restored:
        values: dict[str, Any] = {
            "stamp": STAMP, "now": NOW, "tell": lambda _: None, "root": self.root, "environ": {},
        }  # fmt: skip
        return restoring.restore(folder, **{**values, **options})

    def contents(self) -> dict[str, bytes]:
        """Every file by its path, databases by what they say; locks and logs of databases are no content."""
        return {
            str(path.relative_to(self.root)): _content(path)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))
        }


def _content(path: Path) -> bytes:
    if path.suffix != ".sqlite3":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        return "\n".join(db.iterdump()).encode()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jobs of every state and a key, made once."""
    folder = tmp_path_factory.mktemp("databases")
    for service in ("bf16", "fp4"):
        make_schema_1(folder / f"{service}.sqlite3")
        upgrade(folder / f"{service}.sqlite3")
        (folder / f"{service}.sqlite3.schema-1").unlink()
    limits, scopes = Limits(), frozenset({Scope.GENERATE})
    key_file(folder).make(name="laptop", scopes=scopes, limits=limits, now=NOW)
    return folder


@pytest.fixture
def machine(tmp_path: Path, databases: Path) -> Machine:
    machine = Machine(tmp_path / "flux")
    machine.use(databases)
    return machine


@pytest.fixture
def backup(machine: Machine, tmp_path: Path) -> Path:
    """One of the machine, with pictures."""
    machine.make(tmp_path / "backup", with_images=True)
    return tmp_path / "backup"
