"""Frames in pure Python: a length of four bytes and a payload, alone or in a stream of bytes.

This module knows the header, the limits and the buffering. It leaves what is in a payload to
`codec`.
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

# Shared by all decoders without payloads, because even an empty deque takes 760 bytes.
_NO_PAYLOADS: deque[bytes] = deque(maxlen=0)


def octets(data: bytes | bytearray | memoryview) -> bytes:
    """Return `data` as bytes that no other code can change. Raises TypeError."""
    if type(data) is bytes:
        return data
    # Here and below not isinstance(), because an object's `__class__` can name another class.
    if issubclass(type(data), (bytes, bytearray, memoryview)):
        return memoryview(data).tobytes()  # bytes(data) would call a subclass's __bytes__
    raise TypeError(f"expected bytes, bytearray or memoryview, got {type_name(data)}")


def checked_limit(max_frame_size: int) -> int:
    """Return `max_frame_size` if four bytes can hold it. Raises TypeError and ValueError."""
    if not issubclass(type(max_frame_size), int):
        raise TypeError(f"max_frame_size must be an int, got {type_name(max_frame_size)}")
    limit = int.__index__(max_frame_size)
    if not 0 < limit < 2**32:
        raise ValueError(f"max_frame_size must be from 1 to 4294967295, got {limit}")
    return limit


def whole_payload(frame: bytes | bytearray | memoryview) -> bytes:
    """Return the payload of exactly one frame. Raises TypeError and FrameError."""
    data = octets(frame)
    if len(data) < FRAME_HEADER_LEN:
        raise TruncatedFrameError(FRAME_HEADER_LEN, len(data))
    (length,) = _unpack_length(data)
    if length == 0:
        raise EmptyFrameError
    if length > MAX_FRAME_SIZE:
        raise FrameTooLargeError(length, MAX_FRAME_SIZE)
    if len(data) != FRAME_HEADER_LEN + length:
        raise TruncatedFrameError(FRAME_HEADER_LEN + length, len(data))
    return data[FRAME_HEADER_LEN:]


def pack_frame(
    payload: bytes | bytearray | memoryview, *, max_frame_size: int = MAX_FRAME_SIZE
) -> bytes:
    """Return a frame: the length of `payload` as 4 bytes, unsigned and big-endian, and `payload`.

    Arguments:
        payload: any bytes, at least one.
        max_frame_size: the largest payload in bytes; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: the payload is empty; PayloadTooLargeError if it is too large.
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
    """Split bytes into payloads: the part that FrameDecoder and MessageDecoder share."""

    __slots__ = ("_copied", "_failure", "_feeding", "_limit", "_payloads", "_rest", "_space")

    def __init__(self, max_frame_size: int = MAX_FRAME_SIZE) -> None:
        self._limit = checked_limit(max_frame_size)
        self._payloads = _NO_PAYLOADS
        self._rest = bytearray()  # the bytes after the last payload
        self._space = bytearray()  # the memory of get_buffer()
        # The class and arguments of the error that ended the stream.
        self._failure: tuple[type[FrameError], tuple[int, ...]] | None = None
        self._copied = 0  # bytes copied so far, so that tests can show that the work is linear
        self._feeding = allocate_lock()

    def feed(self, data: bytes | bytearray | memoryview) -> Self:
        """Add the next bytes of the stream, cut anywhere, and return the decoder for iteration.

        Iteration stops when more bytes are needed. Its payloads and messages do not change when
        `data` changes later. Memory that get_buffer() returned before is no longer used.

        Raises:
            FrameError: an earlier error ended the stream.
            TypeError: `data` is not bytes, bytearray or memoryview.
            RuntimeError: another call is using the decoder (pure Python only; next methods, too).
        """
        data = octets(data)
        with self._lock():
            self._check()
            self._space = bytearray()
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
            self._space = bytearray()
            if self._rest:
                truncated = TruncatedFrameError, (self._frame_size(), len(self._rest))
                self._failure = self._wrong_header(self._rest[:FRAME_HEADER_LEN]) or truncated
            self._check()

    def get_buffer(self, hint: int) -> memoryview:
        """Return memory to write the next bytes of the stream to, for `asyncio.BufferedProtocol`.

        Arguments:
            hint: the size in bytes that the caller would like, or -1. The actual size may differ.

        Raises FrameError and RuntimeError as feed() does.
        """
        if not issubclass(type(hint), int):
            raise TypeError(f"hint must be an int, got {type_name(hint)}")
        with self._lock():
            self._check()
            self._space = bytearray(_READ_SIZE)
            return memoryview(self._space)

    def buffer_updated(self, nbytes: int) -> Self:
        """Add the bytes that were written to the memory of get_buffer(), as feed() does.

        Arguments:
            nbytes: how many bytes were written, from the start of the memory.

        Raises:
            FrameError: an earlier error ended the stream.
            ValueError: get_buffer() did not return that many bytes.
        """
        if not issubclass(type(nbytes), int):
            raise TypeError(f"nbytes must be an int, got {type_name(nbytes)}")
        count = int.__index__(nbytes)
        with self._lock():
            self._check()
            space = self._space
            if not 0 <= count <= len(space):
                self._space = bytearray()
                raise ValueError(f"nbytes must be from 0 to {len(space)}, got {count}")
            empty = bytearray()
            self._add(bytes(memoryview(space)[:count]))
            # Not earlier, so that the call can be repeated after a MemoryError.
            self._space = empty
        return self

    @property
    def buffered(self) -> int:
        """The number of bytes that were fed and not yet taken, headers included."""
        while True:
            try:
                payloads = self._payloads.copy()
                break
            except RuntimeError:
                pass  # without a GIL, another thread may add or take payloads during the copying
        return len(self._rest) + sum(FRAME_HEADER_LEN + len(payload) for payload in payloads)

    def __iter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def _lock(self) -> LockType:
        """Return the lock to hold while bytes are added. Raises RuntimeError if it is held already.

        CPython runs no signal handler between taking a lock in a `with` statement and the
        statement's block, so the lock is always released.
        """
        if self._feeding.locked():
            raise RuntimeError("another call is using the decoder")
        return self._feeding

    def _check(self) -> None:
        """Raise the error that ended the stream, if one did."""
        if self._failure is not None:
            error, arguments = self._failure
            raise error(*arguments)

    def _end(self) -> None:
        """End an iteration that has taken all payloads. Raises the error that follows them.

        Another thread may be about to add bytes, so the lock is held. The block makes no call: with
        a GIL, no other thread runs in it, and finds the decoder in use.
        """
        header: bytes | bytearray = b""
        if not self._feeding.locked():
            with self._feeding:
                if not self._payloads:  # another thread may have fed
                    self._payloads = _NO_PAYLOADS
                    header = self._rest[:FRAME_HEADER_LEN]
        failure = self._wrong_header(header)
        if failure is not None:
            self._failure = failure
        self._check()

    def _wrong_header(
        self, header: bytes | bytearray
    ) -> tuple[type[FrameError], tuple[int, ...]] | None:
        """Return the class and arguments of the error about a header, if it is whole and wrong."""
        if len(header) < FRAME_HEADER_LEN:
            return None
        (length,) = _unpack_length(header)
        if length == 0:
            return EmptyFrameError, ()
        if length > self._limit:
            return FrameTooLargeError, (length, self._limit)
        return None

    def _frame_size(self) -> int:
        """Return the size of the frame that begins in `_rest`; 4 while its header is incomplete."""
        if len(self._rest) < FRAME_HEADER_LEN:
            return FRAME_HEADER_LEN
        length: int = _unpack_length(self._rest)[0]
        return FRAME_HEADER_LEN + length

    def _add(self, data: bytes) -> None:
        """Split the bytes into payloads. An incomplete frame at the end stays in `_rest`.

        A signal handler may raise an exception during any call. So the last two statements store
        the result, with no call between them. A MemoryError of the last one is undone.
        """
        rest = self._rest
        payloads: list[bytes] = []
        if rest:
            rest += data
            self._copied += len(data)
            size = self._frame_size()
            if not FRAME_HEADER_LEN < size <= min(FRAME_HEADER_LEN + self._limit, len(rest)):
                return
            with memoryview(rest) as view:
                payloads.append(bytes(view[FRAME_HEADER_LEN:size]))
                data = bytes(view[size:])
            self._copied += size
        pos = self._split(data, payloads)
        rest = bytearray(data[pos:])
        self._copied += len(data)
        if not payloads:
            self._rest = rest
        elif self._payloads is _NO_PAYLOADS:
            queue = deque(payloads)
            self._rest = rest
            self._payloads = queue
        else:
            queue, before = self._payloads, self._rest
            extend, size = queue.extend, len(queue)
            self._rest = rest
            try:
                extend(payloads)
            except MemoryError:
                self._rest = before
                while len(queue) > size:
                    queue.pop()
                raise

    def _split(self, data: bytes, payloads: list[bytes]) -> int:
        """Append the complete payloads in `data`, and return where they end."""
        append = payloads.append
        limit = self._limit
        size = len(data)
        pos = 0
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
        max_frame_size: the largest payload that a header may declare, in bytes.

    The length in a header reserves no memory: the decoder holds only bytes that were fed and not
    taken. Iteration raises FrameError where the stream is broken, after the payloads before that.
    """

    __slots__ = ()

    def __next__(self) -> bytes:
        try:
            return self._payloads.popleft()
        except IndexError:
            pass
        self._end()
        raise StopIteration
