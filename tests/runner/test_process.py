"""How the process of rrq-fastwire-runner ends after a signal."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import types
import weakref
from contextlib import suppress

import pytest

from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.runner import serve

from ..commands import OURS, PATIENCE, STOCK, FullPipe, Peer, until
from ..engine import start_serve

posix = pytest.mark.skipif(os.name != "posix", reason="signals and parent processes need POSIX")


@pytest.fixture
def command(command_on_each_loop):
    return command_on_each_loop


ENDINGS = [signal.SIGTERM, signal.SIGINT]

# Handlers that do not end, or leave something behind that does not, each with one of the signals.
STUBBORN = [
    ("swallow", signal.SIGTERM),
    ("block", signal.SIGINT),
    ("leave_stubborn_task", signal.SIGTERM),
    ("leave_thread", signal.SIGINT),
    ("wait_for_thread", signal.SIGTERM),
    ("flood", signal.SIGINT),  # the peer does not read its answer
]

# The ends of log lines that are allowed if a handler does not end, or leaves something running.
COMPLAINTS = (
    "ended by force: a handler, or what it left running, did not end",
    "keeps running after its cancellation",
)


@posix
@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("settings", ["app.handlers", "app.settings"])
def test_a_signal_cancels_and_answers_running_jobs(command, number, settings):
    if settings == "app.settings":
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start("--grace", "600", settings=settings)
    peers = [command.begin(runner.port, "wait") for _ in range(3)]
    peers.append(command.begin(runner.port, "leave_task"))
    assert peers[-1].receive().status == "success"
    idle = command.connect(runner.port)
    idle.ask("kind")
    runner.send_signal(number)
    for peer in peers[:3]:
        answer = peer.receive()
        assert (answer.request_id, answer.type, answer.error.message) == (
            "wait",
            "cancelled",
            "Job cancelled",
        )
    assert [peer.receive() for peer in (*peers, idle)] == [None] * 5
    assert command.wait(runner) == 0
    assert runner.errors() == ""


@posix
def test_a_signal_answers_requests_that_wait_for_handlers_that_block(command):
    (command.folder / "blocks.py").write_text(
        "from app import *\n"
        "async def block(request):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.02)\n"
        "handlers['block'] = block\n"
    )
    runner = command.start("--grace", "600", settings="blocks.handlers")
    peer = command.connect(runner.port)
    peer.socket.sendall(b"".join(peer.request("block", id=str(n)) for n in range(40)))
    answers = {answer.request_id: answer for answer in [peer.receive() for _ in range(40)]}
    assert answers.pop("0").status == "success"
    assert set(answers) == {str(n) for n in range(1, 40)}
    assert {answer.type for answer in answers.values()} == {"cancelled"}
    assert command.wait(runner) == 0


@posix
@pytest.mark.parametrize("number", ENDINGS)
def test_a_runner_that_shuts_down_accepts_no_connection(command, number):
    runner = command.start("--grace", "600")
    peer = command.begin(runner.port, "swallow")
    runner.send_signal(number)
    assert peer.receive().type == "cancelled"
    with pytest.raises(ConnectionRefusedError):
        command.connect(runner.port)


# asyncio drops a connection with a warning if the server is closed before a protocol has it.
# CPython 3.13.0 also raises an exception in __del__.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_arrives_during_the_shutdown_is_closed(run, turns):
    async def scenario():
        loop = asyncio.get_running_loop()
        port = free_port()
        runner = asyncio.create_task(serve({}, f"127.0.0.1:{port}"))
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ConnectionRefusedError), Peer(port).socket:
                    break
                await asyncio.sleep(0.01)
        with Peer(port).socket as peer:  # connected, but not yet accepted by the event loop
            peer.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner
            del runner
            gc.collect()
            with suppress(ConnectionResetError):
                async with asyncio.timeout(PATIENCE):
                    assert await loop.sock_recv(peer, 1) == b""

    run(scenario())


@posix
@pytest.mark.parametrize("number", ENDINGS)
def test_a_cancelled_handler_can_clean_up_during_the_grace(command, number):
    runner = command.start("--grace", "600")
    peer = command.begin(runner.port, "clean_up")
    runner.send_signal(number)
    assert peer.receive().type == "cancelled"  # at once
    assert command.wait(runner) == 0
    assert [file.read_text() for file in command.folder.glob("begun*")] == ["cleaned up"]
    assert runner.errors() == ""


@posix
@pytest.mark.parametrize(("function_name", "number"), STUBBORN)
def test_the_runner_exits_after_the_grace_whatever_a_handler_does(command, function_name, number):
    runner = command.start("--grace", "0.2")
    command.begin(runner.port, function_name)
    runner.send_signal(number)
    assert command.wait(runner) == 0
    for line in runner.errors().splitlines():
        assert line.endswith(COMPLAINTS)


@posix
@pytest.mark.parametrize(("function_name", "number"), STUBBORN)
def test_a_second_signal_kills_the_runner_at_once(command, function_name, number):
    runner = command.start("--grace", "600")
    command.begin(runner.port, function_name)

    def ends():
        runner.send_signal(number)  # repeated, because two signals at the same moment become one
        return runner.poll() is not None

    until(ends, "the end")
    assert runner.returncode == -number
    assert runner.errors() == ""


@posix
def test_two_signals_at_the_same_moment_kill_the_runner(command):
    runner = command.start("--grace", "600")
    command.begin(runner.port, "signal_twice")
    assert command.wait(runner) in (-signal.SIGINT, -signal.SIGTERM)
    assert runner.errors() == ""


@posix
@pytest.mark.parametrize("arguments", [[], ["--no-parent-watch"]], ids=["watch", "no watch"])
@pytest.mark.parametrize("function_name", ["wait_for_thread", "block"])
def test_the_runner_exits_by_default_although_a_handler_does_not_end(
    command, function_name, arguments
):
    runner = command.start(*arguments)
    command.begin(runner.port, function_name)
    runner.send_signal(signal.SIGTERM)
    assert command.wait(runner) == 0


@posix
@pytest.mark.parametrize(
    ("function_name", "number"), [("log", signal.SIGTERM), ("print_a_bit", signal.SIGINT)]
)
def test_the_runner_exits_although_its_output_is_a_full_pipe(command, function_name, number):
    with FullPipe() as pipe:
        runner = command.start(settings="logs.handlers", stdout=pipe, stderr=pipe)
        command.begin(runner.port, function_name)
        runner.send_signal(number)
        assert command.wait(runner) == 0


@posix
def test_functions_of_atexit_may_take_the_rest_of_the_grace(command):
    (command.folder / "slow.py").write_text(
        "from app import *\n"
        "import atexit\n"
        "atexit.register(print, 'left', flush=True)\n"
        "atexit.register(time.sleep, 0.3)\n"
    )
    runner = command.start("--grace", "60", settings="slow.handlers", stdout=subprocess.PIPE)
    runner.terminate()
    assert command.wait(runner) == 0
    assert runner.stdout.read() == "left\n"


@posix
@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_to_another_thread_ends_an_idle_runner(command, number):
    runner = command.start(settings="masked.handlers")
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"
    runner.send_signal(number)
    assert command.wait(runner) == 0


@posix
@pytest.mark.parametrize("module", [OURS, STOCK])
def test_open_files_are_written_at_the_end(command, module):
    pytest.importorskip("rrq", reason="rrq is not installed")
    arguments = ["--grace", "60"] if module == OURS else []
    runner = command.start(*arguments, settings="files.settings", module=module)
    peer = command.connect(runner.port)
    peer.send("write", text="one\n")
    peer.receive()
    peer.socket.close()  # the stock runner waits for it with CPython 3.12 and later
    runner.send_signal(signal.SIGINT)
    assert command.wait(runner) == 0
    assert (command.folder / "notes").read_text() == "one\n"
    if module == STOCK and sys.version_info >= (3, 14):
        return  # a compressed file of a module loses its end
    for name in "packed", "packed in blocks":
        with gzip.open(command.folder / name, "rt") as packed:
            assert packed.read() == "one\n"


@posix
@pytest.mark.parametrize("module", [OURS, STOCK])
def test_children_that_a_handler_forks_end_at_sigterm(command, module):
    pytest.importorskip("rrq", reason="rrq is not installed")
    runner = command.start(settings="app.settings", module=module)
    assert command.connect(runner.port).ask("stop_child") == [-signal.SIGTERM] * 3


@posix
def test_a_signal_handler_of_a_job_may_call_the_one_that_it_has_replaced(command):
    runner = command.start(settings="app.handlers")
    peer = command.connect(runner.port)
    assert peer.ask("stop_child_with_another_handler") == -signal.SIGTERM
    runner.terminate()
    assert command.wait(runner) == 0


@posix
@pytest.mark.parametrize(
    "handler", ["fork_and_exit", "fork_and_exit_in_loop", "fork_and_exit_in_task"]
)
def test_a_child_that_a_handler_forks_can_exit(command, handler):
    options = "--threads", "1", "--grace", "60"
    runner = command.start(*options, settings="app.handlers_with_threads")
    peer = command.begin(runner.port, "wait")
    # From CPython 3.14 on, the event loop of such a child gets no SystemExit of a task.
    is_lost = handler == "fork_and_exit_in_task" and sys.version_info >= (3, 14)
    for status, expected in ((None, 0), (0x103, 3), ("text", 1)):
        assert runner.errors() == "" or is_lost
        peer.send(handler, status=status)
        assert peer.receive().result == (1 if is_lost else expected)
    assert peer.ask("kind") == "rrq_fastwire"
    assert "text" in runner.errors()
    if handler == "fork_and_exit_in_task" and peer.ask("loop") == "uvloop":
        return  # the end of uvloop in the child has removed signals from the parent's epoll set
    runner.terminate()
    assert peer.receive().type == "cancelled"
    assert peer.receive() is None
    assert command.wait(runner) == 0


@posix
def test_a_child_that_a_handler_forks_leaves_the_jobs_of_serve_alone(command):
    port = free_port()
    line = [sys.executable, "-c", SERVE_TWICE, f"127.0.0.1:{port}"]
    program = command.spawn(line, stdout=subprocess.PIPE)
    command.serving(port, lambda: program.poll() is None)
    peer = command.begin(port, "wait")
    peer.send("fork_and_exit_in_task", status=3)
    assert peer.receive().result == 1
    assert peer.ask("kind") == "rrq_fastwire"
    program.terminate()
    assert peer.receive().type == "cancelled"
    assert program.stdout.read() == "served\n"


def test_a_handler_that_cancels_all_tasks_ends_the_runner(command):
    runner = command.start("--grace", "60")
    peer = command.connect(runner.port)
    peer.send("cancel_all_tasks")
    assert peer.receive().type == "success"
    assert command.wait(runner) == 0
    assert runner.errors() == ""


SERVE_TWICE = """
import asyncio, sys
from app import handlers
from rrq_fastwire.cli.runner_process import free_port
from rrq_fastwire.runner import serve

