"""Run one harness under Atheris: `python -m tests.fuzz.run HARNESS [LIBFUZZER-ARGUMENT ...]`.

The harness is a module of this package with the functions seeds() and check(). The seeds are
written to the first folder among the arguments, which is libFuzzer's corpus.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import atheris


def main(name: str, *arguments: str) -> None:
    with atheris.instrument_imports(include=["rrq_fastwire"]):
        harness = importlib.import_module(f".{name}", __package__)
    corpus = next((Path(each) for each in arguments if not each.startswith("-")), None)
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in harness.seeds():
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    atheris.Setup([f"{__package__}.{name}", *arguments], harness.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
