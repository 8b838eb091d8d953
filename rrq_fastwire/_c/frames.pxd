from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    HEADER_LEN = 4
    MAX_PAYLOAD = 16 * 1024 * 1024
    READ_SIZE = 32 * 1024           # the size of get_buffer()'s memory


# Only these two functions read and write the header.
cdef inline uint32_t read_length(const char* header) noexcept:
    cdef const unsigned char* octets = <const unsigned char*>header
    return (
        (<uint32_t>octets[0] << 24)
        | (<uint32_t>octets[1] << 16)
        | (<uint32_t>octets[2] << 8)
        | <uint32_t>octets[3]
    )


cdef inline void write_length(char* header, uint32_t length) noexcept:
    cdef unsigned char* octets = <unsigned char*>header
    octets[0] = length >> 24
    octets[1] = (length >> 16) & 0xFF
    octets[2] = (length >> 8) & 0xFF
    octets[3] = length & 0xFF


# Return `data` as bytes that no other code can change. Raises TypeError.
cdef bytes octets(object data)
# Return `max_frame_size` if four bytes can hold it. Raises TypeError and ValueError.
cdef uint32_t checked_limit(object max_frame_size) except 0
# Raise FrameError unless the bytes are exactly one frame.
cdef int check_whole(bytes frame) except -1
# Return a frame with its header, and room for a payload of `length` bytes. Raises EncodeError.
cdef bytes new_frame(Py_ssize_t length, uint32_t limit)


# A payload that iteration takes: its place in the bytes object that holds it.
cdef class Taken:
    cdef bytes owner
    cdef Py_ssize_t start, size
    cdef Taken following            # the next of those in `again`


cdef class StreamDecoder:
    cdef uint32_t limit             # the largest payload that a header may declare, in bytes
    cdef bytearray rest             # copied bytes: of a frame that was cut, and of a backlog
    cdef Py_ssize_t rest_pos        # the end of the frames taken from `rest`
    cdef bytes chunk                # the data of the last feed(), read in place; it follows `rest`
    cdef Py_ssize_t pos             # the end of the frames taken from `chunk`
    cdef Taken again                # payloads to convert again: there was no memory before
    cdef bytearray space            # the memory of get_buffer()
    cdef tuple failure              # the class and arguments of the error that ended the stream
    cdef readonly Py_ssize_t _copied  # bytes copied so far, so that tests can show linear work
    # Return what iteration yields for a payload: its bytes, or a message in a subclass.
    cdef object convert(self, bytes owner, Py_ssize_t start, Py_ssize_t size)
    cdef int check(self) except -1
    cdef int fail(self, object error, tuple arguments) except -1
    cdef uint64_t frame_size(self, const char* header) except 0
    cdef int add(self, bytes data) except -1
    cdef Py_ssize_t rest_size(self) noexcept
    cdef int move(self, uint64_t size) except -1
    cdef Taken take_rest(self)
    cdef Taken take_chunk(self)
