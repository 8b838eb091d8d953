"""Defaults that the command line and serve() share, and the error for impossible limits."""

from __future__ import annotations

__all__ = ["DEFAULT_HEADER_TIMEOUT", "DEFAULT_MAX_CONNECTIONS", "LimitError"]

# Far more than an orchestrator needs. rrq 0.9.18 opens a connection per request and one per cancel,
# with up to 64 requests in flight; later versions keep one connection. All versions send each frame
# without a pause.
DEFAULT_MAX_CONNECTIONS = 512
DEFAULT_HEADER_TIMEOUT = 60.0


class LimitError(ValueError):
    """A limit cannot be kept. The text begins with its name as an argument of serve()."""
