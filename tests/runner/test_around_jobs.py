"""Code that runs around each job: current_job(), middleware and on_error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
import textwrap
from datetime import datetime

import pytest

from rrq_fastwire import ExecutionOutcome, OutcomeType
from rrq_fastwire.runner import current_job
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.testing import run_job, running

from ..commands import PATIENCE
from ..engine import SOON


def calls(run, handlers, *names, timeout=None, **options):
    """Runs some functions, one after another. Returns their outcomes."""

    async def calling():
        async with running(handlers, **options) as client:
            return [await client.execute(name, timeout=timeout) for name in names]

    return run(calling())


# current_job()


def seen():
    """The id of the current job, or None."""
    job = current_job()
    return None if job is None else job.job_id


async def describe(request):
    job = current_job()
    assert job.request is request
    assert job.deadline == request.context.deadline
    assert job.deadline is None or isinstance(job.deadline, datetime)
    return [job.job_id, job.function_name, job.attempt, job.seconds_left]


def test_current_job_describes_the_request(run):
    outcome = run(run_job(describe, job_id="j", attempt=3))
    assert outcome.result == ["j", "describe", 3, None]


def test_seconds_left_is_the_time_until_the_deadline(run):
    outcome = run(run_job(describe, timeout=PATIENCE))
    assert 0 < outcome.result[-1] <= PATIENCE


async def see_everywhere(request):
    await asyncio.sleep(0)

    async def child():
        return seen()

    return {seen(), await asyncio.create_task(child()), await asyncio.to_thread(seen)}


def see(request):
    return seen()


@pytest.mark.parametrize("handler", [see_everywhere, see])
def test_tasks_and_threads_of_a_handler_have_its_current_job(run, handler):
    async def calling():
        async with running({"see": handler}, threads=2) as client:
            ids = [f"job {number}" for number in range(50)]
            outcomes = await asyncio.gather(*(client.execute("see", job_id=id) for id in ids))
            return [outcome.result in (id, [id]) for id, outcome in zip(ids, outcomes, strict=True)]

    assert run(calling()) == [True] * 50


def test_there_is_no_current_job_outside_jobs(run):
    async def calling():
        await run_job(see_everywhere)
        return seen()

    assert run(calling()) is None
    assert seen() is None


def test_current_job_has_rrqs_request_for_handlers_of_a_registry(run):
    registry = pytest.importorskip("rrq.registry", reason="rrq is not installed").Registry()
    registry.register("describe", describe)
    assert calls(run, registry, "describe", timeout=PATIENCE)[0].type is OutcomeType.SUCCESS


class AddJobId(logging.Filter):
    def filter(self, record):
        record.job_id = seen() or "-"
        return True


def test_a_logging_filter_can_add_the_job_to_its_records(run, caplog):
    async def log(request):
        logging.getLogger("of a library").warning("from the handler")
        raise ValueError("broken")

    caplog.handler.addFilter(added := AddJobId())
    try:
        run(run_job(log, job_id="j"))
        logging.getLogger("of a library").warning("from outside")
    finally:
        caplog.handler.removeFilter(added)
    assert [(record.name, record.job_id) for record in caplog.records] == [
        ("of a library", "j"),
        ("rrq_fastwire.runner", "j"),
        ("of a library", "-"),
    ]


UNUSED = """
import asyncio, contextvars, sys
from rrq_fastwire.testing import run_job

async def variables(request):
    return [variable.name for variable in contextvars.copy_context()]

