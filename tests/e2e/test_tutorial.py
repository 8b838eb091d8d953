"""The commands of the tutorial, run in order, print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from rrq_fastwire.cli.runner_process import free_port

from .orchestrator import ENDED_BY_FORCE, PORTS, RUN_SECONDS

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

# Commands that are left out, because the test has already set up Redis and the packages.
SET_UP = ("mkdir", "python3 -m venv", "pip", "redis-server")
ID = r"[0-9a-f]{8}-[0-9a-f-]{27}"


def same_in_each_run(command: str, output: str) -> list[str]:
    """The lines of a command's output, to compare: with spaces, ids and numbers replaced.

    For `rrq job`, these are all lines. For other commands, it is only the last line, because logs
    and tracebacks contain numbers of lines of code.
    """
    output = re.sub(f"^{ENDED_BY_FORCE}.*\n", "", output, flags=re.MULTILINE).strip()
    text = re.sub("rrq_worker_.*", "", re.sub(ID, "ID", output))
    text = re.sub(r"[ ]+", " ", re.sub(r"\d[\d.,:]*", "0", text))
    return text.splitlines()[0 if command.startswith("rrq job") else -1 :]


# The tutorial shows what this version prints.
@pytest.mark.parametrize("orchestrator", ["0.11.1"], indirect=True)
def test_the_commands_of_the_tutorial_print_what_it_shows(orchestrator, tmp_path):
    orchestrator.database.flushall()
    database = "redis://127.0.0.1:{port}/0".format(**orchestrator.database.get_connection_kwargs())
    environment = {
        **os.environ,
        "PATH": f"{orchestrator.bin}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": ".",
        "RUST_LOG": "warn",
    }
    python_files = iter(["jobs.py", "send.py"])
    job_id = ""
    for language, block in re.findall(r"```(\w+)\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        if language == "python":
            (tmp_path / next(python_files)).write_text(block)
        elif language == "toml":
            config = tmp_path / "rrq.toml"
            # The second block takes the place of the runner's section.
            head = "" if "[rrq]" in block else config.read_text().partition("[rrq.runners")[0]
            text = re.sub("redis_dsn = .*", f'redis_dsn = "{database}"', head + block)
            config.write_text(re.sub("tcp_port = .*", f"tcp_port = {free_port(PORTS)}", text))
        else:
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                if command.startswith((*SET_UP, "export")):
                    continue
                done = subprocess.run(
                    re.sub(ID, job_id, command),
                    shell=True,
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=RUN_SECONDS,
                    check=False,
                )
                printed = same_in_each_run(command, done.stdout)
                assert printed == same_in_each_run(command, shown), done.stdout
                found = re.findall(ID, done.stdout)
                job_id = found[0] if found else job_id
