"""RRQ's runner protocol for Python, at native speed: frames, messages, and streams of them."""

from ._json import JSON_BACKEND
from ._switch import (
    FRAME_HEADER_LEN,
    IMPLEMENTATION,
    MAX_FRAME_SIZE,
    FrameDecoder,
    MessageDecoder,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_payload,
    pack_frame,
)
from .errors import (
    EmptyFrameError,
    EncodeError,
    FastwireError,
    FrameError,
    FrameTooLargeError,
    MessageError,
    PayloadTooLargeError,
    TruncatedFrameError,
)
from .messages import (
    MAX_NESTING,
    PROTOCOL_VERSION,
    CancelRequest,
    ExecutionContext,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    OutcomeStatus,
    OutcomeType,
    RunnerMessage,
)

__version__ = "0.1.0"

__all__ = [
    "FRAME_HEADER_LEN",
    "IMPLEMENTATION",
    "JSON_BACKEND",
    "MAX_FRAME_SIZE",
    "MAX_NESTING",
    "PROTOCOL_VERSION",
    "CancelRequest",
    "EmptyFrameError",
    "EncodeError",
    "ExecutionContext",
    "ExecutionError",
    "ExecutionOutcome",
    "ExecutionRequest",
    "FastwireError",
    "FrameDecoder",
    "FrameError",
    "FrameTooLargeError",
    "MessageDecoder",
    "MessageError",
    "OutcomeStatus",
    "OutcomeType",
    "PayloadTooLargeError",
    "RunnerMessage",
    "TruncatedFrameError",
    "__version__",
    "decode_frame",
    "decode_payload",
    "encode_frame",
    "encode_payload",
    "pack_frame",
]
