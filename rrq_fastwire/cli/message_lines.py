"""Format messages as `tap` and `decode` print them: one line each, in columns.

On a terminal, lines are cut to its width, and ids to eight characters. In a file or pipe nothing is
cut.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from rich.highlighter import JSONHighlighter
from rich.text import Text

from .. import ExecutionOutcome, OutcomeStatus
from .formatting import byte_count, duration, printable
from .json_text import indented, members, on_one_line
from .redaction import HIDDEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console

    from .. import CancelRequest, ExecutionError, ExecutionRequest, MessageError
    from .redaction import Redaction

_STATUS_STYLES = {"success": "green", "retry": "yellow", "timeout": "red", "error": "red"}
TO_RUNNER, FROM_RUNNER = "->", "<-"

# Widths of columns on a terminal: an id, a note such as "attempt 1" or "123.4 ms", and the least
# and the most for a name.
_ID_WIDTH = 8
_NOTE_WIDTH = 9
_NAME_WIDTHS = (7, 24)

# The share of a terminal's width for the two names together. In 80 columns, this leaves at least 19
# for the content.
_NAMES_SHARE = 1 / 4

# Of a payload with more bytes, only their number is shown: formatting it would delay later lines.
LONGEST_PAYLOAD = 64 * 1024

TOO_DEEP = "nested too deep to show"

_colour = JSONHighlighter()


class Row(NamedTuple):
    """The columns of one message.

    Attributes:
        arrow: the direction of the message.
        word: the function of a request, the status of a response, or what else the row is about.
        style: rich's style of `word`.
        id: the job's id.
        note: the attempt of a request, or the time that a response took.
        name: the function of a response, or the time until the deadline of a request.
        content: the params, result or error; JSON if `is_json`.
    """

    arrow: str
    word: str
    style: str
    id: str
    note: str = ""
    name: str = ""
    content: str = ""
    is_json: bool = False


class Payload:
    """The JSON of a message's payload, without the values that redaction hides.

    Arguments:
        frame: the payload of the message's frame. May be empty if it is too long to show.
        size: its size in bytes.
    """

    def __init__(self, frame: bytes, size: int, redaction: Redaction) -> None:
        self.redaction = redaction
        self._frame = frame
        self._size = size

    def whole(self) -> str | None:
        """Return the payload as JSON, or None if it is too long or nested too deep to show."""
        if self._size > LONGEST_PAYLOAD:
            return None
        try:
            document = members(self._frame.decode())["payload"]
            return self.redaction.document(on_one_line(document))
        except RecursionError:
            return None

    def member(self, name: str, default: str) -> str:
        """Return a member of the payload as JSON, `default` if it is missing, or why not."""
        if self._size > LONGEST_PAYLOAD:
            return f"{byte_count(self._size)}, too long to show"
        try:
            text = members(members(self._frame.decode())["payload"]).get(name, default)
            if name in self.redaction.keys:
                return f'"{HIDDEN}"'
            return self.redaction.document(on_one_line(text))
        except RecursionError:
            return TOO_DEEP


def request_row(request: ExecutionRequest, payload: Payload, name: str = "") -> Row:
    """Return the row of a request, with `name` in the column of a response's function."""
    return Row(
        TO_RUNNER,
        payload.redaction.field("function_name", request.function_name),
        "bold blue",
        payload.redaction.field("job_id", request.job_id),
        f"attempt {request.context.attempt}",
        name,
        payload.member("params", "{}"),
        is_json=True,
    )


def response_row(
    outcome: ExecutionOutcome,
    payload: Payload,
    request: ExecutionRequest | None = None,
    seconds: float | None = None,
) -> Row:
    """Return the row of a response.

    Arguments:
        request: the request that it answers, if that is known.
        seconds: the time between the two, if that is known.
    """
    status, redaction = str(outcome.status), payload.redaction
    succeeded = outcome.status is OutcomeStatus.SUCCESS
    job = outcome.job_id or (request.job_id if request is not None else "-")
    return Row(
        FROM_RUNNER,
        status,
        _STATUS_STYLES[status],
        redaction.field("job_id", job),
        "" if seconds is None else duration(seconds),
        "" if request is None else redaction.field("function_name", request.function_name),
        payload.member("result", "null") if succeeded else _reason(outcome, redaction),
        is_json=succeeded,
    )


