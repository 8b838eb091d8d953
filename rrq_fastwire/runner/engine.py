"""The engine: connections, their requests, the handlers that run, and the deadlines.

A request becomes a task, and gets one answer. Whatever a handler returns, raises or makes of its
cancellation, the answer is one that the orchestrator accepts, and the other jobs go on.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import logging
import time
import types
from collections import deque
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from operator import attrgetter

from .. import (
    PROTOCOL_VERSION,
    CancelRequest,
    EncodeError,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    FrameError,
    MessageError,
    OutcomeStatus,
    _json,
)
from ..errors import describe
from .outcomes import (
    OUTCOMES,
    RESULTS,
    TIMED_OUT,
    cancelled,
    failure,
    report_to_span,
    returned,
    text_of,
    timeout,
)
from .stock import HAS_RRQ, rrq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context
    from typing import Any, TypeAlias

    from rrq.registry import Registry
    from rrq.telemetry import RunnerSpan

    from .. import RunnerMessage
    from ..streams import MessageStream

    Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
    Handlers: TypeAlias = Mapping[str, Handler] | Registry

__all__ = ["Runner"]

_logger = logging.getLogger(__package__)

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


class Job:
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
        self.jobs: dict[str, Job] = {}
        peer = stream.transport.get_extra_info("peername")
        self.name = "{}:{}".format(*peer) if isinstance(peer, tuple) else "Unix socket"


class _Deadlines:
    """One timer for the deadlines of all jobs.

    Arguments:
        passed: called with each job that is not answered by its deadline.
    """

    def __init__(self, passed: Callable[[Job], None]) -> None:
        self._passed = passed
        self._heap: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # Jobs that were answered in time stay in the heap, until it is as long as this.
        self._crowded = 256

    def add(self, job: Job, seconds: float) -> None:
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
        self._convert = None if native_messages else rrq.stock_request
        self._max_in_flight = max_in_flight
        self._connections: set[_Connection] = set()
        self._queue: deque[Job] = deque()  # jobs that no task has begun
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
            jobs[request_id] = job = Job(connection, message)
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
                self._overtake(job, cancelled(job))

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

    async def _run(self, job: Job, connection: _Connection, request: ExecutionRequest) -> None:
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
                span = rrq.span(given) if HAS_RRQ else None
                if span is None:
                    result = await handler(given)
                else:
                    result = await self._traced(span, job, handler, given)
                if type(result) in RESULTS or not isinstance(result, OUTCOMES):
                    outcome = ExecutionOutcome.success(job.job_id, job.request_id, result)
                else:
                    outcome = returned(result, job)
        except BaseException as error:
            outcome = failure(job, error)
            _logger.debug(
                "%s: job %s: %s raised",
                connection.name,
                job.job_id,
                describe(name),
                exc_info=error,
            )
        self._answer(job, outcome)

    def _watch_deadline(self, job: Job) -> None:
        if job.deadline is not None:
            self._deadlines.add(job, job.deadline.timestamp() - time.time())

    async def _traced(self, span: RunnerSpan, job: Job, handler: Handler, request: Any) -> Any:
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
            report_to_span(entered, request.function_name, seconds, failed, job.overtaken)
        if failed is not None:
            raise failed
        return result

    # Answering

    def _overdue(self, job: Job) -> None:
        self._overtake(job, timeout(job, TIMED_OUT))

    def _overtake(self, job: Job, outcome: ExecutionOutcome) -> None:
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

    def _answer(self, job: Job, outcome: ExecutionOutcome) -> None:
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
        if HAS_RRQ and encoding:
            try:
                rrq.as_stock_writes(outcome)
                send(outcome)
                return outcome.status
            except BaseException as error:
                reason = error
        subject = "result" if outcome.error is None else "error"
        text = f"{subject} of {describe(name)} cannot be sent: {text_of(reason, name)}"
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
            self._overtake(job, cancelled(job))
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
