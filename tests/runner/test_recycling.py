"""--max-jobs and --max-rss: the runner restarts, and its peers do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import os
import re
import signal
import socket
import sys
import threading

import pytest

from rrq_fastwire import PROTOCOL_VERSION
from rrq_fastwire.runner.admission import Admission
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.runner.recycle import LimitError, Recycling, with_jitter
from rrq_fastwire.runner.renewal import Renewal
from rrq_fastwire.streams import start_server

from ..commands import free_port, until
from ..engine import start_serve
from ..engine import until as until_async

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is replaced on POSIX only")

HANDLERS = """
from app import *
import atexit, contextlib, logging, os, resource, uuid

logging.basicConfig(level=logging.INFO, format="%(message)s")
me = str(uuid.uuid4())
atexit.register(print, "left", flush=True)

async def who(request):
    return [me, os.getpid(), os.getcwd(), os.environ.get("CHANGED"), sorted(os.sys.orig_argv)]

async def change(request):
    os.chdir("/")
    os.environ["CHANGED"] = "yes"

async def until_told(request):
    begun(request)
    while not Path(request.params["begun"]).with_name("told").exists():
        await asyncio.sleep(0.005)
    return me

async def note(request):
    with Path(__file__).with_name("notes").open("a") as notes:
        print(request.params["job"], file=notes)
    return me

async def exhaust(request):
    # Takes all file descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, most))
    with contextlib.suppress(OSError):
        while True:
            left.append(os.open("/dev/null", os.O_RDONLY))
    return me

async def exhaust_when_told(request):
    await until_told(request)
    await exhaust(request)
    while not Path(__file__).with_name("released").exists():
        await asyncio.sleep(0.005)
    return me

async def grow(request):
    left.append(bytearray(200_000_000))
    return me

