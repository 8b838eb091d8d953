"""The data of the benchmarks: recorded requests of three sizes, and successes that echo them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

from rrq_fastwire import FrameDecoder, pack_frame

CAPTURES = Path(__file__).parent.parent / "tests" / "captures"
CHUNK = 64 * 1024  # about what one read of a socket gives

# The sizes of payloads that the orchestrator wrote. They are named by the size of their params, as
# Python's json would write them.
_SIZES = {"100B": 560, "2KB": 2300, "100KB": 90314}


def _recorded(size: int) -> bytes:
    stream = (CAPTURES / "sizes.to-runner.bin").read_bytes()
    return next(payload for payload in FrameDecoder().feed(stream) if len(payload) == size)


def response_payload(request: bytes) -> bytes:
    """A success that echoes the params of a request, without spaces."""
    fields = orjson.loads(request)["payload"]
    answer = {
        "job_id": fields["job_id"],
        "request_id": fields["request_id"],
        "status": "success",
        "result": fields["params"],
    }
    return orjson.dumps({"type": "response", "payload": answer})


def spaced(payload: bytes) -> bytes:
    """The same document with spaces, as Python's json writes it."""
    return json.dumps(json.loads(payload), ensure_ascii=False).encode()


def in_another_order(payload: bytes) -> bytes:
    """The same document, without spaces, with its keys in reverse order at every level."""
    document = json.loads(payload)
    fields = dict(reversed(document["payload"].items()))
    fields["context"] = dict(reversed(fields["context"].items()))
    return orjson.dumps({"payload": fields, "type": document["type"]})


def chunks(stream: bytes, size: int = CHUNK) -> list[bytes]:
    """The stream in pieces, as from a socket."""
    return [stream[start : start + size] for start in range(0, len(stream), size)]


_PAYLOADS = {name: _recorded(size) for name, size in _SIZES.items()}
# Frames of requests and of responses, and the params of the requests.
REQUESTS = {name: pack_frame(payload) for name, payload in _PAYLOADS.items()}
RESPONSES = {name: pack_frame(response_payload(payload)) for name, payload in _PAYLOADS.items()}
VALUES: dict[str, Any] = {
    name: orjson.loads(payload)["payload"]["params"] for name, payload in _PAYLOADS.items()
}
IDS: tuple[str, str] = tuple(
    orjson.loads(_PAYLOADS["100B"])["payload"][name] for name in ("job_id", "request_id")
)

# As many small requests as fit into sixteen chunks.
STREAM = chunks(REQUESTS["100B"] * (16 * CHUNK // len(REQUESTS["100B"])))
# One frame of the largest size.
LARGE = chunks(pack_frame(bytes(16 * 1024 * 1024)))
