"""`load`, as a user sees it: on pipes and on a terminal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from rrq_fastwire import ExecutionOutcome, OutcomeStatus
from rrq_fastwire.cli.runner_process import RunnerError
from rrq_fastwire.cli.workload import drive

from ..stock import needs_rrq
from .in_process import run_text

for extra in ("click", "rich"):
    pytest.importorskip(extra, reason="the command line is an extra")

rich = pytest.importorskip("rich.console")
measurement = pytest.importorskip("rrq_fastwire.cli.load.measurement")
reports = pytest.importorskip("rrq_fastwire.cli.load.report")

COMMAND = [sys.executable, "-m", "rrq_fastwire", "load"]
SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
RUNNER = shlex.join([sys.executable, "-m", "rrq_fastwire.runner", *SETTINGS])
STOCK = shlex.join([sys.executable, "-m", "rrq.runner_runtime", *SETTINGS])

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the CPU time of a process is read on Linux only"
)


def load(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    return run_text("load", *arguments)


def figures(*arguments: str) -> dict:
    status, printed, said = load("--json", "--runner", RUNNER, *arguments)
    assert (status, said) == (0, "")
    return json.loads(printed)


def runner_with(folder: Path, settings: str) -> str:
    """The command of a runner whose settings are in a module of a folder."""
    command = [sys.executable, "-u", "-m", "rrq_fastwire.runner", "--settings", settings]
    return shlex.join(["env", f"PYTHONPATH={folder}", *command])


@needs_rrq
def test_figures_and_a_histogram_are_printed():
    status, printed, said = load("--runner", RUNNER, "echo", "--requests", "500")
    assert (status, said) == (0, "")
    lines = printed.splitlines()
    assert lines[0] == "echo, params of 100 B, 64 in flight"
    assert re.match(r"requests +500 in ", lines[1])
    assert re.match(r"throughput +[\d,]+ a second", lines[2])
    assert re.match(r"latency +p50 .* ms +p90 .* ms +p99 .* ms +max ", lines[4])
    bars = re.findall(r"^ *to [\d.]+ m?s +([\d,]+)  ?█*", printed, re.MULTILINE)
    assert sum(int(bar.replace(",", "")) for bar in bars) == 500
    assert "█" in printed
    assert "\x1b" not in printed


@needs_rrq
def test_json_has_the_same_figures():
    found = figures("echo", "--requests", "300", "--connections", "3", "--in-flight", "6")
    assert set(found) == {
        "requests",
        "seconds",
        "throughput",
        "cpu_seconds_each",
        "latency",
        "failures",
    }
    assert (found["requests"], found["failures"]) == (300, {})
    assert found["throughput"] == pytest.approx(300 / found["seconds"])
    latency = found["latency"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


@needs_rrq
@linux
def test_the_cpu_time_of_the_runner_is_measured():
    assert figures("noop", "--requests", "100")["cpu_seconds_each"] > 0


@needs_rrq
def test_load_can_run_for_a_number_of_seconds():
    found = figures("noop", "--seconds", "0.2")
    assert found["requests"] >= 1
    assert found["seconds"] >= 0.2


@needs_rrq
def test_at_a_rate_no_request_is_sent_before_it_is_due():
    found = figures("noop", "--requests", "21", "--rate", "100")
    assert found["requests"] == 21
    assert found["seconds"] >= 0.2


@needs_rrq
def test_at_a_rate_latency_counts_from_when_a_request_was_due(tmp_path):
    params = tmp_path / "params.json"
    params.write_text('{"seconds": 0.1}')
    found = figures(
        *("sleep", "--params", str(params), "--requests", "4", "--rate", "1000"),
        *("--in-flight", "1"),
    )
    # The fourth request was due at once, but waited for three others.
    assert found["latency"]["max"] >= 0.39


@needs_rrq
@pytest.mark.parametrize(
    ("size", "shown"),
    [("2", 2), ("10", 10), ("100", 100), ("101B", 101), ("2KB", 2000), ("1.5 kb", 1500)],
)
def test_params_of_a_given_size_are_generated(size, shown):
    _, printed, _ = load("--runner", RUNNER, "echo", "--requests", "1", "--params", size)
    assert printed.startswith(f"echo, params of {shown:,} B,")


@needs_rrq
def test_failures_are_counted_by_message_and_the_exit_status_is_1():
    status, printed, _ = load("--runner", RUNNER, "fail", "--requests", "30")
    assert status == 1
    assert re.search(r"\n +30  error: this handler always fails", printed)
    status, printed, _ = load("--runner", RUNNER, "nonsense", "--requests", "3", "--json")
    assert status == 1
    assert json.loads(printed)["failures"] == {
        "error: No handler registered for function 'nonsense'": 3
    }


@needs_rrq
@linux
def test_two_runners_are_compared():
    status, printed, _ = load("--compare", STOCK, RUNNER, "noop", "--requests", "50", "--json")
    found = json.loads(printed)
    assert status == 0
    assert [set(each) for each in found["rounds"]] == [{"A", "B"}] * 5
    for name in ("throughput", "CPU per job", "p50", "p99"):
        assert set(found[name]) == {"A", "B", "B/A"}
        assert all(figure > 0 for figure in found[name].values())


@needs_rrq
def test_a_comparison_is_a_table():
    status, printed, _ = load("--compare", RUNNER, RUNNER, "fail", "--requests", "10")
    assert status == 1
    for name in ("throughput", "CPU per job", "p50", "p99", "B to A"):
        assert name in printed
    assert printed.count("50  error: this handler always fails") == 2


@needs_rrq
def test_the_output_can_be_written_as_a_picture(tmp_path):
    picture = tmp_path / "load.svg"
    status, printed, _ = load(
        "--runner", RUNNER, "noop", "--requests", "5", "--json", "--svg", str(picture)
    )
    assert status == 0
    assert json.loads(printed)["requests"] == 5
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert "throughput" in drawn


@needs_rrq
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_shows_a_bar_and_colours(on_a_terminal, environment, coloured):
    status, text = on_a_terminal(
        [*COMMAND, "--runner", RUNNER, "noop", "--seconds", "1.5"],
        "stdout",
        "stderr",
        **environment,
    )
    assert status == 0
    assert re.search("noop +[━╸]", re.sub("\x1b\\[[0-9;]*m", "", text))
    assert "throughput" in text
    assert ("\x1b[36m" in text) == coloured  # the histogram


def test_a_runner_that_exits_is_one_sentence(tmp_path):
    (tmp_path / "leaving.py").write_text(
        "import os\nasync def leave(request):\n    os._exit(3)\nhandlers = {'leave': leave}\n"
    )
    runner = runner_with(tmp_path, "leaving.handlers")
    status, printed, said = load("--runner", runner, "leave")
    assert (status, printed) == (1, "")
    assert re.fullmatch(r"rrq-fastwire: the connection is lost: .*\n", said)


def interrupted(begun: Path, *arguments: str, whole_group: bool = False) -> tuple[int, str, str]:
    """Runs `load`, and presses Ctrl-C once a file exists. Returns the exit status, stdout and stderr.

    Arguments:
        whole_group: whether the runner gets the signal, too, as from a terminal.
    """
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.01)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    return process.returncode, printed, said


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently on Windows")
@pytest.mark.parametrize("to_the_runner_as_well", [False, True])
def test_ctrl_c_prints_what_was_measured_until_then(tmp_path, to_the_runner_as_well):
    many = tmp_path / "many"
    (tmp_path / "counting.py").write_text(
        "import pathlib\ndone = []\nasync def count(request):\n    done.append(1)\n"
        f"    if len(done) == 500:\n        pathlib.Path({str(many)!r}).touch()\n"
        "handlers = {'count': count}\n"
    )
    runner = runner_with(tmp_path, "counting.handlers")
    arguments = "--runner", runner, "count", "--seconds", "90"
    status, printed, said = interrupted(many, *arguments, whole_group=to_the_runner_as_well)
    assert (status, said) == (130, "")
    (requests,) = re.findall(r"^requests +([\d,]+) in ", printed, re.MULTILINE)
    assert int(requests.replace(",", "")) >= 400  # 64 in flight may be without an answer
    assert "throughput" in printed


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently on Windows")
def test_ctrl_c_before_the_first_answer_prints_no_figures(tmp_path):
    begun = tmp_path / "begun"
    (tmp_path / "waiting.py").write_text(
        "import asyncio, pathlib\nasync def wait(request):\n"
        f"    pathlib.Path({str(begun)!r}).touch()\n    await asyncio.Event().wait()\n"
        "handlers = {'wait': wait}\n"
    )
    runner = runner_with(tmp_path, "waiting.handlers")
    status, printed, said = interrupted(begun, "--runner", runner, "wait", "--in-flight", "1")
    assert (status, printed) == (130, "")
    assert "Traceback" not in said


PLAN = measurement.Plan("echo", {}, 1, 1, 2, None, None)


def measured(cpu: float | None = None, **failures: int):
    return measurement.Measured(2.0, [0.25, 0.5], cpu, Counter(failures))


def shown(figures) -> list[str]:
    """The lines of a report, with one space between columns."""
    text = io.StringIO()
    rich.Console(file=text, width=100).print(figures)
    return [re.sub(r"[ │┃]+", " ", line).strip() for line in text.getvalue().splitlines()]


def test_an_unknown_cpu_time_is_printed_as_not_known():
    assert "CPU not known" in shown(reports.report(PLAN, measured()))
    assert "CPU 500,000.0 µs per request, 50% of a core" in shown(
        reports.report(PLAN, measured(1.0))
    )


def test_a_comparison_leaves_out_rounds_in_which_the_cpu_time_of_a_runner_is_not_known():
    turns = [[measured(), measured(2.0)], [measured(2.0), measured()]]
    assert "CPU per job not known not known" in shown(reports.comparison(PLAN, ("a", "b"), turns))
    assert reports.compared_figures(turns)["CPU per job"] is None
    turns.append([measured(1.0), measured(3.0)])
    assert "CPU per job 500,000.0 µs 1,500,000.0 µs 3.00" in shown(
        reports.comparison(PLAN, ("a", "b"), turns)
    )
    assert reports.compared_figures(turns)["CPU per job"] == {"A": 0.5, "B": 1.5, "B/A": 3.0}


@pytest.mark.parametrize(("messages", "rest"), [(10, []), (12, ["and 2 other messages"])])
def test_only_the_most_frequent_failures_are_listed(messages, rest):
    failures = {f"error {number}": 100 - number for number in range(messages)}
    lines = shown(reports.report(PLAN, measured(**failures)))
    at = lines.index("failures")
    listed = [f"{100 - number} error {number}" for number in range(10)]
    assert lines[at + 1 :] == [*listed, *rest]


def client_that(execute) -> SimpleNamespace:
    async def asynchronous(*_, **__):
        return execute()

    return SimpleNamespace(execute=asynchronous)


def no_answer():
    raise TimeoutError


@pytest.mark.parametrize(
    ("execute", "message"),
    [
        (no_answer, "no answer"),
        (lambda: ExecutionOutcome.failure("j", "r", "no luck"), "error: no luck"),
        (lambda: ExecutionOutcome(status=OutcomeStatus.ERROR), "error: no message"),
    ],
)
def test_a_failure_that_is_not_counted_ends_the_workload(execute, message):
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    work = {"in_flight": 2, "timeout": 1, "requests": 5, "answered": latencies.append}
    clients = [client_that(execute)]
    asyncio.run(drive(clients, "f", {}, failures=failures, **work))
    assert (failures, len(latencies)) == ({message: 5}, 5)
    with pytest.raises(RunnerError, match=f"^f: {message}$"):
        asyncio.run(drive(clients, "f", {}, **work))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, r"no runner given; .*"),
        (["127.0.0.1:9"], 2, r"expected one function, got 0"),
        (["127.0.0.1:9", "f", "g"], 2, r"expected one function, got 2"),
        (["--compare", "a"], 2, r".*'--compare' requires 2 arguments.*"),
        (["--compare", "a", "b"], 2, r"expected one function, got 0"),
        (["--compare", "a", "b", "--runner", "c", "f"], 2, r"give --runner or --compare, .*"),
        (["127.0.0.1:9", "f", "--requests", "1", "--seconds", "1"], 2, r"give --requests or .*"),
        (["127.0.0.1:9", "f", "--requests", "0"], 2, r".*'--requests'.*"),
        (["127.0.0.1:9", "f", "--rate", "0"], 2, r".*'--rate'.*"),
        (["127.0.0.1:9", "f", "--rate", "inf"], 2, r".*'--rate'.*"),
        (["127.0.0.1:9", "f", "--in-flight", "x"], 2, r".*'--in-flight'.*"),
        (["127.0.0.1:9", "f", "--connections", "65"], 2, r"--in-flight 64 is too small for .*"),
        (["127.0.0.1:9", "f", "--params", "1"], 2, r"--params: '1' is not from 2 B to 15 MB"),
        (
            ["127.0.0.1:9", "f", "--params", "1GB"],
            2,
            r"--params: '1GB' is neither a size nor a readable file.*",
        ),
        (["127.0.0.1:9", "f", "--params", "99MB"], 2, r"--params: '99MB' is not from .*"),
        (["127.0.0.1:9", "f", "--params", "{file}"], 2, r"--params: .* is not JSON: .*"),
        (["127.0.0.1:9", "f", "--params", "{list}"], 2, r"--params: .* not hold a JSON object"),
        (["127.0.0.1:9", "f", "--svg", "/no/such/folder/x"], 2, r".*'--svg'.*"),
        (["--runner", "/no/such/runner", "f"], 1, r"cannot start '/no/such/runner': .*"),
        (["127.0.0.1:9", "f"], 1, r"cannot connect to 127.0.0.1:9: .*"),
    ],
)
def test_a_wrong_command_line_or_runner_gets_one_sentence(arguments, status, said, tmp_path):
    files = {"{file}": "{1", "{list}": "[1]"}
    for name, content in files.items():
        Path(tmp_path / name[1:-1]).write_text(content)
    words = (str(tmp_path / text[1:-1]) if text in files else text for text in arguments)
    done = run_text("load", *words)
    assert done[:2] == (status, "")
    assert re.fullmatch(f"rrq-fastwire: {said}\n", done[2]), done[2]


def test_help_has_an_example_and_says_how_many_bytes_a_kb_has():
    status, printed, _ = load("--help")
    assert status == 0
    assert "Example: rrq-fastwire load 127.0.0.1:9000" in printed
    assert "1KB is 1000 bytes" in " ".join(printed.split())
