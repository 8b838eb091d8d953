"""The suite runs over both twins; with --no-orjson, the standard library's json takes orjson's place."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-orjson", action="store_true", help="as if orjson were not installed")
    parser.addoption("--conformance", type=Path, help="the folder of the reference's verdicts")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-orjson"):
        sys.modules["orjson"] = None  # type: ignore[assignment]


def pytest_report_header(config: pytest.Config) -> str:
    import rrq_fastwire

    where = Path(rrq_fastwire.__file__).parent
    return f"rrq_fastwire: {rrq_fastwire.IMPLEMENTATION}, {rrq_fastwire.JSON_BACKEND}, from {where}"


@pytest.fixture(scope="session", params=["c", "py"])
def wire(request: pytest.FixtureRequest) -> ModuleType:
    """One twin, with every public name that is the twins'."""
    try:
        return importlib.import_module(f"rrq_fastwire._{request.param}")
    except ImportError as error:
        pytest.skip(f"the compiled twin is not built here: {error}")


@pytest.fixture(scope="session")
def captures() -> dict[str, bytes]:
    """What the real orchestrator and the stock runner sent each other: file names to bytes."""
    return {path.stem: path.read_bytes() for path in Path(__file__).parent.glob("captures/*.bin")}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The end-to-end tests run when they are asked for by name: they want Redis and minutes."""
    asked = any("e2e" in argument for argument in config.args)
    return True if collection_path.name == "e2e" and not asked else None
