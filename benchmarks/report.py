"""Write the tables and draw the charts of what `make bench` has measured.

    python -m benchmarks.report [--codec BENCHMARK.json CHECK.json] [--runners FILE ...]

Without options, the figures are those in results/results.json. The options first store new figures
there, with the machine and the versions: `--codec` those of the codec, and `--runners` those of the
runners, from one file per interpreter.

All tables and charts are made from results.json alone, so that they agree. They are
results/table.md, a chart per group of benchmarks, the two charts of the README, and the tables in
the README and in docs/explanation/benchmarks.md. The charts have a transparent background, and
colours that can be read on white and on black.
"""

from __future__ import annotations

import argparse
import json
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
PAGE = README.parent / "docs" / "explanation" / "benchmarks.md"
PICTURES = Path(__file__).parent.parent / ".github" / "pictures"
GREY, OURS, OURS_TOO, OTHERS = "#7d8590", "#d9730d", "#f0a860", "#4c8dd6"
PACKAGES = ["orjson", "msgspec", "rrq", "pydantic", "pytest-benchmark", "cython"]
COLOURS = (OTHERS, OURS, OURS_TOO, GREY)

# Names of implementations and runners in results.json, and their names in tables and charts.
LABELS = {
    "compiled": "rrq-fastwire",
    "pure": "rrq-fastwire, pure Python",
    "--native-messages": "with --native-messages",
    "--loop uvloop": "with --loop uvloop",
}

# The figures of the whole system, for each deployment.
WHOLE = ["jobs per second", "median latency", "99th percentile of the latency"]

# Frames of 100 B to 16 MiB, in chunks of 1 B to 1 MiB.
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


def collect(timed: Any, checked: Any) -> dict[str, Any]:
    """All figures of the codec, with the machine and the versions.

    Arguments:
        timed: what pytest-benchmark has written.
        checked: what `benchmarks.check` has written. Scaling and memory are measured here.
    """
    groups: dict[str, dict[str, float]] = {}
    for each in timed["benchmarks"]:
        groups.setdefault(each["group"], {})[each["params"]["peer"]] = each["stats"]["min"]
    return {
        "machine": timed["machine_info"]["cpu"].get("brand_raw", timed["machine_info"]["machine"]),
        "python": timed["machine_info"]["python_version"],
        "packages": {name: version(name) for name in PACKAGES},
        "checked": checked,
        "minimum_seconds": groups,
        "seconds_per_byte": scaling(),
        "bytes_held": memory.measure(),
    }


