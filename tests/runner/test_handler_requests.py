"""The requests that handlers get, with and without rrq."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import textwrap

import pytest

from rrq_fastwire import (
    ExecutionRequest,
    decode_frame,
    pack_frame,
)
from rrq_fastwire.cli.runner_process import free_port

from ..engine import (
    CONTEXT,
    PATIENCE,
    call,
)
from ..stock import (
    StockRequest,
    needs_rrq,
    registry,
    rrq,
)

FULL_REQUEST = {
    "protocol_version": "2",
    "request_id": "é",
    "job_id": "😀",
    "function_name": "keep",
    "params": {"b": [1, 2.5, None, True, {"x": "é"}], "a": -1},
    "context": {
        "job_id": "another",
        "attempt": 4294967295,
        "enqueue_time": "2025-01-02T12:00:00.123456789Z",
        "queue_name": "rrq:queue:é",
        "deadline": "2999-12-31T23:59:59.999999999Z",
        "trace_context": {"traceparent": "00-1"},
        "correlation_context": {"tenant": "é"},
        "worker_id": "w",
    },
}
REQUESTS = [
    FULL_REQUEST,
    {"request_id": "r", "job_id": "j", "function_name": "keep", "context": CONTEXT},
    {**FULL_REQUEST, "context": {**CONTEXT, "deadline": None, "trace_context": {}}},
    {**FULL_REQUEST, "context": {**CONTEXT, "enqueue_time": "2025-01-02T12:00:00.5+05:30"}},
]


@needs_rrq
@pytest.mark.parametrize("payload", REQUESTS, ids=["full", "bare", "nulls", "offset"])
def test_handlers_of_a_registry_get_requests_as_rrq_builds_them(run, payload):
    given = []

    async def keep(request):
        given.append(request)

    frame = pack_frame(json.dumps({"type": "request", "payload": payload}).encode())
    call(run, registry({"keep": keep}), frame)
    call(run, registry({"keep": keep}), frame, native_messages=True)
    call(run, {"keep": keep}, frame)
    stock_request, *natives = given
    assert type(stock_request) is StockRequest
    assert stock_request == StockRequest.model_validate(payload)
    for native in natives:
        assert type(native) is ExecutionRequest
        assert native == decode_frame(frame)
        for name in StockRequest.model_fields.keys() - {"context"}:
            assert getattr(native, name) == getattr(stock_request, name)
        for name in rrq.runner.ExecutionContext.model_fields:
            assert getattr(native.context, name) == getattr(stock_request.context, name)


@needs_rrq
@pytest.mark.parametrize("convert", ["_built_request", "_validated_request"])
@pytest.mark.parametrize("payload", REQUESTS, ids=["full", "bare", "nulls", "offset"])
def test_requests_of_rrq_are_the_same_with_and_without_validation(payload, convert):
    from rrq_fastwire.runner import _rrq

    message = decode_frame(pack_frame(json.dumps({"type": "request", "payload": payload}).encode()))
    request = getattr(_rrq, convert)(message)
    expected = StockRequest.model_validate(
        dataclasses.asdict(message)  # every field is set, as the orchestrator sets it
    )
    assert request == expected
    assert request.model_dump_json() == expected.model_dump_json()
    for built, validated in [(request, expected), (request.context, expected.context)]:
        assert type(built) is type(validated)
        assert vars(built) == vars(validated)
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            assert getattr(built, name) == getattr(validated, name)
    assert pickle.loads(pickle.dumps(request)) == request.model_copy(deep=True) == expected
    request.params["added"] = 1
    request.context.worker_id = None
    assert request != expected


WITHOUT_RRQ = '''
import asyncio, contextlib, json, sys

class Missing:
    """Makes rrq and pydantic impossible to import."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rrq", "pydantic"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import serve

async def echo(request):
    return [type(request).__module__.partition(".")[0], request.params]

async def fail(request):
    raise ValueError("failed")

async def odd(request):
    return {1}

async def slow(request):
    await asyncio.Event().wait()

async def main(port):
    handlers = {"echo": echo, "fail": fail, "odd": odd, "slow": slow}
    serving = asyncio.create_task(serve(handlers, f"127.0.0.1:{port}"))
    while True:
        try:
            client = await RunnerClient.connect("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            assert not serving.done()
            await asyncio.sleep(0.01)
    async with client:
        for name in ("echo", "fail", "odd", "missing"):
            outcome = await client.execute(name, {"a": 1}, timeout=30)
            print(outcome.type, outcome.result, outcome.error and outcome.error.message)
        print((await client.execute("slow", timeout=0.3)).type)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving

asyncio.run(main(int(sys.argv[1])))
'''


def test_a_runner_works_without_rrq(tmp_path):
    script = tmp_path / "without_rrq.py"
    script.write_text(WITHOUT_RRQ)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(free_port())],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" in done.stderr  # printed without any configuration of logging
    assert "ValueError: failed" in done.stderr
    assert "'slow' timed out: Job execution timed out." in done.stderr
    assert "Warning" not in done.stderr
    assert (
        done.stdout.splitlines()
        == textwrap.dedent(
            """\
        success ['rrq_fastwire', {'a': 1}] None
        failure None failed
        success [1] None
        handler_not_found None No handler registered for function 'missing'
        timeout"""
        ).splitlines()
    )
