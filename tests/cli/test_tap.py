"""How `tap` shows the messages that it passes on."""

from __future__ import annotations

import gc
import json
import re
import signal
import time
import weakref
from datetime import datetime, timedelta, timezone

import pytest

from rrq_fastwire import (
    CancelRequest,
    ExecutionOutcome,
    encode_frame,
    pack_frame,
)

from ..taps import (
    ANSWER,
    ENQUEUED,
    MILLISECONDS,
    on_a_terminal,
    passes,
    request,
)

pytest.importorskip("pty", reason="pseudo-terminals need POSIX")
pytest.importorskip("click", reason="the command line is an extra")
traffic = pytest.importorskip("rrq_fastwire.cli.tap.traffic", reason="the command line is an extra")
cell_len = pytest.importorskip("rich.cells", reason="the command line is an extra").cell_len


def test_answers_are_paired_with_the_requests_of_their_own_connection(start):
    tap = start()
    (one, runner_one), (two, runner_two) = tap.connection(), tap.connection()
    with one, two, runner_one, runner_two:
        passes(one, runner_one, request("first", params={"a": "naïve ☠"}))
        passes(two, runner_two, request("second", job_id="k") + request("other", "r2"))
        passes(runner_two, two, encode_frame(ExecutionOutcome.success("k", "r", {"a": 1})))
        assert MILLISECONDS.sub("TIME  ", tap.says("<- success").rstrip()[14:]) == (
            '<- success  k         TIME  second   {"a":1}'
        )
        passes(runner_one, one, ANSWER)
        tap.says("<- success", "j  ", "ms", "first", '{"done":true}')
    tap.says("-> first", "j  ", "attempt 1", '{"a":"naïve ☠"}')
    tap.says("waiting", "j  ", "other", "never answered")


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (ExecutionOutcome.failure("j", "r", "no"), "error", "no"),
        (ExecutionOutcome.failure("j", "r", "Runner busy"), "error", "Runner busy"),
        (ExecutionOutcome.cancelled("j", "r"), "error", "(cancelled) Job cancelled"),
        (ExecutionOutcome.handler_not_found("j", "r", "no"), "error", "(handler_not_found) no"),
        (ExecutionOutcome.timeout("j", "r", "late"), "timeout", "late"),
        (ExecutionOutcome.retry_after("j", "r", "later", 1), "retry", "in 1.0 s: later"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_outcome_other_than_success_is_shown_with_its_reason_and_counted(
    start, outcome, status, reason
):
    tap = start("--only-errors")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("good") + request("bad", "other"))
        passes(runner, orchestrator, ANSWER)
        outcome.request_id = "other"
        passes(runner, orchestrator, encode_frame(outcome))
        assert tap.says(f"<- {status}", "bad").endswith(f" {reason}")
        tap.says("-> bad")
    assert tap.ends(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "<- success" not in tap.output
    assert "-> good" not in tap.output
    assert re.search(r"^ good +1 +0 +0 ", tap.output, re.MULTILINE)
    assert re.search(r"^ bad +1 +1 +0 ", tap.output, re.MULTILINE)


def test_on_a_terminal_of_80_columns_messages_are_aligned_and_nothing_wraps(start, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    ids = ["b916cd1f-7f1c-4b6e-a1d3-0f5b9a3a1c11", "0c1d5bbe-2d0c-4d43-a2d8-3b7d1f3c9a10"]
    tap = on_a_terminal(start)
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        for number, name in enumerate(["echo", "a_function_with_a_long_name"]):
            params = {"to": "someone@example.com", "text": "量子" * 100}
            passes(orchestrator, runner, request(name, f"r{number}", ids[number], params))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success(ids[0], "r0", params)))
        passes(
            runner, orchestrator, encode_frame(ExecutionOutcome.failure(ids[1], "r1", "no" * 99))
        )
        passes(orchestrator, runner, encode_frame(CancelRequest(job_id=ids[0])))
        tap.says("cancel")
        passes(orchestrator, runner, b"\0\0\0\0")
        tap.says("broken")
    tap.ends(signal.SIGTERM)
    shown = re.sub("\x1b\\[[0-9;]*m|\r", "", tap.output).splitlines()
    assert max(map(cell_len, shown)) <= 80
    messages = [line[14:] for line in shown if re.match("[\\d:.]{12}  (->|<-)", line)]
    assert [line.split()[:3] for line in messages] == [
        ["->", "echo", "b916cd1f"],
        ["->", "a_functio…", "0c1d5bbe"],
        ["<-", "success", "b916cd1f"],
        ["<-", "error", "0c1d5bbe"],
        ["->", "cancel", "b916cd1f"],
    ]
    assert messages[2].index("b916cd1f") == messages[1].index("0c1d5bbe")
    assert {line.index('{"to"') for line in (messages[1], messages[2])} == {
        messages[3].index("nono")
    }


