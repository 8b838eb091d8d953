"""Fuzz MessageDecoder: a stream in pieces, given by feed() and get_buffer(), and iterated in between."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rrq_fastwire import FrameError, MessageError, decode_payload

from .choices import Choices
from .oracles import IMPLEMENTATIONS, Raised, assert_same, outcome, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# The forms in which a piece is given to the decoder: as one of these types, or by get_buffer().
_FORMS = (bytes, bytearray, memoryview, None)

_STEPS = 10
_LIMITS = (16 * 1024 * 1024, 1, 2, 300, 2**32 - 1)


def seeds() -> Iterator[bytes]:
    steps = bytes(range(2 * _STEPS))
    good = b"\0\0\0\x33" + b'{"type":"cancel","payload":{"job_id":"0123456789"}}'
    streams = [good + b"\0\0\0\x02{}" + good + b"\0\0\0\0" + good]
    for path in sorted(Path(__file__).parent.parent.glob("captures/*.bin")):
        streams.append(path.read_bytes()[:1500])
    for limit, stream in product(range(len(_LIMITS)), streams):
        yield bytes([limit]) + steps + stream


def check(data: bytes) -> None:
    """Check one input: a limit, the steps, and the stream."""
    choices = Choices(data)
    limit = choices.one_of(_LIMITS)
    steps = [(choices.number(255), choices.number(255)) for _ in range(_STEPS)]
    stream = choices.rest()
    payloads, failure, rest = split(stream, limit)
    expected = [outcome(decode_payload, payload) for payload in payloads]
    for way in IMPLEMENTATIONS:
        decoder = way.MessageDecoder(limit)
        taken = _taken_in_steps(decoder, steps, stream)
        ends_at = None
        if failure is not None:
            ends_at = Raised(type(failure), failure.args, str(failure))
            assert taken.pop() == ends_at
        assert_same(taken, expected)
        last = outcome(decoder.feed_eof)
        if ends_at is not None:
            assert last == ends_at
        elif rest:
            assert last.arguments[1] == len(rest), last
        else:
            assert last is None, last
            assert decoder.buffered == 0


def _taken_in_steps(decoder: Any, steps: list[tuple[int, int]], stream: bytes) -> list[Any]:
    """Everything that a decoder yields and raises, up to the end of the stream or a FrameError."""
    taken: list[Any] = []
    for how, size in steps:
        piece, stream = stream[: size * size // 16], stream[size * size // 16 :]
        try:
            _give(decoder, how, piece)
        except FrameError:
            # The complete frames before it can still be taken.
            return taken + _take(decoder, None)
        # The iteration stops after some messages, and continues after the next piece.
        many = how // 4 % 4
        items = _take(decoder, None if many == 3 else many)
        taken += items
        if items and isinstance(items[-1], Raised) and issubclass(items[-1].cls, FrameError):
            return taken
    with suppress(FrameError):
        decoder.feed(stream)
    return taken + _take(decoder, None)


def _give(decoder: Any, how: int, piece: bytes) -> None:
    """Give a piece to the decoder, and overwrite the memory of the piece afterwards."""
    form = _FORMS[how % 4]
    if form is not None:
        owned = bytearray(piece)
        decoder.feed(form(owned) if form is not bytearray else owned)
        owned[:] = b"x" * len(owned)  # must not change the messages
        return
    while True:
        memory = decoder.get_buffer(how - 1)
        size = min(len(memory), len(piece))
        memory[:size] = piece[:size]
        decoder.buffer_updated(size)
        memory[:size] = b"x" * size
        piece = piece[size:]
        if not piece:
            return


def _take(decoder: Any, most: int | None) -> list[Any]:
    """Up to `most` messages and errors of messages (None: all), and a FrameError that ends the stream."""
    taken: list[Any] = []
    while most is None or len(taken) < most:
        try:
            taken.append(next(decoder))
        except StopIteration:
            break
        except MessageError as error:
            taken.append(Raised(type(error), error.args, str(error)))
        except FrameError as error:
            taken.append(Raised(type(error), error.args, str(error)))
            break
    return taken
