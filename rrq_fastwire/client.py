"""The orchestrator's side of a connection: send jobs to any runner, many at a time."""

from __future__ import annotations

import asyncio
import copy
import uuid
from datetime import datetime, timedelta, timezone

from . import (
    CancelRequest,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    FrameError,
    MessageError,
)
from .errors import type_name
from .streams import MessageStream, open_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from . import RunnerMessage

__all__ = ["RunnerClient"]

# How long the client waits for the answer after a deadline, at which a runner answers by itself.
_ANSWER_SECONDS = 1.0

# How long a runner that does not read can delay the end of a connection.
_CLOSE_SECONDS = 1.0


class RunnerClient:
    """Send jobs over one connection to a runner, and match the answers by request_id.

    Usage:
        async with await RunnerClient.connect("127.0.0.1", 9000) as client:
            outcome = await client.execute("send_email", {"to": "someone@example.com"})

    Arguments:
        stream: a connection to a runner. The client closes it.

    Attributes:
        stream: the connection.
        unmatched: the number of messages so far that answer no waiting request; they are dropped.
    """

    def __init__(self, stream: MessageStream) -> None:
        if not isinstance(stream, MessageStream):
            raise TypeError(f"stream must be a MessageStream, got {type_name(stream)}")
        self.stream = stream
        self.unmatched = 0
        self._waiting: dict[str, asyncio.Future[ExecutionOutcome]] = {}
        self._lost: Exception | None = None  # why there will be no more answers
        self._receiver = asyncio.get_running_loop().create_task(self._receive())
        # A callback, because a task that is cancelled before it starts does not run at all.
        self._receiver.add_done_callback(self._end)

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Connect over TCP. Raises OSError."""
        return cls(await open_connection(host, port))

    async def execute(
        self,
        function_name: str,
        params: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        job_id: str | None = None,
        request_id: str | None = None,
        attempt: int = 1,
        queue_name: str = "rrq:queue:default",
        trace_context: dict[str, str] | None = None,
        correlation_context: dict[str, str] | None = None,
        worker_id: str | None = None,
    ) -> ExecutionOutcome:
        """Run one job and return its outcome, of whatever type.

        If this call is cancelled, the job is cancelled, too.

        Arguments:
            function_name: the handler to call.
            params: the arguments of the job, any JSON values.
            timeout: seconds until the deadline of the request, at which a runner answers that the
                job has timed out; None sets no deadline.
            job_id, request_id: the ids; None chooses a random one. If a request is cancelled, its
                late answer goes to the next request with the same `request_id`.
            attempt, queue_name, trace_context, correlation_context, worker_id: for the context.

        Raises:
            TimeoutError: the runner has not answered a second after the deadline. The job is
                cancelled.
            EncodeError: the request cannot be sent.
            MessageError: the answer is not a valid outcome.
            ConnectionError: the connection is closed or lost, or the client itself has failed; then
                `__cause__` is the reason.
            FrameError: the runner has broken the stream of frames.
            ValueError: a request with this `request_id` is in flight, or `timeout` is not a
                possible number of seconds.
            TypeError: `timeout` is not a number.
            RuntimeError: the client belongs to another event loop.
        """
        now = datetime.now(timezone.utc)
        deadline = None if timeout is None else _deadline(now, timeout)
        job_id = str(uuid.uuid4()) if job_id is None else job_id
        if request_id is None:
            request_id = str(uuid.uuid4())
        elif issubclass(type(request_id), str):
            # A subclass's own __hash__() or __eq__() would not find the answer.
            request_id = str.__str__(request_id)
        request = ExecutionRequest(
            request_id=request_id,
            job_id=job_id,
            function_name=function_name,
            params=params if params is not None else {},
            context=ExecutionContext(
                job_id=job_id,
                attempt=attempt,
                enqueue_time=now,
                queue_name=queue_name,
                deadline=deadline,
                trace_context=trace_context,
                correlation_context=correlation_context,
                worker_id=worker_id,
            ),
        )
        async with asyncio.timeout(None if timeout is None else timeout + _ANSWER_SECONDS):
            if self._lost is not None:
                raise _copy(self._lost)
            await self.stream.drain()
            # send_nowait() refuses a request_id of another type.
            if type(request_id) is str and request_id in self._waiting:
                raise ValueError(f"a request with the id {request_id!r} is in flight already")
            self.stream.send_nowait(request)
            answer: asyncio.Future[ExecutionOutcome] = asyncio.get_running_loop().create_future()
            self._waiting[request_id] = answer
            try:
                return await answer
            except asyncio.CancelledError:
                if not self.stream.is_closing():
                    self.stream.send_nowait(CancelRequest(job_id=job_id, request_id=request_id))
                raise
            finally:
                del self._waiting[request_id]

    async def cancel(self, job_id: str, request_id: str | None = None) -> None:
        """Cancel one request or, without `request_id`, all requests of a job in the runner.

        The runner still answers these requests, usually with an outcome of type cancelled.

        Raises ConnectionError if the connection is closed or lost, and RuntimeError if the client
        belongs to another event loop.
        """
        await self.stream.send(CancelRequest(job_id=job_id, request_id=request_id))

    async def close(self) -> None:
        """Close the connection. Requests in flight fail with ConnectionError.

        What the runner has not read after a second, or when this call is cancelled, is lost.

        Raises RuntimeError if the client belongs to another event loop.
        """
        self.stream.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.stream.wait_closed()
        except TimeoutError:
            self.stream.abort()
            await self.stream.wait_closed()
        except asyncio.CancelledError:
            self.stream.abort()
            raise
        await asyncio.gather(self._receiver, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _receive(self) -> None:
        """Pass the answers to the waiting calls of execute(), until the connection ends."""
        while True:
            try:
                # Not deliver(), which holds answers back while requests cannot be sent. A runner
                # may read no more requests until its answers are read.
                async for message in self.stream:
                    self._handle(message)
                return
            except MessageError as error:
                answer = self._find_waiting(error.request_id)
                if answer is not None:
                    answer.set_exception(error)

    def _end(self, receiver: asyncio.Task[None]) -> None:
        """Fail the calls of execute() that wait for an answer, because there will be none."""
        error = asyncio.CancelledError() if receiver.cancelled() else receiver.exception()
        lost: Exception
        if error is None:
            lost = ConnectionResetError("the runner has closed the connection")
        elif isinstance(error, (FrameError, ConnectionError)):
            lost = error
        else:  # a MemoryError, a bug, or a program that cancels all its tasks
            lost = ConnectionAbortedError(f"the client has stopped receiving: {error!r}")
            lost.__cause__ = error
        self._lost = lost
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_copy(lost))
        self.stream.close()

    def _handle(self, message: RunnerMessage) -> None:
        """Pass an answer to the call of execute() that waits for it. Count other messages."""
        if isinstance(message, ExecutionOutcome):
            answer = self._find_waiting(message.request_id)
            if answer is not None:
                answer.set_result(message)
        else:
            self.unmatched += 1

    def _find_waiting(self, request_id: str | None) -> asyncio.Future[ExecutionOutcome] | None:
        """Return the future that waits for an answer. If there is none, count it as unmatched."""
        answer = None if request_id is None else self._waiting.get(request_id)
        if answer is None or answer.done():
            self.unmatched += 1
            return None
        return answer


def _copy(error: Exception) -> Exception:
    """Return an exception for one caller, because raising one adds to its traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _deadline(now: datetime, timeout: float) -> datetime:
    """Raises TypeError and ValueError."""
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds, got {type_name(timeout)}")
    try:
        return now + timedelta(seconds=timeout)
    except ValueError:
        raise ValueError(f"timeout must be a number of seconds, got {timeout}") from None
    except OverflowError:
        raise ValueError(f"timeout must end in the years 1 to 9999, got {timeout} s") from None
