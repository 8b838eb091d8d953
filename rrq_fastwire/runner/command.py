"""The command `rrq-fastwire-runner`: its arguments, and the handlers that its settings name."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib
import os
import signal
import threading
from collections.abc import Mapping

from .. import __version__
from .engine import Runner
from .process import FORCE_SECONDS, exit_after, watch_parent
from .server import parse_tcp_socket, run_server
from .stock import HAS_RRQ, rrq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from rrq.registry import Registry

    from .engine import Handlers

__all__ = ["main"]


def load_handlers(path: str) -> Handlers:
    """The handlers that "module.attr" or "module:attr" names: PythonRunnerSettings or a mapping.

    Raises ValueError with what is wrong.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        module_name, separator, attribute = path.rpartition(".")
    if not (module_name and attribute):
        raise ValueError(f"--settings must be module.attr or module:attr, got {path!r}")
    try:
        settings = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        # Some, like pydantic's, have a text of many lines.
        text = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            text += " (is it on PYTHONPATH?)"
        raise ValueError(f"cannot load {path!r}: {type(error).__name__}: {text}") from error
    if HAS_RRQ and isinstance(settings, rrq.PythonRunnerSettings):
        registry: Registry = settings.registry
        return registry
    if isinstance(settings, Mapping):
        return settings
    raise ValueError(
        f"{path!r} is of type {type(settings).__name__}, not PythonRunnerSettings"
        " or a mapping of names to async functions"
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(argv: list[str] | None = None) -> None:
    """`rrq-fastwire-runner`: serves the handlers of a settings object."""
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
        "--grace",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long cancelled handlers are waited for at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--no-parent-watch",
        dest="parent_watch",
        action="store_false",
        help="do not end when the parent process does (for service managers)",
    )
    options = parser.parse_args(argv)

    def end_by_force(_: int) -> None:
        exit_after(options.grace + FORCE_SECONDS)

    # Ctrl-C kills like SIGTERM wherever ending_signals() does not see to both: before something
    # runs, and as the second signal while asyncio and the interpreter wait for threads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.parent_watch:
        threading.Thread(target=watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        handlers = load_handlers(options.settings)
        runner = Runner(handlers, native_messages=options.native_messages)
        host, port = parse_tcp_socket(options.tcp_socket, allow_remote=options.allow_remote)
    except (TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    try:
        asyncio.run(run_server(runner, host, port, options.grace, end_by_force))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = ", or end what listens there" if error.errno == errno.EADDRINUSE else ""
        parser.exit(
            2,
            f"{parser.prog}: cannot listen on {options.tcp_socket}: {reason};"
            f" choose another --tcp-socket{advice}\n",
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 3600, got {text!r}")
    return seconds
