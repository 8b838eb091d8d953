"""RunnerClient: every call gets its own answer, or an exception."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import traceback
from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from rrq_fastwire import (
    CancelRequest,
    EncodeError,
    ExecutionOutcome,
    FrameError,
    MessageError,
    OutcomeType,
    TruncatedFrameError,
    encode_frame,
)
from rrq_fastwire import client as module
from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import MessageStream, start_server


@pytest.fixture
def meet(connected):
    """Yields a client, and the stream at its other end, on which the test plays the runner."""

    @asynccontextmanager
    async def meet():
        async with connected() as (stream, peer), RunnerClient(stream) as client:
            loop = asyncio.get_running_loop()
            _, runner = await loop.connect_accepted_socket(MessageStream, peer)
            try:
                yield client, runner
            finally:
                runner.close()
                await runner.wait_closed()

    return meet


@asynccontextmanager
async def running(**handlers):
    """Runs this package's runner, and yields a client."""
    runner = Runner(handlers)
    server = await start_server(runner.on_stream, "127.0.0.1", 0)
    try:
        async with await RunnerClient.connect(*server.sockets[0].getsockname()) as client:
            yield client
    finally:
        server.close()
        await runner.stop(1)


def start(client, count=1, **options):
    return [asyncio.create_task(client.execute("f", {"n": n}, **options)) for n in range(count)]


async def requests(runner, count):
    return [await anext(runner) for _ in range(count)]


def success(request, result=None):
    return ExecutionOutcome.success(request.job_id, request.request_id, result)


async def echo(request):
    return request.params


async def wait_forever(request):
    await asyncio.Event().wait()


# Requests and answers


def test_each_call_gets_its_own_answer_in_any_order(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 20)
            for request in reversed(await requests(runner, 20)):
                runner.send_nowait(success(request, request.params["n"]))
            outcomes = await asyncio.gather(*calls)
            assert [outcome.result for outcome in outcomes] == list(range(20))
            assert client.unmatched == 0

    run(scenario())


def test_a_request_has_the_values_that_execute_is_given(run, meet):
    given = {
        "attempt": 3,
        "queue_name": "q",
        "trace_context": {"traceparent": "t"},
        "correlation_context": {"tenant": "é"},
        "worker_id": "w",
    }

    async def scenario():
        async with meet() as (client, runner):
            calls = [
                asyncio.create_task(client.execute("plain")),
                asyncio.create_task(
                    client.execute("full", {"x": 1}, timeout=5, job_id="j", request_id="r", **given)
                ),
            ]
            plain, full = await requests(runner, 2)
            for request in (plain, full):
                runner.send_nowait(success(request))
                assert request.context.job_id == request.job_id
            await asyncio.gather(*calls)
            assert (plain.function_name, plain.params) == ("plain", {})
            assert plain.job_id != plain.request_id
            assert (plain.context.attempt, plain.context.deadline) == (1, None)
            assert (full.function_name, full.params) == ("full", {"x": 1})
            assert (full.job_id, full.request_id) == ("j", "r")
            assert {name: getattr(full.context, name) for name in given} == given
            assert full.context.deadline - full.context.enqueue_time == timedelta(seconds=5)

    run(scenario())


