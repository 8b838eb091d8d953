"""Frames in pure Python: a length of four bytes and a payload, alone or in a stream of bytes.

Knows the header, the limits and the buffering; the payload's content belongs to `codec`.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from struct import Struct

from ..errors import (
    EmptyFrameError,
    EncodeError,
    FrameError,
    FrameTooLargeError,
    PayloadTooLargeError,
    TruncatedFrameError,
    type_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from typing import NoReturn, Self

__all__ = ["FRAME_HEADER_LEN", "MAX_FRAME_SIZE", "FrameDecoder", "pack_frame"]

FRAME_HEADER_LEN: int = 4
MAX_FRAME_SIZE: int = 16 * 1024 * 1024

# The size of get_buffer()'s memory.
_READ_SIZE = 32 * 1024

_unpack_length = Struct(">I").unpack_from


def octets(data: bytes | bytearray | memoryview) -> bytes:
    """The bytes of `data`, which others can no longer change. Raises TypeError."""
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return memoryview(data).tobytes()  # bytes(data) would call a subclass's __bytes__
    raise TypeError(f"expected bytes, bytearray or memoryview, got {type_name(data)}")


def checked_limit(max_frame_size: int) -> int:
    """`max_frame_size`, if four bytes can hold it. Raises TypeError and ValueError."""
    if not isinstance(max_frame_size, int):
        raise TypeError(f"max_frame_size must be an int, got {type_name(max_frame_size)}")
    limit = int.__index__(max_frame_size)
    if not 0 < limit < 2**32:
        raise ValueError(f"max_frame_size must be from 1 to 4294967295, got {limit}")
    return limit


def _refuse(length: int, limit: int) -> FrameError:
    return FrameTooLargeError(length, limit) if length else EmptyFrameError()


def whole_payload(frame: bytes | bytearray | memoryview) -> bytes:
    """The payload of exactly one frame. Raises TypeError and FrameError."""
    data = octets(frame)
    if len(data) < FRAME_HEADER_LEN:
        raise TruncatedFrameError(FRAME_HEADER_LEN, len(data))
    (length,) = _unpack_length(data)
    if not 0 < length <= MAX_FRAME_SIZE:
        raise _refuse(length, MAX_FRAME_SIZE)
    if len(data) != FRAME_HEADER_LEN + length:
        raise TruncatedFrameError(FRAME_HEADER_LEN + length, len(data))
    return data[FRAME_HEADER_LEN:]


def pack_frame(
    payload: bytes | bytearray | memoryview, *, max_frame_size: int = MAX_FRAME_SIZE
) -> bytes:
    """A frame around `payload`: its length as 4 bytes, unsigned and big-endian, and the payload.

    Arguments:
        payload: any bytes, at least one.
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: the payload is empty, or PayloadTooLargeError.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    limit = checked_limit(max_frame_size)
    data = octets(payload)
    length = len(data)
    if length == 0:
        raise EncodeError("payload of 0 bytes: a frame carries at least one")
    if length > limit:
        raise PayloadTooLargeError(length, limit)
    return length.to_bytes(FRAME_HEADER_LEN, "big") + data


