"""Handlers that return values of all kinds: each job gets an answer."""

from __future__ import annotations

import array
import asyncio
import collections
import dataclasses
import enum
import fractions
import ipaddress
import json
import math
import pathlib
import re
import types
import uuid
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrq_fastwire import (
    MAX_FRAME_SIZE,
    ExecutionOutcome,
    OutcomeType,
    encode_frame,
)

from ..engine import (
    among_neighbours,
    call,
    compare,
    outcome,
    read_strictly,
    request,
    serving,
    stock_answer,
    table,
)
from ..handlers import (
    echo,
    giving,
    nested,
)
from ..stock import (
    BaseModel,
    StockError,
    needs_rrq,
    pydantic,
)


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Mode(enum.StrEnum):
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


class Bits(enum.Flag):
    A = 1
    B = 2


class RudeEnum(enum.Enum):
    ONE = 1

    @property
    def value(self):
        raise LookupError("hostile")


class Model(BaseModel):
    when: datetime = datetime(2025, 1, 2)
    tags: set[int] = {1}  # noqa: RUF012
    parent: Model | None = None


class RudeModel(BaseModel):
    a: int = 1

    if pydantic is not None:

        @pydantic.model_serializer
        def serialize(self):
            raise SystemExit("hostile")


@dataclasses.dataclass
class Point:
    x: int = 1
    y: object = None


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class RudeIter(list):
    def __iter__(self):
        raise LookupError("hostile")


class RudeItems(dict):
    def items(self):
        raise LookupError("hostile")


class RudeClass:
    @property
    def __class__(self):
        raise LookupError("hostile")


class Iterable:
    def __iter__(self):
        return iter([1])


Row = collections.namedtuple("Row", "a b")


def generate():
    yield 1
    yield {2}


def generate_and_fail():
    yield 1
    raise LookupError("hostile")


def generate_without_memory():
    yield 1
    raise MemoryError


def generate_and_complain():
    yield 1
    raise LookupError("\ud800" + "x" * 20 * 2**20)


def generate_and_exit():
    yield 1
    raise SystemExit("hostile")


def holds_itself():
    value = []
    value.append(value)
    return value


def holds_itself_in_a_set_and_more():
    value = {"deep": [{1}]}
    value["loop"] = value
    return value


UNAWAITED = []


def unawaited():
    coroutine = asyncio.sleep(0)
    UNAWAITED.append(coroutine)  # the test closes it, so that Python does not warn
    return coroutine


async def generate_async():
    yield 1


# Results that the stock runner can send, by name.
LIKE_STOCK = {
    "None": lambda: None,
    "True": lambda: True,
    "text": lambda: 'é😀 "quoted" \\ \0 \x1f \x7f \u2028',
    "minus zero": lambda: -0.0,
    "float": lambda: [1e300, 5e-324, 1.0, 0.1],
    "integers of 64 bits": lambda: [2**64 - 1, -(2**63)],
    "integers beyond 64 bits": lambda: [2**64, -(2**63) - 1, 10**30, -(10**307)],
    "set": lambda: {7},
    "frozenset of tuples": lambda: frozenset({(1, "a")}),
    "tuple": lambda: (1, (2, ())),
    "generator": generate,
    "generators in a dict": lambda: {"a": generate(), "b": [map(str, [1])]},
    "iterator": lambda: iter([1, {2}]),
    "zip": lambda: zip([1], ["a"], strict=True),
    "deque": lambda: collections.deque([1, {2}]),
    "datetime": lambda: datetime(2025, 1, 2, 3, 4, 5, 6),
    "datetime in UTC": lambda: datetime(2025, 1, 2, tzinfo=timezone.utc),
    "datetime with an offset": lambda: datetime(2025, 1, 2, tzinfo=timezone(timedelta(hours=5.5))),
    "date": lambda: date(2025, 1, 2),
    "time": lambda: time_of_day(1, 2, 3, 4),
    "timedelta": lambda: timedelta(days=1, seconds=1.5),
    "Decimal": lambda: [Decimal("1.50"), Decimal("NaN"), Decimal("1e400")],
    "Fraction": lambda: fractions.Fraction(1, 2),
    "UUID": lambda: uuid.UUID(int=1),
    "Enum": lambda: [Color.RED, Color.PAIR, Mode.FAST, Level.HIGH, Bits.A | Bits.B],
    "Path": lambda: pathlib.Path("a", "b"),
    "complex": lambda: 1 + 2j,
    "dataclass": lambda: Point(y=Point(y={1})),
    "BaseModel": lambda: Model(parent=Model()),
    "SecretStr": lambda: pydantic.SecretStr("secret"),
    "IP address": lambda: ipaddress.ip_address("127.0.0.1"),
    "pattern": lambda: re.compile("a+"),
    "bytes": lambda: [b"caf\xc3\xa9", bytearray(b"x"), b""],
    "NaN and infinities": lambda: [math.nan, math.inf, -math.inf, {"a": math.nan}],
    "odd keys": lambda: {None: 1, True: 2, 3: 3, 1.5: 4, (1, 2): 5},
    "keys that become the same": lambda: {1: "a", "1": "b"},
    "keys with a JSON form": lambda: {
        date(2025, 1, 2): 1,
        uuid.UUID(int=1): 2,
        b"k": 3,
        math.nan: 4,
    },
    "keys of an Enum": lambda: {Color.RED: 1, Mode.FAST: 2, Level.HIGH: 3},
    "namedtuple": lambda: Row(1, {2}),
    "str, int and float subclasses": lambda: [Text("a"), Whole(7), Real(1.5), {Text("k"): 1}],
    "dict subclasses": lambda: [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
    ],
    "list whose __iter__ raises": lambda: RudeIter([1]),
    "dict whose items() raises": lambda: RudeItems(a=1),
    "an odd value deep inside": lambda: {"a": [{"b": ({"c": {Color.RED}},)}]},
    "object whose __class__ raises": RudeClass,
    "nested 125 deep": lambda: nested(125),
    "rrq's ExecutionError": lambda: StockError(message="m", details={"a": 1}),
}

