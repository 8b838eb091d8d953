"""Handlers that use features of this runner: a lifespan, threads, middleware and current_job().

`settings` also works with the stock runner. The runner is in the orchestrator's virtual
environment, so this file cannot import the test suite.
"""

import os
import time
from contextlib import asynccontextmanager

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings

from rrq_fastwire.runner import current_job, lifespan_value

URL = os.environ["DATABASE"]


@asynccontextmanager
async def lifespan():
    async with Redis.from_url(URL, socket_timeout=None) as redis:
        await redis.incr("entered")
        yield redis
        await redis.incr("left")


async def count(request):
    """Counts its runs, with the client of the lifespan or, without a lifespan, with a new client."""
    redis = lifespan_value() or Redis.from_url(URL, socket_timeout=None)
    await redis.hincrby("runs", request.job_id)
    return lifespan_value() is not None


def block(request):
    """Blocks its thread for a moment, or until long after its deadline."""
    redis = BlockingRedis.from_url(URL, socket_timeout=None)
    redis.hincrby("runs", request.job_id)
    redis.sadd("processes", os.getpid())
    time.sleep(request.params.get("seconds", 0.01))
    return current_job().job_id


async def fail(request):
    raise ValueError("broken")


async def time_it(request, call_next):
    """A middleware, which stores in Redis how long each job takes."""
    start = time.monotonic()
    try:
        return await call_next(request)
    finally:
        redis = lifespan_value()
        await redis.hset("seconds", current_job().job_id, time.monotonic() - start)


def report(error, request):
    """An on_error function, which stores each error in Redis."""
    BlockingRedis.from_url(URL).hset("errors", request.job_id, repr(error))


registry = Registry()
for handler in (count, fail):
    registry.register(handler.__name__, handler)
settings = PythonRunnerSettings(registry=registry)

with_threads = {"count": count, "block": block, "fail": fail}
