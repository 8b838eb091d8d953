# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False, freethreading_compatible=True

"""Messages: the objects that travel in frames, and their JSON.

The wire table is the pure twin's: names, order, types and defaults of the fields are read from its
annotated classes when this module is imported, and become the schemas that everything here runs over.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBuffer_Release
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.datetime cimport (
    PyDateTime_Check,
    PyDateTime_CheckExact,
    PyDateTime_DATE_GET_HOUR,
    PyDateTime_DATE_GET_MICROSECOND,
    PyDateTime_DATE_GET_MINUTE,
    PyDateTime_DATE_GET_SECOND,
    PyDateTime_DATE_GET_TZINFO,
    PyDateTime_GET_DAY,
    PyDateTime_GET_MONTH,
    PyDateTime_GET_YEAR,
    PyDateTime_TimeZone_UTC,
    import_datetime,
)
from cpython.dict cimport PyDict_GetItemWithError
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.mem cimport PyMem_Calloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_GET_LENGTH, PyUnicode_1BYTE_DATA
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from .frames cimport (
    HEADER_LEN,
    MAX_PAYLOAD,
    StreamDecoder,
    acquire,
    check_whole,
    checked_limit,
    describe_class,
    read_length,
    unsendable,
    write_length,
)

from .. import _json
from .._py import messages as pure
from .._py.messages import MAX_NESTING, PROTOCOL_VERSION, OutcomeStatus, OutcomeType, FieldError
from ..errors import MISSING, EncodeError, MessageError, describe
from .frames import MAX_FRAME_SIZE

__all__ = list(pure.__all__)

import_datetime()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    PyTypeObject* Py_TYPE_AT "Py_TYPE"(void*)
    void Py_SET_REFCNT(PyObject*, Py_ssize_t)
    PyObject* PyType_GenericAlloc(PyTypeObject* cls, Py_ssize_t items)
    void PyObject_GC_Track(PyObject*)
    void PyObject_GC_Del(void*)
    PyObject* PyLong_FromUnsignedLongLong(uint64_t)
    bint PyUnicode_CheckExact(object)
    bint PyUnicode_IS_COMPACT_ASCII(object)

    ctypedef struct PyGetSetDef:
        pass

cdef extern from "threads.h":
    bint FREE_THREADED

cdef extern from "fields.h":
    object load_field(PyObject* message, Py_ssize_t offset)
    void store_field(PyObject* message, Py_ssize_t offset, object value) noexcept
    int add_attribute(
        PyTypeObject* cls, object name, Py_ssize_t offset, PyGetSetDef* accessor
    ) except -1

cdef extern from "scan.h":
    const unsigned char* plain_end(const unsigned char* at, const unsigned char* end) noexcept
    bint skip(const unsigned char** at, const unsigned char* end, const char* literal) noexcept
    Py_ssize_t openers(const unsigned char* at, const unsigned char* end) noexcept
    const unsigned char* time_end(
        const unsigned char* at, const unsigned char* end, int* fields
    ) noexcept

    enum:
        SMALL_JSON

    ctypedef struct Span:
        const unsigned char* start
        Py_ssize_t size

    ctypedef struct RequestSpans:
        Span request_id, job_id, function_name, params
        Span context_job_id, queue_name, worker_id, trace_context, correlation_context
        uint64_t attempt
        int[7] enqueue_time, deadline
        bint has_deadline

    Span take_span(const unsigned char** at, const unsigned char* end) noexcept
    bint scan_request(
        const unsigned char* at,
        const unsigned char* end,
        Py_ssize_t* distance,
        RequestSpans* found,
    ) noexcept
    PyObject* text_of(Span span)
    PyObject* text_like(PyObject* known, Span span)
    PyObject* recall(PyObject** last, Span span)
    PyObject* date_time(const int* fields)
    PyObject* call(PyObject* function, PyObject* argument)
    PyObject* call_with_bytes(PyObject* function, Span json)
    int raise_it() except -1

cdef extern from "plain.h":
    bint is_plain(object value, int levels) noexcept

cdef int MAX_LEVELS = MAX_NESTING
cdef object NOTHING = MISSING
cdef object DEFAULT_LIMIT = MAX_FRAME_SIZE

cdef enum:
    # Nested containers that the JSON library decodes at the most, less those around the value.
    PARAMS_DEPTH = 1024 - 2
    RESULT_DEPTH = 1024 - 2
    # What a success has around its ids and its result.
    SUCCESS_TEXT = 40 + 16 + 30 + 2

cdef enum Kind:
    STRING
    INTEGER
    NUMBER
    BOOLEAN
    DATE_TIME
    ANY
    OBJECT
    STRINGS
    STATUS
    MESSAGE

cdef dict KINDS = {
    "str": STRING,
    "int": INTEGER,
    "float": NUMBER,
    "bool": BOOLEAN,
    "datetime": DATE_TIME,
    "Any": ANY,
    "dict[str, Any]": OBJECT,
    "dict[str, str]": STRINGS,
    "OutcomeStatus": STATUS,
    "ExecutionContext": MESSAGE,
    "ExecutionError": MESSAGE,
}

cdef object parse_date_time = pure.parse_date_time
cdef object format_date_time = pure.format_date_time
cdef dict STATUSES = {status.value: status for status in OutcomeStatus}
cdef dict STATUS_TEXTS = {status: f'"{status.value}"'.encode() for status in OutcomeStatus}
cdef object SUCCESS = OutcomeStatus.SUCCESS
cdef object loads = _json.loads
cdef object encode = _json.encode
# orjson itself, for what needs no second look; None where other code can run between that look and
# the writing: where json stands in, and where another thread needs no GIL.
cdef object DUMPS = None if FREE_THREADED else getattr(_json, "dumps", None)


cdef enum:
    # Objects of a class that are kept for the next message: a burst of in-flight requests.
    SPARE = 64
    CLASSES = 5
    MAX_FIELDS = 16


cdef struct Rule:
    # One field, as the code that runs for each message sees it. Every pointer is kept by its Row.
    const char* key             # ","name":" with the quotes of texts before and behind
    Py_ssize_t key_size         # without those quotes
    Py_ssize_t offset           # of its slot in the object
    Kind kind
    bint nullable
    bint required
    bint is_result
    PyObject* default           # what stands for it when it is missing; a dict is a new one
    PyObject* row
    Layout* nested              # of a MESSAGE
    PyGetSetDef accessor        # the attribute, as Python sees it


cdef struct Layout:
    # One message class: its rules in the order of the wire.
    PyTypeObject* cls
    Rule* rules
    Rule* end
    const char* head            # what stands before its fields in a frame
    Py_ssize_t head_size        # 0 where it is nested
    int depth                   # containers around its fields, its own included
    PyObject* spare[SPARE]      # objects to be used again
    int spares


@cython.final
cdef class Row:
    """One field: what pure.Field says of it, for the errors."""

    cdef object field           # the pure twin's
    cdef str name
    cdef object default
    cdef bytes key
    cdef str path               # where it stands in a frame
    cdef object write           # what JSON encodes for a value; raises ValueError

    def __cinit__(self, field, str path):
        self.field = field
        self.name = field.name
        self.default = field.default
        self.key = f'","{field.name}":"'.encode()
        self.path = f"{path}.{field.name}"
        self.write = pure.KINDS[field.kind].write


@cython.final
cdef class Schema:
    """One message class. There are five, for as long as the process lives."""

    cdef type cls
    cdef tuple rows
    cdef bytes head
    cdef Layout layout

    def __cinit__(self, type cls, str path, str wire_type="", **nested):
        twin = getattr(pure, cls.__name__)
        self.cls = cls
        self.head = f'{{"type":"{wire_type}","payload":'.encode() if wire_type else b""
        self.rows = tuple([Row(field, path) for field in twin._fields])
        self.layout.cls = <PyTypeObject*>cls
        self.layout.head = PyBytes_AS_STRING(self.head)
        self.layout.head_size = PyBytes_GET_SIZE(self.head)
        self.layout.depth = 2 + path.count(".")
        if len(self.rows) > MAX_FIELDS:
            raise ImportError(f"{cls.__name__} has more fields than MAX_FIELDS")
        # The attributes of an object are an array of pointers behind its head.
        if cls.__basicsize__ != sizeof(PyObject) + len(self.rows) * sizeof(PyObject*):
            raise ImportError(f"{cls.__name__} has other fields in messages.pxd")
        self.layout.rules = <Rule*>PyMem_Calloc(len(self.rows), sizeof(Rule))
        if self.layout.rules is NULL:
            raise MemoryError
        self.layout.end = self.layout.rules
        for row in self.rows:
            self.add(row, nested.get((<Row>row).name))
        if not FREE_THREADED:
            self.layout.cls.tp_free = keep
        describe_class(cls, pure.signature(twin._fields), twin.__doc__)

    cdef int add(self, Row row, Schema nested) except -1:
        cdef Rule* rule = self.layout.end
        cdef Py_ssize_t at = rule - self.layout.rules
        rule.key = PyBytes_AS_STRING(row.key)
        rule.key_size = PyBytes_GET_SIZE(row.key) - 2
        rule.offset = sizeof(PyObject) + at * sizeof(PyObject*)
        add_attribute(self.layout.cls, row.name, rule.offset, &rule.accessor)
        rule.kind = KINDS[row.field.kind]
        rule.nullable = row.field.nullable
        rule.required = row.default is MISSING
        rule.is_result = row.name == "result"
        rule.default = <PyObject*>row.default
        rule.row = <PyObject*>row
        if nested is not None:
            rule.nested = &nested.layout
        self.layout.end += 1
        return 0


# In the order in which they are made most.
cdef Layout* LAYOUTS[CLASSES]
LAYOUTS[0] = LAYOUTS[1] = LAYOUTS[2] = LAYOUTS[3] = LAYOUTS[4] = NULL


cdef inline object get(Message message, Rule* rule):
    return load_field(<PyObject*>message, rule.offset)


cdef inline void put(Message message, Rule* rule, object value) noexcept:
    store_field(<PyObject*>message, rule.offset, value)


cdef struct Values:
    # The fields of a message in the order of the wire, each a reference of its own.
    PyObject* objects[MAX_FIELDS]
    int count


cdef inline void add(Values* values, object value) noexcept:
    Py_INCREF(value)
    values.objects[values.count] = <PyObject*>value
    values.count += 1


cdef inline void take(Values* values, PyObject* made) noexcept:
    """Adds a reference that is its own already; NULL is found by build()."""
    values.objects[values.count] = made
    values.count += 1


cdef inline void drop(Values* values) noexcept:
    while values.count:
        values.count -= 1
        Py_XDECREF(values.objects[values.count])


cdef inline object owned(PyObject* made):
    if made is NULL:
        raise_it()
    value = <object>made
    Py_DECREF(value)  # the cast took one more
    return value


cdef Message build(Layout* layout, Values* values):
    """The message of its fields, every one of them, which it takes over."""
    cdef PyObject** slots
    cdef PyObject* made
    cdef int at
    cdef bint again = layout.spares > 0
    cdef bint whole = True
    if again:
        layout.spares -= 1
        made = layout.spare[layout.spares]
        Py_SET_REFCNT(made, 1)
    else:
        made = PyType_GenericAlloc(layout.cls, 0)
        if made is NULL:
            drop(values)
            raise MemoryError
    slots = <PyObject**>(<char*>made + sizeof(PyObject))
    for at in range(values.count):
        slots[at] = values.objects[at]
        whole &= values.objects[at] is not NULL
    values.count = 0
    if again:
        PyObject_GC_Track(made)
    message = <Message>made
    Py_DECREF(message)  # the cast took one more
    if not whole:
        raise_it()
    return message


cdef inline Message new(Layout* layout):
    """A message of which every field is None."""
    cdef Values values
    cdef Rule* rule = layout.rules
    values.count = 0
    while rule < layout.end:
        add(&values, None)
        rule += 1
    return build(layout, &values)


cdef void keep(void* gone) noexcept:
    """tp_free of the message classes: what build() uses again."""
    cdef PyTypeObject* cls = Py_TYPE_AT(gone)
    cdef int at
    for at in range(CLASSES):
        if LAYOUTS[at] is not NULL and LAYOUTS[at].cls is cls and LAYOUTS[at].spares < SPARE:
            LAYOUTS[at].spare[LAYOUTS[at].spares] = <PyObject*>gone
            LAYOUTS[at].spares += 1
            return
    PyObject_GC_Del(gone)


cdef Schema find_schema(object cls):
    """The schema of a message class; None for other classes."""
    if cls is ExecutionOutcome:
        return OUTCOME
    if cls is ExecutionRequest:
        return REQUEST
    if cls is ExecutionContext:
        return CONTEXT
    if cls is ExecutionError:
        return ERROR
    return CANCEL if cls is CancelRequest else None


cdef list names_of(Schema schema):
    cdef Row row
    cdef list names = []
    for row in schema.rows:
        names.append(row.name)
    return names


cdef Schema schema_of(Message message):
    cdef Schema schema = find_schema(type(message))
    if schema is None:
        raise TypeError(f"{type(message).__name__} is not a message of the protocol")
    return schema


cdef class Message:
    """What the message classes share: they are values, mutable and without a hash."""

    __match_args__ = ()

    def __init__(self, **values):
        cdef Schema schema = schema_of(self)
        cdef Rule* rule = schema.layout.rules
        cdef Row row
        for row in schema.rows:
            value = values.pop(row.name, row.default)
            if value is MISSING:
                raise TypeError(
                    f"{schema.cls.__name__}.__init__() missing 1 required keyword-only argument: "
                    f"{row.name!r}"
                )
            if rule.kind == OBJECT and (value is None or value is row.default):
                value = {}
            put(self, rule, value)
            rule += 1
        if values:
            raise TypeError(
                f"{schema.cls.__name__}.__init__() got an unexpected keyword argument "
                f"{next(iter(values))!r}"
            )

    def __eq__(self, other):
        cdef Layout* layout
        cdef Rule* rule
        if type(other) is not type(self):
            return NotImplemented
        layout = &schema_of(self).layout
        rule = layout.rules
        while rule < layout.end:
            if not get(self, rule) == get(other, rule):
                return False
            rule += 1
        return True

    def __repr__(self):
        values = ", ".join([f"{name}={value!r}" for name, value in values_of(self).items()])
        return f"{type(self).__name__}({values})"

    def __replace__(self, **changes):
        return type(self)(**{**values_of(self), **changes})

    def __copy__(self):
        return self.__replace__()

    def __deepcopy__(self, memo):
        from copy import deepcopy

        return type(self)(**deepcopy(values_of(self), memo))

    def __reduce__(self):
        """Pickles come back as the twin that runs where they are loaded."""
        return pure.restore, (type(self).__name__, values_of(self))


cdef dict values_of(Message message):
    cdef Row row
    cdef dict values = {}
    for row in schema_of(message).rows:
        values[row.name] = getattr(message, row.name)
    return values


@cython.final
cdef class ExecutionContext(Message):
    pass


@cython.final
cdef class ExecutionRequest(Message):
    pass


@cython.final
@cython.trashcan(True)
cdef class ExecutionError(Message):
    pass


cdef Message outcome(
    object job_id, object request_id, object status, object result, object error, object seconds
):
    cdef Values values
    if not KNOWS_OUTCOME:
        return ExecutionOutcome(
            job_id=job_id,
            request_id=request_id,
            status=status,
            result=result,
            error=error,
            retry_after_seconds=seconds,
        )
    values.count = 0
    add(&values, job_id)
    add(&values, request_id)
    add(&values, status)
    add(&values, result)
    add(&values, error)
    add(&values, seconds)
    return build(&OUTCOME.layout, &values)


@cython.final
@cython.trashcan(True)
cdef class ExecutionOutcome(Message):
    @property
    def type(self):
        """The OutcomeType that `status` and `error.type` amount to."""
        cdef object message = self  # whose attributes are read as from any thread
        status = OutcomeStatus(message.status)
        if status is OutcomeStatus.RETRY:
            return OutcomeType.RETRY_AFTER
        if status is not OutcomeStatus.ERROR:
            return OutcomeType(status.value)
        error = message.error
        named = error.type if error is not None else None
        if named == OutcomeType.HANDLER_NOT_FOUND:
            return OutcomeType.HANDLER_NOT_FOUND
        return OutcomeType.CANCELLED if named == OutcomeType.CANCELLED else OutcomeType.FAILURE

    @classmethod
    def success(cls, job_id, request_id, result=None):
        """The job has completed with `result`."""
        return outcome(job_id, request_id, SUCCESS, result, None, None)

    @classmethod
    def failure(cls, job_id, request_id, message, *, type=None, code=None, details=None):
        """The job has failed; the orchestrator retries it by its policy."""
        error = ExecutionError(message=message, type=type, code=code, details=details)
        return outcome(job_id, request_id, OutcomeStatus.ERROR, None, error, None)

    @classmethod
    def retry_after(cls, job_id, request_id, message, seconds=None):
        """The job wants to run again after `seconds`; None leaves the delay to the orchestrator."""
        error = ExecutionError(message=message)
        return outcome(job_id, request_id, OutcomeStatus.RETRY, None, error, seconds)

    @classmethod
    def timeout(cls, job_id, request_id, message):
        """The job ran past its deadline; it is not retried."""
        error = ExecutionError(message=message, type="timeout")
        return outcome(job_id, request_id, OutcomeStatus.TIMEOUT, None, error, None)

    @classmethod
    def cancelled(cls, job_id, request_id, message="Job cancelled"):
        """The job was cancelled before it ended."""
        return cls.failure(job_id, request_id, message, type="cancelled")

    @classmethod
    def handler_not_found(cls, job_id, request_id, message):
        """The runner has no handler of the job's name; it is not retried."""
        return cls.failure(job_id, request_id, message, type="handler_not_found")


