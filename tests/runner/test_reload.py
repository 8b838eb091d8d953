"""--reload: the runner restarts when the source of its settings changes."""

from __future__ import annotations

import os

import pytest

from ..commands import free_port, until

pytest.importorskip("watchfiles", reason="--reload is an extra")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is replaced on POSIX only")

APP = """
import asyncio, time
from pathlib import Path
from source.text import TEXT

async def ask(request):
    return TEXT

async def until_told(request):
    Path(request.params["begun"]).touch()
    while not Path(request.params["begun"]).with_name("told").exists():
        await asyncio.sleep(0.005)
    return TEXT

async def process(request):
    return STARTED

STARTED = time.monotonic()
handlers = {"ask": ask, "until_told": until_told, "process": process}
"""


@pytest.fixture
def command(command_on_each_loop):
    command = command_on_each_loop
    # Python would use the compiled file again, because two versions of a source have the same size
    # and are written within the same second.
    command.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    source = command.folder / "source"
    source.mkdir()
    (source / "__init__.py").touch()
    (source / "app.py").write_text(APP)
    (source / "text.py").write_text("TEXT = 'first'")
    command.change = (source / "text.py").write_text
    return command


def start(command, settings="source.app.handlers"):
    return command.start("--reload", settings=settings)


@pytest.mark.parametrize("settings", ["source.app.handlers", "source.inner.app.handlers"])
def test_a_change_of_any_file_of_the_package_takes_effect(command, settings):
    inner = command.folder / "source" / "inner"
    inner.mkdir()
    (inner / "__init__.py").touch()
    (inner / "app.py").write_text("from source.app import *")
    runner = start(command, settings)
    peer = command.connect(runner.port)
    assert peer.ask("ask") == "first"
    for text in ("second", "third"):
        command.change(f"TEXT = {text!r}")
        until(lambda text=text: peer.ask("ask") == text, "the change is served")
    runner.terminate()
    assert command.wait(runner) == 0
    assert runner.errors() == ""


@pytest.mark.parametrize("reason", ["a change", "--max-jobs"])
def test_either_of_two_reasons_restarts_the_runner(command, reason):
    options = "--reload", "--max-jobs", "2" if reason == "--max-jobs" else "1000000"
    runner = command.start(*options, settings="source.app.handlers")
    peer = command.connect(runner.port)
    me = peer.ask("process")
    if reason == "a change":
        command.change("TEXT = 'second'")
    until(lambda: peer.ask("process") != me, "the restart")


def test_other_files_and_those_of_ignored_folders_do_not_restart_the_runner(command):
    (command.folder / "source" / "logged.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.INFO)\nfrom source.app import *\n"
    )
    runner = command.start("--reload", settings="source.logged.handlers")
    peer = command.connect(runner.port)
    assert peer.ask("ask") == "first"
    (command.folder / "source" / "a note.txt").write_text("not a program")
    modules = command.folder / "front" / "node_modules"
    modules.mkdir(parents=True)
    (modules / "build.py").touch()
    modules.parent.rename(command.folder / "source" / "front")
    command.change("TEXT = 'second'")
    until(lambda: peer.ask("ask") == "second", "the change is served")
    assert "text.py" in runner.errors()
    assert "a note.txt" not in runner.errors()
    assert "source/front" not in runner.errors()


def test_a_running_job_ends_before_the_restart(command):
    runner = start(command)
    peer, running = command.connect(runner.port), command.begin(runner.port, "until_told")
    command.change("TEXT = 'second'")
    (command.folder / "told").touch()
    assert running.receive().result == "first"
    until(lambda: peer.ask("ask") == "second", "the change is served")


def test_a_syntax_error_is_shown_and_its_correction_takes_effect(command):
    runner = start(command)
    peer = command.connect(runner.port)
    assert peer.ask("ask") == "first"
    command.change("TEXT = (")
    waiting = "\nwaiting for a change of the source\n"
    until(lambda: waiting in runner.errors(), "the mistake is shown")
    assert "SyntaxError: '(' was never closed" in runner.errors()
    peer.send("ask")  # waits for the correction
    command.change("TEXT = 'corrected'")
    assert peer.receive().result == "corrected"


def test_a_runner_that_starts_with_a_syntax_error_runs_after_the_correction(command):
    command.change("TEXT = (")
    port, errors = free_port(), command.folder / "errors"
    with errors.open("w") as file:
        line = command.line(
            "--reload", settings="source.app.handlers", tcp_socket=f"127.0.0.1:{port}"
        )
        runner = command.spawn(line, stderr=file)
    until(lambda: "waiting for a change" in errors.read_text(), "the mistake is shown")
    command.change("TEXT = 'corrected'")
    command.serving(port, lambda: runner.poll() is None)
    assert command.connect(port).ask("ask") == "corrected"


def test_a_thread_of_broken_settings_does_not_prevent_the_restart(command):
    runner = start(command)
    peer = command.connect(runner.port)
    command.change(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "raise RuntimeError('broken')\n"
    )
    until(lambda: "RuntimeError: broken" in runner.errors(), "the mistake is shown")
    command.change("TEXT = 'corrected'")
    assert peer.ask("ask") == "corrected"


def test_a_runner_that_starts_without_its_settings_runs_once_they_exist(command):
    (command.folder / "source" / "app.py").write_text(APP.replace("source", "later"))
    port, errors = free_port(), command.folder / "errors"
    line = command.line("--reload", settings="later.app.handlers", tcp_socket=f"127.0.0.1:{port}")
    with errors.open("w") as file:
        runner = command.spawn(line, cwd=command.folder, stderr=file)
    until(lambda: "waiting for a change" in errors.read_text(), "the mistake is shown")
    assert "No module named 'later'" in errors.read_text()
    (command.folder / "source").rename(command.folder / "later")
    command.serving(port, lambda: runner.poll() is None)
    assert command.connect(port).ask("ask") == "first"


def test_a_link_that_cannot_be_followed_does_not_hide_later_changes(command):
    runner = start(command)
    peer = command.connect(runner.port)
    (command.folder / "source" / "link").symlink_to("x" * 300)
    command.change("TEXT = 'second'")
    until(lambda: peer.ask("ask") == "second", "the change is served")


def test_sigterm_ends_a_runner_that_waits_for_a_correction(command):
    runner = start(command)
    command.change("TEXT = (")
    until(lambda: "waiting for a change" in runner.errors(), "the mistake is shown")
    runner.terminate()
    command.wait(runner)
