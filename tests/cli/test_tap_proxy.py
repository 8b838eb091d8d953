"""The proxy of `tap` at the end of a connection, in the event loop of the tests."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from ..taps import WAIT_SECONDS, reset

proxies = pytest.importorskip("rrq_fastwire.cli.tap.proxy", reason="the command line is an extra")

# tap always runs on asyncio's own event loop.
pytestmark = pytest.mark.parametrize("run", ["asyncio"], indirect=True)


class Watched:
    """A watcher that notes what happens to a connection."""

    def __init__(self):
        self.events = []
        self.size = 0  # bytes that were passed on
        self.is_over = asyncio.Event()

    def passed(self, data, *, to_runner):
        self.size += len(data)

    def ended(self, *, by_runner):
        self.events.append("runner ended" if by_runner else "orchestrator ended")

    def was_reset(self, *, by_runner):
        self.events.append("runner reset" if by_runner else "orchestrator reset")

    def was_refused(self, error):
        self.events.append("refused")

    def over(self):
        self.is_over.set()


class Proxied:
    """A proxy, its watcher, and the sockets at both ends of one connection."""

    def __init__(self, proxy, watched, orchestrator, listener):
        self.proxy = proxy
        self.watched = watched
        self.orchestrator = orchestrator
        self._listener = listener

    async def accept(self):
        """The runner's socket."""
        runner, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        runner.setblocking(False)
        return runner

    async def send_until_blocked(self):
        """Sends to a runner that does not read, until the proxy reads no more. Returns the bytes."""
        (pair,) = self.proxy.pairs

        def is_blocked():
            # At first, the proxy does not read either, because the runner is not reached yet.
            to = pair.back.transport
            return to and to.get_write_buffer_size() and not pair.front.transport.is_reading()

        sent = b""
        while not is_blocked():
            with suppress(BlockingIOError):
                piece = len(sent).to_bytes(8) * 8192
                sent += piece[: self.orchestrator.send(piece)]
            await asyncio.sleep(0)
        return sent


@asynccontextmanager
async def proxied():
    """A connection through a proxy to a runner that has not accepted it yet."""
    loop = asyncio.get_running_loop()
    watched = Watched()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        proxy = proxies.Proxy(listener.getsockname(), lambda number: watched)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        await proxy.listen(*address)
        with socket.socket() as orchestrator:
            orchestrator.setblocking(False)
            await loop.sock_connect(orchestrator, address)
            yield Proxied(proxy, watched, orchestrator, listener)
        await proxy.close(WAIT_SECONDS)


async def received(connection):
    """All bytes up to the end of a connection."""
    data = b""
    while piece := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
        data += piece
    return data


def test_bytes_that_have_arrived_before_the_proxy_ends_still_reach_a_slow_runner(run):
    async def main():
        async with proxied() as connection:
            runner = await connection.accept()
            with runner:
                sent = await connection.send_until_blocked()
                closing = asyncio.create_task(connection.proxy.close(WAIT_SECONDS))
                await asyncio.sleep(0)  # lets the task begin
                found = await received(runner)
                await closing
            assert found == sent[: connection.watched.size]
            assert connection.proxy.pairs == set()
            assert connection.watched.events == ["orchestrator ended", "runner ended"]

    run(main())


def test_a_runner_that_does_not_read_in_time_is_reset_when_the_proxy_ends(run):
    async def main():
        async with proxied() as connection:
            runner = await connection.accept()
            with runner:
                await connection.send_until_blocked()
                await connection.proxy.close(0.01)
                assert connection.proxy.pairs == set()
                assert connection.watched.is_over.is_set()
                # Otherwise the runner would take the bytes that it gets for everything.
                with pytest.raises(ConnectionResetError):
                    await received(runner)

    run(main())


def test_a_runner_that_resets_its_connection_while_the_proxy_ends_is_noted(run):
    async def main():
        async with proxied() as connection:
            runner = await connection.accept()
            await connection.send_until_blocked()
            closing = asyncio.create_task(connection.proxy.close(WAIT_SECONDS))
            await asyncio.sleep(0)  # lets the task begin
            reset(runner)
            await closing
            assert connection.proxy.pairs == set()
            assert "runner reset" in connection.watched.events

    run(main())


def test_an_orchestrator_that_leaves_while_the_runner_is_reached_leaves_no_connection(
    run, monkeypatch
):
    async def main():
        loop = asyncio.get_running_loop()
        create_connection = loop.create_connection

        def create_connection_too_late(make_protocol, *address):
            def protocol():
                # The runner is reached, but connection_made() has not been called yet.
                end = make_protocol()
                end.other.transport.abort()
                return end

            return create_connection(protocol, *address)

        monkeypatch.setattr(loop, "create_connection", create_connection_too_late)
        async with proxied() as connection:
            with await connection.accept() as runner:
                assert await received(runner) == b""
            await connection.watched.is_over.wait()
            assert connection.proxy.pairs == set()

    run(main())
