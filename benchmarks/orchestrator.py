"""Compare runners under the real orchestrator and a real Redis, with jobs of 100 B.

    python -m benchmarks.orchestrator [--rounds N] [--python PATH] [--json FILE]

First RRQ's defaults are measured with two processes, which have one request in flight each. Then
one process is measured with 64 requests in flight. The runners take turns. A figure is the median
of the rounds; latencies are those of all rounds together. Needs redis-server and Linux.

Use an idle machine: the more jobs arrive in one read, the less CPU each costs, and this number
depends on the orchestrator and on other load. Exit with 1 if a runner needs more CPU than it may.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from redis import Redis

from rrq_fastwire.cli.runner_process import cpu_seconds
from tests.e2e.orchestrator import (
    Orchestrator,
    Pool,
    redis_server,
    session,
    wait_until,
)

from . import samples
from .runners import (
    NATIVE,
    OURS,
    RUNNERS,
    environment,
    keep,
    parse_arguments,
    print_cpu,
)


class Deployment(NamedTuple):
    """How runners are deployed.

    Attributes:
        jobs: how many jobs they get.
        at_most: by runner, the highest share of rrq-runner's CPU that is allowed.
    """

    pool: Pool
    jobs: int
    at_most: dict[str, float]


# The jobs take about a second.
DEPLOYMENTS = {
    "RRQ's defaults, 2 processes": Deployment(Pool(2, 1), 1500, {OURS: 0.38, NATIVE: 0.34}),
    "1 process, 64 in flight": Deployment(Pool(1, 64), 4000, {OURS: 0.42, NATIVE: 0.38}),
}

ECHO = ("echo", {"params": {"value": samples.VALUES["100B"]}})
# This many jobs at the start and at the end are not measured.
MARGIN = 200
# These jobs measure the latency. They come one by one after the others, so that they do not wait
# for other jobs, with so many seconds between them.
SINGLE_JOBS = {f"single {number}": ECHO for number in range(100)}
SINGLE_SECONDS = 0.005


class Figures(NamedTuple):
    """The result of one run."""

    cpu_microseconds: float  # per job, of all processes of the runner
    jobs_per_second: float
    latencies: list[float]  # seconds from enqueue to completion


def run(orchestrator: Orchestrator, command: list[str], deployed: Deployment) -> Figures:
    """Run jobs with a runner's command, and measure."""

    def queued() -> int:
        return orchestrator.database.zcard("rrq:queue:default")

    site = orchestrator.deploy(command, deployed.pool)
    site.enqueue({str(number): ECHO for number in range(deployed.jobs)})
    with site.worker() as worker:

        def measure(left: int) -> tuple[int, float, float]:
            """Wait until at most `left` jobs are queued.

            Returns how many are queued, the time, and the CPU seconds of the runner so far.
            """
            wait_until(lambda: worker.poll() is not None or queued() <= left)
            pids = set(session(worker.pid)) - {worker.pid}
            if len(pids) != deployed.pool.pool_size:
                raise RuntimeError(f"{len(pids)} processes of {command[0]}:\n{site.log}")
            seconds = [cpu_seconds(pid) for pid in pids]
            if None in seconds:
                raise RuntimeError("the kernel keeps no account of a process's CPU time here")
            return queued(), time.monotonic(), sum(filter(None, seconds))

        jobs_before, start, cpu_before = measure(deployed.jobs - MARGIN)
        jobs_after, end, cpu_after = measure(MARGIN)
        jobs = jobs_before - jobs_after
        wait_until(lambda: not queued())
        site.enqueue(SINGLE_JOBS, every=SINGLE_SECONDS)
        latencies = [latency(orchestrator.database, id) for id in SINGLE_JOBS]
    return Figures((cpu_after - cpu_before) / jobs * 1e6, jobs / (end - start), latencies)


def latency(database: Redis, id: str) -> float:
    """Seconds from enqueue to completion, as the orchestrator notes them in Redis."""
    key = f"rrq:job:{id}"
    wait_until(lambda: database.hget(key, "status") == "COMPLETED")
    job = database.hgetall(key)
    enqueued, completed = (
        datetime.fromisoformat(job[name]) for name in ("enqueue_time", "completion_time")
    )
    return (completed - enqueued).total_seconds()


def medians(turns: list[Figures]) -> dict[str, float]:
    """The figures of one runner from its runs in all rounds, latencies in seconds."""
    pooled = [seconds for turn in turns for seconds in turn.latencies]
    return {
        "CPU per job": statistics.median(turn.cpu_microseconds for turn in turns),
        "jobs per second": statistics.median(turn.jobs_per_second for turn in turns),
        "median latency": statistics.median(pooled),
        "99th percentile of the latency": statistics.quantiles(pooled, n=100)[98],
    }


def main() -> int:
    """Measure, print, and return the exit status."""
    options = parse_arguments(__doc__, rounds=3)
    measured = environment(options.python)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server(Path(directory)) as database,
    ):
        orchestrator = Orchestrator(
            measured.versions["rrq"], measured.bin, database, Path(directory)
        )
        for deployment, deployed in DEPLOYMENTS.items():
            turns: dict[str, list[Figures]] = {name: [] for name in RUNNERS}
            for _ in range(options.rounds):
                for name, figures_of_name in turns.items():
                    figures_of_name.append(run(orchestrator, RUNNERS[name], deployed))
            figures[deployment] = {name: medians(each) for name, each in turns.items()}
    keep(options.json, measured, "under the orchestrator", figures)
    title = f"CPU per job, CPython {measured.versions['python']}"
    short = print_cpu(
        title,
        {
            deployment: {name: row["CPU per job"] for name, row in rows.items()}
            for deployment, rows in figures.items()
        },
        {deployment: deployed.at_most for deployment, deployed in DEPLOYMENTS.items()},
    )
    print(f"{'':<42}{'runner':<22}{'jobs/s':>9}{'median':>10}{'99 %':>9}")
    for deployment, rows in figures.items():
        for name, row in rows.items():
            _, per_second, median, most = row.values()
            times = f"{median * 1e3:>7.1f} ms{most * 1e3:>6.1f} ms"
            print(f"{deployment:<42}{name:<22}{per_second:>9.0f}{times}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
