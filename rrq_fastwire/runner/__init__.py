"""The runner: runs the jobs that the orchestrator sends, in the place of rrq's own."""

from .command import main
from .server import serve

__all__ = ["main", "serve"]
