"""If an allocation fails, MemoryError is raised, nothing that was fed is lost, and nothing leaks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from rrq_fastwire import CancelRequest, _generic, _py, encode_frame, encode_payload, pack_frame

SCRIPT = Path(__file__).with_name("failing_allocations.py")


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="there is no _testcapi")
@pytest.mark.parametrize("backend", ["prepared", "json"])
@pytest.mark.parametrize("implementation", ["c", "py"])
def test_each_failed_allocation_is_a_memory_error_and_loses_nothing(implementation, backend):
    if implementation == "c" and importlib.util.find_spec("rrq_fastwire._c.codec") is None:
        pytest.skip("the compiled implementation is not built here")
    if backend == "json" and sys.version_info >= (3, 12):
        pytest.skip("the json module of CPython 3.12 and 3.13 crashes when an allocation fails")
    if implementation == "py" and hasattr(sys, "gettotalrefcount"):
        pytest.skip("a debug build of CPython aborts if there is no memory for a frame")
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), implementation, backend]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


CANCELS = [CancelRequest(job_id=name) for name in ("one", "two", "three")]


@pytest.mark.parametrize("inner", ["runs out of memory as well", "takes all others"])
@pytest.mark.parametrize("cut", [0, 30], ids=["in place", "after a copy"])
def test_message_without_memory_is_kept_when_a_call_within_the_call_iterates(
    wire, monkeypatch, inner, cut
):
    """The inner call stands for one of a callback of the garbage collector, or of another thread."""
    generic = _generic if wire is _py else wire.generic
    real = generic.loads
    stream = b"".join(map(encode_frame, CANCELS))
    decoder = wire.MessageDecoder().feed(stream[:cut]).feed(stream[cut:])
    taken = []
    depth = 0

    def loads(payload):
        nonlocal depth
        depth += 1
        if depth == 1 and inner == "takes all others":
            taken.extend(decoder)
        elif depth == 1:
            with pytest.raises(MemoryError):
                next(decoder)
        elif inner == "takes all others":
            return real(payload)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(generic, "loads", loads)
        with pytest.raises(MemoryError):
            next(decoder)
    left = [message for message in CANCELS if message not in taken]
    assert len(taken) == (2 if inner == "takes all others" else 0)
    assert decoder.buffered == sum(len(encode_frame(message)) for message in left)
    assert list(decoder) == left
    assert decoder.buffered == 0


def test_decoder_gives_a_message_again_if_there_was_no_memory_for_it(wire, monkeypatch):
    def no_memory(_):
        raise MemoryError

    generic = "rrq_fastwire._generic" if wire is _py else "rrq_fastwire._c.generic"
    frames = [pack_frame(encode_payload(CancelRequest(job_id=name))) for name in ("one", "two")]
    decoder = wire.MessageDecoder().feed(b"".join(frames))
    with monkeypatch.context() as patch:
        patch.setattr(f"{generic}.loads", no_memory)
        for _ in range(2):
            with pytest.raises(MemoryError):
                next(decoder)
            assert decoder.buffered == len(frames[0] + frames[1])
    assert list(decoder) == [CancelRequest(job_id="one"), CancelRequest(job_id="two")]
