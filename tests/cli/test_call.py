"""`call`, as a user sees it: on pipes and on a terminal, with real runners and with simulated ones."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading

import pytest

from rrq_fastwire import (
    CancelRequest,
    ExecutionError,
    ExecutionOutcome,
    MessageDecoder,
    OutcomeStatus,
    encode_frame,
    pack_frame,
)

from ..stock import needs_rrq
from .in_process import run_text

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

COMMAND = [sys.executable, "-m", "rrq_fastwire", "call"]
RUNNER = shlex.join(
    [sys.executable, "-m", "rrq_fastwire.runner", "--settings", "rrq_fastwire.cli.example.settings"]
)


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    return run_text("call", *arguments)


class FalseRunner:
    """A simulated runner, which accepts one connection and keeps the messages that arrive.

    Usage: `with FalseRunner(on_message) as runner`.

    Arguments:
        on_message: called with the connection and each message. Returns True to close the
        connection.
    """

    def __init__(self, on_message):
        self.on_message = on_message
        self.messages = []
        self.requested = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(60)
        self.address = "{}:{}".format(*self.server.getsockname())
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        connection, _ = self.server.accept()
        decoder = MessageDecoder()
        with connection:
            connection.settimeout(60)
            while data := connection.recv(65536):
                for message in decoder.feed(data):
                    self.messages.append(message)
                    self.requested.set()
                    if self.on_message(connection, message):
                        return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join()
        self.server.close()


def answering(**fields):
    """An on_message that answers each request with an outcome of these fields."""

    def on_message(connection, request):
        outcome = ExecutionOutcome(job_id=request.job_id, request_id=request.request_id, **fields)
        connection.sendall(encode_frame(outcome))

    return on_message


@needs_rrq
@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ([], {}),
        (['{"a": [1, null, "é"]}'], {"a": [1, None, "é"]}),
        (
            ["n=1", "f=1.5", "t=true", "o={}", 'q="1"', "text=a b=c", "empty=", "nan=NaN"],
            {
                "n": 1,
                "f": 1.5,
                "t": True,
                "o": {},
                "q": "1",
                "text": "a b=c",
                "empty": "",
                "nan": "NaN",
            },
        ),
        (['{"a": 1, "b": 2}', "b=3"], {"a": 1, "b": 3}),
    ],
)
def test_the_result_of_a_runner_that_it_starts_is_printed(arguments, result):
    status, printed, said = call("--runner", RUNNER, "echo", *arguments)
    assert (status, json.loads(printed), said) == (0, result, "")
    assert printed.count("\n") == 1


@needs_rrq
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fail", "message=no\nluck"], "error: no\\nluck\n"),
        (["retry"], "retry: this handler always asks for a retry\n"),
        (
            ["retry", "seconds=2.5"],
            "retry: this handler always asks for a retry  retry after 2.5 s\n",
        ),
        (
            ["nonsense"],
            "error (handler_not_found): No handler registered for function 'nonsense'\n",
        ),
        (["sleep", "seconds=60", "--timeout", "0.1"], "timeout: Job execution timed out.\n"),
        (["echo", "--timeout", "0"], "timeout: Job deadline exceeded\n"),
    ],
)
def test_any_other_outcome_is_one_line_on_stderr_after_the_log_of_the_runner(arguments, said):
    status, printed, written = call("--runner", RUNNER, *arguments)
    assert (status, printed) == (1, "")
    assert written.endswith(said)
    has_no_log = arguments[0] in ("retry", "nonsense")
    assert (written == said) == has_no_log


def test_a_running_runner_is_called_with_attempt_deadline_and_trace():
    with FalseRunner(answering(status=OutcomeStatus.SUCCESS, result="é\x1b")) as runner:
        options = ["--attempt", "3", "--trace", "traceparent=00-a", "--trace", "b=c=d"]
        done = call(runner.address, "f", *options, "--timeout", "30")
    assert done == (0, '"é\\u001b"\n', "")
    [request] = runner.messages
    context = request.context
    assert (request.function_name, request.params, context.attempt) == ("f", {}, 3)
    assert context.trace_context == {"traceparent": "00-a", "b": "c=d"}
    assert (context.deadline - context.enqueue_time).total_seconds() == 30


def test_without_options_it_is_the_first_attempt_and_has_no_deadline():
    with FalseRunner(answering(status=OutcomeStatus.SUCCESS)) as runner:
        assert call(runner.address, "f") == (0, "null\n", "")
    context = runner.messages[0].context
    assert (context.attempt, context.deadline, context.trace_context) == (1, None, None)


def test_a_failure_shows_type_code_and_details():
    error = ExecutionError(message="\x1b[2J", type="Declined", code="E7", details={"card": "é"})
    with FalseRunner(answering(status=OutcomeStatus.ERROR, error=error)) as runner:
        status, printed, said = call(runner.address, "charge")
    assert (status, printed) == (1, "")
    assert said == 'error (Declined, E7): \\x1b[2J  details: {"card": "é"}\n'


def test_a_lost_connection_is_one_sentence():
    with FalseRunner(lambda connection, request: True) as runner:
        status, printed, said = call(runner.address, "f")
    assert (status, printed) == (1, "")
    assert re.fullmatch(r"rrq-fastwire: the connection is lost: .*\n", said)


def test_an_invalid_answer_is_one_sentence():
    def on_message(connection, request):
        connection.sendall(b"\0\0\0\0")

    with FalseRunner(on_message) as runner:
        assert call(runner.address, "f") == (
            1,
            "",
            "rrq-fastwire: frame of 0 bytes: a payload cannot be empty\n",
        )


def test_a_runner_that_misses_the_deadline_is_reported():
    with FalseRunner(lambda connection, request: None) as runner:
        status, printed, said = call(runner.address, "f", "--timeout", "0.1")
    assert (status, printed) == (1, "")
    assert said == "rrq-fastwire: the runner has not answered within a second of the deadline\n"
    request, cancel = runner.messages
    assert cancel == CancelRequest(job_id=request.job_id, request_id=request.request_id)


def test_ctrl_c_cancels_the_job_and_prints_nothing():
    with FalseRunner(lambda connection, request: None) as runner:
        with subprocess.Popen(
            [*COMMAND, runner.address, "f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert runner.requested.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 130
    assert [type(message).__name__ for message in runner.messages] == [
        "ExecutionRequest",
        "CancelRequest",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, r"no runner given; .*"),
        (["127.0.0.1:9"], 2, r"no function given"),
        (["nonsense", "f"], 2, r"expected HOST:PORT .* got 'nonsense'"),
        ([":9", "f"], 2, r"expected HOST:PORT .* got ':9'"),
        (["host:0", "f"], 2, r"expected HOST:PORT .* got 'host:0'"),
        (["host:99999999999999999999", "f"], 2, r"expected HOST:PORT .*"),
        (["127.0.0.1:9", "f", "word"], 2, r"expected a JSON object or KEY=VALUE, got 'word'"),
        (["127.0.0.1:9", "f", "[1]"], 2, r"expected a JSON object or KEY=VALUE, got '\[1\]'"),
        (["127.0.0.1:9", "f", "{1"], 2, r"'\{1' is not a JSON object: .*"),
        (["127.0.0.1:9", "f", "--trace", "a"], 2, r"expected KEY=VALUE, got 'a'"),
        (["127.0.0.1:9", "f", "--timeout", "nan"], 2, r".*'nan' is not from 0 .*"),
        (["127.0.0.1:9", "f", "--timeout", "-1"], 2, r".*'-1' is not from 0 .*"),
        (["127.0.0.1:9", "f", "--attempt", "-1"], 2, r".*-1 is not in the range .*"),
        (["127.0.0.1:9", "f", "--nonsense"], 2, r"No such option.*"),
        (["--runner", "", "f"], 2, r"the command that starts the runner is empty"),
        (["--runner", "a 'b", "f"], 2, r"cannot split .*"),
        (["--runner", "/no/such/runner", "f"], 1, r"cannot start '/no/such/runner': .*"),
        (
            ["--runner", f"{shlex.quote(sys.executable)} -c pass", "f"],
            1,
            r"the runner ended with exit status 0 before it listened",
        ),
        (["127.0.0.1:9", "f"], 1, r"cannot connect to 127.0.0.1:9: .*"),
        (["host.invalid:9", "f"], 1, r"cannot connect to host.invalid:9: .*"),
    ],
)
def test_a_wrong_command_line_or_runner_gets_one_sentence(arguments, status, said):
    done = run_text("call", *arguments)
    assert done[:2] == (status, "")
    assert re.fullmatch(f"rrq-fastwire: {said}\n", done[2]), done[2]


@needs_rrq
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_shows_the_result_in_colour(on_a_terminal, environment, coloured):
    status, text = on_a_terminal([*COMMAND, "--runner", RUNNER, "echo", "a=1"], **environment)
    assert status == 0
    assert ("\x1b[" in re.sub("\x1b\\[[013]*m", "", text)) == coloured
    assert json.loads(re.sub("\x1b\\[[0-9;]*m", "", text)) == {"a": 1}


def test_output_of_the_runner_does_not_mix_with_the_result(tmp_path):
    (tmp_path / "loud.py").write_text(
        "async def shout(request):\n    print('loud')\n    return 1\nhandlers = {'shout': shout}\n"
    )
    command = [sys.executable, "-u", "-m", "rrq_fastwire.runner", "--settings", "loud.handlers"]
    runner = shlex.join(["env", f"PYTHONPATH={tmp_path}", *command])
    assert call("--runner", runner, "shout") == (0, "1\n", "loud\n")


def answering_with(payload: str):
    """An on_message that answers each request with the JSON of a response, without its ids."""

    def on_message(connection, request):
        ids = f'"job_id":"{request.job_id}","request_id":"{request.request_id}"'
        envelope = f'{{"type":"response","payload":{{{ids},{payload}}}}}'
        connection.sendall(pack_frame(envelope.encode()))

    return on_message


DEEP = "[" * 1000 + "]" * 1000


@pytest.mark.parametrize("in_terminal", [True, False])
def test_a_result_that_is_nested_too_deep_is_one_sentence(on_a_terminal, in_terminal):
    with FalseRunner(answering_with(f'"status":"success","result":{DEEP}')) as runner:
        command = [*COMMAND, runner.address, "f"]
        if in_terminal:
            status, text = on_a_terminal(command, "stdout", "stderr", TERM="dumb")
        else:
            status, printed, said = call(runner.address, "f")
            text = printed + said
    said = "rrq-fastwire: the job has succeeded, but its result is nested too deep to show"
    # Some versions of Python can write it.
    assert (status, text.strip()) == (1, said) or (status, "".join(text.split())) == (0, DEEP)


def test_details_that_are_nested_too_deep_are_left_out():
    error = f'{{"message":"no","details":{DEEP}}}'
    with FalseRunner(answering_with(f'"status":"error","error":{error}')) as runner:
        status, printed, said = call(runner.address, "f")
    assert (status, printed) == (1, "")
    assert said in [f"error: no  details: {each}\n" for each in ("nested too deep to show", DEEP)]


def test_help_has_an_example():
    status, printed, _ = call("--help")
    assert status == 0
    assert "Example: rrq-fastwire call 127.0.0.1:9000" in printed
