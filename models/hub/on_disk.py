"""Which models are on this machine, whole or in part. The standard library alone: the doctor asks before anything is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.catalog import ModelRow

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
# Parts that families load pipelines without; fetched all the same (see models/safety.py).
NOT_NEEDED = ("safety_checker", "feature_extractor")
_WITHOUT_WEIGHTS = (
    "Tokenizer",
    "Scheduler",
    "Processor",
    "Extractor",
)  # in the class names of parts


def hub_folder(models_dir: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The Hugging Face cache that the loaders use."""
    if not environ.get("HF_HOME"):
        return models_dir
    return Path(environ.get("HF_HUB_CACHE") or Path(environ["HF_HOME"]) / "hub").expanduser()


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the operator keeps huggingface_hub off the network; its own words for it."""
    wanted = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return wanted.upper() in ("1", "ON", "YES", "TRUE")


def comes_with_the_project(row: ModelRow) -> bool:
    """Whether a row's source is a folder of this project, be it there or not, and no id of the Hub."""
    return (ROOT / row.source).parent.is_dir()


def look_at(row: ModelRow, hub: Path) -> tuple[bool, str]:
    """Whether a catalog row's model is here and whole, and where, or what is missing."""
    if comes_with_the_project(row):
        return look_at_folder(ROOT / row.source)
    folder = snapshot_of(hub, row.source)
    if folder is None:
        return False, f"{row.source} is not in {hub}"
    return look_at_folder(folder)


def lacks(
    row: ModelRow, hub: Path, precision: str, models_dir: Path, without: Collection[str] = ()
) -> list[str]:
    """What a worker that may not download would miss of a row's files; nothing where it can load them.

    The parts named in `without` come from elsewhere.
    """
    is_ours = comes_with_the_project(row)
    if not is_ours and any(
        (place / f"{precision}.json").is_file() for place in _places(row, precision, models_dir)
    ):
        return []  # a copy is whole without the original
    if is_ours:
        return missing_in(ROOT / row.source)
    found = [snapshot_of(hub, source) for source in (row.source, *row.other_sources)]
    folders = [folder for folder in found if folder is not None]
    if not folders:
        return ["it was never fetched"]
    if row.command:  # a program of its own, which takes what it needs of the same cache
        return []
    missing = [missing_in(folder, (*NOT_NEEDED, *without)) for folder in folders]
    return [] if [] in missing else missing[-1]


def files_of(row: ModelRow, hub: Path, precision: str, models_dir: Path) -> tuple[bool, int]:
    """Whether a row's files are here and whole, and the bytes that they take, its copy in `precision` included."""
    folder = ROOT / row.source if comes_with_the_project(row) else snapshot_of(hub, row.source)
    is_whole_here = folder is not None and not missing_in(folder, NOT_NEEDED)
    size = 0 if folder is None else size_bytes(folder)
    for place in _places(row, precision, models_dir):
        if (place / f"{precision}.json").is_file():
            size += size_bytes(place)
            # What came with the project is no use without the original; another copy is whole.
            is_whole_here = is_whole_here or not comes_with_the_project(row)
            break
    return is_whole_here, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A model's copy in another precision."""

    text: str  # where it lies and how large it is
    fault: str = ""  # what is wrong with it, and what to do


def copy_of(row: ModelRow, precision: str, models_dir: Path) -> Copy | None:
    """The copy of a model that a service of `precision` would take; None without one.

    It has a manifest, `<precision>.json`, and lies beside a model of this project (`embedded-fp4`), or
    in `<models_dir>/<precision>/<id>`. A service takes no other model in place of a damaged copy.
    """
    for place in _places(row, precision, models_dir):
        manifest = place / f"{precision}.json"
        if not manifest.is_file():
            continue
        wrong = _what_is_wrong(manifest)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        return Copy(
            text=f"{precision.upper()} copy in {place}, {size / GIB:.2g} GiB",
            fault=(
                f"{wrong}; delete {place}, and it is made again at the first use" if wrong else ""
            ),
        )
    return None


def _places(row: ModelRow, precision: str, models_dir: Path) -> list[Path]:
    places = [models_dir / precision / row.id]
    if comes_with_the_project(row):
        places.insert(0, ROOT / f"{row.source}-{precision}")
    return places


def _what_is_wrong(manifest: Path) -> str | None:
    """Whether a copy lacks files that its manifest names, or has them in another size."""
    try:
        components = json.loads(manifest.read_text(encoding="utf-8"))["components"]
        wanted = {
            manifest.parent / name / file: entry["size"]
            for name, part in components.items()
            for file, entry in {**part["files"], "config.json": part["config"]}.items()
        }
        for file, size in wanted.items():
            if file.stat().st_size != size:
                return f"{file} is cut short or another file"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{manifest} is damaged ({error!r})"
    return None


def look_at_folder(folder: Path) -> tuple[bool, str]:
    """Whether a pipeline's folder holds a whole model, and how large it is or what is missing."""
    missing = missing_in(folder)
    if missing:
        return False, f"{folder} is incomplete: {', '.join(missing)}"
    return True, f"{folder}, {size_bytes(folder) / GIB:.2g} GiB"


def missing_in(folder: Path, without: Collection[str] = ()) -> list[str]:
    """What a pipeline's folder lacks, by name; the parts named in `without` are not looked for."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = {
            name: str(kind[1])
            for name, kind in index.items()
            if isinstance(kind, list) and kind[1] and name not in without
        }
    except OSError as error:
        return [f"model_index.json: {error.strerror}"]
    except (ValueError, AttributeError, LookupError) as error:
        return [f"model_index.json is damaged: {error}"]
    return [name for name, kind in parts.items() if not _has_part(folder / name, kind)]


def size_bytes(folder: Path) -> int:
    """What a folder's files take, those included that it only links to; one that vanishes counts nothing."""
    sizes = 0
    for file in folder.rglob("*"):
        try:
            sizes += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return sizes


def _has_part(folder: Path, kind: str) -> bool:
    """A component's folder: its configuration, and for a network every file of weights, all of them readable."""
    if not folder.is_dir():
        return False
    if any(word in kind for word in _WITHOUT_WEIGHTS):
        return any(folder.glob("*.json"))
    wanted: set[str] = set()
    try:
        for index in folder.glob("*.safetensors.index.json"):
            wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in wanted] or list(folder.glob("*.safetensors"))
        return (folder / "config.json").is_file() and bool(files) and all(map(is_whole, files))
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return False


def damaged_json(folder: Path) -> str | None:
    """The first file of a pipeline's folder that should be JSON and is not, by its place there.

    For when loading has failed: what libraries say of such a file does not name it.
    """
    for file in sorted(folder.rglob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return str(file.relative_to(folder))
    return None


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says.

    What it is not: a pointer of Git LFS, a page in place of a file, a copy that was cut off.
    """
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= MOST_HEADER_BYTES:
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [
                about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
    return file.stat().st_size == 8 + length + max(ends, default=0)


def snapshot_of(hub: Path, source: str) -> Path | None:
    """The snapshot of a Hub repository that is in use here; None when there is none."""
    repository = hub / f"models--{source.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
        folder = repository / "snapshots" / commit
        return folder if folder.is_dir() else None
    except (OSError, ValueError):
        return None
