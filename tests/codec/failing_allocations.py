"""Call the codec while each allocation in turn fails: `failing_allocations.py c|py prepared|json`.

This runs in a process of its own, because a bug crashes it. orjson has such bugs, so a module that
returns prepared values replaces it ("prepared"); the fast paths run as with orjson. The interpreter of
CPython 3.11 has some, too, so rare values are left out. A third argument chooses scenarios by name.
"""

from __future__ import annotations

import _testcapi
import gc
import importlib
import json
import pickle
import sys
import types
from contextlib import suppress
from functools import partial
from pathlib import Path

# A sweep ends when this many failures in a row have had no effect: no allocations are left to fail.
_UNTOUCHED = 15

_PREPARED = {}

# pickle raises its own error instead of a MemoryError. CPython raises SystemError if it has no memory
# for the frame of a Python function.
_NO_MEMORY = (MemoryError, pickle.PicklingError, SystemError)


def _stand_in_for_orjson():
    module = types.ModuleType("orjson")
    module.__version__ = "prepared"

    def loads(data):
        value = _PREPARED.get(bytes(data))
        if value is None:
            raise ValueError("not prepared")
        return value

    module.loads = loads
    module.dumps = lambda value: b'{"a":1}'
    module.Fragment = str
    return module


REQUEST = (
    b'{"type":"request","payload":{"protocol_version":"2","request_id":"r","job_id":"j",'
    b'"function_name":"f","params":{"a":1},"context":{"job_id":"j","attempt":1,'
    b'"enqueue_time":"2026-11-24T03:13:36.570640729Z","queue_name":"q","deadline":null,'
    b'"trace_context":{"t":"1"},"correlation_context":null,"worker_id":"w"}}}'
)
SPACED = REQUEST.replace(b"{", b"{ ", 1)
RESPONSE = (
    b'{"type":"response","payload":{"job_id":"j","request_id":"r","status":"success",'
    b'"result":{"a":1}}}'
)
CANCEL = b'{"type":"cancel","payload":{"protocol_version":"2","job_id":"%s"}}'
SHORT, LONG = CANCEL % b"j", CANCEL % (b"j" * 3000)


def frame(payload):
    return len(payload).to_bytes(4) + payload


def sweep(prepare, operate, check):
    """Fail each allocation of operate(prepare()): alone, and with some that follow it.

    Not with all that follow it, because CPython 3.11 then never stops trying to enter a `finally`.
    """
    for many in (1, 7):
        untouched = number = 0
        while untouched < _UNTOUCHED:
            number += 1
            state = prepare()
            result = error = None
            try:
                _testcapi.set_nomemory(number, number + many)
                try:
                    result = operate(state)
                finally:
                    _testcapi.remove_mem_hooks()
            except _NO_MEMORY as caught:
                error = caught
            untouched = 0 if error is not None else untouched + 1
            check(state, result, error)
            error = None


def scenarios(wire):
    import rrq_fastwire

    for payload in (REQUEST, SPACED, RESPONSE, SHORT, LONG):
        _PREPARED[payload] = json.loads(payload)
    _PREPARED.update({b'{"a":1}': {"a": 1}, b'{"t":"1"}': {"t": "1"}})

    for name, payload in (("fast", REQUEST), ("generic", SPACED), ("response", RESPONSE)):
        expected = wire.decode_payload(payload)

        def check(state, result, error, expected=expected):
            assert error is not None or result == expected

        yield f"decode, {name}", partial(frame, payload), wire.decode_frame, check

    yield from invalid_payloads(wire)

    messages = [wire.decode_payload(each) for each in (REQUEST, RESPONSE, SHORT)]
    messages.append(
        rrq_fastwire.ExecutionOutcome.failure("j", "r", "é", code="c", details={"a": 1})
    )
    for message in messages:
        kind = type(message).__name__
        for name, operate in (
            ("encode", wire.encode_frame),
            ("repr", repr),
            ("pickle", lambda each: pickle.loads(pickle.dumps(each))),
        ):
            expected = operate(message)

            def check(state, result, error, expected=expected):
                assert error is not None or result == expected

            yield f"{name}, {kind}", lambda message=message: message, operate, check

    yield from decoder_scenarios(wire)


INVALID = {
    "not JSON": b"{",
    "of an unknown type": b'{"type":"x","payload":{"job_id":"j"}}',
    "without a field": SPACED.replace(b'"queue_name":"q",', b""),
    "with a number out of range": REQUEST.replace(b'"attempt":1', b'"attempt":-1'),
    "with a wrong date-time": SPACED.replace(b"2026-11", b"2026-13"),
    "with an unknown status": RESPONSE.replace(b"success", b"done"),
}


