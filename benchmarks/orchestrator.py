"""The CPU that a job of 100 B takes in its runner, under the real orchestrator and a real Redis.

    python -m benchmarks.orchestrator [--rounds N] [--json FILE]

RRQ's defaults are measured with two processes (one request in flight in each), and then one process
with 64 requests in flight. Needs redis-server and Linux. The rrq and the rrq_fastwire of the
running environment take turns, and a figure is the median of the rounds. The more jobs arrive in
one read, the less each costs, and the orchestrator and the machine's other load decide that: let
the machine be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rrq_fastwire.cli.runner_process import cpu_seconds
from tests.e2e.orchestrator import Orchestrator, Pool, redis_server, session, wait_until

from . import samples
from .runner import NATIVE, OURS, STOCK

RUNNERS = {
    STOCK: [STOCK],
    OURS: [OURS],
    NATIVE: [OURS, NATIVE],
}
DEPLOYMENTS = {
    "RRQ's defaults, 2 processes": Pool(pool_size=2, max_in_flight=1),
    "1 process, 64 in flight": Pool(pool_size=1, max_in_flight=64),
}
JOBS = {
    str(number): ("echo", {"params": {"value": samples.VALUES["100B"]}}) for number in range(6000)
}
# Jobs at the beginning and at the end that are not measured.
MARGIN = 500


def cpu_per_job(orchestrator: Orchestrator, runner: list[str], pool: Pool) -> float:
    """Microseconds of all processes of a runner."""

    def queued() -> int:
        return orchestrator.database.zcard("rrq:queue:default")

    deployment = orchestrator.deploy(runner, pool)
    deployment.enqueue(JOBS)
    with deployment.worker() as worker:

        def measure(left: int) -> tuple[int, float]:
            """Jobs in the queue and CPU seconds of the runner, when no more than `left` are left."""
            wait_until(lambda: worker.poll() is not None or queued() <= left)
            pids = set(session(worker.pid)) - {worker.pid}
            if len(pids) != pool.pool_size:
                raise RuntimeError(f"{runner[-1]} has ended:\n{deployment.log}")
            seconds = [cpu_seconds(pid) for pid in pids]
            if None in seconds:
                raise RuntimeError("the kernel keeps no account of a process's CPU time here")
            return queued(), sum(filter(None, seconds))

        jobs_before, seconds_before = measure(len(JOBS) - MARGIN)
        jobs_after, seconds_after = measure(MARGIN)
    return (seconds_after - seconds_before) / (jobs_before - jobs_after) * 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    medians: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server(Path(directory)) as database,
    ):
        orchestrator = Orchestrator(
            version("rrq"), Path(sys.executable).parent, database, Path(directory)
        )
        for deployment, pool in DEPLOYMENTS.items():
            figures: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
            for _ in range(options.rounds):
                for name, times in figures.items():
                    times.append(cpu_per_job(orchestrator, RUNNERS[name], pool))
            print(
                f"{deployment + ', rrq ' + version('rrq'):<42}{'us per job':>16}"
                f"{'range':>12}{'ratio':>8}"
            )
            row = {name: statistics.median(times) for name, times in figures.items()}
            medians[f"under the orchestrator, 100 B: {deployment}"] = row
            for name, median in row.items():
                span = f"{min(figures[name]):.0f}-{max(figures[name]):.0f}"
                print(f"{name:<42}{median:>16.1f}{span:>12}{median / row[STOCK]:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps(medians) + "\n")


if __name__ == "__main__":
    main()
