"""Documents that take a JSON library longest: which are accepted, and which are refused.

Each is decoded within the suite's time limit only if the time is not quadratic.
"""

from __future__ import annotations

import pytest

from rrq_fastwire import MessageError

BEFORE = b'{"type":"request","payload":{"request_id":"r","job_id":"j","function_name":"f","params":'
AFTER = b',"context":{"job_id":"j","attempt":1,"enqueue_time":"2025-01-02T12:00:00Z","queue_name":"q"}}}'
LARGEST = 16 * 1024 * 1024 - len(BEFORE) - len(AFTER)


def params(wire, document):
    return wire.decode_frame(wire.pack_frame(BEFORE + document + AFTER)).params


@pytest.mark.parametrize("digits", [19, 308])
def test_an_integer_of_up_to_308_digits_is_decoded(wire, digits):
    assert params(wire, b'{"a":' + b"7" * digits + b"}") == {"a": pytest.approx(int("7" * digits))}


def test_the_largest_integer_is_the_largest_double(wire):
    largest = b"17976931348623158" + b"0" * 292
    assert params(wire, b'{"a":' + largest + b"}") == {"a": pytest.approx(1.7976931348623157e308)}
    with pytest.raises(MessageError):
        params(wire, b'{"a":' + largest.replace(b"8000", b"9000") + b"}")


@pytest.mark.parametrize("digits", [310, 5000, 1_000_000, LARGEST - 10])
def test_an_integer_beyond_the_largest_number_is_refused_however_long_it_is(wire, digits):
    with pytest.raises(MessageError):
        params(wire, b'{"a":' + b"7" * digits + b"}")


@pytest.mark.parametrize("place", ["key", "value"])
def test_a_text_as_long_as_a_frame_is_decoded(wire, place):
    text = "x" * (LARGEST - 10)
    document = f'{{"{text}":1}}' if place == "key" else f'{{"a":"{text}"}}'
    found = params(wire, document.encode())
    assert found == ({text: 1} if place == "key" else {"a": text})


def test_a_million_empty_objects_are_decoded(wire):
    assert params(wire, b'{"a":[' + b",".join([b"{}"] * 10**6) + b"]}") == {"a": [{}] * 10**6}


def test_keys_that_collide_under_weak_hashes_are_decoded(wire):
    """Java and many other languages hash all of these keys alike. Python's hashes are random."""
    pairs = ["Aa", "BB"]
    keys = ["".join(pairs[number >> bit & 1] for bit in range(16)) for number in range(2**16)]
    document = "{" + ",".join(f'"{key}":1' for key in keys) + "}"
    assert params(wire, document.encode()) == dict.fromkeys(keys, 1)
