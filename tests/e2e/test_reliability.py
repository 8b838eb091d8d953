"""`rrq-fastwire-runner` with the published orchestrators: no job is lost, and no process remains."""

from __future__ import annotations

import time

import pytest

from .orchestrator import (
    ENDED_BY_FORCE,
    FOUR_PROCESSES,
    ONE_PROCESS,
    RUN_SECONDS,
    Pool,
    session,
    wait_until,
)

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

RUNNER = ["rrq-fastwire-runner"]


def lingering(number):
    """Jobs that are in flight until their runner ends."""
    return {f"lingering {at}": ("linger", {}) for at in range(number)}


POOLS = {"one process": ONE_PROCESS, "four processes": FOUR_PROCESSES}

# So many lingering jobs leave room for others: in the 64 places, or in one of the four processes.
MOST_LINGERING = {ONE_PROCESS: 20, FOUR_PROCESSES: 3}


def counted(name, number):
    """Jobs that count their runs."""
    return {f"{name} {at}": ("count", {}) for at in range(number)}


def statuses(states):
    return {state["status"] for state in states.values()}


def runs(database):
    """How often each job has run, by its id."""
    return {id: int(times) for id, times in database.hgetall("runs").items()}


@pytest.fixture(params=POOLS)
def loaded(request, orchestrator):
    """A worker with lingering jobs in flight, which also runs many short jobs."""
    pool = POOLS[request.param]
    lingerers = lingering(MOST_LINGERING[pool])
    deployment = orchestrator.deploy(RUNNER, pool)
    jobs = counted("early", 200) | lingerers | counted("late", 2000)
    deployment.enqueue(jobs)
    with deployment.worker() as worker:
        wait_until(lambda: worker.poll() is not None or have_run(orchestrator, lingerers))
        assert have_run(orchestrator, lingerers), deployment.log
        assert len(session(worker.pid)) == 1 + pool.pool_size
        yield deployment, jobs, lingerers, worker


def have_run(orchestrator, jobs):
    return jobs.keys() <= runs(orchestrator.database).keys()


@pytest.mark.parametrize("pool", POOLS)
def test_each_of_5000_jobs_runs_once(orchestrator, pool):
    jobs = counted("job", 5000)
    run = orchestrator.run(RUNNER, jobs, POOLS[pool])
    print(run.log)
    assert runs(orchestrator.database) == dict.fromkeys(jobs, 1)
    assert statuses(run.jobs) == {"COMPLETED"}


def test_all_of_2000_jobs_complete_although_their_runner_is_killed(orchestrator):
    lingerers = lingering(20)
    killer = {"killer": ("kill_runner", {"params": {"lingering": list(lingerers)}})}
    jobs = counted("early", 1000) | lingerers | killer | counted("late", 1000)
    run = orchestrator.run(RUNNER, jobs)
    print(run.log)
    assert statuses(run.jobs) == {"COMPLETED"}
    times = runs(orchestrator.database)
    assert times.keys() | killer == jobs.keys()
    assert {times[id] for id in lingerers} == {2}


def test_no_runner_remains_when_the_orchestrator_is_killed(loaded):
    *_, worker = loaded
    worker.kill()
    worker.wait()
    assert left_of(worker) == []


def test_no_runner_remains_when_the_orchestrator_is_killed_as_they_start(orchestrator):
    deployment = orchestrator.deploy(RUNNER, FOUR_PROCESSES)
    with deployment.worker() as worker:
        wait_until(lambda: len(session(worker.pid)) > 1)
        worker.kill()
        worker.wait()
        assert left_of(worker) == []


def test_sigterm_under_load_ends_every_process_and_loses_no_job(orchestrator, loaded):
    deployment, jobs, lingerers, worker = loaded
    worker.terminate()
    assert worker.wait(RUN_SECONDS) == 0
    assert left_of(worker) == []
    assert said_by_the_runner(deployment.log) == []
    assert statuses(deployment.states(lingerers)) <= put_back(orchestrator)

    orchestrator.database.set("released", 1)
    deployment.work(jobs, time.monotonic() + RUN_SECONDS)
    assert statuses(deployment.states(jobs)) == {"COMPLETED"}
    assert runs(orchestrator.database).keys() == jobs.keys()
    assert said_by_the_runner(deployment.log) == []


@pytest.mark.parametrize("runner", [["rrq-runner"], RUNNER], ids=["stock", "ours"])
def test_jobs_that_cannot_be_cancelled_are_put_back_at_sigterm(orchestrator, runner):
    # The worker stops its processes one after another, and has two seconds for all of them.
    pool = Pool(16, 1)
    jobs = {f"job {at}": ("linger_in_thread", {}) for at in range(pool.pool_size)}
    deployment = orchestrator.deploy(runner, pool)
    deployment.enqueue(jobs)
    with deployment.worker() as worker:
        wait_until(lambda: have_run(orchestrator, jobs))
        start = time.monotonic()
        worker.terminate()
        assert worker.wait(RUN_SECONDS) == 0
        print(f"ended after {time.monotonic() - start:.2f} s")
        assert left_of(worker) == []
    assert statuses(deployment.states(jobs)) <= put_back(orchestrator)


def put_back(orchestrator):
    """The possible states of jobs that ran when their worker ended.

    0.9.18 cancels such jobs first, and sometimes reads the answer before it puts the job back. It
    does the same with the stock runner.
    """
    return {"PENDING", "RETRYING"} if orchestrator.version == "0.9.18" else {"PENDING"}


def left_of(worker):
    """The processes of a worker that have not ended after 20 seconds."""
    wait_until(lambda: not session(worker.pid), time.monotonic() + 20)
    return session(worker.pid)


def said_by_the_runner(log):
    """The lines that the runner has written to a log, without "ended by force".

    The orchestrator's own lines are JSON, except one.
    """
    return [
        line
        for line in log.splitlines()
        if line and not line.startswith(("{", "Loading RRQ settings", ENDED_BY_FORCE))
    ]