@cython.final
cdef class CancelRequest(Message):
    pass


RunnerMessage = ExecutionRequest | ExecutionOutcome | CancelRequest

cdef Schema CONTEXT = Schema(ExecutionContext, "payload.context")
cdef Schema ERROR = Schema(ExecutionError, "payload.error")
cdef Schema REQUEST = Schema(ExecutionRequest, "payload", "request", context=CONTEXT)
cdef Schema OUTCOME = Schema(ExecutionOutcome, "payload", "response", error=ERROR)
cdef Schema CANCEL = Schema(CancelRequest, "payload", "cancel")

LAYOUTS[0] = &CONTEXT.layout
LAYOUTS[1] = &REQUEST.layout
LAYOUTS[2] = &OUTCOME.layout
LAYOUTS[3] = &ERROR.layout
LAYOUTS[4] = &CANCEL.layout

# The layouts known by heart are those of exactly these fields; of others, nothing is known by heart.
cdef bint KNOWS_REQUEST = names_of(REQUEST) == [
    "protocol_version",
    "request_id",
    "job_id",
    "function_name",
    "params",
    "context",
] and names_of(CONTEXT) == [
    "job_id",
    "attempt",
    "enqueue_time",
    "queue_name",
    "deadline",
    "trace_context",
    "correlation_context",
    "worker_id",
]
cdef bint KNOWS_OUTCOME = names_of(OUTCOME) == [
    "job_id",
    "request_id",
    "status",
    "result",
    "error",
    "retry_after_seconds",
]