def test_verbose_prints_whole_payloads(start):
    tap = start("--verbose", "--redact", "card")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"card": "secret", "list": [1, {}]}))
        tap.says('        "queue_name": "q"')
        passes(runner, orchestrator, ANSWER)
        tap.says('        "done": true')
    lines = tap.output.splitlines()
    at = lines.index('      "params": {')
    assert lines[at + 1 : at + 6] == [
        '        "card": "***",',
        '        "list": [',
        "          1,",
        "          {}",
        "        ]",
    ]
    assert "secret" not in tap.output


def test_an_overdue_answer_is_announced_once_before_the_deadline(start):
    tap = start()
    orchestrator, runner = tap.connection()
    due = datetime.now(timezone.utc) + timedelta(seconds=2)
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs", deadline=due) + request("other", "r2"))
        tap.says("waiting", "j  ", "hangs", "deadline in", "no answer yet")
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "hangs")
    assert tap.output.count("no answer yet") == 1


def test_cancels_name_what_they_cancel(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("one", "r1") + request("two", "r2"))
        for cancel, said in (
            (CancelRequest(job_id="j", request_id="r2"), ["cancels two after"]),
            (CancelRequest(job_id="j"), ["cancels one after", ", two after"]),
            (CancelRequest(job_id="other"), ["cancels nothing in flight"]),
            (CancelRequest(job_id="j", request_id="r3"), ["cancels nothing in flight"]),
        ):
            canceller, cancelled = tap.connection()
            with canceller, cancelled:
                passes(canceller, cancelled, encode_frame(cancel))
                tap.says("-> cancel", *said)


def test_an_answer_to_no_request_is_marked(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", 'answers no request: {"done":true}')


def test_a_request_whose_id_is_used_again_is_never_answered(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("first") + request("second"))
        tap.says("waiting", "first", "never answered")
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "second")
    tap.ends(signal.SIGTERM)
    assert tap.output.count("never answered") == 1
    assert re.search(r"^ first +1 +0 +1 ", tap.output, re.MULTILINE)


@pytest.mark.parametrize(("only_errors", "lines_before_the_end"), [(False, 2), (True, 0)])
def test_late_answers_are_announced_unless_only_errors_are_shown(
    monkeypatch, only_errors, lines_before_the_end
):
    monkeypatch.setattr(traffic, "_REMIND_LEAST", 0.0)
    lines = []
    watched = traffic.Traffic(
        lines.append, record=None, slow=None, only_errors=only_errors, live=False, process=None
    )
    connection = watched.watch(1)
    connection.passed(request(deadline=ENQUEUED), to_runner=True)
    watched.remind()
    assert len(lines) == lines_before_the_end
    watched.finish()  # shows the request, unless that is done, and that it was never answered
    assert len(lines) == max(2, lines_before_the_end + 1)


def test_an_invalid_message_is_named_and_the_next_one_is_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, pack_frame(b'{"type":"cancel","payload":{"job_id":7}}'))
        passes(orchestrator, runner, request())
        tap.says("-> invalid", "payload.job_id: expected a string, got 7")
        tap.says("-> echo")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_tap_with_unanswered_requests_and_a_table(start, number):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs") + request("echo", "r2"))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r2")))
        tap.says("<- success", "echo")
        assert tap.ends(number) == 128 + number
        tap.says("waiting", "j  ", "hangs", "never answered")
        assert re.search(r"^ hangs +1 +0 +1 +- +- +- +- +\d+ B +0 B", tap.output, re.MULTILINE)
        milliseconds = r" +[\d.]+" * 4
        assert re.search(rf"^ echo +1 +0 +0{milliseconds} +\d+ B +\d+ B", tap.output, re.MULTILINE)
        assert orchestrator.recv(1) == runner.recv(1) == b""


@pytest.mark.parametrize("option", [["--only-errors"], ["--slow", "60000"]])
def test_a_request_that_is_never_answered_is_shown_with_its_params_despite_a_filter(start, option):
    tap = start(*option)
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("hangs", params={"customer": 4711}))
    tap.says("never answered", "hangs")
    tap.ends(signal.SIGTERM)
    assert '{"customer":4711}' in tap.output


def test_only_slow_requests_are_shown(start):
    tap = start("--slow", "500")
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("slow", "r1"))
        time.sleep(0.51)
        passes(orchestrator, runner, request("quick") + encode_frame(CancelRequest(job_id="j")))
        passes(runner, orchestrator, ANSWER)
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r1")))
        tap.says("-> slow")
        tap.says("<- success", "slow")
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "unknown")))
        tap.says("answers no request")
    assert "cancel" not in tap.output
    assert "-> quick" not in tap.output


def test_a_payload_of_a_megabyte_is_named_and_not_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"a": "x" * 1_000_000}))
        tap.says("-> echo", "1.0 MB, too long to show")
    assert "xxx" not in tap.output


