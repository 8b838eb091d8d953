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
    """Encode a message as a payload, without a header. Its size is not limited here.

    NaN and infinities become null. An integer outside 64 bits keeps all its digits, up to 308 of
    them; the orchestrator reads it as a float.

    Raises:
        EncodeError: a field has a wrong type, or a value has no JSON form or is nested too deep
            (MAX_NESTING containers in the whole payload).
        TypeError: `message` is not a RunnerMessage.
    """
    return _codec.encode_payload(message)


def encode_frame(message: RunnerMessage, *, max_frame_size: int = MAX_FRAME_SIZE) -> bytes:
    """Encode a message as a frame, header included, that the orchestrator accepts.

    Arguments:
        message: encoded as encode_payload() does it.
        max_frame_size: the largest payload in bytes; the orchestrator reads up to 16,777,216.

    Raises:
        EncodeError: as encode_payload(); PayloadTooLargeError if the payload is too large.
        TypeError: `message` is not a RunnerMessage.
    """
    checked_limit(max_frame_size)
    return pack_frame(_codec.encode_payload(message), max_frame_size=max_frame_size)


def decode_payload(payload: bytes | bytearray | memoryview, /) -> RunnerMessage:
    """Decode a payload, which has no header, to a message.

    Raises:
        MessageError: the payload is not a valid message.
        TypeError: `payload` is not bytes, bytearray or memoryview.
    """
    return _codec.decode_payload(octets(payload))


def decode_frame(frame: bytes | bytearray | memoryview, /) -> RunnerMessage:
    """Decode one whole frame, header included, to a message.

    Raises:
        FrameError: `frame` is not exactly one frame of at most 16,777,216 bytes of payload.
        MessageError: its payload is not a valid message.
        TypeError: `frame` is not bytes, bytearray or memoryview.
    """
    return _codec.decode_payload(whole_payload(frame))


class MessageDecoder(StreamDecoder):
    """Iterate over the messages of a stream of frames that arrives in pieces.

    Arguments:
        max_frame_size: the largest payload that a header may declare, in bytes.

    The length in a header reserves no memory: the decoder holds only bytes that were fed and not
    taken. Iteration raises MessageError for a payload that is not a valid message, and can go on to
    the next one. It raises FrameError where the stream is broken, after the messages before that.
    """

    __slots__ = ()

    def __next__(self) -> RunnerMessage:
        payloads = self._payloads
        try:
            payload = payloads.popleft()
        except IndexError:
            payload = None
        if payload is None:
            self._end()
            raise StopIteration
        try:
            return _codec.decode_payload(payload)
        except MemoryError:
            # A later call takes it again. If another call has taken the last payload meanwhile, the
            # decoder now has the shared queue, which has no room.
            if not self._payloads:
                self._payloads = payloads
            self._payloads.appendleft(payload)
            raise
