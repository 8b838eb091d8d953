"""The codec keeps no memory and no references of the messages that it has handled, valid or not.

As a script, this takes the number of messages: python tests/codec/test_growth.py 10000000
"""

from __future__ import annotations

import gc
import sys
import sysconfig
import time
from contextlib import suppress
from datetime import datetime, timezone
from itertools import cycle, islice

import pytest

from rrq_fastwire import (
    JSON_BACKEND,
    CancelRequest,
    EncodeError,
    ExecutionContext,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    FrameError,
    MessageError,
    OutcomeStatus,
    OutcomeType,
)

COUNT = 100_000 if JSON_BACKEND == "orjson" else 20_000  # json takes longer
# The counts themselves take a few blocks. A leak would take a block per message.
MOST = 20
NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)

# CPython 3.13 has renamed this function.
CLEAR_CACHES = getattr(sys, "_clear_internal_caches", None) or getattr(
    sys, "_clear_type_cache", None
)

# What every message refers to.
SHARED = [
    *(None, True, False, ExecutionRequest, ExecutionContext, ExecutionOutcome, ExecutionError),
    *(CancelRequest, *OutcomeStatus, *OutcomeType, datetime, timezone.utc, dict, list, str, bytes),
    *(MessageError, FrameError, EncodeError),
]


def request(**fields):
    context = ExecutionContext(
        job_id="j",
        attempt=1,
        enqueue_time=NOON,
        queue_name="q",
        deadline=NOON,
        trace_context={"a": "b"},
    )
    values = {"request_id": "r", "job_id": "j", "function_name": "f", "context": context}
    return ExecutionRequest(**values | fields)


def messages():
    """Messages to encode; those that cannot be sent come last."""
    return [
        request(),
        request(params={"text": "é☠" * 50, "list": [1, 2.5, None, True, {"k": [10**30]}]}),
        ExecutionOutcome.success("j", "r", {"a": [1, "x" * 3000]}),
        ExecutionOutcome.success("j", "r"),
        ExecutionOutcome.failure("j", "r", "no", type="t", code="c", details={"d": 1}),
        ExecutionOutcome.retry_after("j", "r", "later", 1.5),
        ExecutionOutcome.timeout("j", "r", "late"),
        CancelRequest(job_id="j", request_id="r", hard_kill=True),
        ExecutionOutcome.success("j", "r", object()),
        ExecutionOutcome.success("j", "r", 10**400),
        ExecutionOutcome(status="odd"),
        request(job_id=1),
    ]


def payloads(wire):
    """Payloads to decode; the last ones are not valid messages."""
    good = []
    for message in messages():
        with suppress(EncodeError):
            good.append(wire.encode_frame(message)[4:])
    one = good[0]
    return [
        *good,
        one.replace(b'"attempt":1', b'"attempt":-1'),
        one.replace(b'"attempt":1', b'"attempt":"\xff"'),
        one.replace(b"T12", b"T99"),
        one[:-1],
        b'{"payload":{"job_id":"j"},"type":"cancel"}',
        b'{"type":"odd","payload":{}}',
        b"[" * 2000 + b"]" * 2000,
        b"nothing",
    ]


def pass_through(wire, count):
    """Encodes and decodes `count` messages, in whole frames and in a stream that is cut."""
    decoder = wire.MessageDecoder()
    to_encode, to_decode = cycle(messages()), cycle(payloads(wire))
    done = 0
    while done < count:
        for message in islice(to_encode, 24):
            with suppress(EncodeError):
                wire.encode_frame(message)
        frames = [wire.pack_frame(payload) for payload in islice(to_decode, 32)]
        for frame in frames:
            with suppress(MessageError):
                wire.decode_frame(frame)
        stream = b"".join(frames)
        for part in (stream[:100], stream[100:4321], stream[4321:]):
            decoder.feed(part)
            while True:
                try:
                    if next(decoder, None) is None:
                        break
                except MessageError:
                    pass
        for broken in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
            with suppress(FrameError):
                next(wire.MessageDecoder().feed(broken))
        done += 24 + 32 + 32 + 2
    assert decoder.buffered == 0


def held():
    """The blocks of memory, and the references to SHARED objects, that exist now."""
    gc.collect()
    # CPython's cache of attributes keeps names, and fills up with time.
    CLEAR_CACHES()
    blocks = sys.getallocatedblocks()
    return {"blocks": blocks, "references": sum(map(sys.getrefcount, SHARED))} | (
        {"all references": sys.gettotalrefcount()} if hasattr(sys, "gettotalrefcount") else {}
    )


def growth(wire, count):
    """How much more is held after `count` messages than before."""
    pass_through(wire, COUNT // 10)  # fills caches
    held()
    before = held()
    pass_through(wire, count)
    after = held()
    return {name: after[name] - before[name] for name in before}


@pytest.mark.skipif(CLEAR_CACHES is None, reason="blocks of memory are counted by CPython only")
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="references are counted late"
)
def test_messages_leave_no_memory_and_no_references(wire):
    grown = growth(wire, COUNT)
    print(grown)
    assert max(grown.values()) < MOST


def main():
    from rrq_fastwire import _c, _py

    count = int(sys.argv[1])
    most = 0
    for wire in (_c, _py):
        start = time.monotonic()
        grown = growth(wire, count)
        most = max(most, *grown.values())
        print(f"{wire.__name__}: {count:,} messages, {time.monotonic() - start:.0f} s: {grown}")
    return int(most >= MOST)


if __name__ == "__main__":
    sys.exit(main())
