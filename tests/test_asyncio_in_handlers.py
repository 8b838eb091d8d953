"""What handlers do with asyncio, in the stock runner and in this one: each is answered alike."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("rrq", reason="compares with rrq, which is not installed")

from rrq import runner_runtime
from rrq.registry import Registry
from rrq.runner import PythonRunner

from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

PATIENCE = 30

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


async def sleep_and_return(value):
    await asyncio.sleep(0.001)
    return value


async def fail_soon():
    await asyncio.sleep(0)
    raise ValueError("failed")


# Timeouts


async def times_out(request):
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()


async def times_out_at_once(request):
    async with asyncio.timeout(0):
        await asyncio.Event().wait()


async def catches_its_timeout(request):
    try:
        async with asyncio.timeout(0.001) as scope:
            await asyncio.Event().wait()
    except TimeoutError:
        return [scope.expired(), asyncio.current_task().cancelling()]


async def has_time_left(request):
    async with asyncio.timeout(PATIENCE) as scope:
        await asyncio.sleep(0)
    return scope.expired()


async def nests_timeouts(request):
    seen = []
    try:
        async with asyncio.timeout(0.2):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            seen.append("inner")
            await asyncio.Event().wait()
    except TimeoutError:
        seen.append("outer")
    return seen


async def reschedules_a_timeout(request):
    async with asyncio.timeout(0) as scope:
        scope.reschedule(None)
        await asyncio.sleep(0.002)
    return scope.when()


async def waits_for(request):
    return await asyncio.wait_for(sleep_and_return(1), PATIENCE)


async def waits_for_in_vain(request):
    await asyncio.wait_for(asyncio.Event().wait(), 0.001)


async def waits_for_zero_seconds(request):
    await asyncio.wait_for(asyncio.Event().wait(), 0)


# Groups of tasks


async def groups_tasks(request):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sleep_and_return(n)) for n in range(3)]
    return [task.result() for task in tasks]


async def groups_a_failing_task(request):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())
        group.create_task(fail_soon())


async def catches_a_group(request):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon())
            await asyncio.Event().wait()
    except* ValueError as errors:
        seen = [repr(error) for error in errors.exceptions]
    return [seen, asyncio.current_task().cancelling()]


async def raises_in_a_group_at_once(request):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())
        raise LookupError("at once")


async def gathers(request):
    return await asyncio.gather(*(sleep_and_return(n) for n in range(3)))


async def gathers_failures(request):
    found = await asyncio.gather(sleep_and_return(1), fail_soon(), return_exceptions=True)
    return [repr(each) for each in found]


async def gathers_a_failure(request):
    await asyncio.gather(sleep_and_return(1), fail_soon())


async def shields(request):
    inner = asyncio.ensure_future(sleep_and_return(5))
    try:
        async with asyncio.timeout(0):
            await asyncio.shield(inner)
    except TimeoutError:
        return await inner


async def waits_for_the_first(request):
    tasks = [asyncio.create_task(sleep_and_return(1)), asyncio.create_task(asyncio.Event().wait())]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [len(done), len(pending)]


async def takes_what_is_completed(request):
    return sorted([await each for each in asyncio.as_completed(map(sleep_and_return, range(3)))])


# Its task


async def names_its_task(request):
    names = [asyncio.current_task().get_name()]
    await asyncio.sleep(0)
    names.append(asyncio.current_task().get_name())
    return [name == f"rrq-runner-{request.request_id}" for name in names]


async def names_its_task_and_does_not_wait(request):
    return asyncio.current_task().get_name() == f"rrq-runner-{request.request_id}"


async def keeps_its_task(request):
    before = asyncio.current_task()
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    return before is asyncio.current_task() and before in asyncio.all_tasks()


async def is_among_all_tasks_at_once(request):
    return asyncio.current_task() in asyncio.all_tasks()


async def is_not_done(request):
    task = asyncio.current_task()
    await asyncio.sleep(0)
    return [task.done(), task.cancelled(), task.cancelling()]


async def cancels_itself(request):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def cancels_itself_with_words(request):
    asyncio.current_task().cancel("words")
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError as error:
        return list(error.args)


async def cancels_itself_and_waits_for_a_future(request):
    future = asyncio.get_running_loop().create_future()
    asyncio.current_task().cancel()
    try:
        await future
    except asyncio.CancelledError:
        return [future.cancelled(), asyncio.current_task().cancelling()]


async def cancels_itself_soon(request):
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    future = asyncio.get_running_loop().create_future()
    try:
        await future
    except asyncio.CancelledError:
        return [future.cancelled(), asyncio.current_task().cancelling()]


async def cancels_itself_soon_within_a_task(request):
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    inner = asyncio.create_task(asyncio.Event().wait())
    try:
        await inner
    except asyncio.CancelledError:
        return inner.cancelled()


async def cancels_itself_and_takes_it_back(request):
    task = asyncio.current_task()
    task.cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return [task.uncancel(), task.cancelling()]


async def cancels_itself_and_goes_on(request):
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return 1


async def raises_cancelled_error(request):
    raise asyncio.CancelledError("by itself")


async def awaits_itself(request):
    await asyncio.current_task()


async def shares_a_future(request):
    """Others wait for what the handler waits for, before its task has seen it."""
    future = asyncio.get_running_loop().create_future()

    async def wait():
        return await future

    others = [asyncio.create_task(wait()) for _ in range(2)]
    asyncio.get_running_loop().call_later(0.001, future.set_result, 7)
    return [await future, *(await asyncio.gather(*others))]


async def awaits_a_future_that_is_done(request):
    future = asyncio.get_running_loop().create_future()
    future.set_result(3)
    return await future


async def awaits_a_future_that_fails_at_once(request):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, LookupError("soon"))
    await future


async def orders_its_steps(request):
    """A bare yield takes one iteration of the event loop, the first as well."""
    seen = []
    loop = asyncio.get_running_loop()
    loop.call_soon(seen.append, "first")
    await asyncio.sleep(0)
    loop.call_soon(seen.append, "second")
    seen.append("step")
    await asyncio.sleep(0)
    return seen


async def locks(request):
    lock, seen = asyncio.Lock(), []

    async def enter(name):
        async with lock:
            seen.append(name)
            await asyncio.sleep(0)

    async with lock:
        other = asyncio.create_task(enter("other"))
        await asyncio.sleep(0)
        seen.append("own")
    await other
    return seen


async def queues(request):
    queue = asyncio.Queue(1)

    async def put():
        for n in range(3):
            await queue.put(n)

    putting = asyncio.create_task(put())
    found = [await queue.get() for _ in range(3)]
    await putting
    return found


# Contexts


async def keeps_its_context(request):
    seen = [VARIABLE.get()]
    VARIABLE.set("before")
    await asyncio.sleep(0)
    seen.append(VARIABLE.get())
    VARIABLE.set("after")
    seen.append(await asyncio.create_task(reads_the_variable()))
    seen.append(await asyncio.to_thread(VARIABLE.get))
    asyncio.get_running_loop().call_soon(lambda: seen.append(VARIABLE.get()))
    await asyncio.sleep(0)
    return seen


async def reads_the_variable():
    return VARIABLE.get()


async def resets_a_token(request):
    token = VARIABLE.set("set")
    await asyncio.sleep(0)
    VARIABLE.reset(token)
    return VARIABLE.get()


async def sets_a_variable_and_does_not_wait(request):
    before = VARIABLE.get()
    VARIABLE.set("left behind")
    return before


async def starts_a_thread(request):
    return await asyncio.to_thread(lambda: time.sleep(0.002) or 4)


# Generators


async def iterates(request):
    async def generate():
        for n in range(3):
            yield n
            await asyncio.sleep(0)

    return [n async for n in generate()]


async def leaves_a_generator(request):
    closed = []

    async def generate():
        try:
            yield 1
            yield 2
        finally:
            closed.append(await sleep_and_return("closed"))

    async with contextlib.aclosing(generate()) as generator:
        async for _ in generator:
            break
    return closed


# Exceptions


async def raises(request):
    await asyncio.sleep(0)
    raise LookupError("later")


async def raises_a_group(request):
    await asyncio.sleep(0)
    raise ExceptionGroup("several", [ValueError("1"), TypeError("2")])


async def raises_stop_iteration(request):
    await asyncio.sleep(0)
    raise StopIteration("value")


async def raises_from_a_context(request):
    try:
        await fail_soon()
    except ValueError as error:
        raise LookupError("outer") from error


# Other libraries


async def uses_anyio(request):
    anyio = importlib.import_module("anyio")
    seen = []
    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        seen.append(scope.cancelled_caught)
        send, receive = anyio.create_memory_object_stream(1)
        group.start_soon(send.send, "sent")
        seen.append(await receive.receive())
        seen.append(await anyio.to_thread.run_sync(lambda: "thread"))
        send.close()
        receive.close()
    try:
        with anyio.fail_after(0):
            await anyio.sleep_forever()
    except TimeoutError:
        seen.append("failed")
    return seen


async def cancels_an_anyio_scope_at_once(request):
    anyio = importlib.import_module("anyio")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep_forever()
    return [scope.cancelled_caught, asyncio.current_task().cancelling()]


async def uses_aiohttp(request):
    aiohttp = importlib.import_module("aiohttp")
    web = importlib.import_module("aiohttp.web")

    async def answer(_):
        return web.Response(text="hello")

    server = web.Application()
    server.router.add_get("/", answer)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [address] = runner.addresses
    try:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{address[1]}/") as response,
        ):
            return await response.text()
    finally:
        await runner.cleanup()


async def runs_the_event_loop_itself_where_it_may(request):
    if not hasattr(asyncio, "_nest_patched"):  # by nest_asyncio
        return 2
    found = asyncio.get_running_loop().run_until_complete(sleep_and_return(2))
    await asyncio.sleep(0)
    return found


CASES = [
    case
    for name, case in list(globals().items())
    if asyncio.iscoroutinefunction(case)
    and case.__module__ == __name__
    and case.__code__.co_varnames[: case.__code__.co_argcount] == ("request",)
]
NEEDS = {uses_anyio: "anyio", cancels_an_anyio_scope_at_once: "anyio", uses_aiohttp: "aiohttp"}


# The two runners


@contextlib.asynccontextmanager
async def stock_server(registry):
    tracker = runner_runtime._InflightTracker()
    await tracker.start()
    runner = PythonRunner(job_registry=registry, worker_id=None)
    server = await asyncio.start_server(
        lambda reader, writer: runner_runtime._handle_connection(reader, writer, runner, tracker),
        "127.0.0.1",
        0,
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
    await tracker.close()


@contextlib.asynccontextmanager
async def our_server(registry):
    runner = Runner(registry)
    server = await start_server(runner.on_stream, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await runner.stop(PATIENCE)


async def answers(serve, handlers):
    """What the handlers are answered, each alone and then all at once."""
    registry = Registry()
    for handler in handlers:
        registry.register(handler.__name__, handler)
    names = [handler.__name__ for handler in handlers]
    async with serve(registry) as port, await RunnerClient.connect("127.0.0.1", port) as client:

        async def ask(name, timeout=None):
            outcome = await client.execute(name, timeout=timeout)
            message = outcome.error and outcome.error.message.partition(": <")[0]
            return outcome.type, outcome.result, message

        async def ask_with_a_deadline(name):
            # On Python 3.11, the stock runner then has another task for it, of another name.
            return await ask(name, None if name.startswith("names") else PATIENCE)

        at_once = (names * 2)[:60]  # the stock runner takes 64
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


@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction")
@pytest.mark.parametrize("loop_kind", LOOPS)
@pytest.mark.parametrize("handler", CASES, ids=lambda handler: handler.__name__)
def test_a_handler_is_answered_as_by_the_stock_runner(loop_kind, handler):
    if handler in NEEDS:
        pytest.importorskip(NEEDS[handler], reason=f"{NEEDS[handler]} is not installed")
    theirs = run(loop_kind, answers(stock_server, [handler]))
    assert run(loop_kind, answers(our_server, [handler])) == theirs


@pytest.mark.parametrize("loop_kind", LOOPS)
def test_all_of_them_at_once_are_answered_as_by_the_stock_runner(loop_kind):
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


@pytest.mark.parametrize("library", PATCHES)
def test_the_same_holds_where_a_library_has_patched_asyncio(library, tmp_path):
    pytest.importorskip(library, reason=f"{library} is not installed")
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
    pytest.importorskip("nest_asyncio", reason="nest_asyncio is not installed")
    done = subprocess.run(
        [sys.executable, "-c", CANCELLED_IN_ITS_FIRST_STEP],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["cancelled", "ended"], done.stderr
