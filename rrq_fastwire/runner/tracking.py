"""Whether anything asks for current_job(), which job.py provides once it is imported."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Called with the request of each job, in the job's own context. Setting a context variable costs,
# so nothing is called until job.py is imported.
remember: Callable[[Any], object] | None = None
