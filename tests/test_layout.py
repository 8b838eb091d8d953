"""The layout that the orchestrator writes is recognised literally; nothing may depend on that.

A space in front of a payload makes the compiled twin take the general way: the two ways accept the
same, give equal messages, and refuse for the same reason.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrq_fastwire import MessageError

REQUEST = (
    b'{"type":"request","payload":{"protocol_version":"2","request_id":"r-1","job_id":"j-1",'
    b'"function_name":"f","params":%s,"context":{"job_id":"j-1","attempt":12,'
    b'"enqueue_time":"2025-01-02T03:04:05.123456789Z","queue_name":"q","deadline":%s,'
    b'"trace_context":%s,"correlation_context":null,"worker_id":"w"}}}'
)
NOON = b'"2025-01-02T12:00:00Z"'

LAYOUTS = [
    REQUEST % (b'{"a":[1,{"b":"c"}]}', NOON, b"null"),
    REQUEST % (b"{}", b"null", b'{"traceparent":"00","a":"b"}'),
    REQUEST % (b'{"context":{"job_id":"x","attempt":1}}', NOON, b"{}"),
    REQUEST % (b'{"a":"}},\\"context\\":{"}', NOON, b"null"),
    REQUEST % (json.dumps({"a": '"},"context":{"job_id":"'}).encode(), NOON, b"null"),
    b'{"type":"response","payload":{"job_id":"j","request_id":"r","status":"success","result":[{}]}}',
    b'{"type":"response","payload":{"job_id":"j","request_id":"r","status":"error","error":'
    b'{"message":"m","type":"t","details":{"a":1}}}}',
    b'{"type":"response","payload":{"job_id":"j","status":"success","result":"a","error":null}}',
    b'{"type":"response","payload":{"status":"retry","error":{"message":"m"},"retry_after_seconds":1.5}}',
    b'{"type":"cancel","payload":{"protocol_version":"2","job_id":"j","request_id":"r","hard_kill":true}}',
]


def verdict(wire, payload):
    """A message, or the reason against it; of the JSON library's own words only that they came."""
    try:
        return wire.decode_frame(wire.pack_frame(payload))
    except MessageError as error:
        return str(error).partition("not JSON: ")[:2], error.job_id, error.request_id


def assert_ways_agree(wire, payload):
    assert verdict(wire, payload) == verdict(wire, b" " + payload), payload


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_every_changed_byte_of_a_layout(wire, payload):
    assert not isinstance(verdict(wire, payload), tuple)
    for at in range(len(payload)):
        for byte in {
            *b'\0\x1f !"#,./0129:EZ[\\]e{}\x7f\x80\xc3\xff',
            payload[at] ^ 1,
            payload[at] ^ 32,
        }:
            assert_ways_agree(wire, payload[:at] + bytes([byte]) + payload[at + 1 :])


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_every_cut_and_every_byte_left_out_or_twice(wire, payload):
    for at in range(1, len(payload)):
        assert_ways_agree(wire, payload[:at])
        assert_ways_agree(wire, payload[:at] + payload[at + 1 :])
        assert_ways_agree(wire, payload[:at] + payload[at - 1 :])
        assert_ways_agree(wire, payload + payload[:at])


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_every_run_of_bytes_left_out(wire, payload):
    for start in range(len(payload)):
        for size in range(2, 42):
            assert_ways_agree(wire, payload[:start] + payload[start + size :])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
# Text that looks like what stands around it.
LURES = st.sampled_from(
    ['"context":{"job_id":"', ',"context":{"', "context", '}},"context":{', '"}}}', "job_id", '"']
)


@given(
    params=st.dictionaries(
        LURES | st.text(max_size=8),
        VALUES | LURES | st.dictionaries(LURES, VALUES, max_size=2),
        max_size=4,
    ),
    trace=st.none()
    | st.dictionaries(LURES | st.text(max_size=8), LURES | st.text(max_size=8), max_size=3),
    texts=st.lists(LURES | st.text(max_size=60), min_size=6, max_size=6),
    same_id=st.booleans(),
)
def test_any_request_that_the_orchestrator_could_write(wire, params, trace, texts, same_id):
    document = json.loads(REQUEST % (b"{}", NOON, b"null"))
    fields = document["payload"]
    fields.update(params=params, request_id=texts[0], job_id=texts[1], function_name=texts[2])
    fields["context"].update(
        job_id=texts[1] if same_id else texts[3],
        queue_name=texts[4],
        worker_id=texts[5],
        trace_context=trace,
    )
    payload = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    message = wire.decode_frame(wire.pack_frame(payload))
    assert_ways_agree(wire, payload)
    assert message.context.job_id == fields["context"]["job_id"]
    assert message.context.trace_context == trace
    assert [message.request_id, message.function_name] == [texts[0], texts[2]]


@pytest.mark.parametrize("depth", [100, 1019, 1020, 1021, 1022, 1023, 1024, 1025])
@pytest.mark.parametrize("layout", [0, 5, 6])
def test_nesting_counts_what_is_around_it(wire, depth, layout):
    deep = b"[" * depth + b"]" * depth
    payload = {
        0: LAYOUTS[0].replace(b'[1,{"b":"c"}]', deep),
        5: LAYOUTS[5].replace(b"[{}]", deep),
        6: LAYOUTS[6].replace(b'{"a":1}', deep),
    }[layout]
    taken = [
        isinstance(verdict(wire, start + payload), wire.RunnerMessage) for start in (b"", b" ")
    ]
    assert taken[0] == taken[1] == (depth + {0: 3, 5: 2, 6: 3}[layout] <= 1024)


def test_texts_that_come_again_are_the_same_objects(wire):
    payload = LAYOUTS[0]
    one = wire.decode_frame(wire.pack_frame(payload))
    assert one.context.job_id == one.job_id
    longer = wire.decode_frame(
        wire.pack_frame(payload.replace(b'"queue_name":"q"', b'"queue_name":"qq"'))
    )
    again = wire.decode_frame(wire.pack_frame(payload))
    assert (one.context.queue_name, longer.context.queue_name, again.context.queue_name) == (
        "q",
        "qq",
        "q",
    )