def invalid_payloads(wire):
    """If there is no memory for the MessageError, a MemoryError is raised, not another MessageError."""
    from rrq_fastwire import MessageError

    def decode(whole):
        try:
            return wire.decode_frame(whole)
        except MessageError as error:
            return error

    for name, payload in INVALID.items():
        with suppress(ValueError):
            _PREPARED[payload] = json.loads(payload)
        expected = vars(decode(frame(payload)))

        def check(state, result, error, expected=expected):
            # The json module's own error may lack its text.
            assert error is not None or vars(result) == expected or expected["path"] == "", result

        yield f"decode, {name}", partial(frame, payload), decode, check


def drained(decoder):
    return [len(each) if type(each) is bytes else len(each.job_id) for each in decoder]


def decoder_scenarios(wire):
    """Nothing that was fed is lost. If feed() fails, its bytes were added as a whole or not at all."""
    first, second = frame(SHORT), frame(LONG)
    stream = first + second + first
    for cls in (wire.MessageDecoder, wire.FrameDecoder):
        whole = drained(cls().feed(stream))
        for cut in (0, 2, len(first), len(first) + 2, len(stream) - 3):
            for taken in (0, 1):
                yield from _decoder(cls, stream, whole, cut, taken)


def _decoder(cls, stream, whole, cut, taken):
    name = f"{cls.__name__}, cut at {cut}, {taken} taken before"
    piece = stream[cut:]

    def fed():
        decoder = cls().feed(stream[:cut])
        got = [next(decoder) for _ in range(taken if cut > 100 else 0)]
        return decoder, whole[len(got) :]

    def check_fed(state, result, error, piece=piece, cut=cut):
        decoder, rest = state
        if error is not None and decoder.buffered == state_size(rest, stream, piece):
            decoder.feed(piece)  # it was not added
        decoder.feed(b"")
        assert drained(decoder) == rest, (name, error)
        decoder.feed_eof()

    yield f"feed, {name}", fed, lambda state: state[0].feed(piece), check_fed

    def written():
        decoder, rest = fed()
        memory = decoder.get_buffer(-1)
        memory[: len(piece)] = piece
        return decoder, rest

    def check_written(state, result, error):
        decoder, rest = state
        if error is not None and decoder.buffered == state_size(rest, stream, piece):
            decoder.buffer_updated(len(piece))  # it was not added, and can be added now
        decoder.feed(b"")
        assert drained(decoder) == rest, (name, error)
        decoder.feed_eof()

    yield (
        f"buffer_updated, {name}",
        written,
        lambda state: state[0].buffer_updated(len(piece)),
        check_written,
    )

    def all_fed():
        decoder, rest = fed()
        decoder.feed(piece)
        return decoder, rest, [None] * (len(rest) + 1)

    def take(state):
        decoder, _, got = state
        at = 0
        for got[at] in decoder:  # stores messages without an allocation that could fail
            at += 1  # noqa: SIM113

    def check_taken(state, result, error):
        decoder, rest, got = state
        assert drained(filter(None, got)) + drained(decoder) == rest, (got, rest, error)
        assert decoder.buffered == 0
        decoder.feed_eof()

    yield f"iterate, {name}", all_fed, take, check_taken


def state_size(rest, stream, piece):
    """Bytes of the stream that are held if `piece` is not."""
    sizes = [len(frame(SHORT)), len(frame(LONG)), len(frame(SHORT))]
    return sum(sizes[len(sizes) - len(rest) :]) - len(piece)


def leaks(parts):
    """Whether every sweep leaves more blocks allocated. Caches grow only in some sweeps."""
    before = 0
    for _ in range(40):
        sweep(*parts)
        gc.collect()
        blocks = sys.getallocatedblocks()
        if blocks <= before:
            return False
        before = blocks
    return True


def _crashes(implementation, backend):
    """The scenarios with a bug of CPython: without memory for a frame, it sets no exception.

    A debug build notices this, and aborts.
    """
    crashing = ("encode",) if backend == "json" else ()
    is_debug_build = hasattr(sys, "gettotalrefcount")
    if implementation == "c" and (sys.version_info >= (3, 12) or is_debug_build):
        crashing += ("decode, not JSON",)
    return crashing


def main(implementation, backend, only=""):
    sys.modules["orjson"] = _stand_in_for_orjson() if backend == "prepared" else None
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    wire = importlib.import_module(f"rrq_fastwire._{implementation}")
    failed = []
    for name, *parts in scenarios(wire):
        if only not in name or name.startswith(_crashes(implementation, backend)):
            continue
        try:
            if leaks(parts) and not name.startswith("pickle"):  # which leaks by itself
                failed.append(f"{name}: leaks")
        except Exception as error:
            failed.append(f"{name}: {error!r}")
    print(*failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
