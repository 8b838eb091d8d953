"""Messages: the objects that travel in frames, and their JSON.

The annotated classes are the wire table: names, order, types and defaults of the fields are read
from them, here and by the compiled twin.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from enum import StrEnum

from .._json import encode, loads
from ..errors import MISSING, EncodeError, MessageError, describe
from .frames import MAX_FRAME_SIZE, StreamDecoder, checked_limit, pack_frame, whole_payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeAlias

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda metaclass: metaclass


__all__ = [
    "MAX_NESTING",
    "PROTOCOL_VERSION",
    "CancelRequest",
    "ExecutionContext",
    "ExecutionError",
    "ExecutionOutcome",
    "ExecutionRequest",
    "MessageDecoder",
    "OutcomeStatus",
    "OutcomeType",
    "RunnerMessage",
    "decode_frame",
    "encode_frame",
]

PROTOCOL_VERSION: str = "2"

# Nested containers in the whole document, the envelope included: the reference's parser
# (serde_json) refuses the 128th.
MAX_NESTING: int = 127

_MAX_ATTEMPT = 2**32 - 1


class OutcomeStatus(StrEnum):
    """The word in a response's `status`."""

    SUCCESS = "success"
    RETRY = "retry"
    TIMEOUT = "timeout"
    ERROR = "error"


class OutcomeType(StrEnum):
    """What a response's `status` and `error.type` amount to for the orchestrator."""

    SUCCESS = "success"
    FAILURE = "failure"
    HANDLER_NOT_FOUND = "handler_not_found"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    RETRY_AFTER = "retry_after"


class FieldError(Exception):
    """A decoded value that its field does not take; `path` grows on the way out."""

    def __init__(self, reason: str, path: str) -> None:
        self.reason = reason
        self.path = path


class Field:
    """One row of the wire table.

    Attributes:
        name: its key in the JSON object.
        kind: its annotation without `| None`, a key of KINDS.
        nullable: whether null is accepted, and None can be sent.
        default: what stands for it when it is missing; MISSING where that is refused.
    """

    __slots__ = ("default", "kind", "name", "nullable")

    def __init__(self, name: str, annotation: str, default: Any) -> None:
        self.name = name
        self.kind = annotation.removesuffix(" | None")
        self.nullable = self.kind != annotation or annotation == "Any"
        self.default = default

    def expected(self) -> str:
        """What the field takes, in the words of the errors."""
        return KINDS[self.kind].words + (" or null" if self.nullable else "")

    def refuse(self, value: Any) -> FieldError:
        """The error for a decoded `value` that is of another type or range."""
        return FieldError(f"expected {self.expected()}, got {describe(value)}", self.name)

    def refuse_to_send(self, value: Any, path: str) -> EncodeError:
        """The error for a `value` that a message holds and JSON or the orchestrator cannot take."""
        return EncodeError(f"expected {self.expected()}, got {describe(value)}", path)


@dataclass_transform(kw_only_default=True)
class _MessageType(type):
    """Makes slots, a constructor and the wire table from the annotations of a message class."""

    _fields: tuple[Field, ...]

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _MessageType:
        if any(getattr(base, "_fields", ()) for base in bases):
            raise TypeError(f"type {bases[0].__name__!r} is not an acceptable base type")
        annotations: dict[str, str] = {
            key: text
            for key, text in namespace.get("__annotations__", {}).items()
            if not text.startswith("ClassVar")
        }
        fields = tuple(
            Field(key, text, namespace.pop(key, MISSING)) for key, text in annotations.items()
        )
        namespace["_fields"] = fields
        namespace["__slots__"] = tuple(annotations)
        if fields:
            namespace["__init__"] = _constructor(name, fields)
        return super().__new__(mcs, name, bases, namespace)


def signature(fields: tuple[Field, ...]) -> str:
    """The constructor's arguments; a default of {} is a fresh dict each time."""
    return "*, " + ", ".join(
        field.name
        if field.default is MISSING
        else f"{field.name}={None if field.default == {} else field.default!r}"
        for field in fields
    )


