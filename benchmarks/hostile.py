"""Measure what hostile connections can make a runner hold and spend.

    python -m benchmarks.hostile [--markdown]

Each attack meets a new runner, once over one connection, and once over a thousand. Printed are the
most memory that the runner holds more than before, its CPU time until it is idle again, and the CPU
time per MB that it was sent. A neighbour asks for jobs meanwhile, and the longest that it waits is
printed, too. Linux only; the largest attack needs 1 GB.
"""

from __future__ import annotations

import argparse
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rrq_fastwire import CancelRequest, ExecutionContext, ExecutionRequest, encode_frame, pack_frame
from rrq_fastwire.cli.runner_process import cpu_seconds, free_port

MIB = 2**20
LARGEST = 16 * MIB
CROWD = 1000
CROWD_SIZE = 64 * 1024  # of each message where there are a thousand connections
IDLE_SECONDS = 0.5

NOW = datetime.now(timezone.utc)
SETTINGS = "benchmarks.hostile_handlers.handlers"


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
    """Keys that differ in one place of many: with an additive hash they would collide."""
    pairs = [b"Aa", b"BB"]  # of the same hash in Java and many others
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
    """Sixty-four at once, and more that find the runner busy."""
    return b"".join(encode_frame(request("wait", f"r{number}")) for number in range(100))


def unread_answers(size: int) -> bytes:
    text = 1_000_000 if size == LARGEST else 10_000
    requests = (request("make_text", f"r{number}", size=text) for number in range(64))
    return b"".join(map(encode_frame, requests))


def cancels(size: int) -> bytes:
    """Each looks at every job in flight: a crowd has 32,768 of them, and sends two each."""
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
    """What the attack cost the runner."""

    sent: int = 0
    held: float = 0.0  # MiB
    seconds: float = 0.0
    waited: float = 0.0
    refused: int = 0


class Victim:
    """A runner in a process of its own."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.pid = process.pid
        self._neighbour = socket.create_connection(("127.0.0.1", port), timeout=300)

    def ask(self) -> float:
        """How long the neighbour waits for a job."""
        start = time.monotonic()
        self._neighbour.sendall(NOOP)
        self._neighbour.recv(65536)
        return time.monotonic() - start

    def cpu(self) -> float:
        return cpu_seconds(self.pid) or 0.0

    def mib(self, of: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{of}:")[2].split()[0]) / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@contextmanager
def victim() -> Iterator[Victim]:
    port = free_port()
    command = [sys.executable, "-m", "rrq_fastwire.runner", "--settings", SETTINGS]
    with subprocess.Popen(
        [*command, "--tcp-socket", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            while True:
                with suppress(ConnectionRefusedError):
                    yield Victim(port, process)
                    return
                time.sleep(0.02)
        finally:
            process.kill()


def attack(data: bytes, connections: int) -> Figures:
    """Sends the same bytes over each of some connections, as fast as they are taken."""
    figures = Figures()
    with victim() as runner, ExitStack() as stack, selectors.DefaultSelector() as selector:
        runner.ask()
        before = runner.mib("VmRSS")
        runner.forget_peak()
        cpu = runner.cpu()
        for _ in range(connections):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", runner.port)))
            each.setblocking(False)
            selector.register(each, selectors.EVENT_WRITE, memoryview(data))
        quiet = time.monotonic()
        last = runner.cpu()
        while time.monotonic() < quiet + IDLE_SECONDS:
            for key, _ in selector.select(0.01):
                try:
                    taken = key.fileobj.send(key.data[:MIB])  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
                except OSError:
                    figures.refused += 1
                    selector.unregister(key.fileobj)
                    continue
                figures.sent += taken
                quiet = time.monotonic()
                if taken == len(key.data):
                    selector.unregister(key.fileobj)
                else:
                    selector.modify(key.fileobj, selectors.EVENT_WRITE, key.data[taken:])
            figures.waited = max(figures.waited, runner.ask())
            now = runner.cpu()
            if now > last + 0.02:
                quiet, last = time.monotonic(), now
        figures.held = runner.mib("VmHWM") - before
        figures.seconds = runner.cpu() - cpu
    return figures


HEADS = ["attack", "connections", "sent", "held", "CPU", "CPU per MB", "a neighbour waits"]


def row(name: str, connections: int, figures: Figures) -> list[str]:
    megabytes = figures.sent / 1e6
    return [
        name,
        f"{connections:,}" + (f" ({figures.refused:,} refused)" if figures.refused else ""),
        f"{megabytes:.1f} MB",
        f"{figures.held:.1f} MiB",
        f"{figures.seconds:.2f} s",
        f"{figures.seconds / megabytes * 1000:.0f} ms" if megabytes > 0.1 else "",
        f"{figures.waited * 1000:.0f} ms",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print a table for SECURITY.md")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    if options.markdown:
        print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    for name, make in ATTACKS.items():
        for connections, size in (1, LARGEST), (CROWD, CROWD_SIZE):
            cells = row(name, connections, attack(make(size), connections))
            print(f"| {' | '.join(cells)} |" if options.markdown else "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
