"""rrq-fastwire-runner as a user sees it: what it accepts, and its error messages."""

from __future__ import annotations

import errno
import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rrq_fastwire
from rrq_fastwire import _json
from rrq_fastwire.runner.arguments import parse_tcp_socket

from ..commands import OURS, STOCK

# What it accepts


@pytest.mark.parametrize(
    ("settings", "arguments", "given"),
    [
        ("app.handlers", [], "rrq_fastwire"),
        ("app:handlers", [], "rrq_fastwire"),
        ("package.app.handlers", [], "rrq_fastwire"),
        ("package.app:handlers", [], "rrq_fastwire"),
        ("app.settings", [], "rrq"),
        ("app:settings", [], "rrq"),
        ("app.settings", ["--native-messages"], "rrq_fastwire"),
    ],
)
def test_settings_are_named_with_a_dot_or_a_colon(command, settings, arguments, given):
    if "settings" in settings:
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    runner = command.start(*arguments, settings=settings)
    assert command.connect(runner.port).ask("kind") == given


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        return str(error)


SOCKETS = [
    "127.0.0.1:9000",
    " 127.0.0.1:9000\n",
    "127.0.0.2:1",
    "localhost:65535",
    "LOCALHOST:9000",
    "[::1]:9000",
    "[localhost]:9000",
    "[127.0.0.1]:9000",
    "[[::1]:9000",
    "::1:9000",
    "0:0:0:0:0:0:0:1:9000",
    "[0:0:0:0:0:0:0:1]:9000",
    "[::ffff:127.0.0.1]:9000",
    "[::1%lo]:9000",
    "",
    " ",
    ":",
    "[",
    "[]:",
    "[::1]",
    "[::1]9000",
    "::1",
    "127.0.0.1",
    "9000",
    ":9000",
    "[]:9000",
    "example.com:9000",
    "127.1:9000",
    "0.0.0.0:9000",
    "192.168.0.1:9000",
    "[::]:9000",
    "[2001:db8::1]:9000",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:-1",
    "127.0.0.1:+9000",
    "127.0.0.1: 9000",
    "127.0.0.1:9_000",
    "127.0.0.1:0009",
    "127.0.0.1:0x10",
    "127.0.0.1:9000.0",
    "127.0.0.1:65536",
    "127.0.0.1:http",
    "127.0.0.1:\u0669\u0669",
    "127.0.0.1:9000:9001",
]


@pytest.mark.parametrize("text", SOCKETS)
def test_addresses_are_parsed_as_by_rrq_runner(text):
    stock = pytest.importorskip("rrq.runner_runtime", reason="rrq is not installed")
    assert outcome(parse_tcp_socket, text) == outcome(stock._parse_tcp_socket, text)


@given(st.lists(st.sampled_from([*"[]:.019 ", "127.0.0.1", "::1", "localhost"])).map("".join))
def test_any_text_is_parsed_as_an_address_as_by_rrq_runner(text):
    stock = pytest.importorskip("rrq.runner_runtime", reason="rrq is not installed")
    assert outcome(parse_tcp_socket, text) == outcome(stock._parse_tcp_socket, text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0.0.0.0:9000", ("0.0.0.0", 9000)),
        ("[::]:9000", ("::", 9000)),
        ("192.168.0.1:9000", ("192.168.0.1", 9000)),
        ("localhost:9000", ("127.0.0.1", 9000)),
        ("example.com:9000", "Invalid TCP socket host: example.com"),
        ("0.0.0.0:0", "TCP socket port out of range: 0"),
    ],
)
def test_addresses_other_than_loopback_are_accepted_if_they_are_allowed(text, parsed):
    assert outcome(lambda: parse_tcp_socket(text, allow_remote=True)) == parsed


def test_the_version_names_the_implementation_and_the_json_library(command_for_errors):
    done = command_for_errors.run("--version")
    printed = (
        f"rrq-fastwire-runner {rrq_fastwire.__version__}"
        f" ({rrq_fastwire.IMPLEMENTATION}, {rrq_fastwire.JSON_BACKEND} {_json.version})\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


# Error messages


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([], {"settings": "app"}, "must be module.attr or module:attr, got 'app'"),
        ([], {"settings": ""}, "must be module.attr or module:attr, got ''"),
        ([], {"settings": ".handlers"}, "must be module.attr or module:attr, got '.handlers'"),
        ([], {"settings": "..app.handlers"}, "must be module.attr or module:attr, got '..app"),
        ([], {"settings": None}, "required: --settings"),
        ([], {"tcp_socket": "127.0.0.1"}, "TCP socket must be in host:port format"),
        ([], {"tcp_socket": "0.0.0.0:9000"}, "loopback-only"),
        ([], {"tcp_socket": "127.0.0.1:0"}, "TCP socket port out of range: 0"),
        ([], {"tcp_socket": None}, "required: --tcp-socket"),
        (["--grace", "soon"], {}, "--grace: must be a number from 0 to 3600, got 'soon'"),
        (["--grace", ""], {}, "--grace: must be a number from 0 to 3600, got ''"),
        (["--grace", "-1"], {}, "--grace: must be a number from 0 to 3600, got '-1'"),
        (["--grace", "nan"], {}, "--grace: must be a number from 0 to 3600, got 'nan'"),
        (["--grace", "3601"], {}, "--grace: must be a number from 0 to 3600, got '3601'"),
        (["--loop", "trio"], {}, "--loop: invalid choice: 'trio'"),
        (["--nonsense"], {}, "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    command_for_errors, arguments, options, said
):
    done = command_for_errors.run(*arguments, **options)
    assert said in done.stderr
    assert done.stderr.startswith("rrq-fastwire-runner: ")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("app.number", "is of type int: make it a PythonRunnerSettings or a mapping"),
        ("app.handlers_with_a_mistake", "'report' is not async: define it with async"),
        ("app.settings_with_a_mistake", "'report' is not async: define it with async"),
    ],
)
def test_settings_that_cannot_be_used_get_one_line_and_status_1(command_for_errors, settings, said):
    if settings.startswith("app.settings"):
        pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    done = command_for_errors.run(settings=settings)
    assert said in done.stderr
    assert done.stderr.startswith("rrq-fastwire-runner: ")
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (1, "")


