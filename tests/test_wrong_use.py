"""Wrong use raises an exception that names what is wrong. It never causes a crash or a hang."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import asynccontextmanager

import pytest

import rrq_fastwire
from rrq_fastwire import CancelRequest, EncodeError, ExecutionOutcome, compat
from rrq_fastwire.client import RunnerClient
from rrq_fastwire.runner import serve
from rrq_fastwire.streams import (
    MessageStream,
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)
from rrq_fastwire.testing import run_job, running

CANCEL = CancelRequest(job_id="j")
HOST = "127.0.0.1"
OCTETS = "expected bytes, bytearray or memoryview, got "
LIMIT_TYPE = "max_frame_size must be an int, got "
LIMIT = "max_frame_size must be from 1 to 4294967295, got "


def released():
    view = memoryview(b"1234")
    view.release()
    return view


# What is called with one implementation, the exception, and its text.
CODEC = [
    (lambda wire: wire.decode_frame("text"), TypeError, OCTETS + "str"),
    (lambda wire: wire.decode_frame(None), TypeError, OCTETS + "NoneType"),
    (lambda wire: wire.decode_frame([1, 2]), TypeError, OCTETS + "list"),
    (lambda wire: wire.decode_frame(), TypeError, "argument"),
    (lambda wire: wire.decode_frame(b"", b""), TypeError, "argument"),
    (lambda wire: wire.decode_frame(released()), ValueError, "released memoryview"),
    (lambda wire: wire.decode_payload(5), TypeError, OCTETS + "int"),
    (lambda wire: wire.decode_payload("{}"), TypeError, OCTETS + "str"),
    (lambda wire: wire.encode_frame("text"), TypeError, "expected a RunnerMessage, got str"),
    (
        lambda wire: wire.encode_frame(CancelRequest),
        TypeError,
        "expected a RunnerMessage, got type",
    ),
    (lambda wire: wire.encode_payload(None), TypeError, "expected a RunnerMessage, got NoneType"),
    (lambda wire: wire.encode_payload({}), TypeError, "expected a RunnerMessage, got dict"),
    (lambda wire: wire.encode_frame(CANCEL, max_frame_size="1"), TypeError, LIMIT_TYPE + "str"),
    (lambda wire: wire.encode_frame(CANCEL, max_frame_size=None), TypeError, LIMIT_TYPE + "None"),
    (lambda wire: wire.encode_frame(CANCEL, max_frame_size=0), ValueError, LIMIT + "0"),
    (
        lambda wire: wire.encode_frame(CANCEL, max_frame_size=2**32),
        ValueError,
        LIMIT + "4294967296",
    ),
    (lambda wire: wire.encode_frame(CANCEL, 100), TypeError, "positional argument"),
    (
        lambda wire: wire.encode_frame(CancelRequest(job_id=5)),
        EncodeError,
        "payload.job_id: expected a",
    ),
    (lambda wire: wire.pack_frame("text"), TypeError, OCTETS + "str"),
    (lambda wire: wire.pack_frame(b""), EncodeError, "payload of 0 bytes"),
    (lambda wire: wire.pack_frame(b"x", max_frame_size=1.0), TypeError, LIMIT_TYPE + "float"),
    (lambda wire: wire.FrameDecoder("16"), TypeError, LIMIT_TYPE + "str"),
    (lambda wire: wire.FrameDecoder(-1), ValueError, LIMIT + "-1"),
    (lambda wire: wire.MessageDecoder(None), TypeError, LIMIT_TYPE + "NoneType"),
    (lambda wire: wire.MessageDecoder(1, 2), TypeError, "argument"),
    (lambda wire: wire.MessageDecoder().feed("text"), TypeError, OCTETS + "str"),
    (lambda wire: wire.MessageDecoder().feed(5), TypeError, OCTETS + "int"),
    (lambda wire: wire.MessageDecoder().feed(released()), ValueError, "released memoryview"),
    (lambda wire: wire.MessageDecoder().get_buffer("1"), TypeError, "hint must be an int, got str"),
    (
        lambda wire: wire.MessageDecoder().get_buffer(None),
        TypeError,
        "hint must be an int, got None",
    ),
    (
        lambda wire: wire.MessageDecoder().buffer_updated(1),
        ValueError,
        "nbytes must be from 0 to 0, got 1",
    ),
    (
        lambda wire: wire.MessageDecoder().buffer_updated(b""),
        TypeError,
        "nbytes must be an int, got bytes",
    ),
    (
        lambda wire: setattr(wire.MessageDecoder(), "buffered", 1),
        AttributeError,
        "buffered|writable|setter",
    ),
    (lambda wire: wire.CancelRequest(), TypeError, "job_id"),
    (lambda wire: wire.CancelRequest("j"), TypeError, "positional argument"),
    (lambda wire: wire.ExecutionRequest(request_id="r"), TypeError, "job_id"),
    (
        lambda wire: ExecutionOutcome(status="no").type,
        ValueError,
        "'no' is not a valid OutcomeStatus",
    ),
    (lambda wire: ExecutionOutcome.success(), TypeError, "job_id"),
    (lambda wire: rrq_fastwire.no_such_name, AttributeError, "no_such_name"),
    (
        lambda wire: compat.encode_message("cancel", {"a": object()}),
        TypeError,
        "not JSON serializable",
    ),
    (lambda wire: compat.decode_message(b"[]"), ValueError, "must be a JSON object"),
]


@pytest.mark.parametrize(("call", "error", "text"), CODEC)
def test_wrong_use_of_the_codec_raises_an_exception_that_names_it(wire, call, error, text):
    with pytest.raises(error, match=text):
        call(wire)


async def echo(request):
    return request.params


def plain(request):
    return request.params


@asynccontextmanager
async def connected():
    async with running({"echo": echo}) as client:
        yield client


async def on_open(call):
    async with connected() as client:
        return await call(client)


async def on_closed(call):
    async with connected() as client:
        pass
    return await call(client)


async def nothing(stream):
    pass


def execute(name="echo", **options):
    return lambda: on_open(lambda client: client.execute(name, **options))


# Coroutines, the exception, and its text.
CLOSED = "connection is closed|closed the connection"
STREAMS = [
    (lambda: open_connection(5, 80), TypeError, "host must be a str, got int"),
    (lambda: open_connection(HOST, "80"), TypeError, "port must be an int, got str"),
    (lambda: open_connection(HOST, 70000), ValueError, "port must be from 0 to 65535, got 70000"),
    (lambda: open_connection(HOST, 1, max_frame_size="1"), TypeError, LIMIT_TYPE + "str"),
    (lambda: open_connection(HOST, 1, max_frame_size=0), ValueError, LIMIT + "0"),
    (lambda: open_unix_connection("x", max_frame_size=0), ValueError, LIMIT + "0"),
    (
        lambda: start_server(None, HOST, 0),
        TypeError,
        "on_stream must be an async function, got None",
    ),
    (lambda: start_server(nothing, 5, 0), TypeError, "host must be a str, got int"),
    (lambda: start_server(nothing, HOST, -1), ValueError, "port must be from 0 to 65535, got -1"),
    (lambda: start_server(nothing, HOST, 0, max_frame_size="1"), TypeError, LIMIT_TYPE + "str"),
    (lambda: start_unix_server(5, "x"), TypeError, "on_stream must be an async function, got int"),
    (
        lambda: on_open(lambda client: client.stream.send("x")),
        TypeError,
        "a RunnerMessage, got str",
    ),
    (lambda: on_closed(lambda client: client.stream.send(CANCEL)), ConnectionError, CLOSED),
    (lambda: on_closed(lambda client: client.stream.drain()), ConnectionError, CLOSED),
    (lambda: on_closed(lambda client: anext(client.stream)), StopAsyncIteration, "^$"),
    (
        lambda: on_closed(lambda client: client.stream.deliver(5)),
        TypeError,
        "on_message must be a function",
    ),
    (
        lambda: on_closed(lambda client: client.stream.deliver(nothing)),
        TypeError,
        "which is not async",
    ),
    (lambda: on_closed(lambda client: client.execute("echo")), ConnectionError, CLOSED),
    (lambda: on_closed(lambda client: client.execute("echo", timeout=1)), ConnectionError, CLOSED),
    (lambda: on_closed(lambda client: client.cancel("j")), ConnectionError, CLOSED),
    (
        lambda: on_open(lambda client: client.cancel(5)),
        EncodeError,
        "payload.job_id: expected a string",
    ),
    (execute(name=5), EncodeError, "payload.function_name: expected a string, got 5"),
    (execute(params=[1]), EncodeError, "payload.params: expected an object, got an array"),
    (execute(timeout="1"), TypeError, "timeout must be a number of seconds, got str"),
    (
        execute(timeout=float("nan")),
        ValueError,
        "timeout must be a number of seconds, got nan",
    ),
    (
        execute(timeout=float("inf")),
        ValueError,
        "timeout must end in the years 1 to 9999, got inf s",
    ),
    (execute(timeout=1e12), ValueError, "timeout must end in the years 1 to 9999"),
    (execute(timeout=-1e12), ValueError, "timeout must end in the years 1 to 9999"),
    (execute(timeout=10**400), ValueError, "timeout must end in the years 1 to 9999"),
    (execute(timeout=True), TypeError, "timeout must be a number of seconds, got bool"),
    (execute(job_id=5), EncodeError, "payload.job_id: expected a string, got 5"),
    (execute(request_id=["r"]), EncodeError, "payload.request_id: expected a string, got an array"),
    (execute(attempt="1"), EncodeError, "payload.context.attempt: expected an integer"),
    (execute(queue_name=5), EncodeError, "payload.context.queue_name: expected a string, got 5"),
    (
        execute(trace_context={"a": 1}),
        EncodeError,
        "payload.context.trace_context: expected an object of",
    ),
    (
        execute(worker_id=1),
        EncodeError,
        "payload.context.worker_id: expected a string or null, got 1",
    ),
    (lambda: RunnerClient.connect(HOST, "80"), TypeError, "port must be an int, got str"),
    (lambda: run_job(None), TypeError, "is not callable"),
    (lambda: run_job(plain), TypeError, "the handler 'plain' is not async"),
    (lambda: run_job(echo, timeout="1"), TypeError, "timeout must be a number of seconds, got str"),
    (lambda: run_job(echo, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda: run_job(echo, lifespan=5), TypeError, "the lifespan must be an async context manager"),
    (lambda: run_job(echo, middleware=[plain]), TypeError, "the middleware 'plain' is not async"),
]


@pytest.mark.parametrize(("call", "error", "text"), STREAMS)
def test_wrong_use_of_connections_raises_an_exception_that_names_it(run, call, error, text):
    with pytest.raises(error, match=text):
        run(asyncio.wait_for(call(), 20))


# Arguments of serve(), the exception, and its text.
NUMBER = "must be a number of seconds, got "
SERVE = [
    ({"handlers": None}, TypeError, "handlers must be a mapping .*, got NoneType"),
    ({"handlers": [echo]}, TypeError, "handlers must be a mapping .*, got list"),
    ({"handlers": {5: echo}}, TypeError, "the name of a handler must be a str, got int"),
    ({"tcp_socket": 9000}, TypeError, "tcp_socket must be a str, got int"),
    ({"tcp_socket": None}, TypeError, "tcp_socket must be a str, got NoneType"),
    ({"tcp_socket": f"{HOST}:0"}, ValueError, "TCP socket port out of range: 0"),
    ({"max_in_flight": "64"}, TypeError, "max_in_flight must be an int, got str"),
    ({"max_in_flight": None}, TypeError, "max_in_flight must be an int, got NoneType"),
    ({"max_in_flight": 1.5}, TypeError, "max_in_flight must be an int, got float"),
    ({"max_in_flight": True}, TypeError, "max_in_flight must be an int, got bool"),
    ({"max_in_flight": 0}, ValueError, "max_in_flight must be at least 1, got 0"),
    ({"max_connections": "1"}, TypeError, "max_connections must be an int, got str"),
    ({"max_connections": 0}, ValueError, "max_connections must be at least 1, got 0"),
    ({"max_frame_size": "1"}, TypeError, LIMIT_TYPE + "str"),
    ({"max_frame_size": 0}, ValueError, LIMIT + "0"),
    ({"header_timeout": "1"}, TypeError, "header_timeout " + NUMBER + "str"),
    (
        {"header_timeout": -1},
        ValueError,
        "header_timeout must be at least 0 seconds and finite, got -1",
    ),
    ({"grace": None}, TypeError, "grace " + NUMBER + "NoneType"),
    ({"grace": float("nan")}, ValueError, "grace must be at least 0 seconds and finite, got nan"),
    ({"drain": "5"}, TypeError, "drain " + NUMBER + "str"),
    ({"drain": float("inf")}, ValueError, "drain must be at least 0 seconds and finite, got inf"),
    ({"allow_remote": True}, ValueError, "allow_remote needs allow_from"),
    ({"allow_remote": True, "allow_from": iter([])}, ValueError, "allow_remote needs allow_from"),
    ({"allow_from": ["10.0.0.0/8"]}, ValueError, "allow_from needs allow_remote"),
    ({"allow_from": ["10.0.0.0/64"]}, ValueError, "'10.0.0.0/64'"),
    (
        {"allow_remote": True, "allow_from": "10.0.0.0/8"},
        TypeError,
        "allow_from must be a sequence of networks, got str",
    ),
    (
        {"allow_remote": True, "allow_from": [5]},
        TypeError,
        "a network of allow_from must be a str, got int",
    ),
    ({"allow_remote": True, "allow_from": ["10.0.0.0/64"]}, ValueError, "'10.0.0.0/64'"),
    ({"threads": "2"}, TypeError, "threads must be an int, got str"),
    ({"slow_callback": "1"}, TypeError, "slow_callback " + NUMBER + "str"),
    (
        {"slow_callback": 0},
        ValueError,
        "slow_callback must be more than 0 seconds and finite, got 0",
    ),
    ({"middleware": 5}, TypeError, "middleware must be a sequence of async functions, got int"),
    ({"on_error": echo}, TypeError, "on_error must be a plain function, which is not async"),
    ({"max_jobs": 1.5}, TypeError, "max_jobs must be an int, got float"),
    ({"max_jobs": 0}, ValueError, "max_jobs must be at least 1, got 0"),
    ({"max_rss": "1G"}, TypeError, "max_rss must be an int, got str"),
    ({"metrics": 9100}, TypeError, "metrics must be a str, got int"),
    ({"lifespan": 5}, TypeError, "the lifespan must be an async context manager"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), SERVE)
def test_a_wrong_argument_of_serve_raises_an_exception_that_names_it(run, arguments, error, text):
    given = {"handlers": {"echo": echo}, "tcp_socket": f"{HOST}:9", **arguments}
    with pytest.raises(error, match=text):
        run(asyncio.wait_for(serve(**given), 20))


@pytest.mark.parametrize("stream", [None, f"{HOST}:80", 5], ids=repr)
def test_a_client_of_something_other_than_a_stream_is_refused(run, stream):
    async def make():
        RunnerClient(stream)

    with pytest.raises(TypeError, match="stream must be a MessageStream, got "):
        run(make())


def test_a_stream_without_a_connection_has_a_repr(run):
    async def show():
        return repr(MessageStream())

    text = run(show())
    if text != "<MessageStream not connected>":
        pytest.fail(text)


@pytest.mark.parametrize(
    "use",
    [
        lambda stream: stream.send_nowait(CancelRequest(job_id="j")),
        lambda stream: stream.is_closing(),
        lambda stream: stream.unsent,
        lambda stream: stream.pause_reading(),
        lambda stream: stream.close(),
        lambda stream: stream.abort(),
    ],
)
def test_using_a_stream_without_a_connection_raises_runtime_error(run, use):
    async def scenario():
        use(MessageStream())

    with pytest.raises(RuntimeError, match="the stream is not connected"):
        run(scenario())


async def use_elsewhere(use, debug):
    """Uses a client in an event loop of another thread, and raises what is raised there."""
    raised = []
    asyncio.get_running_loop().set_debug(debug)
    async with connected() as client:

        def other():
            try:
                asyncio.run(asyncio.wait_for(use(client), 20))
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
        await client.execute("echo")  # it still works
    raise raised[0]


def called(method, *arguments):
    """A function that calls a method of a client's stream, which is not async."""

    async def use(client):
        getattr(client.stream, method)(*arguments)

    return use


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.execute("echo"),
        lambda client: client.cancel("j"),
        lambda client: client.close(),
        lambda client: anext(client.stream),
        lambda client: client.stream.deliver(print),
        lambda client: client.stream.send(CancelRequest(job_id="j")),
        lambda client: client.stream.drain(),
        lambda client: client.stream.wait_closed(),
        called("send_nowait", CancelRequest(job_id="j")),
        called("flush"),
        called("pause_reading"),
        called("resume_reading"),
        called("close"),
        called("abort"),
    ],
)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_using_a_connection_in_another_event_loop_raises_runtime_error(run, use, debug):
    with pytest.raises(RuntimeError, match="the connection belongs to another event loop"):
        run(use_elsewhere(use, debug))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests leave threads
