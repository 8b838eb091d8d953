# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False

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
    datetime_new,
    import_datetime,
)
from cpython.dict cimport PyDict_GetItemWithError
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
    PyObject* PyObject_Init(PyObject* memory, PyTypeObject* cls)
    void PyObject_GC_Track(PyObject*)
    void PyObject_GC_Del(void*)
    bint PyUnicode_IS_COMPACT_ASCII(object)
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define FREE_THREADED 1
    #else
    #define FREE_THREADED 0
    #endif
    """
    bint FREE_THREADED

cdef extern from "scan.h":
    const unsigned char* plain_end(const unsigned char* at, const unsigned char* end) noexcept
    bint same(const unsigned char* one, const void* other, size_t size) noexcept
    const unsigned char* last_brace(const unsigned char* at, const unsigned char* end) noexcept
    Py_ssize_t openers(const unsigned char* at, const unsigned char* end) noexcept
    int number_of(const unsigned char* at, int count) noexcept
    bint is_plain(object value, int levels) noexcept

cdef int MAX_LEVELS = MAX_NESTING
cdef tuple NO_ARGUMENTS = ()
cdef object NOTHING = MISSING

cdef enum:
    # Nested containers that the JSON library decodes at the most.
    MAX_DEPTH = 1024

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
# orjson itself, for what needs no second look; None where json stands in.
cdef object DUMPS = getattr(_json, "dumps", None)


cdef enum:
    # Objects of a class that are kept for the next message: a burst of in-flight requests.
    SPARE = 64


cdef struct Rule:
    # One field, as the code that runs for each message sees it. Every pointer is kept by its Row.
    const char* key             # ","name":" with the quotes of texts before and behind
    Py_ssize_t key_size         # without those quotes
    Py_ssize_t offset           # of its slot in the object
    Kind kind
    bint nullable
    bint required
    bint is_job_id
    bint is_result
    bint recurs                 # frame after frame has the same text
    PyObject* default           # what stands for it when it is missing; a dict is a new one
    PyObject* last              # that text
    PyObject* row
    Layout* nested              # of a MESSAGE


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


cdef Py_ssize_t slot_offset(Message probe, str name) except -1:
    """Where an object keeps an attribute: its attributes are an array of pointers behind its head."""
    cdef PyObject** slots = <PyObject**>(<char*><PyObject*>probe + sizeof(PyObject))
    cdef Py_ssize_t at
    cdef Py_ssize_t count = (type(probe).__basicsize__ - sizeof(PyObject)) // sizeof(PyObject*)
    mark = object()
    setattr(probe, name, mark)
    for at in range(count):
        if slots[at] == <PyObject*>mark:
            return sizeof(PyObject) + at * sizeof(PyObject*)
    raise ImportError(f"{type(probe).__name__}.{name} is not where it should be")


@cython.final
cdef class Schema:
    """One message class. There are five, for as long as the process lives."""

    cdef type cls
    cdef tuple rows
    cdef bytes head
    cdef Layout layout

    def __cinit__(self, type cls, str path, str wire_type="", **nested):
        twin = getattr(pure, cls.__name__)
        probe = cls.__new__(cls)
        self.cls = cls
        self.head = f'{{"type":"{wire_type}","payload":'.encode() if wire_type else b""
        self.rows = tuple([Row(field, path) for field in twin._fields])
        self.layout.cls = <PyTypeObject*>cls
        self.layout.head = PyBytes_AS_STRING(self.head)
        self.layout.head_size = PyBytes_GET_SIZE(self.head)
        self.layout.depth = 2 + path.count(".")
        self.layout.rules = <Rule*>PyMem_Calloc(len(self.rows), sizeof(Rule))
        if self.layout.rules is NULL:
            raise MemoryError
        self.layout.end = self.layout.rules
        for row in self.rows:
            self.add(row, probe, nested.get((<Row>row).name))
        if not FREE_THREADED:
            self.layout.cls.tp_free = keep
        describe_class(cls, pure.signature(twin._fields), twin.__doc__)

    cdef int add(self, Row row, Message probe, Schema nested) except -1:
        cdef Rule* rule = self.layout.end
        rule.key = PyBytes_AS_STRING(row.key)
        rule.key_size = PyBytes_GET_SIZE(row.key) - 2
        rule.offset = slot_offset(probe, row.name)
        rule.kind = KINDS[row.field.kind]
        rule.nullable = row.field.nullable
        rule.required = row.default is MISSING
        rule.is_job_id = row.name == "job_id"
        rule.is_result = row.name == "result"
        rule.recurs = row.name in ("protocol_version", "function_name", "queue_name", "worker_id")
        rule.default = <PyObject*>row.default
        Py_INCREF("")
        rule.last = <PyObject*>""
        rule.row = <PyObject*>row
        if nested is not None:
            rule.nested = &nested.layout
        self.layout.end += 1
        return 0


cdef inline PyObject** slot(Message message, Rule* rule) noexcept:
    return <PyObject**>(<char*><PyObject*>message + rule.offset)


cdef inline object get(Message message, Rule* rule):
    return <object>slot(message, rule)[0]


cdef inline void put(Message message, Rule* rule, object value) noexcept:
    cdef PyObject** place = slot(message, rule)
    cdef PyObject* old = place[0]
    Py_INCREF(value)
    place[0] = <PyObject*>value
    Py_XDECREF(old)


cdef Message new(Layout* layout):
    """A message of which every field is None."""
    cdef PyObject* made
    cdef Rule* rule = layout.rules
    if layout.spares == 0:
        return <Message>layout.cls.tp_new(<type><PyObject*>layout.cls, <PyObject*>NO_ARGUMENTS, NULL)
    layout.spares -= 1
    made = PyObject_Init(layout.spare[layout.spares], layout.cls)
    while rule < layout.end:
        Py_INCREF(None)
        (<PyObject**>(<char*>made + rule.offset))[0] = <PyObject*>None
        rule += 1
    PyObject_GC_Track(made)
    message = <Message>made
    Py_DECREF(message)  # the cast took one more
    return message


cdef void keep(void* gone) noexcept:
    """tp_free of the message classes: what new() uses again."""
    cdef Schema schema = find_schema(<object><PyObject*>Py_TYPE_AT(gone))
    if schema is None or schema.layout.spares == SPARE:
        PyObject_GC_Del(gone)
    else:
        schema.layout.spare[schema.layout.spares] = <PyObject*>gone
        schema.layout.spares += 1


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
@cython.trashcan(True)
cdef class ExecutionRequest(Message):
    pass


@cython.final
@cython.trashcan(True)
cdef class ExecutionError(Message):
    pass


cdef ExecutionOutcome outcome(object job_id, object request_id, object status):
    cdef ExecutionOutcome made = <ExecutionOutcome>new(&OUTCOME.layout)
    made.job_id = job_id
    made.request_id = request_id
    made.status = status
    return made


@cython.final
@cython.trashcan(True)
cdef class ExecutionOutcome(Message):
    @property
    def type(self):
        """The OutcomeType that `status` and `error.type` amount to."""
        status = OutcomeStatus(self.status)
        if status is OutcomeStatus.RETRY:
            return OutcomeType.RETRY_AFTER
        if status is not OutcomeStatus.ERROR:
            return OutcomeType(status.value)
        named = self.error.type if self.error is not None else None
        if named == OutcomeType.HANDLER_NOT_FOUND:
            return OutcomeType.HANDLER_NOT_FOUND
        return OutcomeType.CANCELLED if named == OutcomeType.CANCELLED else OutcomeType.FAILURE

    @classmethod
    def success(cls, job_id, request_id, result=None):
        """The job has completed with `result`."""
        made = outcome(job_id, request_id, SUCCESS)
        made.result = result
        return made

    @classmethod
    def failure(cls, job_id, request_id, message, *, type=None, code=None, details=None):
        """The job has failed; the orchestrator retries it by its policy."""
        made = outcome(job_id, request_id, OutcomeStatus.ERROR)
        made.error = ExecutionError(message=message, type=type, code=code, details=details)
        return made

    @classmethod
    def retry_after(cls, job_id, request_id, message, seconds=None):
        """The job wants to run again after `seconds`; None leaves the delay to the orchestrator."""
        made = outcome(job_id, request_id, OutcomeStatus.RETRY)
        made.error = ExecutionError(message=message)
        made.retry_after_seconds = seconds
        return made

    @classmethod
    def timeout(cls, job_id, request_id, message):
        """The job ran past its deadline; it is not retried."""
        made = outcome(job_id, request_id, OutcomeStatus.TIMEOUT)
        made.error = ExecutionError(message=message, type="timeout")
        return made

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

cdef dict TYPES = {"request": REQUEST, "response": OUTCOME, "cancel": CANCEL}

# ---- decoding --------------------------------------------------------------------------------------


cdef object scan_date_time(
    const unsigned char* text, const unsigned char* end, const unsigned char** stop
):
    """The datetime of an RFC 3339 text in UTC ("Z"), and where the text stops, `end` at the latest.

    None for everything else, at which the pure twin has to look.
    """
    cdef const unsigned char* at = text + 20
    cdef int year, month, day, hour, minute, second
    cdef int microsecond = 0
    cdef int digits
    if end - text < 20:
        return None
    if text[4] != c"-" or text[7] != c"-" or text[13] != c":" or text[16] != c":":
        return None
    if text[10] != c"T" and text[10] != c"t" and text[10] != c" ":
        return None
    year = number_of(text, 4)
    month = number_of(text + 5, 2)
    day = number_of(text + 8, 2)
    hour = number_of(text + 11, 2)
    minute = number_of(text + 14, 2)
    second = number_of(text + 17, 2)
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= days_in(year, month):
        return None
    if not (0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return None
    if text[19] == c".":
        while at < end and c"0" <= at[0] <= c"9":
            at += 1
        digits = <int>min(at - text - 20, 6)
        if digits == 0 or at == end:
            return None
        microsecond = number_of(text + 20, digits)
        while digits < 6:
            microsecond *= 10
            digits += 1
    else:
        at -= 1
    if at[0] != c"Z" and at[0] != c"z":
        return None
    stop[0] = at + 1
    return datetime_new(
        year, month, day, hour, minute, second, microsecond, <object>PyDateTime_TimeZone_UTC
    )


cdef inline int days_in(int year, int month) noexcept:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef object read_value(Rule* rule, object value):
    """The attribute for a decoded value of a field. Raises FieldError, ValueError."""
    cdef Kind kind = rule.kind
    cdef const unsigned char* text
    cdef const unsigned char* end
    cdef const unsigned char* stop
    if kind == ANY:
        return value
    if value is None and rule.nullable:
        return None
    if kind == STRING:
        if type(value) is str:
            return value
    elif kind == DATE_TIME:
        if type(value) is str:
            moment = None
            if PyUnicode_IS_COMPACT_ASCII(value):
                text = <const unsigned char*>PyUnicode_1BYTE_DATA(value)
                end = text + PyUnicode_GET_LENGTH(value)
                moment = scan_date_time(text, end, &stop)
                if moment is not None and stop != end:
                    raise ValueError
            return parse_date_time(value) if moment is None else moment
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
    cdef Message message = new(layout)
    cdef Rule* rule = layout.rules
    cdef Row row
    cdef PyObject* found
    value = None
    try:
        while rule < layout.end:
            found = PyDict_GetItemWithError(source, (<Row>rule.row).name)
            if found is not NULL:
                value = <object>found
            elif rule.kind == OBJECT:
                value = {}
            else:
                value = <object>rule.default
            put(message, rule, read_value(rule, value))
            rule += 1
    except ValueError:
        row = <Row>rule.row
        raise row.field.refuse(value) from None
    except FieldError as error:
        error.path = f"{(<Row>rule.row).name}.{error.path}"
        raise
    return message


cdef enum:
    # Copying a document of this size is cheaper than a memoryview.
    SMALL = 4096
    # In a payload of more than this the envelope is not worth looking at.
    LARGE = 16384


cdef object load(const unsigned char* text, Py_ssize_t size):
    """The value of one JSON document. Raises ValueError."""
    if size <= SMALL:
        return loads(PyBytes_FromStringAndSize(<const char*>text, size))
    view = PyMemoryView_FromMemory(<char*>text, size, PyBUF_READ)
    try:
        return loads(view)
    finally:
        view.release()  # a traceback may keep it longer than the bytes live


cdef Message decode_payload(const unsigned char* payload, Py_ssize_t size):
    cdef Schema schema
    if size <= LARGE:
        message = recognise(payload, size)
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


# ---- the layout that the orchestrator writes -------------------------------------------------------
#
# Every key in its place, no spaces, text without escapes: then the fields are taken straight from the
# bytes, and only `params`, `result` and `details` are left to the JSON library. Each function gives 0
# for anything else, at which decode_payload() looks from the beginning. What is taken is a sequence
# of complete JSON values between literal keys and brackets, and JSON can be read in one way only: so
# it is what the general way reads.

cdef struct Cursor:
    const unsigned char* at
    const unsigned char* end
    PyObject* job_id            # owned; a context repeats it


cdef inline bint match(Cursor* cursor, const char* text, Py_ssize_t size) noexcept:
    """Steps over `text`; False if something else is there."""
    if cursor.end - cursor.at < size or not same(cursor.at, text, size):
        return False
    cursor.at += size
    return True


cdef Message recognise(const unsigned char* payload, Py_ssize_t size):
    cdef Cursor cursor
    cdef Layout* layout
    cdef Message message
    cursor.at = payload
    cursor.end = payload + size
    cursor.job_id = NULL
    if match(&cursor, REQUEST.layout.head, REQUEST.layout.head_size):
        layout = &REQUEST.layout
    elif match(&cursor, OUTCOME.layout.head, OUTCOME.layout.head_size):
        layout = &OUTCOME.layout
    elif match(&cursor, CANCEL.layout.head, CANCEL.layout.head_size):
        layout = &CANCEL.layout
    else:
        return None
    message = new(layout)
    try:
        if take_fields(&cursor, layout, message) and match(&cursor, b"}", 1):
            if cursor.at == cursor.end:
                return message
        return None
    finally:
        Py_XDECREF(cursor.job_id)


cdef int take_fields(Cursor* cursor, Layout* layout, Message message) except -1:
    cdef Rule* rule = layout.rules
    cdef Py_ssize_t skip = 1  # the comma, before the first
    if not match(cursor, b"{", 1):
        return 0
    while rule < layout.end:
        if match(cursor, rule.key + 1 + skip, rule.key_size - skip):
            skip = 0
            if not take_value(cursor, layout, rule, message):
                return 0
        elif rule.required or rule.kind == OBJECT:
            return 0
        elif rule.default is not <PyObject*>None:
            put(message, rule, <object>rule.default)
        rule += 1
    return match(cursor, b"}", 1)


cdef int take_value(Cursor* cursor, Layout* layout, Rule* rule, Message message) except -1:
    cdef Kind kind = rule.kind
    cdef const unsigned char* start = cursor.at
    cdef const unsigned char* stop
    if start == cursor.end:
        return 0
    if rule.nullable and kind != ANY and start[0] == c"n":
        return match(cursor, b"null", 4)
    if kind == STRING or kind == STATUS or kind == DATE_TIME:
        if start[0] != c'"':
            return 0
        start += 1
        if kind == DATE_TIME:
            value = scan_date_time(start, cursor.end, &stop)
            if value is None:
                return 0
        else:
            stop = plain_end(start, cursor.end)
        if stop == cursor.end or stop[0] != c'"':
            return 0
        cursor.at = stop + 1
        if kind == STRING:
            value = text_of(cursor, rule, start, stop - start)
        elif kind == STATUS:
            if same_text(SUCCESS, start, stop - start):
                value = SUCCESS
            else:
                value = STATUSES.get(ascii_text(start, stop - start))
    elif kind == OBJECT:
        if start[0] != c"{" or rule + 1 == layout.end:
            return 0
        stop = before(rule + 1, start, cursor.end)
        if stop is NULL:
            return 0
        value = slice_of(cursor, layout, start, stop)
        if type(value) is not dict:
            return 0
    elif kind == ANY:
        # It reaches to the brackets at the end: the last field of the last object.
        if cursor.end - start <= layout.depth:
            return 0
        value = slice_of(cursor, layout, start, cursor.end - layout.depth)
        if value is NOTHING:
            return 0
        put(message, rule, value)
        return 1
    elif kind == MESSAGE:
        value = new(rule.nested)
        if not take_fields(cursor, rule.nested, value):
            return 0
    elif kind == INTEGER:
        value = take_integer(cursor)
    elif kind == BOOLEAN:
        value = True if match(cursor, b"true", 4) else False
        if value is False and not match(cursor, b"false", 5):
            return 0
    elif kind == STRINGS:
        value = take_strings(cursor)
    else:
        return 0
    if value is None:
        return 0
    put(message, rule, value)
    return 1


cdef inline str ascii_text(const unsigned char* start, Py_ssize_t size):
    cdef str text = PyUnicode_New(size, 127)
    memcpy(PyUnicode_1BYTE_DATA(text), start, size)
    return text


cdef inline bint same_text(object known, const unsigned char* start, Py_ssize_t size) noexcept:
    """Whether ASCII text that was made here is that of the bytes."""
    if PyUnicode_GET_LENGTH(known) != size:
        return False
    return same(start, PyUnicode_1BYTE_DATA(known), size)


cdef str text_of(Cursor* cursor, Rule* rule, const unsigned char* start, Py_ssize_t size):
    """A str for plain text: an old one where a frame repeats itself or the frame before."""
    cdef str text
    if rule.recurs:
        if same_text(<str>rule.last, start, size):
            return <str>rule.last
        text = ascii_text(start, size)
        if size <= 64 and not FREE_THREADED:
            Py_INCREF(text)
            Py_XDECREF(rule.last)
            rule.last = <PyObject*>text
        return text
    if not rule.is_job_id:
        return ascii_text(start, size)
    if cursor.job_id is not NULL and same_text(<str>cursor.job_id, start, size):
        return <str>cursor.job_id
    text = ascii_text(start, size)
    Py_INCREF(text)
    Py_XDECREF(cursor.job_id)
    cursor.job_id = <PyObject*>text
    return text


cdef const unsigned char* before(
    Rule* rule, const unsigned char* start, const unsigned char* end
) noexcept:
    """Where the last object of that key seems to begin, with its comma; NULL if none does.

    If it only looks like it, what is before it is no JSON.
    """
    while True:
        end = last_brace(start, end)
        if end is NULL or end - start < rule.key_size:
            return NULL
        if same(end - rule.key_size, rule.key + 1, rule.key_size):
            return end - rule.key_size


cdef object slice_of(
    Cursor* cursor, Layout* layout, const unsigned char* start, const unsigned char* stop
):
    """The value of the JSON between, and steps over it; NOTHING if there is none."""
    cdef Py_ssize_t levels = MAX_DEPTH - layout.depth
    cursor.at = stop
    if stop - start == 2 and start[0] == c"{" and start[1] == c"}":
        return {}
    # The objects around it count, too: where it may be too deep, the general way decides.
    if stop - start > 2 * levels and openers(start, stop) > levels:
        return NOTHING
    try:
        return load(start, stop - start)
    except ValueError:
        return NOTHING


cdef object take_integer(Cursor* cursor):
    cdef const unsigned char* start = cursor.at
    cdef uint64_t number = 0
    while cursor.at < cursor.end and c"0" <= cursor.at[0] <= c"9" and cursor.at - start < 11:
        number = number * 10 + (cursor.at[0] - c"0")
        cursor.at += 1
    if cursor.at == start or number > 0xFFFFFFFF:
        return None
    if start[0] == c"0" and cursor.at - start > 1:
        return None
    return number


cdef dict take_strings(Cursor* cursor):
    """A flat object of plain texts."""
    cdef dict strings = {}
    cdef const unsigned char* stop
    cdef str key = None
    if not match(cursor, b"{", 1):
        return None
    if match(cursor, b"}", 1):
        return strings
    while True:
        if not match(cursor, b'"', 1):
            return None
        stop = plain_end(cursor.at, cursor.end)
        text = ascii_text(cursor.at, stop - cursor.at)
        cursor.at = stop
        if not match(cursor, b'"', 1):
            return None
        if key is None:
            key = text
            if not match(cursor, b":", 1):
                return None
            continue
        strings[key] = text
        key = None
        if match(cursor, b"}", 1):
            return strings
        if not match(cursor, b",", 1):
            return None


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


cdef inline int writes_none(Layout* layout, Rule* rule, Message message) except -1:
    """Whether the field is written as null when it is None; otherwise it is left out."""
    if layout == &CONTEXT.layout:
        return True
    return rule.is_result and (
        (<ExecutionOutcome>message).status is SUCCESS
        or (<ExecutionOutcome>message).status == SUCCESS
    )


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
    if max_frame_size is not MAX_FRAME_SIZE:
        limit = checked_limit(max_frame_size)
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


def decode_frame(frame, /):
    """The message in one whole frame, header included.

    Raises:
        FrameError: `frame` is not one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    cdef Py_buffer view
    cdef const unsigned char* start
    if PyBytes_CheckExact(frame):
        start = <const unsigned char*>PyBytes_AS_STRING(frame)
        check_whole(start, PyBytes_GET_SIZE(frame))
        return decode_payload(start + HEADER_LEN, PyBytes_GET_SIZE(frame) - HEADER_LEN)
    acquire(frame, &view)
    try:
        check_whole(<const unsigned char*>view.buf, view.len)
        return decode_payload(<const unsigned char*>view.buf + HEADER_LEN, view.len - HEADER_LEN)
    finally:
        PyBuffer_Release(&view)


cdef class MessageDecoder(StreamDecoder):
    def __next__(self):
        cdef const unsigned char* payload
        cdef Py_ssize_t size
        if not self.next_payload(&payload, &size):
            raise StopIteration
        self.busy = True
        try:
            return decode_payload(payload, size)
        finally:
            self.busy = False
            self.settle()


describe_class(MessageDecoder, f"max_frame_size={MAX_FRAME_SIZE}", pure.MessageDecoder.__doc__)
