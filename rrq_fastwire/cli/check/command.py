"""The command `check`: run the checks in order, each within a time limit, and print verdicts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Table
from rich.text import Text

from ..formatting import printable
from ..message_lines import TOO_DEEP
from ..progress import progress_bar
from ..runner_process import RunnerError
from ..target import Number, Target, run, runner_option, running_target, split_target
from .peer import Runner, ViolationError
from .stream_rules import CHECKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from .rules import Check

# The longest text of what a check saw, in characters.
_SEEN_LENGTH = 200

# How much of the runner's output during one check is shown: the end.
_PRINTED_LINES = 20
_PRINTED_BYTES = 16 * 1024

# The width of the table in columns if the output is not a terminal.
_PIPE_WIDTH = 160


class Verdict(NamedTuple):
    """The result of a check.

    Attributes:
        verdict: "pass", "FAIL" or "found".
        seen: what the runner did.
        printed: the last lines that the runner printed during the check, if it was started here.
    """

    check: Check
    verdict: str
    seen: str
    printed: Sequence[str] = ()


@click.command("check")
@click.argument("arguments", nargs=-1, metavar="[HOST:PORT]")
@runner_option
@click.option(
    "--limit",
    type=Number(0.1),
    default=10,
    metavar="SECONDS",
    show_default=True,
    help="The time limit of each check.",
)
def command(arguments: tuple[str, ...], runner: str | None, limit: float) -> int:
    """Check that a runner, in any language, keeps to the protocol.

    The runner must have four handlers: echo returns the params, sleep waits for params.seconds,
    fail raises an error, and retry asks for a retry.

    A check ends with pass, FAIL or found. "found" means that the runner differs where the protocol
    allows it. For each failed check, the output of a runner that --runner has started is shown.
    Exits with 1 if a check fails.

    Example: rrq-fastwire check --runner "node runner.js"
    """
    source, rest = split_target(arguments, runner)
    if rest:
        raise click.UsageError(f"expected nothing after the runner, got {rest[0]!r}")
    verdicts = run(_check_all(source, limit))
    table = Table("check", "verdict", "expected", "seen")
    table.columns[0].no_wrap = True
    styles = {"pass": "green", "FAIL": "bold red", "found": "yellow"}
    for check, verdict, seen, _ in verdicts:
        table.add_row(check.name, Text(verdict, styles[verdict]), check.expected, Text(seen))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(table)
    for check, verdict, _, printed in verdicts:
        if verdict == "FAIL" and printed:
            console.print(f"The runner printed during {check.name!r}:")
            for line in printed:
                console.print(Text(f"  {line}", "dim"), soft_wrap=True)
    counts = {name: sum(verdict.verdict == name for verdict in verdicts) for name in styles}
    console.print(
        f"{len(verdicts)} checks: {counts['pass']} pass, {counts['FAIL']} fail,"
        f" {counts['found']} found"
    )
    return 1 if counts["FAIL"] else 0


async def _check_all(source: Target | list[str], limit: float) -> list[Verdict]:
    # The runner prints to a file, because output on the terminal would break the progress bar.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "output"
        with path.open("wb") as written, path.open("rb") as output:
            try:
                async with running_target(source, written) as target:
                    return await _check_target(target, output, limit)
            except RunnerError:  # its output may say why
                sys.stderr.write(output.read().decode(errors="backslashreplace"))
                raise


async def _check_target(target: Target, output: BinaryIO, limit: float) -> list[Verdict]:
    async with await target.connect():
        pass  # raises RunnerError if there is no runner at all
    verdicts = []
    with progress_bar(TextColumn("{task.description}"), BarColumn()) as progress:
        task = progress.add_task("", total=len(CHECKS))
        for each in CHECKS:
            progress.update(task, description=each.name)
            verdict = await judge(each, target, limit)
            verdicts.append(verdict._replace(printed=_last_lines(output.read())))
            progress.advance(task)
    return verdicts


def _last_lines(printed: bytes) -> list[str]:
    text = printed[-_PRINTED_BYTES:].decode(errors="backslashreplace")
    return [printable(line) for line in text.splitlines()[-_PRINTED_LINES:]]


async def judge(check: Check, target: Target, limit: float) -> Verdict:
    """Run one check, for at most `limit` seconds, and return its verdict."""
    runner = Runner(target)
    try:
        async with asyncio.timeout(limit):
            return Verdict(check, "pass", _shortened(await check.run(runner) or "as expected"))
    except ViolationError as error:
        seen = str(error)
    except TimeoutError:
        seen = f"no {runner.waits_for} within {limit:g} s"
    except (EOFError, ConnectionError):
        seen = f"the connection was closed instead of an {runner.waits_for}"
    except RecursionError:
        seen = f"an answer that is {TOO_DEEP}"
    finally:
        runner.close()
    return Verdict(check, "found" if check.is_open else "FAIL", _shortened(seen))


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SEEN_LENGTH else f"{text[:_SEEN_LENGTH]}..."