def test_using_a_client_in_a_forked_child_raises_runtime_error(run):
    async def fork():
        async with connected() as client:
            child = os.fork()
            if child == 0:
                try:
                    asyncio.set_event_loop(None)
                    asyncio.new_event_loop().run_until_complete(client.execute("echo"))
                except RuntimeError as error:
                    os._exit(7 if "another event loop" in str(error) else 8)
                finally:
                    os._exit(9)
            status = os.waitpid(child, 0)[1]
            outcome = await client.execute("echo", {"a": 1})
            return os.waitstatus_to_exitcode(status), outcome.result

    if run(fork()) != (7, {"a": 1}):
        pytest.fail("the child has used the client of its parent")


@pytest.mark.parametrize(
    "options", [["-O", "-W", "error"], ["-OO", "-bb"], ["-X", "dev"]], ids=" ".join
)
def test_the_same_exceptions_are_raised_with_the_options_of_python(options):
    """`-X dev` is asyncio's debug mode, too. Plain asserts are not used above: -O removes them."""
    command = [sys.executable, *options, "-m", "pytest", "-q", __file__, "-k", "not options"]
    command += [
        "-p",
        "no:cacheprovider",
        "--assert=plain",
        "-W",
        "ignore::pytest.PytestConfigWarning",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode != 0:
        pytest.fail(done.stdout[-3000:] + done.stderr)
