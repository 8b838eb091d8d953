"""Decoding: the table of the protocol's fields, cell by cell, and which JSON is accepted.

The table was measured with the published programs. A new field of a message needs a new row here.
"""

from __future__ import annotations

import copy
import json
from datetime import datetime, timezone

import pytest

from rrq_fastwire import MessageError

REFUSED = object()

TABLE = [
    # message    field                          JSON         missing  null
    ("request", "protocol_version", "string", "2", REFUSED),
    ("request", "request_id", "string", REFUSED, REFUSED),
    ("request", "job_id", "string", REFUSED, REFUSED),
    ("request", "function_name", "string", REFUSED, REFUSED),
    ("request", "params", "object", {}, REFUSED),
    ("request", "context", "object", REFUSED, REFUSED),
    ("request", "context.job_id", "string", REFUSED, REFUSED),
    ("request", "context.attempt", "integer", REFUSED, REFUSED),
    ("request", "context.enqueue_time", "date-time", REFUSED, REFUSED),
    ("request", "context.queue_name", "string", REFUSED, REFUSED),
    ("request", "context.deadline", "date-time", None, None),
    ("request", "context.trace_context", "strings", None, None),
    ("request", "context.correlation_context", "strings", None, None),
    ("request", "context.worker_id", "string", None, None),
    ("response", "job_id", "string", None, None),
    ("response", "request_id", "string", None, None),
    ("response", "status", "status", REFUSED, REFUSED),
    ("response", "result", "any", None, None),
    ("response", "error", "object", None, None),
    ("response", "retry_after_seconds", "number", None, None),
    ("response", "error.message", "string", REFUSED, REFUSED),
    ("response", "error.type", "string", None, None),
    ("response", "error.code", "string", None, None),
    ("response", "error.details", "any", None, None),
    ("cancel", "protocol_version", "string", "2", REFUSED),
    ("cancel", "job_id", "string", REFUSED, REFUSED),
    ("cancel", "request_id", "string", None, None),
    ("cancel", "hard_kill", "boolean", False, REFUSED),
]

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)

# JSON that is accepted, and the attribute that it becomes.
GOOD = {
    "string": [('"x"', "x"), ('""', ""), ('"\\u0000"', "\0"), ('"\\ud83d\\ude00 é"', "😀 é")],
    "integer": [("0", 0), ("1", 1), ("4294967295", 4294967295), ("-0", 0)],
    "number": [("1", 1.0), ("0.5", 0.5), ("-3", -3.0), ("1e2", 100.0)],
    "boolean": [("true", True), ("false", False)],
    "date-time": [
        ('"2025-01-02T12:00:00Z"', NOON),
        ('"2025-01-02t12:00:00z"', NOON),
        ('"2025-01-02 12:00:00Z"', NOON),
        ('"2025-01-02T14:00:00+02:00"', NOON),
        ('"2025-01-01T12:01:00-23:59"', NOON),
        ('"2025-01-02T12:00:00.5Z"', NOON.replace(microsecond=500000)),
        ('"2025-01-02T12:00:00.123Z"', NOON.replace(microsecond=123000)),
        ('"2025-01-02T12:00:00.123456999Z"', NOON.replace(microsecond=123456)),
        ('"2025-01-02T12:00:00.1234567890123Z"', NOON.replace(microsecond=123456)),
        ('"2024-02-29T12:00:00Z"', NOON.replace(year=2024, month=2, day=29)),
        ('"0001-01-01T00:00:00Z"', datetime.min.replace(tzinfo=timezone.utc)),
        ('"9999-12-31T23:59:59.999999Z"', datetime.max.replace(tzinfo=timezone.utc)),
    ],
    "strings": [("{}", {}), ('{"a": "b"}', {"a": "b"})],
    "status": [(f'"{word}"', word) for word in ("success", "retry", "timeout", "error")],
    "any": [("1", 1), ('"x"', "x"), ("[1, {}]", [1, {}]), ("false", False), ("2.5", 2.5)],
    "object": [],
}