# The size of a success without its result, with the ids that the tests use.
FULL = len(encode_frame(ExecutionOutcome.success("j", "r", ""))) - 4

# Results that cannot be sent, and patterns of the reason in the answer. For these, the stock runner
# sends nothing, or a frame for which the orchestrator closes the connection.
UNSENDABLE = {
    "object": (object, "unknown type.*object"),
    "class": (lambda: int, "unknown type.*type"),
    "function": (lambda: generate, "unknown type.*function"),
    "module": (lambda: json, "unknown type.*module"),
    "exception": (lambda: ValueError("x"), "unknown type.*ValueError"),
    "Ellipsis": (lambda: ..., "unknown type.*ellipsis"),
    "coroutine": (unawaited, "unknown type.*coroutine"),
    "async generator": (generate_async, "unknown type.*async_generator"),
    "memoryview": (lambda: memoryview(b"x"), "unknown type.*memoryview"),
    "range": (lambda: range(3), "unknown type.*range"),
    "array": (lambda: array.array("i", [1]), "unknown type.*array"),
    "ChainMap": (lambda: collections.ChainMap({}), "unknown type.*ChainMap"),
    "mapping proxy": (lambda: types.MappingProxyType({}), "unknown type.*mappingproxy"),
    "dict views": ({}.keys, "unknown type.*dict_keys"),
    "any iterable": (Iterable, "unknown type.*Iterable"),
    "an object deep inside": (lambda: {"a": [{"b": {object()}}]}, "unknown type.*object"),
    "an object as key": (lambda: {object(): 1}, "unknown type.*object"),
    "a set as key": (lambda: {frozenset({1}): 1}, "frozenset.* key"),
    "bytes that are not UTF-8": (lambda: b"\xff", "can't decode byte 0xff"),
    "a key that is not UTF-8": (lambda: {b"\xff": 1}, "utf-8"),
    "a lone surrogate": (lambda: "ab\ud800", "lone surrogate at index 2"),
    "a lone surrogate deep inside": (
        lambda: {"a": [1, "\udfff"]},
        r"payload\.result\.a\[1\].*lone",
    ),
    "a lone surrogate as key": (lambda: {"\ud800": 1}, "surrogate"),
    "a lone surrogate and a set": (lambda: [{1}, "\ud800"], "surrogate"),
    "10**400": (lambda: 10**400, "308 digits"),
    "-10**400 deep inside": (lambda: [{1}, {"a": -(10**400)}], "308 digits"),
    "17 MiB": (lambda: "x" * 17 * 2**20, r"178258\d\d bytes.* limit.* 16777216"),
    "17 MiB of escapes": (lambda: "\0" * 3 * 2**20, r"188744\d\d bytes.* limit.* 16777216"),
    "17 MiB in a set": (lambda: {"x" * 17 * 2**20}, r"178258\d\d bytes.* limit.* 16777216"),
    "17 MiB of bytes": (lambda: b"x" * 17 * 2**20, r"178258\d\d bytes.* limit.* 16777216"),
    "nested 126 deep": (lambda: nested(126), "deep|depth"),
    "nested 126 deep in dicts": (
        lambda: nested(126, lambda items=(): dict(enumerate(items))),
        "deep|depth",
    ),
    "nested 126 deep in tuples": (lambda: nested(126, tuple), "deep|depth"),
    "nested 900 deep": (lambda: nested(900), "deep|depth"),
    "nested 100,000 deep": (lambda: nested(100_000), "deep|depth"),
    "a list that holds itself": (holds_itself, "Circular|deep"),
    "a dict that holds itself": (holds_itself_in_a_set_and_more, "Circular|deep"),
    "an Enum whose value raises": (lambda: RudeEnum.ONE, "LookupError|hostile"),
    "a generator that raises": (generate_and_fail, "hostile"),
    "a generator without memory": (generate_without_memory, "cannot be sent: MemoryError$"),
    "a generator that raises what cannot be sent": (generate_and_complain, r"\\ud800x"),
}


