"""Measure the jobs per second of several pools, and print a table. See docs/how-to/size-a-pool.md.

    redis-server --port 6390 --save '' --daemonize yes
    python docs/examples/pool/measure.py redis://127.0.0.1:6390/0

Needs rrq and rrq-fastwire in the environment. Each measurement uses a new queue. Nothing in that
Redis is deleted.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from rrq.client import RRQClient
from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings

POOLS = [(1, 1), (2, 1), (4, 1), (1, 16), (2, 16), (1, 64)]  # pool_size, max_in_flight
HANDLERS = ["wait", "compute"]
RUN_SECONDS = 120  # a run that takes longer fails
ROUNDS = 3  # the table has the median

CONFIG = """\
[rrq]
redis_dsn = "{redis}"
default_queue_name = "{queue}"
default_runner_name = "python"
default_poll_delay_seconds = 0.001

[rrq.runners.python]
type = "socket"
cmd = ["{bin}/rrq-fastwire-runner", "--settings", "measure.settings"]
tcp_port = 19300
pool_size = {pool_size}
max_in_flight = {max_in_flight}
env = {{ PYTHONPATH = "{here}" }}
"""


async def wait(request):
    """Takes as long as a call to another server, and no CPU."""
    await asyncio.sleep(0.05)


async def compute(request):
    """Uses the CPU for ten milliseconds, and blocks the event loop."""
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass


registry = Registry()
for handler in (wait, compute):
    registry.register(handler.__name__, handler)
settings = PythonRunnerSettings(registry=registry)


async def enqueue(config: Path, function_name: str, count: int) -> None:
    client = RRQClient(config_path=str(config))
    for _ in range(count):
        await client.enqueue(function_name, {})
    await client.close()


def jobs_per_second(redis: str, function_name: str, pool_size: int, max_in_flight: int) -> float:
    """Measure one handler with one pool.

    The time of a run with a single job is subtracted, so that the time to start the processes does
    not count. There are enough jobs for some seconds, because that time varies.
    """
    seconds = []
    count = 400 if function_name == "compute" else 100 * pool_size * max_in_flight
    for jobs in (1, count):
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "rrq.toml"
            config.write_text(
                CONFIG.format(
                    redis=redis,
                    queue=f"measure-{uuid.uuid4()}",
                    bin=Path(sys.executable).parent,
                    here=Path(__file__).parent.resolve(),
                    pool_size=pool_size,
                    max_in_flight=max_in_flight,
                )
            )
            asyncio.run(enqueue(config, function_name, jobs))
            rrq = Path(sys.executable).parent / "rrq"
            start = time.perf_counter()
            subprocess.run(
                [rrq, "worker", "run", "--config", config, "--burst"],
                env={**os.environ, "RUST_LOG": "error"},
                stdout=subprocess.DEVNULL,
                timeout=RUN_SECONDS,
                check=True,
            )
            seconds.append(time.perf_counter() - start)
    return (count - 1) / (seconds[1] - seconds[0])


def main(redis: str) -> None:
    """Measure all pools, and print the table in Markdown."""
    print("| `pool_size` | `max_in_flight` | waits 50 ms | computes 10 ms |\n|---|---|---|---|")
    for pool in POOLS:
        cells = []
        for function_name in HANDLERS:
            rounds = sorted(jobs_per_second(redis, function_name, *pool) for _ in range(ROUNDS))
            cells.append(f"{rounds[ROUNDS // 2]:.0f} jobs/s")
        print(f"| {pool[0]} | {pool[1]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
