"""The runner as the orchestrator sees it: each request gets one answer that it accepts, come what may."""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import enum
import fractions
import functools
import gc
import io
import ipaddress
import itertools
import json
import logging
import logging.config
import math
import pathlib
import random
import re
import socket
import subprocess
import sys
import textwrap
import time
import types
import uuid
import warnings
import weakref
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    CancelRequest,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    FrameDecoder,
    OutcomeType,
    decode_frame,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

pytest.importorskip("rrq", reason="compares with rrq, which is not installed")

import pydantic
import rrq.runner
import rrq.runner_runtime
import rrq.telemetry
from rrq.exc import RetryJob
from rrq.registry import Registry

StockOutcome = rrq.runner.ExecutionOutcome
StockError = rrq.runner.ExecutionError
StockRequest = rrq.runner.ExecutionRequest

# Seconds for what has no event to wait for: reached only where something is broken.
PATIENCE = 30

# Near enough to wait for, and far enough for a handler to have begun.
SOON = 0.1


# The orchestrator's side


def request(
    function_name,
    params=None,
    *,
    id="r",
    job_id=None,
    deadline=None,
    protocol_version="2",
    **context,
):
    """A request's frame. A deadline is given in seconds from now."""
    now = datetime.now(timezone.utc)
    job_id = f"job of {id}" if job_id is None else job_id
    return encode_frame(
        ExecutionRequest(
            protocol_version=protocol_version,
            request_id=id,
            job_id=job_id,
            function_name=function_name,
            params={} if params is None else params,
            context=ExecutionContext(
                job_id=job_id,
                attempt=1,
                enqueue_time=now,
                queue_name="q",
                deadline=None if deadline is None else now + timedelta(seconds=deadline),
                **context,
            ),
        )
    )


def cancel(job_id, id=None, **fields):
    return encode_frame(CancelRequest(job_id=job_id, request_id=id, **fields))


def unique(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key twice in {keys}"
    return dict(pairs)


def finite(digits):
    number = float(digits)
    assert math.isfinite(number), f"{digits[:30]}... is beyond a double"
    return int(digits) if digits.lstrip("-").isdigit() else number


def never(name):
    raise AssertionError(f"{name} is not JSON")


def depth(text):
    deepest = now = 0
    for bracket in re.findall(r"[][{}]", re.sub(r'"(?:[^"\\]+|\\.)*"', "", text)):
        now += 1 if bracket in "[{" else -1
        deepest = max(deepest, now)
    return deepest


def read_strictly(frame):
    """A response's fields. AssertionError or ValueError where the orchestrator would hang up."""
    assert 0 < len(frame) - 4 == int.from_bytes(frame[:4], "big") <= MAX_FRAME_SIZE
    text = frame[4:].decode()
    assert depth(text) <= 127
    document = json.loads(
        text, object_pairs_hook=unique, parse_constant=never, parse_int=finite, parse_float=finite
    )
    json.dumps(document, ensure_ascii=False).encode()  # no half of a surrogate pair
    assert document["type"] == "response"
    fields = document["payload"]
    assert type(fields["job_id"]) is type(fields["request_id"]) is str
    assert fields["status"] in ("success", "retry", "timeout", "error")
    assert type(fields.get("retry_after_seconds")) in (int, float, type(None))
    error = fields.get("error")
    if error is not None:
        assert type(error["message"]) is str
        assert {type(error.get("type")), type(error.get("code"))} <= {str, type(None)}
    decode_frame(frame)
    return fields


def meaning(outcome):
    """An outcome as text, in which 1 is neither 1.0 nor true."""
    error = outcome.error and (
        outcome.error.message,
        outcome.error.type,
        outcome.error.code,
        json.dumps(outcome.error.details),
    )
    return repr((outcome.status, json.dumps(outcome.result), error, outcome.retry_after_seconds))


class Peer:
    """A connection to the runner, byte by byte."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._decoder = FrameDecoder()
        self.name = "{}:{}".format(*writer.get_extra_info("sockname"))

    def send(self, *frames):
        self._writer.write(b"".join(frames))

    async def fields(self, count):
        """What the next answers say, in the order of their arrival."""
        return [await self._next() for _ in range(count)]

    async def answers(self, count):
        """The next answers, by request_id: none is the second to its request."""
        fields = await self.fields(count)
        found = {each["request_id"]: outcome(each) for each in fields}
        assert len(found) == count, f"answered twice: {fields}"
        return found

    async def answer(self):
        [found] = (await self.answers(1)).values()
        return found

    async def _next(self):
        while (payload := next(self._decoder, None)) is None:
            data = await self._reader.read(2**20)
            assert data, "the connection has ended"
            self._decoder.feed(data)
        return read_strictly(pack_frame(payload))

    async def ended(self):
        """Whether the runner ends the connection without another answer."""
        assert next(self._decoder, None) is None
        return await self._reader.read(1) == b""

    def end(self):
        self._writer.write_eof()

    def abort(self):
        self._writer.transport.abort()

    def is_closing(self):
        return self._writer.is_closing()

    async def close(self):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def outcome(fields):
    document = {"type": "response", "payload": fields}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return decode_frame(pack_frame(text.encode()))


@contextlib.asynccontextmanager
async def serving(handlers, **options):
    """Runs a runner, and gives a function that connects to it.

    At the end nobody was answered twice, and no task is left.
    """
    peers = []
    before = asyncio.all_tasks()
    runner = Runner(handlers, **options)
    server = await start_server(runner.on_stream, "127.0.0.1", 0)

    async def connect():
        peer = Peer(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        peers.append(peer)
        return peer

    try:
        yield connect
        for peer in peers:
            if not peer.is_closing():
                peer.end()
                assert await peer.ended(), "there was an answer too many"
    finally:
        for peer in peers:
            await peer.close()
        server.close()
        await runner.stop(PATIENCE)
    await until(lambda: asyncio.all_tasks() == before)


async def until(condition):
    """Waits for what has no event of its own."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def registry(handlers):
    made = Registry()
    for name, handler in handlers.items():
        made.register(name, handler)
    return made


def call(run, handlers, *frames, **options):
    """The answers to some requests on one connection, by request_id."""

    async def calling():
        async with serving(handlers, **options) as connect:
            peer = await connect()
            peer.send(*frames)
            return await peer.answers(len(frames))

    return run(calling())


def among_neighbours(run, report, *, wrap=registry, finally_=lambda: None):
    """What the job "report" is answered, while jobs before, behind and beside it get theirs."""

    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()
            return request.params

        async def quick(request):
            return request.params

        async def slow(request):
            for _ in range(5):
                await asyncio.sleep(0)
            return request.params

        handlers = {"report": report, "wait": wait, "quick": quick, "slow": slow}
        async with serving(wrap(handlers)) as connect:
            here, there = await connect(), await connect()
            try:
                there.send(
                    request("wait", {"is": "there waits"}, id="there waits"),
                    request("quick", {"is": "there"}, id="there"),
                )
                here.send(
                    request("wait", {"is": "waits"}, id="waits"),
                    request("quick", {"is": "before"}, id="before"),
                    request("report", id="r", job_id="j"),
                    request("quick", {"is": "behind"}, id="behind"),
                    request("slow", {"is": "slow"}, id="slow"),
                    request("wait", {"is": "waits too"}, id="waits too"),
                )
                answers = await here.answers(4)
                own = answers.pop("r")
                answers |= await there.answers(1)
                held.set()
                answers |= await here.answers(2) | await there.answers(1)
                assert {id: each.result for id, each in answers.items()} == {
                    id: {"is": id} for id in answers
                }
                assert len(answers) == 7
                return own
            finally:
                finally_()

    own = run(running())
    assert (own.job_id, own.request_id) == ("j", "r")
    return own


def stock_answer(report):
    """The frame that the stock runner sends for a job of this handler; b"" where it never does."""

    class Writer:
        async def drain(self):
            pass

    class Tracker:
        async def track_finish(self, request_id):
            pass

    frames = []
    writer = Writer()
    writer.write = frames.append
    runner = rrq.runner.PythonRunner(job_registry=registry({"report": report}), worker_id=None)
    frame = request("report", job_id="j")
    asked = StockRequest.model_validate(json.loads(frame[4:])["payload"])

    async def answering():
        lock = asyncio.Lock()
        await rrq.runner_runtime._execute_and_respond(
            runner, asked, writer, lock, Tracker(), set(), {}, lock
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(answering())
    return b"".join(frames)


def compare(run, report, cause, **options):
    """Checks that a job is answered as by the stock runner, or, with a cause, why it is not."""
    theirs = stock_answer(report)
    ours = among_neighbours(run, report, **options)
    if cause is None:
        read_strictly(theirs)
        assert meaning(ours) == meaning(decode_frame(theirs))
        return
    with pytest.raises((AssertionError, ValueError, LookupError, TypeError)):
        read_strictly(theirs)
    assert ours.type is OutcomeType.FAILURE
    assert "report" in ours.error.message
    assert re.search(cause, ours.error.message), ours.error.message
    assert len(ours.error.message) < 1500


# Requests


async def echo(request):
    return request.params


async def fail(request):
    raise ValueError("failed")


async def forever(request):
    await asyncio.Event().wait()


def test_a_result_is_answered_with_the_ids_of_its_request(run):
    answers = call(run, {"echo": echo}, *(request("echo", {"n": n}, id=f"é{n}") for n in range(60)))
    for n in range(60):
        assert answers[f"é{n}"] == ExecutionOutcome.success(f"job of é{n}", f"é{n}", {"n": n})


def test_a_request_of_another_protocol_version_is_answered_and_not_run(run):
    answers = call(
        run,
        {"echo": echo},
        request("echo", id="1", protocol_version="1"),
        request("echo", id="", protocol_version=""),
        request("echo", id="2"),
    )
    for id in ("1", ""):
        message = "Unsupported protocol version"
        assert answers[id] == ExecutionOutcome.failure(f"job of {id}", id, message)
    assert answers["2"].type is OutcomeType.SUCCESS


@pytest.mark.parametrize("name", ["missing", "", "echo ", "é", "__class__", "'"])
def test_a_job_without_a_handler_is_answered_in_the_words_of_the_stock_runner(run, name):
    theirs = asyncio.run(
        rrq.runner.PythonRunner(job_registry=Registry(), worker_id=None).execute(
            StockRequest.model_validate(json.loads(request(name)[4:])["payload"])
        )
    )
    for handlers in ({"echo": echo}, registry({"echo": echo})):
        answer = call(run, handlers, request(name))["r"]
        assert answer.type is OutcomeType.HANDLER_NOT_FOUND
        assert answer.error.message == theirs.error.message


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_beyond_the_limit_in_flight_a_request_is_told_that_the_runner_is_busy(run, limit):
    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()
            return request.request_id

        options = {} if limit is None else {"max_in_flight": limit}
        most = limit or 64
        async with serving({"wait": wait}, **options) as connect:
            one, other = await connect(), await connect()
            one.send(*(request("wait", id=str(n)) for n in range(most + 2)))
            for id, answer in (await one.answers(2)).items():
                message = "Runner busy: too many in-flight requests"
                assert answer == ExecutionOutcome.failure(f"job of {id}", id, message)
                assert int(id) >= most
            other.send(*(request("wait", id=str(n)) for n in range(most)))  # has its own limit
            other.send(request("wait", id="extra"))
            assert (await other.answer()).error.message == message
            held.set()
            for peer in (one, other):
                for id, answer in (await peer.answers(most)).items():
                    assert answer.result == id
            one.send(*(request("wait", id=f"again {n}") for n in range(most)))
            assert all(each.error is None for each in (await one.answers(most)).values())

    run(running())


def test_a_second_request_of_an_id_in_flight_is_refused_and_the_first_goes_on(run):
    async def running():
        held, count = asyncio.Event(), itertools.count()

        async def wait(request):
            number = next(count)
            await held.wait()
            return number

        async with serving({"wait": wait}) as connect:
            one, other = await connect(), await connect()
            one.send(request("wait"), request("wait"))
            refused = await one.answer()
            assert refused.error.message == "Request already in flight"
            other.send(request("wait"))  # ids are one connection's own
            one.send(request("wait"))
            assert await one.answer() == refused
            held.set()
            assert (await one.answer()).result == 0
            assert (await other.answer()).result == 1
            one.send(request("wait"))
            assert (await one.answer()).result == 2

    run(running())


def malformed(type="request", *, without=(), **changes):
    fields = {
        "request_id": "r",
        "job_id": "j",
        "function_name": "echo",
        "context": {
            "job_id": "j",
            "attempt": 1,
            "enqueue_time": "2025-01-02T12:00:00Z",
            "queue_name": "q",
        },
        **changes,
    }
    for name in without:
        del fields[name]
    return pack_frame(json.dumps({"type": type, "payload": fields}).encode())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (malformed(context=None), "payload.context: expected an object, got null"),
        (malformed(without=["context"]), "payload.context: expected an object, got nothing"),
        (malformed(function_name=1), "payload.function_name: expected a string, got 1"),
        (malformed(params=[1]), "payload.params: expected an object, got an array"),
        (malformed(protocol_version=2), "payload.protocol_version: expected a string, got 2"),
        (malformed(job_id=7), None),
        (malformed(without=["request_id"]), None),
        (malformed("cancel", hard_kill="yes"), None),
        (malformed("cancel", protocol_version=None), None),
        (malformed("response", status="done"), None),
        (malformed("Request"), None),
        (malformed(["request"]), None),
        (pack_frame(b"{"), None),
        (pack_frame(b"\xff"), None),
        (pack_frame(b"[]"), None),
        (pack_frame(b'\xef\xbb\xbf{"type":"request"}'), None),
        (pack_frame(b'{"type":"request","payload":null}'), None),
    ],
    ids=lambda value: value[4:40].decode(errors="replace") if type(value) is bytes else "",
)
def test_what_is_no_message_is_answered_if_it_names_a_request_and_the_connection_goes_on(
    run, frame, message
):
    async def running():
        async with serving({"echo": echo, "forever": forever}) as connect:
            peer = await connect()
            peer.send(frame, request("echo", id="next"))
            answers = await peer.answers(1 if message is None else 2)
            assert answers.pop("next").type is OutcomeType.SUCCESS
            if message is not None:
                assert answers == {"r": ExecutionOutcome.failure("j", "r", message)}
            # It says nothing of a request of the same id in flight, which has an answer to come.
            peer.send(request("forever", job_id="j"), frame, request("echo", id="next"))
            assert list(await peer.answers(1)) == ["next"]
            peer.send(cancel("j"))
            assert (await peer.answer()).type is OutcomeType.CANCELLED

    run(running())


