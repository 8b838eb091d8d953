"""Options of rrq-fastwire-runner: as environment variables, in the help, and with wrong values."""

from __future__ import annotations

import pytest

from rrq_fastwire.runner import main
from rrq_fastwire.runner.options import option_parser

OPTIONS = {
    "handlers": [
        "--settings MODULE.ATTR",
        "--native-messages",
        "--loop {auto,asyncio,uvloop}",
        "--lifespan MODULE.ATTR",
        "--threads N",
        "--slow-callback [SECONDS]",
        "--middleware MODULE.ATTR",
        "--on-error MODULE.ATTR",
    ],
    "connections": [
        "--tcp-socket HOST:PORT",
        "--allow-remote",
        "--allow-from CIDR,...",
        "--max-connections N",
        "--max-frame-size BYTES",
        "--header-timeout SECONDS",
    ],
    "shutdown": ["--drain SECONDS", "--grace SECONDS", "--no-parent-watch"],
    "recycling (POSIX)": ["--max-jobs N", "--max-rss BYTES"],
    "monitoring and development": ["--metrics HOST:PORT", "--reload", "-h, --help", "--version"],
}


def variable(name):
    """The environment variable of an option."""
    return "RRQ_FASTWIRE_RUNNER_" + name[2:].upper().replace("-", "_")


def set_option(command, monkeypatch, name, value):
    """Sets an option by its environment variable."""
    monkeypatch.setitem(command.environment, variable(name), value)


def test_the_help_groups_the_options(command_for_errors):
    done = command_for_errors.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    _, *groups = done.stdout.split("\n\n")
    found = {}
    for group in groups[1:-1]:
        title, _, body = group.partition(":\n")
        found[title] = body
    assert list(found) == list(OPTIONS)
    for title, options in OPTIONS.items():
        lines = [line.strip() for line in found[title].splitlines() if line.startswith("  -")]
        assert len(lines) == len(options)
        for line, option in zip(lines, options, strict=True):
            assert line.startswith(option)


def test_the_help_does_not_break_names_at_their_hyphens(monkeypatch):
    for columns in range(50, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = option_parser().format_help().splitlines()
        assert [line for line in lines if line.endswith("-")] == []


def test_the_help_says_which_units_sizes_have():
    parser = option_parser()
    sizes = parser.read([*REQUIRED, "--max-frame-size", "2K", "--max-rss", "1.5M"], {})
    assert (sizes.max_frame_size, sizes.max_rss) == (2 * 1024, 1.5 * 1024 * 1024)
    words = " ".join(parser.format_help().split())
    assert words.count("1K is 1024 bytes, 1M is 1024K, 1G is 1024M") == 2


REQUIRED = ["--settings", "app.handlers", "--tcp-socket", "127.0.0.1:9"]

DEFAULTS = {
    "native_messages": False,
    "loop": "auto",
    "lifespan": None,
    "threads": None,
    "slow_callback": None,
    "middleware": (),
    "on_error": None,
    "allow_remote": False,
    "allow_from": (),
    "max_connections": 512,
    "max_frame_size": 16 * 1024 * 1024,
    "header_timeout": 60,
    "drain": 0,
    "grace": 0.02,
    "parent_watch": True,
    "max_jobs": None,
    "max_rss": None,
    "metrics": None,
    "reload": False,
}


def test_the_defaults_are_those_of_the_documentation():
    found = vars(option_parser().read(REQUIRED, {}))
    required = {"settings": "app.handlers", "tcp_socket": "127.0.0.1:9"}
    assert found == required | DEFAULTS


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads=1", 1),
        ("--threads=1024", 1024),
        ("--slow-callback", 0.1),
        ("--max-connections=1", 1),
        ("--max-jobs=1000000000000", 10**12),
        ("--max-rss=1", 1),
        ("--max-frame-size=16777216", 16 * 1024 * 1024),
        ("--header-timeout=0", 0),
        ("--grace=3600", 3600),
    ],
)
def test_the_least_and_the_largest_values_are_accepted(option, value):
    name = option.partition("=")[0][2:].replace("-", "_")
    assert getattr(option_parser().read([*REQUIRED, option], {}), name) == value


def test_options_that_are_missing_are_named(capsys):
    with pytest.raises(SystemExit):
        option_parser().read([], {})
    said = "the following arguments are required: --settings, --tcp-socket (see --help)\n"
    assert capsys.readouterr().err == f"rrq-fastwire-runner: {said}"


