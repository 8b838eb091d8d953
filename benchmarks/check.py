"""Compare the speed of the codec with that of other libraries, as ratios of times.

    python -m benchmarks.check [--rounds N] [--json FILE] [PART-OF-AN-OPERATION ...]

Print a row for each operation: the ratio of this package's time to that of the other library, the
highest ratio that is allowed, and the ratio to aim for. The two take turns in this process; a ratio
is that of the minimum times, and its median over the rounds. Exit with 1 if a ratio is too high.
Absolute times are not shown, because they depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from timeit import Timer
from typing import Any, NamedTuple

import orjson
import rrq.protocol

from rrq_fastwire import _c, _py, compat

from . import peers, samples


class Row(NamedTuple):
    """An operation, and what it is compared with.

    Attributes:
        peer: the library that it is compared with.
        at_most: the highest ratio of times that is allowed.
        aim: the ratio to aim for, if that is lower.
        ours, theirs: the statements to time, which use the names of names().
    """

    operation: str
    peer: str
    at_most: float
    aim: float | None
    ours: str
    theirs: str


READ = "m.protocol_version, m.request_id, m.job_id, m.function_name, m.params, m.context.deadline"
MSGSPEC_FRAME = 'b = msgspec_encode({}); len(b).to_bytes(4, "big") + b'

ROWS = [
    Row("decode request, 100 B", "msgspec", 0.75, 0.60, "decode_frame(f)", "msgspec(f_payload)"),
    Row(
        "decode and read request, 100 B",
        "msgspec",
        0.85,
        0.70,
        f"m = decode_frame(f); {READ}",
        f"m = msgspec(f_payload).payload; {READ}",
    ),
    Row("decode request, 2 KB", "msgspec", 1.0, 0.9, "decode_frame(f2)", "msgspec(f2_payload)"),
    Row("decode request, 100 KB", "orjson", 1.05, 1.0, "decode_frame(f100)", "loads(f100_payload)"),
    Row("decode response, 100 B", "msgspec", 0.95, 0.80, "decode_frame(r)", "msgspec(r_payload)"),
    Row(
        "encode success, 100 B",
        "msgspec and prefix",
        0.45,
        0.40,
        "encode_frame(outcome)",
        MSGSPEC_FRAME.format("message"),
    ),
    Row(
        "build and encode success, 100 B",
        "msgspec and prefix",
        0.65,
        0.50,
        "encode_frame(ExecutionOutcome.success(job_id, request_id, value))",
        MSGSPEC_FRAME.format("Message(Outcome(job_id, request_id, SUCCESS, value))"),
    ),
    Row(
        "encode success, 100 KB",
        "orjson",
        1.30,
        1.15,
        "encode_frame(outcome100)",
        "dumps(value100)",
    ),
    Row(
        "split a stream",
        "unpack_from and slices",
        0.20,
        None,
        "feed_all(c.FrameDecoder(), stream)",
        "drain(split(stream))",
    ),
    Row(
        "decode a stream",
        "the same and msgspec",
        0.50,
        None,
        "feed_all(c.MessageDecoder(), stream)",
        "drain(map(msgspec, split(stream)))",
    ),
    Row(
        "a frame of 16 MiB in 64 KiB chunks",
        "bytearray and one copy",
        1.20,
        None,
        "feed_all(c.FrameDecoder(), large)",
        "append_and_copy(large)",
    ),
    Row(
        "decode request with spaces, 100 B",
        "orjson",
        2.6,
        2.0,
        "decode_frame(spaced_frame)",
        "loads(spaced)",
    ),
    Row(
        "decode request in another order, 100 B",
        "orjson",
        2.6,
        2.0,
        "decode_frame(other_order_frame)",
        "loads(other_order)",
    ),
    Row(
        "compat: encode a message, 2 KB",
        "rrq",
        1 / 6,
        None,
        'compat_encode("request", fields2)',
        'rrq_encode_message("request", fields2)',
    ),
    Row(
        "pure: decode request, 100 B",
        "rrq",
        0.60,
        None,
        "py_decode_frame(f)",
        "rrq_decode(f_payload)",
    ),
    Row(
        "pure: build and encode success, 100 B",
        "rrq",
        0.60,
        None,
        "py_encode_frame(ExecutionOutcome.success(job_id, request_id, value))",
        "rrq_encode(rrq_success(job_id, request_id, value))",
    ),
    Row(
        "pure: decode request, 100 KB",
        "orjson",
        1.10,
        None,
        "py_decode_frame(f100)",
        "loads(f100_payload)",
    ),
    Row(
        "pure: split a stream",
        "unpack_from and slices",
        2.5,
        None,
        "feed_all(py.FrameDecoder(), stream)",
        "drain(split(stream))",
    ),
]


def drain(iterator: Iterable[Any]) -> None:
    """Take everything from an iterator."""
    for _ in iterator:
        pass


def feed_all(decoder: Any, chunks: list[bytes]) -> None:
    """Feed all chunks to a decoder, and take everything that it decodes."""
    for chunk in chunks:
        for _ in decoder.feed(chunk):
            pass


def names() -> dict[str, Any]:
    """The names that the statements use.

    f, f2 and f100 are the frames of requests of 100 B, 2 KB and 100 KB, and r that of a response.
    """
    (f, f2, f100), values = samples.REQUESTS.values(), samples.VALUES
    job_id, request_id = samples.IDS
    spaced = samples.spaced(f[4:])
    other_order = samples.in_another_order(f[4:])
    return {
        "c": _c,
        "py": _py,
        "decode_frame": _c.decode_frame,
        "encode_frame": _c.encode_frame,
        "py_decode_frame": _py.decode_frame,
        "py_encode_frame": _py.encode_frame,
        "ExecutionOutcome": _c.ExecutionOutcome,
        "loads": orjson.loads,
        "dumps": orjson.dumps,
        "msgspec": peers.msgspec_decode,
        "msgspec_encode": peers.msgspec_encode,
        "Message": peers.OutcomeMessage,
        "Outcome": peers.Outcome,
        "SUCCESS": peers.Status.SUCCESS,
        "rrq_decode": peers.rrq_decode,
        "rrq_encode": peers.rrq_encode_frame,
        "rrq_success": peers.rrq_success,
        "split": peers.split,
        "append_and_copy": peers.append_and_copy,
        "drain": drain,
        "feed_all": feed_all,
        "job_id": job_id,
        "request_id": request_id,
        "f": f,
        "f2": f2,
        "f100": f100,
        "f_payload": f[4:],
        "f2_payload": f2[4:],
        "f100_payload": f100[4:],
        "spaced": spaced,
        "spaced_frame": _c.pack_frame(spaced),
        "other_order": other_order,
        "other_order_frame": _c.pack_frame(other_order),
        "compat_encode": compat.encode_message,
        "rrq_encode_message": rrq.protocol.encode_message,
        "fields2": orjson.loads(f2[4:])["payload"],
        "r": samples.RESPONSES["100B"],
        "r_payload": samples.RESPONSES["100B"][4:],
        "value": values["100B"],
        "value100": values["100KB"],
        "outcome": _c.ExecutionOutcome.success(job_id, request_id, values["100B"]),
        "outcome100": _c.ExecutionOutcome.success(job_id, request_id, values["100KB"]),
        "message": peers.OutcomeMessage(
            peers.Outcome(job_id, request_id, peers.Status.SUCCESS, values["100B"])
        ),
        "stream": samples.STREAM,
        "large": samples.LARGE,
    }


def calls_per_turn(timer: Timer) -> int:
    """The number of calls that take about two milliseconds."""
    times = 1
    while (needed := timer.timeit(times)) < 0.001:
        times *= 2
    return max(1, int(0.002 * times / needed))


def ratio(row: Row, seconds: float = 0.5) -> float:
    """The ratio of the minimum times of both statements, which take turns for some seconds."""
    timers = [Timer(statement, globals=names()) for statement in (row.ours, row.theirs)]
    turns = [(timer, calls_per_turn(timer)) for timer in timers]
    best = [math.inf, math.inf]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for at, (timer, times) in enumerate(turns):
            best[at] = min(best[at], timer.timeit(times) / times)
    return best[0] / best[1]


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help="only operations whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the ratios")
    options = parser.parse_args()
    table = [
        row
        for row in ROWS
        if not options.rows or any(part in row.operation for part in options.rows)
    ]
    rounds = [[ratio(row) for row in table] for _ in range(options.rounds)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    fell_short = 0
    print(f"{'operation':<40}{'peer':<26}{'ratio':>8}{'at most':>9}{'aim':>7}")
    for row, measured in zip(table, medians, strict=True):
        verdict = "" if measured <= row.at_most else "  falls short"
        fell_short += bool(verdict)
        aim = f"{row.aim:.2f}" if row.aim else ""
        print(
            f"{row.operation:<40}{row.peer:<26}{measured:>8.3f}{row.at_most:>9.3f}{aim:>7}{verdict}"
        )
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
    print(f"{fell_short} of {len(table)} rows fall short" if fell_short else "no row falls short")
    return 1 if fell_short else 0


if __name__ == "__main__":
    sys.exit(main())
