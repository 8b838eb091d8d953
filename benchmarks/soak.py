"""Load runners for an hour, and compare their CPU and memory at the end with the tenth minute.

    python -m benchmarks.soak [--seconds N] [--results FOLDER]

Two runners take turns with a mixed load: one has a single job in flight, the other 64. Results have
several sizes. Some jobs fail, ask for a retry, time out or are cancelled, and some connections are
reset while jobs run. Each sample has a runner's jobs per CPU second and its RSS. Linux only.

Other load on the machine changes the number of jobs per CPU second. So two more runners get the same
load for the first sixth of the time, and then rest. At the end, for a twentieth of the time, they take
turns with the runners that were loaded throughout. Exit with 1 if RSS differs from the tenth minute,
or if these two pairs of runners differ in jobs per CPU second, by more than 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib.pyplot as plt

from rrq_fastwire import OutcomeType
from rrq_fastwire.cli.runner_process import RunnerProcess, runner_process
from rrq_fastwire.client import RunnerClient

from .report import GREY, OTHERS, OURS, save
from .runners import memory_mib

MOST = 0.02  # the difference that is allowed
MOST_LATE = 0.001  # the share of answers that may come more than a second after the job's deadline
SAMPLES = 60
ROUNDS = 5  # in a turn, at the end
RESET_EVERY = 16  # rounds

# The runners, by name, and how many jobs each has in flight.
IN_FLIGHT = {"1 in flight": 1, "64 in flight": 64}


# The load

# Function, characters of the value, how often in a round, and how the job ends.
MIX = [
    ("echo", 50, 20, OutcomeType.SUCCESS),
    ("pause", 50, 16, OutcomeType.SUCCESS),
    ("echo", 2000, 8, OutcomeType.SUCCESS),
    ("pause", 2000, 4, OutcomeType.SUCCESS),
    ("echo", 100_000, 1, OutcomeType.SUCCESS),
    ("give_decimals", 0, 2, OutcomeType.SUCCESS),
    ("fail", 50, 4, OutcomeType.FAILURE),
    ("retry", 0, 3, OutcomeType.RETRY_AFTER),
    ("missing", 0, 1, OutcomeType.HANDLER_NOT_FOUND),
    ("wait", 0, 1, OutcomeType.TIMEOUT),
    ("wait", 0, 4, OutcomeType.CANCELLED),
]
# A round, in the same order in every run.
JOBS = [(name, size, end) for name, size, times, end in MIX for _ in range(times)]
random.Random(1).shuffle(JOBS)


class Load:
    """The load of one runner.

    Attributes:
        jobs: how many have ended as they should.
        late: how many of them were answered more than a second after their deadline, because the
            machine was busy.
    """

    def __init__(self, runner: RunnerProcess, in_flight: int) -> None:
        self.jobs = self.late = 0
        self._runner = runner
        self._client = runner.client
        self._in_flight = in_flight
        self._rounds = 0

    async def round(self) -> None:
        """Runs each of JOBS once. Raises RuntimeError if one ends otherwise than it should."""
        for first in range(0, len(JOBS), self._in_flight):
            await asyncio.gather(*map(self._job, JOBS[first : first + self._in_flight]))
        self._rounds += 1
        if self._rounds % RESET_EVERY == 0:
            await self._reset()

    async def _job(self, job: tuple[str, int, OutcomeType]) -> None:
        name, size, end = job
        id = f"job {self.jobs} {name}"
        timeout = 0.01 if end is OutcomeType.TIMEOUT else 600.0
        answer = asyncio.ensure_future(
            self._client.execute(name, {"value": "x" * size}, job_id=id, timeout=timeout)
        )
        if end is OutcomeType.CANCELLED:
            await asyncio.sleep(0)  # until it is sent
            await self._client.cancel(id)
        try:
            outcome = await answer
        except TimeoutError:
            self.late += 1  # the client gives a job up a second after its deadline
        else:
            if outcome.type is not end:
                raise RuntimeError(f"{name} ended as {outcome}")
        self.jobs += 1

    async def _reset(self) -> None:
        """Resets the connection while jobs run, and opens another."""
        lost = [asyncio.ensure_future(self._client.execute("wait")) for _ in range(16)]
        await self._client.execute("echo", {"value": None})
        self._client.stream.abort()
        for answer in await asyncio.gather(*lost, return_exceptions=True):
            assert isinstance(answer, ConnectionError), answer
        self._client = await RunnerClient.connect("127.0.0.1", self._runner.port)

    def account(self) -> tuple[int, float]:
        """How many jobs have ended so far, and the seconds of CPU that the runner has used."""
        seconds = self._runner.cpu_seconds()
        assert seconds is not None, "the kernel keeps no account of a process's CPU time here"
        return self.jobs, seconds

    def mib(self) -> float:
        """The resident memory of the runner."""
        return memory_mib(self._runner.pid, "VmRSS")


def per_cpu_second(before: tuple[int, float], after: tuple[int, float]) -> float:
    return (after[0] - before[0]) / (after[1] - before[1])


async def measure(seconds: float, output: BinaryIO) -> dict[str, Any]:
    """Measures the samples of each runner, and the jobs per CPU second of the turns at the end.

    Arguments:
        output: where the runners' logs go.
    """
    command = [
        sys.executable,
        "-m",
        "rrq_fastwire.runner",
        "--settings",
        "benchmarks.soak_handlers.handlers",
    ]
    async with AsyncExitStack() as stack:

        async def start() -> dict[str, Load]:
            return {
                name: Load(await stack.enter_async_context(runner_process(command, output)), number)
                for name, number in IN_FLIGHT.items()
            }

        loads, rested = await start(), await start()
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in IN_FLIGHT}
        begin = time.monotonic()
        for number in range(1, SAMPLES + 1):
            before = {name: load.account() for name, load in loads.items()}
            end = begin + seconds * number / SAMPLES
            started = time.monotonic()
            while (
                time.monotonic() < end
                or loads["1 in flight"].account()[0] == before["1 in flight"][0]
            ):
                turn = time.monotonic()
                for load in loads.values():
                    await load.round()
                if number <= SAMPLES / 6:
                    for load in rested.values():
                        await load.round()
                # Half of the time is left to others.
                await asyncio.sleep(min(time.monotonic() - turn, 0.5))
            for name, load in loads.items():
                jobs = per_cpu_second(before[name], load.account())
                at = (started + time.monotonic()) / 2 - begin
                samples[name].append({"second": at, "jobs per CPU second": jobs, "MiB": load.mib()})
            print(
                f"{number:>3}",
                *(
                    f"{name}: {each[-1]['jobs per CPU second']:.0f} jobs per CPU s, {each[-1]['MiB']:.1f} MiB;"
                    for name, each in samples.items()
                ),
                flush=True,
            )
        ages = {"the whole time": loads, "a sixth": rested}
        turns: dict[str, list[float]] = {
            f"{name}, loaded for {age}": [] for name in IN_FLIGHT for age in ages
        }
        for each in (*rested.values(), *loads.values()):
            await each.round()  # to warm up
        end = time.monotonic() + seconds / 20
        while time.monotonic() < end:
            ages = dict(reversed(ages.items()))
            for name in IN_FLIGHT:
                for age, by_name in ages.items():
                    account = by_name[name].account()
                    for _ in range(ROUNDS):
                        await by_name[name].round()
                    jobs = per_cpu_second(account, by_name[name].account())
                    turns[f"{name}, loaded for {age}"].append(jobs)
        return {
            "seconds": seconds,
            "jobs": {name: load.jobs for name, load in loads.items()},
            "late": {name: load.late for name, load in loads.items()},
            "samples": samples,
            "in turn at the end": turns,
        }


# The verdict


def compare(figures: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Gives rows: the figure's name, its value in the tenth minute and at the end, and whether it decides."""
    rows = []
    sixth = SAMPLES // 6
    for name, samples in figures["samples"].items():
        for what, decides in ("MiB", True), ("jobs per CPU second", False):
            tenth, last = (
                statistics.median(sample[what] for sample in part)
                for part in (samples[sixth - 2 : sixth + 1], samples[-3:])
            )
            rows.append((f"{name}: {what}", tenth, last, decides))
        turns = figures["in turn at the end"]
        aged, rested = (turns[f"{name}, loaded for {age}"] for age in ("the whole time", "a sixth"))
        share = statistics.median(a / b for a, b in zip(aged, rested, strict=True))
        young = statistics.median(rested)
        rows.append((f"{name}: jobs per CPU second, in turn", young, young * share, True))
    return rows


