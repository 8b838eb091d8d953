"""A runner survives network faults and wrong peers, and serves the next connection."""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timezone

import pytest

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    MessageDecoder,
    TruncatedFrameError,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import open_connection, start_server

# A test fails if what it waits for takes longer.
PATIENCE = 60


class Served:
    """A runner that listens, and the state that its handlers share."""

    def __init__(self):
        self.running = Counter()
        self.changed = asyncio.Event()
        self.released = asyncio.Event()  # the jobs of faulty connections
        self.filled = asyncio.Event()  # the jobs of a connection that does not read
        self.over = asyncio.Event()  # the job of the neighbour
        self.runner = Runner(
            {
                handler.__name__: handler
                for handler in (self.echo, self.wait, self.stay, self.blob, self.blob_later)
            }
        )

    async def echo(self, request):
        return request.params

    async def blob(self, request):
        return "x" * request.params["size"]

    async def blob_later(self, request):
        self._count("blob_later", 1)
        await self.filled.wait()
        return await self.blob(request)

    async def wait(self, request):
        return await self._wait_for(self.released, "wait")

    async def stay(self, request):
        return await self._wait_for(self.over, "stay")

    async def _wait_for(self, event, name):
        self._count(name, 1)
        try:
            await event.wait()
        finally:
            self._count(name, -1)
        return "released"

    def _count(self, name, change):
        self.running[name] += change
        self.changed.set()

    async def until_running(self, name, number):
        """Wait until `number` handlers of a name are waiting, or, if they do not wait, have run."""
        while self.running[name] != number:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def serving():
    """A runner with a job on one connection, which no fault of another connection may affect."""
    served = Served()
    server = await start_server(served.runner.on_stream, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with server, await RunnerClient.connect("127.0.0.1", served.port) as neighbour:
        job = asyncio.create_task(neighbour.execute("stay"))
        await served.until_running("stay", 1)
        yield served
        # Other jobs have ended, and both the next connection and the neighbour are served.
        await served.until_running("wait", 0)
        async with await RunnerClient.connect("127.0.0.1", served.port) as client:
            assert (await client.execute("echo", {"a": 1})).result == {"a": 1}
        served.over.set()
        assert (await job).result == "released"
        server.close()
        await served.runner.stop(grace=PATIENCE)


# The proxy


def reset(writer):
    """End a connection with a reset instead of an end of the stream."""
    linger = struct.pack("ii" if os.name == "posix" else "hh", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def forward(data, writer):
    writer.write(data)
    await writer.drain()


async def delay(data, writer):
    await asyncio.sleep(0.01)
    await forward(data, writer)


async def cut(data, writer):
    for at in range(len(data)):
        await forward(data[at : at + 1], writer)
        await asyncio.sleep(0)


class Reset:
    """Forward this many bytes, and reset both sides if there are more."""

    def __init__(self, size):
        self.left = size

    async def __call__(self, data, writer):
        await forward(data[: self.left], writer)
        self.left -= len(data)
        if self.left < 0:
            raise ConnectionResetError


@asynccontextmanager
async def proxy(port, requests=forward, answers=forward):
    """A proxy in front of a runner that forwards the bytes by these functions. Gives its port."""

    async def pass_on(reader, writer, do):
        while data := await reader.read(65536):
            await do(data, writer)
        with suppress(OSError):  # the other direction may have ended it
            writer.write_eof()

    async def connected(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(pass_on(reader, back, requests))
                directions.create_task(pass_on(there, writer, answers))
        except* OSError:
            reset(writer)
            reset(back)
        finally:
            for side in (writer, back):
                side.close()
                with suppress(OSError):
                    await side.wait_closed()
            ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await ended.wait()


async def execute_all(port, calls, function_name="echo"):
    """Run jobs over one connection and check the answers."""
    async with await RunnerClient.connect("127.0.0.1", port) as client:
        params = [{"number": number, "é": "x" * number} for number in range(calls)]
        outcomes = await asyncio.gather(*(client.execute(function_name, each) for each in params))
        assert [outcome.result for outcome in outcomes] == params
        assert client.unmatched == 0


@pytest.mark.parametrize(
    ("requests", "answers"),
    [
        (forward, forward),
        (delay, forward),
        (forward, delay),
        (cut, forward),
        (forward, cut),
        (cut, cut),
    ],
)
def test_delayed_and_cut_bytes_give_the_same_answers(run, requests, answers):
    async def scenario():
        async with serving() as served, proxy(served.port, requests, answers) as port:
            await execute_all(port, 60)

    run(scenario())


def request(function_name, request_id, job_id="job", **params):
    context = ExecutionContext(
        job_id=job_id, attempt=1, enqueue_time=datetime.now(timezone.utc), queue_name="q"
    )
    return ExecutionRequest(
        request_id=request_id,
        job_id=job_id,
        function_name=function_name,
        params=params,
        context=context,
    )


async def received(stream):
    """The answers of a runner up to the end of the connection, and the type of its error or None."""
    answers = []
    try:
        async for answer in stream:
            answers.append(answer)
    except (OSError, ValueError) as error:
        return answers, type(error)
    return answers, None


HEADER = 4
WAIT = encode_frame(request("wait", "1"))
BLOB = encode_frame(request("blob", "2", size=100_000))


@pytest.mark.parametrize(
    ("requests", "answers"),
    [
        (Reset(len(WAIT)), None),
        (Reset(len(WAIT) + 1), None),
        (Reset(len(WAIT) + HEADER), None),
        (Reset(len(WAIT) + HEADER + 1), None),
        (Reset(len(WAIT + BLOB) - 1), None),
        (None, Reset(1)),
        (None, Reset(HEADER)),
        (None, Reset(1000)),
        (None, Reset(99_999)),
    ],
    ids=[
        "between requests",
        "in the header of a request",
        "after the header of a request",
        "in the payload of a request",
        "before the last byte of a request",
        "in the header of an answer",
        "after the header of an answer",
        "in the payload of an answer",
        "late in the payload of an answer",
    ],
)
def test_a_reset_ends_only_the_jobs_of_its_connection(run, requests, answers):
    faults = {
        "requests": Reset(requests.left) if requests else forward,
        "answers": Reset(answers.left) if answers else forward,
    }

    async def scenario():
        async with (
            serving() as served,
            proxy(served.port, **faults) as port,
            await open_connection("127.0.0.1", port) as stream,
        ):
            stream.transport.write(WAIT)
            await served.until_running("wait", 1)
            stream.transport.write(BLOB)
            assert await received(stream) == ([], ConnectionResetError)

    run(scenario())


def test_a_half_closed_connection_gets_every_answer_and_then_the_end(run):
    async def scenario():
        async with (
            serving() as served,
            proxy(served.port) as port,
            await open_connection("127.0.0.1", port) as stream,
        ):
            stream.transport.write(WAIT + BLOB)
            await served.until_running("wait", 1)
            assert (await anext(stream)).request_id == "2"
            stream.transport.write_eof()
            answers, how = await received(stream)
            assert [(each.request_id, each.type) for each in answers] == [("1", "cancelled")]
            assert how is None

    run(scenario())


@pytest.mark.parametrize("half", [WAIT[:2], WAIT[:HEADER], WAIT[:-1]])
def test_a_stream_that_ends_inside_a_request_is_closed(run, half):
    async def scenario():
        async with (
            serving() as served,
            proxy(served.port, cut) as port,
            await open_connection("127.0.0.1", port) as stream,
        ):
            stream.transport.write(BLOB + half)
            assert (await anext(stream)).request_id == "2"
            stream.transport.write_eof()
            assert await received(stream) == ([], None)

    run(scenario())


# Peers that do not speak the protocol


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n" * 1000,
        b"\0" * 1000,
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xff" + bytes(1_000_000),
        (MAX_FRAME_SIZE + 1).to_bytes(4, "big"),
        (MAX_FRAME_SIZE + 1).to_bytes(4, "big") + b'{"type":"request"',
        *(b"\x80" + random.Random(seed).randbytes(100_000) for seed in range(5)),
    ],
    ids=lambda sent: repr(sent[:12]),
)
def test_other_protocols_end_their_connection(run, sent):
    async def scenario():
        async with (
            serving() as served,
            await open_connection("127.0.0.1", served.port) as stream,
        ):
            stream.transport.write(WAIT)
            await served.until_running("wait", 1)
            stream.transport.write(sent)
            answers, how = await received(stream)
            # Bytes after the fault are not read, so the system may send a reset.
            assert how in (None, ConnectionResetError, BrokenPipeError)
            assert [answer.type for answer in answers] in (["cancelled"], [])

    run(scenario())


@pytest.mark.parametrize(
    ("payload", "answered"),
    [
        (b"no JSON", None),
        (b"\xef\xbb\xbf{}", None),
        (b'"request"', None),
        (b'{"type":"request"}', None),
        (b'{"type":"nonsense","payload":{"job_id":"j","request_id":"r"}}', None),
        (b'{"type":"cancel","payload":{"job_id":7,"request_id":"r"}}', None),
        (b'{"type":"cancel","payload":{"job_id":"nobody","request_id":"nothing"}}', None),
        (b'{"type":"request","payload":{"job_id":"j","request_id":"r"}}', "payload.function_name"),
        (BLOB[HEADER:].replace(b'"attempt":1', b'"attempt":"one"'), "payload.context.attempt"),
        (encode_frame(ExecutionOutcome.success("j", "1"))[HEADER:], None),
    ],
)
def test_an_invalid_payload_does_not_end_its_connection(run, payload, answered):
    async def scenario():
        async with (
            serving() as served,
            await open_connection("127.0.0.1", served.port) as stream,
        ):
            stream.transport.write(WAIT + pack_frame(payload) + BLOB)
            if answered is not None:
                refusal = await anext(stream)
                assert refusal.type == "failure"
                assert refusal.error.message.startswith(answered)
            assert (await anext(stream)).request_id == "2"
            assert served.running["wait"] == 1

    run(scenario())


# Peers that send too much


def test_64_requests_of_a_flood_run_and_the_others_are_answered_busy(run):
    async def scenario():
        async with (
            serving() as served,
            proxy(served.port) as port,
            await open_connection("127.0.0.1", port) as stream,
        ):
            ids = [str(number) for number in range(10_000)]
            stream.transport.write(b"".join(encode_frame(request("wait", id)) for id in ids))
            busy = [await anext(stream) for _ in range(10_000 - 64)]
            assert {answer.error.message for answer in busy} == {
                "Runner busy: too many in-flight requests"
            }
            assert served.running["wait"] == 64
            served.released.set()
            done = [await anext(stream) for _ in range(64)]
            assert {answer.result for answer in done} == {"released"}
            assert sorted(answer.request_id for answer in busy + done) == sorted(ids)

    run(scenario())


def test_200_connections_at_once_are_served(run):
    async def scenario():
        async with serving() as served:
            await asyncio.gather(*(execute_all(served.port, 20) for _ in range(200)))

    run(scenario())


# Peers that do not read


@asynccontextmanager
async def deaf(served):
    """A connection that requests 60 MB, more than the system buffers, and reads nothing."""
    async with await open_connection("127.0.0.1", served.port) as stream:
        stream.transport.pause_reading()
        blobs = [request("blob_later", str(number), size=1_000_000) for number in range(60)]
        stream.transport.write(
            b"".join(encode_frame(each) for each in (*blobs, request("wait", "w")))
        )
        await served.until_running("wait", 1)
        await served.until_running("blob_later", 60)
        served.filled.set()
        yield stream


def test_the_end_of_a_peer_that_never_reads_is_noticed(run):
    async def scenario():
        async with serving() as served, deaf(served) as stream:
            stream.transport.write(BLOB)  # which the runner does not take
            await execute_all(served.port, 1)
            stream.transport.abort()

    run(scenario())


def test_a_peer_that_never_reads_does_not_delay_the_end(run):
    async def scenario():
        served = Served()
        async with await start_server(served.runner.on_stream, "127.0.0.1", 0) as server:
            served.port = server.sockets[0].getsockname()[1]
            async with deaf(served) as stream:
                await execute_all(served.port, 1)  # the answers are on their way now
                server.close()
                await served.runner.stop(grace=0.1)
                stream.transport.resume_reading()
                answers, how = await received(stream)
                assert len(answers) < 60
                assert how in (TruncatedFrameError, ConnectionResetError)

    run(scenario())


HANDLERS = '''
async def echo(request):
    return request.params

async def blob(request):
    return "x" * request.params["size"]

async def wait(request):
    import asyncio
    await asyncio.Event().wait()

async def blobs(request):
    """Ends when 64 of them run."""
    import asyncio
    running.append(asyncio.get_running_loop().create_future())
    if len(running) == 64:
        for each in running:
            each.set_result(None)
    await running[int(request.request_id)]
    return "x" * request.params["size"]

running = []
handlers = {"echo": echo, "blob": blob, "wait": wait, "blobs": blobs}
'''


def free_port():
    """A free port outside of the range that the system uses for outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture
def runner(tmp_path):
    """A runner in another process: its port, and a function that returns its memory in MiB, or its peak."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the memory of another process is read from /proc, which is not here")
    (tmp_path / "handlers.py").write_text(HANDLERS)
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "rrq_fastwire.runner", "--settings", "handlers.handlers"),
            *("--tcp-socket", f"127.0.0.1:{port}"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )

    def memory(*, most=False):
        if most:
            with open(f"/proc/{process.pid}/status") as file:
                return int(file.read().partition("VmHWM:")[2].split()[0]) / 2**10
        with open(f"/proc/{process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, "the runner has ended"
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert time.monotonic() < deadline, "the runner does not listen"
            time.sleep(0.01)
        yield port, memory
    finally:
        process.kill()
        process.wait()


class Neighbour:
    """A connection that sends a request and waits for the answer."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.decoder = MessageDecoder()

    def ask(self):
        self.socket.sendall(encode_frame(request("echo", "n", a=1)))
        while True:
            self.decoder.feed(self.socket.recv(65536))
            for answer in self.decoder:
                assert answer.result == {"a": 1}
                return


@pytest.mark.parametrize(
    ("function_name", "params"),
    [
        ("echo", {"text": "x" * 300}),
        ("blob", {"size": 100_000}),
        ("wait", {}),  # 64 of them, and no end of busy answers
    ],
)
def test_a_peer_that_never_reads_is_read_slowly_and_loses_nothing(runner, function_name, params):
    port, memory = runner
    neighbour = Neighbour(port)
    with neighbour.socket, socket.create_connection(("127.0.0.1", port)) as deaf:
        neighbour.ask()
        before = memory()
        deaf.setblocking(False)
        sent = asked = most = 0
        rest = b""
        while asked < 300:
            rest = rest or encode_frame(request(function_name, str(sent), **params))
            try:
                taken = deaf.send(rest)
            except BlockingIOError:
                neighbour.ask()  # others are served all the time
                asked += 1
            else:
                asked = 0
                sent += taken == len(rest)
                rest = rest[taken:]
            assert sent < 300_000, "the runner reads on and on"
            most = max(most, memory() - before) if asked else most
        print(f"{sent} requests went out; the runner grew by {most:.1f} MiB")
        # 64 answers, what the sockets hold, and what is on the way between.
        assert most < 24

        # Once it reads, everything it asked for is there.
        deaf.setblocking(True)
        deaf.settimeout(PATIENCE)
        decoder = MessageDecoder()
        expected = sent + bool(rest)
        answers = Counter()
        while answers.total() < expected - 64 * (function_name == "wait"):
            readable, writable, _ = select.select([deaf], [deaf] if rest else [], [], PATIENCE)
            if writable:
                rest = rest[deaf.send(rest) :]
            if readable:
                decoder.feed(deaf.recv(1_000_000))
                answers.update(answer.request_id for answer in decoder)
        assert set(answers.values()) == {1}
        neighbour.ask()


def test_answers_to_a_peer_that_never_reads_are_held_once(runner):
    port, memory = runner
    neighbour = Neighbour(port)
    size = 2**21
    with neighbour.socket, socket.create_connection(("127.0.0.1", port)) as deaf:
        neighbour.ask()
        before = memory()
        for number in range(64):
            deaf.sendall(encode_frame(request("blobs", str(number), size=size)))
        grown = 0
        while grown < 0.9 * 64 * size / 2**20:
            neighbour.ask()
            grown = memory() - before
        for _ in range(100):
            neighbour.ask()
        grown = memory(most=True) - before
        print(f"64 answers of {size / 2**20:.0f} MiB; the runner grew by {grown:.0f} MiB")
        # One more is with the transport, or being made.
        assert grown < 1.2 * 64 * size / 2**20

        deaf.settimeout(PATIENCE)
        decoder = MessageDecoder()
        answers = Counter()
        while answers.total() < 64:
            decoder.feed(deaf.recv(1_000_000))
            answers.update(answer.request_id for answer in decoder if len(answer.result) == size)
        assert set(answers.values()) == {1}
