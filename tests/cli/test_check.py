"""`check`, as a user sees it, and with runners that each break one rule of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rrq_fastwire import pack_frame

from ..small_runner import SmallRunner
from ..stock import needs_rrq
from .in_process import run_text

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

target = pytest.importorskip("rrq_fastwire.cli.target")
checking = pytest.importorskip("rrq_fastwire.cli.check.command")
reset = pytest.importorskip("rrq_fastwire.cli.reset").reset
CHECKS = checking.CHECKS

COMMAND = [sys.executable, "-m", "rrq_fastwire", "check"]
SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
OURS = shlex.join([sys.executable, "-m", "rrq_fastwire.runner", *SETTINGS])
STOCK = shlex.join([sys.executable, "-m", "rrq.runner_runtime", *SETTINGS])
SMALL = shlex.join([sys.executable, str(Path(__file__).parents[1] / "small_runner.py")])


DOUBLES = f"{SMALL} 'numbers are doubles'"
CLOSED = "the connection was closed instead of an answer"

# The rules that small_runner.py can break, and the checks that must notice it.
RULES = {
    "half a header is waited for": {"half a frame"},
    "empty frames are skipped": {"frame of 0 bytes"},
    "largest frame refused": {"request of 16 MiB"},
    "no limit": {"frame of 16 MiB + 1", "garbage"},
    "bad frame closes all": {"frame of 16 MiB + 1", "frame of 0 bytes", "garbage"},
    "jobs outlive their connection": {"end of a connection"},
    "one write, one frame": {"many frames in one write"},
    "type comes first": {"type after payload", "spaces and escapes"},
    "any version": {"other protocol version", "cancel of another version"},
    "strict fields": {"unknown fields"},
    "never busy": {"busy"},
    "one at a time": {"concurrency", "cancel by job"},
    "no cancels": {"cancel by request", "cancel by job", "cancel after its request", "busy"},
    "late cancels are answered": {"cancel too late"},
    "cancels take the whole job": {"cancel by request"},
    "cancels are local": {"cancel by request", "cancel by job"},
    "cancels are not answered": {"cancel by request", "cancel by job", "busy"},
    "no deadlines": {"deadline passes", "deadline already past"},
    "no retry": {"retry"},
    "numbers are doubles": {"integers of 64 bits"},
    "no astral text": {"odd unicode"},
    "shallow": {"nested params"},
    "failure is a status": {"fail", "unknown function"},
    "answers name no job": {"echo"},
    "answers are escaped": {"answer near 16 MiB"},
    "answers come twice": {"many frames in one write", "cancel too late"},
}


async def verdicts(rule: str, names: set[str], limit: float) -> dict[str, str]:
    async with target.running_target([*shlex.split(SMALL), rule]) as runner:
        found = [await checking.judge(each, runner, limit) for each in CHECKS if each.name in names]
    return {verdict.check.name: verdict.verdict for verdict in found}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_caught(rule):
    names = RULES[rule]
    open_ones = {each.name for each in CHECKS if each.is_open}
    expected = {name: "found" if name in open_ones else "FAIL" for name in names}
    # Most of these checks fail because no answer comes within the limit.
    assert asyncio.run(verdicts(rule, names, 0.3)) == expected


def test_the_checks_of_all_other_rules_pass():
    kept = {each.name for each in CHECKS} - RULES["no cancels"]
    found = asyncio.run(verdicts("no cancels", kept, 30))
    assert found == dict.fromkeys(found, "pass")
    assert set(found) == kept


def answer(request: dict, status: str = "success", **fields: object) -> bytes:
    payload = {key: request[key] for key in ("job_id", "request_id")}
    payload |= {"status": status, **fields}
    return pack_frame(json.dumps({"type": "response", "payload": payload}).encode())


def answer_nested(request: dict) -> bytes:
    payload = answer(request, result="nested")[4:]
    return pack_frame(payload.replace(b'"nested"', b"[" * 1000 + b"]" * 1000))


def refuse(request: dict, message: str, type: str | None = None) -> bytes:
    return answer(request, "error", error={"message": message, "type": type})


class WithOtherAnswers(SmallRunner):
    """A runner whose answers to requests, or to a frame that is too long or empty, are a test's."""

    def __init__(self, reply, end):
        super().__init__()
        self.reply, self.end = reply, end
        self.serving = []

    async def serve(self, reader, writer):
        self.serving.append(asyncio.current_task())
        reader.writer = writer
        await super().serve(reader, writer)
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def read(self, reader):
        payload = await super().read(reader)
        if payload is None and not reader.at_eof():
            self.end(reader.writer)
        return payload

    async def receive(self, message, payload, writer):
        if self.reply is None:
            await super().receive(message, payload, writer)
        else:
            writer.write(self.reply(message["payload"]))


