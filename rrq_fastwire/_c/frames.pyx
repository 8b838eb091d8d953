# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False, freethreading_compatible=True

"""Frames in Cython: a length of four bytes and a payload, alone or in a stream of bytes.

This module knows the header, the limits and the buffering. It leaves what is in a payload to `codec`.
A payload is only ever read from a bytes object, which no other code can change or free.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytearray cimport PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ..errors import EmptyFrameError, FrameTooLargeError, TruncatedFrameError
from ..errors import EncodeError, PayloadTooLargeError, type_name

__all__ = ["FRAME_HEADER_LEN", "MAX_FRAME_SIZE", "FrameDecoder", "pack_frame"]

FRAME_HEADER_LEN = HEADER_LEN
MAX_FRAME_SIZE = MAX_PAYLOAD


cdef bytes octets(object data):
    if PyBytes_CheckExact(data):
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return memoryview(data).tobytes()  # bytes(data) would call a subclass's __bytes__
    raise TypeError(f"expected bytes, bytearray or memoryview, got {type_name(data)}")


cdef uint32_t checked_limit(object max_frame_size) except 0:
    if not isinstance(max_frame_size, int):
        raise TypeError(f"max_frame_size must be an int, got {type_name(max_frame_size)}")
    limit = int.__index__(max_frame_size)
    if not 0 < limit < 2**32:
        raise ValueError(f"max_frame_size must be from 1 to 4294967295, got {limit}")
    return limit


cdef int check_whole(bytes frame) except -1:
    cdef Py_ssize_t received = PyBytes_GET_SIZE(frame)
    if received < HEADER_LEN:
        raise TruncatedFrameError(HEADER_LEN, received)
    cdef uint32_t length = read_length(PyBytes_AS_STRING(frame))
    if length == 0:
        raise EmptyFrameError()
    if length > MAX_PAYLOAD:
        raise FrameTooLargeError(length, MAX_PAYLOAD)
    # Within MAX_PAYLOAD the sum fits any Py_ssize_t.
    if received != HEADER_LEN + <Py_ssize_t>length:
        raise TruncatedFrameError(HEADER_LEN + length, received)
    return 0


cdef bytes new_frame(Py_ssize_t length, uint32_t limit):
    if length == 0:
        raise EncodeError("payload of 0 bytes: a frame carries at least one")
    if <uint64_t>length > limit:
        raise PayloadTooLargeError(length, limit)
    if length > PY_SSIZE_T_MAX - HEADER_LEN:
        raise MemoryError
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + length)
    write_length(PyBytes_AS_STRING(frame), <uint32_t>length)
    return frame


def pack_frame(payload, *, max_frame_size=MAX_FRAME_SIZE):
    """Return a frame: the length of `payload` as 4 bytes, unsigned and big-endian, and `payload`.

    Arguments:
        payload: any bytes, at least one.
        max_frame_size: the largest payload in bytes; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: the payload is empty; PayloadTooLargeError if it is too large.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    cdef uint32_t limit = checked_limit(max_frame_size)
    cdef bytes data = octets(payload)
    cdef bytes frame = new_frame(PyBytes_GET_SIZE(data), limit)
    memcpy(PyBytes_AS_STRING(frame) + HEADER_LEN, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return frame


@cython.no_gc
@cython.freelist(8)
cdef class Taken:
    pass


cdef class StreamDecoder:
    """Split bytes into payloads: the part that FrameDecoder and MessageDecoder share.

    Calls may be re-entrant, for example from a callback of the garbage collector. So no object that
    the collector tracks is allocated between the first and the last change of the attributes. The
    collector may also have set attributes to None.
    """

    def __cinit__(self, *_, **__):
        self.limit = MAX_PAYLOAD

    def __init__(self, max_frame_size=MAX_FRAME_SIZE):
        with cython.critical_section(self):
            self.limit = checked_limit(max_frame_size)
            self.rest = self.chunk = self.again = self.space = self.failure = None

    def feed(self, data):
        """Add the next bytes of the stream, cut anywhere, and return the decoder for iteration.

        Iteration stops when more bytes are needed. Its payloads and messages do not change when
        `data` changes later. Memory that get_buffer() returned before is no longer used.

        Raises:
            FrameError: an earlier error ended the stream.
            TypeError: `data` is not bytes, bytearray or memoryview.
            RuntimeError: another call is using the decoder (pure Python only; next methods, too).
        """
        cdef bytes added = octets(data)
        with cython.critical_section(self):
            self.check()
            self.add(added)
        return self

    def feed_eof(self):
        """Mark the end of the stream. Complete frames can still be taken.

        Raises:
            FrameError: the stream ends inside a frame (TruncatedFrameError), or an earlier error
                ended it.
        """
        cdef Py_ssize_t pos, left
        cdef uint64_t size
        with cython.critical_section(self):
            self.check()
            self.add(b"")
            pos = self.rest_pos
            while self.rest is not None and pos < PyByteArray_GET_SIZE(self.rest):
                left = PyByteArray_GET_SIZE(self.rest) - pos
                size = HEADER_LEN
                if left >= HEADER_LEN:
                    size = self.frame_size(PyByteArray_AS_STRING(self.rest) + pos)
                if size > <uint64_t>left:
                    self.fail(TruncatedFrameError, (size, left))
                pos += <Py_ssize_t>size

    def get_buffer(self, hint):
        """Return memory to write the next bytes of the stream to, for `asyncio.BufferedProtocol`.

        Arguments:
            hint: the size in bytes that the caller would like, or -1. The actual size may differ.

        Raises FrameError and RuntimeError as feed() does.
        """
        if not isinstance(hint, int):
            raise TypeError(f"hint must be an int, got {type_name(hint)}")
        cdef bytearray space = bytearray()
        PyByteArray_Resize(space, READ_SIZE)  # bytearray(READ_SIZE) would write zeros
        with cython.critical_section(self):
            self.check()
            self.space = space
        return memoryview(space)

    def buffer_updated(self, nbytes):
        """Add the bytes that were written to the memory of get_buffer(), as feed() does.

        Arguments:
            nbytes: how many bytes were written, from the start of the memory.

        Raises:
            FrameError: an earlier error ended the stream.
            ValueError: get_buffer() did not return that many bytes.
        """
        if not isinstance(nbytes, int):
            raise TypeError(f"nbytes must be an int, got {type_name(nbytes)}")
        count = int.__index__(nbytes)
        cdef bytearray space
        with cython.critical_section(self):
            self.check()
            space = self.space
            # The caller may have resized the memory, after it released the view.
            size = 0 if space is None else PyByteArray_GET_SIZE(space)
            if not 0 <= count <= size:
                self.space = None
                raise ValueError(f"nbytes must be from 0 to {size}, got {count}")
            if count:
                self.add(PyBytes_FromStringAndSize(PyByteArray_AS_STRING(space), count))
                self._copied += <Py_ssize_t>count
            # Not earlier, so that the call can be repeated after a MemoryError.
            self.space = None
        return self

    @property
    def buffered(self):
        """The number of bytes that were fed and not yet taken, headers included."""
        cdef Py_ssize_t held = 0
        cdef Taken again
        with cython.critical_section(self):
            held = self.rest_size()
            if self.chunk is not None:
                held += PyBytes_GET_SIZE(self.chunk) - self.pos
            again = self.again
            while again is not None:
                held += HEADER_LEN + again.size
                again = again.following
        return held

    def __iter__(self):
        return self

    def __next__(self):
        cdef Taken taken = None
        with cython.critical_section(self):
            if self.again is not None:
                taken = self.again
                self.again = taken.following
            elif self.rest_size():
                taken = self.take_rest()
            elif self.chunk is not None:
                taken = self.take_chunk()
            if taken is None:
                self.check()
        if taken is None:
            raise StopIteration
        try:
            return self.convert(taken.owner, taken.start, taken.size)
        except MemoryError:
            with cython.critical_section(self):
                taken.following = self.again
                self.again = taken
            raise

    def __reduce__(self):
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    cdef int check(self) except -1:
        """Raise the error that ended the stream, if one did."""
        if self.failure is not None:
            raise self.failure[0](*self.failure[1])
        return 0

    cdef int fail(self, object error, tuple arguments) except -1:
        """End the stream: raise the error now and at every later call."""
        self.failure = (error, arguments)
        raise error(*arguments)

    cdef uint64_t frame_size(self, const char* header) except 0:
        """Return the size of the frame in bytes, header included."""
        cdef uint32_t length = read_length(header)
        if length == 0:
            self.fail(EmptyFrameError, ())
        if length > self.limit:
            self.fail(FrameTooLargeError, (length, self.limit))
        return HEADER_LEN + <uint64_t>length

    cdef int add(self, bytes data) except -1:
        """Append `data` to the stream. A MemoryError leaves the decoder as it was."""
        self.move(PY_SSIZE_T_MAX)
        self.space = None
        if PyBytes_GET_SIZE(data):
            self.chunk = data
            self.pos = 0
        return 0

    cdef Py_ssize_t rest_size(self) noexcept:
        """Return how many bytes of `rest` are not yet taken."""
        return 0 if self.rest is None else PyByteArray_GET_SIZE(self.rest) - self.rest_pos

    cdef int move(self, uint64_t size) except -1:
        """Move bytes from `chunk` to `rest` until `rest` has `size` bytes or `chunk` is empty."""
        cdef Py_ssize_t held, more
        cdef char* rest
        if self.chunk is None:
            return 0
        if self.rest is None:
            self.rest = bytearray()
            self.rest_pos = 0
        held = self.rest_size()
        if self.rest_pos > held:
            # Drop the taken bytes once they outnumber the others, so that the work stays linear. Copy
            # the others to a new object: PyByteArray_Resize() can fail to shrink the old one.
            rest = PyByteArray_AS_STRING(self.rest)
            self.rest = PyByteArray_FromStringAndSize(rest + self.rest_pos, held)
            self._copied += held
            self.rest_pos = 0
        more = PyBytes_GET_SIZE(self.chunk) - self.pos
        if size - <uint64_t>held < <uint64_t>more:
            more = <Py_ssize_t>(size - <uint64_t>held)
        held += self.rest_pos
        if more > PY_SSIZE_T_MAX - held:
            raise MemoryError
        PyByteArray_Resize(self.rest, held + more)
        rest = PyByteArray_AS_STRING(self.rest)
        memcpy(rest + held, PyBytes_AS_STRING(self.chunk) + self.pos, more)
        self._copied += more
        self.pos += more
        if self.pos == PyBytes_GET_SIZE(self.chunk):
            self.chunk = None
        return 0

    cdef object convert(self, bytes owner, Py_ssize_t start, Py_ssize_t size):
        if size == PyBytes_GET_SIZE(owner):
            return owner
        self._copied += size
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(owner) + start, size)

    cdef Taken take_rest(self):
        cdef uint64_t size
        if self.rest_size() < HEADER_LEN:
            self.move(HEADER_LEN)
            if self.rest_size() < HEADER_LEN:
                return None
        size = self.frame_size(PyByteArray_AS_STRING(self.rest) + self.rest_pos)
        if <uint64_t>self.rest_size() < size:
            self.move(size)
            if <uint64_t>self.rest_size() < size:
                return None
        cdef Taken taken = Taken.__new__(Taken)  # Taken() takes longer
        taken.size = <Py_ssize_t>size - HEADER_LEN
        taken.owner = PyBytes_FromStringAndSize(
            PyByteArray_AS_STRING(self.rest) + self.rest_pos + HEADER_LEN, taken.size
        )
        self._copied += taken.size
        self.rest_pos += <Py_ssize_t>size
        if self.rest_pos == PyByteArray_GET_SIZE(self.rest):
            self.rest = None
        return taken

    cdef Taken take_chunk(self):
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.chunk) - self.pos
        cdef uint64_t size
        if left < HEADER_LEN:
            self.move(HEADER_LEN)
            return None
        size = self.frame_size(PyBytes_AS_STRING(self.chunk) + self.pos)
        if <uint64_t>left < size:
            self.move(size)
            return None
        cdef Taken taken = Taken.__new__(Taken)  # Taken() takes longer
        taken.owner = self.chunk
        taken.start = self.pos + HEADER_LEN
        taken.size = <Py_ssize_t>size - HEADER_LEN
        self.pos += <Py_ssize_t>size
        if <uint64_t>left == size:
            self.chunk = None
        return taken


cdef class FrameDecoder(StreamDecoder):
    """FrameDecoder(max_frame_size=16777216)
--

Iterate over the payloads, as bytes, of a stream of frames that arrives in pieces.

Arguments:
    max_frame_size: the largest payload that a header may declare, in bytes.

The length in a header reserves no memory: the decoder holds only bytes that were fed and not
taken. Iteration raises FrameError where the stream is broken, after the payloads before that.
"""