def _constructor(class_name: str, fields: tuple[Field, ...]) -> Callable[..., None]:
    lines = [
        f" self.{field.name} = {field.name}"
        + (f" if {field.name} is not None else {{}}" if field.default == {} else "")
        for field in fields
    ]
    source = "\n".join((f"def __init__(self, {signature(fields)}):", *lines))
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    constructor: Callable[..., None] = namespace["__init__"]
    constructor.__qualname__ = f"{class_name}.__init__"
    return constructor


class _Message(metaclass=_MessageType):
    """What the message classes share: they are values, mutable and without a hash."""

    _fields: ClassVar[tuple[Field, ...]]

    __match_args__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            getattr(self, field.name) == getattr(other, field.name) for field in self._fields
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in self._fields)
        return f"{type(self).__name__}({fields})"

    def _writes_none(self, name: str) -> bool:
        """Whether the field is written as null when it is None; otherwise it is left out."""
        return False

    def __replace__(self, **changes: Any) -> Self:
        return type(self)(**{**_values_of(self), **changes})

    def __copy__(self) -> Self:
        return self.__replace__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy

        return type(self)(**deepcopy(_values_of(self), memo))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        """Pickles come back as the twin that runs where they are loaded."""
        return restore, (type(self).__name__, _values_of(self))


def _values_of(message: _Message) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message._fields}


def restore(name: str, values: dict[str, Any]) -> RunnerMessage:
    """A pickled message, as the twin that runs here."""
    import rrq_fastwire

    message: RunnerMessage = getattr(rrq_fastwire, name)(**values)
    return message


class ExecutionContext(_Message):
    """When, where from and how often a job runs: the `context` of an ExecutionRequest.

    Attributes are the fields of the wire, and the keyword arguments of the constructor.
    `attempt` counts from 1. `enqueue_time` and `deadline` are aware datetimes in UTC, truncated to
    microseconds. `worker_id` names the orchestrator's worker.
    """

    job_id: str
    attempt: int
    enqueue_time: datetime
    queue_name: str
    deadline: datetime | None = None
    trace_context: dict[str, str] | None = None
    correlation_context: dict[str, str] | None = None  # not sent by orchestrators up to 0.9.18
    worker_id: str | None = None

    def _writes_none(self, name: str) -> bool:
        return True


class ExecutionRequest(_Message):
    """One job to run: what the orchestrator sends to a runner.

    Attributes are the fields of the wire, and the keyword arguments of the constructor.
    A runner answers with an ExecutionOutcome of the same `request_id` and `job_id`. The value of
    `protocol_version` is not checked by decoding.
    """

    protocol_version: str = "2"
    request_id: str
    job_id: str
    function_name: str
    params: dict[str, Any] = {}
    context: ExecutionContext


class ExecutionError(_Message):
    """Why a job did not succeed: the `error` of an ExecutionOutcome.

    Attributes are the fields of the wire, and the keyword arguments of the constructor.
    The orchestrator knows the types "handler_not_found" and "cancelled"; others are the
    application's own. `details` is any JSON value.
    """

    message: str
    type: str | None = None
    code: str | None = None
    details: Any = None


