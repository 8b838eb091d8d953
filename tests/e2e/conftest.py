"""Fixtures of the end-to-end tests: a Redis server, and the orchestrators with this package.

Virtual environments stay in build/e2e/ for the next run. Everything else is removed at the end.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from .orchestrator import SOCKETS, Orchestrator, call, redis_server

ROOT = Path(__file__).parents[2]


def pytest_addoption(parser):
    parser.addoption("--chaos-seconds", type=float, default=60, help="how long to kill processes")


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A client of a new Redis server."""
    with redis_server(tmp_path_factory.mktemp("redis")) as client:
        yield client


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel of this package. It is built from a copy, because build/ may have deleted modules."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "build", "dist", "tests", "*.egg-info", "*.so")
    shutil.copytree(ROOT, source, ignore=ignore, dirs_exist_ok=True)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    return next(wheels.glob("*.whl"))


@pytest.fixture(scope="session", params=SOCKETS)
def orchestrator(request, database, wheel, tmp_path_factory):
    """A virtual environment with one version of rrq and this package."""
    venv = ROOT / "build" / "e2e" / request.param / sys.implementation.cache_tag
    python = venv / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", venv)
    pip(python, "install", f"rrq=={request.param}", f"{wheel}[cli,metrics,uvloop]")
    pip(python, "install", "--no-deps", "--force-reinstall", wheel)
    return Orchestrator(request.param, venv / "bin", database, tmp_path_factory.mktemp("runs"))


def pip(python: Path | str, *arguments: Path | str) -> None:
    call(python, "-m", "pip", "--disable-pip-version-check", *arguments)
