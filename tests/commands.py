"""Runs the command of a runner as a process, for tests of what its users see."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from itertools import count

from rrq_fastwire import MessageDecoder, encode_frame
from rrq_fastwire.cli.runner_process import free_port

from .requests import new_request

OURS, STOCK = "rrq_fastwire.runner", "rrq.runner_runtime"

# Seconds to wait for something that happens within a second. They pass only if something is broken, or
# on a very busy machine.
PATIENCE = 30

APP = '''
import asyncio, multiprocessing, os, signal, sys, threading, time
from pathlib import Path

def begun(request):
    """Tells the test that the handler has started."""
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
    # Sleeps are short, because Python notices a signal that arrives just before one only after it.
    while True:
        time.sleep(0.1)

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
    await asyncio.sleep(1.5)  # a runner that watches its parent exits within a second
    return "still here"

async def stop_child(request):
    """The exit codes of children that are terminated at once, during a sleep, and in C code."""
    codes = []
    for function, argument, seconds in (time.sleep, 600, 0), (time.sleep, 600, 0.1), (sum, range(10**12), 0.1):
        child = multiprocessing.get_context("fork").Process(target=function, args=(argument,))
        child.start()
        time.sleep(seconds)
        child.terminate()
        child.join()
        codes.append(child.exitcode)
    return codes

async def stop_child_with_another_handler(request):
    """The exit code of a child that inherits a signal handler which calls the previous one."""
    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: previous(number, frame))
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode

def fork_and_exit(request):
    """The exit status of a child that ends with sys.exit()."""
    pid = os.fork()
    if pid == 0:
        sys.exit(request.params["status"])
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

async def fork_and_exit_in_loop(request):
    return fork_and_exit(request)

async def fork_and_exit_in_task(request):
    return await asyncio.wait_for(asyncio.ensure_future(fork_and_exit_in_loop(request)), 60)

async def cancel_all_tasks(request):
    for task in asyncio.all_tasks():
        task.cancel()

async def signal_twice(request):
    """Sends two signals, the second before Python has called the signal handler of the first."""
    both = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    for number in both:
        signal.pthread_kill(threading.get_ident(), number)
    begun(request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)

async def loop(request):
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

def not_async(request):
    pass

left = []
number = 1
handlers = {
    handler.__name__: handler
    for handler in (
        kind, wait, swallow, clean_up, block, leave_task, leave_stubborn_task, leave_thread, wait_for_thread,
        flood, outlive_parent, stop_child, stop_child_with_another_handler, fork_and_exit_in_loop,
        fork_and_exit_in_task, cancel_all_tasks, signal_twice, loop,
    )
}
handlers_with_a_mistake = {"report": not_async}
handlers_with_threads = handlers | {"fork_and_exit": fork_and_exit}
try:
    from rrq.registry import Registry
    from rrq.runner_settings import PythonRunnerSettings
except ModuleNotFoundError:
    def register(handlers):
        return None
else:
    def register(handlers):
        registry = Registry()
        for name, handler in handlers.items():
            registry.register(name, handler)
        return PythonRunnerSettings(registry=registry)

settings = register(handlers)
settings_with_a_mistake = register(handlers_with_a_mistake)
'''

MODULES = {
    "app.py": APP,
    "package/__init__.py": "",
    "package/app.py": "from app import *",
    "raises.py": "raise RuntimeError('no database')",
    "raises_inside.py": "import raises\nnumber = 1",
    "breaks.py": "settings = (",
    "in_the_loop.py": """
        from app import *

        async def answer():
            return "made at import"

        task = asyncio.get_running_loop().create_task(answer())

        async def ask(request):
            return await task

        handlers["ask"] = ask
        settings = register(handlers)
        """,
    "logs.py": """
        from app import *
        import logging, sys

        logging.basicConfig(level=logging.INFO, handlers=[], force=True)

        async def log(request):
            logging.getLogger().addHandler(logging.StreamHandler())
            begun(request)
            logging.info("this waits, and holds the handler's lock")

        async def print_a_bit(request):
            print("this waits in the buffer of stdout")
            begun(request)

        handlers |= {"log": log, "print_a_bit": print_a_bit}
        """,
    **{
        f"{name}.py": f"""
        from app import *
        import signal

        noted = []

        def called(number, frame=None):
            Path(__file__).with_name("called").write_text(str(number))
            noted.append("{name}")
            {body}

        async def note(request):
            return noted[0] if noted else "{name}"

        async def work(request):
            begun(request)
            while not noted:
                pass
            time.sleep(0.1)

        handlers |= {{"note": note, "work": work}}
        settings = register(handlers)
        {install}
        """
        for name, body, install in (
            ("exits", "raise SystemExit(7)", "signal.signal(signal.SIGTERM, called)"),
            (
                "exits_in_the_loop",
                "raise SystemExit(7)",
                "asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, called, 15)",
            ),
            ("interrupts", "raise KeyboardInterrupt", "signal.signal(signal.SIGTERM, called)"),
            (
                "restores_the_default",
                "signal.signal(number, signal.SIG_DFL); os.kill(os.getpid(), number)",
                "signal.signal(signal.SIGTERM, called)",
            ),
            ("only_notes_it", "pass", "signal.signal(signal.SIGTERM, called)"),
            ("ignores_it", "pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
        )
    },
    # The kernel gives the signal to another thread, so it interrupts no wait of the main thread.
    "masked.py": """
        import signal
        from app import handlers, register

        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        settings = register(handlers)
        """,
    "files.py": """
        import gzip, io, random
        from pathlib import Path
        from app import register

        me = random.random()
        notes = Path(__file__).with_name("notes").open("a")
        packed = gzip.open(Path(__file__).with_name("packed"), "at")
        blocks = io.BufferedWriter(gzip.open(Path(__file__).with_name("packed in blocks"), "ab"))

        async def write(request):
            for file in notes, packed:
                file.write(request.params["text"])
            blocks.write(request.params["text"].encode())
            return me

        handlers = {"write": write}
        settings = register(handlers)
        """,
    "hangs.py": "import os, time; open(os.environ['BEGUN'], 'w').close(); time.sleep(600)",
}


def until(ready, what):
    """Waits until a condition is true that sends no event.

    Arguments:
        ready: the condition.
        what: a name of it for the error message.
    """
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)


def kill(process):
    """Kills a process. If coverage is measured, terminates it first, so that it can save its figures."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    process.kill()
    process.wait()


