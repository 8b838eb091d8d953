"""Handlers that do unusual things with their task, their request or the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import time
import types

import pytest

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    FrameDecoder,
    OutcomeType,
    decode_frame,
    pack_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from ..engine import (
    CONTEXT,
    PATIENCE,
    SOON,
    among_neighbours,
    call,
    malformed,
    request,
    serving,
    until,
)
from ..handlers import (
    cancel_itself,
    cancel_itself_and_wait,
    echo,
    fail,
    giving,
)
from ..stock import (
    both_kinds_of_handlers,
    registry,
)


async def cancel_itself_and_take_it_back(request):
    asyncio.current_task().cancel()
    asyncio.current_task().uncancel()
    return 1


async def cancel_itself_and_go_on(request):
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return 1


async def time_out_at_once(request):
    async with asyncio.timeout(0):
        await asyncio.Event().wait()


async def never_time_out(request):
    async with asyncio.timeout(PATIENCE):
        return 1


async def time_out_inside(request):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    await asyncio.sleep(0)
    return asyncio.current_task().cancelling()


async def group_tasks(request):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
    return [task.result() for task in tasks]


async def group_a_failing_task(request):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(request))
            await asyncio.Event().wait()
    except ExceptionGroup as errors:
        return str(errors.exceptions[0])


async def wait_for_something(request):
    return await asyncio.wait_for(asyncio.sleep(0, 1), PATIENCE)


async def wait_in_vain(request):
    await asyncio.wait_for(asyncio.Event().wait(), 0.001)


async def gather_with_failures(request):
    return [repr(each) for each in await asyncio.gather(fail(0), return_exceptions=True)]


async def know_its_task(request):
    task = asyncio.current_task()
    for _ in range(3):
        await asyncio.sleep(0)
    return task is asyncio.current_task() and task in asyncio.all_tasks()


async def block(request):
    time.sleep(0.02)
    await asyncio.sleep(0)
    time.sleep(0.02)
    return 1


async def yield_often(request):
    for _ in range(1000):
        await asyncio.sleep(0)
    return 1


@types.coroutine
def _yield(value):
    return (yield value)


async def yield_garbage(request):
    await _yield("garbage")


async def await_itself(request):
    await asyncio.current_task()


async def mutate_its_request(request):
    request.request_id = request.job_id = request.function_name = "other"
    request.params.clear()
    return 1


async def rename_its_task(request):
    asyncio.current_task().set_name("renamed")
    return 1


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (cancel_itself, 1),
        (cancel_itself_and_take_it_back, 1),
        (cancel_itself_and_wait, OutcomeType.CANCELLED),
        (cancel_itself_and_go_on, 1),
        (time_out_at_once, OutcomeType.TIMEOUT),
        (never_time_out, 1),
        (time_out_inside, 0),
        (group_tasks, [0, 1, 2]),
        (group_a_failing_task, "failed"),
        (wait_for_something, 1),
        (wait_in_vain, OutcomeType.TIMEOUT),
        (gather_with_failures, ["ValueError('failed')"]),
        (know_its_task, True),
        (block, 1),
        (yield_often, 1),
        (yield_garbage, "Task got bad yield: 'garbage'"),
        (await_itself, re.compile("Task cannot await on itself")),
        (mutate_its_request, 1),
        (rename_its_task, 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@both_kinds_of_handlers
def test_a_handler_may_use_its_task_in_any_way(run, report, expected, wrap):
    answer = among_neighbours(run, report, wrap=wrap)
    if isinstance(expected, OutcomeType):
        assert answer.type is expected
    elif answer.error is not None:
        assert re.match(expected, answer.error.message)
    else:
        assert answer.result == expected


async def nothing(request):
    request.context = None
    request.request_id = []
    await asyncio.Event().wait()


@pytest.mark.parametrize("how", ["deadline", "request", "job", "end"])
def test_a_handler_that_overwrites_its_native_request_can_still_be_cancelled(run, how):
    async def running():
        async with serving({"nothing": nothing, "echo": echo}) as connect:
            peer = await connect()
            deadline = SOON if how == "deadline" else None
            peer.send(request("nothing", deadline=deadline), request("echo", id="2"))
            assert list(await peer.answers(1)) == ["2"]
            peer.stop(how)
            answer = await peer.answer()
            assert answer.error.type == ("timeout" if how == "deadline" else "cancelled")
            assert (answer.job_id, answer.request_id) == ("job of r", "r")

    run(running())


def test_jobs_that_never_wait_are_all_answered_however_many_come_at_once(run):
    async def running():
        async with serving({"echo": echo, "cancel": cancel_itself}) as connect:
            peers = [await connect() for _ in range(8)]
            for peer in peers:
                peer.send(*(request("echo", {"n": n}, id=str(n)) for n in range(30)))
            for peer in peers:
                for id, answer in (await peer.answers(30)).items():
                    assert answer.result == {"n": int(id)}
            # Jobs after one that has cancelled their shared task run in another task.
            peers[0].send(request("cancel"), request("echo", id="1"), request("echo", id="2"))
            assert len(await peers[0].answers(3)) == 3

    run(running())


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_an_answer_does_not_wait_for_jobs_that_block_the_event_loop(run, waits):
    """Each handler receives the answer to the job before it, while it blocks the event loop."""
    count = 20

    async def running():
        runner = Runner({"report": report})
        async with await start_server(runner.on_stream, "127.0.0.1", 0) as server:
            ours.connect(server.sockets[0].getsockname())
            ours.sendall(b"".join(request("report", id=str(n)) for n in range(count)))
            await until(lambda: len(seen) == count)
            server.close()
            await runner.stop(PATIENCE)

    async def report(request):
        if waits:
            await asyncio.sleep(0)
        time.sleep(0.01)  # longer than handlers may run before the event loop continues
        if seen:
            answers.feed(ours.recv(2**16))
            assert decode_frame(pack_frame(next(answers))).request_id == seen[-1]
        seen.append(request.request_id)

    seen, answers = [], FrameDecoder()
    with socket.socket() as ours:
        ours.settimeout(PATIENCE)
        run(running())
    assert seen == [str(n) for n in range(count)]


def test_every_job_goes_through_the_task_factory_of_the_loop(run):
    made = []

    def factory(loop, steps, **more):
        made.append(asyncio.Task(steps, loop=loop, **more))
        return made[-1]

    async def running():
        asyncio.get_running_loop().set_task_factory(factory)
        async with serving({"echo": echo}) as connect:
            peer = await connect()
            peer.send(*(request("echo", id=f"é{n}") for n in range(20)))
            await peer.answers(20)

    run(running())
    names = {task.get_name() for task in made}
    assert names >= {f"rrq-runner-é{n}" for n in range(20)}


def test_tasks_that_outlive_their_handler_keep_running_and_affect_no_other_job(run):
    tasks = []

    async def linger():
        await asyncio.Event().wait()

    async def leave_tasks(request):
        tasks.extend(asyncio.create_task(linger()) for _ in range(3))
        return 1

    def end():
        for task in tasks:
            task.cancel()

    assert among_neighbours(run, leave_tasks, finally_=end).result == 1
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda _: 5, "await"),  # the rest differs in Python 3.14
        (lambda: None, "takes 0 positional arguments but 1 was given"),
    ],
    ids=["not awaitable", "no argument"],
)
def test_a_callable_that_cannot_be_a_handler_fails_its_job(run, handler, message):
    class Handler:
        def __call__(self, *arguments):
            return handler(*arguments)

    assert message in among_neighbours(run, Handler()).error.message


def test_an_id_that_leaves_no_room_for_an_answer_affects_no_other_job(run):
    """The ids of the largest request fill a whole answer."""
    long = type("Unsendable" * 50, (), {})

    def fill(id):
        return malformed(job_id=id, request_id="", function_name="long", context=CONTEXT)

    filled = fill("x" * (MAX_FRAME_SIZE + 4 - len(fill(""))))

    async def running():
        async with serving(registry({"long": giving(long), "echo": echo})) as connect:
            one, other = await connect(), await connect()
            one.send(filled, request("echo", id="next"))
            other.send(request("echo", id="next"))
            assert list(await other.answers(1)) == ["next"]
            assert list(await one.answers(1)) == ["next"]

    run(running())


def decorated(function):
    """An async handler around a sync function, as decorators make it."""

    @functools.wraps(function)
    async def handler(request):
        return function(request)

    return handler


class Callable:
    """An async callable object around a sync function."""

    def __init__(self, function):
        functools.update_wrapper(self, function)

    async def __call__(self, request):
        return self.__wrapped__(request)


def passing_on(function):
    """A function that is not async, and returns what an async one returns."""

    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)

    return call


def method(function):
    class Handlers:
        @passing_on
        async def report(self, request):
            return function(request)

    return Handlers().report


def bound(function):
    @passing_on
    async def report(_, request):
        return function(request)

    return functools.partial(report, None)


def decorated_twice(function):
    return passing_on(decorated(function))


def around_a_callable(function):
    return passing_on(Callable(function))


WRAPPERS = [decorated, decorated_twice, Callable, around_a_callable, method, bound]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_an_async_handler_may_wrap_a_sync_function(run, wrap):
    answers = call(run, {"report": wrap(lambda request: 5)}, request("report", id="r"))
    assert answers["r"].result == 5
