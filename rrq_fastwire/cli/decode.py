"""`decode`: show the messages in raw captures."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import click
from rich.console import Console
from rich.progress import DownloadColumn
from rich.text import Text

from .. import (
    ExecutionOutcome,
    ExecutionRequest,
    MessageError,
    decode_payload,
)
from .captures import BrokenStreamError, InputFile, frames
from .formatting import duration, json_for_stdout, printable
from .json_text import members, on_one_line
from .message_lines import (
    TOO_DEEP,
    MessageLines,
    Payload,
    cancel_row,
    invalid_row,
    request_row,
    response_row,
)
from .progress import default_columns, progress_bar
from .redaction import HIDDEN, Redaction, redact_option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from datetime import date

    from .. import RunnerMessage
    from .captures import Frame
    from .message_lines import Row


class Decoded(NamedTuple):
    """A frame and its content: a message, or what is wrong with it.

    Attributes:
        kind: the JSON of the envelope's type, quotes included.
        payload: the JSON of the envelope's payload, as it is written.

    For an invalid message, both are "null".
    """

    frame: Frame
    message: RunnerMessage | MessageError
    kind: str
    payload: str


def decoded(frame: Frame) -> Decoded:
    """Decode a frame."""
    try:
        message = decode_payload(frame.payload)
        fields = members(frame.payload.decode())
    except MessageError as error:
        return Decoded(frame, error, "null", "null")
    except RecursionError:
        deep = MessageError(TOO_DEEP, frame.payload)
        return Decoded(frame, deep, "null", "null")
    return Decoded(frame, message, fields["type"], on_one_line(fields["payload"]))


@click.command("decode")
@click.argument("files", nargs=-1, required=True, type=InputFile(), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, for `encode` and jq.")
@click.option("--verbose", is_flag=True, help="Also show offsets and whole payloads, indented.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["request", "response", "cancel"]),
    help="Show only this type.",
)
@click.option("--job", metavar="ID", help="Show only messages of this job.")
@click.option("--function", metavar="NAME", help="Show only requests of this function.")
@redact_option
def command(
    files: tuple[BinaryIO, ...],
    as_json: bool,
    verbose: bool,
    kind: str | None,
    job: str | None,
    function: str | None,
    redact: Redaction,
) -> int:
    """Show the messages in raw captures.

    A capture holds what one side wrote to a connection; - is stdin. Each message is one line. A
    request is shown with its function, job id, attempt, deadline and params; a response with its
    status, job id and result, or the reason why the job did not succeed. On a terminal, lines are
    cut to its width, and ids to eight characters.

    A capture does not hold the times at which messages passed. The time of a request is when its
    job was enqueued, in UTC. A deadline such as +5 min counts from that time.

    With --json, each line is an object with four keys: "offset" and "length", how many bytes
    precede the frame and how many its payload has, and "type" and "payload" of the envelope,
    unknown fields included. An invalid payload is shown as {"error", "path"}.

    Exits with 1 if a capture is broken, ends within a frame, or cannot be read.

    Example: rrq-fastwire decode --type request --function send_email capture.bin
    """
    printer = _Printer(redact, verbose=verbose)
    as_written = json_for_stdout()
    status = 0
    for file in files:
        name = printable(file.name)
        if len(files) > 1 and not as_json:
            printer.print_file_name(name)
        is_empty = True
        try:
            with _progress(file) as advance:
                for frame in frames(file, advance):
                    is_empty = False
                    item = decoded(frame)
                    if not _is_wanted(item, kind, job, function):
                        continue
                    if as_json:
                        print(as_written(_json_line(item, redact)))
                    else:
                        printer.print_message(item)
        except BrokenStreamError as error:
            sys.stdout.flush()
            click.echo(f"{name}: {error}", err=True)
            status = 1
        else:
            if is_empty:
                click.echo(f"{name}: the capture is empty", err=True)
    return status


def _is_wanted(item: Decoded, kind: str | None, job: str | None, function: str | None) -> bool:
    return (
        (kind is None or json.loads(item.kind) == kind)
        and (job is None or item.message.job_id == job)
        and (function is None or getattr(item.message, "function_name", None) == function)
    )


def _json_line(item: Decoded, redact: Redaction) -> str:
    if isinstance(item.message, MessageError):
        # The reason may quote a value.
        reason = HIDDEN if redact else item.message.reason
        payload = json.dumps({"error": reason, "path": item.message.path})
    else:
        payload = redact.document(item.payload)
    frame = item.frame
    return (
        f'{{"offset":{frame.offset},"length":{len(frame.payload)},'
        f'"type":{item.kind},"payload":{payload}}}'
    )


class _Printer:
    """Print the messages of several captures for a person to read."""

    def __init__(self, redaction: Redaction, *, verbose: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._lines = MessageLines(self._console)
        self._redaction = redaction
        self._verbose = verbose
        self._date: date | None = None

    def print_file_name(self, name: str) -> None:
        """Print the name of the file whose messages follow."""
        self._console.print(Text(name, "bold"))
        self._date = None

    def print_message(self, item: Decoded) -> None:
        """Print a message, and before it the date of its job if that has changed."""
        frame = item.frame
        payload = Payload(frame.payload, len(frame.payload), self._redaction)
        time = ""
        if isinstance(item.message, ExecutionRequest):
            enqueued = item.message.context.enqueue_time
            time = enqueued.time().isoformat("milliseconds")
            if enqueued.date() != self._date:
                self._date = enqueued.date()
                self._console.print(Text(f"jobs enqueued on {self._date}, UTC", "dim"))
        self._console.print(self._lines.line(f"{time:12}", self._row(item.message, payload)))
        if self._verbose:
            where = f"    #{frame.number} at offset {frame.offset}, {len(frame.payload)} B"
            self._console.print(Text(where, "dim"))
            whole = None if isinstance(item.message, MessageError) else payload.whole()
            if whole is not None:
                self._console.print(self._lines.payload(whole))

    def _row(self, message: RunnerMessage | MessageError, payload: Payload) -> Row:
        if isinstance(message, MessageError):
            return invalid_row("  ", message, self._redaction)
        if isinstance(message, ExecutionRequest):
            return request_row(message, payload, _time_allowed(message))
        if isinstance(message, ExecutionOutcome):
            return response_row(message, payload)
        what = "whole job"
        if message.request_id is not None:
            what = f"request {self._redaction.field('request_id', message.request_id)}".rstrip()
        return cancel_row(message, f"cancels the {what}", self._redaction)


def _time_allowed(request: ExecutionRequest) -> str:
    """Return the time from a job's enqueueing to its deadline, such as "+5 min"."""
    deadline = request.context.deadline
    if deadline is None:
        return ""
    seconds = (deadline - request.context.enqueue_time).total_seconds()
    return f"{'+' if seconds >= 0 else ''}{duration(seconds)}"


@contextmanager
def _progress(file: BinaryIO) -> Generator[Callable[[int], object]]:
    """Show a progress bar on stderr if the file's size is known and stdout is not a terminal."""
    try:
        size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        size = 0
    if not size or sys.stdout.isatty():
        yield lambda _: None
        return
    with progress_bar(*default_columns(), DownloadColumn(), transient=False) as progress:
        task = progress.add_task(printable(file.name), total=size)
        yield lambda count: progress.advance(task, count)