def test_a_response_sent_to_the_runner_is_ignored(run):
    async def running():
        async with serving({"echo": echo, "forever": forever}) as connect:
            peer = await connect()
            peer.send(
                request("forever", id="1", job_id="j"),
                encode_frame(ExecutionOutcome.success("j", "1")),
                encode_frame(ExecutionOutcome.cancelled("j", "1")),
                request("echo", id="2"),
            )
            assert list(await peer.answers(1)) == ["2"]
            peer.send(cancel("j"))
            assert (await peer.answer()).type is OutcomeType.CANCELLED

    run(running())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\x01",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ],
    ids=["HTTP", "empty frame", "4 GiB", "a byte over 16 MiB", "TLS"],
)
def test_garbage_closes_its_own_connection_alone(run, garbage):
    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()

        async with serving({"wait": wait}) as connect:
            bad, good = await connect(), await connect()
            good.send(request("wait"))
            bad.send(request("wait", id="before"), garbage)
            assert (await bad.answer()).type is OutcomeType.CANCELLED
            assert await bad.ended()
            await bad.close()
            held.set()
            assert (await good.answer()).type is OutcomeType.SUCCESS
            again = await connect()
            again.send(request("wait"))
            assert (await again.answer()).type is OutcomeType.SUCCESS

    run(running())


@pytest.mark.parametrize("half", [b"\0\0", b"\0\0\1\0", b"\0\0\1\0{"], ids=repr)
def test_an_end_inside_a_frame_cancels_the_jobs_of_the_connection(run, half):
    async def running():
        async with serving({"forever": forever}) as connect:
            peer = await connect()
            peer.send(request("forever"), half)
            peer.end()
            assert (await peer.answer()).type is OutcomeType.CANCELLED
            assert await peer.ended()
            await peer.close()

    run(running())


def test_the_end_of_a_connection_cancels_its_jobs_and_no_others(run):
    async def running():
        ended, held = [], asyncio.Event()

        async def wait(request):
            try:
                await held.wait()
            finally:
                ended.append(request.request_id)

        async with serving({"wait": wait}) as connect:
            half, gone, stays = await connect(), await connect(), await connect()
            half.send(request("wait", id="1"), request("wait", id="2"))
            gone.send(request("wait", id="3"))
            stays.send(request("wait", id="4"), request("missing"))
            await stays.answer()
            half.end()
            cancelled = await half.answers(2)
            for id in ("1", "2"):
                assert cancelled[id] == ExecutionOutcome.cancelled(f"job of {id}", id)
            assert await half.ended()
            await half.close()
            gone.abort()
            await until(lambda: sorted(ended) == ["1", "2", "3"])
            held.set()
            assert (await stays.answer()).type is OutcomeType.SUCCESS

    run(running())