print(asyncio.run(run_job(variables)).result)
optional = {"job", "lifespan", "threads", "slow", "json_forms"}
print(sorted(optional & {name.rpartition(".")[2] for name in sys.modules if "rrq_fastwire.runner" in name}))
"""


def test_unused_features_import_no_module_and_set_no_context_variable():
    done = subprocess.run(
        [sys.executable, "-c", UNUSED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n[]\n"


# Middleware


async def echo(request):
    return request.params


async def fail(request):
    raise ValueError("broken")


def test_middleware_runs_in_its_order_around_the_handler(run):
    notes = []

    def noting(name):
        async def note(request, call_next):
            notes.append(f"{name} before {request.function_name}")
            result = await call_next(request)
            notes.append(f"{name} after")
            return [name, result]

        return note

    async def handler(request):
        notes.append("handler")
        return "result"

    (outcome,) = calls(run, {"f": handler}, "f", middleware=[noting("outer"), noting("inner")])
    assert outcome.result == ["outer", ["inner", "result"]]
    assert notes == ["outer before f", "inner before f", "handler", "inner after", "outer after"]


def test_middleware_may_answer_without_the_handler_or_change_the_request(run):
    async def cache(request, call_next):
        return "from the cache"

    async def change(request, call_next):
        request.params = {"changed": True}
        return await call_next(request)

    assert calls(run, {"echo": echo}, "echo", middleware=[cache, fail_around])[0].result == (
        "from the cache"
    )
    assert calls(run, {"echo": echo}, "echo", middleware=[change])[0].result == {"changed": True}


async def fail_around(request, call_next):
    raise ValueError("of the middleware")


async def exit_around(request, call_next):
    raise SystemExit(3)


def test_middleware_that_raises_fails_only_its_job(run, caplog):
    for middleware, message in (
        (fail_around, "of the middleware"),
        (exit_around, "'echo' raised SystemExit: 3"),
    ):
        outcomes = calls(run, {"echo": echo}, "echo", "echo", middleware=[middleware])
        assert [outcome.error.message for outcome in outcomes] == [message, message]


def test_middleware_may_catch_what_a_handler_raises_and_call_it_again(run):
    attempts = []

    async def flaky(request):
        attempts.append(request)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return len(attempts)

    async def persist(request, call_next):
        while True:
            with contextlib.suppress(ConnectionError):
                return await call_next(request)

    assert calls(run, {"flaky": flaky}, "flaky", middleware=[persist])[0].result == 3


def test_middleware_returns_an_outcome_as_a_handler_does(run):
    async def refuse(request, call_next):
        return ExecutionOutcome.failure("", "", "not today", code="E42")

    (outcome,) = calls(run, {"echo": echo}, "echo", middleware=[refuse])
    assert (outcome.error.message, outcome.error.code) == ("not today", "E42")


def test_middleware_sees_the_deadline_and_cannot_delay_the_answer(run):
    notes = []

    async def wait(request):
        await asyncio.Event().wait()

    async def clean_up(request, call_next):
        try:
            return await call_next(request)
        except asyncio.CancelledError:
            notes.append("cancelled")
            await asyncio.sleep(0)
            notes.append("cleaned up")
            return "too late"

    (outcome,) = calls(run, {"wait": wait}, "wait", timeout=SOON, middleware=[clean_up])
    assert outcome.type is OutcomeType.TIMEOUT
    assert notes == ["cancelled", "cleaned up"]


def test_a_job_without_a_handler_does_not_reach_middleware(run):
    (outcome,) = calls(run, {}, "nothing", middleware=[fail_around])
    assert outcome.type is OutcomeType.HANDLER_NOT_FOUND


def test_middleware_that_is_not_async_is_refused():
    def not_async(request, call_next):
        return call_next(request)

    with pytest.raises(TypeError, match="the middleware 'not_async' is not async: define it"):
        Runner({}, middleware=[not_async])


# on_error


async def wait(request):
    await asyncio.Event().wait()


async def fail_after_its_deadline(request):
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("while cleaning up")


async def give_up(request):
    raise asyncio.CancelledError


async def time_out(request):
    raise TimeoutError("upstream")


def fail_in_a_thread(request):
    raise ValueError("in a thread")


HANDLERS = {
    handler.__name__: handler
    for handler in (
        echo,
        fail,
        wait,
        fail_after_its_deadline,
        give_up,
        time_out,
        fail_in_a_thread,
    )
}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("echo", []),
        ("give_up", []),
        ("nothing", []),
        ("fail", ["ValueError('broken')"]),
        ("time_out", ["TimeoutError('upstream')"]),
        ("wait", ["TimeoutError('Job execution timed out.')"]),
        ("fail_after_its_deadline", ["ValueError('while cleaning up')"]),
        ("fail_in_a_thread", ["ValueError('in a thread')"]),
    ],
)
def test_on_error_gets_each_exception_that_fails_a_job_and_its_request(run, name, told):
    reports = []

    def on_error(error, request):
        reports.append((repr(error), request.function_name, seen() == request.job_id))

    timeout = SOON if name in ("wait", "fail_after_its_deadline") else None
    calls(run, HANDLERS, name, timeout=timeout, threads=1, on_error=on_error)
    assert reports == [(text, name, True) for text in told]


def test_a_timeout_shows_where_the_handler_waited(run):
    reports = []
    calls(
        run,
        HANDLERS,
        "wait",
        timeout=SOON,
        threads=1,
        on_error=lambda error, request: reports.append(error),
    )
    frames = []
    traceback = reports[0].__cause__.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "wait" in frames


def test_a_retry_and_a_cancel_are_not_errors(run):
    exceptions = pytest.importorskip("rrq.exc", reason="rrq is not installed")
    reports = []

    async def retry(request):
        raise exceptions.RetryJob("later", 1)

    async def calling():
        handlers = {**HANDLERS, "retry": retry}
        async with running(
            handlers, threads=1, on_error=lambda *report: reports.append(report)
        ) as client:
            await client.execute("retry")
            waiting = asyncio.create_task(client.execute("wait", job_id="j"))
            await client.execute("echo")
            await client.cancel("j")
            return (await waiting).type

    assert run(calling()) is OutcomeType.CANCELLED
    assert reports == []


@pytest.mark.parametrize("error", [ValueError("of the tracker"), SystemExit(3)])
def test_an_exception_of_on_error_is_logged_and_affects_no_job(run, caplog, error):
    def on_error(*_):
        raise error

    outcomes = calls(run, HANDLERS, "fail", "echo", threads=1, on_error=on_error)
    assert [outcome.type for outcome in outcomes] == [OutcomeType.FAILURE, OutcomeType.SUCCESS]
    (record,) = [each for each in caplog.records if "on_error raised" in each.getMessage()]
    text = r"job '[-0-9a-f]{36}': on_error raised an exception:"
    assert re.fullmatch(text, record.getMessage())
    assert record.exc_info[1] is error


@pytest.mark.parametrize("hook", [3, fail])
def test_an_on_error_that_is_not_a_plain_function_is_refused(hook):
    with pytest.raises(TypeError, match="on_error must be a plain function, which is not async"):
        Runner({}, on_error=hook)


# As a process

MODULE = """
import asyncio, logging, sys, time
from pathlib import Path

