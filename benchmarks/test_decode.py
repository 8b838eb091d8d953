"""Benchmarks of decoding one message. msgspec and rrq get it without the length prefix."""

from __future__ import annotations

import json

import orjson
import pytest

from rrq_fastwire import _c, _py

from . import peers, samples

DECODERS = {
    "compiled": _c.decode_frame,
    "pure": _py.decode_frame,
    "msgspec": lambda frame: peers.msgspec_decode(frame[4:]),
    "orjson and struct": peers.orjson_decode_frame,
    "json and struct": peers.json_decode_frame,
    "rrq": lambda frame: peers.rrq_decode(frame[4:]),
}


def fields(message):
    """The ids, and the params or the result, of a message that any of the libraries decoded."""
    if isinstance(message, dict):
        payload = message["payload"]
        return (
            payload["job_id"],
            payload["request_id"],
            payload["params"] if "params" in payload else payload["result"],
        )
    payload = getattr(message, "payload", message)
    value = payload.params if hasattr(payload, "params") else payload.result
    return payload.job_id, payload.request_id, value


def measured(benchmark, frame, peer):
    """Check that a peer decodes a frame correctly, and time it."""
    decode = DECODERS[peer]
    assert fields(decode(frame)) == fields(json.loads(frame[4:]))
    benchmark(decode, frame)


@pytest.mark.parametrize("peer", DECODERS)
@pytest.mark.parametrize("size", samples.REQUESTS)
def test_decode_request(benchmark, size, peer):
    benchmark.group = f"decode request {size}"
    measured(benchmark, samples.REQUESTS[size], peer)


@pytest.mark.parametrize("peer", DECODERS)
@pytest.mark.parametrize("size", samples.RESPONSES)
def test_decode_response(benchmark, size, peer):
    benchmark.group = f"decode response {size}"
    measured(benchmark, samples.RESPONSES[size], peer)


@pytest.mark.parametrize("peer", DECODERS)
def test_decode_request_with_spaces(benchmark, peer):
    benchmark.group = "decode request with spaces 100B"
    measured(benchmark, _c.pack_frame(samples.spaced(samples.REQUESTS["100B"][4:])), peer)


@pytest.mark.parametrize("peer", DECODERS)
def test_decode_request_other_order(benchmark, peer):
    benchmark.group = "decode request in another order 100B"
    document = json.loads(samples.REQUESTS["100B"][4:])
    document["payload"] = dict(reversed(document["payload"].items()))
    measured(benchmark, _c.pack_frame(orjson.dumps(document)), peer)
