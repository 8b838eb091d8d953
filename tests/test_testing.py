"""rrq_fastwire.testing: run_job() and running() run handlers as the runner does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import textwrap

import pytest

from rrq_fastwire import OutcomeStatus, OutcomeType
from rrq_fastwire.runner import lifespan_value
from rrq_fastwire.testing import run_job, running


async def greet(request):
    return f"Hello {request.params['name']}"


async def describe(request):
    context = request.context
    return [
        request.function_name,
        request.job_id,
        context.attempt,
        context.queue_name,
        context.trace_context,
        context.correlation_context,
        context.deadline is not None,
    ]


async def fail(request):
    raise ValueError("broken")


async def wait(request):
    await asyncio.Event().wait()


def test_a_job_is_run_and_its_outcome_returned(run):
    outcome = run(run_job(greet, {"name": "Ada"}))
    assert (outcome.status, outcome.result) == (OutcomeStatus.SUCCESS, "Hello Ada")


def test_a_job_has_the_values_that_run_job_is_given(run):
    outcome = run(
        run_job(
            describe,
            job_id="j",
            attempt=3,
            queue_name="q",
            trace_context={"a": "b"},
            correlation_context={"c": "d"},
            timeout=60,
        )
    )
    assert outcome.result == ["describe", "j", 3, "q", {"a": "b"}, {"c": "d"}, True]


def test_an_exception_of_a_handler_is_an_outcome(run):
    outcome = run(run_job(fail))
    assert (outcome.type, outcome.error.message) == (OutcomeType.FAILURE, "broken")


def test_a_timeout_is_an_outcome(run):
    assert run(run_job(wait, timeout=0.05)).type is OutcomeType.TIMEOUT


def test_a_result_that_cannot_be_sent_is_an_outcome_with_the_reason(run):
    async def report(request):
        return object()

    assert "cannot be sent" in run(run_job(report)).error.message


def test_the_result_is_converted_to_json_and_back(run):
    async def report(request):
        return {"a": (1, {2})}

    assert run(run_job(report)).result == {"a": [1, [2]]}


def test_options_of_a_runner_apply_to_a_job(run):
    @contextlib.asynccontextmanager
    async def lifespan():
        yield "pool"

    def handler(request):
        return lifespan_value()

    async def around(request, call_next):
        return ["around", await call_next(request)]

    outcome = run(run_job(handler, lifespan=lifespan, threads=1, middleware=[around]))
    assert outcome.result == ["around", "pool"]


def test_many_jobs_run_at_once_on_a_client(run):
    async def calling():
        async with running({"greet": greet, "wait": wait}) as client:
            waiting = asyncio.create_task(client.execute("wait", job_id="j"))
            calls = [client.execute("greet", {"name": number}) for number in range(50)]
            answers = await asyncio.gather(*calls)
            await client.cancel("j")
            return [answer.result for answer in answers], (await waiting).type

    expected = [f"Hello {number}" for number in range(50)], OutcomeType.CANCELLED
    assert run(calling()) == expected


def test_a_registry_gets_rrqs_requests_and_a_mapping_this_packages(run):
    registry = pytest.importorskip("rrq.registry", reason="rrq is not installed").Registry()

    async def kind(request):
        return type(request).__module__.partition(".")[0]

    registry.register("kind", kind)

    async def calling(handlers):
        async with running(handlers) as client:
            return (await client.execute("kind")).result

    assert run(calling(registry)) == "rrq"
    assert run(calling({"kind": kind})) == "rrq_fastwire"


def test_jobs_that_run_at_the_end_are_cancelled_and_awaited(run):
    notes = []

    async def clean_up(request):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            notes.append("cleaned up")

    @contextlib.asynccontextmanager
    async def lifespan():
        yield
        notes.append("left")

    async def calling():
        before = asyncio.all_tasks()
        async with running({"clean_up": clean_up, "greet": greet}, lifespan=lifespan) as client:
            job = asyncio.create_task(client.execute("clean_up"))
            await client.execute("greet", {"name": "Ada"})
        with pytest.raises(ConnectionError):
            await job
        await asyncio.sleep(0)
        return asyncio.all_tasks() - before

    assert run(calling()) == set()
    assert notes == ["cleaned up", "left"]


def test_an_exception_inside_running_is_raised(run):
    async def calling():
        async with running({"greet": greet}):
            raise AssertionError("of the test")

    with pytest.raises(AssertionError, match="of the test"):
        run(calling())


def test_a_wrong_handler_raises(run):
    def not_async(request):
        pass

    with pytest.raises(TypeError, match="'not_async' is not async"):
        run(run_job(not_async))


HANDLERS = """
from contextlib import asynccontextmanager

from rrq_fastwire.runner import lifespan_value


async def greet(request):
    return f"{lifespan_value()} {request.params['name']}"


@asynccontextmanager
async def lifespan():
    yield "Hello"
"""

WITH_PYTEST_ASYNCIO = """
import pytest
import pytest_asyncio
from handlers import greet, lifespan

from rrq_fastwire.testing import run_job, running


@pytest_asyncio.fixture
async def client():
    async with running({"greet": greet}, lifespan=lifespan) as client:
        yield client


@pytest.mark.asyncio
async def test_with_a_fixture(client):
    assert (await client.execute("greet", {"name": "Ada"})).result == "Hello Ada"


@pytest.mark.asyncio
async def test_without():
    assert (await run_job(greet, {"name": "Ada"}, lifespan=lifespan)).result == "Hello Ada"
"""

WITH_ANYIO = """
import pytest
from handlers import greet, lifespan

from rrq_fastwire.testing import run_job, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def client():
    async with running({"greet": greet}, lifespan=lifespan) as client:
        yield client


async def test_with_a_fixture(client):
    assert (await client.execute("greet", {"name": "Ada"})).result == "Hello Ada"


async def test_without():
    assert (await run_job(greet, {"name": "Ada"}, lifespan=lifespan)).result == "Hello Ada"
"""


@pytest.mark.parametrize(
    ("plugin", "module"),
    [("pytest_asyncio", WITH_PYTEST_ASYNCIO), ("anyio", WITH_ANYIO)],
    ids=["pytest-asyncio", "anyio"],
)
def test_fixtures_of_pytest_plugins_work(tmp_path, plugin, module):
    pytest.importorskip(plugin, reason=f"{plugin} is not installed")
    (tmp_path / "handlers.py").write_text(textwrap.dedent(HANDLERS))
    (tmp_path / "test_handlers.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert re.search(r"\b2 passed", done.stdout), done.stdout
    assert done.returncode == 0
