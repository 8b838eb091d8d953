"""The lifespan: entered before the runner listens, and exited after the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import subprocess
import textwrap

import pytest

from rrq_fastwire.runner import lifespan_value, serve
from rrq_fastwire.testing import running

from ..commands import free_port, until
from ..engine import start_serve

MODULE = """
import asyncio, atexit, os, socket, sys, time
from contextlib import asynccontextmanager
from pathlib import Path

from rrq_fastwire.runner import lifespan_value

def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        print(text, file=notes)

def listens():
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[sys.argv.index("--tcp-socket") + 1].rpartition(":")[2]))).close()
    except ConnectionRefusedError:
        return False
    return True

@asynccontextmanager
async def lifespan():
    note(f"entered, listens: {listens()}")
    yield {"pool": 1}
    note(f"left, listens: {listens()}")

class AsClass:
    async def __aenter__(self):
        return {"pool": 2}

    async def __aexit__(self, *error):
        note(f"left {error}")

as_object = AsClass()

@asynccontextmanager
async def fails():
    raise RuntimeError("no database")
    yield

@asynccontextmanager
async def not_found():
    open("/nowhere/at/all")
    yield

@asynccontextmanager
async def fails_at_the_end():
    yield
    raise RuntimeError("cannot close")

@asynccontextmanager
async def exits_at_the_end():
    yield
    atexit.register(print, "atexit", flush=True)
    sys.exit(7)

@asynccontextmanager
async def hangs_at_the_end():
    yield
    note("leaves")
    try:
        await asyncio.sleep(600)
    finally:
        time.sleep(600)

@asynccontextmanager
async def hangs():
    note("enters")
    await asyncio.sleep(600)
    yield

async def undecorated():
    yield

number = 1

async def value(request):
    return lifespan_value()

async def value_later(request):
    await asyncio.sleep(0)
    return await asyncio.gather(ask(), asyncio.to_thread(lifespan_value))

async def ask():
    return lifespan_value()

async def wait(request):
    Path(request.params["begun"]).touch()
    try:
        await asyncio.sleep(600)
    finally:
        note("handler ended")

handlers = {"value": value, "value_later": value_later, "wait": wait}
try:
    from rrq.registry import Registry
    from rrq.runner_settings import PythonRunnerSettings
except ModuleNotFoundError:
    pass
else:
    registry = Registry()
    for name, handler in handlers.items():
        registry.register(name, handler)
    settings = PythonRunnerSettings(registry=registry)
