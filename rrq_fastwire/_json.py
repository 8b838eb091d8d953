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
    from collections.abc import Callable, Iterator
    from typing import Any

    loads: Callable[[bytes | memoryview], Any]

__all__ = ["JSON_BACKEND", "encode", "loads", "version"]

# The reference reads an integer outside 64 bits as a float, and refuses one beyond a double.
_BIG = 10**308

_LEAVES = frozenset((str, int, float, bool, type(None)))


class _NoJsonError(Exception):
    """Why a value cannot be encoded; `path` grows on the way out."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path = ""


def is_plain(value: Any, levels: int) -> bool:
    """Whether nothing but Python's own types is in `value`, nested at most `levels` deep.

    Only that is left to orjson, which trusts what else it knows: a Fragment is written unread, an
    Enum may run anybody's code while it is written, and tuples do not count as nested.
    """
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind is dict:
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return False
    if not levels:
        return False
    for item in items:  # noqa: SIM110 (a generator takes twice as long)
        if type(item) not in _LEAVES and not is_plain(item, levels - 1):
            return False
    return True


def _plain(value: Any, levels: int, big: Callable[[int], Any]) -> Any:
    """`value` with nothing in it but what both backends write alike. Raises _NoJsonError.

    Arguments:
        levels: how many containers may be nested in one another.
        big: what an integer outside 64 bits is turned into.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return _plain(value.value, levels, big)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        number = int.__index__(value)
        if -(2**63) <= number < 2**64:
            return number
        if -_BIG < number < _BIG:
            return big(number)
        raise _NoJsonError("int of more than 308 digits, which no double can hold")
    if isinstance(value, float):
        real = float.__float__(value)
        return real if real - real == 0.0 else None  # NaN and infinities become null
    if isinstance(value, UUID):
        return _text(UUID.__str__(value))
    if not isinstance(value, (dict, list, tuple)):
        raise _NoJsonError(f"object of type {type(value).__qualname__!r} has no JSON form")
    if not levels:
        raise _NoJsonError("nested too deep for the orchestrator")
    step = ""
    try:
        if isinstance(value, dict):
            plain = {}
            for key, item in dict.items(value):
                step = ""
                name = _key(key)
                step = f".{name}"
                plain[name] = _plain(item, levels - 1, big)
            return plain
        items: list[Any] = []
        for item in _items(value):
            step = f"[{len(items)}]"
            items.append(_plain(item, levels - 1, big))
        return items
    except _NoJsonError as error:
        error.path = step + error.path
        raise


def _items(value: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """The items that are there, whatever a subclass would give."""
    return list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)


def _text(value: str) -> str:
    try:
        return str.encode(value).decode()
    except UnicodeEncodeError as error:
        reason = f"str with a lone surrogate at index {error.start}, which UTF-8 cannot carry"
        raise _NoJsonError(reason) from None


def _key(key: Any) -> str:
    if isinstance(key, str):
        return _text(key)
    raise _NoJsonError(f"object key of type {type(key).__qualname__!r}, only str can be one")


def _checked(value: Any, levels: int, path: str, big: Callable[[int], Any]) -> Any:
    """What _plain() gives; raises EncodeError, whatever a value's own code raises."""
    try:
        return _plain(value, levels, big)
    except _NoJsonError as error:
        where = (path + error.path).removeprefix(".")
        # The whole path of something a hundred levels deep helps nobody.
        raise EncodeError(
            error.reason, where if len(where) < 200 else f"{where[:200]}..."
        ) from None
    except Exception as error:
        reason = f"its own code raised {type(error).__name__} while it was encoded"
        raise EncodeError(reason, path) from error


try:
    import orjson
except ImportError:
    import json
    import re
    import sys
    from _thread import allocate_lock

    backend = "json"
    version = sys.version.partition(" ")[0]  # it comes with Python

    # What orjson reads at the most, so that both accept the same.
    _DEPTH = 1024
    # From here on CPython 3.11, which counts them against its recursion limit, may need help.
    _DEEP = 100
    _recursion = allocate_lock()

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
        if _depth(text) > _DEPTH:
            raise ValueError("depth limit exceeded")
        with _recursion:
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + _DEPTH)
            try:
                return _decode(text)
            finally:
                sys.setrecursionlimit(limit)

    def _loads(data: bytes | memoryview) -> Any:
        """The value of one JSON document. Raises ValueError."""
        text = bytes(data).decode()  # str(data, "utf-8") takes lone surrogates on PyPy
        deep = text.count("[") + text.count("{") > _DEEP
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
        plain = _checked(value, levels, path, lambda number: number)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()

else:
    backend = "orjson"
    version = orjson.__version__
    loads = orjson.loads
    dumps = orjson.dumps

    def _fragment(number: int) -> Any:
        return orjson.Fragment(str(number))  # type: ignore[attr-defined,unused-ignore]

    def encode(value: Any, levels: int, path: str) -> bytes:
        """`value` as compact JSON.

        Arguments:
            levels: how many containers may be nested in one another.
            path: where `value` stands, for the error.

        Raises EncodeError.
        """
        if is_plain(value, levels):
            try:
                return dumps(value)
            except TypeError:
                pass  # a lone surrogate, a large integer, a key that is not a str
        return dumps(_checked(value, levels, path, _fragment))


JSON_BACKEND: str = backend
