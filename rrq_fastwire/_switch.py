"""Select the implementation by the environment variable RRQ_FASTWIRE_PURE.

"1" selects the pure Python implementation, "0" requires the compiled one. If the variable is unset
or empty, the compiled one runs if it can be imported. Otherwise the pure one runs, on CPython with
a warning. Other interpreters have only the pure one.
"""

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
    except ImportError as error:
        if _choice == "0":
            reason = f"RRQ_FASTWIRE_PURE is 0, but the compiled extension is unavailable: {error}"
            raise ImportError(reason) from error
        import warnings

        warnings.warn(
            f"rrq_fastwire: compiled extension unavailable ({error}); using the slower pure Python "
            "implementation. Set RRQ_FASTWIRE_PURE=1 to silence this warning.",
            RuntimeWarning,
            stacklevel=3,  # the line that imports the package
        )
        from ._py import *
