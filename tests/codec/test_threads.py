"""The codec in several threads, with a decoder for each thread and with a shared one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from datetime import datetime, timezone

import pytest

from rrq_fastwire import EmptyFrameError

THREADS = 8
ROUNDS = 200


def together(*calls):
    """Runs each call in a thread of its own, all at once. Raises what one of them raises."""
    start = threading.Barrier(len(calls))
    failures = []

    def begin(call):
        start.wait()
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture(autouse=True)
def switch_often():
    """Makes threads switch as often as possible, where there is a GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def request(wire, text, params):
    context = wire.ExecutionContext(
        job_id=text,
        attempt=1,
        enqueue_time=datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc),
        queue_name=text,
        trace_context={"trace": text},
    )
    return wire.ExecutionRequest(
        request_id=text, job_id=text, function_name=text, params=params, context=context
    )


def test_threads_with_decoders_of_their_own_do_not_affect_each_other(wire):
    def work(number):
        text = f"thread {number}"
        sent = []
        for size in range(ROUNDS):
            sent.append(
                request(wire, text, {"items": [text] * (size % 50), "deep": [[{"a": size}]]})
            )
            sent.append(
                wire.ExecutionOutcome.success(text, f"{text}/{size}", {"n": size, "t": text})
            )
            sent.append(wire.CancelRequest(job_id=text))
        frames = [wire.encode_frame(message) for message in sent]
        stream = b"".join(frames)
        decoder = wire.MessageDecoder()
        received = []
        for at in range(0, len(stream), 777):
            received += decoder.feed(stream[at : at + 777])
        decoder.feed_eof()
        assert received == sent
        assert [wire.decode_frame(frame) for frame in frames] == sent

    together(*(lambda number=number: work(number) for number in range(THREADS)))


def test_threads_encode_and_decode_the_same_objects(wire):
    message = request(wire, "shared", {"a": [1, 2.5, None, {"b": "text"}]})
    frame = wire.encode_frame(message)
    mutable = bytearray(frame)

    def work():
        for _ in range(ROUNDS):
            assert wire.encode_frame(message) == frame
            assert wire.decode_frame(frame) == message
            assert wire.decode_frame(mutable) == message

    together(*[work] * THREADS)


def test_a_message_can_be_encoded_while_other_threads_change_it(wire):
    message = wire.ExecutionOutcome.success("j", "r", [])
    frames = set()

    def change():
        for number in range(ROUNDS * 10):
            message.request_id = f"{number:04}"
            message.result = [f"{number:04}"]

    def read():
        for _ in range(ROUNDS * 5):
            frames.add(wire.encode_frame(message))
            assert message.request_id == "r" or len(message.request_id) == 4
            assert repr(message)

    together(*[change] * 2, *[read] * 6)
    for frame in frames:
        assert wire.decode_frame(frame).job_id == "j"


def test_strings_of_a_context_are_added_and_removed_while_it_is_encoded(wire):
    message = request(wire, "shared", {})
    strings = message.context.trace_context

    def change():
        for number in range(ROUNDS * 20):
            strings[f"{number}"] = "new"
            strings.pop(f"{number - 5}", None)

    def write():
        for _ in range(ROUNDS):
            decoded = wire.decode_frame(wire.encode_frame(message))
            assert decoded.context.trace_context["trace"] == "shared"

    together(change, *[write] * 3)


@pytest.mark.parametrize("decoder", ["FrameDecoder", "MessageDecoder"])
def test_a_decoder_that_threads_share_loses_and_repeats_no_message(wire, decoder):
    """A call while another thread uses the decoder may be refused with RuntimeError."""
    shared = getattr(wire, decoder)()
    fed, taken = [], []

    def take_all():
        for given in shared:
            message = given
            if decoder == "FrameDecoder":
                message = wire.decode_frame(wire.pack_frame(given))
            taken.append(message.job_id)

    def one_turn(number, turn):
        text = f"{number}/{turn}"
        frame = wire.encode_frame(wire.CancelRequest(job_id=text))
        try:
            shared.feed(frame)
            fed.append(text)
            take_all()
            assert shared.buffered >= 0
            if turn % 10 == 0:
                shared.get_buffer(-1)
                shared.buffer_updated(0)
        except RuntimeError as error:
            assert str(error) == "another call is using the decoder"

    def work(number):
        for turn in range(ROUNDS):
            one_turn(number, turn)

    together(*(lambda number=number: work(number) for number in range(THREADS)))
    take_all()
    assert sorted(taken) == sorted(fed)
    shared.feed_eof()


def feed_soon(decoder, data):
    """Feeds the data as soon as no other call refuses it."""
    while True:
        try:
            decoder.feed(data)
            break
        except RuntimeError as error:
            assert str(error) == "another call is using the decoder"


@pytest.mark.parametrize("size", [1, 3, 10])
def test_threads_take_what_another_thread_feeds_in_pieces(wire, size):
    """Each payload comes out once, and a frame that is cut is not an error."""
    payloads = [str(number).encode() * 3 for number in range(ROUNDS)]
    stream = b"".join(map(wire.pack_frame, payloads))
    shared = wire.FrameDecoder()
    taken = []
    is_fed = threading.Event()

    def feed():
        try:
            for at in range(0, len(stream), size):
                feed_soon(shared, stream[at : at + size])
        finally:
            is_fed.set()

    def take():
        while not is_fed.is_set():
            for payload in shared:
                taken.append(payload)
            assert shared.buffered >= 0

    together(feed, *[take] * (THREADS - 1))
    taken += shared
    assert sorted(taken) == sorted(payloads)
    shared.feed_eof()


def test_the_error_that_ends_a_stream_comes_after_all_payloads_in_every_thread(wire):
    payloads = [str(number).encode() for number in range(20)]
    empty_frame = bytes(4)
    stream = b"".join(map(wire.pack_frame, payloads)) + empty_frame

    def check_one_stream():
        shared = wire.FrameDecoder()
        taken = []

        def take_for_ever():
            while True:
                for payload in shared:
                    taken.append(payload)

        def take():
            with pytest.raises(EmptyFrameError):
                take_for_ever()
            assert shared.buffered == len(empty_frame)

        together(lambda: feed_soon(shared, stream), *[take] * (THREADS - 1))
        assert sorted(taken) == sorted(payloads)

    for _ in range(ROUNDS // 10):
        check_one_stream()


def test_the_extensions_leave_the_gil_off():
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this interpreter has a GIL")
    code = "import sys, rrq_fastwire; print(rrq_fastwire.IMPLEMENTATION, sys._is_gil_enabled())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == "cython False\n"
