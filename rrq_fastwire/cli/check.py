"""`check`: whether a runner, in whatever language, keeps to the protocol.

Each check speaks to the runner in frames of its own over connections of its own, within a time
limit. Every answer is held against what the orchestrator accepts, and may come once.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import sys
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Table
from rich.text import Text

from .. import (
    FRAME_HEADER_LEN,
    MAX_FRAME_SIZE,
    ExecutionOutcome,
    MessageError,
    OutcomeStatus,
    decode_frame,
    pack_frame,
)
from .call import failure
from .driving import RunnerError
from .progress import progress_bar
from .showing import printable
from .target import Number, Target, reached, reason, run, runner_option, split_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from typing import Any, BinaryIO, TypeAlias

    Run: TypeAlias = "Callable[[Runner], Awaitable[str | None]]"

_IN_FLIGHT = 64

# Seconds of a job that is not meant to end by itself, and of one that is; and how long is listened
# for an answer that should not come.
_LONG = 60.0
_SHORT = 0.3
_QUIET = 0.5

_SEEN_LENGTH = 200

# Of what the runner prints during one check, the last lines are shown, and of the last bytes.
_PRINTED_LINES = 20
_PRINTED_BYTES = 16 * 1024

# Columns of the table where there is no terminal to give their number.
_PIPE_WIDTH = 160


class WrongError(Exception):
    """What a runner did instead of what was expected."""


class Check(NamedTuple):
    """One thing that a runner does right or not.

    Attributes:
        is_open: whether the protocol leaves it open. What differs is then found, and no failure.
    """

    name: str
    expected: str
    is_open: bool
    run: Run


class Verdict(NamedTuple):
    """What became of a check: "pass", "FAIL" or "found".

    Attributes:
        printed: the last lines that the runner printed meanwhile, if it was started here.
    """

    check: Check
    verdict: str
    seen: str
    printed: Sequence[str] = ()


CHECKS: list[Check] = []


def check(name: str, expected: str, *, is_open: bool = False) -> Callable[[Run], Run]:
    """Adds a function to the checks. It returns what it saw, or None for what was expected."""

    def add(run: Run) -> Run:
        CHECKS.append(Check(name, expected, is_open, run))
        return run

    return add


# Speaking the protocol


class Request:
    """A request as the orchestrator writes it, unless it is changed before it is sent.

    Attributes:
        context, fields: what it is made of.
        raw: the bytes of its payload, if they are not to be made of the fields.
    """

    raw: bytes | None = None

    def __init__(
        self,
        function_name: str,
        params: dict[str, Any] | None = None,
        *,
        seconds: float = _LONG,
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
    """The payload of a cancel."""
    fields: dict[str, Any] = {"protocol_version": version, "job_id": job_id, "hard_kill": False}
    if request_id is not None:
        fields["request_id"] = request_id
    return compact({"type": "cancel", "payload": fields})


class Peer:
    """A connection to the runner. What comes over it is looked at, frame by frame."""

    def __init__(
        self, runner: Runner, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._runner = runner
        self._reader = reader
        self.writer = writer
        self._asked: dict[str, str] = {}  # job ids of what is not answered, by request id

    def expect(self, request: Request) -> None:
        self._asked[request.request_id] = request.job_id

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, *messages: Request | bytes) -> None:
        """Sends requests, and payloads of anything else, in one write."""
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
        """Sends requests, and sees to it that the runner has taken them."""
        await self.send(*requests)
        await self.works()

    async def answer(self) -> ExecutionOutcome:
        """The next answer. Raises WrongError for one that should not have come like this."""
        self._runner.waits_for = "answer"
        length = int.from_bytes(await self._reader.readexactly(FRAME_HEADER_LEN))
        if not 0 < length <= MAX_FRAME_SIZE:
            raise WrongError(f"an answer of {length:,} bytes, at which the orchestrator hangs up")
        payload = await self._reader.readexactly(length)
        try:
            outcome = decode_frame(pack_frame(payload))
        except MessageError as error:
            raise WrongError(f"an answer that the orchestrator does not accept: {error}") from None
        if not isinstance(outcome, ExecutionOutcome):
            raise WrongError("a message that is no answer")
        job_id = self._asked.pop(outcome.request_id or "", None)
        if job_id is None:
            raise WrongError(f"a second answer, or one to no request: {summary(outcome)}")
        if outcome.job_id != job_id:
            raise WrongError(f"an answer with the job_id {outcome.job_id!r}, not {job_id!r}")
        return outcome

    async def answers(self, count: int) -> dict[str | None, ExecutionOutcome]:
        """The next answers, by request_id."""
        outcomes = [await self.answer() for _ in range(count)]
        return {outcome.request_id: outcome for outcome in outcomes}

    async def ask(self, request: Request) -> ExecutionOutcome:
        await self.send(request)
        outcome = await self.answer()
        if request.raw is None and outcome.request_id != request.request_id:
            raise WrongError(f"an answer to an earlier request came late: {summary(outcome)}")
        return outcome

    async def is_closed(self) -> None:
        """Waits until the runner has closed the connection, without a word."""
        self._runner.waits_for = "end of the connection"
        try:
            rest = await self._reader.read(100)
        except ConnectionError:
            return
        if rest:
            raise WrongError(f"bytes instead of the end of the connection: {rest!r}")

    async def is_quiet(self) -> None:
        """Makes sure that nothing more comes, and that the connection lives on."""
        try:
            async with asyncio.timeout(_QUIET):
                outcome = await self.answer()
        except TimeoutError:
            await self.works()
        else:
            raise WrongError(f"an answer too many: {summary(outcome)}")

    async def works(self) -> None:
        """Makes sure that a job is run over this connection."""
        succeeded(await self.ask(Request("echo", {"still": "alive"})), {"still": "alive"})


class Runner:
    """The runner, for the length of one check.

    Attributes:
        waits_for: what is waited for, for the case that it does not come.
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
            raise WrongError(f"cannot connect: {reason(error)}") from None
        peer = Peer(self, reader, writer)
        self._peers.append(peer)
        return peer

    @asynccontextmanager
    async def bystander(self) -> AsyncGenerator[None]:
        """A job on a connection of its own, which what goes on meanwhile must not disturb."""
        peer = await self.connect()
        await peer.start(Request("sleep", {"seconds": _SHORT}))
        yield
        try:
            succeeded(await peer.answer())
        except (EOFError, ConnectionError):
            raise WrongError("a connection beside it was closed, too") from None

    async def send_and_leave(self, payload: bytes) -> None:
        """One frame on a connection of its own, as the orchestrator sends its cancels."""
        peer = await self.connect()
        await peer.send(payload)
        peer.writer.close()

    def close(self) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()

    async def ended(self) -> str | None:
        """How the process has ended, where it was started here; None if it goes on."""
        process = self._target.process
        return None if process is None else await process.ended()


