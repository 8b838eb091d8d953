"""A Redis server, the published orchestrators, and how to run jobs through them.

What is started here is ended here. Nothing of pytest is used: benchmarks/orchestrator.py runs jobs,
too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from rrq_fastwire.cli.runner_process import free_port

HERE = Path(__file__).parent

# For what takes seconds. Without it, an orchestrator that hangs would hang for ever.
RUN_SECONDS = 120

# How each version wants to be told where its runner is to listen.
SOCKETS = {"0.11.1": "tcp_port = {port}", "0.9.18": 'tcp_socket = "127.0.0.1:{port}"'}

CONFIG = """\
[rrq]
redis_dsn = "{database}"
default_runner_name = "python"
default_poll_delay_seconds = 0.001
base_retry_delay_seconds = 0.1
worker_shutdown_grace_period_seconds = 1
{more}
correlation_mappings = {{ tenant = "params.tenant" }}

[rrq.runners.python]
type = "socket"
cmd = {command}
cwd = "{directory}"
{socket}
pool_size = {pool_size}
max_in_flight = {max_in_flight}
env = {{ PATH = "{path}", PYTHONPATH = "{here}", RRQ_FASTWIRE_PURE = "0", DATABASE = "{database}" }}
"""


class Pool(NamedTuple):
    """The runner processes of a worker, and the requests that each has in flight."""

    pool_size: int
    max_in_flight: int


ONE_PROCESS = Pool(1, 64)

# As RRQ's defaults have it on a machine with four CPUs.
FOUR_PROCESSES = Pool(4, 1)

# Function and options, by id.
Jobs: TypeAlias = "dict[str, tuple[str, dict[str, Any]]]"


@dataclasses.dataclass
class Run:
    """How each job stands in Redis, by its id, and the end of what was written to the log."""

    jobs: dict[str, dict[str, Any]]
    log: str


@dataclasses.dataclass
class Orchestrator:
    """One version of rrq.

    Attributes:
        bin: where its commands are, and the runners'.
        directory: where it may leave files.
    """

    version: str
    bin: Path
    database: Redis
    directory: Path

    def run(self, runner: list[str], jobs: Jobs, pool: Pool = ONE_PROCESS) -> Run:
        """Enqueues `jobs` and works until all of them have ended.

        What has not ended when the orchestrator fails or RUN_SECONDS are over is left as it is.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            deployment = self.deploy(runner, pool)
            deployment.enqueue(jobs)
            # If Redis takes more than half a second to answer, as it may for 10 MB on a busy
            # machine, the orchestrator drops what it has at hand and ends with 0. Then all starts
            # again.
            if deployment.work(jobs, deadline) != 0:
                return Run(deployment.states(jobs), deployment.log[-4000:])

    def deploy(
        self,
        runner: list[str],
        pool: Pool = ONE_PROCESS,
        settings: str = "handlers.settings",
        *,
        is_external: bool = False,
    ) -> Deployment:
        """A runner's command, found in `bin`, with a Redis that is empty.

        Arguments:
            is_external: whether the orchestrator leaves it to others to start the runner.
        """
        self.database.flushall()
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        command = [str(self.bin / runner[0]), *runner[1:], "--settings", settings]
        port = free_port(pool.pool_size)
        database = "redis://127.0.0.1:{port}/0".format(**self.database.get_connection_kwargs())
        (directory / "rrq.toml").write_text(
            CONFIG.format(
                database=database,
                more='runner_management_mode = "external"' if is_external else "",
                command=json.dumps(command),
                directory=directory,
                socket=SOCKETS[self.version].format(port=port),
                **pool._asdict(),
                here=HERE,
                path=f"{self.bin}{os.pathsep}{os.environ['PATH']}",  # for what a command starts
            )
        )
        return Deployment(self.bin, self.database, directory, port, command)


