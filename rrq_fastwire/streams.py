"""Connections that carry messages, on asyncio or uvloop: TCP and Unix sockets.

Bytes are received into the decoder's own memory, and messages are decoded when they are asked for.
What is sent while deliver() handles a read leaves in one write at the end of that read; what is
sent elsewhere leaves in one write per event loop iteration.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
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
# and bytes sent and not given to the transport yet, above which drain() waits.
_HIGH_WATER = 64 * 1024

# Frames are joined into one write up to this size, and larger ones are not copied.
_LARGEST_JOINED = 256 * 1024

_CLOSED = "the connection is closed"


class MessageStream(asyncio.BufferedProtocol):
    """One connection: `async for message in stream` receives, `await stream.send(message)` sends.

    It is made by the functions of this module. `async with stream` closes it at the end. One task
    may receive at a time; any number may send.

    Iteration ends when the peer ends the stream between two frames.

    Attributes:
        transport: asyncio's transport, for get_extra_info() and the like.

    Raises, while iterating, after the messages that came first:
        MessageError: a payload is not a valid message; iterating again gives the next one.
        FrameError: the stream is broken or ends inside a frame; nothing more can be received.
        ConnectionError: the connection was lost.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_decoder",
        "_delivering",
        "_delivery_due",
        "_eof",
        "_failure",
        "_frame_size",
        "_held_back",
        "_loop",
        "_lost",
        "_on_message",
        "_on_stream",
        "_receiver",
        "_suspended",
        "_task",
        "_unsent",
        "_unsent_size",
        "_waiting",
        "_woken",
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
        self._delivering = False  # _deliver() is running
        self._delivery_due = False  # the loop is about to call _continue_delivery()
        self._held_back = False  # there may be messages to deliver once drain() would not wait
        self._failure: Exception | None = None  # of a message or of _on_message(), for deliver()
        self._suspended = False  # too much is undelivered: reading is paused
        self._eof = False
        # Sending
        self._unsent: deque[bytes] = deque()  # frames that the transport does not have yet
        self._unsent_size = 0
        self._frame_size = 1  # of the last frame: how many more there is room for
        self._write_due = False  # the loop is about to call _write()
        self._write_paused = False  # the transport holds more than it should
        self._waiting: OrderedDict[object, asyncio.Future[None]] = OrderedDict()  # in drain()
        self._woken = 0  # how many of them are about to go on

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
            message = next(self._decoder, None)
        except FrameError:
            self.transport.pause_reading()
            raise
        if message is None:
            self._resume_reading()
        return message

    def _resume_reading(self) -> None:
        if self._suspended:
            self._suspended = False
            self.transport.resume_reading()

    async def _more(self) -> None:
        """Waits for more bytes, when what has arrived is taken. Raises what ends the iteration."""
        self._refuse_second_receiver()
        if self._has_ended():
            raise StopAsyncIteration
        await self._wait_as_receiver()

    def _refuse_second_receiver(self) -> None:
        if self._receiver is not None:
            raise RuntimeError("another task is already receiving from this stream")

    def _has_ended(self) -> bool:
        """Whether nothing more will arrive. Raises if that is not the peer's orderly end."""
        if self._eof:
            self._decoder.feed_eof()
            return True
        if self._closed.done():
            if self._lost is not None:
                raise self._closing_error()
            return True
        return False

    async def _wait_as_receiver(self) -> None:
        self._receiver = self._loop.create_future()
        try:
            await self._receiver
        finally:
            self._receiver = None

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.buffer_updated(nbytes)
        if self._hand_on() and self._decoder.buffered > _HIGH_WATER and not self._suspended:
            self._suspended = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._hand_on()
        return True  # what is still to be sent can be

    def _hand_on(self) -> bool:
        """Sees to it that what has arrived is taken. Returns whether it has to wait for that."""
        if self._on_message is not None:
            if not self._delivery_due:
                self._deliver()
            return self._delivery_due or self._held_back or self._failure is not None
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
            return False
        return True

    # Delivering

    async def deliver(self, on_message: Callable[[RunnerMessage], object]) -> None:
        """Calls a function with each message, from the callback in which its bytes arrive.

        It costs less than iterating, because no task is woken for that. What the function sends
        leaves in one write when all messages of a read are handled, or at flush(). Messages are
        held back while drain() would wait.

        It returns where iterating would end, and raises what that would raise, or what the function
        raises; after a MessageError, calling it again goes on.
        """
        self._refuse_second_receiver()
        self._on_message = on_message
        try:
            while True:
                if self._failure is None:
                    # Not now: the function is always called outside of tasks.
                    self._deliver_soon()
                    await self._wait_as_receiver()
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                if self._has_ended():
                    return
        finally:
            self._on_message = None

    def _deliver_soon(self) -> None:
        if not self._delivery_due:
            self._delivery_due = True
            self._loop.call_soon(self._continue_delivery)

    def _continue_delivery(self) -> None:
        self._delivery_due = False
        if self._on_message is not None:
            self._deliver()

    def _deliver(self) -> None:
        """Calls the function of deliver() with what has arrived, and writes what it sends.

        Wakes deliver() when there is something to raise, or the end is reached.
        """
        on_message = self._on_message
        if on_message is None or self._failure is not None:
            return
        self._delivering = True
        try:
            while True:
                if self._write_paused and not self.is_closing():
                    self._held_back = True
                    break
                message = next(self._decoder, None)
                if message is None:
                    self._resume_reading()
                    if self._eof or self._closed.done():
                        self._wake_receiver()
                    break
                on_message(message)
                if self._unsent_size > _HIGH_WATER:
                    self._write()
        except Exception as error:
            if isinstance(error, FrameError):
                self.transport.pause_reading()
            self._failure = error
            self._wake_receiver()
        finally:
            self._delivering = False
            self._write()

    # Sending

    async def send(self, message: RunnerMessage) -> None:
        """Sends one message; waits first while the peer is slow to take what was sent before.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        await self.drain()
        self.send_nowait(message)

    def send_nowait(self, message: RunnerMessage, *, flush: bool = False) -> None:
        """Sends one message without waiting: it is encoded now.

        Arguments:
            flush: write it now, and not at the end of the event loop iteration. It makes no
                difference while deliver() handles a read, at the end of which all is written.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        if self.transport.is_closing():
            raise self._closing_error()
        frame = encode_frame(message)
        self._unsent.append(frame)
        self._frame_size = size = len(frame)
        self._unsent_size += size
        if self._delivering or self._write_paused:
            return
        if flush:
            self._write()
        elif not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write_what_is_due)

    def flush(self) -> None:
        """Writes now what was sent, and not at the end of a read or of the loop's iteration."""
        self._write()

    @property
    def congested(self) -> bool:
        """Whether drain() would wait, because the peer is slow to take what was sent."""
        return self._write_paused or self._unsent_size > _HIGH_WATER

    async def drain(self) -> None:
        """Waits while more is on its way to the peer than should be, in the order of the calls.

        Raises ConnectionError if the connection is closed or lost.
        """
        if self.congested or self._waiting:
            await self._wait_while_congested()
        if self.is_closing():
            raise self._closing_error()

    async def _wait_while_congested(self) -> None:
        place = object()
        try:
            while not self.is_closing():
                self._waiting[place] = drained = self._loop.create_future()
                try:
                    await drained
                finally:
                    if not drained.cancelled():
                        self._woken -= 1
                if not self.congested:
                    break
        finally:
            self._waiting.pop(place, None)
            if not self._woken:
                self._wake_senders()

    def _wake_senders(self) -> None:
        """Wakes as many calls of drain() as there is room for, in their order.

        Each takes as much as the last frame did, as far as one can know. If it takes more, the
        others wait on; if less, the last one to go on wakes more. So each is woken about once,
        where waking all of them at each write would take quadratic time.
        """
        most: float
        if self.is_closing():
            most = float("inf")
        elif self.congested:
            return
        else:
            most = 1 + (_HIGH_WATER - self._unsent_size) // self._frame_size
        for drained in self._waiting.values():
            if self._woken >= most:
                break
            if not drained.done():
                drained.set_result(None)
                self._woken += 1

    def _write_what_is_due(self) -> None:
        self._write_due = False
        self._write()

    def _write(self) -> None:
        while self._unsent and not self._write_paused and not self.is_closing():
            self._write_some()
        if not self._write_paused:
            if self._waiting:
                self._wake_senders()
            if self._held_back:
                self._held_back = False
                self._deliver_soon()

    def _write_some(self) -> None:
        """Gives the next frames to the transport: small ones joined, a large one as it is.

        The transport keeps what the peer does not take, in a copy where CPython is older than 3.12.
        So it gets no more once it asks to pause, and the other frames are held once.
        """
        unsent = self._unsent
        if self._unsent_size <= _LARGEST_JOINED:
            frames = b"".join(unsent)
            unsent.clear()
        else:
            pieces = [unsent.popleft()]
            size = len(pieces[0])
            while unsent and size + len(unsent[0]) <= _LARGEST_JOINED:
                size += len(unsent[0])
                pieces.append(unsent.popleft())
            frames = b"".join(pieces)
        self._unsent_size -= len(frames)
        # A memoryview, because asyncio slices what the kernel does not take. And not writelines():
        # that of CPython 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 never asks the protocol to pause
        # (CVE-2024-12254).
        self.transport.write(frames if len(frames) <= _HIGH_WATER else memoryview(frames))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._write()

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
        self._unsent.clear()
        self._unsent_size = 0
        self._hand_on()
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
            while self._unsent:
                self._write_some()
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
