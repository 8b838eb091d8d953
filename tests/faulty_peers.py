"""A runner for tests in which one connection is faulty, and another one must not be affected."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

from rrq_fastwire import (
    encode_frame,
)
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server

from .requests import new_request

# Seconds after which a test fails if something that it waits for has not happened.
PATIENCE = 60


class Served:
    """A runner, and the state that its handlers share."""

    def __init__(self):
        self.running = Counter()
        self.changed = asyncio.Event()
        self.released = asyncio.Event()  # ends the jobs of faulty connections
        self.filled = asyncio.Event()  # ends the jobs of a connection that does not read
        self.over = asyncio.Event()  # ends the job of the other connection
        self.runner = Runner(
            {
                handler.__name__: handler
                for handler in (self.echo, self.wait, self.stay, self.blob, self.blob_later)
            }
        )

    async def echo(self, request):
        return request.params

    async def blob(self, request):
        return "x" * request.params["size"]

    async def blob_later(self, request):
        self._count("blob_later", 1)
        await self.filled.wait()
        return await self.blob(request)

    async def wait(self, request):
        return await self._wait_for(self.released, "wait")

    async def stay(self, request):
        return await self._wait_for(self.over, "stay")

    async def _wait_for(self, event, name):
        self._count(name, 1)
        try:
            await event.wait()
        finally:
            self._count(name, -1)
        return "released"

    def _count(self, name, change):
        self.running[name] += change
        self.changed.set()

    async def until_running(self, name, number):
        """Wait until `number` handlers of a name are running, or, for blob_later, have started."""
        while self.running[name] != number:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def serving():
    """Yields a Served runner, which has a job on another connection.

    At the end, checks that this job was not affected, and that new connections are served.
    """
    served = Served()
    server = await start_server(served.runner.on_stream, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with server, await RunnerClient.connect("127.0.0.1", served.port) as neighbour:
        job = asyncio.create_task(neighbour.execute("stay"))
        await served.until_running("stay", 1)
        yield served
        # The jobs of faulty connections have ended.
        await served.until_running("wait", 0)
        async with await RunnerClient.connect("127.0.0.1", served.port) as client:
            assert (await client.execute("echo", {"a": 1})).result == {"a": 1}
        served.over.set()
        assert (await job).result == "released"
        server.close()
        await served.runner.stop(grace=PATIENCE)


async def execute_all(port, calls, function_name="echo"):
    """Run some jobs on one connection, and check their answers."""
    async with await RunnerClient.connect("127.0.0.1", port) as client:
        params = [{"number": number, "é": "x" * number} for number in range(calls)]
        outcomes = await asyncio.gather(*(client.execute(function_name, each) for each in params))
        assert [outcome.result for outcome in outcomes] == params
        assert client.unmatched == 0


def request(function_name, request_id, job_id="job", **params):
    return new_request(function_name, params, id=request_id, job_id=job_id)


async def received(stream):
    """All answers up to the end of a connection, and the type of the error that ended it, or None."""
    answers = []
    try:
        async for answer in stream:
            answers.append(answer)
    except (OSError, ValueError) as error:
        return answers, type(error)
    return answers, None


HEADER = 4
WAIT = encode_frame(request("wait", "1"))
BLOB = encode_frame(request("blob", "2", size=100_000))
