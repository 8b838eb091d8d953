"""Every exception of rrq_fastwire, and the words in which the decoders describe a wrong value.

Each exception carries its numbers and texts as attributes, and pickles.
"""

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
    "TruncatedFrameError",
]


class FastwireError(Exception):
    """The base of every exception that rrq_fastwire defines."""


class FrameError(FastwireError, ValueError):
    """The stream of frames is broken and cannot go on: close the connection.

    A decoder that has raised it raises it again at every later call.
    """


class EmptyFrameError(FrameError):
    """A frame declares a payload of 0 bytes, which no reader of the protocol accepts."""

    def __str__(self) -> str:
        return "frame of 0 bytes: a payload cannot be empty"


class FrameTooLargeError(FrameError):
    """A frame declares more bytes than the limit; raised on the header, before the payload.

    Attributes:
        length: bytes of payload that the header declares.
        limit: bytes of payload that are accepted.
    """

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(length, limit)
        self.length = length
        self.limit = limit

    def __str__(self) -> str:
        return f"frame of {self.length} bytes exceeds the limit of {self.limit}"


class TruncatedFrameError(FrameError):
    """The bytes end inside a frame, or are not the one frame that they should be.

    Attributes:
        expected: bytes of the whole frame, header included; 4 while the header is incomplete.
        received: bytes that are there, header included.
    """

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(expected, received)
        self.expected = expected
        self.received = received

    def __str__(self) -> str:
        return f"expected a frame of {self.expected} bytes, got {self.received}"


class MessageError(FastwireError, ValueError):
    """The payload of one frame is not a message; the frames behind it are unharmed.

    Attributes:
        reason: what was expected, and what was there.
        payload: the bytes of the payload, as they came.
        path: the field at fault ("payload.context.attempt"); "" for the document as a whole.
        job_id, request_id: the payload's, if they could be read, else None.
    """

    def __init__(
        self,
        reason: str,
        payload: bytes,
        path: str = "",
        job_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(reason, payload, path, job_id, request_id)
        self.reason = reason
        self.payload = payload
        self.path = path
        self.job_id = job_id
        self.request_id = request_id

    def __str__(self) -> str:
        return _located(self.reason, self.path)


class EncodeError(FastwireError, ValueError):
    """A message or payload cannot be sent: the peer would not accept it.

    Attributes:
        reason: why not.
        path: the value at fault ("payload.result.items[2]"); "" for the frame as a whole.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return _located(self.reason, self.path)


def _located(reason: str, path: str) -> str:
    return f"{path}: {reason}" if path else reason


class _Missing:
    """The type of MISSING, which stands for a value that is not there."""


MISSING = _Missing()


def describe(value: Any) -> str:
    """A value of a field in a few words, in JSON's terms, short whatever its size."""
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
    return f"an object of type {kind.__qualname__!r}"
