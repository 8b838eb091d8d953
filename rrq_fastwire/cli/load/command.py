"""The command `load`: its options, and made-up params."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console

from ... import _json
from ..formatting import json_for_stdout
from ..target import Number, Target, parse_command, run, runner_option, split_target
from .measurement import Plan, measure
from .report import compared_figures, comparison, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# How many rounds of a comparison count. One round before them warms up the runners.
_ROUNDS = 5

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KB|MB)?", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 1000, "MB": 1000_000}
_LARGEST = 15_000_000  # with its envelope it must fit into a frame


def _parse_params(text: str) -> dict[str, Any]:
    """Return the params in a JSON file, or made-up ones of a size. Raises UsageError."""
    if size := _SIZE.fullmatch(text):
        length = float(size[1]) * _UNITS[(size[2] or "B").upper()]
        if not 2 <= length <= _LARGEST:
            raise click.UsageError(f"--params: {text!r} is not from 2 B to {_LARGEST // 10**6} MB")
        return _made_up(int(length))
    try:
        params = _json.loads(Path(text).read_bytes())
    except OSError as error:
        raise click.UsageError(
            f"--params: {text!r} is neither a size nor a readable file: {error.strerror}"
        ) from None
    except ValueError as error:
        raise click.UsageError(f"--params: {text!r} is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise click.UsageError(f"--params: {text!r} does not hold a JSON object")
    return params


def _made_up(size: int) -> dict[str, Any]:
    """Return params that take `size` bytes as compact JSON: records, and text to fill up."""
    record = {"id": 123456, "email": "someone@example.com", "active": True, "score": 0.5}
    empty, each = len('{"text":"","records":[]}'), len(json.dumps(record, separators=(",", ":")))
    if size < empty:
        # {} has 2 bytes, and {"t":""} has 8.
        return {} if size < 8 else {"t": "x" * (size - 8)}
    records, rest = divmod(size - empty + 1, each + 1)
    text = "x" * (rest if records else rest - 1)
    return {"text": text, "records": [record] * records}


@click.command("load")
@click.argument("arguments", nargs=-1, metavar="[HOST:PORT] FUNCTION")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 100_000),
    default=64,
    metavar="N",
    show_default=True,
    help="The number of requests in flight.",
)
@click.option(
    "--requests", type=click.IntRange(1, 10**9), metavar="N", help="Stop after N requests."
)
@click.option(
    "--seconds", type=Number(0.1), metavar="S", help="Stop after S seconds.  [default: 10]"
)
@click.option(
    "--params",
    default="100",
    metavar="FILE|SIZE",
    show_default=True,
    help="A JSON file, or a size such as 100, 2KB, 1.5MB for made-up params; 1KB is 1000 bytes.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    show_default=True,
    help="The number of connections, which share the requests in flight.",
)
@click.option(
    "--rate",
    type=Number(0.001),
    metavar="R",
    help="Send R requests a second; latency counts from when a request was due.",
)
@runner_option
@click.option(
    "--compare",
    nargs=2,
    metavar='"CMD A" "CMD B"',
    help=f"Start two runners, and measure them in turn, {_ROUNDS} times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in seconds.")
@click.option(
    "--svg",
    type=click.File("w", encoding="utf-8", lazy=False),
    metavar="FILE",
    help="Also write the output to an SVG picture.",
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
    """Send many jobs to a runner and measure them.

    Prints throughput, latencies and the runner's CPU time.

    The CPU time is that of the process that listens. It is known only if that runs on this machine
    and the system is Linux. With --compare, the runners take turns; --requests or --seconds limits
    one turn, 2 s by default. A first round does not count. Figures are medians over the others.

    Ctrl-C ends the measurement early; the figures are those up to then.

    Exits with 1 if a job did not succeed.

    Example: rrq-fastwire load 127.0.0.1:9000 echo --params 2KB --seconds 5
    """
    if runner is not None and compare is not None:
        raise click.UsageError("give --runner or --compare, not both")
    if requests is not None and seconds is not None:
        raise click.UsageError("give --requests or --seconds, not both")
    if connections > in_flight:
        raise click.UsageError(
            f"--in-flight {in_flight} is too small for {connections} connections"
        )
    sources: Sequence[Target | list[str]]
    if compare is not None:
        sources, rest = [parse_command(text) for text in compare], list(arguments)
    else:
        source, rest = split_target(arguments, runner)
        sources = [source]
    if len(rest) != 1:
        raise click.UsageError(f"expected one function, got {len(rest)}")
    if requests is None and seconds is None:
        seconds = 10.0 if compare is None else 2.0
    plan = Plan(rest[0], _parse_params(params), in_flight, connections, requests, seconds, rate)

    turns, interrupted = run(measure(sources, plan, 1 if compare is None else _ROUNDS))
    if not turns:
        raise click.Abort
    if compare is None:
        [[measured]] = turns
        shown, figures = report(plan, measured), measured.figures()
    else:
        shown, figures = comparison(plan, compare, turns), compared_figures(turns)
    if as_json:
        print(json_for_stdout()(json.dumps(figures, ensure_ascii=False)))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, highlight=False, file=nowhere if as_json else None)
        console.print(shown)
    if svg is not None:
        svg.write(console.export_svg(title="rrq-fastwire load"))
    if interrupted:
        return 130
    return 1 if any(measured.failures for turn in turns for measured in turn) else 0
