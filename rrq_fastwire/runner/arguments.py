"""Check the arguments of serve(), so that an error names the one that is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from ..errors import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import TypeAlias

    Network: TypeAlias = IPv4Network | IPv6Network

__all__ = ["check_count", "check_seconds", "check_text", "parse_networks", "parse_tcp_socket"]


def check_count(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type_name(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_seconds(name: str, value: object, *, allow_zero: bool = True) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number of seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, got {type_name(value)}")
    if not (0 <= value < math.inf and (value or allow_zero)):
        least = "at least 0" if allow_zero else "more than 0"
        raise ValueError(f"{name} must be {least} seconds and finite, got {value}")


def check_text(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type_name(value)}")


def parse_networks(texts: Iterable[str]) -> list[Network]:
    """Parse networks such as "10.1.0.0/16", or addresses. Raises TypeError and ValueError."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"allow_from must be a sequence of networks, got {type_name(texts)}")
    networks = []
    for text in texts:
        check_text("a network of allow_from", text)
        networks.append(ip_network(text.strip()))
    return networks


def parse_tcp_socket(tcp_socket: str, *, allow_remote: bool = False) -> tuple[str, int]:
    """Split "host:port" into host and port; an IPv6 address stands in brackets.

    Arguments:
        allow_remote: whether addresses other than loopback are accepted.

    Raises ValueError, with rrq-runner's messages.
    """
    tcp_socket = tcp_socket.strip()
    if not tcp_socket:
        raise ValueError("TCP socket value cannot be empty")
    if tcp_socket.startswith("["):
        host, separator, port_text = tcp_socket.partition("]:")
        host = host.lstrip("[")
        if not separator:
            raise ValueError("TCP socket must be in [host]:port format")
    else:
        host, separator, port_text = tcp_socket.rpartition(":")
        if not separator:
            raise ValueError("TCP socket must be in host:port format")
        if not host:
            raise ValueError("TCP socket host cannot be empty")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket host: {host}") from error
    if not (address.is_loopback or allow_remote):
        raise ValueError("TCP socket must bind to loopback-only interfaces")
    try:
        port = int(port_text)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket port: {port_text}") from error
    if not 0 < port <= 65535:
        raise ValueError(f"TCP socket port out of range: {port}")
    return str(address), port
