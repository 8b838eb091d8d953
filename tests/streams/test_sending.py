"""Sending to a MessageStream: when it writes, and when it waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from rrq_fastwire import (
    EncodeError,
    ExecutionOutcome,
    MessageDecoder,
)

from ..stream_peers import (
    fill,
    frames,
    message,
    name,
    read,
    reset,
    until,
)


class CountingTransport:
    """A transport that counts its writes."""

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
            for writes in (1, 2):
                for number in range(count):
                    asyncio.get_running_loop().call_soon(stream.send_nowait, message(number))
                assert await read(peer, count) == [str(number) for number in range(count)]
                assert transport.writes == writes

    run(scenario())


def test_messages_that_do_not_fit_into_one_write_leave_in_a_few_writes_in_order(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            stream.transport = transport = CountingTransport(stream.transport)
            for number in range(60):
                stream.send_nowait(message(number, 10_000))
            assert await read(peer, 60) == [str(number) for number in range(60)]
            assert transport.writes <= 4

    run(scenario())


def test_flushing_writes_at_once_together_with_earlier_messages(run, connected):
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


def test_sent_bytes_are_unsent_until_the_kernel_has_them(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            assert stream.unsent == 0
            sizes = [stream.send_nowait(message(job_id, 100)) for job_id in ("a", "bc")]
            assert sizes == [len(frames(job_id, size=100)) for job_id in ("a", "bc")]
            assert stream.unsent == sum(sizes)
            assert await read(peer, 2) == ["a", "bc"]
            assert stream.unsent == 0
            await fill(stream)
            held = stream.transport.get_write_buffer_size()
            assert stream.unsent == held
            size = stream.send_nowait(message("d"))  # the transport does not take it yet
            assert stream.unsent == held + size

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
    """An event loop that counts the calls of call_soon()."""

    calls = 0

    def call_soon(self, *arguments, **more):
        self.calls += 1
        return super().call_soon(*arguments, **more)


@pytest.mark.parametrize("size", [10, 2**15])
def test_many_waiting_senders_continue_in_order_in_linear_time(connected, size):
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


def test_messages_for_a_peer_that_has_gone_are_dropped_and_not_logged(run, connected, caplog):
    async def scenario():
        async with connected() as (stream, peer):

            def answer(received):
                peer.close()
                for number in range(20):  # each is written alone
                    stream.send_nowait(message(number, 2**16))

            receiver = asyncio.create_task(stream.deliver(answer))
            await asyncio.sleep(0)
            peer.send(frames("a"))
            with suppress(ConnectionError):
                await receiver

    run(scenario())
    assert caplog.messages == []


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
