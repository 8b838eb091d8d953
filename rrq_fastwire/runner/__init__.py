"""The runner: runs the jobs that the orchestrator sends, in the place of rrq's own."""

from .command import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .server import serve

__all__ = ["main", "serve"]


def __getattr__(name: str) -> object:
    # The command imports asyncio and rrq itself, once it watches its parent.
    if name == "serve":
        from .server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
