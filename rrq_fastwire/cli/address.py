"""Addresses on the command line. `ping` needs them without the extra that other commands need."""

from __future__ import annotations


def split_address(text: str) -> tuple[str, int]:
    """Split "HOST:PORT" or "[IPv6]:PORT" into host and port. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise ValueError(text)
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return "HOST:PORT" or "[IPv6]:PORT"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
