"""Handlers that block the event loop do not delay ready answers and cancels for long."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from contextlib import asynccontextmanager

import pytest

from rrq_fastwire import (
    CancelRequest,
    MessageDecoder,
    encode_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from ..requests import new_request

# Seconds to wait for something that sends no event. They pass only if something is broken.
PATIENCE = 10

# Longer than the handlers of one read may run before the event loop continues.
LONG_SECONDS = 0.006


class Peer:
    """A connection to the runner. It does not use the event loop, so that handlers can use it too."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, PATIENCE)
        self._decoder = MessageDecoder()

    def send(self, *messages):
        self.socket.sendall(b"".join(map(encode_frame, messages)))

    def answer(self):
        """The next answer; TimeoutError if none comes."""
        while (answer := next(self._decoder, None)) is None:
            data = self.socket.recv(2**16)
            assert data, "the connection has ended"
            self._decoder.feed(data)
        return answer

    def answers(self, count):
        """The next answers, received in a thread, so that the event loop can run."""
        return asyncio.to_thread(lambda: [self.answer() for _ in range(count)])


@asynccontextmanager
async def serving(handlers, connections):
    """Yields a runner, and some peers that it has accepted."""
    runner = Runner(handlers)
    async with await start_server(runner.on_stream, "127.0.0.1", 0) as server:
        peers = [Peer(server.sockets[0].getsockname()) for _ in range(connections)]
        async with asyncio.timeout(PATIENCE):
            while len(runner.connections) < connections:
                await asyncio.sleep(0.001)
        try:
            yield runner, *peers
        finally:
            await runner.stop(PATIENCE)
            for peer in peers:
                peer.socket.close()


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_ready_answer_is_sent_before_a_handler_that_blocks_starts(run, repeats):
    async def running():
        received = []

        async def quick(request):
            pass

        async def block(request):
            while len(received) < request.params["answers"]:
                received.append(peer.answer().request_id)
            time.sleep(LONG_SECONDS)
            received_all.set()

        received_all = asyncio.Event()
        async with serving({"quick": quick, "block": block}, 1) as (_, peer):
            answers = 0
            for number in range(repeats):
                blocking = new_request("block", id=f"block {number}")
                blocking.params = {"answers": answers + 3}
                peer.send(*(new_request("quick", id=f"{number} {at}") for at in range(3)), blocking)
                async with asyncio.timeout(PATIENCE):
                    await received_all.wait()
                received_all.clear()
                answer = (await peer.answers(1))[0]
                assert answer.request_id == f"block {number}"
                assert answer.status == "success", answer.error
                answers += 3
            assert received == [f"{number} {at}" for number in range(repeats) for at in range(3)]

    run(running())


@pytest.mark.parametrize("with_request_id", [True, False])
@pytest.mark.parametrize("seconds", [LONG_SECONDS, LONG_SECONDS / 10])
@pytest.mark.parametrize("connections", [1, 7])
def test_a_cancel_reaches_a_request_whose_handler_has_not_started(
    run, with_request_id, seconds, connections
):
    began = []

    async def running():
        async def wait(request):
            began.append(request.request_id)
            await asyncio.Event().wait()

        async def block(request):
            if request.request_id == "0":
                canceller.send(
                    CancelRequest(
                        job_id="job of waiting", request_id="waiting" if with_request_id else None
                    )
                )
            time.sleep(seconds)

        handlers = {"block": block, "wait": wait}
        async with serving(handlers, 1 + connections) as (_, canceller, *peers):
            sent = dict.fromkeys(peers, 0)
            for number in range(60):
                peer = peers[number % connections]
                peer.send(new_request("block", id=str(number)))
                sent[peer] += 1
            peers[-1].send(new_request("wait", id="waiting"))
            sent[peers[-1]] += 1
            answers = [await peer.answers(count) for peer, count in sent.items()]
            types = {each.request_id: each.type for each in itertools.chain(*answers)}
            assert types.pop("waiting") == "cancelled"
            assert set(types.values()) == {"success"}
            assert len(types) == 60

    run(running())
    assert began == []


def test_requests_whose_handlers_have_not_started_are_answered_at_the_shutdown(run):
    began = []

    async def running():
        async def block(request):
            began.append(request.request_id)
            if request.request_id == "0":
                ending.append(asyncio.create_task(runner.stop(PATIENCE)))
            time.sleep(LONG_SECONDS)

        ending = []
        async with serving({"block": block}, 1) as (runner, peer):
            peer.send(*(new_request("block", id=str(n)) for n in range(64)))
            answers = await peer.answers(64)
            await ending[0]
            cancelled = {each.request_id for each in answers if each.type == "cancelled"}
            assert began == ["0"]
            assert cancelled == {str(n) for n in range(1, 64)}

    run(running())


def test_requests_that_wait_to_be_decoded_are_answered_at_the_shutdown(run):
    async def running():
        async def block(request):
            if not ending:
                ending.append(asyncio.create_task(runner.stop(PATIENCE)))
            time.sleep(LONG_SECONDS)

        ending = []
        async with serving({"block": block}, 8) as (runner, *peers):
            for peer in peers:
                peer.send(new_request("block", {"text": "x" * 50_000}))
            answers = [await peer.answers(1) for peer in peers]
            await ending[0]
            assert [answer.type for (answer,) in answers].count("success") == 1
            assert [answer.type for (answer,) in answers].count("cancelled") == 7

    run(running())


def test_large_requests_of_other_connections_are_not_decoded_while_jobs_wait_to_start(run):
    jobs = []

    async def running():
        async def block(request):
            jobs.append(runner.count_jobs())
            time.sleep(LONG_SECONDS)

        async with serving({"block": block}, 5) as (runner, *peers):
            for peer in peers:
                peer.send(new_request("block", {"text": "x" * 50_000}))
            for peer in peers:
                assert (await peer.answers(1))[0].status == "success"

    run(running())
    assert max(jobs) <= 2
