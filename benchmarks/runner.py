"""Compare the CPU per job of this package's runner with that of rrq's own, on one connection.

    python -m benchmarks.runner [--rounds N] [--python PATH] [--json FILE]

All runners are started at once, each in its own process, and take turns. A figure is the CPU time
of such a process, from the kernel's accounting (Linux only), and the median over the rounds. Exit
with 1 if a runner needs more than it may.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from contextlib import AsyncExitStack
from typing import NamedTuple

from rrq_fastwire.cli.runner_process import RunnerProcess, runner_process
from rrq_fastwire.cli.workload import drive

from . import samples
from .runners import (
    NATIVE,
    OURS,
    RUNNERS,
    Environment,
    environment,
    keep,
    parse_arguments,
    print_cpu,
)


class Case(NamedTuple):
    """A handler, and how it is called.

    Attributes:
        name: the row of the tables.
        size: of the params, a key of samples.VALUES.
        in_flight: how many requests are in flight at a time.
        requests: how many there are in each round.
        at_most: by runner, the highest share of rrq-runner's CPU that is allowed.
    """

    name: str
    function_name: str
    size: str
    in_flight: int
    requests: int
    at_most: dict[str, float]


SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
CASES = [
    Case("no-op, 100 B, 1 in flight", "noop", "100B", 1, 2000, {OURS: 1 / 2.8, NATIVE: 1 / 3.2}),
    Case("no-op, 100 B, 64 in flight", "noop", "100B", 64, 6000, {OURS: 1 / 6, NATIVE: 1 / 10}),
    Case("echo, 2 KB, 64 in flight", "echo", "2KB", 64, 3000, {OURS: 1 / 5}),
    Case("echo, 100 KB, 64 in flight", "echo", "100KB", 64, 200, {OURS: 1 / 4.5}),
]


async def cpu_per_job(runner: RunnerProcess, case: Case) -> float:
    """Runs a case once. Returns microseconds of CPU per job."""
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


async def measure(measured: Environment, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU per job, by case and runner."""
    async with AsyncExitStack() as stack:
        runners = {
            name: await stack.enter_async_context(
                runner_process([*measured.command(name), *SETTINGS])
            )
            for name in RUNNERS
        }
        figures: dict[str, dict[str, float]] = {}
        for case in CASES:
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
    options = parse_arguments(__doc__, rounds=5)
    measured = environment(options.python)
    figures = asyncio.run(measure(measured, options.rounds))
    keep(options.json, measured, "one connection", figures)
    title = f"CPU per job, CPython {measured.versions['python']}"
    return 1 if print_cpu(title, figures, {case.name: case.at_most for case in CASES}) else 0


if __name__ == "__main__":
    sys.exit(main())