@dataclasses.dataclass
class Deployment:
    bin: Path
    database: Redis
    directory: Path
    port: int
    command: list[str]

    @property
    def log(self) -> str:
        """What the orchestrator and the runner have written."""
        return (self.directory / "log").read_text(errors="replace")

    def enqueue(self, jobs: Jobs, *, every: float | None = None) -> None:
        """Enqueues jobs at once, or with some seconds between them."""
        command = [self.bin / "python", HERE / "enqueue.py", self.directory / "rrq.toml"]
        if every is not None:
            command.append(str(every))
        call(*command, input=json.dumps(jobs))

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """The orchestrator at work. In the end it is killed, and whatever it has started."""
        with (
            (self.directory / "log").open("a") as log,
            subprocess.Popen(
                [self.bin / "rrq", "worker", "run", "--config", self.directory / "rrq.toml"],
                env={**os.environ, "RUST_LOG": "warn"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                # One that is killed leaves its runner running, since 0.11 in a process group of its
                # own.
                for pid in session(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def external_runner(self) -> Iterator[subprocess.Popen[bytes]]:
        """A runner that the orchestrator has not started. It is killed in the end."""
        tcp_socket = f"127.0.0.1:{self.port}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "RRQ_FASTWIRE_PURE": "0",
            "DATABASE": "redis://127.0.0.1:{port}/0".format(
                **self.database.get_connection_kwargs()
            ),
        }
        with (
            (self.directory / "log").open("a") as log,
            subprocess.Popen(
                [*self.command, "--tcp-socket", tcp_socket],
                env=environment,
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                wait_until(lambda: process.poll() is not None or listens(self.port))
                yield process
            finally:
                process.kill()

    def work(self, jobs: Iterable[str], deadline: float) -> int | None:
        """Lets the orchestrator work until `jobs` have ended; its exit status if it ends before.

        Without `--burst`, which does not wait for the jobs that are to be retried later.
        """
        left = deque(jobs)

        def done() -> bool:
            while left and self._has_ended(left[0]):
                left.popleft()
            return not left

        with self.worker() as process:
            wait_until(lambda: process.poll() is not None or done(), deadline)
            return process.returncode

    def have_ended(self, jobs: Iterable[str]) -> bool:
        return all(map(self._has_ended, jobs))

    def _has_ended(self, job_id: str) -> bool:
        return self.database.hget(f"rrq:job:{job_id}", "status") in ("COMPLETED", "FAILED")

    def states(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        return {
            id: {
                "status": job["status"],
                "result": json.loads(job["result"]),
                "last_error": job.get("last_error"),
                "retries": int(job["current_retries"]),
            }
            for id in jobs
            for job in [self.database.hgetall(f"rrq:job:{id}")]
        }


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[Redis]:
    """A server of our own, empty and in memory, as a client that is connected to it."""
    if shutil.which("redis-server") is None:
        raise FileNotFoundError("redis-server is needed, and is not on PATH")
    port = free_port()
    command = f"redis-server --bind 127.0.0.1 --port {port} --appendonly no --save".split()
    with subprocess.Popen([*command, ""], cwd=directory, stdout=subprocess.DEVNULL) as server:
        try:
            retry = Retry(ConstantBackoff(0.05), retries=200)
            with Redis(port=port, decode_responses=True, retry=retry) as client:
                assert client.info("server")["process_id"] == server.pid
                yield client
        finally:
            server.terminate()


def wait_until(condition: Callable[[], bool], deadline: float | None = None) -> bool:
    """Whether it comes true before the deadline, by time.monotonic(), or within RUN_SECONDS."""
    deadline = deadline or time.monotonic() + RUN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def session(leader: int) -> list[int]:
    """The processes that `leader` has started, and itself, as far as they are alive; Linux only."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pid = int(entry.name)
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            # Who collects the dead whose parent has died may take seconds.
            if os.getsid(pid) == leader and state != "Z":
                alive.append(pid)
    return alive


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def call(*command: Path | str, input: str | None = None) -> None:
    """Runs a command. Raises RuntimeError, with the end of what it wrote, if it fails."""
    done = subprocess.run(
        command,
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**os.environ, "RRQ_FASTWIRE_PURE": "0"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
