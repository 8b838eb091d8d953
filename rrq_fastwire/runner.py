"""The runner: runs the jobs that the orchestrator sends, in the place of rrq's own.

A request becomes a task, and gets one answer. Whatever a handler returns, raises or makes of its
cancellation, the answer is one that the orchestrator accepts, and the other jobs go on.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import heapq
import importlib
import inspect
import itertools
import logging
import os
import signal
import threading
import time
import types
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from ipaddress import ip_address
from operator import attrgetter

from . import (
    PROTOCOL_VERSION,
    CancelRequest,
    EncodeError,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    FrameError,
    MessageError,
    OutcomeStatus,
    __version__,
    _json,
)
from .errors import describe
from .streams import start_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context
    from typing import Any, NoReturn, TypeAlias

    from rrq.registry import Registry
    from rrq.telemetry import RunnerSpan

    from . import RunnerMessage
    from . import _rrq as stock
    from .streams import MessageStream

    Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
    Handlers: TypeAlias = Mapping[str, Handler] | Registry
else:
    try:
        from . import _rrq as stock
    except ModuleNotFoundError as error:
        if error.name not in ("rrq", "pydantic"):  # which comes with rrq
            raise
        stock = None

__all__ = ["main", "serve"]

_logger = logging.getLogger(__name__)

_HAS_RRQ: bool = stock is not None

# The types of most results, which are no outcome: isinstance() is slow with pydantic's classes.
_RESULTS = frozenset((dict, list, str, int, float, bool, type(None)))

# What a handler can return instead of a result.
_OUTCOMES = (ExecutionOutcome, stock.StockOutcome) if _HAS_RRQ else (ExecutionOutcome,)

_TIMED_OUT = "Job execution timed out."

# Jobs that one task runs before answers are written and others have their turn.
_JOBS_A_TURN = 64

# Turns of the loop in which what was accepted before is given to on_stream(): asyncio takes four.
_TURNS_TO_ACCEPT = 5

# Whether a handler that has not waited has cancelled the task that it ran in. Up to CPython 3.12
# that comes to pass even if it was taken back, of which cancelling() knows nothing.
_is_to_be_cancelled: Callable[[asyncio.Task[None]], object] = (
    attrgetter("_must_cancel") if hasattr(asyncio.Task, "_must_cancel") else asyncio.Task.cancelling
)

# Characters of why an answer could not be sent.
_LONGEST_REASON = 1000

# How often a runner looks whether its parent is alive, and how long the handlers have if not:
# together less than a second.
_PARENT_POLL_SECONDS = 0.2
_ORPHAN_GRACE_SECONDS = 0.6

# Beyond the grace, before the process is ended by force.
_FORCE_SECONDS = 0.25


class _Job:
    """A request in the works.

    Attributes:
        connection: where its answer goes; None once it is answered, and the request is gone then.
        request: what a handler may be given, and may change; what the runner needs of it follows.
        task: what runs the handler, once that waits for something.
        overtaken: the answer, if the handler was not waited for.
    """

    __slots__ = (
        "connection",
        "deadline",
        "function_name",
        "job_id",
        "overtaken",
        "request",
        "request_id",
        "task",
    )

    def __init__(self, connection: _Connection, request: ExecutionRequest) -> None:
        self.connection: _Connection | None = connection
        self.request = request
        self.job_id = request.job_id
        self.request_id = request.request_id
        self.function_name = request.function_name
        self.deadline = request.context.deadline
        self.task: asyncio.Task[None] | None = None
        self.overtaken: ExecutionOutcome | None = None


class _Connection:
    """A stream, the jobs that it waits for, by request_id, and its name in the log.

    Attributes:
        hung_up: requests are not taken any more: nobody would get the answers.
    """

    __slots__ = ("hung_up", "jobs", "name", "stream")

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream
        self.hung_up = False
        self.jobs: dict[str, _Job] = {}
        peer = stream.transport.get_extra_info("peername")
        self.name = "{}:{}".format(*peer) if isinstance(peer, tuple) else "Unix socket"


class _Deadlines:
    """One timer for the deadlines of all jobs.

    Arguments:
        passed: called with each job that is not answered by its deadline.
    """

    def __init__(self, passed: Callable[[_Job], None]) -> None:
        self._passed = passed
        self._heap: list[tuple[float, int, _Job]] = []
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # Jobs that were answered in time stay in the heap, until it is as long as this.
        self._crowded = 256

    def add(self, job: _Job, seconds: float) -> None:
        """Watches over a job whose deadline is some seconds away."""
        loop = asyncio.get_running_loop()
        entry = loop.time() + seconds, next(self._count), job
        if len(self._heap) >= self._crowded:
            self._heap = [other for other in self._heap if other[2].connection is not None]
            heapq.heapify(self._heap)
            self._crowded = max(256, 2 * len(self._heap))
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set_timer(loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._heap[0][0], self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        heap, now = self._heap, loop.time()
        while heap and (heap[0][0] <= now or heap[0][2].connection is None):
            job = heapq.heappop(heap)[2]
            if job.connection is not None:
                self._passed(job)
        if heap:
            self._set_timer(loop)


class Runner:
    """Runs handlers for any number of connections, each given to on_stream().

    Arguments: those of serve().
    """

    def __init__(
        self, handlers: Handlers, *, max_in_flight: int = 64, native_messages: bool = False
    ) -> None:
        self._find: Callable[[str], Handler | None]
        if isinstance(handlers, Mapping):
            self._find = handlers.get
            names = list(handlers)
            native_messages = True
        else:
            self._find = handlers.get_handler
            names = handlers.get_registered_functions()
        for name in names:
            if _is_not_async(self._find(name)):
                raise TypeError(f"the handler {name!r} is not async: define it with async def")
        self._convert = None if native_messages else stock.stock_request
        self._max_in_flight = max_in_flight
        self._connections: set[_Connection] = set()
        self._queue: deque[_Job] = deque()  # jobs that no task has begun
        self._verbose = False  # whether jobs are logged: asked a turn of the loop, not a job
        self._starting = 0  # tasks that are about to take from the queue
        self._deadlines = _Deadlines(self._overdue)
        self._cancelled: set[asyncio.Task[None]] = set()  # answered, and not at their end yet

    # Receiving

    async def on_stream(self, stream: MessageStream) -> None:
        """Serves one connection, until its end."""
        connection = _Connection(stream)
        self._connections.add(connection)
        _logger.debug("%s: connected", connection.name)
        try:
            while True:
                try:
                    await stream.deliver(partial(self._take, connection))
                    break
                except MessageError as error:
                    self._refuse(connection, error)
            _logger.debug("%s: disconnected", connection.name)
        except FrameError as error:
            _logger.warning("%s: closed, this is not RRQ's protocol: %s", connection.name, error)
        except ConnectionError as error:
            _logger.debug("%s: lost: %s", connection.name, error)
        finally:
            self._connections.discard(connection)
            self._hang_up(connection)

    def _take(self, connection: _Connection, message: RunnerMessage) -> None:
        """Puts a request into the queue, or answers it at once; sees to what else there is."""
        if type(message) is not ExecutionRequest:
            if type(message) is CancelRequest:
                self._cancel(message)
            else:
                _logger.warning("%s: sent a response, which a runner ignores", connection.name)
            return
        if connection.hung_up:
            return
        jobs = connection.jobs
        request_id = message.request_id
        if message.protocol_version != PROTOCOL_VERSION:
            wrong = "Unsupported protocol version"
        elif len(jobs) >= self._max_in_flight:
            wrong = "Runner busy: too many in-flight requests"
        elif request_id in jobs:
            wrong = "Request already in flight"
        else:
            jobs[request_id] = job = _Job(connection, message)
            self._queue.append(job)
            if not self._starting:
                self._start_workers()
                connection.stream.write_soon()
            return
        outcome = ExecutionOutcome.failure(message.job_id, request_id, wrong)
        self._send(connection, outcome, message.function_name)

    def _refuse(self, connection: _Connection, error: MessageError) -> None:
        """Answers what is no message, if it was meant to be a request."""
        _logger.warning("%s: job %s: %s", connection.name, describe(error.job_id), error)
        if (
            error.job_id is not None
            and error.request_id is not None
            and error.request_id not in connection.jobs
            and _json.loads(error.payload).get("type") == "request"
        ):
            outcome = ExecutionOutcome.failure(error.job_id, error.request_id, str(error))
            self._send(connection, outcome, "a request")

    def _cancel(self, cancel: CancelRequest) -> None:
        """Cancels one request, or all of a job, on whichever connections."""
        if cancel.protocol_version != PROTOCOL_VERSION:
            return
        for connection in self._connections:
            if cancel.request_id is None:
                jobs = list(connection.jobs.values())
                overtaken = [job for job in jobs if job.job_id == cancel.job_id]
            else:
                job = connection.jobs.get(cancel.request_id)
                overtaken = [] if job is None else [job]
            for job in overtaken:
                self._overtake(job, _cancelled(job))

    # Running

    def _start_workers(self) -> None:
        """Starts a task for every job in the queue that has none in sight."""
        self._verbose = _logger.isEnabledFor(logging.DEBUG)
        loop = asyncio.get_running_loop()
        while self._starting < len(self._queue):
            self._starting += 1
            asyncio.Task(self._work(), loop=loop)

    async def _work(self) -> None:
        """Runs the jobs of the queue one after another, up to one that waits for something.

        That one keeps the task for itself, and others go on with the queue: jobs that never wait
        share a task, which costs more than they do, and a job that waits has one of its own.
        Each has its own copy of the context.
        """
        self._starting -= 1
        task = asyncio.current_task()
        assert task is not None
        for _ in range(_JOBS_A_TURN):
            if not self._queue or _is_to_be_cancelled(task):
                break
            job = self._queue.popleft()
            if job.connection is None:
                continue  # cancelled meanwhile
            context = copy_context()
            steps = self._run(job, job.connection, job.request)
            try:
                waits_for = context.run(steps.send, None)
            except StopIteration:
                continue
            job.task = task
            self._watch_deadline(job)
            self._start_workers()
            rest = _rest(context, steps, waits_for)
            # A future refers to what it raises, the traceback of that to this frame.
            del waits_for
            await rest
            return
        self._start_workers()

    async def _run(self, job: _Job, connection: _Connection, request: ExecutionRequest) -> None:
        """Runs the handler of a job, and answers."""
        name, deadline = job.function_name, job.deadline
        if self._verbose:
            _logger.debug("%s: job %s: starts", connection.name, job.job_id)
        try:
            if deadline is not None and deadline.timestamp() <= time.time():
                raise TimeoutError("Job deadline exceeded")
            handler = self._find(name)
            if handler is None:
                outcome = ExecutionOutcome.handler_not_found(
                    job.job_id,
                    job.request_id,
                    f"No handler registered for function '{name}'",
                )
            else:
                given = request if self._convert is None else self._convert(request)
                span = stock.span(given) if _HAS_RRQ else None
                if span is None:
                    result = await handler(given)
                else:
                    result = await self._traced(span, job, handler, given)
                if type(result) in _RESULTS or not isinstance(result, _OUTCOMES):
                    outcome = ExecutionOutcome.success(job.job_id, job.request_id, result)
                else:
                    outcome = _returned(result, job)
        except BaseException as error:
            outcome = _failure(job, error)
            _logger.debug(
                "%s: job %s: %s raised",
                connection.name,
                job.job_id,
                describe(name),
                exc_info=error,
            )
        self._answer(job, outcome)

    def _watch_deadline(self, job: _Job) -> None:
        if job.deadline is not None:
            self._deadlines.add(job, job.deadline.timestamp() - time.time())

    async def _traced(self, span: RunnerSpan, job: _Job, handler: Handler, request: Any) -> Any:
        """Runs a handler within a span of telemetry, which is told how the job ended."""
        start = time.monotonic()
        failed: BaseException | None = None
        result = None
        with span as entered:
            try:
                result = await handler(request)
            except BaseException as error:
                failed = error
            seconds = time.monotonic() - start
            _report(entered, request.function_name, seconds, failed, job.overtaken)
        if failed is not None:
            raise failed
        return result

    # Answering

    def _overdue(self, job: _Job) -> None:
        self._overtake(job, _timeout(job, _TIMED_OUT))

    def _overtake(self, job: _Job, outcome: ExecutionOutcome) -> None:
        """Answers a job that has not ended, and cancels its handler, whatever that makes of it."""
        job.overtaken = outcome
        self._answer(job, outcome)
        if job.task is not None:
            job.task.set_name(f"{describe(job.function_name)} of job {describe(job.job_id)}")
            self._cancelled.add(job.task)
            job.task.add_done_callback(self._cancelled.discard)
            try:
                job.task.cancel()
            except BaseException as error:  # of what the handler waits for
                _logger.debug("%s cannot be cancelled", job.task.get_name(), exc_info=error)

    def _answer(self, job: _Job, outcome: ExecutionOutcome) -> None:
        """Sends the answer to a job, unless it has one."""
        connection = job.connection
        if connection is None:
            return
        job.connection = None
        del job.request, connection.jobs[job.request_id]
        status = self._send(connection, outcome, job.function_name)
        if self._verbose:
            _logger.debug("%s: job %s: %s", connection.name, job.job_id, status)

    def _send(self, connection: _Connection, outcome: ExecutionOutcome, name: str) -> OutcomeStatus:
        """Sends what has come of the function `name`, and returns the status that was sent."""
        try:
            connection.stream.send_nowait(outcome)
        except ConnectionError:
            pass  # nobody is there
        except BaseException as error:
            return self._send_instead(connection, outcome, name, error)
        return outcome.status

    def _send_instead(
        self, connection: _Connection, outcome: ExecutionOutcome, name: str, reason: BaseException
    ) -> OutcomeStatus:
        """Sends what could not be encoded: as rrq writes it, or why that does not help."""
        send = connection.stream.send_nowait
        # Without a path, or another error as its cause, it is the size that is at fault.
        encoding = isinstance(reason, EncodeError) and (reason.path or reason.__cause__)
        if _HAS_RRQ and encoding:
            try:
                stock.as_stock_writes(outcome)
                send(outcome)
                return outcome.status
            except BaseException as error:
                reason = error
        subject = "result" if outcome.error is None else "error"
        text = f"{subject} of {describe(name)} cannot be sent: {_text(reason, name)}"
        # What other code's exceptions say may itself be unfit, or long.
        text = text[:_LONGEST_REASON].encode(errors="backslashreplace").decode()
        _logger.debug("%s: job %s: %s", connection.name, outcome.job_id, text)
        instead = ExecutionOutcome(
            job_id=outcome.job_id,
            request_id=outcome.request_id,
            status=OutcomeStatus.ERROR,
            error=ExecutionError(message=text),
        )
        try:
            send(instead)
        except (EncodeError, ConnectionError) as error:  # ids of 16 MiB; nobody is there
            _logger.warning("%s: a request cannot be answered: %s", connection.name, error)
        return instead.status

    # Ending

    def _hang_up(self, connection: _Connection) -> None:
        """Cancels the jobs of a connection, and closes it once it has their answers."""
        connection.hung_up = True
        for job in list(connection.jobs.values()):
            self._overtake(job, _cancelled(job))
        connection.stream.close()

    async def stop(self, grace: float) -> None:
        """Cancels and answers everything, closes the connections, and waits for the handlers.

        Arguments:
            grace: seconds that handlers have to end, and peers to take their answers.
        """
        # asyncio takes some turns from accepting a connection to on_stream().
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        streams = [connection.stream for connection in self._connections]
        for connection in self._connections:
            self._hang_up(connection)
        self._deadlines.stop()
        closed = [asyncio.ensure_future(stream.wait_closed()) for stream in streams]
        if closed or self._cancelled:
            await asyncio.wait({*closed, *self._cancelled}, timeout=grace)
        for stream in streams:
            stream.abort()
        for task in self._cancelled:
            _logger.warning("%s goes on though it is cancelled", task.get_name())


@types.coroutine
def _rest(
    context: Context, steps: Coroutine[Any, None, None], waits_for: Any
) -> Generator[Any, None, None]:
    """The rest of a coroutine that has been begun in a context, and waits for something."""
    while True:
        thrown: BaseException | None = None
        try:
            yield waits_for
        except BaseException as error:
            thrown = error
        try:
            if thrown is None:
                waits_for = context.run(steps.send, None)
            else:
                waits_for = context.run(steps.throw, thrown)
        except StopIteration:
            # What was thrown refers to this frame, and what raised it to that.
            waits_for = thrown = None
            return


def _timeout(job: _Job, message: str) -> ExecutionOutcome:
    return ExecutionOutcome.timeout(job.job_id, job.request_id, message)


def _cancelled(job: _Job) -> ExecutionOutcome:
    return ExecutionOutcome.cancelled(job.job_id, job.request_id)


def _returned(outcome: Any, job: _Job) -> ExecutionOutcome:
    """The answer where a handler returned an outcome: a copy, with the request's ids."""
    try:
        error = outcome.error
        if error is not None:
            error = ExecutionError(
                message=error.message, type=error.type, code=error.code, details=error.details
            )
        return ExecutionOutcome(
            job_id=job.job_id,
            request_id=job.request_id,
            status=outcome.status,
            result=outcome.result,
            error=error,
            retry_after_seconds=outcome.retry_after_seconds,
        )
    except Exception as error:  # made without validation, or something that poses as an outcome
        name = job.function_name
        text = f"outcome of {describe(name)} cannot be sent: {_text(error, name)}"
        return ExecutionOutcome.failure(job.job_id, job.request_id, text)


