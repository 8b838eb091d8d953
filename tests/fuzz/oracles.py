"""Properties that hold for every input: both implementations agree, and frames are strict JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from rrq_fastwire import (
    FRAME_HEADER_LEN,
    MAX_NESTING,
    EmptyFrameError,
    ExecutionOutcome,
    ExecutionRequest,
    FastwireError,
    FrameError,
    FrameTooLargeError,
    _json,
    _py,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from rrq_fastwire import RunnerMessage

try:
    from rrq_fastwire import _c
except ImportError:  # a checkout without a compiler
    _c = _py  # type: ignore[assignment]

IMPLEMENTATIONS = (_c, _py)


def _with_the_standard_library() -> ModuleType:
    """A second `_json` that uses the standard library's json."""
    assert _json.__file__ is not None
    spec = importlib.util.spec_from_file_location(
        "rrq_fastwire._json_without_orjson", _json.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {"orjson": None}):
        spec.loader.exec_module(module)
    return module


STANDARD_JSON = _with_the_standard_library()


class Raised(NamedTuple):
    """An exception, to compare: those parts in which the implementations have to agree."""

    cls: type[BaseException]
    arguments: tuple[Any, ...]
    text: str


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the documented exception that it raises."""
    try:
        return call(*arguments)
    except FastwireError as error:
        return Raised(type(error), error.args, str(error))


def assert_same(first: Any, second: Any) -> None:
    """Check that two results are equal, types included: True is not 1, and 1 is not 1.0."""
    assert repr(first) == repr(second), (first, second)
    assert first == second, (first, second)


def strict(payload: bytes) -> Any:
    """The value of a payload. Raises ValueError for what the orchestrator's parser rejects."""

    def number(digits: str) -> float:
        value = float(digits)
        assert value - value == 0.0, f"{digits[:40]} is out of range"
        return value

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key occurs twice"
        return dict(pairs)

    document = json.loads(
        payload.decode(),
        parse_float=number,
        parse_int=number,
        parse_constant=constant,
        object_pairs_hook=unique,
    )
    json.dumps(document, ensure_ascii=False).encode()  # raises if there is a lone surrogate
    assert depth(document) <= MAX_NESTING
    return document


def depth(value: Any) -> int:
    """How deeply containers are nested in a value."""
    deepest, left = 0, [(value, 1)]
    while left:
        item, level = left.pop()
        if isinstance(item, (dict, list)):
            deepest = max(deepest, level)
            items = item.values() if isinstance(item, dict) else item
            left += [(each, level + 1) for each in items]
    return deepest


def check_payload(payload: bytes) -> RunnerMessage | Raised:
    """Decode a payload with both implementations, and check the message. Returns the result."""
    results = [outcome(way.decode_payload, payload) for way in IMPLEMENTATIONS]
    assert_same(*results)
    _check_backends(payload)
    if isinstance(results[0], Raised):
        assert results[0].arguments[1] == payload
        return results[0]
    check_message(results[0])
    return results[0]


def _check_backends(payload: bytes) -> None:
    values = []
    for loads in (_json.loads, STANDARD_JSON.loads):
        try:
            values.append(loads(payload))
        except ValueError:
            values.append(Raised)
    assert_same(*values)


def check_message(message: RunnerMessage) -> None:
    """Encode a decoded message with both implementations, and check that it decodes to the same."""
    frames = [outcome(way.encode_frame, message) for way in IMPLEMENTATIONS]
    assert_same(*frames)
    frame = frames[0]
    if isinstance(frame, Raised):
        # Decoding accepts deeper nesting than encoding. Everything else can be sent.
        assert "nested too deep" in frame.text, frame
        assert depth(_values(message)) > MAX_NESTING - 3
        return
    strict(frame[FRAME_HEADER_LEN:])
    for way in IMPLEMENTATIONS:
        assert_same(way.decode_frame(frame), message)


def _values(message: RunnerMessage) -> Any:
    """The parts of a message that can be nested."""
    if isinstance(message, ExecutionRequest):
        return [message.params]
    if isinstance(message, ExecutionOutcome):
        return [message.result, message.error and message.error.details]
    return []


def split(data: bytes, limit: int) -> tuple[list[bytes], FrameError | None, bytes]:
    """The payloads in a stream, the error after them, and the bytes of an incomplete frame.

    This is the model of a decoder: short code, without regard for speed.
    """
    payloads = []
    while len(data) >= FRAME_HEADER_LEN:
        length = int.from_bytes(data[:FRAME_HEADER_LEN])
        if length == 0:
            return payloads, EmptyFrameError(), data
        if length > limit:
            return payloads, FrameTooLargeError(length, limit), data
        if len(data) < FRAME_HEADER_LEN + length:
            break
        payloads.append(data[FRAME_HEADER_LEN : FRAME_HEADER_LEN + length])
        data = data[FRAME_HEADER_LEN + length :]
    return payloads, None, data
