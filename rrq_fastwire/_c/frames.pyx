# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False, freethreading_compatible=True

"""Frames: a payload behind its length, and the decoder that finds payloads in a stream of bytes.

Knows four bytes of length, the limits and the buffering; what is in a payload is for `messages`.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from .._py import frames as pure
from ..errors import (
    EmptyFrameError,
    EncodeError,
    FrameTooLargeError,
    TruncatedFrameError,
)

__all__ = ["FRAME_HEADER_LEN", "MAX_FRAME_SIZE", "FrameDecoder", "pack_frame"]

FRAME_HEADER_LEN = HEADER_LEN
MAX_FRAME_SIZE = MAX_PAYLOAD


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    Py_ssize_t Py_REFCNT(PyObject*)


cdef object refused(uint32_t length, uint32_t limit):
    """The error for a header that declares no bytes, or more than the limit."""
    return FrameTooLargeError(length, limit) if length else EmptyFrameError()


cdef uint32_t checked_limit(object max_frame_size) except 0:
    if not isinstance(max_frame_size, int):
        raise TypeError(f"max_frame_size must be an int, got {type(max_frame_size).__name__}")
    limit = int.__index__(max_frame_size)
    if not 0 < limit < 2**32:
        raise ValueError(f"max_frame_size must be from 1 to 4294967295, got {limit}")
    return limit


cdef int acquire(object data, Py_buffer* view) except -1:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected bytes, bytearray or memoryview, got {type(data).__name__}")
    if isinstance(data, memoryview) and not data.c_contiguous:
        data = data.tobytes()
    return PyObject_GetBuffer(data, view, PyBUF_SIMPLE)


cdef int check_whole(const unsigned char* frame, Py_ssize_t received) except -1:
    if received < HEADER_LEN:
        raise TruncatedFrameError(HEADER_LEN, received)
    cdef uint32_t length = read_length(frame)
    if length == 0 or length > MAX_PAYLOAD:
        raise refused(length, MAX_PAYLOAD)
    # Within MAX_PAYLOAD the sum fits any Py_ssize_t.
    if received != HEADER_LEN + <Py_ssize_t>length:
        raise TruncatedFrameError(HEADER_LEN + length, received)
    return 0


cdef object unsendable(Py_ssize_t length, uint32_t limit):
    if length == 0:
        return EncodeError("0 bytes: a payload cannot be empty")
    if <uint64_t>length > limit:
        return EncodeError(f"{length} bytes, the limit is {limit}")
    return None


def pack_frame(payload, *, max_frame_size=MAX_FRAME_SIZE):
    """A frame around `payload`: its length as 4 bytes, unsigned and big-endian, and the payload.

    Arguments:
        payload: any bytes, at least one.
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises EncodeError if the payload is empty or too large.
    """
    cdef uint32_t limit = checked_limit(max_frame_size)
    cdef Py_buffer view
    cdef unsigned char* out
    acquire(payload, &view)
    try:
        error = unsendable(view.len, limit)
        if error is not None:
            raise error
        frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + view.len)
        out = <unsigned char*>PyBytes_AS_STRING(frame)
        write_length(out, <uint32_t>view.len)
        memcpy(out + HEADER_LEN, view.buf, view.len)
        return frame
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class Memory:
    """Bytes that a memoryview can look at, and that only a decoder resizes."""

    def __cinit__(self, Py_ssize_t size):
        self.data = <unsigned char*>PyMem_Malloc(size)
        if self.data is NULL:
            raise MemoryError
        self.size = size

    def __dealloc__(self):
        PyMem_Free(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)

    cdef int resize(self, Py_ssize_t size) except -1:
        cdef void* data = PyMem_Realloc(self.data, size)
        if data is NULL:
            raise MemoryError
        self.data = <unsigned char*>data
        self.size = size
        return 0


cdef class StreamDecoder:
    """What FrameDecoder and MessageDecoder share: bytes go in, whole payloads can be taken out."""

    def __cinit__(self, *_, **__):
        self.limit = MAX_PAYLOAD

    def __init__(self, max_frame_size=MAX_FRAME_SIZE):
        self.limit = checked_limit(max_frame_size)

    def feed(self, data):
        """Takes in bytes of the stream, cut anywhere, and returns the decoder, to be iterated over.

        Iteration stops when more bytes are needed. What it gave stays valid whatever happens to
        `data` afterwards. Memory that get_buffer() handed out before counts no longer.

        Raises TypeError for other types than bytes, bytearray and memoryview, and the FrameError
        again that ended the stream.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            self.enter()
            try:
                self.ready()
                self.chunk = data
            finally:
                self.leave()
            return self
        acquire(data, &view)
        try:
            self.enter()
            try:
                self.ready()
                self.append(view.buf, view.len)
            finally:
                self.leave()
        finally:
            PyBuffer_Release(&view)
        return self

    def feed_eof(self):
        """Says that the stream has ended. Complete frames can still be taken.

        Raises TruncatedFrameError if it ended inside a frame, and the FrameError that ended it
        earlier.
        """
        cdef Py_ssize_t pos
        cdef uint64_t size
        self.enter()
        try:
            self.ready()
            pos = self.pos
            while pos < self.end:
                size = HEADER_LEN
                if self.end - pos >= HEADER_LEN:
                    size = self.frame_size(self.carry.data + pos)
                if size > <uint64_t>(self.end - pos):
                    self.error = TruncatedFrameError(size, self.end - pos)
                    raise self.error
                pos += <Py_ssize_t>size
        finally:
            self.leave()

    def get_buffer(self, hint):
        """Memory to write the next bytes of the stream to, as `asyncio.BufferedProtocol` has it.

        Arguments:
            hint: bytes that the caller would like, or -1; there may be more or fewer, at least one.

        Raises the FrameError again that ended the stream.
        """
        if not isinstance(hint, int):
            raise TypeError(f"hint must be an int, got {type(hint).__name__}")
        self.enter()
        try:
            self.ready()
            if self.carry is None or self.carry.size - self.end < READ_SIZE // 2:
                self.reserve(READ_SIZE)
            self.space = self.carry.size - self.end
            return memoryview(self.carry)[self.end:]
        finally:
            self.leave()

    def buffer_updated(self, nbytes):
        """Takes in what was written to get_buffer()'s memory; what feed() does otherwise.

        Arguments:
            nbytes: bytes written, from the beginning of the memory.

        Raises ValueError if get_buffer() did not give that many.
        """
        if not isinstance(nbytes, int):
            raise TypeError(f"nbytes must be an int, got {type(nbytes).__name__}")
        count = int.__index__(nbytes)
        cdef Py_ssize_t space
        self.enter()
        try:
            space = self.space
            self.ready()
            if not 0 <= count <= space:
                raise ValueError(
                    f"nbytes must be from 0 to the {space} bytes handed out, got {count}"
                )
            self.end += <Py_ssize_t>count
        finally:
            self.leave()
        return self

    @property
    def buffered(self):
        """Bytes of the stream that are held: fed, and not taken yet."""
        cdef Py_ssize_t held
        self.enter()
        held = self.end - self.pos
        if self.chunk is not None:
            held += PyBytes_GET_SIZE(self.chunk) - self.chunk_pos
        self.leave()
        return held

    @property
    def _copied(self):
        return self.copied

    def __iter__(self):
        return self

    def __reduce__(self):
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    cdef int enter(self) except -1:
        """The decoder is this call's until leave(); raises where it is another's."""
        if set_flag(&self.busy):
            raise RuntimeError("the decoder is in use")
        return 0

    cdef void leave(self) noexcept:
        clear_flag(&self.busy)

    cdef int ready(self) except -1:
        """Takes in what is fed next behind what is left; raises if the stream has ended."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        self.space = 0
        return self.keep_rest()

    cdef uint64_t frame_size(self, const unsigned char* header) except 0:
        """Bytes of the frame, header included. Raises FrameError, for good."""
        cdef uint32_t length = read_length(header)
        if length == 0 or length > self.limit:
            self.error = refused(length, self.limit)
            raise self.error
        return HEADER_LEN + <uint64_t>length

    cdef int reserve(self, Py_ssize_t size) except -1:
        """Room for `size` more bytes behind `end`, moving each byte O(1) times over all calls."""
        cdef Py_ssize_t held = self.end - self.pos
        cdef Py_ssize_t capacity = 0 if self.carry is None else self.carry.size
        cdef Py_ssize_t grown
        cdef uint64_t frame
        cdef Memory larger
        if size <= capacity - self.end:
            return 0
        if size > PY_SSIZE_T_MAX // 2 - held:
            raise MemoryError
        if held + size <= capacity and held <= self.pos:
            # The bytes taken before pay for moving those that are left.
            memmove(self.carry.data, self.carry.data + self.pos, held)
        else:
            # Doubling, but not beyond the end of the frame that is arriving.
            grown = 2 * held
            if held >= HEADER_LEN:
                frame = HEADER_LEN + <uint64_t>read_length(self.carry.data + self.pos)
                if <uint64_t>held < frame < <uint64_t>grown:
                    grown = <Py_ssize_t>frame
            grown = max(grown, held + size)
            # Whoever still holds what get_buffer() gave keeps the old memory.
            if self.pos == 0 and capacity and Py_REFCNT(<PyObject*>self.carry) == 1:
                self.carry.resize(grown)
            else:
                larger = Memory(grown)
                if held:
                    memcpy(larger.data, self.carry.data + self.pos, held)
                self.carry = larger
        self.copied += held
        self.pos = 0
        self.end = held
        return 0

    cdef int append(self, const void* data, Py_ssize_t size) except -1:
        if size:
            self.reserve(size)
            memcpy(self.carry.data + self.end, data, size)
            self.end += size
            self.copied += size
        return 0

    cdef int top_up(self, uint64_t held) except -1:
        """Moves bytes from `chunk` to `carry`, until that holds as many or `chunk` has no more."""
        if self.chunk is None:
            return 0
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.chunk) - self.chunk_pos
        cdef uint64_t missing = held - <uint64_t>(self.end - self.pos)
        if missing < <uint64_t>left:
            left = <Py_ssize_t>missing
        self.append(PyBytes_AS_STRING(self.chunk) + self.chunk_pos, left)
        self.chunk_pos += left
        return 0

    cdef int keep_rest(self) except -1:
        """Moves what is left of `chunk` to `carry`, and lets go of it."""
        if self.chunk is not None:
            self.append(
                PyBytes_AS_STRING(self.chunk) + self.chunk_pos,
                PyBytes_GET_SIZE(self.chunk) - self.chunk_pos,
            )
            self.chunk = None
            self.chunk_pos = 0
        return 0

    cdef int starve(self) except -1:
        """More bytes are needed: holds no more memory than the few at hand deserve."""
        cdef Py_ssize_t held
        cdef Memory smaller
        self.keep_rest()
        if self.error is not None:
            raise self.error.with_traceback(None)
        self.settle()
        held = self.end - self.pos
        if self.carry is not None and not self.space:
            if self.carry.size > 4 * READ_SIZE + 4 * held:
                smaller = Memory(held)
                memcpy(smaller.data, self.carry.data + self.pos, held)
                self.carry = smaller
                self.copied += held
                self.pos = 0
                self.end = held
        return 0

    cdef int next_payload(self, const unsigned char** payload, Py_ssize_t* length) except -1:
        cdef uint64_t size
        cdef Py_ssize_t left
        cdef const unsigned char* frame
        if self.pos < self.end:
            if self.end - self.pos < HEADER_LEN:
                self.top_up(HEADER_LEN)
                if self.end - self.pos < HEADER_LEN:
                    return self.starve()
            size = self.frame_size(self.carry.data + self.pos)
            if <uint64_t>(self.end - self.pos) < size:
                self.top_up(size)
                if <uint64_t>(self.end - self.pos) < size:
                    return self.starve()
            frame = self.carry.data + self.pos
            self.pos += <Py_ssize_t>size
        else:
            left = 0 if self.chunk is None else PyBytes_GET_SIZE(self.chunk) - self.chunk_pos
            if left < HEADER_LEN:
                return self.starve()
            frame = <const unsigned char*>PyBytes_AS_STRING(self.chunk) + self.chunk_pos
            size = self.frame_size(frame)
            if <uint64_t>left < size:
                return self.starve()
            self.chunk_pos += <Py_ssize_t>size
        payload[0] = frame + HEADER_LEN
        length[0] = <Py_ssize_t>size - HEADER_LEN
        return 1

    cdef int settle(self) except -1:
        if self.pos == self.end and not self.space:
            self.carry = None
            self.pos = self.end = 0
        if self.chunk is not None and self.chunk_pos == PyBytes_GET_SIZE(self.chunk):
            self.chunk = None
            self.chunk_pos = 0
        return 0


cdef class FrameDecoder(StreamDecoder):
    def __next__(self):
        cdef const unsigned char* payload
        cdef Py_ssize_t length
        self.enter()
        try:
            if not self.next_payload(&payload, &length):
                raise StopIteration
            out = PyBytes_FromStringAndSize(<const char*>payload, length)
            self.copied += length
            self.settle()
            return out
        finally:
            self.leave()


_docs = []


cdef object describe_class(type cls, str signature, str doc):
    text = f"{cls.__name__}({signature})\n--\n\n{doc}".encode()
    _docs.append(text)
    (<PyTypeObject*>cls).tp_doc = PyBytes_AS_STRING(text)


describe_class(FrameDecoder, f"max_frame_size={MAX_FRAME_SIZE}", pure.FrameDecoder.__doc__)
