"""The comparison of benchmarks/soak.py, with a run of one second."""

from __future__ import annotations

import asyncio
import copy
import os

import pytest

from . import soak


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="needs Linux's /proc")
def test_a_short_run_is_compared_and_a_difference_is_found(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(soak, "SAMPLES", 12)
    monkeypatch.setattr(soak, "MOST", 9.0)
    with open(os.devnull, "wb") as output:
        figures = asyncio.run(soak.measure(1.0, output))
    assert {name: len(samples) for name, samples in figures["samples"].items()} == {
        "1 in flight": 12,
        "64 in flight": 12,
    }
    assert soak.report(figures)
    soak.draw(tmp_path / "soak.svg", figures)
    assert "jobs per CPU second" in (tmp_path / "soak.svg").read_text()

    late = copy.deepcopy(figures)
    late["late"]["64 in flight"] = 1 + sum(figures["jobs"].values()) // 100
    assert not soak.report(late)
    assert ": too many" in capfd.readouterr().out

    grown = copy.deepcopy(figures)
    for sample in grown["samples"]["1 in flight"][-3:]:
        sample["MiB"] *= 100
    assert not soak.report(grown)
    assert "1 in flight: MiB" in next(
        line for line in capfd.readouterr().out.splitlines() if "too much" in line
    )
