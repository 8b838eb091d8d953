from cpython.object cimport PyTypeObject
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "threads.h":
    bint set_flag(int* flag) noexcept
    void clear_flag(int* flag) noexcept

cdef enum:
    HEADER_LEN = 4
    MAX_PAYLOAD = 16 * 1024 * 1024
    # What get_buffer() offers. Less than 64 KiB, so that a header alone makes no decoder hold more.
    READ_SIZE = 32 * 1024

# The one place that reads the four bytes, and the one that writes them.
cdef inline uint32_t read_length(const unsigned char* header) noexcept:
    return (
        (<uint32_t>header[0] << 24)
        | (<uint32_t>header[1] << 16)
        | (<uint32_t>header[2] << 8)
        | <uint32_t>header[3]
    )


cdef inline void write_length(unsigned char* header, uint32_t length) noexcept:
    header[0] = length >> 24
    header[1] = (length >> 16) & 0xFF
    header[2] = (length >> 8) & 0xFF
    header[3] = length & 0xFF


# `max_frame_size`, if four bytes can hold it.
cdef uint32_t checked_limit(object max_frame_size) except 0

# The EncodeError for a payload of a size that no frame of the limit can carry; None for the others.
cdef object unsendable(Py_ssize_t length, uint32_t limit)

# The bytes of `data`; to be released. TypeError unless it is bytes, bytearray or memoryview.
cdef int acquire(object data, Py_buffer* view) except -1

# Raises FrameError unless the bytes are one whole frame.
cdef int check_whole(const unsigned char* frame, Py_ssize_t received) except -1

# Gives an extension type its signature and its pure twin's docstring, for help() and inspect.
cdef object describe_class(type cls, str signature, str doc)


cdef class Memory:
    cdef unsigned char* data
    cdef Py_ssize_t size
    cdef int resize(self, Py_ssize_t size) except -1


cdef class StreamDecoder:
    cdef uint32_t limit             # the most bytes of payload that a header may declare
    cdef int busy                   # a call has the decoder: nobody else may move anything
    cdef Memory carry               # frames that came in pieces, or through get_buffer()
    cdef Py_ssize_t pos, end        # the bytes of `carry` that are not taken
    cdef Py_ssize_t space           # bytes behind `end` that get_buffer() handed out
    cdef bytes chunk                # what feed() got last, read in place; it follows `carry`
    cdef Py_ssize_t chunk_pos       # up to where it is taken
    cdef object error               # raised once the frames before it are taken
    cdef Py_ssize_t copied          # bytes moved in memory so far; the tests hold it linear

    # Around every call from outside, by whatever thread.
    cdef int enter(self) except -1
    cdef void leave(self) noexcept

    # 1, and where the next whole payload is, in place until settle(). 0 if more bytes are needed.
    cdef int next_payload(self, const unsigned char** payload, Py_ssize_t* length) except -1
    # Gives the memory back once everything in it is taken.
    cdef int settle(self) except -1

    cdef int ready(self) except -1
    cdef uint64_t frame_size(self, const unsigned char* header) except 0
    cdef int reserve(self, Py_ssize_t size) except -1
    cdef int append(self, const void* data, Py_ssize_t size) except -1
    cdef int top_up(self, uint64_t held) except -1
    cdef int keep_rest(self) except -1
    cdef int starve(self) except -1


cdef class FrameDecoder(StreamDecoder):
    pass
