"""The command line: one file a command. Parsing, colours and tables are click's and rich's."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from .. import __version__
from . import info


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit status of the process.

    The status is 0 for success, 1 if what was asked for has failed or could not be shown whole, 2
    for a wrong command line, 130 for Ctrl-C and 1 for a closed pipe. The last two print nothing.
    """
    if sys.stdout is None:  # it was closed before
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["ping"]:
        # Health checks run it every few seconds, where the extra may not be installed.
        from . import ping

        return ping.main(arguments[1:])
    try:
        import click

        from .commands import commands

        import_module("rich")  # the commands need it, too
    except ImportError as error:
        # What tells somebody about the installation works without the extra.
        if arguments == ["info"]:
            return info.run()
        if arguments == ["--version"]:
            print(f"rrq-fastwire {__version__}")
            return 0
        print(f"rrq-fastwire: {error}: pip install 'rrq-fastwire[cli]'", file=sys.stderr)
        return 2
    try:
        status = commands.main(argv, prog_name="rrq-fastwire", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        message = error.format_message()
        # Without a command it is the help.
        prefix = "" if message.startswith("Usage:") else "rrq-fastwire: "
        print(f"{prefix}{message}", file=sys.stderr)
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a disk that is full, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"rrq-fastwire: {error}", file=sys.stderr)
        return 1
    return int(status or 0)
