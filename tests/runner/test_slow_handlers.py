"""--slow-callback names each handler that blocks the event loop, once, with its lines."""

from __future__ import annotations

import asyncio
import functools
import textwrap
import threading
import time

import pytest

from rrq_fastwire import OutcomeType
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.testing import run_job, running

from ..commands import until
from ..engine import SOON

LIMIT = 0.05  # seconds, for --slow-callback

# Seconds. A step that does not block takes less, even on a busy machine.
LONG = 0.4


until_warned = threading.Lock()


@pytest.fixture(autouse=True)
def blocking(caplog):
    """The first handler that blocks does so until the warning about it is logged."""

    def release(record):
        if "has blocked" in record.getMessage() and until_warned.locked():
            until_warned.release()
        return True

    with until_warned:
        caplog.handler.addFilter(release)
        yield
        caplog.handler.removeFilter(release)
        until_warned.acquire(blocking=False)


def block():
    with until_warned:  # here it blocks
        pass
    time.sleep(2 * LIMIT)  # handlers that are not the first block here


async def at_once(request):
    block()
    return "answered"


async def later(request):
    await asyncio.sleep(0)
    block()
    return "answered"


async def after_its_cancellation(request):
    try:
        await asyncio.sleep(600)
    finally:
        block()


async def waits(request):
    await asyncio.sleep(2 * LONG)
    return "answered"


async def holds_the_interpreter(request):
    # Formatting a long number is one operation of Python, during which no other thread runs.
    end = time.monotonic() + 2 * LIMIT
    number = 3**200_000
    while time.monotonic() < end:
        len(hex(number**3))


async def around(request, call_next):
    return await call_next(request)


def warnings(caplog):
    return [record for record in caplog.records if "blocked the event loop" in record.getMessage()]


def calls(run, *handlers, times=1, timeout=None, limit=LIMIT, **options):
    async def calling():
        named = {handler.__name__: handler for handler in handlers}
        async with running(named, slow_callback=limit, **options) as client:
            for name in list(named) * times:
                outcome = await client.execute(name, timeout=timeout)
            return outcome

    return run(calling())


@pytest.mark.parametrize("handler", [at_once, later])
@pytest.mark.parametrize("options", [{}, {"middleware": [around]}], ids=["alone", "in middleware"])
def test_a_handler_that_blocks_is_named_with_its_lines(run, caplog, handler, options):
    assert calls(run, handler, **options).result == "answered"
    (record,) = warnings(caplog)
    assert record.levelname == "WARNING"
    first, *stack = record.getMessage().splitlines()
    assert first == (
        f"'{handler.__name__}' has blocked the event loop for more than 0.05 s, which delays other"
        " jobs, here:"
    )
    assert stack[-4].startswith("  File ")
    assert stack[-4].endswith(f"in {handler.__name__}")
    assert stack[-3] == "    block()"
    assert stack[-2].endswith("in block")
    assert stack[-1] == "    with until_warned:  # here it blocks"
    assert not any("rrq_fastwire" in line for line in stack)


def test_each_function_is_named_once(run, caplog):
    calls(run, at_once, later, times=3)
    assert [record.getMessage().partition(" ")[0] for record in warnings(caplog)] == [
        "'at_once'",
        "'later'",
    ]


def test_blocking_after_the_deadline_is_named_too(run, caplog):
    assert calls(run, after_its_cancellation, timeout=SOON).type is OutcomeType.TIMEOUT
    (record,) = warnings(caplog)
    assert "here it blocks" in record.getMessage()


def test_a_handler_that_waits_or_runs_in_a_thread_is_not_named(run, caplog):
    def in_a_thread(request):
        time.sleep(2 * LONG)

    calls(run, waits, in_a_thread, threads=1, limit=LONG)
    assert warnings(caplog) == []


