"""Check the arguments of serve(), so that an error names the one that is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from ipaddress import ip_network

from ..errors import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import TypeAlias

    Network: TypeAlias = IPv4Network | IPv6Network

__all__ = ["check_count", "check_seconds", "check_text", "parse_networks"]


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
