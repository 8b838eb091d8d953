"""Addresses on the command line. `ping` needs them without the extra that other commands need."""

from __future__ import annotations


def split_address(text: str, alternative: str = "") -> tuple[str, int]:
    """Split "HOST:PORT" or "[IPv6]:PORT" into host and port.

    Arguments:
        alternative: what the user could give instead, for the error, such as ", or --runner".

    Raises ValueError with a sentence about what is wrong.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise ValueError(
            f"expected HOST:PORT with a port from 1 to 65535{alternative}, got {text!r}"
        )
    try:
        host.encode("idna")  # as the socket module does, but only when it connects
    except UnicodeError:
        raise ValueError(f"{host!r} is not a valid host name") from None
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return "HOST:PORT" or "[IPv6]:PORT"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