def test_an_option_can_be_an_environment_variable(command, monkeypatch):
    set_option(command, monkeypatch, "--settings", "app.handlers")
    set_option(command, monkeypatch, "--loop", "asyncio")
    runner = command.start(settings=None)
    assert command.connect(runner.port).ask("loop") == "asyncio"


def test_the_command_line_overrides_the_environment(command, monkeypatch):
    set_option(command, monkeypatch, "--settings", "nothing.handlers")
    set_option(command, monkeypatch, "--grace", "not read")
    runner = command.start("--grace", "1", settings="app.handlers")
    assert command.connect(runner.port).ask("kind") == "rrq_fastwire"


def test_the_variable_of_a_repeatable_option_is_a_list_with_commas(command, monkeypatch):
    (command.folder / "around.py").write_text(
        "async def outer(request, call_next):\n    return ['outer', await call_next(request)]\n"
        "async def inner(request, call_next):\n    return ['inner', await call_next(request)]\n"
    )
    set_option(command, monkeypatch, "--middleware", "around.outer,around.inner")
    runner = command.start(settings="app.handlers")
    assert command.connect(runner.port).ask("kind") == ["outer", ["inner", "rrq_fastwire"]]


@pytest.mark.parametrize(
    ("value", "given"),
    [("1", "rrq_fastwire"), ("TRUE", "rrq_fastwire"), ("yes", "rrq_fastwire"), ("0", "rrq")],
)
def test_the_variable_of_an_option_without_a_value_is_1_or_0(command, monkeypatch, value, given):
    pytest.importorskip("rrq", reason="PythonRunnerSettings is rrq's, which is not installed")
    set_option(command, monkeypatch, "--native-messages", value)
    runner = command.start(settings="app.settings")
    assert command.connect(runner.port).ask("kind") == given


# Options and values that are refused when the options are read.
WRONG = [
    ("--loop", "trio", "invalid choice: 'trio'"),
    ("--threads", "0", "must be an integer from 1 to 1024, got '0'"),
    ("--threads", "1025", "must be an integer from 1 to 1024, got '1025'"),
    ("--threads", "few", "must be an integer from 1 to 1024, got 'few'"),
    ("--slow-callback", "0", "must be more than 0, got '0'"),
    ("--slow-callback", "soon", "must be a number from 0 to 3600, got 'soon'"),
    ("--grace", "soon", "must be a number from 0 to 3600, got 'soon'"),
    ("--drain", "-1", "must be a number from 0 to 3600, got '-1'"),
    ("--drain", "nan", "must be a number from 0 to 3600, got 'nan'"),
    ("--header-timeout", "3601", "must be a number from 0 to 3600, got '3601'"),
    ("--max-connections", "0", "must be a number from 1 to 1000000000000, got '0'"),
    ("--max-connections", "many", "must be a number from 1 to 1000000000000, got 'many'"),
    ("--max-jobs", "0", "must be a number from 1 to 1000000000000, got '0'"),
    (
        "--max-jobs",
        "1000000000001",
        "must be a number from 1 to 1000000000000, got '1000000000001'",
    ),
    ("--max-jobs", "1.5", "must be a number from 1 to 1000000000000, got '1.5'"),
    ("--max-rss", "0", "must be a number of bytes such as 500M, got '0'"),
    ("--max-rss", "M", "must be a number of bytes such as 500M, got 'M'"),
    ("--max-rss", "1T", "must be a number of bytes such as 500M, got '1T'"),
    ("--max-rss", "infG", "must be a number of bytes such as 500M, got 'infG'"),
    ("--max-frame-size", "17M", "must be 16777216 (16M) at most, got '17M'"),
    ("--max-frame-size", "", "must be a number of bytes such as 500M, got ''"),
    ("--allow-from", "10.0.0.0/33", "'10.0.0.0/33' does not appear to be an IPv4 or IPv6 network"),
    ("--allow-from", "10.0.0.1/8", "10.0.0.1/8 has host bits set"),
    ("--allow-from", "10.0.0.0/8,", "'' does not appear to be an IPv4 or IPv6 network"),
]