NOT_A_STRING = ["1", "1.5", "true", "[]", "{}", '["x"]']
BAD = {
    "string": NOT_A_STRING,
    "integer": ["-1", "4294967296", "1.0", "true", '"1"', "[]", "{}"],
    "number": ["true", '"1"', "[]", "{}"],
    "boolean": ["0", "1", '"true"', "[]", "{}"],
    "date-time": [
        *NOT_A_STRING,
        '""',
        '"soon"',
        '"2025-01-02"',
        '"2025-01-02T12:00:00"',
        '"2025-01-02T12:00Z"',
        '"2025-01-02_12:00:00Z"',
        '"2025-01-02T12:00:00,5Z"',
        '"2025-01-02T12:00:00.Z"',
        '"2025-01-02T12:00:60Z"',
        '"2025-01-02T24:00:00Z"',
        '"2025-01-02T12:60:00Z"',
        '"2025-00-02T12:00:00Z"',
        '"2025-13-02T12:00:00Z"',
        '"2025-02-29T12:00:00Z"',
        '"1900-02-29T12:00:00Z"',
        '"2025-04-31T12:00:00Z"',
        '"0000-01-01T00:00:00Z"',
        '"0001-01-01T00:00:00+00:01"',
        '"9999-12-31T23:59:59-00:01"',
        '"2025-01-02T12:00:00+24:00"',
        '"2025-01-02T12:00:00+02:60"',
        '"2025-01-02T12:00:00+0200"',
        '"2025-01-02T12:00:00utc"',
        '"2025-01-02T12:00:00Z "',
        '"\\u0662025-01-02T12:00:00Z"',
    ],
    "strings": ["1", '"x"', "[]", '{"a": 1}', '{"a": null}', '{"a": "b", "c": {}}'],
    "status": [*NOT_A_STRING, '""', '"SUCCESS"', '"failure"', '"cancelled"', '"retry_after"'],
    "any": [],
    "object": ["1", '"x"', "true", "[]"],
}

DOCUMENTS = {
    "request": {
        "protocol_version": "2",
        "request_id": "r",
        "job_id": "j",
        "function_name": "f",
        "params": {"a": 1},
        "context": {
            "job_id": "j",
            "attempt": 1,
            "enqueue_time": "2025-01-02T12:00:00Z",
            "queue_name": "q",
            "deadline": "2025-01-02T12:00:00Z",
            "trace_context": {"a": "b"},
            "correlation_context": {"a": "b"},
            "worker_id": "w",
        },
    },
    "response": {
        "job_id": "j",
        "request_id": "r",
        "status": "error",
        "result": 1,
        "error": {"message": "m", "type": "t", "code": "c", "details": {}},
        "retry_after_seconds": 1,
    },
    "cancel": {"protocol_version": "2", "job_id": "j", "request_id": "r", "hard_kill": True},
}


def with_field(wire, message, field, text):
    """A frame of a message with the JSON `text` in a field, or without the field if that is None."""
    fields = copy.deepcopy(DOCUMENTS[message])
    holder = fields
    *parents, name = field.split(".")
    for parent in parents:
        holder = holder[parent]
    if text is None:
        del holder[name]
    else:
        holder[name] = "@"
    document = json.dumps({"type": message, "payload": fields})
    return wire.pack_frame(document.replace('"@"', text or "").encode())


def attribute(message, field):
    for name in field.split("."):
        message = getattr(message, name)
    return message


def cases(column):
    """The cases of a column of TABLE, or of its fields with GOOD or BAD values."""
    for message, field, kind, missing, null in TABLE:
        if column == "missing":
            yield pytest.param(message, field, None, missing, id=f"{message}.{field} missing")
        elif column == "null":
            yield pytest.param(message, field, "null", null, id=f"{message}.{field} null")
        elif column == "good":
            for text, value in GOOD[kind]:
                yield pytest.param(message, field, text, value, id=f"{message}.{field}={text}")
        else:
            for text in BAD[kind]:
                yield pytest.param(message, field, text, REFUSED, id=f"{message}.{field}={text}")


