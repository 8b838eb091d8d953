"""Handlers that use asyncio are answered as by the stock runner."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import subprocess
import sys

import pytest

from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from ..asyncio_handlers import CASES, NEEDS, PATIENCE
from ..stock import needs_rrq, registry, stock_server


@contextlib.asynccontextmanager
async def our_server(registry):
    runner = Runner(registry)
    server = await start_server(runner.on_stream, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await runner.stop(PATIENCE)


async def answers(serve, handlers):
    """The answers to jobs with these handlers: one after another, all at once, and with deadlines."""
    names = [handler.__name__ for handler in handlers]
    made = registry(dict(zip(names, handlers, strict=True)))
    async with serve(made) as port, await RunnerClient.connect("127.0.0.1", port) as client:

        async def ask(name, timeout=None):
            outcome = await client.execute(name, timeout=timeout)
            message = outcome.error and outcome.error.message.partition(": <")[0]
            return outcome.type, outcome.result, message

        async def ask_with_a_deadline(name):
            # On Python 3.11, the stock runner runs a job with a deadline in a task of another name.
            return await ask(name, None if name.startswith("names") else PATIENCE)

        at_once = (names * 2)[:60]  # the stock runner allows 64 in flight
        async with asyncio.timeout(PATIENCE):
            found = [
                *[await ask(name) for name in names],
                *await asyncio.gather(*map(ask, at_once)),
                *await asyncio.gather(*map(ask_with_a_deadline, names)),
            ]
    return list(zip([*names, *at_once, *names], found, strict=True))


def eager(loop):
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    loop.set_task_factory(asyncio.eager_task_factory)


def plain_factory(loop):
    loop.set_task_factory(lambda loop, steps, **more: asyncio.Task(steps, loop=loop, **more))


LOOPS = {
    "asyncio": ("asyncio", lambda loop: None),
    "uvloop": ("uvloop", lambda loop: None),
    "debug": ("asyncio", lambda loop: loop.set_debug(True)),
    "task factory": ("asyncio", plain_factory),
    "eager task factory": ("asyncio", eager),
}


def run(loop_kind, coroutine):
    module, prepare = LOOPS[loop_kind]
    if module == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    unhandled = []
    with asyncio.Runner(loop_factory=importlib.import_module(module).new_event_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        try:
            prepare(loop)
        except BaseException:
            coroutine.close()
            raise
        found = runner.run(coroutine)
    assert unhandled == []
    return found


@needs_rrq
@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction")
@pytest.mark.parametrize("loop_kind", LOOPS)
@pytest.mark.parametrize("handler", CASES, ids=lambda handler: handler.__name__)
def test_a_handler_is_answered_as_by_the_stock_runner(loop_kind, handler):
    if handler in NEEDS:
        pytest.importorskip(NEEDS[handler], reason=f"{NEEDS[handler]} is not installed")
    theirs = run(loop_kind, answers(stock_server, [handler]))
    assert run(loop_kind, answers(our_server, [handler])) == theirs


@needs_rrq
@pytest.mark.parametrize("loop_kind", LOOPS)
def test_all_of_these_handlers_at_once_are_answered_as_by_the_stock_runner(loop_kind):
    handlers = [case for case in CASES if case not in NEEDS]
    theirs = run(loop_kind, answers(stock_server, handlers))
    assert run(loop_kind, answers(our_server, handlers)) == theirs


PATCHES = {
    "nest_asyncio": "import asyncio, nest_asyncio; nest_asyncio.apply(asyncio.new_event_loop())",
    "opentelemetry.instrumentation.asyncio": (
        "from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor\n"
        "AsyncioInstrumentor().instrument()"
    ),
}


def needs(library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "nest_asyncio" and sys.version_info >= (3, 14):
        pytest.skip("with nest_asyncio, CPython 3.14 has no current task")


@needs_rrq
@pytest.mark.parametrize("library", PATCHES)
def test_handlers_are_answered_as_by_the_stock_runner_if_a_library_has_patched_asyncio(
    library, tmp_path
):
    needs(library)
    (tmp_path / "patch_asyncio.py").write_text(PATCHES[library])
    cases = "test_a_handler and not uvloop"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", __file__, "-k", cases),
            *("-p", "patch_asyncio", "-W", "ignore", "-q"),
        ],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-4000:]


CANCELLED_IN_ITS_FIRST_STEP = """
import asyncio, nest_asyncio
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

nest_asyncio.apply(asyncio.new_event_loop())

async def main():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def nested(request):
        begun.set()
        while not job.done():
            asyncio.get_running_loop().run_until_complete(asyncio.sleep(0.001))
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    runner = Runner({"nested": nested})
    server = await start_server(runner.on_stream, "127.0.0.1", 0)
    async with await RunnerClient.connect(*server.sockets[0].getsockname()) as client:
        job = asyncio.create_task(client.execute("nested", job_id="j"))
        await begun.wait()
        await client.cancel("j")
        print((await job).type)
        await asyncio.wait_for(ended.wait(), 20)
        print("ended")
    server.close()
    await runner.stop(1)

asyncio.run(main())
"""


def test_a_cancel_ends_a_handler_that_runs_the_event_loop_itself(tmp_path):
    needs("nest_asyncio")
    done = subprocess.run(
        [sys.executable, "-c", CANCELLED_IN_ITS_FIRST_STEP],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["cancelled", "ended"], done.stderr
