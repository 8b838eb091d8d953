"""`decode`: a raw capture, readable."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import click
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from rich.text import Text

from .. import MessageError, decode_frame, pack_frame
from .progress import progress_bar
from .showing import coloured, redact_option, redacted_text, title
from .wire import BrokenStreamError, frames, members, on_one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .. import RunnerMessage
    from .wire import Frame


class Decoded(NamedTuple):
    """A frame, and what is in it: a message, or what is wrong with it.

    Attributes:
        kind: the text of the envelope's type, quotes included; "null" for what is no message.
        payload: the text of the envelope's payload, as it stands.
    """

    frame: Frame
    message: RunnerMessage | None
    error: MessageError | None
    kind: str
    payload: str


def decoded(frame: Frame) -> Decoded:
    """What is in a frame."""
    try:
        message = decode_frame(pack_frame(frame.payload))
        fields = members(frame.payload.decode())
    except MessageError as error:
        return Decoded(frame, None, error, "null", "null")
    except RecursionError:
        deep = MessageError("nested too deep to be shown", frame.payload)
        return Decoded(frame, None, deep, "null", "null")
    return Decoded(frame, message, None, fields["type"], on_one_line(fields["payload"]))


@click.command
@click.argument("files", nargs=-1, required=True, type=click.File("rb"), metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="An object a line, for `encode` and jq.")
@click.option(
    "--type", "kind", type=click.Choice(["request", "response", "cancel"]), help="Only these."
)
@click.option("--job", metavar="ID", help="Only messages of this job.")
@click.option("--function", metavar="NAME", help="Only requests of this function.")
@redact_option
def command(
    files: tuple[BinaryIO, ...],
    as_json: bool,
    kind: str | None,
    job: str | None,
    function: str | None,
    redact: frozenset[str],
) -> int:
    """Show the messages in raw captures: what one side wrote to a connection. - is stdin.

    With --json each line is {"offset", "length", "type", "payload"}: the bytes before the frame,
    the bytes of its payload, and what stands in the envelope, unknown fields included. In the place
    of a payload that is no message stands {"error", "path"}.

    Exits with 1 if a capture is broken or ends within a frame.

    Example: rrq-fastwire decode --type request --function send_email capture.bin
    """
    console = Console(highlight=False, soft_wrap=True)
    status = 0
    for file in files:
        try:
            with _progress(file) as advance:
                for frame in frames(file, advance):
                    item = decoded(frame)
                    if not _is_wanted(item, kind, job, function):
                        continue
                    if as_json:
                        print(_json_line(item, redact))
                    else:
                        _show(console, item, redact)
        except BrokenStreamError as error:
            sys.stdout.flush()
            click.echo(f"{file.name}: {error}", err=True)
            status = 1
    return status


def _is_wanted(item: Decoded, kind: str | None, job: str | None, function: str | None) -> bool:
    job_id = item.message.job_id if item.message is not None else None
    if item.error is not None:
        job_id = item.error.job_id
    return (
        (kind is None or item.kind == f'"{kind}"')
        and (job is None or job_id == job)
        and (function is None or getattr(item.message, "function_name", None) == function)
    )


def _json_line(item: Decoded, redact: frozenset[str]) -> str:
    if item.error is not None:
        payload = json.dumps({"error": item.error.reason, "path": item.error.path})
    else:
        payload = redacted_text(item.payload, redact)
    frame = item.frame
    return (
        f'{{"offset":{frame.offset},"length":{len(frame.payload)},'
        f'"type":{item.kind},"payload":{payload}}}'
    )


def _show(console: Console, item: Decoded, redact: frozenset[str]) -> None:
    frame = item.frame
    text = Text(f"#{frame.number} @{frame.offset} {len(frame.payload)} B  ", "dim")
    if item.message is None:
        console.print(text.append(f"no message: {item.error}", "not dim red"))
        return
    console.print(Text.assemble(text, title(item.message)))
    console.print(Text("  ").append_text(coloured(redacted_text(item.payload, redact))))


@contextmanager
def _progress(file: BinaryIO) -> Generator[Callable[[int], object]]:
    """A bar on stderr for a file of known size, where the messages go elsewhere."""
    try:
        size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        size = 0
    if not size or sys.stdout.isatty():
        yield lambda _: None
        return
    columns = *Progress.get_default_columns(), DownloadColumn()
    with progress_bar(*columns, transient=False) as progress:
        task = progress.add_task(file.name, total=size)
        yield lambda count: progress.advance(task, count)
