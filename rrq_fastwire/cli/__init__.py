"""The command line: one file a command."""

from __future__ import annotations

import argparse

from .. import __version__
from . import demo, info

_COMMANDS = {"info": info.run, "demo": demo.run}


def main(argv: list[str] | None = None) -> int:
    """Runs one command, and returns the exit status of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m rrq_fastwire", description="RRQ's runner protocol at native speed."
    )
    parser.add_argument("--version", action="version", version=f"rrq-fastwire {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run in _COMMANDS.items():
        commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    chosen: str = parser.parse_args(argv).command
    return _COMMANDS[chosen]()
