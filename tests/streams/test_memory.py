"""How much memory connections hold."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ..stream_peers import (
    message,
)


def test_memory_of_a_large_frame_is_freed_on_both_sides(run, serve):
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")

    async def echo(stream):
        async for received in stream:
            await stream.send(received)
            del received

    async def scenario():
        async with serve(echo) as connect, await connect() as stream:
            for size in (0, 10**7):
                await stream.send(message("a", size))
                assert len((await anext(stream)).job_id) == size + 1
                gc.collect()
                if size == 0:
                    tracemalloc.start()
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak > 10**7
            assert held < 2**18

    run(scenario())


IDLE_CONNECTIONS = """
import asyncio, gc, importlib, resource, socket, sys
from rrq_fastwire import CancelRequest, encode_frame
from rrq_fastwire.streams import start_server

loops, kind, state = sys.argv[1:]

class Bare(asyncio.BufferedProtocol):
    memory = bytearray(2**16)
    received = 0

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.memory

    def buffer_updated(self, size):
        Bare.received += 1

async def on_stream(stream):
    async for _ in stream:
        Bare.received += 1

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

async def main():
    if kind == "bare":
        server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    else:
        server = await start_server(on_stream, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    sockets = []

    async def connect(count):
        for _ in range(count):
            peer = socket.create_connection(address)
            sockets.append(peer)
            if state == "after a message":
                peer.sendall(encode_frame(CancelRequest(job_id="j")))
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            while state == "after a message" and Bare.received < len(sockets):
                await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)

    await connect(200)
    before = resident()
    await connect(1000)
    print((resident() - before) / 1000)
    for peer in sockets:
        peer.close()
    server.close()

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
with asyncio.Runner(loop_factory=importlib.import_module(loops).new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("state", ["from the beginning", "after a message"])
@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_an_idle_connection_needs_little_more_memory_than_its_transport(loops, state):
    if loops == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")

    def measured(kind):
        """Bytes per connection."""
        command = [sys.executable, "-c", IDLE_CONNECTIONS, loops, kind, state]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return float(done.stdout)

    extra = measured("stream") - measured("bare")
    print(f"{extra:.0f} bytes per connection")
    assert extra <= 4096


NO_MEMORY = """
import asyncio, resource, socket, sys
from rrq_fastwire import CancelRequest, MessageDecoder
from rrq_fastwire.streams import MessageStream

async def main():
    ours, peer = socket.socketpair()
    for each in (ours, peer):
        each.setblocking(False)
    loop = asyncio.get_running_loop()
    _, stream = await loop.connect_accepted_socket(MessageStream, ours)
    for letter in "abc":
        stream.send_nowait(CancelRequest(job_id=letter * 80_000))  # are joined for one write
    unsent = stream.unsent
    pages = int(open("/proc/self/statm").read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
    taken = []
    try:
        while True:
            taken.append(bytes(200_000))
    except MemoryError:
        pass
    try:
        stream.flush()
    except MemoryError:
        result = "no memory"
    else:
        result = "written"
    taken.clear()
    resource.setrlimit(resource.RLIMIT_AS, before)
    print(result, stream.unsent == unsent)
    sending = asyncio.create_task(stream.send(CancelRequest(job_id="d")))
    stream.flush()
    decoder, found = MessageDecoder(), ""
    while len(found) < 4:
        found += "".join(each.job_id[0] for each in decoder.feed(await loop.sock_recv(peer, 2**20)))
    await sending
    print(found, stream.unsent)

asyncio.run(asyncio.wait_for(main(), 30))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_messages_are_kept_if_there_is_no_memory_to_join_them():
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("no memory True\nabcd 0\n", "")
