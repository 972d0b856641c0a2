"""Whether the service of this container takes jobs, for HEALTHCHECK: exit status 0, or 1 and why not.

python -m scripts.containers.healthy
"""

from __future__ import annotations

import os
import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from config.settings import load_settings

SECONDS = 8
# Where a service listens, and where that is asked for.
_OWN_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def main() -> int:
    server = load_settings(os.environ.get("SERVICE", "bf16")).server
    host = _OWN_ADDRESS.get(server.host, server.host)
    direct = build_opener(ProxyHandler({}))  # never by way of a proxy: it asks this machine
    try:
        with direct.open(f"http://{host}:{server.port}/health/ready", timeout=SECONDS):
            return 0
    except HTTPError as error:
        print(f"{error.code}: {error.read(1000).decode(errors='replace')}")
    except OSError as error:
        print(f"no answer on port {server.port}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
