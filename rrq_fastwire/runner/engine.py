"""The engine: connections, their requests, the handlers that run, and the deadlines.

Each request runs under a task and gets exactly one answer. Whatever a handler returns, raises or
does when it is cancelled, the orchestrator accepts the answer, and the other jobs continue.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from time import monotonic

from .. import (
    PROTOCOL_VERSION,
    CancelRequest,
    ExecutionOutcome,
    ExecutionRequest,
    FrameError,
    MessageError,
    OutcomeStatus,
)
from ..errors import describe
from . import tracking
from .answers import log_end, send_instead
from .arguments import check_count
from .connections import Connection, Job, let_accepted_connections_arrive
from .deadlines import Deadlines
from .handlers import HandlerFinder
from .log import LOGGER, log
from .outcomes import (
    OUTCOMES,
    RESULTS,
    TIMED_OUT,
    cancelled,
    failure,
    is_cancellation,
    report,
    report_to_span,
    returned,
    timeout,
)
from .process import exit_forked_child
from .stock import HAS_RRQ, rrq
from .tasks import TaskStarter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from typing import Any

    from rrq.telemetry import RunnerSpan

    from .. import RunnerMessage
    from ..streams import MessageStream
    from .handlers import AsyncHandler, Handlers, Middleware

__all__ = ["Runner"]

# While a connection has other jobs, an answer outside of a read is written at once only if the last
# such write was longer ago than this. Otherwise it leaves together with others. So handlers that
# block one after another do not hold back each other's answers.
_ANSWER_WAITS_SECONDS = 0.001

# How long handlers may run up to their first waits, one after another, before other callbacks of
# the event loop run.
_ITERATION_SECONDS = 0.005

# A function counts as slow if its handler took longer than this up to its first wait. The answers
# that are ready are written before a slow function runs. Before others this would not pay, because
# a write costs as much as several short jobs.
_SHORT_SECONDS = 0.002


class Runner:
    """Run handlers for any number of connections, each passed to on_stream().

    Arguments: those of serve().

    Attributes:
        connections: the open connections.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        max_in_flight: int = 64,
        native_messages: bool = False,
        threads: int | None = None,
        slow_callback: float | None = None,
        middleware: Sequence[Middleware] = (),
        on_error: Callable[[BaseException, Any], object] | None = None,
    ) -> None:
        check_count("max_in_flight", max_in_flight)
        self._handlers = HandlerFinder(
            handlers, threads=threads, slow_callback=slow_callback, middleware=middleware
        )
        self._find = self._handlers.find
        native_messages = native_messages or isinstance(handlers, Mapping)
        self._convert = None if native_messages else rrq.stock_request
        if on_error is not None and (
            not callable(on_error) or inspect.iscoroutinefunction(on_error)
        ):
            raise TypeError("on_error must be a plain function, which is not async")
        self._on_error = on_error
        self._max_in_flight = max_in_flight
        self._pid = os.getpid()
        self.connections: set[Connection] = set()
        self._tasks = TaskStarter()
        # Whether a function took long up to its first wait when it last ran, or has never run.
        self._is_slow = dict.fromkeys(self._handlers.names, True)
        self._postponed: deque[tuple[Job, ExecutionRequest]] = deque()
        # Jobs that are postponed or wait, by job id, for a cancel of all requests of a job.
        self._waiting: defaultdict[str, dict[Job, None]] = defaultdict(dict)
        self._pausing = False  # jobs are postponed until the event loop calls _resume()
        self._spent = 0.0  # seconds that handlers took up to their first waits since then
        self._is_ending = False
        self._deadlines = Deadlines(self._overdue)
        self._cancelled: dict[asyncio.Task[None], Job] = {}  # answered, but still running

    def count_jobs(self) -> int:
        """Return how many jobs have arrived and are not answered. Any thread may call this."""
        return sum(len(connection.jobs) for connection in tuple(self.connections))

    # Receiving

    async def on_stream(self, stream: MessageStream) -> None:
        """Serve one connection until it ends."""
        connection = Connection(stream)
        self.connections.add(connection)
        log(logging.DEBUG, "%s: connected", connection.name)
        try:
            while True:
                try:
                    await stream.deliver(partial(self._take, connection))
                    break
                except MessageError as error:
                    self._refuse(connection, error)
            log(logging.DEBUG, "%s: disconnected", connection.name)
        except FrameError as error:
            log(
                logging.WARNING,
                "%s: closed, this is not RRQ's protocol: %s",
                connection.name,
                error,
            )
        except ConnectionError as error:
            log(logging.DEBUG, "%s: lost: %s", connection.name, error)
        except asyncio.CancelledError as error:
            exit_forked_child(error, self._pid)
            raise
        finally:
            self.connections.discard(connection)
            self._hang_up(connection)

    def _take(self, connection: Connection, message: RunnerMessage) -> None:
        """Start the handler of a request, or refuse the request; carry out a cancel."""
        if type(message) is not ExecutionRequest:
            if type(message) is CancelRequest:
                self._cancel(message)
            else:
                log(logging.WARNING, "%s: sent a response, which a runner ignores", connection.name)
            return
        # Nobody would get the answer. The orchestrator runs the job again.
        if connection.hung_up or connection.stream.is_closing():
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
            jobs[request_id] = job = Job(connection, message)
            if self._pausing or self._is_ending:
                self._postponed.append((job, message))
                self._waiting[job.job_id][job] = None
            else:
                self._start(connection, job, message)
            return
        outcome = ExecutionOutcome.failure(message.job_id, request_id, wrong)
        self._send(connection, outcome, message.function_name)

    def _refuse(self, connection: Connection, error: MessageError) -> None:
        """Log a payload that is not a valid message, and answer it if it is a request with ids."""
        log(logging.WARNING, "%s: job %s: %s", connection.name, describe(error.job_id), error)
        if (
            error.message_type == "request"
            and error.job_id is not None
            and error.request_id is not None
            and error.request_id not in connection.jobs
        ):
            outcome = ExecutionOutcome.failure(error.job_id, error.request_id, str(error))
            self._send(connection, outcome, "a request")

    def _cancel(self, cancel: CancelRequest) -> None:
        """Cancel one request, or all requests of a job, on any connection."""
        if cancel.protocol_version != PROTOCOL_VERSION:
            return
        if cancel.request_id is None:
            jobs = list(self._waiting.get(cancel.job_id, ()))
        else:
            found = [each.jobs.get(cancel.request_id) for each in self.connections]
            jobs = [job for job in found if job is not None]
        for job in jobs:
            self._overtake(job, cancelled(job))

    # Running

    def _start(self, connection: Connection, job: Job, request: ExecutionRequest) -> None:
        """Run a handler up to its first wait. After 5 ms of this, further jobs are postponed."""
        name = job.function_name
        was_slow = self._is_slow.get(name, True)
        if was_slow:
            # It may block the event loop for long, so send the answers that are ready.
            for each in self.connections:
                each.stream.flush()
        began = monotonic()
        deadline = request.context.deadline  # before the handler can overwrite it
        steps = self._run(connection, job, request, deadline)
        task = self._tasks.start(connection.loop, steps, f"rrq-runner-{job.request_id}")
        if task is not None:
            job.task = task
            self._waiting[job.job_id][job] = None
            if deadline is not None:
                self._deadlines.add(job, deadline.timestamp() - time.time())
        seconds = monotonic() - began
        if (was_slow or seconds > _SHORT_SECONDS) and name in self._is_slow:
            self._is_slow[name] = seconds > _SHORT_SECONDS
        self._spent += seconds
        if self._spent > _ITERATION_SECONDS:
            self._pause(connection.loop)

    def _pause(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._pausing:
            self._pausing = True
            loop.call_soon(self._resume, loop)

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start jobs that were postponed, in a new iteration of the event loop."""
        self._pausing, self._spent = False, 0.0
        try:
            while self._postponed and not self._pausing and not self._is_ending:
                job, request = self._postponed.popleft()
                if job.connection is not None:  # else it was cancelled in the meantime
                    self._start(job.connection, job, request)
        finally:
            if self._postponed and not self._is_ending:
                self._pause(loop)

    async def _run(
        self, connection: Connection, job: Job, request: Any, deadline: datetime | None
    ) -> None:
        """Run the handler of a job, and answer."""
        name = job.function_name
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
                if self._convert is not None:
                    request = self._convert(request)
                if tracking.remember is not None:
                    tracking.remember(request)
                telemetry = rrq.get_telemetry() if HAS_RRQ else None
                if telemetry is None or type(telemetry) is rrq.Telemetry:  # which does nothing
                    result = await handler(request)
                else:
                    span = telemetry.runner_span(request)
                    result = await self._traced(span, job, handler, request)
                if type(result) in RESULTS or not isinstance(result, OUTCOMES):
                    outcome = ExecutionOutcome.success(job.job_id, job.request_id, result)
                else:
                    outcome = returned(result, job)
        except BaseException as error:
            exit_forked_child(error, self._pid)
            outcome = failure(job, error)
            if job.connection is not None:
                self._answer(job, outcome, error)
            elif not is_cancellation(error):
                log_end(connection, job, outcome, error)
            if self._on_error is not None:
                # Not now, because the answer leaves only when this read has been handled.
                arguments = self._on_error, job, outcome, error, request
                connection.loop.call_soon(report, *arguments)
        else:
            self._answer(job, outcome)

    async def _traced(self, span: RunnerSpan, job: Job, handler: AsyncHandler, request: Any) -> Any:
        """Run a handler within a telemetry span, and report to the span how the job ended."""
        start = monotonic()
        failed: BaseException | None = None
        result = None
        with span as entered:
            try:
                result = await handler(request)
            except BaseException as error:
                failed = error
            seconds = monotonic() - start
            report_to_span(entered, request.function_name, seconds, failed, job.overtaken)
        if failed is not None:
            raise failed
        return result

    # Answering

    def _overdue(self, job: Job) -> None:
        self._overtake(job, timeout(job, TIMED_OUT))

    def _overtake(self, job: Job, outcome: ExecutionOutcome) -> None:
        """Answer a job whose handler has not ended, and cancel the handler."""
        job.overtaken = outcome
        self._answer(job, outcome)
        if job.task is None:
            return  # the handler has not begun, and will not
        self._cancelled[job.task] = job
        job.task.add_done_callback(self._cancelled.pop)
        try:
            job.task.cancel()
        except BaseException as error:  # raised by what the handler waits for
            job_id, name = describe(job.job_id), describe(job.function_name)
            log(logging.WARNING, "job %s: %s cannot be cancelled", job_id, name, error=error)

    def _answer(
        self, job: Job, outcome: ExecutionOutcome, error: BaseException | None = None
    ) -> None:
        """Send the answer to a job, unless it has one already, and log it.

        Arguments:
            error: what the handler raised.
        """
        connection = job.connection
        if connection is None:
            return
        job.connection = None
        del connection.jobs[job.request_id]
        if job.job_id in self._waiting:
            same = self._waiting[job.job_id]
            same.pop(job, None)
            if not same:
                del self._waiting[job.job_id]
        sent = self._send(connection, outcome, job.function_name)
        if error is not None or (
            sent is outcome  # else send_instead() has logged why not
            and (sent.status is not OutcomeStatus.SUCCESS or LOGGER.isEnabledFor(logging.DEBUG))
        ):
            log_end(connection, job, outcome, error)

    def _send(
        self, connection: Connection, outcome: ExecutionOutcome, name: str
    ) -> ExecutionOutcome:
        """Send an outcome of the function `name`, and return the outcome that was sent."""
        flush = not connection.jobs
        if not flush:
            now = monotonic()
            if now - connection.flushed > _ANSWER_WAITS_SECONDS:
                connection.flushed, flush = now, True
        try:
            connection.stream.send_nowait(outcome, flush=flush)
        except ConnectionError:
            pass  # the peer has closed the connection
        except BaseException as error:
            return send_instead(connection, outcome, name, error)
        return outcome

    # Ending

    def begin_end(self) -> None:
        """Start no more jobs. A signal handler may call this."""
        self._is_ending = True

    def _hang_up(self, connection: Connection) -> None:
        """Cancel and answer the jobs of a connection, and close it."""
        connection.hung_up = True
        for job in list(connection.jobs.values()):
            self._overtake(job, cancelled(job))
        connection.stream.close()

    async def stop(self, grace: float) -> None:
        """Cancel and answer all jobs, close the connections, and wait for the handlers.

        Arguments:
            grace: seconds that handlers have to end, and peers to read their answers.
        """
        self.begin_end()
        streams = []
        try:
            await let_accepted_connections_arrive()
        finally:  # even if this is cancelled
            for connection in self.connections:
                streams.append(connection.stream)
                self._hang_up(connection)
            self._deadlines.stop()
            self._tasks.stop()
            self._handlers.stop()
        closed = [asyncio.ensure_future(stream.wait_closed()) for stream in streams]
        try:
            if closed or self._cancelled:
                await asyncio.wait({*closed, *self._cancelled}, timeout=grace)
        finally:
            for stream in streams:
                stream.abort()
        for job in self._cancelled.values():
            job_id, name = describe(job.job_id), describe(job.function_name)
            log(logging.WARNING, "job %s: %s keeps running after its cancellation", job_id, name)
