# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, embedsignature.format=clinic, auto_pickle=False

"""Messages: the objects that travel in frames, and their JSON.

The wire table is the pure twin's: names, order, types and defaults of the fields are read from its
annotated classes when this module is imported, and become the schemas that everything here runs over.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport (
    PyDateTime_Check,
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
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM
from cpython.unicode cimport PyUnicode_GET_LENGTH, PyUnicode_1BYTE_DATA
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, strlen

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
    bint PyUnicode_IS_COMPACT_ASCII(object)

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
cdef object SUCCESS = OutcomeStatus.SUCCESS
cdef object loads = _json.loads
cdef object encode = _json.encode


@cython.final
cdef class Row:
    """One field: what pure.Field says of it, and where and how it is stored and written."""

    cdef object field           # the pure twin's, which words the errors
    cdef str name
    cdef object default         # what stands for it when it is missing; MISSING where that is refused
    cdef Kind kind
    cdef bint nullable
    cdef Schema nested          # of a MESSAGE
    cdef bytes key              # b',"name":'
    cdef Py_ssize_t offset      # of its slot in the object
    cdef str path               # where it stands in a frame, for the errors
    cdef object check           # raises ValueError for what it does not take

    def __cinit__(self, field, Schema nested, Message probe, str path):
        self.field = field
        self.path = f"{path}.{field.name}"
        self.check = pure.KINDS[field.kind].write
        self.name = field.name
        self.default = field.default
        self.kind = KINDS[field.kind]
        self.nullable = field.nullable
        self.nested = nested
        self.key = f',"{field.name}":'.encode()
        self.offset = slot_offset(probe, self.name)


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
    """One message class: its rows in the order of the wire."""

    cdef type cls
    cdef object pure            # the pure twin's class
    cdef tuple rows
    cdef bytes head             # what stands before its fields in a frame; None where it is nested
    cdef int levels             # containers that may be nested in one another inside a field

    def __cinit__(self, type cls, path, wire_type=None, **nested):
        self.cls = cls
        self.pure = getattr(pure, cls.__name__)
        self.levels = MAX_NESTING - 2 - path.count(".")
        if wire_type is not None:
            self.head = f'{{"type":"{wire_type}","payload":'.encode()
        probe = cls.__new__(cls)
        self.rows = tuple(
            Row(field, nested.get(field.name), probe, path) for field in self.pure._fields
        )
        describe_class(cls, pure.signature(self.pure._fields), self.pure.__doc__)


cdef inline PyObject** slot(Message message, Row row) noexcept:
    return <PyObject**>(<char*><PyObject*>message + row.offset)


cdef inline object get(Message message, Row row):
    return <object>slot(message, row)[0]


cdef inline void put(Message message, Row row, object value) noexcept:
    cdef PyObject** place = slot(message, row)
    cdef PyObject* old = place[0]
    Py_INCREF(value)
    place[0] = <PyObject*>value
    Py_XDECREF(old)


cdef Schema schema_of(object cls):
    if cls is ExecutionOutcome:
        return OUTCOME
    if cls is ExecutionRequest:
        return REQUEST
    if cls is ExecutionContext:
        return CONTEXT
    if cls is ExecutionError:
        return ERROR
    if cls is CancelRequest:
        return CANCEL
    raise TypeError(f"expected a message, got {cls.__name__}")


cdef class Message:
    """What the message classes share: they are values, mutable and without a hash."""

    __match_args__ = ()

    def __init__(self, **values):
        cdef Schema schema = schema_of(type(self))
        cdef Row row
        cdef Py_ssize_t used = 0
        for row in schema.rows:
            if row.name in values:
                value = values[row.name]
                used += 1
            elif row.default is MISSING:
                raise TypeError(
                    f"{schema.cls.__name__}() is missing the keyword-only argument {row.name!r}"
                )
            else:
                value = None if row.kind == OBJECT else row.default
            put(self, row, {} if value is None and row.kind == OBJECT else value)
        if used != len(values):
            known = {row.name for row in schema.rows}
            wrong = next(name for name in values if name not in known)
            raise TypeError(
                f"{schema.cls.__name__}() got an unexpected keyword argument {wrong!r}"
            )

    def __eq__(self, other):
        cdef Row row
        if type(other) is not type(self):
            return NotImplemented
        for row in schema_of(type(self)).rows:
            if get(self, row) != get(other, row):
                return False
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
    return {row.name: get(message, row) for row in schema_of(type(message)).rows}


@cython.final
cdef class ExecutionContext(Message):
    pass


@cython.final
cdef class ExecutionRequest(Message):
    pass


@cython.final
cdef class ExecutionError(Message):
    pass


cdef ExecutionOutcome outcome(object job_id, object request_id, object status):
    cdef ExecutionOutcome made = ExecutionOutcome.__new__(ExecutionOutcome)
    made.job_id = job_id
    made.request_id = request_id
    made.status = status
    return made


@cython.final
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


cdef object read_date_time(const unsigned char* text, Py_ssize_t size):
    """The datetime of an RFC 3339 text in UTC ("Z"); None for what the pure twin has to look at."""
    cdef const unsigned char* places = b"0000-00-00T00:00:00"
    cdef int at, year, month, day, hour, minute, second
    cdef int microsecond = 0
    cdef int unit = 100_000
    if size < 20 or (text[size - 1] | 0x20) != c"z":
        return None
    for at in range(19):
        if places[at] == c"0":
            if not c"0" <= text[at] <= c"9":
                return None
        elif at == 10:
            if text[at] != c"T" and text[at] != c"t" and text[at] != c" ":
                return None
        elif text[at] != places[at]:
            return None
    if size > 20:
        if text[19] != c"." or size == 21:
            return None
        for at in range(20, <int>size - 1):
            if not c"0" <= text[at] <= c"9":
                return None
            microsecond += (text[at] - c"0") * unit
            unit //= 10
    year = two(text) * 100 + two(text + 2)
    month = two(text + 5)
    day = two(text + 8)
    hour = two(text + 11)
    minute = two(text + 14)
    second = two(text + 17)
    if not (1 <= year and 1 <= month <= 12 and 1 <= day <= days_in(year, month)):
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    return datetime_new(
        year, month, day, hour, minute, second, microsecond, <object>PyDateTime_TimeZone_UTC
    )


cdef inline int two(const unsigned char* digits) noexcept:
    return (digits[0] - c"0") * 10 + (digits[1] - c"0")


cdef inline int days_in(int year, int month) noexcept:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef object read_value(Row row, object value):
    """The attribute for a decoded value of the row's field. Raises FieldError, ValueError."""
    cdef Kind kind = row.kind
    if kind == ANY:
        return value
    if value is None and row.nullable:
        return None
    if kind == STRING:
        if type(value) is str:
            return value
    elif kind == DATE_TIME:
        if type(value) is str:
            moment = None
            if PyUnicode_IS_COMPACT_ASCII(value):
                moment = read_date_time(
                    <const unsigned char*>PyUnicode_1BYTE_DATA(value), PyUnicode_GET_LENGTH(value)
                )
            return parse_date_time(value) if moment is None else moment
    elif kind == INTEGER:
        if type(value) is int and 0 <= value <= 0xFFFFFFFF:
            return value
    elif kind == OBJECT:
        if type(value) is dict:
            return value
    elif kind == STRINGS:
        if type(value) is dict:
            for text in (<dict>value).values():
                if type(text) is not str:
                    raise ValueError
            return value
    elif kind == MESSAGE:
        if type(value) is dict:
            return read_fields(row.nested, value)
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


