"""The speed that the package is to have: its ratios to what a runner could use instead.

    python -m benchmarks.check [--rounds N] [--json FILE] [PART-OF-AN-OPERATION ...]

Prints a row for each operation and peer: the median over the rounds of the ratio of minimum times,
both measured in this process in turns, and what it is to be at most. Exits with 1 if a row falls
short. Absolute times are not shown: they are the machine's.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from rrq_fastwire import _c, _py

from . import peers, samples


class Row(NamedTuple):
    """An operation and one of its peers, each a call without arguments."""

    operation: str
    peer: str
    at_most: float
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def drain(iterator: Any) -> None:
    for _ in iterator:
        pass


def feed_all(decoder: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        for _ in decoder.feed(chunk):
            pass


def rows() -> list[Row]:
    """The table."""
    frames, answers, values = samples.REQUESTS, samples.RESPONSES, samples.VALUES
    payloads = {size: frame[4:] for size, frame in frames.items()}
    answered = {size: frame[4:] for size, frame in answers.items()}
    spaced = samples.spaced(payloads["100B"])
    spaced_frame = _c.pack_frame(spaced)
    ids = samples.IDS
    outcomes = {size: _c.ExecutionOutcome.success(*ids, value) for size, value in values.items()}
    theirs = {
        size: peers.OutcomeMessage(peers.Outcome(*ids, peers.Status.SUCCESS, value))
        for size, value in values.items()
    }

    def request(size: str, peer: Callable[[bytes], Any], twin: Any = _c) -> dict[str, Any]:
        frame, payload = frames[size], payloads[size]
        return {"ours": lambda: twin.decode_frame(frame), "theirs": lambda: peer(payload)}

    small, large = values["100B"], values["100KB"]
    ours_small = lambda: _c.encode_frame(outcomes["100B"])  # noqa: E731
    build = lambda: _c.encode_frame(_c.ExecutionOutcome.success(*ids, small))  # noqa: E731
    msgspec_build = lambda: peers.msgspec_encode_frame(  # noqa: E731
        peers.OutcomeMessage(peers.Outcome(*ids, peers.Status.SUCCESS, small))
    )
    return [
        Row("decode request, 100 B", "msgspec", 0.60, **request("100B", peers.msgspec_decode)),
        Row("decode request, 100 B", "orjson", 0.45, **request("100B", orjson.loads)),
        Row("decode request, 100 B", "rrq", 0.08, **request("100B", peers.rrq_decode)),
        Row("decode request, 2 KB", "msgspec", 0.90, **request("2KB", peers.msgspec_decode)),
        Row("decode request, 100 KB", "orjson", 1.05, **request("100KB", orjson.loads)),
        Row(
            "decode request with spaces, 100 B",
            "orjson",
            1.60,
            lambda: _c.decode_frame(spaced_frame),
            lambda: orjson.loads(spaced),
        ),
        Row(
            "decode response, 100 B",
            "msgspec",
            0.80,
            lambda: _c.decode_frame(answers["100B"]),
            lambda: peers.msgspec_decode(answered["100B"]),
        ),
        Row(
            "encode success, 100 B",
            "msgspec",
            0.40,
            ours_small,
            lambda: peers.msgspec_encode_frame(theirs["100B"]),
        ),
        Row("build and encode success, 100 B", "msgspec", 0.50, build, msgspec_build),
        Row(
            "build and encode success, 100 B",
            "rrq",
            0.04,
            build,
            lambda: peers.rrq_encode_frame(peers.rrq_success(*ids, small)),
        ),
        Row(
            "encode success, 100 KB",
            "orjson",
            1.15,
            lambda: _c.encode_frame(outcomes["100KB"]),
            lambda: orjson.dumps(large),
        ),
        Row(
            "split a stream",
            "unpack_from and slices",
            0.20,
            lambda: feed_all(_c.FrameDecoder(), samples.STREAM),
            lambda: drain(peers.split(samples.STREAM)),
        ),
        Row(
            "decode a stream",
            "the same and msgspec",
            0.50,
            lambda: feed_all(_c.MessageDecoder(), samples.STREAM),
            lambda: drain(map(peers.msgspec_decode, peers.split(samples.STREAM))),
        ),
        Row(
            "a frame of 16 MiB in 64 KiB chunks",
            "bytearray and one copy",
            1.20,
            lambda: feed_all(_c.FrameDecoder(), samples.LARGE),
            lambda: peers.append_and_copy(samples.LARGE),
        ),
        Row(
            "pure: decode request, 100 B",
            "rrq",
            0.60,
            **request("100B", peers.rrq_decode, _py),
        ),
        Row(
            "pure: build and encode success, 100 B",
            "rrq",
            0.60,
            lambda: _py.encode_frame(_py.ExecutionOutcome.success(*ids, small)),
            lambda: peers.rrq_encode_frame(peers.rrq_success(*ids, small)),
        ),
        Row("pure: decode request, 100 KB", "orjson", 1.10, **request("100KB", orjson.loads, _py)),
    ]


def spent(call: Callable[[], Any], times: int) -> int:
    """Nanoseconds for so many calls."""
    repeat = range(times)
    start = time.perf_counter_ns()
    for _ in repeat:
        call()
    return time.perf_counter_ns() - start


def calls_a_turn(call: Callable[[], Any]) -> int:
    """How many calls take about two milliseconds, once they are warm."""
    times = 1
    while (needed := spent(call, times)) < 1_000_000:
        times *= 2
    return max(1, 2_000_000 * times // needed)


def ratio(row: Row, seconds: float = 0.5) -> float:
    """The ratio of minimum times, the two taking turns."""
    calls = [(call, calls_a_turn(call)) for call in (row.ours, row.theirs)]
    best = [math.inf, math.inf]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for at, (call, times) in enumerate(calls):
            best[at] = min(best[at], spent(call, times) / times)
    return best[0] / best[1]


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help="only rows with one of these in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the ratios")
    options = parser.parse_args()
    table = [
        row
        for row in rows()
        if not options.rows or any(part in row.operation for part in options.rows)
    ]
    gc.collect()
    gc.disable()
    rounds = [[ratio(row) for row in table] for _ in range(options.rounds)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    short = 0
    print(f"{'operation':<40}{'peer':<26}{'ratio':>8}{'at most':>9}")
    for row, measured in zip(table, medians, strict=True):
        verdict = "" if measured <= row.at_most else "  falls short"
        short += bool(verdict)
        print(f"{row.operation:<40}{row.peer:<26}{measured:>8.3f}{row.at_most:>9.2f}{verdict}")
    if options.json:
        figures = [
            {
                "operation": row.operation,
                "peer": row.peer,
                "ratio": measured,
                "at_most": row.at_most,
            }
            for row, measured in zip(table, medians, strict=True)
        ]
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{short} of {len(table)} rows fall short" if short else "every row holds")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
