"""Runs a runner in this process, with the orchestrator's side of its connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import socket
import warnings

import pytest

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    CancelRequest,
    FrameDecoder,
    OutcomeType,
    decode_frame,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import serve
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from .requests import new_request
from .stock import HAS_RRQ, StockRequest, registry, rrq

# Seconds to wait for something that sends no event. They pass only if something is broken.
PATIENCE = 30

# Seconds until a deadline that a test waits for. A handler has started by then, even on a busy machine.
SOON = 0.3


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead


def request(function_name, params=None, **fields):
    """The frame of a request. The arguments are those of new_request()."""
    return encode_frame(new_request(function_name, params, **fields))


def cancel(job_id, id=None, **fields):
    """The frame of a cancel."""
    return encode_frame(CancelRequest(job_id=job_id, request_id=id, **fields))


def unique(pairs):
    """For json.loads(): the object, if no key occurs twice."""
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key twice in {keys}"
    return dict(pairs)


def finite(digits):
    """For json.loads(): the number, if a double can hold it."""
    number = float(digits)
    assert math.isfinite(number), f"{digits[:30]}... is beyond a double"
    return int(digits) if digits.lstrip("-").isdigit() else number


def never(name):
    """For json.loads(): NaN and Infinity are refused."""
    raise AssertionError(f"{name} is not JSON")


def depth(text):
    """How deeply a JSON text is nested."""
    deepest = now = 0
    for bracket in re.findall(r"[][{}]", re.sub(r'"(?:[^"\\]+|\\.)*"', "", text)):
        now += 1 if bracket in "[{" else -1
        deepest = max(deepest, now)
    return deepest


def read_strictly(frame):
    """The fields of a response.

    Raises AssertionError or ValueError if the orchestrator would close the connection.
    """
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
    """An outcome as text, to compare. Unlike in Python, 1, 1.0 and true differ."""
    error = outcome.error and (
        outcome.error.message,
        outcome.error.type,
        outcome.error.code,
        json.dumps(outcome.error.details),
    )
    return repr((outcome.status, json.dumps(outcome.result), error, outcome.retry_after_seconds))


class Peer:
    """The orchestrator's side of a connection, which sends and receives frames."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._decoder = FrameDecoder()
        self.name = "{}:{}".format(*writer.get_extra_info("sockname"))

    def send(self, *frames):
        self._writer.write(b"".join(frames))

    async def fields(self, count):
        """The fields of the next answers, in the order of their arrival."""
        return [await self._next() for _ in range(count)]

    async def answers(self, count):
        """The next answers by request_id. Checks that no request is answered twice."""
        fields = await self.fields(count)
        found = {each["request_id"]: outcome(each) for each in fields}
        assert len(found) == count, f"answered twice: {fields}"
        return found

    async def answer(self):
        """The next answer."""
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

    def stop(self, how):
        """Stops the request "r".

        Arguments:
            how: "request" or "job" sends a cancel, "end" ends the connection, and "deadline" does
                nothing, because a deadline passes by itself.
        """
        if how == "request":
            self.send(cancel("job of r", "r"))
        elif how == "job":
            self.send(cancel("job of r"))
        elif how == "end":
            self.end()

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
    """Runs a runner, and yields a function that connects to it.

    At the end, it checks that no request was answered twice, and that no task remains.
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
                assert await peer.ended(), "there was one more answer than the test took"
    finally:
        for peer in peers:
            await peer.close()
        server.close()
        await runner.stop(PATIENCE)
    await until(lambda: asyncio.all_tasks() == before)


def own_address():
    """An address of this machine that is not a loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return address


async def start_serve(handlers, port, **options):
    """Starts serve() in a task. Once the runner listens, returns the task and a client."""
    task = asyncio.create_task(serve(handlers, f"127.0.0.1:{port}", **options))
    async with asyncio.timeout(PATIENCE):
        while not task.done():
            with contextlib.suppress(ConnectionRefusedError):
                return task, await RunnerClient.connect("127.0.0.1", port)
            await asyncio.sleep(0.01)
    await task
    raise AssertionError("serve() has returned")


async def until(condition):
    """Waits until a condition is true that sends no event."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def call(run, handlers, *frames, **options):
    """Sends some requests on one connection. Returns the answers by request_id.

    Arguments:
        options: those of Runner.
    """

    async def calling():
        async with serving(handlers, **options) as connect:
            peer = await connect()
            peer.send(*frames)
            return await peer.answers(len(frames))

    return run(calling())


def among_neighbours(run, report, *, wrap=registry, finally_=lambda: None):
    """The answer to a job with the handler `report`, which runs among other jobs.

    Checks that the jobs before it, after it and on another connection get their own answers.

    Arguments:
        wrap: makes a Runner's handlers of the mapping: dict or registry.
        finally_: called at the end, also if the test fails.
    """

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
                    request("quick", {"is": "after"}, id="after"),
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
    """The frame that the stock runner sends for a job with this handler, or b"" if it sends none."""

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
    """Checks the answer to a job with the handler `report`.

    Arguments:
        cause: None if the answer must be that of the stock runner. Otherwise, a pattern for the
            error message of the answer; the stock runner must not send a valid answer.
    """
    ours = among_neighbours(run, report, **options)
    if cause is None:
        theirs = stock_answer(report)
        read_strictly(theirs)
        assert meaning(ours) == meaning(decode_frame(theirs))
        return
    if HAS_RRQ:
        theirs = stock_answer(report)
        with pytest.raises((AssertionError, ValueError, LookupError, TypeError)):
            read_strictly(theirs)
    assert ours.type is OutcomeType.FAILURE
    assert "report" in ours.error.message
    assert re.search(cause, ours.error.message), ours.error.message
    assert len(ours.error.message) < 1500


CONTEXT = {"job_id": "j", "attempt": 0, "enqueue_time": "2025-01-02T12:00:00Z", "queue_name": "q"}


def malformed(type="request", *, without=(), **changes):
    """The frame of a request with changed fields, or without some of them."""
    fields = {
        "request_id": "r",
        "job_id": "j",
        "function_name": "echo",
        "context": CONTEXT,
        **changes,
    }
    for name in without:
        del fields[name]
    return pack_frame(json.dumps({"type": type, "payload": fields}).encode())


def table(cases):
    """The cases of a dict of tuples, for parametrize(), with their names as ids."""
    return [pytest.param(*case, id=name) for name, case in cases.items()]
