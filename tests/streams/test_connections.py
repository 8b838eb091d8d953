"""Opening and closing connections, and servers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    FrameTooLargeError,
)
from rrq_fastwire.streams import (
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)

from ..stream_peers import (
    everything,
    iterate,
    message,
    name,
    read,
)


@pytest.mark.parametrize("how", ["close", "async with"])
def test_closing_writes_messages_sent_before(run, connected, how):
    count = 300

    async def scenario():
        async with connected() as (stream, peer):
            for number in range(count):
                stream.send_nowait(message(number, 2**17))
            if how == "close":
                stream.close()
                stream.close()
                closed = asyncio.create_task(stream.wait_closed())
            else:
                closed = asyncio.create_task(stream.__aexit__(None, None, None))
            await asyncio.sleep(0)
            assert stream.is_closing()
            with pytest.raises(ConnectionError, match="the connection is closed"):
                await stream.send(message("late"))
            assert not closed.done()
            assert await read(peer, count) == [str(number) for number in range(count)]
            assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
            await closed

    run(scenario())


def test_abort_after_a_finished_close_does_nothing(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.send_nowait(message("a", 2**23))
            stream.close()
            await read(peer, 1)
            await stream.wait_closed()
            stream.abort()

    run(scenario())


def test_cancelling_one_wait_closed_does_not_cancel_others(run, connected):
    async def scenario():
        async with connected() as (stream, _):
            impatient, patient = (asyncio.create_task(stream.wait_closed()) for _ in range(2))
            await asyncio.sleep(0)
            impatient.cancel()
            await asyncio.wait([impatient])
            assert impatient.cancelled()
            assert not patient.done()
            stream.close()
            await patient

    run(scenario())


def test_the_repr_of_a_stream_shows_its_state(run, connected):
    async def scenario():
        async with connected() as (stream, _):
            assert repr(stream).startswith("<MessageStream open peer=")
            assert stream.transport.get_extra_info("socket") is not None
            async with stream as entered:
                assert entered is stream
                stream.close()
                assert "closing" in repr(stream)
            assert "closed" in repr(stream)

    run(scenario())


def test_the_repr_of_an_aborted_stream_shows_its_state(run, serve):
    async def read_to_the_end(stream):
        assert [message async for message in stream] == []
        ended.set()

    ended = asyncio.Event()

    async def scenario():
        async with serve(read_to_the_end) as connect:
            stream = await connect()
            stream.abort()
            await stream.wait_closed()
            assert repr(stream).startswith("<MessageStream closed peer=")
            await ended.wait()

    run(scenario())


def test_a_server_serves_each_connection_and_closes_it_at_its_end(run, serve):
    async def echo(stream):
        async for received in stream:
            await stream.send(received)
            if name(received) == "last":
                break

    async def scenario():
        async with serve(echo, backlog=7) as connect:
            streams = [await connect() for _ in range(20)]
            for stream in streams:
                await stream.send(ExecutionOutcome.success("1", "r", {"x": [None, "é"]}))
                await stream.send(message("last"))
            for stream in streams:
                async with stream:
                    answers = [answer async for answer in stream]
                assert answers == [
                    ExecutionOutcome.success("1", "r", {"x": [None, "é"]}),
                    message("last"),
                ]

    run(scenario())


def test_an_exception_of_on_stream_is_reported_and_closes_only_that_stream(run, serve):
    async def on_stream(stream):
        async for received in stream:
            if name(received) == "bad":
                raise LookupError("bad")
            await stream.send(received)

    async def scenario():
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reported.append(report))
        async with serve(on_stream) as connect, await connect() as good, await connect() as bad:
            await bad.send(message("bad"))
            assert await everything(bad, iterate) == []
            await good.send(message("good"))
            assert name(await anext(good)) == "good"
        (report,) = reported
        assert report["message"] == "unhandled exception in on_stream"
        assert isinstance(report["exception"], LookupError)

    run(scenario())


def test_a_server_limits_the_frames_of_its_peers(run, serve):
    errors = []

    async def on_stream(stream):
        errors.extend(await everything(stream, iterate))

    async def scenario():
        async with serve(on_stream, max_frame_size=100) as connect, await connect() as stream:
            await stream.send(message("a"))
            await stream.send(message("b", 100))
            assert await everything(stream, iterate) in ([], [ConnectionError])

    run(scenario())
    assert errors == ["a", FrameTooLargeError]


def test_connecting_without_a_listener_raises_os_error(run, tmp_path):
    async def scenario():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match=r"."):
                await open_connection(*unused.getsockname())
            with pytest.raises(OSError, match=r"."):
                await start_server(iterate, *unused.getsockname())
        if hasattr(socket, "AF_UNIX"):
            with pytest.raises(OSError, match=r"."):
                await open_unix_connection(str(tmp_path / "no listener"))
            with pytest.raises(OSError, match=r"."):
                await start_unix_server(iterate, str(tmp_path / "no" / "folder"))

    run(scenario())
