"""Fuzz decode_frame(): one payload, or a whole frame with its header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rrq_fastwire import MAX_FRAME_SIZE

from .oracles import IMPLEMENTATIONS, assert_same, check_payload, outcome, split

if TYPE_CHECKING:
    from collections.abc import Iterator


def seeds() -> Iterator[bytes]:
    for path in sorted(Path(__file__).parent.parent.glob("captures/*.bin")):
        payloads, _, _ = split(path.read_bytes(), MAX_FRAME_SIZE)
        for payload in payloads[:20]:
            if len(payload) < 2000:
                yield b"\1" + payload
                yield b"\0" + len(payload).to_bytes(4) + payload


def check(data: bytes) -> None:
    """Check one input. Its first byte says whether the rest is a payload or a frame."""
    if not data:
        return
    if data[0] % 4:
        check_payload(data[1:])
        return
    assert_same(*(outcome(way.decode_frame, data[1:]) for way in IMPLEMENTATIONS))
