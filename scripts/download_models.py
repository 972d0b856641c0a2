"""Fetches models from the Hugging Face Hub, so that a service need not wait for them.

    python -m scripts.download_models flux-schnell
    python -m scripts.download_models --list

Only the files that a model needs, each checked by the Hub's checksum, with the room on the disk asked
for first. What was broken off, by Ctrl-C or `kill -9` too, goes on where it stopped when it is run
again. Files lie in FLUX_MODELS_DIR (./models_cache), or under HF_HOME where that is set. A gated model
asks for its licence to be accepted on the Hub and for HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from config.catalog import Catalog, ModelRow, load_catalog
from config.errors import ConfigurationError, FluxError, ModelUnavailable
from config.settings import Settings, load_settings
from models import safety
from models.hub import on_disk, verify
from models.hub.cache import RepoCache
from models.hub.download import Progress, in_words
from models.hub.repository import ask
from models.hub.snapshot import download, wanted_files
from models.precision import known_precisions

LINE_SECONDS = 10.0  # between two lines, where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        settings = load_settings(options.precision or known_precisions()[0])
        hub = on_disk.hub_folder(options.models_dir or settings.models.models_dir)
        rows = [_row(load_catalog(), name, options.precision) for name in options.models]
        if options.list:
            _list(rows, load_catalog(), hub)
        elif options.verify:
            return _verify(rows, hub)
        else:
            _fetch_all(rows, options, settings, hub)
    except (ConfigurationError, FluxError) as error:
        print(f"download_models: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ndownload_models: stopped; what came is kept, run it again to go on", file=sys.stderr
        )
        return 130
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.download_models", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="an id of config/models.toml")
    parser.add_argument(
        "--list", action="store_true", help="say what is here; with models: their files on the Hub"
    )
    parser.add_argument(
        "--precision", choices=known_precisions(), help="refuse models that have no such weights"
    )
    parser.add_argument(
        "--safety-checker",
        action="store_true",
        help=f"fetch the safety checker: FLUX_SAFETY_MODEL, or {safety.HUB_ID}",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read what is here and compare it with its checksums"
    )
    parser.add_argument("--models-dir", type=Path, help="instead of FLUX_MODELS_DIR")
    options = parser.parse_args(arguments)
    if not (options.models or options.list or options.safety_checker):
        parser.error("name a model, or --list to see which there are")
    return options


def _row(catalog: Catalog, name: str, precision: str | None) -> ModelRow:
    row = catalog.get(name)
    if row is None:
        known = ", ".join(row.id for row in catalog if is_fetched(row))
        raise ConfigurationError(f"there is no model {name!r}; to be fetched are {known}")
    if row.cloud is not None:
        raise ConfigurationError(f"{name} is drawn in the cloud; there is nothing to fetch")
    if precision is not None and precision not in row.memory_gib:
        there = ", ".join(row.memory_gib)
        raise ConfigurationError(f"{name} has no {precision.upper()} weights; it has {there}")
    return row


def is_fetched(row: ModelRow) -> bool:
    """Whether a row's weights come from the Hub."""
    return row.cloud is None and row.folder is None


def _list(rows: Sequence[ModelRow], catalog: Catalog, hub: Path) -> None:
    if rows:
        for row in rows:
            _list_files(row, hub)
        return
    for row in catalog:
        if row.cloud is not None:
            continue
        is_here, where = on_disk.look_at(row, hub)
        state = "here" if is_here else "not here"
        print(f"{row.id:22} {state:9} {where if is_here else row.source} ({row.licence})")


def _list_files(row: ModelRow, hub: Path) -> None:
    if not is_fetched(row):
        print(f"{row.id} comes with the project")
        return
    repository, cache = ask(row.source), RepoCache(hub, row.source)
    cache.make()
    files = wanted_files(repository, cache)
    for file in files:
        here = cache.received_bytes(file)
        state = "here" if here == file.size_bytes else in_words(here) if here else "-"
        print(f"{in_words(file.size_bytes):>11}  {state:>11}  {file.path}")
    total = sum(file.size_bytes for file in files)
    missing = total - sum(cache.received_bytes(file) for file in files)
    print(
        f"{row.id}: {in_words(total)} in {len(files)} files, {in_words(missing)} still to be fetched"
    )


def _fetch_all(
    rows: Sequence[ModelRow], options: argparse.Namespace, settings: Settings, hub: Path
) -> None:
    sources = {row.source: row.id for row in rows if is_fetched(row)}
    for row in rows:
        if not is_fetched(row):
            print(f"{row.id} comes with the project")
    if options.safety_checker:
        sources[_safety_checker(settings.models.safety_model)] = "the safety checker"
    for source, name in sources.items():
        with _Shown(name) as shown:
            folder = _fetch(source, hub, settings.storage.min_free_mib * 2**20, shown)
        print(f"{name}: {in_words(on_disk.size_bytes(folder))} in {folder}")
    if options.precision == "fp4" and rows:
        print("four-bit copies are made at the first use, or by `python -m scripts.quantize_fp4`")


def _safety_checker(wanted: str) -> str:
    hub_id = safety.hub_id_of(wanted)
    if hub_id is None:
        raise ConfigurationError(
            f"FLUX_SAFETY_MODEL is {wanted}, which is no id of the Hub (owner/name): there is nothing to fetch"
        )
    return hub_id


def _fetch(source: str, hub: Path, reserve_bytes: int, shown: Callable[[Progress], None]) -> Path:
    """The newest commit's folder; offline, the one that is here, if it is whole."""
    try:
        return download(source, hub, reserve_bytes=reserve_bytes, on_progress=shown)
    except ModelUnavailable as error:
        folder = on_disk.snapshot_of(hub, source)
        if "cannot be" not in error.message or folder is None or on_disk.missing_in(folder):
            raise
        print(f"{source} is here and whole; whether there is a newer one is not known: {error}")
        return folder


def _verify(rows: Sequence[ModelRow], hub: Path) -> int:
    status = 0
    for row in rows:
        folder = on_disk.snapshot_of(hub, row.source) if is_fetched(row) else None
        if folder is None:
            print(f"{row.id}: nothing fetched is here")
            continue
        wrong = verify.damaged(folder)
        print(f"{row.id}: {'all files are sound' if not wrong else 'damaged: ' + ', '.join(wrong)}")
        status = 1 if wrong else status
    return status


class _Shown:
    """A bar on a terminal, else a line now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._told = float("-inf")

    def __enter__(self) -> _Shown:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=self._name, unit="B", unit_scale=True, unit_divisor=1024)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.total = progress.total_bytes
            under_way = [path for path, here, total in progress.files if 0 < here < total]
            self._bar.set_postfix_str(", ".join(under_way[:2]), refresh=False)
            self._bar.update(progress.received_bytes - self._bar.n)
        elif time.monotonic() - self._told > LINE_SECONDS or progress.fraction == 1.0:
            self._told = time.monotonic()
            print(f"{progress} ({progress.fraction:.0%})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
