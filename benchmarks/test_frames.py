"""Benchmarks of splitting a stream into payloads, and of adding the length prefix to a payload."""

from __future__ import annotations

import pytest

from rrq_fastwire import _c, _py

from . import peers, samples


def fed(decoder, chunks):
    """Everything that a decoder gives for a stream."""
    payloads = []
    for chunk in chunks:
        payloads += decoder.feed(chunk)
    return payloads


SPLITTERS = {
    "compiled": lambda chunks: fed(_c.FrameDecoder(), chunks),
    "pure": lambda chunks: fed(_py.FrameDecoder(), chunks),
    "unpack_from and slices": lambda chunks: list(peers.split(chunks)),
}
LARGE = {
    "compiled": lambda chunks: fed(_c.FrameDecoder(), chunks)[0],
    "pure": lambda chunks: fed(_py.FrameDecoder(), chunks)[0],
    "bytearray and one copy": peers.append_and_copy,
}
PACKERS = {
    "compiled": _c.pack_frame,
    "pure": _py.pack_frame,
    "int.to_bytes": lambda payload: len(payload).to_bytes(4, "big") + payload,
}


@pytest.mark.parametrize("peer", SPLITTERS)
def test_split_small_frames(benchmark, peer):
    benchmark.group = "split 560-byte frames from 64 KiB chunks"
    assert b"".join(map(_c.pack_frame, SPLITTERS[peer](samples.STREAM))) == b"".join(samples.STREAM)
    benchmark(SPLITTERS[peer], samples.STREAM)


@pytest.mark.parametrize("peer", LARGE)
def test_split_large_frame(benchmark, peer):
    benchmark.group = "a frame of 16 MiB in 64 KiB chunks"
    assert LARGE[peer](samples.LARGE) == b"".join(samples.LARGE)[4:]
    benchmark(LARGE[peer], samples.LARGE)


@pytest.mark.parametrize("peer", PACKERS)
def test_pack_small_payload(benchmark, peer):
    benchmark.group = "prefix a payload of 560 bytes"
    payload = samples.REQUESTS["100B"][4:]
    assert PACKERS[peer](payload) == samples.REQUESTS["100B"]
    benchmark(PACKERS[peer], payload)
