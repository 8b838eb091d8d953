"""The functions of `rrq.protocol` on this package's codec, and a way to put them into rrq.

Signatures, return types and types of exceptions are rrq's. The fields of a payload are not checked.
Two things differ on purpose. NaN becomes null. And a message that would make the orchestrator close
the connection raises ValueError and is not sent: one that is too large or nested too deep, or that
holds a lone surrogate or a number that no double can hold.
"""

from __future__ import annotations

import asyncio
import json
import sys

from . import FRAME_HEADER_LEN, MAX_FRAME_SIZE, EncodeError, _json, pack_frame
from ._switch import dump_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    RunnerMessageType = Literal["request", "response", "cancel"]

__all__ = [
    "FRAME_HEADER_SIZE",
    "MAX_FRAME_SIZE",
    "decode_message",
    "encode_message",
    "install",
    "read_message",
    "uninstall",
    "write_message",
]

FRAME_HEADER_SIZE = FRAME_HEADER_LEN


def encode_message(message_type: RunnerMessageType, payload: dict[str, Any]) -> bytes:
    """Encode a message as a frame, header included.

    Raises:
        TypeError: the json module cannot write a value in `payload`.
        ValueError: the orchestrator would not accept the frame.
    """
    document = {"type": message_type, "payload": payload}
    try:
        body = _json.encode(document, dump_plain)
    except EncodeError as error:
        # The json module writes some values that `_json` rejects, such as keys that are not str.
        # For the others it raises the exceptions that callers of rrq.protocol expect.
        try:
            document = json.loads(json.dumps(document))
        except RecursionError:
            raise error from None
        body = _json.encode(document, dump_plain)
    return pack_frame(body)


def decode_message(data: bytes) -> tuple[RunnerMessageType, dict[str, Any]]:
    """Decode the payload of a frame to the message's type and payload. Raises ValueError."""
    decoded = _json.loads(data)
    if not isinstance(decoded, dict):
        raise ValueError("Runner message must be a JSON object")
    message_type = decoded.get("type")
    payload = decoded.get("payload")
    if message_type not in ("request", "response", "cancel"):
        raise ValueError("Runner message missing valid type")
    if not isinstance(payload, dict):
        raise ValueError("Runner message missing payload object")
    return message_type, payload


async def read_message(
    reader: asyncio.StreamReader,
) -> tuple[RunnerMessageType, dict[str, Any]] | None:
    """Read the next message; return None if the stream ends between two frames.

    Raises:
        ValueError: the header or the payload is wrong.
        asyncio.IncompleteReadError: the stream ends inside a frame.
    """
    try:
        header = await reader.readexactly(FRAME_HEADER_SIZE)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    length = int.from_bytes(header, "big")
    if length == 0:
        raise ValueError("Runner message payload cannot be empty")
    if length > MAX_FRAME_SIZE:
        raise ValueError("Runner message payload exceeds max size")
    return decode_message(await reader.readexactly(length))


async def write_message(
    writer: asyncio.StreamWriter, message_type: RunnerMessageType, payload: dict[str, Any]
) -> None:
    """Send a message, and wait while the transport is over its high-water mark.

    Raises what encode_message() raises.
    """
    writer.write(encode_message(message_type, payload))
    await writer.drain()


_OURS = {
    function.__name__: function
    for function in (decode_message, encode_message, read_message, write_message)
}
_theirs: dict[str, Any] = {}


def install() -> None:
    """Replace rrq's codec with this one, also in modules of rrq that have imported it already.

    Raises ImportError if rrq is not installed.
    """
    import rrq.protocol

    if not _theirs:
        _theirs.update((name, getattr(rrq.protocol, name)) for name in _OURS)
        _replace(_theirs, _OURS)


def uninstall() -> None:
    """Undo install(): put rrq's own codec back."""
    _replace(_OURS, _theirs)
    _theirs.clear()


def _replace(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Replace functions in every imported module of rrq, because modules import them by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "rrq":
            for name, function in new.items():
                if getattr(module, name, None) is old.get(name):
                    setattr(module, name, function)
