"""Every exception of rrq_fastwire. Each has its details as attributes, and can be pickled."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "EmptyFrameError",
    "EncodeError",
    "FastwireError",
    "FrameError",
    "FrameTooLargeError",
    "MessageError",
    "PayloadTooLargeError",
    "TruncatedFrameError",
]


class FastwireError(Exception):
    """The base of every exception that rrq_fastwire defines."""


class FrameError(FastwireError, ValueError):
    """The stream of frames is broken and cannot continue: close the connection.

    A decoder that has raised this error raises it again at every later call.
    """


class EmptyFrameError(FrameError):
    """A frame declares a payload of 0 bytes, which the protocol does not allow."""

    def __str__(self) -> str:
        return "frame of 0 bytes: a payload cannot be empty"


class FrameTooLargeError(FrameError):
    """A frame declares more bytes than the limit. Raised on the header, before the payload arrives.

    Attributes:
        length: bytes of payload that the header declares.
        limit: the largest payload that is accepted, in bytes.
    """

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(length, limit)
        self.length = length
        self.limit = limit

    def __str__(self) -> str:
        return f"frame of {self.length} bytes exceeds the limit of {self.limit}"


class TruncatedFrameError(FrameError):
    """The bytes end inside a frame, or are not exactly one frame where one is expected.

    Attributes:
        expected: bytes of the whole frame, header included; 4 while the header is incomplete.
        received: bytes received, header included.
    """

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(expected, received)
        self.expected = expected
        self.received = received

    def __str__(self) -> str:
        what = "frame" if self.received >= 4 else "frame header"
        text = f"expected a {what} of {self.expected} bytes, got {self.received}"
        excess = self.received - self.expected
        return f"{text}: {excess} too many" if excess > 0 else text


class MessageError(FastwireError, ValueError):
    """The payload of one frame is not a valid message. Later frames are still readable.

    Attributes:
        reason: what was expected, and what was found.
        payload: the bytes of the payload, as received.
        path: the field at fault, such as "payload.context.attempt"; "" for the whole document.
        message_type: "request", "response" or "cancel"; None if the payload has no valid type.
        job_id, request_id: the payload's ids; None where they could not be read.
    """

    def __init__(
        self,
        reason: str,
        payload: bytes,
        path: str = "",
        message_type: str | None = None,
        job_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(reason, payload, path, message_type, job_id, request_id)
        self.reason = reason
        self.payload = payload
        self.path = path
        self.message_type = message_type
        self.job_id = job_id
        self.request_id = request_id

    def __str__(self) -> str:
        return _located(self.reason, self.path)


class EncodeError(FastwireError, ValueError):
    """A message or payload cannot be sent: the peer would not accept it.

    Attributes:
        reason: what is wrong with the value at `path`.
        path: the value at fault, such as "payload.result.items[2]"; "" for the whole payload.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return _located(self.reason, self.path)


class PayloadTooLargeError(EncodeError):
    """A payload has more bytes than a frame may carry.

    Attributes:
        length: bytes of the payload.
        limit: the largest payload that may be sent, in bytes.
    """

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"payload of {length} bytes exceeds the limit of {limit}")
        self.args = (length, limit)  # what pickle calls the class with
        self.length = length
        self.limit = limit


def _located(reason: str, path: str) -> str:
    return f"{path}: {reason}" if path else reason


class _Missing:
    """The type of MISSING, which stands for an absent value."""


MISSING = _Missing()

# `type(value).__qualname__` would run the code of a metaclass.
_qualname = type.__dict__["__qualname__"].__get__


def type_name(value: object) -> str:
    """Return the name of the value's type, for an error."""
    name: str = _qualname(type(value))
    return name


def describe(value: Any) -> str:
    """Return a short description of a value in JSON's terms, for an error, whatever its size."""
    if value is MISSING:
        return "nothing"
    if value is None:
        return "null"
    if value is True or value is False:
        return str(value).lower()
    kind = type(value)
    if kind is dict:
        return "an object"
    if kind is list:
        return "an array"
    if kind is str and len(value) > 40:
        return f"{value[:40]!r}... ({len(value)} characters)"
    if kind is int and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if kind in (str, int, float):
        return repr(value)
    return f"an object of type {type_name(value)!r}"
