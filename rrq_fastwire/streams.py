"""Connections that carry messages, on asyncio or uvloop: TCP and Unix sockets.

Bytes are received into the decoder's own memory, and messages are decoded when they are asked for;
what is sent in one turn of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
from typing import cast

from . import MAX_FRAME_SIZE, FrameError, MessageDecoder, encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any, Self

    from . import RunnerMessage

    OnStream = Callable[["MessageStream"], Awaitable[None]]

__all__ = [
    "MessageStream",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]

# Bytes received and not asked for yet, above which reading pauses until all of them are taken;
# and bytes sent within one turn of the loop, above which drain() waits for the write.
_HIGH_WATER = 64 * 1024

_CLOSED = "the connection is closed"


class MessageStream(asyncio.BufferedProtocol):
    """One connection: `async for message in stream` receives, `await stream.send(message)` sends.

    It is made by the functions of this module. `async with stream` closes it at the end. One task
    may receive at a time; any number may send.

    Iteration ends where the peer has ended the stream between two frames. It raises, after the
    messages before it,
      - MessageError for a payload that is no message; iterating again goes on behind it;
      - FrameError if the stream is broken or ends inside a frame: nothing more can be received;
      - ConnectionError if the connection was lost.

    Attributes:
        transport: asyncio's transport, for get_extra_info() and the like.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_decoder",
        "_drained",
        "_eof",
        "_failure",
        "_loop",
        "_lost",
        "_on_message",
        "_on_stream",
        "_receiver",
        "_suspended",
        "_task",
        "_unsent",
        "_unsent_size",
        "_write_due",
        "_write_paused",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(
        self, on_stream: OnStream | None = None, *, max_frame_size: int = MAX_FRAME_SIZE
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_stream = on_stream
        self._task: asyncio.Task[None] | None = None  # runs on_stream
        self._closed = self._loop.create_future()
        self._lost: ConnectionError | None = None  # why, if it was not closed here
        # Receiving
        self._decoder = MessageDecoder(max_frame_size)
        self._receiver: asyncio.Future[None] | None = None  # set when there is something for it
        self._on_message: Callable[[RunnerMessage], object] | None = None  # given to deliver()
        self._failure: Exception | None = None  # of a message or of _on_message(), for deliver()
        self._suspended = False  # too much is undelivered: reading is paused
        self._eof = False
        # Sending
        self._unsent: list[bytes] = []  # of this turn of the loop
        self._unsent_size = 0
        self._write_due = False  # the loop is about to call _write()
        self._write_paused = False  # the transport holds more than it should
        self._drained: set[asyncio.Future[None]] = set()  # those who wait in drain()

    def __repr__(self) -> str:
        state = "closed" if self._closed.done() else "closing" if self.is_closing() else "open"
        return f"<{type(self).__name__} {state} peer={self.transport.get_extra_info('peername')}>"

    # Receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunnerMessage:
        while True:
            message = self.receive_nowait()
            if message is not None:
                return message
            await self._more()

    def receive_nowait(self) -> RunnerMessage | None:
        """The next message if it has arrived, else None. Raises MessageError and FrameError."""
        try:
            # uvloop may have asked for memory and not used it. Until the decoder is told, it gives
            # no memory back.
            message = next(self._decoder.buffer_updated(0), None)
        except FrameError:
            self.transport.pause_reading()
            raise
        if message is None and self._suspended:
            self._suspended = False
            self.transport.resume_reading()
        return message

    async def _more(self) -> None:
        """Waits for more bytes, when what has arrived is taken. Raises what ends the iteration."""
        if self._receiver is not None:
            raise RuntimeError("another task is already receiving from this stream")
        if self._eof:
            self._decoder.feed_eof()
            raise StopAsyncIteration
        if self._closed.done():
            raise StopAsyncIteration if self._lost is None else self._closing_error()
        self._receiver = self._loop.create_future()
        try:
            await self._receiver
        finally:
            self._receiver = None

    async def deliver(self, on_message: Callable[[RunnerMessage], object]) -> None:
        """Calls a function with each message, in the turn of the loop in which its bytes arrive.

        It costs less than iterating, because no task is woken for that. It returns where iterating
        would end, and raises what that would raise; after a MessageError, calling it again goes on.
        It holds back what arrives while drain() would wait.
        """
        while True:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self.congested:
                await self._wait_while_congested()
            message = self.receive_nowait()
            if message is not None:
                on_message(message)
                continue
            self._on_message = on_message
            try:
                await self._more()
            except StopAsyncIteration:
                return
            finally:
                self._on_message = None

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.buffer_updated(nbytes)
        receiver, on_message = self._receiver, self._on_message
        if receiver is None or receiver.done():
            if self._decoder.buffered > _HIGH_WATER:
                self._suspended = True
                self.transport.pause_reading()
        elif on_message is None:
            self._wake_receiver()
        else:
            try:
                while not (self._write_paused or self._unsent_size > _HIGH_WATER):
                    message = next(self._decoder, None)
                    if message is None:
                        return
                    on_message(message)
            except Exception as error:
                if isinstance(error, FrameError):
                    self.transport.pause_reading()
                self._failure = error
            self._wake_receiver()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake_receiver()
        return True  # what is still to be sent can be

    # Sending

    async def send(self, message: RunnerMessage) -> None:
        """Sends one message; waits first while the peer is slow to take what was sent before.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        if self.congested:
            await self.drain()
        self.send_nowait(message)

    def send_nowait(self, message: RunnerMessage) -> None:
        """Sends one message without waiting: it is encoded now, and written in this turn's write.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        if self.transport.is_closing():
            raise self._closing_error()
        frame = encode_frame(message)
        self.write_soon()
        self._unsent.append(frame)
        self._unsent_size += len(frame)

    def write_soon(self) -> None:
        """Writes what is sent before the loop has run all that it was to run when this is called.

        Sending does it by itself. Who knows that something will be sent within the next turn, and
        says so now, saves it a turn.
        """
        if not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write)

    @property
    def congested(self) -> bool:
        """Whether drain() would wait: the peer is slow to take what was sent."""
        return self._write_paused or self._unsent_size > _HIGH_WATER

    async def drain(self) -> None:
        """Waits while more is on its way to the peer than should be.

        Raises ConnectionError if the connection is closed or lost.
        """
        await self._wait_while_congested()
        if self.is_closing():
            raise self._closing_error()

    async def _wait_while_congested(self) -> None:
        while self.congested and not self.is_closing():
            drained = self._loop.create_future()
            self._drained.add(drained)
            try:
                await drained
            finally:
                self._drained.discard(drained)

    def _write(self) -> None:
        self._write_due = False
        if self._unsent and not self.is_closing():
            # Not writelines(): that of CPython 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 never asks
            # the protocol to pause (CVE-2024-12254).
            frames = b"".join(self._unsent)
            self._unsent.clear()
            self._unsent_size = 0
            self.transport.write(frames)
        if not self._write_paused:
            self._wake_senders()

    def _wake_senders(self) -> None:
        for drained in self._drained:
            if not drained.done():
                drained.set_result(None)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_senders()

    # Beginning and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._on_stream is not None:
            self._task = self._loop.create_task(self._serve(self._on_stream))

    async def _serve(self, on_stream: OnStream) -> None:
        try:
            await on_stream(self)
        except Exception as error:
            self._loop.call_exception_handler(
                {
                    "message": "unhandled exception in on_stream",
                    "exception": error,
                    "protocol": self,  # not the task, in whose context this runs already
                }
            )
        finally:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not isinstance(exc, ConnectionError):
            # ETIMEDOUT, for one, is a TimeoutError, which is something else for who waits.
            exc = ConnectionAbortedError(f"the connection is lost: {exc}")
        self._lost = exc
        self._closed.set_result(None)
        self._wake_receiver()
        self._wake_senders()

    def _closing_error(self) -> ConnectionError:
        if self._lost is None:
            return ConnectionResetError(_CLOSED)
        return self._lost.with_traceback(None)  # raised often, it would keep all that it saw

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be: nothing can be sent."""
        return self.transport.is_closing()

    def close(self) -> None:
        """Closes the connection, once what was sent before has been handed over."""
        if not self.is_closing():
            self._write()
            self.transport.close()
            self._wake_senders()

    def abort(self) -> None:
        """Closes the connection at once, whatever is still to be handed over."""
        # asyncio's own abort() fails on a transport that has closed after a wait.
        if not self._closed.done():
            self.transport.abort()

    async def wait_closed(self) -> None:
        """Waits until the connection is closed and everything is handed over, or it is lost."""
        await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        await self.wait_closed()


async def open_connection(
    host: str, port: int, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connects to a runner, or whatever else speaks the protocol, over TCP.

    Arguments:
        max_frame_size: the most bytes of payload that a frame of the peer may declare.
        options: more of `loop.create_connection()`'s arguments.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: MessageStream(max_frame_size=max_frame_size), host, port, **options
    )
    return stream


async def open_unix_connection(
    path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> MessageStream:
    """Connects to a Unix socket; else as open_connection(), by `create_unix_connection()`."""
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_unix_connection(
        lambda: MessageStream(max_frame_size=max_frame_size), path, **options
    )
    return stream


async def start_server(
    on_stream: OnStream,
    host: str,
    port: int,
    *,
    max_frame_size: int = MAX_FRAME_SIZE,
    **options: Any,
) -> asyncio.Server:
    """Listens for connections over TCP.

    Arguments:
        on_stream: an async function that is called with the MessageStream of each connection, in a
            task of its own. The stream is closed when it returns.
        max_frame_size: the most bytes of payload that a frame of a peer may declare.
        options: more of `loop.create_server()`'s arguments.

    Raises OSError.
    """
    return await asyncio.get_running_loop().create_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), host, port, **options
    )


async def start_unix_server(
    on_stream: OnStream, path: str, *, max_frame_size: int = MAX_FRAME_SIZE, **options: Any
) -> asyncio.Server:
    """Listens on a Unix socket; else as start_server(), by `loop.create_unix_server()`."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: MessageStream(on_stream, max_frame_size=max_frame_size), path, **options
    )
