"""Without rrq, results have the same JSON forms as with rrq."""

from __future__ import annotations

import collections
import dataclasses
import enum
import fractions
import ipaddress
import itertools
import pathlib
import re
import subprocess
import sys
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrq_fastwire import MAX_NESTING, EncodeError, ExecutionOutcome, encode_frame
from rrq_fastwire.runner import json_forms

pytest.importorskip("rrq", reason="compares with rrq, which is not installed")

import pydantic

from rrq_fastwire.runner import _rrq


class Color(enum.Enum):
    RED = date(2020, 1, 2)


class Word(enum.StrEnum):
    HELLO = "hello"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int
    seen: set[int]
    hidden: datetime = dataclasses.field(default=datetime(2020, 1, 2), repr=False)


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    inner: Point


class Model(pydantic.BaseModel):
    at: datetime
    tags: set[str]


class Text(str):
    pass


Pair = collections.namedtuple("Pair", "left right")

EAST = timezone(timedelta(hours=2, minutes=30))

VALUES = {
    "naive": datetime(2020, 1, 2, 3, 4, 5, 6),
    "utc": datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    "east": datetime(2020, 1, 2, tzinfo=EAST),
    "date": date(2020, 1, 2),
    "time": time(1, 2, 3, 400),
    "time in UTC": time(1, 2, tzinfo=timezone.utc),
    "time in the east": time(1, 2, tzinfo=EAST),
    "duration": timedelta(days=400, hours=-1, microseconds=5),
    "negative duration": timedelta(hours=-2, minutes=-5),
    "no time at all": timedelta(0),
    "days only": timedelta(days=3),
    "tenths of a second": timedelta(milliseconds=100),
    "decimal": Decimal("1.10"),
    "large decimal": Decimal("1E+5"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=1),
    "enum": Color.RED,
    "enum of text": Word.HELLO,
    "enum of numbers": Number.ONE,
    "text of a subclass": Text("text"),
    "path": pathlib.Path("a/b"),
    "address": ipaddress.ip_address("::1"),
    "network": ipaddress.ip_network("10.0.0.0/8"),
    "interface": ipaddress.ip_interface("10.0.0.1/8"),
    "pattern": re.compile("a+"),
    "complex": 1 - 2.5j,
    "imaginary": 1j,
    "bytes": "naïve".encode(),
    "bytearray": bytearray(b"abc"),
    "dataclass": Point(1, {2}),
    "dataclass with slots": Slotted(Point(1, set())),
    "model": Model(at=datetime(2020, 1, 2), tags={"a"}),
    "namedtuple": Pair({1}, [Pair(2, None)]),
    "set": {1},
    "frozenset": frozenset(["a"]),
    "deque": collections.deque([date(2020, 1, 2)]),
    "counter": collections.Counter("aa"),
    "ordered": collections.OrderedDict(a={1}),
    "nan": [float("nan"), float("inf"), {1.5}],
    "keys": {None: 1, True: 2, 1.5: 3, (1, (True, "x")): 4, 7: 5, (): 6},
    "more keys": {date(2020, 1, 2): 1, b"k": 2, Color.RED: {3}, uuid.UUID(int=2): 4, Word.HELLO: 5},
    "plain": {"a": [1, 2.5, "x", None, True, {"b": []}], "z": {1}},
}

ITERATORS = {
    "generator": lambda: (each for each in ({1}, date(2020, 1, 2))),
    "map": lambda: map(str, [1, 2]),
    "iterator": lambda: iter([1]),
}


def frame(write, value):
    outcome = ExecutionOutcome.success("j", "r", value)
    write(outcome)
    return encode_frame(outcome)


def assert_same(make):
    assert frame(json_forms.convert_values, make()) == frame(_rrq.convert_values, make())


@pytest.mark.parametrize("name", VALUES)
def test_a_value_has_the_form_that_rrq_gives_it(name):
    assert_same(lambda: VALUES[name])


@pytest.mark.parametrize("name", ITERATORS)
def test_an_iterator_has_the_form_that_rrq_gives_it(name):
    assert_same(ITERATORS[name])


@given(st.timedeltas())
def test_any_duration_has_the_form_that_rrq_gives_it(value):
    assert_same(lambda: value)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.dates()
    | st.datetimes(timezones=st.sampled_from([None, timezone.utc, EAST]))
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
)


@given(
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.dates(), inner),
        max_leaves=20,
    )
)
def test_any_nesting_of_values_has_the_form_that_rrq_gives_it(value):
    try:
        expected = frame(_rrq.convert_values, value)
    except EncodeError:
        return  # an integer of more than 308 digits
    assert frame(json_forms.convert_values, value) == expected


def test_details_of_an_error_have_the_same_forms():
    outcome = ExecutionOutcome.failure("j", "r", "no", details={"at": date(2020, 1, 2)})
    json_forms.convert_values(outcome)
    assert outcome.error.details == {"at": "2020-01-02"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [{1}, object()]}, "result.a[1]: object of type 'object' has no JSON form"),
        ({frozenset([1]): 1}, "object keys must be str, not frozenset"),
        (int, "object of type 'type' has no JSON form"),
    ],
)
def test_a_value_without_a_json_form_is_an_error_with_its_path(value, text):
    with pytest.raises(EncodeError, match=re.escape(text)):
        frame(json_forms.convert_values, value)


def test_an_endless_iterator_is_stopped(monkeypatch):
    monkeypatch.setattr(json_forms, "MAX_ITEMS", 1000)
    outcome = ExecutionOutcome.success("j", "r", itertools.count())
    json_forms.convert_values(outcome)
    assert len(outcome.result) == 1001


@dataclasses.dataclass
class Box:
    inner: object


CONTAINERS = {
    "deque": lambda inner: collections.deque([inner]),
    "dict": lambda inner: {"inner": inner},
    "dataclass": Box,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_values_as_deep_as_messages_may_be_nested_are_converted(kind):
    value = date(2020, 1, 2)
    for _ in range(MAX_NESTING - 2):  # the message, its payload and the result
        value = CONTAINERS[kind](value)
    assert b"2020-01-02" in frame(json_forms.convert_values, value)
    with pytest.raises(EncodeError, match="nested"):
        frame(json_forms.convert_values, CONTAINERS[kind](value))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_endless_nesting_is_refused(kind):
    inner = []
    endless = CONTAINERS[kind](inner)
    inner.append(endless)
    with pytest.raises(EncodeError, match="nested"):
        frame(json_forms.convert_values, endless)


def test_an_enum_that_is_its_own_value_is_refused():
    endless = enum.Enum("Endless", ["SELF"]).SELF
    endless._value_ = endless
    with pytest.raises(EncodeError, match="RecursionError"):
        frame(json_forms.convert_values, endless)


WITHOUT_RRQ = """
import asyncio, sys
sys.modules["rrq"] = sys.modules["pydantic"] = None
from datetime import date
from rrq_fastwire.testing import run_job

async def report(request):
    return {"at": date(2020, 1, 2), "tags": {1}}

async def bytes_that_are_not_text(request):
    return b"\\xff"

for handler in report, bytes_that_are_not_text:
    outcome = asyncio.run(run_job(handler))
    print(outcome.result, outcome.error and outcome.error.message)
"""


def test_a_runner_without_rrq_answers_with_these_forms():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RRQ], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "{'at': '2020-01-02', 'tags': [1]} None"
    assert second.startswith(
        "None result of 'bytes_that_are_not_text' cannot be sent: 'utf-8' codec can't decode"
    )
