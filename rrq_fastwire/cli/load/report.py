"""Format the figures of `load` for a terminal, and those of a comparison for --json."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..formatting import duration, printable
from .measurement import PERCENTILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from .measurement import Measured, Plan

_BARS = 12
_BAR_WIDTH = 40
_BLOCKS = " ▏▎▍▌▋▊▉█"
_FAILURES_SHOWN = 10


def _title(plan: Plan) -> str:
    size = len(_json_text(plan.params))
    text = f"{printable(plan.function_name)}, params of {size:,} B, {plan.in_flight} in flight"
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


def report(plan: Plan, measured: Measured) -> RenderableType:
    """Return the figures, a histogram and the failures of one runner."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    count = len(measured.latencies)
    table.add_row("requests", f"{count:,} in {duration(measured.seconds)}")
    table.add_row("throughput", f"{measured.throughput:,.0f} a second")
    cpu = _micros(measured.cpu_each)
    if measured.cpu is not None:
        cpu += f" per request, {measured.cpu / measured.seconds:.0%} of a core"
    table.add_row("CPU", cpu)
    percentiles = [f"p{at} {_time(measured.percentile(at))}" for at in PERCENTILES]
    percentiles.append(f"max {_time(measured.latencies[-1])}")
    table.add_row("latency", "   ".join(percentiles))
    parts: list[RenderableType] = [Text(_title(plan), "bold"), table, Text(), _histogram(measured)]
    if measured.failures:
        parts += [Text(), _failures(measured.failures)]
    return Group(*parts)


def _histogram(measured: Measured) -> Table:
    """Return a histogram: bars that cover equal times up to p99, and one for all above."""
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


# What is compared: a name, how to get the figure, and how to format it.
_COMPARED: list[tuple[str, Callable[[Measured], float | None], Callable[[float], str]]] = [
    ("throughput", lambda measured: measured.throughput, lambda each: f"{each:,.0f} a second"),
    ("CPU per job", lambda measured: measured.cpu_each, _micros),
    ("p50", lambda measured: measured.percentile(50), _time),
    ("p99", lambda measured: measured.percentile(99), _time),
]


def _medians(
    turns: list[list[Measured]], read: Callable[[Measured], float | None]
) -> tuple[float, float, float] | None:
    """Return the medians of A, of B, and of B's ratio to A in each round."""
    pairs = [(read(a), read(b)) for a, b in turns]
    known = [(a, b) for a, b in pairs if a is not None and b is not None and a > 0]
    if not known:
        return None
    first, second = zip(*known, strict=True)
    ratio = statistics.median(b / a for a, b in known)
    return statistics.median(first), statistics.median(second), ratio


def compared_figures(turns: list[list[Measured]]) -> dict[str, Any]:
    """Return what --json prints, in seconds."""
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


def comparison(
    plan: Plan, commands: tuple[str, str], turns: list[list[Measured]]
) -> RenderableType:
    """Return the medians of two runners, their ratios and their failures."""
    title = Text(_title(plan), "table.title")  # rich would read markup in a str
    table = Table("", "A", "B", "B to A", title=title, title_justify="left")
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