def _failure(job: _Job, error: BaseException) -> ExecutionOutcome:
    """What an exception amounts to that a handler raised, even where its own code fails."""
    try:
        return _raised(job, error)
    except BaseException as second:
        raised = f"{describe(job.function_name)} raised {type(error).__name__}"
        text = f"{raised}, whose own code raised {type(second).__name__}"
        return ExecutionOutcome.failure(job.job_id, job.request_id, text)


def _raised(job: _Job, error: BaseException) -> ExecutionOutcome:
    if isinstance(error, asyncio.CancelledError):
        return _cancelled(job)
    text = _text(error, job.function_name)
    if _HAS_RRQ and isinstance(error, stock.RetryJob):
        return ExecutionOutcome.retry_after(
            job.job_id,
            job.request_id,
            text or "Job requested retry",
            _delay(error.defer_seconds),
        )
    if isinstance(error, TimeoutError):
        return _timeout(job, text or _TIMED_OUT)
    return ExecutionOutcome.failure(job.job_id, job.request_id, text or "Unhandled handler error")


def _delay(seconds: Any) -> Any:
    """A retry's delay, turned into a number as rrq's outcome does it; as it is, if it is none."""
    try:
        return seconds if seconds is None or type(seconds) is int else float(seconds)
    except Exception:
        return seconds