handlers |= {
    "who": who, "change": change, "until_told": until_told, "note": note, "grow": grow,
    "exhaust": exhaust, "exhaust_when_told": exhaust_when_told,
}
settings = register(handlers)
"""


@pytest.fixture
def command(command_on_each_loop):
    command = command_on_each_loop
    (command.folder / "renewed.py").write_text(HANDLERS)
    return command


def ask_until_another(peer, before):
    """Sends jobs until the runner has restarted, and returns the last answer."""
    answers = []

    def is_another():
        answers.append(peer.ask("who"))
        return answers[-1][0] != before

    until(is_another, "the runner has restarted")
    return answers[-1]


@pytest.mark.parametrize("settings", ["renewed.handlers", "renewed.settings"])
def test_the_runner_restarts_after_a_number_of_jobs_and_keeps_its_connections(command, settings):
    if settings.endswith("settings"):
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start("--max-jobs", "4", settings=settings, stdout=-1)
    peer, idle = command.connect(runner.port), command.connect(runner.port)
    first = peer.ask("who")
    peer.ask("change")
    assert idle.ask("who")[0] == first[0]
    peer.ask("kind")
    # The process id, the directory, the environment and the command line are the same.
    assert ask_until_another(peer, first[0])[1:] == first[1:]
    assert idle.ask("who")[0] != first[0]
    assert command.connect(runner.port).ask("kind") in ("rrq", "rrq_fastwire")
    assert runner.stdout.readline() == "left\n"  # atexit functions ran before the restart
    runner.terminate()
    assert command.wait(runner) == 0
    assert "restarting once idle: the maximum number of jobs is reached" in runner.errors()


def test_open_files_are_written_at_each_restart(command):
    runner = command.start("--max-jobs", "2", "--grace", "60", settings="files.handlers")
    peer = command.connect(runner.port)
    processes, texts = set(), []

    def has_restarted_twice():
        texts.append(f"{len(texts)}\n")
        peer.send("write", text=texts[-1])
        processes.add(peer.receive().result)
        return len(processes) == 3

    until(has_restarted_twice, "two restarts")
    runner.terminate()
    assert command.wait(runner) == 0
    assert (command.folder / "notes").read_text() == "".join(texts)
    with gzip.open(command.folder / "packed", "rt") as packed:
        assert packed.read() == "".join(texts)


def test_refused_requests_do_not_count_towards_max_jobs(command):
    runner = command.start("--max-jobs", "4", settings="renewed.handlers")
    peer = command.connect(runner.port)
    first = peer.ask("who")
    refused = peer.request("who").replace(f'"{PROTOCOL_VERSION}"'.encode(), b'"0"')
    for _ in range(10):
        peer.socket.sendall(refused)
        assert peer.receive().error.message == "Unsupported protocol version"
    assert peer.ask("who") == first


def test_no_request_is_lost_or_run_twice_during_many_restarts(command):
    runner = command.start("--max-jobs", "3", settings="renewed.handlers")
    peers = [command.connect(runner.port) for _ in range(8)]
    answers = []

    def work(number, peer):
        asked = 0
        while asked < 10 or len(set(answers)) < 3:
            peer.send("note", job=f"{number} {asked}")
            answers.append(peer.receive().result)
            asked += 1

    threads = [threading.Thread(target=work, args=each) for each in enumerate(peers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) >= 80
    noted = (command.folder / "notes").read_text().splitlines()
    assert len(set(noted)) == len(noted) == len(answers)


def test_requests_wait_for_a_second_at_most_while_a_job_delays_the_restart(command):
    runner = command.start("--max-jobs", "2", settings="renewed.handlers")
    running = command.begin(runner.port, "until_told")
    other = command.connect(runner.port)
    me = other.ask("who")[0]
    other.ask("who")
    other.send("who")  # waits for a second at most, not until the job ends
    assert other.receive().result[0] == me
    (command.folder / "told").touch()
    assert running.receive().result == me
    ask_until_another(other, me)


def test_between_two_attempts_to_restart_connections_are_served_and_watched(command):
    options = "--max-jobs", "1", "--header-timeout", "0.5"
    runner = command.start(*options, settings="renewed.handlers")
    running = command.begin(runner.port, "until_told")
    me = command.connect(runner.port).ask("who")[0]
    until(lambda: "restarting once idle" in runner.errors(), "accepting is paused")
    assert command.connect(runner.port).ask("who")[0] == me  # after a second
    assert command.connect(runner.port).receive() is None  # it has sent nothing in time
    (command.folder / "told").touch()
    assert running.receive().result == me


def test_requests_that_wait_for_the_restart_are_not_too_late_for_the_header_timeout(command):
    options = "--max-jobs", "1", "--header-timeout", "0.5"
    runner = command.start(*options, settings="renewed.handlers")
    running = command.begin(runner.port, "until_told")
    waits = command.connect(runner.port)
    me = command.connect(runner.port).ask("who")[0]
    until(lambda: "restarting once idle" in runner.errors(), "reading is paused")
    waits.send("who")  # read when the pause of a second is over
    assert waits.receive().result[0] == me
    (command.folder / "told").touch()
    assert running.receive().result == me


def test_half_a_message_delays_the_restart_until_the_rest_arrives(command):
    runner = command.start("--max-jobs", "1", settings="renewed.handlers")
    half, peer = command.connect(runner.port), command.connect(runner.port)
    half.socket.sendall(b"\0\0")
    me = peer.ask("who")[0]
    until(lambda: "restarting once idle" in runner.errors(), "the runner tries to restart")
    for _ in range(100):  # the first ones may still be read before the attempt
        assert peer.ask("who")[0] == me
    half.socket.sendall(b"\0\2{}")  # completes a frame that is not a valid message
    ask_until_another(peer, me)
    assert half.ask("kind") == "rrq_fastwire"


@pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is known on Linux only")
def test_the_runner_restarts_when_it_uses_too_much_memory(command):
    runner = command.start("--max-rss", "180M", settings="renewed.handlers")
    peer = command.connect(runner.port)
    me = peer.ask("grow")
    ask_until_another(peer, me)
    assert "bytes of memory exceed the maximum" in runner.errors()


@pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is known on Linux only")
def test_a_limit_below_what_an_idle_runner_has_gets_one_line_and_status_1(command):
    done = command.run("--max-rss", "5M", settings="app.handlers")
    assert re.fullmatch(
        r"rrq-fastwire-runner: --max-rss: the process has .*allow more than 5242880.*\n",
        done.stderr,
    )
    assert done.returncode == 1


def test_sigterm_ends_a_runner_that_waits_for_a_job_before_its_restart(command):
    runner = command.start("--max-jobs", "1", "--grace", "600", settings="renewed.handlers")
    peer = command.begin(runner.port, "until_told")
    command.connect(runner.port).ask("kind")
    until(lambda: "restarting" in runner.errors(), "the limit is noticed")
    runner.send_signal(signal.SIGTERM)
    assert peer.receive().type == "cancelled"
    assert command.wait(runner) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_without_a_file_descriptor_the_runner_goes_on(command):
    runner = command.start("--max-jobs", "1", settings="renewed.handlers")
    running = command.begin(runner.port, "until_told")
    peer = command.connect(runner.port)
    me = peer.ask("exhaust")
    until(lambda: "cannot end or restart now: [Errno 24]" in runner.errors(), "the restart fails")
    (command.folder / "told").touch()
    assert running.receive().result == me
    assert peer.ask("who")[0] == me


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_without_a_file_descriptor_the_runner_listens_again(command):
    runner = command.start("--max-jobs", "1", settings="renewed.handlers")
    running = command.begin(runner.port, "exhaust_when_told")
    peer = command.connect(runner.port)
    me = peer.ask("who")[0]
    until(lambda: "restarting once idle" in runner.errors(), "the server is closed")
    (command.folder / "told").touch()
    assert peer.ask("who")[0] == me  # after a second at most
    (command.folder / "released").touch()
    assert running.receive().result == me


def test_the_runner_exits_if_its_settings_fail_at_the_restart(command):
    runner = command.start("--max-jobs", "1", settings="renewed.handlers")
    (command.folder / "renewed.py").write_text("raise RuntimeError('broken')")
    command.connect(runner.port).ask("kind")
    assert command.wait(runner) == 1
    assert "RuntimeError: broken" in runner.errors()


def test_a_limit_of_memory_is_refused_where_memory_is_not_known(run, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")

    async def scenario():
        with pytest.raises(LimitError, match="known on Linux only"):
            Recycling(max_rss=2**40)

    run(scenario())


def test_a_limit_just_above_the_present_memory_is_accepted(run, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("rrq_fastwire.runner.recycle._MEMORY", tmp_path / "statm")
    (tmp_path / "statm").write_text("1 100")
    now = 100 * os.sysconf("SC_PAGE_SIZE")

    async def scenario():
        for _ in range(100):
            recycling = Recycling(max_rss=now + 1000)
            assert not recycling.due.done()
            recycling.stop()

    run(scenario())


def test_memory_is_watched_although_it_could_not_be_read_once(run, monkeypatch, tmp_path):
    monkeypatch.setattr("rrq_fastwire.runner.recycle._POLL_SECONDS", 0.001)
    monkeypatch.setattr("sys.platform", "linux")
    memory = tmp_path / "statm"
    monkeypatch.setattr("rrq_fastwire.runner.recycle._MEMORY", memory)

    async def scenario():
        memory.write_text("1 1")
        recycling = Recycling(max_rss=2**30)
        memory.unlink()
        await asyncio.sleep(0.01)
        memory.write_text(f"1 {2**30}")
        async with asyncio.timeout(30):
            assert "bytes of memory exceed the maximum" in await recycling.due
        recycling.stop()

    run(scenario())


@pytest.mark.parametrize("attempt", range(5))
def test_connections_accepted_at_the_last_moment_are_known_before_a_restart(run, attempt):
    async def scenario():
        runner = Runner({})
        server = await start_server(runner.on_stream, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        due = asyncio.get_running_loop().create_future()
        due.set_result("for this test")
        renewal = Renewal([due], None, server, None)
        with contextlib.ExitStack() as clients:

            def connect():
                for _ in range(60):
                    clients.enter_context(socket.create_connection(address))

            connecting = threading.Thread(target=connect)
            connecting.start()
            await until_async(lambda: runner.connections)
            await renewal.wait(runner, Admission())
            known = len(runner.connections)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(runner.connections) == known
            await asyncio.to_thread(connecting.join)
        renewal.close()
        await runner.stop(grace=1)

    run(scenario())


def test_jitter_is_a_tenth_at_most_and_below_the_limit():
    assert {with_jitter(9) for _ in range(100)} == {9}
    numbers = {with_jitter(1000) for _ in range(2000)}
    assert 900 <= min(numbers) < 920
    assert 980 < max(numbers) <= 1000


def test_serve_returns_after_a_number_of_jobs(run, caplog):
    caplog.set_level(logging.INFO, "rrq_fastwire")

    async def answer(request):
        return "answer"

    async def scenario():
        port = free_port()
        serving, client = await start_serve({"f": answer}, port, max_jobs=2)
        async with client, asyncio.timeout(30):
            assert (await client.execute("f")).result == "answer"
            assert not serving.done()
            assert (await client.execute("f")).result == "answer"
            await serving
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    run(scenario())
    # serve() has no options of a command line, and restarts nothing.
    assert "ending once idle: the maximum number of jobs is reached" in caplog.messages