@needs_rrq
@pytest.mark.parametrize("make", LIKE_STOCK.values(), ids=LIKE_STOCK.keys())
def test_an_odd_result_is_answered_as_by_the_stock_runner(run, make):
    compare(run, giving(make), None)


@pytest.mark.parametrize(("make", "cause"), table(UNSENDABLE))
def test_a_result_that_cannot_be_sent_is_answered_with_the_reason(run, make, cause):
    try:
        compare(run, giving(make), f"'report' .*(?:{cause})")
    finally:
        while UNAWAITED:
            UNAWAITED.pop().close()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(generate_and_exit, id="a generator that exits"),
        pytest.param(RudeModel, marks=needs_rrq, id="a model that exits"),
    ],
)
def test_a_result_whose_code_exits_is_answered_with_the_reason(run, make):
    answer = among_neighbours(run, giving(make))
    assert answer.type is OutcomeType.FAILURE
    assert re.search("result of 'report' cannot be sent: .*SystemExit", answer.error.message)


def test_the_largest_result_fits_and_one_byte_more_is_an_error_with_size_and_limit(run):
    async def sized(request):
        return "x" * request.params["size"]

    most = MAX_FRAME_SIZE - FULL
    answers = call(
        run,
        {"sized": sized},
        request("sized", {"size": most}, id="r", job_id="j"),
        request("sized", {"size": most + 1}, id="s", job_id="j"),
    )
    assert answers["r"].result == "x" * most
    message = (
        "result of 'sized' cannot be sent: payload of 16777217 bytes exceeds the limit of 16777216"
    )
    assert answers["s"].error.message == message


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        # Only first halves of surrogate pairs: json would write a pair as one character, but this
        # package refuses it.
        st.text(st.sampled_from("aé\ud800\udbff"), max_size=3),
        st.binary(max_size=3),
        st.sampled_from([Color.RED, Mode.FAST, Level.HIGH, date(2025, 1, 2), object(), Text("x")]),
        st.decimals(),
        st.uuids(),
        st.timedeltas(),
        st.builds(Point, y=st.integers() | st.floats()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.none(), st.floats(), st.booleans()),
            inner,
            max_size=3,
        ),
        st.builds(Point, y=inner),
        st.sets(st.integers() | st.text(max_size=2), max_size=1),
    ),
    max_leaves=8,
)


@needs_rrq
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(VALUES, min_size=1, max_size=20))
def test_any_mixture_of_values_is_answered_as_by_the_stock_runner_or_as_an_error(run, values):
    async def report(request):
        return values[request.params["n"]]

    frames = [request("report", {"n": n}, id=str(n)) for n in range(len(values))]
    answers = call(run, {"report": report}, *frames)
    for n, value in enumerate(values):
        answer = answers[str(n)]
        try:
            theirs = read_strictly(stock_answer(giving(lambda value=value: value)))
        except (AssertionError, ValueError):
            assert answer.type is OutcomeType.FAILURE
            assert "result of 'report' cannot be sent" in answer.error.message
        else:
            assert answer.type is OutcomeType.SUCCESS
            assert json.dumps(answer.result) == json.dumps(decoded(theirs["result"]))


def decoded(value):
    """A result of json.loads() as this package decodes it: integers of more than 64 bits as floats."""
    return outcome({"job_id": "", "request_id": "", "status": "success", "result": value}).result


def test_a_request_with_an_id_too_long_for_an_answer_is_logged_and_harms_no_other(run, caplog):
    async def running():
        async def long_reason(request):
            return {"k" * 2000: type("T" * 2000, (), {})()}

        async with serving({"report": long_reason, "echo": echo}) as connect:
            peer = await connect()
            empty = len(request("report", id="", job_id="j")) - 4
            size = MAX_FRAME_SIZE - empty - 9  # the time of this one may have more digits
            peer.send(request("report", id="r" * size, job_id="j"))
            peer.send(request("echo", {"a": 1}, id="next"))
            assert (await peer.answer()).result == {"a": 1}
            return peer.name

    name = run(running())
    message = caplog.messages[1]
    assert message.startswith(f"{name}: a request cannot be answered: ")
    assert message.endswith(f"exceeds the limit of {MAX_FRAME_SIZE}")