async def main():
    await asyncio.gather(*(serve(handlers, tcp_socket) for tcp_socket in sys.argv[1:]))
    print("served")

asyncio.run(main())
"""


@posix
@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_ends_every_serve_call_of_a_program(command, number):
    ports = [free_port(), free_port()]
    sockets = [f"127.0.0.1:{port}" for port in ports]
    program = command.spawn([sys.executable, "-c", SERVE_TWICE, *sockets], stdout=subprocess.PIPE)
    for port in ports:
        command.serving(port, lambda: program.poll() is None)
    peers = [command.begin(port, "wait") for port in ports]
    program.send_signal(number)
    assert [peer.receive().type for peer in peers] == ["cancelled"] * 2
    assert program.stdout.read() == "served\n"
    assert command.wait(program) == 0


def test_serve_works_outside_the_main_thread(command):
    port = free_port()

    async def who(request):
        return threading.current_thread().name

    job = serve({"who": who}, f"127.0.0.1:{port}", max_jobs=1)
    thread = threading.Thread(target=asyncio.run, args=(job,), name="another")
    thread.start()
    command.serving(port, thread.is_alive)
    assert command.connect(port).ask("who") == "another"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_serve_leaves_no_socket_open_wherever_it_is_cancelled(run):
    async def scenario():
        port = free_port()
        for steps in range(15):
            serving = asyncio.create_task(serve({}, f"127.0.0.1:{port}"))
            for _ in range(steps):
                await asyncio.sleep(0)
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            socket.create_server(("127.0.0.1", port)).close()

    run(scenario())


async def serve_and_cancel(handlers, *names):
    """Runs serve() until these jobs have ended, and cancels it."""
    serving, client = await start_serve(handlers, free_port())
    async with client:
        for name in names:
            assert (await client.execute(name)).status == "success"
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


@posix
def test_the_users_signal_handler_gets_the_number_and_the_frame(run):
    """During serve(), and after it if a job's own signal handler calls the one that it replaced."""
    calls = []

    async def replace(request):
        replaced = signal.getsignal(signal.SIGTERM)

        def handle(number, frame):
            replaced(number, frame)

        signal.signal(signal.SIGTERM, handle)

    async def scenario():
        serving, client = await start_serve({"replace": replace}, free_port())
        async with client:
            os.kill(os.getpid(), signal.SIGTERM)
            await client.execute("replace")
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *arguments: calls.append(arguments))
    try:
        run(scenario())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [(number, type(frame)) for number, frame in calls] == [
        (signal.SIGTERM, types.FrameType)
    ] * 2


