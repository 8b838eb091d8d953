"""Events in any order, compared with a model: a runner answers each request exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import ExitStack
from datetime import datetime, timezone
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rrq_fastwire import (
    CancelRequest,
    ExecutionContext,
    ExecutionRequest,
    decode_payload,
    encode_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import MessageStream

from ..fuzz.connection import Transport
from ..fuzz.oracles import split, strict

START = datetime(2026, 11, 24, tzinfo=timezone.utc)

# After this many event loop iterations, nothing happens until the next rule.
SETTLED = 25

MAX_IN_FLIGHT = 3


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until a rule moves it."""

    now = 1000.0

    def time(self):
        return self.now


class Peer:
    """The orchestrator's side of a connection, and its requests.

    Attributes:
        waiting: the deadlines (or None) of the requests that are not answered yet, by id.
        sent: how many requests were sent, by id.
    """

    def __init__(self, runner):
        self.stream = MessageStream(runner.on_stream)
        self.transport = Transport(self.stream)
        self.waiting = {}
        self.sent = Counter()
        self.is_reset = self.is_ended = False

    def answers(self):
        payloads, failure, rest = split(bytes(self.transport.written), 2**24)
        assert failure is None
        assert not rest
        for payload in payloads:
            strict(payload)
        return [decode_payload(payload) for payload in payloads]


