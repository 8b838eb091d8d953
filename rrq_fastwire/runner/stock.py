"""The installed rrq, or None: `rrq` is the module of what the runner takes from it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import _rrq as rrq
else:
    try:
        from . import _rrq as rrq
    except ModuleNotFoundError as error:
        if error.name not in ("rrq", "pydantic"):  # which comes with rrq
            raise
        rrq = None

__all__ = ["HAS_RRQ", "rrq"]

HAS_RRQ: bool = rrq is not None
