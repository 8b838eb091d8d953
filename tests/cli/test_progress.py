"""Commands whose output is redirected: it reaches the file, and a terminal on stderr shows progress."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from ..stock import needs_rrq

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

CAPTURE = str(Path(__file__).parents[1] / "captures" / "sizes.to-runner.bin")
RUNNER = shlex.join(
    [sys.executable, "-m", "rrq_fastwire.runner", "--settings", "rrq_fastwire.cli.example.settings"]
)
# For each command: its arguments, a part of its output, and a part of its progress.
COMMANDS = {
    "decode": (["decode", CAPTURE], "attempt 1", "100%"),
    "decode --json": (["decode", "--json", CAPTURE], '"function_name":', "100%"),
    "load": (["load", "--runner", RUNNER, "noop", "--seconds", "0.5"], "throughput", "noop"),
    "load --json": (
        ["load", "--runner", RUNNER, "noop", "--seconds", "0.5", "--json"],
        '"throughput":',
        "noop",
    ),
    "check": (["check", "--runner", RUNNER], "0 fail", "many frames in one write"),
}


@needs_rrq
@pytest.mark.parametrize("name", COMMANDS)
def test_redirected_output_reaches_its_file_and_progress_the_terminal(
    on_a_terminal, tmp_path, name
):
    arguments, printed, progress = COMMANDS[name]
    with (tmp_path / "out").open("wb") as out:
        status, shown = on_a_terminal(
            [sys.executable, "-m", "rrq_fastwire", *arguments], "stderr", stdout=out
        )
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert status == 0
    assert printed in text
    assert "\x1b" not in text
    assert progress in shown
    assert printed not in shown


# The demo's 20,000 jobs take seconds. The table looks the same with fewer.
FEWER_JOBS = """
import sys
from rrq_fastwire.cli import demo, main
demo._JOBS = 2000
sys.exit(main(["demo"]))
"""


@needs_rrq
def test_the_table_of_the_demo_reaches_its_file_and_fits_80_columns(on_a_terminal, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        status, shown = on_a_terminal(
            [sys.executable, "-c", FEWER_JOBS], "stderr", stdout=out, COLUMNS="80"
        )
    assert status == 0
    assert "rrq-fastwire-runner" in shown
    lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 80
    for runner in ("rrq-runner", "rrq-fastwire-runner", "+ --native-messages"):
        (row,) = (line for line in lines if line.strip().startswith(runner))
        figures = row.strip().removeprefix(runner).strip()
        assert re.fullmatch(r"[\d,]+ +(-|[\d.]+ us) +(-|[\d.]+x)( +[\d.]+ ms){3}", figures)


def test_the_example_in_the_help_of_encode_copies_a_capture_while_a_terminal_shows_progress(
    on_a_terminal, tmp_path
):
    copy = tmp_path / "copy.bin"
    command = shlex.join([sys.executable, "-m", "rrq_fastwire"])
    pipe = f"{command} decode --json {shlex.quote(CAPTURE)} | {command} encode > {shlex.quote(str(copy))}"
    status, shown = on_a_terminal(["sh", "-c", pipe], "stderr")
    assert status == 0
    assert copy.read_bytes() == Path(CAPTURE).read_bytes()
    assert "100%" in shown
