"""The sending half of a connection: messages wait here until the transport takes them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import cast

from .. import encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .. import RunnerMessage

__all__ = ["HIGH_WATER", "NoTransport", "Outbox"]

# In bytes. Reading pauses when more received data than this waits to be taken, until all of it is
# taken. drain() waits while more sent data than this waits for the transport.
HIGH_WATER = 64 * 1024

# Small frames are joined into writes of up to this many bytes; a larger frame is not copied.
_LARGEST_JOINED = 256 * 1024

_CLOSED = "the connection is closed"


class NoTransport:
    """Stands in for the transport until the stream is connected."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("the stream is not connected")


class Outbox(asyncio.BufferedProtocol):
    """Send messages over one connection, in as few writes as possible."""

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

    def __init__(self) -> None:
        self.transport = cast("asyncio.Transport", NoTransport())
        self._loop = asyncio.get_running_loop()
        self._lost: ConnectionError | None = None  # why the connection was lost, if it was
        self._unsent: deque[bytes] = deque()  # frames that the transport does not have yet
        self._unsent_size = 0
        self._frame_size = 1  # of the last frame: an estimate of the next ones
        self._hold_writes = False  # _deliver() is running, and calls _write() at its end
        self._held_back = False  # there may be messages to deliver once drain() would not wait
        self._write_due = False  # the loop is about to call _write()
        self._write_paused = False  # the transport holds more than it should
        self._waiting: OrderedDict[object, asyncio.Future[None]] = OrderedDict()  # in drain()
        self._woken = 0  # how many of these calls are about to continue

    def _check_loop(self) -> None:
        # In another loop or thread, a call would wait for ever, or do what was asked at any time.
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("the connection belongs to another event loop")

    async def send(self, message: RunnerMessage) -> None:
        """Send one message. First wait, if the peer is slow to read earlier messages.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        await self.drain()
        self.send_nowait(message)

    def send_nowait(self, message: RunnerMessage, *, flush: bool = False) -> int:
        """Encode one message now, and send it without waiting for the peer.

        Returns the size of its frame in bytes.

        Arguments:
            flush: write it now, instead of at the end of the event loop iteration. While deliver()
                handles a read, this has no effect: everything is written at the end of the read.

        Raises EncodeError, and ConnectionError if the connection is closed or lost.
        """
        self._check_loop()
        if self.transport.is_closing():
            raise self._closing_error()
        frame = encode_frame(message)
        self._unsent.append(frame)
        self._frame_size = size = len(frame)
        self._unsent_size += size
        if self._hold_writes or self._write_paused:
            return size
        if flush:
            self._write()
        elif not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write_what_is_due)
        return size

    def flush(self) -> None:
        """Write what was sent now, instead of at the end of the read or event loop iteration."""
        self._check_loop()
        self._write()

    @property
    def unsent(self) -> int:
        """How many bytes of sent messages are not yet in the kernel."""
        return self._unsent_size + self.transport.get_write_buffer_size()

    @property
    def congested(self) -> bool:
        """Whether drain() would wait, because the peer is slow to read."""
        return self._write_paused or self._unsent_size > HIGH_WATER

    async def drain(self) -> None:
        """Wait while the peer is slow to read. Calls return in the order in which they were made.

        Raises ConnectionError if the connection is closed or lost.
        """
        self._check_loop()
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
        """Wake as many calls of drain() as there is room for, in the order in which they were made.

        The estimate is that each will send a frame as large as the last one. If they send more,
        the other calls keep waiting; if less, the last one to continue wakes more. So each call is
        woken about once. Waking all of them at each write would take quadratic time.
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

    def _write(self, *, everything: bool = False) -> None:
        """Pass frames to the transport: small ones joined, a large one uncopied.

        The transport keeps what the peer does not read, before CPython 3.12 as a copy. So once it
        has asked to pause, further frames stay here, unless `everything` has to go.
        """
        while self._unsent and (everything or not self._write_paused):
            if self.transport.is_closing():
                break
            frames = self._next_frames()
            # A memoryview, because asyncio slices off what the kernel has accepted, which would
            # copy bytes. Not writelines(), which in CPython 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1
            # never asks the protocol to pause (CVE-2024-12254).
            self.transport.write(frames if len(frames) <= HIGH_WATER else memoryview(frames))
        if (self._waiting or self._held_back) and not (self._write_paused or everything):
            self._wake_senders()
            if self._held_back:
                self._held_back = False
                self._on_room()

    def _on_room(self) -> None:
        """Continue the delivery of messages, which paused while drain() would have waited."""
        raise NotImplementedError

    def _next_frames(self) -> bytes:
        """Take a large frame, or as many small ones as are joined, from those not sent yet.

        They are removed once they are joined, because there may be no memory for that. Meanwhile,
        a finalizer may add others.
        """
        unsent = self._unsent
        if len(unsent) == 1:
            frames = unsent.popleft()
        else:
            everything = self._unsent_size <= _LARGEST_JOINED
            pieces = unsent.copy() if everything else self._first_frames()
            frames = b"".join(pieces)
            for _ in pieces:
                unsent.popleft()
        size = len(frames)
        self._unsent_size -= size
        return frames

    def _first_frames(self) -> list[bytes]:
        unsent = self._unsent
        pieces = [unsent[0]]
        size = len(unsent[0])
        while len(pieces) < len(unsent):
            following = unsent[len(pieces)]
            size += len(following)
            if size > _LARGEST_JOINED:
                break
            pieces.append(following)
        return pieces

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._write()

    def _closing_error(self) -> ConnectionError:
        if self._lost is None:
            return ConnectionResetError(_CLOSED)
        return self._lost.with_traceback(None)  # otherwise each raise adds to the traceback

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be: nothing can be sent."""
        return self.transport.is_closing()

    def close(self) -> None:
        """Close the connection, once everything sent before has been passed to the kernel."""
        if not self.is_closing():
            self._check_loop()
            self._write(everything=True)
            self.transport.close()
            self._wake_senders()
