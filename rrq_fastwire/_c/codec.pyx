# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False, freethreading_compatible=True

"""The compiled codec: fast paths in front of the generic codec.

The fast paths read a request in the layout that the orchestrator writes, and read and write a success
in the layout that this package writes. A fast path gives exactly what the generic codec gives, or it
returns None before it has any effect. JSON is unambiguous: where the expected keys alternate with
complete JSON values, the generic codec would read the same. The fast paths apply only if the field
lists match exactly, so a new field in `messages` turns them off.
"""

from dataclasses import fields

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport datetime_new, get_utc, import_datetime
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from .frames cimport HEADER_LEN, MAX_PAYLOAD, StreamDecoder
from .frames cimport check_whole, checked_limit, new_frame, octets
from .plain cimport is_plain
from .scan cimport FREE_THREADED, Moment, Octets, RequestSpans, Span
from .scan cimport plain_end, scan_request, skip, take_moment, take_text

from .. import _json
from ..messages import MAX_NESTING, PROTOCOL_VERSION, OutcomeStatus
from ..messages import ExecutionContext, ExecutionOutcome, ExecutionRequest
from . import generic
from .frames import MAX_FRAME_SIZE

__all__ = ["MessageDecoder", "decode_frame", "decode_payload", "dump_plain"]
__all__ += ["encode_frame", "encode_payload"]

import_datetime()

cdef extern from "structmember.h":
    int T_OBJECT_EX
    ctypedef struct PyMemberDef:
        const char* name
        int type
        Py_ssize_t offset
    ctypedef struct PyTypeObject:
        PyMemberDef* tp_members

cdef extern from "Python.h":
    object PyType_GenericAlloc(type cls, Py_ssize_t items)
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

# JSON of this size cannot exceed the JSON library's nesting limit, even inside the envelope.
cdef enum: SMALL_JSON = 2 * (1024 - 2)

cdef object loads = _json.loads
# Without a GIL, other threads can change a value between the check and the writing.
cdef object dumps = None if FREE_THREADED else _json.dumps
cdef object VERSION = PROTOCOL_VERSION
cdef object DEFAULT_LIMIT = MAX_FRAME_SIZE
cdef int RESULT_LEVELS = MAX_NESTING - 2
# The envelope and its payload have 6 members together, which count as items.
cdef Py_ssize_t MAX_ITEMS = _json.MAX_ITEMS, RESULT_ITEMS = MAX_ITEMS - 6
cdef object SUCCESS = OutcomeStatus.SUCCESS

cdef type REQUEST = ExecutionRequest, CONTEXT = ExecutionContext, OUTCOME = ExecutionOutcome

# The offsets of the fields in a message, in bytes, from the `tp_members` of its class. Access by
# offset instead of through the descriptors saves 8 % of the time of a small success. Assumes that a
# slot holds a reference, or NULL if the attribute has no value: find_slots() checks the member type
# that guarantees this. To remove: call the descriptors.
cdef Py_ssize_t OUTCOME_SLOTS[6]
cdef Py_ssize_t REQUEST_SLOTS[6]
cdef Py_ssize_t CONTEXT_SLOTS[8]


cdef bint find_slots(Py_ssize_t* slots, type cls, str names) except -1:
    """Return whether the fields of the class are `names`, in order; if so, fill in their offsets."""
    cdef PyMemberDef* member
    if " ".join([field.name for field in fields(cls)]) != names:
        return False
    for name in names.split():
        member = (<PyTypeObject*>cls).tp_members
        while member.name is not NULL and member.name != <bytes>name.encode():
            member += 1
        if member.name is NULL or member.type != T_OBJECT_EX:
            raise ImportError(f"{cls.__name__}.{name} is not a slot")
        slots[0] = member.offset
        slots += 1
    return True


