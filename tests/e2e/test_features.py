"""Features of `rrq-fastwire-runner` that the stock runner lacks, with the published orchestrators."""

from __future__ import annotations

import time

import pytest

from .orchestrator import FOUR_PROCESSES, ONE_PROCESS, RUN_SECONDS, wait_until

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

RUNNER = ["rrq-fastwire-runner"]
LIFESPAN = ["--lifespan", "features.lifespan", "--grace", "0.2"]

POOLS = {"one process": ONE_PROCESS, "four processes": FOUR_PROCESSES}


def work(orchestrator, runner, jobs, pool, settings="features.settings"):
    """Runs jobs until they have ended, and stops the worker by SIGTERM. Returns the jobs' states."""
    deployment = orchestrator.deploy(runner, pool, settings)
    deployment.enqueue(jobs)
    deadline = time.monotonic() + RUN_SECONDS
    with deployment.worker() as worker:
        assert wait_until(
            lambda: worker.poll() is not None or deployment.have_ended(jobs), deadline
        ), deployment.log
        worker.terminate()
        worker.wait(RUN_SECONDS)
    print(deployment.log)
    return deployment.states(jobs)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_lifespan_gives_each_process_one_client_and_closes_it(orchestrator, pool, loop):
    jobs = {f"job {number}": ("count", {}) for number in range(200)}
    runner = [*RUNNER, *LIFESPAN, "--loop", loop]
    states = work(orchestrator, runner, jobs, POOLS[pool])
    assert {(state["status"], state["result"]) for state in states.values()} == {
        ("COMPLETED", True)
    }
    database = orchestrator.database
    assert database.hgetall("runs") == dict.fromkeys(jobs, "1")
    processes = str(POOLS[pool].pool_size)
    assert database.get("entered") == processes
    # 0.9.18 kills its runners with SIGKILL.
    assert database.get("left") == (None if orchestrator.version == "0.9.18" else processes)


def test_the_same_handlers_run_under_the_stock_runner(orchestrator):
    jobs = {f"job {number}": ("count", {}) for number in range(20)}
    states = work(orchestrator, ["rrq-runner"], jobs, ONE_PROCESS)
    assert {(state["status"], state["result"]) for state in states.values()} == {
        ("COMPLETED", False)
    }


@pytest.mark.parametrize("pool", POOLS)
def test_handlers_that_block_run_in_threads_and_a_stuck_one_costs_no_process(orchestrator, pool):
    jobs = {f"job {number}": ("block", {}) for number in range(100)}
    jobs["stuck"] = "block", {"params": {"seconds": 600}, "job_timeout_seconds": 1}
    runner = [*RUNNER, *LIFESPAN, "--threads", "4"]
    states = work(orchestrator, runner, jobs, POOLS[pool], "features.with_threads")
    stuck = states.pop("stuck")
    assert stuck["status"] == "FAILED"
    assert "timed out" in stuck["last_error"]
    assert {id: state["result"] for id, state in states.items()} == {id: id for id in states}
    database = orchestrator.database
    assert database.hgetall("runs") == dict.fromkeys(jobs, "1")
    # The orchestrator would end the process of a job whose deadline it notices, and start another.
    assert database.get("entered") == str(POOLS[pool].pool_size)
    assert database.scard("processes") <= POOLS[pool].pool_size


def test_middleware_and_on_error_see_each_job(orchestrator):
    jobs = {f"job {number}": ("count", {}) for number in range(20)}
    jobs["fails"] = "fail", {"max_retries": 1}
    runner = [*RUNNER, *LIFESPAN, "--middleware", "features.time_it"]
    states = work(orchestrator, [*runner, "--on-error", "features.report"], jobs, ONE_PROCESS)
    assert states["fails"]["last_error"] == "broken"
    database = orchestrator.database
    assert set(database.hkeys("seconds")) == set(jobs)
    assert database.hgetall("errors") == {"fails": "ValueError('broken')"}
