"""Objects that lie, raise, change or never end: they cause an error at most, never a crash."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import uuid
from datetime import datetime, timedelta, timezone, tzinfo

import pytest

from rrq_fastwire import (
    JSON_BACKEND,
    EncodeError,
    ExecutionContext,
    ExecutionRequest,
    FrameError,
    MessageError,
    _json,
)

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)


def success(wire, result):
    return wire.ExecutionOutcome.success("j", "r", result)


def sent(wire, result):
    """The JSON that is sent for a result."""
    frame = wire.encode_frame(success(wire, result))
    return frame[4:].partition(b'"result":')[2][:-2].decode()


def nested(levels, of):
    value = ()
    for _ in range(levels - 1):
        value = of((value,))
    return value


@pytest.mark.parametrize("of", [tuple, type("Pair", (tuple,), {}), list])
def test_every_kind_of_container_counts_as_nested(wire, of):
    assert sent(wire, nested(125, of)) == "[" * 125 + "]" * 125
    for levels in (126, 300, 200_000 if of is tuple else 900):
        with pytest.raises(EncodeError, match="nested too deep"):
            wire.encode_frame(success(wire, nested(levels, of)))


def test_keys_of_strings_are_not_compared_while_they_are_encoded(wire):
    class Key(str):
        def __hash__(self):
            return 1

        def __eq__(self, other):
            assert not is_encoding
            return self is other

    is_encoding = False
    strings = {Key("a"): "1", Key("b"): "2"} | dict.fromkeys(map(str, range(30)), "")
    for number in range(30):
        del strings[str(number)]  # to copy a sparse dict would insert, and compare, each key
    request = request_with(trace_context=strings)
    is_encoding = True
    frame = wire.encode_frame(request)
    assert wire.decode_frame(frame).context.trace_context == {"a": "1", "b": "2"}


@pytest.mark.skipif(JSON_BACKEND != "orjson", reason="orjson.Fragment is orjson's")
@pytest.mark.parametrize("raw", [b"{broken", b"NaN", b'"\xff"', b"1"])
def test_raw_json_of_orjson_is_refused(wire, raw):
    import orjson

    with pytest.raises(EncodeError, match="object of type 'Fragment' has no JSON form"):
        wire.encode_frame(success(wire, {"a": [orjson.Fragment(raw)]}))


class Raising(enum.Enum):
    ONE = 1

    @property
    def value(self):
        raise LookupError("hostile")


def attributes(items):
    """The __dict__ of an object, whose keys are kept in its class."""
    holder = type("Holder", (), {})()
    for name, item in items.items():
        setattr(holder, name, item)
    return vars(holder)


def with_gaps(items):
    gapped = {"gone": None} | items | {"too": None}
    del gapped["gone"], gapped["too"]
    return gapped


def with_any_key(items):
    """A dict that CPython stores like one with keys of all types."""
    made = {1: None} | items
    del made[1]
    return made


@pytest.mark.parametrize("of", [dict, attributes, with_gaps, with_any_key])
@pytest.mark.parametrize("around", [{}, {"b": [{"c": 1}]}, {f"k{n}": n for n in range(40)}])
def test_the_items_of_every_kind_of_dict_are_checked(wire, of, around):
    fine = around | {"a": {"b": 1}}
    assert json.loads(sent(wire, [of(fine)])) == [fine]
    with pytest.raises(EncodeError, match="LookupError"):
        wire.encode_frame(success(wire, [of(around | {"a": Raising.ONE})]))
    with pytest.raises(EncodeError, match="nested too deep"):
        wire.encode_frame(success(wire, of(around | {"a": nested(125, list)})))


class Endless(enum.Enum):
    ONE = 1

    @property
    def value(self):
        return self


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (type("Map", (dict,), {"items": lambda _: 1 / 0})(a=1), b'{"a":1}'),
        (type("Map", (dict,), {"items": lambda _: [("b", 2)]})(a=1), b'{"a":1}'),
        (type("List", (list,), {"__iter__": lambda _: 1 / 0})([1]), b"[1]"),
        (type("Tuple", (tuple,), {"__iter__": lambda _: iter("x")})([1]), b"[1]"),
    ],
    ids=["items() raises", "items() lies", "__iter__ raises", "__iter__ lies"],
)
def test_a_container_is_sent_by_its_items_without_calling_its_own_methods(wire, value, written):
    assert b'"result":' + written + b"}" in wire.encode_frame(
        wire.ExecutionOutcome.success("j", "r", value)
    )


@pytest.mark.parametrize(
    ("result", "raised"),
    [
        (Raising.ONE, "LookupError"),
        ([{"a": Raising.ONE}], "LookupError"),
        (Endless.ONE, "RecursionError"),
        (uuid.UUID.__new__(uuid.UUID), "AttributeError"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_value_whose_own_code_raises_is_not_sent(wire, result, raised):
    with pytest.raises(EncodeError, match=f"its own code raised {raised}"):
        wire.encode_frame(success(wire, result))


def test_a_list_that_empties_itself_while_it_is_written_is_harmless(wire):
    class Clearing(enum.Enum):
        ONE = 1

        @property
        def value(self):
            items.clear()
            return 1

    items = [Clearing.ONE, "x" * 100, "y" * 100]
    assert sent(wire, items) == "[1]"


class Reason(str, enum.Enum):  # noqa: UP042 (a StrEnum cannot lie about its value)
    GONE = "gone"

    @property
    def value(self):
        return 404


class Delay(int, enum.Enum):
    SHORT = 5

    @property
    def value(self):
        return "short"


def test_an_enum_member_in_a_field_is_written_as_its_str_or_int_and_not_as_its_value(wire):
    frame = wire.encode_frame(wire.ExecutionOutcome.failure("j", "r", Reason.GONE))
    assert b'"error":{"message":"gone"}' in frame
    frame = wire.encode_frame(wire.ExecutionOutcome.retry_after("j", "r", "m", Delay.SHORT))
    assert b'"retry_after_seconds":5}' in frame
    assert sent(wire, [Reason.GONE, Delay.SHORT]) == '[404,"short"]'


class LyingFloat(float):
    def __sub__(self, other):
        return 0.0

    def __float__(self):
        return float("nan")


class LyingInt(int):
    def __ge__(self, other):
        return True

    __le__ = __lt__ = __gt__ = __ge__

    def __index__(self):
        return 1

    __int__ = __index__


class LyingText(str):
    __slots__ = ()

    def __str__(self):
        return "other"

    def encode(self, *_):
        raise LookupError

    def __format__(self, _):
        raise LookupError


def test_overridden_methods_of_numbers_and_strings_are_not_called(wire):
    assert sent(wire, [LyingFloat("inf"), LyingFloat(1.5)]) == "[null,1.5]"
    assert (
        sent(wire, [LyingInt(7), LyingText("text"), {LyingText("key"): 1}])
        == '[7,"text",{"key":1}]'
    )
    context = wire.ExecutionContext(
        job_id=LyingText("j"), attempt=LyingInt(3), enqueue_time=NOON, queue_name="q"
    )
    request = wire.ExecutionRequest(request_id="r", job_id="j", function_name="f", context=context)
    assert b'"job_id":"j","attempt":3' in wire.encode_frame(request)
    for wrong in (LyingInt(-5), LyingInt(2**40)):
        context.attempt = wrong
        with pytest.raises(EncodeError, match="expected an integer from 0"):
            wire.encode_frame(request)


class LyingMoment(datetime):
    def __new__(cls, text):
        return datetime.__new__(cls, 1999, 1, 1)

    def isoformat(self, *_):
        return "garbage"

    def utcoffset(self):
        return None


class Repeated(tzinfo):
    """A clock that is put back: with fold 0 it is ahead of UTC by 2 hours, with fold 1 by 1 hour."""

    def utcoffset(self, moment):
        return timedelta(hours=1 if moment.fold else 2)

    def dst(self, moment):
        return None


@pytest.mark.parametrize(
    ("zone", "fold", "hour"),
    [
        (timezone.utc, 0, 12),
        (timezone(timedelta(hours=-3)), 0, 15),
        (Repeated(), 0, 10),
        (Repeated(), 1, 11),
    ],
)
def test_overridden_methods_of_a_datetime_are_not_called(wire, zone, fold, hour):
    moment = datetime.__new__(LyingMoment, 2025, 1, 2, 12, tzinfo=zone, fold=fold)
    frame = wire.encode_frame(request_with(enqueue_time=moment))
    assert b'"enqueue_time":"2025-01-02T%d:00:00Z"' % hour in frame


def test_overridden_methods_of_a_size_are_not_called(wire):
    decoder = wire.FrameDecoder()
    decoder.get_buffer(-1)
    with pytest.raises(ValueError, match="got 10000004"):
        decoder.buffer_updated(LyingInt(10_000_004))
    assert decoder.buffered == 0
    for limit in (LyingInt(0), LyingInt(-1)):
        with pytest.raises(ValueError, match="max_frame_size"):
            wire.FrameDecoder(limit)


def test_memory_handed_out_cannot_be_resized(wire):
    decoder = wire.FrameDecoder()
    view = decoder.get_buffer(-1)
    owner = view.obj
    view[:4] = (8000).to_bytes(4, "big")
    decoder.buffer_updated(8004)
    view.release()
    with contextlib.suppress(TypeError):
        del owner[8:]
    assert len(next(decoder)) == 8000


def test_the_frames_of_a_traceback_cannot_see_freed_memory(wire):
    """The views in these frames keep their memory alive."""
    decoder = wire.MessageDecoder()
    with pytest.raises(MessageError) as caught:
        next(decoder.feed(wire.pack_frame(b'{"a":' + b"x" * 10_000)))
    seen = []
    error = caught.value
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            seen += [
                each for each in trace.tb_frame.f_locals.values() if isinstance(each, memoryview)
            ]
            trace = trace.tb_next
        error = error.__context__
    for view in seen:
        assert type(view.obj) is bytes


def test_a_message_is_not_a_valid_result(wire):
    outcome = success(wire, wire.CancelRequest(job_id="j"))
    with pytest.raises(EncodeError, match="object of type 'CancelRequest' has no JSON form"):
        wire.encode_frame(outcome)
    outcome.result = outcome
    with pytest.raises(EncodeError, match="object of type 'ExecutionOutcome' has no JSON form"):
        wire.encode_frame(outcome)


class Odd:
    """Equal to nothing, and unequal to nothing."""

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return False

    __hash__ = None


def test_messages_are_equal_if_their_fields_are(wire):
    assert success(wire, Odd()) != success(wire, Odd())
    broken = success(wire, None)
    broken.status = type("Status", (), {"__eq__": lambda *_: 1 / 0, "__hash__": object.__hash__})()
    with pytest.raises((EncodeError, ZeroDivisionError)):
        wire.encode_frame(broken)


def test_decoders_can_be_subclassed(wire):
    class Named(wire.MessageDecoder):
        def __init__(self, name):
            super().__init__(max_frame_size=100)
            self.name = name

    decoder = Named("tap")
    assert decoder.name == "tap"
    assert list(decoder.feed(b"\0\0\0\x64")) == []


def test_an_empty_memoryview_of_any_format_adds_nothing(wire):
    assert list(wire.FrameDecoder().feed(memoryview((ctypes.c_uint32 * 0)()))) == []


def test_a_wrong_limit_is_reported_before_a_wrong_message(wire):
    with pytest.raises(ValueError, match="max_frame_size"):
        wire.encode_frame(None, max_frame_size=0)


@pytest.mark.parametrize("verdict", [-1, "yes", 2**40, [1]], ids=repr)
def test_a_status_is_read_without_calling_its_own_comparison(wire, verdict):
    class Status(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            return verdict

    outcome = wire.ExecutionOutcome(job_id="j", request_id="r", status=Status("success"))
    assert b'"status":"success","result":null}}' in wire.encode_frame(outcome)


class LyingDict(dict):
    """A dict whose methods return other things than it holds."""

    def values(self):
        return ["a string"]

    def items(self):
        return [("key", "a string")]

    def __iter__(self):
        return iter(["key"])

    keys = __iter__


def request_with(**fields):
    context = {"job_id": "j", "attempt": 1, "enqueue_time": NOON, "queue_name": "q"} | fields
    return ExecutionRequest(
        request_id="r", job_id="j", function_name="f", context=ExecutionContext(**context)
    )


def test_overridden_methods_of_a_dict_are_not_called(wire):
    with pytest.raises(EncodeError, match=r"trace_context: expected an object of strings or null"):
        wire.encode_frame(request_with(trace_context=LyingDict(a=1)))
    frame = wire.encode_frame(request_with(trace_context=LyingDict(a="b")))
    assert wire.decode_frame(frame).context.trace_context == {"a": "b"}


@pytest.mark.parametrize(
    "status",
    [uuid.UUID.__new__(uuid.UUID), object(), ["success"], enum.Enum("Status", "success").success],
    ids=lambda status: type(status).__name__,
)
def test_a_status_that_is_not_a_str_is_an_encode_error(wire, status):
    outcome = wire.ExecutionOutcome(job_id="j", request_id="r", status=status)
    with pytest.raises(EncodeError, match=r"^payload\.status: expected one of success, retry"):
        wire.encode_frame(outcome)


def test_a_deleted_attribute_is_an_encode_error(wire):
    for name in ("job_id", "status", "result"):
        outcome = success(wire, None)
        delattr(outcome, name)
        with pytest.raises(EncodeError, match=rf"^payload\.{name}: .*, got nothing$"):
            wire.encode_frame(outcome)


class LyingMeta(type):
    def __getattribute__(cls, name):
        raise LookupError


def test_an_error_names_a_class_whose_metaclass_raises(wire):
    anonymous = LyingMeta("Anonymous", (), {})()
    for call in (
        lambda: wire.encode_frame(success(wire, anonymous)),
        lambda: wire.encode_frame(wire.ExecutionOutcome(status=anonymous)),
        lambda: wire.encode_frame(anonymous),
        lambda: wire.decode_frame(anonymous),
    ):
        with pytest.raises((EncodeError, TypeError), match="Anonymous"):
            call()


class Pretender:
    """An object that claims to be of another class."""

    def __init__(self, cls):
        self.cls = cls

    @property
    def __class__(self):
        if self.cls is None:
            raise LookupError
        return self.cls


@pytest.mark.parametrize("cls", [str, int, float, dict, bool, datetime, None])
@pytest.mark.parametrize(
    "path",
    [
        "job_id",
        "status",
        "retry_after_seconds",
        "error",
        "error.message",
        "context.attempt",
        "context.enqueue_time",
        "context.trace_context",
        "params",
        "hard_kill",
    ],
)
def test_a_field_that_only_claims_to_be_of_its_class_is_an_encode_error(wire, cls, path):
    message = wire.ExecutionOutcome.failure("j", "r", "m")
    if path == "hard_kill":
        message = wire.CancelRequest(job_id="j")
    elif path.startswith(("context", "params")):
        message = request_with()
    *parents, name = path.split(".")
    holder = message
    for parent in parents:
        holder = getattr(holder, parent)
    setattr(holder, name, Pretender(cls))
    with pytest.raises(EncodeError, match=rf"^payload\.{path}: expected "):
        wire.encode_frame(message)


class PretendedInt(float):
    __class__ = int


@pytest.mark.parametrize("cls", [enum.Enum, str, int, float, uuid.UUID, dict, list, tuple, None])
def test_a_result_that_only_claims_to_be_of_a_class_has_no_json_form(wire, cls):
    with pytest.raises(EncodeError, match="object of type 'Pretender' has no JSON form"):
        wire.encode_frame(success(wire, [Pretender(cls)]))
    with pytest.raises(EncodeError, match="object keys must be str, not Pretender"):
        wire.encode_frame(success(wire, {Pretender(cls): 1}))


def test_a_number_or_container_is_sent_as_what_it_is_and_not_what_it_claims_to_be(wire):
    claims = type("Claims", (list,), {"__class__": dict})
    assert sent(wire, [PretendedInt(1.5), claims([1])]) == "[1.5,[1]]"
    outcome = wire.ExecutionOutcome.retry_after("j", "r", "m", PretendedInt(1.5))
    assert b'"retry_after_seconds":1.5}' in wire.encode_frame(outcome)


def test_a_size_that_only_claims_to_be_an_int_is_a_type_error(wire):
    decoder = wire.FrameDecoder()
    size = PretendedInt(5.0)
    for call in (
        lambda: wire.FrameDecoder(size),
        lambda: wire.encode_frame(success(wire, None), max_frame_size=size),
        lambda: decoder.get_buffer(size),
        lambda: decoder.buffer_updated(size),
    ):
        with pytest.raises(TypeError, match="must be an int, got PretendedInt"):
            call()
    with pytest.raises(TypeError, match="expected bytes, bytearray or memoryview, got Pretender"):
        decoder.feed(Pretender(bytes))


def test_a_class_with_its_own_equality_is_not_a_message(wire):
    class Equal(type):
        def __eq__(cls, other):
            return True

        def __hash__(cls):
            return hash(ExecutionRequest)

    with pytest.raises(TypeError, match="expected a RunnerMessage, got Pretended"):
        wire.encode_frame(Equal("Pretended", (), {})())


def test_a_value_that_repeats_a_container_may_have_a_limited_number_of_items(wire, monkeypatch):
    assert _json.MAX_ITEMS == 8388608
    monkeypatch.setattr(_json, "MAX_ITEMS", 100_000)  # the real limit takes seconds in Python code
    value = [1]
    for _ in range(20):
        value = [value] * 1000
    with pytest.raises(EncodeError, match=r"^payload\.result(\[\d+\])*: more than 100000 items$"):
        wire.encode_frame(success(wire, value))


class LongBytes(bytes):
    def __len__(self):
        return 1_000_000

    def __bytes__(self):
        return b"other"

    def __buffer__(self, flags):
        return memoryview(b"from __buffer__")


def test_the_length_of_a_frame_is_that_of_its_payload(wire):
    payload = bytes(memoryview(LongBytes(b"payload")))  # from __buffer__() since Python 3.12
    assert wire.pack_frame(LongBytes(b"payload")) == wire.pack_frame(payload)
    limit = 2**32 - 1
    assert wire.FrameDecoder(limit).feed(LongBytes(b"payload")).buffered == len(payload)
    with pytest.raises(FrameError):
        wire.decode_frame(LongBytes(b"payload"))
