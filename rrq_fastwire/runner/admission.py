"""Limits of connections: who may connect, how many, and how long a message may take to arrive."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from ipaddress import ip_address

from .. import MAX_FRAME_SIZE, MessageDecoder
from .arguments import check_count, check_seconds
from .defaults import DEFAULT_HEADER_TIMEOUT, DEFAULT_MAX_CONNECTIONS
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..streams import MessageStream
    from ..streams.stream import OnStream
    from .arguments import Network

__all__ = ["Admission"]

# A message is late if it is still incomplete after this many checks, spread over the timeout. With
# only one check, each message would be late after the event loop was blocked for long.
_CHECKS = 4


class Admission:
    """Pass connections on to the runner; refuse and count those that exceed a limit.

    Arguments:
        allow_from: the networks that may connect, besides loopback; None admits every address.
        max_connections: the most connections at a time.
        max_frame_size: the largest payload that a frame header may declare, in bytes.
        header_timeout: seconds until the first message of a connection must be complete. The same
            limit applies to a later message that is incomplete when another client connects. 0 is
            no limit.

    Attributes:
        refused: how many connections were refused or closed, by reason.
        is_held: whether the runner has paused reading, so that no message counts as late.
        on_refused: called with the reason of each refusal.
    """

    def __init__(
        self,
        *,
        allow_from: Sequence[Network] | None = None,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        max_frame_size: int = MAX_FRAME_SIZE,
        header_timeout: float = DEFAULT_HEADER_TIMEOUT,
    ) -> None:
        check_count("max_connections", max_connections)
        MessageDecoder(max_frame_size)  # raises TypeError and ValueError for a wrong limit
        check_seconds("header_timeout", header_timeout)
        self._networks = allow_from
        self._max_connections = max_connections
        self.max_frame_size = max_frame_size
        self._header_timeout = header_timeout
        self.refused: Counter[str] = Counter()
        self.is_held = False
        self.on_refused: Callable[[str], object] = lambda _: None
        self._streams: set[MessageStream] = set()
        self._watches: dict[MessageStream, _Watch] = {}
        self._next_search = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, on_stream: OnStream, *, is_new: bool = True) -> OnStream:
        """Return a function for a server to call, which passes admitted connections to on_stream().

        Arguments:
            is_new: whether the connections are new, so that a first message must arrive in time.
        """

        async def admitted(stream: MessageStream) -> None:
            reason = self._reason_to_refuse(stream)
            if reason is not None:
                self._refuse(stream, reason)
                return
            if self._header_timeout:
                # Called before the stream is added, because deliver() has not set its function yet.
                self._watch_incomplete_messages()
                if is_new:
                    # The callback runs after deliver() has begun and before the first message.
                    asyncio.get_running_loop().call_soon(self._watch, stream)
            self._streams.add(stream)
            try:
                await on_stream(stream)
            finally:
                self._streams.discard(stream)
                self._forget(stream)

        return admitted

    def _reason_to_refuse(self, stream: MessageStream) -> str | None:
        if self._networks is not None and not self._is_allowed(stream):
            return "address"
        if len(self._streams) >= self._max_connections:
            return "max_connections"
        return None

    def _is_allowed(self, stream: MessageStream) -> bool:
        peer: Any = stream.transport.get_extra_info("peername")
        if not peer:  # it has closed the connection already
            return False
        address = ip_address(peer[0])
        address = getattr(address, "ipv4_mapped", None) or address
        assert self._networks is not None
        return address.is_loopback or any(address in network for network in self._networks)

    def _refuse(self, stream: MessageStream, reason: str) -> None:
        self.refused[reason] += 1
        self.on_refused(reason)
        count = self.refused[reason]
        # Log only refusals 1, 2, 4, 8, ..., so that refused connections cannot fill the log.
        if count & (count - 1) == 0:
            peer: Any = stream.transport.get_extra_info("peername") or ("?",)
            text = "%s: connection refused (%s); %d so far"
            log(logging.WARNING, text, peer[0], reason, count)
        stream.abort()

    # Messages that do not arrive

    def _watch(self, stream: MessageStream) -> None:
        """Watch a connection until its next message."""
        if stream in self._streams and stream not in self._watches:
            self._watches[stream] = _Watch(stream, self._forget)
            self._check_later()

    def _forget(self, stream: MessageStream) -> None:
        """Stop watching a connection.

        The timer stops with the last one, because it costs time in each event loop iteration.
        """
        self._watches.pop(stream, None)
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_incomplete_messages(self) -> None:
        """Watch connections whose next message is incomplete. Called for each new connection.

        Not earlier: an incomplete message does no harm until another client connects, and the timer
        costs time.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next_search:
            return
        self._next_search = now + self._header_timeout / _CHECKS
        for stream in self._streams:
            if stream.buffered:
                self._watch(stream)

    def _check_later(self) -> None:
        if self._timer is None and self._watches:
            seconds = self._header_timeout / _CHECKS
            self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        """Close the connections whose message is late."""
        self._timer = None
        for stream, watch in list(self._watches.items()):
            if not watch.is_waiting():
                del self._watches[stream]
            elif not (self.is_held or stream.congested or stream.delivery_due):
                watch.checks += 1
                if watch.checks > _CHECKS:
                    del self._watches[stream]
                    self._refuse(stream, "header_timeout")
        self._check_later()

    def stop(self) -> None:
        """Stop the timer."""
        self._watches.clear()
        if self._timer is not None:
            self._timer.cancel()


class _Watch:
    """Notice the next message of a stream, by replacing the function given to deliver().

    When that message arrives, the function is put back. So later messages cost no more than before.

    Arguments:
        done: called with the stream when a message has arrived.

    Attributes:
        checks: how many times a check has found the message to be missing.
    """

    def __init__(self, stream: MessageStream, done: Callable[[MessageStream], object]) -> None:
        self.checks = 0
        self._stream = stream
        self._done = done
        self._on_message = stream.on_message
        if self._on_message is not None:
            stream.on_message = self._take

    def _take(self, message: Any) -> None:
        on_message = self._on_message
        assert on_message is not None
        if self.is_waiting():
            self._stream.on_message = on_message
            self._done(self._stream)
        on_message(message)

    def is_waiting(self) -> bool:
        """Return whether the message is still missing.

        After an invalid message it is not: that ends deliver(), which removes the function.
        """
        return self._stream.on_message == self._take
