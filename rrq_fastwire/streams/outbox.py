"""The sending half of a connection: messages wait here until the transport takes them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from .. import encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import RunnerMessage

__all__ = ["HIGH_WATER", "Outbox"]

# Bytes received and not asked for yet, above which reading pauses until all of them are taken;
# and bytes sent and not given to the transport yet, above which drain() waits.
HIGH_WATER = 64 * 1024

# Frames are joined into one write up to this size, and larger ones are not copied.
_LARGEST_JOINED = 256 * 1024

_CLOSED = "the connection is closed"


class Outbox(asyncio.BufferedProtocol):
    """What is sent over one connection."""

    __slots__ = (
        "__weakref__",
        "_frame_size",
        "_held_back",
        "_hold_writes",
        "_loop",
        "_lost",
        "_unsent",
        "_unsent_size",
        "_waiting",
        "_woken",
        "_write_due",
        "_write_paused",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost: ConnectionError | None = None  # why, if it was not closed here
        self._unsent: deque[bytes] = deque()  # frames that the transport does not have yet
        self._unsent_size = 0
        self._frame_size = 1  # of the last frame: how many more there is room for
        self._hold_writes = False  # _deliver() is running, and calls _write() at its end
        self._held_back = False  # there may be messages to deliver once drain() would not wait
        self._write_due = False  # the loop is about to call _write()
        self._write_paused = False  # the transport holds more than it should
        self._waiting: OrderedDict[object, asyncio.Future[None]] = OrderedDict()  # in drain()
        self._woken = 0  # how many of them are about to go on

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
        if self._hold_writes or self._write_paused:
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
        return self._write_paused or self._unsent_size > HIGH_WATER

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
            most = 1 + (HIGH_WATER - self._unsent_size) // self._frame_size
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
        while self._unsent and not (self._write_paused or self.transport.is_closing()):
            self._write_some()
        if (self._waiting or self._held_back) and not self._write_paused:
            self._wake_senders()
            if self._held_back:
                self._held_back = False
                self._on_room()

    def _on_room(self) -> None:
        """Called where `_held_back` was set, once drain() would not wait."""
        raise NotImplementedError

    def _write_some(self) -> None:
        """Gives the next frames to the transport: small ones joined, a large one as it is.

        The transport keeps what the peer does not take, in a copy where CPython is older than 3.12.
        So it gets no more once it asks to pause, and the other frames are held once.
        """
        unsent = self._unsent
        if self._unsent_size <= _LARGEST_JOINED:
            frames = b"".join(unsent)
            unsent.clear()
            self._unsent_size = 0
        else:
            pieces = [unsent.popleft()]
            size = len(pieces[0])
            while unsent and size + len(unsent[0]) <= _LARGEST_JOINED:
                size += len(unsent[0])
                pieces.append(unsent.popleft())
            frames = b"".join(pieces)
            self._unsent_size -= size
        # A memoryview, because asyncio slices what the kernel does not take. And not writelines():
        # that of CPython 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 never asks the protocol to pause
        # (CVE-2024-12254).
        self.transport.write(frames if len(frames) <= HIGH_WATER else memoryview(frames))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._write()

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
