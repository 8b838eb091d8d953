"""Frames: a payload behind its length, and the decoder that finds payloads in a stream of bytes.

Knows four bytes of length, the limits and the buffering; what is in a payload is for `messages`.
"""

from __future__ import annotations

from _thread import allocate_lock

from ..errors import (
    EmptyFrameError,
    EncodeError,
    FrameError,
    FrameTooLargeError,
    TruncatedFrameError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from typing import NoReturn, Self

__all__ = ["FRAME_HEADER_LEN", "MAX_FRAME_SIZE", "FrameDecoder", "pack_frame"]

FRAME_HEADER_LEN: int = 4
MAX_FRAME_SIZE: int = 16 * 1024 * 1024

# What get_buffer() offers. Less than 64 KiB, so that a header alone makes no decoder hold more.
READ_SIZE = 32 * 1024


def octets(data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """`data` as something whose len() is its number of bytes. Raises TypeError."""
    if isinstance(data, (bytes, bytearray)):
        return data
    if isinstance(data, memoryview):
        return data.cast("B") if data.c_contiguous and data.nbytes else data.tobytes()
    raise TypeError(f"expected bytes, bytearray or memoryview, got {type(data).__name__}")


def checked_limit(max_frame_size: int) -> int:
    """`max_frame_size`, if four bytes can hold it. Raises TypeError, ValueError."""
    if not isinstance(max_frame_size, int):
        raise TypeError(f"max_frame_size must be an int, got {type(max_frame_size).__name__}")
    limit = int.__index__(max_frame_size)
    if not 0 < limit < 2**32:
        raise ValueError(f"max_frame_size must be from 1 to 4294967295, got {limit}")
    return limit


def payload_length(header: bytes | bytearray | memoryview, limit: int) -> int:
    """The length that a header of four bytes declares. Raises FrameError."""
    length = int.from_bytes(header, "big")
    if 0 < length <= limit:
        return length
    if length == 0:
        raise EmptyFrameError
    raise FrameTooLargeError(length, limit)


def whole_payload(frame: bytes | bytearray | memoryview) -> bytes:
    """The payload of one whole frame. Raises TypeError, FrameError."""
    if type(frame) is not bytes:
        frame = memoryview(octets(frame))
    received = len(frame)
    if received < FRAME_HEADER_LEN:
        raise TruncatedFrameError(FRAME_HEADER_LEN, received)
    expected = FRAME_HEADER_LEN + payload_length(frame[:FRAME_HEADER_LEN], MAX_FRAME_SIZE)
    if received != expected:
        raise TruncatedFrameError(expected, received)
    return bytes(frame[FRAME_HEADER_LEN:])


def pack_frame(
    payload: bytes | bytearray | memoryview, *, max_frame_size: int = MAX_FRAME_SIZE
) -> bytes:
    """A frame around `payload`: its length as 4 bytes, unsigned and big-endian, and the payload.

    Arguments:
        payload: any bytes, at least one.
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises EncodeError if the payload is empty or too large.
    """
    limit = checked_limit(max_frame_size)
    payload = octets(payload)
    length = len(payload)
    if length == 0:
        raise EncodeError("0 bytes: a payload cannot be empty")
    if length > limit:
        raise EncodeError(f"{length} bytes, the limit is {limit}")
    return b"".join((length.to_bytes(FRAME_HEADER_LEN, "big"), payload))


class StreamDecoder:
    """What FrameDecoder and MessageDecoder share: bytes go in, whole payloads can be taken out."""

    __slots__ = ("_buffer", "_busy", "_copied", "_error", "_limit", "_pos", "_space")

    def __init__(self, max_frame_size: int = MAX_FRAME_SIZE) -> None:
        self._limit = checked_limit(max_frame_size)
        self._buffer = bytearray()  # what was fed; up to _pos it is taken
        self._pos = 0
        self._space = bytearray()  # what get_buffer() handed out
        self._error: FrameError | None = None  # raised once the frames before it are taken
        self._copied = 0  # bytes moved in memory so far; the tests hold it linear
        self._busy = allocate_lock()  # while a call has the decoder: nobody else may move anything

    def feed(self, data: bytes | bytearray | memoryview) -> Self:
        """Takes in bytes of the stream, cut anywhere, and returns the decoder, to be iterated over.

        Iteration stops when more bytes are needed. What it gave stays valid whatever happens to
        `data` afterwards. Memory that get_buffer() handed out before counts no longer.

        Raises TypeError for other types than bytes, bytearray and memoryview, and the FrameError
        again that ended the stream.
        """
        data = octets(data)
        with self._turn():
            self._ready()
            self._append(data)
        return self

    def feed_eof(self) -> None:
        """Says that the stream has ended. Complete frames can still be taken.

        Raises TruncatedFrameError if it ended inside a frame, and the FrameError that ended it
        earlier.
        """
        with self._turn():
            self._ready()
            pos, end = self._pos, len(self._buffer)
            while pos < end:
                length = self._length_at(pos)
                if length < 0 or pos + FRAME_HEADER_LEN + length > end:
                    self._error = TruncatedFrameError(FRAME_HEADER_LEN + max(length, 0), end - pos)
                    raise self._error
                pos += FRAME_HEADER_LEN + length

    def get_buffer(self, hint: int) -> memoryview:
        """Memory to write the next bytes of the stream to, as `asyncio.BufferedProtocol` has it.

        Arguments:
            hint: bytes that the caller would like, or -1; there may be more or fewer, at least one.

        Raises the FrameError again that ended the stream.
        """
        if not isinstance(hint, int):
            raise TypeError(f"hint must be an int, got {type(hint).__name__}")
        with self._turn():
            self._ready()
            self._space = bytearray(READ_SIZE)
            return memoryview(self._space)

    def buffer_updated(self, nbytes: int) -> Self:
        """Takes in what was written to get_buffer()'s memory; what feed() does otherwise.

        Arguments:
            nbytes: bytes written, from the beginning of the memory.

        Raises ValueError if get_buffer() did not give that many.
        """
        if not isinstance(nbytes, int):
            raise TypeError(f"nbytes must be an int, got {type(nbytes).__name__}")
        count = int.__index__(nbytes)
        with self._turn():
            space = self._space
            self._ready()
            if not 0 <= count <= len(space):
                raise ValueError(
                    f"nbytes must be from 0 to the {len(space)} bytes handed out, got {count}"
                )
            self._append(memoryview(space)[:count])
        return self

    @property
    def buffered(self) -> int:
        """Bytes of the stream that are held: fed, and not taken yet."""
        with self._turn():
            return len(self._buffer) - self._pos

    def __iter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def _turn(self) -> LockType:
        """To be held during a call; raises where another has it. Two that come at the same instant
        take turns. No signal handler runs between a `with` and its block, as it would before a try.
        """
        if self._busy.locked():
            raise RuntimeError("the decoder is in use")
        return self._busy

    def _ready(self) -> None:
        """Takes back what get_buffer() handed out; raises if the stream has ended."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        self._space = bytearray()

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data
        self._copied += len(data)

    def _length_at(self, pos: int) -> int:
        """The length of the payload whose header is at `pos`; -1 if the header is incomplete.
        Raises FrameError, for good."""
        header = self._buffer[pos : pos + FRAME_HEADER_LEN]
        if len(header) < FRAME_HEADER_LEN:
            return -1
        try:
            return payload_length(header, self._limit)
        except FrameError as error:
            self._error = error
            raise

    def _next_payload(self) -> memoryview | None:
        """The next whole payload, in place: to be released, and then _settle() called, before
        anything else. None if more bytes are needed. Raises FrameError."""
        pos = self._pos
        length = self._length_at(pos)
        start = pos + FRAME_HEADER_LEN
        end = start + length
        if length < 0 or end > len(self._buffer):
            # Moves bytes only where the taken ones outnumber those that are left.
            del self._buffer[:pos]
            self._pos = 0
            if self._error is not None:
                raise self._error.with_traceback(None)
            return None
        self._pos = end
        with memoryview(self._buffer) as view:
            return view[start:end]

    def _settle(self) -> None:
        """Gives the memory back once everything in it is taken."""
        if self._pos == len(self._buffer):
            self._buffer = bytearray()
            self._pos = 0


class FrameDecoder(StreamDecoder):
    """Iterates over the payloads, as bytes, of a stream of frames that arrives in pieces.

    Arguments:
        max_frame_size: the most bytes of payload that a header may declare.

    A declared length reserves no memory: the decoder holds what it was fed and what was not taken.
    Iteration raises FrameError where the stream is broken, after the payloads before it.
    """

    __slots__ = ()

    def __next__(self) -> bytes:
        with self._turn():
            view = self._next_payload()
            if view is None:
                raise StopIteration
            with view:
                payload = bytes(view)
            self._copied += len(payload)
            self._settle()
            return payload