class ExecutionOutcome(_Message):
    """How a job ended: a runner's answer to an ExecutionRequest.

    Attributes are the fields of the wire, and the keyword arguments of the constructor; the class
    methods build the outcomes that the orchestrator tells apart. `result` is any JSON value.
    `retry_after_seconds` None leaves the delay to the orchestrator.
    """

    job_id: str | None = None
    request_id: str | None = None
    status: OutcomeStatus
    result: Any = None
    error: ExecutionError | None = None
    retry_after_seconds: float | None = None

    def _writes_none(self, name: str) -> bool:
        return name == "result" and self.status == OutcomeStatus.SUCCESS

    @property
    def type(self) -> OutcomeType:
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
    def success(cls, job_id: str, request_id: str, result: Any = None) -> Self:
        """The job has completed with `result`."""
        return cls(
            job_id=job_id, request_id=request_id, status=OutcomeStatus.SUCCESS, result=result
        )

    @classmethod
    def failure(
        cls,
        job_id: str,
        request_id: str,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        details: Any = None,
    ) -> Self:
        """The job has failed; the orchestrator retries it by its policy."""
        error = ExecutionError(message=message, type=type, code=code, details=details)
        return cls(job_id=job_id, request_id=request_id, status=OutcomeStatus.ERROR, error=error)

    @classmethod
    def retry_after(
        cls, job_id: str, request_id: str, message: str, seconds: float | None = None
    ) -> Self:
        """The job wants to run again after `seconds`; None leaves the delay to the orchestrator."""
        return cls(
            job_id=job_id,
            request_id=request_id,
            status=OutcomeStatus.RETRY,
            error=ExecutionError(message=message),
            retry_after_seconds=seconds,
        )

    @classmethod
    def timeout(cls, job_id: str, request_id: str, message: str) -> Self:
        """The job ran past its deadline; it is not retried."""
        error = ExecutionError(message=message, type="timeout")
        return cls(job_id=job_id, request_id=request_id, status=OutcomeStatus.TIMEOUT, error=error)

    @classmethod
    def cancelled(cls, job_id: str, request_id: str, message: str = "Job cancelled") -> Self:
        """The job was cancelled before it ended."""
        return cls.failure(job_id, request_id, message, type="cancelled")

    @classmethod
    def handler_not_found(cls, job_id: str, request_id: str, message: str) -> Self:
        """The runner has no handler of the job's name; it is not retried."""
        return cls.failure(job_id, request_id, message, type="handler_not_found")


class CancelRequest(_Message):
    """The orchestrator wants a job ended.

    Attributes are the fields of the wire, and the keyword arguments of the constructor.
    `request_id` None means every request of `job_id` in flight.
    """

    protocol_version: str = "2"
    job_id: str
    request_id: str | None = None
    hard_kill: bool = False


RunnerMessage: TypeAlias = ExecutionRequest | ExecutionOutcome | CancelRequest

_TYPES: dict[str, type[RunnerMessage]] = {
    "request": ExecutionRequest,
    "response": ExecutionOutcome,
    "cancel": CancelRequest,
}
_TYPE_NAMES = {cls: name for name, cls in _TYPES.items()}

_STATUSES = {status.value: status for status in OutcomeStatus}

# RFC 3339, and a space for the T; fromisoformat() alone takes far more than that.
_TIME = r"(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d+)?)"
_UTC = re.compile(_TIME.replace("[Tt ]", "T") + "Z", re.ASCII).fullmatch
# Compiled when it is used, which is rare, and not when the package is imported.
_DATE_TIME = _TIME + r"(?:([Zz])|[+-](?:[01]\d|2[0-3]):[0-5]\d)"


def parse_date_time(text: str) -> datetime:
    """An RFC 3339 date-time in UTC, truncated to microseconds. Raises ValueError."""
    if _UTC(text):
        return datetime.fromisoformat(text)
    match = re.fullmatch(_DATE_TIME, text, re.ASCII)
    if match is None:
        raise ValueError(text)
    if match[3]:
        return datetime.fromisoformat(f"{match[1]}T{match[2]}Z")
    try:
        return datetime.fromisoformat(text).astimezone(timezone.utc)
    except OverflowError as error:
        raise ValueError(text) from error


def format_date_time(moment: datetime) -> str:
    """A datetime as the orchestrator writes it: in UTC, the fraction of 0, 3 or 6 digits.

    Raises ValueError if it is naive, or its UTC is not a datetime.
    """
    try:
        offset = datetime.utcoffset(moment)
        text = datetime.isoformat(datetime.astimezone(moment, timezone.utc)).removesuffix("+00:00")
    except Exception as error:  # a tzinfo is anybody's code
        raise ValueError(type(error).__name__) from error
    if offset is None:
        raise ValueError("naive")
    return (text[:-3] if "." in text and text.endswith("000") else text) + "Z"