def test_a_readiness_probe_that_sends_nothing_leaves_nothing(run):
    async def running():
        async with serving({"echo": echo}) as connect:
            probe = await connect()
            probe.end()
            assert await probe.ended()

    run(running())


# Cancelling


@pytest.mark.parametrize("with_request_id", [True, False], ids=["by request", "by job"])
@pytest.mark.parametrize("running", [True, False], ids=["waits", "arrives with its cancel"])
def test_a_cancel_on_a_connection_of_its_own_ends_what_it_means(run, with_request_id, running):
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
def test_a_cancel_of_another_version_or_of_nothing_in_flight_is_ignored(run, meant):
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


def test_a_cancel_that_comes_too_late_changes_nothing(run):
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


async def spin(request):
    while True:
        await asyncio.sleep(0)


async def swallow(request):
    """Takes its cancellation for an interruption."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return "late"


async def fail_instead(request):
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("late")


async def linger(request):
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("handler", [forever, spin, swallow, fail_instead, linger])
@pytest.mark.parametrize("how", ["request", "job", "deadline", "end"])
def test_what_a_handler_makes_of_its_cancellation_is_no_second_answer(run, handler, how):
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
                # The id is free at once, whatever the handler still does.
                peer.send(cancel("job of r"), request("echo", {"again": True}))
                assert (await peer.answer()).result == {"again": True}

    run(running())


def test_a_handler_that_never_ends_does_not_keep_its_answer_or_its_neighbours(run):
    async def running():
        release = asyncio.Event()

        async def stubborn(request):
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        async with serving({"stubborn": stubborn, "echo": echo}, max_in_flight=2) as connect:
            peer = await connect()
            for _ in range(5):  # they count no more as in flight
                peer.send(request("stubborn", id="1"), request("stubborn", id="2", deadline=SOON))
                peer.send(cancel("job of 1"))
                answers = await peer.answers(2)
                assert answers["1"].type is OutcomeType.CANCELLED
                assert answers["2"].type is OutcomeType.TIMEOUT
            peer.send(request("echo", {"a": 1}))
            assert (await peer.answer()).result == {"a": 1}
            release.set()

    run(running())


@pytest.mark.parametrize("first", ["result", "cancel"])
def test_what_comes_first_of_result_and_cancel_is_the_answer(run, first):
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


# Deadlines


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


def test_deadlines_pass_in_their_order_whatever_that_of_their_requests(run):
    async def running():
        async with serving({"forever": forever, "echo": echo}) as connect:
            peer = await connect()
            delays = [0.3 + n / 200 for n in range(60)]
            shuffled = random.Random(4).sample(delays, len(delays))
            peer.send(
                *(request("forever", id=f"{delay:.3f}", deadline=delay) for delay in shuffled)
            )
            passed = [
                fields["request_id"]
                for fields in await peer.fields(len(delays))
                if fields["error"]["message"] == "Job execution timed out."
            ]
            assert passed
            assert passed == sorted(passed)

    run(running())


class SkippingLoop(asyncio.SelectorEventLoop):
    """A loop whose time can be put forward."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead


def test_ten_thousand_deadlines_pass_in_their_order():
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
            asyncio.get_running_loop().ahead = 970 + 60 * 4900  # amid them
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
    """A loop whose time is what is set, as long as something is."""

    now = 0.0

    def time(self):
        return super().time() if self.now is None else self.now


def test_a_deadline_is_answered_5_ms_early_where_its_request_is_alone(monkeypatch):
    """Elsewhere the orchestrator cancels the job; there, it would end the process."""

    async def running():
        loop = asyncio.get_running_loop()
        async with serving({"forever": forever, "echo": echo}) as connect:
            alone, other = await connect(), await connect()
            alone.send(request("forever", deadline=1000), request("echo", id="begun"))
            other.send(*(request("forever", id=id, deadline=1000) for id in "12"))
            other.send(request("echo", id="begun"))
            assert [*await alone.answers(1), *await other.answers(1)] == ["begun"] * 2
            loop.now += 999.994
            await asyncio.sleep(0)
            alone.send(request("echo", id="5 ms are left"))
            assert list(await alone.answers(1)) == ["5 ms are left"]
            loop.now += 0.002
            assert (await alone.answer()).type is OutcomeType.TIMEOUT
            other.send(request("echo", id="4 ms are left"))
            assert list(await other.answers(1)) == ["4 ms are left"]
            loop.now += 0.005
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
    monkeypatch.setitem(globals(), "datetime", Date)
    with asyncio.Runner(loop_factory=FrozenLoop) as runner:
        runner.run(running())


def test_jobs_that_end_in_time_are_forgotten_before_their_deadlines(run):
    def jobs():
        return sum(type(each).__name__ == "Job" for each in gc.get_objects())

    async def pause(request):
        await asyncio.sleep(0)

    async def running():
        async with serving({"pause": pause}) as connect:
            peer = await connect()
            for _ in range(50):
                peer.send(*(request("pause", id=str(n), deadline=3600) for n in range(60)))
                await peer.answers(60)
            assert jobs() < 1000
            # A deadline that is nearer than all of theirs is not lost among them.
            peer.send(request("forever", deadline=SOON), request("pause", id="2", deadline=3600))
            await peer.answers(2)

    run(running())


# Exceptions


