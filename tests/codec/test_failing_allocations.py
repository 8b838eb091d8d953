"""If an allocation fails, MemoryError is raised, nothing that was fed is lost, and nothing leaks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from rrq_fastwire import CancelRequest, _py, pack_frame

SCRIPT = Path(__file__).with_name("failing_allocations.py")


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="there is no _testcapi")
@pytest.mark.skipif(
    importlib.util.find_spec("rrq_fastwire._c.codec") is None,
    reason="the compiled implementation is not built here",
)
def test_each_failed_allocation_is_a_memory_error_and_loses_nothing():
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_pure_decoder_gives_a_message_again_if_there_was_no_memory_for_it(monkeypatch):
    class NoMemory:
        def decode_payload(self, payload):
            raise MemoryError

    frame = pack_frame(b'{"type":"cancel","payload":{"job_id":"one"}}')
    decoder = _py.MessageDecoder().feed(frame)
    with monkeypatch.context() as patch:
        patch.setattr(_py.codec, "_codec", NoMemory())
        with pytest.raises(MemoryError):
            next(decoder)
    assert list(decoder) == [CancelRequest(job_id="one")]
