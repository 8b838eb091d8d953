"""Read raw captures: what one side wrote to a connection, as frames with their offsets."""

from __future__ import annotations

import sys
from typing import NamedTuple

import click

from .. import FRAME_HEADER_LEN, FrameDecoder, FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

_READ_SIZE = 256 * 1024


class InputFile(click.File):
    """The type of an argument: a file to read bytes from; - is stdin."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and sys.stdin is None:
            self.fail("standard input is closed.", param, ctx)
        return super().convert(value, param, ctx)


class Frame(NamedTuple):
    """A frame of a stream.

    Attributes:
        number: the position in the stream, starting at 1.
        offset: how many bytes of the stream precede the frame's header.
        payload: the bytes after the header.
    """

    number: int
    offset: int
    payload: bytes


class BrokenStreamError(Exception):
    """A stream cannot be read further. The text gives the reason, and the offset if it has one."""


def frames(file: BinaryIO, advance: Callable[[int], object] = lambda size: None) -> Iterator[Frame]:
    """Yield the frames of a raw capture, in constant memory.

    Arguments:
        advance: called with the number of bytes of each read.

    Raises BrokenStreamError after the last good frame if the stream is broken or reading fails.
    """
    decoder = FrameDecoder()
    number = offset = 0
    # On a pipe, read() would wait until all the bytes have arrived.
    read = getattr(file, "read1", file.read)
    try:
        while data := read(_READ_SIZE):
            for payload in decoder.feed(data):
                number += 1
                yield Frame(number, offset, payload)
                offset += FRAME_HEADER_LEN + len(payload)
            advance(len(data))
        decoder.feed_eof()
    except FrameError as error:
        reason = f"the stream is broken at offset {offset}: {error}"
        if not number:
            reason += "; is this a file of tap --record?"
        raise BrokenStreamError(reason) from None
    except OSError as error:
        raise BrokenStreamError(f"cannot be read: {error.strerror}") from None
