"""Whether a server could listen somewhere now: decided by listening there for a moment."""

from __future__ import annotations

import errno
import socket

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def why_not(host: str, port: int) -> OSError | None:
    """What the system says against it; None where a server may. Raises OSError and UnicodeError for no such name.

    Of a name's addresses some may be absent, as one of `localhost` is on machines without IPv6.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    absent = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers do, so that a port is not refused for its old connections.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            if error.errno not in ABSENT:
                return error
            absent.append(error)
    return absent[0] if len(absent) == len(found) else None