@posix
@pytest.mark.parametrize("when", ["before serve()", "in a job"])
def test_signal_handlers_of_the_event_loop_work_during_and_after_serve(run, when):
    async def scenario():
        arrived = asyncio.Event()

        async def add(request):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, arrived.set)

        async def is_noticed():
            arrived.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(arrived.wait(), PATIENCE)

        if when == "before serve()":
            await add(None)
        serving, client = await start_serve({"add": add}, free_port())
        async with client:
            if when == "in a job":
                await client.execute("add")
            await is_noticed()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
        await is_noticed()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    run(scenario())


@posix
def test_a_signal_handler_that_a_job_sets_stays(run):
    def mine(number, frame):
        pass

    async def replace(request):
        signal.signal(signal.SIGTERM, mine)

    before = signal.getsignal(signal.SIGTERM)
    try:
        run(serve_and_cancel({"replace": replace}, "replace"))
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_serve_keeps_nothing_of_a_program_alive():
    async def scenario():
        await serve_and_cancel({})
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(scenario())
    gc.collect()
    assert loop() is None


@posix
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests leave threads
def test_a_process_forked_after_serve_keeps_its_signal_handlers(run):
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        run(serve_and_cancel({}))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        signal.signal(signal.SIGTERM, before)


# Signal handlers that the settings set


