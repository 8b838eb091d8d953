# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False, freethreading_compatible=True

"""The compiled codec: fast paths in front of the generic codec.

There are two: a request in the layout that the orchestrator writes, and a success in the layout that
this package writes. A fast path gives exactly what the generic codec gives, or it returns None before
it has any effect. JSON is unambiguous: where literal keys and complete JSON values follow each other,
the generic codec reads the same. The fast paths apply only if the field lists match exactly, so a new
field in `messages` turns them off.
"""

from dataclasses import fields
from datetime import timezone
from types import MemberDescriptorType

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport datetime_new, import_datetime
from cpython.object cimport PyObject, PyTypeObject, descrgetfunc, descrsetfunc
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from .frames cimport HEADER_LEN, MAX_PAYLOAD, Payload, StreamDecoder
from .frames cimport check_whole, checked_limit, new_frame, octets
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

cdef extern from "Python.h":
    object PyType_GenericAlloc(type cls, Py_ssize_t items)
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    PyTypeObject* Py_TYPE(object)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyDict_Next(PyObject* dict, Py_ssize_t* pos, PyObject** key, PyObject** value)
    Py_ssize_t PyDict_Size(PyObject*)
    bint PyUnicode_CheckExact(PyObject*)
    bint PyLong_CheckExact(PyObject*)
    bint PyFloat_CheckExact(PyObject*)
    bint PyBool_Check(PyObject*)
    bint PyDict_CheckExact(PyObject*)
    bint PyList_CheckExact(PyObject*)
    bint PyTuple_CheckExact(PyObject*)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject*)
    PyObject** PySequence_Fast_ITEMS(PyObject*)
    PyObject* Py_None

cdef enum:
    MAX_LEVELS = 128    # more than MAX_NESTING
    # JSON of this size cannot exceed the JSON library's nesting limit, even inside the envelope.
    SMALL_JSON = 2 * (1024 - 2)

cdef object loads = _json.loads
# Without a GIL, other threads can change a value between the check and the writing.
cdef object dumps = None if FREE_THREADED else _json.dumps
cdef object generic_parse = generic.parse_date_time
cdef object UTC = timezone.utc
cdef object VERSION = PROTOCOL_VERSION
cdef object DEFAULT_LIMIT = MAX_FRAME_SIZE
cdef int RESULT_LEVELS = MAX_NESTING - 2
cdef Py_ssize_t MAX_ITEMS = _json.MAX_ITEMS
cdef object SUCCESS = OutcomeStatus.SUCCESS



cdef list names_of(type cls):
    return [field.name for field in fields(cls)]


cdef list OUTCOME_NAMES = "job_id request_id status result error retry_after_seconds".split()
cdef list REQUEST_NAMES = "protocol_version request_id job_id function_name params context".split()
cdef list CONTEXT_NAMES = (
    "job_id attempt enqueue_time queue_name deadline trace_context correlation_context worker_id"
).split()
cdef bint KNOWS_OUTCOME = names_of(ExecutionOutcome) == OUTCOME_NAMES
cdef bint KNOWS_REQUEST = (
    names_of(ExecutionRequest) == REQUEST_NAMES and names_of(ExecutionContext) == CONTEXT_NAMES
)

cdef type REQUEST = ExecutionRequest, CONTEXT = ExecutionContext, OUTCOME = ExecutionOutcome
# The descriptors of the slots, in the order of the fields. The lists keep them alive.
cdef PyObject* OUTCOME_SLOTS[6]
cdef PyObject* REQUEST_SLOTS[6]
cdef PyObject* CONTEXT_SLOTS[8]
cdef list descriptors = []


cdef int find_slots(PyObject** slots, type cls, list names) except -1:
    for name in names:
        descriptor = cls.__dict__.get(name)
        if type(descriptor) is not MemberDescriptorType:
            raise ImportError(f"{cls.__name__}.{name} is not a slot")
        descriptors.append(descriptor)
        slots[0] = <PyObject*>descriptor
        slots += 1
    return 0


