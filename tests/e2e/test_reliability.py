"""`rrq-fastwire-runner` under the published orchestrators: no job is lost and no process left."""

from __future__ import annotations

import time

import pytest

from .orchestrator import RUN_SECONDS, session, wait_until

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

RUNNER = ["rrq-fastwire-runner"]

# Jobs that are in flight until their runner ends. Of 64 places they leave others some.
LINGERING = {f"lingering {number}": ("linger", {}) for number in range(20)}


def counted(name, number):
    return {f"{name} {at}": ("count", {}) for at in range(number)}


def statuses(states):
    return {state["status"] for state in states.values()}


def runs(database):
    """How often each job has run, by its id."""
    return {id: int(times) for id, times in database.hgetall("runs").items()}


@pytest.fixture
def loaded(orchestrator):
    """A worker with lingering jobs in flight, and many others that come and go."""
    deployment = orchestrator.deploy(RUNNER)
    jobs = counted("early", 200) | LINGERING | counted("late", 2000)
    deployment.enqueue(jobs)

    def lingering():
        return LINGERING.keys() <= runs(orchestrator.database).keys()

    with deployment.worker() as worker:
        wait_until(lambda: worker.poll() is not None or lingering())
        assert lingering(), deployment.log
        assert len(session(worker.pid)) == 2
        yield deployment, jobs, worker


def test_each_of_20_000_jobs_runs_once(orchestrator):
    jobs = counted("job", 20_000)
    run = orchestrator.run(RUNNER, jobs)
    print(run.log)
    assert runs(orchestrator.database) == dict.fromkeys(jobs, 1)
    assert statuses(run.jobs) == {"COMPLETED"}


def test_all_of_2000_jobs_complete_though_their_runner_is_killed(orchestrator):
    killer = {"killer": ("kill_runner", {"params": {"lingering": list(LINGERING)}})}
    jobs = counted("early", 1000) | LINGERING | killer | counted("late", 1000)
    run = orchestrator.run(RUNNER, jobs)
    print(run.log)
    assert statuses(run.jobs) == {"COMPLETED"}
    times = runs(orchestrator.database)
    assert times.keys() | killer == jobs.keys()
    assert {times[id] for id in LINGERING} == {2}


def test_no_runner_remains_when_the_orchestrator_is_killed(loaded):
    _, _, worker = loaded
    worker.kill()
    worker.wait()
    assert left_of(worker) == []


def test_sigterm_under_load_ends_all_and_loses_nothing(orchestrator, loaded):
    deployment, jobs, worker = loaded
    worker.terminate()
    assert worker.wait(RUN_SECONDS) == 0
    assert left_of(worker) == []
    assert said_by_the_runner(deployment.log) == []
    assert statuses(deployment.states(LINGERING)) == {"PENDING"}

    orchestrator.database.set("released", 1)
    deployment.work(jobs, time.monotonic() + RUN_SECONDS)
    assert statuses(deployment.states(jobs)) == {"COMPLETED"}
    assert runs(orchestrator.database).keys() == jobs.keys()
    assert said_by_the_runner(deployment.log) == []


def left_of(worker):
    """The processes of a worker that do not end."""
    wait_until(lambda: not session(worker.pid), time.monotonic() + 20)
    return session(worker.pid)


def said_by_the_runner(log):
    """The orchestrator's own lines are JSON, but for one."""
    return [
        line
        for line in log.splitlines()
        if line and not line.startswith(("{", "Loading RRQ settings"))
    ]
