"""Streams: the same messages and errors, whatever the pieces in which the bytes are fed."""

from __future__ import annotations

import gc
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrq_fastwire import (
    EmptyFrameError,
    FrameError,
    FrameTooLargeError,
    MessageError,
    TruncatedFrameError,
)

LIMIT = 500


def cancel(job_id):
    payload = f'{{"type":"cancel","payload":{{"job_id":"{job_id}"}}}}'.encode()
    return len(payload).to_bytes(4, "big") + payload


def items(decoder):
    """All messages or payloads that iteration gives, and the errors between and after them."""
    found = []
    while True:
        try:
            found.extend(decoder)
        except MessageError as error:
            found.append((str(error), error.payload))
        except FrameError as error:
            found.append((type(error), error.args))
            return found
        else:
            return found


def expected(wire, stream, of):
    """What items() must return, by a simple loop over the whole stream."""
    found = []
    pos = 0
    while len(stream) - pos >= 4:
        length = int.from_bytes(stream[pos : pos + 4], "big")
        if length == 0:
            return [*found, (EmptyFrameError, ())]
        if length > LIMIT:
            return [*found, (FrameTooLargeError, (length, LIMIT))]
        if len(stream) - pos - 4 < length:
            break
        payload = stream[pos + 4 : pos + 4 + length]
        if of == "FrameDecoder":
            found.append(payload)
        else:
            try:
                found.append(wire.decode_frame(stream[pos : pos + 4 + length]))
            except MessageError as error:
                found.append((str(error), error.payload))
        pos += 4 + length
    return found


FRAMES = st.one_of(
    st.text("abé", max_size=60).map(cancel),
    st.binary(min_size=1, max_size=40).map(
        lambda payload: len(payload).to_bytes(4, "big") + payload
    ),
    st.sampled_from(
        [b"\0\0\0\0", (LIMIT + 1).to_bytes(4, "big"), b"\xff\xff\xff\xff", b"\0", b"\0\0\0\x05abc"]
    ),
)


def pieces(stream, cuts):
    edges = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def hand_over(decoder, piece, how):
    """Feeds a piece in the given way, and overwrites the memory of the piece afterwards."""
    if how == "get_buffer":
        view = decoder.get_buffer(-1)
        while piece:
            taken = min(len(piece), len(view))
            view[:taken] = piece[:taken]
            decoder.buffer_updated(taken)
            piece = piece[taken:]
            if piece:
                view = decoder.get_buffer(len(piece))
    elif how == "bytes":
        decoder.feed(piece)
    else:
        memory = bytearray(piece)
        decoder.feed(memory if how == "bytearray" else memoryview(memory))
        memory[:] = b"\xee" * len(memory)


@given(
    frames=st.lists(FRAMES, max_size=8),
    cuts=st.lists(st.integers(0, 10**6), max_size=12) | st.just(range(1500)),
    hows=st.lists(
        st.sampled_from(["bytes", "bytearray", "memoryview", "get_buffer"]), min_size=1, max_size=5
    ),
    eager=st.booleans(),
    of=st.sampled_from(["FrameDecoder", "MessageDecoder"]),
)
def test_cuts_and_types_make_no_difference(wire, frames, cuts, hows, eager, of):
    stream = b"".join(frames)
    decoder = getattr(wire, of)(max_frame_size=LIMIT)
    found = []
    fed = 0
    for at, piece in enumerate(pieces(stream, cuts)):
        try:
            hand_over(decoder, piece, hows[at % len(hows)])
        except FrameError:
            break
        fed += len(piece)
        if eager:
            found += items(decoder)
    if not eager:
        found += items(decoder)
    assert found == expected(wire, stream, of)
    broken = (
        found
        and isinstance(found[-1], tuple)
        and found[-1][0] in (EmptyFrameError, FrameTooLargeError)
    )
    if not broken:
        whole = wire.FrameDecoder(max_frame_size=LIMIT).feed(stream)
        taken = sum(4 + len(payload) for payload in whole)
        assert decoder.buffered == len(stream) - taken == whole.buffered


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([b"\0\0\0\x01a"], [b"a"]),
        ([b"\0", b"\0", b"\0", b"\x01", b"a"], [b"a"]),
        ([b"\0\0\0\x01a\0\0\0", b"\x02bc"], [b"a", b"bc"]),
        ([b"\0\0\0\x01a\0", b"\0\0\x01b\0", b"\0\0\x01c\0\0"], [b"a", b"b", b"c"]),
        ([b"\0\0\0\x05abcde", b"\0\0\0\x05fg", b"hij"], [b"abcde", b"fghij"]),
        ([b"\0\0\0\x06"], [(FrameTooLargeError, (6, 5))]),
        ([b"\0\0", b"\0\x06"], [(FrameTooLargeError, (6, 5))]),
        ([b"\0\0\0\0"], [(EmptyFrameError, ())]),
        ([b"\0\0", b"\0\0"], [(EmptyFrameError, ())]),
        ([b"\0\0\0\x01a\0\0\0\0\0\0\0\x01b"], [b"a", (EmptyFrameError, ())]),
    ],
)
@pytest.mark.parametrize("eager", [True, False])
def test_payloads_and_errors_are_found_at_any_cut(wire, pieces, found, eager):
    decoder = wire.FrameDecoder(max_frame_size=5)
    taken = []
    for piece in pieces:
        decoder.feed(piece)
        if eager:
            taken += items(decoder)
    assert taken + ([] if eager else items(decoder)) == found


