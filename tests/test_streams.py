"""Streams: sending, receiving, back-pressure and closing, on both event loops and kinds of socket."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
import socket
import struct
import subprocess
import sys
import traceback
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrq_fastwire import (
    CancelRequest,
    EmptyFrameError,
    EncodeError,
    ExecutionOutcome,
    FrameError,
    FrameTooLargeError,
    MessageDecoder,
    MessageError,
    TruncatedFrameError,
    encode_frame,
)
from rrq_fastwire.streams import (
    MessageStream,
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)

NO_MESSAGE = b"\0\0\0\x02no"


def message(job_id, size=0):
    return CancelRequest(job_id=f"{job_id}{'.' * size}")


def frames(*job_ids, size=0):
    return b"".join(encode_frame(message(job_id, size)) for job_id in job_ids)


def name(received):
    return received.job_id.rstrip(".")


async def iterate(stream, take):
    async for received in stream:
        take(received)


async def deliver(stream, take):
    await stream.deliver(take)


both_ways_of_receiving = pytest.mark.parametrize("receive", [iterate, deliver])


async def everything(stream, receive):
    """The names of the messages that can still be received, and the errors between and after them."""
    found = []
    while True:
        try:
            await receive(stream, lambda received: found.append(name(received)))
        except MessageError as error:
            found.append(error.payload)
        except (FrameError, ConnectionError) as error:
            return [*found, ConnectionError if isinstance(error, OSError) else type(error)]
        else:
            return found


def write(peer, data):
    return asyncio.get_running_loop().sock_sendall(peer, data)


async def read(peer, count):
    """The names of the next messages that a plain socket receives."""
    decoder = MessageDecoder()
    found = []
    while len(found) < count:
        data = await asyncio.get_running_loop().sock_recv(peer, 2**20)
        assert data, f"the stream has ended after {len(found)} messages"
        found += map(name, decoder.feed(data))
    return found


async def reset(peer):
    """Reset a connection on which the plain socket has not read everything."""
    await asyncio.get_running_loop().sock_recv(peer, 1)
    if peer.family != socket.AF_INET and sys.platform != "linux":
        pytest.skip("only Linux resets Unix sockets")
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    peer.close()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def fill(stream):
    """Send until drain() would wait, because the peer reads nothing."""
    while not (stream.congested and stream.transport.get_write_buffer_size()):
        stream.send_nowait(message("fill", 2**16))
        await asyncio.sleep(0)


# Sending


class CountingTransport:
    def __init__(self, transport):
        self._transport = transport
        self.writes = 0

    def __getattr__(self, attribute):
        return getattr(self._transport, attribute)

    def write(self, data):
        self.writes += 1
        self._transport.write(data)

    def writelines(self, pieces):
        self.writes += 1
        self._transport.writelines(pieces)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_messages_sent_in_one_event_loop_iteration_leave_in_one_write(run, connected, count):
    async def scenario():
        async with connected() as (stream, peer):
            stream.transport = transport = CountingTransport(stream.transport)
            for turn in (1, 2):
                for number in range(count):
                    asyncio.get_running_loop().call_soon(stream.send_nowait, message(number))
                assert await read(peer, count) == [str(number) for number in range(count)]
                assert transport.writes == turn

    run(scenario())


def test_flushing_writes_at_once_with_what_was_sent_before(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.transport = transport = CountingTransport(stream.transport)
            stream.send_nowait(message("a"))
            assert transport.writes == 0
            stream.send_nowait(message("b"), flush=True)
            assert transport.writes == 1
            assert await read(peer, 2) == ["a", "b"]
            assert transport.writes == 1

    run(scenario())


def test_send_waits_for_a_peer_that_does_not_read_and_holds_little(run, connected):
    count = 300

    async def scenario():
        async with connected() as (stream, peer):

            async def send_all():
                for number in range(count):
                    await stream.send(message(number, 2**17))

            sender = asyncio.create_task(send_all())
            await until(lambda: stream.congested and stream.transport.get_write_buffer_size())
            assert not sender.done()
            assert stream.transport.get_write_buffer_size() < 2**19
            assert await read(peer, count) == [str(number) for number in range(count)]
            await sender
            await stream.drain()
            assert not stream.congested

    run(scenario())


def test_send_waits_if_much_was_sent_in_one_event_loop_iteration(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.send_nowait(message("a", 2**17))
            assert stream.congested
            sender = asyncio.create_task(stream.send(message("b")))
            assert await read(peer, 2) == ["a", "b"]
            await sender

    run(scenario())


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what it is asked to call."""

    calls = 0

    def call_soon(self, *arguments, **more):
        self.calls += 1
        return super().call_soon(*arguments, **more)