def test_an_empty_id_is_sent_as_it_is(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            (call,) = start(client, job_id="", request_id="")
            (request,) = await requests(runner, 1)
            assert (request.job_id, request.request_id) == ("", "")
            runner.send_nowait(success(request, "answer"))
            assert (await call).result == "answer"

    run(scenario())


def test_answers_to_unknown_requests_are_counted_and_dropped(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            (call,) = start(client)
            (request,) = await requests(runner, 1)
            runner.send_nowait(ExecutionOutcome.success(request.job_id, "unknown"))
            runner.send_nowait(ExecutionOutcome.success(request.job_id, None))
            runner.send_nowait(request)
            runner.send_nowait(CancelRequest(job_id=request.job_id))
            runner.send_nowait(success(request, "first"))
            runner.send_nowait(success(request, "second"))
            assert (await call).result == "first"
            (call,) = start(client)
            (request,) = await requests(runner, 1)
            runner.send_nowait(success(request))
            await call
            assert client.unmatched == 5

    run(scenario())


def test_a_wrong_answer_fails_the_call_that_it_belongs_to(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 2)
            first, second = await requests(runner, 2)
            wrong = encode_frame(success(first)).replace(b'"success"', b'"succeed"')
            assert b'"succeed"' in wrong
            runner.transport.write(b"\0\0\0\2no" + wrong + wrong)
            runner.send_nowait(success(second))
            with pytest.raises(MessageError) as caught:
                await calls[0]
            assert caught.value.request_id == first.request_id
            await calls[1]
            assert client.unmatched == 2

    run(scenario())


def test_a_request_id_cannot_be_in_flight_twice(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            for _ in range(2):
                (call,) = start(client, request_id="r")
                (request,) = await requests(runner, 1)
                with pytest.raises(ValueError, match="'r' is in flight already"):
                    await client.execute("f", request_id="r")
                runner.send_nowait(success(request, "first"))
                assert (await call).result == "first"

    run(scenario())


class OwnEquality(str):
    """A str that is equal only to itself."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def test_a_request_id_is_matched_by_its_text(run, meet):
    async def scenario():
        async with asyncio.timeout(10), meet() as (client, runner):
            (call,) = start(client, request_id=OwnEquality("r"))
            (request,) = await requests(runner, 1)
            with pytest.raises(ValueError, match="'r' is in flight already"):
                await client.execute("f", request_id=OwnEquality("r"))
            runner.send_nowait(success(request, "answer"))
            assert (await call).result == "answer"

    run(scenario())


def test_a_request_that_cannot_be_sent_leaves_the_client_as_it_was(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            with pytest.raises(EncodeError):
                await client.execute("f", {"x": object()}, request_id="r")
            (call,) = start(client, request_id="r")
            runner.send_nowait(success(*await requests(runner, 1)))
            await call

    run(scenario())


# Timeouts and cancels


def test_a_runner_answers_at_the_deadline(run):
    async def scenario():
        async with running(wait=wait_forever) as client:
            outcome = await client.execute("wait", timeout=0.05)
            assert outcome.type is OutcomeType.TIMEOUT

    run(scenario())


def test_a_call_times_out_if_the_runner_never_answers(run, meet, monkeypatch):
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.01)

    async def scenario():
        async with meet() as (client, runner):
            with pytest.raises(TimeoutError):
                await client.execute("f", timeout=0.01, job_id="j", request_id="r")
            request, cancel = await requests(runner, 2)
            assert cancel == CancelRequest(job_id="j", request_id="r")
            runner.send_nowait(success(request))
            (call,) = start(client)
            runner.send_nowait(success(*await requests(runner, 1)))
            await call
            assert client.unmatched == 1

    run(scenario())


def test_a_call_times_out_if_the_runner_never_reads(run, meet, monkeypatch):
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.01)

    async def scenario():
        async with meet() as (client, runner):
            calls = [
                asyncio.create_task(client.execute("f", {"x": "." * 2**20})) for _ in range(20)
            ]
            async with asyncio.timeout(30):
                while not client.stream.transport.get_write_buffer_size():
                    await asyncio.sleep(0.001)
            with pytest.raises(TimeoutError):
                await client.execute("late", timeout=0.01)
            # The call that timed out was never sent.
            for request in await requests(runner, 20):
                assert request.function_name == "f"
                runner.send_nowait(success(request))
            await asyncio.gather(*calls)

    run(scenario())


def test_cancelling_a_call_cancels_the_job(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            kept, given_up = start(client, 2)
            first, second = await requests(runner, 2)
            given_up.cancel()
            assert await anext(runner) == CancelRequest(
                job_id=second.job_id, request_id=second.request_id
            )
            assert given_up.cancelled()
            runner.send_nowait(success(second))
            runner.send_nowait(success(first, "kept"))
            assert (await kept).result == "kept"
            assert client.unmatched == 1

    run(scenario())


def test_cancel_ends_one_request_or_all_of_a_job(run):
    async def scenario():
        async with running(wait=wait_forever) as client:
            calls = {
                request_id: asyncio.create_task(
                    client.execute("wait", job_id=job_id, request_id=request_id)
                )
                for job_id, request_id in [("j", "1"), ("j", "2"), ("j", "3"), ("k", "4")]
            }
            await asyncio.sleep(0)
            await client.cancel("j", "2")
            assert (await calls.pop("2")).type is OutcomeType.CANCELLED
            assert not any(call.done() for call in calls.values())
            await client.cancel("j")
            for request_id in ("1", "3"):
                assert (await calls[request_id]).type is OutcomeType.CANCELLED
            assert not calls["4"].done()
            await client.cancel("k")
            await calls["4"]

    run(scenario())


# The end of a connection


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda client, runner: runner.close(), ConnectionError),
        (lambda client, runner: runner.transport.write_eof(), ConnectionError),
        (lambda client, runner: client.stream.close(), ConnectionError),
        (lambda client, runner: client.stream.transport.abort(), ConnectionError),
        (lambda client, runner: runner.transport.write(b"HTTP/1.1 400 Bad Request"), FrameError),
        (
            lambda client, runner: (runner.transport.write(b"\0\0\0\7{"), runner.close()),
            TruncatedFrameError,
        ),
    ],
    ids=["closed", "half-closed", "closed here", "aborted here", "another protocol", "truncated"],
)
def test_a_lost_connection_fails_calls_in_flight_and_later_ones(run, meet, end, error):
    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 10, timeout=1000)
            answered, *_ = await requests(runner, 10)
            runner.send_nowait(success(answered))
            await calls[0]
            end(client, runner)
            for call in calls[1:]:
                with pytest.raises(error):
                    await call
            with pytest.raises((ConnectionError, FrameError)):
                await client.execute("late")
            with pytest.raises(ConnectionError):
                await client.cancel("j")

    run(scenario())


def test_each_call_gets_an_exception_of_its_own(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 3)
            await requests(runner, 3)
            runner.transport.write(b"\0\0\0\7{")
            runner.close()
            errors = await asyncio.gather(*calls, return_exceptions=True)
            errors += await asyncio.gather(*start(client, 2), return_exceptions=True)
            assert len({id(error) for error in errors}) == 5
            assert {(type(error), str(error)) for error in errors} == {
                (TruncatedFrameError, "expected a frame of 11 bytes, got 5")
            }
            sizes = {len(traceback.extract_tb(error.__traceback__)) for error in errors[:3]}
            assert len(sizes) == 1

    run(scenario())


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("a bug")])
def test_a_failure_of_the_client_fails_calls_in_flight_and_later_ones(
    run, meet, monkeypatch, error
):
    def fail(*_):
        raise error

    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 2)
            first, _ = await requests(runner, 2)
            monkeypatch.setattr(client, "_handle", fail)
            runner.send_nowait(success(first))
            async with asyncio.timeout(30):
                for call in [*calls, *start(client)]:
                    with pytest.raises(ConnectionError, match="stopped receiving") as caught:
                        await call
                    assert caught.value.__cause__ is error

    run(scenario())


@pytest.mark.parametrize("iterations", [0, 5])
def test_a_program_that_cancels_all_its_other_tasks_does_not_wait_forever(run, meet, iterations):
    async def scenario():
        async with meet() as (client, _):
            for _ in range(iterations):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            async with asyncio.timeout(30):
                with pytest.raises(ConnectionError, match="stopped receiving"):
                    await client.execute("f")

    run(scenario())


def test_closing_fails_calls_in_flight(run, meet):
    async def scenario():
        async with meet() as (client, runner):
            calls = start(client, 3)
            await requests(runner, 3)
            await client.close()
            await client.close()
            for call in calls:
                with pytest.raises(ConnectionError):
                    await call
            assert [message async for message in runner] == []

    run(scenario())


async def start_a_call_that_is_not_read(client):
    call = asyncio.create_task(client.execute("f", {"x": "." * 12 * 2**20}))
    while not client.stream.transport.get_write_buffer_size():
        await asyncio.sleep(0)
    return call


def test_closing_does_not_wait_for_a_runner_that_does_not_read(run, meet, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.01)

    async def scenario():
        async with meet() as (client, _):
            async with asyncio.timeout(30):
                call = await start_a_call_that_is_not_read(client)
                await client.close()
                with pytest.raises(ConnectionError):
                    await call

    run(scenario())


def test_closing_ends_the_connection_although_it_is_cancelled(run, meet, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 1000)

    async def scenario():
        async with meet() as (client, _):
            async with asyncio.timeout(30):
                call = await start_a_call_that_is_not_read(client)
                closing = asyncio.create_task(client.close())
                await asyncio.sleep(0)
                closing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing
                with pytest.raises(ConnectionError):
                    await call

    run(scenario())


def test_connecting_without_a_listener_raises_os_error(run):
    async def scenario():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                await RunnerClient.connect(*unused.getsockname())

    run(scenario())


# Many calls


async def call_many(client):
    """Makes 10,000 calls, 64 at a time, and checks that each is answered with its own params."""
    left = iter(range(10_000))
    seen = Counter()

    async def lane():
        for number in left:
            outcome = await client.execute("echo", {"value": number}, timeout=60)
            assert outcome.result == {"value": number}
            seen[number] += 1

    async with asyncio.TaskGroup() as lanes:
        for _ in range(64):
            lanes.create_task(lane())
    assert seen == Counter(range(10_000))
    assert client.unmatched == 0


def test_each_of_ten_thousand_calls_of_this_runner_gets_its_own_answer(run):
    async def scenario():
        async with running(echo=echo) as client:
            await call_many(client)

    run(scenario())


STOCK_SETTINGS = """
from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings

async def echo(request):
    return request.params

registry = Registry()
registry.register("echo", echo)
settings = PythonRunnerSettings(registry=registry)
"""


def test_each_of_ten_thousand_calls_of_the_stock_runner_gets_its_own_answer(run, tmp_path):
    command = shutil.which("rrq-runner", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("rrq-runner is not installed")
    (tmp_path / "stock_settings.py").write_text(STOCK_SETTINGS)

    async def scenario():
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            command,
            "--settings",
            "stock_settings.settings",
            "--tcp-socket",
            f"127.0.0.1:{port}",
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        try:
            async with asyncio.timeout(60):
                while True:
                    try:
                        client = await RunnerClient.connect("127.0.0.1", port)
                        break
                    except ConnectionRefusedError:
                        assert process.returncode is None
                        await asyncio.sleep(0.05)
            async with client:
                await call_many(client)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    run(scenario())


def test_large_requests_and_answers_do_not_wait_for_each_other(run):
    """Both ends have more to send than the sockets can buffer, and must read meanwhile."""
    params = {"x": "." * 2**20}

    async def scenario():
        async with running(echo=echo) as client:
            async with asyncio.timeout(60):
                calls = [client.execute("echo", params) for _ in range(64)]
                outcomes = await asyncio.gather(*calls)
            assert [outcome.result == params for outcome in outcomes] == [True] * 64

    run(scenario())