@posix
@pytest.mark.parametrize("module", [OURS, STOCK])
@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ("exits", 7),
        ("exits_in_the_loop", 7),
        ("interrupts", 0),
        ("restores_the_default", -signal.SIGTERM),
    ],
)
def test_a_signal_handler_of_the_settings_can_end_the_runner(command, module, settings, status):
    pytest.importorskip("rrq", reason="rrq is not installed")
    arguments = ["--grace", "600"] if module == OURS else []
    runner = command.start(*arguments, settings=f"{settings}.settings", module=module)
    command.begin(runner.port, "wait")
    runner.send_signal(signal.SIGTERM)
    assert command.wait(runner) == status
    assert [file.read_text() for file in command.folder.glob("called")] == ["15"]


@posix
@pytest.mark.parametrize("module", [OURS, STOCK])
@pytest.mark.parametrize("settings", ["only_notes_it", "ignores_it"])
def test_a_signal_handler_of_the_settings_can_keep_the_runner_running(command, module, settings):
    pytest.importorskip("rrq", reason="rrq is not installed")
    runner = command.start(settings=f"{settings}.settings", module=module)
    for _ in range(2):
        runner.send_signal(signal.SIGTERM)
        assert command.connect(runner.port).ask("note") == settings


@posix
def test_a_signal_handler_that_exits_during_a_job_ends_the_runner(command):
    runner = command.start("--grace", "600", settings="exits.handlers")
    waiting = command.begin(runner.port, "wait")
    command.begin(runner.port, "work")
    runner.send_signal(signal.SIGTERM)
    assert waiting.receive().type == "cancelled"
    assert command.wait(runner) == 7


@posix
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(command):
    line = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    runner = command.start(before=line)
    runner.send_signal(signal.SIGINT)
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"
    runner.send_signal(signal.SIGTERM)
    assert command.wait(runner) == 0