if KNOWS_OUTCOME:
    find_slots(OUTCOME_SLOTS, OUTCOME, OUTCOME_NAMES)
if KNOWS_REQUEST:
    find_slots(REQUEST_SLOTS, REQUEST, REQUEST_NAMES)
    find_slots(CONTEXT_SLOTS, CONTEXT, CONTEXT_NAMES)

cdef descrgetfunc get_slot = (<PyTypeObject*>MemberDescriptorType).tp_descr_get
cdef descrsetfunc set_slot = (<PyTypeObject*>MemberDescriptorType).tp_descr_set


cdef inline object get(PyObject* slot, object message):
    """The value of a slot. Raises AttributeError if it was deleted."""
    return get_slot(<object>slot, message, <object>Py_TYPE(message))


cdef inline int put(PyObject* slot, object message, object value) except -1:
    return set_slot(<object>slot, message, value)



cdef inline str text_of(Span span):
    cdef str text = PyUnicode_New(span.size, 127)
    memcpy(PyUnicode_1BYTE_DATA(text), span.start, span.size)
    return text


cdef inline str text_like(str known, Span span):
    """The text; the object `known`, which is plain, if it is equal."""
    if PyUnicode_GET_LENGTH(known) == span.size:
        if memcmp(PyUnicode_1BYTE_DATA(known), span.start, span.size) == 0:
            return known
    return text_of(span)


# These texts rarely change between requests. Reusing the last one saves an allocation and a free, for
# all three 5 % of the time of a small request. Assumes the GIL. To remove: call text_of().
cdef PyObject* last_function_name = NULL
cdef PyObject* last_queue_name = NULL
cdef PyObject* last_worker_id = NULL


cdef str common_text(PyObject** last, Span span):
    cdef PyObject* before = last[0]
    cdef bint reuse = before is not NULL and not FREE_THREADED
    cdef str text = text_like(<str>before, span) if reuse else text_of(span)
    if not FREE_THREADED and before is not <PyObject*>text:
        Py_INCREF(text)
        last[0] = <PyObject*>text
        Py_XDECREF(before)
    return text


cdef inline object date_time(Moment* at):
    """Raises ValueError if there is no such date-time."""
    return datetime_new(
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, UTC
    )


def parse_date_time(text):
    """As parse_date_time() of the generic codec."""
    cdef Py_ssize_t size
    cdef Moment moment
    cdef Octets at = <Octets>PyUnicode_AsUTF8AndSize(text, &size)
    cdef Octets end = at + size
    if take_moment(&at, end, &moment) and at == end:
        return date_time(&moment)
    return generic_parse(text)


cdef dict strings_of(Span span):
    """The flat object of plain texts that was found; None for null."""
    cdef Octets at = span.start
    cdef Octets end
    cdef Span key, text
    cdef dict strings
    if at is NULL:
        return None
    strings = {}
    end = at + span.size
    at += 2
    # Each text is followed by three bytes, ":" or ",", and the last one by two.
    while at < end:
        take_text(&at, end, &key)
        at += 3
        take_text(&at, end, &text)
        at += 3
        strings[text_of(key)] = text_of(text)
    return strings


cdef object small_json(Octets start, Py_ssize_t size):
    """The value of the JSON; raises ValueError, also where the generic codec has to decide."""
    if size > SMALL_JSON:
        raise ValueError
    return loads(PyBytes_FromStringAndSize(<const char*>start, size))


