"""The orchestrator's side of a connection: runs jobs of any runner, many at a time."""

from __future__ import annotations

import asyncio
import logging
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
from .streams import open_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from . import RunnerMessage
    from .streams import MessageStream

__all__ = ["RunnerClient"]

_logger = logging.getLogger(__name__)

# A runner answers by itself when a deadline has passed. What it has for that, in seconds, before
# the client gives it up.
_ANSWER_SECONDS = 1.0


class RunnerClient:
    """Runs jobs over one connection to a runner, and matches the answers by request_id.

    Usage:
        async with await RunnerClient.connect("127.0.0.1", 9000) as client:
            outcome = await client.execute("send_email", {"to": "someone@example.com"})

    Arguments:
        stream: a connection to a runner, which belongs to the client from now on.

    Attributes:
        stream: the connection.
        unmatched: answers so far without a waiting request; they are dropped.
    """

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream
        self.unmatched = 0
        self._waiting: dict[str, asyncio.Future[ExecutionOutcome]] = {}
        self._lost: Exception | None = None  # why there will be no more answers
        self._receiver = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Connects over TCP. Raises OSError."""
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
        """Runs one job and returns its outcome, whatever that is. If cancelled, cancels the job.

        Arguments:
            timeout: seconds until the deadline that the request carries, at which a runner answers
                that the job has timed out; None sets no deadline.
            job_id, request_id: random ones where they are None.
            attempt, queue_name, trace_context, correlation_context, worker_id: for the context.

        Raises
          - TimeoutError if the runner has not answered a second after the deadline; the job is
            cancelled;
          - EncodeError if the request cannot be sent;
          - MessageError if the answer is not a valid outcome;
          - ConnectionError or FrameError if the connection is lost;
          - ValueError if a request of the same request_id is in flight.
        """
        now = datetime.now(timezone.utc)
        job_id = job_id or str(uuid.uuid4())
        request_id = request_id or str(uuid.uuid4())
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
                deadline=None if timeout is None else now + timedelta(seconds=timeout),
                trace_context=trace_context,
                correlation_context=correlation_context,
                worker_id=worker_id,
            ),
        )
        async with asyncio.timeout(None if timeout is None else timeout + _ANSWER_SECONDS):
            if self._lost is not None:
                raise self._lost.with_traceback(None)
            await self.stream.drain()
            if request_id in self._waiting:
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
        """Cancels one request, or, without `request_id`, all that the runner has of a job.

        What is in flight is still answered: with an outcome of type cancelled, as a rule.

        Raises ConnectionError if the connection is closed or lost.
        """
        await self.stream.send(CancelRequest(job_id=job_id, request_id=request_id))

    async def close(self) -> None:
        """Closes the connection. What is in flight fails with ConnectionError."""
        self.stream.close()
        await self.stream.wait_closed()
        await self._receiver

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _receive(self) -> None:
        """Hands the answers to those who wait, up to the end of the connection."""
        lost: Exception = ConnectionResetError("the runner has closed the connection")
        try:
            while True:
                try:
                    # Not deliver(), which holds answers back while requests cannot be sent: the
                    # runner may take no requests before its answers are taken.
                    async for message in self.stream:
                        self._answered(message)
                    break
                except MessageError as error:
                    answer = self._take(error.request_id)
                    if answer is not None:
                        answer.set_exception(error)
        except (FrameError, ConnectionError) as error:
            lost = error
        self._lost = lost
        self.stream.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(lost)

    def _answered(self, message: RunnerMessage) -> None:
        if isinstance(message, ExecutionOutcome):
            answer = self._take(message.request_id)
            if answer is not None:
                answer.set_result(message)
        else:
            self.unmatched += 1

    def _take(self, request_id: str | None) -> asyncio.Future[ExecutionOutcome] | None:
        """The future that waits for an answer; None, and counted, if there is none."""
        answer = None if request_id is None else self._waiting.get(request_id)
        if answer is None or answer.done():
            self.unmatched += 1
            return None
        return answer
