"""Who may connect, how many at a time, and how long a message may take to arrive."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from ipaddress import ip_address, ip_network

from .. import MAX_FRAME_SIZE
from .defaults import DEFAULT_HEADER_TIMEOUT, DEFAULT_MAX_CONNECTIONS
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any, TypeAlias

    from ..streams import MessageStream
    from ..streams.stream import OnStream

    Network: TypeAlias = IPv4Network | IPv6Network

__all__ = ["Admission", "parse_networks"]

# A message is late if it is incomplete each time that its connection is looked at. So an event loop
# that is blocked for long, and looks once after that, does not make it late.
_LOOKS = 4


def parse_networks(texts: Iterable[str]) -> list[Network]:
    """The networks of "10.1.0.0/16", or of single addresses. Raises ValueError."""
    return [ip_network(text.strip()) for text in texts]


class Admission:
    """Gives connections to the runner, refuses and counts those that are not allowed.

    Arguments:
        allow_from: the networks that may connect, and loopback; None admits all.
        max_connections: how many connections there may be at a time.
        max_frame_size: the most bytes of payload that a message may announce.
        header_timeout: seconds until the first message is complete, and also one that has begun
            when others connect; 0 is no limit.

    Attributes:
        refused: how many connections were refused or closed, by reason.
        is_held: whether connections are not read for the moment, so that no message is late.
        on_refused: called with the reason of each.
    """

    def __init__(
        self,
        *,
        allow_from: Iterable[str] | None = None,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        max_frame_size: int = MAX_FRAME_SIZE,
        header_timeout: float = DEFAULT_HEADER_TIMEOUT,
    ) -> None:
        self._networks = None if allow_from is None else parse_networks(allow_from)
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

    def serve(self, on_stream: OnStream, *, is_new: bool = True) -> OnStream:
        """What a server is to call with each connection, so that on_stream() gets those admitted.

        Arguments:
            is_new: whether a first message is to be waited for.
        """

        async def admitted(stream: MessageStream) -> None:
            reason = self._reason_to_refuse(stream)
            if reason is not None:
                self._refuse(stream, reason)
                return
            self._streams.add(stream)
            if self._header_timeout:
                self._watch_those_that_have_begun()
                if is_new:
                    # This is after deliver() has begun, and before it delivers the first message.
                    asyncio.get_running_loop().call_soon(self._watch, stream)
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
        if not peer:  # it has gone away already
            return False
        address = ip_address(peer[0])
        address = getattr(address, "ipv4_mapped", None) or address
        assert self._networks is not None
        return address.is_loopback or any(address in network for network in self._networks)

    def _refuse(self, stream: MessageStream, reason: str) -> None:
        self.refused[reason] += 1
        self.on_refused(reason)
        count = self.refused[reason]
        # Who makes connections in order to fill the log does not succeed.
        if count & (count - 1) == 0:
            peer: Any = stream.transport.get_extra_info("peername") or ("?",)
            text = "%s: connection refused (%s); %d so far"
            log(logging.WARNING, text, peer[0], reason, count)
        stream.abort()

    # Messages that do not arrive

    def _watch(self, stream: MessageStream) -> None:
        """Waits for the next message of a connection."""
        if stream in self._streams and stream not in self._watches:
            self._watches[stream] = _Watch(stream, self._forget)
            self._look_later()

    def _forget(self, stream: MessageStream) -> None:
        """A timer costs each iteration of asyncio's event loop: there is none for nothing."""
        self._watches.pop(stream, None)
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_those_that_have_begun(self) -> None:
        """Called with each new connection: without one, a message may take the time that it takes.

        Nothing else would be worth a timer, and there are no more connections for it to hold.
        """
        now = asyncio.get_running_loop().time()
        if now < self._next_search:
            return
        self._next_search = now + self._header_timeout / _LOOKS
        for stream in self._streams:
            if stream._decoder.buffered:
                self._watch(stream)

    def _look_later(self) -> None:
        if self._timer is None and self._watches:
            seconds = self._header_timeout / _LOOKS
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Closes connections whose message is late."""
        self._timer = None
        for stream, watch in list(self._watches.items()):
            if not watch.is_waiting():
                del self._watches[stream]
            elif not (self.is_held or stream.congested):
                watch.looks += 1
                if watch.looks > _LOOKS:
                    self._refuse(stream, "header_timeout")
        self._look_later()

    def stop(self) -> None:
        """Ends the timer."""
        self._watches.clear()
        if self._timer is not None:
            self._timer.cancel()


class _Watch:
    """Waits for the next message of a stream, in the place of what deliver() was given.

    Only a connection that is waited for pays for it, and only until its next message.

    Arguments:
        done: called with the stream when a message has come.

    Attributes:
        looks: how often the message was found to be missing.
    """

    def __init__(self, stream: MessageStream, done: Callable[[MessageStream], object]) -> None:
        self.looks = 0
        self._stream = stream
        self._done = done
        self._on_message = stream._on_message
        if self._on_message is not None:
            stream._on_message = self._take

    def _take(self, message: Any) -> None:
        on_message = self._on_message
        assert on_message is not None
        if self.is_waiting():
            self._stream._on_message = on_message
            self._done(self._stream)
        on_message(message)

    def is_waiting(self) -> bool:
        """Whether no message has come since. One that is not valid ends deliver(), too."""
        return self._stream._on_message == self._take
