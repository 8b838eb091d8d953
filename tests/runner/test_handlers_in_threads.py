"""--threads: plain functions run in threads, which block neither the event loop nor the shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import signal
import textwrap
import threading
import time
import weakref

import pytest

from rrq_fastwire import ExecutionOutcome, OutcomeStatus, OutcomeType
from rrq_fastwire.runner import serve
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.testing import run_job, running

from ..commands import PATIENCE
from ..engine import SOON


def call(run, handler, params=None, **options):
    return run(run_job(handler, params, threads=2, **options))


def where(request):
    return threading.current_thread().name


async def on_the_loop(request):
    return threading.current_thread().name


class Blocking:
    def handle(self, request):
        return request.params

    @staticmethod
    def handle_statically(request):
        return request.params


def decorated(function):
    @functools.wraps(function)
    def wrapper(request):
        return function(request)

    return wrapper


def returns_a_coroutine(request):
    async def go_on():
        await asyncio.sleep(0)
        return request.params

    return go_on()


PLAIN = [
    Blocking().handle,
    Blocking.handle_statically,
    functools.partial(lambda more, request: request.params, 1),
    lambda request: request.params,
    decorated(lambda request: request.params),
    returns_a_coroutine,
]


@pytest.mark.parametrize("handler", PLAIN, ids=range(len(PLAIN)))
def test_every_kind_of_plain_function_runs_in_a_thread(run, handler):
    assert call(run, handler, {"a": 1}).result == {"a": 1}


def test_async_handlers_run_in_the_event_loop(run):
    assert call(run, where).result.startswith("rrq-fastwire-handler-")
    assert call(run, on_the_loop).result == threading.current_thread().name


def test_as_many_handlers_run_at_the_same_time_as_there_are_threads(run):
    meeting = threading.Barrier(3)

    def meet(request):
        meeting.wait(PATIENCE)
        return threading.current_thread().name

    async def calling():
        async with running({"meet": meet, "where": where}, threads=3) as client:
            await client.execute("where")  # a thread that is free again counts, too
            calls = [client.execute("meet") for _ in range(12)]
            return {answer.result for answer in await asyncio.gather(*calls)}

    assert run(calling()) == {f"rrq-fastwire-handler-{number}" for number in (1, 2, 3)}


def test_no_more_threads_are_started_than_are_needed(run):
    async def calling():
        async with running({"where": where}, threads=100) as client:
            return {(await client.execute("where")).result for _ in range(5)}

    assert run(calling()) == {"rrq-fastwire-handler-1"}


def test_async_handlers_run_while_all_threads_are_busy(run):
    released = threading.Event()

    def block(request):
        return released.wait(PATIENCE)

    async def release(request):
        released.set()

    async def calling():
        async with running({"block": block, "release": release}, threads=1) as client:
            blocked = asyncio.create_task(client.execute("block"))
            await asyncio.sleep(0)  # so that its request is the first
            await client.execute("release")
            return (await blocked).result

    assert run(calling()) is True


def fail(request):
    raise ValueError("broken")


def leave(request):
    raise SystemExit(3)


def stop(request):
    raise StopIteration("no more")


def time_out(request):
    raise TimeoutError("upstream")


def give_up(request):
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("handler", "type", "message"),
    [
        (fail, OutcomeType.FAILURE, "broken"),
        (leave, OutcomeType.FAILURE, "'leave' raised SystemExit: 3"),
        (stop, OutcomeType.FAILURE, "coroutine raised StopIteration"),
        (time_out, OutcomeType.TIMEOUT, "upstream"),
        (give_up, OutcomeType.CANCELLED, "Job cancelled"),
    ],
)
def test_an_exception_in_a_thread_is_answered_as_that_of_an_async_handler(
    run, handler, type, message
):
    outcome = call(run, handler)
    assert (outcome.type, outcome.error.message) == (type, message)


def test_an_outcome_from_a_thread_is_sent_as_it_is(run):
    def refuse(request):
        return ExecutionOutcome.failure("", "", "no", code="E42")

    assert call(run, refuse).error.code == "E42"


def test_context_variables_are_copied_into_the_thread(run):
    variable = contextvars.ContextVar("variable", default="unset")

    def change(request):
        seen = variable.get()
        variable.set("changed by a handler")
        return seen

    async def set_it(request, call_next):
        variable.set("set around the job")
        return await call_next(request), variable.get()

    expected = ["set around the job", "set around the job"]
    assert call(run, change, middleware=[set_it]).result == expected


def test_a_deadline_is_answered_at_once_and_its_thread_stays_busy(run, caplog):
    began, released = threading.Event(), threading.Event()

    def block(request):
        began.set()
        released.wait(PATIENCE)

    async def calling():
        async with running({"block": block, "where": where}, threads=1) as client:
            late = await client.execute("block", timeout=SOON, job_id="late")
            assert began.is_set()
            waits = await client.execute("where", timeout=SOON)
            goes_on = asyncio.create_task(client.execute("where"))
            released.set()
            return late, waits, await goes_on

    late, waits, goes_on = run(calling())
    assert (late.status, waits.status) == (OutcomeStatus.TIMEOUT, OutcomeStatus.TIMEOUT)
    assert goes_on.result == "rrq-fastwire-handler-1"
    warnings = [text for text in caplog.messages if "keeps running in its thread" in text]
    assert len(warnings) == 1
    assert warnings[0] == (
        "job 'late': 'block' keeps running in its thread, which cannot be cancelled; busy threads:"
        " 1 of 1"
    )


def test_a_thread_that_cannot_be_started_fails_its_job_and_not_the_next(run, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def calling():
        async with running({"where": where}, threads=1) as client:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                failed = await client.execute("where")
            return failed, await client.execute("where")

    failed, goes_on = run(calling())
    assert failed.error.message == "can't start new thread"
    assert goes_on.result == "rrq-fastwire-handler-1"


def test_a_job_that_was_answered_while_it_waited_for_a_thread_is_not_run(run):
    began, released, ran = threading.Event(), threading.Event(), []

    def block(request):
        began.set()
        released.wait(PATIENCE)

    def note(request):
        ran.append(request.params)

    async def calling():
        async with running({"block": block, "note": note}, threads=1) as client:
            blocked = asyncio.create_task(client.execute("block"))
            await asyncio.to_thread(began.wait, PATIENCE)
            waiting = asyncio.create_task(client.execute("note", {"cancelled": True}, job_id="j"))
            late = await client.execute("note", {"late": True}, timeout=SOON)
            await client.cancel("j")
            assert (await waiting).type is OutcomeType.CANCELLED
            released.set()
            await blocked
            await client.execute("note", {"last": True})
            return late

    assert run(calling()).status is OutcomeStatus.TIMEOUT
    assert ran == [{"last": True}]


def test_an_exception_in_a_thread_after_its_deadline_is_logged(run, caplog):
    began, released = threading.Event(), threading.Event()

    def block(request):
        began.set()
        released.wait(PATIENCE)
        raise ValueError("too late")

    async def calling():
        async with running({"block": block, "where": where}, threads=1) as client:
            await client.execute("block", timeout=SOON, job_id="late")
            released.set()
            await client.execute("where")

    run(calling())
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    text = "job 'late': 'block' raised an exception after its job was answered:"
    assert record.getMessage() == text
    assert str(record.exc_info[1]) == "too late"


def test_objects_of_a_job_in_a_thread_are_freed_at_once(run):
    class Large:
        pass

    held = []

    def hold(request):
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError("broken")

    async def calling():
        async with running({"hold": hold, "where": where}, threads=1) as client:
            await client.execute("hold")
            await client.execute("where")
            return held[0]() is None

    gc.collect()
    gc.disable()
    logging.disable()  # otherwise pytest keeps the records, and with them the exceptions
    try:
        assert run(calling())
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_a_registry_may_get_and_replace_handlers_while_it_runs(run):
    registry = pytest.importorskip("rrq.registry", reason="rrq is not installed").Registry()
    registry.register("f", where)

    async def calling():
        async with running(registry, threads=1) as client:
            first = await client.execute("f")
            registry.register("f", on_the_loop, replace=True)
            second = await client.execute("f")
            registry.register("g", where)
            return [first.result, second.result, (await client.execute("g")).result]

    name = threading.current_thread().name
    assert run(calling()) == ["rrq-fastwire-handler-1", name, "rrq-fastwire-handler-1"]


def test_idle_threads_end_with_the_runner(run):
    def names():
        return [each.name for each in threading.enumerate() if "handler" in each.name]

    call(run, where)
    deadline = time.monotonic() + PATIENCE
    while names():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_threads_a_plain_function_is_refused_with_advice(run):
    with pytest.raises(TypeError, match="'where' is not async: define it with async def, or run"):
        run(serve({"where": where}, "127.0.0.1:9000"))


@pytest.mark.parametrize("handler", [None, 3])
def test_a_handler_that_cannot_be_called_is_refused_with_threads_too(handler):
    with pytest.raises(TypeError, match="'it'"):
        Runner({"it": handler}, threads=1)


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        Runner({}, threads=0)


# As a process

MODULE = """
import threading, time
from pathlib import Path