cdef dict TYPES = {"request": REQUEST, "response": OUTCOME, "cancel": CANCEL}

# ---- decoding --------------------------------------------------------------------------------------


cdef object read_value(Rule* rule, object value):
    """The attribute for a decoded value of a field. Raises FieldError, ValueError."""
    cdef Kind kind = rule.kind
    cdef const unsigned char* text
    cdef const unsigned char* end
    cdef int[7] moment
    if kind == ANY:
        return value
    if value is None and rule.nullable:
        return None
    if kind == STRING:
        if type(value) is str:
            return value
    elif kind == DATE_TIME:
        if type(value) is str:
            if PyUnicode_IS_COMPACT_ASCII(value):
                text = <const unsigned char*>PyUnicode_1BYTE_DATA(value)
                end = text + PyUnicode_GET_LENGTH(value)
                if time_end(text, end, moment) == end:
                    return owned(date_time(moment))
            return parse_date_time(value)
    elif kind == INTEGER:
        if type(value) is int and 0 <= value <= 0xFFFFFFFF:
            return value
    elif kind == OBJECT:
        if type(value) is dict:
            return value
    elif kind == STRINGS:
        if type(value) is dict:
            for item in (<dict>value).values():
                if type(item) is not str:
                    raise ValueError
            return value
    elif kind == MESSAGE:
        if type(value) is dict:
            return read_fields(rule.nested, value)
    elif kind == STATUS:
        if type(value) is str:
            return STATUSES.get(value) or OutcomeStatus(value)
    elif kind == NUMBER:
        if type(value) is float or type(value) is int:
            return float(value)
    elif kind == BOOLEAN:
        if type(value) is bool:
            return value
    raise ValueError