class StreamDecoder:
    """The part that FrameDecoder and MessageDecoder share: it splits bytes into payloads."""

    __slots__ = (
        "_copied",
        "_ended",
        "_failure",
        "_feeding",
        "_limit",
        "_payloads",
        "_rest",
        "_space",
    )

    def __init__(self, max_frame_size: int = MAX_FRAME_SIZE) -> None:
        self._limit = checked_limit(max_frame_size)
        self._payloads: deque[bytes] = deque()
        self._rest = bytearray()  # the bytes after the last payload
        self._space = bytearray()  # the memory of get_buffer()
        self._failure: FrameError | None = None  # what is wrong with the bytes in _rest
        self._ended = False  # whether _failure was raised
        self._copied = 0  # bytes copied so far, so that tests can show that the work is linear
        self._feeding = allocate_lock()

    def feed(self, data: bytes | bytearray | memoryview) -> Self:
        """Add bytes of the stream, cut anywhere, and return the decoder, to iterate over it.

        Iteration stops when more bytes are needed. What it returns stays valid whatever happens to
        `data` afterwards. The memory of an earlier get_buffer() is no longer used.

        Raises:
            FrameError: an earlier error ended the stream.
            TypeError: `data` is not bytes, bytearray or memoryview.
        """
        data = octets(data)
        with self._lock():
            self._check()
            self._add(data)
        return self

    def feed_eof(self) -> None:
        """Mark the end of the stream. Complete frames can still be taken.

        Raises:
            FrameError: the stream ends inside a frame (TruncatedFrameError), or an earlier error
                ended it.
        """
        with self._lock():
            self._check()
            if self._rest and self._failure is None:
                self._failure = TruncatedFrameError(self._frame_size(), len(self._rest))
            self._fail()

    def get_buffer(self, hint: int) -> memoryview:
        """Return memory to write the next bytes of the stream to, for `asyncio.BufferedProtocol`.

        Arguments:
            hint: bytes that the caller would like, or -1. The memory may be larger or smaller.

        Raises FrameError if an earlier error ended the stream.
        """
        if not isinstance(hint, int):
            raise TypeError(f"hint must be an int, got {type_name(hint)}")
        with self._lock():
            self._check()
            self._space = bytearray(_READ_SIZE)
            return memoryview(self._space)

    def buffer_updated(self, nbytes: int) -> Self:
        """Add the bytes that were written to the memory of get_buffer(), as feed() does.

        Arguments:
            nbytes: bytes written, from the beginning of the memory.

        Raises:
            FrameError: an earlier error ended the stream.
            ValueError: get_buffer() did not return that many bytes.
        """
        if not isinstance(nbytes, int):
            raise TypeError(f"nbytes must be an int, got {type_name(nbytes)}")
        count = int.__index__(nbytes)
        with self._lock():
            self._check()
            space, self._space = self._space, bytearray()
            if not 0 <= count <= len(space):
                raise ValueError(f"nbytes must be from 0 to {len(space)}, got {count}")
            self._add(bytes(memoryview(space)[:count]))
        return self

    @property
    def buffered(self) -> int:
        """Bytes of the stream that were fed and not taken yet."""
        return len(self._rest) + sum(
            FRAME_HEADER_LEN + len(payload) for payload in self._payloads.copy()
        )

    def __iter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def _lock(self) -> LockType:
        """The lock to hold while bytes are added. Raises RuntimeError if another call holds it.

        No signal handler runs between a `with` statement and its block.
        """
        if self._feeding.locked():
            raise RuntimeError("the decoder is in use")
        return self._feeding

    def _check(self) -> None:
        """Raise the error that ended the stream, if it was raised before."""
        if self._ended:
            self._fail()

    def _fail(self) -> None:
        """Raise the error that ends the stream, if there is one."""
        if self._failure is not None:
            self._ended = True
            raise self._failure.with_traceback(None)

    def _frame_size(self) -> int:
        """Bytes of the frame that begins in `_rest`; of its header while that is incomplete."""
        if len(self._rest) < FRAME_HEADER_LEN:
            return FRAME_HEADER_LEN
        length: int = _unpack_length(self._rest)[0]
        if not 0 < length <= self._limit:
            self._failure = _refuse(length, self._limit)
        return FRAME_HEADER_LEN + length

    def _add(self, data: bytes) -> None:
        """Split the bytes into payloads. Only a frame that is cut is kept in `_rest`."""
        self._space = bytearray()
        rest = self._rest
        pos = 0
        while rest and self._failure is None:
            missing = self._frame_size() - len(rest)
            if missing == 0 and len(rest) > FRAME_HEADER_LEN:
                del rest[:FRAME_HEADER_LEN]
                self._payloads.append(bytes(rest))
                rest.clear()
            elif pos == len(data):
                return
            elif self._failure is None:
                rest += data[pos : pos + missing]
                pos = min(pos + missing, len(data))
        if self._failure is None:
            pos = self._split(data, pos)
        rest += data[pos:] if pos else data
        self._copied += len(data)
        if rest:
            self._frame_size()

    def _split(self, data: bytes, pos: int) -> int:
        """Append the complete payloads in `data` from `pos` on, and return where they end."""
        append = self._payloads.append
        limit = self._limit
        size = len(data)
        while size - pos >= FRAME_HEADER_LEN:
            (length,) = _unpack_length(data, pos)
            start = pos + FRAME_HEADER_LEN
            end = start + length
            if end > size or not 0 < length <= limit:
                break
            append(data[start:end])
            pos = end
        return pos


class FrameDecoder(StreamDecoder):
    """Iterate over the payloads, as bytes, of a stream of frames that arrives in pieces.

    Arguments:
        max_frame_size: the most bytes of payload that a header may declare.

    A declared length reserves no memory: the decoder holds the bytes that were fed and not taken.
    Iteration raises FrameError where the stream is broken, after the payloads before it.
    """

    __slots__ = ()

    def __next__(self) -> bytes:
        try:
            return self._payloads.popleft()
        except IndexError:
            self._fail()
            raise StopIteration from None