cdef bint KNOWS_OUTCOME = find_slots(
    OUTCOME_SLOTS, OUTCOME, "job_id request_id status result error retry_after_seconds"
)
cdef bint KNOWS_CONTEXT = find_slots(
    CONTEXT_SLOTS, CONTEXT, "job_id attempt enqueue_time queue_name deadline trace_context "
    "correlation_context worker_id"
)
cdef bint KNOWS_REQUEST = KNOWS_CONTEXT and find_slots(
    REQUEST_SLOTS, REQUEST, "protocol_version request_id job_id function_name params context"
)


cdef inline PyObject** slot(object message, Py_ssize_t offset) noexcept:
    return <PyObject**>(<char*><PyObject*>message + offset)


cdef inline object get(object message, Py_ssize_t offset):
    """Return the value of a slot. Raises AttributeError if it was deleted."""
    cdef PyObject* value = slot(message, offset)[0]
    if value is NULL:
        raise AttributeError
    return <object>value


cdef object new_message(type cls, Py_ssize_t* slots, PyObject** values, int count):
    """Return a message with these values. No Python code runs before it is complete."""
    message = PyType_GenericAlloc(cls, 0)
    cdef int at
    for at in range(count):
        Py_INCREF(<object>values[at])
        slot(message, slots[at])[0] = values[at]
    return message


cdef inline str text_of(Span span):
    cdef str text = PyUnicode_New(span.size, 127)
    memcpy(PyUnicode_1BYTE_DATA(text), span.start, span.size)
    return text


cdef inline str text_like(str known, Span span):
    """Return the text of a span: `known`, which must be plain text, if it is equal."""
    if PyUnicode_GET_LENGTH(known) == span.size:
        if memcmp(PyUnicode_1BYTE_DATA(known), span.start, span.size) == 0:
            return known
    return text_of(span)


# These texts rarely change between requests. Reusing the last object saves an allocation and a free
# each, together 5 % of the time of a small request. Assumes the GIL. To remove: call text_of().
cdef PyObject* last_function_name = NULL
cdef PyObject* last_queue_name = NULL
cdef PyObject* last_worker_id = NULL


cdef str common_text(PyObject** last, Span span):
    cdef PyObject* before = last[0]
    if FREE_THREADED:
        return text_of(span)
    text = text_of(span) if before is NULL else text_like(<str>before, span)
    if before is not <PyObject*>text:
        Py_INCREF(text)
        last[0] = <PyObject*>text
        Py_XDECREF(before)
    return text


cdef inline object date_time(Moment* at):
    """Return the datetime. Raises ValueError if a number is out of range."""
    return datetime_new(
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, get_utc()
    )


def parse_date_time(text):
    """Do what parse_date_time() of the generic codec does, faster for the orchestrator's form."""
    cdef Py_ssize_t size = 0
    cdef Moment moment
    cdef Octets at = <Octets>PyUnicode_AsUTF8AndSize(text, &size), end = at + size
    if take_moment(&at, end, &moment) and at == end:
        return date_time(&moment)
    return generic.parse_date_time(text)


cdef object small_json(Octets start, Py_ssize_t size):
    """Decode JSON. Raises ValueError if it is wrong, or so long that the generic codec must decide."""
    if size > SMALL_JSON:
        raise ValueError
    return loads(PyBytes_FromStringAndSize(<const char*>start, size))


cdef object strings_of(Span span):
    """Decode the object that take_strings() has found; None stands for null."""
    return None if span.start is NULL else small_json(span.start, span.size)