async def verdict_on(name: str, reply, end) -> tuple[str, str]:
    runner = WithOtherAnswers(reply, end)
    async with await asyncio.start_server(runner.serve, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        (one,) = (each for each in CHECKS if each.name == name)
        found = await checking.judge(one, target.Target(*address, None), 30)
        await asyncio.gather(*runner.serving)
    return found.verdict, found.seen


@pytest.mark.parametrize(
    ("name", "reply", "verdict", "seen"),
    [
        (
            *("echo", lambda _: pack_frame(b'{"type":"cancel","payload":{"job_id":"j"}}')),
            *("FAIL", "a message that is not an answer"),
        ),
        (
            *("echo", lambda request: answer(request, result={"text": "hello"})),
            *("FAIL", "'number' is missing"),
        ),
        (
            *("unknown fields", lambda request: answer(request, result=[1])),
            *("FAIL", "{'a': 1} came back as [1]"),
        ),
        (
            *("fields left out", lambda request: answer(request, result={"a": 1})),
            *("FAIL", "{} came back as {'a': 1}"),
        ),
        (
            *("fail", lambda request: refuse(request, "no", "handler_not_found")),
            *("FAIL", "error (handler_not_found): no"),
        ),
        (
            *("answer near 16 MiB", lambda request: refuse(request, "too large")),
            *("pass", "error: too large"),
        ),
        (
            *("answer near 16 MiB", lambda request: answer(request, result={"text": "é"})),
            *("FAIL", "success, with another result"),
        ),
        ("concurrency", answer, "FAIL", "the long job was not answered last"),
        ("cancel by job", answer, "FAIL", "an earlier request was answered first: success: null"),
        (
            *("busy", lambda request: refuse(request, "busy")),
            *("FAIL", "one of the first 64: error: busy"),
        ),
    ],
)
def test_check_says_what_is_wrong_with_an_answer(name, reply, verdict, seen):
    assert asyncio.run(verdict_on(name, reply, None)) == (verdict, seen)


@pytest.mark.parametrize("name", ["fail", "echo"])
def test_a_result_that_is_nested_too_deep_to_show_fails(name):
    verdict, seen = asyncio.run(verdict_on(name, answer_nested, None))
    assert verdict == "FAIL"
    # Some versions of Python can write it.
    assert seen == "an answer that is nested too deep to show" or "[" * 100 in seen


@pytest.mark.parametrize(
    ("end", "verdict", "seen"),
    [
        (
            lambda writer: writer.write(b"HTTP/1.1 400 Bad Request"),
            *("FAIL", "bytes instead of the end of the connection: b'HTTP/1.1 400 Bad Request'"),
        ),
        (lambda writer: reset(writer.transport), "pass", "as expected"),
    ],
    ids=["text", "reset"],
)
@pytest.mark.parametrize("name", ["frame of 0 bytes", "frame of 16 MiB + 1"])
def test_a_bad_frame_must_be_answered_with_the_end_of_its_connection(name, end, verdict, seen):
    assert asyncio.run(verdict_on(name, None, end)) == (verdict, seen)


def check(*arguments: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Runs `check`. Returns the exit status, the verdict and the finding of each check, and stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "400", **environment},
        timeout=110,
        check=False,
    )
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    found = {row[1].strip(): (row[2].strip(), row[4].strip()) for row in rows}
    return done.returncode, found, done.stderr


@needs_rrq
def test_this_packages_runner_passes():
    status, found, _ = check("--runner", OURS)
    assert {name: seen for name, seen in found.items() if seen[0] != "pass"} == {}
    assert list(found) == [each.name for each in CHECKS]
    assert status == 0


