"""--drain: running jobs may end, and no new ones are accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from functools import partial

import pytest

from rrq_fastwire import pack_frame
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.runner.quiet import come_to_rest, drain
from rrq_fastwire.streams import start_server
from rrq_fastwire.streams.quota import quota_of

from ..commands import free_port, until
from ..engine import PATIENCE, start_serve
from ..engine import until as until_async
from ..handlers import echo, forever

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals need POSIX")

HANDLERS = """
from app import *

async def until_told(request):
    begun(request)
    while not Path(request.params["begun"]).with_name("told").exists():
        await asyncio.sleep(0.005)
    return "ended"

async def outlast_the_grace(request):
    begun(request)
    await asyncio.sleep(0.5)
    return "ended"

async def large(request):
    await until_told(request)
    return "x" * 12_000_000

async def in_thread(request):
    begun(request)
    return await asyncio.to_thread(time.sleep, 600)

async def end_the_runner(request):
    if not left:
        left.append(request)
        while not Path(request.params["sent"]).exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.02)
    return "ended"

handlers |= {
    function.__name__: function
    for function in (until_told, outlast_the_grace, large, in_thread, end_the_runner)
}
settings = register(handlers)
"""


@pytest.fixture
def command(command_on_each_loop):
    command = command_on_each_loop
    (command.folder / "drained.py").write_text(HANDLERS)
    return command


def start(command, *arguments, settings="drained.handlers"):
    if settings.endswith("settings"):
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    return command.start(*arguments, settings=settings)


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # connected just before the listening socket was closed
        pass
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("settings", ["drained.handlers", "drained.settings"])
def test_running_jobs_end_while_the_runner_drains(command, number, settings):
    runner = start(command, "--drain", "600", settings=settings)
    peers = [command.begin(runner.port, "until_told") for _ in range(3)]
    runner.send_signal(number)
    until(lambda: is_refused(runner.port), "connections are refused")
    (command.folder / "told").touch()
    assert [peer.receive().result for peer in peers] == ["ended"] * 3
    assert [peer.receive() for peer in peers] == [None] * 3
    assert command.wait(runner) == 0
    assert runner.errors() == ""


def test_connections_without_jobs_are_closed_at_once(command):
    runner = start(command, "--drain", "600")
    idle = command.connect(runner.port)
    idle.ask("kind")
    peer = command.begin(runner.port, "until_told")
    runner.terminate()
    assert idle.receive() is None
    (command.folder / "told").touch()
    assert peer.receive().result == "ended"
    assert command.wait(runner) == 0


@pytest.mark.parametrize("size", [10, 100_000])  # the larger ones wait for the quota of decoding
def test_requests_of_many_connections_that_arrived_before_the_drain_are_run(command, size):
    runner = start(command, "--drain", "600")
    peers = [command.connect(runner.port) for _ in range(8)]
    for peer in peers:
        peer.ask("kind")
    sent = command.folder / "sent"
    for peer in peers:
        peer.send("end_the_runner", sent=str(sent), text="x" * size)
    for peer in peers:
        peer.wait_until_arrived()
    sent.touch()
    assert [peer.receive().result for peer in peers] == ["ended"] * 8
    assert command.wait(runner) == 0


def test_a_request_of_which_a_part_waits_for_its_turn_and_a_part_to_be_read_is_run(run):
    """The runner pauses reading from a stream that waits until others are decoded."""

    async def scenario():
        runner = Runner({"echo": echo})
        quota = quota_of(asyncio.get_running_loop())

        def decode_in_each_iteration():
            quota.use(1_000_000)
            quota.wait(decode_in_each_iteration)

        async with (
            await start_server(runner.on_stream, "127.0.0.1", 0) as server,
            await RunnerClient.connect(*server.sockets[0].getsockname()) as client,
        ):
            await client.execute("echo")
            (connection,) = runner.connections
            for _ in range(1000):
                quota.wait(partial(quota.use, 1_000_000))
            decode_in_each_iteration()
            job = asyncio.create_task(client.execute("echo", {"text": "x" * 99_000}))
            await until_async(lambda: connection.stream.buffered > 90_000)
            await drain(runner, PATIENCE)
            assert (await job).type == "success"
            await runner.stop(grace=PATIENCE)

    run(scenario())


def test_a_request_that_arrives_during_the_drain_is_not_run(command):
    runner = start(command, "--drain", "600")
    peer = command.begin(runner.port, "until_told")
    idle = command.connect(runner.port)
    idle.ask("kind")
    runner.terminate()
    assert idle.receive() is None  # the drain has begun
    late = command.folder / "late"
    peer.send("wait", begun=str(late))
    (command.folder / "told").touch()
    assert peer.receive().result == "ended"
    # The runner closes a connection with an unread request, so the kernel may reset it.
    with suppress(ConnectionResetError):
        assert peer.receive() is None
    assert command.wait(runner) == 0
    assert not late.exists()


def test_a_request_that_arrives_during_the_drain_does_not_cut_off_a_large_answer(command, run):
    runner = start(command, "--drain", "600")
    begun, late = str(command.folder / "begun"), str(command.folder / "late")
    idle = command.connect(runner.port)
    idle.ask("kind")

    async def scenario():
        async with await RunnerClient.connect("127.0.0.1", runner.port) as client:
            job = asyncio.create_task(client.execute("large", {"begun": begun}))
            while not os.path.exists(begun):
                await asyncio.sleep(0.005)
            runner.terminate()
            assert await asyncio.to_thread(idle.receive) is None  # the drain has begun
            ignored = asyncio.create_task(client.execute("wait", {"begun": late}))
            await asyncio.sleep(0)  # lets the request be sent
            client.stream.transport.write(pack_frame(b"{}"))
            await until_async(runner.errors)  # which says that both have been read
            (command.folder / "told").touch()
            assert len((await job).result) == 12_000_000
            with pytest.raises(ConnectionError):
                await ignored

    run(scenario())
    assert command.wait(runner) == 0
    assert not os.path.exists(late)


def test_jobs_that_outlast_the_drain_are_cancelled(command):
    runner = start(command, "--drain", "0.2", "--grace", "600")
    peer = command.begin(runner.port, "clean_up")
    slow = command.begin(runner.port, "wait")
    runner.terminate()
    assert slow.receive().type == "cancelled"
    assert peer.receive().type in ("cancelled", "success")
    assert command.wait(runner) == 0
    assert "draining: 2 jobs have not ended within 0.2 s" in runner.errors()


def test_a_thread_does_not_outlive_drain_and_grace(command):
    runner = start(command, "--drain", "0.2", "--grace", "0.2")
    peer = command.begin(runner.port, "in_thread")
    runner.terminate()
    assert peer.receive().type == "cancelled"
    assert command.wait(runner) == 0


def test_a_handler_that_blocks_does_not_outlive_drain_and_grace(command):
    runner = start(command, "--drain", "0.2", "--grace", "0.2")
    command.begin(runner.port, "block")
    runner.terminate()
    assert command.wait(runner) == 0


def test_a_job_that_outlasts_the_grace_ends_in_the_drain(command):
    runner = start(command, "--drain", "600", "--grace", "0.02")
    peer = command.begin(runner.port, "outlast_the_grace")
    runner.terminate()
    assert peer.receive().result == "ended"
    assert command.wait(runner) == 0


def test_a_thread_that_a_job_has_left_does_not_use_the_drain(command):
    runner = start(command, "--drain", "600")
    command.connect(runner.port).ask("leave_thread")
    runner.terminate()
    assert command.wait(runner) == 0


def test_a_second_signal_kills_a_runner_that_drains(command):
    runner = start(command, "--drain", "600")
    idle = command.connect(runner.port)
    idle.ask("kind")
    command.begin(runner.port, "wait")
    runner.terminate()
    assert idle.receive() is None
    runner.terminate()
    assert command.wait(runner) == -signal.SIGTERM


def test_serve_drains_when_it_is_cancelled(run, caplog):
    caplog.set_level(logging.INFO, "rrq_fastwire")

    async def scenario():
        begun, told = asyncio.Event(), asyncio.Event()

        async def until_told(request):
            begun.set()
            await told.wait()
            return "ended"

        serving, client = await start_serve({"f": until_told}, free_port(), drain=600)
        async with client:
            job = asyncio.create_task(client.execute("f"))
            await begun.wait()
            serving.cancel()
            await until_async(lambda: "draining" in caplog.text)
            told.set()
            assert (await job).result == "ended"
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(scenario())
    assert caplog.messages[1:] == ["draining: 1 running jobs have 600 s to end"]


@pytest.mark.parametrize("drain", [0, 600])
def test_serve_answers_its_jobs_although_it_is_cancelled_twice(run, drain):
    async def scenario():
        serving, client = await start_serve({"forever": forever}, free_port(), drain=drain)
        async with client:
            job = asyncio.create_task(client.execute("forever"))
            assert (await client.execute("not found")).type == "handler_not_found"
            serving.cancel()
            await asyncio.sleep(0)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert (await job).type == "cancelled"

    run(scenario())


def test_a_drain_without_jobs_ends_at_once_and_is_not_logged(run, caplog):
    caplog.set_level(logging.INFO, "rrq_fastwire")

    async def scenario():
        serving, client = await start_serve({"echo": echo}, free_port(), drain=600)
        async with client, asyncio.timeout(PATIENCE):
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    run(scenario())
    assert "draining" not in caplog.text


def test_a_runner_reads_again_if_its_rest_is_cancelled(run):
    """A signal does this to a runner that waits to be idle for its restart."""

    async def scenario():
        runner = Runner({"forever": forever, "echo": echo})
        async with (
            await start_server(runner.on_stream, "127.0.0.1", 0) as server,
            await RunnerClient.connect(*server.sockets[0].getsockname()) as client,
        ):
            held = asyncio.create_task(client.execute("forever", job_id="held"))
            await client.execute("echo")
            resting = asyncio.create_task(come_to_rest(runner, PATIENCE))
            await asyncio.sleep(0)
            resting.cancel()
            async with asyncio.timeout(PATIENCE):
                assert (await client.execute("echo", {"still": "reads"})).result == {
                    "still": "reads"
                }
                await client.cancel("held")
                assert (await held).type == "cancelled"
            await runner.stop(grace=PATIENCE)

    run(scenario())