class Kind:
    """How the values of one type of field are read and written.

    Attributes:
        words: what it takes, in the errors.
        types: the types that JSON decodes it to; () for any.
        read: turns a decoded value into the attribute, raising ValueError; None if it is the same.
        write: turns the attribute into what JSON encodes, raising ValueError.
        same: the type of attributes that JSON encodes as they are, without `write`.
    """

    __slots__ = ("read", "same", "types", "words", "write")

    def __init__(
        self,
        words: str,
        types: tuple[type, ...],
        read: Callable[[Any], Any] | None = None,
        write: Callable[[Any], Any] | None = None,
        same: type | None = None,
    ) -> None:
        self.words = words
        self.types = types
        self.read = read
        self.write = write or _instance(*types)
        self.same = same


def _instance(*types: type) -> Callable[[Any], Any]:
    def write(value: Any) -> Any:
        # A bool is an int, but not on the wire.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(value)
        return value

    return write


def _number(value: Any) -> int | float:
    number: int | float = _instance(int, float)(value)
    return int.__index__(number) if isinstance(number, int) else float.__float__(number)


def _read_attempt(value: int) -> int:
    if 0 <= value <= _MAX_ATTEMPT:
        return value
    raise ValueError(value)


def _read_strings(value: dict[str, Any]) -> dict[str, str]:
    for text in value.values():
        if type(text) is not str:
            raise ValueError(text)
    return value


def _write_strings(value: Any) -> dict[str, str]:
    strings: dict[str, str] = _instance(dict)(value)
    for text in (*strings, *strings.values()):
        _instance(str)(text)
    return strings


KINDS: dict[str, Kind] = {
    # Subclasses are written as what they are underneath, a (str, Enum) as its text.
    "str": Kind("a string", (str,), None, lambda value: str.__str__(_instance(str)(value)), str),
    "int": Kind(
        f"an integer from 0 to {_MAX_ATTEMPT}",
        (int,),
        _read_attempt,
        lambda value: _read_attempt(int.__index__(_instance(int)(value))),
    ),
    "float": Kind("a number", (float, int), float, _number, float),
    "bool": Kind("true or false", (bool,), same=bool),
    "datetime": Kind(
        "a date-time with an offset (RFC 3339, years 0001 to 9999)",
        (str,),
        parse_date_time,
        lambda value: format_date_time(_instance(datetime)(value)),
    ),
    "Any": Kind("any JSON value", (), None, lambda value: value),
    # The default of a missing object is not handed out: it would be shared.
    "dict[str, Any]": Kind("an object", (dict,), lambda value: value or {}, same=dict),
    "dict[str, str]": Kind("an object of strings", (dict,), _read_strings, _write_strings),
    "OutcomeStatus": Kind(
        "one of " + ", ".join(OutcomeStatus),
        (str,),
        OutcomeStatus,
        lambda value: OutcomeStatus(value).value,
    ),
}


def _reader(cls: type[_Message]) -> Callable[[dict[str, Any]], Any]:
    """What a person would write to read the fields of `cls`, field by field; raises FieldError.

    Written out, since a loop over the fields takes twice as long.
    """
    scope: dict[str, Any] = {"cls": cls, "new": object.__new__, "FieldError": FieldError}
    lines = ["def read(source):", " get = source.get", " message = new(cls)", " try:"]
    for field in cls._fields:
        name, kind = field.name, KINDS[field.kind]
        scope[f"{name}_field"] = field
        scope[f"{name}_default"] = field.default
        scope[f"{name}_read"] = kind.read
        lines.append(f"  field = {name}_field")
        lines.append(f"  value = get({name!r}, {name}_default)")
        wrong = [f"type(value) is not {cls.__name__}" for cls in kind.types]
        if wrong and field.nullable:
            wrong.append("value is not None")
        if wrong:
            lines.append(f"  if {' and '.join(wrong)}: raise ValueError")
        if kind.read is not None:
            lines.append(f"  if value is not None: value = {name}_read(value)")
        lines.append(f"  message.{name} = value")
    lines += [
        " except ValueError:",
        "  raise field.refuse(value) from None",
        " except FieldError as error:",
        "  error.path = f'{field.name}.{error.path}'",
        "  raise",
        " return message",
    ]
    exec("\n".join(lines), scope)
    read: Callable[[dict[str, Any]], Any] = scope["read"]
    return read