cdef Message read_fields(Layout* layout, dict source):
    """The message whose fields are in `source`. Raises FieldError."""
    cdef Values values
    cdef Rule* rule = layout.rules
    cdef Row row
    cdef PyObject* found
    value = None
    values.count = 0
    try:
        while rule < layout.end:
            found = PyDict_GetItemWithError(source, (<Row>rule.row).name)
            if found is not NULL:
                value = <object>found
            elif rule.kind == OBJECT:
                value = {}
            else:
                value = <object>rule.default
            if rule.kind == STRING and type(value) is str:
                add(&values, value)
            else:
                add(&values, read_value(rule, value))
            rule += 1
        return build(layout, &values)
    except ValueError:
        row = <Row>rule.row
        raise row.field.refuse(value) from None
    except FieldError as error:
        error.path = f"{(<Row>rule.row).name}.{error.path}"
        raise
    finally:
        drop(&values)


cdef enum:
    # In a payload of more than this the envelope is not worth looking at.
    LARGE = 16384


cdef object load(const unsigned char* text, Py_ssize_t size):
    """The value of one JSON document. Raises ValueError."""
    cdef Span json
    if size <= SMALL_JSON:
        json.start = text
        json.size = size
        return owned(call_with_bytes(<PyObject*>loads, json))
    view = PyMemoryView_FromMemory(<char*>text, size, PyBUF_READ)
    try:
        return loads(view)
    finally:
        view.release()  # a traceback may keep it longer than the bytes live


