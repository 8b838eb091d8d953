"""JSON as the orchestrator reads it: with orjson, or with json where orjson has no build.

Both backends accept the same documents and give the same values. They reject NaN, infinities, a
BOM, lone surrogates, numbers that no double can hold, and nesting deeper than 1,024 containers.
Integers outside 64 bits become floats, as in the orchestrator.
"""

from __future__ import annotations

from enum import Enum
from uuid import UUID

from .errors import EncodeError, type_name
from .messages import MAX_NESTING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    loads: Callable[[bytes | memoryview], Any]
    dumps: Callable[[Any], bytes] | None

__all__ = ["JSON_BACKEND", "dump_plain", "dumps", "encode", "loads", "version"]

# The orchestrator reads an integer outside 64 bits as a float, and rejects one that no double can
# hold. This limit is a little below the largest double.
_INTEGER_LIMIT = 10**308

# The most items that all containers of a value may hold together. An item takes at least two bytes,
# so the largest frame cannot carry more. Without this limit, a list that holds one list many times,
# which holds another many times, could expand to any size.
MAX_ITEMS = 8 * 1024 * 1024

_LEAVES = frozenset((str, int, float, bool, type(None)))


class _NoJsonError(Exception):
    """Why a value cannot be encoded. `path` grows while the exception propagates."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path = ""


def _is_plain(value: Any, levels: int, left: list[int]) -> bool:
    """Return whether `value` holds only Python's own JSON types, nested at most `levels` deep.

    orjson gets only such values, because it writes a Fragment without a check, runs an Enum's code
    while it writes, and does not count tuples as nesting.

    Arguments:
        left: a list with one number, how many more items `value` may hold. It is counted down.
    """
    kind = type(value)
    if kind is dict:
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return False
    left[0] -= len(value)
    if not levels or left[0] < 0:
        return False
    for item in items:
        if type(item) not in _LEAVES and not _is_plain(item, levels - 1, left):
            return False
    return True


def dump_plain(value: Any, levels: int) -> bytes | None:
    """Write `value` with orjson; return None if it is not plain, or orjson rejects it.

    As far as Python can prevent it, no code runs between the check and the writing in which another
    thread or the garbage collector could change the value.
    """
    if dumps is None:
        return None
    try:
        if _is_plain(value, levels, [MAX_ITEMS]):
            return dumps(value)
    except (TypeError, RuntimeError):
        pass  # a lone surrogate, a large integer, a key that is not a str; a dict that changed
    return None


def _plain_copy(value: Any, levels: int, left: list[int]) -> Any:
    """Copy `value`, with only types that both backends write alike. Raises _NoJsonError.

    Arguments: those of _is_plain().
    """
    if value is None or value is True or value is False:
        return value
    # Not isinstance(), because an object's `__class__` can name another class.
    kind = type(value)
    if issubclass(kind, Enum):
        return _plain_copy(value.value, levels, left)
    if issubclass(kind, str):
        return _text(value)
    if issubclass(kind, int):
        number = int.__index__(value)
        if -(2**63) <= number < 2**64:
            return number
        if -_INTEGER_LIMIT < number < _INTEGER_LIMIT:
            return _large_integer(number)
        raise _NoJsonError("int of more than 308 digits, which no double can hold")
    if issubclass(kind, float):
        real = float.__float__(value)
        return real if real - real == 0.0 else None  # NaN and infinities become null
    if issubclass(kind, UUID):
        return _text(UUID.__str__(value))
    if not issubclass(kind, (dict, list, tuple)):
        raise _NoJsonError(f"object of type {type_name(value)!r} has no JSON form")
    if not levels:
        raise _NoJsonError("nested too deep for the orchestrator")
    step = ""
    try:
        if issubclass(kind, dict):
            _count(dict.__len__(value), left)
            plain = {}
            for key, item in dict.items(value):
                step = ""
                name = _key(key)
                step = f".{name}"
                plain[name] = _plain_copy(item, levels - 1, left)
            return plain
        sequence: Any = list if issubclass(kind, list) else tuple
        _count(sequence.__len__(value), left)
        items: list[Any] = []
        for item in sequence.__iter__(value):  # not a subclass's own `__iter__`
            step = f"[{len(items)}]"
            items.append(_plain_copy(item, levels - 1, left))
        return items
    except _NoJsonError as error:
        error.path = step + error.path
        raise


def _count(items: int, left: list[int]) -> None:
    left[0] -= items
    if left[0] < 0:
        raise _NoJsonError(f"more than {MAX_ITEMS} items")


def _text(value: str) -> str:
    try:
        return str.encode(value).decode()
    except UnicodeEncodeError as error:
        reason = f"str with a lone surrogate at index {error.start}, which UTF-8 cannot carry"
        raise _NoJsonError(reason) from None


def _key(key: Any) -> str:
    if issubclass(type(key), str):
        return _text(key)
    raise _NoJsonError(f"object keys must be str, not {type_name(key)}")


def _checked(value: Any) -> Any:
    """Call _plain_copy(), and raise EncodeError instead of whatever a value's own code raises."""
    try:
        return _plain_copy(value, MAX_NESTING, [MAX_ITEMS])
    except _NoJsonError as error:
        where = error.path.removeprefix(".")
        # The path of a value a hundred levels deep is too long to read.
        raise EncodeError(
            error.reason, where if len(where) < 200 else f"{where[:200]}..."
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        reason = f"its own code raised {type_name(error)} while it was encoded"
        raise EncodeError(reason) from error


try:
    import orjson
except ImportError:
    import json
    import re
    import sys

    backend = "json"
    version = sys.version.partition(" ")[0]  # of Python, which the json module is part of

    # orjson's limit, so that both accept the same.
    _MAX_DEPTH = 1024
    # Enough for _MAX_DEPTH and the caller's own frames.
    _RECURSION_LIMIT = 3000

    # Possessive quantifiers never backtrack, so no state is kept for each character.
    _STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
    # In a document that is known to be valid JSON, each match is one whole escape: of a surrogate
    # pair, of a lone surrogate, or of another character.
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

    def _decode_text(text: str) -> Any:
        if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
            raise ValueError("depth limit exceeded")
        try:
            return _decode(text)
        except RecursionError:
            # CPython 3.11 counts nested containers against the recursion limit. The limit stays
            # raised: lowering it needs a lock, which __del__ or a fork could block for ever.
            if sys.getrecursionlimit() >= _RECURSION_LIMIT:
                raise
            sys.setrecursionlimit(_RECURSION_LIMIT)
            return _decode(text)

    def _loads(data: bytes | memoryview) -> Any:
        """Return the value of one JSON document. Raises ValueError."""
        text = bytes(data).decode()  # str(data, "utf-8") accepts lone surrogates on PyPy
        value = _decode_text(text)
        if "\\u" in text and any(escape["lone"] for escape in _ESCAPE.finditer(text)):
            raise ValueError("lone surrogate in string")
        return value

    loads = _loads
    dumps = None

    def _write(plain: Any) -> bytes:
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()

    def _large_integer(number: int) -> Any:
        return number

else:
    backend = "orjson"
    version = orjson.__version__
    loads = orjson.loads
    dumps = orjson.dumps

    def _write(plain: Any) -> bytes:
        return orjson.dumps(plain)

    def _large_integer(number: int) -> Any:
        return orjson.Fragment(str(number))  # type: ignore[attr-defined,unused-ignore]


def encode(value: Any, dump_plain: Callable[[Any, int], bytes | None]) -> bytes:
    """Write `value` as compact JSON, nested at most MAX_NESTING deep.

    Arguments:
        dump_plain: dump_plain(), or a compiled function that gives the same.

    Raises EncodeError.
    """
    written = dump_plain(value, MAX_NESTING)
    return _write(_checked(value)) if written is None else written


JSON_BACKEND: str = backend