NOT_FOUND = "'nothing': is its directory on PYTHONPATH?"
NO_ATTRIBUTE = "'app' has no 'nothing': correct --settings"


@pytest.mark.parametrize(
    ("settings", "frames", "error", "advice"),
    [
        ("nothing.settings", [], "ModuleNotFoundError: No module named 'nothing'", NOT_FOUND),
        ("nothing:settings", [], "ModuleNotFoundError: No module named 'nothing'", NOT_FOUND),
        ("app.nothing", [], "'app' has no attribute 'nothing'", NO_ATTRIBUTE),
        ("breaks.settings", ["breaks.py"], "SyntaxError: '(' was never closed", "'breaks'"),
        ("raises.settings", ["raises.py"], "RuntimeError: no database", "'raises'"),
        (
            "raises_inside.settings",
            ["raises_inside.py", "raises.py"],
            "RuntimeError: no database",
            "'raises_inside'",
        ),
    ],
)
def test_an_import_error_shows_its_place_and_says_what_to_do(
    command_for_errors, settings, frames, error, advice
):
    done = command_for_errors.run(settings=settings)
    *details, last_line = done.stderr.splitlines()
    assert last_line.startswith("rrq-fastwire-runner: ")
    assert advice in last_line
    assert details[-1].endswith(error)
    files = [line for line in details if line.startswith("  File")]
    assert len(files) == len(frames)
    for line, name in zip(files, frames, strict=True):
        assert f'{os.sep}{name}", line 1' in line
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("settings", ["nothing.settings", "raises.settings", "breaks.settings"])
def test_an_import_error_gives_the_exit_status_of_rrq_runner(command_for_errors, settings):
    pytest.importorskip("rrq", reason="rrq is not installed")
    ours = command_for_errors.run(settings=settings)
    stock = command_for_errors.run(settings=settings, module=STOCK)
    assert (ours.returncode, stock.returncode) == (1, 1)


@pytest.mark.parametrize("module", [OURS, STOCK])
def test_settings_are_imported_in_the_running_event_loop(command, module):
    pytest.importorskip("rrq", reason="rrq is not installed")
    runner = command.start(settings="in_the_loop.settings", module=module)
    assert command.connect(runner.port).ask("ask") == "made at import"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_loop_option_chooses_the_event_loop(command, loop):
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    runner = command.start("--loop", loop)
    assert command.connect(runner.port).ask("loop") == loop


def test_the_event_loop_is_uvloop_if_it_is_installed(command):
    pytest.importorskip("uvloop", reason="uvloop is not installed")
    assert command.connect(command.start().port).ask("loop") == "uvloop"


def test_the_event_loop_is_asyncios_if_uvloop_is_not_installed(command):
    command.hide_uvloop()
    assert command.connect(command.start().port).ask("loop") == "asyncio"


def test_uvloop_that_is_asked_for_and_missing_gets_one_line_and_status_2(command):
    command.hide_uvloop()
    done = command.run("--loop", "uvloop")
    assert "pip install 'rrq-fastwire[uvloop]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")


def test_a_port_in_use_gets_one_line_and_status_1(command_for_errors):
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp_socket = f"127.0.0.1:{server.getsockname()[1]}"
        done = command_for_errors.run(tcp_socket=tcp_socket)
    reason = os.strerror(errno.EADDRINUSE)
    assert done.stderr == (
        f"rrq-fastwire-runner: cannot listen on {tcp_socket}: {reason};"
        " choose another --tcp-socket, or stop what listens there\n"
    )
    assert done.returncode == 1


def test_an_address_that_is_not_this_machines_gets_one_line_and_status_1(command_for_errors):
    remote = ["--allow-remote", "--allow-from", "192.0.2.0/24"]
    done = command_for_errors.run(*remote, tcp_socket="192.0.2.1:9000")
    assert re.fullmatch(  # the system's reason, or asyncio's
        r"rrq-fastwire-runner: cannot listen on 192\.0\.2\.1:9000: .+; choose another --tcp-socket\n",
        done.stderr,
    )
    assert done.returncode == 1


HASHES = """
async def hashes(request):
    return [hash(key) for key in request.params]
handlers = {"hashes": hashes}
"""


def test_the_hashes_of_keys_differ_in_each_runner(command):
    """So a client cannot find keys whose hashes collide."""
    (command.folder / "hashes.py").write_text(HASHES)
    command.environment.pop("PYTHONHASHSEED", None)
    found = []
    for _ in range(2):
        peer = command.connect(command.start(settings="hashes.handlers").port)
        peer.send("hashes", Aa=1, BB=2)
        found += peer.receive().result
    assert len(set(found)) == 4
