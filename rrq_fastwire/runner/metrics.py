"""Metrics for Prometheus, with prometheus-client. Imported only for `--metrics` and `metrics=`.

They are in prometheus-client's default registry, so that metrics that the handlers define are
served with them. A thread serves them, even while a handler blocks the event loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server

from ..streams import MessageStream
from .observe import ObservedRunner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from wsgiref.simple_server import WSGIServer

    from .. import ExecutionOutcome, RunnerMessage
    from .engine import Runner

__all__ = ["MeasuredStream", "Metrics"]

JOBS = Counter("rrq_fastwire_jobs", "Jobs that were answered.", ["function", "outcome"])
DURATION = Histogram(
    "rrq_fastwire_job_duration_seconds",
    "Time from a request to its answer.",
    ["function"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300),
)
IN_FLIGHT = Gauge("rrq_fastwire_jobs_in_flight", "Jobs that have arrived and are not answered.")
REFUSED = Counter("rrq_fastwire_requests_refused", "Requests that were answered, but not run.")
CONNECTIONS_REFUSED = Counter(
    "rrq_fastwire_connections_refused", "Connections that were refused or closed.", ["reason"]
)
RECEIVED = Counter("rrq_fastwire_received_bytes", "Bytes that orchestrators have sent.")
SENT = Counter("rrq_fastwire_sent_bytes", "Bytes of answers.")
LAG = Histogram(
    "rrq_fastwire_event_loop_lag_seconds",
    "How late the event loop calls a timer, measured twice a second.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
)

_LAG_SECONDS = 0.5

# The measured runners. A program may have more than one.
_RUNNERS: set[ObservedRunner] = set()
IN_FLIGHT.set_function(lambda: sum(runner.count_jobs() for runner in tuple(_RUNNERS)))

# The label of all functions without a handler. Producers choose the names of functions, and each
# name would become a time series.
UNKNOWN = "(unknown)"


class MeasuredStream(MessageStream):
    """A connection whose bytes are counted."""

    def buffer_updated(self, nbytes: int) -> None:
        RECEIVED.inc(nbytes)
        super().buffer_updated(nbytes)

    def send_nowait(self, message: RunnerMessage, *, flush: bool = False) -> int:
        size = super().send_nowait(message, flush=flush)
        SENT.inc(size)
        return size


class Metrics:
    """Measure a runner, and serve the metrics over HTTP until stop().

    Arguments:
        host, port: where to listen.

    Raises OSError if it cannot listen.
    """

    def __init__(self, runner: Runner, host: str, port: int) -> None:
        assert isinstance(runner, ObservedRunner)
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self._children: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._server, _ = start_http_server(port, host, REGISTRY)
        _RUNNERS.add(runner)
        runner.observers.append(self._observe)
        self._due = 0.0
        self._timer = self._loop.call_soon(self._schedule)

    def refuse(self, reason: str) -> None:
        """Count a connection that was refused or closed, by the reason."""
        CONNECTIONS_REFUSED.labels(reason).inc()

    def _observe(self, name: str, outcome: ExecutionOutcome, seconds: float | None) -> None:
        if seconds is None:
            REFUSED.inc()
            return
        kind = outcome.type.value
        children = self._children.get((name, kind))
        if children is None:
            label = name if self._runner.is_known(name) else UNKNOWN
            children = JOBS.labels(label, kind), DURATION.labels(label)
            if label is name:
                self._children[name, kind] = children
        children[0].inc()
        children[1].observe(seconds)

    def _schedule(self) -> None:
        self._due = self._loop.time() + _LAG_SECONDS
        self._timer = self._loop.call_at(self._due, self._observe_lag)

    def _observe_lag(self) -> None:
        LAG.observe(max(0.0, self._loop.time() - self._due))
        self._schedule()

    def stop(self) -> None:
        """End the HTTP server and its thread."""
        self._timer.cancel()
        _RUNNERS.discard(self._runner)
        # Frees the port at once, even if a forked child has inherited the socket.
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        # In a thread, because the server takes up to half a second to end.
        threading.Thread(target=_end_server, args=(self._server,), daemon=True).start()


def _end_server(server: WSGIServer) -> None:
    server.shutdown()
    server.server_close()