def test_lines_keep_no_payload_that_is_too_long_to_show():
    lines = []
    watched = traffic.Traffic(
        lines.append, record=None, slow=None, only_errors=False, live=False, process=None
    )
    connection = watched.watch(1)
    for size in 10_000, 1_000_000:
        frame = request(request_id=str(size), params={"a": "x" * size})
        connection.passed(frame, to_runner=True)
    assert [line.frame == b"" for line in lines] == [False, True]


def test_a_deeply_nested_payload_does_not_stop_the_output(start):
    """How deep the json module can read depends on the version of Python. Deeper payloads are not shown."""
    tap = start("--verbose", "--redact", "x")
    orchestrator, runner = tap.connection()
    nested = b"[" * 1000 + b"]" * 1000
    with orchestrator, runner:
        for payload in (
            b'{"status":"success","result":%s}' % nested,
            b'{"status":"error","error":{"message":"no luck","details":%s}}' % nested,
        ):
            envelope = b'{"type":"response","payload":%s}' % payload
            passes(runner, orchestrator, pack_frame(envelope))
        passes(orchestrator, runner, request())
        tap.says("-> echo")
    for line in tap.says("<- success"), tap.says("<- error", "no luck"):
        assert "nested too deep to show" in line or "[" * 1000 in line


def test_values_are_redacted_everywhere(start):
    tap = start("--redact", "card,params")
    orchestrator, runner = tap.connection()
    result = {"list": [{"card": "secret"}], "fine": 1}
    with orchestrator, runner:
        passes(orchestrator, runner, request(params={"any": "secret"}))
        passes(runner, orchestrator, encode_frame(ExecutionOutcome.success("j", "r", result)))
        wrong = json.loads(request()[4:])
        wrong["payload"]["params"] = "secret"
        passes(orchestrator, runner, pack_frame(json.dumps(wrong).encode()))
        tap.says("invalid", "payload.params")
    assert tap.ends(signal.SIGTERM)
    assert re.search(r'-> echo +j +attempt 1 +"\*\*\*"$', tap.output, re.MULTILINE)
    assert '{"list":[{"card":"***"}],"fine":1}' in tap.output
    assert "secret" not in tap.output


@pytest.mark.parametrize(
    ("keys", "hidden"), [("job_id,function_name", r"\*\*\*"), ("email", r"a:email=\*\*\*")]
)
def test_ids_and_functions_are_redacted_in_all_lines_and_in_the_table(start, keys, hidden):
    tap = start("--redact", keys)
    orchestrator, runner = tap.connection()
    name = job_id = "a:email=secret"
    with orchestrator, runner:
        answer, stray = (
            encode_frame(ExecutionOutcome.success(job_id, request_id, "fine"))
            for request_id in ("r", "stray")
        )
        passes(orchestrator, runner, request(name, job_id=job_id))
        passes(runner, orchestrator, answer + stray)
        tap.says("<- success", "answers no request")
        passes(orchestrator, runner, request(name, job_id=job_id))
        passes(orchestrator, runner, encode_frame(CancelRequest(job_id=job_id)))
        tap.says("-> cancel", "cancels ", "*** after")
    tap.ends(signal.SIGTERM)
    assert re.search(rf"-> {hidden} +{hidden} +attempt 1", tap.output)
    assert re.search(rf"waiting +{hidden} .* {hidden} +never answered", tap.output)
    assert re.search(rf"^ {hidden} +2 +0 +1 ", tap.output, re.MULTILINE)
    assert "secret" not in tap.output


def test_names_cannot_contain_escapes_or_line_breaks(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request("a\x1b[2Jb\nc"))
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "a\\x1b[2Jb\\nc")
    tap.ends(signal.SIGTERM)
    assert re.search(r"^ a\\x1b\[2Jb\\nc +1 ", tap.output, re.MULTILINE)


class Params(dict):
    """Params that weak references can be made to."""


@pytest.mark.parametrize("slow", [None, 1.0], ids=["all", "slow"])
def test_the_params_of_a_request_without_an_answer_are_not_kept(monkeypatch, slow):
    decode_payload, decoded = traffic.decode_payload, []

    def decode(payload):
        message = decode_payload(payload)
        message.params = Params(message.params)
        decoded.append(weakref.ref(message.params))
        return message

    monkeypatch.setattr(traffic, "decode_payload", decode)
    lines = []
    watched = traffic.Traffic(
        lines.append, record=None, slow=slow, only_errors=False, live=False, process=None
    )
    connection = watched.watch(1)
    connection.passed(request(params={"a": 1}), to_runner=True)
    gc.collect()  # for implementations without reference counts
    assert [reference() for reference in decoded] == [None]
    assert list(connection.pending) == ["r"]
