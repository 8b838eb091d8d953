"""Which twin runs: RRQ_FASTWIRE_PURE=1 takes the pure, =0 demands the compiled, unset the best."""

import os
import sys

TYPE_CHECKING = False

_choice = os.environ.get("RRQ_FASTWIRE_PURE", "")
if _choice not in ("", "0", "1"):
    raise ImportError(f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got {_choice!r}")

if TYPE_CHECKING or _choice == "1" or (not _choice and sys.implementation.name != "cpython"):
    from ._py import *
else:
    try:
        from ._c import *
    except ImportError:
        if _choice == "0":
            raise
        from ._py import *
