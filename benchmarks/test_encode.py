"""Benchmarks of encoding a success: one that is built before, and one that is built in each call."""

from __future__ import annotations

import json

import pytest

from rrq_fastwire import _c, _py

from . import peers, samples


def document(result):
    """The success as a document of plain dicts."""
    job_id, request_id = samples.IDS
    answer = {"job_id": job_id, "request_id": request_id, "status": "success", "result": result}
    return {"type": "response", "payload": answer}


def msgspec_outcome(result):
    outcome = peers.Outcome(*samples.IDS, peers.Status.SUCCESS, result)
    return peers.OutcomeMessage(outcome)


BUILDERS = {
    "compiled": lambda result: _c.ExecutionOutcome.success(*samples.IDS, result),
    "pure": lambda result: _py.ExecutionOutcome.success(*samples.IDS, result),
    "msgspec": msgspec_outcome,
    "orjson and struct": document,
    "json and struct": document,
    "rrq": lambda result: peers.rrq_success(*samples.IDS, result),
}
ENCODERS = {
    "compiled": _c.encode_frame,
    "pure": _py.encode_frame,
    "msgspec": peers.msgspec_encode_frame,
    "orjson and struct": peers.orjson_encode_frame,
    "json and struct": peers.json_encode_frame,
    "rrq": peers.rrq_encode_frame,
}


def assert_same(frame, result):
    """Check that a frame is a success with this result."""
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    sent = json.loads(frame[4:])
    assert {key: sent["payload"][key] for key in ("job_id", "request_id", "status", "result")} == (
        document(result)["payload"]
    )


@pytest.mark.parametrize("peer", ENCODERS)
@pytest.mark.parametrize("size", samples.VALUES)
def test_encode_success(benchmark, size, peer):
    benchmark.group = f"encode success {size}"
    result = samples.VALUES[size]
    outcome = BUILDERS[peer](result)
    assert_same(ENCODERS[peer](outcome), result)
    benchmark(ENCODERS[peer], outcome)


@pytest.mark.parametrize("peer", ENCODERS)
def test_build_and_encode_success(benchmark, peer):
    benchmark.group = "build and encode success 100B"
    result = samples.VALUES["100B"]
    build, encode = BUILDERS[peer], ENCODERS[peer]
    assert_same(encode(build(result)), result)
    benchmark(lambda: encode(build(result)))
