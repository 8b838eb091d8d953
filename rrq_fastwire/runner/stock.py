"""Use rrq if it is installed: `rrq` is the module `_rrq`, or None."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import ExecutionOutcome
    from . import _rrq as rrq
else:
    try:
        from . import _rrq as rrq
    except ModuleNotFoundError as error:
        if error.name not in ("rrq", "pydantic"):  # rrq requires pydantic
            raise
        rrq = None

__all__ = ["HAS_RRQ", "convert_values", "rrq"]

HAS_RRQ: bool = rrq is not None


def convert_values(outcome: ExecutionOutcome) -> None:
    """Convert the values in an outcome to JSON's types as rrq-runner does.

    Raises whatever a value's own code, or pydantic, raises.
    """
    if HAS_RRQ:
        rrq.convert_values(outcome)
    else:
        from .json_forms import convert_values

        convert_values(outcome)