cdef Message decode_payload(const unsigned char* payload, Py_ssize_t size):
    cdef Schema schema
    if size <= LARGE:
        message = recognise_request(payload, payload + size) if KNOWS_REQUEST else None
        if message is None and KNOWS_OUTCOME:
            message = recognise_success(payload, payload + size)
        if message is not None:
            return message
    try:
        document = load(payload, size)
    except ValueError as error:
        raise MessageError(f"not JSON: {error}", payload[:size]) from None
    if type(document) is not dict:
        raise MessageError(f"expected an object, got {describe(document)}", payload[:size])
    named = document.get("type", MISSING)
    schema = TYPES.get(named) if type(named) is str else None
    fields = document.get("payload", MISSING)
    if schema is None:
        reason = f"expected one of {', '.join(TYPES)}, got {describe(named)}"
        path = "type"
    elif type(fields) is not dict:
        reason = f"expected an object, got {describe(fields)}"
        path = "payload"
    else:
        try:
            return read_fields(&schema.layout, fields)
        except FieldError as error:
            reason = error.reason
            path = f"payload.{error.path}"
    raise pure.message_error(reason, payload[:size], path, fields)


# ---- the layouts that are worth knowing ------------------------------------------------------------
#
# A request as the orchestrator writes it, and a success as this package does: every key in its place,
# no spaces, text without escapes. Then the fields are taken straight from the bytes, and only `params`
# and `result` are left to the JSON library. For anything else there is None, and decode_payload() looks
# from the beginning: so a field that is added to the wire table is read, only not as fast.
#
# What is taken is a sequence of complete JSON values between literal keys and brackets, and JSON can
# be read in one way only: so it is what the general way reads.

cdef dict strings_of(Span span):
    """The flat object of plain texts that was found there; None for null."""
    cdef const unsigned char* at
    cdef const unsigned char* stop
    cdef dict strings
    if span.start is NULL:
        return None
    at = span.start + 2
    stop = span.start + span.size
    strings = {}
    # Each text is followed by three characters, ":" or ",", and the last one by two.
    while at < stop:
        key = owned(text_of(take_span(&at, stop)))
        at += 3
        strings[key] = owned(text_of(take_span(&at, stop)))
        at += 3
    return strings


cdef struct Recurring:
    # What was in the last request, and may be in the next.
    PyObject* function_name
    PyObject* queue_name
    PyObject* worker_id
    Py_ssize_t context_size     # from its comma to the end of the frame

cdef Recurring LAST
LAST.context_size = 0
for _ in range(3):
    Py_INCREF("")
LAST.function_name = LAST.queue_name = LAST.worker_id = <PyObject*>""
cdef str VERSION = PROTOCOL_VERSION


cdef Message recognise_request(const unsigned char* at, const unsigned char* end):
    cdef RequestSpans found
    cdef Py_ssize_t context_size = LAST.context_size
    if not scan_request(at, end, &context_size, &found):
        return None
    if not FREE_THREADED:
        LAST.context_size = context_size
    params = slice_of(found.params, PARAMS_DEPTH)
    return make_request(&found, params) if type(params) is dict else None