@pytest.mark.parametrize(
    ("message", "field", "text", "expected"),
    [case for column in ("missing", "null", "good", "bad") for case in cases(column)],
)
def test_a_field_is_accepted_or_refused_as_the_table_says(wire, message, field, text, expected):
    frame = with_field(wire, message, field, text)
    if expected is REFUSED:
        with pytest.raises(MessageError) as caught:
            wire.decode_frame(frame)
        assert caught.value.path == f"payload.{field}"
        assert str(caught.value).startswith(f"payload.{field}: expected ")
        assert caught.value.payload == frame[4:]
        known = {"job_id": "j", "request_id": "r", field: None}
        assert caught.value.job_id == known["job_id"]
        assert caught.value.request_id == known["request_id"]
    else:
        value = attribute(wire.decode_frame(frame), field)
        assert value == expected
        assert type(value) is type(expected) or isinstance(value, wire.OutcomeStatus)
        if isinstance(value, datetime):
            assert value.tzinfo is timezone.utc


def test_the_default_of_params_is_a_new_dict_for_each_message(wire):
    frame = with_field(wire, "request", "params", None)
    assert wire.decode_frame(frame).params is not wire.decode_frame(frame).params


@pytest.mark.parametrize("message", DOCUMENTS)
def test_unknown_keys_are_ignored_at_every_level(wire, message):
    fields = copy.deepcopy(DOCUMENTS[message])
    plain = json.dumps({"type": message, "payload": fields})
    for holder in (fields, fields.get("context"), fields.get("error")):
        if holder is not None:
            holder["unknown"] = {"type": [1]}
    extended = json.dumps({"extra": None, "payload": fields, "type": message, "more": 1})
    assert wire.decode_frame(wire.pack_frame(extended.encode())) == wire.decode_frame(
        wire.pack_frame(plain.encode())
    )


REQUEST = (
    '{"type":"request","payload":{"request_id":"r","job_id":"j","function_name":"f","params":{},'
    '"context":{"job_id":"j","attempt":1,"enqueue_time":"TIME","queue_name":"q"}}}'
)


@pytest.mark.parametrize("end", ["Z", "z", "+00:00"])
def test_a_date_time_with_digits_of_another_script_is_refused(wire, end):
    text = REQUEST.replace("TIME", "\u0662\u0660\u0662\u0665-01-02T12:00:00" + end)
    with pytest.raises(MessageError, match=r"context\.enqueue_time: expected a date-time"):
        wire.decode_frame(wire.pack_frame(text.encode()))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ("", "nothing"),
        ('"job_id":null', "null"),
        ('"job_id":1', "1"),
        ('"job_id":[1]', "an array"),
    ],
)
def test_an_error_says_what_a_field_has_instead(wire, fields, found):
    payload = b'{"type":"cancel","payload":{%b}}' % fields.encode()
    with pytest.raises(MessageError) as caught:
        wire.decode_payload(payload)
    assert str(caught.value) == f"payload.job_id: expected a string, got {found}"


def test_an_error_says_what_a_date_time_is_instead(wire):
    payload = REQUEST.replace("TIME", "noon").encode()
    with pytest.raises(MessageError, match=r"enqueue_time: expected a date-time .*, got 'noon'$"):
        wire.decode_payload(payload)


KINDS = "expected one of request, response, cancel, got "
IDS = '{"job_id": "j", "request_id": "r"}'


@pytest.mark.parametrize(
    ("document", "text", "path", "kind", "ids"),
    [
        ('{"payload": {}}', f"type: {KINDS}nothing", "type", None, (None, None)),
        (
            f'{{"type": null, "payload": {IDS}}}',
            f"type: {KINDS}null",
            "type",
            None,
            ("j", "r"),
        ),
        (
            '{"type": "Request", "payload": 1}',
            f"type: {KINDS}'Request'",
            "type",
            None,
            (None, None),
        ),
        ('{"type": "cancel "}', f"type: {KINDS}'cancel '", "type", None, (None, None)),
        ('{"type": ["cancel"]}', f"type: {KINDS}an array", "type", None, (None, None)),
        (
            '{"type": "cancel"}',
            "payload: expected an object, got nothing",
            "payload",
            "cancel",
            (None, None),
        ),
        (
            '{"type": "request", "payload": null}',
            "payload: expected an object, got null",
            "payload",
            "request",
            (None, None),
        ),
        (
            '{"type": "response", "payload": ["2", "j"]}',
            "payload: expected an object, got an array",
            "payload",
            "response",
            (None, None),
        ),
        ("null", "expected an object, got null", "", None, (None, None)),
        ("[]", "expected an object, got an array", "", None, (None, None)),
        ('"request"', "expected an object, got 'request'", "", None, (None, None)),
    ],
)
def test_an_invalid_envelope_is_refused(wire, document, text, path, kind, ids):
    with pytest.raises(MessageError) as caught:
        wire.decode_frame(wire.pack_frame(document.encode()))
    error = caught.value
    assert str(error) == text
    assert (error.path, error.message_type, error.payload) == (path, kind, document.encode())
    assert (error.job_id, error.request_id) == ids


