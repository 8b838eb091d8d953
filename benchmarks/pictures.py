"""Run commands, and draw what they print on a terminal, for the pages of docs/.

    python -m benchmarks.pictures

Writes .github/pictures/{hangs,check,load}.svg.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

PICTURES = Path(__file__).parent.parent / ".github" / "pictures"
WIDTH = 130
# Makes the commands print colours, and no progress bars.
TERMINAL = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH)}

COMMAND = [sys.executable, "-m", "rrq_fastwire"]
SETTINGS = ["--settings", "rrq_fastwire.cli.example.settings"]
TAP, RUNNER = "127.0.0.1:9000", "127.0.0.1:9001"


def say(*arguments: str) -> str:
    """Run a command, and return its stdout. Runners that it starts print to stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **TERMINAL},
        timeout=120,
        check=False,
    )
    return done.stdout


@contextmanager
def running(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """A command that runs until it is terminated."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **TERMINAL},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for_runner(address: str) -> None:
    """Wait until a runner answers, for about 30 seconds."""
    for _ in range(300):
        if say("call", address, "echo"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens at {address}")


def hangs() -> tuple[str, str]:
    """The command line and the output of `tap`, with a job that hangs."""
    with running("runner", *SETTINGS, "--tcp-socket", RUNNER):
        wait_for_runner(RUNNER)
        with running("tap", "--listen", TAP, "--to", RUNNER, "--redact", "card") as tap:
            assert tap.stdout is not None
            output = tap.stdout.readline()
            say("call", TAP, "echo", "to=someone@example.com", "card=4111")
            say("call", TAP, "fail")
            say("call", TAP, "sleep", "seconds=60", "--timeout", "1.5")
            tap.send_signal(signal.SIGINT)
            output += tap.stdout.read()
    return f"rrq-fastwire tap --listen {TAP} --to {RUNNER} --redact card", output


def check() -> tuple[str, str]:
    """The command line and the output of `check`, for rrq's own runner."""
    runner = " ".join([sys.executable, "-m", "rrq.runner_runtime", *SETTINGS])
    shown = "rrq-fastwire check --runner 'rrq-runner --settings app.settings'"
    return shown, say("check", "--runner", runner)


def load() -> tuple[str, str]:
    """The command line and the output of `load`, for one handler."""
    runner = " ".join([sys.executable, "-m", "rrq_fastwire.runner", *SETTINGS])
    arguments = ["echo", "--params", "2KB", "--seconds", "3"]
    shown = f"rrq-fastwire load --runner 'rrq-fastwire-runner --settings app.settings' {' '.join(arguments)}"
    return shown, say("load", "--runner", runner, *arguments)


def main() -> None:
    """Run the commands, and draw their output."""
    for scene in (hangs, check, load):
        command, output = scene()
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(Text("$ ", "bold green").append(command, "bold"))
        console.print(Text.from_ansi(output))
        picture = console.export_svg(title="rrq-fastwire", unique_id=scene.__name__)
        # Use the viewer's own font instead of one from the network.
        picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
        (PICTURES / f"{scene.__name__}.svg").write_text(picture)


if __name__ == "__main__":
    main()
