"""Peers that send requests, but do not read the answers."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest

from rrq_fastwire import (
    MessageDecoder,
    TruncatedFrameError,
    encode_frame,
)
from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.streams import open_connection, start_server

from ..faulty_peers import (
    BLOB,
    PATIENCE,
    Served,
    execute_all,
    received,
    request,
    serving,
)


@asynccontextmanager
async def deaf(served):
    """A connection that requests 60 MB, more than sockets can buffer, and reads nothing."""
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


def test_a_peer_that_never_reads_can_disconnect(run):
    async def scenario():
        async with serving() as served, deaf(served) as stream:
            stream.transport.write(BLOB)  # the runner does not read it
            await execute_all(served.port, 1)
            stream.transport.abort()

    run(scenario())


def test_a_peer_that_never_reads_does_not_delay_the_shutdown(run):
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
    """All 64 of them return when the last one has started."""
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


@pytest.fixture
def runner(tmp_path):
    """A runner in another process: its port, and a function that returns its memory in MiB.

    With most=True, the function returns the peak of the memory.
    """
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
        ("wait", {}),  # 64 of them wait; all others are answered busy
    ],
)
def test_requests_of_a_peer_that_never_reads_use_little_memory_and_are_all_answered(
    runner, function_name, params
):
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
                neighbour.ask()  # other connections are served meanwhile
                asked += 1
            else:
                asked = 0
                sent += taken == len(rest)
                rest = rest[taken:]
            assert sent < 300_000, "the runner reads on and on"
            most = max(most, memory() - before) if asked else most
        print(f"{sent} requests went out; the runner grew by {most:.1f} MiB")
        # The runner may hold 64 answers, and what the sockets cannot buffer.
        assert most < 24

        # When the peer reads at last, it gets every answer.
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


def test_answers_to_a_peer_that_never_reads_are_held_in_memory_only_once(runner):
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
        # One more answer may be in the transport, or be encoded at the moment.
        assert grown < 1.2 * 64 * size / 2**20

        deaf.settimeout(PATIENCE)
        decoder = MessageDecoder()
        answers = Counter()
        while answers.total() < 64:
            decoder.feed(deaf.recv(1_000_000))
            answers.update(answer.request_id for answer in decoder if len(answer.result) == size)
        assert set(answers.values()) == {1}
