"""What this package is compared with: other libraries, each with as few calls as the work needs."""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import orjson
import rrq.protocol
import rrq.runner


class Context(msgspec.Struct):
    job_id: str
    attempt: int
    enqueue_time: datetime
    queue_name: str
    deadline: datetime | None = None
    trace_context: dict[str, str] | None = None
    correlation_context: dict[str, str] | None = None
    worker_id: str | None = None


class Request(msgspec.Struct):
    request_id: str
    job_id: str
    function_name: str
    context: Context
    protocol_version: str = "2"
    params: dict[str, Any] = {}


class Error(msgspec.Struct):
    message: str
    type: str | None = None
    code: str | None = None
    details: Any = None


class Status(enum.Enum):
    SUCCESS = "success"
    RETRY = "retry"
    TIMEOUT = "timeout"
    ERROR = "error"


class Outcome(msgspec.Struct):
    job_id: str | None = None
    request_id: str | None = None
    status: Status = Status.ERROR
    result: Any = None
    error: Error | None = None
    retry_after_seconds: float | None = None


class Cancel(msgspec.Struct):
    job_id: str
    protocol_version: str = "2"
    request_id: str | None = None
    hard_kill: bool = False


class RequestMessage(msgspec.Struct, tag_field="type", tag="request"):
    payload: Request


class OutcomeMessage(msgspec.Struct, tag_field="type", tag="response"):
    payload: Outcome


class CancelMessage(msgspec.Struct, tag_field="type", tag="cancel"):
    payload: Cancel


msgspec_decode = msgspec.json.Decoder(RequestMessage | OutcomeMessage | CancelMessage).decode
msgspec_encode = msgspec.json.Encoder().encode
unpack_length = struct.Struct(">I").unpack_from


def msgspec_encode_frame(message: OutcomeMessage) -> bytes:
    body = msgspec_encode(message)
    return len(body).to_bytes(4, "big") + body


def rrq_decode(payload: bytes) -> rrq.runner.ExecutionRequest | rrq.runner.ExecutionOutcome:
    message_type, fields = rrq.protocol.decode_message(payload)
    if message_type == "request":
        return rrq.runner.ExecutionRequest.model_validate(fields)
    return rrq.runner.ExecutionOutcome.model_validate(fields)


def rrq_success(job_id: str, request_id: str, result: Any) -> rrq.runner.ExecutionOutcome:
    return rrq.runner.ExecutionOutcome(
        job_id=job_id, request_id=request_id, status="success", result=result
    )


def rrq_encode_frame(outcome: rrq.runner.ExecutionOutcome) -> bytes:
    return rrq.protocol.encode_message("response", outcome.model_dump(mode="json"))


def json_decode_frame(frame: bytes) -> Any:
    (length,) = unpack_length(frame)
    return json.loads(frame[4 : 4 + length])


def orjson_decode_frame(frame: bytes) -> Any:
    (length,) = unpack_length(frame)
    return orjson.loads(frame[4 : 4 + length])


def json_encode_frame(document: Any) -> bytes:
    body = json.dumps(document).encode()
    return struct.pack(">I", len(body)) + body


def orjson_encode_frame(document: Any) -> bytes:
    body = orjson.dumps(document)
    return struct.pack(">I", len(body)) + body


def split(chunks: list[bytes]) -> Iterator[bytes]:
    """Split a stream into payloads with a simple loop over struct.unpack_from and slices."""
    rest = b""
    for chunk in chunks:
        data = rest + chunk if rest else chunk
        pos, end = 0, len(data)
        while end - pos >= 4:
            (length,) = unpack_length(data, pos)
            if end - pos - 4 < length:
                break
            yield data[pos + 4 : pos + 4 + length]
            pos += 4 + length
        rest = data[pos:]


def append_and_copy(chunks: list[bytes]) -> bytes:
    """The least work for a large frame in pieces: a bytearray, and one copy of the payload."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
    with memoryview(buffer) as view:
        return bytes(view[4:])