class RudeStrError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class NoStrError(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307


class ClasslessError(Exception):
    @property
    def __class__(self):
        raise LookupError("hostile")


class RudeText(str):
    __slots__ = ()

    def __bool__(self):
        raise LookupError("hostile")

    __len__ = __bool__


class RudelyWordedError(Exception):
    def __str__(self):
        return RudeText("words")


class RetryWithoutDelay(RetryJob):
    def __init__(self, text):
        Exception.__init__(self, text)


class RudeRetry(RetryJob):
    defer_seconds = property(lambda _: 1 / 0, lambda *_: None)


class SilentError(TimeoutError):
    def __str__(self):
        return ""


def raising(make):
    async def report(request):
        raise make()

    async def report_later(request):
        await asyncio.sleep(0)
        raise make()

    return report, report_later


EXCEPTIONS_LIKE_STOCK = [
    lambda: ValueError("text"),
    ValueError,
    lambda: ValueError(""),
    lambda: KeyError("key"),
    lambda: OSError(2, "No such file"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    lambda: ExceptionGroup("several", [ValueError("1"), TypeError("2")]),
    lambda: StopIteration("value"),
    lambda: StopAsyncIteration("value"),
    lambda: RecursionError("deep"),
    MemoryError,
    lambda: ValueError('control \0\x1f, quote ", backslash \\, é😀'),
    TimeoutError,
    lambda: TimeoutError("own words"),
    SilentError,
    RetryJob,
    lambda: RetryJob(""),
    lambda: RetryJob("later"),
    *(
        lambda delay=delay: RetryJob("later", delay)
        for delay in (0, 5, 2.5, -1, "5", " 2.5 ", True, Decimal("0.5"), b"5", 10**30)
    ),
]


@pytest.mark.parametrize("make", EXCEPTIONS_LIKE_STOCK, ids=lambda make: repr(make()))
@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_an_exception_is_answered_as_by_the_stock_runner(run, make, step):
    report = raising(make)[step]
    theirs = decode_frame(stock_answer(report))
    assert among_neighbours(run, report) == theirs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ValueError("a\ud800b"), r"error of 'report' .*lone surrogate at index 1"),
        (lambda: TimeoutError("\udfff"), r"error of 'report' .*lone surrogate at index 0"),
        (lambda: RetryJob("\udfff"), r"error of 'report' .*lone surrogate at index 0"),
        (lambda: ValueError("x" * 17 * 2**20), r"error of 'report' .* 178258\d\d bytes.* 16777216"),
        (RudeStrError, "'report' raised RudeStrError: its __str__ raised ZeroDivisionError"),
        (NoStrError, "'report' raised NoStrError: its __str__ raised TypeError"),
        (RudelyWordedError, "'report' raised RudelyWordedError"),
        (lambda: ClasslessError("text"), "'report' raised ClasslessError"),
        (lambda: SystemExit(3), "'report' raised SystemExit: 3"),
        (KeyboardInterrupt, "'report' raised KeyboardInterrupt: "),
        (GeneratorExit, "'report' raised GeneratorExit: "),
        (
            lambda: BaseExceptionGroup("group", [SystemExit()]),
            r"'report' raised BaseExceptionGroup: group \(1 sub-exception\)",
        ),
        (lambda: type("OwnError", (BaseException,), {})("text"), "'report' raised OwnError: text"),
        (lambda: RetryWithoutDelay("later"), "'report' raised RetryWithoutDelay.*AttributeError"),
        (lambda: RudeRetry("later"), "'report' raised RudeRetry.*ZeroDivisionError"),
        (lambda: RetryJob("later", "soon"), "'report'.*retry_after_seconds.* number"),
        (lambda: RetryJob("later", timedelta(1)), "'report'.*retry_after_seconds.* number"),
        (lambda: RetryJob("later", 10**400), "'report' .*308 digits"),
        (lambda: RetryJob("later", [5]), "'report'.*retry_after_seconds.* number"),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_an_exception_that_cannot_be_sent_is_answered_with_the_cause(run, make, message, step):
    answer = among_neighbours(run, raising(make)[step])
    assert answer.type is OutcomeType.FAILURE
    assert re.search(message, answer.error.message), answer.error.message
    assert len(answer.error.message) < 1500


@pytest.mark.parametrize("delay", [math.nan, math.inf, "nan", Decimal("1e400")])
@pytest.mark.parametrize(
    "how",
    [
        RetryJob,
        lambda message, delay: stock(
            "retry", error=StockError(message=message), retry_after_seconds=delay
        ),
    ],
    ids=["raised", "returned"],
)
def test_a_delay_that_is_no_number_of_seconds_is_left_to_the_orchestrator(run, delay, how):
    """The stock runner writes NaN and Infinity, which is no JSON."""

    async def report(request):
        made = how("later", delay)
        if isinstance(made, Exception):
            raise made
        return made

    assert among_neighbours(run, report) == ExecutionOutcome.retry_after("j", "r", "later")


@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_a_handler_that_raises_cancelled_error_by_itself_is_answered_as_cancelled(run, step):
    report = raising(asyncio.CancelledError)[step]
    assert among_neighbours(run, report) == ExecutionOutcome.cancelled("j", "r")


# Results


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Mode(enum.StrEnum):
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Bits(enum.Flag):
    A = 1
    B = 2


class RudeEnum(enum.Enum):
    ONE = 1

    @property
    def value(self):
        raise LookupError("hostile")


class Model(pydantic.BaseModel):
    when: datetime = datetime(2025, 1, 2)
    tags: set[int] = {1}
    parent: Model | None = None


class RudeModel(pydantic.BaseModel):
    a: int = 1

    @pydantic.model_serializer
    def serialize(self):
        raise SystemExit("hostile")


@dataclasses.dataclass
class Point:
    x: int = 1
    y: object = None


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class RudeIter(list):
    def __iter__(self):
        raise LookupError("hostile")


class RudeItems(dict):
    def items(self):
        raise LookupError("hostile")


class RudeClass:
    @property
    def __class__(self):
        raise LookupError("hostile")


class Posing:
    """Says that it is an outcome, and is none."""

    __class__ = ExecutionOutcome


class Iterable:
    def __iter__(self):
        return iter([1])


Row = collections.namedtuple("Row", "a b")


def nested(levels, of=list):
    value = of()
    for _ in range(levels - 1):
        value = of([value])
    return value


def generate():
    yield 1
    yield {2}


def generate_and_fail():
    yield 1
    raise LookupError("hostile")


def generate_and_complain():
    yield 1
    raise LookupError("\ud800" + "x" * 20 * 2**20)


def generate_and_exit():
    yield 1
    raise SystemExit("hostile")


def holds_itself():
    value = []
    value.append(value)
    return value


def holds_itself_in_a_set_and_more():
    value = {"deep": [{1}]}
    value["loop"] = value
    return value


UNAWAITED = []


def unawaited():
    coroutine = asyncio.sleep(0)
    UNAWAITED.append(coroutine)  # to be closed, so that nothing warns of it
    return coroutine


async def generate_async():
    yield 1


# Results that the stock runner answers with, by name.
LIKE_STOCK = {
    "None": lambda: None,
    "True": lambda: True,
    "text": lambda: 'é😀 "quoted" \\ \0 \x1f \x7f \u2028',
    "minus zero": lambda: -0.0,
    "float": lambda: [1e300, 5e-324, 1.0, 0.1],
    "integers of 64 bits": lambda: [2**64 - 1, -(2**63)],
    "integers beyond 64 bits": lambda: [2**64, -(2**63) - 1, 10**30, -(10**307)],
    "set": lambda: {7},
    "frozenset of tuples": lambda: frozenset({(1, "a")}),
    "tuple": lambda: (1, (2, ())),
    "generator": generate,
    "generators in a dict": lambda: {"a": generate(), "b": [map(str, [1])]},
    "iterator": lambda: iter([1, {2}]),
    "zip": lambda: zip([1], ["a"], strict=True),
    "deque": lambda: collections.deque([1, {2}]),
    "datetime": lambda: datetime(2025, 1, 2, 3, 4, 5, 6),
    "datetime in UTC": lambda: datetime(2025, 1, 2, tzinfo=timezone.utc),
    "datetime with an offset": lambda: datetime(2025, 1, 2, tzinfo=timezone(timedelta(hours=5.5))),
    "date": lambda: date(2025, 1, 2),
    "time": lambda: time_of_day(1, 2, 3, 4),
    "timedelta": lambda: timedelta(days=1, seconds=1.5),
    "Decimal": lambda: [Decimal("1.50"), Decimal("NaN"), Decimal("1e400")],
    "Fraction": lambda: fractions.Fraction(1, 2),
    "UUID": lambda: uuid.UUID(int=1),
    "Enum": lambda: [Color.RED, Color.PAIR, Mode.FAST, Level.HIGH, Bits.A | Bits.B],
    "Path": lambda: pathlib.Path("a", "b"),
    "complex": lambda: 1 + 2j,
    "dataclass": lambda: Point(y=Point(y={1})),
    "BaseModel": lambda: Model(parent=Model()),
    "SecretStr": lambda: pydantic.SecretStr("secret"),
    "IP address": lambda: ipaddress.ip_address("127.0.0.1"),
    "pattern": lambda: re.compile("a+"),
    "bytes": lambda: [b"caf\xc3\xa9", bytearray(b"x"), b""],
    "NaN and infinities": lambda: [math.nan, math.inf, -math.inf, {"a": math.nan}],
    "odd keys": lambda: {None: 1, True: 2, 3: 3, 1.5: 4, (1, 2): 5},
    "keys that become the same": lambda: {1: "a", "1": "b"},
    "keys with a JSON form": lambda: {
        date(2025, 1, 2): 1,
        uuid.UUID(int=1): 2,
        b"k": 3,
        math.nan: 4,
    },
    "keys of an Enum": lambda: {Color.RED: 1, Mode.FAST: 2, Level.HIGH: 3},
    "namedtuple": lambda: Row(1, {2}),
    "str, int and float subclasses": lambda: [Text("a"), Whole(7), Real(1.5), {Text("k"): 1}],
    "dict subclasses": lambda: [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
    ],
    "list whose __iter__ raises": lambda: RudeIter([1]),
    "dict whose items() raises": lambda: RudeItems(a=1),
    "an odd value deep inside": lambda: {"a": [{"b": ({"c": {Color.RED}},)}]},
    "object whose __class__ raises": RudeClass,
    "nested 125 deep": lambda: nested(125),
    "rrq's ExecutionError": lambda: StockError(message="m", details={"a": 1}),
    "an exact 16 MiB": lambda: "x" * (MAX_FRAME_SIZE - FULL),
}

# The envelope of a result in a frame of ours, for the ids of the table.
FULL = len(encode_frame(ExecutionOutcome.success("j", "r", ""))) - 4
LIKE_STOCK.pop("an exact 16 MiB")  # the stock runner's envelope is longer

# Results that cannot be sent: why, in the answer. To these the stock runner sends nothing, or what
# takes the connection down.
UNSENDABLE = {
    "object": (object, "unknown type.*object"),
    "class": (lambda: int, "unknown type.*type"),
    "function": (lambda: generate, "unknown type.*function"),
    "module": (lambda: json, "unknown type.*module"),
    "exception": (lambda: ValueError("x"), "unknown type.*ValueError"),
    "Ellipsis": (lambda: ..., "unknown type.*ellipsis"),
    "coroutine": (unawaited, "unknown type.*coroutine"),
    "async generator": (generate_async, "unknown type.*async_generator"),
    "memoryview": (lambda: memoryview(b"x"), "unknown type.*memoryview"),
    "range": (lambda: range(3), "unknown type.*range"),
    "array": (lambda: array.array("i", [1]), "unknown type.*array"),
    "ChainMap": (lambda: collections.ChainMap({}), "unknown type.*ChainMap"),
    "mapping proxy": (lambda: types.MappingProxyType({}), "unknown type.*mappingproxy"),
    "dict views": ({}.keys, "unknown type.*dict_keys"),
    "any iterable": (Iterable, "unknown type.*Iterable"),
    "an object deep inside": (lambda: {"a": [{"b": {object()}}]}, "unknown type.*object"),
    "an object as key": (lambda: {object(): 1}, "unknown type.*object"),
    "a set as key": (lambda: {frozenset({1}): 1}, "frozenset.* key"),
    "bytes that are no UTF-8": (lambda: b"\xff", "can't decode byte 0xff"),
    "a key that is no UTF-8": (lambda: {b"\xff": 1}, "utf-8"),
    "a lone surrogate": (lambda: "ab\ud800", "lone surrogate at index 2"),
    "a lone surrogate deep inside": (
        lambda: {"a": [1, "\udfff"]},
        r"payload\.result\.a\[1\].*lone",
    ),
    "a lone surrogate as key": (lambda: {"\ud800": 1}, "surrogate"),
    "a lone surrogate and a set": (lambda: [{1}, "\ud800"], "surrogate"),
    "10**400": (lambda: 10**400, "308 digits"),
    "-10**400 deep inside": (lambda: [{1}, {"a": -(10**400)}], "308 digits"),
    "17 MiB": (lambda: "x" * 17 * 2**20, r"178258\d\d bytes.* limit.* 16777216"),
    "17 MiB of escapes": (lambda: "\0" * 3 * 2**20, r"188744\d\d bytes.* limit.* 16777216"),
    "17 MiB in a set": (lambda: {"x" * 17 * 2**20}, r"178258\d\d bytes.* limit.* 16777216"),
    "17 MiB of bytes": (lambda: b"x" * 17 * 2**20, r"178258\d\d bytes.* limit.* 16777216"),
    "nested 126 deep": (lambda: nested(126), "deep|depth"),
    "nested 126 deep in dicts": (
        lambda: nested(126, lambda items=(): dict(enumerate(items))),
        "deep|depth",
    ),
    "nested 126 deep in tuples": (lambda: nested(126, tuple), "deep|depth"),
    "nested 900 deep": (lambda: nested(900), "deep|depth"),
    "nested 100,000 deep": (lambda: nested(100_000), "deep|depth"),
    "a list that holds itself": (holds_itself, "Circular|deep"),
    "a dict that holds itself": (holds_itself_in_a_set_and_more, "Circular|deep"),
    "an Enum whose value raises": (lambda: RudeEnum.ONE, "LookupError|hostile"),
    "a generator that raises": (generate_and_fail, "hostile"),
    "a generator that raises what cannot be sent": (generate_and_complain, r"\\ud800x"),
}

# They end the stock runner itself.
FATAL = {
    "a generator that exits": (generate_and_exit, "SystemExit"),
    "a model that exits": (RudeModel, "SystemExit"),
}


def giving(make):
    async def report(request):
        return make()

    return report


def table(cases):
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize("make", LIKE_STOCK.values(), ids=LIKE_STOCK.keys())
def test_an_odd_result_is_answered_as_by_the_stock_runner(run, make):
    compare(run, giving(make), None)


@pytest.mark.parametrize(("make", "cause"), table(UNSENDABLE))
def test_a_result_that_cannot_be_sent_is_answered_with_the_cause(run, make, cause):
    try:
        compare(run, giving(make), f"'report' .*(?:{cause})")
    finally:
        while UNAWAITED:
            UNAWAITED.pop().close()


@pytest.mark.parametrize(("make", "cause"), table(FATAL))
def test_a_result_that_ends_the_process_is_answered_with_the_cause(run, make, cause):
    answer = among_neighbours(run, giving(make))
    assert answer.type is OutcomeType.FAILURE
    assert re.search(f"result of 'report' cannot be sent: .*{cause}", answer.error.message)


def test_the_largest_result_fits_and_one_byte_more_is_told_by_size_and_limit(run):
    async def sized(request):
        return "x" * request.params["size"]

    most = MAX_FRAME_SIZE - FULL
    answers = call(
        run,
        {"sized": sized},
        request("sized", {"size": most}, id="r", job_id="j"),
        request("sized", {"size": most + 1}, id="s", job_id="j"),
    )
    assert answers["r"].result == "x" * most
    message = (
        "result of 'sized' cannot be sent: payload of 16777217 bytes exceeds the limit of 16777216"
    )
    assert answers["s"].error.message == message


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        # First halves of pairs alone: with a second half behind it, json writes a character, where
        # this package refuses a text that UTF-8 cannot carry.
        st.text(st.sampled_from("aé\ud800\udbff"), max_size=3),
        st.binary(max_size=3),
        st.sampled_from([Color.RED, Mode.FAST, Level.HIGH, date(2025, 1, 2), object(), Text("x")]),
        st.decimals(),
        st.uuids(),
        st.timedeltas(),
        st.builds(Point, y=st.integers() | st.floats()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.none(), st.floats(), st.booleans()),
            inner,
            max_size=3,
        ),
        st.builds(Point, y=inner),
        st.sets(st.integers() | st.text(max_size=2), max_size=1),
    ),
    max_leaves=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(VALUES, min_size=1, max_size=20))