def _reason(outcome: ExecutionOutcome, redaction: Redaction) -> str:
    """Return why a job did not succeed."""
    parts: list[str] = []
    if outcome.retry_after_seconds is not None:
        parts.append(f"in {duration(outcome.retry_after_seconds)}:")
    error = outcome.error
    if error is not None and "error" in redaction.keys:
        parts.append(HIDDEN)
    elif error is not None:
        named = {"type": error.type, "code": error.code}
        kinds = [
            redaction.field(name, kind)
            for name, kind in named.items()
            if kind and kind != outcome.status
        ]
        if kinds:
            parts.append(f"({', '.join(kinds)})")
        parts.append(redaction.field("message", error.message))
        if error.details is not None:
            parts.append(_details(error, redaction))
    return " ".join(parts).removesuffix(":")


def _details(error: ExecutionError, redaction: Redaction) -> str:
    if "details" in redaction.keys:
        return HIDDEN
    try:
        document = json.dumps(error.details, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return TOO_DEEP
    return redaction.document(document)


def cancel_row(cancel: CancelRequest, content: str, redaction: Redaction) -> Row:
    """Return the row of a cancel; `content` says what it cancels."""
    job = redaction.field("job_id", cancel.job_id)
    return Row(TO_RUNNER, "cancel", "bold yellow", job, content=content)


def invalid_row(arrow: str, error: MessageError, redaction: Redaction) -> Row:
    """Return the row of a payload that is not a valid message."""
    # The reason may quote a value.
    reason = (error.path or "the document") if redaction else str(error)
    job = redaction.field("job_id", error.job_id or "-")
    return Row(arrow, "invalid", "bold red", job, content=reason)


class MessageLines:
    """Format rows for one console, in columns that grow with the names in them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cut = console.file.isatty()
        self._names = _NAME_WIDTHS[0]

    def line(self, before: str, row: Row) -> Text:
        """Return the line of a row, with `before` as its first column."""
        width = self._console.width
        words = [printable(text) for text in (row.word, row.id, row.name)]
        if self._cut:
            most = max(_NAME_WIDTHS[0], min(int(width * _NAMES_SHARE / 2), _NAME_WIDTHS[1]))
            self._names = max(self._names, *(min(len(words[at]), most) for at in (0, 2)))
            words = [_shortened(text, self._names) for text in words]
            words[1] = printable(row.id)[:_ID_WIDTH]
        word, job, name = words
        line = Text.assemble(
            (f"{before}  ", "dim"),
            row.arrow,
            " ",
            (f"{word:{self._names}}", row.style),
            (f"  {job:{_ID_WIDTH}}  ", "dim"),
        )
        if row.note or name:
            line.append(f"{row.note:{_NOTE_WIDTH}} ").append(f"{name:{self._names}}  ", "bold")
        content = row.content
        if self._cut:
            content = content[: 4 * width]  # formatting the rest, which is cut off, would take time
        content = printable(content)
        line.append_text(self._coloured(content) if row.is_json else Text(content))
        if self._cut:
            line.truncate(width, overflow="ellipsis")
        line.rstrip()
        return line

    def payload(self, document: str) -> Text:
        """Return a whole payload, a line for each member."""
        lines = indented(document).split("\n")
        return self._coloured("\n".join(f"    {printable(line)}" for line in lines))

    def _coloured(self, document: str) -> Text:
        # Skipped if possible, because it takes three times as long as everything else.
        return _colour(document) if self._console.color_system is not None else Text(document)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
