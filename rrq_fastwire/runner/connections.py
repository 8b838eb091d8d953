"""The connections of a runner, and their unanswered jobs."""

from __future__ import annotations

import asyncio

from ..streams.quota import quota_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import ExecutionOutcome, ExecutionRequest
    from ..streams import MessageStream

__all__ = ["Connection", "Job", "let_accepted_connections_arrive"]

# How many event loop iterations an accepted connection may need to reach on_stream(). asyncio needs
# four. It reads 32 KiB in each, so a request of 100 KB also needs four.
_ITERATIONS_TO_ACCEPT = 5


async def let_accepted_connections_arrive() -> None:
    """Wait until connections that asyncio has accepted have reached on_stream().

    Requests of up to 100 KB that have arrived, but wait to be read or decoded, are decoded, too.
    """
    quota = quota_of(asyncio.get_running_loop())
    for _ in range(_ITERATIONS_TO_ACCEPT):
        await asyncio.sleep(0)
        await quota.wait_for_turn()


class Job:
    """A request whose handler has not ended.

    Attributes:
        connection: where its answer goes; None once it is answered.
        task: the task that runs the handler, if the handler waits for something; else None.
        overtaken: the answer, if it was sent before the handler ended.
    """

    __slots__ = (
        "connection",
        "function_name",
        "job_id",
        "overtaken",
        "request_id",
        "task",
    )

    def __init__(self, connection: Connection, request: ExecutionRequest) -> None:
        self.connection: Connection | None = connection
        self.job_id = request.job_id
        self.request_id = request.request_id
        self.function_name = request.function_name
        self.task: asyncio.Task[None] | None = None
        self.overtaken: ExecutionOutcome | None = None


class Connection:
    """A stream and its unanswered jobs.

    Attributes:
        hung_up: whether further requests are ignored, because the connection is about to be closed.
        flushed: when an answer was last written at once, in time.monotonic().
        jobs: the unanswered jobs, by `request_id`.
        name: the peer's name in the log.
    """

    __slots__ = ("flushed", "hung_up", "jobs", "loop", "name", "stream")

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream
        self.loop = asyncio.get_running_loop()
        self.hung_up = False
        self.flushed = 0.0
        self.jobs: dict[str, Job] = {}
        self.name = "Unix socket"
        peer = stream.transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            host, port = peer[:2]
            self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