def where(request):
    return threading.current_thread().name

def stuck(request):
    Path(request.params["begun"]).touch()
    while True:
        time.sleep(600)

def stuck_in_c(request):
    Path(request.params["begun"]).touch()
    threading.Lock().acquire() and threading.Event().wait()

handlers = {"where": where, "stuck": stuck, "stuck_in_c": stuck_in_c}
"""


@pytest.fixture
def command(command):
    (command.folder / "plain.py").write_text(textwrap.dedent(MODULE))
    return command


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("handler", ["stuck", "stuck_in_c"])
def test_threads_that_never_end_do_not_keep_the_process_alive(command, loop, handler):
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    # With a grace this long, a process that waited for threads would not end within the test.
    runner = command.start(
        "--threads", "2", "--loop", loop, "--grace", "60", settings="plain.handlers"
    )
    peers = [command.begin(runner.port, handler) for _ in range(2)]
    runner.send_signal(signal.SIGTERM)
    assert [peer.receive().error.type for peer in peers] == ["cancelled", "cancelled"]
    assert command.wait(runner) == 0
    assert "ended by force" not in runner.errors()
    assert runner.errors().count("keeps running in its thread") == 2


def test_a_settings_object_of_rrq_may_have_plain_functions(command):
    pytest.importorskip("rrq", reason="rrq is not installed")
    runner = command.start("--threads", "1", settings="app.settings_with_a_mistake")
    assert command.connect(runner.port).ask("report") is None


def test_without_threads_the_error_names_the_option(command):
    done = command.run(settings="plain.handlers")
    assert "the handler 'where' is not async" in done.stderr
    assert "--threads" in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "many", "", "1025"])
def test_a_wrong_number_gets_one_line_and_status_2(command, given):
    done = command.run("--threads", given, settings="plain.handlers")
    assert done.stderr == (
        "rrq-fastwire-runner: argument --threads: must be an integer from 1 to 1024, got"
        f" {given!r} (see --help)\n"
    )
    assert done.returncode == 2
