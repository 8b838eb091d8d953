"""`serve()`: listens on a TCP socket, and runs the jobs that come in until it is told to end."""

from __future__ import annotations

import logging
from ipaddress import ip_address

from ..streams import start_server
from .engine import Runner
from .guard import DEFAULT_GRACE
from .process import ending_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .handlers import Handlers, Middleware
    from .lifespan import Lifespan

__all__ = ["parse_tcp_socket", "run_server", "serve"]

_logger = logging.getLogger(__package__)


def parse_tcp_socket(tcp_socket: str, *, allow_remote: bool = False) -> tuple[str, int]:
    """The host and port of "host:port"; an IPv6 address stands in brackets.

    Arguments:
        allow_remote: whether addresses other than loopback are accepted.

    Raises ValueError, with rrq-runner's messages.
    """
    tcp_socket = tcp_socket.strip()
    if not tcp_socket:
        raise ValueError("TCP socket value cannot be empty")
    if tcp_socket.startswith("["):
        host, separator, port_text = tcp_socket.partition("]:")
        host = host.lstrip("[")
        if not separator:
            raise ValueError("TCP socket must be in [host]:port format")
    else:
        host, separator, port_text = tcp_socket.rpartition(":")
        if not separator:
            raise ValueError("TCP socket must be in host:port format")
        if not host:
            raise ValueError("TCP socket host cannot be empty")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket host: {host}") from error
    if not (address.is_loopback or allow_remote):
        raise ValueError("TCP socket must bind to loopback-only interfaces")
    try:
        port = int(port_text)
    except ValueError as error:
        raise ValueError(f"Invalid TCP socket port: {port_text}") from error
    if not 0 < port <= 65535:
        raise ValueError(f"TCP socket port out of range: {port}")
    return str(address), port


async def serve(
    handlers: Handlers,
    tcp_socket: str,
    *,
    max_in_flight: int = 64,
    native_messages: bool = False,
    allow_remote: bool = False,
    grace: float = DEFAULT_GRACE,
    lifespan: Lifespan | None = None,
    threads: int | None = None,
    slow_callback: float | None = None,
    middleware: Sequence[Middleware] = (),
    on_error: Callable[[BaseException, Any], object] | None = None,
) -> None:
    """Runs the jobs that come in on a TCP socket, until SIGTERM, SIGINT or its own cancellation.

    At the end what runs is cancelled and answered, and the connections are closed; a second signal
    kills the process. Signals are seen to only in the main thread.

    Arguments:
        handlers: a mapping of names to async functions of one argument, the request, or an
            `rrq.registry.Registry` of them. What they return is the result, or an
            ExecutionOutcome, this package's or rrq's, in which the ids do not matter. Handlers that
            never wait may share a task, so none should keep its current_task() beyond the job.
        tcp_socket: "host:port" to listen on.
        max_in_flight: requests of one connection that run at a time; more are told to be busy.
        native_messages: whether the handlers of a Registry get this package's ExecutionRequest
            instead of rrq's. A mapping's always do.
        allow_remote: whether to listen on other addresses than loopback.
        grace: seconds that cancelled handlers are given at the end; `rrq-fastwire-runner --help`
            says how it relates to the worker's.
        lifespan: an async context manager, or a function that returns one. It is entered before the
            socket listens, and left after the last answer. lifespan_value() gives what it yields.
        threads: how many threads run the handlers that are not async; None refuses those.
        slow_callback: a handler that keeps the event loop for more seconds than this is named in
            the log, once, with the line where it did.
        middleware: async functions of the request and of the next function to call with it. The
            first is the outermost.
        on_error: a function that is called with the exception for which a job failed or timed out,
            and with the request.

    Raises ValueError for a wrong `tcp_socket` or number, TypeError for a handler that is not async
    and for other arguments that cannot be used, OSError if the socket cannot be listened on, and
    what the lifespan raises.
    """
    host, port = parse_tcp_socket(tcp_socket, allow_remote=allow_remote)
    runner = Runner(
        handlers,
        max_in_flight=max_in_flight,
        native_messages=native_messages,
        threads=threads,
        slow_callback=slow_callback,
        middleware=middleware,
        on_error=on_error,
    )
    if lifespan is None:
        await run_server(runner, host, port, grace, lambda: None)
        return
    from .lifespan import entered

    async with entered(lifespan):
        await run_server(runner, host, port, grace, lambda: None)


async def run_server(
    runner: Runner, host: str, port: int, grace: float, ending: Callable[[], None]
) -> None:
    """Serves a runner until a signal or its own cancellation ends it.

    Arguments:
        ending: called once that has begun, from a signal handler too; perhaps more than once.
    """
    with ending_signals(lambda _: ending()) as ended:
        server = await start_server(runner.on_stream, host, port)
        _logger.info("serving on %s port %d", host, port)
        if not ip_address(host).is_loopback:
            _logger.warning("%s is not loopback: whoever reaches port %d can run jobs", host, port)
        try:
            await ended.wait()
        finally:
            ending()
            server.close()
            await runner.stop(grace)