@needs_rrq
def test_checks_that_the_stock_runner_does_not_pass_are_reported():
    status, found, _ = check("--runner", STOCK, "--limit", "5")
    assert {name: seen for name, seen in found.items() if seen[0] != "pass"} == {
        # The stock runner writes characters outside ASCII as escapes, and does not check the size.
        "answer near 16 MiB": (
            "FAIL",
            "an answer of 25,166,050 bytes; the orchestrator accepts 1 byte to 16 MiB",
        ),
        # The job's task is cancelled before its first step, and so does not answer.
        "cancel after its request": ("FAIL", "no answer within 5 s"),
        # The stock runner closes the connection, and the other jobs on it lose their answers.
        "payload that is not JSON": ("found", CLOSED),
        "unknown type of message": ("found", CLOSED),
        "request without a context": ("found", CLOSED),
    }
    assert len(found) == len(CHECKS)
    assert status == 1


def test_a_runner_that_ends_is_reported():
    runner = f"{SMALL} 'bad frame ends the runner'"
    status, found, said = check("--runner", runner, "--limit", "5")
    assert status == 1
    assert found["echo"][0] == "pass"
    assert found["frame of 16 MiB + 1"] == ("FAIL", "another connection was closed, too")
    assert found["cancel by job"] == ("FAIL", "cannot connect: Connection refused")
    assert found["alive at the end"] == ("FAIL", "exit status 7")
    assert "Traceback" not in said


def test_what_the_runner_prints_is_shown_only_for_checks_that_fail(on_a_terminal):
    command = [*COMMAND, "--runner", f"{SMALL} 'no retry'", "--limit", "5"]
    status, text = on_a_terminal(command, "stdout", "stderr", COLUMNS="100", NO_COLOR="1")
    assert status == 1
    before, after = text.split("The runner printed during 'retry':")
    assert "running" not in before
    assert re.findall(r"running \w+", after) == ["running retry"]


def test_a_runner_that_does_not_start_is_explained_by_what_it_prints():
    runner = shlex.join([sys.executable, "-c", "raise SystemExit('no such module: app')"])
    status, found, said = check("--runner", runner)
    assert (status, found) == (1, {})
    assert said.splitlines() == [
        "no such module: app",
        "rrq-fastwire: the runner ended with exit status 1 before it listened",
    ]


@needs_rrq
@pytest.mark.parametrize(
    ("runner", "environment", "found"),
    [(OURS, {}, 0), (DOUBLES, {"NO_COLOR": "1"}, 1)],
    ids=["in colour", "NO_COLOR"],
)
def test_a_terminal_shows_a_progress_bar_and_colours_and_found_is_not_a_failure(
    on_a_terminal, runner, environment, found
):
    status, text = on_a_terminal(
        [*COMMAND, "--runner", runner], "stdout", "stderr", COLUMNS="100", **environment
    )
    assert status == 0
    assert re.search("many frames in one write ━", re.sub("\x1b\\[[0-9;]*m", "", text))
    assert ("\x1b[32mpass" in text) == (not environment)
    assert f"{len(CHECKS)} checks: {len(CHECKS) - found} pass, 0 fail, {found} found" in text


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, r"no runner given; .*"),
        (["nonsense"], 2, r"expected HOST:PORT .* got 'nonsense'"),
        (["127.0.0.1:9", "f"], 2, r"expected nothing after the runner, got 'f'"),
        (["127.0.0.1:9", "--limit", "0"], 2, r".*'--limit'.*"),
        (["--runner", "/no/such/runner"], 1, r"cannot start '/no/such/runner': .*"),
        (["127.0.0.1:9"], 1, r"cannot connect to 127.0.0.1:9: .*"),
    ],
)
def test_a_wrong_command_line_or_runner_gets_one_sentence(arguments, status, said):
    done = run_text("check", *arguments)
    assert done[:2] == (status, "")
    assert re.fullmatch(f"rrq-fastwire: {said}\n", done[2]), done[2]


def test_help_has_an_example():
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert 'Example: rrq-fastwire check --runner "node runner.js"' in done.stdout