@pytest.mark.parametrize(
    "payload",
    [
        b" ",
        b"{",
        b'{"type":"cancel","payload":{"job_id":"j"}}x',
        b'{"type":"cancel","payload":{"job_id":"j"},}',
        b'\xef\xbb\xbf{"type":"cancel","payload":{"job_id":"j"}}',
        b'{"type":"cancel","payload":{"job_id":"\xff"}}',
        b'{"type":"cancel","payload":{"job_id":"\xed\xa0\x80"}}',
        b'{"type":"cancel","payload":{"job_id":"\\ud800"}}',
        b'{"type":"cancel","payload":{"job_id":"\\udc00\\ud800"}}',
        b'{"type":"cancel","payload":{"job_id":"a\tb"}}',
        b'{"type":"cancel","payload":{"job_id":"j","x":NaN}}',
        b'{"type":"cancel","payload":{"job_id":"j","x":-Infinity}}',
        b'{"type":"cancel","payload":{"job_id":"j","x":1e400}}',
        b'{"type":"cancel","payload":{"job_id":"j","x":' + b"9" * 400 + b"}}",
        b'{"type":"cancel","payload":{"job_id":"j","x":01}}',
        b'{"type":"cancel","payload":{"job_id":"j","x":' + b"[" * 1023 + b"]" * 1023 + b"}}",
        b"[" * 100_000,
        '{"type":"cancel"}'.encode("utf-16-le"),
    ],
    ids=lambda payload: ascii(payload[:60]),
)
def test_invalid_json_is_refused(wire, payload):
    with pytest.raises(MessageError, match=r"^not JSON: ") as caught:
        wire.decode_frame(wire.pack_frame(payload))
    assert (caught.value.path, caught.value.payload) == ("", payload)
    assert caught.value.job_id is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18446744073709551615", 18446744073709551615),
        ("18446744073709551616", 18446744073709551616.0),
        ("-9223372036854775808", -9223372036854775808),
        ("-9223372036854775809", -9223372036854775809.0),
        ("1" * 308, float("1" * 308)),
        ("-0", 0),
        ("1E+2", 100.0),
        ("5e-324", 5e-324),
        ("1e-400", 0.0),
        ("0e400", 0.0),
        ('"\\u0000\\u001f\\u007f\\ud83d\\ude00\\\\ud800"', "\0\x1f\x7f😀\\ud800"),
        ("[" * 1000 + "]" * 1000, None),
        ('{"a": 1, "a": 2}', {"a": 2}),
        (" \t\r\n1 ", 1),
    ],
    ids=lambda case: ascii(case)[:40],
)
def test_json_means_the_same_with_either_backend(wire, text, value):
    payload = f'{{"type":"response","payload":{{"status":"success","result":{text}}}}}'
    frame = wire.pack_frame(payload.encode())
    result = wire.decode_frame(frame).result
    if value is None:
        for _ in range(1000):
            assert isinstance(result, list)
            result = result[0] if result else None
    else:
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 1025 + b'\\"' * 500_000,
        b"[" * 1025 + b'"' + b"x" * 1_000_000,
        b"[" * 1025 + b'"\n' * 500_000,
    ],
    ids=["quotes", "open text", "line feeds"],
)
def test_deep_json_with_long_texts_is_refused_in_linear_time(wire, payload):
    """Quadratic work would take hours, and exceed the time limit of the test."""
    with pytest.raises(MessageError, match=r"^not JSON: "):
        wire.decode_payload(payload)
