"""The command `check`: runs the checks in order, each within a time limit, and prints verdicts."""

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
from ..progress import progress_bar
from ..runner_process import RunnerError
from ..target import Number, Target, reached, run, runner_option, split_target
from .peer import Runner, WrongError
from .stream_rules import CHECKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from .rules import Check

_SEEN_LENGTH = 200

# Of what the runner prints during one check, only the end is shown.
_PRINTED_LINES = 20
_PRINTED_BYTES = 16 * 1024

# Columns of the table where there is no terminal to give their number.
_PIPE_WIDTH = 160


class Verdict(NamedTuple):
    """What became of a check: "pass", "FAIL" or "found".

    Attributes:
        printed: the last lines that the runner printed meanwhile, if it was started here.
    """

    check: Check
    verdict: str
    seen: str
    printed: Sequence[str] = ()


@click.command
@click.argument("arguments", nargs=-1, metavar="HOST:PORT")
@runner_option
@click.option(
    "--limit",
    type=Number(0.1),
    default=10,
    metavar="SECONDS",
    show_default=True,
    help="What a check may take.",
)
def command(arguments: tuple[str, ...], runner: str | None, limit: float) -> int:
    """Check that a runner, in any language, keeps to the protocol.

    It must have the handlers echo (returns the params), sleep (waits for params.seconds), fail
    (raises) and retry (asks for a retry).

    A check ends with pass, FAIL, or found: the runner differs, and the protocol leaves it open.
    What a runner that was started by --runner prints is shown for the checks that fail. Exits with
    1 if one fails.

    Example: rrq-fastwire check --runner "node runner.js"
    """
    where, rest = split_target(arguments, runner)
    if rest:
        raise click.UsageError(f"expected nothing after the runner, got {rest[0]!r}")
    verdicts = run(_check_all(where, limit))
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


async def _check_all(where: Target | list[str], limit: float) -> list[Verdict]:
    # What the runner prints goes to a file: on the terminal it would tear the progress bar.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "output"
        with path.open("wb") as written, path.open("rb") as output:
            try:
                async with reached(where, written) as target:
                    return await _check_target(target, output, limit)
            except RunnerError:  # the reason may be there
                sys.stderr.write(output.read().decode(errors="backslashreplace"))
                raise


async def _check_target(target: Target, output: BinaryIO, limit: float) -> list[Verdict]:
    async with await target.connect():
        pass  # whether there is a runner at all
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
    runner = Runner(target)
    try:
        async with asyncio.timeout(limit):
            return Verdict(check, "pass", _shortened(await check.run(runner) or "as expected"))
    except WrongError as error:
        seen = str(error)
    except TimeoutError:
        seen = f"no {runner.waits_for} within {limit:g} s"
    except (EOFError, ConnectionError):
        seen = f"the connection was closed, instead of an {runner.waits_for}"
    finally:
        runner.close()
    return Verdict(check, "found" if check.is_open else "FAIL", _shortened(seen))


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SEEN_LENGTH else f"{text[:_SEEN_LENGTH]}..."
