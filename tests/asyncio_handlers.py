"""Handlers that use asyncio, or a library built on it, in many ways.

test_asyncio_in_handlers.py compares what the stock runner and this runner answer for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import time

PATIENCE = 30  # seconds; they pass only if something is broken


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
        async with asyncio.timeout(600) as outer:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            seen.append("inner")
            outer.reschedule(0)
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


# The handler's own task


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
    """Other tasks wait for the same future, and start to wait before the handler does."""
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
    if not hasattr(asyncio, "_nest_patched"):  # nest_asyncio is not applied
        return 2
    found = asyncio.get_running_loop().run_until_complete(sleep_and_return(2))
    await asyncio.sleep(0)
    return found


# All handlers of this file: functions with the one argument `request`.
CASES = [
    case
    for name, case in list(globals().items())
    if inspect.iscoroutinefunction(case)
    and case.__module__ == __name__
    and case.__code__.co_varnames[: case.__code__.co_argcount] == ("request",)
]
# The library that a handler needs.
NEEDS = {uses_anyio: "anyio", cancels_an_anyio_scope_at_once: "anyio", uses_aiohttp: "aiohttp"}
