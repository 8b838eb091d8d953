"""Fixtures of the end-to-end tests: a Redis server, and the orchestrators with this package.

Virtual environments stay in build/e2e/ for the next run. Everything else is removed at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from pathlib import Path

import pytest

from .orchestrator import SOCKETS, Orchestrator, call, redis_server

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "e2e"


def pytest_addoption(parser):
    parser.addoption("--chaos-seconds", type=float, default=60, help="how long to kill processes")


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A client of a new Redis server."""
    with redis_server(tmp_path_factory.mktemp("redis")) as client:
        yield client


@contextlib.contextmanager
def alone(folder, run):
    """Keeps other processes out of a folder. Yields whether this run of the tests has filled it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "filled").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file.read() == run
        file.truncate(0)
        file.write(run)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, testrun_uid):
    """A wheel of this package. It is built from a copy, because build/ may have deleted modules."""
    wheels = BUILD / "wheel"
    with alone(wheels, testrun_uid) as is_built:
        if not is_built:
            source = tmp_path_factory.mktemp("source")
            ignore = shutil.ignore_patterns(".*", "build", "dist", "tests", "*.egg-info", "*.so")
            shutil.copytree(ROOT, source, ignore=ignore, dirs_exist_ok=True)
            for old in wheels.glob("*.whl"):
                old.unlink()
            pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    return next(wheels.glob("*.whl"))


@pytest.fixture(scope="session", params=SOCKETS)
def orchestrator(request, database, wheel, tmp_path_factory, testrun_uid):
    """A virtual environment with one version of rrq and this package."""
    venv = BUILD / request.param / sys.implementation.cache_tag
    with alone(venv, testrun_uid) as is_installed:
        if not is_installed:
            python = venv / "bin" / "python"
            if not python.exists():
                call(sys.executable, "-m", "venv", venv)
            pip(python, "install", f"rrq=={request.param}", f"{wheel}[cli,metrics,uvloop]")
            pip(python, "install", "--no-deps", "--force-reinstall", wheel)
    return Orchestrator(request.param, venv / "bin", database, tmp_path_factory.mktemp("runs"))


def pip(python: Path | str, *arguments: Path | str) -> None:
    call(python, "-m", "pip", "--disable-pip-version-check", *arguments)