@pytest.mark.parametrize("of", ["FrameDecoder", "MessageDecoder"])
def test_the_error_that_ends_a_stream_comes_again_at_every_later_call(wire, of):
    decoder = getattr(wire, of)().feed(cancel("a") + b"\0\0\0\0" + cancel("b"))
    next(decoder)
    for call in (
        lambda: next(decoder),
        lambda: next(decoder),
        lambda: list(decoder),
        lambda: decoder.feed(b"x"),
        lambda: decoder.feed(bytearray(b"x")),
        decoder.feed_eof,
        lambda: decoder.get_buffer(-1),
        lambda: decoder.buffer_updated(0),
    ):
        with pytest.raises(EmptyFrameError):
            call()


@pytest.mark.parametrize("of", ["FrameDecoder", "MessageDecoder"])
@pytest.mark.parametrize("earlier", [cancel("a") + b"\0\0", b"\0\0\0\x02x", b"\0\0\0\0"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_decoder_that_is_initialized_again_is_like_a_new_one(wire, earlier, eager, of):
    decoder = getattr(wire, of)()
    decoder.feed(earlier[:3]).feed(earlier[3:])
    decoder.get_buffer(-1)
    if eager:
        items(decoder)
    held = decoder.buffered
    with pytest.raises(ValueError, match="max_frame_size"):
        decoder.__init__(0)
    assert decoder.buffered == held
    decoder.__init__(LIMIT)
    with pytest.raises(ValueError, match="nbytes must be from 0 to 0"):
        decoder.buffer_updated(1)
    stream = cancel("b") + b"\0\0\x02\0"
    assert items(decoder.feed(stream)) == expected(wire, stream, of)


def test_iteration_goes_on_after_a_payload_that_is_not_a_message(wire):
    stream = cancel("a") + b"\0\0\0\x02no" + cancel("b") + cancel("c")
    decoder = wire.MessageDecoder().feed(stream)
    assert next(decoder).job_id == "a"
    with pytest.raises(MessageError):
        next(decoder)
    assert [message.job_id for message in decoder] == ["b", "c"]


def test_the_end_of_a_stream_between_frames_is_clean(wire):
    decoder = wire.MessageDecoder()
    decoder.feed_eof()
    decoder.feed(cancel("a")).feed_eof()
    assert [message.job_id for message in decoder] == ["a"]
    decoder.feed_eof()


@pytest.mark.parametrize(
    ("half", "expected"),
    [(b"\0", 4), (b"\0\0\0", 4), (b"\0\0\0\x09", 13), (cancel("b")[:-1], len(cancel("b")))],
)
@pytest.mark.parametrize("eager", [True, False])
def test_the_end_of_a_stream_inside_a_frame_is_an_error_after_the_complete_ones(
    wire, half, expected, eager
):
    decoder = wire.MessageDecoder().feed(cancel("a") + half)
    if eager:
        assert [message.job_id for message in decoder] == ["a"]
    with pytest.raises(TruncatedFrameError) as caught:
        decoder.feed_eof()
    assert (caught.value.expected, caught.value.received) == (expected, len(half))
    if not eager:
        assert next(decoder).job_id == "a"
    with pytest.raises(TruncatedFrameError):
        next(decoder)
    with pytest.raises(TruncatedFrameError):
        decoder.feed(b"rest")


def test_memory_of_get_buffer_counts_what_was_written_to_it_and_no_more(wire):
    decoder = wire.MessageDecoder()
    with pytest.raises(ValueError, match="nbytes must be from 0 to 0, got 1"):
        decoder.buffer_updated(1)
    view = decoder.get_buffer(-1)
    for wrong in (-1, len(view) + 1, 2**70):
        with pytest.raises(ValueError, match=f"nbytes must be from 0 to {len(view)}, got "):
            decoder.buffer_updated(wrong)
        with pytest.raises(ValueError, match="nbytes must be from 0 to 0, got 1"):
            decoder.buffer_updated(1)
        view = decoder.get_buffer(-1)
    assert decoder.buffer_updated(0) is decoder
    view = decoder.get_buffer(-1)
    view[: len(cancel("a"))] = cancel("a")
    assert [message.job_id for message in decoder.buffer_updated(len(cancel("a")))] == ["a"]
    with pytest.raises(ValueError, match="nbytes must be from 0 to 0, got 1"):
        decoder.buffer_updated(1)
    decoder.get_buffer(10**12)
    decoder.feed(cancel("b"))
    with pytest.raises(ValueError, match="nbytes must be from 0 to 0, got 1"):
        decoder.buffer_updated(1)
    assert [message.job_id for message in decoder] == ["b"]


def test_memory_handed_out_does_not_count_after_the_end_of_the_stream(wire):
    decoder = wire.MessageDecoder()
    decoder.get_buffer(-1)[:2] = b"\0\0"
    decoder.feed_eof()
    with pytest.raises(ValueError, match="nbytes must be from 0 to 0, got 2"):
        decoder.buffer_updated(2)


def test_a_frame_error_comes_without_another_exception(wire):
    for stream in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        decoder = wire.MessageDecoder().feed(stream)
        errors = []
        for _ in range(2):
            with pytest.raises(FrameError) as caught:
                next(decoder)
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)
            errors.append(caught.value)
        assert errors[0] is not errors[1]


def test_messages_can_be_taken_while_memory_is_handed_out(wire):
    decoder = wire.MessageDecoder().feed(cancel("a") + cancel("b")[:3])
    view = decoder.get_buffer(-1)
    assert [message.job_id for message in decoder] == ["a"]
    rest = cancel("b")[3:]
    view[: len(rest)] = rest
    assert [message.job_id for message in decoder.buffer_updated(len(rest))] == ["b"]


def test_memory_handed_out_earlier_is_harmless(wire):
    decoder = wire.FrameDecoder()
    views = []
    for _ in range(40):
        view = decoder.get_buffer(-1)
        size = min(len(view), 5000)
        view[:size] = (cancel("x" * 96) * 60)[:size] if not views else b"x" * size
        decoder.buffer_updated(size)
        views.append(view)
        try:
            list(decoder)
        except FrameError:
            break
        for old in views:
            old[:] = b"\xff" * len(old)


@pytest.mark.parametrize("size", [1, 1024, 64 * 1024])
@pytest.mark.parametrize("how", ["bytes", "bytearray", "get_buffer"])
def test_the_work_for_a_large_frame_is_linear_in_its_bytes(wire, size, how):
    length = 4 * 1024 * 1024 if size > 1 else 128 * 1024
    frame = wire.pack_frame(bytes(length))
    decoder = wire.FrameDecoder()
    for at in range(0, len(frame), size):
        hand_over(decoder, frame[at : at + size], how)
        if at + size < len(frame):
            assert list(decoder) == []
    assert list(decoder) == [frame[4:]]
    # Bytes are copied into the buffer, at most twice more as the buffer grows, and out of it.
    assert decoder._copied <= 4 * len(frame)


@pytest.mark.parametrize("how", ["bytes", "bytearray", "get_buffer"])
@pytest.mark.parametrize("eager", [True, False])
def test_the_work_for_many_small_frames_is_linear_in_their_bytes(wire, how, eager):
    stream = cancel("x" * 500) * 8000
    decoder = wire.FrameDecoder()
    taken = 0
    for at in range(0, len(stream), 1024 * 1024):
        hand_over(decoder, stream[at : at + 1024 * 1024], how)
        taken += len(list(decoder)) if eager else next(decoder) is not None
    taken += len(list(decoder))
    assert taken == 8000
    assert decoder._copied <= 4 * len(stream)


def test_taking_one_frame_a_piece_from_a_long_backlog_is_linear(wire):
    frame = cancel("x" * 500)
    decoder = wire.FrameDecoder().feed(frame * 2000)
    for _ in range(4000):
        decoder.feed(frame)
        next(decoder)
    assert decoder._copied <= 5 * 6000 * len(frame)


def held_by(action):
    """Bytes of memory that are still held after the action."""
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")
    gc.collect()
    tracemalloc.start()
    try:
        kept = action()
        return tracemalloc.get_traced_memory()[0], kept
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["bytes", "bytearray", "get_buffer"])
def test_a_declared_length_reserves_nothing(wire, how):
    def feed_header():
        decoder = wire.MessageDecoder()
        hand_over(decoder, (16 * 1024 * 1024).to_bytes(4, "big"), how)
        assert list(decoder) == []
        hand_over(decoder, b"{", how)
        assert list(decoder) == []
        return decoder

    held, decoder = held_by(feed_header)
    assert decoder.buffered == 5
    assert held < 64 * 1024


@pytest.mark.parametrize("how", ["bytes", "bytearray", "get_buffer"])
@pytest.mark.parametrize("rest", [b"", b"\0\0"])
def test_memory_of_a_large_frame_is_given_back(wire, how, rest):
    stream = wire.pack_frame(bytes(10_000_000)) + rest

    def feed_large_frame():
        decoder = wire.FrameDecoder()
        for at in range(0, len(stream), 64 * 1024):
            hand_over(decoder, stream[at : at + 64 * 1024], how)
            for payload in decoder:
                assert len(payload) == 10_000_000
                del payload
        return decoder

    held, decoder = held_by(feed_large_frame)
    assert decoder.buffered == len(rest)
    assert held < 64 * 1024


def test_the_payload_of_an_error_does_not_keep_the_stream_alive(wire):
    decoder = wire.MessageDecoder()
    memory = bytearray(b"\0\0\0\x02no")
    with pytest.raises(MessageError) as caught:
        next(decoder.feed(memory))
    memory.clear()  # raises BufferError if the decoder or the error still refers to it
    assert caught.value.payload == b"no"
