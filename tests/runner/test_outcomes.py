"""Handlers that return outcomes: those of rrq, and those of this package."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from datetime import datetime

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    OutcomeType,
    decode_frame,
    encode_frame,
)

from ..engine import (
    among_neighbours,
    call,
    compare,
    request,
    table,
)
from ..handlers import (
    giving,
    nested,
)
from ..stock import (
    StockError,
    StockOutcome,
    both_kinds_of_handlers,
    needs_rrq,
    stock,
)


class Posing:
    """An object that claims to be an outcome."""

    __class__ = ExecutionOutcome


class UnspeakableError(Exception):
    def __str__(self):
        raise KeyError


class PosingWithError(Posing):
    @property
    def error(self):
        raise UnspeakableError


def unchecked(status="success", **fields):
    """An outcome of rrq that pydantic has not validated."""
    return StockOutcome.model_construct(status=status, **fields)


class OwnOutcome(StockOutcome):
    extra: int = 1


OUTCOMES_LIKE_STOCK = {
    "success": lambda: stock("success", result={"a": {1}}),
    "success of nothing": lambda: stock("success"),
    "failure": lambda: stock("error", error=StockError(message="m")),
    "failure without an error": lambda: stock("error"),
    "failure with everything": lambda: stock(
        "error",
        result=[1],
        error=StockError(message="m", type="own", code="E1", details={"a": [{1}, math.nan]}),
    ),
    "handler_not_found": lambda: stock(
        "error", error=StockError(message="m", type="handler_not_found")
    ),
    "cancelled": lambda: stock("error", error=StockError(message="m", type="cancelled")),
    "timeout": lambda: stock("timeout", error=StockError(message="m")),
    "retry": lambda: stock("retry", error=StockError(message="m"), retry_after_seconds=2.5),
    "retry without an error": lambda: stock("retry"),
    "retry after text": lambda: stock("retry", retry_after_seconds="5"),
    "retry in the past": lambda: stock("retry", retry_after_seconds=-1),
    "odd result": lambda: stock("success", result=[datetime(2025, 1, 2), {1: b"x"}]),
    "an outcome in an outcome": lambda: stock("success", result=stock("error", result={1})),
    "details of odd keys": lambda: stock(
        "error", error=StockError(message="m", details={"1": {2: 3}})
    ),
}

UNSENDABLE_OUTCOMES = {
    "unknown status": (lambda: unchecked("cancelled"), "result .*status.*'cancelled'"),
    "status in capitals": (lambda: unchecked("SUCCESS"), "status.*'SUCCESS'"),
    "status None": (lambda: unchecked(None), "status.*null"),
    "no status": (lambda: StockOutcome.model_construct(result=1), "status"),
    "error of text": (lambda: unchecked(error="text"), "message"),
    "error without a message": (lambda: unchecked(error=StockError.model_construct()), "message"),
    "message of bytes": (
        lambda: unchecked("error", error=StockError.model_construct(message=[1])),
        "error .*message: expected a string, got an array",
    ),
    "delay of text": (lambda: unchecked("retry", retry_after_seconds="5"), "retry_after_seconds"),
    "delay of 10**400": (lambda: unchecked("retry", retry_after_seconds=10**400), "308 digits"),
    "object": (lambda: stock("success", result=object()), "result .*unknown type.*object"),
    "object in details": (
        lambda: stock("error", error=StockError(message="m", details={"a": object()})),
        "error .*unknown type.*object",
    ),
    "surrogate in details": (
        lambda: stock("error", error=StockError(message="m", details={"a": "\ud800"})),
        "error .*surrogate",
    ),
    "surrogate in the code": (
        lambda: stock("error", error=StockError(message="m", code="\ud800")),
        "error .*code.*surrogate",
    ),
    "17 MiB": (lambda: stock("success", result="x" * 17 * 2**20), "178258.* 16777216"),
    "nested details": (
        lambda: stock("error", error=StockError(message="m", details={"a": nested(125)})),
        "error .*deep",
    ),
}


@needs_rrq
@pytest.mark.parametrize("make", OUTCOMES_LIKE_STOCK.values(), ids=OUTCOMES_LIKE_STOCK.keys())
def test_an_outcome_of_rrq_is_sent_as_by_the_stock_runner(run, make):
    compare(run, giving(make), None)


@needs_rrq
@pytest.mark.parametrize(("make", "cause"), table(UNSENDABLE_OUTCOMES))
def test_an_outcome_that_cannot_be_sent_is_answered_with_the_reason(run, make, cause):
    compare(run, giving(make), cause)


@needs_rrq
@pytest.mark.parametrize(
    "ids", [{}, {"job_id": "x", "request_id": "y"}, {"request_id": ""}], ids=str
)
def test_the_ids_of_an_outcome_are_always_those_of_the_request(run, ids):
    given = [
        StockOutcome(status="success", result=1, **ids),
        OwnOutcome(status="success", result=1, **ids),
        ExecutionOutcome(status="success", result=1, **ids),
    ]
    expected = ExecutionOutcome.success("j", "r", 1)
    for each in given:
        before = repr(each)
        assert among_neighbours(run, giving(lambda each=each: each)) == expected
        assert repr(each) == before  # the handler's object is not changed


def test_one_outcome_can_be_the_answer_to_many_jobs(run):
    shared = ExecutionOutcome.failure("x", "y", "m", details={"a": {1}})

    async def handler(request):
        await asyncio.sleep(0)
        return shared

    answers = call(run, {"f": handler}, *(request("f", id=str(n)) for n in range(20)))
    for id, answer in answers.items():
        expected = ExecutionOutcome.failure(f"job of {id}", id, "m", details={"a": [1]})
        assert answer == expected
    assert shared.error.details == {"a": {1}}


@pytest.mark.parametrize(
    "returned",
    [
        ExecutionOutcome.success("", "", {"a": (1, 2)}),
        ExecutionOutcome.failure("", "", "m", type="own", code="E1", details=[1]),
        ExecutionOutcome.handler_not_found("", "", "m"),
        ExecutionOutcome.cancelled("", ""),
        ExecutionOutcome.timeout("", "", "m"),
        ExecutionOutcome.retry_after("", "", "m", 1.5),
        ExecutionOutcome.retry_after("", "", "m"),
    ],
    ids=lambda returned: returned.type,
)
@both_kinds_of_handlers
def test_an_outcome_of_this_package_is_sent_as_it_is(run, returned, wrap):
    answer = among_neighbours(run, giving(lambda: returned), wrap=wrap)
    returned.job_id, returned.request_id = "j", "r"
    assert answer == decode_frame(encode_frame(returned))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: ExecutionOutcome(status="failure"), "'report'.*status"),
        (lambda: ExecutionOutcome(status=None), "'report'.*status"),
        (lambda: ExecutionOutcome(status="error", error="text"), "'report'.*message"),
        (Posing, "outcome of 'report' cannot be sent: .*Posing"),
        (PosingWithError, "'report' raised UnspeakableError: its __str__ raised KeyError"),
        (lambda: ExecutionOutcome.failure("", "", None), "'report'.*message"),
        (lambda: ExecutionOutcome.retry_after("", "", "m", "5"), "'report'.*retry_after_seconds"),
        (lambda: ExecutionOutcome.failure("", "", "m", type=1), "'report'.*type"),
        (lambda: ExecutionOutcome.failure("", "", "\ud800"), "'report'.*surrogate"),
        (lambda: ExecutionOutcome.failure("", "", "m", details=object()), "'report'.*unknown type"),
        (lambda: ExecutionOutcome.success("", "", object()), "'report'.*unknown type"),
    ],
    ids=itertools.count(),
)
def test_an_invalid_outcome_of_this_package_is_answered_with_the_reason(run, make, cause):
    answer = among_neighbours(run, giving(make))
    assert answer.type is OutcomeType.FAILURE
    assert re.search(cause, answer.error.message), answer.error.message
