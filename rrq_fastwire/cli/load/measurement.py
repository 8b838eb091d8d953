"""Send jobs to one runner, or to several in turn, and measure them."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from ... import FastwireError
from ..formatting import printable
from ..progress import progress_bar
from ..target import Target, running_target
from ..workload import drive, percentile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from ...client import RunnerClient

PERCENTILES = (50, 90, 99)

# The time until the deadline of a job. Every request of the orchestrator has a deadline, too.
_DEADLINE_SECONDS = 10.0


class Plan(NamedTuple):
    """What is sent to a runner: the arguments of drive()."""

    function_name: str
    params: dict[str, Any]
    in_flight: int
    connections: int
    requests: int | None
    seconds: float | None
    rate: float | None


class Measured(NamedTuple):
    """The measurement of one turn of a runner.

    Attributes:
        seconds: how long the turn took.
        latencies: the seconds that each answer took, sorted.
        cpu: the runner's CPU time in seconds; None if it is not known.
        failures: the number of failures, by message.
    """

    seconds: float
    latencies: Sequence[float]
    cpu: float | None
    failures: Counter[str]

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    @property
    def cpu_each(self) -> float | None:
        """The runner's CPU seconds per job; None if they are not known."""
        return None if self.cpu is None else self.cpu / max(1, len(self.latencies))

    def percentile(self, percent: int) -> float:
        """Return the latency that this percentage of the answers did not exceed."""
        return percentile(self.latencies, percent)

    def figures(self) -> dict[str, Any]:
        """Return what --json prints, in seconds."""
        return {
            "requests": len(self.latencies),
            "seconds": self.seconds,
            "throughput": self.throughput,
            "cpu_seconds_each": self.cpu_each,
            "latency": {
                **{f"p{percent}": self.percentile(percent) for percent in PERCENTILES},
                "max": self.latencies[-1],
            },
            "failures": dict(self.failures.most_common()),
        }


async def measure(
    sources: Sequence[Target | list[str]], plan: Plan, rounds: int
) -> tuple[list[list[Measured]], bool]:
    """Measure the runners in turn; return each round's turns, and whether Ctrl-C ended it early.

    A round that Ctrl-C has ended counts only if every runner had its turn.
    """
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(running_target(source)) for source in sources]
        clients = [
            [
                await stack.enter_async_context(await target.connect())
                for _ in range(plan.connections)
            ]
            for target in targets
        ]
        progress = stack.enter_context(progress_bar())
        turns: list[list[Measured]] = []
        interrupted = False
        try:
            for number in range(rounds if rounds == 1 else rounds + 1):
                turns.append([])
                for index, target in enumerate(targets):
                    name = printable(plan.function_name)
                    if rounds > 1:
                        name = f"{'AB'[index]}, round {number} of {rounds}"
                    await _take_turn(target, clients[index], plan, progress, name, turns[-1])
        except (asyncio.CancelledError, FastwireError, OSError):
            # Ctrl-C also reaches a runner that was started here, which may then close connections
            # before this task is cancelled.
            task = asyncio.current_task()
            interrupted = task is not None and task.cancelling() > 0
            if not interrupted:
                raise
        counted = turns if rounds == 1 else turns[1:]
        return [turn for turn in counted if len(turn) == len(targets)], interrupted


async def _take_turn(
    target: Target,
    clients: list[RunnerClient],
    plan: Plan,
    progress: Progress,
    name: str,
    turn: list[Measured],
) -> None:
    """Send one runner its jobs, and append the measurement to `turn`, even if it ends early."""
    failures: Counter[str] = Counter()
    latencies = array("d")
    bar = progress.add_task(name, total=plan.requests or plan.seconds)
    before, start = target.cpu_seconds(), time.perf_counter()

    async def watch() -> None:
        # Not with every answer, because the bar would cost more than the jobs.
        while True:
            await asyncio.sleep(0.1)
            done = len(latencies) if plan.requests else time.perf_counter() - start
            progress.update(bar, completed=done)

    watching = asyncio.ensure_future(watch())
    try:
        await drive(
            clients,
            plan.function_name,
            plan.params,
            in_flight=plan.in_flight,
            timeout=_DEADLINE_SECONDS,
            requests=plan.requests,
            seconds=plan.seconds,
            rate=plan.rate,
            failures=failures,
            answered=latencies.append,
        )
    finally:
        watching.cancel()
        progress.remove_task(bar)
        if latencies:
            elapsed, after = time.perf_counter() - start, target.cpu_seconds()
            cpu = None if before is None or after is None else after - before
            turn.append(Measured(elapsed, sorted(latencies), cpu, failures))
