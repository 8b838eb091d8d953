"""Captures: frames with their offsets, and the JSON in them as it was written."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from .. import FRAME_HEADER_LEN, FrameDecoder, FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_READ_SIZE = 256 * 1024

_space = re.compile(r"[ \t\n\r]*")

# Where a value ends is all that matters: numbers need no value.
_value_at = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).raw_decode


class Frame(NamedTuple):
    """A frame of a stream.

    Attributes:
        number: from 1.
        offset: bytes of the stream before its header.
        payload: its bytes.
    """

    number: int
    offset: int
    payload: bytes


class BrokenStreamError(Exception):
    """A stream cannot be read on; its text gives the offset and the reason."""


def frames(file: BinaryIO, advance: Callable[[int], object] = lambda size: None) -> Iterator[Frame]:
    """The frames of a raw capture, in constant memory.

    Arguments:
        advance: called with the bytes of each read.

    Raises BrokenStreamError behind the last good frame.
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
        raise BrokenStreamError(f"the stream is broken at offset {offset}: {error}") from None


def members(document: str) -> dict[str, str]:
    """The members of a JSON object, each as the text that stands there.

    Raises ValueError if it is no object.
    """
    found: dict[str, str] = {}
    at = _skip(document, 0)
    if document[at : at + 1] != "{":
        raise ValueError("not a JSON object")
    at = _skip(document, at + 1)
    while document[at : at + 1] != "}":
        key, at = _value_at(document, at)
        at = _skip(document, at)
        if document[at : at + 1] != ":" or not isinstance(key, str):
            raise ValueError(f"expected a key and a colon at character {at}")
        start = _skip(document, at + 1)
        _, at = _value_at(document, start)
        found[key] = document[start:at]
        at = _skip(document, at)
        if document[at : at + 1] == ",":
            at = _skip(document, at + 1)
        elif document[at : at + 1] != "}":
            raise ValueError(f"expected a comma or the end of the object at character {at}")
    if document[at + 1 :].strip(" \t\n\r"):
        raise ValueError(f"more after the object at character {at + 1}")
    return found


def _skip(document: str, at: int) -> int:
    found = _space.match(document, at)
    return found.end() if found else at


def on_one_line(document: str) -> str:
    """JSON without its line breaks, which only stand between its parts."""
    return document.replace("\r", " ").replace("\n", " ")
