"""Requests on a connection: valid, refused and invalid ones, and how they are answered."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    OutcomeType,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from ..engine import (
    call,
    cancel,
    malformed,
    request,
    serving,
    until,
)
from ..handlers import (
    echo,
    forever,
)
from ..stock import (
    Registry,
    StockRequest,
    needs_rrq,
    registry,
    rrq,
)


def test_a_result_is_answered_with_the_ids_of_its_request(run):
    answers = call(run, {"echo": echo}, *(request("echo", {"n": n}, id=f"é{n}") for n in range(60)))
    for n in range(60):
        assert answers[f"é{n}"] == ExecutionOutcome.success(f"job of é{n}", f"é{n}", {"n": n})


def test_a_request_of_another_protocol_version_is_answered_and_not_run(run):
    answers = call(
        run,
        {"echo": echo},
        request("echo", id="1", protocol_version="1"),
        request("echo", id="", protocol_version=""),
        request("echo", id="2"),
    )
    for id in ("1", ""):
        message = "Unsupported protocol version"
        assert answers[id] == ExecutionOutcome.failure(f"job of {id}", id, message)
    assert answers["2"].type is OutcomeType.SUCCESS


@needs_rrq
@pytest.mark.parametrize("name", ["missing", "", "echo ", "é", "__class__", "'"])
def test_a_job_without_a_handler_is_answered_in_the_words_of_the_stock_runner(run, name):
    theirs = asyncio.run(
        rrq.runner.PythonRunner(job_registry=Registry(), worker_id=None).execute(
            StockRequest.model_validate(json.loads(request(name)[4:])["payload"])
        )
    )
    for handlers in ({"echo": echo}, registry({"echo": echo})):
        answer = call(run, handlers, request(name))["r"]
        assert answer.type is OutcomeType.HANDLER_NOT_FOUND
        assert answer.error.message == theirs.error.message


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_a_request_beyond_the_limit_in_flight_is_answered_busy(run, limit):
    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()
            return request.request_id

        options = {} if limit is None else {"max_in_flight": limit}
        most = limit or 64
        async with serving({"wait": wait}, **options) as connect:
            one, other = await connect(), await connect()
            one.send(*(request("wait", id=str(n)) for n in range(most + 2)))
            for id, answer in (await one.answers(2)).items():
                message = "Runner busy: too many in-flight requests"
                assert answer == ExecutionOutcome.failure(f"job of {id}", id, message)
                assert int(id) >= most
            # Another connection has its own limit.
            other.send(*(request("wait", id=str(n)) for n in range(most)))
            other.send(request("wait", id="extra"))
            assert (await other.answer()).error.message == message
            held.set()
            for peer in (one, other):
                for id, answer in (await peer.answers(most)).items():
                    assert answer.result == id
            one.send(*(request("wait", id=f"again {n}") for n in range(most)))
            assert all(each.error is None for each in (await one.answers(most)).values())

    run(running())


def test_a_second_request_of_an_id_in_flight_is_refused_and_the_first_goes_on(run):
    async def running():
        held, count = asyncio.Event(), itertools.count()

        async def wait(request):
            number = next(count)
            await held.wait()
            return number

        async with serving({"wait": wait}) as connect:
            one, other = await connect(), await connect()
            one.send(request("wait"), request("wait"))
            refused = await one.answer()
            assert refused.error.message == "Request already in flight"
            other.send(request("wait"))  # the same id on another connection is another request
            one.send(request("wait"))
            assert await one.answer() == refused
            held.set()
            assert (await one.answer()).result == 0
            assert (await other.answer()).result == 1
            one.send(request("wait"))
            assert (await one.answer()).result == 2

    run(running())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (malformed(context=None), "payload.context: expected an object, got null"),
        (malformed(without=["context"]), "payload.context: expected an object, got nothing"),
        (malformed(function_name=1), "payload.function_name: expected a string, got 1"),
        (malformed(params=[1]), "payload.params: expected an object, got an array"),
        (malformed(protocol_version=2), "payload.protocol_version: expected a string, got 2"),
        (malformed(job_id=7), None),
        (malformed(without=["request_id"]), None),
        (malformed("cancel", hard_kill="yes"), None),
        (malformed("cancel", protocol_version=None), None),
        (malformed("response", status="done"), None),
        (malformed("Request"), None),
        (malformed(["request"]), None),
        (pack_frame(b"{"), None),
        (pack_frame(b"\xff"), None),
        (pack_frame(b"[]"), None),
        (pack_frame(b'\xef\xbb\xbf{"type":"request"}'), None),
        (pack_frame(b'{"type":"request","payload":null}'), None),
    ],
    ids=lambda value: value[4:40].decode(errors="replace") if type(value) is bytes else "",
)
def test_an_invalid_message_is_answered_if_it_names_a_request_and_the_connection_goes_on(
    run, frame, message
):
    async def running():
        async with serving({"echo": echo, "forever": forever}) as connect:
            peer = await connect()
            peer.send(frame, request("echo", id="next"))
            answers = await peer.answers(1 if message is None else 2)
            assert answers.pop("next").type is OutcomeType.SUCCESS
            if message is not None:
                assert answers == {"r": ExecutionOutcome.failure("j", "r", message)}
            # A request with the same ids that is in flight still gets its own answer.
            peer.send(request("forever", job_id="j"), frame, request("echo", id="next"))
            assert list(await peer.answers(1)) == ["next"]
            peer.send(cancel("j"))
            assert (await peer.answer()).type is OutcomeType.CANCELLED

    run(running())


def test_a_response_sent_to_the_runner_is_ignored(run):
    async def running():
        async with serving({"echo": echo, "forever": forever}) as connect:
            peer = await connect()
            peer.send(
                request("forever", id="1", job_id="j"),
                encode_frame(ExecutionOutcome.success("j", "1")),
                encode_frame(ExecutionOutcome.cancelled("j", "1")),
                request("echo", id="2"),
            )
            assert list(await peer.answers(1)) == ["2"]
            peer.send(cancel("j"))
            assert (await peer.answer()).type is OutcomeType.CANCELLED

    run(running())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\x01",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ],
    ids=["HTTP", "empty frame", "4 GiB", "a byte over 16 MiB", "TLS"],
)
def test_invalid_bytes_close_only_their_own_connection(run, garbage):
    async def running():
        held = asyncio.Event()

        async def wait(request):
            await held.wait()

        async with serving({"wait": wait}) as connect:
            bad, good = await connect(), await connect()
            good.send(request("wait"))
            bad.send(request("wait", id="before"), garbage)
            assert (await bad.answer()).type is OutcomeType.CANCELLED
            assert await bad.ended()
            await bad.close()
            held.set()
            assert (await good.answer()).type is OutcomeType.SUCCESS
            again = await connect()
            again.send(request("wait"))
            assert (await again.answer()).type is OutcomeType.SUCCESS

    run(running())


@pytest.mark.parametrize("half", [b"\0\0", b"\0\0\1\0", b"\0\0\1\0{"], ids=repr)
def test_an_end_inside_a_frame_cancels_the_jobs_of_the_connection(run, half):
    async def running():
        async with serving({"forever": forever}) as connect:
            peer = await connect()
            peer.send(request("forever"), half)
            peer.end()
            assert (await peer.answer()).type is OutcomeType.CANCELLED
            assert await peer.ended()
            await peer.close()

    run(running())


def test_the_end_of_a_connection_cancels_its_jobs_and_no_others(run):
    async def running():
        ended, held = [], asyncio.Event()

        async def wait(request):
            try:
                await held.wait()
            finally:
                ended.append(request.request_id)

        async with serving({"wait": wait}) as connect:
            half, gone, stays = await connect(), await connect(), await connect()
            half.send(request("wait", id="1"), request("wait", id="2"))
            gone.send(request("wait", id="3"))
            stays.send(request("wait", id="4"), request("missing"))
            await stays.answer()
            half.end()
            cancelled = await half.answers(2)
            for id in ("1", "2"):
                assert cancelled[id] == ExecutionOutcome.cancelled(f"job of {id}", id)
            assert await half.ended()
            await half.close()
            gone.abort()
            await until(lambda: sorted(ended) == ["1", "2", "3"])
            held.set()
            assert (await stays.answer()).type is OutcomeType.SUCCESS

    run(running())


def test_a_readiness_probe_that_sends_nothing_is_closed(run):
    async def running():
        async with serving({"echo": echo}) as connect:
            probe = await connect()
            probe.end()
            assert await probe.ended()

    run(running())


def test_requests_held_back_by_unread_answers_are_not_run_at_the_shutdown(run):
    began = []

    async def large(request):
        return "x" * 2**23

    async def count(request):
        began.append(request.request_id)

    async def running():
        runner = Runner({"large": large, "count": count})
        server = await start_server(runner.on_stream, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, limit=2**10)
        writer.write(request("large", id="large"))
        await until(lambda: any(each.stream.congested for each in runner.connections))
        writer.write(b"".join(request("count", id=str(number)) for number in range(50)))
        await until(lambda: any(each.stream.buffered for each in runner.connections))
        server.close()
        await runner.stop(0.1)
        writer.transport.abort()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(running())
    assert began == []


def test_requests_that_are_held_back_do_not_run_when_their_connection_is_lost(run, monkeypatch):
    # Otherwise requests that arrive after 5 ms of handlers would be taken, to be run later.
    monkeypatch.setattr("rrq_fastwire.runner.engine._ITERATION_SECONDS", 600)
    ran, streams = [], []

    async def blob(request):
        return "x" * 300_000

    async def note(request):
        ran.append(request.request_id)

    runner = Runner({"blob": blob, "note": note})

    def on_stream(stream):
        streams.append(stream)
        return runner.on_stream(stream)

    async def running():
        async with await start_server(on_stream, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            _, writer = await asyncio.open_connection(*address)
            writer.transport.pause_reading()
            blobs = b"".join(request("blob", id=str(number)) for number in range(60))
            writer.write(blobs)
            await until(lambda: streams and streams[0].congested)
            notes = b"".join(request("note", id=f"n{number}") for number in range(9))
            before_last = len(blobs + notes)
            writer.write(notes + request("note", {"text": "x" * before_last}, id="last"))
            await until(lambda: streams[0].buffered > before_last)  # so all notes have arrived
            writer.transport.abort()
            await until(lambda: not runner.connections)
        assert ran == []

    run(running())
