"""Encoding: what is sent, and that nothing is sent that makes the orchestrator disconnect."""

from __future__ import annotations

import enum
import json
import math
import pickle
import time
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from datetime import date, datetime, timedelta, timezone, tzinfo

import pytest

from rrq_fastwire import MAX_FRAME_SIZE, EncodeError, PayloadTooLargeError

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)


def context(wire, **fields):
    return wire.ExecutionContext(
        **{"job_id": "j", "attempt": 1, "enqueue_time": NOON, "queue_name": "q"} | fields
    )


def request(wire, **fields):
    return wire.ExecutionRequest(
        **{"request_id": "r", "job_id": "j", "function_name": "f", "context": context(wire)}
        | fields
    )


def success(wire, result=None):
    return wire.ExecutionOutcome.success("j", "r", result)


def payload(frame):
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return frame[4:].decode()


def nested(levels, of=list):
    value = of()
    for _ in range(levels - 1):
        value = [value] if of is list else {"a": value}
    return value


def test_a_request_is_laid_out_as_the_orchestrator_does(wire):
    full = request(
        wire,
        params={"b": [1, 2.5, None, True], "a": "é\n"},
        context=context(
            wire,
            attempt=4294967295,
            enqueue_time=NOON.replace(microsecond=120000),
            deadline=NOON.replace(microsecond=123456),
            trace_context={"traceparent": "00"},
            correlation_context={},
            worker_id='w"1"',
        ),
    )
    assert payload(wire.encode_frame(full)) == (
        '{"type":"request","payload":{"protocol_version":"2","request_id":"r","job_id":"j",'
        '"function_name":"f","params":{"b":[1,2.5,null,true],"a":"é\\n"},"context":{"job_id":"j",'
        '"attempt":4294967295,"enqueue_time":"2025-01-02T12:00:00.120Z","queue_name":"q",'
        '"deadline":"2025-01-02T12:00:00.123456Z","trace_context":{"traceparent":"00"},'
        '"correlation_context":{},"worker_id":"w\\"1\\""}}}'
    )
    assert wire.decode_frame(wire.encode_frame(full)) == full


def test_an_absent_optional_is_null_in_a_context_and_left_out_elsewhere(wire):
    assert payload(wire.encode_frame(request(wire))).endswith(
        '"params":{},"context":{"job_id":"j","attempt":1,"enqueue_time":"2025-01-02T12:00:00Z",'
        '"queue_name":"q","deadline":null,"trace_context":null,"correlation_context":null,'
        '"worker_id":null}}}'
    )
    assert payload(wire.encode_frame(wire.CancelRequest(job_id="j"))) == (
        '{"type":"cancel","payload":{"protocol_version":"2","job_id":"j","hard_kill":false}}'
    )
    assert payload(wire.encode_frame(wire.ExecutionOutcome(status="retry"))) == (
        '{"type":"response","payload":{"status":"retry"}}'
    )


OUTCOMES = [
    ("success", ("j", "r"), '"status":"success","result":null', "success"),
    ("success", ("j", "r", [1]), '"status":"success","result":[1]', "success"),
    ("failure", ("j", "r", "m"), '"status":"error","error":{"message":"m"}', "failure"),
    (
        "retry_after",
        ("j", "r", "m", 1.5),
        '"status":"retry","error":{"message":"m"},"retry_after_seconds":1.5',
        "retry_after",
    ),
    ("retry_after", ("j", "r", "m"), '"status":"retry","error":{"message":"m"}', "retry_after"),
    (
        "timeout",
        ("j", "r", "m"),
        '"status":"timeout","error":{"message":"m","type":"timeout"}',
        "timeout",
    ),
    (
        "cancelled",
        ("j", "r"),
        '"status":"error","error":{"message":"Job cancelled","type":"cancelled"}',
        "cancelled",
    ),
    (
        "handler_not_found",
        ("j", "r", "m"),
        '"status":"error","error":{"message":"m","type":"handler_not_found"}',
        "handler_not_found",
    ),
]


@pytest.mark.parametrize(("build", "arguments", "text", "kind"), OUTCOMES)
def test_an_outcome_of_each_type_is_sent_and_decoded(wire, build, arguments, text, kind):
    outcome = getattr(wire.ExecutionOutcome, build)(*arguments)
    frame = wire.encode_frame(outcome)
    assert (
        payload(frame)
        == f'{{"type":"response","payload":{{"job_id":"j","request_id":"r",{text}}}}}'
    )
    assert wire.decode_frame(frame) == outcome
    assert outcome.type is wire.OutcomeType(kind)


