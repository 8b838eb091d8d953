"""JSON as the orchestrator reads it, by orjson, or by json where orjson has no build.

Both backends accept the same documents, give the same values and reject the rest alike: no NaN or
infinity, no BOM, no lone surrogate, no number beyond a double, at most 1,024 nested containers when
decoding. Integers outside 64 bits decode to floats, as the orchestrator's own do.
"""

from __future__ import annotations

from enum import Enum
from uuid import UUID

from .errors import EncodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    loads: Callable[[bytes | memoryview], Any]

__all__ = ["JSON_BACKEND", "encode", "loads", "version"]

# The reference reads an integer outside 64 bits as a float, and refuses one beyond a double.
_BIG = 10**308


def _plain(value: Any, levels: int, path: str, big: Callable[[int], Any]) -> Any:
    """`value` with nothing in it but what both backends write alike.

    It decides what can be encoded: orjson is the fast way for what this lets through as it is.

    Arguments:
        levels: how many containers may be nested in one another.
        path: where `value` stands, for the error.
        big: what an integer outside 64 bits is turned into.

    Raises EncodeError.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, levels, path, big)
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        number = int(value)
        if -(2**63) <= number < 2**64:
            return number
        if -_BIG < number < _BIG:
            return big(number)
        raise EncodeError("int of more than 308 digits, which no double can hold", path)
    if isinstance(value, float):
        return float(value) if value - value == 0.0 else None  # NaN and infinities become null
    if isinstance(value, (list, tuple)):
        levels = _descend(levels, path)
        return [_plain(item, levels, f"{path}[{at}]", big) for at, item in enumerate(value)]
    if isinstance(value, dict):
        levels = _descend(levels, path)
        return {
            _key(key, path): _plain(item, levels, f"{path}.{key}" if path else key, big)
            for key, item in value.items()
        }
    if isinstance(value, UUID):
        return str(value)
    raise EncodeError(f"object of type {type(value).__qualname__!r} has no JSON form", path)


def _text(value: str, path: str) -> str:
    try:
        return value.encode().decode()
    except UnicodeEncodeError as error:
        reason = f"str with a lone surrogate at index {error.start}, which UTF-8 cannot carry"
        raise EncodeError(reason, path) from None


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return _text(key, path)
    raise EncodeError(f"object key of type {type(key).__qualname__!r}, only str can be one", path)


def _descend(levels: int, path: str) -> int:
    if not levels:
        # The path of something nested a hundred levels deep helps nobody.
        raise EncodeError("nested too deep for the orchestrator", path[:80])
    return levels - 1


try:
    import orjson
except ImportError:
    import json
    import re
    import sys

    backend = "json"
    version = sys.version.partition(" ")[0]  # it comes with Python

    # What orjson reads at the most, so that both accept the same.
    _DEPTH = 1024

    _STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
    # Tried from the left over a document known to be JSON, each match is one whole escape:
    # a surrogate pair, half of one, or anything else.
    _ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F])|.)")

    def _float(digits: str) -> float:
        number = float(digits)
        if number - number != 0.0:
            raise ValueError("number is infinity when parsed as double")
        return number

    def _int(digits: str) -> int | float:
        if len(digits) <= 20:
            number = int(digits)
            if -(2**63) <= number < 2**64:
                return number
        return _float(digits)

    def _constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    _decode = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=_constant).decode

    def _depth(text: str) -> int:
        deepest = depth = 0
        for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
            depth += 1 if bracket in "[{" else -1
            deepest = max(deepest, depth)
        return deepest

    def _decode_deep(text: str) -> Any:
        """CPython 3.11 counts every container against its recursion limit of 1,000."""
        if _depth(text) > _DEPTH:
            raise ValueError("depth limit exceeded")
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + _DEPTH)
        try:
            return _decode(text)
        finally:
            sys.setrecursionlimit(limit)

    def _loads(data: bytes | memoryview) -> Any:
        """The value of one JSON document. Raises ValueError."""
        text = str(data, "utf-8")
        deep = text.count("[") + text.count("{") > _DEPTH // 2
        value = _decode_deep(text) if deep else _decode(text)
        if "\\u" in text and any(escape["lone"] for escape in _ESCAPE.finditer(text)):
            raise ValueError("lone surrogate in string")
        return value

    loads = _loads

    def encode(value: Any, levels: int, path: str) -> bytes:
        """`value` as compact JSON.

        Arguments:
            levels: how many containers may be nested in one another.
            path: where `value` stands, for the error.

        Raises EncodeError.
        """
        plain = _plain(value, levels, path, lambda number: number)
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()

else:
    from bisect import bisect_left

    # Date-times and dataclasses have no JSON form here: orjson's is not the one of RRQ's runner.
    OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

    backend = "orjson"
    version = orjson.__version__
    loads = orjson.loads
    dumps = orjson.dumps

    def wrap(value: Any, levels: int) -> Any:
        """`value` inside that many lists."""
        for _ in range(levels):
            value = [value]
        return value

    def _fragment(number: int) -> Any:
        return orjson.Fragment(str(number))  # type: ignore[attr-defined,unused-ignore]

    def _refused(levels: int) -> bool:
        try:
            dumps(wrap(None, levels))
        except TypeError:
            return True
        return False

    # orjson refuses to write more nested containers than this (254 as of 3.13). So a value inside
    # DEPTH - n lists is refused if it nests deeper than n: checked at orjson's own speed.
    DEPTH = bisect_left(range(1024), True, key=_refused) - 1

    def encode(value: Any, levels: int, path: str) -> bytes:
        """`value` as compact JSON.

        Arguments:
            levels: how many containers may be nested in one another.
            path: where `value` stands, for the error.

        Raises EncodeError.
        """
        try:
            body = dumps(value, None, OPTIONS)
            if body.count(b"[") + body.count(b"{") > levels:
                dumps(wrap(value, DEPTH - levels), None, OPTIONS)
        except TypeError:
            body = dumps(_plain(value, levels, path, _fragment))
        return body


JSON_BACKEND: str = backend
