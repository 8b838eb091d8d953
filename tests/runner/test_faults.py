"""Faults of one connection do not affect others: split bytes, resets, other protocols, floods."""

from __future__ import annotations

import asyncio
import random

import pytest

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    ExecutionOutcome,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.streams import open_connection

from ..bad_network import Reset, cut, delay, forward, proxy
from ..faulty_peers import (
    BLOB,
    HEADER,
    WAIT,
    execute_all,
    received,
    request,
    serving,
)


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
def test_delayed_and_split_bytes_give_the_same_answers(run, requests, answers):
    async def scenario():
        async with serving() as served, proxy(served.port, requests, answers) as port:
            await execute_all(port, 60)

    run(scenario())


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


def test_a_half_closed_connection_gets_every_answer_and_is_then_closed(run):
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
def test_a_peer_with_another_protocol_is_disconnected(run, sent):
    async def scenario():
        async with (
            serving() as served,
            await open_connection("127.0.0.1", served.port) as stream,
        ):
            stream.transport.write(WAIT)
            await served.until_running("wait", 1)
            stream.transport.write(sent)
            answers, how = await received(stream)
            # The runner does not read bytes after the fault, so the system may send a reset.
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
        (b'{"type":"cancel","payload":{"job_id":"unknown","request_id":"nothing"}}', None),
        (b'{"type":"request","payload":{"job_id":"j","request_id":"r"}}', "payload.function_name"),
        (BLOB[HEADER:].replace(b'"attempt":1', b'"attempt":"one"'), "payload.context.attempt"),
        (encode_frame(ExecutionOutcome.success("j", "1"))[HEADER:], None),
    ],
)
def test_an_invalid_payload_does_not_close_its_connection(run, payload, answered):
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
