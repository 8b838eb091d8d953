"""One line in messages.py adds a field, as docs/how-to/extend-the-protocol.md says.

The test does this to a copy of the package, for two messages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.timeout(300)

CHECK = """
import rrq_fastwire as wire
from datetime import datetime, timezone
assert wire.IMPLEMENTATION == "cython"

context = wire.ExecutionContext(
    job_id="j", attempt=1, enqueue_time=datetime(2025, 1, 2, tzinfo=timezone.utc), queue_name="q"
)
request = wire.ExecutionRequest(request_id="r", job_id="j", function_name="f", context=context)
outcome = wire.ExecutionOutcome.success("j", "r", [1])
for message in (request, outcome):
    assert wire.decode_frame(wire.encode_frame(message)) == message
assert (context.tenant, outcome.host) == (None, None)

context.tenant, outcome.host = "t", "h"
for message in (request, outcome):
    assert wire.decode_frame(wire.encode_frame(message)) == message
assert b'"queue_name":"q","tenant":"t","deadline"' in wire.encode_frame(request)
assert b'"request_id":"r","host":"h","status"' in wire.encode_frame(outcome)

# An orchestrator that does not know the field yet does not send it.
old = wire.encode_frame(request)[4:].replace(b'"tenant":"t",', b"")
decoded = wire.decode_frame(wire.pack_frame(old))
assert (decoded.context.tenant, decoded.context.queue_name) == (None, "q")
assert wire.ExecutionOutcome.failure("j", "r", "m").error.message == "m"
"""


def test_a_field_in_the_middle_is_read_and_written(tmp_path):
    pytest.importorskip("orjson", reason="runs once, with orjson, because it compiles the package")
    pytest.importorskip("Cython", reason="compiles a copy of the package")
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the sources of the package, which are not beside these tests")
    shutil.copytree(
        ROOT / "rrq_fastwire", tmp_path / "rrq_fastwire", ignore=shutil.ignore_patterns("*.so")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    setup = (ROOT / "setup.py").read_text()
    assert "-O3" in setup
    (tmp_path / "setup.py").write_text(setup.replace("-O3", "-O0"))  # compiles faster
    messages = tmp_path / "rrq_fastwire" / "messages.py"
    text = messages.read_text()
    for before, added in [
        ("    queue_name: str\n", "    tenant: str | None = None\n"),
        ("    request_id: str | None = None\n    status", "    host: str | None = None\n"),
    ]:
        assert text.count(before) == 1
        first, newline, rest = before.partition("\n")
        text = text.replace(before, first + newline + added + rest)
    messages.write_text(text)
    for command in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", CHECK]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"RRQ_FASTWIRE_PURE": "0", "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
