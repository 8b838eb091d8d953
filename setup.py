"""Build the compiled implementation, and reproducible archives.

Everything else is in pyproject.toml. RRQ_FASTWIRE_PURE=1 leaves out the compiled implementation,
and =0 makes a failed compilation an error. If the variable is unset and the compilation fails, the
package is built without the compiled implementation. Then the name of the wheel says so, because
pip shows no other output of a build.
"""

import gzip
import os
import re
import sys
import tarfile
import time
import tomllib
from contextlib import suppress
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CCompilerError, ExecError, PlatformError

choice = os.environ.get("RRQ_FASTWIRE_PURE", "")
if choice not in ("", "0", "1"):
    sys.exit(f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got {choice!r}")

if sys.platform == "win32":
    compile_args, link_args = ["/Brepro"], ["/Brepro"]
else:
    # Each frame runs much code, mostly of Python and the JSON library, so the instruction cache is
    # crowded. A function that is aligned to a cache line occupies fewer lines. -O3 inlines more.
    # Vectorized loops are turned off, because they pay off only for texts that are longer than ids.
    compile_args = ["-O3", "-fno-tree-vectorize", "-fno-plt", "-falign-functions=64"]
    compile_args += [f"-ffile-prefix-map={os.getcwd()}=."]
    link_args = ["-Wl,-S,-x"] if sys.platform == "darwin" else ["-Wl,--strip-all"]
    if "-g" in os.environ.get("CFLAGS", "").split():
        link_args = []


class BuildExt(build_ext):
    def run(self):
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            if choice == "0":
                raise
            for extension in self.extensions:  # some may be compiled, or left from an earlier build
                name = self.get_ext_filename(self.get_ext_fullname(extension.name))
                with suppress(FileNotFoundError):
                    os.remove(os.path.join(self.build_lib, name))
            self.extensions = self.distribution.ext_modules = []
            wheel = self.get_finalized_command("bdist_wheel")
            wheel.root_is_pure = True
            wheel.build_number = "0_WITHOUT_compiled_extension"
            print(
                "rrq-fastwire is built WITHOUT its compiled extension, which is much faster: "
                f"{error}\nInstall a C compiler, and build with RRQ_FASTWIRE_PURE=0 and pip's "
                "--no-cache-dir: then a failed compilation is an error.",
                file=sys.stderr,
            )


def plain_mode(mode):
    """Return the mode that a file would have with the umask 022."""
    return 0o755 if mode & 0o100 else 0o644


class BdistWheel(bdist_wheel):
    def write_wheelfile(self, *arguments, **options):
        """Write the WHEEL file, and set the modes of all files. RECORD is written later."""
        super().write_wheelfile(*arguments, **options)
        for path in Path(self.bdist_dir).rglob("*"):
            if path.is_file():
                path.chmod(plain_mode(path.stat().st_mode))


class Sdist(sdist):
    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        """Write the archive without the times, users and modes of the machine that builds it."""
        if format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        moment = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())

        def plain(member):
            member.mtime = moment
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() else plain_mode(member.mode)
            return member

        archive = f"{base_name}.tar.gz"
        os.makedirs(os.path.dirname(archive), exist_ok=True)
        with (
            gzip.GzipFile(archive, "wb", mtime=moment) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            tar.add(base_dir, filter=plain)
        return archive


# The generic codec is compiled from the file that the pure implementation runs.
SOURCES = {
    "frames": "rrq_fastwire/_c/frames.pyx",
    "generic": "rrq_fastwire/_generic.py",
    "codec": "rrq_fastwire/_c/codec.pyx",
}

extensions = []
if choice == "0" or (not choice and sys.implementation.name == "cpython"):
    extensions = cythonize(
        [
            Extension(
                f"rrq_fastwire._c.{name}",
                [source],
                include_dirs=["rrq_fastwire/_c"],
                depends=glob("rrq_fastwire/_c/*.h"),
                extra_compile_args=compile_args,
                extra_link_args=link_args,
            )
            for name, source in SOURCES.items()
        ],
        build_dir="build/cython",
    )


def readme_for_pypi():
    """Return README.md, with absolute links if pyproject.toml has the project's address.

    PyPI shows the README as the project's page, where relative links lead nowhere.
    """
    urls = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls")
    text = Path("README.md").read_text(encoding="utf-8")
    if not urls:
        return text

    def absolute(link):
        label, path = link.groups()
        return f"{label}({urls['Source']}/{'raw' if label[0] == '!' else 'blob'}/main/{path})"

    return re.sub(r"(!?\[[^]]*\])\((?!https://|mailto:|#)([^)]+)\)", absolute, text)


setup(
    ext_modules=extensions,
    cmdclass={"bdist_wheel": BdistWheel, "build_ext": BuildExt, "sdist": Sdist},
    long_description=readme_for_pypi(),
    long_description_content_type="text/markdown",
)
