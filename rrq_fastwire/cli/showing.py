"""Messages in a terminal: a line of what it is and whose, and its JSON in colour."""

from __future__ import annotations

import json

import click
from rich.highlighter import JSONHighlighter
from rich.text import Text

from .. import ExecutionOutcome, ExecutionRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    from .. import RunnerMessage

_STATUS_STYLES = {"success": "green", "retry": "yellow", "timeout": "red", "error": "red"}
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_colour = JSONHighlighter()


def redact_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--redact KEY,...`: gives the command a frozenset of keys."""
    return click.option(
        "--redact",
        metavar="KEY,...",
        default="",
        callback=_split_keys,
        help="Hide the values of these keys, at any depth.",
    )(command)


def _split_keys(_context: click.Context, _option: click.Parameter, text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def redacted_text(document: str, keys: frozenset[str]) -> str:
    """JSON as it stands, or written anew without the values of `keys`, if there are any."""
    if not keys:
        return document

    def hide(values: dict[str, Any]) -> dict[str, Any]:
        return {key: "***" if key in keys else value for key, value in values.items()}

    value = json.loads(document, object_hook=hide)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def coloured(document: str) -> Text:
    """JSON, as it stands."""
    return _colour(document)


def title(message: RunnerMessage, now: datetime | None = None) -> Text:
    """Return what a message is, whose, and its times.

    Arguments:
        now: when the message passed. If None, as for a capture, which does not have that, the
            deadline is counted from when the job was enqueued.
    """
    if isinstance(message, ExecutionRequest):
        context = message.context
        text = Text.assemble(("request ", "bold blue"), (printable(message.function_name), "bold"))
        _append_ids(text, message.job_id, message.request_id)
        enqueued, deadline = context.enqueue_time, context.deadline
        if now is None:
            text.append(f"  attempt {context.attempt}, enqueued {enqueued:%Y-%m-%d %H:%M:%S} UTC")
            if deadline is not None:
                seconds = (deadline - enqueued).total_seconds()
                text.append(f", deadline {duration(abs(seconds))} ")
                text.append("after that" if seconds >= 0 else "before that")
            return text
        text.append(f"  attempt {context.attempt}, enqueued {_away(now, enqueued)}")
        if deadline is not None:
            word = "deadline" if deadline > now else "deadline passed"
            text.append(f", {word} {_away(now, deadline)}")
        return text
    if isinstance(message, ExecutionOutcome):
        status = str(message.status)
        text = Text.assemble(("response ", "bold magenta"), (status, _STATUS_STYLES[status]))
        _append_ids(text, message.job_id, message.request_id)
        return text
    text = Text("cancel", "bold yellow")
    _append_ids(text, message.job_id, message.request_id)
    return text


def _append_ids(text: Text, job_id: str | None, request_id: str | None) -> None:
    text.append(f"  job {printable(job_id or '-')}  request {printable(request_id or '-')}", "dim")


def _away(now: datetime, moment: datetime) -> str:
    seconds = (moment - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def printable(text: str) -> str:
    """Text on one line, without what a terminal would act on."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def duration(seconds: float) -> str:
    """A time in one unit, or two: "3 h 5 min", "12.3 ms"."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts = []
    for unit, size in _UNITS:
        count, seconds = divmod(int(seconds), size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