cdef object recognise_request(Octets at, Octets end):
    cdef RequestSpans found
    if not scan_request(at, end, &found) or found.params.size > SMALL_JSON:
        return None
    try:
        params = small_json(found.params.start, found.params.size)
        enqueue_time = date_time(&found.enqueue_time)
        deadline = date_time(&found.deadline) if found.has_deadline else None
    except ValueError:
        return None
    if type(params) is not dict:
        return None
    worker_id = None
    if found.worker_id.start is not NULL:
        worker_id = common_text(&last_worker_id, found.worker_id)
    context = PyType_GenericAlloc(CONTEXT, 0)
    job_id = text_of(found.job_id)
    put(CONTEXT_SLOTS[0], context, text_like(job_id, found.context_job_id))
    put(CONTEXT_SLOTS[1], context, found.attempt)
    put(CONTEXT_SLOTS[2], context, enqueue_time)
    put(CONTEXT_SLOTS[3], context, common_text(&last_queue_name, found.queue_name))
    put(CONTEXT_SLOTS[4], context, deadline)
    put(CONTEXT_SLOTS[5], context, strings_of(found.trace_context))
    put(CONTEXT_SLOTS[6], context, strings_of(found.correlation_context))
    put(CONTEXT_SLOTS[7], context, worker_id)
    request = PyType_GenericAlloc(REQUEST, 0)
    put(REQUEST_SLOTS[0], request, VERSION)
    put(REQUEST_SLOTS[1], request, text_of(found.request_id))
    put(REQUEST_SLOTS[2], request, job_id)
    put(REQUEST_SLOTS[3], request, common_text(&last_function_name, found.function_name))
    put(REQUEST_SLOTS[4], request, params)
    put(REQUEST_SLOTS[5], request, context)
    return request


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
    outcome = PyType_GenericAlloc(OUTCOME, 0)
    put(OUTCOME_SLOTS[0], outcome, text_of(job_id))
    put(OUTCOME_SLOTS[1], outcome, text_of(request_id))
    put(OUTCOME_SLOTS[2], outcome, SUCCESS)
    put(OUTCOME_SLOTS[3], outcome, result)
    put(OUTCOME_SLOTS[4], outcome, None)
    put(OUTCOME_SLOTS[5], outcome, None)
    return outcome


cdef object decode(bytes owner, Py_ssize_t start, Py_ssize_t size):
    """The message in the payload that `owner` holds."""
    cdef Octets at = <Octets>PyBytes_AS_STRING(owner) + start
    message = recognise_request(at, at + size) if KNOWS_REQUEST else None
    if message is None and KNOWS_OUTCOME:
        message = recognise_success(at, at + size)
    if message is None:
        whole = size == PyBytes_GET_SIZE(owner)
        message = codec.decode_payload(owner if whole else memoryview(owner)[start:start + size])
    return message


def decode_payload(payload, /):
    """The message in a payload, which comes without a header.

    Raises:
        MessageError: the payload is not a valid message.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    cdef bytes owner = octets(payload)
    return decode(owner, 0, PyBytes_GET_SIZE(owner))


@cython.binding(False)
def decode_frame(frame, /):
    """The message in one whole frame, header included.

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
    max_frame_size: the most bytes of payload that a header may declare.

