"""--metrics, read as Prometheus does."""

from __future__ import annotations

import re
import select
import socket
import sys
import threading
import urllib.request
from contextlib import suppress
from http.client import HTTPException

import pytest

from rrq_fastwire import CancelRequest, encode_frame
from rrq_fastwire.runner.server import parse_metrics_socket

from ..commands import free_port, until
from ..engine import start_serve
from ..engine import until as until_async
from ..handlers import echo

pytest.importorskip("prometheus_client", reason="--metrics is an extra")
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

HANDLERS = """
from app import *
from prometheus_client import Counter

emails = Counter("app_emails", "Those that were sent.")

async def send(request):
    emails.inc()

async def fail(request):
    raise RuntimeError("broken")

async def sleep(request):
    await asyncio.sleep(0.2)

async def block_for_a_second(request):
    time.sleep(1)

async def unfit(request):
    return object()

async def returns_if_cancelled(request):
    try:
        await wait(request)
    except asyncio.CancelledError:
        return "too late"

handlers |= {
    handler.__name__: handler
    for handler in (send, fail, sleep, block_for_a_second, unfit, returns_if_cancelled)
}
settings = register(handlers)

class Plugins(dict):
    def get(self, name):
        if name not in self:
            raise ImportError(f"no plugin {name!r}")
        return self[name]

plugins = Plugins(handlers)
"""


@pytest.fixture
def command(command_on_each_loop):
    command = command_on_each_loop
    (command.folder / "measured.py").write_text(HANDLERS)
    return command


def start(command, settings="measured.handlers", *options):
    if settings.endswith("settings"):
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    metrics = "--metrics", "127.0.0.1:+1"
    runner = command.start(*metrics, *options, ports=2, settings=settings)
    runner.metrics = f"http://127.0.0.1:{runner.port + 1}/metrics"
    return runner


