"""Speak the protocol with the runner under test, and check its answers.

The orchestrator must accept each answer, and each answer may come only once.
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone

from ... import (
    FRAME_HEADER_LEN,
    MAX_FRAME_SIZE,
    ExecutionOutcome,
    MessageError,
    OutcomeStatus,
    decode_payload,
    pack_frame,
)
from ..call import failure
from ..target import Target, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Any

# How many seconds a job runs: one that is not meant to end by itself, and one that is.
LONG = 60.0
SHORT = 0.3

# How many seconds a check waits for an answer that should not come.
_SILENCE = 0.5


class ViolationError(Exception):
    """The runner broke a rule. The text says what it did."""


class Request:
    """A request as the orchestrator writes it, unless a check changes it before it is sent.

    Attributes:
        context, fields: the fields of the context and of the request.
        raw: the payload to send instead of one made of the fields, or None.
    """

    raw: bytes | None = None

    def __init__(
        self,
        function_name: str,
        params: dict[str, Any] | None = None,
        *,
        seconds: float = LONG,
        job_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.job_id = job_id or str(uuid.uuid4())
        self.request_id = request_id or str(uuid.uuid4())
        now = datetime.now(timezone.utc)
        self.context: dict[str, Any] = {
            "job_id": self.job_id,
            "attempt": 1,
            "enqueue_time": _written(now),
            "queue_name": "rrq:queue:default",
            "deadline": _written(now + timedelta(seconds=seconds)),
            "trace_context": None,
            "correlation_context": None,
            "worker_id": "rrq-fastwire-check",
        }
        self.fields: dict[str, Any] = {
            "protocol_version": "2",
            "request_id": self.request_id,
            "job_id": self.job_id,
            "function_name": function_name,
            "params": {} if params is None else params,
            "context": self.context,
        }

    def payload(self) -> bytes:
        return self.raw or compact({"type": "request", "payload": self.fields})


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z"


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def cancel(job_id: str, request_id: str | None = None, *, version: str = "2") -> bytes:
    """Return the payload of a cancel."""
    fields: dict[str, Any] = {"protocol_version": version, "job_id": job_id, "hard_kill": False}
    if request_id is not None:
        fields["request_id"] = request_id
    return compact({"type": "cancel", "payload": fields})


class Peer:
    """A connection to the runner that examines each frame it receives."""

    def __init__(
        self, runner: Runner, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._runner = runner
        self._reader = reader
        self.writer = writer
        self._unanswered: dict[str, str] = {}  # the job ids of unanswered requests, by request id

    def expect(self, request: Request) -> None:
        """Allow one answer to a request that is sent with write()."""
        self._unanswered[request.request_id] = request.job_id

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, *messages: Request | bytes) -> None:
        """Send requests, and payloads of other messages, in one write."""
        for message in messages:
            if isinstance(message, Request):
                self.expect(message)
        await self.write(
            b"".join(
                pack_frame(message.payload() if isinstance(message, Request) else message)
                for message in messages
            )
        )

    async def start(self, *requests: Request) -> None:
        """Send requests, and wait until the runner has read them."""
        await self.send(*requests)
        await self.expect_echo()

    async def answer(self) -> ExecutionOutcome:
        """Return the next answer. Raises ViolationError if it breaks a rule."""
        self._runner.waits_for = "answer"
        length = int.from_bytes(await self._reader.readexactly(FRAME_HEADER_LEN))
        if not 0 < length <= MAX_FRAME_SIZE:
            raise ViolationError(
                f"an answer of {length:,} bytes; the orchestrator accepts 1 byte to 16 MiB"
            )
        payload = await self._reader.readexactly(length)
        try:
            outcome = decode_payload(payload)
        except MessageError as error:
            raise ViolationError(
                f"an answer that the orchestrator does not accept: {error}"
            ) from None
        if not isinstance(outcome, ExecutionOutcome):
            raise ViolationError("a message that is not an answer")
        job_id = self._unanswered.pop(outcome.request_id or "", None)
        if job_id is None:
            raise ViolationError(
                f"a second answer, or an answer to an unknown request: {summary(outcome)}"
            )
        if outcome.job_id != job_id:
            raise ViolationError(f"an answer with the job_id {outcome.job_id!r}, not {job_id!r}")
        return outcome

    async def answers(self, count: int) -> dict[str | None, ExecutionOutcome]:
        """Return the next `count` answers by request_id, in their order."""
        outcomes = [await self.answer() for _ in range(count)]
        return {outcome.request_id: outcome for outcome in outcomes}

    async def ask(self, request: Request) -> ExecutionOutcome:
        """Send a request, and return its answer."""
        await self.send(request)
        outcome = await self.answer()
        if request.raw is None and outcome.request_id != request.request_id:
            raise ViolationError(f"an earlier request was answered first: {summary(outcome)}")
        return outcome

    async def expect_end(self) -> None:
        """Wait until the runner closes the connection, and check that it sends nothing before."""
        self._runner.waits_for = "end of the connection"
        try:
            rest = await self._reader.read(100)
        except ConnectionError:
            return
        if rest:
            raise ViolationError(f"bytes instead of the end of the connection: {rest!r}")

    async def expect_silence(self) -> None:
        """Check that no further answer comes, and that the connection still works.

        Call this only when every request has been answered.
        """
        try:
            async with asyncio.timeout(_SILENCE):
                await self.answer()  # raises ViolationError for any answer
        except TimeoutError:
            await self.expect_echo()

    async def expect_echo(self) -> None:
        """Check that a job on this connection still succeeds."""
        expect_success(await self.ask(Request("echo", {"still": "alive"})), {"still": "alive"})


class Runner:
    """The runner under test, and the connections of one check to it.

    Attributes:
        waits_for: what the check waits for, in the words of the message if it does not come.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._peers: list[Peer] = []
        self.waits_for = "connection"

    async def connect(self) -> Peer:
        self.waits_for = "connection"
        try:
            reader, writer = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError as error:
            raise ViolationError(f"cannot connect: {reason(error)}") from None
        self.waits_for = "answer"
        peer = Peer(self, reader, writer)
        self._peers.append(peer)
        return peer

    @asynccontextmanager
    async def bystander(self) -> AsyncGenerator[None]:
        """Run a job on another connection, and check that the `with` block does not disturb it."""
        peer = await self.connect()
        await peer.start(Request("sleep", {"seconds": SHORT}))
        yield
        try:
            expect_success(await peer.answer())
        except (EOFError, ConnectionError):
            raise ViolationError("another connection was closed, too") from None

    async def send_and_leave(self, payload: bytes) -> None:
        """Send one frame on a connection of its own, as the orchestrator sends cancels."""
        peer = await self.connect()
        await peer.send(payload)
        peer.writer.close()

    def close(self) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()

    async def ended(self) -> str | None:
        """Return how a process that was started here has ended, or None if it still runs."""
        process = self._target.process
        return None if process is None else await process.ended()


