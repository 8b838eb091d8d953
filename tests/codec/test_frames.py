"""Single frames: the header, the limits on both sides, and the types that are accepted."""

from __future__ import annotations

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    EmptyFrameError,
    EncodeError,
    FastwireError,
    FrameTooLargeError,
    TruncatedFrameError,
)

CANCEL = b'{"type":"cancel","payload":{"job_id":"j"}}'
HEADER = len(CANCEL).to_bytes(4, "big")


def test_the_constants_have_the_values_of_the_protocol(wire):
    assert (wire.FRAME_HEADER_LEN, wire.MAX_FRAME_SIZE) == (4, 16 * 1024 * 1024)
    assert (wire.PROTOCOL_VERSION, wire.MAX_NESTING) == ("2", 127)


@pytest.mark.parametrize("size", [1, 255, 256, 65535, 65536, MAX_FRAME_SIZE])
def test_a_frame_is_its_length_in_four_bytes_and_the_payload(wire, size):
    frame = wire.pack_frame(b"\xff" * size)
    assert frame[:4] == size.to_bytes(4, "big")
    assert frame[4:] == b"\xff" * size
    assert type(frame) is bytes


def test_a_payload_is_neither_empty_nor_beyond_the_limit(wire):
    for payload, limit, reason in [
        (b"", MAX_FRAME_SIZE, "payload of 0 bytes: a frame carries at least one"),
        (b"x" * 11, 10, "payload of 11 bytes exceeds the limit of 10"),
        (
            bytes(MAX_FRAME_SIZE + 1),
            MAX_FRAME_SIZE,
            "payload of 16777217 bytes exceeds the limit of 16777216",
        ),
    ]:
        with pytest.raises(EncodeError, match=f"^{reason}$"):
            wire.pack_frame(payload, max_frame_size=limit)
    assert wire.pack_frame(b"x" * 10, max_frame_size=10)[4:] == b"x" * 10
    assert (
        len(wire.pack_frame(bytes(MAX_FRAME_SIZE + 1), max_frame_size=2**32 - 1))
        == MAX_FRAME_SIZE + 5
    )


def octets():
    """The same bytes in every accepted type, including views that are not contiguous."""
    spread = bytearray(2 * len(CANCEL))
    spread[::2] = CANCEL
    return [
        CANCEL,
        bytearray(CANCEL),
        memoryview(CANCEL),
        memoryview(bytearray(CANCEL)),
        memoryview(spread)[::2],
        memoryview(CANCEL[::-1])[::-1],
        memoryview(array.array("H", CANCEL)),
        type("Octets", (bytes,), {})(CANCEL),
    ]


@pytest.mark.parametrize("data", octets(), ids=lambda data: type(data).__name__)
def test_bytes_bytearrays_and_memoryviews_are_accepted(wire, data):
    assert wire.pack_frame(data) == HEADER + CANCEL
    assert list(wire.FrameDecoder().feed(HEADER).feed(data)) == [CANCEL]
    if len(data) == len(CANCEL):
        frame = type(data)(HEADER + bytes(data))
        assert wire.decode_frame(frame).job_id == "j"


@pytest.mark.parametrize("wrong", [None, "text", 4, [1], array.array("B", b"x"), object()])
def test_other_types_raise_type_error(wire, wrong):
    decoder = wire.FrameDecoder()
    for call in (wire.decode_frame, wire.pack_frame, decoder.feed):
        with pytest.raises(TypeError, match="expected bytes, bytearray or memoryview, got "):
            call(wrong)
    for call, name in ((decoder.get_buffer, "hint"), (decoder.buffer_updated, "nbytes")):
        with pytest.raises(TypeError, match=f"^{name} must be an int, got str$"):
            call("1")