cdef Message make_request(RequestSpans* found, dict params):
    cdef Values fields, context
    job_id = owned(text_of(found.job_id))
    trace_context = strings_of(found.trace_context)
    correlation_context = strings_of(found.correlation_context)
    # From here on only build() raises, which drops what there is.
    context.count = 0
    take(&context, text_like(<PyObject*>job_id, found.context_job_id))
    take(&context, PyLong_FromUnsignedLongLong(found.attempt))
    take(&context, date_time(found.enqueue_time))
    take(&context, recall(&LAST.queue_name, found.queue_name))
    if found.has_deadline:
        take(&context, date_time(found.deadline))
    else:
        add(&context, None)
    add(&context, trace_context)
    add(&context, correlation_context)
    if found.worker_id.start is NULL:
        add(&context, None)
    else:
        take(&context, recall(&LAST.worker_id, found.worker_id))
    message = build(&CONTEXT.layout, &context)
    fields.count = 0
    add(&fields, VERSION)
    take(&fields, text_of(found.request_id))
    add(&fields, job_id)
    take(&fields, recall(&LAST.function_name, found.function_name))
    add(&fields, params)
    add(&fields, message)
    return build(&REQUEST.layout, &fields)


cdef Message recognise_success(const unsigned char* at, const unsigned char* end):
    cdef Span json
    if not skip(&at, end, b'{"type":"response","payload":{"job_id":"'):
        return None
    job_id = take_span(&at, end)
    if not skip(&at, end, b'","request_id":"'):
        return None
    request_id = take_span(&at, end)
    if not skip(&at, end, b'","status":"success","result":') or end - at < 3:
        return None
    end -= 2
    if end[0] != c"}" or end[1] != c"}":
        return None
    json.start = at
    json.size = end - at
    result = slice_of(json, RESULT_DEPTH)
    if result is NOTHING:
        return None
    first, second = owned(text_of(job_id)), owned(text_of(request_id))
    return outcome(first, second, SUCCESS, result, None, None)


cdef object slice_of(Span json, Py_ssize_t levels):
    """The value of the JSON there; NOTHING if there is none."""
    cdef PyObject* value
    if json.size == 2 and json.start[0] == c"{" and json.start[1] == c"}":
        return {}
    # Where it may be nested too deep, counting what is around it, the general way decides.
    if json.size > 2 * levels and openers(json.start, json.start + json.size) > levels:
        return NOTHING
    if json.size > SMALL_JSON:
        return large_slice(json)
    value = call_with_bytes(<PyObject*>loads, json)
    if value is not NULL:
        return owned(value)
    # A try statement would cost those that are JSON, too.
    if not PyErr_ExceptionMatches(ValueError):
        raise_it()
    PyErr_Clear()
    return NOTHING


cdef object large_slice(Span json):
    try:
        return load(json.start, json.size)
    except ValueError:
        return NOTHING


# ---- encoding --------------------------------------------------------------------------------------

cdef enum:
    # Enough for every field of a request and its context, each of a key, two quotes and a value.
    MAX_PIECES = 96
    # Two date-times of 29 bytes, an integer of 10, and room for more fields of their kind.
    SCRATCH = 128


cdef struct Writer:
    # The payload, piece by piece; it is put together once its size is known.
    const char* data[MAX_PIECES]
    Py_ssize_t sizes[MAX_PIECES]
    int count
    Py_ssize_t size
    bint in_text                # its closing quote comes with the next piece
    char scratch[SCRATCH]
    int used
    # What the pieces point into, kept alive.
    PyObject* owned[MAX_PIECES]
    int owns


cdef inline int piece(Writer* writer, const char* data, Py_ssize_t size) except -1:
    if writer.count == MAX_PIECES or size > PY_SSIZE_T_MAX - HEADER_LEN - writer.size:
        raise MemoryError
    writer.data[writer.count] = data
    writer.sizes[writer.count] = size
    writer.count += 1
    writer.size += size
    return 0


cdef inline int own(Writer* writer, object value) except -1:
    if writer.owns == MAX_PIECES:
        raise MemoryError
    Py_INCREF(value)
    writer.owned[writer.owns] = <PyObject*>value
    writer.owns += 1
    return 0


cdef int write_json(Writer* writer, object value, int levels, str path) except -1:
    """A value of any kind, in which `levels` containers may be nested in one another."""
    cdef bytes body
    if DUMPS is not None and is_plain(value, levels):
        try:
            body = DUMPS(value)
        except TypeError:
            body = encode(value, levels, path)
    else:
        body = encode(value, levels, path)
    own(writer, body)
    return piece(writer, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))


cdef int write_string(Writer* writer, object value, str path) except -1:
    cdef const unsigned char* text
    cdef Py_ssize_t size
    if PyUnicode_IS_COMPACT_ASCII(value):
        text = <const unsigned char*>PyUnicode_1BYTE_DATA(value)
        size = PyUnicode_GET_LENGTH(value)
        if plain_end(text, text + size) == text + size:
            own(writer, value)
            # The quote is the last character of the key, which was written without it.
            writer.sizes[writer.count - 1] += 1
            writer.size += 1
            writer.in_text = True
            return piece(writer, <const char*>text, size)
    # A subclass is written as what it is underneath, a (str, Enum) as its text.
    return write_json(writer, str.__str__(value), 0, path)


cdef char* digits(Writer* writer, uint32_t number, int width) except NULL:
    """The number in decimal, at least `width` digits, in the scratch."""
    cdef uint32_t rest = number // 10
    cdef int size = 1
    cdef char* out
    while rest:
        rest //= 10
        size += 1
    size = max(size, width)
    if writer.used + size > SCRATCH:
        raise MemoryError
    out = writer.scratch + writer.used
    writer.used += size
    while size:
        size -= 1
        out[size] = c"0" + number % 10
        number //= 10
    return out