def test_any_mixture_of_values_is_answered_as_by_the_stock_runner_or_as_an_error(run, values):
    async def report(request):
        return values[request.params["n"]]

    frames = [request("report", {"n": n}, id=str(n)) for n in range(len(values))]
    answers = call(run, {"report": report}, *frames)
    for n, value in enumerate(values):
        answer = answers[str(n)]
        try:
            theirs = read_strictly(stock_answer(giving(lambda value=value: value)))
        except (AssertionError, ValueError):
            assert answer.type is OutcomeType.FAILURE
            assert "result of 'report' cannot be sent" in answer.error.message
        else:
            assert answer.type is OutcomeType.SUCCESS
            assert json.dumps(answer.result) == json.dumps(decoded(theirs["result"]))


def decoded(value):
    """A result that json has read, as the orchestrator and we do: integers beyond 64 bits as floats."""
    return outcome({"job_id": "", "request_id": "", "status": "success", "result": value}).result


# Outcomes that handlers return


def stock(status, **fields):
    return StockOutcome(status=status, **fields)


def unchecked(status="success", **fields):
    return StockOutcome.model_construct(status=status, **fields)


class OwnOutcome(StockOutcome):
    extra: int = 1


OUTCOMES_LIKE_STOCK = {
    "success": lambda: stock("success", result={"a": {1}}),
    "success of nothing": lambda: stock("success"),
    "failure": lambda: stock("error", error=StockError(message="m")),
    "failure without an error": lambda: stock("error"),
    "failure with everything": lambda: stock(
        "error",
        result=[1],
        error=StockError(message="m", type="own", code="E1", details={"a": [{1}, math.nan]}),
    ),
    "handler_not_found": lambda: stock(
        "error", error=StockError(message="m", type="handler_not_found")
    ),
    "cancelled": lambda: stock("error", error=StockError(message="m", type="cancelled")),
    "timeout": lambda: stock("timeout", error=StockError(message="m")),
    "retry": lambda: stock("retry", error=StockError(message="m"), retry_after_seconds=2.5),
    "retry of its own accord": lambda: stock("retry"),
    "retry after text": lambda: stock("retry", retry_after_seconds="5"),
    "retry in the past": lambda: stock("retry", retry_after_seconds=-1),
    "odd result": lambda: stock("success", result=[datetime(2025, 1, 2), {1: b"x"}]),
    "an outcome in an outcome": lambda: stock("success", result=stock("error", result={1})),
    "details of odd keys": lambda: stock(
        "error", error=StockError(message="m", details={"1": {2: 3}})
    ),
}

