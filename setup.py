"""The compiled twin; everything else is in pyproject.toml.

RRQ_FASTWIRE_PURE=1 leaves it out, =0 makes a failed compilation fatal, unset builds the package
without it where it cannot be compiled, and says so.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

choice = os.environ.get("RRQ_FASTWIRE_PURE", "")
if choice not in ("", "0", "1"):
    sys.exit(f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got {choice!r}")

extensions = []
if choice == "0" or (not choice and sys.implementation.name == "cpython"):
    extensions = cythonize(
        [
            Extension(f"rrq_fastwire._c.{name}", [f"rrq_fastwire/_c/{name}.pyx"])
            for name in ("frames", "messages")
        ],
        build_dir="build/cython",
    )
for extension in extensions:
    extension.optional = choice != "0"

setup(ext_modules=extensions)