cdef object recognise_request(Octets at, Octets end):
    cdef RequestSpans found
    cdef object attempt
    if not scan_request(at, end, &found) or found.params.size > SMALL_JSON:
        return None
    try:
        params = small_json(found.params.start, found.params.size)
        enqueue_time = date_time(&found.enqueue_time)
        deadline = date_time(&found.deadline) if found.has_deadline else None
        trace_context = strings_of(found.trace_context)
        correlation_context = strings_of(found.correlation_context)
    except ValueError:
        return None
    if type(params) is not dict:
        return None
    no_worker = found.worker_id.start is NULL
    worker_id = None if no_worker else common_text(&last_worker_id, found.worker_id)
    job_id = text_of(found.job_id)
    context_job_id = text_like(job_id, found.context_job_id)
    attempt = found.attempt
    queue_name = common_text(&last_queue_name, found.queue_name)
    request_id = text_of(found.request_id)
    function_name = common_text(&last_function_name, found.function_name)
    context = new_message(CONTEXT, CONTEXT_SLOTS, [
        <PyObject*>context_job_id, <PyObject*>attempt, <PyObject*>enqueue_time,
        <PyObject*>queue_name, <PyObject*>deadline,
        <PyObject*>trace_context, <PyObject*>correlation_context, <PyObject*>worker_id,
    ], 8)
    return new_message(REQUEST, REQUEST_SLOTS, [
        <PyObject*>VERSION, <PyObject*>request_id, <PyObject*>job_id,
        <PyObject*>function_name, <PyObject*>params, <PyObject*>context,
    ], 6)


cdef object recognise_success(Octets at, Octets end):
    cdef Span job_id, request_id
    if not (
        skip(&at, end, b'{"type":"response","payload":{"job_id":"')
        and take_text(&at, end, &job_id)
        and skip(&at, end, b'","request_id":"')
        and take_text(&at, end, &request_id)
        and skip(&at, end, b'","status":"success","result":')
    ) or end - at < 3:
        return None
    end -= 2
    if end[0] != c"}" or end[1] != c"}" or end - at > SMALL_JSON:
        return None
    try:
        result = small_json(at, end - at)
    except ValueError:
        return None
    first, second = text_of(job_id), text_of(request_id)
    return new_message(OUTCOME, OUTCOME_SLOTS, [
        <PyObject*>first, <PyObject*>second, <PyObject*>SUCCESS, <PyObject*>result,
        <PyObject*>None, <PyObject*>None,
    ], 6)


cdef object decode(bytes owner, Py_ssize_t start, Py_ssize_t size):
    """Decode the payload of `size` bytes that begins at index `start` of `owner`."""
    cdef Octets at = <Octets>PyBytes_AS_STRING(owner) + start
    message = recognise_request(at, at + size) if KNOWS_REQUEST else None
    if message is None and KNOWS_OUTCOME:
        message = recognise_success(at, at + size)
    if message is None:
        whole = size == PyBytes_GET_SIZE(owner)
        message = codec.decode_payload(owner if whole else memoryview(owner)[start:start + size])
    return message


def decode_payload(payload, /):
    """Decode a payload, which has no header, to a message.

    Raises:
        MessageError: the payload is not a valid message.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    cdef bytes owner = octets(payload)
    return decode(owner, 0, PyBytes_GET_SIZE(owner))


@cython.binding(False)
def decode_frame(frame, /):
    """Decode one whole frame, header included, to a message.

    Raises:
        FrameError: `frame` is not exactly one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a valid message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    cdef bytes owner = octets(frame)
    check_whole(owner)
    return decode(owner, HEADER_LEN, PyBytes_GET_SIZE(owner) - HEADER_LEN)


cdef class MessageDecoder(StreamDecoder):
    """MessageDecoder(max_frame_size=16777216)
--

Iterate over the messages of a stream of frames that arrives in pieces.

Arguments:
    max_frame_size: the largest payload that a header may declare, in bytes.

The length in a header reserves no memory: the decoder holds only bytes that were fed and not
taken. Iteration raises MessageError for a payload that is not a valid message, and can go on to
the next one. It raises FrameError where the stream is broken, after the messages before that.
"""

    cdef object convert(self, bytes owner, Py_ssize_t start, Py_ssize_t size):
        return decode(owner, start, size)


def dump_plain(value, int levels):
    """Do what dump_plain() of `_json` does. No code runs between the check and the writing."""
    if dumps is not None and is_plain(<PyObject*>value, levels, MAX_ITEMS):
        try:
            return dumps(value)
        except TypeError:
            pass
    return None


cdef object codec = generic.Codec(parse_date_time, dump_plain)

