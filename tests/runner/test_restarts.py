"""What a restart of the runner ends, what it carries over to the next program, and what not."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rrq_fastwire import encode_frame

from ..commands import PARENT, PATIENCE, Orphan, until
from ..requests import new_request

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is replaced on POSIX only")

HANDLERS = """
from app import *
import atexit, contextlib, socket, subprocess, threading

folder = Path(__file__).parent
me = time.monotonic_ns()

async def who(request):
    return me

async def modes_of_sockets(request):
    modes = []
    for number in range(100):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
            if copy.family == socket.AF_INET:
                modes.append(
                    {"inheritable": os.get_inheritable(number), "blocking": os.get_blocking(number)}
                )
    return modes

async def leave_zombie(request):
    subprocess.Popen(["true"])

async def count_children(request):
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "none"

async def block_signal(request):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

async def set_alarm(request):
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

async def sigterm(request):
    return signal.getsignal(signal.SIGTERM).name

async def fork_at_exit(request):
    def fork():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            (folder / "child has ended").touch()
    atexit.register(fork)

def leave(number, frame):
    raise SystemExit(7)

async def exit_at_signal(request):
    signal.signal(signal.SIGTERM, leave)

def wait_at_exit():
    (folder / "leaving").touch()
    while not (folder / "told").exists():
        time.sleep(0.005)

async def exit_at_signal_while_waiting_at_exit(request):
    atexit.register(wait_at_exit)
    signal.signal(signal.SIGTERM, leave)

async def let_the_loop_handle_signals_and_wait_at_exit(request):
    atexit.register(wait_at_exit)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)

async def raise_keyboard_interrupt(request):
    signal.signal(signal.SIGTERM, signal.default_int_handler)

async def change_process(request):
    os.umask(0o777)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

async def process(request):
    umask = os.umask(0)
    os.umask(umask)
    return [umask, signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, signal.getsignal(signal.SIGCHLD).name]

async def remove_directory(request):
    os.rmdir(os.getcwd())

async def lose_python(request):
    sys.executable = "/nothing"

handlers |= {
    name: each for name, each in list(globals().items()) if asyncio.iscoroutinefunction(each)
}

@contextlib.asynccontextmanager
async def slow_to_leave():
    yield
    (folder / "leaving").touch()
    while not (folder / "told").exists():
        await asyncio.sleep(0.005)
    print("the lifespan has ended", flush=True)

@contextlib.asynccontextmanager
async def fails_at_the_end():
    yield
    raise RuntimeError("cannot close")

@contextlib.asynccontextmanager
async def exits_at_the_end():
    yield
    sys.exit(7)

