"""The code in README.md and docs/ runs as it stands, and the links between the pages work."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))


def blocks(*pages: Path) -> list[str]:
    found = (re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in pages)
    return [block for page in found for block in page]


# They run together, on another port.
RUNNER, CLIENT = (block for block in blocks(README) if "9000" in block)
ALONE = [block for block in blocks(README, *DOCS) if block not in (RUNNER, CLIENT)]


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.splitlines()[0])
def test_a_block_of_code_runs(block):
    (block,) = on_a_free_port(block)
    if "compat" in block:
        pytest.importorskip("rrq", reason="shows what is installed into rrq, which is not there")
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [block.replace("9000", port) for block in code]


def wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError("the runner does not listen")


def test_there_are_blocks_to_run():
    assert len(blocks(README)) >= 3


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    if not DOCS:
        pytest.skip("needs the checkout, which is not beside these tests")
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
