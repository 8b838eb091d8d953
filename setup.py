"""The compiled twin; everything else is in pyproject.toml.

RRQ_FASTWIRE_PURE=1 leaves it out, =0 makes a failed compilation fatal, unset builds the package
without it where it cannot be compiled, and says so.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

choice = os.environ.get("RRQ_FASTWIRE_PURE", "")
if choice not in ("", "0", "1"):
    sys.exit(f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got {choice!r}")

# A frame passes through so much code that each function should start its own line of the
# instruction cache, and loops be no larger than they have to.
FLAGS = ["-O2", "-fno-plt", "-falign-functions=64"]


class BuildExt(build_ext):
    def run(self):
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            if choice == "0":
                raise
            self.extensions = []
            print(
                f"rrq-fastwire is built WITHOUT its compiled half, which is much faster: {error}\n"
                "With a C compiler and RRQ_FASTWIRE_PURE=0 it is built, or the build fails.",
                file=sys.stderr,
            )


extensions = []
if choice == "0" or (not choice and sys.implementation.name == "cpython"):
    extensions = cythonize(
        [
            Extension(
                f"rrq_fastwire._c.{name}",
                [f"rrq_fastwire/_c/{name}.pyx", *sources],
                include_dirs=["rrq_fastwire/_c"],
                depends=["rrq_fastwire/_c/scan.h", "rrq_fastwire/_c/plain.h"],
                extra_compile_args=[] if sys.platform == "win32" else FLAGS,
            )
            for name, sources in [("frames", []), ("messages", ["rrq_fastwire/_c/plain.c"])]
        ],
        build_dir="build/cython",
    )

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt})
