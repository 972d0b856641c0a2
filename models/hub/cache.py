"""The Hub's cache on disk, as huggingface_hub lays it out, so that both read what the other wrote.

    models--owner--name/
        blobs/<digest>                a file's bytes; `<digest>.part` while they come
        snapshots/<commit>/<path>     links to blobs
        refs/main                     the commit that is in use

`refs/main` is written last: a repository that is half here looks as it did before.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.hub.repository import RepoFile


class RepoCache:
    """One repository's folder."""

    def __init__(self, hub: Path, repo: str) -> None:
        self.folder = hub / f"models--{repo.replace('/', '--')}"

    def make(self) -> None:
        """Raises OSError."""
        for name in ("blobs", "refs", "snapshots"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def blob(self, file: RepoFile) -> Path:
        return self.folder / "blobs" / file.digest

    def part(self, file: RepoFile) -> Path:
        """What has come of a file so far."""
        return self.folder / "blobs" / f"{file.digest}.part"

    def has(self, file: RepoFile) -> bool:
        """Whether all of its bytes are here; they were checked when they came."""
        return size_of(self.blob(file)) == file.size_bytes

    def received_bytes(self, file: RepoFile) -> int:
        if self.has(file):
            return file.size_bytes
        return min(size_of(self.part(file)) or 0, file.size_bytes)

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def link(self, commit: str, file: RepoFile) -> None:
        """Show a file in a commit's snapshot."""
        path = self.snapshot(commit) / file.path
        blob = self.blob(file)
        if path.exists() and os.path.samefile(path, blob):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            os.link(blob, temporary)  # a file system without symbolic links
        os.replace(temporary, path)

    def use(self, commit: str) -> None:
        """From now on this commit is what a loader finds."""
        ref = self.folder / "refs" / "main"
        temporary = ref.with_name(f"main.{os.getpid()}.tmp")
        temporary.write_text(commit, encoding="utf-8")
        os.replace(temporary, ref)


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