def test_a_failure_carries_the_applications_own_type_code_and_details(wire):
    outcome = wire.ExecutionOutcome.failure("j", "r", "m", type="t", code="c", details=[1, {}])
    assert '{"message":"m","type":"t","code":"c","details":[1,{}]}' in payload(
        wire.encode_frame(outcome)
    )
    assert outcome.type is wire.OutcomeType.FAILURE


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (math.nan, "null"),
        ([math.inf, -math.inf], "[null,null]"),
        (2**64 - 1, "18446744073709551615"),
        (-(2**63), "-9223372036854775808"),
        (2**64, "18446744073709551616"),
        ({"a": [-(2**63) - 1]}, '{"a":[-9223372036854775809]}'),
        (10**308 - 1, "9" * 308),
        ((1, (2,)), "[1,[2]]"),
        (namedtuple("Point", "x y")(1, 2), "[1,2]"),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (defaultdict(int, a=1), '{"a":1}'),
        (enum.IntEnum("Level", "LOW")(1), "1"),
        (enum.Enum("Colour", {"RED": "red"})("red"), '"red"'),
        (enum.Enum("Path", {"UP": [1, {"a": 2}]}).UP, '[1,{"a":2}]'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (type("Text", (str,), {})("x"), '"x"'),
        ({type("Text", (str,), {})("x"): 1}, '{"x":1}'),
        (type("Number", (float,), {})(1.5), "1.5"),
        ('"\\/\b\t\n\f\r\x1f\x7f', '"\\"\\\\/\\b\\t\\n\\f\\r\\u001f\x7f"'),
        ("é€😀\u2028", '"é€😀\u2028"'),
    ],
    ids=lambda case: ascii(case)[:40],
)
def test_values_without_an_exact_json_form_are_sent_in_a_similar_form(wire, result, text):
    assert payload(wire.encode_frame(success(wire, result))).endswith(f'"result":{text}}}}}')


class Opaque:
    def __repr__(self):
        raise RuntimeError("a hostile object")


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Opaque(), "payload.result: object of type 'Opaque' has no JSON form"),
        ({"items": [1, {1}]}, "payload.result.items[1]: object of type 'set' has no JSON form"),
        ([b"x"], "payload.result[0]: object of type 'bytes' has no JSON form"),
        (NOON, "payload.result: object of type 'datetime' has no JSON form"),
        ({"a": date(2025, 1, 2)}, "payload.result.a: object of type 'date' has no JSON form"),
        ({"a": {1: 2}}, "payload.result.a: object keys must be str, not int"),
        ({None: 1}, "payload.result: object keys must be str, not NoneType"),
        (
            ["\ud800"],
            "payload.result[0]: str with a lone surrogate at index 0, which UTF-8 cannot carry",
        ),
        (
            {"x\udfff": 1},
            "payload.result: str with a lone surrogate at index 1, which UTF-8 cannot carry",
        ),
        (10**308, "payload.result: int of more than 308 digits, which no double can hold"),
        (-(10**5000), "payload.result: int of more than 308 digits, which no double can hold"),
        (type, "payload.result: object of type 'type' has no JSON form"),
    ],
    ids=lambda case: ascii(case)[:40] if isinstance(case, str) else "",
)
def test_a_value_that_cannot_be_sent_is_an_error_that_says_where_and_why(wire, result, reason):
    with pytest.raises(EncodeError) as caught:
        wire.encode_frame(success(wire, result))
    assert str(caught.value) == reason
    assert reason == f"{caught.value.path}: {caught.value.reason}"


@pytest.mark.parametrize("of", [list, dict])
def test_the_whole_document_nests_up_to_127_deep(wire, of):
    deepest = [
        (success(wire, nested(125, of)), success(wire, nested(126, of))),
        (success(wire, nested(125, of)), success(wire, nested(200, of))),
        (success(wire, nested(125, of)), success(wire, nested(2000, of))),
        tuple(
            wire.ExecutionOutcome.failure("j", "r", "m", details=nested(levels, of))
            for levels in (124, 125)
        ),
        tuple(request(wire, params={"a": nested(levels, of)}) for levels in (124, 125)),
    ]
    for accepted, refused in deepest:
        assert wire.decode_frame(wire.encode_frame(accepted)) == accepted
        with pytest.raises(EncodeError, match="nested too deep for the orchestrator"):
            wire.encode_frame(refused)


def test_many_containers_beside_each_other_are_not_deep(wire):
    wide = success(wire, [[[]] * 1000, {"a": "[{" * 1000}])
    assert wire.decode_frame(wire.encode_frame(wide)) == wide