UNSENDABLE_OUTCOMES = {
    "unknown status": (lambda: unchecked("cancelled"), "result .*status.*'cancelled'"),
    "status in capitals": (lambda: unchecked("SUCCESS"), "status.*'SUCCESS'"),
    "status None": (lambda: unchecked(None), "status.*null"),
    "no status": (StockOutcome.model_construct, "status"),
    "error of text": (lambda: unchecked(error="text"), "message"),
    "error without a message": (lambda: unchecked(error=StockError.model_construct()), "message"),
    "message of bytes": (
        lambda: unchecked("error", error=StockError.model_construct(message=[1])),
        "error .*message: expected a string, got an array",
    ),
    "delay of text": (lambda: unchecked("retry", retry_after_seconds="5"), "retry_after_seconds"),
    "delay of 10**400": (lambda: unchecked("retry", retry_after_seconds=10**400), "308 digits"),
    "object": (lambda: stock("success", result=object()), "result .*unknown type.*object"),
    "object in details": (
        lambda: stock("error", error=StockError(message="m", details={"a": object()})),
        "error .*unknown type.*object",
    ),
    "surrogate in details": (
        lambda: stock("error", error=StockError(message="m", details={"a": "\ud800"})),
        "error .*surrogate",
    ),
    "surrogate in the code": (
        lambda: stock("error", error=StockError(message="m", code="\ud800")),
        "error .*code.*surrogate",
    ),
    "17 MiB": (lambda: stock("success", result="x" * 17 * 2**20), "178258.* 16777216"),
    "nested details": (
        lambda: stock("error", error=StockError(message="m", details={"a": nested(125)})),
        "error .*deep",
    ),
}


@pytest.mark.parametrize("make", OUTCOMES_LIKE_STOCK.values(), ids=OUTCOMES_LIKE_STOCK.keys())
def test_an_outcome_of_rrq_is_sent_as_by_the_stock_runner(run, make):
    compare(run, giving(make), None)


@pytest.mark.parametrize(("make", "cause"), table(UNSENDABLE_OUTCOMES))
def test_an_outcome_that_cannot_be_sent_is_answered_with_the_cause(run, make, cause):
    compare(run, giving(make), cause)


@pytest.mark.parametrize(
    "ids", [{}, {"job_id": "x", "request_id": "y"}, {"request_id": ""}], ids=str
)
def test_the_ids_of_an_outcome_are_always_those_of_the_request(run, ids):
    given = [
        StockOutcome(status="success", result=1, **ids),
        OwnOutcome(status="success", result=1, **ids),
        ExecutionOutcome(status="success", result=1, **ids),
    ]
    expected = ExecutionOutcome.success("j", "r", 1)
    for each in given:
        before = repr(each)
        assert among_neighbours(run, giving(lambda each=each: each)) == expected
        assert repr(each) == before  # it is the handler's own


def test_one_outcome_can_be_the_answer_to_many_jobs(run):
    shared = ExecutionOutcome.failure("x", "y", "m", details={"a": {1}})

    async def handler(request):
        await asyncio.sleep(0)
        return shared

    answers = call(run, {"f": handler}, *(request("f", id=str(n)) for n in range(20)))
    for id, answer in answers.items():
        expected = ExecutionOutcome.failure(f"job of {id}", id, "m", details={"a": [1]})
        assert answer == expected
    assert shared.error.details == {"a": {1}}


@pytest.mark.parametrize(
    "returned",
    [
        ExecutionOutcome.success("", "", {"a": (1, 2)}),
        ExecutionOutcome.failure("", "", "m", type="own", code="E1", details=[1]),
        ExecutionOutcome.handler_not_found("", "", "m"),
        ExecutionOutcome.cancelled("", ""),
        ExecutionOutcome.timeout("", "", "m"),
        ExecutionOutcome.retry_after("", "", "m", 1.5),
        ExecutionOutcome.retry_after("", "", "m"),
    ],
    ids=lambda returned: returned.type,
)
@pytest.mark.parametrize("wrap", [dict, registry])
def test_an_outcome_of_ours_is_sent_as_it_is(run, returned, wrap):
    answer = among_neighbours(run, giving(lambda: returned), wrap=wrap)
    returned.job_id, returned.request_id = "j", "r"
    assert answer == decode_frame(encode_frame(returned))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: ExecutionOutcome(status="failure"), "'report'.*status"),
        (lambda: ExecutionOutcome(status=None), "'report'.*status"),
        (lambda: ExecutionOutcome(status="error", error="text"), "'report'.*message"),
        (Posing, "outcome of 'report' cannot be sent: .*Posing"),
        (lambda: ExecutionOutcome.failure("", "", None), "'report'.*message"),
        (lambda: ExecutionOutcome.retry_after("", "", "m", "5"), "'report'.*retry_after_seconds"),
        (lambda: ExecutionOutcome.failure("", "", "m", type=1), "'report'.*type"),
        (lambda: ExecutionOutcome.failure("", "", "\ud800"), "'report'.*surrogate"),
        (lambda: ExecutionOutcome.failure("", "", "m", details=object()), "'report'.*unknown type"),
        (lambda: ExecutionOutcome.success("", "", object()), "'report'.*unknown type"),
    ],
    ids=itertools.count(),
)
def test_a_wrong_outcome_of_ours_is_answered_with_the_cause(run, make, cause):
    answer = among_neighbours(run, giving(make))
    assert answer.type is OutcomeType.FAILURE
    assert re.search(cause, answer.error.message), answer.error.message


# Handlers that misbehave


async def cancel_itself(request):
    asyncio.current_task().cancel()
    return 1


async def cancel_itself_and_take_it_back(request):
    asyncio.current_task().cancel()
    asyncio.current_task().uncancel()
    return 1


async def cancel_itself_and_wait(request):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


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
@pytest.mark.parametrize("wrap", [dict, registry])
def test_a_handler_does_with_its_task_what_it_likes(run, report, expected, wrap):
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
def test_a_handler_that_ruins_its_native_request_can_still_be_cancelled(run, how):
    async def running():
        async with serving({"nothing": nothing, "echo": echo}) as connect:
            peer = await connect()
            deadline = SOON if how == "deadline" else None
            peer.send(request("nothing", deadline=deadline), request("echo", id="2"))
            assert list(await peer.answers(1)) == ["2"]
            if how == "request":
                peer.send(cancel("job of r", "r"))
            elif how == "job":
                peer.send(cancel("job of r"))
            elif how == "end":
                peer.end()
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
            # Those behind a job that has ruined the task go on in another.
            peers[0].send(request("cancel"), request("echo", id="1"), request("echo", id="2"))
            assert len(await peers[0].answers(3)) == 3

    run(running())


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_an_answer_does_not_wait_for_jobs_that_block_the_event_loop(run, waits):
    """Each job receives the answer to the one before, while it keeps the event loop."""
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
        time.sleep(0.01)  # more than a read may take
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


def test_tasks_that_a_handler_leaves_behind_go_on_and_leave_the_others_alone(run):
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
        (lambda _: 5, "await"),  # in whatever words, which 3.14 has changed
        (lambda: None, "takes 0 positional arguments but 1 was given"),
    ],
    ids=["not awaitable", "no argument"],
)
def test_a_callable_that_turns_out_not_to_be_a_handler_is_an_error_of_its_job(
    run, handler, message
):
    class Handler:
        def __call__(self, *arguments):
            return handler(*arguments)

    assert message in among_neighbours(run, Handler()).error.message


def test_an_id_that_leaves_no_room_for_an_answer_is_no_other_jobs_concern(run):
    """The largest request is about as large as the answer that gives its ids back."""
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


# Tasks and contexts


VARIABLE = contextvars.ContextVar("VARIABLE", default=None)


@pytest.mark.parametrize("wrap", [dict, registry])
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
@pytest.mark.parametrize("wrap", [dict, registry])
def test_jobs_that_wait_at_once_later_or_never_are_answered_once_each_with_their_own(  # noqa: PLR0915
    run, seed, wrap
):
    rng = random.Random(seed)
    waiting = {}  # futures by id
    owners = {}  # tasks of jobs that have waited and not ended

    async def pause(request):
        """Waits, and checks that it goes on in its own task and context."""
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
                kind = rng.choice(["return", "raise", "retry", "odd"])
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


def test_an_exception_arrives_where_a_handler_waits_as_in_a_task_of_its_own(run):
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


def test_what_a_failed_handler_held_is_freed_at_once(run):
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
                await failing_soon()  # which nothing in this frame refers to
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
    logging.disable()  # or pytest keeps the records, and with them what was raised
    try:
        assert run(running()) == [None] * len(frames)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


# Telemetry


SPAN = contextvars.ContextVar("SPAN", default=None)


class Recorder(rrq.telemetry.Telemetry):
    """Notes what spans are told, and checks that they end once, in the context they begin in."""

    enabled = True

    def __init__(self):
        self.spans = []

    def runner_span(self, request):
        span = Span(request)
        self.spans.append(span)
        return span


