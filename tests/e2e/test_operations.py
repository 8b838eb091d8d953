"""Operating `rrq-fastwire-runner` under the published orchestrators: recycling, drain, metrics."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .orchestrator import FOUR_PROCESSES, ONE_PROCESS, RUN_SECONDS, wait_until

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

POOLS = {"one process": ONE_PROCESS, "four processes": FOUR_PROCESSES}


def statuses(states):
    return {state["status"] for state in states.values()}


def retries(states):
    return {state["retries"] for state in states.values()}


def runs(database):
    """How often each job has run, by its id."""
    return {id: int(times) for id, times in database.hgetall("runs").items()}


def have_run(database, jobs):
    return jobs.keys() <= runs(database).keys()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pool", POOLS)
def test_each_job_runs_once_and_at_its_first_attempt_although_runners_restart(
    orchestrator, pool, loop
):
    seconds = [0, 0, 0, 0.02]
    jobs = {
        f"job {at}": ("count_and_name_image", {"params": {"seconds": seconds[at % 4]}})
        for at in range(1000)
    }
    runner = ["rrq-fastwire-runner", "--max-jobs", "50", "--loop", loop]
    run = orchestrator.run(runner, jobs, POOLS[pool])
    print(run.log)
    assert runs(orchestrator.database) == dict.fromkeys(jobs, 1)
    assert statuses(run.jobs) == {"COMPLETED"}
    assert retries(run.jobs) == {0}
    images = orchestrator.database.scard("images")
    print(f"{images} process images")
    # Each one runs 45 to 50 of the 1000 jobs, and those that have already arrived when it stops.
    assert images >= 8


@pytest.fixture
def external(orchestrator):
    if orchestrator.version == "0.9.18":
        pytest.skip("runners that are started externally came with rrq 0.10.6")

    def deploy(*options):
        return orchestrator.deploy(["rrq-fastwire-runner", *options], is_external=True)

    return deploy


WAITING = {f"job {at}": ("wait_for_release", {}) for at in range(10)}


def test_with_drain_jobs_of_an_external_runner_complete_at_their_first_attempt(external):
    deployment = external("--drain", "60", "--grace", "1", "--no-parent-watch")
    deployment.enqueue(WAITING)
    with deployment.worker() as worker, deployment.external_runner() as runner:
        wait_until(lambda: worker.poll() is not None or have_run(deployment.database, WAITING))
        assert have_run(deployment.database, WAITING), deployment.log
        runner.terminate()
        deployment.database.set("released", 1)
        assert runner.wait(RUN_SECONDS) == 0
        wait_until(lambda: all(deployment._has_ended(job) for job in WAITING))
        states = deployment.states(WAITING)
    assert statuses(states) == {"COMPLETED"}, deployment.log
    assert retries(states) == {0}
    assert runs(deployment.database) == dict.fromkeys(WAITING, 1)


def test_without_drain_each_job_of_an_external_runner_loses_an_attempt(external):
    deployment = external("--no-parent-watch")
    deployment.enqueue(WAITING)
    with deployment.worker() as worker:
        with deployment.external_runner() as runner:
            wait_until(lambda: worker.poll() is not None or have_run(deployment.database, WAITING))
            runner.terminate()
            assert runner.wait(RUN_SECONDS) == 0
        deployment.database.set("released", 1)
        with deployment.external_runner():
            wait_until(lambda: all(deployment._has_ended(job) for job in WAITING))
        states = deployment.states(WAITING)
    assert statuses(states) == {"COMPLETED"}, deployment.log
    assert min(retries(states)) >= 1


def test_metrics_agree_with_redis(orchestrator):
    jobs = (
        {f"echo {at}": ("echo", {"params": {"value": at}}) for at in range(500)}
        | {f"fail {at}": ("fail", {"max_retries": 2}) for at in range(20)}
        | {f"retry {at}": ("retry_once", {"params": {"delay": 0.01}}) for at in range(20)}
        | {f"late {at}": ("time_out", {}) for at in range(5)}
        | {f"unknown {at}": ("nothing", {}) for at in range(5)}
    )
    deployment = orchestrator.deploy(["rrq-fastwire-runner", "--metrics", "127.0.0.1:+1"])
    deployment.enqueue(jobs)
    with deployment.worker() as worker:
        wait_until(
            lambda: worker.poll() is not None or all(deployment._has_ended(job) for job in jobs)
        )
        url = f"http://127.0.0.1:{deployment.port + 1}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
    counted = {
        tuple(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "rrq_fastwire_jobs_total"
    }
    states = deployment.states(jobs)
    attempts = {
        name: sum(
            state["retries"] + (state["status"] == "COMPLETED")
            for id, state in states.items()
            if id.startswith(name)
        )
        for name in ("echo", "fail", "retry")
    }
    print(counted, attempts)
    assert counted["echo", "success"] == attempts["echo"] == 500
    assert counted["fail", "failure"] == attempts["fail"]
    assert counted["retry_after", "retry_once"] + counted["retry_once", "success"] == 40
    assert attempts["retry"] == 40
    assert counted["time_out", "timeout"] == 5
    assert counted["(unknown)", "handler_not_found"] == 5