A declared length reserves no memory: the decoder holds the bytes that were fed and not taken.
Iteration raises MessageError for a payload that is not a valid message, and can go on after it;
FrameError where the stream is broken, after the messages before it.
"""

    def __next__(self):
        cdef Payload payload
        cdef bytes owner = self.next_payload(&payload)
        if owner is None:
            raise StopIteration
        return decode(owner, payload.start, payload.size)



cdef struct Level:
    # A dict, or the items of a list or tuple, and the position of the next item.
    PyObject* container
    PyObject** items            # NULL for a dict
    Py_ssize_t size, pos


cdef inline bint is_leaf(PyObject* item) noexcept:
    return (
        PyUnicode_CheckExact(item)
        or PyLong_CheckExact(item)
        or PyFloat_CheckExact(item)
        or PyBool_Check(item)
        or item is Py_None
    )


cdef bint enter(PyObject* container, Level* level) noexcept:
    """Whether it is a dict, list or tuple, and nothing derived from them."""
    level.container = container
    level.items = NULL
    level.pos = 0
    if PyDict_CheckExact(container):
        level.size = PyDict_Size(container)
        return True
    if PyList_CheckExact(container) or PyTuple_CheckExact(container):
        level.items = PySequence_Fast_ITEMS(container)
        level.size = PySequence_Fast_GET_SIZE(container)
        return True
    return False


cdef PyObject* next_container(Level* level) noexcept:
    """The next item that is not a leaf; NULL at the end."""
    cdef PyObject* key
    cdef PyObject* item
    if level.items is NULL:
        while PyDict_Next(level.container, &level.pos, &key, &item):
            if not is_leaf(item):
                return item
    else:
        while level.pos < level.size:
            item = level.items[level.pos]
            level.pos += 1
            if not is_leaf(item):
                return item
    return NULL


cdef bint is_plain(PyObject* item, int levels) noexcept:
    """As _is_plain() of `_json`. No Python code runs meanwhile, so borrowed references are safe."""
    cdef Level stack[MAX_LEVELS]
    cdef int depth = 0
    cdef Py_ssize_t left = MAX_ITEMS
    if is_leaf(item):
        return True
    while True:
        if depth == levels or depth == MAX_LEVELS or not enter(item, &stack[depth]):
            return False
        left -= stack[depth].size
        if left < 0:
            return False
        item = next_container(&stack[depth])
        depth += 1
        while item is NULL:
            depth -= 1
            if depth == 0:
                return True
            item = next_container(&stack[depth - 1])


def dump_plain(value, int levels):
    """As dump_plain() of `_json`. Nothing runs between the check and the writing."""
    if dumps is not None and is_plain(<PyObject*>value, levels):
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
    """The frame of a success with plain ids and a plain result; None for everything else."""
    cdef Octets first, second
    cdef Py_ssize_t first_size, second_size, size
    cdef bytes body, frame
    cdef char* out
    job_id, request_id = get(OUTCOME_SLOTS[0], outcome), get(OUTCOME_SLOTS[1], outcome)
    error, seconds = get(OUTCOME_SLOTS[4], outcome), get(OUTCOME_SLOTS[5], outcome)
    if type(job_id) is not str or type(request_id) is not str:
        return None
    if get(OUTCOME_SLOTS[2], outcome) is not SUCCESS or error is not None or seconds is not None:
        return None
    first = <Octets>PyUnicode_AsUTF8AndSize(job_id, &first_size)
    second = <Octets>PyUnicode_AsUTF8AndSize(request_id, &second_size)
    if plain_end(first, first + first_size) != first + first_size:
        return None
    if plain_end(second, second + second_size) != second + second_size:
        return None
    result = get(OUTCOME_SLOTS[3], outcome)
    if not is_plain(<PyObject*>result, RESULT_LEVELS):
        return None
    body = dumps(result)
    size = TEMPLATE_SIZE + first_size + second_size + PyBytes_GET_SIZE(body)
    if size > limit:
        return None
    frame = new_frame(size, limit)
    out = append_bytes(PyBytes_AS_STRING(frame) + HEADER_LEN, HEAD)
    out = append_bytes(append(out, first, first_size), BETWEEN)
    out = append_bytes(append(out, second, second_size), BEFORE_RESULT)
    append_bytes(append_bytes(out, body), TAIL)
    return frame


def encode_payload(message):
    """The payload that carries `message`, without a header and of any size.

    NaN and infinities are sent as null. An integer outside 64 bits is sent with all its digits, up
    to 308 of them; the orchestrator reads it as a float.

    Raises:
        EncodeError: a field has a wrong type, or a value has no JSON form or is nested too deep
            (MAX_NESTING containers in the whole payload).
        TypeError: `message` is not a RunnerMessage.
    """
    return codec.encode_payload(message)


@cython.binding(False)
def encode_frame(message, *, max_frame_size=MAX_FRAME_SIZE):
    """The frame, header included, that carries `message`; the orchestrator accepts it.

    Arguments:
        message: encoded as by encode_payload().
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: as encode_payload(), or PayloadTooLargeError.
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
