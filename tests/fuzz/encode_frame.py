"""Fuzz encode_frame(): messages of structured Python values, including objects with hostile code."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from rrq_fastwire import (
    FRAME_HEADER_LEN,
    CancelRequest,
    ExecutionContext,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    OutcomeStatus,
)

from .choices import Choices
from .oracles import IMPLEMENTATIONS, assert_same, check_message, outcome, strict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


class HostileError(Exception):
    """The exception that the code of hostile values raises."""


def _hostile(*_: object, **__: object) -> Any:
    raise HostileError


def _lies(*_: object, **__: object) -> Any:
    return "a lie"


_METHODS = (
    *("__str__", "__repr__", "__hash__", "__eq__", "__len__", "__iter__", "__getitem__"),
    *("__index__", "__int__", "__float__", "__bool__", "__contains__", "__format__", "__reduce__"),
    *("items", "keys", "values", "encode", "utcoffset", "isoformat", "astimezone", "hex"),
)


def _derived(base: type, code: Callable[..., Any]) -> type:
    """A subclass of `base` whose methods the codec must not call."""
    namespace = {name: code for name in _METHODS if hasattr(base, name)}
    if base is object:
        namespace["__class__"] = property(lambda self: dict)
    return type(f"{base.__name__}_that_{code.__name__}", (base,), namespace)


_BASES = (str, int, float, dict, list, tuple, bytes, UUID, object, datetime)
_DERIVED = {base: tuple(_derived(base, code) for code in (_hostile, _lies)) for base in _BASES}


class _Zone(tzinfo):
    """A time zone whose offset is chosen by the fuzzer."""

    def __init__(self, offset: Any) -> None:
        self._offset = offset

    def utcoffset(self, _: object) -> Any:
        if self._offset is HostileError:
            raise HostileError
        return self._offset

    def dst(self, _: object) -> Any:
        return self.utcoffset(_)

    def tzname(self, _: object) -> Any:
        return "a lie"


class Word(Enum):
    TEXT = "text"
    LIST = [1, [2]]  # noqa: RUF012
    SURROGATE = "\ud800"
    OBJECT = object()


class Number(IntEnum):
    ONE = 1


_SCALARS = (
    *(None, True, False, 0, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.0, -0.0, 1.5, 1e-320, 1e308, 1.0, 0.1 + 0.2),
    *("", "a", "é", "\0", '"', "\\", "\x7f", "\u2028", "\U0001f600", "0123456789abcdef" * 3),
)
_ODD = (
    *(math.nan, math.inf, -math.inf, 2**64, -(2**63) - 1, 10**308, 10**307, -(10**400), 10**5000),
    *("\ud800", "a\udfffb", b"bytes", Decimal("1.5"), {1}, object, object(), Ellipsis, 1j),
    *(UUID(int=5), Number.ONE, *Word, OutcomeStatus.ERROR, datetime(2026, 1, 1), range(3)),
)
_ZONES = (timezone.utc, None, timezone(timedelta(hours=23, minutes=59, seconds=1)), _Zone(None))
_ODD_ZONES = (_Zone(HostileError), _Zone("a lie"), _Zone(timedelta(days=2)), _Zone(timedelta(1)))


class _Values:
    """Makes values that the fuzzer chooses.

    Arguments:
        hostile: whether to make values that cannot be sent, and objects with hostile code.
    """

    def __init__(self, choices: Choices, *, hostile: bool) -> None:
        self._choices = choices
        self._hostile = hostile
        # Containers, which are used again to make shared and recursive ones.
        self._made: list[Any] = []

    def text(self) -> Any:
        choices = self._choices
        kind = choices.number(7)
        if kind == 0 and self._hostile:
            return self.any()
        text = choices.bytes(choices.number(40)).decode("utf-8", "replace")
        if kind == 1 and self._hostile:
            return choices.one_of(_DERIVED[str])(text)
        return text

    def any(self, levels: int = 6) -> Any:
        choices = self._choices
        kind = choices.number(9 if self._hostile else 5)
        if kind < 2 or not levels or not choices:
            return choices.one_of(_SCALARS)
        if kind == 2:
            return self.text()
        if kind == 3:
            return self.object(levels)
        if kind == 4:
            items: list[Any] = []
            if self._hostile:
                self._made.append(items)
            items += (self.any(levels - 1) for _ in range(choices.number(5)))
            return items
        if kind == 5:
            return self._nested(levels)
        if kind == 6:
            return choices.one_of(_ODD)
        if kind == 7 and self._made:
            return choices.one_of(self._made)
        if kind == 8:
            return tuple(self.any(levels - 1) for _ in range(choices.number(5)))
        return self._subclass(levels)

    def object(self, levels: int = 6) -> dict[Any, Any]:
        choices = self._choices
        made: dict[Any, Any] = {}
        if self._hostile:
            self._made.append(made)
        for _ in range(choices.number(5)):
            key = choices.one_of(_SCALARS) if self._hostile and not choices.number(20) else ""
            made[key or choices.bytes(choices.number(9)).decode("utf-8", "replace")] = self.any(
                levels - 1
            )
        return made

    def _nested(self, levels: int) -> Any:
        value = self.any(levels - 1)
        deepest = self._choices.one_of((3, 3, 3, 140))  # deep values are slow, so they are rare
        for _ in range(self._choices.number(deepest)):
            value = [value] if self._choices.number(1) else {"in": value}
        return value

    def _subclass(self, levels: int) -> Any:
        base = self._choices.one_of(_BASES)
        cls = self._choices.one_of(_DERIVED[base])
        if base is UUID:
            return cls(int=5)
        if base is datetime:
            return cls(2026, 1, 1, tzinfo=timezone.utc)
        if base is dict:
            return cls(self.object(levels - 1))
        if base in (list, tuple):
            return cls([self.any(levels - 1)])
        return cls() if base is object else cls(base())

    def moment(self) -> Any:
        choices = self._choices
        if self._hostile and not choices.number(10):
            return self.any()
        microseconds = choices.number(10**15)
        zone = timezone.utc
        if self._hostile:
            zone = choices.one_of((*_ZONES, *_ODD_ZONES))
        year = choices.one_of((1, 1970, 2026, 9990))
        moment = datetime(year, 1, 1, tzinfo=zone) + timedelta(microseconds=microseconds)
        if self._hostile and not choices.number(10):
            cls = choices.one_of(_DERIVED[datetime])
            return cls(year, 1, 2, 3, tzinfo=zone)
        return moment

    def optional(self, make: Callable[[], Any]) -> Any:
        return make() if self._choices.number(1) else None

    def strings(self) -> Any:
        if self._hostile and not self._choices.number(10):
            return self.any()
        return {self.text(): self.text() for _ in range(self._choices.number(3))}

    def attempt(self) -> Any:
        if self._hostile and not self._choices.number(5):
            return self.any()
        return self._choices.number(2**32 - 1)


def _message(values: _Values, choices: Choices) -> Any:
    kind = choices.number(3)
    if kind == 0:
        return CancelRequest(
            job_id=values.text(),
            request_id=values.optional(values.text),
            hard_kill=bool(choices.number(1)),
        )
    if kind == 1:
        return ExecutionRequest(
            request_id=values.text(),
            job_id=values.text(),
            function_name=values.text(),
            params=values.object(),
            context=ExecutionContext(
                job_id=values.text(),
                attempt=values.attempt(),
                enqueue_time=values.moment(),
                queue_name=values.text(),
                deadline=values.optional(values.moment),
                trace_context=values.optional(values.strings),
                correlation_context=values.optional(values.strings),
                worker_id=values.optional(values.text),
            ),
        )
    if kind == 2:
        return ExecutionOutcome.success(values.text(), values.text(), values.any())
    return ExecutionOutcome(
        job_id=values.optional(values.text),
        request_id=values.optional(values.text),
        status=choices.one_of(list(OutcomeStatus)),
        result=values.any(),
        error=ExecutionError(
            message=values.text(),
            type=values.optional(values.text),
            code=values.optional(values.text),
            details=values.any(),
        ),
        retry_after_seconds=choices.one_of((None, 0.0, 1.5, -3.0, 1e308)),
    )


def _spoil(message: Any, choices: Choices, values: _Values) -> None:
    """Set attributes of a message to values of wrong types, or delete them."""
    for _ in range(choices.number(3)):
        target = message
        for nested in ("context", "error"):
            inner = getattr(target, nested, None)
            if choices.number(1) and type(inner) in (ExecutionContext, ExecutionError):
                target = inner
        name = choices.one_of(type(target).__slots__)
        if not hasattr(target, name):
            continue
        if choices.number(3):
            setattr(target, name, values.any())
        else:
            delattr(target, name)


def seeds() -> Iterator[bytes]:
    for path in sorted(Path(__file__).parent.parent.glob("captures/*.bin")):
        data = path.read_bytes()[:400]
        yield b"\0" + data
        yield b"\1" + data
    for kind in range(4):
        for hostile in range(3):
            yield bytes([hostile, kind]) + bytes(range(kind, 256, 3))


def check(data: bytes) -> None:
    """Check one input: a message of plain values, of hostile ones, or with wrong attributes."""
    choices = Choices(data)
    mode = choices.number(2)
    values = _Values(choices, hostile=mode > 0)
    try:
        message = _message(values, choices)
        if mode == 2:
            _spoil(message, choices, values)
    except (HostileError, TypeError, OverflowError):
        return  # some hostile values cannot be keys of a dict, or parts of a datetime
    frames = [outcome(way.encode_frame, message) for way in IMPLEMENTATIONS]
    assert_same(*frames)
    frame = frames[0]
    if not isinstance(frame, bytes):
        assert mode or "nested too deep" in frame.text or "from 0 to" in frame.text, frame
        return
    strict(frame[FRAME_HEADER_LEN:])
    decoded = [way.decode_frame(frame) for way in IMPLEMENTATIONS]
    assert_same(*decoded)
    if not mode:
        assert decoded[0] == message
    check_message(decoded[0])
