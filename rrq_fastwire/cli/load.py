"""`load`: what a runner makes of many jobs, or two runners side by side."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import statistics
import time
from array import array
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .. import FastwireError, _json
from .driving import drive
from .progress import progress_bar
from .showing import duration, printable
from .target import (
    Number,
    Target,
    parse_command,
    reached,
    run,
    runner_option,
    split_target,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType
    from rich.progress import Progress

    from ..client import RunnerClient

# What a job may take; every request that the orchestrator sends has a deadline, too.
_DEADLINE_SECONDS = 10.0

# Rounds of a comparison that count; one goes before them, so that no runner is cold.
_ROUNDS = 5

_PERCENTILES = (50, 90, 99)
_BARS = 12
_BAR_WIDTH = 40
_BLOCKS = " ▏▎▍▌▋▊▉█"
_FAILURES_SHOWN = 10

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KB|MB)?", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 1000, "MB": 1000_000}
_LARGEST = 15_000_000  # with its envelope it must fit into a frame


class Plan(NamedTuple):
    """What is sent, to whatever runner: the arguments of drive()."""

    function_name: str
    params: dict[str, Any]
    in_flight: int
    connections: int
    requests: int | None
    seconds: float | None
    rate: float | None


class Measured(NamedTuple):
    """What came of it.

    Attributes:
        latencies: seconds, sorted.
        cpu: seconds of the runner's; None where that is not known.
        failures: how many, by message.
    """

    seconds: float
    latencies: Sequence[float]
    cpu: float | None
    failures: Counter[str]

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def cpu_each(self) -> float | None:
        return None if self.cpu is None else self.cpu / max(1, len(self.latencies))

    def percentile(self, percent: int) -> float:
        """The latency that so many percent of the answers did not exceed."""
        return self.latencies[math.ceil(len(self.latencies) * percent / 100) - 1]

    def figures(self) -> dict[str, Any]:
        """As --json prints it, in seconds."""
        return {
            "requests": len(self.latencies),
            "seconds": self.seconds,
            "throughput": self.throughput,
            "cpu_seconds_each": self.cpu_each,
            "latency": {
                **{f"p{percent}": self.percentile(percent) for percent in _PERCENTILES},
                "max": self.latencies[-1],
            },
            "failures": dict(self.failures.most_common()),
        }


def _parse_params(text: str) -> dict[str, Any]:
    """What a JSON file holds, or made-up params of a size. Raises UsageError."""
    if size := _SIZE.fullmatch(text):
        length = float(size[1]) * _UNITS[(size[2] or "B").upper()]
        if not 2 <= length <= _LARGEST:
            raise click.UsageError(f"--params: {text!r} is not from 2 B to {_LARGEST // 10**6} MB")
        return _made_up(int(length))
    try:
        params = _json.loads(Path(text).read_bytes())
    except OSError as error:
        raise click.UsageError(
            f"--params: {text!r} is no size, and as a file: {error.strerror}"
        ) from None
    except ValueError as error:
        raise click.UsageError(f"--params: {text!r} is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise click.UsageError(f"--params: {text!r} does not hold a JSON object")
    return params


def _made_up(size: int) -> dict[str, Any]:
    """Params of so many bytes as compact JSON: records, and text to fill up."""
    record = {"id": 123456, "email": "someone@example.com", "active": True, "score": 0.5}
    empty, each = len('{"text":"","records":[]}'), len(json.dumps(record, separators=(",", ":")))
    if size < empty:
        # The shortest that are possible: {} has 2 bytes, and {"t":""} 8.
        return {} if size < 8 else {"t": "x" * (size - 8)}
    records, rest = divmod(size - empty + 1, each + 1)
    text = "x" * (rest if records else rest - 1)
    return {"text": text, "records": [record] * records}


@click.command
@click.argument("arguments", nargs=-1, metavar="HOST:PORT FUNCTION")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 100_000),
    default=64,
    metavar="N",
    show_default=True,
    help="Requests under way at a time.",
)
@click.option(
    "--requests", type=click.IntRange(1, 10**9), metavar="N", help="How many there are in all."
)
@click.option(
    "--seconds", type=Number(0.1), metavar="S", help="How long they are sent.  [default: 10]"
)
@click.option(
    "--params",
    default="100",
    metavar="FILE|SIZE",
    show_default=True,
    help="A JSON file, or a size such as 100, 2KB, 100KB to make some up.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    show_default=True,
    help="Connections, which share what is in flight.",
)
@click.option(
    "--rate",
    type=Number(0.001),
    metavar="R",
    help="Requests a second; latency counts from when a request was due.",
)
@runner_option
@click.option(
    "--compare",
    nargs=2,
    metavar='"CMD A" "CMD B"',
    help=f"Start two runners, and let them take turns, {_ROUNDS} times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in seconds.")
@click.option(
    "--svg",
    type=click.File("w", encoding="utf-8", lazy=False),
    metavar="FILE",
    help="Write what the terminal shows to a picture, too.",
)
def command(
    arguments: tuple[str, ...],
    in_flight: int,
    requests: int | None,
    seconds: float | None,
    params: str,
    connections: int,
    rate: float | None,
    runner: str | None,
    compare: tuple[str, str] | None,
    as_json: bool,
    svg: TextIO | None,
) -> int:
    """Send many jobs to a runner, and say how long they took and what they cost.

    The CPU time is that of the process that listens, where it runs on this machine and Linux shows
    it. With --compare, --requests and --seconds are those of one turn of one runner, 2 s by
    default, after one that does not count; ratios are medians over the rounds.

    Ctrl-C ends it early, and the figures are those until then.

    Exits with 1 if a job was no success.

    Example: rrq-fastwire load 127.0.0.1:9000 echo --params 2KB --seconds 5
    """
    if runner is not None and compare is not None:
        raise click.UsageError("give --runner or --compare, not both")
    if requests is not None and seconds is not None:
        raise click.UsageError("give --requests or --seconds, not both")
    if connections > in_flight:
        raise click.UsageError(f"{in_flight} in flight are too few for {connections} connections")
    wheres: Sequence[Target | list[str]]
    if compare is not None:
        wheres, rest = [parse_command(text) for text in compare], list(arguments)
    else:
        where, rest = split_target(arguments, runner)
        wheres = [where]
    if len(rest) != 1:
        raise click.UsageError(f"expected one function, got {len(rest)}")
    if requests is None and seconds is None:
        seconds = 10.0 if compare is None else 2.0
    plan = Plan(rest[0], _parse_params(params), in_flight, connections, requests, seconds, rate)

    turns, interrupted = run(_measure(wheres, plan, 1 if compare is None else _ROUNDS))
    if not turns:
        raise click.Abort
    if compare is None:
        [[measured]] = turns
        shown, figures = _report(plan, measured), measured.figures()
    else:
        shown, figures = _comparison(plan, compare, turns), _compared(turns)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, highlight=False, file=nowhere if as_json else None)
        console.print(shown)
    if svg is not None:
        svg.write(console.export_svg(title="rrq-fastwire load"))
    if interrupted:
        return 130
    return 1 if any(measured.failures for turn in turns for measured in turn) else 0


async def _measure(
    wheres: Sequence[Target | list[str]], plan: Plan, rounds: int
) -> tuple[list[list[Measured]], bool]:
    """Return what each runner made of the plan in each round, and whether Ctrl-C ended it early.

    Of a round that Ctrl-C has ended, the part until then counts, if every runner had its turn.
    """
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(reached(where)) for where in wheres]
        clients = [
            [
                await stack.enter_async_context(await target.connect())
                for _ in range(plan.connections)
            ]
            for target in targets
        ]
        progress = stack.enter_context(progress_bar())
        turns: list[list[Measured]] = []
        interrupted = False
        try:
            for number in range(rounds if rounds == 1 else rounds + 1):
                turns.append([])
                for index, target in enumerate(targets):
                    name = plan.function_name
                    if rounds > 1:
                        name = f"{'AB'[index]}, round {number} of {rounds}"
                    await _take_turn(target, clients[index], plan, progress, name, turns[-1])
        except (asyncio.CancelledError, FastwireError, OSError):
            # Ctrl-C reaches a runner that was started here, too, and may end its connections first.
            task = asyncio.current_task()
            interrupted = task is not None and task.cancelling() > 0
            if not interrupted:
                raise
        counted = turns if rounds == 1 else turns[1:]
        return [turn for turn in counted if len(turn) == len(targets)], interrupted


async def _take_turn(
    target: Target,
    clients: list[RunnerClient],
    plan: Plan,
    progress: Progress,
    name: str,
    turn: list[Measured],
) -> None:
    """Send one runner its jobs, and append what was measured, also if it ends early."""
    failures: Counter[str] = Counter()
    latencies = array("d")
    bar = progress.add_task(name, total=plan.requests or plan.seconds)
    before, start = target.cpu_seconds(), time.perf_counter()

    async def watch() -> None:
        # Not with every answer: the bar would cost more than the jobs.
        while True:
            await asyncio.sleep(0.1)
            done = len(latencies) if plan.requests else time.perf_counter() - start
            progress.update(bar, completed=done)

    watching = asyncio.ensure_future(watch())
    try:
        await drive(
            clients,
            plan.function_name,
            plan.params,
            in_flight=plan.in_flight,
            timeout=_DEADLINE_SECONDS,
            requests=plan.requests,
            seconds=plan.seconds,
            rate=plan.rate,
            failures=failures,
            answered=latencies.append,
        )
    finally:
        watching.cancel()
        progress.remove_task(bar)
        if latencies:
            elapsed, after = time.perf_counter() - start, target.cpu_seconds()
            cpu = None if before is None or after is None else after - before
            turn.append(Measured(elapsed, sorted(latencies), cpu, failures))


# Showing


def _title(plan: Plan) -> str:
    size = len(_json_text(plan.params))
    text = f"{plan.function_name}, params of {size:,} B, {plan.in_flight} in flight"
    if plan.connections > 1:
        text += f" on {plan.connections} connections"
    if plan.rate is not None:
        text += f", {plan.rate:,g} requests a second"
    return text


def _json_text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _micros(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e6:,.1f} µs"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.01 else duration(seconds)


def _report(plan: Plan, measured: Measured) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    count = len(measured.latencies)
    table.add_row("requests", f"{count:,} in {duration(measured.seconds)}")
    table.add_row("throughput", f"{measured.throughput:,.0f} a second")
    cpu = _micros(measured.cpu_each)
    if measured.cpu is not None:
        cpu += f" a request, {measured.cpu / measured.seconds:.0%} of a core"
    table.add_row("CPU", cpu)
    percentiles = [f"p{at} {_time(measured.percentile(at))}" for at in _PERCENTILES]
    percentiles.append(f"max {_time(measured.latencies[-1])}")
    table.add_row("latency", "   ".join(percentiles))
    parts: list[RenderableType] = [Text(_title(plan), "bold"), table, Text(), _histogram(measured)]
    if measured.failures:
        parts += [Text(), _failures(measured.failures)]
    return Group(*parts)


def _histogram(measured: Measured) -> Table:
    """Bars of equal width in time up to p99, and one for what is beyond."""
    low, top = measured.latencies[0], measured.percentile(99)
    width = (top - low) / _BARS or 1.0
    counts = [0] * (_BARS + 1)
    for latency in measured.latencies:
        counts[_BARS if latency > top else min(int((latency - low) / width), _BARS - 1)] += 1
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column(style="cyan")
    edges = [*(low + number * width for number in range(1, _BARS)), top, measured.latencies[-1]]
    for edge, count in zip(edges, counts, strict=True):
        if count or edge < top:
            table.add_row(f"to {_time(edge)}", f"{count:,}", _bar(count / max(counts)))
    return table


def _bar(share: float) -> str:
    whole, eighths = divmod(math.ceil(share * _BAR_WIDTH * 8), 8)
    return _BLOCKS[8] * whole + (_BLOCKS[eighths] if eighths else "")


def _failures(failures: Counter[str]) -> Table:
    table = Table("failures", "", box=None, padding=(0, 2, 0, 0), header_style="bold red")
    table.columns[0].justify = "right"
    for message, count in failures.most_common(_FAILURES_SHOWN):
        table.add_row(f"{count:,}", Text(printable(message)))
    others = len(failures) - _FAILURES_SHOWN
    if others > 0:
        table.add_row("", f"and {others:,} other messages")
    return table


# What is compared: a name, how it is read, how it is shown.
_COMPARED: list[tuple[str, Callable[[Measured], float | None], Callable[[float], str]]] = [
    ("throughput", lambda measured: measured.throughput, lambda each: f"{each:,.0f} a second"),
    ("CPU a job", lambda measured: measured.cpu_each, _micros),
    ("p50", lambda measured: measured.percentile(50), _time),
    ("p99", lambda measured: measured.percentile(99), _time),
]


def _medians(
    turns: list[list[Measured]], read: Callable[[Measured], float | None]
) -> tuple[float, float, float] | None:
    """The medians of A, of B, and of B's ratio to A in each round."""
    pairs = [(read(a), read(b)) for a, b in turns]
    known = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0]
    if not known:
        return None
    first, second = zip(*known, strict=True)
    ratio = statistics.median(b / a for a, b in known)
    return statistics.median(first), statistics.median(second), ratio


