"""The code blocks of README.md run. docs/conftest.py runs those of the other pages."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rrq_fastwire.cli.runner_process import free_port

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

# These two blocks run together.
RUNNER, CLIENT = (block for block in BLOCKS if "9000" in block)
ALONE = [block for block in BLOCKS if block not in (RUNNER, CLIENT)]


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.splitlines()[0])
def test_a_code_block_runs_without_output_on_stderr(block):
    (block,) = on_a_free_port(block)
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_client_runs_a_job_of_the_runner():
    runner, client = on_a_free_port(RUNNER, CLIENT)
    with subprocess.Popen([sys.executable, "-c", runner]) as process:
        try:
            wait_for_listener(process, int(re.search(r"127.0.0.1:(\d+)", runner)[1]))
            command = [sys.executable, "-c", client]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            process.terminate()
    assert (done.stdout, done.stderr) == ("{'sent to': 'someone@example.com'}\n", "")
    assert process.returncode == 0


def on_a_free_port(*code: str) -> list[str]:
    """Code blocks with a free port instead of port 9000."""
    port = str(free_port())
    return [block.replace("9000", port) for block in code]


def wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError("the runner does not listen")


def test_the_readme_has_code_to_run():
    assert len(BLOCKS) >= 3


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180
