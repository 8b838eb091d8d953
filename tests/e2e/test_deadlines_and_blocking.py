"""Timeouts, handlers that block, and large answers, compared with rrq-runner."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from rrq_fastwire import MessageDecoder, encode_frame

from ..requests import new_request
from .orchestrator import HERE, ONE_PROCESS, RUN_SECONDS, Pool, free_port, wait_until

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

RUNNERS = {"stock": ["rrq-runner"], "ours": ["rrq-fastwire-runner"]}
each_runner = pytest.mark.parametrize("runner", RUNNERS)


def work(orchestrator, runner, jobs, pool):
    """Runs jobs. Returns how many have ended in each status, and how often the runner was started."""
    deployment = orchestrator.deploy(RUNNERS[runner], pool)
    deployment.enqueue(jobs)
    assert deployment.work(jobs, time.monotonic() + RUN_SECONDS) is None, deployment.log
    states = deployment.states(jobs)
    starts = len((deployment.directory / "starts").read_text().splitlines())
    return Counter(state["status"] for state in states.values()), starts


@each_runner
def test_three_timeouts_of_lone_jobs_need_one_start_of_the_runner(orchestrator, runner):
    # The runner answers 30 ms early. A busy machine may need most of that.
    jobs = {f"job {number}": ("linger", {"job_timeout_seconds": 3}) for number in range(3)}
    statuses, starts = work(orchestrator, runner, jobs, Pool(1, 1))
    print(f"{runner}: {starts} starts, {dict(statuses)}")
    assert statuses == {"FAILED": 3}
    if runner == "ours":
        assert starts == 1


def test_more_jobs_that_block_end_before_their_deadline_than_with_the_stock_runner(orchestrator):
    """Each job blocks for 50 ms, so about 20 of them can end within their second."""
    options = {"params": {"seconds": 0.05}, "job_timeout_seconds": 1, "max_retries": 1}
    jobs = {f"job {number}": ("block", options) for number in range(30)}
    completed = {}
    for runner in RUNNERS:
        statuses, starts = work(orchestrator, runner, jobs, ONE_PROCESS)
        print(f"{runner}: {starts} starts, {dict(statuses)}")
        completed[runner] = statuses["COMPLETED"]
    assert completed["ours"] >= completed["stock"]
    assert completed["ours"] > 1


class Site:
    """A runner that the test starts, without an orchestrator."""

    def __init__(self, stack, command, directory):
        self._port = free_port()
        address = ["--tcp-socket", f"127.0.0.1:{self._port}"]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, "--settings", "handlers.settings", *address],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(HERE), "DATABASE": "redis://127.0.0.1:1"},
            )
        )
        stack.callback(self._process.kill)
        wait_until(self._listens)

    def _listens(self):
        with contextlib.suppress(ConnectionRefusedError):
            self.connect().close()
            return True
        return False

    def connect(self):
        return socket.create_connection(("127.0.0.1", self._port), timeout=RUN_SECONDS)

    def peak(self):
        """The largest memory of the runner so far, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def request(function_name, id, **params):
    return encode_frame(new_request(function_name, params, id=id, job_id=id))


def answers(connection, count):
    decoder = MessageDecoder()
    found = []
    while len(found) < count:
        data = connection.recv(2**20)
        assert data, "the connection has ended"
        found.extend(decoder.feed(data))
    return found


@pytest.mark.parametrize("orchestrator", ["0.11.1"], indirect=True)
def test_large_answers_that_the_peer_does_not_read_cost_no_more_than_with_the_stock_runner(
    orchestrator, tmp_path
):
    count, size = 16, 2 * 2**20
    peaks = {}
    for runner, command in RUNNERS.items():
        with contextlib.ExitStack() as stack:
            site = Site(stack, [str(orchestrator.bin / command[0])], tmp_path)
            deaf, neighbour = (stack.enter_context(site.connect()) for _ in range(2))
            neighbour.sendall(request("echo", "before", value=1))
            answers(neighbour, 1)
            before = site.peak()
            for number in range(count):
                deaf.sendall(request("make_text", str(number), size=size))
            waits = []
            # Until all answers are encoded: when the last 200 waits were all short.
            while len(waits) < 300 or max(waits[-200:]) > 0.02:
                time.sleep(0.001)
                start = time.monotonic()
                neighbour.sendall(request("echo", f"neighbour {len(waits)}", value=1))
                answers(neighbour, 1)
                waits.append(time.monotonic() - start)
            peaks[runner] = site.peak() - before
            found = answers(deaf, count)
            print(
                f"{runner}: {count} answers of {size / 2**20:g} MiB: {peaks[runner]:.0f} MiB more,"
                f" the neighbour waits up to {max(waits):.2f} s"
            )
            assert {each.request_id for each in found} == {str(n) for n in range(count)}
            assert {len(each.result) for each in found} == {size}
    assert peaks["ours"] < 1.2 * peaks["stock"]
