"""The installed rrq, or None: `rrq` is the module of what the runner takes from it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import ExecutionOutcome
    from . import _rrq as rrq
else:
    try:
        from . import _rrq as rrq
    except ModuleNotFoundError as error:
        if error.name not in ("rrq", "pydantic"):  # which comes with rrq
            raise
        rrq = None

__all__ = ["HAS_RRQ", "as_stock_writes", "rrq"]

HAS_RRQ: bool = rrq is not None


def as_stock_writes(outcome: ExecutionOutcome) -> None:
    """Turns what is in an outcome into JSON's types as rrq-runner does. Raises what that raises."""
    if HAS_RRQ:
        rrq.as_stock_writes(outcome)
    else:
        from .json_forms import as_stock_writes

        as_stock_writes(outcome)
