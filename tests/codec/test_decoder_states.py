"""Calls of a decoder in any order, compared with a model that splits the whole stream in a loop."""

from __future__ import annotations

import gc
import importlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rrq_fastwire import FrameError, MessageError, TruncatedFrameError

from ..fuzz.oracles import Raised, split

LIMIT = 300


def cancel(job_id):
    payload = b'{"type":"cancel","payload":{"job_id":"%s"}}' % job_id
    return len(payload).to_bytes(4) + payload


FRAMES = {
    "good": cancel(b"one"),
    "another": cancel(b"two"),
    "as large as the limit": cancel(b"x" * (LIMIT - len(cancel(b"")) + 4)),
    "not a message": b"\0\0\0\x02{}",
    "not JSON": b"\0\0\0\x01}",
    "empty": b"\0\0\0\0",
    "too large": (LIMIT + 1).to_bytes(4),
}
# Broken frames end a stream, so they are rarer.
NAMES = [*FRAMES, "good", "another", "not a message", "good", "another", "not JSON"]


class DecoderMachine(RuleBasedStateMachine):
    """Rules that call a decoder; what it gives is compared with split() of all that was fed."""

    wire = None  # the implementation

    def __init__(self):
        super().__init__()
        self.decoder = self.wire.MessageDecoder(LIMIT)
        self.to_feed = b""
        self.fed = b""
        self.taken = []
        self.bytes_taken = 0
        self.memory = None
        self.iterator = iter(self.decoder)
        self.failure = None  # the error that the decoder has raised, and raises at every later call

    # The model

    def expected(self):
        """The messages, and errors of messages, in the fed bytes, and the FrameError after them."""
        payloads, failure, _ = split(self.fed, LIMIT)
        results = []
        for payload in payloads:
            try:
                results.append(self.wire.decode_payload(payload))
            except MessageError as error:
                results.append(as_raised(error))
        return results, failure and as_raised(failure)

    @invariant()
    def messages_are_taken_in_order(self):
        results, _ = self.expected()
        assert self.taken == results[: len(self.taken)]

    @invariant()
    def buffered_counts_the_bytes_that_are_not_taken(self):
        payloads, _, _ = split(self.fed, LIMIT)
        taken = sum(4 + len(payload) for payload in payloads[: len(self.taken)])
        assert self.decoder.buffered == len(self.fed) - taken

    # Feeding

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    def send(self, names):
        self.to_feed += b"".join(FRAMES[name] for name in names)

    def cut(self, size):
        piece, self.to_feed = self.to_feed[:size], self.to_feed[size:]
        return piece

    def accepts(self, call, *arguments):
        """Make a call, which must raise the FrameError of an earlier call. Returns whether it worked."""
        try:
            call(*arguments)
        except FrameError as error:
            assert as_raised(error) == self.failure
            return False
        assert self.failure is None
        return True

    @rule(size=st.integers(0, 700), form=st.sampled_from([bytes, bytearray, memoryview]))
    def feed(self, size, form):
        piece = self.cut(size)
        if self.accepts(self.decoder.feed, form(piece)):
            self.fed += piece
            self.memory = None

    @rule()
    def get_buffer(self):
        try:
            self.memory = self.decoder.get_buffer(-1)
        except FrameError as error:
            assert as_raised(error) == self.failure

    @rule(size=st.integers(0, 700))
    def buffer_updated(self, size):
        piece = self.cut(size)
        if self.failure is not None:
            self.accepts(self.decoder.buffer_updated, len(piece))
        elif self.memory is not None:
            self.memory[: len(piece)] = piece
            self.decoder.buffer_updated(len(piece))
            self.memory[: len(piece)] = b"x" * len(piece)
            self.fed += piece
            self.memory = None
        elif piece:
            with pytest.raises(ValueError, match="nbytes must be from 0 to 0"):
                self.decoder.buffer_updated(len(piece))

    # Taking

    def take_one(self, source):
        """Take one message or error. Returns whether more may follow."""
        try:
            self.taken.append(next(source))
        except StopIteration:
            return False
        except MessageError as error:
            self.taken.append(as_raised(error))
        except FrameError as error:
            self.failure = as_raised(error)
            return False
        return True

    @rule(most=st.integers(0, 5))
    def abandon_an_iteration(self, most):
        for _ in range(most):
            if not self.take_one(iter(self.decoder)):
                break

    @rule()
    def resume_the_first_iteration(self):
        self.take_one(self.iterator)

    @rule()
    def take_all(self):
        while self.take_one(self.decoder):
            pass
        results, failure = self.expected()
        assert self.taken == results
        assert self.failure == failure or self.failure[0] is TruncatedFrameError

    @rule()
    def feed_eof(self):
        _, failure, rest = split(self.fed, LIMIT)
        before = self.failure
        try:
            self.decoder.feed_eof()
        except FrameError as error:
            self.failure = as_raised(error)
            if before is not None:
                assert self.failure == before
            elif failure is not None:
                assert self.failure == as_raised(failure)
            else:
                assert type(error) is TruncatedFrameError
                assert error.received == len(rest)
        else:
            assert before is None
            assert failure is None
            assert not rest
            self.memory = None

    # Wrong calls, and calls by the garbage collector

    @rule()
    def wrong_arguments(self):
        for call, wrong in (
            (self.decoder.feed, "text"),
            (self.decoder.get_buffer, None),
            (self.decoder.buffer_updated, 1.0),
        ):
            with pytest.raises(TypeError):
                call(wrong)

    @precondition(lambda self: self.failure is None)
    @rule(size=st.integers(1, 700), form=st.sampled_from([bytearray, memoryview]))
    def feed_while_the_collector_takes(self, size, form):
        piece = form(self.cut(size))
        entered = []

        def take(phase, _):
            if phase == "start" and not entered:
                entered.append(True)
                self.take_one(self.decoder)

        fed, self.fed = self.fed, self.fed + bytes(piece)
        before = gc.get_threshold()
        gc.callbacks.append(take)
        gc.set_threshold(1, 1000, 1000)
        try:
            self.decoder.feed(piece)
        except FrameError as error:  # take() has met it before the piece was added
            assert as_raised(error) == self.failure
            self.fed = fed
        else:
            self.memory = None
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(take)


def as_raised(error):
    return Raised(type(error), error.args, str(error))


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", ["c", "py"])
def test_decoder_gives_what_the_model_gives(name):
    try:
        wire = importlib.import_module(f"rrq_fastwire._{name}")
    except ImportError as error:
        pytest.skip(f"the compiled implementation is not built here: {error}")
    machine = type("Machine", (DecoderMachine,), {"wire": wire})
    # Fewer examples than in other tests, because one has up to 50 steps.
    few = settings(max_examples=settings().max_examples // 2, deadline=None)
    run_state_machine_as_test(machine, settings=few)
