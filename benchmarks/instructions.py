"""Count the instructions of each operation of the compiled implementation, with valgrind.

    python -m benchmarks.instructions [--write]

Other load on the machine does not change the counts, so a rise comes from the code. Compare the counts
with those stored in instructions.json, and exit with 1 if one has risen by more than 3 %.
With --write, store them instead. Counts of another build of Python or orjson are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from rrq_fastwire import _c

from . import samples

STORED = Path(__file__).with_name("instructions.json")
TOLERANCE = 1.03
# A count is the difference between two processes, which make this many calls. So it does not contain
# the start of Python.
CALLS = (200, 1200)

_CANCEL = _c.encode_frame(_c.CancelRequest(job_id=samples.IDS[0], request_id=samples.IDS[1]))
_ERROR = _c.ExecutionOutcome.failure(*samples.IDS, "it broke", code="E1")
_SPACED = _c.pack_frame(samples.spaced(samples.REQUESTS["100B"][4:]))
_OUTCOMES = {
    size: _c.ExecutionOutcome.success(*samples.IDS, value) for size, value in samples.VALUES.items()
}
_REQUEST = _c.decode_frame(samples.REQUESTS["100B"])
_BURST = samples.REQUESTS["100B"] * 8


def _feed(decoder: Any, data: bytes) -> None:
    """Take everything that a decoder gives."""
    for _ in decoder.feed(data):
        pass


OPERATIONS: dict[str, Callable[[], Any]] = {
    "decode request 100B": lambda: _c.decode_frame(samples.REQUESTS["100B"]),
    "decode request 2KB": lambda: _c.decode_frame(samples.REQUESTS["2KB"]),
    "decode request with spaces": lambda: _c.decode_frame(_SPACED),
    "decode response 100B": lambda: _c.decode_frame(samples.RESPONSES["100B"]),
    "decode cancel": lambda: _c.decode_frame(_CANCEL),
    "encode success 100B": lambda: _c.encode_frame(_OUTCOMES["100B"]),
    "encode success 2KB": lambda: _c.encode_frame(_OUTCOMES["2KB"]),
    "encode failure": lambda: _c.encode_frame(_ERROR),
    "encode request 100B": lambda: _c.encode_frame(_REQUEST),
    "split 8 frames": lambda: _feed(_c.FrameDecoder(), _BURST),
}


def total(operation: str, calls: int, folder: str) -> int:
    """The instructions of a process that calls the operation this many times."""
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={folder}/out",
            sys.executable,
            "-m",
            "benchmarks.instructions",
            "--call",
            operation,
            str(calls),
        ],
        env=os.environ | {"PYTHONHASHSEED": "0", "RRQ_FASTWIRE_PURE": "0"},
        check=True,
        capture_output=True,
        text=True,
    )
    counted = re.search(r"Collected : (\d+)", done.stderr)
    assert counted, done.stderr
    return int(counted[1])


def count(operation: str) -> int:
    """The instructions of one call."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (total(operation, calls, folder) for calls in CALLS)
    return round((many - few) / (CALLS[1] - CALLS[0]))


def build() -> dict[str, str]:
    """The build that the counts are valid for."""
    return {
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "machine": platform.machine(),
        "orjson": orjson.__version__,
    }


def main() -> int:
    """Count, compare or store, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the counts")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        call = OPERATIONS[options.call[0]]
        for _ in range(int(options.call[1])):
            call()
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: apt-get install valgrind", file=sys.stderr)
        return 2
    counts = {operation: count(operation) for operation in OPERATIONS}
    if options.write:
        STORED.write_text(json.dumps({"build": build(), "instructions": counts}, indent=1) + "\n")
    stored = json.loads(STORED.read_text())
    comparable = stored["build"] == build()
    risen = 0
    for operation, counted in counts.items():
        before = stored["instructions"].get(operation, counted)
        rise = comparable and counted > before * TOLERANCE
        risen += rise
        print(
            f"{operation:<28}{counted:>8}{counted / before - 1:>+8.1%}{'  risen' if rise else ''}"
        )
    if not comparable:
        print(f"not compared: the stored counts are of {stored['build']}, this is {build()}")
    return 1 if risen else 0


if __name__ == "__main__":
    sys.exit(main())