@pytest.mark.parametrize("size", [10, 2**15])
def test_many_who_wait_to_send_go_on_in_their_order_in_linear_time(connected, size):
    count = 10_000 if size < 1000 else 1000

    async def scenario():
        loop = asyncio.get_running_loop()
        async with connected() as (stream, peer):
            await fill(stream)
            sending = asyncio.gather(
                *(stream.send(message(number, size)) for number in range(count)),
                *(stream.drain() for _ in range(count)),
            )
            await asyncio.sleep(0)
            loop.calls = 0
            names, decoder = [], MessageDecoder()
            while len(names) < count:
                received = decoder.feed(await loop.sock_recv(peer, 2**20))
                names += [each for each in map(name, received) if each != "fill"]
            await sending
            assert names == [str(number) for number in range(count)]
            assert loop.calls < 12 * count

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("end", ["reset", "abort"])
def test_a_waiting_send_fails_when_the_connection_is_lost(run, connected, end):
    async def scenario():
        async with connected() as (stream, peer):
            await fill(stream)
            waiting = [
                asyncio.create_task(waits)
                for waits in (stream.send(message("late")), stream.drain())
            ]
            given_up = asyncio.create_task(stream.drain())
            await asyncio.sleep(0)
            given_up.cancel()
            await (reset(peer) if end == "reset" else stream.abort() or asyncio.sleep(0))
            for waits in [*waiting, stream.send(message("later")), stream.drain()]:
                with pytest.raises(ConnectionError):
                    await waits
            with pytest.raises(ConnectionError):
                stream.send_nowait(message("later"))
            assert given_up.cancelled()

    run(scenario())


