"""Fuzz the runner's connection: for any bytes, in any pieces, it sends one valid answer per request."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    ExecutionOutcome,
    ExecutionRequest,
    MessageError,
    decode_payload,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import MessageStream

from .choices import Choices
from .oracles import split, strict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# An answer takes a few event loop iterations. If this many are not enough, it will never come.
_MOST_ITERATIONS = 200

_STEPS = 12


class Transport(asyncio.Transport):
    """A transport without a socket, which keeps what is written.

    Like asyncio's, it gives bytes to the stream in callbacks, and not while reading is paused.
    """

    def __init__(self, stream: MessageStream) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = bytearray()
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[bytes] = deque()  # pieces; an empty one is the end of the stream
        self._is_paused = False
        self._closing = False
        stream.connection_made(self)

    def arrive(self, piece: bytes) -> None:
        """Let a piece arrive from the peer; b"" is the end of the stream."""
        self._arrived.append(piece)
        self._loop.call_soon(self._read)

    def _read(self) -> None:
        while self._arrived and not self._is_paused and not self._closing:
            piece = self._arrived.popleft()
            if not piece:
                self._stream.eof_received()
                return
            memory = self._stream.get_buffer(-1)
            size = min(len(memory), len(piece))
            memory[:size] = piece[:size]
            if piece[size:]:
                self._arrived.appendleft(piece[size:])
            self._stream.buffer_updated(size)

    def write(self, data: Any) -> None:
        assert not self._closing, "written after the end"
        self.written += data

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._read)

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._stream.connection_lost, error)


async def _echo(request: ExecutionRequest) -> Any:
    return request.params


async def _pause(request: ExecutionRequest) -> Any:
    await asyncio.sleep(0)
    return request.job_id


async def _wait(request: ExecutionRequest) -> None:
    await asyncio.get_running_loop().create_future()


async def _fail(request: ExecutionRequest) -> None:
    raise ValueError("\ud800" + request.job_id)


async def _odd(request: ExecutionRequest) -> Any:
    return {1: object(), "deep": request.params}


async def _outcome(request: ExecutionRequest) -> Any:
    return ExecutionOutcome.retry_after("another", "job", request.job_id, 1e400)


async def _cancels_itself(request: ExecutionRequest) -> Any:
    raise asyncio.CancelledError


_HANDLERS = {
    "echo": _echo,
    "pause": _pause,
    "wait": _wait,
    "fail": _fail,
    "odd": _odd,
    "outcome": _outcome,
    "cancelled": _cancels_itself,
}


class _Loop:
    """One event loop for all inputs, because a new one takes longer than checking an input."""

    runner: asyncio.Runner | None = None

    @classmethod
    def run(cls, coroutine: Any) -> Any:
        if cls.runner is None:
            logging.getLogger("rrq_fastwire").addHandler(logging.NullHandler())
            cls.runner = asyncio.Runner()
        return cls.runner.run(coroutine)


def _request(name: str, number: int) -> bytes:
    deadline = '"2926-11-24T03:13:36Z"' if number % 2 else "null"
    payload = (
        '{"type":"request","payload":{"protocol_version":"2",'
        f'"request_id":"r{number}","job_id":"j{number}","function_name":"{name}",'
        '"params":{"a":1},'
        f'"context":{{"job_id":"j{number}","attempt":1,'
        f'"enqueue_time":"2026-11-24T03:13:36.5Z","queue_name":"q","deadline":{deadline},'
        '"trace_context":null,"correlation_context":null,"worker_id":"w"}}}'
    )
    return len(payload).to_bytes(4) + payload.encode()


def seeds() -> Iterator[bytes]:
    steps = bytes(range(1, 2 * _STEPS + 1))
    for path in sorted(Path(__file__).parent.parent.glob("captures/*.bin")):
        yield steps + path.read_bytes()[:1500]
    for number, name in enumerate(_HANDLERS):
        cancel = b'{"type":"cancel","payload":{"protocol_version":"2","job_id":"j%d"}}' % number
        request = _request(name, number)
        yield steps + request + len(cancel).to_bytes(4) + cancel + request
        yield bytes(255 - step for step in steps) + request * 2 + b"\0\0\0\x02{}" + request
    yield steps + _request("echo", 1).replace(b"function_name", b"function-name")


def check(data: bytes) -> None:
    """Check one input: what happens between the pieces of the stream, and the stream."""
    choices = Choices(data)
    steps = [(choices.number(255), choices.number(255)) for _ in range(_STEPS)]
    _Loop.run(_check(steps, choices.rest()))


async def _check(steps: list[tuple[int, int]], data: bytes) -> None:
    unhandled: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    runner = Runner(_HANDLERS, max_in_flight=3)
    stream = MessageStream(runner.on_stream)
    transport = Transport(stream)
    is_reset = await _receive(stream, transport, steps, data)
    closed = asyncio.ensure_future(stream.wait_closed())
    for _ in range(_MOST_ITERATIONS):
        if closed.done():
            break
        await asyncio.sleep(0)
    assert closed.done(), "the connection does not end"
    for _ in range(5):  # lets cancelled handlers end
        await asyncio.sleep(0)
    # This task, and one that the runner keeps in reserve.
    assert len(asyncio.all_tasks()) <= 2, asyncio.all_tasks()
    assert not unhandled, unhandled
    _check_answers(data, bytes(transport.written), is_complete=not is_reset)
    await runner.stop(0)


async def _receive(
    stream: MessageStream, transport: Transport, steps: list[tuple[int, int]], data: bytes
) -> bool:
    """Let the bytes arrive, and then the end of the stream. Returns whether that was a reset."""
    is_write_paused = False
    loop = asyncio.get_running_loop()
    for how, size in steps:
        piece, data = data[: size * size // 16], data[size * size // 16 :]
        if piece:
            transport.arrive(piece)
        if how // 4 % 8 == 0:
            is_write_paused = not is_write_paused
            loop.call_soon(stream.pause_writing if is_write_paused else stream.resume_writing)
        for _ in range(how % 4):
            await asyncio.sleep(0)
        if how == 255:
            loop.call_soon(transport.lose, ConnectionResetError())
            return True
    if is_write_paused:
        loop.call_soon(stream.resume_writing)
    if data:
        transport.arrive(data)
    transport.arrive(b"")
    return False


def _check_answers(data: bytes, written: bytes, *, is_complete: bool) -> None:
    """One valid answer for each request; at most one if the connection was reset.

    An invalid request is answered if it has ids that are not those of another request.
    """
    payloads, failure, rest = split(written, MAX_FRAME_SIZE)
    assert failure is None
    assert not rest
    answers: Counter[tuple[Any, Any]] = Counter()
    for payload in payloads:
        strict(payload)
        answer = decode_payload(payload)
        assert type(answer) is ExecutionOutcome
        answers[answer.request_id, answer.job_id] += 1
    requests: Counter[tuple[Any, Any]] = Counter()
    refused: Counter[tuple[Any, Any]] = Counter()
    for payload in split(data, MAX_FRAME_SIZE)[0]:
        try:
            message = decode_payload(payload)
        except MessageError as error:
            if error.message_type == "request":
                refused[error.request_id, error.job_id] += 1
        else:
            if type(message) is ExecutionRequest:
                requests[message.request_id, message.job_id] += 1
    assert answers <= requests + refused, (answers, requests, refused)
    if is_complete:
        used = {request_id for request_id, _ in requests}
        for (request_id, job_id), number in refused.items():
            if None not in (request_id, job_id) and request_id not in used:
                requests[request_id, job_id] += number
        assert answers >= requests, (answers, requests, refused)
