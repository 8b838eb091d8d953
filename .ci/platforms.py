"""Check that the README's table of wheels matches cibuildwheel's configuration.

With --write, correct the table instead.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLE = re.compile(r"(?<=<!-- platforms -->\n\n).*?(?=<!-- end of platforms -->)", re.DOTALL)
CIBUILDWHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
PLATFORMS = ("linux", "macos", "windows")


def identifiers(platform):
    command = ["cibuildwheel", "--print-build-identifiers", "--platform", platform]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def described(system):
    """Describe a system such as "manylinux". The build image's name has the C library's version."""
    if system in ("macosx", "win"):
        return {"macosx": "macOS", "win": "Windows"}[system]
    library = {"manylinux": "glibc", "musllinux": "musl"}[system]
    version = CIBUILDWHEEL[f"{system}-x86_64-image"].removeprefix(f"{system}_").replace("_", ".")
    return f"Linux with {library} {version} or later"


def table(names):
    """Return a Markdown table of wheels, from names such as cp314t-manylinux_x86_64."""
    systems = {}
    for name in names:
        version, system, machine = re.fullmatch(r"cp3(\d+t?)-([a-z]+)_(\w+)", name).groups()
        machines, pythons = systems.setdefault(system, ({}, {}))
        machines[machine] = pythons[f"3.{version}"] = None
    rows = ["| platform | CPU | CPython, compiled |", "|---|---|---|"]
    for system, (machines, pythons) in systems.items():
        promised = len(machines) * len(pythons)
        if promised != sum(f"-{system}_" in name for name in names):
            sys.exit(f"{system}: the table needs a wheel of every CPython for every CPU")
        rows.append(f"| {described(system)} | {', '.join(machines)} | {', '.join(pythons)} |")
    rows.append("| everything else, PyPy and Pyodide too | any | pure Python, 3.11 or later |")
    return "\n".join(rows) + "\n\n"


def main():
    names = []
    for platform in PLATFORMS:
        found = identifiers(platform)
        print(f"{platform}: {' '.join(found)}")
        names += found
    text = README.read_text()
    if sys.argv[1:] == ["--write"]:
        README.write_text(TABLE.sub(lambda _: table(names), text))
    elif TABLE.search(text)[0] != table(names):
        sys.exit(
            "README.md lists other wheels; run `python .ci/platforms.py --write` to correct it"
        )


if __name__ == "__main__":
    main()