def report(figures: dict[str, Any]) -> bool:
    """Prints the comparison. Returns whether every row that decides is within its limit."""
    total = sum(figures["jobs"].values())
    print(
        f"{total:,} jobs in {figures['seconds']:.0f} s; at most {MOST:.0%} of difference is the aim"
    )
    late = sum(figures["late"].values())
    good = late <= MOST_LATE * total
    print(f"{late} answers came late{'' if good else ': too many'}")
    print(f"{'':<44}{'tenth minute':>14}{'the end':>12}{'difference':>12}")
    for what, tenth, last, decides in compare(figures):
        difference = last / tenth - 1
        short = abs(difference) > MOST
        good = good and not (short and decides)
        note = "" if not short else "  too much" if decides else "  (load of the machine included)"
        print(f"{what:<44}{tenth:>14.1f}{last:>12.1f}{difference:>+12.1%}{note}")
    return good


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Draws both figures of both runners over time, as shares of their value in the tenth minute."""
    figure, charts = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
    for axes, what in zip(charts, ("jobs per CPU second", "MiB"), strict=True):
        for (name, samples), colour in zip(figures["samples"].items(), (OTHERS, OURS), strict=True):
            sixth = samples[SAMPLES // 6 - 1][what]
            minutes = [sample["second"] / 60 for sample in samples]
            axes.plot(
                minutes, [sample[what] / sixth for sample in samples], color=colour, label=name
            )
        axes.axhspan(1 - MOST, 1 + MOST, color=GREY, alpha=0.2, linewidth=0)
        axes.set_title(f"{what}, the tenth minute's = 1; grey is within {MOST:.0%}", loc="left")
    charts[1].set_xlabel("minutes")
    figure.tight_layout(rect=(0, 0.06, 1, 1))  # leaves room for the legend
    names, _ = charts[0].get_legend_handles_labels()
    figure.legend(handles=names, frameon=False, labelcolor=GREY, ncols=2, loc="lower center")
    save(figure, path)


def main() -> int:
    """Measure, write, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--results", type=Path, default=Path("build"), metavar="FOLDER")
    options = parser.parse_args()
    with open(os.devnull, "wb") as output:
        figures = asyncio.run(measure(options.seconds, output))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(options.results / "soak.svg", figures)
    return 0 if report(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
