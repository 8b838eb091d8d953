"""Format text, times and sizes for a terminal."""

from __future__ import annotations

import codecs
import json
import re
import sys
from functools import partial

from rich.filesize import decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

# Longer times are shown in seconds, because days would have too many digits.
_LONGEST = 1e12


def printable(text: str) -> str:
    """Return text on one line, with control characters as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def json_for_stdout() -> Callable[[str], str]:
    r"""Return a function that writes JSON with \u escapes for what stdout should not get.

    If stdout is not UTF-8, all characters beyond ASCII are escaped. On a terminal, those that are
    not printable are. A UTF-8 file or pipe gets the document unchanged.
    """
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    if is_utf8 and not sys.stdout.isatty():
        return str

    def shown(found: re.Match[str]) -> str:
        return found[0] if is_utf8 and found[0].isprintable() else json.dumps(found[0])[1:-1]

    # These characters occur only within strings.
    return partial(re.compile("[^\0-~]").sub, shown)


def duration(seconds: float) -> str:
    """Return a time in one or two units: "3 h 5 min", "12.3 ms", "-5.0 s"."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds >= _LONGEST:
        return f"{seconds:g} s"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts: list[str] = []
    for unit, size in _UNITS:
        count, seconds = divmod(int(seconds), size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def byte_count(count: int) -> str:
    """Return a number of bytes in a fitting unit: "311 B", "1.0 MB"."""
    return decimal(count).replace("bytes", "B")
