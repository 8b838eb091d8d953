"""MessageStream.deliver(), which handles messages in the callback of the read."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import socket
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrq_fastwire import (
    CancelRequest,
    MessageError,
    encode_frame,
)
from rrq_fastwire.streams.quota import quota_of

from ..stream_peers import (
    NO_MESSAGE,
    both_ways_of_receiving,
    everything,
    fill,
    frames,
    message,
    name,
    read,
    reset,
    until,
    write,
)


def test_deliver_calls_its_function_in_the_event_loop_iteration_of_the_read(run, connected):
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
            assert tasks == [None, None]  # called outside any task

    run(scenario())


@pytest.mark.parametrize("arrives", ["before", "while it waits"])
def test_deliver_raises_errors_of_its_function_and_can_be_called_again(run, connected, arrives):
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


def test_the_function_of_deliver_can_be_replaced(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            found = []

            def take(received):
                found.append(("first", name(received)))
                stream.on_message = lambda received: found.append(("second", name(received)))

            assert stream.on_message is None
            receiver = asyncio.create_task(stream.deliver(take))
            await write(peer, frames("a", "b"))
            await until(lambda: len(found) == 2)
            await write(peer, frames("c"))
            peer.shutdown(socket.SHUT_WR)
            await receiver
            assert found == [("first", "a"), ("first", "b"), ("second", "c")]
            assert stream.on_message is None

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


def test_the_streams_of_an_event_loop_decode_64_kib_in_a_row(run):
    async def scenario():
        quota = quota_of(asyncio.get_running_loop())
        quota.use(64 * 1024)
        assert not quota.is_used_up
        quota.use(1)
        assert quota.is_used_up

    run(scenario())


@pytest.fixture
def small_quota(monkeypatch):
    """Makes streams wait for the next event loop iteration after each read."""
    monkeypatch.setattr("rrq_fastwire.streams.quota._SIZE", 0)


@pytest.mark.usefixtures("small_quota")
def test_the_event_loop_runs_between_reads_that_use_up_the_quota(run, connected):
    async def scenario():
        loop = asyncio.get_running_loop()
        iterations = 0

        def count_iterations():
            nonlocal iterations, counter
            iterations += 1
            counter = loop.call_soon(count_iterations)

        counter = loop.call_soon(count_iterations)
        async with AsyncExitStack() as stack:
            pairs = [await stack.enter_async_context(connected()) for _ in range(4)]
            found = {}

            def take(received):
                if not found:
                    pairs[int(name(received))][1].send(frames("again"))
                    for _, peer in pairs:
                        peer.shutdown(socket.SHUT_WR)
                found[name(received)] = iterations

            receivers = [asyncio.create_task(stream.deliver(take)) for stream, _ in pairs]
            await asyncio.sleep(0.001)
            for number, (_, peer) in enumerate(pairs):
                peer.send(frames(number))
            await asyncio.gather(*receivers)
            assert set(found) == {"0", "1", "2", "3", "again"}
            assert list(found)[-1] == "again"
            assert len(set(found.values())) == len(found)
        counter.cancel()

    run(scenario())


@pytest.mark.usefixtures("small_quota")
def test_a_stream_that_always_uses_up_the_quota_does_not_starve_a_new_one(run, connected):
    async def scenario():
        async with connected() as (busy, busy_peer), connected() as (new, new_peer):
            found = []

            def take_busy(received):
                found.append("busy")
                if len(found) < 100:
                    busy_peer.send(frames("busy"))
                else:
                    busy_peer.shutdown(socket.SHUT_WR)

            busy_peer.send(frames("busy"))
            receivers = [asyncio.create_task(busy.deliver(take_busy))]
            while len(found) < 10:
                await asyncio.sleep(0)
            new_peer.send(frames("new"))
            new_peer.shutdown(socket.SHUT_WR)
            receivers.append(asyncio.create_task(new.deliver(lambda _: found.append("new"))))
            await asyncio.gather(*receivers)
            assert found.index("new") < 30

    run(scenario())


@pytest.mark.usefixtures("small_quota")
def test_a_delivery_that_waits_for_the_quota_runs_in_the_context_of_its_stream(run, connected):
    variable = contextvars.ContextVar("variable", default=None)

    async def opened(stack, number):
        variable.set(number)
        return await stack.enter_async_context(connected())

    async def scenario():
        async with AsyncExitStack() as stack:
            pairs = [await asyncio.create_task(opened(stack, number)) for number in range(3)]
            found = {}

            def take(received):
                found[name(received)] = variable.get()

            receivers = [asyncio.create_task(stream.deliver(take)) for stream, _ in pairs]
            await asyncio.sleep(0.001)
            for number, (_, peer) in enumerate(pairs):
                peer.send(frames(number))
                peer.shutdown(socket.SHUT_WR)
            await asyncio.gather(*receivers)
            assert found == {"0": 0, "1": 1, "2": 2}

    run(scenario())


@pytest.mark.parametrize("end", ["room", "lost"])
@pytest.mark.parametrize("size", [0, 2**15], ids=["few bytes", "more than are read ahead"])
def test_messages_held_back_have_the_context_of_the_stream_and_not_of_a_sender(
    run, connected, end, size
):
    variable = contextvars.ContextVar("variable", default="of the stream")

    async def send(stream):
        variable.set("of a sender")
        await fill(stream)

    async def scenario():
        async with connected() as (stream, peer):
            found = []

            def take(received):
                found.append(variable.get())
                if received.job_id == "last":
                    receiver.cancel()

            receiver = asyncio.create_task(stream.deliver(take))
            await asyncio.create_task(send(stream))
            sending = asyncio.create_task(write(peer, frames(*"abcd", size=size)))
            await until(lambda: stream.buffered > 2 * size)
            assert found == []
            if end == "room":
                reading = asyncio.create_task(read(peer, 10**6))
                await sending
                await write(peer, frames("last"))
                await asyncio.gather(receiver, return_exceptions=True)
                reading.cancel()
            else:
                sending.cancel()
                await reset(peer)
                await asyncio.gather(receiver, return_exceptions=True)
            assert set(found) == {"of the stream"}

    run(scenario())


def run_through_interrupt(scenario):
    """Runs a coroutine in a loop that a KeyboardInterrupt stops once."""
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(scenario)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
    finally:
        loop.close()


def test_streams_that_wait_for_the_quota_are_served_after_an_interrupt(monkeypatch, connected):
    monkeypatch.setattr("rrq_fastwire.streams.quota._SIZE", 1000)  # only the first uses it up
    found = []

    async def scenario():
        async with AsyncExitStack() as stack:
            pairs = [await stack.enter_async_context(connected()) for _ in range(3)]

            def take(received):
                found.append(name(received))
                if name(received) == "1":
                    raise KeyboardInterrupt

            receivers = [asyncio.create_task(stream.deliver(take)) for stream, _ in pairs]
            await asyncio.sleep(0.001)
            for number, (_, peer) in enumerate(pairs):
                peer.send(frames(number, size=0 if number else 1000))
                peer.shutdown(socket.SHUT_WR)
            await asyncio.wait(receivers[::2])
            receivers[1].cancel()

    run_through_interrupt(scenario())
    assert found == ["0", "1", "2"]


def test_the_messages_after_an_interrupt_are_delivered_if_the_loop_goes_on(connected):
    found = []

    async def scenario():
        async with connected() as (stream, peer):

            def take(received):
                found.append(name(received))
                if name(received) == "b":
                    raise KeyboardInterrupt
                if name(received) == "c":
                    receiver.cancel()

            receiver = asyncio.create_task(stream.deliver(take))
            peer.send(frames("a", "b", "c"))
            await asyncio.wait([receiver])

    run_through_interrupt(scenario())
    assert found == ["a", "b", "c"]


def test_an_error_that_a_cancelled_deliver_has_not_raised_is_raised_next(run, connected):
    async def scenario():
        async with connected() as (stream, peer):
            receiver = asyncio.create_task(stream.deliver(lambda _: receiver.cancel()))
            await asyncio.sleep(0)
            await write(peer, frames("a") + NO_MESSAGE + frames("b"))
            with pytest.raises(asyncio.CancelledError):
                await receiver
            with pytest.raises(MessageError):
                await anext(stream)
            assert name(await anext(stream)) == "b"

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