class Span(rrq.telemetry.RunnerSpan):
    def __init__(self, request):
        self.request, self.told, self.closed, self.token = request, [], 0, None

    def __enter__(self):
        self.token = SPAN.set(self)
        return self

    def __exit__(self, *exception):
        assert SPAN.get() is self
        SPAN.reset(self.token)  # ValueError in another context
        return super().__exit__(*exception)

    def close(self):
        self.closed += 1

    def tell(self, word, duration_seconds, **more):
        assert SPAN.get() is self
        assert not self.closed
        assert duration_seconds >= 0
        self.told.append((word, {key: value for key, value in more.items() if value is not None}))

    def success(self, **more):
        self.tell("success", **more)

    def retry(self, **more):
        self.tell("retry", **more)

    def timeout(self, *, timeout_seconds, **more):
        self.tell("timeout", timeout_seconds=timeout_seconds, **more)

    def error(self, *, error, **more):
        self.tell("error", error=repr(error), **more)

    def cancelled(self, **more):
        self.tell("cancelled", **more)


@pytest.fixture
def recorder():
    rrq.telemetry.configure(Recorder())
    yield rrq.telemetry.get_telemetry()
    rrq.telemetry.disable()


async def within_its_span(request):
    assert SPAN.get().request == request
    await asyncio.sleep(0)
    assert SPAN.get().request == request


@pytest.mark.parametrize(
    "report",
    [
        echo,
        within_its_span,
        giving(lambda: stock("error", error=StockError(message="m"))),
        giving(lambda: stock("retry", retry_after_seconds=1)),
        giving(object),
        fail,
        *raising(lambda: RetryJob("later", 2.5)),
        *raising(lambda: RetryJob("later", "5")),
        *raising(lambda: RetryJob("")),
        *raising(RetryJob),
        *raising(TimeoutError),
        *raising(lambda: TimeoutError("words")),
        *raising(lambda: KeyError("key")),
    ],
    ids=lambda report: report.__name__,
)
def test_a_span_is_told_what_the_stock_runner_tells_it(run, recorder, report):
    stock_answer(report)
    [theirs] = recorder.spans
    recorder.spans.clear()
    among_neighbours(run, report)
    [ours] = (span for span in recorder.spans if span.request.function_name == "report")
    assert ours.told == theirs.told
    assert type(ours.request) is StockRequest
    assert all(span.closed == 1 for span in recorder.spans)
    assert len(recorder.spans) == 8


@pytest.mark.parametrize("handler", [forever, spin, swallow, fail_instead, linger])
@pytest.mark.parametrize("how", ["request", "job", "deadline", "end"])
@pytest.mark.parametrize("wrap", [dict, registry])
def test_a_span_is_told_of_a_cancellation_and_of_a_deadline(run, recorder, handler, how, wrap):
    async def running():
        async with serving(wrap({"handler": handler, "echo": echo})) as connect:
            peer = await connect()
            deadline = SOON if how == "deadline" else None
            peer.send(request("handler", deadline=deadline), request("echo", id="2"))
            await peer.answers(1)
            if how == "request":
                peer.send(cancel("job of r", "r"))
            elif how == "job":
                peer.send(cancel("job of r"))
            elif how == "end":
                peer.end()
            await peer.answer()
        [span] = (each for each in recorder.spans if each.request.request_id == "r")
        if how == "deadline":
            assert span.told == [("timeout", {"error_message": "Job execution timed out."})]
        else:
            assert span.told == [("cancelled", {"reason": "Job cancelled"})]
        assert span.closed == 1

    run(running())


def test_a_handler_that_cancels_itself_is_a_cancelled_span(run, recorder):
    among_neighbours(run, cancel_itself_and_wait)
    [span] = (each for each in recorder.spans if each.request.function_name == "report")
    assert span.told == [("cancelled", {})]
    assert span.closed == 1


def test_what_does_not_run_has_no_span(run, recorder):
    call(
        run,
        {"echo": echo},
        request("missing"),
        request("echo", id="2", protocol_version="1"),
        request("echo", id="3", deadline=-1),
    )
    assert recorder.spans == []


class RudeTelemetry(rrq.telemetry.Telemetry):
    """Raises in one place, for the jobs of one function."""

    def __init__(self, place, error):
        self.place, self.error = place, error

    def runner_span(self, request):
        span = rrq.telemetry.RunnerSpan()
        if request.function_name != "report":
            return span

        def rude(*_, **__):
            raise self.error

        if self.place == "runner_span":
            rude()
        return type("RudeSpan", (rrq.telemetry.RunnerSpan,), {self.place: rude})()


@pytest.mark.parametrize(
    ("place", "report"),
    [
        ("runner_span", echo),
        ("__enter__", echo),
        ("__exit__", echo),
        ("close", fail),
        ("success", echo),
        ("error", fail),
        ("retry", raising(RetryJob)[1]),
        ("timeout", raising(TimeoutError)[1]),
    ],
)
@pytest.mark.parametrize("error", [LookupError("telemetry"), SystemExit("telemetry")], ids=repr)
def test_telemetry_that_raises_is_one_error_answer(run, place, report, error):
    rrq.telemetry.configure(RudeTelemetry(place, error))
    try:
        answer = among_neighbours(run, report)
        assert answer.type is OutcomeType.FAILURE
        assert "telemetry" in answer.error.message
        if isinstance(error, Exception):
            assert answer == decode_frame(stock_answer(report))
    finally:
        rrq.telemetry.disable()


# What handlers are given


FULL_REQUEST = {
    "protocol_version": "2",
    "request_id": "é",
    "job_id": "😀",
    "function_name": "keep",
    "params": {"b": [1, 2.5, None, True, {"x": "é"}], "a": -1},
    "context": {
        "job_id": "another",
        "attempt": 4294967295,
        "enqueue_time": "2025-01-02T12:00:00.123456789Z",
        "queue_name": "rrq:queue:é",
        "deadline": "2999-12-31T23:59:59.999999999Z",
        "trace_context": {"traceparent": "00-1"},
        "correlation_context": {"tenant": "é"},
        "worker_id": "w",
    },
}
CONTEXT = {"job_id": "j", "attempt": 0, "enqueue_time": "2025-01-02T12:00:00Z", "queue_name": "q"}
REQUESTS = [
    FULL_REQUEST,
    {"request_id": "r", "job_id": "j", "function_name": "keep", "context": CONTEXT},
    {**FULL_REQUEST, "context": {**CONTEXT, "deadline": None, "trace_context": {}}},
    {**FULL_REQUEST, "context": {**CONTEXT, "enqueue_time": "2025-01-02T12:00:00.5+05:30"}},
]


@pytest.mark.parametrize("payload", REQUESTS, ids=["full", "bare", "nulls", "offset"])
def test_handlers_of_a_registry_get_the_request_that_rrq_would_build(run, payload):
    given = []

    async def keep(request):
        given.append(request)

    frame = pack_frame(json.dumps({"type": "request", "payload": payload}).encode())
    call(run, registry({"keep": keep}), frame)
    call(run, registry({"keep": keep}), frame, native_messages=True)
    call(run, {"keep": keep}, frame)
    stock_request, *natives = given
    assert type(stock_request) is StockRequest
    assert stock_request == StockRequest.model_validate(payload)
    for native in natives:
        assert type(native) is ExecutionRequest
        assert native == decode_frame(frame)
        for name in StockRequest.model_fields.keys() - {"context"}:
            assert getattr(native, name) == getattr(stock_request, name)
        for name in rrq.runner.ExecutionContext.model_fields:
            assert getattr(native.context, name) == getattr(stock_request.context, name)


WITHOUT_RRQ = '''
import asyncio, contextlib, json, sys

class Missing:
    """As if these were not installed."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rrq", "pydantic"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import serve

async def echo(request):
    return [type(request).__module__.partition(".")[0], request.params]

async def fail(request):
    raise ValueError("failed")

async def odd(request):
    return {1}

async def slow(request):
    await asyncio.Event().wait()

async def main(port):
    handlers = {"echo": echo, "fail": fail, "odd": odd, "slow": slow}
    serving = asyncio.create_task(serve(handlers, f"127.0.0.1:{port}"))
    while True:
        try:
            client = await RunnerClient.connect("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            assert not serving.done()
            await asyncio.sleep(0.01)
    async with client:
        for name in ("echo", "fail", "odd", "missing"):
            outcome = await client.execute(name, {"a": 1}, timeout=30)
            print(outcome.type, outcome.result, outcome.error and outcome.error.message)
        print((await client.execute("slow", timeout=0.05)).type)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving

asyncio.run(main(int(sys.argv[1])))
'''


