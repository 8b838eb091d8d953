"""Recordings of the real orchestrator and the stock runner decode, and encode back."""

from __future__ import annotations

import json
import re

import pytest

COUNTS = {
    "cancel.to-runner": 1,
    "mixed.from-runner": 24,
    "mixed.to-runner": 24,
    "odd-results.from-runner": 19,
    "odd-results.to-runner": 20,
    "sizes.from-runner": 30,
    "sizes.to-runner": 30,
    "timeouts.from-runner": 5,
    "timeouts.to-runner": 6,
}


def test_every_recording_is_here(captures):
    assert sorted(captures) == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_a_recording_decodes_completely_and_encodes_back(wire, captures, name):
    decoder = wire.MessageDecoder().feed(captures[name])
    messages = list(decoder)
    decoder.feed_eof()
    payloads = list(wire.FrameDecoder().feed(captures[name]))
    assert len(messages) == len(payloads) == COUNTS[name]
    for message, payload in zip(messages, payloads, strict=True):
        frame = wire.pack_frame(payload)
        assert wire.decode_frame(frame) == message
        assert wire.decode_frame(wire.encode_frame(message)) == message
        # The standard library and older versions of orjson write exponents differently.
        if "to-runner" in name and not re.search(rb"\de[+-]?\d", payload):
            # A datetime cannot hold nanoseconds. Without them, the bytes are the same.
            trimmed = re.sub(rb"(\.\d{6})\d{3}Z", rb"\1Z", payload)
            trimmed = re.sub(rb"(\.\d{3})000Z", rb"\1Z", trimmed)
            assert wire.encode_frame(
                wire.decode_frame(wire.pack_frame(trimmed))
            ) == wire.pack_frame(trimmed)


@pytest.mark.parametrize("name", [name for name in COUNTS if "from-runner" in name])
def test_an_answer_of_the_stock_runner_decodes_to_the_same_values(wire, captures, name):
    for payload in wire.FrameDecoder().feed(captures[name]):
        fields = json.loads(payload)["payload"]
        message = wire.decode_frame(wire.pack_frame(payload))
        for key, value in fields.items():
            if key == "error" and value is not None:
                assert {name: getattr(message.error, name) for name in value} == value
            else:
                assert getattr(message, key) == value
