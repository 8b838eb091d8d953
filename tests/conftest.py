"""Fixtures of all tests: both implementations, both event loops, captures, terminals, connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
    from contextlib import AbstractAsyncContextManager
    from types import ModuleType
    from typing import Any

    from rrq_fastwire.streams import MessageStream


# The nightly run tries other examples each time. In CI, Hypothesis would try the same ones.
settings.register_profile(
    "fuzz",
    max_examples=50_000,
    deadline=None,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(".hypothesis/examples"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-orjson", action="store_true", help="run as if orjson were not installed")
    parser.addoption("--conformance", type=Path, help="the folder of RRQ's frames and verdicts")


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control lets background processes ignore Ctrl-C, and the commands under
    # test would inherit this.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--no-orjson"):
        sys.modules["orjson"] = None  # type: ignore[assignment]


def pytest_report_header(config: pytest.Config) -> str:
    import rrq_fastwire

    where = Path(rrq_fastwire.__file__).parent
    return f"rrq_fastwire: {rrq_fastwire.IMPLEMENTATION}, {rrq_fastwire.JSON_BACKEND}, from {where}"


@pytest.fixture(scope="session", params=["c", "py"])
def wire(request: pytest.FixtureRequest) -> ModuleType:
    """One implementation, with the names that both have."""
    try:
        return importlib.import_module(f"rrq_fastwire._{request.param}")
    except ImportError as error:
        pytest.skip(f"the compiled implementation is not built here: {error}")


@pytest.fixture(scope="session")
def captures() -> dict[str, bytes]:
    """The bytes that the real orchestrator and the stock runner sent each other, by file name."""
    return {path.stem: path.read_bytes() for path in Path(__file__).parent.glob("captures/*.bin")}


@pytest.fixture(scope="session", params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on an event loop. An exception that reaches the loop fails the test."""
    try:
        loops = importlib.import_module(request.param)
    except ImportError as error:
        pytest.skip(f"uvloop is not installed: {error}")

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        unhandled: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            result = runner.run(coroutine)
            gc.collect(1)  # collects what the run has left; the whole heap would take too long
        assert unhandled == []
        return result

    return run


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs a command on a terminal; returns its exit status, and what the terminal shows.

    The terminal is the command's stdout, unless other streams are named.
    """
    pty = pytest.importorskip("pty", reason="pseudo-terminals need POSIX")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def run(
        command: list[str], *streams: str, stdout: Any = None, **environment: str
    ) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            command,
            **{"stdout": stdout} | dict.fromkeys(streams or ("stdout",), theirs),
            env={**os.environ, **environment},
        ) as process:
            os.close(theirs)
            shown = b""
            # On Linux, reading fails with EIO once the other side is closed.
            with contextlib.suppress(OSError):
                while data := os.read(ours, 65536):
                    shown += data
            os.close(ours)
        return process.returncode, shown.decode()

    return run


@pytest.fixture(scope="session", params=["tcp", "unix"])
def connected(
    request: pytest.FixtureRequest,
) -> Callable[..., AbstractAsyncContextManager[tuple[MessageStream, socket.socket]]]:
    """Gives a MessageStream, opened with some options, and the plain socket at its other end."""
    is_unix = request.param == "unix"
    if is_unix and not hasattr(socket, "AF_UNIX"):
        pytest.skip("there are no Unix sockets here")

    @asynccontextmanager
    async def connected(**options: Any) -> AsyncGenerator[tuple[MessageStream, socket.socket]]:
        from rrq_fastwire.streams import open_connection, open_unix_connection

        family = socket.AF_UNIX if is_unix else socket.AF_INET
        with TemporaryDirectory() as folder, socket.socket(family) as listener:
            listener.bind(f"{folder}/socket" if is_unix else ("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            address = listener.getsockname()
            if is_unix:
                stream = await open_unix_connection(address, **options)
            else:
                stream = await open_connection(*address, **options)
            peer, _ = await asyncio.get_running_loop().sock_accept(listener)
            peer.setblocking(False)
            try:
                yield stream, peer
            finally:
                peer.close()
                stream.close()
                await stream.wait_closed()

    return connected


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    # pytest-xdist sends reports as UTF-8, which has no lone surrogates. The output of some tests
    # has.
    return encodable((yield))


def encodable(value: Any) -> Any:
    """A report with all lone surrogates in its strings replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(encodable, value))
    return value


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The end-to-end tests run only if they are named, because they need Redis and take minutes."""
    asked = any("e2e" in argument for argument in config.args)
    return True if collection_path.name == "e2e" and not asked else None
