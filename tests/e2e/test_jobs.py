"""Jobs end in the expected state with every runner, under the published orchestrators."""

from __future__ import annotations

import functools
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from .orchestrator import FOUR_PROCESSES, ONE_PROCESS

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

# The commands of the runners. All of them are in the orchestrator's virtual environment.
RUNNERS = {
    "stock": ["rrq-runner"],
    "codec": ["python", str(Path(__file__).with_name("codec_runner.py"))],
    "ours": ["rrq-fastwire-runner", "--loop", "asyncio"],
    "native": ["rrq-fastwire-runner", "--native-messages", "--loop", "uvloop"],
    "tapped": ["rrq-fastwire", "tap", "--wrap", "--", "rrq-runner"],
}

POOLS = {"one process": ONE_PROCESS, "four processes": FOUR_PROCESSES}

VALUES = {
    "null": None,
    "true": True,
    "false": False,
    "integer": 42,
    "integers": [0, -1, 2**53 - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1],
    "floats": [0.5, -0.0, 1.0, 1e16, 1e-7, 0.1, 1.5e300, -2.5e-300, 123456.789],
    "empty text": "",
    "control characters": "".join(map(chr, range(0x20))) + "\x7f\x80\x9f",
    "quotes and slashes": 'a "quoted" \\ back/slash',
    "unicode": "naïve żółw Привет 漢字 \u2028\u2029\ufeff\ufffd\uffff e\u0301",
    "astral": "𝄞 👩\u200d👩\u200d👧 \U0010ffff",
    "empty array": [],
    "empty object": {},
    "nested": {"a": [{}, [], [[]], {"b": {"c": [None, {"d": ""}]}}], "": 0, "ключ \n": [1, 1.0]},
    "deep": functools.reduce(lambda inner, _: [inner], range(100), "bottom"),
}

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "☠": "\n"}


def job(
    function_name: str,
    options: dict[str, Any],
    *,
    status: str = "COMPLETED",
    result: Any = None,
    last_error: str | None = None,
    retries: int = 0,
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A job: its function name, its options, and the state in which it must end."""
    state = {"status": status, "result": result, "last_error": last_error, "retries": retries}
    return function_name, options, state


def echo(value: Any):
    return job("echo", {"params": {"value": value}}, result=value)


def failure(function_name: str, last_error: str, retries: int = 1, **options: Any):
    return job(function_name, options, status="FAILED", last_error=last_error, retries=retries)


def retry(**params: float):
    result = {"attempt": 2, "delayed": True}
    return job("retry_once", {"params": params}, result=result, last_error="not yet", retries=1)


def rows(size: int) -> list[dict[str, Any]]:
    """A value that has about `size` bytes as JSON."""
    row = {"id": 10_000, "name": "naïve ☠ 𝄞", "ok": True, "tags": ["a", None], "ratio": 0.25}
    length = len(json.dumps(row, ensure_ascii=False).encode())
    return [{**row, "id": number} for number in range(size // length)]


JOBS = {
    **{name: echo(value) for name, value in VALUES.items()},
    "naïve ☠ 𝄞 id": echo("an id may be any text"),
    "20 KB": echo(rows(20_000)),
    "1 MB": echo(rows(1_000_000)),
    "10 MB": echo(rows(10_000_000)),
    "context": job(
        "describe",
        {"trace_context": TRACE},
        result={
            "function_name": "describe",
            "params": {},
            "attempt": 1,
            "queue_name": "rrq:queue:default",
            "trace_context": TRACE,
            "job ids agree": True,
            "request and worker have ids": True,
            "the deadline lies ahead": True,
        },
    ),
    "raises": failure("fail", "broken ☠ \n", max_retries=2, retries=2),
    "returns an error": failure("refuse", "no", max_retries=1),
    "times out by itself": failure("time_out", "upstream is slow", max_retries=3),
    "has no handler": failure("x", "No handler registered for function 'x'", max_retries=3),
    "retries after a delay": retry(delay=0.7),
    "retries by the orchestrator's backoff": retry(),
    # The second job is in flight while the first passes its deadline, if possible on the same
    # connection.
    "is overdue": failure("overdue", "Job timed out after 1s.", job_timeout_seconds=1),
    "outlives it": job("outlive", {"job_timeout_seconds": 30}, result="alive"),
}

# The package whose requests the handlers get, by runner.
REQUESTS = {
    "stock": "rrq",
    "codec": "rrq",
    "ours": "rrq",
    "native": "rrq_fastwire",
    "tapped": "rrq",
}

CORRELATION = {"0.11.1": {"tenant": "ключ"}, "0.9.18": None}


@pytest.fixture(scope="session", params=POOLS)
def run(request, orchestrator):
    """A function that runs all jobs together with one of RUNNERS, and does so only once."""
    jobs = {id: (function_name, options) for id, (function_name, options, _) in JOBS.items()}
    jobs["correlation"] = ("correlate", {"params": {"tenant": "ключ"}})
    jobs["request"] = ("name_type", {})
    pool = POOLS[request.param]
    return functools.cache(lambda runner: orchestrator.run(RUNNERS[runner], jobs, pool))


@pytest.mark.parametrize("id", JOBS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_job_ends_in_the_expected_state(run, runner, id):
    print(run(runner).log)
    *_, expected = JOBS[id]
    assert comparable(run(runner).jobs[id]) == comparable(expected)


@pytest.mark.parametrize("runner", RUNNERS)
def test_correlation_context_arrives_if_it_is_sent(orchestrator, run, runner):
    assert run(runner).jobs["correlation"]["result"] == CORRELATION[orchestrator.version]


@pytest.mark.parametrize("runner", RUNNERS)
def test_handlers_get_rrqs_requests_unless_native_ones_are_chosen(run, runner):
    assert run(runner).jobs["request"]["result"] == REQUESTS[runner]


@pytest.mark.parametrize("runner", [runner for runner in RUNNERS if runner != "stock"])
def test_jobs_end_in_the_same_states_as_with_the_stock_runner(run, runner):
    stock, ours = (
        {id: comparable(run(name).jobs[id]) for id in JOBS} for name in ("stock", runner)
    )
    assert ours == stock


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """A state of a job, to compare: with the result as JSON, in which 1, 1.0 and true differ."""
    result = json.dumps(state["result"], sort_keys=True)
    if len(result) > 1000:  # more than pytest can explain in reasonable time
        result = f"{len(result)} characters, SHA-256 {sha256(result.encode()).hexdigest()}"
    # The timers of the orchestrator and of the runner fire at the same moment. Their texts differ.
    last_error = state["last_error"]
    if last_error == "Job execution timed out.":
        last_error = "Job timed out after 1s."
    return {**state, "result": result, "last_error": last_error}
