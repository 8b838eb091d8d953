"""A runner holds no more objects and memory after 40,000 requests that end in all possible ways.

The runner is a process of its own, which runs this file as a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from importlib.util import find_spec

import pytest

from rrq_fastwire import (
    FRAME_HEADER_LEN,
    CancelRequest,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import open_connection, start_server

WARM_UP = 10_000
TOTAL = 40_000
CONNECTIONS = 8

# How much may be added after the warm-up, in which requests have already ended in every way. A leak
# for each connection would add about 100 objects, one for each ending several hundred.
MARGIN_OBJECTS = 50  # of one type
MARGIN_BLOCKS = 300  # of memory, including objects that gc does not track; measured: up to 61
# Resident memory: 140 bytes per request. Measured: up to 500.
MARGIN_KIB = 4096

# Seconds until a deadline that is never reached, and until an earlier one, which stays first in the
# heap of deadlines.
FAR = 7200
NEXT = 3600


# The runner


async def echo(request):
    return request.params


async def pause(request):
    await asyncio.sleep(0)
    return request.params


async def wait(request):
    await asyncio.Event().wait()


async def swallow(request):
    """Continues for a while after its cancellation."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.005)
        return "much later"


async def swallow_and_fail(request):
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        raise RuntimeError("at the end")


async def fail(request):
    raise ValueError("no")


async def fail_later(request):
    await asyncio.sleep(0)
    raise ValueError("no")


async def exit(request):
    sys.exit("no")


async def give_up(request):
    raise TimeoutError


async def give_a_decimal(request):
    return {Decimal("1.5"), datetime(2026, 1, 1)}


async def give_an_object(request):
    return object()


async def give_an_outcome(request):
    return ExecutionOutcome.retry_after("other", "ids", "later", 5)


async def leave_a_task(request):
    left = asyncio.create_task(asyncio.sleep(0.005))
    return left.get_name()


HANDLERS = [
    *(echo, pause, wait, swallow, swallow_and_fail, fail, fail_later, exit, give_up),
    *(give_a_decimal, give_an_object, give_an_outcome, leave_a_task),
]


def handlers(kind):
    """The handlers as a mapping, or as a registry, whose handlers can raise RetryJob."""
    mapping = {handler.__name__: handler for handler in HANDLERS}
    if kind == "mapping":

        async def retry(request):
            return ExecutionOutcome.retry_after("", "", "later")

        return mapping | {"retry": retry}
    from rrq.exc import RetryJob
    from rrq.registry import Registry

    async def retry(request):
        raise RetryJob("later", defer_seconds=5)

    registry = Registry()
    for name, handler in (mapping | {"retry": retry}).items():
        registry.register(name, handler)
    return registry


