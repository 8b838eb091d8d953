"""The runner's log.

The runner logs to `rrq_fastwire.runner`. The parent of `rrq_fastwire` is rrq's own logger
`rrq.runner`, so levels and handlers that are configured for `rrq.runner` or `rrq` apply here, too.
So do the filters of `rrq.runner`.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress

__all__ = ["LOGGER", "log"]

LOGGER = logging.getLogger("rrq_fastwire.runner")

_RRQ = logging.getLogger("rrq.runner")


def _place_below_rrq() -> None:
    package = logging.getLogger("rrq_fastwire")
    package.parent = _RRQ
    package.setLevel(package.level)  # clears the caches of which levels are enabled
    LOGGER.addFilter(_RRQ.filter)  # logging does not apply the filters of parent loggers


_place_below_rrq()


def log(level: int, message: str, *values: object, error: BaseException | None = None) -> None:
    """Log a message, with the traceback of an error if there is one.

    If a logging filter, a logging handler or a value's own code raises, the traceback is printed to
    stderr. It must not affect a job.
    """
    try:
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        # logging.config disables loggers that it does not name.
        logger = _RRQ if LOGGER.disabled else LOGGER
        logger.log(level, message, *values, exc_info=exc_info, stacklevel=2)
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