def scaling() -> dict[int, dict[int, float]]:
    """Measures seconds per byte, by chunk size and frame size: the minimum of three passes."""
    table: dict[int, dict[int, float]] = {}
    for chunk_size in CHUNK_SIZES:
        for frame_size in FRAME_SIZES:
            frame = _c.pack_frame(bytes(frame_size))
            # Every chunk costs a call. So the stream is shorter if each byte is a chunk.
            length = 200_000 if chunk_size == 1 else STREAM_SIZE
            stream = frame * max(1, length // len(frame))
            if chunk_size == 1:
                stream = stream[: 2 * length]
            chunks = samples.chunks(stream, chunk_size)
            best = min(one_pass(chunks) for _ in range(3))
            table.setdefault(chunk_size, {})[frame_size] = best / len(stream)
    return table


def one_pass(chunks: list[bytes]) -> float:
    """The seconds that a decoder takes for a stream."""
    decoder = _c.FrameDecoder()
    start = time.perf_counter()
    for chunk in chunks:
        for _ in decoder.feed(chunk):
            pass
    return time.perf_counter() - start


# Texts


def label(name: str) -> str:
    """The name of an implementation or runner for readers."""
    return LABELS.get(name, name)


def comparison(ratio: float) -> str:
    """A ratio of times in words: "6.5 times less", "1.2 times more" or "about the same"."""
    if 0.95 < ratio < 1.05:
        return "about the same"
    factor = max(ratio, 1 / ratio)
    digits = f"{factor:.1f}" if factor < 9.95 else f"{factor:.0f}"
    return f"{digits} times {'less' if ratio < 1 else 'more'}"


def duration(seconds: float) -> str:
    """A time in s, ms, µs or ns, with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


# Tables


def codec_table(rows: list[dict[str, Any]]) -> str:
    """The ratios of `benchmarks.check` in Markdown."""
    lines = ["| operation | compared with | time |", "|---|---|---|"]
    lines += [
        f"| {row['operation']} | {row['peer']} | {comparison(row['ratio'])} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def short(python: str) -> str:
    """The first two parts of a version of Python, such as 3.11."""
    return ".".join(python.split(".")[:2])


def cpu_figures(runners: dict[str, Any], python: str) -> dict[str, dict[str, float]]:
    """Seconds of CPU per job by case and runner, in the order of the tables."""
    figures = runners[python]
    orchestrated = {
        f"under the orchestrator, {deployment}": {
            name: row["CPU per job"] / 1e6 for name, row in rows.items()
        }
        for deployment, rows in figures["under the orchestrator"].items()
    }
    direct = {
        f"one connection, {case}": {name: figure / 1e6 for name, figure in row.items()}
        for case, row in figures["one connection"].items()
    }
    return orchestrated | direct


def versions_side_by_side(tables: dict[str, Any], first_head: str, format_row: Any) -> str:
    """A table in Markdown with a row per subject and version of Python.

    Arguments:
        tables: figures by version of Python, subject and runner.
        format_row: a function of the subject and its figures, which gives the cells of a row.
    """
    names = next(iter(next(iter(tables.values())).values()))
    heads = [first_head, "CPython", *map(label, names)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for subject in next(iter(tables.values())):
        for at, (python, table) in enumerate(tables.items()):
            cells = ["" if at else subject, short(python), *format_row(subject, table[subject])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cpu_table(runners: dict[str, Any]) -> str:
    """The CPU per job: the time of the first runner, and the others compared with it."""

    def cells(_: str, row: dict[str, float]) -> list[str]:
        stock, *others = row.values()
        return [duration(stock), *(comparison(other / stock) for other in others)]

    tables = {python: cpu_figures(runners, python) for python in runners}
    return versions_side_by_side(tables, "CPU of the runner per job", cells)


def whole_table(runners: dict[str, Any]) -> str:
    """Jobs per second, latency, time to start and memory, as measured."""

    def rows(figures: Any) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for deployment, by_runner in figures["under the orchestrator"].items():
            for subject in WHOLE:
                found[f"{subject}: {deployment}"] = {
                    name: row[subject] for name, row in by_runner.items()
                }
        return found | figures["process"]

    def cells(subject: str, row: dict[str, float]) -> list[str]:
        if "latency" in subject or "seconds" in subject:
            return [duration(figure) for figure in row.values()]
        unit = "" if "per second" in subject else " MiB"
        return [f"{figure:,.0f}{unit}" for figure in row.values()]

    tables = {python: rows(figures) for python, figures in runners.items()}
    return versions_side_by_side(tables, "the whole system, and the process", cells)


# Charts


def save(figure: Any, path: Path) -> None:
    """Write a chart as SVG. Without the date, the same figures give the same bytes."""
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def hide_scale(axes: Any) -> None:
    axes.spines.bottom.set_visible(False)
    axes.set_xticks([])


def draw_group(path: Path, title: str, figures: dict[str, float]) -> None:
    """The time of each peer, compared with that of the compiled implementation."""
    ours = figures["compiled"]
    peers = sorted(figures.items(), key=lambda pair: -pair[1])
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(peers) + 0.6))
    colours = [OURS if peer in ("compiled", "pure") else OTHERS for peer, _ in peers]
    bars = axes.barh(
        [label(peer) for peer, _ in peers], [t / ours for _, t in peers], color=colours
    )
    words = [duration(t) if peer == "compiled" else comparison(t / ours) for peer, t in peers]
    axes.bar_label(bars, words, padding=3, color=GREY)
    axes.set_title(f"{title}: time, lower is better", loc="left")
    hide_scale(axes)
    save(figure, path)


def draw_codec(path: Path, rows: list[dict[str, Any]]) -> None:
    """The ratios of the compiled codec, with a line at 1."""
    rows = [row for row in reversed(rows) if ":" not in row["operation"]]
    figure, axes = plt.subplots(figsize=(5, 0.3 * len(rows) + 0.6))
    places = range(len(rows))
    axes.barh(places, [row["ratio"] for row in rows], height=0.6, color=OURS)
    axes.set_yticks(places, [f"{row['operation']}, vs {row['peer']}" for row in rows])
    for place, row in zip(places, rows, strict=True):
        axes.text(
            1.02,
            place,
            comparison(row["ratio"]),
            transform=axes.get_yaxis_transform(),
            verticalalignment="center",
        )
    axes.axvline(1, color=OTHERS, linewidth=2)
    axes.set_title("time, lower is better; the blue line is what it is compared with", loc="right")
    hide_scale(axes)
    save(figure, path)


def draw_runners(path: Path, figures: dict[str, dict[str, float]]) -> None:
    """A group of bars per case: the CPU per job of each runner, relative to the first runner."""
    figure, axes = plt.subplots(figsize=(7, 1.1 * len(figures) + 0.6))
    stock, *others = next(iter(figures.values()))
    for at, (name, colour) in enumerate(zip([stock, *others], COLOURS, strict=True)):
        shares = [row[name] / row[stock] for row in figures.values()]
        places = [group + 0.22 * (1.5 - at) for group in reversed(range(len(figures)))]
        bars = axes.barh(places, shares, height=0.2, color=colour, label=label(name))
        words = (
            [duration(row[name]) for row in figures.values()]
            if name == stock
            else map(comparison, shares)
        )
        axes.bar_label(bars, list(words), padding=3, color=GREY)
    axes.set_yticks(list(reversed(range(len(figures)))), list(figures))
    axes.set_title("CPU of the runner per job, lower is better", loc="left", pad=28)
    axes.legend(
        frameon=False, labelcolor=GREY, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1)
    )
    hide_scale(axes)
    save(figure, path)


def draw_scaling(path: Path, table: dict[str, dict[str, float]]) -> None:
    """Time per byte by the size of the frames, with a line per size of the chunks.

    The line rises at 16 MiB: such a frame needs new memory from the operating system, and this
    takes longer than all other work.
    """
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for chunk_size, row in table.items():
        sizes = [int(size) for size in row]
        nanoseconds = [seconds * 1e9 for seconds in row.values()]
        axes.plot(sizes, nanoseconds, "o-", label=f"chunks of {int(chunk_size):,} B")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of each frame (at 16 MiB, most of the time goes into fresh memory)")
    axes.set_ylabel("ns per byte")
    axes.set_title("Time to split a stream: a flat line is linear, lower is better", loc="left")
    axes.legend(frameon=False, labelcolor=GREY, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def put_into(page: Path, mark: str, text: str) -> None:
    """Replace the text between the comments `mark` and `end of mark` in a page."""
    head, begin, rest = page.read_text().partition(f"<!-- {mark} -->\n")
    _, end, tail = rest.partition(f"<!-- end of {mark} -->\n")
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def draw(results: dict[str, Any]) -> None:
    """Write every table and chart."""
    PICTURES.mkdir(exist_ok=True)
    for title, figures in results["minimum_seconds"].items():
        draw_group(RESULTS / f"{title.replace(' ', '-')}.svg", title, figures)
    draw_scaling(RESULTS / "scaling.svg", results["seconds_per_byte"])
    draw_codec(PICTURES / "codec.svg", results["checked"])
    runners = results["runners"]
    draw_runners(PICTURES / "runner.svg", cpu_figures(runners, next(iter(runners))))
    cpu, whole, codec = cpu_table(runners), whole_table(runners), codec_table(results["checked"])
    on = "; ".join(made_with(figures["versions"]) for figures in runners.values())
    (RESULTS / "table.md").write_text(f"{cpu}\n{whole}\n{codec}")
    put_into(README, "runner", f"{cpu}\n{results['machine']}. {on}.\n")
    put_into(PAGE, "system", whole)
    versions = f"CPython {results['python']}, {listed(results['packages'])}.\n"
    put_into(PAGE, "codec", f"{codec}\n{versions}")
    print(cpu, whole, codec, sep="\n")


def made_with(versions: dict[str, str]) -> str:
    """The versions of CPython and of the packages, as a sentence without its full stop."""
    return f"CPython {versions['python']} with " + listed(
        {name: text for name, text in versions.items() if name != "python"}
    )


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items())


def main() -> None:
    """Store the figures of the given files, and write every table and chart."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--codec", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--runners", nargs="+", type=Path, metavar="FILE")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / "results.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    if options.codec:
        results |= collect(*(json.loads(path.read_text()) for path in options.codec))
    if options.runners:
        files = [json.loads(path.read_text()) for path in options.runners]
        results["runners"] = {figures["versions"]["python"]: figures for figures in files}
    if options.codec or options.runners:
        stored.write_text(json.dumps(results, indent=1) + "\n")
    draw(results)


if __name__ == "__main__":
    main()