def _compared(turns: list[list[Measured]]) -> dict[str, Any]:
    """As --json prints it, in seconds."""
    figures: dict[str, Any] = {}
    for name, read, _ in _COMPARED:
        medians = _medians(turns, read)
        figures[name] = (
            None if medians is None else dict(zip(["A", "B", "B/A"], medians, strict=True))
        )
    rounds = [
        {name: measured.figures() for name, measured in zip("AB", turn, strict=True)}
        for turn in turns
    ]
    return {**figures, "rounds": rounds}


def _comparison(
    plan: Plan, commands: tuple[str, str], turns: list[list[Measured]]
) -> RenderableType:
    table = Table("", "A", "B", "B to A", title=_title(plan), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, read, shown in _COMPARED:
        medians = _medians(turns, read)
        if medians is None:
            table.add_row(name, "not known", "not known", "")
            continue
        a, b, ratio = medians
        table.add_row(name, shown(a), shown(b), f"{ratio:.2f}")
    parts: list[RenderableType] = [table]
    for name, started in zip("AB", commands, strict=True):
        parts.append(Text(f"{name}: {started}", "dim"))
    for index, name in enumerate("AB"):
        failures = sum((turn[index].failures for turn in turns), Counter[str]())
        if failures:
            parts += [Text(f"\n{name}", "bold"), _failures(failures)]
    return Group(*parts)
