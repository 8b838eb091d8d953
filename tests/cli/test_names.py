"""Names of files and functions that look like rich's markup, or that hold control characters."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import pytest

from .in_process import run_text

pytest.importorskip("click", reason="the command line is an extra")
Console = pytest.importorskip("rich.console", reason="the command line is an extra").Console
measurement = pytest.importorskip("rrq_fastwire.cli.load.measurement")
report = pytest.importorskip("rrq_fastwire.cli.load.report")
progress_bar = pytest.importorskip("rrq_fastwire.cli.progress").progress_bar

CAPTURE = Path(__file__).parents[1] / "captures" / "cancel.to-runner.bin"
COMMAND = [sys.executable, "-m", "rrq_fastwire"]
NAMES = ["a[/x]", "a[bold]b", "a\x1b[31mb"]


def escaped(name: str) -> str:
    return name.replace("\x1b", "\\x1b")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow such names of files")
@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_a_name_is_not_read_as_markup_at_the_progress_bar(self, tmp_path, on_a_terminal, name):
        capture = tmp_path.joinpath(*name.split("/"))
        capture.parent.mkdir(exist_ok=True)
        capture.write_bytes(CAPTURE.read_bytes())
        with (tmp_path / "out").open("wb") as out:
            status, shown = on_a_terminal(
                [*COMMAND, "decode", str(capture)], "stderr", stdout=out, COLUMNS="300"
            )
        assert status == 0
        assert escaped(name) in shown

    def test_a_name_is_printable_above_its_messages_and_in_remarks(self, tmp_path, name):
        capture = tmp_path.joinpath(*name.split("/"))
        capture.parent.mkdir(exist_ok=True)
        capture.write_bytes(b"")
        status, printed, said = run_text("decode", str(capture), str(capture))
        expected = str(tmp_path / escaped(name))
        assert (status, printed.split("\n")) == (0, [expected, expected, ""])
        assert said == f"{expected}: the capture is empty\n" * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_function_name_is_not_read_as_markup_in_the_title_of_load(name):
    plan = measurement.Plan(name, {}, 1, 1, 2, None, None)
    measured = measurement.Measured(2.0, [0.25, 0.5], None, Counter())
    for shown in (
        report.report(plan, measured),
        report.comparison(plan, ("[/a]", "[/b]"), [[measured, measured]]),
    ):
        text = io.StringIO()
        Console(file=text, width=100).print(shown)
        assert text.getvalue().startswith(f"{escaped(name)}, params of 2 B")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["a[/x]", "a[bold]b"])
def test_the_name_of_a_task_is_not_read_as_markup(monkeypatch, name):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_bar() as progress:
        progress.add_task(name)
    assert name in terminal.getvalue()
