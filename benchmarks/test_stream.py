"""Benchmarks of decoding a stream of small requests, and a recorded connection."""

from __future__ import annotations

import json

import orjson
import pytest

from rrq_fastwire import _c, _py

from . import peers, samples
from .test_decode import fields
from .test_frames import fed

DECODERS = {
    "compiled": lambda chunks: fed(_c.MessageDecoder(), chunks),
    "pure": lambda chunks: fed(_py.MessageDecoder(), chunks),
    "msgspec": lambda chunks: list(map(peers.msgspec_decode, peers.split(chunks))),
    "orjson and struct": lambda chunks: list(map(orjson.loads, peers.split(chunks))),
    "json and struct": lambda chunks: list(map(json.loads, peers.split(chunks))),
    "rrq": lambda chunks: list(map(peers.rrq_decode, peers.split(chunks))),
}
MIXED = samples.chunks((samples.CAPTURES / "mixed.to-runner.bin").read_bytes())


@pytest.mark.parametrize("peer", DECODERS)
@pytest.mark.parametrize("stream", ["100B", "mixed"])
def test_decode_stream(benchmark, stream, peer):
    benchmark.group = f"decode a stream of requests {stream}"
    chunks = MIXED if stream == "mixed" else samples.STREAM
    plain = [fields(json.loads(payload)) for payload in peers.split(chunks)]
    assert list(map(fields, DECODERS[peer](chunks))) == plain
    benchmark(DECODERS[peer], chunks)
