"""Limits of connections: networks, their number, the size of messages, and the time for a message."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from contextlib import suppress

import pytest

from rrq_fastwire.runner.admission import Admission
from rrq_fastwire.runner.arguments import parse_networks

from ..commands import PATIENCE, Command, until
from ..engine import SkippingLoop, own_address

# A --header-timeout within which a test can send a message even on a busy machine.
IN_TIME = "1"


@pytest.fixture
def command(command_on_each_loop):
    return command_on_each_loop


def ends(connection):
    """Waits until the runner closes a connection. Returns whether it does."""
    connection.settimeout(10)
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


class Stream:
    def __init__(self, address):
        self.transport = self
        self.address = address

    def get_extra_info(self, _):
        return self.address and (self.address, 1)


class SilentStream(Stream):
    """A stream on which no message arrives until it is aborted."""

    congested = delivery_due = False
    on_message = None

    def __init__(self, buffered):
        super().__init__("127.0.0.1")
        self.buffered = buffered
        self.closed = asyncio.Event()

    async def served(self):
        self.on_message = print
        await self.closed.wait()

    def abort(self):
        self.closed.set()


@pytest.mark.parametrize(
    ("networks", "address", "is_allowed"),
    [
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.0.0/16", "::ffff:10.1.2.3", True),
        ("10.1.0.0/16", "::ffff:10.2.2.3", False),
        ("10.2.3.4", "10.2.3.4", True),
        ("10.2.3.4", "10.2.3.5", False),
        ("10.1.0.0/16,fd00::/8", "fd00::1", True),
        ("10.1.0.0/16,fd00::/8", "fe80::1%lo", False),
        ("10.1.0.0/16, fe80::/10", "fe80::1%lo", True),
        ("10.1.0.0/16", "127.0.0.1", True),
        ("10.1.0.0/16", "::1", True),
        ("10.1.0.0/16", "::ffff:127.0.0.1", True),
        ("0.0.0.0/0", "fd00::1", False),
        ("0.0.0.0/0", None, False),
    ],
)
def test_addresses_of_allowed_networks_and_of_loopback_are_accepted(networks, address, is_allowed):
    admission = Admission(allow_from=parse_networks(networks.split(",")))
    assert admission._is_allowed(Stream(address)) is is_allowed


def test_a_connection_from_another_network_is_refused_and_counted(command):
    address = own_address()
    remote = ["--allow-remote", "--allow-from", "198.51.100.0/24"]
    runner = command.start(*remote, host="0.0.0.0")
    for _ in range(5):
        with socket.create_connection((address, runner.port)) as connection:
            assert ends(connection)
    lines = [line for line in runner.errors().splitlines() if "refused" in line]
    assert lines == [
        f"{address}: connection refused (address); {count} so far" for count in (1, 2, 4)
    ]
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"  # loopback is always allowed


def test_a_connection_from_an_allowed_network_is_served(command):
    address = own_address()
    remote = ["--allow-remote", "--allow-from", f"198.51.100.0/24,{address}"]
    runner = command.start(*remote, host="0.0.0.0")
    with socket.create_connection((address, runner.port)) as connection:
        peer = command.connect(runner.port)
        peer.socket.close()
        peer.socket = connection
        connection.settimeout(10)
        assert peer.ask("kind") == "rrq_fastwire"


def test_allow_remote_without_networks_gets_one_line_and_status_2(tmp_path):
    done = Command(tmp_path).run("--allow-remote", tcp_socket="0.0.0.0:9000")
    assert done.stderr == (
        "rrq-fastwire-runner: --allow-remote needs --allow-from: the networks that may connect,"
        " such as --allow-from 10.1.0.0/16\n"
    )
    assert done.returncode == 2


def test_serve_refuses_allow_remote_without_networks(run):
    from rrq_fastwire.runner import serve

    with pytest.raises(ValueError, match="allow_remote needs allow_from"):
        run(serve({}, "0.0.0.0:9000", allow_remote=True))


def test_connections_up_to_the_limit_are_served_and_the_next_is_refused(command):
    runner = command.start("--max-connections", "3")
    peers = []
    # The runner may not have noticed yet that start() has closed its own connection.
    until(lambda: peers.extend(served(command, runner, 3)) or peers, "three connections")
    with socket.create_connection(("127.0.0.1", runner.port)) as one_too_many:
        assert ends(one_too_many)
    assert "127.0.0.1: connection refused (max_connections)" in runner.errors()
    assert [peer.ask("kind") for peer in peers] == ["rrq_fastwire"] * 3
    peers[0].socket.close()
    until(lambda: served(command, runner, 1), "there is room again")


def served(command, runner, number):
    """Connects a number of peers. Returns them; if one was refused, closes them and returns fewer."""
    peers = []
    for _ in range(number):
        peer = command.connect(runner.port)
        with suppress(ConnectionResetError, BrokenPipeError, AttributeError):
            peer.ask("kind")
            peers.append(peer)
    if len(peers) < number:
        for peer in peers:
            peer.socket.close()
    return peers


def test_a_message_up_to_the_limit_is_accepted_and_a_larger_one_closes_the_connection(command):
    runner = command.start("--max-frame-size", "2K")
    with socket.create_connection(("127.0.0.1", runner.port)) as connection:
        connection.sendall(struct.pack(">I", 2048) + b" " * 2048)
        connection.sendall(struct.pack(">I", 2049))
        assert ends(connection)
    assert "frame of 2049 bytes exceeds the limit of 2048" in runner.errors()
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\2", b"\0\0\0\2{"])
def test_a_connection_is_closed_if_its_first_message_does_not_arrive(command, sent):
    runner = command.start("--header-timeout", "0.2")
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", runner.port)) as connection:
        connection.sendall(sent)
        assert ends(connection)
        assert time.monotonic() - start > 0.19
    assert "connection refused (header_timeout)" in runner.errors()


def test_the_header_timeout_applies_if_a_part_of_the_message_came_before_admission(run):
    # uvloop may read from a connection before the task starts that serves it.
    async def scenario():
        admission = Admission(header_timeout=0.01)
        async with asyncio.timeout(PATIENCE):
            await admission.limit(SilentStream.served)(SilentStream(buffered=3))

    run(scenario())


def test_a_connection_may_be_silent_for_the_header_timeout_but_not_for_twice_as_long():
    async def scenario():
        limited = Admission(header_timeout=60).limit(SilentStream.served)
        serving = asyncio.create_task(limited(SilentStream(buffered=0)))
        assert 60 <= await seconds_until(serving.done) < 120

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(scenario())


def test_a_message_may_stop_for_the_header_timeout_after_others_connect_but_not_for_twice_as_long():
    async def scenario():
        limited = Admission(header_timeout=60).limit(SilentStream.served, is_new=False)
        streams = [SilentStream(buffered=0) for _ in range(3)]
        stops, other, another = (limited(stream) for stream in streams)
        stopping = asyncio.create_task(stops)
        others = [asyncio.create_task(other)]
        for _ in range(20):
            await put_clock_forward()
        streams[0].buffered = 1
        others.append(asyncio.create_task(another))
        assert 60 <= await seconds_until(stopping.done) < 120
        for stream in streams:
            stream.abort()
        await asyncio.gather(*others)

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(scenario())


async def put_clock_forward():
    """Puts the clock forward by a second, and runs what is due."""
    asyncio.get_running_loop().ahead += 1
    for _ in range(3):
        await asyncio.sleep(0)


async def seconds_until(condition):
    """Puts the clock forward until a condition is true. Returns by how many seconds."""
    seconds = 0
    while not condition():
        assert seconds < 1000
        seconds += 1
        await put_clock_forward()
    return seconds


def test_a_header_timeout_of_0_is_no_limit(command):
    runner = command.start("--header-timeout", "0")
    silent, peer = command.connect(runner.port), command.connect(runner.port)
    for _ in range(50):
        peer.ask("kind")  # a timeout of 0 seconds would pass meanwhile
    assert silent.ask("kind") == "rrq_fastwire"


def test_a_connection_is_closed_if_its_first_message_arrives_too_slowly(command):
    runner = command.start("--header-timeout", "0.4")
    with socket.create_connection(("127.0.0.1", runner.port)) as connection:
        connection.sendall(struct.pack(">I", 1000))
        connection.settimeout(0.02)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(999):
                connection.sendall(b" ")
                with suppress(TimeoutError):
                    assert connection.recv(1) == b""
                    break
            else:
                pytest.fail("the connection is kept")


def test_a_connection_is_closed_if_a_later_message_stops_and_others_connect(command):
    runner = command.start("--header-timeout", IN_TIME)
    peer = command.connect(runner.port)
    peer.ask("kind")
    peer.socket.sendall(b"\0\0")
    peer.socket.settimeout(0.05)

    def has_ended():
        other = command.connect(runner.port)
        assert other.ask("kind") == "rrq_fastwire"
        other.socket.close()
        with suppress(TimeoutError, ConnectionResetError):
            return peer.socket.recv(1) == b""
        return "header_timeout" in runner.errors()

    until(has_ended, "the connection is closed")


def test_a_connection_that_has_sent_a_message_may_be_idle(command):
    runner = command.start("--header-timeout", IN_TIME)
    peer, clock = command.connect(runner.port), command.connect(runner.port)
    peer.ask("kind")
    # The runner closes connections that have sent nothing, so the timeout has passed twice.
    assert ends(clock.socket)
    assert ends(command.connect(runner.port).socket)
    assert peer.ask("kind") == "rrq_fastwire"


def test_a_connection_that_keeps_sending_messages_stays_open(command):
    runner = command.start("--header-timeout", IN_TIME)
    peer, clock = command.connect(runner.port), command.connect(runner.port)
    clock.socket.settimeout(0.01)
    message = struct.pack(">I", 2) + b"{}"
    peer.socket.sendall(message[:3])
    with suppress(ConnectionResetError):
        while True:  # until the runner closes the connection that sends nothing
            peer.socket.sendall(message[3:] + message[:3])
            with suppress(TimeoutError):
                assert clock.socket.recv(1) == b""
                break
    peer.socket.sendall(message[3:])
    assert peer.ask("kind") == "rrq_fastwire"


@pytest.mark.skipif(os.name != "posix", reason="a process is replaced on POSIX only")
def test_a_connection_that_is_handed_over_may_be_idle(command):
    runner = command.start("--header-timeout", IN_TIME, "--max-jobs", "1")
    idle, peer = command.connect(runner.port), command.connect(runner.port)
    idle.ask("kind")
    for _ in range(3):
        peer.ask("kind")

    def a_silent_connection_ends():
        """Whether the runner closes a new connection. It does not if it restarts at that moment."""
        connection = command.connect(runner.port).socket
        connection.settimeout(2)
        with suppress(TimeoutError):
            return connection.recv(1) == b""
        return False

    until(a_silent_connection_ends, "the timeout has passed")
    assert idle.ask("kind") == "rrq_fastwire"


def test_a_handler_that_blocks_does_not_make_messages_late(command):
    (command.folder / "blocks.py").write_text(
        "from app import *\n"
        "async def block_briefly(request):\n"
        "    begun(request)\n"
        "    time.sleep(1)\n"
        "handlers['block_briefly'] = block_briefly\n"
    )
    runner = command.start("--header-timeout", IN_TIME, settings="blocks.handlers")
    other = command.connect(runner.port)
    peer = command.begin(runner.port, "block_briefly")
    other.send("kind")  # the runner cannot read it while the handler blocks
    assert other.receive().result == "rrq_fastwire"
    peer.receive()


def test_large_messages_that_wait_to_be_decoded_are_not_late(command):
    (command.folder / "blocks.py").write_text(
        "from app import *\n"
        "async def block_briefly(request):\n"
        "    time.sleep(0.05)\n"
        "    return 'done'\n"
        "handlers['block_briefly'] = block_briefly\n"
    )
    runner = command.start("--header-timeout", "0.2", settings="blocks.handlers")
    peers = [command.connect(runner.port) for _ in range(20)]
    for peer in peers:
        peer.send("block_briefly", text="x" * 70_000)
    assert [peer.receive().result for peer in peers] == ["done"] * 20
