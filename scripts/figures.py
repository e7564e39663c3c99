"""Draw the figures of the study as PNG and PDF: python scripts/figures.py [NAME...] (default: all)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from xor_study import figures
from xor_study.conformance import floats

ROOT = Path(__file__).resolve().parents[1]
RESULTS, AXON = ROOT / "results", ROOT / "tests/data/axon"


def mechanism() -> tuple[Figure, Path]:
    """Three defects in a chain: loss curves, outcomes of the repairs, the last steps of a run."""
    folder = RESULTS / "mechanism"
    curves, cells, anatomy = (pd.read_csv(folder / f"{name}.csv") for name in ("curves", "cells", "anatomy"))
    traces = []
    for path in sorted(AXON.glob("trace_*.json")):
        trace = json.loads(path.read_text())
        for variant, lr in (("sgd_0_01", 0.01), ("sgd_0_1", 0.1)):
            run = trace["runs"][variant]
            last = run["first_step_with_nonfinite_params"] or trace["steps"]
            traces.append((trace["label"], lr, floats(run["loss_batch"])[:last]))
    return figures.mechanism(curves, cells, anatomy, traces), folder / "mechanism"


FIGURES: dict[str, Callable[[], tuple[Figure, Path]]] = {"mechanism": mechanism}


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            parser.error(f"unknown figure {name} (known: {', '.join(FIGURES)})")
    for name in names:
        try:
            figure, stem = FIGURES[name]()
        except OSError as error:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        for path in figures.save(figure, stem):
            print(path)


if __name__ == "__main__":
    main()
