"""Uses of the public names that mypy and pyright check. This file is not run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, assert_type

import rrq_fastwire
from rrq_fastwire import (
    CancelRequest,
    EncodeError,
    ExecutionContext,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    FrameDecoder,
    FrameTooLargeError,
    MessageDecoder,
    MessageError,
    OutcomeStatus,
    OutcomeType,
    RunnerMessage,
    TruncatedFrameError,
    compat,
    decode_frame,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import CurrentJob, current_job, lifespan_value, serve
from rrq_fastwire.testing import run_job, running

assert_type(rrq_fastwire.PROTOCOL_VERSION, str)
assert_type(rrq_fastwire.MAX_FRAME_SIZE, int)
assert_type(rrq_fastwire.IMPLEMENTATION, str)
assert_type(rrq_fastwire.JSON_BACKEND, str)


def messages(data: bytes, moment: datetime) -> None:
    message = decode_frame(data)
    assert_type(message, RunnerMessage)
    match message:
        case ExecutionRequest():
            assert_type(message.params, dict[str, Any])
            assert_type(message.context, ExecutionContext)
            assert_type(message.context.deadline, datetime | None)
            assert_type(message.context.attempt, int)
            assert_type(message.context.trace_context, dict[str, str] | None)
        case ExecutionOutcome():
            assert_type(message.status, OutcomeStatus)
            assert_type(message.type, OutcomeType)
            assert_type(message.error, ExecutionError | None)
            assert_type(message.retry_after_seconds, float | None)
        case CancelRequest():
            assert_type(message.hard_kill, bool)
            assert_type(message.request_id, str | None)

    context = ExecutionContext(job_id="j", attempt=1, enqueue_time=moment, queue_name="q")
    request = ExecutionRequest(request_id="r", job_id="j", function_name="f", context=context)
    assert_type(encode_frame(request, max_frame_size=100), bytes)
    assert_type(pack_frame(memoryview(data)), bytes)
    outcome = ExecutionOutcome.failure("j", "r", "m", code="c", details={"a": 1})
    assert_type(outcome, ExecutionOutcome)
    outcome.job_id = None


def streams(data: bytearray) -> None:
    decoder = MessageDecoder(max_frame_size=1024)
    assert_type(decoder.feed(data), MessageDecoder)
    for message in decoder.feed(data):
        assert_type(message, RunnerMessage)
    for payload in FrameDecoder().feed(data):
        assert_type(payload, bytes)
    assert_type(decoder.get_buffer(-1), memoryview)
    assert_type(decoder.buffered, int)


def errors() -> None:
    try:
        decode_frame(b"")
    except FrameTooLargeError as error:
        assert_type(error.length, int)
    except TruncatedFrameError as error:
        assert_type(error.expected, int)
    except MessageError as error:
        assert_type(error.path, str)
        assert_type(error.job_id, str | None)
    except EncodeError as error:
        assert_type(error.reason, str)


assert_type(compat.encode_message("request", {}), bytes)


@asynccontextmanager
async def lifespan() -> AsyncGenerator[int]:
    yield 1


async def handler(request: ExecutionRequest) -> str:
    job = current_job()
    assert_type(job, CurrentJob | None)
    if job is not None:
        assert_type(job.seconds_left, float | None)
    assert_type(lifespan_value(), Any)
    return request.job_id


def blocking(request: ExecutionRequest) -> int:
    return request.context.attempt


async def around(
    request: ExecutionRequest, call_next: Callable[[ExecutionRequest], Awaitable[Any]]
) -> Any:
    return await call_next(request)


def on_error(error: BaseException, request: ExecutionRequest) -> None:
    print(error, request.job_id)


async def features() -> None:
    handlers = {"handler": handler, "blocking": blocking}
    await serve(
        handlers,
        "127.0.0.1:9000",
        lifespan=lifespan,
        threads=4,
        slow_callback=0.1,
        middleware=[around],
        on_error=on_error,
    )
    async with running(handlers, lifespan=lifespan(), middleware=(around,)) as client:
        assert_type(client, RunnerClient)
    assert_type(await run_job(blocking, {"a": 1}, threads=1), ExecutionOutcome)
