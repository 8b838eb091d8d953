"""Change modules in small ways, and list the changes that no test notices.

    python .ci/mutation.py MODULE.py ... [--tests FILE ...] [--seconds N]

mutmut makes the changes, the mutants. Each runs in a process that is forked after pytest has
collected the tests, because collecting takes longer than most tests.

A first run records which tests call which functions, also in the processes that they start. A
mutant gets only the tests that call its function, those that take the least time first. It is
killed if one of them fails or does not end. Exits with 1 if a mutant survives or is not called.

Mutants of code that runs only at import survive, because it has run before the fork, unless a test
starts a process. Tests that fail in the first run are left out, and printed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.utils.format_utils import get_mutant_name, mangled_name_from_mutant_name

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutation"
CALLS = COPY / "calls"

# Tests that count steps, read stacks or look at the names of modules, all of which mutmut changes.
LEFT_OUT = "linear or cost or its_lines or context_variable"

# Python imports this in each process. MUTATION_CALLS is set in the first run only. pytest sets
# PYTEST_CURRENT_TEST, and the processes that a test starts inherit it.
RECORDER = """\
import os
if "MUTATION_CALLS" in os.environ:
    from mutmut.mutation import trampoline

    seen = set()
    calls = os.open(os.environ["MUTATION_CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(name, caller=None):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        if (test, name) not in seen:
            seen.add((test, name))
            os.write(calls, f"{name}\\t{test}\\n".encode())

    trampoline.record_trampoline_hit = record
"""


class Mutation:
    """A plugin of pytest that runs the collected tests for each mutant.

    Arguments:
        diffs: how each mutant differs from the original, by its name.
        seconds: how long the tests of a mutant may take together.

    Attributes:
        ends: how many mutants were killed, did not end, survived or were not called.
    """

    def __init__(self, diffs: dict[str, str], seconds: float) -> None:
        self.ends: Counter[str] = Counter()
        self._diffs = diffs
        self._seconds = seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = self._tests_by_function(session)
        running: dict[int, tuple[str, float]] = {}
        begun = time.monotonic()
        for mutant in self._diffs:
            chosen = tests[mangled_name_from_mutant_name(mutant)]
            if not chosen:
                self._count("not called", mutant)
                continue
            while len(running) == os.cpu_count():
                self._wait(running)
            pid = os.fork()
            if pid == 0:
                set_mutant_under_test(mutant)
                self._run([item for item, _ in chosen], session)
            most = 15 + 3 * sum(duration for _, duration in chosen)
            running[pid] = mutant, time.monotonic() + most
        while running:
            self._wait(running)
        print(f"{len(self._diffs)} mutants in {time.monotonic() - begun:.0f} s: {dict(self.ends)}")
        return True

    def _count(self, end: str, mutant: str) -> None:
        self.ends[end] += 1
        if end in ("survived", "not called"):
            print(f"{end}: {mutant}\n{self._diffs[mutant]}", flush=True)

    def _wait(self, running: dict[int, tuple[str, float]]) -> None:
        """Wait until one of the running mutants has ended."""
        while True:
            for pid, (mutant, most) in running.items():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    end = "survived" if status == 0 else "killed"
                elif time.monotonic() > most:
                    end = "did not end"
                else:
                    continue
                with suppress(ProcessLookupError):  # what the tests have started may still run
                    os.killpg(pid, signal.SIGKILL)
                if not ended:
                    os.waitpid(pid, 0)
                del running[pid]
                self._count(end, mutant)
                return
            time.sleep(0.01)

    def _tests_by_function(
        self, session: pytest.Session
    ) -> dict[str, list[tuple[pytest.Item, float]]]:
        """Run all tests; return those that call a function, the fastest first, and their durations.

        Together they take at most `seconds`, but there is at least one.
        """
        os.environ["MUTATION_CALLS"] = str(CALLS)
        os.environ["MUTANT_UNDER_TEST"] = "stats"
        results = COPY / "results"
        pid = os.fork()
        if pid == 0:
            exec(RECORDER, {})
            with results.open("w") as file:
                for item, after in zip(session.items, [*session.items[1:], None], strict=True):
                    begun, failed = time.monotonic(), session.testsfailed
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                    has_failed = session.testsfailed > failed
                    print(time.monotonic() - begun, int(has_failed), item.nodeid, file=file)
            os._exit(0)
        if os.waitpid(pid, 0)[1] != 0:
            pytest.exit("the first run has not ended", 2)
        del os.environ["MUTATION_CALLS"], os.environ["MUTANT_UNDER_TEST"]
        durations = {}
        for line in results.read_text().splitlines():
            duration, has_failed, test = line.split(" ", 2)
            if has_failed == "1":
                print(f"left out, because it fails without a mutant: {test}")
            else:
                durations[test] = float(duration)
        items = {item.nodeid: item for item in session.items}
        called = defaultdict(set)
        for line in CALLS.read_text().splitlines():
            function, _, test = line.partition("\t")
            if test in durations:
                called[function].add(test)
        chosen = defaultdict(list)
        for function, tests in called.items():
            left = self._seconds
            for test in sorted(tests, key=durations.__getitem__):
                left -= durations[test]
                if chosen[function] and left < 0:
                    break
                chosen[function].append((items[test], durations[test]))
        return chosen

    @staticmethod
    def _run(items: list[pytest.Item], session: pytest.Session) -> None:
        """Run tests until one fails, and end the process. Its status is 0 if all succeed."""
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        failed = session.testsfailed
        for item, after in zip(items, [*items[1:], None], strict=True):
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            except BaseException:
                os._exit(1)
            if session.testsfailed > failed:
                os._exit(1)
        os._exit(0)


def mutate(modules: list[str]) -> dict[str, str]:
    """Copy the repository's files, with all mutants of the modules; return the mutants' diffs."""
    shutil.rmtree(COPY, ignore_errors=True)
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "rrq_fastwire", "tests", "pyproject.toml", "README.md", "docs"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in os.fsdecode(tracked).split("\0")[:-1]:
        (COPY / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, COPY / name)
    (COPY / "sitecustomize.py").write_text(RECORDER)
    diffs = {}
    for module in modules:
        mutated = mutate_file_contents(module, (ROOT / module).read_text())
        (COPY / module).write_text(mutated.code)
        functions = {
            node.name: ast.unparse(node).partition("\n")[2].splitlines()
            for node in ast.walk(ast.parse(mutated.code))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        for name in mutated.mutant_names:
            original = functions[name.rpartition("__mutmut_")[0] + "__mutmut_orig"]
            lines = difflib.unified_diff(original, functions[name], n=0, lineterm="")
            diffs[get_mutant_name(Path(module), name)] = "\n".join(
                f"    {line}" for line in lines if not line.startswith(("---", "+++", "@@"))
            )
    return diffs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="+", metavar="MODULE.py")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files of tests")
    parser.add_argument("--seconds", type=float, default=10, help="of tests for each mutant")
    options = parser.parse_args()
    diffs = mutate(options.modules)
    os.chdir(COPY)
    os.environ |= {"PYTHONPATH": str(COPY), "RRQ_FASTWIRE_PURE": "1", "CI": "1"}
    sys.path.insert(0, str(COPY))
    plugin = Mutation(diffs, options.seconds)
    arguments = ["-q", "-m", "not hypothesis", "-k", f"not ({LEFT_OUT})", "--timeout=30"]
    arguments += ["-W", "default", "-p", "no:xdist", "-p", "no:cacheprovider", "--capture=sys"]
    status = pytest.main([*arguments, *options.tests], [plugin])
    sys.exit(status or bool(plugin.ends["survived"] + plugin.ends["not called"]))


if __name__ == "__main__":
    main()
