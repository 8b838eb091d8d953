"""The pure Python codec: the generic codec, and a decoder that yields messages."""

from __future__ import annotations

from .._generic import Codec
from .._json import dump_plain
from ..messages import RunnerMessage
from .frames import MAX_FRAME_SIZE, StreamDecoder, checked_limit, octets, pack_frame, whole_payload

__all__ = [
    "MessageDecoder",
    "decode_frame",
    "decode_payload",
    "dump_plain",
    "encode_frame",
    "encode_payload",
]

_codec = Codec()


def encode_payload(message: RunnerMessage) -> bytes:
    """The payload that carries `message`, without a header and of any size.

    NaN and infinities are sent as null. An integer outside 64 bits is sent with all its digits, up
    to 308 of them; the orchestrator reads it as a float.

    Raises:
        EncodeError: a field has a wrong type, or a value has no JSON form or is nested too deep
            (MAX_NESTING containers in the whole payload).
        TypeError: `message` is not a RunnerMessage.
    """
    return _codec.encode_payload(message)


def encode_frame(message: RunnerMessage, *, max_frame_size: int = MAX_FRAME_SIZE) -> bytes:
    """The frame, header included, that carries `message`; the orchestrator accepts it.

    Arguments:
        message: encoded as by encode_payload().
        max_frame_size: the most bytes of payload; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: as encode_payload(), or PayloadTooLargeError.
        TypeError: `message` is not a RunnerMessage.
    """
    checked_limit(max_frame_size)
    return pack_frame(_codec.encode_payload(message), max_frame_size=max_frame_size)


def decode_payload(payload: bytes | bytearray | memoryview, /) -> RunnerMessage:
    """The message in a payload, which comes without a header.

    Raises:
        MessageError: the payload is not a valid message.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    return _codec.decode_payload(octets(payload))


def decode_frame(frame: bytes | bytearray | memoryview, /) -> RunnerMessage:
    """The message in one whole frame, header included.

    Raises:
        FrameError: `frame` is not exactly one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a valid message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    return _codec.decode_payload(whole_payload(frame))


class MessageDecoder(StreamDecoder):
    """Iterate over the messages of a stream of frames that arrives in pieces.

    Arguments:
        max_frame_size: the most bytes of payload that a header may declare.

    A declared length reserves no memory: the decoder holds the bytes that were fed and not taken.
    Iteration raises MessageError for a payload that is not a valid message, and can go on after it;
    FrameError where the stream is broken, after the messages before it.
    """

    __slots__ = ()

    def __next__(self) -> RunnerMessage:
        try:
            payload = self._payloads.popleft()
        except IndexError:
            payload = None
        if payload is None:
            self._end()
            raise StopIteration
        try:
            return _codec.decode_payload(payload)
        except MemoryError:
            self._payloads.appendleft(payload)  # its message can be taken when there is memory
            raise