cdef inline int mark(Writer* writer, char sign) except -1:
    if writer.used == SCRATCH:
        raise MemoryError
    writer.scratch[writer.used] = sign
    writer.used += 1
    return 0


cdef int write_date_time(Writer* writer, object moment) except -1:
    """Raises ValueError for what has no date-time in UTC."""
    cdef char* start = writer.scratch + writer.used
    cdef int microsecond
    if (
        not PyDateTime_CheckExact(moment)
        or PyDateTime_DATE_GET_TZINFO(moment) != PyDateTime_TimeZone_UTC
    ):
        return write_json(writer, format_date_time(moment), 0, "")
    mark(writer, c'"')
    digits(writer, PyDateTime_GET_YEAR(moment), 4)
    mark(writer, c"-")
    digits(writer, PyDateTime_GET_MONTH(moment), 2)
    mark(writer, c"-")
    digits(writer, PyDateTime_GET_DAY(moment), 2)
    mark(writer, c"T")
    digits(writer, PyDateTime_DATE_GET_HOUR(moment), 2)
    mark(writer, c":")
    digits(writer, PyDateTime_DATE_GET_MINUTE(moment), 2)
    mark(writer, c":")
    digits(writer, PyDateTime_DATE_GET_SECOND(moment), 2)
    microsecond = PyDateTime_DATE_GET_MICROSECOND(moment)
    if microsecond:
        mark(writer, c".")
        if microsecond % 1000:
            digits(writer, microsecond, 6)
        else:
            digits(writer, microsecond // 1000, 3)
    mark(writer, c"Z")
    mark(writer, c'"')
    return piece(writer, start, writer.scratch + writer.used - start)


cdef int write_value(Writer* writer, Layout* layout, Rule* rule, object value) except -1:
    """Raises EncodeError, and ValueError for a value that the field does not take."""
    cdef Kind kind = rule.kind
    cdef Row row = <Row>rule.row
    cdef char* start
    if kind == STRING:
        if isinstance(value, str):
            return write_string(writer, value, row.path)
    elif kind == STATUS:
        if value is SUCCESS:
            return piece(writer, b'"success"', 9)
        value = OutcomeStatus(value)
        return piece(writer, <const char*>STATUS_TEXTS[value], len(<bytes>STATUS_TEXTS[value]))
    elif kind == MESSAGE:
        if type(value) is <object><PyObject*>rule.nested.cls:
            return write_fields(writer, rule.nested, value)
    elif kind == DATE_TIME:
        if PyDateTime_Check(value):
            return write_date_time(writer, value)
    elif kind == INTEGER:
        if isinstance(value, int) and type(value) is not bool:
            number = int.__index__(value)
            if 0 <= number <= 0xFFFFFFFF:
                start = digits(writer, number, 1)
                return piece(writer, start, writer.scratch + writer.used - start)
    elif kind == BOOLEAN:
        if type(value) is bool:
            return piece(writer, b"true", 4) if value else piece(writer, b"false", 5)
    else:
        if kind != ANY:
            value = row.write(value)
        return write_json(writer, value, MAX_LEVELS - layout.depth, row.path)
    raise ValueError


cdef inline int writes_none(Layout* layout, Rule* rule, object message) except -1:
    """Whether the field is written as null when it is None; otherwise it is left out."""
    if layout == &CONTEXT.layout:
        return True
    # What a status of anybody's making says when compared may be any object, -1 too.
    return 1 if rule.is_result and message.status == SUCCESS else 0


cdef inline int write_key(Writer* writer, Rule* rule, bint first) except -1:
    """The key of a field, behind a comma, behind the quote of the text before."""
    cdef Py_ssize_t skip = 2 if first else 0 if writer.in_text else 1
    writer.in_text = False
    return piece(writer, rule.key + skip, rule.key_size + 1 - skip)


cdef int write_fields(Writer* writer, Layout* layout, Message message) except -1:
    cdef Rule* rule = layout.rules
    cdef Row row
    cdef bint first = True
    value = None
    piece(writer, b"{", 1)
    try:
        while rule < layout.end:
            value = get(message, rule)
            if value is not None or not rule.nullable:
                write_key(writer, rule, first)
                first = False
                write_value(writer, layout, rule, value)
            elif writes_none(layout, rule, message):
                write_key(writer, rule, first)
                first = False
                piece(writer, b"null", 4)
            rule += 1
    except EncodeError:
        raise
    except ValueError:
        row = <Row>rule.row
        raise row.field.refuse_to_send(value, row.path) from None
    if writer.in_text:
        writer.in_text = False
        return piece(writer, b'"}', 2)
    return piece(writer, b"}", 1)


cdef bytes encode_success(ExecutionOutcome message, uint32_t limit):
    """The frame of a success with plain ids and a result for orjson; None for everything else."""
    cdef const unsigned char* job_id
    cdef const unsigned char* request_id
    cdef Py_ssize_t job_size, request_size, size
    cdef PyObject* made
    cdef bytes body, frame
    cdef unsigned char* out
    if not KNOWS_OUTCOME or DUMPS is None:
        return None
    if message.status is not SUCCESS or message.error is not None:
        return None
    if message.retry_after_seconds is not None:
        return None
    first, second = message.job_id, message.request_id
    if not (PyUnicode_CheckExact(first) and PyUnicode_CheckExact(second)):
        return None
    if not (PyUnicode_IS_COMPACT_ASCII(first) and PyUnicode_IS_COMPACT_ASCII(second)):
        return None
    job_id = <const unsigned char*>PyUnicode_1BYTE_DATA(first)
    request_id = <const unsigned char*>PyUnicode_1BYTE_DATA(second)
    job_size = PyUnicode_GET_LENGTH(first)
    request_size = PyUnicode_GET_LENGTH(second)
    if plain_end(job_id, job_id + job_size) != job_id + job_size:
        return None
    if plain_end(request_id, request_id + request_size) != request_id + request_size:
        return None
    result = message.result
    if not is_plain(result, MAX_LEVELS - 2):
        return None
    made = call(<PyObject*>DUMPS, <PyObject*>result)
    if made is NULL:
        if not PyErr_ExceptionMatches(TypeError):
            raise_it()
        PyErr_Clear()
        return None
    body = owned(made)
    size = SUCCESS_TEXT + job_size + request_size + PyBytes_GET_SIZE(body)
    if <uint64_t>size > limit:
        return None
    frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + size)
    out = <unsigned char*>PyBytes_AS_STRING(frame)
    write_length(out, <uint32_t>size)
    out = append(out + HEADER_LEN, b'{"type":"response","payload":{"job_id":"', 40)
    out = append(out, job_id, job_size)
    out = append(out, b'","request_id":"', 16)
    out = append(out, request_id, request_size)
    out = append(out, b'","status":"success","result":', 30)
    out = append(out, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    append(out, b"}}", 2)
    return frame


cdef inline unsigned char* append(unsigned char* out, const void* data, Py_ssize_t size) noexcept:
    memcpy(out, data, size)
    return out + size


def encode_frame(message, *, max_frame_size=MAX_FRAME_SIZE):
    """The frame, header included, that carries `message`; one that the orchestrator accepts.

    NaN and infinities are sent as null. An integer outside 64 bits is sent with all its digits, up
    to 308 of them; the orchestrator reads it as a float.

    Arguments:
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: a field has the wrong type, a value has no JSON form or nests too deep
            (MAX_NESTING containers in the whole document), or the payload is too large.
        TypeError: `message` is not a RunnerMessage.
    """
    cdef uint32_t limit = MAX_PAYLOAD
    cdef Writer writer
    cdef Schema schema = None
    cdef char* out
    cdef int at
    if max_frame_size is not DEFAULT_LIMIT:
        limit = checked_limit(max_frame_size)
    if type(message) is ExecutionOutcome:
        frame = encode_success(message, limit)
        if frame is not None:
            return frame
    schema = find_schema(type(message))
    if schema is None or not schema.layout.head_size:
        raise TypeError(f"expected a RunnerMessage, got {type(message).__name__}")
    writer.count = writer.used = writer.owns = 0
    writer.size = 0
    writer.in_text = False
    try:
        piece(&writer, schema.layout.head, schema.layout.head_size)
        write_fields(&writer, &schema.layout, message)
        piece(&writer, b"}", 1)
        error = unsendable(writer.size, limit)
        if error is not None:
            raise error
        frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + writer.size)
        out = PyBytes_AS_STRING(frame)
        write_length(<unsigned char*>out, <uint32_t>writer.size)
        out += HEADER_LEN
        for at in range(writer.count):
            memcpy(out, writer.data[at], writer.sizes[at])
            out += writer.sizes[at]
        return frame
    finally:
        for at in range(writer.owns):
            Py_XDECREF(writer.owned[at])


