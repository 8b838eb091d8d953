"""`demo`: rrq's own runner, with its codec and with this one, side by side."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from itertools import islice

from .. import ExecutionContext, ExecutionOutcome, ExecutionRequest, MessageDecoder, encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

_JOBS = 2000
_IN_FLIGHT = 64
_PARAMS = {
    "user_id": 123456,
    "email": "someone@example.com",
    "items": [{"sku": f"A-{number:04}", "count": number, "price": 9.99} for number in range(40)],
}

settings: Any = None  # rrq's runner looks its settings up by a dotted name: this one


async def _echo(request: Any) -> Any:
    return request.params


def run() -> int:
    """Run 2,000 jobs through rrq's own runner, with its codec and with this one."""
    try:
        import rrq.protocol
        from rrq.registry import Registry
        from rrq.runner_settings import PythonRunnerSettings
    except ImportError:
        print("the demo runs rrq's own runner: pip install rrq", file=sys.stderr)
        return 1
    from .. import compat

    global settings  # noqa: PLW0603
    registry = Registry()
    registry.register("echo", _echo)
    settings = PythonRunnerSettings(registry=registry)

    with _timed(rrq.protocol) as without:
        sent, received = asyncio.run(_drive())
    compat.install()
    try:
        with _timed(compat) as codec:
            asyncio.run(_drive())
    finally:
        compat.uninstall()

    print(f"{_JOBS} jobs over one connection, {_IN_FLIGHT} in flight, through rrq's own runner")
    print(f"requests: {sent} bytes, answers with rrq's codec: {received} bytes\n")
    print("in the runner, microseconds a job   decoding   encoding")
    for title, spent in ("rrq's codec", without), ("rrq-fastwire", codec):
        decoding, encoding = (spent[name] / _JOBS / 1000 for name in _NAMES)
        print(f"{title:<34}{decoding:>10.1f} {encoding:>10.1f}")
    ratios = (without[name] / codec[name] for name in _NAMES)
    print("{:<34}{:>9.1f}x {:>9.1f}x".format("times faster", *ratios))
    return 0


_NAMES = ("decode_message", "encode_message")


@contextmanager
def _timed(module: Any) -> Generator[dict[str, int]]:
    """Sums up the nanoseconds spent in a module's codec."""
    spent: dict[str, int] = dict.fromkeys(_NAMES, 0)
    originals = {name: getattr(module, name) for name in _NAMES}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter_ns()
            try:
                return function(*arguments)
            finally:
                spent[name] += time.perf_counter_ns() - start

        return call

    for name, function in originals.items():
        setattr(module, name, timed(name, function))
    try:
        yield spent
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


async def _drive() -> tuple[int, int]:
    """Sends the jobs to rrq's runner over loopback; the bytes sent and received."""
    from rrq.runner_runtime import run_python_runner

    free = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    runner = asyncio.create_task(run_python_runner(f"{__name__}.settings", f"127.0.0.1:{port}"))
    try:
        while True:
            with suppress(ConnectionRefusedError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            await asyncio.sleep(0)
            if runner.done():
                raise RuntimeError("rrq's runner did not start") from runner.exception()
        deadline = datetime.now(timezone.utc) + timedelta(minutes=5)
        requests = [encode_frame(_request(number, deadline)) for number in range(_JOBS)]
        decoder = MessageDecoder()
        waiting = iter(requests)
        answered = received = 0
        writer.writelines(islice(waiting, _IN_FLIGHT))
        while answered < _JOBS:
            data = await reader.read(65536)
            if not data:
                raise ConnectionError("rrq's runner closed the connection")
            received += len(data)
            for outcome in decoder.feed(data):
                if not isinstance(outcome, ExecutionOutcome) or outcome.result != _PARAMS:
                    raise ValueError(f"rrq's runner answered {outcome!r}")
                answered += 1
                writer.write(next(waiting, b""))
        writer.close()
        await writer.wait_closed()
        return sum(map(len, requests)), received
    finally:
        runner.cancel()
        await runner


def _request(number: int, deadline: datetime) -> ExecutionRequest:
    return ExecutionRequest(
        request_id=f"request-{number}",
        job_id=f"job-{number}",
        function_name="echo",
        params=_PARAMS,
        context=ExecutionContext(
            job_id=f"job-{number}",
            attempt=1,
            enqueue_time=datetime.now(timezone.utc),
            queue_name="demo",
            deadline=deadline,
            worker_id="demo",
        ),
    )
