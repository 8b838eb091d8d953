"""Defaults that both the command line and serve() have, and what is wrong with other values."""

from __future__ import annotations

__all__ = ["DEFAULT_HEADER_TIMEOUT", "DEFAULT_MAX_CONNECTIONS", "LimitError"]

# No orchestrator comes near these. rrq 0.9.18 opens a connection per request and one per cancel, of
# which 64 can be in flight; later versions keep one, and begin a frame only to finish it.
DEFAULT_MAX_CONNECTIONS = 512
DEFAULT_HEADER_TIMEOUT = 60.0


class LimitError(ValueError):
    """A limit cannot be kept."""
