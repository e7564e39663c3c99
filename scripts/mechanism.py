"""Sum up a mechanism study: python scripts/mechanism.py FOLDER [--out results/mechanism].

FOLDER is what `python -m xor_study.run -m study=mechanism hydra.sweep.dir=FOLDER` left. Prints what each single repair
cures and our rates beside those of the reference, and writes the tables that the figure is drawn from.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from xor_study import RunSpec, StudyError, mechanism
from xor_study.files import write_atomically
from xor_study.records import provenance, read_losses, read_runs, write_table

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests/data/axon/xla_statistics.json"


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table."""
    printed = Table(*map(str, table.columns), title=title, title_justify="left", box=None)
    for row in table.itertuples(index=False):
        printed.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    Console(width=200).print(printed)


def main() -> None:
    """Read the runs, print and write their summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "results/mechanism")
    options = parser.parse_args()
    try:
        runs, losses = read_runs(options.folder), read_losses(options.folder)
        typical = mechanism.typical_run(runs)
        spec, onset = RunSpec.from_row(typical), int(typical["first_nonfinite_step"])
        tables = {
            "cells": mechanism.cells(runs),
            "repairs": mechanism.repairs(runs),
            "rates": mechanism.rates(runs, json.loads(REFERENCE.read_text())),
            "curves": mechanism.curves(runs, losses),
            "anatomy": mechanism.anatomy(spec, onset),
        }
    except (StudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    repairs = tables["repairs"]
    show("What each single repair of 0.6.1 cures (paired by seed)", repairs[[c for c in repairs if "_p" not in str(c)]])
    show("Rates here and in the reference (two samples)", tables["rates"])
    unset, told = RunSpec(loss="axon_0_6_1"), RunSpec(loss="axon_0_6_1", lr=0.01)
    same = "the same run as" if unset == told else "not the same run as"
    print(f"No rate given is {same} lr=0.01 (run_id {unset.run_id}, {told.run_id}).")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table(options.out / f"{name}.csv", table)
    record = {
        "commands": [
            "python -m xor_study.run -m study=mechanism hydra.sweep.dir=FOLDER",
            "python scripts/mechanism.py FOLDER",
            "python scripts/figures.py mechanism",
        ],
        "runs": len(runs),
        "engine": sorted(runs["engine"].unique()),
        "anatomy": {"seed": spec.seed, "onset": onset},
        "trained_with": runs[["torch_version", "package_version", "git_commit"]].iloc[0].to_dict(),
        "summed_up_with": provenance(),
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(options.out / "provenance.json", lambda stream: stream.write(text.encode()))


if __name__ == "__main__":
    main()
