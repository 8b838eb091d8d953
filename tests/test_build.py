"""The wheels that pip builds, and what it prints, with and without a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

if not (ROOT / "setup.py").exists():
    pytest.skip(
        "needs the sources of the package, which are not beside these tests",
        allow_module_level=True,
    )
for builder in ("Cython", "setuptools"):
    pytest.importorskip(builder, reason="builds the package")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def translated(tmp_path_factory):
    """A copy of the sources: the files of a clone, with changes that are not committed yet.

    To save time, they are translated to C here, once, and the compiler is told not to optimize.
    """
    folder = tmp_path_factory.mktemp("translated") / "sources"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists() and not name.startswith("tests/"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    setup = (folder / "setup.py").read_text()
    assert "-O3" in setup
    (folder / "setup.py").write_text(setup.replace("-O3", "-O0"))
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--version"],
        cwd=folder,
        env={**os.environ, "RRQ_FASTWIRE_PURE": "0"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert len(list(folder.glob("build/cython/**/*.c"))) == 3
    return folder


@pytest.fixture
def sources(translated, tmp_path):
    return shutil.copytree(translated, tmp_path / "sources")


def build(sources, pure, **environment):
    """Builds a wheel. Returns the exit status and the output of pip, and the wheels.

    Arguments:
        pure: the value of RRQ_FASTWIRE_PURE, or None to leave it unset.
        environment: other environment variables.
    """
    environment = {
        key: value for key, value in os.environ.items() if key != "RRQ_FASTWIRE_PURE"
    } | environment
    if pure is not None:
        environment["RRQ_FASTWIRE_PURE"] = pure
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", sources.parent, sources],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, list(sources.parent.glob("*.whl"))


@pytest.fixture
def no_compiler(tmp_path):
    """Environment variables with which no C compiler is found."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "CC": "no-such-compiler"}


def test_without_a_compiler_the_wheel_is_pure_and_its_name_says_so(sources, no_compiler):
    status, printed, (wheel,) = build(sources, None, **no_compiler)
    assert status == 0, printed
    assert wheel.name.endswith("-0_WITHOUT_compiled_extension-py3-none-any.whl")
    assert [line for line in printed.splitlines() if wheel.name in line]
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".c"))]
        assert "rrq_fastwire/messages.py" in archive.namelist()


def test_without_a_compiler_a_demanded_extension_is_an_error(sources, no_compiler):
    status, printed, wheels = build(sources, "0", **no_compiler)
    assert (status, wheels) == (1, [])
    assert "no-such-compiler" in printed


def test_a_pure_wheel_is_built_if_it_is_chosen(sources, no_compiler):
    status, printed, (wheel,) = build(sources, "1", **no_compiler)
    assert status == 0, printed
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "WITHOUT" not in printed


def test_a_native_wheel_has_the_compiled_extensions_without_debug_information(translated, sources):
    status, printed, (wheel,) = build(sources, "0")
    assert status == 0, printed
    with zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
        assert sorted(name.partition(".")[0] for name in native) == [
            "rrq_fastwire/_c/codec",
            "rrq_fastwire/_c/frames",
            "rrq_fastwire/_c/generic",
        ]
        for name in native:
            for folder in (translated, sources):
                assert str(folder).encode() not in archive.read(name)
            assert b".debug_info" not in archive.read(name)


def test_an_editable_install_prints_no_advice_about_imports(sources, tmp_path):
    code = (
        "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=sources,
        env={**os.environ, "RRQ_FASTWIRE_PURE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Please be careful" not in done.stdout + done.stderr


@pytest.mark.parametrize("choice", ["2", "yes"])
def test_other_values_of_the_variable_are_refused(sources, choice):
    status, printed, _ = build(sources, choice)
    assert status == 1
    assert f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got '{choice}'" in printed


def test_a_compiler_that_fails_half_way_leaves_no_native_module(sources, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *codec.c*) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    status, printed, (wheel,) = build(sources, None, CC=str(compiler))
    assert status == 0, printed
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
