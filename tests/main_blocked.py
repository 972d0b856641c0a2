"""The service of `main_engine.py`, whose event loop stands still while the file of TEST_BLOCK lies there.

While it does, the file `<TEST_BLOCK>.blocked` lies beside it.
"""

import asyncio
import os
import runpy
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from api import server  # noqa: E402 (the path comes first)

LOOK_SECONDS = 0.02


class Blocked(server.Server):
    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        self._standing = asyncio.create_task(_stand_still(Path(os.environ["TEST_BLOCK"])))


async def _stand_still(block: Path) -> None:
    told = block.with_name(f"{block.name}.blocked")
    while True:
        if block.exists():
            told.touch()
            while block.exists():
                time.sleep(LOOK_SECONDS)  # not asyncio's: nothing else runs
            told.unlink()
        await asyncio.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    server.Server = Blocked
    runpy.run_path(str(Path(__file__).with_name("main_engine.py")), run_name="__main__")
