# cython: annotation_typing=False, auto_pickle=False, freethreading_compatible=True

"""The generic codec: a payload to a message and back, for every message in every form.

It follows the dataclass fields in `messages`. All rules about the values of fields, and the texts
of errors about them, are in this file. The pure Python implementation runs this file as it is. The
compiled one runs it translated by Cython, for what its fast paths do not recognise. The imports are
absolute, because the translated module is part of another package.
"""

from __future__ import annotations

import re
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from datetime import datetime, timezone

from rrq_fastwire._json import dump_plain, encode, loads
from rrq_fastwire.errors import MISSING, EncodeError, MessageError, describe, type_name
from rrq_fastwire.messages import WIRE_TYPES, ExecutionContext, ExecutionError, OutcomeStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field
    from typing import Any

    from rrq_fastwire.messages import RunnerMessage

__all__ = ["Codec", "parse_date_time"]

_MAX_ATTEMPT = 2**32 - 1

_STATUSES = {status.value: status for status in OutcomeStatus}

# A date-time of RFC 3339, with a T or a space. fromisoformat() alone accepts many other forms.
_TIME = r"(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d+)?)"
_matches_utc = re.compile(_TIME.replace("[Tt ]", "T") + "Z", re.ASCII).fullmatch
# Compiled on first use only, because the orchestrator always writes the form above.
_DATE_TIME = _TIME + r"(?:([Zz])|[+-](?:[01]\d|2[0-3]):[0-5]\d)"


def parse_date_time(text: str) -> datetime:
    """Read a date-time of RFC 3339; return it in UTC, truncated to microseconds.

    Raises ValueError.
    """
    if _matches_utc(text):
        return _from_iso(text)
    match = re.fullmatch(_DATE_TIME, text, re.ASCII)
    if match is None:
        raise ValueError(text)
    if match[3]:
        return datetime.fromisoformat(f"{match[1]}T{match[2]}Z")
    try:
        return datetime.fromisoformat(text).astimezone(timezone.utc)
    except OverflowError as error:
        raise ValueError(text) from error


def _format_date_time(value: Any) -> str:
    """Write a datetime as the orchestrator does: in UTC, with 0, 3 or 6 digits of fraction.

    Raises ValueError if `value` is not an aware datetime, or its time in UTC is out of range.
    """
    moment = _check_datetime(value)
    if type(moment) is not datetime:
        # astimezone() would create its result by calling the subclass.
        moment = datetime.combine(datetime.date(moment), datetime.timetz(moment))
    try:
        offset = datetime.utcoffset(moment)
        text = datetime.isoformat(datetime.astimezone(moment, timezone.utc)).removesuffix("+00:00")
    except MemoryError:
        raise
    except Exception as error:  # a tzinfo can raise anything
        raise ValueError(type_name(error)) from error
    if offset is None:
        raise ValueError("naive")
    return (text[:-3] if "." in text and text.endswith("000") else text) + "Z"


def _checker(*types: type) -> Callable[[Any], Any]:
    """Return a function that returns a value of these types, and raises ValueError for others."""

    def check(value: Any) -> Any:
        # Not isinstance(), because an object's `__class__` can name another class. A bool is an int
        # in Python, but not in JSON.
        cls = type(value)
        if not issubclass(cls, types) or (cls is bool and bool not in types):
            raise ValueError(value)
        return value

    return check


_check_str = _checker(str)
_check_int = _checker(int)
_check_number = _checker(int, float)
_check_dict = _checker(dict)
_check_datetime = _checker(datetime)


# An instance of a subclass is encoded as its underlying value; its own methods are not called.


def _write_str(value: Any) -> str:
    return str.__str__(_check_str(value))


def _read_attempt(value: int) -> int:
    if 0 <= value <= _MAX_ATTEMPT:
        return value
    raise ValueError(value)


def _write_attempt(value: Any) -> int:
    return _read_attempt(int.__index__(_check_int(value)))


def _write_number(value: Any) -> int | float:
    number = _check_number(value)
    return int.__index__(number) if issubclass(type(number), int) else float.__float__(number)


def _read_strings(value: dict[str, Any]) -> dict[str, str]:
    for text in value.values():
        if type(text) is not str:
            raise ValueError(text)
    return value


def _write_strings(value: Any) -> dict[str, str]:
    try:
        items = list(dict.items(_check_dict(value)))  # a copy: other code may change the dict
    except RuntimeError as error:  # it changed during the copying
        raise ValueError(value) from error
    strings = {}
    for key, text in items:
        strings[_write_str(key)] = _write_str(text)
    return strings


def _read_status(value: str) -> OutcomeStatus:
    try:
        return _STATUSES[value]
    except KeyError:
        raise ValueError(value) from None


