"""The runner, a replacement of rrq-runner: it runs the jobs that the orchestrator sends."""

from importlib import import_module

from .command import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .job import CurrentJob, current_job
    from .lifespan import lifespan_value
    from .server import serve

__all__ = ["CurrentJob", "current_job", "lifespan_value", "main", "serve"]

_MODULES = {
    "CurrentJob": "job",
    "current_job": "job",
    "lifespan_value": "lifespan",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    # Imported on first use, because the command must watch its parent before it imports asyncio and
    # rrq, and because importing current_job() adds a cost to each job.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
