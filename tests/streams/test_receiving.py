"""Receiving from a MessageStream: messages, errors and the end, by iteration and by deliver()."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import struct
import traceback
from unittest.mock import Mock

import pytest

from rrq_fastwire import (
    EmptyFrameError,
    FrameTooLargeError,
    MessageError,
    TruncatedFrameError,
)
from rrq_fastwire.streams import (
    MessageStream,
)

from ..stream_peers import (
    NO_MESSAGE,
    both_ways_of_receiving,
    deliver,
    everything,
    fill,
    frames,
    iterate,
    message,
    name,
    read,
    reset,
    until,
    write,
)


@both_ways_of_receiving
@pytest.mark.parametrize("arrives", ["at once", "byte by byte"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (frames("a", "b"), ["a", "b"]),
        (frames("a") + b"\0\0", ["a", TruncatedFrameError]),
        (frames("a", "b")[:-1], ["a", TruncatedFrameError]),
        (frames("a") + b"\0\0\0\0" + frames("b"), ["a", EmptyFrameError]),
        (frames("a") + b"\xff\xff\xff\xff" + frames("b"), ["a", FrameTooLargeError]),
        (frames("a") + NO_MESSAGE * 2 + frames("b"), ["a", b"no", b"no", "b"]),
        (NO_MESSAGE + frames("a") + NO_MESSAGE + b"\0", [b"no", "a", b"no", TruncatedFrameError]),
    ],
    ids=[
        "nothing",
        "whole frames",
        "half a header",
        "half a payload",
        "an empty frame",
        "a frame too large",
        "payloads that are not messages",
        "these and half a header",
    ],
)
def test_messages_and_errors_are_received_in_order(
    run, connected, receive, arrives, data, expected
):
    async def scenario():
        async with connected() as (stream, peer):
            receiver = asyncio.create_task(everything(stream, receive))
            for piece in [data] if arrives == "at once" else struct.unpack(f"{len(data)}c", data):
                await write(peer, piece)
                await asyncio.sleep(0)
            peer.shutdown(socket.SHUT_WR)
            assert await receiver == expected
            # Receiving again from a stream that has ended raises the same error.
            assert await everything(stream, receive) == [
                last for last in expected[-1:] if isinstance(last, type)
            ]

    run(scenario())


@both_ways_of_receiving
def test_a_broken_stream_is_not_read_again_and_still_sends(run, connected, receive):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, b"\0\0\0\0")
            assert await everything(stream, receive) == [EmptyFrameError]
            stream.pause_reading()
            stream.resume_reading()
            await write(peer, frames("more"))
            for number in range(3):
                await asyncio.sleep(0)  # the event loop would read now
                stream.send_nowait(message(str(number)))
            assert await read(peer, 3) == ["0", "1", "2"]

    run(scenario())


@both_ways_of_receiving
def test_a_reset_is_raised_after_the_messages_that_arrived_before(run, connected, receive):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, frames("a", "b", "c"))
            assert name(await anext(stream)) == "a"
            await stream.send(message("unread"))
            await reset(peer)
            await stream.wait_closed()
            assert await everything(stream, receive) == ["b", "c", ConnectionError]
            assert await everything(stream, receive) == [ConnectionError]

    run(scenario())


def test_a_connection_that_timed_out_raises_connection_error(run):
    async def scenario():
        stream = MessageStream()
        stream.connection_made(Mock())
        receiver = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        # The kernel reports this if a peer does not respond.
        stream.connection_lost(OSError(errno.ETIMEDOUT, "timed out"))
        with pytest.raises(ConnectionError, match="timed out"):
            await receiver
        with pytest.raises(ConnectionError, match="timed out"):
            await stream.drain()

    run(scenario())


@both_ways_of_receiving
def test_a_reset_wakes_a_waiting_receiver(run, connected, receive):
    async def scenario():
        async with connected() as (stream, peer):
            receiver = asyncio.create_task(everything(stream, receive))
            await write(peer, frames("a"))
            await stream.send(message("unread"))
            await reset(peer)
            assert (await receiver)[-1] is ConnectionError

    run(scenario())


@both_ways_of_receiving
@pytest.mark.parametrize("end", ["close", "abort"])
def test_iteration_ends_when_the_stream_is_closed_here(run, connected, receive, end):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, frames("a", "b"))
            assert name(await anext(stream)) == "a"
            receiver = asyncio.create_task(everything(stream, receive))
            await asyncio.sleep(0)
            getattr(stream if end == "close" else stream.transport, end)()
            assert await receiver == ["b"]
            await stream.wait_closed()
            assert await everything(stream, receive) == []

    run(scenario())


@pytest.mark.parametrize(
    ("rest", "error"),
    [(b"\0\0\0\0", EmptyFrameError), (NO_MESSAGE, MessageError)],
    ids=["broken", "no message"],
)
def test_receive_nowait_returns_messages_that_have_arrived(run, connected, rest, error):
    async def scenario():
        async with connected() as (stream, peer):
            assert stream.receive_nowait() is None
            await write(peer, frames("a", "b") + rest)
            assert name(await anext(stream)) == "a"
            assert name(stream.receive_nowait()) == "b"
            with pytest.raises(error):
                stream.receive_nowait()
            if error is MessageError:
                assert stream.receive_nowait() is None

    run(scenario())


def test_a_broken_stream_is_not_read_further(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, b"GET / HTTP/1.1\r\n")
            with pytest.raises(FrameTooLargeError):
                await anext(stream)
            assert not stream.transport.is_reading()
            stream.send_nowait(message("bye"))
            assert await read(peer, 1) == ["bye"]

    run(scenario())


def test_max_frame_size_limits_the_frames_of_the_peer(run, connected):
    async def scenario():
        async with connected(max_frame_size=len(frames("a")) - 4) as (stream, peer):
            await write(peer, frames("a", "ab"))
            assert await everything(stream, iterate) == ["a", FrameTooLargeError]

    run(scenario())


@both_ways_of_receiving
def test_a_half_closed_peer_still_gets_answers(run, connected, receive):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, frames("a", "b"))
            peer.shutdown(socket.SHUT_WR)
            assert await everything(stream, receive) == ["a", "b"]
            stream.send_nowait(message("large", 10**7))
            answer = asyncio.create_task(stream.send(message("last")))
            assert await read(peer, 2) == ["large", "last"]
            await answer

    run(scenario())


def test_an_error_during_a_cancellation_is_raised_by_the_next_call(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            receiver = asyncio.create_task(stream.deliver(lambda _: receiver.cancel()))
            await asyncio.sleep(0)
            await write(peer, frames("a") + NO_MESSAGE)
            with pytest.raises(asyncio.CancelledError):
                await receiver
            with pytest.raises(MessageError):
                await stream.deliver(print)

    run(scenario())


def test_polling_receives_everything_although_reading_pauses(run, connected):
    sent = list(map(str, range(5000)))

    async def scenario():
        async with connected() as (stream, peer):
            writing = asyncio.create_task(write(peer, frames(*sent)))
            found = []
            while len(found) < len(sent):
                received = stream.receive_nowait()
                if received is None:
                    await asyncio.sleep(0)
                else:
                    found.append(name(received))
            await writing
            assert found == sent

    run(scenario())


def test_cancelled_senders_are_forgotten(run, connected):
    async def scenario():
        async with connected() as (stream, _):
            await fill(stream)
            for _ in range(10):
                sender = asyncio.create_task(stream.drain())
                await asyncio.sleep(0)
                sender.cancel()
                await asyncio.wait([sender])
            assert not stream._waiting
            stream.abort()

    run(scenario())


def test_the_traceback_of_a_repeated_error_does_not_grow(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            await stream.send(message("unread"))
            await reset(peer)
            await until(stream.is_closing)
            for _ in range(100):
                with pytest.raises(ConnectionError) as caught:
                    stream.send_nowait(message("a"))
            assert len(list(traceback.walk_tb(caught.tb))) < 10

    run(scenario())


@both_ways_of_receiving
@pytest.mark.parametrize("first", [iterate, deliver])
def test_a_second_receiver_is_refused_and_the_first_continues(run, connected, first, receive):
    async def scenario():
        async with connected() as (stream, peer):
            receiver = asyncio.create_task(everything(stream, first))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task is already receiving"):
                await receive(stream, print)
            await write(peer, frames("a", "b"))
            peer.shutdown(socket.SHUT_WR)
            assert await receiver == ["a", "b"]

    run(scenario())


@both_ways_of_receiving
def test_cancelling_a_receiver_loses_no_message(run, connected, receive):
    async def scenario():
        async with connected() as (stream, peer):
            found = []
            for number in range(60):
                receiver = asyncio.create_task(
                    receive(stream, lambda received: found.append(name(received)))
                )
                await asyncio.sleep(0)
                await write(peer, frames(number))
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                receiver.cancel()
                await asyncio.wait([receiver])
            peer.shutdown(socket.SHUT_WR)
            found += await everything(stream, receive)
            assert found == [str(number) for number in range(60)]

    run(scenario())


@both_ways_of_receiving
def test_reading_pauses_while_no_messages_are_taken(run, connected, receive):
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")
    data = frames(*range(200), size=2**17)

    async def scenario():
        async with connected() as (stream, peer):
            gc.collect()
            tracemalloc.start()
            writer = asyncio.create_task(write(peer, data))
            await until(lambda: not stream.transport.is_reading())
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert held < 2**20
            assert not writer.done()
            assert name(await anext(stream)) == "0"
            received = asyncio.create_task(everything(stream, receive))
            await writer
            peer.shutdown(socket.SHUT_WR)
            assert await received == [str(number) for number in range(1, 200)]

    run(scenario())


def test_reading_pauses_until_it_is_resumed(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.pause_reading()
            await write(peer, frames("a"))
            for _ in range(10):
                await asyncio.sleep(0.001)
                assert stream.receive_nowait() is None
            assert stream.buffered == 0
            stream.resume_reading()
            assert name(await anext(stream)) == "a"
            stream.close()
            stream.pause_reading()
            stream.resume_reading()

    run(scenario())


def test_a_pause_outlasts_the_taking_of_what_has_arrived(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            writer = asyncio.create_task(write(peer, frames(*map(str, range(200)), size=2**17)))
            await until(lambda: not stream.transport.is_reading())
            stream.pause_reading()
            while stream.receive_nowait() is not None:
                pass
            assert not stream.transport.is_reading()
            stream.resume_reading()
            assert stream.transport.is_reading()
            writer.cancel()

    run(scenario())


def test_resuming_does_not_read_more_than_may_wait(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            writer = asyncio.create_task(write(peer, frames(*map(str, range(200)), size=2**17)))
            await until(lambda: not stream.transport.is_reading())
            stream.pause_reading()
            stream.resume_reading()
            assert not stream.transport.is_reading()
            writer.cancel()

    run(scenario())


def test_bytes_are_buffered_until_their_message_is_taken(run, connected):
    data = frames("a")

    async def scenario():
        async with connected() as (stream, peer):
            assert stream.buffered == 0
            await write(peer, data[:5])
            await until(lambda: stream.buffered == 5)
            await write(peer, data[5:])
            assert name(await anext(stream)) == "a"
            assert stream.buffered == 0

    run(scenario())


def test_reading_resumes_within_a_large_frame(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            writer = asyncio.create_task(write(peer, frames("large", "a", size=10**7)))
            await until(lambda: not stream.transport.is_reading())
            assert [name(await anext(stream)) for _ in range(2)] == ["large", "a"]
            await writer
            await write(peer, frames("b"))
            assert name(await anext(stream)) == "b"

    run(scenario())