def test_a_value_that_contains_itself_is_refused(wire):
    loop = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="nested too deep"):
        wire.encode_frame(success(wire, loop))


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_payload_of_exactly_the_limit_is_sent_and_a_larger_one_is_refused(wire, limit):
    options = {} if limit is None else {"max_frame_size": limit}
    size = limit or MAX_FRAME_SIZE
    around = len(payload(wire.encode_frame(success(wire, ""))))
    largest = success(wire, "x" * (size - around))
    assert len(wire.encode_frame(largest, **options)) == size + 4
    largest.result += "x"
    with pytest.raises(PayloadTooLargeError) as caught:
        wire.encode_frame(largest, **options)
    assert str(caught.value) == f"payload of {size + 1} bytes exceeds the limit of {size}"
    assert (caught.value.length, caught.value.limit, caught.value.path) == (size + 1, size, "")
    assert pickle.loads(pickle.dumps(caught.value)).length == size + 1
    assert len(wire.encode_payload(largest)) == size + 1


WRONG_FIELDS = [
    ("outcome", {"status": "failure"}, "payload.status: expected one of success, retry"),
    ("outcome", {"status": None}, "payload.status: expected one of"),
    ("outcome", {"job_id": 1}, "payload.job_id: expected a string or null, got 1"),
    ("outcome", {"job_id": "\ud800"}, "payload.job_id: str with a lone surrogate"),
    ("outcome", {"error": "broken"}, "payload.error: expected an object or null, got 'broken'"),
    ("outcome", {"retry_after_seconds": "1"}, "payload.retry_after_seconds: expected a number"),
    ("outcome", {"retry_after_seconds": True}, "payload.retry_after_seconds: expected a number"),
    ("outcome", {"retry_after_seconds": 10**400}, "payload.retry_after_seconds: int of more than"),
    ("request", {"params": [1]}, "payload.params: expected an object, got an array"),
    ("request", {"params": None}, "payload.params: expected an object, got null"),
    ("request", {"context": None}, "payload.context: expected an object, got null"),
    ("request", {"request_id": None}, "payload.request_id: expected a string, got null"),
    (
        "context",
        {"attempt": -1},
        "payload.context.attempt: expected an integer from 0 to 4294967295",
    ),
    ("context", {"attempt": 2**32}, "payload.context.attempt: expected an integer from 0"),
    ("context", {"attempt": 10**5000}, "payload.context.attempt: expected an integer from 0"),
    ("context", {"attempt": True}, "payload.context.attempt: expected an integer from 0"),
    ("context", {"attempt": 1.0}, "payload.context.attempt: expected an integer from 0"),
    (
        "context",
        {"enqueue_time": NOON.replace(tzinfo=None)},
        "payload.context.enqueue_time: expected a date-time",
    ),
    ("context", {"enqueue_time": "2025"}, "payload.context.enqueue_time: expected a date-time"),
    ("context", {"deadline": date(2025, 1, 2)}, "payload.context.deadline: expected a date-time"),
    (
        "context",
        {"trace_context": {"a": 1}},
        "payload.context.trace_context: expected an object of strings",
    ),
    (
        "context",
        {"trace_context": {1: "a"}},
        "payload.context.trace_context: expected an object of strings",
    ),
    ("error", {"message": None}, "payload.error.message: expected a string, got null"),
    ("error", {"message": "\udc80"}, "payload.error.message: str with a lone surrogate"),
    ("cancel", {"hard_kill": 1}, "payload.hard_kill: expected true or false, got 1"),
    (
        "cancel",
        {"job_id": b"j"},
        "payload.job_id: expected a string, got an object of type 'bytes'",
    ),
]


@pytest.mark.parametrize(("message", "fields", "reason"), WRONG_FIELDS)
def test_a_field_of_a_wrong_type_is_not_sent(wire, message, fields, reason):
    if message == "context":
        wrong = request(wire)
        holder = wrong.context
    elif message == "request":
        wrong = holder = request(wire)
    elif message == "cancel":
        wrong = holder = wire.CancelRequest(job_id="j")
    else:
        wrong = wire.ExecutionOutcome.failure("j", "r", "m")
        holder = wrong.error if message == "error" else wrong
    for name, value in fields.items():
        setattr(holder, name, value)
    with pytest.raises(EncodeError) as caught:
        wire.encode_frame(wrong)
    assert str(caught.value).startswith(reason)