async def serve(kind):
    """Run a runner until stdin ends. The handler `inventory` returns what the process holds."""

    async def inventory(request):
        gc.collect()
        objects = Counter(type(each).__qualname__ for each in gc.get_objects())
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return {
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "objects": dict(objects),
            "blocks": sys.getallocatedblocks(),
            "KiB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
            "connections": len(runner.connections),
            "jobs": sum(len(connection.jobs) for connection in runner.connections),
            "cancelled": len(runner._cancelled),
            "deadlines": len(runner._deadlines._heap),
        }

    found = handlers(kind)
    if kind == "mapping":
        found["inventory"] = inventory
    else:
        found.register("inventory", inventory)
    runner = Runner(found)
    # Without a handler, stderr would get all records.
    logging.getLogger("rrq_fastwire").addHandler(logging.NullHandler())
    async with await start_server(runner.on_stream, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.close()
        await runner.stop(grace=1)


# The requests


class Requests:
    """Sends requests over one connection and checks the types of their answers."""

    def __init__(self, port, name):
        self.port = port
        self.name = name
        self.sent = 0
        self.stream = None
        self.expected = {}  # the types of the answers that are still to come, by request_id
        self.last = None
        self.all_answered = asyncio.Event()

    async def __aenter__(self):
        self.stream = await open_connection("127.0.0.1", self.port)
        self.receiver = asyncio.create_task(self.stream.deliver(self.take))
        return self

    async def __aexit__(self, *_):
        self.stream.close()
        await self.stream.wait_closed()
        with contextlib.suppress(OSError):
            await self.receiver

    def take(self, answer):
        to_come = self.expected[answer.request_id]
        assert answer.type == to_come.pop(0), answer
        if not to_come:
            del self.expected[answer.request_id]
        self.last = answer
        if not self.expected:
            self.all_answered.set()

    async def answered(self):
        """Wait until everything is answered, or the connection has ended."""
        while self.expected:
            self.all_answered.clear()
            arrived = asyncio.create_task(self.all_answered.wait())
            await asyncio.wait({arrived, self.receiver}, return_when=asyncio.FIRST_COMPLETED)
            arrived.cancel()
            if self.receiver.done():
                self.receiver.result()
                return

    def request(self, function_name, answer, deadline=None, job_id="job", **fields):
        self.sent += 1
        request_id = f"{self.name}:{self.sent}"
        self.expected[request_id] = [answer]
        now = datetime.now(timezone.utc)
        return ExecutionRequest(
            request_id=request_id,
            job_id=job_id,
            function_name=function_name,
            params={"number": self.sent},
            context=ExecutionContext(
                job_id=job_id,
                attempt=1,
                enqueue_time=now,
                queue_name="q",
                deadline=None if deadline is None else now + timedelta(seconds=deadline),
            ),
            **fields,
        )

    def send(self, *arguments, **fields):
        request = self.request(*arguments, **fields)
        self.stream.send_nowait(request)
        return request

    async def every_ending(self):
        """Send at most 64 requests, which end in every possible way."""
        send = self.send
        for deadline in (None, FAR):
            send("echo", "success", deadline)
            send("pause", "success", deadline)
            send("fail", "failure", deadline)
            send("fail_later", "failure", deadline)
            send("retry", "retry_after", deadline)
            send("give_up", "timeout", deadline)
            send("give_an_outcome", "retry_after", deadline)
            send("leave_a_task", "success", deadline)
            send("nothing", "handler_not_found", deadline)
        send("exit", "failure")
        send("give_a_decimal", "success" if find_spec("rrq") else "failure")
        send("give_an_object", "failure")
        send("echo", "failure", protocol_version="1")
        send("echo", "timeout", -1)
        for name in ("wait", "swallow", "swallow_and_fail"):
            send(name, "timeout", 0.01)
            by_request = send(name, "cancelled", FAR)
            self.stream.send_nowait(CancelRequest(job_id="job", request_id=by_request.request_id))
            by_job = f"job of {self.name}"
            send(name, "cancelled", job_id=by_job)
            send(name, "cancelled", job_id=by_job)
            self.stream.send_nowait(CancelRequest(job_id=by_job))
        twice = send("wait", "failure")
        self.expected[twice.request_id].append("cancelled")
        self.stream.send_nowait(twice)
        self.stream.send_nowait(CancelRequest(job_id="job", request_id=twice.request_id))
        wrong = encode_frame(self.request("echo", "failure"))[FRAME_HEADER_LEN:]
        for payload in (wrong.replace(b'"attempt":1', b'"attempt":-1'), b"no JSON", b'{"type":1}'):
            self.stream.transport.write(pack_frame(payload))
        await self.answered()

    async def too_many(self):
        """Send more requests than may run at a time."""
        for _ in range(64):
            self.send("wait", "cancelled", job_id=self.name)
        for _ in range(40):
            self.send("echo", "failure")
        self.stream.send_nowait(CancelRequest(job_id=self.name))
        await self.answered()

    async def go_away(self, how):
        """End the connection while 20 jobs run.

        Arguments:
            how: "end" or "half a request" ends the stream, "close" and "abort" close the
            connection.
        """
        for name in ("wait", "swallow"):
            for _ in range(10):
                self.send(name, "cancelled", FAR)
        last = self.send("echo", "success")
        while last.request_id in self.expected:
            await asyncio.sleep(0)
        assert len(self.expected) == 20
        if how in ("end", "half a request"):
            if how == "half a request":
                self.stream.transport.write(encode_frame(last)[:-1])
            self.stream.transport.write_eof()
            await self.receiver
            assert not self.expected
        elif how == "close":
            self.stream.close()
        else:
            self.stream.transport.abort()


async def storm(kind, port, number):
    """Send `number` requests over several connections at a time."""
    left = number

    async def connection():
        nonlocal left
        ways = 0
        while left > 0:
            async with Requests(port, f"{kind} {id(asyncio.current_task())} {left}") as requests:
                for _ in range(4):
                    await requests.every_ending()
                await requests.too_many()
                await requests.go_away(("end", "half a request", "close", "abort")[ways % 4])
                ways += 1
            left -= requests.sent

    async with Requests(port, "patient") as patient:
        running = patient.send("wait", "cancelled", NEXT)
        async with asyncio.TaskGroup() as connections:
            for _ in range(CONNECTIONS):
                connections.create_task(connection())
        # Answered jobs stay in the heap until their deadlines, but not more than this.
        assert (await inventory(port, connections=2))["deadlines"] <= 512
        patient.stream.send_nowait(CancelRequest(job_id="job", request_id=running.request_id))
        await patient.answered()
    return number - left


async def inventory(port, connections=1):
    """What the runner holds, when the handlers that ignore their cancellation have ended."""
    async with Requests(port, "inventory") as requests:
        async with asyncio.timeout(10):
            while True:
                # When this deadline passes, the runner drops those of jobs that were answered before. It
                # is far enough away for the job to begin before it, even on a busy machine.
                requests.send("wait", "timeout", 0.3)
                await requests.answered()
                requests.send("inventory", "success")
                await requests.answered()
                found = requests.last.result
                if found["connections"] == connections and not found["cancelled"]:
                    return found


@pytest.fixture(params=["mapping", "registry"])
def runner(request, tmp_path):
    """The kind of a runner, and its port."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("descriptors and memory are read from /proc, which is not here")
    if request.param == "registry":
        pytest.importorskip("rrq", reason="the registry is rrq's, which is not installed")
    errors = tmp_path / "stderr"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, request.param],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        yield request.param, int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == 0
        for complaint in ("never retrieved", "was destroyed", "Traceback", "ResourceWarning"):
            assert complaint not in errors.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.timeout(300)
def test_requests_leak_nothing_however_they_end(runner):
    kind, port = runner

    async def scenario():
        await inventory(port)  # which takes memory itself
        sent = await storm(kind, port, WARM_UP)
        before = await inventory(port)
        sent += await storm(kind, port, TOTAL - sent)
        return sent, before, await inventory(port)

    sent, before, after = asyncio.run(scenario())
    assert sent >= TOTAL
    growth = {
        name: after["objects"][name] - before["objects"].get(name, 0) for name in after["objects"]
    }
    grown = sorted(growth.items(), key=lambda item: -item[1])[:5]
    print(f"{kind}: {sent} requests; from {WARM_UP} requests on, objects grew by {grown}")
    for name in before:
        if name != "objects":
            print(f"    {name}: {before[name]} -> {after[name]}")

    for name in ("tasks", "descriptors", "connections"):
        assert after[name] == before[name], name
    assert after["jobs"] == 1  # the inventory's own job
    assert after["cancelled"] == 0
    assert after["deadlines"] == 0
    assert max(growth.values()) <= MARGIN_OBJECTS, grown
    assert after["blocks"] - before["blocks"] <= MARGIN_BLOCKS
    assert after["KiB"] - before["KiB"] <= MARGIN_KIB


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
