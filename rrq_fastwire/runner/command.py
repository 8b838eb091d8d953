"""The command `rrq-fastwire-runner`: from its arguments to the end of the process."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module

from .files import write_buffers
from .guard import Guard
from .options import OptionParser, option_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .engine import Runner
    from .handover import Handover
    from .reload import Watcher

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Run the command `rrq-fastwire-runner`: serve the handlers of a settings object.

    Arguments:
        argv: the arguments without the program's name; None takes those of the process.

    Raises SystemExit if it cannot start.
    """
    parser = option_parser()
    options = parser.read(argv, os.environ)
    # So a second Ctrl-C kills the process, even while asyncio and Python wait for threads.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    handover = _handover(parser, options)
    parent = None
    if options.parent_watch and os.name == "posix":
        parent = os.getppid() if handover is None else handover.parent
    guard = Guard(options.grace, drain=options.drain, parent=parent)
    # Registered first, so that it is called last: after what the settings' code registers.
    atexit.register(_at_exit, handover)

    # Imported only here, because this takes long, and the guard now watches the parent.
    from .arguments import parse_tcp_socket
    from .settings import StartError, split_path

    watcher = None
    try:
        loop_factory = _loop_factory(options.loop)
        module_name, attribute = split_path(options.settings)
        if options.lifespan is not None:
            options.lifespan = split_path(options.lifespan, "--lifespan")
        if options.on_error is not None:
            options.on_error = split_path(options.on_error, "--on-error")
        options.middleware = [split_path(path, "--middleware") for path in options.middleware]
        try:
            host, port = parse_tcp_socket(options.tcp_socket, allow_remote=options.allow_remote)
        except ValueError as error:
            raise ValueError(f"--tcp-socket: {error}") from error
        _check(options, port)
        if options.reload:
            _require("--reload", ".reload", "reload")
            from .reload import Watcher

            watcher = Watcher(module_name)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    serving = _serve(options, module_name, attribute, host, port, guard, handover, watcher)
    try:
        _run(serving, loop_factory, handover)
    except StartError as error:
        text = f"{error.details}{parser.prog}: {error}\n"
        if watcher is None or handover is None:
            parser.exit(1, text)
        print(text, "waiting for a change of the source", sep="", file=sys.stderr)
        watcher.changed.result()
        handover.keep_inherited()
        guard.begin_renewal(handover)
    finally:
        if handover is not None:
            handover.end_at_signals()
        guard.loop_is_closed()


def _handover(parser: OptionParser, options: argparse.Namespace) -> Handover | None:
    """Return the handover of a process that may restart, or None for others."""
    if options.max_jobs is None and options.max_rss is None and not options.reload:
        return None
    if os.name != "posix":
        parser.error("--max-jobs, --max-rss and --reload need POSIX")
    from .handover import Handover

    return Handover()


def _run(
    serving: Coroutine[Any, Any, None],
    loop_factory: Callable[[], AbstractEventLoop] | None,
    handover: Handover | None,
) -> None:
    import asyncio

    from .process import exit_forked_child

    pid = os.getpid()
    # The user's own signal handler may raise KeyboardInterrupt.
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory) as starter:
        try:
            starter.run(serving)
        except (SystemExit, KeyboardInterrupt) as error:
            exit_forked_child(error, pid)  # before its tasks are cancelled
            if handover is not None:  # the user's code ends a runner that restarts
                handover.abandon()
            raise


