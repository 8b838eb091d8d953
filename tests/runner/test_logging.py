"""What the runner logs about jobs and about peers."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.config
import re
import socket

import pytest

from rrq_fastwire import (
    ExecutionOutcome,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.runner.engine import Runner
from rrq_fastwire.streams import start_server, start_unix_server

from ..bad_network import reset
from ..commands import free_port
from ..engine import (
    SOON,
    call,
    cancel,
    malformed,
    request,
    serving,
    start_serve,
    until,
)
from ..handlers import (
    RudeStrError,
    echo,
    fail,
    fail_instead,
    forever,
    giving,
    raising,
)
from ..stock import (
    RetryJob,
    needs_rrq,
    registry,
    stock,
)

EVERY_ENDING = {
    "echo": echo,
    "fail": fail,
    "retry": raising(lambda: RetryJob("later"))[1],
    "timeout": raising(TimeoutError)[1],
    "odd": giving(object),
    "surrogate": giving(lambda: "\ud800"),
    "exit": raising(SystemExit)[1],
    "rude": raising(RudeStrError)[1],
    "own": giving(lambda: stock("error")),
    "gives up": raising(asyncio.CancelledError)[1],
    "forever": forever,
}


def end_in_every_way(run):
    """Runs jobs that end in all possible ways. Returns the name of their connection."""

    async def running():
        async with serving(registry(EVERY_ENDING)) as connect:
            peer, short = await connect(), await connect()
            names = [*EVERY_ENDING, "missing"]
            peer.send(*(request(name, id=name) for name in names))
            peer.send(request("echo", id="late", deadline=-1))
            peer.send(request("forever", id="overdue", deadline=SOON))
            peer.send(request("echo", id="version", protocol_version="1"))
            await peer.answers(len(names) + 2)
            short.send(cancel("job of forever"), cancel("job of none"))
            await peer.answer()
            return peer.name

    return run(running())


RECORDS = {
    "echo": (logging.DEBUG, "'echo': success"),
    "fail": (logging.ERROR, "'fail' raised an exception:"),
    "retry": (logging.INFO, "'retry' requests a retry: later"),
    "timeout": (logging.WARNING, "'timeout' timed out: Job execution timed out."),
    "odd": (logging.WARNING, "result of 'odd' cannot be sent: "),
    "surrogate": (logging.WARNING, "result of 'surrogate' cannot be sent: "),
    "exit": (logging.ERROR, "'exit' raised an exception:"),
    "rude": (logging.ERROR, "'rude' raised an exception:"),
    "own": (logging.DEBUG, "'own': error"),
    "gives up": (logging.DEBUG, "'gives up': error"),
    "forever": (logging.DEBUG, "'forever': error"),
    "missing": (logging.DEBUG, "'missing': error"),
    "late": (logging.WARNING, "'echo' timed out: Job deadline exceeded"),
    "overdue": (logging.WARNING, "'forever' timed out: Job execution timed out."),
}


@needs_rrq
def test_each_job_has_one_record_with_its_connection_function_and_end(run, caplog):
    with caplog.at_level(logging.DEBUG, "rrq_fastwire"):
        connection = end_in_every_way(run)
    own = [record for record in caplog.records if ": job " in record.getMessage()]
    for name, (level, text) in RECORDS.items():
        start = f"{connection}: job 'job of {name}': "
        [record] = (each for each in own if each.getMessage().startswith(start))
        assert record.name == "rrq_fastwire.runner"
        assert record.levelno == level
        assert record.funcName != "log"  # but the caller of log()
        assert record.getMessage().startswith(start + text)
        assert bool(record.exc_info) == (level == logging.ERROR)
    assert len(own) == len(RECORDS)
    assert "ValueError: failed" in caplog.text
    assert "Traceback" in caplog.text


def test_an_exception_of_a_cancelled_handler_is_logged(run, caplog):
    async def running():
        async with serving({"fail": fail_instead, "echo": echo}) as connect:
            peer = await connect()
            peer.send(request("fail"), request("echo", id="begun"))
            await peer.answers(1)
            peer.send(cancel("job of r"))
            await peer.answer()

    run(running())
    [record] = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage().endswith("job 'job of r': 'fail' raised an exception:")
    assert "ValueError: late" in caplog.text


@pytest.fixture
def configured_logging():
    """Lets a test configure logging, and restores the configuration afterwards."""
    # Of all loggers, because dictConfig() disables those that it does not name.
    loggers = [logging.getLogger(name) for name in ["", *logging.root.manager.loggerDict]]
    before = [(each.level, each.handlers[:], each.propagate, each.disabled) for each in loggers]
    yield
    for each, (level, handlers, propagate, disabled) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.handlers[:], each.propagate, each.disabled = handlers, propagate, disabled


@needs_rrq
@pytest.mark.usefixtures("configured_logging")
@pytest.mark.parametrize("name", ["rrq", "rrq.runner"])
@pytest.mark.parametrize("disables_others", [True, False])
def test_the_level_and_the_handlers_of_the_stock_runners_logger_apply(run, name, disables_others):
    stream = io.StringIO()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": disables_others,
            "handlers": {"h": {"class": "logging.StreamHandler", "stream": stream}},
            "loggers": {name: {"handlers": ["h"], "level": "INFO", "propagate": False}},
        }
    )
    frames = [request("fail"), request("retry", id="2"), request("echo", id="3")]
    handlers = registry(EVERY_ENDING)
    call(run, handlers, *frames)
    assert stream.getvalue().count("raised an exception") == 1
    assert stream.getvalue().count("requests a retry") == 1
    assert "success" not in stream.getvalue()
    logging.getLogger(name).setLevel(logging.CRITICAL)
    stream.truncate(0)
    call(run, handlers, *frames)
    assert stream.getvalue() == ""


def test_a_filter_of_the_stock_runners_logger_applies(run, caplog):
    def without_tracebacks(record):
        return record.exc_info is None

    logger = logging.getLogger("rrq.runner")
    logger.addFilter(without_tracebacks)
    try:
        call(run, EVERY_ENDING, request("fail"), request("odd", id="2"))
    finally:
        logger.removeFilter(without_tracebacks)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_logging_filter_that_raises_does_not_end_serve(run, caplog, capsys):
    def rude(record):
        raise LookupError("filter")

    async def scenario():
        task, client = await start_serve({"echo": echo}, free_port())
        async with client:
            assert (await client.execute("echo")).result == {}
        task.cancel()

    logger = logging.getLogger("rrq_fastwire.runner")
    with caplog.at_level(logging.INFO, "rrq_fastwire"):
        logger.addFilter(rude)
        try:
            run(scenario())
        finally:
            logger.removeFilter(rude)
    assert "LookupError: filter" in capsys.readouterr().err


@needs_rrq
@pytest.mark.parametrize("error", [LookupError("filter"), SystemExit("filter")], ids=repr)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_a_logging_filter_that_raises_affects_no_job(run, caplog, capsys, error, level):
    def rude(record):
        raise error

    logger = logging.getLogger("rrq_fastwire.runner")
    with caplog.at_level(level, "rrq_fastwire"):
        logger.addFilter(rude)
        try:
            end_in_every_way(run)
        finally:
            logger.removeFilter(rude)
    assert f"{type(error).__name__}: filter" in capsys.readouterr().err


def test_errors_of_a_peer_are_logged_with_its_connection(run, caplog):
    async def running():
        async with serving({"echo": echo}) as connect:
            peer = await connect()
            peer.send(malformed(params=1), encode_frame(ExecutionOutcome.success("j", "r")))
            await peer.answer()
            peer.send(b"\0\0\0\0")
            assert await peer.ended()
            return peer.name

    with caplog.at_level(logging.INFO, "rrq_fastwire"):
        name = run(running())
    wrong, response, broken = (record.getMessage() for record in caplog.records)
    assert wrong == f"{name}: job 'j': payload.params: expected an object, got 1"
    assert response == f"{name}: sent a response, which a runner ignores"
    assert broken.startswith(f"{name}: closed, this is not RRQ's protocol: ")


def test_a_connection_that_is_reset_is_logged_as_lost(run, caplog):
    async def running():
        runner = Runner({})
        server = await start_server(runner.on_stream, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        port = writer.get_extra_info("sockname")[1]
        await until(lambda: runner.connections)
        reset(writer)
        await until(lambda: not runner.connections)
        server.close()
        return port

    with caplog.at_level(logging.DEBUG, "rrq_fastwire"):
        port = run(running())
    connected, lost = caplog.messages
    assert connected == f"127.0.0.1:{port}: connected"
    assert re.fullmatch(rf"127\.0\.0\.1:{port}: lost: \[\w+ \d+\] .+", lost)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_an_ipv6_address_is_logged_in_brackets(run, caplog):
    async def running():
        runner = Runner({})
        server = await start_server(runner.on_stream, "::1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        port = writer.get_extra_info("sockname")[1]
        writer.close()
        await until(lambda: "disconnected" in caplog.text)
        server.close()
        return port

    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with caplog.at_level(logging.DEBUG, "rrq_fastwire"):
        port = run(running())
    assert caplog.messages == [f"[::1]:{port}: connected", f"[::1]:{port}: disconnected"]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets here")
def test_a_connection_without_an_address_is_logged_as_a_unix_socket(run, caplog, tmp_path):
    async def running():
        runner, path = Runner({}), str(tmp_path / "socket")
        server = await start_unix_server(runner.on_stream, path)
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        await until(lambda: "disconnected" in caplog.text)
        server.close()

    with caplog.at_level(logging.DEBUG, "rrq_fastwire"):
        run(running())
    assert caplog.messages == ["Unix socket: connected", "Unix socket: disconnected"]


def test_a_peer_cannot_make_log_lines_long_or_break_them(run, caplog):
    frame = pack_frame(
        json.dumps(
            {"type": "request", "payload": {"job_id": "x\n" * 10_000, "request_id": "r"}}
        ).encode()
    )
    call(run, {"echo": echo}, frame)
    assert caplog.records
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)
