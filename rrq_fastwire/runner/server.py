"""`serve()`: listen on a TCP socket, and run the jobs that arrive until told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from .. import MAX_FRAME_SIZE
from ..streams import MessageStream
from .admission import Admission
from .arguments import check_count, check_seconds, check_text, parse_networks, parse_tcp_socket
from .backlog import create_server
from .connections import let_accepted_connections_arrive
from .defaults import DEFAULT_HEADER_TIMEOUT, DEFAULT_MAX_CONNECTIONS
from .engine import Runner
from .guard import DEFAULT_GRACE
from .log import log
from .process import ending_signals, exit_forked_child
from .quiet import drain as drain_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from concurrent.futures import Future
    from typing import Any

    from .guard import Guard
    from .handlers import Handlers, Middleware
    from .handover import Handover
    from .lifespan import Lifespan

__all__ = [
    "MetricsSocketError",
    "make_runner",
    "parse_metrics_socket",
    "run_server",
    "serve",
]


class MetricsSocketError(OSError):
    """Metrics cannot be served at their address. The text says why."""


def parse_metrics_socket(metrics: str, tcp_port: int) -> tuple[str, int]:
    """Split "host:port" into host and port; a port of "+N" is N above the runner's port.

    Arguments:
        tcp_port: the runner's port.

    Raises ValueError.
    """
    host, separator, port = metrics.rpartition(":")
    if port.startswith("+") and port[1:].isdecimal():
        metrics = f"{host}{separator}{tcp_port + int(port)}"
    return parse_tcp_socket(metrics, allow_remote=True)


async def serve(
    handlers: Handlers,
    tcp_socket: str,
    *,
    max_in_flight: int = 64,
    native_messages: bool = False,
    allow_remote: bool = False,
    allow_from: Iterable[str] = (),
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
    max_frame_size: int = MAX_FRAME_SIZE,
    header_timeout: float = DEFAULT_HEADER_TIMEOUT,
    grace: float = DEFAULT_GRACE,
    lifespan: Lifespan | None = None,
    threads: int | None = None,
    slow_callback: float | None = None,
    middleware: Sequence[Middleware] = (),
    on_error: Callable[[BaseException, Any], object] | None = None,
    drain: float = 0.0,
    max_jobs: int | None = None,
    max_rss: int | None = None,
    metrics: str | None = None,
) -> None:
    """Run the jobs that arrive on a TCP socket, until SIGTERM, SIGINT or cancellation.

    At the end, running jobs are cancelled and answered, and the connections are closed. A second
    signal kills the process. Signals are handled only in the main thread.

    Arguments:
        handlers: a mapping of names to async functions of one argument, the request, or an
            `rrq.registry.Registry` of such functions. A handler returns the result of the job, or
            an ExecutionOutcome of this package or of rrq, whose ids are replaced by the request's.
            Handlers that never wait may share a task, so a handler should not keep its
            current_task() beyond the job.
        tcp_socket: "host:port" to listen on.
        max_in_flight: the most requests of one connection that run at a time. Further requests are
            answered at once with an error.
        native_messages: whether the handlers of a Registry get this package's ExecutionRequest
            instead of rrq's. The handlers of a mapping always do.
        allow_remote: whether `tcp_socket` may be another address than loopback. Needs `allow_from`.
        allow_from: with `allow_remote`, the networks that may connect, such as "10.1.0.0/16".
            Loopback always may.
        max_connections: the most connections at a time; further ones are refused.
        max_frame_size: the largest message that a connection may announce, in bytes of payload.
        header_timeout: seconds until the first message of a connection must have arrived, or the
            connection is closed. The same limit applies to a later message that is incomplete when
            another client connects. 0 is no limit.
        grace: seconds to wait at the end for cancelled handlers; `rrq-fastwire-runner --help` says
            how this relates to the worker's shutdown.
        lifespan: an async context manager, or a function that returns one. It is entered before the
            runner listens, and left after its last answer. lifespan_value() returns what it yields.
        threads: how many threads run the handlers that are not async; None refuses such handlers.
        slow_callback: seconds. A handler that blocks the event loop for longer is logged once, with
            the line that blocks; None logs nothing.
        middleware: async functions that are called with the request and with the next function to
            call. The first is the outermost.
        on_error: a function that is called with the exception of a job that failed or timed out,
            and with the request.
        drain: seconds at the end in which running jobs can finish; no new jobs are taken.
        max_jobs: after this many jobs, or up to 10 % fewer, this returns as soon as it is idle.
        max_rss: if the resident memory of the process exceeds this many bytes, or up to 10 % less,
            this returns as soon as it is idle; Linux only.
        metrics: "host:port" where metrics for Prometheus are served; needs prometheus-client.

    Raises:
        ValueError: `tcp_socket`, a network or a number is wrong, or only one of `allow_remote` and
            `allow_from` is given.
        TypeError: a handler is not async, or another argument cannot be used.
        ImportError: `metrics` is given, but prometheus-client is not installed.
        OSError: a socket cannot be listened on.
        Exception: what the lifespan raises.
    """
    check_text("tcp_socket", tcp_socket)
    check_seconds("grace", grace)
    check_seconds("drain", drain)
    if max_jobs is not None:
        check_count("max_jobs", max_jobs)
    if max_rss is not None:
        check_count("max_rss", max_rss)
    if metrics is not None:
        check_text("metrics", metrics)
    networks = parse_networks(allow_from)
    if allow_remote and not networks:
        raise ValueError("allow_remote needs allow_from: the networks that may connect")
    if networks and not allow_remote:
        raise ValueError("allow_from needs allow_remote")
    host, port = parse_tcp_socket(tcp_socket, allow_remote=allow_remote)
    runner = make_runner(
        handlers,
        max_in_flight=max_in_flight,
        native_messages=native_messages,
        threads=threads,
        slow_callback=slow_callback,
        middleware=middleware,
        on_error=on_error,
        observed=max_jobs is not None or metrics is not None,
    )
    admission = Admission(
        allow_from=networks if allow_remote else None,
        max_connections=max_connections,
        max_frame_size=max_frame_size,
        header_timeout=header_timeout,
    )
    async with contextlib.AsyncExitStack() as stack:
        if lifespan is not None:
            from .lifespan import entered

            await stack.enter_async_context(entered(lifespan))
        await run_server(
            runner,
            host,
            port,
            grace,
            admission=admission,
            drain=drain,
            max_jobs=max_jobs,
            max_rss=max_rss,
            metrics=metrics,
        )


def make_runner(handlers: Handlers, *, observed: bool, **options: Any) -> Runner:
    """Return a runner. It can be observed only if that is needed, because that has a cost."""
    if observed:
        from .observe import ObservedRunner

        return ObservedRunner(handlers, **options)
    return Runner(handlers, **options)


async def run_server(
    runner: Runner,
    host: str,
    port: int,
    grace: float,
    *,
    admission: Admission,
    drain: float = 0.0,
    max_jobs: int | None = None,
    max_rss: int | None = None,
    metrics: str | None = None,
    guard: Guard | None = None,
    handover: Handover | None = None,
    changed: Future[str] | None = None,
) -> None:
    """Serve a runner until a signal, a cancellation or a reason to restart ends it.

    Arguments:
        runner: a runner of make_runner(); for `max_jobs` and `metrics`, one that can be observed.
        guard: is told when the end of the process begins, and when the drain is over.
        handover: the sockets of the previous process, and those for the next one.
        changed: is done when the source has changed; its result is the name of the file.
    """
    told_to_end = has_ended = False
    pid = os.getpid()

    def signalled(_: int) -> None:
        nonlocal told_to_end
        told_to_end = True
        if not drain:
            runner.begin_end()
        if guard is not None:
            guard.begin_end()

    try:
        with ending_signals(signalled) as ended, contextlib.ExitStack() as stack:
            stream_class = MessageStream
            if metrics is not None:
                stream_class = _measure(runner, metrics, port, admission, stack)
            due = _due(runner, max_jobs, max_rss, changed, stack)

            async def listen(listener: socket.socket | None) -> asyncio.Server:
                return await _listen(host, port, listener, runner, admission, stream_class)

            if handover is not None:  # first: new connections must not take the places of these
                await _take_over(handover, runner, admission, stream_class)
            server = await listen(None if handover is None else handover.listener)
            renewal = None
            if due:
                from .renewal import Renewal

                renewal = Renewal(due, handover, server, listen)
                stack.callback(renewal.close)
            log(logging.INFO, "serving on %s port %d", host, port)
            try:
                if renewal is None:
                    await ended.wait()
                else:
                    await _wait_for_first(ended.wait(), renewal.wait(runner, admission))
            except asyncio.CancelledError as error:
                exit_forked_child(error, pid)
                raise
            finally:
                is_renewed = handover is not None and handover.is_due() and not told_to_end
                if guard is not None and handover is not None and is_renewed:
                    guard.begin_renewal(handover)
                elif guard is not None:
                    guard.begin_end()
                (server if renewal is None else renewal).close()
                admission.stop()
                await _end(runner, 0.0 if is_renewed else drain, grace, guard)
        has_ended = True
    finally:
        if handover is not None and (told_to_end or not has_ended):
            handover.abandon()


async def _end(runner: Runner, drain: float, grace: float, guard: Guard | None) -> None:
    """Let the running jobs end, and stop the runner."""
    try:
        if drain:
            await drain_runner(runner, drain)
            if guard is not None:
                guard.drain_is_over()
    finally:  # even if this is cancelled
        await runner.stop(grace)


def _measure(
    runner: Runner,
    metrics: str,
    port: int,
    admission: Admission,
    stack: contextlib.ExitStack,
) -> type[MessageStream]:
    """Measure a runner, and return the class for its connections. Raises MetricsSocketError."""
    from .metrics import MeasuredStream, Metrics

    try:
        measured = Metrics(runner, *parse_metrics_socket(metrics, port))
    except OSError as error:
        raise MetricsSocketError(f"metrics on {metrics}: {error.strerror}") from error
    stack.callback(measured.stop)
    admission.on_refused = measured.refuse
    return MeasuredStream


def _due(
    runner: Runner,
    max_jobs: int | None,
    max_rss: int | None,
    changed: Future[str] | None,
    stack: contextlib.ExitStack,
) -> list[asyncio.Future[str]]:
    """Return the futures that are done when the runner is to restart. Raises LimitError."""
    due = [] if changed is None else [asyncio.wrap_future(changed)]
    if max_jobs is not None or max_rss is not None:
        from .recycle import Recycling

        recycling = Recycling(max_jobs=max_jobs, max_rss=max_rss)
        stack.callback(recycling.stop)
        due.append(recycling.due)
        if max_jobs is not None:
            from .observe import ObservedRunner

            assert isinstance(runner, ObservedRunner)  # because make_runner() was told so
            runner.observers.append(recycling.count)
    return due


async def _listen(
    host: str,
    port: int,
    listener: socket.socket | None,
    runner: Runner,
    admission: Admission,
    stream_class: type[MessageStream],
) -> asyncio.Server:
    """Listen on an address, or on a socket that listens already. Raises OSError."""
    on_stream, size = admission.limit(runner.on_stream), admission.max_frame_size

    def make_stream() -> MessageStream:
        return stream_class(on_stream, max_frame_size=size)

    return await create_server(make_stream, host, port, listener)


async def _take_over(
    handover: Handover,
    runner: Runner,
    admission: Admission,
    stream_class: type[MessageStream],
) -> None:
    """Serve the connections of the previous process."""
    on_stream, size = admission.limit(runner.on_stream, is_new=False), admission.max_frame_size
    for connection in handover.connections:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: stream_class(on_stream, max_frame_size=size), connection
        )
    await let_accepted_connections_arrive()


async def _wait_for_first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several coroutines, raise what it raises, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
