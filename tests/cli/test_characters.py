"""Characters that a terminal must not get, or that stdout cannot encode."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from rrq_fastwire import ExecutionOutcome, encode_frame

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

COMMAND = [sys.executable, "-m", "rrq_fastwire"]

# A start of escape sequences, DEL, a change of the direction of writing, and characters to keep.
HOSTILE = "\x9b31m \x7f \u202e \U000e0041 é 量 😀"
SHOWN = r"\u009b31m \u007f \u202e \udb40\udc41 é 量 😀"

HANDLERS = f"""
async def give(request):
    return {HOSTILE!a}

async def fail(request):
    raise RuntimeError({HOSTILE!a})

handlers = {{"give": give, "fail": fail}}
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that print text from a runner, by name; the first three print JSON."""
    (tmp_path / "hostile_app.py").write_text(HANDLERS)
    capture = tmp_path / "capture"
    capture.write_bytes(encode_frame(ExecutionOutcome.success("j", "r", HOSTILE)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    runner = [sys.executable, "-m", "rrq_fastwire.runner", "--settings", "hostile_app.handlers"]
    started = ["--runner", shlex.join(runner)]
    return {
        "decode --json": ["decode", "--json", str(capture)],
        "call": ["call", *started, "give"],
        "load --json": ["load", *started, "fail", "--requests", "1", "--json"],
        "decode": ["decode", str(capture)],
        "load": ["load", *started, "fail", "--requests", "1"],
        "check": ["check", *started, "--limit", "0.2"],
    }


def text_in(document: str) -> str:
    """The text from the runner in the output of a command that prints JSON."""
    found = json.loads(document)
    if isinstance(found, str):
        return found
    if "payload" in found:
        return found["payload"]["result"]
    (message,) = found["failures"]
    return message.removeprefix("error: ")


class TestJson:
    @pytest.mark.parametrize("name", ["decode --json", "call", "load --json"])
    def test_a_terminal_gets_no_control_characters(self, commands, on_a_terminal, name):
        _, printed = on_a_terminal([*COMMAND, *commands[name]], PYTHONIOENCODING="utf-8")
        document = re.sub("\x1b\\[[0-9;]*m", "", printed)
        assert SHOWN in document
        assert text_in(document) == HOSTILE

    @pytest.mark.parametrize("name", ["decode --json", "call", "load --json"])
    def test_a_pipe_gets_the_characters_as_they_are_written(self, commands, name):
        assert HOSTILE in printed(commands[name], "utf-8").decode()

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    @pytest.mark.parametrize("name", ["decode --json", "call", "load --json"])
    def test_other_encodings_get_json_with_escapes(self, commands, name, encoding):
        document = printed(commands[name], encoding)
        assert document.isascii()
        assert text_in(document.decode()) == HOSTILE


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", ["decode", "load", "check"])
def test_text_for_other_encodings_is_printed_without_an_error(commands, name, encoding):
    assert printed(commands[name], encoding)


def printed(arguments: list[str], encoding: str) -> bytes:
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        check=False,
    )
    assert b"UnicodeEncodeError" not in done.stderr
    return done.stdout
