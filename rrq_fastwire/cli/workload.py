"""Send many jobs to a runner: the workload of `demo`, `load` and the benchmarks."""

from __future__ import annotations

import asyncio
import math
import time
from itertools import count

from .. import OutcomeStatus
from .runner_process import RunnerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..client import RunnerClient


def percentile(latencies: Sequence[float], percent: int) -> float:
    """Return the latency that this percentage of the latencies does not exceed.

    Arguments:
        latencies: seconds, sorted; at least one.
    """
    return latencies[math.ceil(len(latencies) * percent / 100) - 1]


async def drive(
    clients: Sequence[RunnerClient],
    function_name: str,
    params: dict[str, Any],
    *,
    in_flight: int,
    timeout: float,
    requests: int | None = None,
    seconds: float | None = None,
    rate: float | None = None,
    failures: Counter[str] | None = None,
    answered: Callable[[float], object] = lambda seconds: None,
) -> None:
    """Send jobs to a function, and wait for their answers, until a limit is reached.
    Arguments:
        clients: connections, used in turn.
        in_flight: the number of requests in flight, on all connections together.
        timeout: seconds until the deadline of each request.
        requests: the number of requests in all; None is no limit.
        seconds: how long to send requests, but at least one is sent; None is no limit.
        rate: requests per second; None sends as many as possible. A latency counts from when its
            request was due, so that a runner that is too slow has long latencies.
        failures: counts the outcomes that did not succeed, by message.
        answered: called with the latency of each answer, in seconds.

    Raises RunnerError for an outcome other than success if `failures` is None, and what
    RunnerClient.execute() raises except TimeoutError.
    """
    start = time.perf_counter()
    end = float("inf") if seconds is None else start + seconds
    numbers = iter(count() if requests is None else range(requests))

    async def lane(client: RunnerClient) -> None:
        for number in numbers:
            begun = time.perf_counter()
            if rate is not None:
                due = start + number / rate
                if due < end and due > begun:
                    await asyncio.sleep(due - begun)
                begun = due
            if number and max(begun, time.perf_counter()) >= end:
                return
            message = None
            try:
                outcome = await client.execute(function_name, params, timeout=timeout)
                if outcome.status is not OutcomeStatus.SUCCESS:
                    error = outcome.error
                    message = f"{outcome.status}: {error.message if error else 'no message'}"
            except TimeoutError:
                message = "no answer"
            took = time.perf_counter() - begun
            if message is not None:
                if failures is None:
                    raise RunnerError(f"{function_name}: {message}")
                failures[message] += 1
            answered(took)

    lanes = [
        asyncio.ensure_future(lane(clients[number % len(clients)])) for number in range(in_flight)
    ]
    # Not a TaskGroup: in CPython 3.11 its parent looks cancelled after one of its tasks has failed.
    try:
        await asyncio.gather(*lanes)
    finally:
        for each in lanes:
            each.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
