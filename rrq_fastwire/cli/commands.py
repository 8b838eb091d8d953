"""The commands; each has a module or package of its own."""

from __future__ import annotations

from typing import Any

import click

from .. import __version__, runner
from . import call, decode, demo, encode, info
from .check.command import command as check
from .load.command import command as load
from .tap.command import command as tap


class _Commands(click.Group):
    """Ends silently at Ctrl-C, where click writes an empty line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="rrq-fastwire %(version)s")
def commands() -> None:
    """See and use the wire between RRQ's orchestrator and its runners."""


commands.add_command(decode.command, "decode")
commands.add_command(encode.command, "encode")
commands.add_command(call.command, "call")
commands.add_command(load, "load")
commands.add_command(tap, "tap")
commands.add_command(check, "check")


@commands.command(
    "runner",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_runner(arguments: tuple[str, ...]) -> None:
    """Run jobs: what rrq-fastwire-runner does.

    Example: rrq-fastwire runner --settings myapp.runner.settings --tcp-socket 127.0.0.1:9000
    """
    runner.main(list(arguments))


@commands.command("info")
def run_info() -> int:
    """Say which implementation runs, with what, and where.

    Example: rrq-fastwire info
    """
    return info.run()


@commands.command("demo")
def run_demo() -> int:
    """Compare rrq's own runner with this one, by 20,000 jobs.

    Example: rrq-fastwire demo
    """
    return demo.run()
