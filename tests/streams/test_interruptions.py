"""A finalizer sends a message in the middle of a call of the same stream.

For example, a coroutine that is garbage is closed, and sends a cancel in its `finally`. The moments
are those of ../codec/interruptions.py. Another thread gets a RuntimeError, as test_wrong_use.py shows.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from operator import methodcaller

import pytest

from rrq_fastwire import MessageDecoder
from rrq_fastwire.streams import MessageStream

from ..codec.interruptions import (
    at_each_moment,
    collecting,
    finalizing,
    in_place,
    profiled,
    traced,
)
from ..stream_peers import frames, message, name


class Transport:
    """Keeps what is written, until it is closed."""

    def __init__(self):
        self.written = b""
        self._is_closing = False

    def get_extra_info(self, name):
        return None

    def is_closing(self):
        return self._is_closing

    def write(self, data):
        if not self._is_closing:
            self.written += data

    def get_write_buffer_size(self):
        return 0

    def close(self):
        self._is_closing = True


class Subject:
    """A stream, and the names of the messages that were sent, and of those that were taken."""

    def __init__(self, call):
        self._call = call
        self._stream = MessageStream()
        self._transport = Transport()
        self._stream.connection_made(self._transport)
        self._sent = []
        self._earlier = {}  # which messages were sent before each other one
        self._taken = []
        self._due = None  # what was sent before close() was called
        if call in ("flush", "close"):
            self.send()
        elif call == "flush_many":
            for letter in "abcdefgh":
                self._send(letter, size=60_000)
        elif call == "deliver":
            self._stream.on_message = self._take_and_answer

    def _send(self, letter, size=0, *, flush=False):
        self._earlier[letter] = list(self._sent)
        with suppress(ConnectionResetError):
            self._stream.send_nowait(message(letter, size), flush=flush)
            self._sent.append(letter)

    def _take_and_answer(self, received):
        self._taken.append(name(received))
        self._send(name(received).upper())

    # Calls

    def send(self):
        self._send("a")
        self._send("b", flush=self._call == "send")
        self._send("c")

    def flush(self):
        self._stream.flush()

    flush_many = flush

    def receive(self):
        data = frames("x", "y", "z")
        self._stream.get_buffer(-1)[: len(data)] = data
        self._stream.buffer_updated(len(data))
        if self._call == "receive":
            self.take()

    deliver = receive

    def close(self):
        self._due = list(self._sent)
        self._stream.close()

    def take(self):
        while (received := self._stream.receive_nowait()) is not None:
            self._taken.append(name(received))

    def send_another(self):
        self._send("r")

    def call(self):
        getattr(self, self._call)()

    def check(self):
        """What was sent has left once and in order, and what has arrived was taken once."""
        if self._call in ("receive", "deliver"):
            self.take()
            assert sorted(self._taken) == ["x", "y", "z"]
        written = [name(each) for each in MessageDecoder().feed(self._transport.written)]
        assert len(written) == len(set(written))
        assert set(written) >= set(self._sent if self._due is None else self._due)
        for at, letter in enumerate(written):
            assert set(self._earlier[letter]) <= set(written[:at]), written
        if self._due is None:
            assert self._stream.unsent == 0


CALLS = ("send", "flush", "flush_many", "receive", "deliver", "close")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("when", [traced, profiled, collecting, finalizing])
def test_a_message_is_sent_at_each_moment_of_a_call(run, call, when):
    async def scenario():
        for subject in at_each_moment(
            when, in_place, partial(Subject, call), methodcaller("send_another")
        ):
            await asyncio.sleep(0)  # what was sent without flush leaves now
            subject.check()

    run(scenario())
