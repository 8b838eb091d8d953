"""serve(): each of its options takes effect. What the options do in detail is tested elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time

import pytest

from rrq_fastwire import ExecutionRequest
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import serve

from ..commands import free_port
from ..engine import PATIENCE, own_address, start_serve, until
from ..handlers import echo, fail
from ..stock import needs_rrq, registry


@contextlib.asynccontextmanager
async def serving(handlers, **options):
    """Runs serve(), and yields a client and the port."""
    port = free_port()
    task, client = await start_serve(handlers, port, **options)
    async with client, asyncio.timeout(PATIENCE):
        yield client, port
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@needs_rrq
@pytest.mark.parametrize(("options", "native"), [({}, False), ({"native_messages": True}, True)])
def test_native_messages(run, options, native):
    async def is_native(request):
        return isinstance(request, ExecutionRequest)

    async def scenario():
        handlers = registry({"is_native": is_native})
        async with serving(handlers, **options) as (client, _):
            assert (await client.execute("is_native")).result is native

    run(scenario())


def test_threads(run):
    def is_in_main_thread(request):
        return threading.current_thread() is threading.main_thread()

    async def scenario():
        async with serving({"ask": is_in_main_thread}, threads=1) as (client, _):
            assert (await client.execute("ask")).result is False

    run(scenario())


def test_slow_callback(run, caplog):
    async def block(request):
        time.sleep(0.1)

    async def scenario():
        async with serving({"block": block}, slow_callback=0.01) as (client, _):
            await client.execute("block")

    run(scenario())
    assert "block" in caplog.text


def test_middleware_and_on_error(run):
    calls = []

    async def note(request, next_function):
        calls.append(request.function_name)
        return await next_function(request)

    def on_error(error, request):
        calls.append((request.function_name, str(error)))

    async def scenario():
        options = {"middleware": [note], "on_error": on_error}
        async with serving({"fail": fail}, **options) as (client, _):
            await client.execute("fail")

    run(scenario())
    assert calls == ["fail", ("fail", "failed")]


@pytest.mark.parametrize(("options", "most"), [({"max_in_flight": 2}, 2), ({}, 64)])
def test_max_in_flight(run, options, most):
    async def scenario():
        told = asyncio.Event()

        async def wait(request):
            await told.wait()

        async with serving({"wait": wait}, **options) as (client, _):
            jobs = [asyncio.create_task(client.execute("wait")) for _ in range(most + 1)]
            refused, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            told.set()
            types = [outcome.type for outcome in await asyncio.gather(*jobs)]
            assert types.count("success") == most
            assert refused == {jobs[types.index("failure")]}

    run(scenario())


async def is_closed(port, sent=b"", host="127.0.0.1"):
    """Sends bytes on a new connection, and returns whether the runner closes it."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


def test_max_connections(run, caplog):
    async def scenario():
        async with serving({"echo": echo}, max_connections=1) as (client, port):
            await client.execute("echo")
            assert await is_closed(port)

    run(scenario())
    assert "connection refused (max_connections)" in caplog.text


def test_max_frame_size(run):
    async def scenario():
        async with serving({}, max_frame_size=1000) as (_, port):
            assert await is_closed(port, (1001).to_bytes(4, "big"))

    run(scenario())


def test_header_timeout(run, caplog):
    async def scenario():
        async with serving({"echo": echo}, header_timeout=0.2) as (_, port):
            assert await is_closed(port)

    run(scenario())
    assert "connection refused (header_timeout)" in caplog.text


def test_allow_remote_and_allow_from(run, caplog):
    caplog.set_level(logging.INFO, "rrq_fastwire")
    address = own_address()

    async def scenario():
        port = free_port()
        task = asyncio.create_task(
            serve(
                {"echo": echo}, f"0.0.0.0:{port}", allow_remote=True, allow_from=["198.51.100.0/24"]
            )
        )
        await until(lambda: "serving on 0.0.0.0" in caplog.text)
        async with await RunnerClient.connect("127.0.0.1", port) as client:
            assert (await client.execute("echo")).type == "success"
        assert await is_closed(port, host=address)
        assert "connection refused (address)" in caplog.text
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(scenario())


def test_max_rss(run):
    with pytest.raises(ValueError, match=r"max_rss: the (process has .* bytes|resident memory)"):
        run(serve({}, f"127.0.0.1:{free_port()}", max_rss=1000))


TESTED_ELSEWHERE = {"handlers", "tcp_socket", "grace", "drain", "lifespan", "max_jobs", "metrics"}


def test_each_option_is_tested():
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    options = set(inspect.signature(serve).parameters) - TESTED_ELSEWHERE
    assert [name for name in options if name not in tests] == []
