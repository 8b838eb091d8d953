"""Fuzz `rrq-fastwire decode`: any bytes as a capture; no crash, and no control characters shown."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from rrq_fastwire import FRAME_HEADER_LEN, MAX_FRAME_SIZE
from rrq_fastwire.cli.decode import command

from .oracles import split

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPTIONS = (
    ["--json"],
    [],
    ["--verbose"],
    ["--json", "--redact", "result,message,a"],
    ["--verbose", "--redact", "params,card,details"],
    ["--type", "request", "--function", "echo"],
    ["--json", "--job", "j"],
)


class _Stdin(io.BytesIO):
    """A stdin with the name that `decode` prints."""

    name = "<stdin>"


def seeds() -> Iterator[bytes]:
    for path in sorted(Path(__file__).parent.parent.glob("captures/*.bin")):
        for option in range(len(_OPTIONS)):
            yield bytes([option]) + path.read_bytes()[:1500]


def check(data: bytes) -> None:
    """Check one input: the number of a set of options, and the capture."""
    if not data:
        return
    options, capture = _OPTIONS[data[0] % len(_OPTIONS)], data[1:]
    shown, errors = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(_Stdin(capture))
    with patch("sys.stdin", stdin), redirect_stdout(shown), redirect_stderr(errors):
        status = command.main([*options, "-"], standalone_mode=False)
    payloads, failure, rest = split(capture, MAX_FRAME_SIZE)
    assert status == (1 if failure or rest else 0), (status, errors.getvalue())
    if options[0:1] == ["--json"]:
        _check_json(shown.getvalue().split("\n"), payloads, may_leave_out="--job" in options)
    else:
        # No control characters, which could change the terminal of the reader.
        assert shown.getvalue().replace("\n", "").isprintable()


def _check_json(lines: list[str], payloads: list[bytes], *, may_leave_out: bool) -> None:
    """Check that each line is JSON, and has the place and the length of its payload."""
    assert lines.pop() == ""
    if not may_leave_out:
        assert len(lines) == len(payloads), (len(lines), len(payloads))
    offsets = {}
    offset = 0
    for payload in payloads:
        offsets[offset] = payload
        offset += FRAME_HEADER_LEN + len(payload)
    for line in lines:
        assert min(line) >= " ", line
        try:
            document = json.loads(line, parse_constant=_reject)
        except RecursionError:
            continue
        assert document["length"] == len(offsets.pop(document["offset"]))


def _reject(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