class RunnerMachine(RuleBasedStateMachine):
    """Rules that send requests and cancels, end handlers and connections, and move the clock."""

    def __init__(self):
        super().__init__()
        self.cleanup = ExitStack()
        self.loop = ClockedLoop()
        self.cleanup.callback(self.loop.close)
        self.cleanup.enter_context(patch("time.time", self.wall_clock))
        # Without this, the runner would postpone jobs on a slow machine.
        clock = patch("rrq_fastwire.runner.engine.monotonic", self.loop.time)
        self.cleanup.enter_context(clock)
        self.unhandled = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.released = {}  # futures that handlers wait for, by request id
        self.runner = Runner(
            {"echo": self.echo, "pause": self.pause, "fail": self.fail}
            | {"wait": self.wait, "swallow": self.swallow},
            max_in_flight=MAX_IN_FLIGHT,
        )
        self.peers = []
        self.number = 0
        self.connect()

    def wall_clock(self):
        return START.timestamp() + self.loop.now - ClockedLoop.now

    # Handlers

    async def echo(self, request):
        return request.params

    async def pause(self, request):
        await asyncio.sleep(0)

    async def fail(self, request):
        raise ValueError(request.job_id)

    async def wait(self, request):
        self.released[request.request_id] = future = self.loop.create_future()
        await future

    async def swallow(self, request):
        try:
            await self.wait(request)
        except asyncio.CancelledError:
            return "not cancelled"

    # The event loop

    def call(self, function, *arguments):
        """Call a function from the event loop, as a transport does, and run the loop for a while."""

        async def settle():
            for _ in range(SETTLED):
                await asyncio.sleep(0)

        self.loop.call_soon(function, *arguments)
        self.loop.run_until_complete(settle())

    @rule()
    def connect(self):
        if len(self.peers) < 6:
            self.call(lambda: self.peers.append(Peer(self.runner)))

    def open_peer(self, choice):
        """One of the open connections, or None."""
        found = [peer for peer in self.peers if not (peer.is_reset or peer.is_ended)]
        return found[choice % len(found)] if found else None

    # What an orchestrator does

    @rule(
        choice=st.integers(0, 2),
        names=st.lists(
            st.sampled_from(["wait", "swallow", "wait", "echo", "pause", "fail", "unknown"]),
            min_size=1,
            max_size=7,
        ),
        seconds=st.sampled_from([None, None, -0.5, 1.5, 10.5]),
        repeats=st.booleans(),
    )
    def request(self, choice, names, seconds, repeats):
        peer = self.open_peer(choice)
        if peer is None:
            return
        deadline = seconds and datetime.fromtimestamp(self.wall_clock() + seconds, timezone.utc)
        frames = b""
        waits = []
        for name in names:
            if repeats and peer.waiting:
                request_id = next(iter(peer.waiting))
            else:
                self.number += 1
                request_id = f"r{self.number}"
                if name in ("wait", "swallow") and (seconds is None or seconds > 0):
                    waits.append(request_id)
                    peer.waiting[request_id] = deadline
            peer.sent[request_id] += 1
            frames += encode_frame(
                ExecutionRequest(
                    request_id=request_id,
                    job_id=f"job of {request_id}",
                    function_name=name,
                    context=ExecutionContext(
                        job_id=f"job of {request_id}",
                        attempt=1,
                        enqueue_time=START,
                        queue_name="q",
                        deadline=deadline,
                    ),
                )
            )
        known = len(peer.answers())
        before = len(peer.waiting) - len(waits)
        self.call(peer.transport.arrive, frames)
        refused = [answer.request_id for answer in peer.answers()[known:] if busy(answer)]
        assert not refused or before + len(names) > MAX_IN_FLIGHT
        for request_id in refused:
            if request_id not in self.released:
                peer.waiting.pop(request_id, None)
        assert len(peer.waiting) <= MAX_IN_FLIGHT

    @precondition(lambda self: any(peer.waiting for peer in self.peers))
    @rule(choice=st.integers(0, 20), whole_job=st.booleans(), itself=st.booleans())
    def cancel(self, choice, whole_job, itself):
        ids = [(peer, each) for peer in self.peers for each in peer.waiting]
        peer, request_id = ids[choice % len(ids)]
        message = CancelRequest(
            job_id=f"job of {request_id}", request_id=None if whole_job else request_id
        )

        self.send_cancel(message, peer if itself else None)
        peer.waiting.pop(request_id)

    @rule(choice=st.integers(0, 2), itself=st.booleans())
    def cancel_nothing(self, choice, itself):
        peer = self.open_peer(choice) if itself else None
        self.send_cancel(CancelRequest(job_id="none"), peer)

    def send_cancel(self, message, peer):
        """Sends a cancel on a peer's connection; None stands for a new connection."""

        def send():
            if peer is not None:
                peer.transport.arrive(encode_frame(message))
                return
            transport = Transport(MessageStream(self.runner.on_stream))
            transport.arrive(encode_frame(message))
            transport.arrive(b"")

        self.call(send)

    @rule(choice=st.integers(0, 20))
    def end_a_handler(self, choice):
        ids = [
            (peer, each) for peer in self.peers for each in peer.waiting if each in self.released
        ]
        if ids:
            peer, request_id = ids[choice % len(ids)]
            self.call(self.released[request_id].set_result, None)
            del peer.waiting[request_id]

    @rule(seconds=st.sampled_from([1, 3, 60]))
    def let_time_pass(self, seconds):
        self.loop.now += seconds
        self.call(lambda: None)
        now = datetime.fromtimestamp(self.wall_clock(), timezone.utc)
        for peer in self.peers:
            for request_id, deadline in list(peer.waiting.items()):
                if deadline is not None and deadline <= now:
                    del peer.waiting[request_id]

    @rule(choice=st.integers(0, 2), how=st.sampled_from(["reset", "end", "garbage", "wrong"]))
    def break_a_connection(self, choice, how):
        peer = self.open_peer(choice)
        if peer is None:
            return
        if how == "wrong":  # a payload that is not a valid message breaks nothing
            self.call(peer.transport.arrive, b"\0\0\0\x02{}")
            return
        peer.waiting.clear()
        if how == "reset":
            peer.is_reset = True
            self.call(peer.transport.lose, ConnectionResetError())
        else:
            peer.is_ended = True
            self.call(peer.transport.arrive, b"" if how == "end" else b"\xff\xff\xff\xff")

    # What must be true after each rule

    @invariant()
    def each_request_is_answered_once_unless_it_waits(self):
        for peer in self.peers:
            answers = peer.answers()
            answered = Counter(answer.request_id for answer in answers)
            assert answered <= peer.sent
            if not peer.is_reset:
                missing = peer.sent - answered
                assert missing == Counter(peer.waiting.keys()), (missing, peer.waiting)
            for answer in answers:
                assert answer.job_id == f"job of {answer.request_id}"

    @invariant()
    def ended_connections_are_closed(self):
        for peer in self.peers:
            assert peer.transport.is_closing() == (peer.is_reset or peer.is_ended)

    @invariant()
    def nothing_is_raised_to_the_event_loop(self):
        assert not self.unhandled

    def teardown(self):
        for peer in self.peers:
            if not (peer.is_reset or peer.is_ended):
                peer.is_ended = True
                peer.waiting.clear()
                self.call(peer.transport.arrive, b"")
        self.each_request_is_answered_once_unless_it_waits()
        self.ended_connections_are_closed()
        self.loop.run_until_complete(self.runner.stop(0))
        self.call(lambda: None)
        assert not asyncio.all_tasks(self.loop)
        self.nothing_is_raised_to_the_event_loop()
        self.cleanup.close()


def busy(answer):
    return answer.error is not None and answer.error.message.startswith("Runner busy")


@pytest.mark.hypothesis
def test_each_request_is_answered_once_or_its_connection_is_gone(caplog):
    caplog.set_level(logging.CRITICAL)  # otherwise each handler that raises is logged
    # More examples than in other tests, because few reach the limit of requests in flight.
    many = settings(max_examples=2 * settings().max_examples, deadline=None)
    run_state_machine_as_test(RunnerMachine, settings=many)
