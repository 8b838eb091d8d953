"""`tap` passes on the bytes of both sides unchanged."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from ..taps import (
    ANSWER,
    CAPTURES,
    COMMAND,
    WAIT_SECONDS,
    passes,
    receive,
    request,
    reset,
    until,
)

pytest.importorskip("pty", reason="pseudo-terminals need POSIX")
pytest.importorskip("click", reason="the command line is an extra")
traffic = pytest.importorskip("rrq_fastwire.cli.tap.traffic", reason="the command line is an extra")
Text = pytest.importorskip("rich.text", reason="the command line is an extra").Text


def in_random_chunks(connection: socket.socket, data: bytes, seed: int) -> None:
    chance = random.Random(seed)
    view = memoryview(data)
    while view:
        size = chance.choice((1, 3, 1000, 100_000))
        connection.sendall(view[:size])
        view = view[size:]


@pytest.mark.parametrize("seed", range(3))
def test_each_side_gets_the_bytes_of_the_other_even_after_a_half_close(start, seed):
    chance = random.Random(seed)
    there, back = (chance.randbytes(chance.randrange(3_000_000, 9_000_000)) for _ in range(2))
    orchestrator, runner = start().connection()
    with orchestrator, runner:
        senders = [
            threading.Thread(target=in_random_chunks, args=(orchestrator, there, seed)),
            threading.Thread(target=in_random_chunks, args=(runner, back, seed)),
        ]
        for sender in senders:
            sender.start()
        # Nothing is read from the runner before everything from the orchestrator has arrived.
        assert receive(runner, len(there)) == there
        assert receive(orchestrator, len(back)) == back
        for sender in senders:
            sender.join()
        orchestrator.shutdown(socket.SHUT_WR)
        assert runner.recv(1) == b""
        passes(runner, orchestrator, back)
        runner.shutdown(socket.SHUT_WR)
        assert orchestrator.recv(1) == b""


def test_bytes_that_arrive_before_the_runner_is_reached_are_passed_on(start):
    tap = start()
    for number in range(100):
        frame = request(request_id=f"r{number}")
        with tap.connect() as orchestrator:
            orchestrator.sendall(frame)
            orchestrator.shutdown(socket.SHUT_WR)
            runner, _ = tap.runner.accept()
            with runner:
                runner.settimeout(WAIT_SECONDS)
                assert receive(runner, len(frame) + 1) == frame
    tap.ends(signal.SIGTERM)


def test_a_connection_that_ends_at_once_also_ends_at_the_runner(start):
    tap = start()
    for _ in range(100):
        tap.connect().close()
        runner, _ = tap.runner.accept()
        with runner:
            runner.settimeout(WAIT_SECONDS)
            assert runner.recv(1) == b""
    tap.ends(signal.SIGTERM)


@pytest.mark.parametrize("by_runner", [False, True])
def test_a_reset_is_passed_on_after_the_bytes_before_it(start, by_runner):
    tap = start()
    pair = tap.connection()
    resetting, other = reversed(pair) if by_runner else pair
    with other:
        passes(other, resetting, b"x" * 10)
        passes(resetting, other, b"\0\0\0" * 1000)
        reset(resetting)
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    tap.says(f"reset by the {'runner' if by_runner else 'other side'}")


def test_a_connection_is_reset_if_the_runner_cannot_be_reached(start):
    tap = start()
    tap.runner.close()
    with pytest.raises(ConnectionResetError), tap.connect() as orchestrator:
        orchestrator.recv(1)
    tap.says("the runner cannot be reached: Connection refused")


@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit of Linux")
def test_tap_without_descriptors_does_not_fill_the_log(start):
    tap = start(prefix=["/bin/sh", "-c", 'ulimit -n 40; exec "$@"', "sh"])
    with contextlib.ExitStack() as crowd:
        for _ in range(80):
            with contextlib.suppress(ConnectionResetError):  # tap has no descriptor for the runner
                crowd.enter_context(tap.connect())
        log = tap.process.stderr.readline()
        tap.process.send_signal(signal.SIGTERM)
        log += tap.process.stderr.read()
    assert 0 < log.count(b"OSError: [Errno 24] Too many open files") < 10


def test_a_broken_stream_is_passed_on_and_the_other_direction_is_shown(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request() + b"\0\0\0\0" + request("later"))
        tap.says("#1 -> broken at offset", f" {len(request())}: ")
        passes(runner, orchestrator, ANSWER)
        tap.says("<- success", "echo")
        passes(orchestrator, runner, request("later"))
    tap.ends(signal.SIGTERM)
    assert tap.output.count("broken") == 1
    assert "later" not in tap.output


def test_a_stream_that_ends_within_a_frame_is_reported(start):
    tap = start()
    orchestrator, runner = tap.connection()
    with runner:
        passes(orchestrator, runner, request()[:-1])
        orchestrator.close()
        tap.says("#1 -> ended within a frame, at offset 0: ")


@pytest.mark.parametrize("name", ["mixed", "odd-results"])
def test_recorded_captures_contain_the_bytes_that_passed(start, tmp_path, name):
    there, back = ((CAPTURES / f"{name}.{side}-runner.bin").read_bytes() for side in ("to", "from"))
    tap = start("--record", str(tmp_path / "new" / "folder"))
    for _ in range(2):
        orchestrator, runner = tap.connection()
        with orchestrator, runner:
            passes(orchestrator, runner, there)
            passes(runner, orchestrator, back)
    with tap.connect():  # like the readiness probe, for which no capture is written
        tap.runner.accept()[0].close()
    tap.ends(signal.SIGTERM)
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [re.sub(r"^\d{8}T\d{6}-\d+", "", file.name) for file in files] == [
        "-1.from-runner.bin",
        "-1.to-runner.bin",
        "-2.from-runner.bin",
        "-2.to-runner.bin",
    ]
    assert [file.read_bytes() for file in files] == [back, there] * 2
    decoded = subprocess.run(
        [*COMMAND, "decode", *files], capture_output=True, text=True, check=True
    )
    assert decoded.stdout.count("-> ") > 0


def test_captures_are_written_as_bytes_arrive(start, tmp_path):
    tap = start("--record", str(tmp_path))
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        passes(orchestrator, runner, request()[:7])
        until(lambda: [file.read_bytes() for file in tmp_path.iterdir()] == [request()[:7]])
        passes(orchestrator, runner, request()[7:])
        until(lambda: [file.read_bytes() for file in tmp_path.iterdir()] == [request()])


def test_bytes_that_cannot_be_recorded_are_still_passed_on_and_shown(start, tmp_path):
    folder = tmp_path / "folder"
    tap = start("--record", str(folder))
    folder.rmdir()
    orchestrator, runner = tap.connection()
    with orchestrator, runner:
        for name in ("first", "second"):
            passes(orchestrator, runner, request(name))
            tap.says(f"-> {name}")
        passes(runner, orchestrator, ANSWER)
        tap.says("#1 -> no longer recorded: No such file or directory")
        tap.says("#1 <- no longer recorded: No such file or directory")
    tap.ends(signal.SIGTERM)
    assert tap.output.count("no longer recorded") == 2


class FullDisk(io.RawIOBase):
    """A file that cannot be written to."""

    def writable(self):
        return True

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (io.BufferedWriter(FullDisk()), "no longer recorded: No space left on device"),
        # A quota, or a disk on the network, may report its error only when the file is closed.
        (Mock(close=Mock(side_effect=OSError(errno.EDQUOT, "quota"))), None),
    ],
    ids=["full when written", "full when closed"],
)
def test_a_full_disk_raises_nothing_at_the_end_of_a_connection(monkeypatch, tmp_path, file, said):
    """If a watcher raised, the end or the reset would not be passed on."""
    monkeypatch.setattr(Path, "open", lambda *_: file)
    lines = []
    watched = traffic.Traffic(
        lines.append, record=tmp_path, slow=None, only_errors=False, live=False, process=None
    )
    connection = watched.watch(1)
    for _ in range(2):
        connection.passed(ANSWER, to_runner=False)
    connection.ended(by_runner=True)
    connection.over()
    remarks = [line.row.plain for line in lines if isinstance(line.row, Text)]
    assert remarks == ([f"#1 <- {said}"] if said else [])