def _write_status(value: Any) -> str:
    return _read_status(_write_str(value)).value


class _FieldError(Exception):
    """A value that its field does not accept. `path` grows while the exception propagates."""

    def __init__(self, reason: str, path: str) -> None:
        self.reason = reason
        self.path = path


def _raise_if_no_memory(error: Exception) -> None:
    """Raise `error` if it is a MemoryError. Each `except` clause that uses its error calls this.

    If there is no memory for a traceback, code compiled by Cython gets a MemoryError in place of
    the error that the clause catches.
    """
    if isinstance(error, MemoryError):
        raise error


_new = object.__new__
_from_iso = datetime.fromisoformat

# The types that the JSON library returns.
_ANY = (str, int, float, bool, type(None), list, dict)


class _Kind:
    """How the values of one type of field are read and written.

    Attributes:
        expected: the accepted values, as error messages name them.
        types: the Python types of decoded JSON that are accepted.
        read: converts a decoded value to the attribute's, or raises ValueError; None if both are
            the same.
        write: converts the attribute's value to a JSON value, or raises ValueError; None likewise.
        unchanged: the type whose values are written without `write`; None if there is none.
    """

    def __init__(
        self,
        expected: str,
        types: tuple[type, ...],
        read: Callable[[Any], Any] | None,
        write: Callable[[Any], Any] | None,
        unchanged: type | None = None,
    ) -> None:
        self.expected = expected
        self.types = types
        self.read = read
        self.write = write
        self.unchanged = unchanged


# The kind of each annotation of a field in `messages`, without `| None`.
_KINDS = {
    "str": _Kind("a string", (str,), None, _write_str, str),
    "int": _Kind(f"an integer from 0 to {_MAX_ATTEMPT}", (int,), _read_attempt, _write_attempt),
    "float": _Kind("a number", (float, int), float, _write_number, float),
    "bool": _Kind("true or false", (bool,), None, _checker(bool), bool),
    "Any": _Kind("any JSON value", _ANY, None, None),
    "dict[str, Any]": _Kind("an object", (dict,), None, _check_dict, dict),
    "dict[str, str]": _Kind("an object of strings", (dict,), _read_strings, _write_strings),
    "OutcomeStatus": _Kind(
        "one of " + ", ".join(OutcomeStatus), (str,), _read_status, _write_status
    ),
}


class _Rule:
    """One field of a message, as the codec uses it."""

    def __init__(self, field: Field[Any], kinds: dict[str, _Kind]) -> None:
        annotation = str(field.type)
        kind = kinds[annotation.removesuffix(" | None")]
        self.name = field.name
        self.nullable = annotation == "Any" or annotation.endswith(" | None")
        self.types = (*kind.types, type(None)) if self.nullable else kind.types
        self.read = kind.read
        self.write = kind.write
        self.unchanged = kind.unchanged
        self.none = field.metadata.get("none")
        self._expected = kind.expected + (" or null" if self.nullable else "")
        self._default = field.default
        self._factory = field.default_factory

    def default(self) -> Any:
        """Return the default of the field. Raises _FieldError if the field is required."""
        if self._factory is not NO_DEFAULT:
            return self._factory()
        if self._default is NO_DEFAULT:
            raise self.error_for(MISSING)
        return self._default

    def error_from(self, error: Exception, value: Any) -> _FieldError:
        """Return the error for a failed conversion: the nested field's, or this field's."""
        _raise_if_no_memory(error)
        if isinstance(error, _FieldError):
            error.path = f"{self.name}.{error.path}"
            return error
        return self.error_for(value)

    def error_for(self, value: Any) -> _FieldError:
        """Return the error for a value that the field does not accept."""
        return _FieldError(f"expected {self._expected}, got {describe(value)}", self.name)


