"""Runs jobs through the published orchestrators and a Redis server.

Everything that is started here is also stopped here. This file does not use pytest, because
benchmarks/orchestrator.py uses it too.
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

# The time limit of what takes seconds, because an orchestrator may hang.
RUN_SECONDS = 120

# A runner writes a line that begins so if its end takes longer than its grace. On a busy machine, 20 ms
# may be too short although nothing hangs, so the tests that run with this default ignore the line.
ENDED_BY_FORCE = "rrq-fastwire-runner: ended by force"

# How many ports each worker has to itself. A worker skips ports in use. If two workers started runners
# on the same port at once, both would send jobs to the one that listens first.
PORTS = 50

# The setting with the runner's address, which has another name in each version.
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

# RRQ's defaults on a machine with four CPUs.
FOUR_PROCESSES = Pool(4, 1)

# The function name and the options of each job, by its id.
Jobs: TypeAlias = "dict[str, tuple[str, dict[str, Any]]]"


@dataclasses.dataclass
class Run:
    """The state of each job in Redis, by its id, and the end of the log."""

    jobs: dict[str, dict[str, Any]]
    log: str


@dataclasses.dataclass
class Orchestrator:
    """One version of rrq.

    Attributes:
        bin: the folder with the commands of rrq and of this package.
        database: a client of the Redis server.
        directory: a folder for files of the runs.
    """

    version: str
    bin: Path
    database: Redis
    directory: Path

    def run(self, runner: list[str], jobs: Jobs, pool: Pool = ONE_PROCESS) -> Run:
        """Enqueues jobs, and runs the orchestrator until all of them have ended.

        Returns before that if the orchestrator fails, or after RUN_SECONDS.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            deployment = self.deploy(runner, pool)
            deployment.enqueue(jobs)
            # On a busy machine, Redis may need more than half a second for 10 MB. Then the
            # orchestrator exits with 0, although jobs are left, and the run is repeated.
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
        """Writes the configuration of a runner, and empties Redis.

        Arguments:
            runner: the command of the runner, which is in `bin`, and its options.
            settings: what the runner gets as --settings.
            is_external: whether the test starts the runner, instead of the orchestrator.
        """
        self.database.flushall()
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        command = [str(self.bin / runner[0]), *runner[1:], "--settings", settings]
        port = free_port(PORTS)
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
    """A configuration of the orchestrator and its runner.

    Attributes:
        bin: the folder with the commands of rrq and of this package.
        database: a client of the Redis server.
        directory: the folder with rrq.toml, in which the runner also runs.
        port: the first port of the runner's processes.
        command: the runner's command line without --tcp-socket.
    """

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
        """Runs the orchestrator. At the end, kills it and all processes that it has started."""
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
                # A killed orchestrator leaves its runners running. Since 0.11, these have their own
                # process groups, so they are found by the session.
                for pid in session(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def external_runner(
        self, port: int | None = None, log: Path | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a runner without the orchestrator, and kills it at the end.

        Arguments:
            port: the runner's port, if it is not the orchestrator that connects to it.
            log: the file to which the runner writes, if it is not the orchestrator's.
        """
        port = port or self.port
        tcp_socket = f"127.0.0.1:{port}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "RRQ_FASTWIRE_PURE": "0",
            "DATABASE": "redis://127.0.0.1:{port}/0".format(
                **self.database.get_connection_kwargs()
            ),
        }
        with (
            (log or self.directory / "log").open("a") as output,
            subprocess.Popen(
                [*self.command, "--tcp-socket", tcp_socket],
                env=environment,
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                wait_until(lambda: process.poll() is not None or listens(port))
                yield process
            finally:
                process.kill()

    def work(self, jobs: Iterable[str], deadline: float) -> int | None:
        """Runs the orchestrator until the jobs have ended. Returns its exit status if it exits before.

        Does not use `--burst`, which does not wait for jobs that will be retried later.
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
    """Runs a new Redis server, without files, and yields a client."""
    if shutil.which("redis-server") is None:
        raise FileNotFoundError("redis-server is not on PATH: install Redis")
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
    """Waits until a condition is true. Returns whether it is.

    Arguments:
        deadline: when to give up, by time.monotonic(); by default after RUN_SECONDS.
    """
    deadline = deadline or time.monotonic() + RUN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def session(leader: int) -> list[int]:
    """The ids of the living processes of a session, which `leader` leads. Linux only."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pid = int(entry.name)
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            # Zombies do not count: it may take seconds until they are reaped.
            if os.getsid(pid) == leader and state != "Z":
                alive.append(pid)
    return alive


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def call(*command: Path | str, input: str | None = None) -> None:
    """Runs a command. If it fails, raises RuntimeError with the end of its output."""
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
