"""The fast paths of the compiled implementation give the same results as the generic codec.

A space before a payload turns the fast paths off. With and without it, a payload must decode to equal
messages, or be refused for the same reason. Both implementations must encode to the same bytes.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrq_fastwire import (
    JSON_BACKEND,
    EncodeError,
    ExecutionOutcome,
    MessageError,
    _json,
    _py,
)

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
    """The message, or the error without the text of the JSON library, for comparison."""
    try:
        return wire.decode_frame(wire.pack_frame(payload))
    except MessageError as error:
        return (
            str(error).partition("not JSON: ")[:2],
            error.path,
            error.message_type,
            error.job_id,
            error.request_id,
        )


def assert_paths_agree(wire, payload):
    assert verdict(wire, payload) == verdict(wire, b" " + payload), payload


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_a_changed_byte_gives_the_same_result_on_both_paths(wire, payload):
    assert not isinstance(verdict(wire, payload), tuple)
    for at in range(len(payload)):
        for byte in {
            *b'\0\x1f !"#,./0129:EZ[\\]e{}\x7f\x80\xc3\xff',
            payload[at] ^ 1,
            payload[at] ^ 32,
        }:
            assert_paths_agree(wire, payload[:at] + bytes([byte]) + payload[at + 1 :])


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_a_cut_missing_or_repeated_byte_gives_the_same_result_on_both_paths(wire, payload):
    for at in range(1, len(payload)):
        assert_paths_agree(wire, payload[:at])
        assert_paths_agree(wire, payload[:at] + payload[at + 1 :])
        assert_paths_agree(wire, payload[:at] + payload[at - 1 :])
        assert_paths_agree(wire, payload + payload[:at])


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_a_missing_run_of_bytes_gives_the_same_result_on_both_paths(wire, payload):
    for start in range(len(payload)):
        for size in range(2, 42):
            assert_paths_agree(wire, payload[:start] + payload[start + size :])


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
# Strings that look like parts of the JSON around them.
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
def test_any_request_in_the_orchestrators_layout_decodes_the_same_on_both_paths(
    wire, params, trace, texts, same_id
):
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
    assert_paths_agree(wire, payload)
    assert message.context.job_id == fields["context"]["job_id"]
    assert message.context.trace_context == trace
    assert [message.request_id, message.function_name] == [texts[0], texts[2]]


@pytest.mark.parametrize("size", [1, 2000, 3000, 10**6])
@pytest.mark.parametrize("field", ["params", "trace_context"])
def test_long_fields_decode_the_same_on_both_paths(wire, field, size):
    value = {"k": "x" * size}
    text = json.dumps(value).encode()
    payload = REQUEST % ((text, NOON, b"null") if field == "params" else (b"{}", NOON, text))
    message = wire.decode_frame(wire.pack_frame(payload))
    assert_paths_agree(wire, payload)
    found = message.params if field == "params" else message.context.trace_context
    assert found == value


@pytest.mark.parametrize("depth", [100, 1019, 1020, 1021, 1022, 1023, 1024, 1025])
@pytest.mark.parametrize("layout", [0, 5, 6])
def test_the_limit_of_nesting_counts_the_levels_around_a_value(wire, depth, layout):
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


@pytest.mark.skipif(JSON_BACKEND != "orjson", reason="without orjson, encoding has no fast path")
def test_the_limit_of_items_counts_the_members_around_a_result(wire):
    # Two members of the envelope, and four of the payload.
    items = [1] * (_json.MAX_ITEMS - 6)
    outcome = ExecutionOutcome.success("j", "r", items)
    frame = wire.encode_frame(outcome, max_frame_size=2**31)
    assert frame[4:] == wire.encode_payload(outcome)
    items.append(1)
    with pytest.raises(EncodeError, match="more than 8388608 items"):
        wire.encode_payload(outcome)
    with pytest.raises(EncodeError, match="more than 8388608 items"):
        wire.encode_frame(outcome, max_frame_size=2**31)


def test_a_string_kept_from_the_last_request_is_not_used_for_a_different_one(wire):
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


def changed(document, path, value):
    """The document with another value at a path; without it where the value is ABSENT."""
    document = json.loads(json.dumps(document))
    *parents, name = path
    holder = document
    for parent in parents:
        holder = holder[parent]
    if value is ABSENT:
        del holder[name]
    else:
        holder[name] = value
    return document


def paths_in(document, *above):
    for key, value in document.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths_in(value, *above, key)


ABSENT = object()
OTHER_VALUES = [
    ABSENT,
    None,
    True,
    0,
    -1,
    2**32,
    1.5,
    "",
    "text",
    [],
    ["x"],
    {},
    {"a": 1},
    {"a": "b"},
]


@pytest.mark.parametrize("payload", LAYOUTS, ids=range(len(LAYOUTS)))
def test_a_field_that_is_missing_null_or_of_another_type_gives_the_same_result_on_both_paths(
    wire, payload
):
    document = json.loads(payload)
    for path in paths_in(document):
        for value in OTHER_VALUES:
            other = json.dumps(changed(document, path, value), separators=(",", ":"))
            assert_paths_agree(wire, other.encode())


# Characters to put at each place of a string: with and without an escape in JSON.
CHARACTERS = ["x", '"', "\\", "\n", "\x1f", "\x7f", "é", "€", "😀"]


@pytest.mark.parametrize("length", range(71))
def test_ids_of_any_length_and_characters_are_encoded_and_decoded_the_same_on_both_paths(
    wire, length
):
    request = json.loads(LAYOUTS[0])
    for at in range(length):
        for character in CHARACTERS:
            text = "i" * at + character + "i" * (length - at - 1)
            outcome = ExecutionOutcome.success(text, "r", [text])
            frame = wire.encode_frame(outcome)
            assert frame == _py.encode_frame(outcome)
            assert wire.decode_frame(frame) == outcome
            if at in (0, length // 2, length - 1):
                request["payload"].update(request_id=text, job_id=text, function_name=text)
                request["payload"]["context"].update(job_id=text, queue_name=text, worker_id=text)
                compact = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()
                assert_paths_agree(wire, compact)
                assert wire.decode_payload(compact).context.worker_id == text


@given(
    result=VALUES, texts=st.lists(LURES | st.text(max_size=60) | st.none(), min_size=2, max_size=2)
)
def test_both_implementations_encode_any_success_the_same(wire, result, texts):
    outcome = ExecutionOutcome.success(*texts, result)

    def encoded(implementation):
        try:
            return implementation.encode_frame(outcome)
        except EncodeError as error:
            return str(error)

    assert encoded(wire) == encoded(_py)


@pytest.mark.parametrize(
    "time",
    [
        "2025-01-02T03:04:05Z",
        "2025-01-02T03:04:05.1Z",
        "2025-01-02T03:04:05.123456Z",
        "2025-01-02T03:04:05.1234567891234Z",
        "2025-01-02T03:04:05.12345678Z",
        "2025-01-02T03:04:05.123456789",
        "2025-01-02T03:04:05.12345678x",
        "2025-01-02T03:04:05.12345x789Z",
        "2025-01-02T03:04:05.Z",
        "2025-01-02T24:00:00.000000000Z",
        "2025-01-02T23:59:60.000000000Z",
        "2025-02-29T00:00:00.000000000Z",
        "0000-01-01T00:00:00.000000000Z",
        "x025-01-01T00:00:00.000000000Z",
        "20x5-01-01T00:00:00.000000000Z",
        "2025-x1-01T00:00:00.000000000Z",
        "9999-12-31T23:59:59.999999999Z",
        "2025-W01-1T00:00:00.000000000Z",
        "2025-01-02 03:04:05.123456789Z",
        "2025-01-02T03:04:05.123456789z",
        "2025-01-02T03:04:05.123456789+00:00",
    ],
)
def test_a_date_time_of_any_form_gives_the_same_result_on_both_paths(wire, time):
    for payload in (
        LAYOUTS[0].replace(b"2025-01-02T12:00:00Z", time.encode()),
        LAYOUTS[0].replace(b"2025-01-02T03:04:05.123456789Z", time.encode()),
    ):
        assert_paths_agree(wire, payload)
        assert verdict(wire, payload) == verdict(_py, payload)
