"""The checks of handlers, requests and values, and the class of all checks."""

from __future__ import annotations

import json
import uuid
from typing import NamedTuple

from ... import OutcomeStatus
from .peer import (
    SHORT,
    Request,
    Runner,
    ViolationError,
    cancel,
    compact,
    expect_status,
    expect_success,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeAlias

    Run: TypeAlias = Callable[[Runner], Awaitable[str | None]]


class Check(NamedTuple):
    """A check of one rule of the protocol.

    Attributes:
        name: the name, unique among the checks.
        expected: what the rule demands.
        is_open: whether the protocol leaves this open, so that a difference is not a failure.
        run: the function that checks; see check().
    """

    name: str
    expected: str
    is_open: bool
    run: Run


CHECKS: list[Check] = []


def check(name: str, expected: str, *, is_open: bool = False) -> Callable[[Run], Run]:
    """Add a function to the checks.

    The function gets a Runner. It returns what it saw, or None if that is as expected, and raises
    ViolationError if the runner breaks the rule.
    """

    def add(run: Run) -> Run:
        CHECKS.append(Check(name, expected, is_open, run))
        return run

    return add


# The four handlers


@check("echo", "success, with the params")
async def check_echo(runner: Runner) -> None:
    peer = await runner.connect()
    params = {"text": "hello", "number": 1, "nothing": None, "list": [True, False, {}]}
    expect_success(await peer.ask(Request("echo", params)), params)


@check("fail", "status error, with a message, and no type that means something else")
async def check_fail(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("fail"))
    seen = expect_status(outcome, OutcomeStatus.ERROR)
    if outcome.error is None or outcome.error.type in ("handler_not_found", "cancelled"):
        raise ViolationError(seen)
    return seen


@check("retry", "status retry")
async def check_retry(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("retry"))
    return expect_status(outcome, OutcomeStatus.RETRY)


@check("unknown function", "status error, type handler_not_found")
async def check_unknown_function(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request(f"no-such-{uuid.uuid4()}"))
    return expect_status(outcome, OutcomeStatus.ERROR, "handler_not_found")


# How requests are written


@check("fields left out", "taken as their defaults")
async def check_fields_left_out(runner: Runner) -> None:
    request = Request("echo")
    del request.fields["protocol_version"], request.fields["params"]
    for name in ("deadline", "trace_context", "correlation_context", "worker_id"):
        del request.context[name]
    expect_success(await (await runner.connect()).ask(request), {})


@check("unknown fields", "ignored at every level")
async def check_unknown_fields(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    unknown = {"new_in_version_3": {"type": "cancel"}}
    request.fields |= unknown
    request.context |= unknown
    envelope = {"type": "request", "payload": request.fields, **unknown}
    await _expect_echo_of(runner, request, compact(envelope))


@check("type after payload", "understood")
async def check_type_after_payload(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    await _expect_echo_of(runner, request, compact({"payload": request.fields, "type": "request"}))


@check("keys in another order", "understood")
async def check_keys_in_another_order(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    request.fields = dict(reversed(request.fields.items()))
    await _expect_echo_of(runner, request, request.payload())


@check("spaces and escapes", "understood, in keys as well")
async def check_spaces_and_escapes(runner: Runner) -> None:
    request = Request("echo", {"a": 1})
    text = json.dumps({"type": "request", "payload": request.fields}, indent="\t")
    text = text.replace('"type"', '"\\u0074ype"').replace('"params"', '"par\\u0061ms"')
    await _expect_echo_of(runner, request, f"\r\n {text} \n".encode())


async def _expect_echo_of(runner: Runner, request: Request, payload: bytes) -> None:
    request.raw = payload
    expect_success(await (await runner.connect()).ask(request), {"a": 1})


@check("dates", "understood with 0, 3, 6 and 9 digits of a second")
async def check_dates(runner: Runner) -> None:
    peer = await runner.connect()
    for fraction in ("", ".123", ".123456", ".123456789"):
        request = Request("echo")
        request.context["enqueue_time"] = f"2026-01-01T00:00:00{fraction}Z"
        request.context["deadline"] = f"2099-12-31T23:59:59{fraction}Z"
        expect_success(await peer.ask(request), {})


@check("ids of any text", "returned unchanged")
async def check_ids_of_any_text(runner: Runner) -> None:
    for text in ('"\\/\b\n', "Größe 量 😀", "\u2028", "x" * 10_000):
        request = Request("echo", job_id=f"job {text}", request_id=f"request {text}")
        expect_success(await (await runner.connect()).ask(request), {})


@check("other protocol version", "answered with status error; the connection stays open")
async def check_other_protocol_version(runner: Runner) -> str:
    peer = await runner.connect()
    request = Request("echo")
    request.fields["protocol_version"] = "99"
    seen = expect_status(await peer.ask(request), OutcomeStatus.ERROR)
    await peer.expect_echo()
    return seen


@check("cancel of another version", "ignored")
async def check_cancel_of_another_version(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("sleep", {"seconds": SHORT})
    await peer.send(request, cancel(request.job_id, request.request_id, version="99"))
    expect_success(await peer.answer())


# Values

_TEXTS = {
    "escapes": '"\\/\b\f\n\r\t\x00\x1f\x7f',
    "latin": "Größe ÅÆÉ",
    "right to left": "שלום مرحبا",
    "combining": "e\u0301 n\u0303",
    "CJK": "量子コンピュータ",
    "astral": "😀 \U0001d4b3 \U0010ffff",
    "joined": "👩\u200d👩\u200d👧",
    "line separators": "a\u2028b\u2029c\x85d",
    "byte order mark": "\ufeffx\uffff",
    "😀": "a key of its own",
    "": "an empty key",
}


@check("odd unicode", "echoed, written as it is or in escapes")
async def check_odd_unicode(runner: Runner) -> None:
    peer = await runner.connect()
    expect_success(await peer.ask(Request("echo", _TEXTS)), _TEXTS)
    request = Request("echo", _TEXTS)
    request.raw = json.dumps({"type": "request", "payload": request.fields}).encode()
    expect_success(await peer.ask(request), _TEXTS)


_NUMBERS = {
    "integers": [0, -1, 2**31, -(2**31) - 1, 2**53 - 1, -(2**53) + 1],
    "fractions": [0.1, -0.5, 1e-7, 3.141592653589793, 123456789.12345679],
    "limits": [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308],
    "large": [1.5e16, 1e21, -1e300],
}


@check("big and small numbers", "echoed, within two units of a double's last digit")
async def check_big_and_small_numbers(runner: Runner) -> None:
    expect_success(await (await runner.connect()).ask(Request("echo", _NUMBERS)), _NUMBERS)


@check("integers of 64 bits", "echoed exactly", is_open=True)
async def check_integers_of_64_bits(runner: Runner) -> None:
    params = {"integers": [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]}
    expect_success(await (await runner.connect()).ask(Request("echo", params)), params)


@check("nested params", "echoed, 125 levels deep")
async def check_nested_params(runner: Runner) -> None:
    params: dict[str, Any] = {}
    for _ in range(62):
        params = {"in": [params]}
    expect_success(await (await runner.connect()).ask(Request("echo", params)), params)
