"""The README's code runs as it stands, but for the port of its runner."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


RUNNER, CLIENT = (block for block in BLOCKS if "9000" in block)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block not in (RUNNER, CLIENT)],
    ids=lambda block: block.splitlines()[0],
)
def test_a_block_of_code_runs(block):
    if "compat" in block:
        pytest.importorskip("rrq", reason="shows what is installed into rrq, which is not there")
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_client_runs_a_job_of_the_runner():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runner, client = (block.replace("9000", str(port)) for block in (RUNNER, CLIENT))
    with subprocess.Popen([sys.executable, "-c", runner]) as process:
        try:
            wait_for_listener(process, port)
            command = [sys.executable, "-c", client]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            process.terminate()
    assert (done.stdout, done.stderr) == ("{'sent to': 'someone@example.com'}\n", "")
    assert process.returncode == 0


def wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError("the runner does not listen")


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 5
