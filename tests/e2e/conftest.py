"""A Redis server, the published orchestrators, and how to run jobs through them.

What is made here is taken down here, but for the virtual environments, which stay in build/e2e/.
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
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# For a run that takes a few seconds. Without it, an orchestrator that hangs would hang for ever.
RUN_SECONDS = 120

# How each version wants to be told where its runner is to listen.
SOCKETS = {"0.11.1": "tcp_port = {port}", "0.9.18": 'tcp_socket = "127.0.0.1:{port}"'}

CONFIG = """\
[rrq]
redis_dsn = "redis://127.0.0.1:{redis_port}/0"
default_runner_name = "python"
base_retry_delay_seconds = 0.1
correlation_mappings = {{ tenant = "params.tenant" }}

[rrq.runners.python]
type = "socket"
cmd = {command}
cwd = "{directory}"
{socket}
pool_size = 1
max_in_flight = 64
env = {{ PYTHONPATH = "{here}", RRQ_FASTWIRE_PURE = "0" }}
"""


@dataclasses.dataclass
class Run:
    """How each job stands in Redis, by its id, and the end of what the orchestrator wrote."""

    jobs: dict[str, dict[str, Any]]
    log: str


@dataclasses.dataclass
class Orchestrator:
    version: str
    bin: Path
    database: Redis
    tmp_path_factory: pytest.TempPathFactory

    def run(self, runner: list[str], jobs: dict[str, tuple[str, dict[str, Any]]]) -> Run:
        """Enqueues `jobs` (function and options, by id) and works until all of them have ended.

        What has not ended when the orchestrator fails or RUN_SECONDS are over is left as it is.
        """
        directory = self.tmp_path_factory.mktemp("run")
        config = directory / "rrq.toml"
        command = [str(self.bin / runner[0]), *runner[1:], "--settings", "handlers.settings"]
        config.write_text(
            CONFIG.format(
                redis_port=self.database.get_connection_kwargs()["port"],
                command=json.dumps(command),
                directory=directory,
                socket=SOCKETS[self.version].format(port=free_port()),
                here=HERE,
            )
        )
        deadline = time.monotonic() + RUN_SECONDS
        exit_status = 0
        # If Redis takes more than half a second to answer, as it may for 10 MB on a busy machine,
        # the orchestrator drops what it has at hand and ends with 0. Then all starts again.
        while exit_status == 0:
            self.database.flushall()
            call(self.bin / "python", HERE / "enqueue.py", config, input=json.dumps(jobs))
            exit_status = self._work(config, jobs, deadline)
        states = {id: self._state(id) for id in jobs}
        return Run(states, (directory / "log").read_text(errors="replace")[-4000:])

    def _work(self, config: Path, jobs: Iterable[str], deadline: float) -> int | None:
        """Lets the orchestrator work until `jobs` have ended; its exit status if it ends before.

        Without `--burst`, which does not wait for the jobs that are to be retried later.
        """
        with (
            config.with_name("log").open("w") as log,
            subprocess.Popen(
                [self.bin / "rrq", "worker", "run", "--config", config],
                env={**os.environ, "RUST_LOG": "warn"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                while process.poll() is None and not all(map(self._has_ended, jobs)):
                    if time.monotonic() > deadline:
                        log.write(f"\nkilled after {RUN_SECONDS} seconds\n")
                        break
                    time.sleep(0.05)
                return process.returncode
            finally:
                kill_session(process.pid)

    def _has_ended(self, job_id: str) -> bool:
        return self.database.hget(f"rrq:job:{job_id}", "status") in ("COMPLETED", "FAILED")

    def _state(self, job_id: str) -> dict[str, Any]:
        job = self.database.hgetall(f"rrq:job:{job_id}")
        return {
            "status": job["status"],
            "result": json.loads(job["result"]),
            "last_error": job.get("last_error"),
            "retries": int(job["current_retries"]),
        }


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    if shutil.which("redis-server") is None:
        pytest.fail("the end-to-end suite needs redis-server, which is not on PATH")
    port = free_port()
    command = f"redis-server --bind 127.0.0.1 --port {port} --appendonly no --save".split()
    with subprocess.Popen([*command, ""], cwd=tmp_path_factory.mktemp("redis")) as server:
        try:
            retry = Retry(ConstantBackoff(0.05), retries=200)
            with Redis(port=port, decode_responses=True, retry=retry) as client:
                assert client.info("server")["process_id"] == server.pid
                yield client
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """This package, compiled from a copy: the checkout's build/ may hold modules long deleted."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "build", "dist", "tests", "*.egg-info", "*.c", "*.so")
    shutil.copytree(ROOT, source, ignore=ignore, dirs_exist_ok=True)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    return next(wheels.glob("*.whl"))


@pytest.fixture(scope="session", params=SOCKETS)
def orchestrator(request, database, wheel, tmp_path_factory):
    """One version of rrq, with this package beside it, in a virtual environment of its own."""
    venv = ROOT / "build" / "e2e" / request.param / sys.implementation.cache_tag
    python = venv / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", venv)
    pip(python, "install", f"rrq=={request.param}", wheel)
    pip(python, "install", "--no-deps", "--force-reinstall", wheel)
    return Orchestrator(request.param, venv / "bin", database, tmp_path_factory)


def kill_session(leader: int) -> None:
    """Kills what is left of the processes that `leader` started.

    An orchestrator that is killed leaves its runner behind, which since 0.11 is in a process group
    of its own. Who else is in the session, only Linux tells.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pip(python: Path | str, *arguments: Path | str) -> None:
    call(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def call(*command: Path | str, input: str | None = None) -> None:
    """Runs a command. If it fails, so does the test, and shows the end of what it wrote."""
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
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