async def _serve(
    options: argparse.Namespace,
    module_name: str,
    attribute: str,
    host: str,
    port: int,
    guard: Guard,
    handover: Handover | None,
    watcher: Watcher | None,
) -> None:
    """Import the settings, in the event loop as rrq-runner does, and serve their handlers."""
    from .server import make_runner
    from .settings import StartError, load, load_handlers

    handlers = load_handlers(module_name, attribute)
    middleware = [load(path, "--middleware") for path in options.middleware]
    on_error = options.on_error and load(options.on_error, "--on-error")
    try:
        runner = make_runner(
            handlers,
            native_messages=options.native_messages,
            threads=options.threads,
            slow_callback=options.slow_callback,
            middleware=middleware,
            on_error=on_error,
            observed=options.max_jobs is not None or options.metrics is not None,
        )
    except TypeError as error:
        raise StartError(str(error)) from error
    listen = partial(_listen, options, runner, host, port, guard, handover, watcher)
    if options.lifespan is None:
        await listen()
    else:
        from .lifespan import LeaveError, run_within

        try:
            await run_within(load(options.lifespan, "--lifespan"), listen)
        except LeaveError:
            if handover is None or not handover.is_due():
                raise SystemExit(1) from None


async def _listen(
    options: argparse.Namespace,
    runner: Runner,
    host: str,
    port: int,
    guard: Guard,
    handover: Handover | None,
    watcher: Watcher | None,
) -> None:
    from asyncio import CancelledError

    from .admission import Admission
    from .defaults import LimitError
    from .server import MetricsSocketError, run_server
    from .settings import StartError

    admission = Admission(
        allow_from=options.allow_from if options.allow_remote else None,
        max_connections=options.max_connections,
        max_frame_size=options.max_frame_size,
        header_timeout=options.header_timeout,
    )
    if handover is not None:
        handover.release_signals()
    try:
        await run_server(
            runner,
            host,
            port,
            options.grace,
            admission=admission,
            drain=options.drain,
            max_jobs=options.max_jobs,
            max_rss=options.max_rss,
            metrics=options.metrics,
            guard=guard,
            handover=handover,
            changed=None if watcher is None else watcher.changed,
        )
    except CancelledError:
        pass  # a handler has cancelled all tasks; the runner has answered its jobs
    except LimitError as error:
        raise StartError(f"--{str(error).replace('_', '-', 1)}") from error
    except MetricsSocketError as error:
        raise StartError(f"cannot serve {error}; choose another --metrics") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = ", or stop what listens there" if error.errno == errno.EADDRINUSE else ""
        raise StartError(
            f"cannot listen on {options.tcp_socket}: {reason}; choose another --tcp-socket{advice}"
        ) from error
    if handover is not None:
        handover.end_at_signals()


def _check(options: argparse.Namespace, port: int) -> None:
    """Raise ValueError if options contradict each other, or need a package that is missing."""
    from .server import parse_metrics_socket

    if options.allow_remote and not options.allow_from:
        raise ValueError(
            "--allow-remote needs --allow-from: the networks that may connect, such as"
            " --allow-from 10.1.0.0/16"
        )
    if options.allow_from and not options.allow_remote:
        raise ValueError("--allow-from needs --allow-remote")
    if options.metrics is not None:
        _require("--metrics", ".metrics", "metrics")
        try:
            parse_metrics_socket(options.metrics, port)
        except ValueError as error:
            raise ValueError(f"--metrics: {error}") from error


def _require(option: str, module: str, extra: str) -> None:
    """Import a module that an option needs. Raises ValueError if it needs a missing package."""
    try:
        import_module(module, __package__)
    except ImportError as error:
        raise ValueError(f"{option}: {error}; pip install 'rrq-fastwire[{extra}]'") from error


def _loop_factory(name: str) -> Callable[[], AbstractEventLoop] | None:
    """Return the function that makes the event loop of `--loop`; None for asyncio's own.

    Raises ValueError if uvloop is demanded but not installed.
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


def _at_exit(handover: Handover | None) -> None:
    # First stdout, which may be an object of another kind. It blocks if it is a full pipe. Python
    # itself would flush it only when the guard's thread can no longer run.
    with suppress(AttributeError, OSError, ValueError):  # stdout is missing or closed
        sys.stdout.flush()
    write_buffers()
    if handover is not None:
        handover.replace_process()
    # Otherwise Python searches all imported objects for garbage, which takes most of the shutdown.
    if sys.implementation.name == "cpython":
        gc.freeze()