# Those that the runner refuses later, when it looks at several options, or imports what they need.
WRONG_AT_THE_START = [
    ("--settings", "app", "--settings must be module.attr or module:attr, got 'app'"),
    ("--tcp-socket", "127.0.0.1:0", "TCP socket port out of range: 0"),
    ("--lifespan", "app", "--lifespan must be module.attr or module:attr, got 'app'"),
    ("--lifespan", "", "--lifespan must be module.attr or module:attr, got ''"),
    ("--middleware", "app", "--middleware must be module.attr or module:attr, got 'app'"),
    ("--on-error", "", "--on-error must be module.attr or module:attr, got ''"),
    ("--on-error", ".app", "--on-error must be module.attr or module:attr, got '.app'"),
    ("--allow-from", "10.0.0.0/8", "--allow-from needs --allow-remote"),
    ("--metrics", "9100", "TCP socket must be in host:port format"),
    ("--metrics", "127.0.0.1:+70000", "TCP socket port out of range"),
]


def given(name):
    """The options that are required, except for the one that is tested."""
    required = {"--settings": "app.handlers", "--tcp-socket": "127.0.0.1:9000"}
    return [word for pair in required.items() if pair[0] != name for word in pair]


def check_refusal(status, stdout, stderr, said):
    assert f": {said}" in stderr
    assert stderr.startswith("rrq-fastwire-runner: ")
    assert stderr.count("\n") == 1
    assert (status, stdout) == (2, "")


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_wrong_value_gets_one_line_and_status_2(capsys, name, value, said):
    with pytest.raises(SystemExit) as end:
        main([*given(name), f"{name}={value}"])
    check_refusal(end.value.code, *capsys.readouterr(), said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *WRONG,
        ("--loop", "trio", "invalid choice: 'trio' (choose from auto, asyncio, uvloop)"),
        ("--native-messages", "2", "must be 1 or 0, true or false, yes or no, got '2'"),
        ("--no-parent-watch", "", "must be 1 or 0, true or false, yes or no, got ''"),
        ("--reload", "on", "must be 1 or 0, true or false, yes or no, got 'on'"),
        ("--allow-remote", "maybe", "must be 1 or 0, true or false, yes or no, got 'maybe'"),
    ],
)
def test_a_wrong_variable_gets_one_line_and_status_2(capsys, monkeypatch, name, value, said):
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(SystemExit) as end:
        main(given(name))
    stdout, stderr = capsys.readouterr()
    check_refusal(end.value.code, stdout, stderr, said)
    assert variable(name) in stderr


@pytest.mark.parametrize("by_variable", [False, True], ids=["option", "variable"])
@pytest.mark.parametrize(("name", "value", "said"), WRONG_AT_THE_START)
def test_a_value_that_is_refused_at_the_start_gets_one_line_and_status_2(
    command_for_errors, monkeypatch, name, value, said, by_variable
):
    if name == "--metrics":
        pytest.importorskip("prometheus_client", reason="--metrics is an extra")
    required = {"settings": None, "tcp_socket": None}  # both are in given()
    if by_variable:
        set_option(command_for_errors, monkeypatch, name, value)
        done = command_for_errors.run(*given(name), **required)
    else:
        done = command_for_errors.run(*given(name), f"{name}={value}", **required)
    check_refusal(done.returncode, done.stdout, done.stderr, said)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("prometheus_client", ["--metrics", "127.0.0.1:9100"], "metrics"),
        ("watchfiles", ["--reload"], "reload"),
    ],
)
def test_an_extra_that_is_missing_gets_one_line_and_status_2(command, module, arguments, extra):
    (command.folder / f"{module}.py").write_text(f"raise ImportError('No module named {module}')")
    done = command.run(*arguments)
    assert done.stderr == (
        f"rrq-fastwire-runner: {arguments[0]}: No module named {module};"
        f" pip install 'rrq-fastwire[{extra}]'\n"
    )
    assert done.returncode == 2


def test_modules_of_options_that_are_not_given_are_not_imported(command):
    (command.folder / "imports.py").write_text(
        "import sys\n"
        "async def imported(request):\n"
        "    return [name for name in request.params['names'] if name in sys.modules]\n"
        "handlers = {'imported': imported}\n"
    )
    runner = command.start(settings="imports.handlers")
    peer = command.connect(runner.port)
    modules = ["handover", "metrics", "observe", "recycle", "reload", "renewal"]
    names = ["prometheus_client", "watchfiles", "click", "rich"]
    names += [f"rrq_fastwire.runner.{name}" for name in modules]
    peer.send("imported", names=[*names, "rrq_fastwire.runner.engine"])
    assert peer.receive().result == ["rrq_fastwire.runner.engine"]