class Halfway(tzinfo):
    """A time zone that is half an hour ahead, or fails."""

    def __init__(self, error=None):
        self.error = error

    def utcoffset(self, _):
        if self.error:
            raise self.error
        return timedelta(minutes=30)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON.astimezone(timezone(timedelta(hours=-5))), "2025-01-02T12:00:00Z"),
        (NOON.replace(microsecond=1, tzinfo=Halfway()), "2025-01-02T11:30:00.000001Z"),
        (NOON.replace(microsecond=500000), "2025-01-02T12:00:00.500Z"),
        (NOON.replace(year=1), "0001-01-02T12:00:00Z"),
        (datetime.max.replace(tzinfo=timezone.utc), "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_datetime_is_sent_in_utc_with_the_fewest_digits_that_are_exact(wire, moment, text):
    sent = request(wire, context=context(wire, deadline=moment))
    assert json.loads(payload(wire.encode_frame(sent)))["payload"]["context"]["deadline"] == text
    assert wire.decode_frame(wire.encode_frame(sent)).context.deadline == moment


@pytest.mark.skipif(
    not hasattr(time, "tzset"), reason="needs a process with a time zone of its own"
)
def test_the_time_zone_of_the_machine_makes_no_difference(wire, monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "EST5")
            time.tzset()
            sent = wire.encode_frame(request(wire, context=context(wire, deadline=NOON)))
    finally:
        time.tzset()
    assert b'"deadline":"2025-01-02T12:00:00Z"' in sent


@pytest.mark.parametrize(
    "moment",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=Halfway()),
        NOON.replace(tzinfo=Halfway(ValueError("no such zone"))),
        NOON.replace(tzinfo=Halfway(LookupError("no such zone"))),
    ],
)
def test_a_datetime_that_cannot_be_converted_to_utc_is_not_sent(wire, moment):
    with pytest.raises(EncodeError, match=r"payload\.context\.deadline: expected a date-time"):
        wire.encode_frame(request(wire, context=context(wire, deadline=moment)))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (-(2**63), str(-(2**63))),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (2**64 - 1, str(2**64 - 1)),
        (2**64, str(2**64)),
        (10**308 - 1, "9" * 308),
        (1 - 10**308, "-" + "9" * 308),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_value_is_written_the_same_next_to_one_that_json_has_no_form_for(wire, result, text):
    nil = uuid.UUID(int=0)
    assert f'"result":[{text},"{nil}"]' in payload(wire.encode_frame(success(wire, [result, nil])))


def test_a_delay_may_be_of_a_class_that_extends_float(wire):
    seconds = type("Seconds", (float,), {})(1.5)
    sent = wire.encode_frame(wire.ExecutionOutcome.retry_after("j", "r", "m", seconds))
    assert b'"retry_after_seconds":1.5' in sent


@pytest.mark.parametrize("number", [10**308, -(10**308)])
def test_an_integer_of_309_digits_is_not_sent(wire, number):
    with pytest.raises(EncodeError, match="int of more than 308 digits"):
        wire.encode_frame(success(wire, number))


def test_a_long_path_is_cut_in_the_error(wire):
    steps = len("payload.result.")
    for key in ("k" * (199 - steps), "k" * (200 - steps)):
        with pytest.raises(EncodeError) as caught:
            wire.encode_frame(success(wire, {key: object}))
        path = f"payload.result.{key}"
        assert caught.value.path == (path if len(path) < 200 else path + "...")


class NoMemory(enum.Enum):
    ONE = 1

    @property
    def value(self):
        raise MemoryError


def test_a_memory_error_from_the_code_of_a_value_is_raised_unchanged(wire):
    late = context(wire, deadline=NOON.replace(tzinfo=Halfway(MemoryError())))
    for message in (success(wire, [NoMemory.ONE]), request(wire, context=late)):
        with pytest.raises(MemoryError):
            wire.encode_frame(message)


@pytest.mark.parametrize("wrong", [None, b"", {}, "message", object])
def test_only_messages_are_encoded(wire, wrong):
    with pytest.raises(TypeError, match="expected a RunnerMessage, got "):
        wire.encode_frame(wrong)
    with pytest.raises(TypeError, match="expected a RunnerMessage, got ExecutionContext"):
        wire.encode_frame(context(wire))


def test_a_message_that_changes_while_it_is_encoded_does_no_harm(wire):
    class Changing(enum.Enum):
        ONE = 1

        @property
        def value(self):
            outcome.job_id = outcome.request_id = "x" * 50
            return 1

    outcome = wire.ExecutionOutcome.success("".join(["j"] * 50), "".join(["r"] * 50), Changing.ONE)
    wire.decode_frame(wire.encode_frame(outcome))