@pytest.mark.parametrize("limit", [0, -1, 2**32, 2**70])
def test_a_limit_that_four_bytes_cannot_hold_raises_value_error(wire, limit):
    for call in (
        wire.FrameDecoder,
        wire.MessageDecoder,
        lambda max_frame_size: wire.pack_frame(b"x", max_frame_size=max_frame_size),
        lambda max_frame_size: wire.encode_frame(
            wire.CancelRequest(job_id="j"), max_frame_size=max_frame_size
        ),
    ):
        with pytest.raises(ValueError, match="max_frame_size must be from 1 to 4294967295"):
            call(max_frame_size=limit)
        for wrong in ("16", 16.0):
            expected = f"^max_frame_size must be an int, got {type(wrong).__name__}$"
            with pytest.raises(TypeError, match=expected):
                call(max_frame_size=wrong)


@pytest.mark.parametrize("length", [MAX_FRAME_SIZE + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_beyond_the_limit_is_an_error_on_the_header(wire, length):
    header = length.to_bytes(4, "big")
    for call in (
        lambda: wire.decode_frame(header),
        lambda: next(wire.FrameDecoder().feed(header)),
        lambda: next(wire.MessageDecoder().feed(header)),
        lambda: wire.FrameDecoder().feed(header).feed_eof(),
    ):
        with pytest.raises(FrameTooLargeError) as caught:
            call()
        assert (caught.value.length, caught.value.limit) == (length, MAX_FRAME_SIZE)
        assert str(caught.value) == f"frame of {length} bytes exceeds the limit of 16777216"


def test_a_length_of_exactly_the_limit_is_accepted(wire):
    frame = wire.pack_frame(CANCEL.ljust(MAX_FRAME_SIZE))
    assert wire.decode_frame(frame).job_id == "j"
    assert list(wire.FrameDecoder().feed(frame)) == [frame[4:]]
    assert list(wire.FrameDecoder(max_frame_size=1).feed(b"\0\0\0\x01a")) == [b"a"]
    small = wire.FrameDecoder(max_frame_size=3)
    assert list(small.feed(b"\0\0\0\x03abc")) == [b"abc"]
    with pytest.raises(FrameTooLargeError, match="frame of 4 bytes exceeds the limit of 3"):
        next(small.feed(b"\0\0\0\x04abcd"))
    assert list(wire.FrameDecoder(2**32 - 1).feed(b"\xff\xff\xff\xff")) == []


def test_an_empty_frame_is_an_error(wire):
    for frame in (b"\0\0\0\0", b"\0\0\0\0{}"):
        with pytest.raises(EmptyFrameError, match="a payload cannot be empty"):
            wire.decode_frame(frame)
        with pytest.raises(EmptyFrameError):
            next(wire.FrameDecoder().feed(frame))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"", 4),
        (b"\0\0\0", 4),
        (HEADER, len(CANCEL) + 4),
        (HEADER + CANCEL[:-1], len(CANCEL) + 4),
        (HEADER + CANCEL + b" ", len(CANCEL) + 4),
        ((HEADER + CANCEL) * 2, len(CANCEL) + 4),
    ],
)
def test_decode_frame_wants_exactly_one_frame(wire, frame, expected):
    with pytest.raises(TruncatedFrameError) as caught:
        wire.decode_frame(frame)
    assert (caught.value.expected, caught.value.received) == (expected, len(frame))
    what = "frame" if len(frame) >= 4 else "frame header"
    text = f"expected a {what} of {expected} bytes, got {len(frame)}"
    excess = len(frame) - expected
    assert str(caught.value) == (f"{text}: {excess} too many" if excess > 0 else text)


@given(payload=st.binary(min_size=1, max_size=200))
def test_no_bytes_raise_anything_but_the_documented_errors(wire, payload):
    for data in (payload, wire.pack_frame(payload)):
        try:
            wire.decode_frame(data)
        except FastwireError as error:
            assert str(error)


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), data=st.data())
def test_no_changed_byte_of_a_capture_raises_anything_but_the_documented_errors(
    wire, captures, position, byte, data
):
    capture = captures[data.draw(st.sampled_from(sorted(captures)))]
    frames = list(wire.FrameDecoder().feed(capture[: 2**17]))
    payload = bytearray(frames[position % len(frames)])
    payload[position % len(payload)] = byte
    try:
        message = wire.decode_frame(wire.pack_frame(payload))
    except FastwireError as error:
        assert str(error)
    else:
        assert wire.decode_frame(wire.encode_frame(message)) == message
