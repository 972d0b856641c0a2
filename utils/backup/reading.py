"""Check a backup, all of it, before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from utils.backup import databases, manifest
from utils.backup.manifest import BackupError, Manifest, StoredFile

MOST_FAULTS = 5  # that are named


def read(folder: Path) -> Manifest:
    """The manifest of a backup whose every file is as it was written. Raises BackupError with what is wrong."""
    found = Manifest.read(folder)
    faults = list(_faults(folder, found))
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise BackupError(
            f"{folder} is damaged: {'; '.join(faults[:MOST_FAULTS])}{more}. Nothing was changed; take another backup"
        )
    for path, _ in found.schemas.items():
        # The copy's own word, not the manifest's.
        version = databases.check(folder / path, folder / path)
        known = databases.known_schema(PurePosixPath(path).name)
        if version > known:
            raise BackupError(
                f"{folder / path} was written by a newer version (schema {version}, this one knows {known}), and "
                f"an older one cannot read it. Restore it with version {found.version} of the project or later"
            )
    return found


def _faults(folder: Path, found: Manifest) -> Iterator[str]:
    listed = {file.path for file in found.files}
    for path in found.schemas:
        if path not in listed:
            yield f"{path} is not listed"
    for file in found.files:
        fault = _fault(folder, file)
        if fault:
            yield f"{file.path} {fault}"


def _fault(folder: Path, file: StoredFile) -> str | None:
    path = folder / file.path
    try:
        if any(each.is_symlink() for each in [path, *path.parents][: len(Path(file.path).parts)]):
            return "is a link, or lies behind one"
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != file.size_bytes:
            return f"has {path.stat().st_size} bytes in place of {file.size_bytes}"
        if manifest.sha256_of(path) != file.sha256:
            return "has other content than it had"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
