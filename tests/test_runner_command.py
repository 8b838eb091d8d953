"""rrq-fastwire-runner as its user sees it: what it accepts, what it says of mistakes, how it ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rrq_fastwire
from rrq_fastwire import ExecutionContext, ExecutionRequest, MessageDecoder, encode_frame
from rrq_fastwire.runner import serve
from rrq_fastwire.runner.server import parse_tcp_socket

posix = pytest.mark.skipif(os.name != "posix", reason="signals and parents are POSIX's here")

# What is promised to happen within a second, or at once, is given this long before a test fails.
PATIENCE = 10

APP = '''
import asyncio, os, threading, time
from pathlib import Path

def begun(request):
    """Tells the test that the handler runs."""
    Path(request.params["begun"]).touch()

async def kind(request):
    return type(request).__module__.partition(".")[0]

async def wait(request):
    begun(request)
    await asyncio.Event().wait()

async def swallow(request):
    begun(request)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def clean_up(request):
    begun(request)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.2)
        Path(request.params["begun"]).write_text("cleaned up")

async def block(request):
    begun(request)
    time.sleep(600)

async def leave_task(request):
    left.append(asyncio.create_task(wait(request)))

async def leave_stubborn_task(request):
    left.append(asyncio.create_task(swallow(request)))

async def leave_thread(request):
    threading.Thread(target=time.sleep, args=(600,)).start()
    begun(request)

async def wait_for_thread(request):
    thread = asyncio.to_thread(time.sleep, 600)
    asyncio.get_running_loop().call_soon(begun, request)
    await thread

async def flood(request):
    asyncio.get_running_loop().call_soon(begun, request)
    return "x" * 15_000_000

async def outlive_parent(request):
    parent = os.getppid()
    begun(request)
    while os.getppid() == parent:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.5)  # half as long again as a runner that watches has
    return "still here"

def not_async(request):
    pass

left = []
number = 1
handlers = {
    handler.__name__: handler
    for handler in (
        kind, wait, swallow, clean_up, block, leave_task, leave_stubborn_task, leave_thread, wait_for_thread,
        flood, outlive_parent,
    )
}
handlers_with_a_mistake = {"report": not_async}
try:
    from rrq.registry import Registry
    from rrq.runner_settings import PythonRunnerSettings
except ModuleNotFoundError:
    pass
else:
    settings = PythonRunnerSettings(registry=Registry())
    for name, handler in handlers.items():
        settings.registry.register(name, handler)
    settings_with_a_mistake = PythonRunnerSettings(registry=Registry())
    settings_with_a_mistake.registry.register("report", not_async)
'''

MODULES = {
    "app.py": APP,
    "package/__init__.py": "",
    "package/app.py": "from app import *",
    "raises.py": "raise RuntimeError('no database')",
    "raises_at_length.py": r"raise RuntimeError('no database\n\n  tried 127.0.0.1\n')",
    "breaks.py": "settings = (",
    "hangs.py": "import os, time; open(os.environ['BEGUN'], 'w').close(); time.sleep(600)",
}


def until(ready, what):
    """Polls for something that sends no event."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)


def free_port():
    """A port that nobody listens on, and that the system gives to no outgoing connection meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Peer:
    """A connection to a runner, without asyncio."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.decoder = MessageDecoder()

    def send(self, function_name, **params):
        context = ExecutionContext(
            job_id="j", attempt=1, enqueue_time=datetime.now(timezone.utc), queue_name="q"
        )
        request = ExecutionRequest(
            request_id=function_name,
            job_id="j",
            function_name=function_name,
            params=params,
            context=context,
        )
        self.socket.sendall(encode_frame(request))

    def receive(self):
        """The next answer; None where the runner has ended the stream."""
        while True:
            for message in self.decoder:
                return message
            data = self.socket.recv(65536)
            if not data:
                self.decoder.feed_eof()
                return None
            self.decoder.feed(data)

    def ask(self, function_name):
        self.send(function_name)
        return self.receive().result


