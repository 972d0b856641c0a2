"""FLUX API, the BF16 service: full-precision FLUX on port 8001."""

import sys

from api import server

PRECISION = "bf16"


def build_app():
    """The application, as a factory for any ASGI server."""
    return server.build_app(PRECISION)


if __name__ == "__main__":
    sys.exit(server.serve(PRECISION))
