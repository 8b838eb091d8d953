"""`ping`: check whether a runner answers. It needs no extra, and starts quickly."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from datetime import datetime, timezone

from .. import (
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    FastwireError,
    MessageDecoder,
    encode_frame,
)
from ..runner.options import positive_seconds
from .address import join_address, split_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main", "option_parser", "ping"]

# A runner answers a request of an unknown version at once, from its event loop, with an error. No
# handler is called.
_UNKNOWN_VERSION = "ping"


def ping(host: str, port: int, timeout: float) -> float:
    """Return the seconds that it takes to connect to a runner and get an answer.

    Arguments:
        timeout: the most seconds to wait.

    Raises:
        TimeoutError: there is no answer in time.
        OSError: the connection cannot be made, or is lost.
        FastwireError: the answer is not a message of RRQ's protocol.
    """
    start = time.monotonic()
    request = ExecutionRequest(
        protocol_version=_UNKNOWN_VERSION,
        request_id="ping",
        job_id="ping",
        function_name="ping",
        params={},
        context=ExecutionContext(
            job_id="ping",
            attempt=1,
            enqueue_time=datetime.now(timezone.utc),
            queue_name="ping",
        ),
    )
    decoder = MessageDecoder()
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(encode_frame(request))
        while True:
            left = start + timeout - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            data = connection.recv(65536)
            if not data:
                raise ConnectionResetError("the connection was closed")
            for message in decoder.feed(data):
                if isinstance(message, ExecutionOutcome) and message.request_id == "ping":
                    return time.monotonic() - start


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rrq-fastwire: {message}\n")


def _address(text: str) -> tuple[str, int]:
    try:
        return split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="rrq-fastwire ping",
        description="Check whether a runner answers, without running a handler. The answer comes"
        " from its event loop, so there is none while a handler blocks the event loop.",
        epilog="Exits with 0 if there is an answer, 1 if there is none in time, 2 for a wrong"
        " command line. Example: rrq-fastwire ping 127.0.0.1:9000 --timeout 2",
    )
    parser.add_argument(
        "address", type=_address, metavar="HOST:PORT", help="the address of the runner"
    )
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for the answer (default: %(default)g)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command: ping, print one line, and return the exit status."""
    options = option_parser().parse_args(argv)
    host, port = options.address
    name = join_address(host, port)
    try:
        seconds = ping(host, port, options.timeout)
    except TimeoutError:
        why = f"no answer within {options.timeout:g} s: is its event loop blocked by a handler?"
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    except FastwireError as error:
        why = f"this is not RRQ's protocol: {error}"
    else:
        print(f"{name} answered in {seconds * 1000:.1f} ms")
        return 0
    print(f"rrq-fastwire: {name}: {why}", file=sys.stderr)
    return 1