class Command:
    """Starts `python -m rrq_fastwire.runner` in a folder of settings modules, and ends what it started."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "BEGUN": str(folder / "hangs"),
        }
        self._numbers = count()
        self._processes = []
        self._peers = []
        for name, text in MODULES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text))

    @staticmethod
    def line(*arguments, settings="app.handlers", tcp_socket="127.0.0.1:9000"):
        """The command line; an argument that is None is left out."""
        named = {"--settings": settings, "--tcp-socket": tcp_socket}
        given = [word for pair in named.items() if pair[1] is not None for word in pair]
        return [sys.executable, "-m", "rrq_fastwire.runner", *given, *arguments]

    def run(self, *arguments, **options):
        """Runs the command to its end."""
        return subprocess.run(
            self.line(*arguments, **options),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def spawn(self, line, **options):
        process = subprocess.Popen(line, env=self.environment, text=True, **options)
        self._processes.append(process)
        return process

    def start(self, *arguments, host="127.0.0.1", **options):
        """Starts a runner, and waits until it serves."""
        port = free_port()
        errors = self.folder / f"stderr {next(self._numbers)}"
        with errors.open("w") as file:
            process = self.spawn(
                self.line(*arguments, tcp_socket=f"{host}:{port}", **options), stderr=file
            )
        process.port = port
        process.errors = errors.read_text
        self.serving(port, lambda: process.poll() is None)
        return process

    @staticmethod
    def serving(port, alive):
        """Waits until a port is listened on."""

        def connects():
            assert alive(), "the runner has ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                return False
            return True

        until(connects, f"a runner on port {port}")

    def connect(self, port):
        peer = Peer(port)
        self._peers.append(peer)
        return peer

    def begin(self, port, function_name):
        """Sends a job on a connection of its own, and waits until its handler runs."""
        peer = self.connect(port)
        begun = self.folder / f"begun {next(self._numbers)}"
        peer.send(function_name, begun=str(begun))
        until(begun.exists, f"the handler {function_name} runs")
        return peer

    @staticmethod
    def wait(process):
        """The exit status of a process that is about to end."""
        start = time.monotonic()
        status = process.wait(PATIENCE)
        print(f"ended after {time.monotonic() - start:.2f} s")
        return status

    def close(self):
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for peer in self._peers:
            peer.socket.close()


@pytest.fixture
def command(tmp_path):
    command = Command(tmp_path)
    yield command
    command.close()


@pytest.fixture(scope="module")
def command_for_errors(tmp_path_factory):
    """One folder for all of the commands that end by themselves."""
    return Command(tmp_path_factory.mktemp("settings"))


# What it is given


@pytest.mark.parametrize(
    ("settings", "arguments", "given"),
    [
        ("app.handlers", [], "rrq_fastwire"),
        ("app:handlers", [], "rrq_fastwire"),
        ("package.app.handlers", [], "rrq_fastwire"),
        ("package.app:handlers", [], "rrq_fastwire"),
        ("app.settings", [], "rrq"),
        ("app:settings", [], "rrq"),
        ("app.settings", ["--native-messages"], "rrq_fastwire"),
    ],
)
def test_settings_are_named_with_a_dot_or_a_colon(command, settings, arguments, given):
    if "settings" in settings:
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start(*arguments, settings=settings)
    assert command.connect(runner.port).ask("kind") == given


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        return str(error)


SOCKETS = [
    "127.0.0.1:9000",
    " 127.0.0.1:9000\n",
    "127.0.0.2:1",
    "localhost:65535",
    "LOCALHOST:9000",
    "[::1]:9000",
    "[localhost]:9000",
    "[127.0.0.1]:9000",
    "[[::1]:9000",
    "::1:9000",
    "0:0:0:0:0:0:0:1:9000",
    "[0:0:0:0:0:0:0:1]:9000",
    "[::ffff:127.0.0.1]:9000",
    "[::1%lo]:9000",
    "",
    " ",
    ":",
    "[",
    "[]:",
    "[::1]",
    "[::1]9000",
    "::1",
    "127.0.0.1",
    "9000",
    ":9000",
    "[]:9000",
    "example.com:9000",
    "127.1:9000",
    "0.0.0.0:9000",
    "192.168.0.1:9000",
    "[::]:9000",
    "[2001:db8::1]:9000",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:-1",
    "127.0.0.1:+9000",
    "127.0.0.1: 9000",
    "127.0.0.1:9_000",
    "127.0.0.1:0009",
    "127.0.0.1:0x10",
    "127.0.0.1:9000.0",
    "127.0.0.1:65536",
    "127.0.0.1:http",
    "127.0.0.1:\u0669\u0669",
    "127.0.0.1:9000:9001",
]


@pytest.mark.parametrize("text", SOCKETS)
def test_sockets_are_what_they_are_to_rrq_runner(text):
    stock = pytest.importorskip("rrq.runner_runtime", reason="rrq is not installed")
    assert outcome(parse_tcp_socket, text) == outcome(stock._parse_tcp_socket, text)


@given(st.lists(st.sampled_from([*"[]:.019 ", "127.0.0.1", "::1", "localhost"])).map("".join))
def test_any_other_text_for_a_socket_is_what_it_is_to_rrq_runner(text):
    stock = pytest.importorskip("rrq.runner_runtime", reason="rrq is not installed")
    assert outcome(parse_tcp_socket, text) == outcome(stock._parse_tcp_socket, text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0.0.0.0:9000", ("0.0.0.0", 9000)),
        ("[::]:9000", ("::", 9000)),
        ("192.168.0.1:9000", ("192.168.0.1", 9000)),
        ("localhost:9000", ("127.0.0.1", 9000)),
        ("example.com:9000", "Invalid TCP socket host: example.com"),
        ("0.0.0.0:0", "TCP socket port out of range: 0"),
    ],
)
def test_other_addresses_than_loopback_are_taken_when_they_are_allowed(text, parsed):
    assert outcome(lambda: parse_tcp_socket(text, allow_remote=True)) == parsed


def test_allow_remote_serves_everyone_and_says_so(command):
    runner = command.start("--allow-remote", host="0.0.0.0")
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"
    assert "0.0.0.0 is not loopback" in runner.errors()


def test_the_version_is_printed(command_for_errors):
    done = command_for_errors.run("--version")
    printed = f"rrq-fastwire-runner {rrq_fastwire.__version__}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_the_help_names_every_option(command_for_errors):
    done = command_for_errors.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        "--settings MODULE.ATTR",
        "--tcp-socket HOST:PORT",
        "--allow-remote",
        "--native-messages",
        "--grace SECONDS",
        "--no-parent-watch",
        "--version",
    ):
        assert option in done.stdout


# What it says of mistakes


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([], {"settings": "nothing.settings"}, "No module named 'nothing'"),
        ([], {"settings": "nothing:settings"}, "No module named 'nothing'"),
        ([], {"settings": "app.nothing"}, "'app' has no attribute 'nothing'"),
        ([], {"settings": "app:nothing"}, "'app' has no attribute 'nothing'"),
        ([], {"settings": "app"}, "must be module.attr or module:attr, got 'app'"),
        ([], {"settings": ""}, "must be module.attr or module:attr, got ''"),
        ([], {"settings": ".handlers"}, "must be module.attr or module:attr, got '.handlers'"),
        ([], {"settings": "..app.handlers"}, "cannot load '..app.handlers'"),
        ([], {"settings": None}, "required: --settings"),
        ([], {"settings": "raises.settings"}, "'raises.settings': RuntimeError: no database"),
        (
            [],
            {"settings": "raises_at_length.settings"},
            "RuntimeError: no database tried 127.0.0.1",
        ),
        ([], {"settings": "breaks.settings"}, "SyntaxError: '(' was never closed (breaks.py"),
        ([], {"settings": "app.number"}, "is of type int, not PythonRunnerSettings or a mapping"),
        (
            [],
            {"settings": "app.handlers_with_a_mistake"},
            "'report' is not async: define it with async",
        ),
        (
            [],
            {"settings": "app.settings_with_a_mistake"},
            "'report' is not async: define it with async",
        ),
        ([], {"tcp_socket": "127.0.0.1"}, "TCP socket must be in host:port format"),
        ([], {"tcp_socket": "0.0.0.0:9000"}, "loopback-only"),
        ([], {"tcp_socket": "127.0.0.1:0"}, "TCP socket port out of range: 0"),
        ([], {"tcp_socket": None}, "required: --tcp-socket"),
        (["--allow-remote"], {"tcp_socket": "192.0.2.1:9000"}, "cannot listen on 192.0.2.1:9000"),
        (["--grace", "soon"], {}, "--grace: must be a number from 0 to 3600, got 'soon'"),
        (["--grace", ""], {}, "--grace: must be a number from 0 to 3600, got ''"),
        (["--grace", "-1"], {}, "--grace: must be a number from 0 to 3600, got '-1'"),
        (["--grace", "nan"], {}, "--grace: must be a number from 0 to 3600, got 'nan'"),
        (["--grace", "3601"], {}, "--grace: must be a number from 0 to 3600, got '3601'"),
        (["--nonsense"], {}, "unrecognized arguments: --nonsense"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(command_for_errors, arguments, options, said):
    if "settings_with" in (options.get("settings") or ""):
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    done = command_for_errors.run(*arguments, **options)
    assert said in done.stderr
    assert done.stderr.startswith("rrq-fastwire-runner: ")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")


def test_a_port_in_use_gets_one_line_and_status_2(command_for_errors):
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp_socket = f"127.0.0.1:{server.getsockname()[1]}"
        done = command_for_errors.run(tcp_socket=tcp_socket)
    reason = os.strerror(errno.EADDRINUSE)
    assert done.stderr == (
        f"rrq-fastwire-runner: cannot listen on {tcp_socket}: {reason};"
        " choose another --tcp-socket, or end what listens there\n"
    )
    assert done.returncode == 2


# How it ends

ENDINGS = [signal.SIGTERM, signal.SIGINT]

# What a handler that does not end, or leaves something behind, may make of the log.
COMPLAINTS = (
    "ended by force: a handler, or what it left behind, did not end",
    "goes on though it is cancelled",
)


@posix
@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("settings", ["app.handlers", "app.settings"])
def test_a_signal_cancels_and_answers_what_runs(command, number, settings):
    if settings == "app.settings":
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start(settings=settings)
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
@pytest.mark.parametrize("number", ENDINGS)
def test_an_ending_runner_accepts_nobody(command, number):
    runner = command.start("--grace", "600")
    peer = command.begin(runner.port, "swallow")
    runner.send_signal(number)
    assert peer.receive().type == "cancelled"
    with pytest.raises(ConnectionRefusedError):
        command.connect(runner.port)


# What asyncio has accepted, and given to nobody yet when its server is closed, it drops with a
# warning; in CPython 3.13.0 also with an exception in __del__.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_of_the_last_moment_is_ended(run, turns):
    async def scenario():
        loop = asyncio.get_running_loop()
        port = free_port()
        runner = asyncio.create_task(serve({}, f"127.0.0.1:{port}"))
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(ConnectionRefusedError), Peer(port).socket:
                    break
                await asyncio.sleep(0.01)
        with Peer(port).socket as peer:  # connected, and the loop has yet to see it
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
def test_a_handler_has_the_grace_to_clean_up(command, number):
    runner = command.start("--grace", "600")
    peer = command.begin(runner.port, "clean_up")
    runner.send_signal(number)
    assert peer.receive().type == "cancelled"  # at once
    assert command.wait(runner) == 0
    assert [file.read_text() for file in command.folder.glob("begun*")] == ["cleaned up"]
    assert runner.errors() == ""


@posix
@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize(
    "function_name",
    [
        "swallow",
        "block",
        "leave_stubborn_task",
        "leave_thread",
        "wait_for_thread",
        "flood",  # whose answer nobody takes
    ],
)
def test_what_does_not_end_is_ended_after_the_grace(command, number, function_name):
    runner = command.start("--grace", "0.2")
    command.begin(runner.port, function_name)
    runner.send_signal(number)
    assert command.wait(runner) == 0
    for line in runner.errors().splitlines():
        assert line.endswith(COMPLAINTS)


@posix
@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize(
    "function_name",
    ["swallow", "block", "leave_stubborn_task", "leave_thread", "wait_for_thread", "flood"],
)
def test_a_second_signal_ends_it_at_once(command, number, function_name):
    runner = command.start("--grace", "600")
    command.begin(runner.port, function_name)

    def ends():
        runner.send_signal(number)  # two are one, if they come at the same moment
        return runner.poll() is not None

    until(ends, "the end")
    assert runner.returncode == -number
    assert runner.errors() == ""


PARENT = """
import subprocess, sys
with subprocess.Popen(sys.argv[1:]) as runner:
    print(runner.pid, flush=True)
