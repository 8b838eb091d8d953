"""The group of commands. Each has a module or package, which is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .. import __version__
from . import info

_MODULES = {
    "call": ".call",
    "check": ".check.command",
    "decode": ".decode",
    "encode": ".encode",
    "load": ".load.command",
    "tap": ".tap.command",
}


class _Commands(click.Group):
    """A group that imports a command when it is used, and ends silently at Ctrl-C.

    Without this, click would print an empty line at Ctrl-C.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_MODULES])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(_MODULES[cmd_name], __package__).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="rrq-fastwire %(version)s")
def commands() -> None:
    """See and use the protocol between RRQ's orchestrator and its runners."""


@commands.command(
    "runner",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_runner(arguments: tuple[str, ...]) -> None:
    """Run jobs, as rrq-fastwire-runner does.

    Example: rrq-fastwire runner --settings myapp.runner.settings --tcp-socket 127.0.0.1:9000
    """
    from .. import runner

    runner.main(list(arguments))


@commands.command("ping", add_help_option=False)
@click.argument("address", metavar="HOST:PORT")
@click.option("--timeout", metavar="SECONDS", help="How long to wait for the answer.")
def run_ping(address: str, timeout: str | None) -> None:
    """Check whether a runner answers, for health checks.

    Example: rrq-fastwire ping 127.0.0.1:9000
    """
    # Only for the list of commands in the help: main() runs ping before it imports click.


@commands.command("info")
def run_info() -> int:
    """Print the version, the implementation and the platform.

    Example: rrq-fastwire info
    """
    return info.run()


@commands.command("demo")
def run_demo() -> int:
    """Compare rrq's own runner with this one over 20,000 jobs.

    Example: rrq-fastwire demo
    """
    from . import demo

    return demo.run()
