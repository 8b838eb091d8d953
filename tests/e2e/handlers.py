"""The handlers of the end-to-end tests, which the runner under test imports.

The runner is in the orchestrator's virtual environment, so this file cannot import the test suite.
"""

import asyncio
import os
import resource
import signal
import time
import uuid
from pathlib import Path

from redis.asyncio import Redis
from rrq.exc import RetryJob
from rrq.registry import Registry
from rrq.runner import ExecutionError, ExecutionOutcome
from rrq.runner_settings import PythonRunnerSettings

database = Redis.from_url(os.environ["DATABASE"], socket_timeout=None)

# Each start of a runner adds a line to this file.
with open("starts", "a") as starts:
    starts.write(f"{os.getpid()}\n")


async def echo(request):
    return request.params["value"]


async def describe(request):
    """The parts of the request that are the same in every run."""
    context = request.context
    return {
        "function_name": request.function_name,
        "params": request.params,
        "attempt": context.attempt,
        "queue_name": context.queue_name,
        "trace_context": context.trace_context,
        "job ids agree": request.job_id == context.job_id,
        "request and worker have ids": bool(request.request_id and context.worker_id),
        "the deadline lies ahead": context.enqueue_time < context.deadline,
    }


async def name_type(request):
    """The package whose requests the handlers get."""
    return type(request).__module__.partition(".")[0]


async def correlate(request):
    # rrq 0.9.18 has no such field.
    return getattr(request.context, "correlation_context", None)


async def fail(request):
    raise RuntimeError("broken ☠ \n")


async def time_out(request):
    raise TimeoutError("upstream is slow")


async def refuse(request):
    error = ExecutionError(message="no", type="app", code="E42", details={"☠": [None, 1.5]})
    return ExecutionOutcome(status="error", error=error)


async def retry_once(request):
    """Asks for a retry, and succeeds at the second attempt. Returns whether the delay was kept.

    A file keeps the time of the first attempt, because the second may run in another process.
    """
    delay = request.params.get("delay")
    first_attempt = Path(request.job_id)
    if request.context.attempt == 1:
        first_attempt.touch()
        raise RetryJob("not yet", delay)
    waited = time.time() - first_attempt.stat().st_mtime
    return {"attempt": request.context.attempt, "delayed": waited >= (delay or 0) - 0.01}


async def overdue(request):
    """Never ends by itself. Writes the time of its deadline to a file."""
    Path("deadline").write_text(str(request.context.deadline.timestamp()))
    await asyncio.Event().wait()


async def outlive(request):
    """Runs until half a second after the deadline of `overdue`, and succeeds."""
    while not Path("deadline").exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(float(Path("deadline").read_text()) + 0.5 - time.time())
    return "alive"


async def count(request):
    """Counts in Redis how often each job has run."""
    await database.hincrby("runs", request.job_id)


# Different in each process, and after each restart of a process.
IMAGE = str(uuid.uuid4())


async def count_and_name_image(request):
    """Waits, counts like count(), and adds IMAGE to a set in Redis."""
    await asyncio.sleep(request.params["seconds"])
    await count(request)
    await database.sadd("images", IMAGE)


async def wait_for_release(request):
    """Ends once `released` is set in Redis."""
    await count(request)
    while not await database.exists("released"):
        await asyncio.sleep(0.01)
    return "released"


async def use_up_descriptors(request):
    """Lets this process open no more files and connections until `released` is set in Redis."""
    await count(request)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno(), hard))
    while not await database.exists("released"):
        await asyncio.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def record(request):
    """Adds a line to the ledger, a file, which no kill of Redis or of a runner can undo."""
    await asyncio.sleep(request.params["seconds"])
    with open("ledger", "a") as ledger:
        ledger.write(f"{request.job_id}\n")


async def linger(request):
    """Never ends by itself, unless `released` is set in Redis before it starts."""
    # Read first: once this has counted, kill_runner() may set it.
    is_released = await database.exists("released")
    await count(request)
    if not is_released:
        await asyncio.Event().wait()


async def linger_in_thread(request):
    """Never ends by itself, and cannot be cancelled."""
    await count(request)
    await asyncio.to_thread(time.sleep, 600)


async def block(request):
    """Blocks the event loop."""
    time.sleep(request.params["seconds"])


async def make_text(request):
    """Returns a text of some size, after a wait, so that many of them are ready at the same time."""
    await asyncio.sleep(0.1)
    return "x" * request.params["size"]


async def kill_runner(request):
    """Kills its own runner once all jobs in params.lingering run there. Does so only once."""
    while not all(await database.hmget("runs", request.params["lingering"])):
        await asyncio.sleep(0.01)
    if await database.set("released", 1, nx=True):
        os.kill(os.getpid(), signal.SIGKILL)


HANDLERS = (
    echo,
    describe,
    name_type,
    correlate,
    fail,
    refuse,
    time_out,
    retry_once,
    overdue,
    outlive,
    count,
    count_and_name_image,
    wait_for_release,
    use_up_descriptors,
    record,
    linger,
    linger_in_thread,
    block,
    make_text,
    kill_runner,
)

registry = Registry()
for handler in HANDLERS:
    registry.register(handler.__name__, handler)

settings = PythonRunnerSettings(registry=registry)
