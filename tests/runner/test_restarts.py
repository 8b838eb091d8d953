"""What a restart of the runner ends, and what it does not carry over to the next program."""

from __future__ import annotations

import os
import signal

import pytest

from rrq_fastwire import encode_frame

from ..commands import until
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

async def exit_at_signal(request):
    def leave(number, frame):
        raise SystemExit(7)
    signal.signal(signal.SIGTERM, leave)

handlers |= {
    each.__name__: each
    for each in (
        who, modes_of_sockets, leave_zombie, count_children, block_signal, set_alarm, sigterm, fork_at_exit,
        exit_at_signal,
    )
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


def test_a_signal_handler_that_exits_ends_the_runner_during_a_restart(command):
    runner = start(command, "--lifespan", "restarted.slow_to_leave")
    command.connect(runner.port).ask("exit_at_signal")
    until((command.folder / "leaving").exists, "the lifespan is ending")
    runner.terminate()
    assert command.wait(runner) == 7


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