atexit.register(print, "atexit", flush=True)
"""


@pytest.fixture
def command(command_on_each_loop):
    (command_on_each_loop.folder / "restarted.py").write_text(HANDLERS)
    return command_on_each_loop


def start(command, *options, **more):
    return command.start("--max-jobs", "1", *options, settings="restarted.handlers", **more)


def ask_before_a_restart(command, runner, function_name):
    """Sends a job. Returns a connection and the answer once the runner has restarted after it."""
    peer = command.connect(runner.port)
    answer = peer.ask(function_name)
    first = peer.ask("who")
    until(lambda: peer.ask("who") != first, "the runner has restarted")
    return peer, answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_signal_during_a_restart_ends_the_runner_after_its_lifespan(command, number):
    runner = start(command, "--lifespan", "restarted.slow_to_leave", stdout=-1)
    command.connect(runner.port).ask("kind")
    until((command.folder / "leaving").exists, "the lifespan is ending")
    runner.send_signal(number)
    (command.folder / "told").touch()
    assert runner.stdout.read() == "the lifespan has ended\natexit\n"
    assert command.wait(runner) == 0


@pytest.mark.parametrize(
    ("function_name", "status"), [("exit_at_signal", 7), ("raise_keyboard_interrupt", 0)]
)
def test_a_signal_handler_that_exits_ends_the_runner_during_a_restart(
    command, function_name, status
):
    runner = start(command, "--lifespan", "restarted.slow_to_leave")
    command.connect(runner.port).ask(function_name)
    until((command.folder / "leaving").exists, "the lifespan is ending")
    runner.terminate()
    assert command.wait(runner) == status


def test_a_lifespan_that_exits_ends_a_runner_that_restarts(command):
    runner = start(command, "--lifespan", "restarted.exits_at_the_end")
    command.connect(runner.port).ask("kind")
    assert command.wait(runner) == 7


@pytest.mark.parametrize(
    ("function_name", "loop"),
    [
        ("exit_at_signal_while_waiting_at_exit", "auto"),
        # uvloop does not remove its signal handlers when it is closed, so they do nothing.
        ("let_the_loop_handle_signals_and_wait_at_exit", "asyncio"),
    ],
)
def test_a_signal_in_an_atexit_function_ends_a_runner_that_restarts(command, function_name, loop):
    runner = start(command, "--grace", "60", "--loop", loop)
    command.connect(runner.port).ask(function_name)
    until((command.folder / "leaving").exists, "an atexit function is running")
    runner.terminate()
    (command.folder / "told").touch()
    assert command.wait(runner) == 0


# Starts the parent of a runner, and adopts the runner when its parent ends.
ADOPTER = """
import contextlib, ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.Popen(sys.argv[1:])
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
def test_a_runner_whose_parent_ends_during_a_restart_ends(command):
    silent = "from restarted import *\nsys.stdout = open(os.devnull, 'w')\n"
    (command.folder / "silent.py").write_text(silent)
    options = "--max-jobs", "1", "--grace", "60", "--lifespan", "silent.slow_to_leave"
    before = [sys.executable, "-c", ADOPTER, sys.executable, "-c", PARENT]
    with Orphan(command, *options, settings="silent.handlers", before=before) as adopter:
        runner = int(adopter.parent.stdout.readline())
        parent = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
        command.serving(adopter.port, lambda: adopter.parent.poll() is None)
        command.connect(adopter.port).ask("kind")
        until((command.folder / "leaving").exists, "the lifespan is ending")
        os.kill(parent, signal.SIGKILL)
        (command.folder / "told").touch()
        try:
            assert adopter.gone(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.kill(runner, signal.SIGKILL)


def test_a_lifespan_that_fails_at_its_end_does_not_prevent_the_restart(command):
    runner = start(command, "--lifespan", "restarted.fails_at_the_end")
    ask_before_a_restart(command, runner, "kind")
    assert "the lifespan raised an exception at its end" in runner.errors()
    assert "RuntimeError: cannot close" in runner.errors()


def test_requests_do_not_wait_long_for_a_thread_that_a_job_has_left(command):
    runner = start(command)
    peer = command.connect(runner.port)
    params = {"begun": str(command.folder / "begun")}
    peer.socket.sendall(encode_frame(new_request("wait_for_thread", params, deadline=0.1)))
    assert peer.receive().type == "timeout"
    peer.socket.sendall(encode_frame(new_request("kind", deadline=4.5)))
    assert peer.receive().type == "success"


WAITS_AT_A_RESTART = """
from restarted import *
if (folder / "restarting").exists():
    (folder / "importing").touch()
    while not (folder / "told").exists():
        time.sleep(0.005)
"""


def test_a_connection_that_is_made_during_a_restart_is_served(command):
    (command.folder / "slow.py").write_text(WAITS_AT_A_RESTART)
    runner = command.start("--max-jobs", "1", settings="slow.handlers")
    (command.folder / "restarting").touch()
    me = command.connect(runner.port).ask("who")
    until((command.folder / "importing").exists, "the next program is starting")
    peer = command.connect(runner.port)
    peer.send("who")
    (command.folder / "told").touch()
    assert peer.receive().result != me


def test_new_connections_do_not_take_the_places_of_those_that_a_restart_keeps(command):
    (command.folder / "slow.py").write_text(WAITS_AT_A_RESTART)
    options = "--max-jobs", "1", "--max-connections", "2"
    runner = command.start(*options, settings="slow.handlers")
    (command.folder / "restarting").touch()
    kept = [command.connect(runner.port) for _ in range(2)]
    kept[0].ask("kind")
    until((command.folder / "importing").exists, "the next program is starting")
    others = [command.connect(runner.port) for _ in range(2)]
    (command.folder / "told").touch()
    for peer in kept:
        assert peer.ask("kind") == "rrq_fastwire"
    for peer in others:
        assert peer.receive() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_signal_while_the_next_program_starts_ends_it_at_once(command, number):
    (command.folder / "slow.py").write_text(WAITS_AT_A_RESTART)
    runner = command.start("--max-jobs", "1", settings="slow.handlers")
    (command.folder / "restarting").touch()
    command.connect(runner.port).ask("kind")
    until((command.folder / "importing").exists, "the next program is starting")
    runner.send_signal(number)
    assert command.wait(runner) == 0


def test_a_restart_undoes_what_a_job_has_changed_in_the_process(command):
    runner = start(command)
    peer = command.connect(runner.port)
    before = peer.ask("process")
    ask_before_a_restart(command, runner, "change_process")
    assert peer.ask("process") == before


def test_a_runner_restarts_although_its_directory_was_deleted(command, tmp_path):
    (tmp_path / "deleted").mkdir()
    before = ["/bin/sh", "-c", f'cd "{tmp_path}/deleted" && exec "$@"', "sh"]
    runner = start(command, before=before)
    ask_before_a_restart(command, runner, "remove_directory")
    ask_before_a_restart(command, runner, "kind")


def test_a_restart_that_fails_gets_one_line_and_status_1(command):
    runner = start(command)
    command.connect(runner.port).ask("lose_python")
    assert command.wait(runner) == 1
    assert runner.errors().splitlines()[-1] == (
        "rrq-fastwire-runner: cannot restart: [Errno 2] No such file or directory: '/nothing'"
    )


def test_sockets_are_not_inheritable_and_do_not_block_after_a_restart_either(command):
    runner = start(command)
    peer, modes = ask_before_a_restart(command, runner, "modes_of_sockets")
    for each in modes + peer.ask("modes_of_sockets"):
        assert each == {"inheritable": False, "blocking": False}


def test_children_that_have_ended_are_reaped(command):
    runner = start(command)
    peer, _ = ask_before_a_restart(command, runner, "leave_zombie")
    assert peer.ask("count_children") == "none"


def test_signals_that_a_job_has_blocked_are_not_blocked_in_the_next_program(command):
    runner = start(command)
    ask_before_a_restart(command, runner, "block_signal")
    runner.terminate()
    command.wait(runner)


def test_a_timer_of_a_job_does_not_kill_the_next_program(command):
    runner = start(command)
    ask_before_a_restart(command, runner, "set_alarm")


def test_a_child_that_an_atexit_function_forks_does_not_become_a_runner(command):
    runner = start(command)
    command.connect(runner.port).ask("fork_at_exit")
    until((command.folder / "child has ended").exists, "the child has ended")


def test_an_ignored_signal_stays_ignored(command):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        runner = start(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    peer, first = ask_before_a_restart(command, runner, "sigterm")
    assert peer.ask("sigterm") == first == "SIG_IGN"
