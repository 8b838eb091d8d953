"""MessageStream: the receiving half of a connection, and its beginning and end."""

from __future__ import annotations

import asyncio
import inspect
from contextvars import copy_context
from functools import partial
from typing import cast

from .. import MAX_FRAME_SIZE, FrameError, MessageDecoder
from ..errors import type_name
from .outbox import HIGH_WATER, NoTransport, Outbox
from .quota import quota_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from .. import RunnerMessage

    OnStream = Callable[["MessageStream"], Awaitable[None]]

__all__ = ["MessageStream"]


class MessageStream(Outbox):
    """One connection: `async for message in stream` receives, `await stream.send(message)` sends.

    open_connection(), start_server() and their variants create it. `async with stream` closes it at
    the end. One task may receive at a time; any number may send. In another event loop or thread,
    methods that send, wait, close or change what is read raise RuntimeError. A finalizer, such as
    the `finally` of a coroutine that is garbage, may call send_nowait() without `flush`, even while
    another method runs. For anything else, it needs call_soon() of the event loop, and a signal
    handler needs call_soon_threadsafe(), because asyncio's transports do not expect such calls.

    Iteration ends when the peer ends the stream between two frames.

    Attributes:
        transport: asyncio's transport, for get_extra_info() and the like.
        on_message: the function that deliver() calls; None while deliver() does not run. It can be
            replaced by another function, which takes effect with the next delivery.

    Raises, while iterating, after the messages that came first:
        MessageError: a payload is not a valid message; iterating again gives the next one.
        FrameError: the stream is broken or ends inside a frame; nothing more can be received.
        ConnectionError: the connection was lost.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_context",
        "_decoder",
        "_delivery_due",
        "_eof",
        "_failure",
        "_on_stream",
        "_paused",
        "_peer",
        "_quota",
        "_receiver",
        "_suspended",
        "_task",
        "on_message",
    )

    def __init__(
        self, on_stream: OnStream | None = None, *, max_frame_size: int = MAX_FRAME_SIZE
    ) -> None:
        super().__init__()
        self._on_stream = on_stream
        # The function of deliver() is called in a copy of this. Otherwise it could be called in the
        # context of a task that has sent something, or has made room for messages held back.
        self._context = copy_context()
        self._task: asyncio.Task[None] | None = None  # runs on_stream
        self._closed = self._loop.create_future()
        self._decoder = MessageDecoder(max_frame_size)
        self._receiver: asyncio.Future[None] | None = None  # done when there is something to take
        self.on_message: Callable[[RunnerMessage], object] | None = None
        self._delivery_due = False  # the loop or the quota will call _continue_delivery()
        self._quota = quota_of(self._loop)
        self._failure: Exception | None = None  # what deliver() has to raise
        self._suspended = False  # reading is paused, because too much has not been taken
        self._paused = False  # reading is paused by pause_reading()
        self._broken = False  # reading is paused, because nothing more can be decoded
        self._eof = False

    def __repr__(self) -> str:
        if isinstance(self.transport, NoTransport):
            return f"<{type(self).__name__} not connected>"
        state = "closed" if self._closed.done() else "closing" if self.is_closing() else "open"
        return f"<{type(self).__name__} {state} peer={self._peer}>"

    # Receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunnerMessage:
        while True:
            message = self.receive_nowait()
            if message is not None:
                return message
            await self._wait_for_more()

    def receive_nowait(self) -> RunnerMessage | None:
        """Return the next message; None if it has not arrived. Raises MessageError, FrameError."""
        if self._failure is not None:
            self._raise_failure()
        try:
            message = next(self._decoder, None)
        except FrameError:
            self._stop_reading()
            raise
        if message is None and self._suspended:
            self._end_suspension()
        return message

    def _raise_failure(self) -> None:
        """Raise what a delivery has raised, even after the deliver() of that time was cancelled."""
        failure, self._failure = self._failure, None
        assert failure is not None
        raise failure

    def _end_suspension(self) -> None:
        self._suspended = False
        self._read_if_allowed()

    @property
    def buffered(self) -> int:
        """How many bytes have arrived and are not taken, such as those of half a message."""
        return self._decoder.buffered

    @property
    def delivery_due(self) -> bool:
        """Whether deliver() is about to handle what has arrived."""
        return self._delivery_due

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel, until resume_reading()."""
        self._check_loop()
        self._paused = True
        if not self.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again after pause_reading()."""
        self._check_loop()
        self._paused = False
        self._read_if_allowed()

    def _read_if_allowed(self) -> None:
        if not (self._paused or self._suspended or self._broken or self.is_closing()):
            self._context.copy().run(self.transport.resume_reading)

    def _stop_reading(self) -> None:
        """Read nothing more, because the decoder has raised FrameError."""
        self._broken = True
        self.transport.pause_reading()

    async def _wait_for_more(self) -> None:
        """Wait for more bytes. Raises StopAsyncIteration, or why nothing more will arrive."""
        self._check_loop()
        self._refuse_second_receiver()
        if self._has_ended():
            raise StopAsyncIteration
        await self._wait_as_receiver()

    def _refuse_second_receiver(self) -> None:
        if self._receiver is not None:
            raise RuntimeError("another task is already receiving from this stream")

    def _has_ended(self) -> bool:
        """Return whether nothing more will arrive. Raises if this is not the peer's orderly end."""
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
        if self._hand_on() and self._decoder.buffered > HIGH_WATER and not self._suspended:
            self._suspended = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._hand_on()
        return True  # keep the transport open: what is still to be sent can be sent

    def _hand_on(self) -> bool:
        """Deliver what has arrived, or wake the receiver. Return whether any of it has to wait."""
        if self.on_message is not None:
            if self._quota.is_used_up and not self._delivery_due:
                self._delivery_due = True
                self._quota.wait(partial(self._context.copy().run, self._continue_delivery))
            return self._delivery_due or self._deliver(self.on_message)
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
            return False
        return True

    # Delivering

    async def deliver(self, on_message: Callable[[RunnerMessage], object]) -> None:
        """Call a function with each message, from the callback in which its bytes arrive.

        This costs less than iteration, because no task has to be woken. What the function sends
        leaves in one write when all messages of a read are handled, or at flush(). Messages are
        held back while drain() would wait. They are also held back until the next event loop
        iteration when the streams of the loop have decoded more than 64 KiB; these bytes add up
        over iterations. So the function may still be called after pause_reading(), close() or
        abort().

        Returns when iteration would end. Raises what iteration would raise, and what the function
        raises. After a MessageError, call this again to get the later messages.

        Arguments:
            on_message: a plain function of one argument, the message. Another object raises
                TypeError.
        """
        if not callable(on_message):
            raise TypeError(f"on_message must be a function, got {type_name(on_message)}")
        if inspect.iscoroutinefunction(on_message):
            raise TypeError("on_message must be a plain function, which is not async")
        self._check_loop()
        self._refuse_second_receiver()
        self.on_message = on_message
        try:
            if self._failure is None:
                # Not now, because the function is always called outside of tasks.
                self._deliver_soon()
                await self._wait_as_receiver()
            if self._failure is not None:
                self._raise_failure()
            self._has_ended()  # This raises, unless the peer has ended the stream.
        finally:
            self.on_message = None

    def _deliver_soon(self) -> None:
        if not self._delivery_due:
            self._delivery_due = True
            self._loop.call_soon(self._continue_delivery, context=self._context.copy())

    def _on_room(self) -> None:
        self._deliver_soon()

    def _continue_delivery(self) -> None:
        self._delivery_due = False
        self._hand_on()

    def _deliver(self, on_message: Callable[[RunnerMessage], object]) -> bool:
        """Call the function of deliver() with what has arrived, and write what it sends.

        Wakes deliver() when there is something to raise, or at the end of the stream. Returns
        whether messages are held back.
        """
        if self._failure is not None:
            return True
        self._hold_writes = True
        before = self._decoder.buffered
        try:
            if self._write_paused and self._hold_back():
                return True
            for message in self._decoder:
                on_message(message)
                if self._unsent_size > HIGH_WATER:
                    self._write()
                if self._write_paused and self._hold_back():
                    return True
            if self._suspended:
                self._end_suspension()
            if self._eof or self._closed.done():
                self._wake_receiver()
            return False
        except Exception as error:
            if isinstance(error, FrameError):
                self._stop_reading()
            self._failure = error
            self._wake_receiver()
            return True
        except BaseException:
            self._deliver_soon()  # the later messages, if the loop runs again
            raise
        finally:
            self._hold_writes = False
            self._quota.use(before - self._decoder.buffered)
            self._write()

    def _hold_back(self) -> bool:
        """Hold messages back until the transport has room, unless it is closing."""
        self._held_back = not self.is_closing()
        return self._held_back

    # Beginning and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # Read now, because uvloop's Unix transports raise AttributeError once they are closed.
        self._peer = transport.get_extra_info("peername")
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
                    "protocol": self,  # not the task: this already runs in its context
                }
            )
        finally:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not isinstance(exc, ConnectionError):
            # ETIMEDOUT is a TimeoutError, which a caller would mistake for its own timeout.
            exc = ConnectionAbortedError(f"the connection is lost: {exc}")
        self._lost = exc
        self._closed.set_result(None)
        self._unsent.clear()
        self._unsent_size = 0
        self._context.copy().run(self._hand_on)
        self._wake_senders()

    def abort(self) -> None:
        """Close the connection at once, and drop what is not sent yet."""
        # asyncio's own abort() fails on a transport that has closed in the meantime.
        if not self._closed.done():
            self._check_loop()
            self.transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is lost, or is closed and everything is sent."""
        self._check_loop()
        await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()
        await self.wait_closed()
