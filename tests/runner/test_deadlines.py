"""Deadlines: when jobs that take too long are answered."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from datetime import datetime, timezone

import pytest

from rrq_fastwire import ExecutionOutcome, OutcomeType, decode_frame

from ..engine import SOON, SkippingLoop, call, cancel, request, serving, until
from ..handlers import echo, forever
from ..stock import registry


def test_a_deadline_that_has_passed_is_answered_without_running_the_job(run):
    begun = []

    async def begin(request):
        begun.append(request)

    for deadline in (0, -0.001, -3600):
        answer = call(run, {"begin": begin}, request("begin", deadline=deadline))["r"]
        assert answer == ExecutionOutcome.timeout("job of r", "r", "Job deadline exceeded")
    assert begun == []


def test_a_deadline_that_passes_cancels_the_handler(run):
    async def running():
        stopped = asyncio.Event()

        async def wait(request):
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        async with serving(registry({"wait": wait, "echo": echo})) as connect:
            peer = await connect()
            peer.send(request("wait", deadline=SOON), request("echo", id="2", deadline=SOON))
            peer.send(request("wait", id="3", deadline=3600), request("echo", id="4", deadline=1e9))
            assert {*await peer.answers(2)} == {"2", "4"}
            answer = await peer.answer()
            assert answer == ExecutionOutcome.timeout("job of r", "r", "Job execution timed out.")
            await stopped.wait()
            peer.send(cancel("job of 3"))
            assert (await peer.answer()).type is OutcomeType.CANCELLED

    run(running())


def test_deadlines_are_answered_in_their_own_order_whatever_the_order_of_requests(run):
    async def running():
        async with serving({"forever": forever, "echo": echo}) as connect:
            peer = await connect()
            # They are so far apart because the runner reads two clocks for each, one after the other.
            delays = [0.3 + n / 10 for n in range(10)]
            now = datetime.now(timezone.utc)
            frames = [
                request("forever", id=str(id), deadline=delay, now=now)
                for id, delay in enumerate(random.Random(4).sample(delays, len(delays)))
            ]
            peer.send(*frames)
            messages = [decode_frame(frame) for frame in frames]
            deadlines = {each.request_id: each.context.deadline for each in messages}
            passed = [
                deadlines[fields["request_id"]]
                for fields in await peer.fields(len(delays))
                if fields["error"]["message"] == "Job execution timed out."
            ]
            assert passed
            assert passed == sorted(passed)

    run(running())


def test_ten_thousand_deadlines_are_answered_in_order():
    async def running():
        begun = []

        async def wait(request):
            begun.append(request.request_id)
            await asyncio.Event().wait()

        count = 10_000
        handlers = {"wait": wait, "echo": echo}
        async with serving(handlers, max_in_flight=count + 1) as connect:
            peer = await connect()
            order = random.Random(7).sample(range(count), count)
            for n in order:
                peer.send(request("wait", id=f"{n:05}", deadline=1000 + 60 * n))
            await until(lambda: len(begun) == count)
            asyncio.get_running_loop().ahead = 970 + 60 * 4900  # about half of them have passed
            half = [fields["request_id"] for fields in await peer.fields(4900)]
            assert half == [f"{n:05}" for n in range(4900)]
            peer.send(request("echo", id="echo"))
            asyncio.get_running_loop().ahead = 1000 + 60 * count
            rest = [fields["request_id"] for fields in await peer.fields(count - 4900 + 1)]
            rest.remove("echo")
            assert rest == [f"{n:05}" for n in range(4900, count)]

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(running())


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock shows `now`, or the real time if that is None."""

    now = 0.0

    def time(self):
        return super().time() if self.now is None else self.now


@pytest.mark.parametrize(("seconds", "early"), [(0.1, 0.005), (1, 0.01), (1000, 0.05)])
def test_a_deadline_is_answered_early_if_its_request_is_alone_on_the_connection(
    monkeypatch, seconds, early
):
    """For such a request, the orchestrator would end the process. For others, it sends a cancel."""

    async def running():
        loop = asyncio.get_running_loop()
        async with serving({"forever": forever, "echo": echo}) as connect:
            alone, other = await connect(), await connect()
            alone.send(request("forever", deadline=seconds), request("echo", id="begun"))
            other.send(*(request("forever", id=id, deadline=seconds) for id in "12"))
            other.send(request("echo", id="begun"))
            assert [*await alone.answers(1), *await other.answers(1)] == ["begun"] * 2
            loop.now += seconds - early - 0.001
            await asyncio.sleep(0)
            alone.send(request("echo", id="too early"))
            assert list(await alone.answers(1)) == ["too early"]
            loop.now += 0.002
            assert (await alone.answer()).type is OutcomeType.TIMEOUT
            other.send(request("echo", id="not alone"))
            assert list(await other.answers(1)) == ["not alone"]
            loop.now += early
            assert {each.type for each in (await other.answers(2)).values()} == {"timeout"}
            loop.now = None

    class Clock:
        monotonic = time.monotonic

        @staticmethod
        def time():
            return now.timestamp()

    class Date(datetime):
        @classmethod
        def now(cls, tz):
            return now

    now = datetime.now(timezone.utc)
    monkeypatch.setattr("rrq_fastwire.runner.engine.time", Clock)
    monkeypatch.setattr("tests.requests.datetime", Date)
    with asyncio.Runner(loop_factory=FrozenLoop) as runner:
        runner.run(running())


def test_jobs_that_end_in_time_are_freed_before_their_deadlines(run):
    def jobs():
        return sum(type(each).__name__ == "Job" for each in gc.get_objects())

    async def pause(request):
        await asyncio.sleep(0)

    async def running():
        async with serving({"pause": pause, "forever": forever}) as connect:
            peer = await connect()
            for _ in range(50):
                peer.send(*(request("pause", id=str(n), deadline=3600) for n in range(60)))
                await peer.answers(60)
            assert jobs() < 1000
            # A nearer deadline is still noticed.
            peer.send(request("forever", deadline=SOON), request("pause", id="2", deadline=3600))
            assert (await peer.answers(2))["r"].type is OutcomeType.TIMEOUT

    run(running())


class NotToBeCancelled(asyncio.Future):
    def cancel(self, msg=None):
        raise LookupError


def test_a_handler_that_cannot_be_cancelled_does_not_affect_other_deadlines(run):
    async def report(request):
        await NotToBeCancelled()

    async def running():
        async with serving({"report": report, "forever": forever}) as connect:
            peer = await connect()
            peer.send(
                request("report", id="r", deadline=0.05),
                request("forever", id="beside", deadline=0.1),
            )
            answers = await peer.answers(2)
            peer.send(request("forever", id="later", deadline=0.05))
            answers |= await peer.answers(1)
            assert {each.type for each in answers.values()} == {OutcomeType.TIMEOUT}
            for task in asyncio.all_tasks():
                waiting = getattr(task, "_fut_waiter", None)
                if isinstance(waiting, NotToBeCancelled):
                    waiting.set_result(None)

    run(running())