cdef Message read_fields(Schema schema, dict source):
    """The message whose fields are in `source`. Raises FieldError."""
    cdef Message message = schema.cls.__new__(schema.cls)
    cdef Row row
    cdef PyObject* found
    for row in schema.rows:
        found = PyDict_GetItemWithError(source, row.name)
        if found is not NULL:
            value = <object>found
        elif row.kind == OBJECT and row.default is not MISSING:
            value = {}
        else:
            value = row.default
        try:
            value = read_value(row, value)
        except ValueError:
            raise row.field.refuse(value) from None
        except FieldError as error:
            error.path = f"{row.name}.{error.path}"
            raise
        put(message, row, value)
    return message


cdef enum:
    # Copying a payload of this size is cheaper than a memoryview.
    SMALL = 4096


cdef object load(const unsigned char* text, Py_ssize_t size):
    """The value of one JSON document. Raises ValueError."""
    if size <= SMALL:
        return loads(PyBytes_FromStringAndSize(<const char*>text, size))
    return loads(PyMemoryView_FromMemory(<char*>text, size, PyBUF_READ))


cdef Message decode_payload(const unsigned char* payload, Py_ssize_t size):
    cdef Schema schema
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
            return read_fields(schema, fields)
        except FieldError as error:
            reason = error.reason
            path = f"payload.{error.path}"
    raise pure.message_error(reason, payload[:size], path, fields)