"""


class Orphan:
    """A runner with a parent that can be killed. Both hold the pipe, which tells when both are gone."""

    def __init__(self, command, *arguments, **options):
        self.port = free_port()
        line = command.line(*arguments, tcp_socket=f"127.0.0.1:{self.port}", **options)
        self.parent = command.spawn([sys.executable, "-c", PARENT, *line], stdout=subprocess.PIPE)
        self.pid = int(self.parent.stdout.readline())

    def gone(self, seconds):
        return bool(select.select([self.parent.stdout], [], [], seconds)[0])

    def lose_parent(self):
        self.parent.kill()
        self.parent.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.gone(0):
            os.kill(self.pid, signal.SIGKILL)


@posix
@pytest.mark.parametrize("function_name", [None, "wait", "swallow", "block", "wait_for_thread"])
def test_a_runner_whose_parent_goes_away_ends(command, function_name):
    with Orphan(command, "--grace", "600") as runner:
        command.serving(runner.port, lambda: runner.parent.poll() is None)
        if function_name is not None:
            command.begin(runner.port, function_name)
        start = time.monotonic()
        runner.lose_parent()
        assert runner.gone(PATIENCE)
        print(f"ended {time.monotonic() - start:.2f} s after its parent")


@posix
def test_a_runner_whose_parent_goes_away_ends_while_it_imports_the_settings(command):
    with Orphan(command, settings="hangs.handlers") as runner:
        until((command.folder / "hangs").exists, "the settings are imported")
        runner.lose_parent()
        assert runner.gone(PATIENCE)


@posix
def test_no_parent_watch_keeps_it_alive(command):
    with Orphan(command, "--no-parent-watch") as runner:
        command.serving(runner.port, lambda: runner.parent.poll() is None)
        peer = command.begin(runner.port, "outlive_parent")
        runner.lose_parent()
        assert peer.receive().result == "still here"
        os.kill(runner.pid, signal.SIGTERM)
        assert runner.gone(PATIENCE)
