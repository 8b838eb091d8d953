"""Other code that runs in the middle of a call uses the same object, or changes what the call reads.

A call gives a clean result, or an error that is documented. test_reentrancy.py has the cases that once
crashed, and test_interpreters.py has those of subinterpreters.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
from collections import Counter
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache, partial
from itertools import product
from operator import methodcaller

import pytest

from rrq_fastwire import EncodeError, FastwireError

from .interruptions import (
    at_each_moment,
    by_a_thread,
    by_signals,
    collecting,
    finalizing,
    in_a_forked_process,
    in_a_signal_handler,
    in_a_thread,
    in_place,
    profiled,
    traced,
    traced_by_bytecode,
    tracking_memory,
)

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)


@cache  # because encoding has moments, too
def frames(wire, has_messages, ids, size_of_b):
    """Frames with the ids, which are texts of one letter, repeated."""
    result = b""
    for id in ids:
        text = id * (size_of_b if id == "b" else 3)
        if has_messages:
            result += wire.encode_frame(wire.CancelRequest(job_id=text))
        else:
            result += wire.pack_frame(text.encode())
    return result


class Decoding:
    """A decoder, the ids of the messages that it was fed, and of those that it gave."""

    actions = ("take", "take_one", "feed_another", "write_another", "end", "ask", "swap")

    def __init__(self, decoder, call, wire):
        self._wire = wire
        self._has_messages = decoder == "MessageDecoder"
        self._decoder = getattr(wire, decoder)()
        self._call = call
        self._memory = bytearray()  # what the last feed() got, or get_buffer() gave
        self.fed = []
        self.taken = []
        self.feed("abc" if call in ("take", "ask") else "a")

    def _frames(self, ids, size_of_b=300):
        return frames(self._wire, self._has_messages, ids, size_of_b)

    def _add(self, taken):
        self.taken.append(taken.job_id[0] if self._has_messages else chr(taken[0]))

    # Calls

    def feed(self, ids="bc"):
        data = self._memory = bytearray(self._frames(ids))
        self._decoder.feed(data)
        self.fed += ids

    def write(self, ids="bc"):
        data = self._frames(ids)
        memory = self._memory = self._decoder.get_buffer(-1)[: len(data)]
        memory[:] = data
        self._decoder.buffer_updated(len(data))
        self.fed += ids

    def take(self):
        for taken in self._decoder:
            self._add(taken)

    def end(self):
        self._decoder.feed_eof()

    def ask(self):
        assert self._decoder.buffered >= 0

    # Other actions

    def take_one(self):
        for taken in self._decoder:
            self._add(taken)
            break

    def feed_another(self):
        self.feed("x")

    def write_another(self):
        self.write("y")

    def swap(self):
        """Overwrites what a call reads by frames with the same ids, which may be longer."""
        memory = self._memory
        if len(memory) == len(self._frames("bc")):
            longer = 50_000 if type(memory) is bytearray else 300
            with suppress(BufferError):  # the call holds a view, so it sees no new size
                memory[:] = self._frames("cb", longer)

    def do(self, name):
        """Makes a call. The decoder may refuse it, and must then leave the stream as it was."""
        try:
            getattr(self, name)()
        except RuntimeError as error:
            assert str(error) == "another call is using the decoder"
            assert self._wire.IMPLEMENTATION == "python"
        except ValueError as error:
            # Another call has used the memory of get_buffer().
            assert str(error).startswith("nbytes must be from 0 to 0, got ")

    def call(self):
        self.do(self._call)

    def check(self):
        """Each message that was fed has come out once."""
        self.take()
        self.feed("z")
        self.take()
        self.end()
        assert Counter(self.taken) == Counter(self.fed)


class Reading:
    """A function, and bytes that change. Its result is that of the bytes at some moment."""

    actions = ("swap", "call")

    def __init__(self, function, before, after):
        self._function = function
        self._contents = [before, after]
        self._allowed = [self._result(data) for data in self._contents]
        self._data = bytearray(before)

    def _result(self, data):
        try:
            return self._function(data)
        except FastwireError as error:
            return type(error), error.args, vars(error)

    def call(self):
        assert self._result(self._data) in self._allowed

    def swap(self):
        with suppress(BufferError):  # the call holds a view, so it sees no new size
            self._data[:] = self._contents[self._data == self._contents[0]]

    def do(self, name):
        getattr(self, name)()

    check = call


REQUEST, SUCCESS, FAILURE = range(3)


def message(wire, kind, text="old"):
    """A message. Its text and its collections can be changed."""
    value = {"items": [[{"text": text}], [text] * 3], "more": {"text": text}}
    if kind == SUCCESS:
        return wire.ExecutionOutcome.success(text, text, value)
    if kind == FAILURE:
        return wire.ExecutionOutcome.failure(text, text, text, details=value)
    strings = {"a": text, "b": text}
    context = wire.ExecutionContext(
        job_id=text,
        attempt=1,
        enqueue_time=NOON,
        queue_name=text,
        trace_context=strings,
        correlation_context=dict(strings),
    )
    return wire.ExecutionRequest(
        request_id=text, job_id=text, function_name=text, params=value, context=context
    )


def reading(function, kind, wire, spoil=lambda frame: frame):
    before, after = (
        spoil(wire.encode_frame(message(wire, kind, text))) for text in ("old", "new" * 3000)
    )
    if function == "decode_payload":
        before, after = before[4:], after[4:]
    return Reading(getattr(wire, function), before, after)


def in_another_form(frame):
    """The frame with a space in the JSON, so that no fast path applies."""
    return (len(frame) - 3).to_bytes(4) + frame[4:5] + b" " + frame[5:]


def without_a_name(frame):
    return frame.replace(b'"function_name"', b'"function-name"').replace(b'"status"', b'"Status"')


class Writing:
    """A function that encodes a message, and a message whose values change."""

    actions = ("rename", "add", "empty", "spoil", "call")

    def __init__(self, function, kind, wire):
        self._wire = wire
        self._message = message(wire, kind)
        self._encode = getattr(wire, function)
        self._decode = getattr(wire, function.replace("encode", "decode"))
        self._expected = self._encode(self._message)
        self._has_form = True
        self._holders = list(with_values(self._message))

    def call(self):
        """The encoded message has old and new texts, and the form that it had at some moment."""
        try:
            encoded = self._encode(self._message)
        except EncodeError:
            assert not self._has_form
        else:
            assert type(self._decode(encoded)) is type(self._message)
            if self._has_form:
                assert encoded.replace(b"new", b"old") == self._expected

    def _change(self, old, new):
        for holder in self._holders:
            for key, value in items_of(holder):
                if value == old:
                    change(holder, key, new)

    def rename(self):
        self._change("old", "new")

    def add(self):
        self._has_form = False
        for holder in self._holders:
            if type(holder) is dict:
                holder[f"key {len(holder)}"] = "new"
            elif type(holder) is list:
                holder.append("new")

    def empty(self):
        self._has_form = False
        for holder in self._holders:
            if type(holder) in (dict, list):
                holder.clear()
        with suppress(AttributeError):
            del self._message.job_id

    def spoil(self):
        self._has_form = False
        self._change("old", object())

    def do(self, name):
        getattr(self, name)()

    def check(self):
        self.call()


class Using(Writing):
    """What a message can do itself, while its values change."""

    # Not a call: the repr of a dataclass within itself is "...".
    actions = ("rename", "add", "empty", "spoil")

    def __init__(self, function, kind, wire):
        super().__init__("encode_payload", kind, wire)
        self._use = function
        self._expected = repr(function(self._message))

    def call(self):
        try:
            result = repr(self._use(self._message))
        except (AttributeError, RuntimeError):
            # A field was deleted, or a dict has grown while pickle iterated over it.
            assert not self._has_form
        else:
            if self._has_form:
                assert result.replace("new", "old") == self._expected


def built_again(message):
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    return type(message)(**fields)


def compared(message):
    """The type of what a comparison gives. What it gives depends on the moment of a change."""
    return type(message == copy.copy(message))


def with_values(holder):
    """The message, nested messages, dicts and lists."""
    if items_of(holder):
        yield holder
    for _, value in items_of(holder):
        yield from with_values(value)


def items_of(holder):
    if type(holder) is dict:
        return list(holder.items())
    if type(holder) is list:
        return list(enumerate(holder))
    names = getattr(type(holder), "__slots__", ())
    return [(name, getattr(holder, name)) for name in names if hasattr(holder, name)]


def change(holder, key, value):
    if type(holder) in (dict, list):
        holder[key] = value
    else:
        setattr(holder, key, value)


CASES = {
    **{
        f"{decoder}.{call}": partial(Decoding, decoder, call)
        for decoder in ("MessageDecoder", "FrameDecoder")
        for call in ("feed", "write", "take", "end", "ask")
    },
    "pack_frame": partial(reading, "pack_frame", SUCCESS),
    "decode_frame, request": partial(reading, "decode_frame", REQUEST),
    "decode_frame, success": partial(reading, "decode_frame", SUCCESS),
    "decode_frame, failure": partial(reading, "decode_frame", FAILURE),
    "decode_frame, other form": partial(reading, "decode_frame", REQUEST, spoil=in_another_form),
    "decode_frame, not a message": partial(reading, "decode_frame", REQUEST, spoil=without_a_name),
    "decode_frame, not a frame": partial(reading, "decode_frame", REQUEST, spoil=lambda f: f[1:]),
    "decode_payload": partial(reading, "decode_payload", SUCCESS),
    "encode_frame, request": partial(Writing, "encode_frame", REQUEST),
    "encode_frame, success": partial(Writing, "encode_frame", SUCCESS),
    "encode_frame, failure": partial(Writing, "encode_frame", FAILURE),
    "encode_payload": partial(Writing, "encode_payload", SUCCESS),
    "repr": partial(Using, repr, REQUEST),
    "construct": partial(Using, built_again, REQUEST),
    "compare": partial(Using, compared, FAILURE),
    "pickle": partial(Using, lambda message: pickle.loads(pickle.dumps(message)), REQUEST),
    "deepcopy": partial(Using, copy.deepcopy, FAILURE),
}
each_case = pytest.mark.parametrize("case", CASES)

WAYS = [
    (traced, in_place),
    *product((profiled, collecting), (in_place, in_a_signal_handler, in_a_thread)),
    (finalizing, in_place),
    (tracking_memory, in_place),
]


@each_case
@pytest.mark.parametrize(("when", "where"), WAYS)
def test_other_code_runs_at_each_moment_of_a_call(wire, case, when, where):
    if when is traced and not case.startswith("encode"):
        when = traced_by_bytecode  # encoding executes too many
    prepare = partial(CASES[case], wire)
    for action in prepare().actions:
        for subject in at_each_moment(when, where, prepare, methodcaller("do", action)):
            subject.check()


@each_case
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # since 3.12, because of the thread
def test_a_forked_process_uses_what_a_call_was_using(wire, case):
    """There, the call never ends: a decoder may stay in use."""

    def use(subject):
        for action in subject.actions:
            subject.do(action)

    prepare = partial(CASES[case], wire)
    for subject in at_each_moment(collecting, in_a_forked_process, prepare, use):
        subject.check()


@each_case
@pytest.mark.parametrize("meanwhile", [by_a_thread, by_signals])
def test_other_code_runs_all_the_time(wire, case, meanwhile):
    for _ in range(50):
        subject = CASES[case](wire)
        # The memory of get_buffer() must not be written by two threads at once.
        names = [name for name in subject.actions if name != "write_another"]
        with meanwhile([partial(subject.do, name) for name in names * 3]) as is_done:
            for _ in range(200):  # taking all messages does not end while others are fed
                if is_done():
                    break
                subject.call()
        subject.check()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that send signals here")
def test_an_exception_of_a_signal_handler_leaves_the_decoder_usable(wire):
    class AlarmError(Exception):
        pass

    def ring(number, frame):
        if armed:
            armed.pop()
            raise AlarmError

    armed = []
    decoder = wire.FrameDecoder()
    stream = wire.pack_frame(b"x" * 10) * 3000
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for _ in range(200):
            armed.append(True)
            with suppress(AlarmError):
                # It rings again, because CPython 3.11 can overlook a signal until the next one.
                signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
                while True:
                    assert decoder.buffered in (0, len(stream))
                    decoder.feed(stream)
                    list(decoder)
            signal.setitimer(signal.ITIMER_REAL, 0)
            # The stream was added as a whole or not at all, and frames are taken as a whole.
            assert decoder.buffered % 14 == 0
            assert set(decoder) <= {b"x" * 10}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
