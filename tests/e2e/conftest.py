"""A Redis server, the published orchestrators, and how to run jobs through them.

Everything is made here and taken down here: virtual environments stay below build/e2e/, the rest
is temporary.
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
from pathlib import Path
from typing import Any

import pytest
import redis

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# What a run may take, of which a good one takes some seconds. An orchestrator can hang for ever.
RUN_SECONDS = 120

CONFIG = """\
[rrq]
redis_dsn = "redis://127.0.0.1:{redis_port}/0"
default_runner_name = "python"
default_poll_delay_seconds = 0.001
base_retry_delay_seconds = 0.1
correlation_mappings = {{ tenant = "params.tenant" }}

[rrq.runners.python]
type = "socket"
cmd = {cmd}
cwd = "{cwd}"
{socket}
pool_size = 1
max_in_flight = 64
env = {{ PYTHONPATH = "{here}", RRQ_FASTWIRE_PURE = "0" }}
"""

ENDED = ("COMPLETED", "FAILED")

# The runner's socket in the configuration of each version.
SOCKETS = {"0.11.1": "tcp_port = {port}", "0.9.18": 'tcp_socket = "127.0.0.1:{port}"'}


@dataclasses.dataclass
class Run:
    """How each job stands in Redis, by its id, and the end of what the orchestrator wrote."""

    jobs: dict[str, dict[str, Any]]
    log: str


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory):
    if shutil.which("redis-server") is None:
        pytest.fail("the end-to-end suite needs redis-server, and it is not on PATH")
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    command += ["--save", "", "--appendonly", "no", "--logfile", "redis.log"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while not answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"redis-server: {(directory / 'redis.log').read_text()}")
                time.sleep(0.01)
            yield port
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """This package, compiled from a copy: the checkout's build/ can hold what is no longer in it."""
    source = tmp_path_factory.mktemp("source") / "rrq-fastwire"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "tests", "*.egg-info", "*.so", "*.c"),
    )
    wheels = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    return next(wheels.glob("*.whl"))


@pytest.fixture(scope="session", params=SOCKETS)
def orchestrator(request, wheel, redis_port, tmp_path_factory):
    """One version of rrq, with this package beside it, in a virtual environment of its own."""
    version = request.param
    venv = ROOT / "build" / "e2e" / version / sys.implementation.cache_tag
    if not (venv / "bin" / "python").exists():
        call(sys.executable, "-m", "venv", venv)
    pip(venv / "bin" / "python", "install", f"rrq=={version}", wheel)
    pip(venv / "bin" / "python", "install", "--no-deps", "--force-reinstall", wheel)
    return Orchestrator(version, venv / "bin", redis_port, tmp_path_factory)


@dataclasses.dataclass
class Orchestrator:
    version: str
    bin: Path
    redis_port: int
    tmp_path_factory: pytest.TempPathFactory

    def run(self, runner: list[str], jobs: dict[str, tuple[str, dict[str, Any]]]) -> Run:
        """Enqueues `jobs` (a function's name and options, by id) and works until all of them have ended.

        Jobs that have not ended within RUN_SECONDS are left and reported as they stand.
        """
        directory = self.tmp_path_factory.mktemp("run")
        config = directory / "rrq.toml"
        command = [str(self.bin / runner[0]), *runner[1:], "--settings", "handlers.settings"]
        config.write_text(
            CONFIG.format(
                redis_port=self.redis_port,
                cmd=json.dumps(command),
                cwd=directory,
                socket=SOCKETS[self.version].format(port=free_port()),
                here=HERE,
            )
        )
        with redis.Redis(port=self.redis_port, decode_responses=True) as database:
            database.flushall()
            call(self.bin / "python", HERE / "enqueue.py", config, input=json.dumps(jobs))
            deadline = time.monotonic() + RUN_SECONDS
            while True:
                in_order = self._burst(config, deadline - time.monotonic())
                states = {id: state(database, id) for id in jobs}
                # A burst does not wait for the jobs that are to be retried later.
                if not in_order or all(job["status"] in ENDED for job in states.values()):
                    return Run(states, (directory / "log").read_text()[-4000:])

    def _burst(self, config: Path, seconds: float) -> bool:
        """Whether the orchestrator ended well, in time."""
        command = [self.bin / "rrq", "worker", "run", "--config", config, "--burst"]
        with (
            (config.parent / "log").open("a") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RUST_LOG": "warn"},
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                log.write(f"\nkilled after {RUN_SECONDS} seconds\n")
                return False
            finally:
                kill_session(process.pid)


def state(database: redis.Redis, job_id: str) -> dict[str, Any]:
    job = database.hgetall(f"rrq:job:{job_id}")
    return {
        "status": job["status"],
        "result": json.loads(job["result"]),
        "last_error": job.get("last_error"),
        "retries": int(job["current_retries"]),
    }


def kill_session(leader: int) -> None:
    """Kills what is left of the processes that `leader` started.

    An orchestrator that is killed leaves its runner behind, which since 0.11 is in a process group
    of its own. Only Linux tells the members of a session.
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


def answers(port: int) -> bool:
    with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port) as database:
        return database.ping()
    return False


def pip(python: Path | str, *arguments: Path | str) -> None:
    call(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def call(*command: Path | str, input: str | None = None) -> None:
    """Runs a command of a few minutes at most; the test fails, with its output, if that does."""
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
