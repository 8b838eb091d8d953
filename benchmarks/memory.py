"""Measure the memory of a decoded message and of an idle decoder, compared with other libraries.

    python -m benchmarks.memory

tracemalloc counts the bytes that Python's allocators hand out. RSS is how much the resident memory
of a process grows, with a new process for each row. It includes what orjson and msgspec allocate
without Python's allocators.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson

from rrq_fastwire import _c, _py

from . import peers, samples

COUNT = 20_000
FRAME = samples.REQUESTS["100B"]
SUBJECTS: dict[str, Callable[[], Any]] = {
    "message, compiled": lambda: _c.decode_frame(FRAME),
    "message, pure": lambda: _py.decode_frame(FRAME),
    "message, msgspec": lambda: peers.msgspec_decode(FRAME[4:]),
    "message, orjson": lambda: orjson.loads(FRAME[4:]),
    "message, rrq": lambda: peers.rrq_decode(FRAME[4:]),
    "idle decoder, compiled": _c.MessageDecoder,
    "idle decoder, pure": _py.MessageDecoder,
    "decoder after a message, compiled": lambda: (
        next(used := _c.MessageDecoder().feed(FRAME)) and used
    ),
    "decoder after a message, pure": lambda: (
        next(used := _py.MessageDecoder().feed(FRAME)) and used
    ),
}


def resident() -> int:
    """The resident bytes of this process. Linux only."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def held(make: Callable[[], Any], measure: Callable[[], int]) -> float:
    """The bytes that an object holds, measured on COUNT objects that exist at the same time.

    Arguments:
        make: makes an object.
        measure: gives the bytes that are allocated in all.
    """
    keep: list[Any] = [None] * COUNT
    make()
    gc.collect()
    before = measure()
    for at in range(COUNT):
        keep[at] = make()
    return (measure() - before) / COUNT


def traced(make: Callable[[], Any]) -> float:
    """The bytes that each object holds, as tracemalloc counts them."""
    tracemalloc.start()
    try:
        return held(make, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def measure() -> dict[str, dict[str, float]]:
    """Bytes by subject and method."""
    table = {}
    for subject, make in SUBJECTS.items():
        child = [sys.executable, "-m", "benchmarks.memory", subject]
        done = subprocess.run(child, check=True, capture_output=True, text=True)
        table[subject] = {"tracemalloc": traced(make), "RSS": float(json.loads(done.stdout))}
    return table


def main() -> None:
    """Print the table; with a subject, print only its RSS, for the parent process."""
    if len(sys.argv) > 1:
        print(held(SUBJECTS[sys.argv[1]], resident))
        return
    print(f"{'bytes for each':<36}{'tracemalloc':>12}{'RSS':>8}")
    for subject, row in measure().items():
        print(f"{subject:<36}{row['tracemalloc']:>12.0f}{row['RSS']:>8.0f}")


if __name__ == "__main__":
    main()
