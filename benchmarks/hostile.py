"""Measure how much memory and CPU time hostile connections can make a runner use.

    python -m benchmarks.hostile

Each attack is made on a new runner: first over one connection, then over a thousand. The table shows
how many bytes the runner accepted, by how much its memory grew at the most, its CPU time until it was
idle again, and the longest time that a job on another connection took meanwhile.
Linux only; the largest attack needs 1 GB.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rrq_fastwire import CancelRequest, ExecutionContext, ExecutionRequest, encode_frame, pack_frame
from rrq_fastwire.cli.runner_process import runner_process

from .runners import memory_mib

MIB = 2**20
LARGEST = 16 * MIB
CROWD = 1000
CROWD_SIZE = 64 * 1024  # of each message, with a thousand connections
CHUNK = 64 * 1024
IDLE_SECONDS = 0.5

NOW = datetime.now(timezone.utc)
RUNNER = [sys.executable, "-m", "rrq_fastwire.runner"]
RUNNER += ["--settings", "benchmarks.hostile_handlers.handlers"]


def request(name: str, id: str = "r", **params: int) -> ExecutionRequest:
    context = ExecutionContext(job_id="j", attempt=1, enqueue_time=NOW, queue_name="q")
    return ExecutionRequest(
        request_id=id, job_id="j", function_name=name, params=params, context=context
    )


NOOP = encode_frame(request("noop"))


def with_params(text: bytes) -> bytes:
    """A request whose params are these bytes, whatever they are."""
    return pack_frame(NOOP[4:].replace(b'"params":{}', b'"params":' + text))


def room(size: int) -> int:
    """The bytes that params may have in a message of this size."""
    return size - len(NOOP) - 20


def declared(size: int) -> bytes:
    return LARGEST.to_bytes(4, "big")


def all_but_a_byte(size: int) -> bytes:
    return with_params(b'{"a":"' + b"x" * (room(size) - 8) + b'"}')[:-1]


def deep(size: int) -> bytes:
    levels = room(size) // 2 - 10
    return with_params(b'{"a":' + b"[" * levels + b"]" * levels + b"}")


def deepest_that_is_read(size: int) -> bytes:
    levels = 1000
    one = b"[" * levels + b"]" * levels
    return with_params(b'{"a":[' + b",".join([one] * (room(size) // (2 * levels + 1))) + b"]}")


def long_text(size: int) -> bytes:
    return with_params(b'{"a":"' + b"x" * (room(size) - 8) + b'"}')


def long_key(size: int) -> bytes:
    return with_params(b'{"' + b"x" * (room(size) - 8) + b'":1}')


def many_keys(size: int) -> bytes:
    return with_params(
        b"{" + b",".join(b'"%07x":1' % number for number in range(room(size) // 12)) + b"}"
    )


def colliding_keys(size: int) -> bytes:
    """Keys that collide under the hash of Java and many others."""
    pairs = [b"Aa", b"BB"]  # both have the same hash there
    keys = (
        b'"' + b"".join(pairs[number >> bit & 1] for bit in range(20)) + b'":1'
        for number in range(min(room(size) // 46, 2**20))
    )
    return with_params(b"{" + b",".join(keys) + b"}")


def long_numbers(size: int) -> bytes:
    digits = min(1_000_000, room(size) - 20)
    return with_params(
        b'{"a":[' + b",".join([b"7" * digits] * (room(size) // (digits + 1))) + b"]}"
    )


def empty_objects(size: int) -> bytes:
    return with_params(b'{"a":[' + b",".join([b"{}"] * (room(size) // 3 - 4)) + b"]}")


def requests_that_wait(size: int) -> bytes:
    """64 requests that run at once, and others that are answered busy."""
    return b"".join(encode_frame(request("wait", f"r{number}")) for number in range(100))


def unread_answers(size: int) -> bytes:
    """64 requests that run at once: none is answered before all of a connection are read."""
    text = 1_000_000 if size == LARGEST else 10_000
    requests = (request("make_text", f"r{number}", size=text) for number in range(64))
    return b"".join(map(encode_frame, requests))


def kept_params(size: int) -> bytes:
    """Requests with nested arrays, whose jobs wait: 16 of 1 MiB, or one of a crowd."""
    payload = deepest_that_is_read(min(size, MIB))[4:].replace(b'"noop"', b'"wait"')
    return b"".join(
        pack_frame(payload.replace(b'"request_id":"r"', b'"request_id":"r%d"' % number))
        for number in range(16 if size == LARGEST else 1)
    )


def cancels(size: int) -> bytes:
    """Cancels that are sent while jobs wait: 64 jobs of one connection, or 32,768 of a crowd."""
    one = encode_frame(CancelRequest(job_id="nothing"))
    return requests_that_wait(size) + one * (MIB // len(one) if size == LARGEST else 2)


def messages_that_are_not_valid(size: int) -> bytes:
    return pack_frame(b"{}") * ((MIB if size == LARGEST else 1024) // 6)


# What is sent, by name, given the size of a message.
ATTACKS: dict[str, Callable[[int], bytes]] = {
    "declares 16 MiB and sends nothing": declared,
    "16 MiB but for the last byte": all_but_a_byte,
    "arrays nested as deep as fits": deep,
    "arrays nested 1,000 deep, as many as fit": deepest_that_is_read,
    "such arrays, which 16 waiting jobs keep (1 MiB each; a crowd: one job)": kept_params,
    "the longest text": long_text,
    "the longest key": long_key,
    "as many keys as fit": many_keys,
    "keys that weak hashes let collide": colliding_keys,
    "integers of a million digits": long_numbers,
    "empty objects, as many as fit": empty_objects,
    "100 jobs that never end": requests_that_wait,
    "64 answers that are not read (1 MB; a crowd: 10 KB each)": unread_answers,
    "cancels for no job (1 MiB; a crowd: 2 each)": cancels,
    "messages that are not valid (1 MiB; a crowd: 1 KiB each)": messages_that_are_not_valid,
}


@dataclass
class Figures:
    """What an attack costs the runner."""

    sent: int = 0  # bytes
    held: float = 0.0  # MiB
    seconds: float = 0.0  # of CPU
    waited: float = 0.0  # seconds


async def send(connection: socket.socket, data: bytes, figures: Figures) -> None:
    """Sends as much as the runner accepts."""
    loop = asyncio.get_running_loop()
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        try:
            await loop.sock_sendall(connection, chunk)
        except ConnectionError:  # the runner has closed it
            return
        figures.sent += len(chunk)


async def attack(data: bytes, connections: int) -> Figures:
    """Sends the same bytes over each connection, until the runner accepts no more and is idle."""
    figures = Figures()
    with open(os.devnull, "wb") as output, ExitStack() as stack:
        async with runner_process(RUNNER, output) as runner:

            def cpu() -> float:
                seconds = runner.cpu_seconds()
                assert seconds is not None, "the kernel keeps no account of a process's CPU time"
                return seconds

            await runner.client.execute("noop")
            before, spent = memory_mib(runner.pid, "VmRSS"), cpu()
            Path(f"/proc/{runner.pid}/clear_refs").write_text("5")  # forgets the highest RSS
            sending = []
            for _ in range(connections):
                each = stack.enter_context(socket.create_connection(("127.0.0.1", runner.port)))
                each.setblocking(False)
                sending.append(asyncio.create_task(send(each, data, figures)))
            idle_since, state = time.monotonic(), (figures.sent, cpu())
            while time.monotonic() < idle_since + IDLE_SECONDS:
                start = time.monotonic()
                await runner.client.execute("noop")
                figures.waited = max(figures.waited, time.monotonic() - start)
                await asyncio.sleep(0.01)
                sent, now = figures.sent, cpu()
                if sent > state[0] or now > state[1] + 0.02:
                    idle_since, state = time.monotonic(), (sent, now)
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            figures.held = memory_mib(runner.pid, "VmHWM") - before
            figures.seconds = cpu() - spent
    return figures


def main() -> None:
    """Measure, and print a table in Markdown."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    print("| attack | connections | sent | held | CPU | another job |\n|---|---|---|---|---|---|")
    for name, make in ATTACKS.items():
        for connections, size in (1, LARGEST), (CROWD, CROWD_SIZE):
            figures = asyncio.run(attack(make(size), connections))
            print(
                f"| {name} | {connections:,} | {figures.sent / 1e6:.1f} MB | {figures.held:.1f} MiB"
                f" | {figures.seconds:.2f} s | {figures.waited * 1000:.0f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