class Peer:
    """The orchestrator's side of a connection to a runner, without asyncio."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.decoder = MessageDecoder()

    @staticmethod
    def request(function_name, id=None, **params):
        id = function_name if id is None else id
        return encode_frame(new_request(function_name, params, id=id, job_id="j"))

    def send(self, function_name, **params):
        self.socket.sendall(self.request(function_name, **params))

    def wait_until_arrived(self):
        """Waits until all bytes sent are in the runner's receive buffer. Does so on Linux only."""
        if sys.platform != "linux":
            return
        from fcntl import ioctl
        from termios import TIOCOUTQ

        until(lambda: ioctl(self.socket, TIOCOUTQ, bytes(4)) == bytes(4), "the bytes have arrived")

    def receive(self):
        """The next answer; None if the runner has closed the connection."""
        while True:
            for message in self.decoder:
                return message
            data = self.socket.recv(65536)
            if not data:
                self.decoder.feed_eof()
                return None
            self.decoder.feed(data)

    def ask(self, function_name):
        """The result of a job."""
        self.send(function_name)
        return self.receive().result


class Command:
    """Starts runners in a folder that has modules with settings, and kills them at the end."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "BEGUN": str(folder / "hangs"),
        }
        self.environment.pop("PYTHONUNBUFFERED", None)
        self._numbers = count()
        self._processes = []
        self._peers = []
        for name, text in MODULES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text))

    @staticmethod
    def line(*arguments, settings="app.handlers", tcp_socket="127.0.0.1:9000", module=OURS):
        """The command line of a runner, without those options that are None."""
        named = {"--settings": settings, "--tcp-socket": tcp_socket}
        given = [word for pair in named.items() if pair[1] is not None for word in pair]
        return [sys.executable, "-m", module, *given, *arguments]

    def _environment_now(self):
        # For `make mutation`: the tests of a module may share this object, and processes say for which
        # test they run.
        return self.environment | {"PYTEST_CURRENT_TEST": os.environ.get("PYTEST_CURRENT_TEST", "")}

    def hide_uvloop(self):
        """Makes uvloop impossible to import in this folder."""
        (self.folder / "uvloop.py").write_text("raise ImportError('No module named uvloop')")

    def run(self, *arguments, **options):
        """Runs a runner that exits by itself."""
        return subprocess.run(
            self.line(*arguments, **options),
            env=self._environment_now(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def spawn(self, line, **options):
        process = subprocess.Popen(line, env=self._environment_now(), text=True, **options)
        self._processes.append(process)
        return process

    def start(
        self, *arguments, host="127.0.0.1", ports=1, before=(), stdout=None, stderr=None, **options
    ):
        """Starts a runner, and waits until it listens.

        Arguments:
            ports: how many successive ports must be free, the first for the runner.
            before: words of a command that starts the runner's command line.
            stderr: where stderr goes; by default to a file, which errors() of the process reads.
        """
        port = free_port(ports)
        errors = self.folder / f"stderr {next(self._numbers)}"
        with errors.open("w") as file:
            process = self.spawn(
                [*before, *self.line(*arguments, tcp_socket=f"{host}:{port}", **options)],
                stdout=stdout,
                stderr=file if stderr is None else stderr,
            )
        process.port = port
        process.errors = errors.read_text
        self.serving(port, lambda: process.poll() is None)
        return process

    @staticmethod
    def serving(port, alive):
        """Waits until a runner listens on a port, as long as alive() is true."""

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
        """Sends a job on a new connection, and waits until its handler has started."""
        peer = self.connect(port)
        begun = self.folder / f"begun {next(self._numbers)}"
        peer.send(function_name, begun=str(begun))
        until(begun.exists, f"the handler {function_name} runs")
        return peer

    @staticmethod
    def wait(process):
        """Waits for the end of a process, and returns its exit status."""
        start = time.monotonic()
        status = process.wait(PATIENCE)
        print(f"ended after {time.monotonic() - start:.2f} s")
        return status

    def close(self):
        for process in self._processes:
            kill(process)
            if process.stdout is not None:
                process.stdout.close()
        for peer in self._peers:
            peer.socket.close()


PARENT = """
import subprocess, sys
with subprocess.Popen(sys.argv[1:]) as runner:
    print(runner.pid, flush=True)
"""


class Orphan:
    """A runner whose parent process can be killed.

    Both have a pipe to the test open. Its end shows that both have ended.
    """

    def __init__(self, command, *arguments, before=(), stderr=None, **options):
        self.port = free_port()
        line = command.line(*arguments, tcp_socket=f"127.0.0.1:{self.port}", **options)
        # A runner recognizes its parent by the session. The process that adopts orphans may be in
        # the session of the tests, so the parent gets a session of its own.
        self.parent = command.spawn(
            [sys.executable, "-c", PARENT, *before, *line],
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        self.pid = int(self.parent.stdout.readline())

    def gone(self, seconds):
        """Whether both processes have ended, or end within some seconds."""
        return bool(select.select([self.parent.stdout], [], [], seconds)[0])

    def lose_parent(self):
        self.parent.kill()
        self.parent.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.gone(0):
            os.kill(self.pid, signal.SIGKILL)


class FullPipe:
    """A pipe that is full, so that writing to it blocks."""

    def __init__(self):
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(4096))
        os.set_blocking(self.writer, True)

    def __enter__(self):
        return self.writer

    def __exit__(self, *_):
        os.close(self.reader)
        os.close(self.writer)