def test_a_message_that_cannot_be_encoded_does_not_change_the_stream(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.send_nowait(message("a"))
            with pytest.raises(EncodeError):
                await stream.send(ExecutionOutcome.success("j", "r", object()))
            with pytest.raises(EncodeError):
                stream.send_nowait(message("too large", 2**24))
            await stream.send(message("b"))
            assert await read(peer, 2) == ["a", "b"]

    run(scenario())


# Receiving


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
        "payloads that are no messages",
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
            # A stream that has ended raises the same error again.
            assert await everything(stream, receive) == [
                last for last in expected[-1:] if isinstance(last, type)
            ]

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


def test_polling_receives_everything_though_reading_pauses(run, connected):
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
def test_a_second_receiver_is_refused_and_the_first_goes_on(run, connected, first, receive):
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


# Delivering


def test_deliver_calls_in_the_event_loop_iteration_of_the_read(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            tasks = []
            receiver = asyncio.create_task(
                stream.deliver(lambda _: tasks.append(asyncio.current_task()))
            )
            await asyncio.sleep(0)
            await write(peer, frames("a", "b"))
            peer.shutdown(socket.SHUT_WR)
            await receiver
            assert tasks == [None, None]  # no task was woken for them

    run(scenario())


@pytest.mark.parametrize("arrives", ["before", "while it waits"])
def test_deliver_raises_errors_of_its_function_and_can_go_on(run, connected, arrives):
    async def scenario():
        async with connected() as (stream, peer):
            found = []

            def take(received):
                found.append(name(received))
                if name(received) == "b":
                    raise LookupError("b")

            if arrives == "before":
                await write(peer, frames("first", "a", "b", "c"))
                assert name(await anext(stream)) == "first"
            receiver = asyncio.create_task(stream.deliver(take))
            await asyncio.sleep(0)
            if arrives != "before":
                await write(peer, frames("a", "b", "c"))
            with pytest.raises(LookupError):
                await receiver
            peer.shutdown(socket.SHUT_WR)
            await stream.deliver(take)
            assert found == ["a", "b", "c"]

    run(scenario())


def test_deliver_pauses_while_the_peer_does_not_read(run, connected):
    count = 300

    async def scenario():
        async with connected() as (stream, peer):
            found = []

            def answer(received):
                found.append(name(received))
                stream.send_nowait(message(name(received), 2**17))

            receiver = asyncio.create_task(stream.deliver(answer))
            await write(peer, frames(*range(count)))
            await until(lambda: stream.congested and stream.transport.get_write_buffer_size())
            assert 0 < len(found) < count
            assert stream.transport.get_write_buffer_size() < 2**19
            expected = [str(number) for number in range(count)]
            assert await read(peer, count) == expected
            assert found == expected
            peer.shutdown(socket.SHUT_WR)
            await receiver

    run(scenario())


@both_ways_of_receiving
@pytest.mark.parametrize("end", ["reset", "abort"])
def test_arrived_messages_are_received_before_the_end_of_a_congested_connection(
    run, connected, receive, end
):
    async def scenario():
        async with connected() as (stream, peer):
            await write(peer, frames("a", "b", "c"))
            assert name(await anext(stream)) == "a"
            await fill(stream)
            receiver = asyncio.create_task(everything(stream, receive))
            await asyncio.sleep(0)
            if end == "reset":
                await reset(peer)
                assert await receiver == ["b", "c", ConnectionError]
            else:
                stream.abort()
                assert await receiver == ["b", "c"]

    run(scenario())


@given(
    job_ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3000), max_size=30),
    cuts=st.lists(st.integers(0, 10**5), max_size=20),
)
@settings(max_examples=15, deadline=None)
@both_ways_of_receiving
def test_any_messages_in_any_chunks_arrive_whole_and_in_order(
    run, connected, receive, job_ids, cuts
):
    async def scenario():
        async with connected() as (stream, peer):
            data = b"".join(encode_frame(CancelRequest(job_id=job_id)) for job_id in job_ids)
            found = []
            receiver = asyncio.create_task(receive(stream, found.append))
            edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
            for start, end in itertools.pairwise(edges):
                await write(peer, data[start:end])
                await asyncio.sleep(0)
            peer.shutdown(socket.SHUT_WR)
            await receiver
            assert [received.job_id for received in found] == job_ids

    run(scenario())


# Beginning and end


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


def test_the_repr_of_a_stream_tells_its_state(run, connected):
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


@pytest.fixture(params=["tcp", "unix"])
def serve(request):
    """A server, and a function that connects to it."""
    if request.param == "unix" and not hasattr(socket, "AF_UNIX"):
        pytest.skip("there are no Unix sockets here")

    @asynccontextmanager
    async def serve(on_stream, **options):
        with TemporaryDirectory() as folder:
            if request.param == "unix":
                path = f"{folder}/socket"
                server = await start_unix_server(on_stream, path, **options)
                try:
                    yield lambda: open_unix_connection(path)
                finally:
                    server.close()
            else:
                server = await start_server(on_stream, "127.0.0.1", 0, **options)
                address = server.sockets[0].getsockname()
                try:
                    yield lambda: open_connection(*address)
                finally:
                    server.close()

    return serve


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
                await open_unix_connection(str(tmp_path / "nobody"))
            with pytest.raises(OSError, match=r"."):
                await start_unix_server(iterate, str(tmp_path / "no" / "folder"))

    run(scenario())


# Memory


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
def test_an_idle_connection_uses_little_memory_besides_its_transport(loops, state):
    if loops == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")

    def measured(kind):
        """Bytes per connection."""
        command = [sys.executable, "-c", IDLE_CONNECTIONS, loops, kind, state]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return float(done.stdout)

    extra = measured("stream") - measured("bare")
    print(f"{extra:.0f} bytes a connection")
    assert extra <= 4096