from rrq_fastwire.runner import current_job

class AddJobId(logging.Filter):
    def filter(self, record):
        job = current_job()
        record.job_id = "-" if job is None else job.job_id
        return True

handler = logging.StreamHandler()
handler.addFilter(AddJobId())
logging.basicConfig(format="%(job_id)s %(message)s", handlers=[handler])

async def add(request):
    logging.warning("adds")
    return request.params

async def fail(request):
    raise ValueError("broken")

async def outer(request, call_next):
    return ["outer", await call_next(request)]

async def inner(request, call_next):
    return ["inner", await call_next(request)]

def plain(request, call_next):
    return call_next(request)

def tell(error, request):
    print("told of", repr(error), request.job_id, file=sys.stderr)

async def fail_later(request):
    await asyncio.sleep(0)
    raise ValueError("broken")

def wait_for_the_test(error, request):
    answered = Path(__file__).with_name("answered")
    while not answered.exists():
        time.sleep(0.01)

handlers = {"add": add, "fail": fail, "fail_later": fail_later}
try:
    from rrq.registry import Registry
    from rrq.runner_settings import PythonRunnerSettings
except ModuleNotFoundError:
    pass
else:
    registry = Registry()
    registry.register("add", add)
    registry.register("fail", fail)
    settings = PythonRunnerSettings(registry=registry)
"""


@pytest.fixture
def command(command):
    (command.folder / "around.py").write_text(textwrap.dedent(MODULE))
    return command


@pytest.mark.parametrize("settings", ["around.handlers", "around.settings"])
def test_the_command_line_gives_middleware_on_error_and_current_job(command, settings):
    if "settings" in settings:
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start(
        *("--middleware", "around.outer", "--middleware", "around:inner"),
        *("--on-error", "around.tell"),
        settings=settings,
    )
    peer = command.connect(runner.port)
    assert peer.ask("add") == ["outer", ["inner", {}]]
    peer.send("fail")
    assert peer.receive().error.message == "broken"
    peer.ask("add")
    lines = runner.errors().splitlines()
    assert lines[0] == "j adds"
    assert lines[1].startswith("j ")
    assert lines[1].endswith("'fail' raised an exception:")
    assert "told of ValueError('broken') j" in lines


@pytest.mark.parametrize("handler", ["fail", "fail_later"])
def test_the_answer_does_not_wait_for_on_error(command, handler):
    runner = command.start("--on-error", "around.wait_for_the_test", settings="around.handlers")
    peer = command.connect(runner.port)
    peer.send(handler)
    assert peer.receive().error.message == "broken"
    (command.folder / "answered").touch()
    assert peer.ask("add") == {}


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["--middleware", "around"], "--middleware must be module.attr or module:attr", 2),
        (["--on-error", "around"], "--on-error must be module.attr or module:attr", 2),
        (["--middleware", "around.plain"], "the middleware 'plain' is not async: define it", 1),
        (["--on-error", "around.outer"], "on_error must be a plain function", 1),
    ],
)
def test_a_wrong_value_gets_one_line(command, arguments, said, status):
    done = command.run(*arguments, settings="around.handlers")
    assert said in done.stderr
    assert done.stderr.startswith("rrq-fastwire-runner: ")
    assert (done.stderr.count("\n"), done.returncode) == (1, status)


@pytest.mark.parametrize("option", ["--middleware", "--on-error"])
def test_a_missing_attribute_names_the_option_to_correct(command, option):
    done = command.run(option, "around.nothing", settings="around.handlers")
    assert done.stderr.splitlines()[-1] == (
        f"rrq-fastwire-runner: 'around' has no 'nothing': correct {option}"
    )
    assert done.returncode == 1
