"""The hook through which job.py learns of each job, once job.py is imported."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Called with the request of each job, in the job's own context. It is None until something imports
# current_job(), because setting a context variable has a cost.
remember: Callable[[Any], object] | None = None
