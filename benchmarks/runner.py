"""Compare the CPU per job of this package's runner with that of rrq's own.

    python -m benchmarks.runner [--rounds N] [--json FILE] [PART-OF-A-CASE ...]

All runners run at once, each in its own process, and take turns. A figure is the median over the
rounds of the CPU time of a process, from the kernel's accounting (Linux only). Exit with 1 if a row
falls short.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from rrq_fastwire.cli.runner_process import RunnerProcess, runner_process
from rrq_fastwire.cli.workload import drive

from . import samples


class Case(NamedTuple):
    """One of the example's handlers, how it is called, and the ratios to reach by runner."""

    name: str
    function_name: str
    size: str
    in_flight: int
    requests: int
    at_most: dict[str, float]


SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
STOCK, OURS, NATIVE = "rrq-runner", "rrq-fastwire-runner", "--native-messages"
MODULES = {
    STOCK: ["rrq.runner_runtime"],
    OURS: ["rrq_fastwire.runner"],
    NATIVE: ["rrq_fastwire.runner", "--native-messages"],
}
CASES = [
    Case("no-op, 100 B, 64 in flight", "noop", "100B", 64, 6000, {OURS: 1 / 6, NATIVE: 1 / 12}),
    Case("echo, 2 KB, 64 in flight", "echo", "2KB", 64, 3000, {OURS: 1 / 5}),
    Case("echo, 100 KB, 64 in flight", "echo", "100KB", 64, 200, {OURS: 1 / 4}),
    Case("no-op, 100 B, 1 in flight", "noop", "100B", 1, 2000, {OURS: 1 / 3}),
]


async def cpu_per_job(runner: RunnerProcess, case: Case) -> float:
    """Microseconds."""
    before = runner.cpu_seconds()
    await drive(
        [runner.client],
        case.function_name,
        samples.VALUES[case.size],
        in_flight=case.in_flight,
        requests=case.requests,
        timeout=300,
    )
    after = runner.cpu_seconds()
    assert before is not None
    assert after is not None, "the kernel keeps no account of a process's CPU time here"
    return (after - before) / case.requests * 1e6


async def measure(cases: list[Case], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU per job, by case and runner."""
    async with AsyncExitStack() as stack:
        runners = {
            name: await stack.enter_async_context(
                runner_process([sys.executable, "-m", *module, *SETTINGS])
            )
            for name, module in MODULES.items()
        }
        figures: dict[str, dict[str, float]] = {}
        for case in cases:
            for runner in runners.values():  # to warm them up
                await cpu_per_job(runner, case._replace(requests=case.requests // 4))
            turns = [
                {name: await cpu_per_job(runner, case) for name, runner in runners.items()}
                for _ in range(rounds)
            ]
            figures[case.name] = {
                name: statistics.median(turn[name] for turn in turns) for name in runners
            }
        return figures


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", help="only cases with one of these in their name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    cases = [
        case
        for case in CASES
        if not options.cases or any(part in case.name for part in options.cases)
    ]
    figures = asyncio.run(measure(cases, options.rounds))
    short = 0
    print(f"{'CPU of the runner per job':<30}{'runner':<22}{'us':>9}{'of stock':>10}{'at most':>9}")
    for case in cases:
        row = figures[case.name]
        for name, microseconds in row.items():
            ratio = row[STOCK] / microseconds
            at_most = case.at_most.get(name)
            falls_short = at_most is not None and 1 / ratio > at_most
            short += falls_short
            print(
                f"{case.name:<30}{name:<22}{microseconds:>9.1f}{f'1/{ratio:.2f}':>10}"
                f"{f'1/{1 / at_most:.0f}' if at_most else '':>9}"
                f"{'  falls short' if falls_short else ''}"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
