"""Calls the compiled codec in many ways, for `make valgrind`: a short run that covers its code."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))

    from tests.fuzz import decode_frame, encode_frame, message_decoder

    for harness in (decode_frame, message_decoder, encode_frame):
        seeds = list(harness.seeds())
        for number, seed in enumerate(seeds):
            harness.check(seed)
            harness.check(seed[: len(seed) * (number % 7) // 7])
            harness.check(seed[::-1])
    print("done")
