"""The command `rrq-fastwire-runner`: its arguments, and what it says if it cannot start."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module

from .. import __version__
from .guard import DEFAULT_GRACE, Guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from typing import NoReturn

    from .engine import Runner

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="rrq-fastwire-runner",
        description="Runs RRQ jobs, in the place of rrq-runner.",
        epilog="example: rrq-fastwire-runner --settings myapp.runner.settings"
        " --tcp-socket 127.0.0.1:9000",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--settings",
        required=True,
        metavar="MODULE.ATTR",
        help="a PythonRunnerSettings, or a mapping of names to async functions",
    )
    parser.add_argument(
        "--tcp-socket",
        required=True,
        metavar="HOST:PORT",
        help="where to listen: a loopback address",
    )
    parser.add_argument(
        "--allow-remote", action="store_true", help="listen on other addresses than loopback, too"
    )
    parser.add_argument(
        "--native-messages",
        action="store_true",
        help="give handlers rrq_fastwire's requests: the same attributes, and cheaper",
    )
    parser.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="the event loop; auto is uvloop where it is installed (default: %(default)s)",
    )
    parser.add_argument(
        "--lifespan",
        metavar="MODULE.ATTR",
        help="an async context manager, or a function that returns one: entered before the socket"
        " listens, and left after the last answer",
    )
    parser.add_argument(
        "--threads",
        type=_number_of_threads,
        metavar="N",
        help="run handlers that are not async in up to N threads (default: refuse them)",
    )
    parser.add_argument(
        "--slow-callback",
        type=_limit,
        nargs="?",
        const=0.1,
        metavar="SECONDS",
        help="name in the log, once, each handler that keeps the event loop for longer than this,"
        " and the line where it does (default: off; %(const)s without a number)",
    )
    parser.add_argument(
        "--middleware",
        action="append",
        default=[],
        metavar="MODULE.ATTR",
        help="an async function of the request and the next function to call with it; repeatable,"
        " the first is the outermost",
    )
    parser.add_argument(
        "--on-error",
        metavar="MODULE.ATTR",
        help="a function of an exception for which a job failed, and of the request",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=DEFAULT_GRACE,
        metavar="SECONDS",
        help="how long cancelled handlers, and threads, may go on at the end (default:"
        " %(default)s). A worker that shuts down ends its runners one after another, and has two"
        " seconds for all of them once its own worker_shutdown_grace_period_seconds is over: keep"
        " pool_size * (grace + 0.02) below 2, or jobs stay ACTIVE until their lock expires",
    )
    parser.add_argument(
        "--no-parent-watch",
        dest="parent_watch",
        action="store_false",
        help="do not end when the parent process does (for service managers)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """`rrq-fastwire-runner`: serves the handlers of a settings object."""
    parser = _parser()
    options = parser.parse_args(argv)
    guard = Guard(options.grace, watch_parent=options.parent_watch)
    # A second Ctrl-C kills while asyncio and the interpreter wait for threads.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    atexit.register(_at_exit)

    # Imported here, because it takes long: the parent is watched by now.
    import asyncio

    from .server import parse_tcp_socket
    from .settings import StartError, split_path

    try:
        loop_factory = _loop_factory(options.loop)
        module_name, attribute = split_path(options.settings)
        options.lifespan = options.lifespan and split_path(options.lifespan, "--lifespan")
        options.on_error = options.on_error and split_path(options.on_error, "--on-error")
        options.middleware = [split_path(path, "--middleware") for path in options.middleware]
        host, port = parse_tcp_socket(options.tcp_socket, allow_remote=options.allow_remote)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    serving = _serve(options, module_name, attribute, host, port, guard)
    try:
        # A signal handler of the user's own may raise KeyboardInterrupt.
        with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as loop:
            loop.run(serving)
    except StartError as error:
        parser.exit(1, f"{error.details}{parser.prog}: {error}\n")
    finally:
        guard.loop_is_closed()


async def _serve(
    options: argparse.Namespace,
    module_name: str,
    attribute: str,
    host: str,
    port: int,
    guard: Guard,
) -> None:
    """Imports the settings, in the event loop as rrq-runner does, and serves their handlers."""
    from .engine import Runner
    from .settings import StartError, load, load_handlers

    handlers = load_handlers(module_name, attribute)
    middleware = [load(path, "--middleware") for path in options.middleware]
    on_error = options.on_error and load(options.on_error, "--on-error")
    try:
        runner = Runner(
            handlers,
            native_messages=options.native_messages,
            threads=options.threads,
            slow_callback=options.slow_callback,
            middleware=middleware,
            on_error=on_error,
        )
    except TypeError as error:
        raise StartError(str(error)) from error
    listen = partial(_listen, options, runner, host, port, guard)
    if options.lifespan is None:
        await listen()
    else:
        from .lifespan import run_within

        await run_within(load(options.lifespan, "--lifespan"), listen)


async def _listen(
    options: argparse.Namespace, runner: Runner, host: str, port: int, guard: Guard
) -> None:
    from .server import run_server
    from .settings import StartError

    try:
        await run_server(runner, host, port, options.grace, guard.begin_end)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = ", or end what listens there" if error.errno == errno.EADDRINUSE else ""
        raise StartError(
            f"cannot listen on {options.tcp_socket}: {reason}; choose another --tcp-socket{advice}"
        ) from error


def _loop_factory(name: str) -> Callable[[], AbstractEventLoop] | None:
    """What makes the event loop of an option; None for asyncio's own.

    Raises ValueError if it is not installed.
    """
    if name != "asyncio":
        try:
            factory: Callable[[], AbstractEventLoop] = import_module("uvloop").new_event_loop
        except ImportError as error:
            if name == "uvloop":
                raise ValueError(
                    f"--loop uvloop: {error}; pip install 'rrq-fastwire[uvloop]'"
                ) from error
        else:
            return factory
    return None


def _at_exit() -> None:
    # Python itself flushes stdout when the guard cannot run any more, and it may be a full pipe.
    with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
        sys.stdout.flush()
    # Python looks for garbage in all that was imported: most of the time that the end takes.
    if sys.implementation.name == "cpython":
        gc.freeze()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 3600, got {text!r}")
    return seconds


def _limit(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text!r}")
    return seconds


def _number_of_threads(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 1024:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 1024, got {text!r}")
    return number