class _Schema:
    """The rules of one message class."""

    def __init__(self, cls: type[Any], kinds: dict[str, _Kind]) -> None:
        self.cls = cls
        self.rules = [_Rule(field, kinds) for field in fields(cls)]
        # Half of the codec's time goes into the loops over these tuples, which save lookups.
        self._reading = [(rule, rule.name, rule.types, rule.read) for rule in self.rules]
        self._writing = [(rule, rule.name, rule.unchanged, rule.write) for rule in self.rules]

    def kind(self) -> _Kind:
        """Return the kind of a field that holds a message of this class."""
        return _Kind("an object", (dict,), self.read, self.write)

    def read(self, source: dict[str, Any]) -> Any:
        """Build the message from a decoded JSON object. Raises _FieldError."""
        message = _new(self.cls)
        for rule, name, types, convert in self._reading:
            value = source.get(name, MISSING)
            if value is MISSING:
                setattr(message, name, rule.default())
                continue
            if type(value) not in types:
                raise rule.error_for(value)
            if convert is not None and value is not None:
                try:
                    value = convert(value)
                except (ValueError, _FieldError) as error:
                    raise rule.error_from(error, value) from None
            setattr(message, name, value)
        return message

    def write(self, message: Any) -> dict[str, Any]:
        """Return the JSON object of a message. Raises _FieldError; ValueError for another class."""
        if type(message) is not self.cls:
            raise ValueError
        document: dict[str, Any] = {}
        for rule, name, unchanged, convert in self._writing:
            value = getattr(message, name, MISSING)  # an attribute can be deleted
            if type(value) is unchanged:
                document[name] = value
            elif value is None and rule.nullable:
                if rule.none == "null" or (rule.none and document["status"] == "success"):
                    document[name] = None
            elif value is MISSING:
                raise rule.error_for(value)
            elif convert is None:
                document[name] = value
            else:
                try:
                    document[name] = convert(value)
                except (ValueError, _FieldError) as error:
                    raise rule.error_from(error, value) from None
        return document


def _str_at(source: Any, key: str) -> str | None:
    """Return the str at a key of a decoded JSON object; None if there is none."""
    value = source.get(key) if type(source) is dict else None
    return value if type(value) is str else None


class Codec:
    """Decode and encode payloads.

    Arguments:
        parse: parse_date_time(), or a compiled function that gives the same.
        dump_plain: `_json.dump_plain()`, or a compiled function that gives the same.
    """

    def __init__(
        self,
        parse: Callable[[str], datetime] = parse_date_time,
        dump_plain: Callable[[Any, int], bytes | None] = dump_plain,
    ) -> None:
        kinds = dict(_KINDS)
        kinds["datetime"] = _Kind(
            "a date-time with an offset (RFC 3339, years 0001 to 9999)",
            (str,),
            parse,
            _format_date_time,
        )
        for cls in (ExecutionContext, ExecutionError):
            kinds[cls.__name__] = _Schema(cls, kinds).kind()
        self._schemas = {name: _Schema(cls, kinds) for name, cls in WIRE_TYPES.items()}
        self._dump_plain = dump_plain

    def decode_payload(self, payload: bytes | memoryview) -> RunnerMessage:
        """Decode a payload, which must not change during the call. Raises MessageError."""
        try:
            document = loads(payload)
        except ValueError as error:
            _raise_if_no_memory(error)
            raise MessageError(f"not JSON: {error}", bytes(payload)) from None
        try:
            source = document["payload"]
            schema = self._schemas[document["type"]]
            if type(source) is dict:
                message: RunnerMessage = schema.read(source)
                return message
        except (KeyError, TypeError):
            pass  # the envelope is wrong
        except _FieldError as error:
            _raise_if_no_memory(error)
            path, reason = f"payload.{error.path}", error.reason
            raise self._error(payload, document, path, reason) from None
        raise self._error(payload, document, "payload", "")

    def _error(
        self, payload: bytes | memoryview, document: Any, path: str, reason: str
    ) -> MessageError:
        """Return the error for a payload that is JSON but not a valid message.

        Arguments:
            path, reason: the field at fault, and why; `reason` is "" if the envelope is wrong.
        """
        if type(document) is not dict:
            return MessageError(f"expected an object, got {describe(document)}", bytes(payload))
        wire_type = document.get("type", MISSING)
        source = document.get("payload", MISSING)
        if type(wire_type) is not str or wire_type not in self._schemas:
            path = "type"
            reason = f"expected one of {', '.join(self._schemas)}, got {describe(wire_type)}"
            wire_type = None
        elif not reason:
            reason = f"expected an object, got {describe(source)}"
        job_id, request_id = _str_at(source, "job_id"), _str_at(source, "request_id")
        return MessageError(reason, bytes(payload), path, wire_type, job_id, request_id)

    def encode_payload(self, message: RunnerMessage) -> bytes:
        """Encode a message as a payload. Raises EncodeError; TypeError for other objects."""
        # Not with a dict whose keys are the classes: a lookup could run the code of a metaclass.
        for wire_type, schema in self._schemas.items():
            if schema.cls is type(message):
                return self._encode(wire_type, schema, message)
        raise TypeError(f"expected a RunnerMessage, got {type_name(message)}")

    def _encode(self, wire_type: str, schema: _Schema, message: RunnerMessage) -> bytes:
        try:
            document = schema.write(message)
        except _FieldError as error:
            _raise_if_no_memory(error)
            raise EncodeError(error.reason, f"payload.{error.path}") from None
        envelope = {"type": wire_type, "payload": document}
        return encode(envelope, self._dump_plain)
