"""`encode`: turn the output of `decode --json` back into frames."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from .. import EncodeError, pack_frame
from .captures import InputFile
from .formatting import printable
from .json_text import members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("encode")
@click.argument("file", type=InputFile(), default="-")
def command(file: BinaryIO) -> int:
    """Turn the lines of `decode --json` into frames, on stdout.

    The payloads are written unchanged, in a compact envelope. So frames of the orchestrator come
    out byte for byte.

    Example: rrq-fastwire decode --json capture.bin | rrq-fastwire encode > copy.bin
    """
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            fields = members(line.decode())
            kind, payload = fields["type"], fields["payload"]
            if not kind.startswith('"'):
                raise ValueError('"type" is not a string')
            frame = pack_frame(f'{{"type":{kind},"payload":{payload}}}'.encode())
        except KeyError as error:
            click.echo(f"line {number}: there is no {error.args[0]!r}", err=True)
            return 1
        except (EncodeError, ValueError) as error:
            click.echo(f"line {number}: {error}", err=True)
            return 1
        except RecursionError:
            click.echo(f"line {number}: nested too deep to read", err=True)
            return 1
        sys.stdout.buffer.write(frame)
    return 0


def _lines(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from file
    except OSError as error:
        reason = f"{printable(file.name)}: cannot be read: {error.strerror}"
        raise click.ClickException(reason) from None
