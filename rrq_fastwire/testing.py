"""Run handlers in tests: a runner and a client in one process, without ports and without Redis.

Requests and answers are real frames, so a result that cannot be sent fails as it would in
production.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager

from .client import RunnerClient
from .runner.engine import Runner
from .streams import MessageStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from typing import Any

    from . import ExecutionOutcome
    from .runner.handlers import Handler, Handlers, Middleware
    from .runner.lifespan import Lifespan

__all__ = ["run_job", "running"]

# How long cancelled handlers and the last answers may take at the end of a test.
_GRACE_SECONDS = 1.0


@asynccontextmanager
async def running(
    handlers: Handlers,
    *,
    lifespan: Lifespan | None = None,
    max_in_flight: int = 64,
    native_messages: bool = False,
    threads: int | None = None,
    slow_callback: float | None = None,
    middleware: Sequence[Middleware] = (),
    on_error: Callable[[BaseException, Any], object] | None = None,
) -> AsyncGenerator[RunnerClient]:
    """Start a runner with some handlers, and yield a client that is connected to it.

    Usage:
        async with running({"greet": greet}) as client:
            outcome = await client.execute("greet", {"name": "Ada"})

    Arguments: those of serve().

    Raises TypeError and ValueError as serve() does, and what the lifespan raises.
    """
    runner = Runner(
        handlers,
        max_in_flight=max_in_flight,
        native_messages=native_messages,
        threads=threads,
        slow_callback=slow_callback,
        middleware=middleware,
        on_error=on_error,
    )
    async with AsyncExitStack() as stack:
        if lifespan is not None:
            from .runner.lifespan import entered

            await stack.enter_async_context(entered(lifespan))
        stack.push_async_callback(runner.stop, _GRACE_SECONDS)
        runner_end, client_end = socket.socketpair()
        await _connect(runner_end, MessageStream(runner.on_stream))
        stream = MessageStream()
        await _connect(client_end, stream)
        yield await stack.enter_async_context(RunnerClient(stream))


async def _connect(end: socket.socket, stream: MessageStream) -> None:
    """Connect a stream to one end of a socket pair, which on Windows is a pair of TCP sockets."""
    loop = asyncio.get_running_loop()
    end.setblocking(False)
    if end.family == socket.AF_INET:
        await loop.create_connection(lambda: stream, sock=end)
    else:
        await loop.create_unix_connection(lambda: stream, sock=end)


async def run_job(
    handler: Handler,
    params: dict[str, Any] | None = None,
    *,
    timeout: float | None = None,
    job_id: str | None = None,
    attempt: int = 1,
    queue_name: str = "rrq:queue:default",
    trace_context: dict[str, str] | None = None,
    correlation_context: dict[str, str] | None = None,
    lifespan: Lifespan | None = None,
    threads: int | None = None,
    middleware: Sequence[Middleware] = (),
) -> ExecutionOutcome:
    """Run one job in a runner of its own, and return its outcome.

    Arguments:
        handler: the handler of the job. It gets this package's ExecutionRequest, whose
            `function_name` is the handler's `__name__`.
        params, timeout, job_id, attempt, queue_name, trace_context, correlation_context: those of
            RunnerClient.execute().
        lifespan, threads, middleware: those of serve().
    """
    name = getattr(handler, "__name__", type(handler).__name__)
    async with running(
        {name: handler}, lifespan=lifespan, threads=threads, middleware=middleware
    ) as client:
        return await client.execute(
            name,
            params,
            timeout=timeout,
            job_id=job_id,
            attempt=attempt,
            queue_name=queue_name,
            trace_context=trace_context,
            correlation_context=correlation_context,
        )
