"""Compare how long runners take to start, and how much memory they hold.

    python -m benchmarks.process [--rounds N] [--python PATH] [--json FILE]

The runners take turns, and each figure is the median of the rounds. Linux only.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

from rrq_fastwire.cli.runner_process import runner_process
from rrq_fastwire.cli.workload import drive

from . import samples
from .runner import SETTINGS
from .runners import RUNNERS, environment, keep, parse_arguments

JOBS = 10_000


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: RSS, and PSS, which counts only a part of each shared page."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return {"RSS": kib["Rss"] / 1024, "PSS": kib["Pss"] / 1024}


async def observe(command: list[str]) -> dict[str, float]:
    """The figures of a runner that is started and gets 10,000 jobs of 100 B, 64 in flight."""
    start = time.monotonic()
    async with runner_process([*command, *SETTINGS]) as runner:
        figures = {"seconds until it listens": time.monotonic() - start}
        figures |= {f"{kind}, after the start": size for kind, size in memory(runner.pid).items()}
        await drive(
            [runner.client],
            "noop",
            samples.VALUES["100B"],
            in_flight=64,
            requests=JOBS,
            timeout=300,
        )
        after = memory(runner.pid)
        figures |= {f"{kind}, after {JOBS:,} jobs": size for kind, size in after.items()}
    return figures


def main() -> int:
    """Measure, print, and return the exit status."""
    options = parse_arguments(__doc__, rounds=3)
    measured = environment(options.python)
    turns = [
        {name: asyncio.run(observe(measured.command(name))) for name in RUNNERS}
        for _ in range(options.rounds)
    ]
    figures = {
        subject: {
            name: statistics.median(turn[name][subject] for turn in turns) for name in RUNNERS
        }
        for subject in next(iter(turns[0].values()))
    }
    keep(options.json, measured, "process", figures)
    title = f"CPython {measured.versions['python']}, s and MiB"
    print(f"{title:<30}" + "".join(f"{name:>21}" for name in RUNNERS))
    for subject, row in figures.items():
        print(f"{subject:<30}" + "".join(f"{value:>21.2f}" for value in row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
