"""The folder that keeps what torch compiled, for the next start.

torch makes it when it is imported and cannot be imported where that fails: in a checkout that nobody may write to, on
a disk that is full. A worker looks first, so that a picture never depends on it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def require_usable(environ: MutableMapping[str, str] = os.environ) -> None:
    """Leave the folder to torch, which takes one for temporary files, where this one cannot be written."""
    folder = environ.get(VARIABLE)
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        del environ[VARIABLE]
        log.warning(
            "%s cannot be written (%s): what is compiled is not kept; FLUX_MODELS_DIR is where it would lie",
            folder,
            error.strerror,
            extra={"action": "compiled_not_kept"},
        )