@cython.binding(False)
def decode_frame(frame, /):
    """The message in one whole frame, header included.

    Raises:
        FrameError: `frame` is not one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    cdef Py_buffer view
    cdef const unsigned char* start
    cdef Py_ssize_t size
    if PyBytes_CheckExact(frame):
        start = <const unsigned char*>PyBytes_AS_STRING(frame)
        size = PyBytes_GET_SIZE(frame) - HEADER_LEN
        if not 0 < size <= MAX_PAYLOAD or read_length(start) != <uint32_t>size:
            check_whole(start, size + HEADER_LEN)
        return decode_payload(start + HEADER_LEN, size)
    acquire(frame, &view)
    try:
        if DUMPS is None:  # other code may run meanwhile, and write to it
            return decode_frame(PyBytes_FromStringAndSize(<const char*>view.buf, view.len))
        check_whole(<const unsigned char*>view.buf, view.len)
        return decode_payload(<const unsigned char*>view.buf + HEADER_LEN, view.len - HEADER_LEN)
    finally:
        PyBuffer_Release(&view)


cdef class MessageDecoder(StreamDecoder):
    def __next__(self):
        cdef const unsigned char* payload
        cdef Py_ssize_t size
        self.enter()
        try:
            if not self.next_payload(&payload, &size):
                raise StopIteration
            try:
                if DUMPS is None and self.carry is not None:
                    # Other code may run meanwhile, and write to what get_buffer() gave out.
                    own = PyBytes_FromStringAndSize(<const char*>payload, size)
                    payload = <const unsigned char*>PyBytes_AS_STRING(own)
                return decode_payload(payload, size)
            finally:
                self.settle()
        finally:
            self.leave()


describe_class(MessageDecoder, f"max_frame_size={MAX_FRAME_SIZE}", pure.MessageDecoder.__doc__)