def test_a_handler_that_blocks_for_less_than_the_limit_is_not_named(run, caplog, monkeypatch):
    monkeypatch.setattr("rrq_fastwire.runner.slow.monotonic", lambda: 1000.0)

    async def blocks_briefly(request):
        time.sleep(2 * LIMIT)  # the watching thread looks meanwhile

    calls(run, blocks_briefly)
    assert warnings(caplog) == []


def test_a_function_without_a_handler_is_not_found_with_slow_callback(run):
    async def calling():
        async with running({}, slow_callback=60) as client:
            return await client.execute("missing")

    assert run(calling()).type is OutcomeType.HANDLER_NOT_FOUND


def test_code_that_holds_the_gil_is_named(run, caplog):
    calls(run, holds_the_interpreter)
    (record,) = warnings(caplog)
    assert record.getMessage().startswith("'holds_the_interpreter' has blocked the event loop")


async def nested(request):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.sleep(0, "inner"))
    return [task.result(), asyncio.current_task().get_name().startswith("rrq-runner-")]


async def catches(request):
    try:
        async with asyncio.timeout(0):
            await asyncio.sleep(600)
    except TimeoutError:
        return "caught"


class Awaitable:
    def __await__(self):
        return (yield from asyncio.sleep(0, "awaited").__await__())


def gives_an_awaitable(request):
    return Awaitable()


class Callable:
    async def __call__(self, request):
        return "called"


@pytest.mark.parametrize(
    ("handler", "result"),
    [
        (nested, ["inner", True]),
        (catches, "caught"),
        (functools.partial(catches), "caught"),
        (Callable(), "called"),
    ],
)
def test_handlers_behave_the_same_with_slow_callback(run, handler, result):
    async def calling():
        async with running({"it": handler}, slow_callback=60) as client:
            return (await client.execute("it")).result

    assert run(calling()) == result


def test_an_awaitable_object_in_a_handler_is_awaited(run):
    async def delegate(request):
        return await gives_an_awaitable(request)

    assert calls(run, delegate).result == "awaited"


def test_the_watching_thread_ends_with_the_runner(run):
    calls(run, at_once)
    until(
        lambda: "rrq-fastwire-slow" not in [each.name for each in threading.enumerate()], "its end"
    )


def test_without_slow_callback_no_handler_is_named(run, caplog):
    until_warned.release()
    run(run_job(at_once))
    assert warnings(caplog) == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_wrong_number_is_refused(seconds):
    with pytest.raises(ValueError, match="slow_callback must be more than 0 seconds"):
        Runner({}, slow_callback=seconds)


# As a process

MODULE = """
import time
from pathlib import Path

async def stuck(request):
    Path(request.params["begun"]).touch()
    while True:
        time.sleep(600)

handlers = {"stuck": stuck}
"""


@pytest.fixture
def command(command):
    (command.folder / "slow.py").write_text(textwrap.dedent(MODULE))
    return command


@pytest.mark.parametrize("given", [["--slow-callback"], ["--slow-callback", "0.05"]])
def test_a_handler_that_blocks_for_ever_is_named_while_it_blocks(command, given):
    runner = command.start(*given, settings="slow.handlers")
    command.begin(runner.port, "stuck")
    until(lambda: "time.sleep(600)" in runner.errors(), "a warning")
    limit = given[-1] if len(given) == 2 else "0.1"
    assert f"'stuck' has blocked the event loop for more than {limit} s" in runner.errors()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0", "must be more than 0, got '0'"),
        ("-1", "must be a number from 0 to 3600, got '-1'"),
        ("nan", "must be a number from 0 to 3600, got 'nan'"),
        ("soon", "must be a number from 0 to 3600, got 'soon'"),
    ],
)
def test_a_wrong_number_gets_one_line_and_status_2(command, given, said):
    done = command.run(f"--slow-callback={given}", settings="slow.handlers")
    assert done.stderr == (f"rrq-fastwire-runner: argument --slow-callback: {said} (see --help)\n")
    assert done.returncode == 2
