"""No job is lost: a stopped runner, a wrong clock, a bad network, no descriptors, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rrq_fastwire.cli.runner_process import free_port

from ..bad_network import Unreliable, proxy
from .orchestrator import Pool, listens, session, wait_until

# The first test of a version waits for the build, the installation and the run.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.parametrize("orchestrator", ["0.11.1"], indirect=True),
]

RUNNERS = {"stock": ["rrq-runner"], "ours": ["rrq-fastwire-runner"]}
each_runner = pytest.mark.parametrize("runner", RUNNERS)

STOPPED_SECONDS = 10
FAKETIME = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketimeMT.so.1")


@each_runner
def test_no_job_is_lost_while_a_runner_is_stopped_for_ten_seconds(orchestrator, runner):
    deployment = orchestrator.deploy(RUNNERS[runner], Pool(2, 4))
    jobs = {f"job {number}": ("record", {"params": {"seconds": 0.1}}) for number in range(400)}
    deployment.enqueue(jobs)
    ledger = deployment.directory / "ledger"
    with deployment.worker() as worker:
        wait_until(lambda: ledger.exists() and ledger.read_text().count("\n") > 40)
        stopped = next(pid for pid in session(worker.pid) if pid != worker.pid)
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: deployment.have_ended(jobs))
    tell(runner, deployment, jobs, Counter(ledger.read_text().splitlines()))


def tell(runner, deployment, jobs, runs):
    """Prints how the jobs have ended. With our runner, fails if one is lost or has not completed."""
    statuses = Counter(state["status"] for state in deployment.states(jobs).values())
    duplicates = sum(runs.values()) - len(runs)
    print(f"{runner}: {dict(statuses)}, {len(jobs.keys() - runs)} lost, {duplicates} duplicates")
    if runner == "ours":
        assert runs.keys() >= jobs.keys(), deployment.log[-4000:]
        assert statuses == {"COMPLETED": len(jobs)}, deployment.log[-4000:]


@contextlib.contextmanager
def unreliable_proxy(listen, port):
    """Runs a proxy in front of a port, and yields what it has done."""
    network, ended = Unreliable(seed=1), threading.Event()

    async def serve():
        async with proxy(port, network, network, listen):
            await asyncio.to_thread(ended.wait)

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, serve())
        try:
            wait_until(lambda: served.done() or listens(listen))
            yield network
        finally:
            ended.set()
            served.result()


@each_runner
def test_no_job_is_lost_by_delays_and_resets_of_connections(orchestrator, runner):
    deployment = orchestrator.deploy(RUNNERS[runner], Pool(1, 16), is_external=True)
    jobs = {f"job {number}": ("record", {"params": {"seconds": 0.05}}) for number in range(400)}
    deployment.enqueue(jobs)
    port = free_port()
    with (
        deployment.external_runner(port),
        unreliable_proxy(deployment.port, port) as network,
        deployment.worker(),
    ):
        assert wait_until(lambda: deployment.have_ended(jobs)), deployment.log[-4000:]
    assert network.resets
    print(f"{network.resets} connections were reset")
    ledger = (deployment.directory / "ledger").read_text()
    tell(runner, deployment, jobs, Counter(ledger.splitlines()))


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Moves the clock, by seconds, of processes that start later and read it through the C library."""
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed (Debian's package faketime)")
    file = tmp_path / "clock"

    def jump(seconds):
        (tmp_path / "next").write_text(f"{seconds:+d}")
        (tmp_path / "next").replace(file)

    jump(0)
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    return jump


@each_runner
def test_no_job_is_lost_when_the_clock_goes_an_hour_forth_and_back(orchestrator, runner, clock):
    database = orchestrator.database
    deployment = orchestrator.deploy(RUNNERS[runner], Pool(2, 8))
    waiting = {f"waiting {number}": ("wait_for_release", {}) for number in range(4)}
    lingering = {f"late {number}": ("linger", {"job_timeout_seconds": 8}) for number in range(2)}
    batches = [
        {f"job {batch} {number}": ("count", {}) for number in range(100)} for batch in range(2)
    ]
    deployment.enqueue(waiting | lingering)
    with deployment.worker():
        begun = wait_until(lambda: database.hlen("runs") == len(waiting | lingering))
        assert begun, deployment.log[-4000:]
        clock(3600)
        deployment.enqueue(batches[0])
        wait_until(lambda: deployment.have_ended(batches[0] | lingering))
        clock(0)
        deployment.enqueue(batches[1])
        wait_until(lambda: deployment.have_ended(batches[1]))
        database.set("released", 1)
        wait_until(lambda: deployment.have_ended(waiting))
    runs = Counter({id: int(times) for id, times in database.hgetall("runs").items()})
    late = Counter(state["status"] for state in deployment.states(lingering).values())
    print(f"{runner}: {dict(late)} of those that never end")
    for id in lingering:
        del runs[id]
    tell(runner, deployment, waiting | batches[0] | batches[1], runs)
    if runner == "ours":
        assert late == {"FAILED": len(lingering)}


@each_runner
def test_no_job_is_lost_while_a_runner_has_no_descriptor_for_a_connection(orchestrator, runner):
    # uvloop logs nothing.
    options = ["--loop", "asyncio"] if runner == "ours" else []
    deployment = orchestrator.deploy([*RUNNERS[runner], *options], Pool(1, 4), is_external=True)
    database = orchestrator.database
    deployment.enqueue({"holder": ("use_up_descriptors", {})})
    jobs = {f"job {number}": ("make_text", {"params": {"size": 1}}) for number in range(100)}
    with deployment.external_runner(), deployment.worker():
        assert wait_until(lambda: database.exists("runs")), deployment.log[-4000:]
        deployment.enqueue(jobs)
        with deployment.worker():  # whose connection the runner cannot accept
            assert wait_until(lambda: "out of system resource" in deployment.log)
            database.set("released", 1)
            assert wait_until(lambda: deployment.have_ended(jobs)), deployment.log[-4000:]
            states = deployment.states(jobs)
    ends = Counter((state["status"], state["retries"]) for state in states.values())
    print(f"{runner}: status and retries: {dict(ends)}")
    if runner == "ours":
        assert ends == {("COMPLETED", 0): len(jobs)}


@each_runner
def test_no_job_is_lost_although_the_runner_cannot_write_its_log(orchestrator, runner):
    deployment = orchestrator.deploy(RUNNERS[runner], Pool(1, 4), is_external=True)
    jobs = {f"job {number}": ("record", {"params": {"seconds": 0}}) for number in range(100)}
    failing = {f"failing {number}": ("fail", {"max_retries": 2}) for number in range(20)}
    deployment.enqueue(jobs | failing)
    with deployment.external_runner(log=Path("/dev/full")), deployment.worker():
        assert wait_until(lambda: deployment.have_ended(jobs | failing)), deployment.log[-4000:]
        failures = deployment.states(failing).values()
    ledger = (deployment.directory / "ledger").read_text()
    tell(runner, deployment, jobs, Counter(ledger.splitlines()))
    if runner == "ours":
        assert {state["last_error"] for state in failures} == {"broken ☠ \n"}
