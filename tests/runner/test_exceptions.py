"""Handlers that raise exceptions: how their jobs are answered."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from datetime import timedelta
from decimal import Decimal

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    OutcomeType,
    decode_frame,
)

from ..engine import (
    among_neighbours,
    stock_answer,
)
from ..handlers import (
    RudeStrError,
    raising,
)
from ..stock import (
    RetryJob,
    StockError,
    needs_rrq,
    stock,
)


class NoStrError(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307


class ClasslessError(Exception):
    @property
    def __class__(self):
        raise LookupError("hostile")


class RudeText(str):
    __slots__ = ()

    def __bool__(self):
        raise LookupError("hostile")

    __len__ = __bool__


class RudelyWordedError(Exception):
    def __str__(self):
        return RudeText("words")


class RetryWithoutDelay(RetryJob):
    def __init__(self, text):
        Exception.__init__(self, text)


class RudeRetry(RetryJob):
    defer_seconds = property(lambda _: 1 / 0, lambda *_: None)


class SilentError(TimeoutError):
    def __str__(self):
        return ""


EXCEPTIONS_LIKE_STOCK = [
    lambda: ValueError("text"),
    ValueError,
    lambda: ValueError(""),
    lambda: KeyError("key"),
    lambda: OSError(2, "No such file"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    lambda: ExceptionGroup("several", [ValueError("1"), TypeError("2")]),
    lambda: StopIteration("value"),
    lambda: StopAsyncIteration("value"),
    lambda: RecursionError("deep"),
    MemoryError,
    lambda: ValueError('control \0\x1f, quote ", backslash \\, é😀'),
    TimeoutError,
    lambda: TimeoutError("own words"),
    SilentError,
    RetryJob,
    lambda: RetryJob(""),
    lambda: RetryJob("later"),
    *(
        lambda delay=delay: RetryJob("later", delay)
        for delay in (0, 5, 2.5, -1, "5", " 2.5 ", True, Decimal("0.5"), b"5", 10**30)
    ),
]


@needs_rrq
@pytest.mark.parametrize("make", EXCEPTIONS_LIKE_STOCK, ids=lambda make: repr(make()))
@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_an_exception_is_answered_as_by_the_stock_runner(run, make, step):
    report = raising(make)[step]
    theirs = decode_frame(stock_answer(report))
    assert among_neighbours(run, report) == theirs


WRONG_RETRIES = [
    (lambda: RetryJob("\udfff"), r"error of 'report' .*lone surrogate at index 0"),
    (lambda: RetryWithoutDelay("later"), "'report' raised RetryWithoutDelay.*AttributeError"),
    (lambda: RudeRetry("later"), "'report' raised RudeRetry.*ZeroDivisionError"),
    (lambda: RetryJob("later", "soon"), "'report'.*retry_after_seconds.* number"),
    (lambda: RetryJob("later", timedelta(1)), "'report'.*retry_after_seconds.* number"),
    (lambda: RetryJob("later", 10**400), "'report' .*308 digits"),
    (lambda: RetryJob("later", [5]), "'report'.*retry_after_seconds.* number"),
]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ValueError("a\ud800b"), r"error of 'report' .*lone surrogate at index 1"),
        (lambda: TimeoutError("\udfff"), r"error of 'report' .*lone surrogate at index 0"),
        (lambda: ValueError("x" * 17 * 2**20), r"error of 'report' .* 178258\d\d bytes.* 16777216"),
        (RudeStrError, "'report' raised RudeStrError: its __str__ raised ZeroDivisionError"),
        (NoStrError, "'report' raised NoStrError: its __str__ raised TypeError"),
        (RudelyWordedError, "'report' raised RudelyWordedError"),
        (lambda: ClasslessError("text"), "'report' raised ClasslessError"),
        (lambda: SystemExit(3), "'report' raised SystemExit: 3"),
        (KeyboardInterrupt, "'report' raised KeyboardInterrupt: "),
        (GeneratorExit, "'report' raised GeneratorExit: "),
        (
            lambda: BaseExceptionGroup("group", [SystemExit()]),
            r"'report' raised BaseExceptionGroup: group \(1 sub-exception\)",
        ),
        (lambda: type("OwnError", (BaseException,), {})("text"), "'report' raised OwnError: text"),
        *(pytest.param(*case, marks=needs_rrq) for case in WRONG_RETRIES),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_an_exception_that_cannot_be_sent_is_answered_with_the_reason(run, make, message, step):
    answer = among_neighbours(run, raising(make)[step])
    assert answer.type is OutcomeType.FAILURE
    assert re.search(message, answer.error.message), answer.error.message
    assert len(answer.error.message) < 1500


@needs_rrq
@pytest.mark.parametrize("delay", [math.nan, math.inf, "nan", Decimal("1e400")])
@pytest.mark.parametrize(
    "how",
    [
        RetryJob,
        lambda message, delay: stock(
            "retry", error=StockError(message=message), retry_after_seconds=delay
        ),
    ],
    ids=["raised", "returned"],
)
def test_a_delay_of_nan_or_infinity_is_left_to_the_orchestrator(run, delay, how):
    """The stock runner writes NaN and Infinity, which JSON does not have."""

    async def report(request):
        made = how("later", delay)
        if isinstance(made, Exception):
            raise made
        return made

    assert among_neighbours(run, report) == ExecutionOutcome.retry_after("j", "r", "later")


@pytest.mark.parametrize("step", [0, 1], ids=["at once", "later"])
def test_a_handler_that_raises_cancelled_error_by_itself_is_answered_as_cancelled(run, step):
    report = raising(asyncio.CancelledError)[step]
    assert among_neighbours(run, report) == ExecutionOutcome.cancelled("j", "r")