def _text(error: BaseException, name: str) -> str:
    """What an exception says that came of the function `name`, even where its own code fails."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"its __str__ raised {type(second).__name__}"
    else:
        if isinstance(error, Exception):
            return text
    return f"{describe(name)} raised {type(error).__name__}: {text}"


def _report(
    span: RunnerSpan,
    name: str,
    seconds: float,
    error: BaseException | None,
    overtaken: ExecutionOutcome | None,
) -> None:
    """Tells telemetry how a job ended."""
    if overtaken is not None and overtaken.error is not None:
        message = overtaken.error.message
        if overtaken.status is OutcomeStatus.TIMEOUT:
            span.timeout(duration_seconds=seconds, error_message=message)
        else:
            span.cancelled(duration_seconds=seconds, reason=message)
    elif error is None:
        span.success(duration_seconds=seconds)
    elif isinstance(error, asyncio.CancelledError):
        span.cancelled(duration_seconds=seconds)
    elif isinstance(error, stock.RetryJob):
        delay, reason = error.defer_seconds, _text(error, name) or None
        span.retry(duration_seconds=seconds, delay_seconds=delay, reason=reason)
    elif isinstance(error, TimeoutError):
        span.timeout(duration_seconds=seconds, error_message=_text(error, name) or _TIMED_OUT)
    else:
        span.error(duration_seconds=seconds, error=error)


def _is_not_async(handler: object) -> bool:
    """Whether awaiting it cannot work. Callable objects and compiled functions may be async."""
    handler = inspect.unwrap(
        handler,  # type: ignore[arg-type]
        stop=lambda each: inspect.iscoroutinefunction(each) or not inspect.isfunction(each),
    )
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.isfunction(handler) or inspect.ismethod(handler):
        return not inspect.iscoroutinefunction(handler)
    return not callable(handler)


def parse_tcp_socket(tcp_socket: str, *, allow_remote: bool = False) -> tuple[str, int]:
    """The host and port of "host:port"; an IPv6 address stands in brackets.

    Arguments:
        allow_remote: whether addresses other than loopback are accepted.

    Raises ValueError, with rrq-runner's messages.
    """
    tcp_socket = tcp_socket.strip()
    if not tcp_socket:
        raise ValueError("TCP socket value cannot be empty")
    if tcp_socket.startswith("["):
        host, separator, port_text = tcp_socket.partition("]:")
        host = host.lstrip("[")
        if not separator:
            raise ValueError("TCP socket must be in [host]:port format")
    else:
        host, separator, port_text = tcp_socket.rpartition(":")
        if not separator:
            raise ValueError("TCP socket must be in host:port format")
        if not host:
            raise ValueError("TCP socket host cannot be empty")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket host: {host}") from error
    if not (address.is_loopback or allow_remote):
        raise ValueError("TCP socket must bind to loopback-only interfaces")
    try:
        port = int(port_text)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket port: {port_text}") from error
    if not 0 < port <= 65535:
        raise ValueError(f"TCP socket port out of range: {port}")
    return str(address), port


async def serve(
    handlers: Handlers,
    tcp_socket: str,
    *,
    max_in_flight: int = 64,
    native_messages: bool = False,
    allow_remote: bool = False,
    grace: float = 1.0,
) -> None:
    """Runs the jobs that come in on a TCP socket, until SIGTERM, SIGINT or its own cancellation.

    At the end what runs is cancelled and answered, and the connections are closed; a second signal
    kills the process. Signals are seen to only in the main thread.

    Arguments:
        handlers: a mapping of names to async functions of one argument, the request, or an
            `rrq.registry.Registry` of them. What they return is the result, or an
            ExecutionOutcome, this package's or rrq's, in which the ids do not matter. Handlers that
            never wait may share a task, so none should keep its current_task() beyond the job.
        tcp_socket: "host:port" to listen on.
        max_in_flight: requests of one connection that run at a time; more are told to be busy.
        native_messages: whether the handlers of a Registry get this package's ExecutionRequest
            instead of rrq's. A mapping's always do.
        allow_remote: whether to listen on other addresses than loopback.
        grace: seconds that cancelled handlers are given at the end.

    Raises ValueError for a wrong `tcp_socket`, TypeError for a handler that is not async, and
    OSError if the socket cannot be listened on.
    """
    await _serve(
        Runner(handlers, max_in_flight=max_in_flight, native_messages=native_messages),
        *parse_tcp_socket(tcp_socket, allow_remote=allow_remote),
        grace,
        lambda _: None,
    )


async def _serve(
    runner: Runner, host: str, port: int, grace: float, signalled: Callable[[int], None]
) -> None:
    server = await start_server(runner.on_stream, host, port)
    _logger.info("serving on %s port %d", host, port)
    if not ip_address(host).is_loopback:
        _logger.warning("%s is not loopback: whoever reaches port %d can run jobs", host, port)
    with ending_signals(signalled) as ended:
        try:
            await ended.wait()
        finally:
            server.close()
            await runner.stop(grace)


@contextmanager
def ending_signals(signalled: Callable[[int], None]) -> Generator[asyncio.Event]:
    """Gives an event that SIGTERM and SIGINT set; the second of them kills the process.

    Arguments:
        signalled: called with the number of the first, even while a handler keeps the event loop.
    """
    ended = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    loop = asyncio.get_running_loop()
    numbers = signal.SIGTERM, signal.SIGINT

    def end(received: int, _: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        signalled(received)
        loop.call_soon_threadsafe(ended.set)

    # Not loop.add_signal_handler(), which waits for the loop.
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# The command


def load_handlers(path: str) -> Handlers:
    """The handlers that "module.attr" or "module:attr" names: PythonRunnerSettings or a mapping.

    Raises ValueError with what is wrong.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        module_name, separator, attribute = path.rpartition(".")
    if not (module_name and attribute):
        raise ValueError(f"--settings must be module.attr or module:attr, got {path!r}")
    try:
        settings = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        # Some, like pydantic's, have a text of many lines.
        text = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            text += " (is it on PYTHONPATH?)"
        raise ValueError(f"cannot load {path!r}: {type(error).__name__}: {text}") from error
    if _HAS_RRQ and isinstance(settings, stock.PythonRunnerSettings):
        registry: Registry = settings.registry
        return registry
    if isinstance(settings, Mapping):
        return settings
    raise ValueError(
        f"{path!r} is of type {type(settings).__name__}, not PythonRunnerSettings"
        " or a mapping of names to async functions"
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def main(argv: list[str] | None = None) -> None:
    """`rrq-fastwire-runner`: serves the handlers of a settings object."""
    parser = _Parser(
        prog="rrq-fastwire-runner",
        description="Runs RRQ jobs, in the place of rrq-runner.",
        epilog="example: rrq-fastwire-runner --settings myapp.runner.settings"
        " --tcp-socket 127.0.0.1:9000",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--settings",
        required=True,
        metavar="MODULE.ATTR",
        help="a PythonRunnerSettings, or a mapping of names to async functions",
    )
    parser.add_argument(
        "--tcp-socket",
        required=True,
        metavar="HOST:PORT",
        help="where to listen: a loopback address",
    )
    parser.add_argument(
        "--allow-remote", action="store_true", help="listen on other addresses than loopback, too"
    )
    parser.add_argument(
        "--native-messages",
        action="store_true",
        help="give handlers rrq_fastwire's requests: the same attributes, and cheaper",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long cancelled handlers are waited for at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--no-parent-watch",
        dest="parent_watch",
        action="store_false",
        help="do not end when the parent process does (for service managers)",
    )
    options = parser.parse_args(argv)

    def end_by_force(_: int) -> None:
        _exit_after(options.grace + _FORCE_SECONDS)

    # Ctrl-C kills like SIGTERM wherever ending_signals() does not see to both: before something
    # runs, and as the second signal while asyncio and the interpreter wait for threads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.parent_watch:
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        handlers = load_handlers(options.settings)
        runner = Runner(handlers, native_messages=options.native_messages)
        host, port = parse_tcp_socket(options.tcp_socket, allow_remote=options.allow_remote)
    except (TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    try:
        asyncio.run(_serve(runner, host, port, options.grace, end_by_force))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = ", or end what listens there" if error.errno == errno.EADDRINUSE else ""
        parser.exit(
            2,
            f"{parser.prog}: cannot listen on {options.tcp_socket}: {reason};"
            f" choose another --tcp-socket{advice}\n",
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 3600, got {text!r}")
    return seconds


def _exit_after(seconds: float) -> None:
    """Ends the process in any case, even while a handler keeps the event loop or a thread."""

    def wait() -> None:
        time.sleep(seconds)
        _logger.warning("ended by force: a handler, or what it left behind, did not end")
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _watch_parent(parent: int) -> None:
    """Ends the process when its parent goes away, as SIGTERM does, but within a second."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    _exit_after(_ORPHAN_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
