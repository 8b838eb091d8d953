"""Sub-interpreters: the pure implementation runs there; the compiled one raises ImportError."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

CODEC = textwrap.dedent(
    """
    import warnings
    warnings.simplefilter("ignore", RuntimeWarning)
    try:
        import rrq_fastwire as wire
        message = wire.ExecutionOutcome.success("j", "r", {"a": [1]})
        frame = wire.encode_frame(message)
        decoded = [*wire.MessageDecoder().feed(frame * 3), wire.decode_frame(frame)]
        print(wire.IMPLEMENTATION, decoded == [message] * 4, flush=True)
    except ImportError as error:
        print("ImportError", "interpreter" in str(error).lower(), flush=True)
    """
)

ISOLATED = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
execute = getattr(interpreters, "exec", None) or interpreters.run_string
def start(code):
    id = interpreters.create()
    execute(id, code)
    interpreters.destroy(id)
"""
# orjson crashes in several interpreters of one GIL since CPython 3.13.
SHARED = "from _testcapi import run_in_subinterp as start"


@pytest.mark.parametrize("kind", ["isolated", "shared"])
@pytest.mark.parametrize("pure", ["", "0", "1"], ids=["best", "compiled", "pure"])
def test_a_subinterpreter_runs_the_pure_implementation_or_raises_import_error(kind, pure):
    if pure == "0" and importlib.util.find_spec("rrq_fastwire._c.codec") is None:
        pytest.skip("the compiled implementation is not built here")
    wanted = ("_testcapi",) if kind == "shared" else ("_interpreters", "_xxsubinterpreters")
    if not any(map(importlib.util.find_spec, wanted)):
        pytest.skip(f"this interpreter has none of {', '.join(wanted)}")
    setup = f"import sys; sys.path[:] = {sys.path!r}"
    if kind == "shared":
        setup += "; sys.modules['orjson'] = None"
    code = f"{setup}{CODEC}\n{SHARED if kind == 'shared' else ISOLATED}\n"
    code += f"for _ in range(3):\n    start({setup + CODEC!r})\n{CODEC}"
    environment = {**os.environ, "RRQ_FASTWIRE_PURE": pure}
    if not pure:
        del environment["RRQ_FASTWIRE_PURE"]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    main, *subs, again = done.stdout.splitlines()
    assert main == again
    assert main in ("cython True", "python True")
    assert len(subs) == 3
    assert set(subs) == {"ImportError True" if pure == "0" else "python True"}
