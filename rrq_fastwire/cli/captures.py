"""Read raw captures: what one side wrote to a connection, as frames with their offsets."""

from __future__ import annotations

from typing import NamedTuple

from .. import FRAME_HEADER_LEN, FrameDecoder, FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_READ_SIZE = 256 * 1024


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
    """A stream cannot be read further. The text gives the offset and the reason."""


def frames(file: BinaryIO, advance: Callable[[int], object] = lambda size: None) -> Iterator[Frame]:
    """Yield the frames of a raw capture, in constant memory.

    Arguments:
        advance: called with the number of bytes of each read.

    Raises BrokenStreamError after the last good frame.
    """
    decoder = FrameDecoder()
    number = offset = 0
    try:
        while data := file.read(_READ_SIZE):
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