"""


@pytest.fixture
def command(command):
    (command.folder / "life.py").write_text(textwrap.dedent(MODULE))
    command.notes = command.folder / "notes"
    command.notes.touch()
    command.environment["NOTES"] = str(command.notes)
    return command


def ends(command, runner, number=signal.SIGTERM):
    runner.send_signal(number)
    return command.wait(runner)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("settings", ["life.handlers", "life.settings"])
def test_a_lifespan_surrounds_the_socket_and_gives_its_value_to_handlers(command, loop, settings):
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    if "settings" in settings:
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    options = "--loop", loop, "--grace", "5", "--lifespan", "life.lifespan"
    runner = command.start(*options, settings=settings)
    peer = command.connect(runner.port)
    assert peer.ask("value") == {"pool": 1}
    assert peer.ask("value_later") == [{"pool": 1}, {"pool": 1}]
    assert ends(command, runner) == 0
    assert command.notes.read_text() == "entered, listens: False\nleft, listens: False\n"
    assert runner.errors() == ""


@pytest.mark.parametrize("path", ["life.AsClass", "life:as_object"])
def test_a_lifespan_may_be_a_class_or_an_instance(command, path):
    runner = command.start("--lifespan", path, "--grace", "5", settings="life.handlers")
    assert command.connect(runner.port).ask("value") == {"pool": 2}
    assert ends(command, runner) == 0
    assert command.notes.read_text() == "left (None, None, None)\n"


def test_a_lifespan_exits_after_the_last_answer_and_the_end_of_the_handlers(command):
    runner = command.start("--lifespan", "life.lifespan", "--grace", "5", settings="life.handlers")
    peer = command.begin(runner.port, "wait")
    runner.terminate()
    assert peer.receive().error.type == "cancelled"
    assert command.wait(runner) == 0
    assert command.notes.read_text().splitlines()[1:] == [
        "handler ended",
        "left, listens: False",
    ]


@pytest.mark.parametrize(
    ("path", "error", "frame"),
    [
        ("life.fails", "RuntimeError: no database", 'raise RuntimeError("no database")'),
        ("life.not_found", "No such file or directory: '/nowhere/at/all'", "open("),
    ],
)
def test_an_error_on_entry_is_shown_and_nothing_listens(command, path, error, frame):
    port = free_port()
    done = command.run("--lifespan", path, settings="life.handlers", tcp_socket=f"127.0.0.1:{port}")
    first, file, line, *_, raised, last = done.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert f"{os.sep}life.py" in file
    assert frame in line
    assert error in raised
    assert last == ("rrq-fastwire-runner: the lifespan cannot be entered: correct the error above")
    assert done.returncode == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("path", ["life.number", "life.undecorated"])
def test_a_lifespan_that_is_not_a_context_manager_gets_one_line_and_status_1(command, path):
    done = command.run("--lifespan", path, settings="life.handlers")
    assert "the lifespan must be an async context manager" in done.stderr
    assert "contextlib.asynccontextmanager" in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


def test_a_wrong_path_gets_one_line_and_status_2(command):
    done = command.run("--lifespan", "life", settings="life.handlers")
    assert done.stderr == (
        "rrq-fastwire-runner: --lifespan must be module.attr or module:attr, got 'life'\n"
    )
    assert done.returncode == 2


def test_a_missing_attribute_names_the_option_to_correct(command):
    done = command.run("--lifespan", "life.nothing", settings="life.handlers")
    assert done.stderr.splitlines()[-1] == (
        "rrq-fastwire-runner: 'life' has no 'nothing': correct --lifespan"
    )
    assert done.returncode == 1


def test_an_error_on_exit_is_logged_and_the_status_is_1(command):
    runner = command.start(
        "--lifespan", "life.fails_at_the_end", "--grace", "5", settings="life.handlers"
    )
    assert ends(command, runner) == 1
    assert runner.errors().startswith("the lifespan raised an exception at its end:\nTraceback")
    assert runner.errors().endswith("RuntimeError: cannot close\n")
    assert runner.errors().count("Traceback") == 1


def test_a_sys_exit_on_exit_gives_the_status_and_runs_atexit_functions(command):
    options = "--lifespan", "life.exits_at_the_end", "--grace", "5"
    runner = command.start(*options, settings="life.handlers", stdout=subprocess.PIPE)
    assert ends(command, runner) == 7
    assert runner.stdout.read() == "atexit\n"


def test_a_lifespan_exits_if_the_port_is_in_use(command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp_socket = f"127.0.0.1:{server.getsockname()[1]}"
        done = command.run(
            "--lifespan", "life.lifespan", settings="life.handlers", tcp_socket=tcp_socket
        )
    assert "cannot listen on" in done.stderr
    assert done.returncode == 1
    assert "left" in command.notes.read_text()


def test_an_error_on_exit_does_not_hide_why_the_runner_cannot_start(command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp_socket = f"127.0.0.1:{server.getsockname()[1]}"
        path = "life.fails_at_the_end"
        done = command.run("--lifespan", path, settings="life.handlers", tcp_socket=tcp_socket)
    assert "RuntimeError: cannot close" in done.stderr
    assert "cannot listen on" in done.stderr.splitlines()[-1]
    assert done.returncode == 1


@pytest.mark.parametrize("path", ["life.hangs", "life.hangs_at_the_end"])
def test_a_lifespan_that_hangs_does_not_keep_the_process_alive(command, path):
    port = free_port()
    if path == "life.hangs":
        line = command.line(
            "--lifespan", path, settings="life.handlers", tcp_socket=f"127.0.0.1:{port}"
        )
        runner = command.spawn(line)
        until(lambda: "enters" in command.notes.read_text(), "the lifespan is being entered")
        assert ends(command, runner) == -signal.SIGTERM
    else:
        runner = command.start("--lifespan", path, settings="life.handlers")
        assert ends(command, runner) == 0
        assert "leaves" in command.notes.read_text()
        assert "ended by force" in runner.errors()


# serve()


async def value(request):
    return lifespan_value()


@contextlib.asynccontextmanager
async def yields_a_value():
    yield "pool"


def test_a_cancel_of_serve_exits_the_lifespan_without_an_exception(run):
    left = []

    @contextlib.asynccontextmanager
    async def lifespan():
        yield "pool"
        left.append("without try and finally")

    async def running():
        task, client = await start_serve({"value": value}, free_port(), lifespan=lifespan)
        async with client:
            assert (await client.execute("value")).result == "pool"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lifespan_value() is None

    run(running())
    assert left == ["without try and finally"]


def test_serve_raises_what_the_lifespan_raises(run, caplog):
    @contextlib.asynccontextmanager
    async def lifespan():
        yield
        raise RuntimeError("cannot close")

    @contextlib.asynccontextmanager
    async def fails():
        raise RuntimeError("no database")
        yield

    async def running():
        task, client = await start_serve({"value": value}, free_port(), lifespan=lifespan)
        await client.close()
        task.cancel()
        with pytest.raises(RuntimeError, match="cannot close"):
            await task
        with pytest.raises(RuntimeError, match="no database"):
            await serve({}, f"127.0.0.1:{free_port()}", lifespan=fails)
        with pytest.raises(TypeError, match="the lifespan must be an async context manager"):
            await serve({}, f"127.0.0.1:{free_port()}", lifespan=3)

    run(running())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the lifespan raised an exception at its end:"
    ]


def test_two_runners_of_a_process_have_a_value_each(run):
    @contextlib.asynccontextmanager
    async def other():
        yield "another pool"

    async def both():
        async with (
            running({"value": value}, lifespan=yields_a_value) as one,
            running({"value": value}, lifespan=other) as two,
        ):
            return [(await client.execute("value")).result for client in (one, two)]

    assert run(both()) == ["pool", "another pool"]


def test_context_variables_of_the_lifespan_reach_the_handlers(run):
    variable = contextvars.ContextVar("variable", default=None)

    @contextlib.asynccontextmanager
    async def lifespan():
        variable.set("set by the lifespan")
        yield

    async def read(request):
        return variable.get()

    async def calling():
        async with running({"read": read}, lifespan=lifespan) as client:
            return (await client.execute("read")).result

    assert run(calling()) == "set by the lifespan"


def test_without_a_lifespan_the_value_is_none(run):
    async def calling():
        async with running({"value": value}) as client:
            return (await client.execute("value")).result

    assert run(calling()) is None
