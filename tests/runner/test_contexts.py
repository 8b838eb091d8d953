"""Each job has a task and a context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
import weakref

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    OutcomeType,
)

from ..engine import (
    among_neighbours,
    call,
    cancel,
    request,
    serving,
    until,
)
from ..handlers import forever
from ..stock import (
    HAS_RRQ,
    RetryJob,
    both_kinds_of_handlers,
)

VARIABLE = contextvars.ContextVar("VARIABLE", default=None)


@both_kinds_of_handlers
def test_each_job_has_a_context_of_its_own(run, wrap):
    async def see(request):
        seen = [VARIABLE.get()]
        token = VARIABLE.set(request.request_id)
        for _ in range(request.params["waits"]):
            seen.append(VARIABLE.get())
            await asyncio.sleep(0)
        seen.append(
            await asyncio.create_task(read()) if request.params["waits"] else VARIABLE.get()
        )
        if request.params["resets"]:
            VARIABLE.reset(token)
        return seen

    async def read():
        return VARIABLE.get()

    frames, waits = [], {}
    for n in range(60):
        waits[str(n)] = n % 3
        params = {"waits": n % 3, "resets": bool(n % 2)}
        frames.append(request("see", params, id=str(n)))
    for id, answer in call(run, wrap({"see": see}), *frames).items():
        assert answer.result == [None] + [id] * (waits[id] + 1)
    assert VARIABLE.get() is None


class OwnError(Exception):
    pass


@pytest.mark.parametrize("seed", range(8))
@both_kinds_of_handlers
def test_each_job_gets_its_own_answer_whether_it_waits_at_once_later_or_never(  # noqa: PLR0915
    run, seed, wrap
):
    rng = random.Random(seed)
    waiting = {}  # futures by id
    owners = {}  # tasks of jobs that have waited and not ended

    async def pause(request):
        """Waits, and checks that the handler continues in its own task and context."""
        id, task = request.request_id, asyncio.current_task()
        assert owners.setdefault(task, id) == id
        waiting[id] = asyncio.get_running_loop().create_future()
        try:
            return await waiting[id]
        finally:
            assert asyncio.current_task() is task
            assert VARIABLE.get() == id
            del waiting[id]

    async def handler(request):
        id, kind = request.request_id, request.params["kind"]
        VARIABLE.set(id)
        try:
            for each in request.params["before"]:
                if each == "sleep":
                    await asyncio.sleep(0)
                else:
                    await pause(request)
            if kind == "raise":
                raise ValueError(id)
            if kind == "retry":
                raise RetryJob(id, 1)
            if kind == "odd":
                return {id}
            return id
        except OwnError as error:
            return f"{id} caught {error}"
        finally:
            owners.pop(asyncio.current_task(), None)

    async def running():
        async with serving(wrap({"handler": handler}), max_in_flight=1000) as connect:
            peers = [await connect() for _ in range(3)]
            jobs = {}
            for n in range(150):
                id = str(n)
                before = [rng.choice(["sleep", "pause"]) for _ in range(rng.choice([0, 0, 1, 3]))]
                kind = rng.choice(["return", "raise", "odd", *(["retry"] if HAS_RRQ else [])])
                deadline = rng.choice([None, 3600])
                frame = request(
                    "handler", {"kind": kind, "before": before}, id=id, deadline=deadline
                )
                jobs[id] = kind, rng.randrange(3)
                peers[jobs[id][1]].send(frame)
                if rng.random() < 0.1:
                    await asyncio.sleep(0)
            cancelled, thrown, answers = set(), set(), {}

            async def collect(number):
                mine = sum(which == number for _, which in jobs.values())
                answers.update(await peers[number].answers(mine))

            collecting = asyncio.gather(*map(collect, range(3)))
            while not collecting.done():
                if waiting:
                    id = rng.choice(sorted(waiting))
                    if not waiting[id].done():
                        way = rng.random()
                        if way < 0.15 and id not in thrown:
                            cancelled.add(id)
                            peers[rng.randrange(3)].send(cancel(f"job of {id}", id))
                            await until(lambda each=id: each not in waiting)
                        elif way < 0.3:
                            thrown.add(id)
                            waiting[id].set_exception(OwnError(id))
                        else:
                            waiting[id].set_result(None)
                await asyncio.sleep(0)
            await collecting
        assert answers.keys() == jobs.keys()
        for id, answer in answers.items():
            kind = jobs[id][0]
            if id in cancelled:
                assert answer.type is OutcomeType.CANCELLED
            elif id in thrown:
                assert answer.result == f"{id} caught {id}"
            elif kind == "raise":
                assert answer == ExecutionOutcome.failure(f"job of {id}", id, id)
            elif kind == "retry":
                assert answer == ExecutionOutcome.retry_after(f"job of {id}", id, id, 1.0)
            else:
                assert answer.result == ([id] if kind == "odd" else id)

    run(running())


def test_an_exception_reaches_a_waiting_handler_as_in_a_task_of_its_own(run):
    async def handler(future):
        seen = []
        for _ in range(3):
            try:
                seen.append(await future.pop())
            except BaseException as error:
                where = error.__traceback__.tb_frame.f_code.co_name
                seen.append([repr(error), error.__context__ is None, where])
        return seen

    def futures():
        loop = asyncio.get_running_loop()
        made = [loop.create_future() for _ in range(3)]
        loop.call_soon(made[2].set_exception, OwnError("first"))
        loop.call_later(0.001, made[1].set_result, "second")
        loop.call_later(0.002, made[0].cancel)
        return made

    async def job(request):
        return await handler(futures())

    async def plain():
        return await asyncio.create_task(handler(futures()))

    assert among_neighbours(run, job).result == run(plain())


def test_objects_of_a_failed_handler_are_freed_at_once(run):
    class Heavy:
        pass

    held = []

    def failing_soon():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, OwnError())
        return future

    async def hold(request):
        heavy = Heavy()
        held.append(weakref.ref(heavy))
        if request.params["waits"]:
            try:
                await failing_soon()  # no variable of this frame refers to the future
            except OwnError:
                if request.params["catches"]:
                    return
                raise
        raise OwnError

    frames = [
        request("hold", {"waits": waits, "catches": catches}, id=f"{waits} {catches}")
        for waits in (True, False)
        for catches in (True, False)
    ]

    async def running():
        async with serving({"hold": hold}) as connect:
            peer = await connect()
            peer.send(*frames)
            await peer.answers(len(frames))
            await asyncio.sleep(0)
            return [reference() for reference in held]

    gc.collect()
    gc.disable()
    logging.disable()  # otherwise pytest keeps the records, and with them the exceptions
    try:
        assert run(running()) == [None] * len(frames)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def test_a_job_that_keeps_its_task_shares_it_with_no_later_job(run):
    kept, release = [], asyncio.Event()

    async def keep(request):
        kept.append(asyncio.current_task())

    async def wait(request):
        await release.wait()
        return asyncio.current_task().get_name()

    async def running():
        async with serving({"keep": keep, "wait": wait}) as connect:
            peer = await connect()
            peer.send(request("keep", id="1"), request("keep", id="2"), request("wait", id="3"))
            await peer.answers(2)
            assert [task.get_name() for task in kept] == ["rrq-runner-1", "rrq-runner-2"]
            for task in kept:
                task.cancel()
            release.set()
            assert (await peer.answer()).result == "rrq-runner-3"

    run(running())


def test_the_callbacks_of_a_jobs_task_are_called_when_the_job_has_ended(run):
    ended = []

    async def ask(request):
        asyncio.current_task().add_done_callback(lambda task: ended.append(task.get_name()))

    async def running():
        async with serving({"ask": ask}) as connect:
            peer = await connect()
            peer.send(request("ask", id="1"), request("ask", id="2"))
            await peer.answers(2)
            await until(lambda: len(ended) == 2)
            assert ended == ["rrq-runner-1", "rrq-runner-2"]

    run(running())


def test_tools_see_where_a_handler_waits(run):
    async def wait(request):
        await forever(request)

    async def running():
        async with serving({"wait": wait}) as connect:
            peer = await connect()
            peer.send(request("wait"))
            await until(lambda: task_named("rrq-runner-r") is not None)
            task, functions = task_named("rrq-runner-r"), []
            waits_for = task.get_coro()
            while hasattr(waits_for, "cr_frame"):
                functions.append(waits_for.cr_frame.f_code.co_name)
                waits_for = waits_for.cr_await
            assert functions[:3] == ["_run", "wait", "forever"]
            assert "coro=<Runner._run() running at " in repr(task)
            task.cancel()
            await peer.answers(1)

    def task_named(name):
        return next((task for task in asyncio.all_tasks() if task.get_name() == name), None)

    run(running())


@pytest.mark.parametrize("waits", [0, 1, 2])
def test_the_context_of_a_job_is_freed_when_the_job_has_ended(run, waits):
    class Value:
        pass

    held = []

    async def hold(request):
        value = Value()
        VARIABLE.set(value)
        held.append(weakref.ref(value))
        for _ in range(waits):
            await asyncio.sleep(0)

    async def running():
        async with serving({"hold": hold}) as connect:
            peer = await connect()
            peer.send(*(request("hold", id=str(number)) for number in range(10)))
            await peer.answers(10)
            await asyncio.sleep(0)
            return [reference() for reference in held]

    gc.collect()
    gc.disable()
    try:
        assert run(running()) == [None] * 10
    finally:
        gc.enable()
