"""A TCP proxy that passes on bytes, ends and resets of both sides unchanged.

Bytes are passed on in the event loop iteration in which they arrive. Watchers get them after that.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ...runner.backlog import create_server
from ..reset import reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Watcher(Protocol):
        """Methods that are called with the events of one connection. They must not raise."""

        def passed(self, data: bytes, *, to_runner: bool) -> None:
            """Called after bytes have been passed on."""

        def ended(self, *, by_runner: bool) -> None:
            """Called when one side will send no more."""

        def was_reset(self, *, by_runner: bool) -> None:
            """Called when one side has reset the connection, or has become unreachable."""

        def was_refused(self, error: OSError) -> None:
            """Called when no connection to the runner can be made. The other side is reset."""

        def over(self) -> None:
            """Called last, when the connection is closed on both sides."""


class _End(asyncio.Protocol):
    """The proxy's socket towards one side of a connection.

    Attributes:
        other: the socket towards the other side.
        transport: the transport of asyncio; None while this is not connected.
        finished: done once no more bytes will arrive here.
    """

    other: _End

    def __init__(self, pair: _Pair, *, is_runner: bool) -> None:
        self._pair = pair
        self._is_runner = is_runner
        self.transport: asyncio.Transport | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if not self._is_runner:
            # Paused until the runner is connected. Not at once, because CPython 3.11.2 starts to
            # read after this method has returned, even if it was paused here.
            asyncio.get_running_loop().call_soon(self.transport.pause_reading)
            self._pair.connect()

    def data_received(self, data: bytes) -> None:
        to = self.other.transport
        assert to is not None
        if not to.is_closing():
            to.write(data)
        self._pair.watcher.passed(data, to_runner=not self._is_runner)

    def eof_received(self) -> bool:
        to = self.other.transport
        assert to is not None
        if self.other.finished.done():
            self.close()
            self.other.close()
        elif not to.is_closing():
            to.write_eof()
        self._finish()
        return True  # keep the transport open for the other direction

    def pause_writing(self) -> None:
        assert self.other.transport is not None
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        if isinstance(exc, OSError):
            self._pair.watcher.was_reset(by_runner=self._is_runner)
            self.other.reset()
        else:
            self.other.close()
        self._pair.lost(self)

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
            self._pair.watcher.ended(by_runner=self._is_runner)

    def close(self) -> None:
        """Close the socket after everything written has been sent."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Close the socket with a reset."""
        if self.transport is not None and not self.transport.is_closing():
            reset(self.transport)


class _Pair:
    """A connection through the proxy: its two sockets and its watcher."""

    def __init__(self, proxy: Proxy, watcher: Watcher) -> None:
        self._proxy = proxy
        self.watcher = watcher
        self.front = _End(self, is_runner=False)
        self.back = _End(self, is_runner=True)
        self.front.other, self.back.other = self.back, self.front
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connecting: asyncio.Task[None] | None = None

    def connect(self) -> None:
        self._proxy.pairs.add(self)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.back, *self._proxy.target
            )
        except OSError as error:
            self.watcher.was_refused(error)
            self.front.reset()
            return
        assert self.front.transport is not None
        self.front.transport.resume_reading()

    def lost(self, end: _End) -> None:
        """Note that one socket is closed, and end the connection when both are."""
        end.transport = None
        if self.front.transport is None and self._connecting is not None:
            self._connecting.cancel()
        if self.front.transport is None and self.back.transport is None and not self.closed.done():
            self.closed.set_result(None)
            self._proxy.pairs.discard(self)
            self.watcher.over()


class Proxy:
    """A proxy that passes connections on to a target.

    Arguments:
        target: the host and port of the runner.
        watch: called with the number of each connection, starting at 1; returns its watcher.
    """

    def __init__(self, target: tuple[str, int], watch: Callable[[int], Watcher]) -> None:
        self.target = target
        self.pairs: set[_Pair] = set()
        self._watch = watch
        self._count = 0
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> None:
        """Start to accept connections. Raises OSError."""
        self._server = await create_server(self._accept, host, port)

    def _accept(self) -> _End:
        self._count += 1
        return _Pair(self, self._watch(self._count)).front

    async def runner_finished(self, seconds: float) -> None:
        """Wait until everything that an ended runner has sent is received, or the time is over."""
        await _wait((pair.back.finished for pair in self.pairs), seconds)

    async def close(self, seconds: float) -> None:
        """Close all connections, once everything received is passed on or the time is over."""
        assert self._server is not None
        self._server.close()
        pairs = list(self.pairs)
        for pair in pairs:
            pair.front.close()
            pair.back.close()
        await _wait((pair.closed for pair in pairs), seconds)
        for pair in pairs:
            for end in (pair.front, pair.back):
                if end.transport is not None:
                    # A normal end would hide that not all bytes were sent.
                    reset(end.transport)
        await _wait((pair.closed for pair in pairs), seconds)


async def _wait(futures: Iterable[asyncio.Future[None]], seconds: float) -> None:
    waiting = list(futures)
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)