def test_a_runner_needs_no_rrq(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = tmp_path / "without_rrq.py"
    script.write_text(WITHOUT_RRQ)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(port)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" in done.stderr  # seen without any configuration of logging
    assert "ValueError: failed" in done.stderr
    assert "'slow' timed out: Job execution timed out." in done.stderr
    assert "Warning" not in done.stderr
    assert (
        done.stdout.splitlines()
        == textwrap.dedent(
            """\
        success ['rrq_fastwire', {'a': 1}] None
        failure None failed
        failure None result of 'odd' cannot be sent: payload.result: object of type 'set' has no JSON form
        handler_not_found None No handler registered for function 'missing'
        timeout"""
        ).splitlines()
    )


# Logging


EVERY_ENDING = {
    "echo": echo,
    "fail": fail,
    "retry": raising(lambda: RetryJob("later"))[1],
    "timeout": raising(TimeoutError)[1],
    "odd": giving(object),
    "surrogate": giving(lambda: "\ud800"),
    "exit": raising(SystemExit)[1],
    "rude": raising(RudeStrError)[1],
    "own": giving(lambda: stock("error")),
    "forever": forever,
}


def end_in_every_way(run):
    """Runs a job for every way to end, and gives the connection's name."""

    async def running():
        async with serving(registry(EVERY_ENDING)) as connect:
            peer, short = await connect(), await connect()
            names = [*EVERY_ENDING, "missing"]
            peer.send(*(request(name, id=name) for name in names))
            peer.send(request("echo", id="late", deadline=-1))
            peer.send(request("forever", id="overdue", deadline=SOON))
            peer.send(request("echo", id="version", protocol_version="1"))
            await peer.answers(len(names) + 2)
            short.send(cancel("job of forever"), cancel("job of nobody"))
            await peer.answer()
            return peer.name

    return run(running())


RECORDS = {
    "echo": (logging.DEBUG, "'echo': success"),
    "fail": (logging.ERROR, "'fail' raised an exception:"),
    "retry": (logging.INFO, "'retry' requests a retry: later"),
    "timeout": (logging.WARNING, "'timeout' timed out: Job execution timed out."),
    "odd": (logging.WARNING, "result of 'odd' cannot be sent: "),
    "surrogate": (logging.WARNING, "result of 'surrogate' cannot be sent: "),
    "exit": (logging.ERROR, "'exit' raised an exception:"),
    "rude": (logging.ERROR, "'rude' raised an exception:"),
    "own": (logging.DEBUG, "'own': error"),
    "forever": (logging.DEBUG, "'forever': error"),
    "missing": (logging.DEBUG, "'missing': error"),
    "late": (logging.WARNING, "'echo' timed out: Job deadline exceeded"),
    "overdue": (logging.WARNING, "'forever' timed out: Job execution timed out."),
}


def test_each_job_has_one_record_with_its_connection_function_and_end(run, caplog):
    with caplog.at_level(logging.DEBUG, "rrq_fastwire"):
        connection = end_in_every_way(run)
    own = [record for record in caplog.records if ": job " in record.getMessage()]
    for name, (level, text) in RECORDS.items():
        start = f"{connection}: job 'job of {name}': "
        [record] = (each for each in own if each.getMessage().startswith(start))
        assert record.name == "rrq_fastwire.runner"
        assert record.levelno == level
        assert record.getMessage().startswith(start + text)
        assert bool(record.exc_info) == (level == logging.ERROR)
    assert len(own) == len(RECORDS)
    assert "ValueError: failed" in caplog.text
    assert "Traceback" in caplog.text


def test_what_a_handler_raises_after_its_cancellation_is_logged(run, caplog):
    async def running():
        async with serving({"fail": fail_instead, "echo": echo}) as connect:
            peer = await connect()
            peer.send(request("fail"), request("echo", id="begun"))
            await peer.answers(1)
            peer.send(cancel("job of r"))
            await peer.answer()

    run(running())
    [record] = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage().endswith("job 'job of r': 'fail' raised an exception:")
    assert "ValueError: late" in caplog.text


@pytest.fixture
def configured_logging():
    """Lets a test configure logging, and undoes it."""
    names = ["", "rrq", "rrq.runner", "rrq_fastwire", "rrq_fastwire.runner"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.level, each.handlers[:], each.propagate, each.disabled) for each in loggers]
    yield
    for each, (level, handlers, propagate, disabled) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:], each.propagate, each.disabled = handlers, propagate, disabled


@pytest.mark.usefixtures("configured_logging")
@pytest.mark.parametrize("name", ["rrq", "rrq.runner"])
def test_the_level_and_the_handlers_of_the_stock_runners_logger_apply(run, name):
    stream = io.StringIO()
    logging.config.dictConfig(  # which disables the loggers that it does not name
        {
            "version": 1,
            "handlers": {"h": {"class": "logging.StreamHandler", "stream": stream}},
            "loggers": {name: {"handlers": ["h"], "level": "INFO", "propagate": False}},
        }
    )
    frames = [request("fail"), request("retry", id="2"), request("echo", id="3")]
    handlers = registry(EVERY_ENDING)
    call(run, handlers, *frames)
    assert stream.getvalue().count("raised an exception") == 1
    assert stream.getvalue().count("requests a retry") == 1
    assert "success" not in stream.getvalue()
    logging.getLogger(name).setLevel(logging.CRITICAL)
    stream.truncate(0)
    call(run, handlers, *frames)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("error", [LookupError("filter"), SystemExit("filter")], ids=repr)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_a_logging_filter_that_raises_takes_nothing_down(run, caplog, capsys, error, level):
    def rude(record):
        raise error

    logger = logging.getLogger("rrq_fastwire.runner")
    with caplog.at_level(level, "rrq_fastwire"):
        logger.addFilter(rude)
        try:
            end_in_every_way(run)
        finally:
            logger.removeFilter(rude)
    assert f"{type(error).__name__}: filter" in capsys.readouterr().err


def test_what_a_peer_does_wrong_is_logged_with_its_connection(run, caplog):
    async def running():
        async with serving({"echo": echo}) as connect:
            peer = await connect()
            peer.send(malformed(params=1), encode_frame(ExecutionOutcome.success("j", "r")))
            await peer.answer()
            peer.send(b"\0\0\0\0")
            assert await peer.ended()
            return peer.name

    with caplog.at_level(logging.INFO, "rrq_fastwire"):
        name = run(running())
    wrong, response, broken = (record.getMessage() for record in caplog.records)
    assert wrong == f"{name}: job 'j': payload.params: expected an object, got 1"
    assert response == f"{name}: sent a response, which a runner ignores"
    assert broken.startswith(f"{name}: closed, this is not RRQ's protocol: ")


def decorated(function):
    """An async handler that runs a sync function, as decorators make them."""

    @functools.wraps(function)
    async def handler(request):
        return function(request)

    return handler


class Callable:
    """A callable object that stands for a sync function, and is async."""

    def __init__(self, function):
        functools.update_wrapper(self, function)

    async def __call__(self, request):
        return self.__wrapped__(request)


@pytest.mark.parametrize("wrap", [decorated, Callable])
def test_what_is_async_may_wrap_what_is_not(run, wrap):
    answers = call(run, {"report": wrap(lambda request: 5)}, request("report", id="r"))
    assert answers["r"].result == 5


class NotToBeCancelled(asyncio.Future):
    def cancel(self, msg=None):
        raise LookupError


def test_a_handler_that_cannot_be_cancelled_takes_no_other_deadline_down(run):
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
            peer.send(request("forever", id="behind", deadline=0.05))
            answers |= await peer.answers(1)
            assert {each.type for each in answers.values()} == {OutcomeType.TIMEOUT}
            for task in asyncio.all_tasks():
                waiting = getattr(task, "_fut_waiter", None)
                if isinstance(waiting, NotToBeCancelled):
                    waiting.set_result(None)

    run(running())


def test_requests_that_were_held_back_are_not_run_once_the_runner_ends(run):
    began = []

    async def large(request):
        return "x" * 2**23

    async def count(request):
        began.append(request.request_id)

    async def running():
        runner = Runner({"large": large, "count": count})
        server = await start_server(runner.on_stream, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, limit=2**10)
        writer.write(request("large", id="large"))
        await until(lambda: any(each.stream.congested for each in runner._connections))
        writer.write(b"".join(request("count", id=str(number)) for number in range(50)))
        await until(lambda: any(each.stream._decoder.buffered for each in runner._connections))
        server.close()
        await runner.stop(0.1)
        writer.transport.abort()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(running())
    assert began == []


def test_a_peer_does_not_decide_how_long_a_line_of_the_log_is(run, caplog):
    frame = pack_frame(
        json.dumps(
            {"type": "request", "payload": {"job_id": "x\n" * 10_000, "request_id": "r"}}
        ).encode()
    )
    call(run, {"echo": echo}, frame)
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)