# ---- encoding --------------------------------------------------------------------------------------

cdef enum:
    # Enough for every field of a request and its context, each of a key, two quotes and a value.
    MAX_PIECES = 96
    # Date-times, of 27 bytes, and integers, of 10.
    SCRATCH = 128


cdef struct Writer:
    # The payload, piece by piece; it is put together once its size is known.
    const char* data[MAX_PIECES]
    Py_ssize_t sizes[MAX_PIECES]
    int count
    Py_ssize_t size
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
    cdef bytes body = encode(value, levels, path)
    own(writer, body)
    return piece(writer, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))


cdef inline bint is_plain(const unsigned char* text, Py_ssize_t size) noexcept:
    """Whether ASCII text stands in JSON as it is."""
    cdef Py_ssize_t at
    for at in range(size):
        if text[at] < 0x20 or text[at] == c'"' or text[at] == c"\\":
            return False
    return True


cdef int write_string(Writer* writer, object value, str path) except -1:
    cdef const unsigned char* text
    cdef Py_ssize_t size
    if PyUnicode_IS_COMPACT_ASCII(value):
        text = <const unsigned char*>PyUnicode_1BYTE_DATA(value)
        size = PyUnicode_GET_LENGTH(value)
        if is_plain(text, size):
            own(writer, value)
            piece(writer, b'"', 1)
            piece(writer, <const char*>text, size)
            return piece(writer, b'"', 1)
    return write_json(writer, value, 0, path)


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
    if PyDateTime_DATE_GET_TZINFO(moment) != PyDateTime_TimeZone_UTC:
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


cdef int write_value(Writer* writer, Schema schema, Row row, object value) except -1:
    """Raises EncodeError, and ValueError for a value that the field does not take."""
    cdef Kind kind = row.kind
    cdef char* start
    if kind == STRING:
        if isinstance(value, str):
            return write_string(writer, value, row.path)
    elif kind == STATUS:
        status = (value if type(value) is OutcomeStatus else OutcomeStatus(value)).value
        return write_string(writer, status, row.path)
    elif kind == MESSAGE:
        if type(value) is row.nested.cls:
            return write_fields(writer, row.nested, value)
    elif kind == DATE_TIME:
        if PyDateTime_Check(value):
            return write_date_time(writer, value)
    elif kind == INTEGER:
        if isinstance(value, int) and type(value) is not bool and 0 <= value <= 0xFFFFFFFF:
            start = digits(writer, value, 1)
            return piece(writer, start, writer.scratch + writer.used - start)
    elif kind == BOOLEAN:
        if type(value) is bool:
            return piece(writer, b"true", 4) if value else piece(writer, b"false", 5)
    else:
        row.check(value)
        return write_json(writer, value, schema.levels, row.path)
    raise ValueError


cdef int write_fields(Writer* writer, Schema schema, Message message) except -1:
    cdef Row row
    cdef Py_ssize_t skip = 1  # the comma, before the first
    piece(writer, b"{", 1)
    for row in schema.rows:
        value = get(message, row)
        if value is None and row.nullable:
            if not schema.pure._writes_none(message, row.name):
                continue
        piece(writer, PyBytes_AS_STRING(row.key) + skip, PyBytes_GET_SIZE(row.key) - skip)
        skip = 0
        if value is None and row.nullable:
            piece(writer, b"null", 4)
            continue
        try:
            write_value(writer, schema, row, value)
        except EncodeError:
            raise
        except ValueError:
            raise row.field.refuse_to_send(value, row.path) from None
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
    cdef uint32_t limit = checked_limit(max_frame_size)
    cdef Writer writer
    cdef Schema schema = None
    cdef char* out
    cdef int at
    if isinstance(message, Message):
        schema = schema_of(type(message))
    if schema is None or schema.head is None:
        raise TypeError(f"expected a RunnerMessage, got {type(message).__name__}")
    writer.count = writer.used = writer.owns = 0
    writer.size = 0
    try:
        piece(&writer, PyBytes_AS_STRING(schema.head), PyBytes_GET_SIZE(schema.head))
        write_fields(&writer, schema, message)
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


def decode_frame(frame):
    """The message in one whole frame, header included.

    Raises:
        FrameError: `frame` is not one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    cdef Py_buffer view
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
