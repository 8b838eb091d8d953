"""The runners to compare, their environment, and how figures are stored and printed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

# Names of the runners, and their commands. All but the last use asyncio's own event loop, because
# rrq-runner cannot use another.
STOCK, OURS, NATIVE = "rrq-runner", "rrq-fastwire-runner", "--native-messages"
UVLOOP = "--loop uvloop"
RUNNERS = {
    STOCK: [STOCK],
    OURS: [OURS, "--loop", "asyncio"],
    NATIVE: [OURS, "--loop", "asyncio", NATIVE],
    UVLOOP: [OURS, "--loop", "uvloop"],
}

PACKAGES = ["rrq", "pydantic", "orjson", "uvloop"]

_ASK_VERSIONS = f"""
import json, platform
from importlib.metadata import version
versions = {{name: version(name) for name in {PACKAGES}}}
print(json.dumps({{"python": platform.python_version(), **versions}}))
"""


class Environment(NamedTuple):
    """A Python environment in which rrq, rrq_fastwire and uvloop are installed.

    Attributes:
        bin: where its commands are.
        versions: of Python, and of PACKAGES.
    """

    bin: Path
    versions: dict[str, str]

    def command(self, runner: str) -> list[str]:
        """The command of one of RUNNERS."""
        name, *arguments = RUNNERS[runner]
        return [str(self.bin / name), *arguments]


def parse_arguments(description: str, rounds: int) -> argparse.Namespace:
    """The options that all benchmarks of runners have.

    Arguments:
        description: the docstring of the module.
        rounds: the default of --rounds.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the Python interpreter of the environment to measure (default: this one)",
    )
    parser.add_argument("--json", type=Path, help="a file to add the figures to")
    return parser.parse_args()


def environment(python: Path) -> Environment:
    """The environment of an interpreter."""
    asked = subprocess.run([python, "-c", _ASK_VERSIONS], check=True, capture_output=True)
    return Environment(python.parent.absolute(), json.loads(asked.stdout))


def memory_mib(pid: int, of: str) -> float:
    """The memory of a process in MiB, from /proc of Linux.

    Arguments:
        of: "VmRSS" for the resident memory, "VmHWM" for the most that it has been.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{of}:")[2].split()[0]) / 1024


def keep(path: Path | None, measured: Environment, subject: str, figures: Any) -> None:
    """Stores the figures of one subject in a file, if there is one; other subjects stay in it."""
    if path is not None:
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept |= {"versions": measured.versions, subject: figures}
        path.write_text(json.dumps(kept, indent=1) + "\n")


def print_cpu(
    title: str, figures: dict[str, dict[str, float]], at_most: dict[str, dict[str, float]]
) -> int:
    """Prints the CPU per job. Returns how many rows fall short.

    Arguments:
        figures: microseconds by case and runner.
        at_most: by case and runner, the highest share of rrq-runner's CPU that is allowed.
    """
    fell_short = 0
    print(f"{title:<42}{'runner':<22}{'us':>9}{'of stock':>10}{'at most':>9}")
    for case, row in figures.items():
        for runner, microseconds in row.items():
            share = microseconds / row[STOCK]
            limit = at_most[case].get(runner)
            falls_short = limit is not None and share > limit
            fell_short += falls_short
            print(
                f"{case:<42}{runner:<22}{microseconds:>9.1f}{share:>10.3f}"
                f"{f'{limit:.3f}' if limit else '':>9}{'  falls short' if falls_short else ''}"
            )
    return fell_short
