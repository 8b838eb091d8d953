"""Print lines in a thread of its own, so that printing does not delay the connections."""

from __future__ import annotations

import textwrap
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from queue import SimpleQueue
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from ..message_lines import MessageLines, Payload, Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..redaction import Redaction

# The most lines, and bytes of payload in them, that wait to be printed. Further messages are
# skipped. Lines wait because the terminal is slow, or because of _rest().
_MOST_WAITING = 500
_MOST_HELD = 32 * 1024 * 1024

# How long to print without a pause, in CPU seconds. Connections may have to wait for that long.
_STRETCH_SECONDS = 0.001

# How long printing the waiting lines may take at the end.
_PRINT_SECONDS = 5.0

# The indentation of the later lines of a remark, as wide as the time and the space after it.
_INDENT = " " * 14


class Line(NamedTuple):
    """Something to print: the row of a message, or a remark.

    Attributes:
        moment: when the message passed, in time.time().
        before: the text between the time and the row.
        row: the remark, or a function that returns the row when the line is printed.
        frame: the payload of the message's frame; empty if it is too long to show.
        size: the size of that payload in bytes.
    """

    moment: float
    before: str
    row: Callable[[Payload, Redaction], Row] | Text
    frame: bytes = b""
    size: int = 0


class Printer(threading.Thread):
    """The thread that prints lines.

    Attributes:
        view: what is shown permanently below the lines.
        failed: called in this thread when nothing more can be printed.
        error: why nothing more can be printed; None if the reason is a closed pipe.
    """

    def __init__(self, console: Console, redaction: Redaction, *, verbose: bool) -> None:
        super().__init__(daemon=True)
        self.console = console
        self.view: AbstractContextManager[object] = nullcontext()
        self.failed: Callable[[], object] = lambda: None
        self.error: OSError | None = None
        self._lines = MessageLines(console)
        self._redaction = redaction
        self._verbose = verbose
        self._queue: SimpleQueue[Line | Table | None] = SimpleQueue()
        self._given = self._taken = 0  # bytes; each counter is changed by only one thread
        self._skipped = 0
        self._lock = threading.Lock()  # guards _skipped
        self._finishing = threading.Event()
        self._rested = 0.0  # the thread's CPU time at its last rest

    def put(self, line: Line) -> None:
        """Queue a line for printing, unless too many wait already."""
        waiting, held = self._queue.qsize(), self._given - self._taken
        # Skip until the queue is short again. So both the skipped and the printed lines come in
        # long runs, and fewer remarks are needed.
        most = 1 if self._skipped == 0 else 0.2
        if waiting >= most * _MOST_WAITING or held > most * _MOST_HELD:
            with self._lock:
                self._skipped += 1
            return
        self._queue_skipped()
        self._given += len(line.frame)
        self._queue.put(line)

    def _queue_skipped(self) -> None:
        with self._lock:
            count, self._skipped = self._skipped, 0
        if count:
            text = f"{count} messages skipped: more than can be printed"
            self._queue.put(Line(time.time(), "", Text(text, "yellow")))

    def finish(self, table: Table | None) -> bool:
        """Print the waiting lines and then a table; return False if that takes too long."""
        self._queue_skipped()
        if table is not None:
            self._queue.put(table)
        self._queue.put(None)
        self._finishing.set()
        self.join(_PRINT_SECONDS)
        return not self.is_alive()

    def run(self) -> None:
        try:
            with self.view:
                while (item := self._queue.get()) is not None:
                    if isinstance(item, Table):
                        self.console.print(item)
                        continue
                    self._print(item)
                    self._taken += len(item.frame)
                    if self._queue.empty():
                        self._queue_skipped()  # the next line may come much later
                    self._rest()
        except (OSError, SystemExit) as error:  # rich raises SystemExit for a closed pipe
            if isinstance(error, OSError):
                self.error = error
            with suppress(RuntimeError):  # the event loop has ended already
                self.failed()

    def _rest(self) -> None:
        """Wait, so that the thread that passes bytes on has the interpreter 90 % of the time."""
        spent = time.thread_time() - self._rested
        if spent > _STRETCH_SECONDS:
            self._finishing.wait(9 * spent)
            self._rested = time.thread_time()

    def _print(self, line: Line) -> None:
        moment = datetime.fromtimestamp(line.moment).time().isoformat("milliseconds")
        before = f"{moment}  {line.before}".rstrip()
        if isinstance(line.row, Text):
            self.console.print(self._remark(before, line.row))
            return
        payload = Payload(line.frame, line.size, self._redaction)
        self.console.print(self._lines.line(before, line.row(payload, self._redaction)))
        if self._verbose and line.frame:
            whole = payload.whole()
            if whole is not None:
                self.console.print(self._lines.payload(whole))

    def _remark(self, before: str, remark: Text) -> Text:
        text = remark.plain
        if self.console.file.isatty():
            text = f"\n{_INDENT}".join(
                textwrap.wrap(
                    text,
                    max(self.console.width - len(_INDENT), 20),
                    initial_indent=" " * (len(before) + 2 - len(_INDENT)),
                )
            ).lstrip()
        return Text.assemble((f"{before}  ", "dim"), (text, remark.style))
