"""`decode` and `encode`, as a user sees them: on pipes and on a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rrq_fastwire import (
    CancelRequest,
    ExecutionOutcome,
    OutcomeStatus,
    encode_frame,
    pack_frame,
)

from .in_process import run, run_text

pytest.importorskip("click", reason="the command line is an extra")
cell_len = pytest.importorskip("rich.cells", reason="the command line is an extra").cell_len

CAPTURES = Path(__file__).parents[1] / "captures"
COMMAND = [sys.executable, "-m", "rrq_fastwire"]

REQUEST = json.dumps(
    {
        "type": "request",
        "payload": {
            "protocol_version": "2",
            "request_id": "r",
            "job_id": "j",
            "function_name": "charge",
            "params": {"card": "4111", "deep": [{"card": {"no": 1}}], "big": 123456789012345678901},
            "context": {
                "job_id": "j",
                "attempt": 1,
                "enqueue_time": "2024-01-01T00:00:00.000000001Z",
                "queue_name": "q",
                "deadline": "2024-01-01T00:05:00Z",
                "tenant": "unknown",
            },
        },
    },
    separators=(",", ":"),
).encode()
WRONG = b'{"type":"cancel","payload":{"job_id":7}}'


def lines(*arguments: str, input: bytes = b"") -> list[dict]:
    done = run("decode", "--json", *arguments, input=input)
    assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capture", sorted(CAPTURES.glob("*.to-runner.bin")), ids=lambda p: p.stem)
def test_a_capture_of_the_orchestrator_is_encoded_back_to_the_same_bytes(capture):
    decoded = run("decode", "--json", str(capture))
    assert run("encode", input=decoded.stdout).stdout == capture.read_bytes()


@pytest.mark.parametrize(
    "capture", sorted(CAPTURES.glob("*.from-runner.bin")), ids=lambda p: p.stem
)
def test_payloads_with_spaces_are_encoded_back_to_the_same_values(capture):
    decoded = run("decode", "--json", str(capture))
    again = run("encode", input=decoded.stdout).stdout
    payloads = [json.loads(line)["payload"] for line in decoded.stdout.splitlines()]
    assert [line["payload"] for line in lines("-", input=again)] == payloads


def test_a_line_has_offset_length_type_and_the_unchanged_payload():
    stream = pack_frame(REQUEST) + encode_frame(CancelRequest(job_id="j"))
    done = run("decode", "--json", "-", input=stream)
    first, second = done.stdout.decode().splitlines()
    payload = REQUEST.decode().partition('"payload":')[2].removesuffix("}")
    assert first == (f'{{"offset":0,"length":{len(REQUEST)},"type":"request","payload":{payload}}}')
    assert json.loads(second)["offset"] == 4 + len(REQUEST)


def test_a_payload_over_several_lines_is_shown_on_one():
    document = json.dumps(json.loads(REQUEST), indent=1).encode()
    (line,) = lines("-", input=pack_frame(document))
    assert line["payload"] == json.loads(REQUEST)["payload"]


def test_a_wrong_payload_is_named_and_decoding_goes_on():
    stream = pack_frame(WRONG) + pack_frame(b"\xff") + pack_frame(REQUEST)
    wrong, garbage, good = lines("-", input=stream)
    assert wrong == {
        "offset": 0,
        "length": len(WRONG),
        "type": None,
        "payload": {"error": "expected a string, got 7", "path": "payload.job_id"},
    }
    assert garbage["payload"]["path"] == ""
    assert good["type"] == "request"
    shown = run("decode", "-", input=stream).stdout.decode()
    assert re.search(r"invalid +- +payload.job_id: expected a string, got 7$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\0\0", "expected a frame header of 4 bytes, got 2"),
        (b"\0\0\0\x09{", "expected a frame of 13 bytes, got 5"),
        (b"\0\0\0\0", "frame of 0 bytes: a payload cannot be empty"),
        (b"GET / HTTP/1.1\r\n", "frame of 1195725856 bytes exceeds the limit of 16777216"),
    ],
)
def test_a_broken_stream_ends_with_one_sentence_and_its_offset(tail, reason):
    done = run("decode", "--json", "-", input=pack_frame(REQUEST) + tail)
    assert len(done.stdout.splitlines()) == 1
    offset = 4 + len(REQUEST)
    assert done.stderr.decode() == f"<stdin>: the stream is broken at offset {offset}: {reason}\n"
    assert done.returncode == 1


def test_an_empty_capture_is_said_to_be_empty():
    done = run("decode", "-", input=b"")
    assert (done.stdout, done.stderr) == (b"", b"<stdin>: the capture is empty\n")
    assert done.returncode == 0


def test_a_file_that_is_not_a_capture_is_doubted():
    done = run("decode", "-", input=b"GET / HTTP/1.1\r\n")
    assert done.stderr.decode() == (
        "<stdin>: the stream is broken at offset 0: frame of 1195725856 bytes exceeds the limit of"
        " 16777216; is this a file of tap --record?\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--type", "cancel"], ["cancel"]),
        (["--type", "request"], ["request"]),
        (["--job", "k"], ["cancel"]),
        (["--function", "charge"], ["request"]),
        (["--function", "other"], []),
        (["--type", "request", "--job", "k"], []),
    ],
)
def test_only_messages_that_match_every_filter_are_shown(arguments, shown):
    stream = pack_frame(REQUEST) + encode_frame(CancelRequest(job_id="k"))
    assert [line["type"] for line in lines(*arguments, "-", input=stream)] == shown


def test_a_type_is_found_if_it_is_written_with_escapes():
    stream = pack_frame(REQUEST.replace(b'"request"', b'"\\u0072equest"')) + pack_frame(WRONG)
    (line,) = lines("--type", "request", "-", input=stream)
    assert line["payload"]["function_name"] == "charge"


@pytest.mark.parametrize("arguments", [["--verbose"], ["--json"]])
def test_redacted_values_are_shown_nowhere(arguments):
    done = run("decode", *arguments, "--redact", "card,tenant", "-", input=pack_frame(REQUEST))
    text = done.stdout.decode()
    assert text.count('"***"') == (3 if arguments == ["--json"] else 5)
    assert "4111" not in text
    assert "unknown" not in text
    assert "123456789012345678901" in text


def shown(*arguments: str, input: bytes) -> list[str]:
    return run("decode", *arguments, "-", input=input).stdout.decode().splitlines()


@pytest.mark.parametrize("arguments", [[], ["--verbose"], ["--json"]])
def test_with_redaction_the_error_of_an_invalid_payload_quotes_no_value(arguments):
    wrong = REQUEST.replace(b'"params":{', b'"params":7,"x":{')
    done = run("decode", *arguments, "--redact", "params", "-", input=pack_frame(wrong))
    assert b"payload.params" in done.stdout
    assert b"got 7" not in done.stdout


def test_a_request_is_one_line_with_its_own_times():
    """The deadline is relative to the enqueue time: relative to now, it would be past in every capture."""
    date, line = shown(input=pack_frame(REQUEST))
    assert date == "jobs enqueued on 2024-01-01, UTC"
    assert line == (
        "00:00:00.000  -> charge   j         attempt 1 +5 min   "
        '{"card":"4111","deep":[{"card":{"no":1}}],"big":123456789012345678901}'
    )


def test_a_request_without_a_deadline_is_shown_without_one():
    _, line = shown(input=pack_frame(REQUEST.replace(b'"deadline":"2024-01-01T00:05:00Z",', b"")))
    assert re.search(r'-> charge   j         attempt 1 +{"card"', line)


def test_a_payload_of_more_than_64_kb_is_mentioned_but_not_shown():
    long = encode_frame(ExecutionOutcome.success("j", "r", "x" * 70_000))
    lines = shown("--verbose", input=long + pack_frame(REQUEST))
    assert lines[0].endswith("kB, too long to show")
    assert lines[2] == "jobs enqueued on 2024-01-01, UTC"
    assert "xxx" not in "".join(lines)


def test_every_other_message_is_one_line_too():
    outcomes = [
        ExecutionOutcome.success("j", "r", {"a": [1.50, None]}),
        ExecutionOutcome.failure("j", "r", "no", type="Declined", code="E7", details={"x": 1}),
        ExecutionOutcome.retry_after("j", "r", "later", 30),
        ExecutionOutcome.timeout("j", "r", "too late"),
        ExecutionOutcome(job_id="j", status=OutcomeStatus.ERROR),
        ExecutionOutcome(job_id="j", status=OutcomeStatus.RETRY, retry_after_seconds=30),
    ]
    cancels = [CancelRequest(job_id="j"), CancelRequest(job_id="j", request_id="r")]
    lines = shown(input=b"".join(map(encode_frame, [*outcomes, *cancels])))
    assert [re.sub(" +", " ", line.strip()) for line in lines] == [
        '<- success j {"a":[1.5,null]}',
        '<- error j (Declined, E7) no {"x":1}',
        "<- retry j in 30.0 s: later",
        "<- timeout j too late",
        "<- error j",
        "<- retry j in 30.0 s",
        "-> cancel j cancels the whole job",
        "-> cancel j cancels the request r",
    ]


def test_verbose_shows_whole_payloads_as_they_are_written_and_where_they_are():
    payload = REQUEST.replace(b'"big":123456789012345678901', b'"big":1.50e2,"e":[],"\\"}":{}')
    lines = shown("--verbose", input=pack_frame(payload) * 2)
    assert lines[2] == f"    #1 at offset 0, {len(payload)} B"
    second = lines.index(f"    #2 at offset {4 + len(payload)}, {len(payload)} B")
    document = "\n".join(lines[second + 1 :])
    assert json.loads(document) == json.loads(payload)["payload"]
    assert '        "big": 1.50e2,\n        "e": [],\n        "\\"}": {}\n' in document


def test_several_files_are_named(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(pack_frame(REQUEST))
    files = [str(tmp_path / "one"), str(tmp_path / "two")]
    lines = run("decode", *files).stdout.decode().splitlines()
    assert [lines[0], lines[3]] == files
    assert lines[1] == lines[4] == "jobs enqueued on 2024-01-01, UTC"
    assert "one" not in run("decode", files[0]).stdout.decode()


def test_on_a_terminal_of_80_columns_nothing_wraps(on_a_terminal, tmp_path):
    long = REQUEST.replace(b'"charge"', b'"charge_the_card_of_a_customer"').replace(
        b'"j"', b'"b916cd1f-7f1c-4b6e-a1d3-0f5b9a3a1c11"'
    )
    wide = encode_frame(ExecutionOutcome.success("b916cd1f-7f1c", "r", "量子" * 100))
    wrong = pack_frame(b'{"type":"cancel","payload":{"job_id":[%s]}}' % b",".join([b"7"] * 99))
    capture = tmp_path / "capture"
    capture.write_bytes(pack_frame(long) + wide + wrong + pack_frame(b"{"))
    status, text = on_a_terminal([*COMMAND, "decode", str(capture)], COLUMNS="80", NO_COLOR="1")
    assert status == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()
    assert len(lines) == 5
    assert [cell_len(line) <= 80 for line in lines] == [True] * 5
    assert "-> charge_th…  b916cd1f  attempt 1" in lines[1]
    assert lines[1].endswith("…")


def test_output_is_coloured_only_on_a_terminal_without_no_color(on_a_terminal):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    command = [*COMMAND, "decode", str(CAPTURES / "cancel.to-runner.bin")]
    assert colour.search(on_a_terminal(command)[1])
    assert not colour.search(on_a_terminal(command, NO_COLOR="1")[1])
    assert b"\x1b[" not in run("decode", "-", input=pack_frame(REQUEST)).stdout


def test_redirected_messages_leave_a_progress_bar_on_the_terminal(on_a_terminal, tmp_path):
    command = [*COMMAND, "decode", str(CAPTURES / "sizes.to-runner.bin")]
    with (tmp_path / "out").open("wb") as out:
        status, text = on_a_terminal(command, "stderr", stdout=out)
    assert status == 0
    assert "sizes.to-runner.bin" in text
    assert "100%" in text
    assert b"\x1b" not in (tmp_path / "out").read_bytes()


def test_memory_does_not_grow_with_the_size_of_a_capture(tmp_path):
    code = (
        "import resource, sys; from rrq_fastwire.cli import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    pytest.importorskip("resource", reason="peak memory is known on POSIX only")
    peaks = []
    for count in (2_000, 20_000):
        capture = tmp_path / str(count)
        capture.write_bytes(pack_frame(REQUEST) * count)
        done = subprocess.run(
            [sys.executable, "-c", code, "decode", "--json", str(capture)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=100,
            check=True,
        )
        peaks.append(int(done.stderr))
    assert peaks[1] < peaks[0] * 1.1


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    capture = tmp_path / "capture"
    capture.write_bytes(pack_frame(REQUEST) * 5000)
    with subprocess.Popen(
        [*COMMAND, "decode", "--json", str(capture)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 1: "),
        (b"[]", "line 1: not a JSON object"),
        (b"\xff", "line 1: "),
        (b'{"type":"cancel"}', "line 1: there is no 'payload'"),
        (b'{"type":null,"payload":{"error":"no","path":""}}', 'line 1: "type" is not a string'),
        (
            b'{"type":"a","payload":"%s"}' % (b"x" * 16 * 1024 * 1024),
            "line 1: payload of 16777241 bytes",
        ),
        (b'\n{"type":"cancel" "payload":1}', "line 2: expected a comma"),
        (b'{"type" "cancel"}', "line 1: expected a colon at character 8"),
        (b'{"type":"cancel","payload":{},1:2}', "line 1: expected a key at character 30"),
        (b'{"type":"cancel"} {}', "line 1: unexpected text after the object, at character 17"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else "",
)
def test_a_line_that_cannot_be_encoded_gets_a_sentence_with_its_number(line, words):
    done = run("encode", input=line)
    (message,) = done.stderr.decode().splitlines()
    assert message.startswith(words)
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments", [["decode"], ["decode", "nowhere"], ["decode", "--type", "x", "-"], ["nothing"]]
)
def test_a_wrong_command_line_gets_one_sentence(arguments):
    status, _, written = run_text(*arguments)
    assert (len(written.splitlines()), status) == (1, 2)


@pytest.mark.parametrize("command", ["decode", "encode"])
def test_help_has_an_example(command):
    assert "Example: rrq-fastwire" in run(command, "--help").stdout.decode()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_error_says_what_to_install(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from rrq_fastwire.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "decode", "-"], capture_output=True, text=True, check=False
    )
    (message,) = done.stderr.splitlines()
    assert message.endswith("pip install 'rrq-fastwire[cli]'")
    assert done.returncode == 2


def test_a_name_does_not_reach_the_terminal_as_an_escape():
    request = REQUEST.replace(b'"charge"', b'"f\\u001b]0;owned\\u0007"').replace(b'"j"', b'"\\n"')
    _, line = shown(input=pack_frame(request))
    assert r"-> f\x1b]0;owned\x07  \n  " in line
    assert "\x1b" not in line


def test_text_does_not_reach_the_terminal_as_an_escape():
    """JSON allows control characters from U+007F on in strings. U+009B starts an escape sequence."""
    frame = encode_frame(ExecutionOutcome.success("j", "r", "a\x9b2Jb"))
    assert "\x9b".encode() in frame
    for option in ("--verbose", "--redact=x"):
        lines = shown(option, input=frame)
        assert r'"a\x9b2Jb"' in lines[0]
        assert "\x9b" not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ('{"card":"4111","fine":1}', '{"card":"***","fine":1}'),
        ('[{"a":{"card":{"no":4111}}}]', '[{"a":{"card":"***"}}]'),
        ('["{\\"card\\":\\"4111\\"}"]', '["{\\"card\\":\\"***\\"}"]'),
        ("{'card': '4111', 'fine': 1}", "{'card': ***, 'fine': 1}"),
        ("declined: {'card': '4111', 'fine': 1}", "declined: {'card': ***, 'fine': 1}"),
        ('failed for {"card": {"no": 4111}}', 'failed for {"card": ***}'),
        ("GET /pay?card=4111&fine=1", "GET /pay?card=***&fine=1"),
        ("card: 4111, discard=1 card-type=2", "card: ***, discard=1 card-type=2"),
        ("a card", "a card"),
    ],
)
def test_redaction_reaches_values_inside_strings(text, redacted):
    outcomes = [
        ExecutionOutcome.success("j", "r", {"body": text}),
        ExecutionOutcome.failure("j", "r", text),
        ExecutionOutcome.failure("j", "r", "no", details=[text]),
    ]
    stream = b"".join(map(encode_frame, outcomes))
    found = zip(
        outcomes,
        shown("--redact", "card", input=stream),
        lines("--redact", "card", "-", input=stream),
        strict=True,
    )
    for _, line, printed in found:
        assert "4111" not in line
        assert json.dumps(redacted)[1:-1] in line or redacted in line
        assert redacted in strings(printed["payload"])


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("error", "***"),
        ("message", '(Declined) *** {"card":"4111"}'),
        ("details", "(Declined) no luck ***"),
        ("card", '(Declined) no luck {"card":"***"}'),
    ],
)
def test_a_part_of_an_error_can_be_redacted_by_its_name(key, line):
    failure = ExecutionOutcome.failure(
        "j", "r", "no luck", type="Declined", details={"card": "4111"}
    )
    (found,) = shown("--redact", key, input=encode_frame(failure))
    assert re.sub(" +", " ", found.strip()) == f"<- error j {line}"


def test_redaction_hides_text_that_is_nested_too_deep_to_search():
    text = "[" * 100_000 + "card=4111" + "]" * 100_000
    (line,) = lines(
        *("--redact", "card", "-"),
        input=encode_frame(ExecutionOutcome.success("j", "r", text)),
    )
    assert "***" in line["payload"]["result"]
    assert "4111" not in line["payload"]["result"]


@pytest.mark.parametrize("depth", [300, 600, 900])
def test_redaction_works_at_every_depth_that_can_be_decoded(depth):
    nested = "[" * depth + "]" * depth
    head = b'{"type":"response","payload":{"status":"%s",%s}}'
    stream = b"".join(
        pack_frame(head % (status, rest.encode()))
        for status, rest in (
            (b"success", f'"result":{nested}'),
            (b"success", f'"result":"{nested}"'),
            (b"error", f'"error":{{"message":"{nested}","details":{nested}}}'),
        )
    )
    assert len(shown("--redact", "card", input=stream)) == 3
    assert len(lines("--redact", "card", "-", input=stream)) == 3


def strings(value) -> list[str]:
    """All strings in a document."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in strings(each)]


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--redact", "card"]])
def test_a_payload_that_is_nested_too_deep_to_show_does_not_stop_the_output(arguments):
    deep = b'{"type":"response","payload":{"status":"success","result":' + b"[" * 1000 + b"]" * 1000
    done = run("decode", *arguments, "-", input=pack_frame(deep + b"}}") + pack_frame(REQUEST))
    assert (done.stderr, done.returncode) == (b"", 0)
    assert b"charge" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_gets_one_sentence():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "decode", str(CAPTURES / "cancel.to-runner.bin")],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (len(done.stderr.splitlines()), done.returncode) == (1, 1)
