"""The harnesses of `make fuzz` accept the seeds with which fuzzing starts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

HARNESSES = sorted(
    path.stem
    for path in Path(__file__).with_name("fuzz").glob("*.py")
    if path.stem not in ("choices", "oracles", "run")
)


@pytest.mark.parametrize("name", HARNESSES)
def test_harness_accepts_its_seeds(name):
    harness = importlib.import_module(f".fuzz.{name}", __package__)
    seeds = list(harness.seeds())
    assert len(seeds) > 2
    for seed in seeds:
        harness.check(seed)
        harness.check(seed[: len(seed) // 2])


def test_dictionary_has_one_quoted_word_per_line():
    words = Path(__file__).with_name("fuzz").joinpath("wire.dict").read_text().splitlines()
    assert all(line.startswith("#") or line[0] == line[-1] == '"' for line in words)
