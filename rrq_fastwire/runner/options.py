"""The options of `rrq-fastwire-runner`: on the command line, and as environment variables."""

from __future__ import annotations

import argparse
import math
import sys

from .. import IMPLEMENTATION, JSON_BACKEND, MAX_FRAME_SIZE, __version__, _json
from .defaults import DEFAULT_HEADER_TIMEOUT, DEFAULT_MAX_CONNECTIONS
from .guard import DEFAULT_GRACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from .arguments import Network

__all__ = ["REQUIRED", "OptionParser", "option_parser", "positive_seconds"]

_VARIABLE = "RRQ_FASTWIRE_RUNNER_"

_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}
_UNIT_HELP = "1K is 1024 bytes, 1M is 1024K, 1G is 1024M"

_LONGEST_SECONDS = 3600

REQUIRED = object()


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps lines between words, but not at the hyphens of an option or a command."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap  # which only the help needs

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


class OptionParser(argparse.ArgumentParser):
    """Read options from the command line and, if they are not given there, from the environment.

    For example, the variable of `--tcp-socket` is RRQ_FASTWIRE_RUNNER_TCP_SOCKET. An error is
    printed on one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            argument_default=argparse.SUPPRESS,
            add_help=False,
            formatter_class=_HelpFormatter,
            **options,
        )
        self._defaults_by_action: dict[argparse.Action, Any] = {}

    def option(
        self, group: argparse._ArgumentGroup, name: str, *, default: Any, help: str, **options: Any
    ) -> None:
        """Add an option to a group of the help. With the default REQUIRED, it must be given."""
        action = group.add_argument(name, help=help, **options)
        self._defaults_by_action[action] = default

    def read(self, argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
        """Return the values of all options. Raises SystemExit if they are wrong.

        Arguments:
            argv: the arguments without the program's name; None takes those of the process.
        """
        options = self.parse_args(argv)
        missing = []
        for action, default in self._defaults_by_action.items():
            if hasattr(options, action.dest):
                continue
            name = action.option_strings[0]
            variable = _VARIABLE + name[2:].upper().replace("-", "_")
            text = environ.get(variable)
            if text is not None:
                setattr(options, action.dest, self._from_environment(action, variable, text))
            elif default is REQUIRED:
                missing.append(name)
            else:
                setattr(options, action.dest, default)
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return options

    def _from_environment(self, action: argparse.Action, variable: str, text: str) -> Any:
        if action.nargs == 0:
            given = _BOOLEANS.get(text.lower())
            if given is None:
                self.error(f"{variable}: must be 1 or 0, true or false, yes or no, got {text!r}")
            return action.const if given else not action.const
        if action.choices is not None and text not in action.choices:
            choices = ", ".join(action.choices)
            self.error(f"{variable}: invalid choice: {text!r} (choose from {choices})")
        if isinstance(action, argparse._AppendAction):
            return text.split(",")
        if not callable(action.type):
            return text
        try:
            return action.type(text)
        except argparse.ArgumentTypeError as error:
            self.error(f"{variable}: {error}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def option_parser() -> OptionParser:
    """Return the parser of all options of the runner."""
    parser = OptionParser(
        prog="rrq-fastwire-runner",
        usage="%(prog)s --settings MODULE.ATTR --tcp-socket HOST:PORT [OPTION...]",
        description="Run RRQ jobs, in place of rrq-runner.",
        epilog="Each option can also be set by an environment variable, such as"
        f" {_VARIABLE}TCP_SOCKET for --tcp-socket; the value of an option that takes none is 1 or"
        " 0. The command line takes precedence. Example: rrq-fastwire-runner --settings"
        " myapp.runner.settings --tcp-socket 127.0.0.1:9000",
    )
    option = parser.option

    group = parser.add_argument_group("handlers")
    option(
        group,
        "--settings",
        default=REQUIRED,
        metavar="MODULE.ATTR",
        help="a PythonRunnerSettings, or a mapping of names to async functions",
    )
    option(
        group,
        "--native-messages",
        default=False,
        action="store_true",
        help="pass rrq_fastwire's own requests to handlers: the same attributes, less CPU",
    )
    option(
        group,
        "--loop",
        default="auto",
        choices=("auto", "asyncio", "uvloop"),
        help="the event loop; auto takes uvloop if it is installed (default: auto)",
    )
    option(
        group,
        "--lifespan",
        default=None,
        metavar="MODULE.ATTR",
        help="an async context manager, or a function that returns one: entered before the runner"
        " listens, and left after its last answer",
    )
    option(
        group,
        "--threads",
        default=None,
        type=_number_of_threads,
        metavar="N",
        help="run handlers that are not async in up to N threads (default: refuse them)",
    )
    option(
        group,
        "--slow-callback",
        default=None,
        type=positive_seconds,
        nargs="?",
        const=0.1,
        metavar="SECONDS",
        help="log a warning, once for each handler, if it blocks the event loop for longer than"
        " this, with the line that blocks (default: off; 0.1 without a number)",
    )
    option(
        group,
        "--middleware",
        default=(),
        action="append",
        metavar="MODULE.ATTR",
        help="an async function that is called with the request and with the next function to call;"
        " repeatable, the first is the outermost. In the environment variable, separate them with"
        " commas",
    )
    option(
        group,
        "--on-error",
        default=None,
        metavar="MODULE.ATTR",
        help="a function that is called with the exception and the request of a failed job",
    )

    group = parser.add_argument_group("connections")
    option(
        group,
        "--tcp-socket",
        default=REQUIRED,
        metavar="HOST:PORT",
        help="the address to listen on: a loopback one, unless --allow-remote is given",
    )
    option(
        group,
        "--allow-remote",
        default=False,
        action="store_true",
        help="allow --tcp-socket to be an address other than loopback; needs --allow-from",
    )
    option(
        group,
        "--allow-from",
        default=(),
        type=_networks,
        metavar="CIDR,...",
        help="with --allow-remote: the networks that may connect, such as 10.1.0.0/16,10.2.3.4;"
        " loopback is always allowed",
    )
    option(
        group,
        "--max-connections",
        default=DEFAULT_MAX_CONNECTIONS,
        type=_count,
        metavar="N",
        help=f"refuse more connections than this (default: {DEFAULT_MAX_CONNECTIONS})",
    )
    option(
        group,
        "--max-frame-size",
        default=MAX_FRAME_SIZE,
        type=_frame_size,
        metavar="BYTES",
        help="close a connection that announces a larger message (default: 16M, the limit of the"
        f" protocol; {_UNIT_HELP})",
    )
    option(
        group,
        "--header-timeout",
        default=DEFAULT_HEADER_TIMEOUT,
        type=_seconds,
        metavar="SECONDS",
        help="close a connection whose first message takes longer than this to arrive. The same"
        " limit applies to a later message that is incomplete when another client connects"
        f" (default: {DEFAULT_HEADER_TIMEOUT:g}; 0 is no limit)",
    )

    group = parser.add_argument_group("shutdown")
    option(
        group,
        "--drain",
        default=0.0,
        type=_seconds,
        metavar="SECONDS",
        help="at SIGTERM, take no new jobs, and give running jobs this long to end before they are"
        " cancelled (default: 0). For runners that the orchestrator does not start itself",
    )
    option(
        group,
        "--grace",
        default=DEFAULT_GRACE,
        type=_seconds,
        metavar="SECONDS",
        help="how long to wait at the end for cancelled handlers and for threads (default:"
        f" {DEFAULT_GRACE}). A worker that shuts down ends its runners one after another, and has"
        " two seconds for all of them after its worker_shutdown_grace_period_seconds:"
        " keep pool_size * (grace + 0.02) below 2, or jobs stay ACTIVE until their lock expires",
    )
    option(
        group,
        "--no-parent-watch",
        default=True,
        dest="parent_watch",
        action="store_false",
        help="keep running when the parent process ends (for service managers)",
    )

    group = parser.add_argument_group("recycling (POSIX)")
    option(
        group,
        "--max-jobs",
        default=None,
        type=_count,
        metavar="N",
        help="restart after N jobs, or up to 10%% fewer, so that the processes of a pool do not"
        " restart at the same time. Connections stay open",
    )
    option(
        group,
        "--max-rss",
        default=None,
        type=_size,
        metavar="BYTES",
        help="restart when the resident memory of the process exceeds this, such as 500M, or up to"
        f" 10%% less (Linux; {_UNIT_HELP})",
    )

    group = parser.add_argument_group("monitoring and development")
    option(
        group,
        "--metrics",
        default=None,
        metavar="HOST:PORT",
        help="serve metrics for Prometheus at this address, under /metrics; a PORT of +N is N above"
        " the port of --tcp-socket. Needs the extra 'metrics'",
    )
    option(
        group,
        "--reload",
        default=False,
        action="store_true",
        help="restart when a Python file in the folder of the settings changes (POSIX). Needs the"
        " extra 'reload'",
    )
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {__version__} ({IMPLEMENTATION}, {JSON_BACKEND} {_json.version})",
        help="show the version, the implementation and the JSON library, and exit",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be a number from 0 to {_LONGEST_SECONDS}, got {text!r}"
        )
    return seconds


def positive_seconds(text: str) -> float:
    """Return the number of seconds that an option of any command has. Raises ArgumentTypeError."""
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


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= 10**12):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 1000000000000, got {text!r}")
    return int(text)


def _size(text: str) -> int:
    unit = text[-1:].upper()
    try:
        size = float(text[:-1]) * _UNITS[unit] if unit in _UNITS else float(text)
    except ValueError:
        size = math.nan
    if not 1 <= size <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be a number of bytes such as 500M, got {text!r}")
    return int(size)


def _frame_size(text: str) -> int:
    size = _size(text)
    if size > MAX_FRAME_SIZE:
        raise argparse.ArgumentTypeError(f"must be {MAX_FRAME_SIZE} (16M) at most, got {text!r}")
    return size


def _networks(text: str) -> list[Network]:
    from .arguments import parse_networks  # imports ipaddress, which takes time

    try:
        return parse_networks(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
