"""The CPU that a job of 100 B takes in its runner, under the real orchestrator and a real Redis.

    python -m benchmarks.orchestrator [--json FILE]

Needs redis-server and Linux. The rrq and the rrq_fastwire of the running environment are measured,
in turns; a figure is the median of the rounds. A job costs the less, the more of them arrive in
one read, and that is for the orchestrator and the machine's other load to say: let it be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rrq_fastwire.cli.driving import cpu_seconds
from tests.e2e.orchestrator import Orchestrator, redis_server, session, wait_until

from . import samples
from .runner import NATIVE, OURS, STOCK

RUNNERS = {
    STOCK: [STOCK],
    OURS: [OURS],
    NATIVE: [OURS, NATIVE],
}
ROUNDS = 5
JOBS = {
    str(number): ("echo", {"params": {"value": samples.VALUES["100B"]}}) for number in range(6000)
}
# Jobs at the beginning and at the end that are not measured.
MARGIN = 500


def cpu_per_job(orchestrator: Orchestrator, runner: list[str]) -> float:
    """Microseconds."""

    def queued() -> int:
        return orchestrator.database.zcard("rrq:queue:default")

    deployment = orchestrator.deploy(runner)
    deployment.enqueue(JOBS)
    with deployment.worker() as worker:

        def measure(left: int) -> tuple[int, float]:
            """Jobs in the queue and CPU seconds of the runner, when no more than `left` are left."""
            wait_until(lambda: worker.poll() is not None or queued() <= left)
            [pid] = set(session(worker.pid)) - {worker.pid}
            seconds = cpu_seconds(pid)
            assert seconds is not None, "the kernel keeps no account of a process's CPU time here"
            return queued(), seconds

        try:
            jobs_before, seconds_before = measure(len(JOBS) - MARGIN)
            jobs_after, seconds_after = measure(MARGIN)
        except ValueError:
            raise RuntimeError(f"{runner[-1]} has ended:\n{deployment.log}") from None
    return (seconds_after - seconds_before) / (jobs_before - jobs_after) * 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    figures: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server(Path(directory)) as database,
    ):
        orchestrator = Orchestrator(
            version("rrq"), Path(sys.executable).parent, database, Path(directory)
        )
        for _ in range(ROUNDS):
            for name, times in figures.items():
                times.append(cpu_per_job(orchestrator, RUNNERS[name]))
    stock = statistics.median(figures[STOCK])
    print(
        f"{'runner, under rrq ' + version('rrq'):<40}{'us of CPU a job':>16}{'range':>12}{'ratio':>8}"
    )
    medians = {name: statistics.median(times) for name, times in figures.items()}
    for name, median in medians.items():
        span = f"{min(figures[name]):.0f}-{max(figures[name]):.0f}"
        print(f"{name:<40}{median:>16.1f}{span:>12}{median / stock:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps({"under the orchestrator, 100 B": medians}) + "\n")


if __name__ == "__main__":
    main()
