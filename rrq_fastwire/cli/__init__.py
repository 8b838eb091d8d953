"""The command line: a module or package for each command. click parses, rich prints."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

from .. import __version__
from . import info


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status of the process.

    The status is 0 for success, 1 if the command has failed or could not show everything, 2 for a
    wrong command line, 130 for Ctrl-C and 1 for a closed pipe. The last two print nothing.

    Arguments:
        argv: the arguments without the program's name; None takes those of the process.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the process started
            # Not in a `with` block, because it stays open until the process ends.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the locale cannot encode must not end the printing.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not os.environ.get("COLUMNS", "").strip("0"):
        # 0 stands for an unknown width, but rich would print nothing.
        os.environ.pop("COLUMNS", None)
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            # Also after an error. Otherwise what was printed before would be lost.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # such as a full disk
        # Python flushes stdout again at its end, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"rrq-fastwire: {error}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    """Run one command and return its exit status. Raises OSError."""
    if arguments[:1] == ["ping"]:
        # Health checks run ping every few seconds, and where the extra may not be installed.
        from . import ping

        return ping.main(arguments[1:])
    try:
        import click

        from .commands import commands

        import_module("rich")  # which the commands need, too
    except ImportError as error:
        # `info` and `--version` work without the extra.
        if arguments == ["info"]:
            return info.run()
        if arguments == ["--version"]:
            print(f"rrq-fastwire {__version__}")
            return 0
        print(f"rrq-fastwire: {error}: pip install 'rrq-fastwire[cli]'", file=sys.stderr)
        return 2
    try:
        status = commands.main(arguments, prog_name="rrq-fastwire", standalone_mode=False)
    except click.ClickException as error:
        message = error.format_message()
        # Without a command, the message is the help.
        prefix = "" if message.startswith("Usage:") else "rrq-fastwire: "
        print(f"{prefix}{message}", file=sys.stderr)
        return error.exit_code
    except click.Abort:
        return 130
    return int(status or 0)
