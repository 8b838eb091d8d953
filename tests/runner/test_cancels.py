"""Cancels: which requests they end, and that each of these gets one answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    OutcomeType,
)
from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.runner.engine import Runner

from ..engine import (
    SOON,
    cancel,
    request,
    serving,
    start_serve,
    until,
)
from ..handlers import echo, fail_instead, forever, linger, spin, swallow


@pytest.mark.parametrize("with_request_id", [True, False], ids=["by request", "by job"])
@pytest.mark.parametrize("running", [True, False], ids=["waits", "arrives with its cancel"])
def test_a_cancel_from_another_connection_ends_the_requests_that_it_names(
    run, with_request_id, running
):
    async def cancelling():
        stopped = []

        async def wait(request):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.append(request.request_id)
                raise

        handlers = {"wait": wait, "echo": echo}
        async with serving(handlers) as connect:
            one, other, short = await connect(), await connect(), await connect()
            one.send(request("wait", id="1", job_id="same"), request("wait", id="2", job_id="same"))
            one.send(request("wait", id="3", job_id="different"), request("echo", id="-"))
            other.send(request("wait", id="4", job_id="same"), request("echo", id="-"))
            await one.answers(1)
            await other.answers(1)
            # The cancel arrives in one read with the request, or after it.
            late = request("wait", id="5", job_id="same")
            if running:
                one.send(late, request("echo", id="-"))
                await one.answers(1)
                late = b""
            ids = ["1", "5"] if with_request_id else [None]
            one.send(late)
            target = one if late else short
            target.send(*(cancel("same", id) for id in ids))
            expected = ["1", "5"] if with_request_id else ["1", "2", "5"]
            answers = await one.answers(len(expected))
            assert sorted(answers) == expected
            if not with_request_id:
                answers |= await other.answers(1)
                assert sorted(answers) == ["1", "2", "4", "5"]
            for id, answer in answers.items():
                assert answer == ExecutionOutcome.cancelled("same", id)
            short.end()
            assert await short.ended()
            await until(lambda: set(stopped) == set(answers))
            one.send(cancel("different"), cancel("same"))
            other.send(cancel("same"))
            left = {*await one.answers(2 if with_request_id else 1)}
            assert "3" in left
            if with_request_id:
                await other.answers(1)

    run(cancelling())


@pytest.mark.parametrize("id", [None, "unknown"], ids=["by job", "by request"])
def test_the_cost_of_a_cancel_does_not_depend_on_how_many_jobs_run(run, id):
    """The cost is counted in instructions of the interpreter, because times depend on the machine."""
    steps = []

    def trace(frame, event, argument):
        if frame.f_code is Runner._cancel.__code__:
            steps.append(0)
        elif frame.f_back is None or frame.f_back.f_code is not Runner._cancel.__code__:
            return None
        frame.f_trace_opcodes = True
        return count

    def count(frame, event, argument):
        steps[-1] += event == "opcode"
        return count

    async def cancelling():
        async with serving({"wait": forever, "echo": echo}) as connect:
            peer = await connect()
            for batch, jobs in enumerate([1, 50]):
                requests = [request("wait", id=f"{batch} {n}") for n in range(jobs)]
                peer.send(*requests, cancel("unknown", id), request("echo", id="-"))
                await peer.answers(1)
            peer.abort()

    before = sys.gettrace()
    gc.disable()  # a callback of the collector would be traced, too
    try:
        for _ in range(2):  # CPython 3.12 and 3.13 do not report the first opcodes asked for
            sys.settrace(trace)
            try:
                run(cancelling())
            finally:
                sys.settrace(before)
    finally:
        gc.enable()
    assert len(steps) == 4
    assert steps[2] == steps[3] > 0


@pytest.mark.parametrize(
    "meant",
    [
        cancel("job of 1", "1", protocol_version="1"),
        cancel("job of 1", protocol_version="3"),
        cancel("job of 1", "2"),
        cancel("job of 2"),
        cancel("", "job of 1"),
        cancel("1"),
    ],
    ids=["version 1", "version 3", "other request", "other job", "job_id as id", "id as job_id"],
)
def test_a_cancel_of_another_version_or_without_a_matching_request_is_ignored(run, meant):
    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()
            return "went on"

        async with serving({"wait": wait, "echo": echo}) as connect:
            peer = await connect()
            peer.send(request("wait", id="1"), meant, request("echo", id="3"))
            assert list(await peer.answers(1)) == ["3"]
            held.set()
            assert (await peer.answer()).result == "went on"

    run(running())


def test_a_cancel_by_job_ends_its_waiting_request_after_another_of_the_job_has_ended(run):
    async def running():
        async with serving({"forever": forever, "echo": echo}) as connect:
            peer = await connect()
            peer.send(request("forever", id="1", job_id="same"))
            peer.send(request("echo", {"a": 1}, id="2", job_id="same"))
            assert (await peer.answer()).result == {"a": 1}
            peer.send(cancel("same"))
            assert await peer.answer() == ExecutionOutcome.cancelled("same", "1")

    run(running())


def test_a_cancel_after_the_answer_changes_nothing(run):
    async def running():
        async with serving({"echo": echo}) as connect:
            peer = await connect()
            for _ in range(3):
                peer.send(request("echo", {"a": 1}))
                assert (await peer.answer()).result == {"a": 1}
                peer.send(cancel("job of r", "r"), cancel("job of r"))
            peer.send(request("echo", id="last"))
            assert list(await peer.answers(1)) == ["last"]

    run(running())


@pytest.mark.parametrize("handler", [forever, spin, swallow, fail_instead, linger])
@pytest.mark.parametrize("how", ["request", "job", "deadline", "end"])
def test_a_cancelled_request_gets_one_answer_whatever_its_handler_does(run, handler, how):
    async def running():
        async with serving({"handler": handler, "echo": echo}) as connect:
            peer = await connect()
            deadline = SOON if how == "deadline" else None
            peer.send(request("handler", deadline=deadline), request("echo", id="begun"))
            await peer.answers(1)
            if how == "request":
                peer.send(cancel("job of r", "r"), cancel("job of r", "r"))
            elif how == "job":
                peer.send(cancel("job of r"), cancel("job of r"))
            elif how == "end":
                peer.end()
            answer = await peer.answer()
            if how == "deadline":
                message = "Job execution timed out."
                assert answer == ExecutionOutcome.timeout("job of r", "r", message)
            else:
                assert answer == ExecutionOutcome.cancelled("job of r", "r")
            if how != "end":
                # The id can be used again at once, even if the handler is still running.
                peer.send(cancel("job of r"), request("echo", {"again": True}))
                assert (await peer.answer()).result == {"again": True}

    run(running())


def test_a_handler_that_never_ends_delays_neither_its_answer_nor_other_jobs(run):
    async def running():
        release = asyncio.Event()

        async def stubborn(request):
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        async with serving({"stubborn": stubborn, "echo": echo}, max_in_flight=2) as connect:
            peer = await connect()
            for _ in range(5):  # answered requests no longer count as in flight
                peer.send(request("stubborn", id="1"), request("stubborn", id="2", deadline=SOON))
                peer.send(cancel("job of 1"))
                answers = await peer.answers(2)
                assert answers["1"].type is OutcomeType.CANCELLED
                assert answers["2"].type is OutcomeType.TIMEOUT
            peer.send(request("echo", {"a": 1}))
            assert (await peer.answer()).result == {"a": 1}
            release.set()

    run(running())


def test_a_handler_that_outlasts_the_grace_period_is_named_in_the_log(run, caplog):
    async def running():
        begun, release = asyncio.Event(), asyncio.Event()

        async def stubborn(request):
            begun.set()
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        serving, client = await start_serve({"stubborn": stubborn}, free_port(), grace=0.01)
        async with client:
            job = asyncio.create_task(client.execute("stubborn", job_id="j"))
            await begun.wait()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            assert (await job).type is OutcomeType.CANCELLED
            release.set()

    run(running())
    assert caplog.messages == ["job 'j': 'stubborn' keeps running after its cancellation"]


@pytest.mark.parametrize("arrives", ["with the request", "later"])
def test_a_cancel_is_answered_although_what_the_handler_waits_for_refuses_it(run, caplog, arrives):
    class Refusing(asyncio.Future):
        def cancel(self, msg=None):
            raise ValueError("not now")

    async def running():
        waits_for, ended = Refusing(), []

        async def wait(request):
            try:
                ended.append(await waits_for)
            except asyncio.CancelledError:
                ended.append("cancelled")

        async with serving({"wait": wait, "echo": echo}) as connect:
            peer = await connect()
            if arrives == "later":
                peer.send(request("wait"), request("echo", id="begun"))
                await peer.answers(1)
                peer.send(cancel("job of r"))
            else:
                peer.send(request("wait"), cancel("job of r"))
            assert await peer.answer() == ExecutionOutcome.cancelled("job of r", "r")
            peer.send(request("echo", {"a": 1}))
            assert (await peer.answer()).result == {"a": 1}
            waits_for.set_result("result")
            await until(lambda: ended)
            assert ended == ["result"]

    run(running())
    if arrives == "later":
        (record,) = caplog.records
        assert record.getMessage() == "job 'job of r': 'wait' cannot be cancelled"
        assert record.levelname == "WARNING"
        assert str(record.exc_info[1]) == "not now"


@pytest.mark.parametrize("first", ["result", "cancel"])
def test_the_answer_is_the_result_or_the_cancel_whichever_comes_first(run, first):
    async def running():
        held = {}

        async def wait(request):
            held[request.request_id] = asyncio.get_running_loop().create_future()
            try:
                return await held[request.request_id]
            except asyncio.CancelledError:
                return "cancelled"

        async with serving({"wait": wait}) as connect:
            peer, short = await connect(), await connect()
            for n in range(20):
                id = str(n)
                peer.send(request("wait", id=id))
                await until(lambda each=id: each in held)
                if first == "result":
                    held[id].set_result("result")
                    answer = await peer.answer()
                    short.send(cancel(f"job of {id}", id))
                else:
                    short.send(cancel(f"job of {id}", id))
                    answer = await peer.answer()
                    if not held[id].done():
                        held[id].set_result("result")
                expected = OutcomeType.SUCCESS if first == "result" else OutcomeType.CANCELLED
                assert answer.type is expected

    run(running())


def test_a_handler_that_cancels_its_own_task_and_ends_does_not_stop_the_next_job(run):
    async def give_up(request):
        asyncio.current_task().cancel()
        return "given up"

    async def pause(request):
        await asyncio.sleep(0)
        return "went on"

    async def running():
        async with serving({"give_up": give_up, "pause": pause}) as connect:
            peer = await connect()
            for number in range(3):
                for name, result in [("give_up", "given up"), ("pause", "went on")]:
                    peer.send(request(name, id=f"{name} {number}"))
                    assert (await peer.answer()).result == result

    run(running())