cdef bytes HEAD = b'{"type":"response","payload":{"job_id":"'
cdef bytes BETWEEN = b'","request_id":"'
cdef bytes BEFORE_RESULT = b'","status":"success","result":'
cdef bytes TAIL = b"}}"
cdef Py_ssize_t TEMPLATE_SIZE = len(HEAD) + len(BETWEEN) + len(BEFORE_RESULT) + len(TAIL)


cdef inline char* append(char* out, const void* data, Py_ssize_t size) noexcept:
    memcpy(out, data, size)
    return out + size


cdef inline char* append_bytes(char* out, bytes data) noexcept:
    return append(out, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef bytes encode_success(object outcome, uint32_t limit):
    """Return the frame of a success with plain ids and a plain result; None for anything else."""
    cdef Octets first, second
    cdef Py_ssize_t first_size = 0, second_size = 0, size
    job_id, request_id = get(outcome, OUTCOME_SLOTS[0]), get(outcome, OUTCOME_SLOTS[1])
    error, seconds = get(outcome, OUTCOME_SLOTS[4]), get(outcome, OUTCOME_SLOTS[5])
    if type(job_id) is not str or type(request_id) is not str:
        return None
    if get(outcome, OUTCOME_SLOTS[2]) is not SUCCESS or error is not None or seconds is not None:
        return None
    first = <Octets>PyUnicode_AsUTF8AndSize(job_id, &first_size)
    second = <Octets>PyUnicode_AsUTF8AndSize(request_id, &second_size)
    if (plain_end(first, first + first_size) != first + first_size
            or plain_end(second, second + second_size) != second + second_size):
        return None
    result = get(outcome, OUTCOME_SLOTS[3])
    if not is_plain(<PyObject*>result, RESULT_LEVELS, RESULT_ITEMS):
        return None
    cdef bytes body = dumps(result)
    size = TEMPLATE_SIZE + first_size + second_size + PyBytes_GET_SIZE(body)
    if size > limit:
        return None
    cdef bytes frame = new_frame(size, limit)
    cdef char* out = append_bytes(PyBytes_AS_STRING(frame) + HEADER_LEN, HEAD)
    out = append_bytes(append(out, first, first_size), BETWEEN)
    out = append_bytes(append(out, second, second_size), BEFORE_RESULT)
    append_bytes(append_bytes(out, body), TAIL)
    return frame


def encode_payload(message):
    """Encode a message as a payload, without a header. Its size is not limited here.

    NaN and infinities become null. An integer outside 64 bits keeps all its digits, up to 308 of
    them; the orchestrator reads it as a float.

    Raises:
        EncodeError: a field has a wrong type, or a value has no JSON form or is nested too deep
            (MAX_NESTING containers in the whole payload).
        TypeError: `message` is not a RunnerMessage.
    """
    return codec.encode_payload(message)


@cython.binding(False)
def encode_frame(message, *, max_frame_size=MAX_FRAME_SIZE):
    """Encode a message as a frame, header included, that the orchestrator accepts.

    Arguments:
        message: encoded as encode_payload() does it.
        max_frame_size: the largest payload in bytes; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: as encode_payload(); PayloadTooLargeError if the payload is too large.
        TypeError: `message` is not a RunnerMessage.
    """
    cdef uint32_t limit = MAX_PAYLOAD
    cdef bytes frame, payload
    if max_frame_size is not DEFAULT_LIMIT:
        limit = checked_limit(max_frame_size)
    if type(message) is OUTCOME and KNOWS_OUTCOME and dumps is not None:
        try:
            frame = encode_success(message, limit)
        except (AttributeError, TypeError, UnicodeEncodeError):
            # A deleted attribute, a value that orjson does not write, or a lone surrogate.
            frame = None
        if frame is not None:
            return frame
    payload = codec.encode_payload(message)
    frame = new_frame(PyBytes_GET_SIZE(payload), limit)
    append_bytes(PyBytes_AS_STRING(frame) + HEADER_LEN, payload)
    return frame
