"""What `make bench` writes to benchmarks/results/ from what it has measured.

    python -m benchmarks.report BENCHMARK.json CHECK.json RUNNER.json ORCHESTRATOR.json

results.json has the machine, the versions and every figure; table.md the ratios; a chart a group,
one of time per byte over sizes, and memory. The charts stand on a transparent ground, in colours
that can be read on white and on black.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from rrq_fastwire import _c

from . import memory, samples

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parent.parent / "README.md"
PICTURES = Path(__file__).parent.parent / ".github" / "pictures"
GREY, OURS, OTHERS = "#7d8590", "#d9730d", "#4c8dd6"
PACKAGES = ["orjson", "msgspec", "rrq", "pydantic", "pytest-benchmark", "cython"]

# 100 B to 16 MiB in chunks of 1 B to 1 MiB; no more than so many feeds each.
FRAME_SIZES = [100, 1000, 10_000, 100_000, 1_000_000, 16 * 1024 * 1024]
CHUNK_SIZES = [1, 64, 4096, 65_536, 1024 * 1024]
STREAM_SIZE = 4 * 1024 * 1024

plt.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "rrq-fastwire",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def save(figure: Any, name: str) -> None:
    figure.savefig(
        RESULTS / f"{name}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
    )
    plt.close(figure)


def draw_bars(name: str, title: str, figures: dict[str, float]) -> None:
    """How many times the compiled twin's time each peer takes."""
    ratios = sorted(
        ((peer, seconds / figures["compiled"]) for peer, seconds in figures.items()),
        key=lambda pair: -pair[1],
    )
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(ratios) + 0.6))
    colours = [OURS if peer in ("compiled", "pure") else OTHERS for peer, _ in ratios]
    bars = axes.barh([peer for peer, _ in ratios], [ratio for _, ratio in ratios], color=colours)
    axes.bar_label(bars, [f"{ratio:.2f}" for _, ratio in ratios], padding=3, color=GREY)
    axes.set_title(f"{title}: time, compiled = 1", loc="left")
    axes.spines.bottom.set_visible(False)
    axes.set_xticks([])
    save(figure, name)


def scaling() -> dict[int, dict[int, float]]:
    """Seconds per byte by chunk size and frame size, the least of three."""
    table: dict[int, dict[int, float]] = {}
    for chunk_size in CHUNK_SIZES:
        for frame_size in FRAME_SIZES:
            frame = _c.pack_frame(bytes(frame_size))
            # A byte a feed is measured on fewer bytes: a feed has its price.
            length = 200_000 if chunk_size == 1 else STREAM_SIZE
            stream = frame * max(1, length // len(frame))
            if chunk_size == 1:
                stream = stream[: 2 * length]
            chunks = samples.chunks(stream, chunk_size)
            best = min(one_pass(chunks) for _ in range(3))
            table.setdefault(chunk_size, {})[frame_size] = best / len(stream)
    return table


def one_pass(chunks: list[bytes]) -> float:
    decoder = _c.FrameDecoder()
    start = time.perf_counter()
    for chunk in chunks:
        for _ in decoder.feed(chunk):
            pass
    return time.perf_counter() - start


def draw_scaling(table: dict[int, dict[int, float]]) -> None:
    """Each line relative to its own first point: flat is linear."""
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for chunk_size, row in table.items():
        first = next(iter(row.values()))
        axes.plot(
            list(row), [value / first for value in row.values()], "o-", label=f"{chunk_size} B"
        )
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_xlabel("bytes of the frame")
    axes.set_title("time per byte, frames of 100 B = 1, by size of the chunks", loc="left")
    axes.legend(frameon=False, labelcolor=GREY)
    save(figure, "scaling")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The ratios that were checked, as a table."""
    lines = ["| operation | peer | our time, peer = 1 |", "|---|---|---|"]
    lines += [f"| {row['operation']} | {row['peer']} | {row['ratio']:.2f} |" for row in rows]
    return "\n".join(lines) + "\n"


def runner_markdown(figures: dict[str, dict[str, float]]) -> str:
    """CPU a job, as fractions of the first runner's."""
    stock, *others = next(iter(figures.values()))
    lines = [f"| CPU of the runner a job | {' | '.join([stock, *others])} |", "|---" * 4 + "|"]
    lines += [
        f"| {case} | 1 | {' | '.join(f'1/{row[stock] / row[name]:.1f}' for name in others)} |"
        for case, row in figures.items()
    ]
    return "\n".join(lines) + "\n"


def draw_runners(figures: dict[str, dict[str, float]]) -> None:
    """A group of bars a case: the CPU of each runner, the first = 1."""
    figure, axes = plt.subplots(figsize=(7, 0.9 * len(figures) + 0.6))
    stock, *others = next(iter(figures.values()))
    for at, (name, colour) in enumerate(
        zip([stock, *others], (OTHERS, OURS, "#f0a860"), strict=True)
    ):
        shares = [row[name] / row[stock] for row in figures.values()]
        places = [group + 0.27 * (1 - at) for group in reversed(range(len(figures)))]
        bars = axes.barh(places, shares, height=0.25, color=colour, label=name)
        labels = ["1" if at == 0 else f"1/{1 / share:.1f}" for share in shares]
        axes.bar_label(bars, labels, padding=3, color=GREY)
    axes.set_yticks(list(reversed(range(len(figures)))), list(figures))
    axes.set_title("CPU of the runner a job, rrq-runner = 1", loc="left")
    axes.legend(frameon=False, labelcolor=GREY, loc="lower right", bbox_to_anchor=(1, 1))
    axes.spines.bottom.set_visible(False)
    axes.set_xticks([])
    save(figure, "runner")


def put_into_readme(mark: str, text: str) -> None:
    """README.md shows what was measured last, between two marks."""
    head, begin, rest = README.read_text().partition(f"<!-- {mark} -->\n")
    _, end, tail = rest.partition(f"<!-- end of {mark} -->\n")
    README.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def main() -> None:
    """Reads, measures what nobody else does, and writes."""
    timed, checked, direct, whole = (json.loads(Path(name).read_text()) for name in sys.argv[1:5])
    RESULTS.mkdir(exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    groups: dict[str, dict[str, float]] = {}
    for each in timed["benchmarks"]:
        groups.setdefault(each["group"], {})[each["params"]["peer"]] = each["stats"]["min"]
    for title, figures in groups.items():
        draw_bars(title.replace(" ", "-"), title, figures)
    scales = scaling()
    draw_scaling(scales)
    runners = direct | whole
    draw_runners(runners)
    table, runner_table = markdown(checked), runner_markdown(runners)
    (RESULTS / "table.md").write_text(f"{runner_table}\n{table}")
    results = {
        "machine": timed["machine_info"]["cpu"].get("brand_raw", timed["machine_info"]["machine"]),
        "python": timed["machine_info"]["python_version"],
        "packages": {name: version(name) for name in PACKAGES},
        "runner_cpu_microseconds": runners,
        "checked": checked,
        "minimum_seconds": groups,
        "seconds_per_byte": scales,
        "bytes_held": memory.measure(),
    }
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    versions = ", ".join(f"{name} {text}" for name, text in results["packages"].items())
    made_on = f"{results['machine']}, CPython {results['python']}, {versions}."
    put_into_readme("runner", f"{runner_table}\n{made_on}\n")
    put_into_readme("codec", table)
    for name in ("runner", "decode-request-100B"):
        (PICTURES / f"{name}.svg").write_bytes((RESULTS / f"{name}.svg").read_bytes())
    print(runner_table, table, sep="\n")


if __name__ == "__main__":
    main()