def scrape(runner, accept="text/plain"):
    """The samples by name and values of labels, read by prometheus-client's own parser."""
    request = urllib.request.Request(runner.metrics, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
        if response.headers["Content-Type"] is None:
            raise ConnectionResetError("the runner has ended meanwhile")
        is_open = "openmetrics" in response.headers["Content-Type"]
    read = (openmetrics_parser if is_open else parser).text_string_to_metric_families
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in read(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("settings", ["measured.handlers", "measured.settings"])
@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_jobs_are_counted_by_function_and_outcome(command, settings, accept):
    runner = start(command, settings)
    peer = command.connect(runner.port)
    for name in ("kind", "kind", "send", "fail", "unfit", "not registered", "sleep"):
        peer.send(name)
        peer.receive()

    def jobs():
        counted = scrape(runner, accept).items()
        return {key[1:]: value for key, value in counted if key[0] == "rrq_fastwire_jobs_total"}

    # A job is counted after its answer has been written, so the peer may have the answer before.
    until(lambda: sum(jobs().values()) == 7, "the last job to be counted")
    samples = scrape(runner, accept)
    assert jobs() == {
        ("kind", "success"): 2,
        ("send", "success"): 1,
        ("sleep", "success"): 1,
        ("fail", "failure"): 1,
        ("failure", "unfit"): 1,
        ("(unknown)", "handler_not_found"): 1,
    }
    assert samples["rrq_fastwire_job_duration_seconds_count", "kind"] == 2
    assert samples["rrq_fastwire_job_duration_seconds_bucket", "0.1", "sleep"] == 0
    assert samples["rrq_fastwire_job_duration_seconds_bucket", "+Inf", "sleep"] == 1
    assert 0.19 < samples["rrq_fastwire_job_duration_seconds_sum", "sleep"] < 10
    assert samples["rrq_fastwire_jobs_in_flight",] == 0
    assert samples["app_emails_total",] == 1  # a metric of the handlers
    assert samples["process_resident_memory_bytes",] > 1e6


def test_the_duration_of_a_job_does_not_depend_on_later_requests(command):
    runner = start(command)
    peer, other = command.connect(runner.port), command.connect(runner.port)
    peer.send("sleep")
    while not select.select([peer.socket], [], [], 0)[0]:
        other.ask("kind")
    peer.receive()
    assert 0.19 < scrape(runner)["rrq_fastwire_job_duration_seconds_sum", "sleep"] < 10


def test_what_a_handler_raises_is_logged_with_its_traceback(command):
    runner = start(command)
    peer = command.connect(runner.port)
    peer.send("fail")
    peer.receive()
    until(lambda: "RuntimeError: broken" in runner.errors(), "the traceback is written")


def test_jobs_in_flight_are_counted_until_they_are_answered(command):
    runner = start(command)
    peers = [command.begin(runner.port, "wait") for _ in range(3)]
    assert scrape(runner)["rrq_fastwire_jobs_in_flight",] == 3
    peers[0].socket.close()
    until(lambda: scrape(runner)["rrq_fastwire_jobs_in_flight",] == 2, "a job is cancelled")
    cancelled = "rrq_fastwire_jobs_total", "cancelled", "wait"
    until(lambda: scrape(runner).get(cancelled) == 1, "it is counted")


def test_a_job_that_returns_after_its_cancel_is_counted_once(command):
    runner = start(command)
    peer = command.begin(runner.port, "returns_if_cancelled")
    peer.socket.sendall(encode_frame(CancelRequest(job_id="j")))
    assert peer.receive().type == "cancelled"
    assert peer.ask("kind")  # the handler has returned before
    samples = scrape(runner)
    assert samples["rrq_fastwire_jobs_total", "cancelled", "returns_if_cancelled"] == 1
    assert ("rrq_fastwire_jobs_total", "returns_if_cancelled", "success") not in samples
    assert samples["rrq_fastwire_jobs_in_flight",] == 0


def test_a_job_that_blocks_the_event_loop_is_in_flight(command):
    runner = start(command)
    command.begin(runner.port, "block")
    assert scrape(runner)["rrq_fastwire_jobs_in_flight",] == 1


def test_a_lookup_that_fails_is_answered_and_counted_as_of_an_unknown_function(command):
    runner = start(command, "measured.plugins")
    peer = command.connect(runner.port)
    peer.send("sleep")
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"
    peer.send("odd")
    answers = peer.receive(), peer.receive()
    assert {answer.error and answer.error.message for answer in answers} == {
        None,
        "no plugin 'odd'",
    }
    counted = scrape(runner)
    assert [key for key in counted if "odd" in key] == []
    assert counted["rrq_fastwire_jobs_total", "(unknown)", "failure"] == 1


def test_refused_requests_are_counted(command):
    runner = start(command)
    peer = command.begin(runner.port, "wait")
    peer.send("wait")  # the same request_id
    assert peer.receive().error.message == "Request already in flight"
    samples = scrape(runner)
    assert samples["rrq_fastwire_requests_refused_total",] == 1
    assert samples["rrq_fastwire_jobs_in_flight",] == 1


def test_refused_connections_are_counted_by_reason(command):
    runner = start(command, "measured.handlers", "--header-timeout", "0.1")
    with command.connect(runner.port).socket as silent, suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    refused = "rrq_fastwire_connections_refused_total", "header_timeout"
    until(lambda: scrape(runner).get(refused) == 1, "the connection to be counted")


def test_bytes_are_counted(command):
    runner = start(command)
    before = scrape(runner)
    with socket.create_connection(("127.0.0.1", runner.port)) as connection:
        connection.sendall(b"\0\0\0\2{}")
        connection.sendall(b"\0\0\0\2{}")
        name = ("rrq_fastwire_received_bytes_total",)
        until(lambda: scrape(runner)[name] - before[name] == 12, "12 bytes are counted")
    peer = command.connect(runner.port)
    peer.ask("kind")
    assert scrape(runner)["rrq_fastwire_sent_bytes_total",] > 50


def test_metrics_are_served_during_a_blocked_event_loop_and_show_its_lag(command):
    runner = start(command)
    peer = command.connect(runner.port)
    peer.send("block_for_a_second")
    assert scrape(runner)["rrq_fastwire_jobs_in_flight",] in (0, 1)  # served meanwhile
    peer.receive()
    until(lambda: late(scrape(runner)) >= 1, "the lag is measured")
    until(lambda: scrape(runner)[LAG, "0.1"] >= 1, "the event loop is in time without a job")


LAG = "rrq_fastwire_event_loop_lag_seconds_bucket"


def late(samples):
    """How often the event loop was late by more than 0.1 s."""
    return samples[LAG, "+Inf"] - samples[LAG, "0.1"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has many addresses of loopback")
def test_metrics_are_served_only_on_the_given_address(command):
    runner = start(command)
    assert scrape(runner)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", runner.port + 1))


@pytest.mark.parametrize(
    ("metrics", "address"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:+2", ("::1", 9002)),
        ("127.0.0.1:+56535", ("127.0.0.1", 65535)),
    ],
)
def test_metrics_have_any_address_and_a_port_that_can_be_relative(metrics, address):
    assert parse_metrics_socket(metrics, 9000) == address


@pytest.mark.parametrize("metrics", ["127.0.0.1:+56536", "127.0.0.1:++1", "127.0.0.1:+", "+1"])
def test_a_wrong_address_of_metrics_raises_valueerror(metrics):
    with pytest.raises(ValueError, match="TCP socket"):
        parse_metrics_socket(metrics, 9000)


def test_other_options_apply_with_metrics(command):
    runner = start(command, "measured.settings", "--native-messages")
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"


def test_a_port_in_use_gets_one_line_and_status_1(command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        metrics = "{}:{}".format(*server.getsockname())
        done = command.run("--metrics", metrics, tcp_socket=f"127.0.0.1:{free_port()}")
    assert re.fullmatch(
        f"rrq-fastwire-runner: cannot serve metrics on {metrics}: .*; choose another --metrics\n",
        done.stderr,
    )
    assert done.returncode == 1


def test_processes_of_a_pool_have_ports_of_their_own(command):
    # The orchestrator counts up the port of --tcp-socket; all other options are the same.
    runners = [start(command), start(command)]
    for number, runner in enumerate(runners):
        for _ in range(number + 1):
            command.connect(runner.port).ask("kind")
    counts = [scrape(runner)["rrq_fastwire_jobs_total", "kind", "success"] for runner in runners]
    assert counts == [1, 2]


def test_an_answer_that_cannot_be_sent_names_its_function_with_metrics(command):
    peer = command.connect(start(command).port)
    peer.send("unfit")
    assert peer.receive().error.message.startswith("result of 'unfit' cannot be sent")


def test_serve_can_serve_metrics_again_at_once(run):
    async def scenario():
        port = free_port(2)
        for _ in range(3):
            serving, client = await start_serve(
                {"echo": echo}, port, metrics=f"127.0.0.1:{port + 1}", max_jobs=1
            )
            async with client:
                await client.execute("echo")
                await serving
        await until_async(lambda: threading.active_count() == before)

    before = threading.active_count()
    run(scenario())


def test_metrics_are_served_after_a_restart(command):
    runner = command.start(
        "--metrics", "127.0.0.1:+1", "--max-jobs", "5", ports=2, settings="measured.handlers"
    )
    runner.metrics = f"http://127.0.0.1:{runner.port + 1}/metrics"
    peer = command.connect(runner.port)
    key = "rrq_fastwire_jobs_total", "kind", "success"
    counts = []

    def has_restarted():
        peer.ask("kind")
        with suppress(OSError, HTTPException):  # the runner may be restarting
            counts.append(scrape(runner).get(key, 0))
        return sorted(counts) != counts

    until(has_restarted, "the count starts again from 0")