def summary(outcome: ExecutionOutcome) -> str:
    """An outcome, on one line."""
    if outcome.status is OutcomeStatus.SUCCESS:
        return f"success: {json.dumps(outcome.result, ensure_ascii=False)}"
    return failure(outcome)


def has_status(
    outcome: ExecutionOutcome, status: OutcomeStatus, error_type: str | None = None
) -> str:
    """Makes sure of an outcome's status, and of the type of its error if one is given."""
    kind = outcome.error.type if outcome.error is not None else None
    if outcome.status is not status or error_type not in (None, kind):
        raise WrongError(summary(outcome))
    return summary(outcome)


def succeeded(outcome: ExecutionOutcome, *result: Any) -> None:
    """Makes sure of a success, and of its result if one is given."""
    has_status(outcome, OutcomeStatus.SUCCESS)
    if result and not same(outcome.result, result[0]):
        raise WrongError(difference(outcome.result, result[0]))


def same(value: Any, expected: Any) -> bool:
    """Whether two JSON values are equal: doubles to the last two units, as the orchestrator's."""
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
    """The first member that differs, where there are members."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key, item in expected.items():
            if key not in value:
                return f"{key!r} is missing"
            if not same(value[key], item):
                return f"{item!r} came back as {value[key]!r}"
    return f"{expected!r} came back as {value!r}"


# The checks: the four handlers


@check("echo", "success, with the params")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    params = {"text": "hello", "number": 1, "nothing": None, "list": [True, False, {}]}
    succeeded(await peer.ask(Request("echo", params)), params)


@check("fail", "status error, with a message, and no type that means something else")
async def _(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("fail"))
    seen = has_status(outcome, OutcomeStatus.ERROR)
    if outcome.error is None or outcome.error.type in ("handler_not_found", "cancelled"):
        raise WrongError(seen)
    return seen


@check("retry", "status retry")
async def _(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("retry"))
    return has_status(outcome, OutcomeStatus.RETRY)


@check("unknown function", "status error, type handler_not_found")
async def _(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request(f"no-such-{uuid.uuid4()}"))
    return has_status(outcome, OutcomeStatus.ERROR, "handler_not_found")


# How requests are written


@check("fields left out", "taken as their defaults")
async def _(runner: Runner) -> None:
    request = Request("echo")
    del request.fields["protocol_version"], request.fields["params"]
    for name in ("deadline", "trace_context", "correlation_context", "worker_id"):
        del request.context[name]
    succeeded(await (await runner.connect()).ask(request), {})


@check("unknown fields", "ignored at every level")
async def _(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    unknown = {"new_in_version_3": {"type": "cancel"}}
    request.fields |= unknown
    request.context |= unknown
    envelope = {"type": "request", "payload": request.fields, **unknown}
    await _echoes_raw(runner, request, compact(envelope))


@check("type after payload", "understood")
async def _(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    await _echoes_raw(runner, request, compact({"payload": request.fields, "type": "request"}))


@check("keys in another order", "understood")
async def _(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    request.fields = dict(reversed(request.fields.items()))
    await _echoes_raw(runner, request, request.payload())


@check("spaces and escapes", "understood, in keys as well")
async def _(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    text = json.dumps({"type": "request", "payload": request.fields}, indent="\t")
    text = text.replace('"type"', '"\\u0074ype"').replace('"params"', '"par\\u0061ms"')
    await _echoes_raw(runner, request, f"\r\n {text} \n".encode())


async def _echoes_raw(runner: Runner, request: Request, payload: bytes) -> None:
    request.raw = payload
    succeeded(await (await runner.connect()).ask(request), {"a": 1})


@check("dates", "understood with 0, 3, 6 and 9 digits of a second")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    for fraction in ("", ".123", ".123456", ".123456789"):
        request = Request("echo")
        request.context["enqueue_time"] = f"2026-01-01T00:00:00{fraction}Z"
        request.context["deadline"] = f"2099-12-31T23:59:59{fraction}Z"
        succeeded(await peer.ask(request), {})


@check("ids of any text", "given back as they are")
async def _(runner: Runner) -> None:
    for text in ('"\\/\b\n', "Größe 量 😀", "\u2028", "x" * 10_000):
        request = Request("echo", job_id=f"job {text}", request_id=f"request {text}")
        succeeded(await (await runner.connect()).ask(request), {})


@check("other protocol version", "answered with status error; the connection lives on")
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    request = Request("echo")
    request.fields["protocol_version"] = "99"
    seen = has_status(await peer.ask(request), OutcomeStatus.ERROR)
    await peer.works()
    return seen


@check("cancel of another version", "ignored")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("sleep", {"seconds": _SHORT})
    await peer.send(request, cancel(request.job_id, request.request_id, version="99"))
    succeeded(await peer.answer())


# Values

_TEXTS = {
    "escapes": '"\\/\b\f\n\r\t\x00\x1f\x7f',
    "latin": "Größe ÅÆÉ",
    "right to left": "שלום مرحبا",
    "combining": "e\u0301 n\u0303",
    "CJK": "量子コンピュータ",
    "astral": "😀 \U0001d4b3 \U0010ffff",
    "joined": "👩\u200d👩\u200d👧",
    "line separators": "a\u2028b\u2029c\x85d",
    "byte order mark": "\ufeffx\uffff",
    "😀": "a key of its own",
    "": "an empty key",
}


@check("odd unicode", "echoed, written as it is or in escapes")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    succeeded(await peer.ask(Request("echo", _TEXTS)), _TEXTS)
    request = Request("echo", _TEXTS)
    request.raw = json.dumps({"type": "request", "payload": request.fields}).encode()
    succeeded(await peer.ask(request), _TEXTS)


_NUMBERS = {
    "integers": [0, -1, 2**31, -(2**31) - 1, 2**53 - 1, -(2**53) + 1],
    "fractions": [0.1, -0.5, 1e-7, 3.141592653589793, 123456789.12345679],
    "limits": [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308],
    "large": [1.5e16, 1e21, -1e300],
}


@check("big and small numbers", "echoed, within two units of a double's last digit")
async def _(runner: Runner) -> None:
    succeeded(await (await runner.connect()).ask(Request("echo", _NUMBERS)), _NUMBERS)


@check("integers of 64 bits", "echoed exactly", is_open=True)
async def _(runner: Runner) -> None:
    params = {"integers": [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]}
    succeeded(await (await runner.connect()).ask(Request("echo", params)), params)


@check("nested params", "echoed, 125 levels deep")
async def _(runner: Runner) -> None:
    params: dict[str, Any] = {}
    for _ in range(62):
        params = {"in": [params]}
    succeeded(await (await runner.connect()).ask(Request("echo", params)), params)


# Frames


@check("frame in many pieces", "put together")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("echo", {"a": 1})
    frame = pack_frame(request.payload())
    for at in range(len(frame) - 1):
        await peer.write(frame[at : at + 1])
        await asyncio.sleep(0)
    peer.expect(request)
    await peer.write(frame[-1:])
    succeeded(await peer.answer(), {"a": 1})


@check("many frames in one write", "one answer each")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    for _ in range(3):
        await peer.send(*(Request("echo", {"number": number}) for number in range(_IN_FLIGHT)))
        for _ in range(_IN_FLIGHT):
            succeeded(await peer.answer())
    await peer.is_quiet()


@check("request of 16 MiB", "accepted")
async def _(runner: Runner) -> None:
    request = Request("sleep", {"seconds": 0, "padding": ""})
    request.fields["params"]["padding"] = "x" * (MAX_FRAME_SIZE - len(request.payload()))
    succeeded(await (await runner.connect()).ask(request))


@check("answer near 16 MiB", "sent as a frame of 16 MiB at the most, or as an error")
async def _(runner: Runner) -> str | None:
    # As escapes, these would be three times as long.
    params = {"text": "é" * (4 * 1024 * 1024)}
    outcome = await (await runner.connect()).ask(Request("echo", params))
    if outcome.status is OutcomeStatus.ERROR:
        return summary(outcome)
    succeeded(outcome)
    if outcome.result != params:
        raise WrongError("success, with another result")
    return None


@check("frame of 16 MiB + 1", "closes its connection at the header, and no other")
async def _(runner: Runner) -> None:
    await _hangs_up(runner, struct.pack(">I", MAX_FRAME_SIZE + 1))


@check("frame of 0 bytes", "closes its connection, and no other")
async def _(runner: Runner) -> None:
    await _hangs_up(runner, bytes(FRAME_HEADER_LEN))


@check("garbage", "closes its connection, and no other")
async def _(runner: Runner) -> None:
    await _hangs_up(runner, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def _hangs_up(runner: Runner, data: bytes) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.write(data)
        await peer.is_closed()


@check("half a frame", "ends its connection, and no other")
async def _(runner: Runner) -> None:
    frame = pack_frame(Request("echo").payload())
    async with runner.bystander():
        for half in (frame[:2], frame[: len(frame) // 2]):
            peer = await runner.connect()
            await peer.write(half)
            peer.writer.write_eof()
            await peer.is_closed()


@check("empty connection", "no trouble: the orchestrator looks so whether a runner is up")
async def _(runner: Runner) -> None:
    async with runner.bystander():
        peer = await runner.connect()
        peer.writer.write_eof()
        await peer.is_closed()


# Payloads that are no message


@check("payload that is no JSON", "its connection lives on", is_open=True)
async def _(runner: Runner) -> None:
    await _lives_on(runner, b'{"type":"request",', b"\xff\xfe", b"NaN")


@check("unknown type of message", "its connection lives on", is_open=True)
async def _(runner: Runner) -> None:
    await _lives_on(runner, compact({"type": "ping", "payload": {}}))


async def _lives_on(runner: Runner, *payloads: bytes) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.send(*payloads)
        await peer.works()


@check("request without a context", "answered with status error", is_open=True)
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    request = Request("echo")
    del request.fields["context"]
    async with runner.bystander():
        return has_status(await peer.ask(request), OutcomeStatus.ERROR)


# Many at a time


@check("concurrency", "short jobs are answered before a long one that came first")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    slow = Request("sleep", {"seconds": _SHORT})
    await peer.send(slow, Request("sleep", {"seconds": 0}), Request("echo"))
    outcomes = await peer.answers(3)
    for outcome in outcomes.values():
        succeeded(outcome)
    if list(outcomes)[-1] != slow.request_id:
        raise WrongError("the long one was answered first")


@check("busy", f"of {_IN_FLIGHT + 1} in flight the last is answered with status error at once")
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    job_id = str(uuid.uuid4())
    jobs = [Request("sleep", {"seconds": _LONG}, job_id=job_id) for _ in range(_IN_FLIGHT)]
    extra = Request("sleep", {"seconds": _LONG})
    await peer.send(*jobs, extra)
    outcome = await peer.answer()
    seen = has_status(outcome, OutcomeStatus.ERROR)
    if outcome.request_id != extra.request_id:
        raise WrongError(f"one of the first {_IN_FLIGHT}: {seen}")
    await peer.send(cancel(job_id))
    for _ in jobs:
        has_status(await peer.answer(), OutcomeStatus.ERROR, "cancelled")
    await peer.works()
    return seen


# Deadlines and cancels


@check("deadline already past", "status timeout")
async def _(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("echo", seconds=-5))
    return has_status(outcome, OutcomeStatus.TIMEOUT)


@check("deadline passes", "status timeout, and nothing when the handler would have ended")
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    outcome = await peer.ask(Request("sleep", {"seconds": _SHORT}, seconds=_SHORT / 3))
    seen = has_status(outcome, OutcomeStatus.TIMEOUT)
    await peer.is_quiet()
    return seen


@check("cancel by request", "status error, type cancelled; others of the job go on")
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    first = Request("sleep", {"seconds": _LONG})
    other = Request("sleep", {"seconds": _SHORT}, job_id=first.job_id)
    await peer.start(first, other)
    await runner.send_and_leave(cancel(first.job_id, first.request_id))
    outcomes = await peer.answers(2)
    succeeded(outcomes[other.request_id])
    seen = has_status(outcomes[first.request_id], OutcomeStatus.ERROR, "cancelled")
    await peer.is_quiet()
    return seen


@check("cancel by job", "all of the job are cancelled, on any connection")
async def _(runner: Runner) -> None:
    peers = [await runner.connect(), await runner.connect()]
    job_id = str(uuid.uuid4())
    for peer in peers:
        jobs = [Request("sleep", {"seconds": _LONG}, job_id=job_id) for _ in range(2)]
        await peer.start(*jobs)
    await runner.send_and_leave(cancel(job_id))
    for peer in peers:
        for _ in range(2):
            has_status(await peer.answer(), OutcomeStatus.ERROR, "cancelled")


@check("cancel behind its request", "status error, type cancelled")
async def _(runner: Runner) -> str:
    peer = await runner.connect()
    before, request = Request("echo"), Request("sleep", {"seconds": _LONG})
    await peer.send(before, request, cancel(request.job_id, request.request_id))
    outcomes = await peer.answers(2)
    succeeded(outcomes[before.request_id])
    return has_status(outcomes[request.request_id], OutcomeStatus.ERROR, "cancelled")


@check("cancel too late", "ignored, as is one of an unknown job")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("echo")
    succeeded(await peer.ask(request), {})
    await peer.send(
        cancel(request.job_id, request.request_id), cancel(request.job_id), cancel("unknown", "x")
    )
    await peer.is_quiet()


@check("end of a connection", "cancels its jobs: none succeeds, and the runner hangs up")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.send(Request("sleep", {"seconds": _SHORT}), Request("sleep", {"seconds": _LONG}))
        peer.writer.write_eof()
        for _ in range(2):
            try:
                outcome = await peer.answer()
            except (EOFError, ConnectionError):
                return
            has_status(outcome, OutcomeStatus.ERROR, "cancelled")
        await peer.is_closed()


@check("reset of a connection", "disturbs no other")
async def _(runner: Runner) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.start(Request("sleep", {"seconds": _LONG}))
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        connection = peer.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.writer.transport.abort()


@check("alive at the end", "the runner runs jobs, and has not ended meanwhile")
async def _(runner: Runner) -> None:
    ended = await runner.ended()
    if ended is not None:
        raise WrongError(ended)
    await (await runner.connect()).works()


# The command


@click.command
@click.argument("arguments", nargs=-1, metavar="HOST:PORT")
@runner_option
@click.option(
    "--limit",
    type=Number(0.1),
    default=10,
    metavar="SECONDS",
    show_default=True,
    help="What a check may take.",
)
def command(arguments: tuple[str, ...], runner: str | None, limit: float) -> int:
    """Check that a runner, in any language, keeps to the protocol.

    It must have the handlers echo (returns the params), sleep (waits for params.seconds), fail
    (raises) and retry (asks for a retry).

    A check ends with pass, FAIL, or found: the runner differs, and the protocol leaves it open.
    What a runner that was started by --runner prints is shown for the checks that fail. Exits with
    1 if one fails.

    Example: rrq-fastwire check --runner "node runner.js"
    """
    where, rest = split_target(arguments, runner)
    if rest:
        raise click.UsageError(f"expected nothing behind the runner, got {rest[0]!r}")
    verdicts = run(_check_all(where, limit))
    table = Table("check", "verdict", "expected", "seen")
    table.columns[0].no_wrap = True
    styles = {"pass": "green", "FAIL": "bold red", "found": "yellow"}
    for check, verdict, seen, _ in verdicts:
        table.add_row(check.name, Text(verdict, styles[verdict]), check.expected, Text(seen))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(table)
    for check, verdict, _, printed in verdicts:
        if verdict == "FAIL" and printed:
            console.print(f"The runner printed during {check.name!r}:")
            for line in printed:
                console.print(Text(f"  {line}", "dim"), soft_wrap=True)
    counts = {name: sum(verdict.verdict == name for verdict in verdicts) for name in styles}
    console.print(
        f"{len(verdicts)} checks: {counts['pass']} pass, {counts['FAIL']} fail,"
        f" {counts['found']} found"
    )
    return 1 if counts["FAIL"] else 0


async def _check_all(where: Target | list[str], limit: float) -> list[Verdict]:
    # What the runner prints goes to a file: on the terminal it would tear the progress bar.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "output"
        with path.open("wb") as written, path.open("rb") as output:
            try:
                async with reached(where, written) as target:
                    return await _check_target(target, output, limit)
            except RunnerError:  # the reason may be there
                sys.stderr.write(output.read().decode(errors="backslashreplace"))
                raise


async def _check_target(target: Target, output: BinaryIO, limit: float) -> list[Verdict]:
    async with await target.connect():
        pass  # whether there is a runner at all
    verdicts = []
    with progress_bar(TextColumn("{task.description}"), BarColumn()) as progress:
        task = progress.add_task("", total=len(CHECKS))
        for each in CHECKS:
            progress.update(task, description=each.name)
            verdict = await judge(each, target, limit)
            verdicts.append(verdict._replace(printed=_last_lines(output.read())))
            progress.advance(task)
    return verdicts


def _last_lines(printed: bytes) -> list[str]:
    text = printed[-_PRINTED_BYTES:].decode(errors="backslashreplace")
    return [printable(line) for line in text.splitlines()[-_PRINTED_LINES:]]


async def judge(check: Check, target: Target, limit: float) -> Verdict:
    runner = Runner(target)
    try:
        async with asyncio.timeout(limit):
            return Verdict(check, "pass", _shortened(await check.run(runner) or "as expected"))
    except WrongError as error:
        seen = str(error)
    except TimeoutError:
        seen = f"no {runner.waits_for} within {limit:g} s"
    except (EOFError, ConnectionError):
        seen = f"the connection was closed, instead of an {runner.waits_for}"
    finally:
        runner.close()
    return Verdict(check, "found" if check.is_open else "FAIL", _shortened(seen))


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SEEN_LENGTH else f"{text[:_SEEN_LENGTH]}..."