def summary(outcome: ExecutionOutcome) -> str:
    """Return an outcome as one line."""
    if outcome.status is OutcomeStatus.SUCCESS:
        return f"success: {json.dumps(outcome.result, ensure_ascii=False)}"
    return failure(outcome)


def expect_status(
    outcome: ExecutionOutcome, status: OutcomeStatus, error_type: str | None = None
) -> str:
    """Check an outcome's status, and the type of its error if one is given."""
    kind = outcome.error.type if outcome.error is not None else None
    if outcome.status is not status or error_type not in (None, kind):
        raise ViolationError(summary(outcome))
    return summary(outcome)


def expect_success(outcome: ExecutionOutcome, *result: Any) -> None:
    """Check that an outcome is a success, and that it has the result, if one is given."""
    expect_status(outcome, OutcomeStatus.SUCCESS)
    if result and not same(outcome.result, result[0]):
        raise ViolationError(difference(outcome.result, result[0]))


def same(value: Any, expected: Any) -> bool:
    """Return whether two JSON values are equal. Doubles may differ by two units in the last place.

    RRQ's own reader rounds that much.
    """
    if isinstance(expected, float) and type(value) in (int, float):
        return bool(abs(value - expected) <= 2 * math.ulp(expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            same(value[key], expected[key]) for key in value
        )
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    return type(value) is type(expected) and bool(value == expected)


def difference(value: Any, expected: Any) -> str:
    """Return how a result differs from the expected one: in its first member, if it has members."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key, item in expected.items():
            if key not in value:
                return f"{key!r} is missing"
            if not same(value[key], item):
                return f"{item!r} came back as {value[key]!r}"
    return f"{expected!r} came back as {value!r}"
