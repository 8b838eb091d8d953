"""Count the requests of each function, in constant memory."""

from __future__ import annotations

import math
from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..formatting import byte_count, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..redaction import Redaction

# Latencies are counted in buckets, each one percent larger than the one before.
_STEP = math.log(1.01)


class Latencies:
    """Count any number of latencies in constant memory, exact to one percent."""

    def __init__(self) -> None:
        self._steps: Counter[int] = Counter()
        self._count = 0
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self._steps[math.ceil(math.log(max(seconds, 1e-9)) / _STEP)] += 1
        self._count += 1
        self._longest = max(self._longest, seconds)

    def at(self, share: float) -> str:
        """Return the milliseconds that this share of the latencies did not exceed, as text."""
        if not self._count:
            return "-"
        # add() counts in _steps before _count, and another thread may add meanwhile. So the steps
        # suffice.
        left = share * self._count
        steps = sorted(self._steps.copy().items())
        step = next(step for step, count in steps if (left := left - count) <= 0)
        return f"{min(math.exp(step * _STEP), self._longest) * 1000:,.1f}"


class FunctionCounts:
    """The counts of one function: requests, answers, failures, bytes and latencies."""

    def __init__(self) -> None:
        self.requests = self.answers = self.failures = 0
        self.bytes_to = self.bytes_from = 0
        self.latencies = Latencies()


def function_table(functions: dict[str, FunctionCounts], redaction: Redaction) -> Table:
    """Return the table of all functions, sorted by name."""
    table = Table(
        *("function", "requests", "failed", "no\nanswer"),
        *("p50\nms", "p95\nms", "p99\nms", "max\nms", "to\nrunner", "from\nrunner"),
        box=SIMPLE_HEAD,
        padding=0,
    )
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for name, function in sorted(functions.items()):
        table.add_row(
            Text(printable(redaction.field("function_name", name))),
            f"{function.requests:,}",
            f"{function.failures:,}",
            f"{function.requests - function.answers:,}",
            *map(function.latencies.at, (0.5, 0.95, 0.99, 1.0)),
            byte_count(function.bytes_to),
            byte_count(function.bytes_from),
        )
    return table
