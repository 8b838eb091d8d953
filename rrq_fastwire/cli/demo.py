"""`demo`: measure the same handlers in rrq's own runner and in this one."""

from __future__ import annotations

import importlib
import sys
import time
from array import array

from .runner_process import runner_process
from .workload import drive, percentile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import Progress

_JOBS = 20_000
_IN_FLIGHT = 64
_PARAMS = {"user_id": 123456, "email": "someone@example.com", "template": "welcome", "retries": 3}

_SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
_RUNNERS = {
    "rrq-runner": ["rrq.runner_runtime"],
    "rrq-fastwire-runner": ["rrq_fastwire.runner"],
    "+ --native-messages": ["rrq_fastwire.runner", "--native-messages"],
}


def run() -> int:
    """Compare rrq's own runner with this one over 20,000 jobs, and return the exit status."""
    try:
        importlib.import_module("rrq.runner_runtime")
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        from .progress import progress_bar
        from .target import run as run_work
    except ImportError as error:
        print(
            "rrq-fastwire: the demo needs other packages:"
            f" pip install rrq 'rrq-fastwire[cli]' ({error})",
            file=sys.stderr,
        )
        return 1

    console = Console()
    table = Table(
        "runner",
        *("jobs/s", "CPU\nper job", "less\nCPU", "p50", "p95", "p99"),
        title=f"{_JOBS:,} jobs that echo 100 B, one connection, {_IN_FLIGHT} in flight",
        box=SIMPLE_HEAD,
        padding=0,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    with progress_bar() as progress:
        stock: float | None = None
        for name, arguments in _RUNNERS.items():
            command = [sys.executable, "-m", *arguments, *_SETTINGS]
            elapsed, cpu, unsorted = run_work(_measure(name, command, progress))
            stock = stock or cpu
            latencies = sorted(unsorted)
            table.add_row(
                name,
                f"{_JOBS / elapsed:,.0f}",
                f"{cpu / _JOBS * 1e6:.1f} us" if cpu else "-",
                f"{stock / cpu:.1f}x" if cpu and stock and cpu is not stock else "-",
                *(f"{percentile(latencies, at) * 1e3:.2f} ms" for at in (50, 95, 99)),
            )
    console.print(table)
    return 0


async def _measure(
    name: str, command: list[str], progress: Progress
) -> tuple[float, float | None, array[float]]:
    """Return the elapsed seconds, the runner's CPU seconds, and the latencies of all jobs."""
    async with runner_process(command) as runner:
        task = progress.add_task(name, total=_JOBS)
        latencies = array("d")

        def answered(seconds: float) -> None:
            latencies.append(seconds)
            progress.advance(task)

        cpu = runner.cpu_seconds()
        start = time.perf_counter()
        await drive(
            [runner.client],
            "echo",
            _PARAMS,
            in_flight=_IN_FLIGHT,
            requests=_JOBS,
            timeout=60,
            answered=answered,
        )
        elapsed = time.perf_counter() - start
        cpu_after = runner.cpu_seconds()
    spent = cpu_after - cpu if cpu is not None and cpu_after is not None else None
    return elapsed, spent, latencies
