"""A model's folder in the Hub's cache: found where it is whole, else fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from config.catalog import ModelRow
from config.errors import ModelUnavailable, StorageUnavailable
from models.hub import on_disk
from models.hub.cache import RepoCache
from models.hub.download import Patience, Progress, disk_error, fetch, require_room
from models.hub.repository import INDEX, RepoFile, Repository, ask, select
from models.types import LoadOptions


def snapshot(row: ModelRow, options: LoadOptions, *, without: Collection[str] = ()) -> Path:
    """The folder with the row's files, but the parts named in `without`; fetched if need and permission be.

    A model that is whole here is not asked for. Raises ModelUnavailable, saying which files are
    missing and what to do, or StorageUnavailable.
    """
    hub = on_disk.hub_folder(options.models_dir)
    missing = ["it was never fetched"]
    for source in (row.source, *row.other_sources):
        folder = on_disk.snapshot_of(hub, source)
        if folder is not None:
            missing = on_disk.missing_in(folder, (*without, *on_disk.NOT_NEEDED))
            if not missing:
                return folder
    if not options.allow_download:
        raise ModelUnavailable(
            f"model {row.id}: {row.source} is not on this machine ({', '.join(missing)}), and downloads are "
            f"off (FLUX_ALLOW_DOWNLOAD); allow them, or run `python -m scripts.download_models {row.id}`"
        )
    with _for_the_model(row):
        return download(
            row.source,
            hub,
            without=without,
            reserve_bytes=options.reserve_bytes,
            on_progress=_tell(options),
        )


def download(
    repo: str,
    hub: Path,
    *,
    without: Collection[str] = (),
    reserve_bytes: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Path:
    """Fetch what is missing of a repository's newest commit; returns its folder.

    Raises ModelUnavailable, StorageUnavailable.
    """
    repository = ask(repo)
    with _in_our_words():
        RepoCache(hub, repo).make()
        files = wanted_files(repository, RepoCache(hub, repo), without, patience)
    return _bring(repository, files, hub, reserve_bytes, on_progress, patience)


def _bring(
    repository: Repository,
    files: Sequence[RepoFile],
    hub: Path,
    reserve_bytes: int,
    on_progress: Callable[[Progress], None],
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Path:
    """The folder of a commit with these files in it."""
    cache = RepoCache(hub, repository.id)
    with _in_our_words():
        cache.make()
        require_room(cache, files, reserve_bytes)
        fetch(repository, files, cache, on_progress=on_progress, patience=patience)
        for file in files:
            cache.link(repository.commit, file)
        cache.use(repository.commit)
    return cache.snapshot(repository.commit)


def wanted_files(
    repository: Repository,
    cache: RepoCache,
    without: Collection[str] = (),
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> list[RepoFile]:
    """Which files a model needs; its index is fetched for that."""
    index = repository.file(INDEX)
    if index is None:
        return select(repository, None)
    fetch(repository, [index], cache, on_progress=lambda progress: None, patience=patience)
    try:
        parts = json.loads(cache.blob(index).read_text(encoding="utf-8"))
        if not isinstance(parts, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ModelUnavailable(f"{repository.id}: {INDEX} is no JSON: {error}") from error
    return select(repository, parts, without)


def single_file(repo: str, name: str, row: ModelRow, options: LoadOptions) -> Path:
    """One file of a repository that is no pipeline, fetched if need and permission be.

    Raises as `snapshot` does.
    """
    hub = on_disk.hub_folder(options.models_dir)
    folder = on_disk.snapshot_of(hub, repo)
    if folder is not None and (folder / name).is_file():
        return folder / name
    if not options.allow_download:
        raise ModelUnavailable(
            f"model {row.id}: {repo}/{name} is not on this machine, and downloads are off "
            "(FLUX_ALLOW_DOWNLOAD)"
        )
    with _for_the_model(row):
        repository = ask(repo)
        file = repository.file(name)
        if file is None:
            raise ModelUnavailable(f"{repo} on the Hugging Face Hub has no file {name}")
        return _bring(repository, [file], hub, options.reserve_bytes, _tell(options)) / name


def _tell(options: LoadOptions) -> Callable[[Progress], None]:
    return lambda progress: options.on_progress(str(progress), progress.fraction)


@contextmanager
def _for_the_model(row: ModelRow) -> Iterator[None]:
    """Errors of a download as the model's."""
    try:
        yield
    except (ModelUnavailable, StorageUnavailable) as error:
        kind = ModelUnavailable if isinstance(error, ModelUnavailable) else StorageUnavailable
        raise kind(
            f"model {row.id} is not on this machine: {error.message}", retry_after_seconds=60
        ) from error


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error
