"""Whether there is room for more pictures."""

import os
from pathlib import Path

MIB = 2**20


def why_no_room(folder: Path, min_free_mib: int) -> str | None:
    """Why no picture can be written into `folder`; None when one can."""
    try:
        stats = os.statvfs(folder)
    except OSError as error:
        return f"the output folder {folder} cannot be used: {error.strerror}"
    if not folder.is_dir():
        return f"the output folder {folder} is no folder; move away what stands in its place"
    if not os.access(folder, os.W_OK):
        return f"the output folder {folder} cannot be written; check its permissions"
    free_mib = stats.f_bavail * stats.f_frsize // MIB
    if free_mib < min_free_mib:
        return (
            f"{free_mib} MiB are free in {folder}, less than the {min_free_mib} MiB kept in reserve "
            "(FLUX_MIN_FREE_MIB); delete pictures or make room"
        )
    return None
