"""FLUX API, the FP4 service: four-bit FLUX on port 8000."""

import sys

from api import server

PRECISION = "fp4"


def build_app():
    """The application, as a factory for any ASGI server."""
    return server.build_app(PRECISION)


if __name__ == "__main__":
    sys.exit(server.serve(PRECISION))
