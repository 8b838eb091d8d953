"""Which implementation runs, and how a user sees which one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

import rrq_fastwire

HERE = os.environ.get("RRQ_FASTWIRE_PURE")


def run(*arguments, pure=HERE, before=""):
    """Runs a new interpreter. Returns its exit status, and what it prints.

    Arguments:
        pure: the value of RRQ_FASTWIRE_PURE, or None to leave it unset.
        before: code to run instead of the arguments.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RRQ_FASTWIRE_PURE"}
    if pure is not None:
        environment["RRQ_FASTWIRE_PURE"] = pure
    done = subprocess.run(
        [sys.executable, *arguments] if not before else [sys.executable, "-c", before],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# The JSON library of a new interpreter. --no-orjson affects only this interpreter.
ORJSON = "orjson" if PathFinder.find_spec("orjson") else "json"
SHOW = "import rrq_fastwire; print(rrq_fastwire.IMPLEMENTATION, rrq_fastwire.JSON_BACKEND)"
NO_C = "import sys; sys.modules['rrq_fastwire._c'] = None; "
NO_ORJSON = "import sys; sys.modules['orjson'] = None; "


@pytest.mark.parametrize(
    ("before", "pure", "printed"),
    [
        (SHOW, "1", f"python {ORJSON}"),
        (NO_C + SHOW, "1", f"python {ORJSON}"),
        (NO_ORJSON + SHOW, "1", "python json"),
        ("import sys; sys.implementation.name = 'pypy'; " + SHOW, None, f"python {ORJSON}"),
    ],
)
def test_the_pure_implementation_runs_if_it_is_chosen_or_the_only_one(before, pure, printed):
    assert run(before=before, pure=pure) == (0, printed + "\n")


on_cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="the pure implementation is the only one here"
)


@on_cpython
@pytest.mark.parametrize("pure", ["", None])
def test_a_fallback_to_the_pure_implementation_warns_once(pure):
    status, printed = run(before=NO_C + SHOW + "; import rrq_fastwire.streams", pure=pure)
    assert status == 0
    assert printed.startswith(
        f"python {ORJSON}\n<string>:1: RuntimeWarning: rrq_fastwire: compiled extension unavailable ("
    )
    assert printed.count("RuntimeWarning") == 1
    assert "RRQ_FASTWIRE_PURE=1" in printed


@on_cpython
def test_the_warning_of_the_fallback_can_be_silenced():
    silent = "import warnings; warnings.filterwarnings('ignore', 'rrq_fastwire', RuntimeWarning); "
    assert run(before=silent + NO_C + SHOW, pure=None) == (0, f"python {ORJSON}\n")


@pytest.mark.parametrize("pure", ["0", "", None])
def test_the_compiled_implementation_runs_if_it_is_built(pure):
    pytest.importorskip("rrq_fastwire._c", reason="the compiled implementation is not built here")
    assert run(before=SHOW, pure=pure) == (0, f"cython {ORJSON}\n")
    assert run(before=NO_ORJSON + SHOW, pure=pure) == (0, "cython json\n")


def test_the_compiled_implementation_can_be_demanded():
    status, printed = run(before=NO_C + SHOW, pure="0")
    assert status == 1
    last = printed.splitlines()[-1]
    reason = "RRQ_FASTWIRE_PURE is 0, but the compiled extension is unavailable: "
    assert last.startswith(f"ImportError: {reason}")


@pytest.mark.parametrize("pure", ["2", "yes", "true"])
def test_other_values_of_the_variable_are_refused(pure):
    status, printed = run(before=SHOW, pure=pure)
    assert status == 1
    assert f"RRQ_FASTWIRE_PURE must be 0, 1 or unset, got '{pure}'" in printed


def test_importing_needs_neither_rrq_nor_asyncio():
    code = (
        "import sys; sys.modules['rrq'] = None; import rrq_fastwire; "
        "print([name for name in ('asyncio', 'rrq.protocol', 'argparse', 'typing') if name in sys.modules])"
    )
    assert run(before=code) == (0, "[]\n")


def test_info_prints_the_implementation_and_versions():
    status, printed = run("-m", "rrq_fastwire", "info", pure="1")
    facts = dict(
        line.split(maxsplit=1)
        for line in printed.replace("JSON backend", "JSON-backend").splitlines()
    )
    assert status == 0
    assert facts["rrq-fastwire"] == rrq_fastwire.__version__
    assert facts["implementation"] == "python"
    assert facts["JSON-backend"].split()[0] == ORJSON
    assert facts["Python"].endswith(sys.version.split()[0])
    assert set(facts) == {"rrq-fastwire", "implementation", "JSON-backend", "Python", "platform"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["nonsense"], ["info", "extra"]])
def test_the_help_or_the_error_of_a_command_line_names_the_program(arguments):
    pytest.importorskip("click", reason="the command line is an extra")
    status, printed = run("-m", "rrq_fastwire", *arguments)
    assert status == (0 if arguments == ["--help"] else 2)
    assert "rrq-fastwire" in printed
    assert "Traceback" not in printed


VERSION = f"rrq-fastwire {rrq_fastwire.__version__}\n"


def test_the_version_is_printed():
    pytest.importorskip("click", reason="the command line is an extra")
    assert run("-m", "rrq_fastwire", "--version") == (0, VERSION)


@pytest.mark.parametrize("missing", ["click", "rich"])
@pytest.mark.parametrize(
    ("arguments", "printed"), [("['--version']", VERSION), ("['info']", "implementation")]
)
def test_version_and_info_need_no_extra(missing, arguments, printed):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; "
        f"from rrq_fastwire.cli import main; sys.exit(main({arguments}))"
    )
    status, shown = run(before=code)
    assert status == 0
    assert printed in shown