_NESTED: dict[str, type[_Message]] = {
    "ExecutionContext": ExecutionContext,
    "ExecutionError": ExecutionError,
}
for _kind, _class in _NESTED.items():
    KINDS[_kind] = Kind("an object", (dict,), _reader(_class), _instance(_class))

_READERS = {name: _reader(cls) for name, cls in _TYPES.items()}


def _decode_payload(payload: bytes | memoryview) -> RunnerMessage:
    try:
        document = loads(payload)
    except ValueError as error:
        raise MessageError(f"not JSON: {error}", bytes(payload)) from None
    if type(document) is not dict:
        raise MessageError(f"expected an object, got {describe(document)}", bytes(payload))
    named = document.get("type", MISSING)
    read = _READERS.get(named) if type(named) is str else None
    fields = document.get("payload", MISSING)
    if read is None:
        reason = f"expected one of {', '.join(_TYPES)}, got {describe(named)}"
        path = "type"
    elif type(fields) is not dict:
        reason = f"expected an object, got {describe(fields)}"
        path = "payload"
    else:
        try:
            message: RunnerMessage = read(fields)
        except FieldError as error:
            reason = error.reason
            path = f"payload.{error.path}"
        else:
            return message
    raise message_error(reason, payload, path, fields)


def message_error(reason: str, payload: bytes | memoryview, path: str, fields: Any) -> MessageError:
    """The error for a payload that is JSON, with the ids that can be read from its `fields`."""
    ids = (fields.get(key) for key in ("job_id", "request_id")) if type(fields) is dict else ()
    return MessageError(
        reason, bytes(payload), path, *(text if type(text) is str else None for text in ids)
    )


def _document(message: _Message, path: str) -> dict[str, Any]:
    """What JSON encodes for the fields of `message`. Raises EncodeError."""
    document: dict[str, Any] = {}
    for field in message._fields:
        name = field.name
        value = getattr(message, name)
        if value is None and field.nullable:
            if message._writes_none(name):
                document[name] = None
            continue
        kind = KINDS[field.kind]
        if type(value) is kind.same:
            document[name] = value
            continue
        try:
            written = kind.write(value)
        except ValueError:
            raise field.refuse_to_send(value, f"{path}.{name}") from None
        nested = field.kind in _NESTED
        document[name] = _document(written, f"{path}.{name}") if nested else written
    return document


def encode_frame(message: RunnerMessage, *, max_frame_size: int = MAX_FRAME_SIZE) -> bytes:
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
    checked_limit(max_frame_size)
    name = _TYPE_NAMES.get(type(message))
    if name is None:
        raise TypeError(f"expected a RunnerMessage, got {type(message).__name__}")
    document = {"type": name, "payload": _document(message, "payload")}
    return pack_frame(encode(document, MAX_NESTING, ""), max_frame_size=max_frame_size)


def decode_frame(frame: bytes | bytearray | memoryview, /) -> RunnerMessage:
    """The message in one whole frame, header included.

    Raises:
        FrameError: `frame` is not one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    return _decode_payload(whole_payload(frame))


class MessageDecoder(StreamDecoder):
    """Iterates over the messages of a stream of frames that arrives in pieces.

    Arguments:
        max_frame_size: the most bytes of payload that a header may declare.

    A declared length reserves no memory: the decoder holds what it was fed and what was not taken.
    Iteration raises MessageError for a payload that is not a message, and then goes on behind it;
    FrameError where the stream is broken, after the messages before it.
    """

    __slots__ = ()

    def __next__(self) -> RunnerMessage:
        with self._turn():
            payload = self._next_payload()
            if payload is None:
                raise StopIteration
            try:
                with payload:
                    return _decode_payload(payload)
            finally:
                self._settle()
