"""Spans of rrq's telemetry: which of their methods the runner calls for a job."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from rrq_fastwire import (
    OutcomeType,
    decode_frame,
)

from ..engine import (
    PATIENCE,
    SOON,
    among_neighbours,
    call,
    request,
    serving,
    stock_answer,
)
from ..handlers import (
    cancel_itself_and_wait,
    echo,
    fail,
    fail_instead,
    forever,
    giving,
    linger,
    raising,
    spin,
    swallow,
)
from ..stock import (
    HAS_RRQ,
    RetryJob,
    StockError,
    StockRequest,
    both_kinds_of_handlers,
    rrq,
    stock,
)

if not HAS_RRQ:
    pytest.skip("the telemetry is rrq's, which is not installed", allow_module_level=True)

SPAN = contextvars.ContextVar("SPAN", default=None)


class Recorder(rrq.telemetry.Telemetry):
    """A telemetry whose spans note the calls of their methods.

    The spans check that they are closed once, and in the context in which they were entered.
    """

    enabled = True

    def __init__(self):
        self.spans = []

    def runner_span(self, request):
        span = Span(request)
        self.spans.append(span)
        return span


class Span(rrq.telemetry.RunnerSpan):
    def __init__(self, request):
        self.request, self.told, self.closed, self.token = request, [], 0, None

    def __enter__(self):
        self.token = SPAN.set(self)
        return self

    def __exit__(self, *exception):
        assert SPAN.get() is self
        SPAN.reset(self.token)  # raises ValueError in another context
        return super().__exit__(*exception)

    def close(self):
        self.closed += 1

    def tell(self, word, duration_seconds, **more):
        assert SPAN.get() is self
        assert not self.closed
        assert 0 <= duration_seconds < PATIENCE
        self.told.append((word, {key: value for key, value in more.items() if value is not None}))

    def success(self, **more):
        self.tell("success", **more)

    def retry(self, **more):
        self.tell("retry", **more)

    def timeout(self, *, timeout_seconds, **more):
        self.tell("timeout", timeout_seconds=timeout_seconds, **more)

    def error(self, *, error, **more):
        self.tell("error", error=repr(error), **more)

    def cancelled(self, **more):
        self.tell("cancelled", **more)


@pytest.fixture
def recorder():
    rrq.telemetry.configure(Recorder())
    yield rrq.telemetry.get_telemetry()
    rrq.telemetry.disable()


async def within_its_span(request):
    assert SPAN.get().request == request
    await asyncio.sleep(0)
    assert SPAN.get().request == request


@pytest.mark.parametrize(
    "report",
    [
        echo,
        within_its_span,
        giving(lambda: stock("error", error=StockError(message="m"))),
        giving(lambda: stock("retry", retry_after_seconds=1)),
        giving(object),
        fail,
        *raising(lambda: RetryJob("later", 2.5)),
        *raising(lambda: RetryJob("later", "5")),
        *raising(lambda: RetryJob("")),
        *raising(RetryJob),
        *raising(TimeoutError),
        *raising(lambda: TimeoutError("words")),
        *raising(lambda: KeyError("key")),
    ],
    ids=lambda report: report.__name__,
)
def test_a_span_gets_the_same_calls_as_from_the_stock_runner(run, recorder, report):
    stock_answer(report)
    [theirs] = recorder.spans
    recorder.spans.clear()
    among_neighbours(run, report)
    [ours] = (span for span in recorder.spans if span.request.function_name == "report")
    assert ours.told == theirs.told
    assert type(ours.request) is StockRequest
    assert all(span.closed == 1 for span in recorder.spans)
    assert len(recorder.spans) == 8


@pytest.mark.parametrize("handler", [forever, spin, swallow, fail_instead, linger])
@pytest.mark.parametrize("how", ["request", "job", "deadline", "end"])
@both_kinds_of_handlers
def test_a_cancel_or_a_deadline_calls_the_method_of_the_span(run, recorder, handler, how, wrap):
    async def running():
        async with serving(wrap({"handler": handler, "echo": echo})) as connect:
            peer = await connect()
            deadline = SOON if how == "deadline" else None
            peer.send(request("handler", deadline=deadline), request("echo", id="2"))
            await peer.answers(1)
            peer.stop(how)
            await peer.answer()
        [span] = (each for each in recorder.spans if each.request.request_id == "r")
        if how == "deadline":
            assert span.told == [("timeout", {"error_message": "Job execution timed out."})]
        else:
            assert span.told == [("cancelled", {"reason": "Job cancelled"})]
        assert span.closed == 1

    run(running())


def test_a_handler_that_cancels_itself_makes_its_span_cancelled(run, recorder):
    among_neighbours(run, cancel_itself_and_wait)
    [span] = (each for each in recorder.spans if each.request.function_name == "report")
    assert span.told == [("cancelled", {})]
    assert span.closed == 1


@pytest.mark.parametrize(
    ("base", "word", "name"),
    [(RetryJob, "retry", "reason"), (TimeoutError, "timeout", "error_message")],
)
def test_an_exception_without_a_text_is_named_in_its_span(run, recorder, base, word, name):
    class UnspeakableError(base):
        def __str__(self):
            raise KeyError

    among_neighbours(run, giving_up(UnspeakableError))
    [span] = (each for each in recorder.spans if each.request.function_name == "report")
    text = "'report' raised UnspeakableError: its __str__ raised KeyError"
    assert span.told == [(word, {name: text})]


def giving_up(error):
    async def report(request):
        raise error("text")

    return report


def test_a_refused_request_has_no_span(run, recorder):
    call(
        run,
        {"echo": echo},
        request("missing"),
        request("echo", id="2", protocol_version="1"),
        request("echo", id="3", deadline=-1),
    )
    assert recorder.spans == []


class RudeTelemetry(rrq.telemetry.Telemetry):
    """Raises in one place, for the jobs of one function."""

    def __init__(self, place, error):
        self.place, self.error = place, error

    def runner_span(self, request):
        span = rrq.telemetry.RunnerSpan()
        if request.function_name != "report":
            return span

        def rude(*_, **__):
            raise self.error

        if self.place == "runner_span":
            rude()
        return type("RudeSpan", (rrq.telemetry.RunnerSpan,), {self.place: rude})()


@pytest.mark.parametrize(
    ("place", "report"),
    [
        ("runner_span", echo),
        ("__enter__", echo),
        ("__exit__", echo),
        ("close", fail),
        ("success", echo),
        ("error", fail),
        ("retry", raising(RetryJob)[1]),
        ("timeout", raising(TimeoutError)[1]),
    ],
)
@pytest.mark.parametrize("error", [LookupError("telemetry"), SystemExit("telemetry")], ids=repr)
def test_an_exception_of_the_telemetry_fails_only_its_job(run, place, report, error):
    rrq.telemetry.configure(RudeTelemetry(place, error))
    try:
        answer = among_neighbours(run, report)
        assert answer.type is OutcomeType.FAILURE
        assert "telemetry" in answer.error.message
        if isinstance(error, Exception):
            assert answer == decode_frame(stock_answer(report))
    finally:
        rrq.telemetry.disable()
