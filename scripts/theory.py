"""Hold the theory's committed predictions against runs that no choice was based on: python scripts/theory.py.

Trains every cell of `results/reference/theory.csv` with other seeds than the study's and writes
`results/theory/other_seeds.json`: how far predictions are off, and each cell. Five minutes of one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from xor_study.analysis import axon
from xor_study.analysis.cells import Cells
from xor_study.analysis.statistics import wilson
from xor_study.engines import train_table
from xor_study.files import write_atomically
from xor_study.study.reference import REFERENCE, read_table
from xor_study.study.theory import AIMS, PREDICTS
from xor_study.sweeps.provenance import provenance
from xor_study.training.outcome import Detail
from xor_study.training.table import table_of

FIRST_SEED, SEEDS = 1000, 1000
OUT = Path(__file__).resolve().parents[1] / "results/theory/other_seeds.json"


def specified(predictions: pd.DataFrame, cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the fields of each cell's runs, with as many steps as the study's had."""
    failing = Cells(cells).where(
        "lr", "dtype", "hidden", "batch", "epochs", "iterations", optimizer="sgd", **axon.BROKEN
    )
    failing = failing.assign(steps=failing["epochs"] * failing["iterations"], size=failing["batch"].astype(str))
    longest = failing.sort_values("steps").drop_duplicates(["lr", "dtype", "hidden", "size"], keep="last")
    steps = longest.set_index(["lr", "dtype", "hidden", "size"])["steps"].to_dict()
    fields = []
    for row in predictions.to_dict("records"):
        size = str(row["batch"])
        chosen = {"lr": row["lr"], "dtype": row["dtype"], "hidden": row["hidden"]}
        chosen |= {"batch": size if size == "full" else int(size), "loss": "axon_0_6_1", "epochs": 1}
        fields.append(chosen | {"iterations": int(steps[row["lr"], row["dtype"], row["hidden"], size])})
    return fields


def main() -> int:
    """Train, compare and write; return the exit code."""
    predictions = read_table(REFERENCE, "theory")
    fields = specified(predictions, read_table(REFERENCE, "cells"))
    seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
    runs = train_table(table_of([one | {"seed": seed} for one in fields for seed in seeds]), Detail()).runs
    counts = (runs["outcome"] == "nonfinite").to_numpy().reshape(len(fields), SEEDS).sum(1)
    cells = []
    for one, predicted, count in zip(fields, predictions[PREDICTS], counts.tolist(), strict=True):
        low, high = wilson(count, SEEDS)
        measured = {"predicted": predicted, "measured": count / SEEDS, "low": low, "high": high}
        within = abs(predicted - count / SEEDS) <= AIMS[one["dtype"]]
        cells.append({key: one[key] for key in ("lr", "dtype", "hidden", "batch")} | measured | {"within": within})
    table = pd.DataFrame(cells)
    off = (table["predicted"] - table["measured"]).abs()
    summary = {
        dtype: {
            "cells": int((table["dtype"] == dtype).sum()),
            "within": int(table["within"][table["dtype"] == dtype].sum()),
            "worst": float(off[table["dtype"] == dtype].max()),
            "mean": float(off[table["dtype"] == dtype].mean()),
        }
        for dtype in AIMS
    }
    record = {"command": " ".join(["python", *sys.argv]), **provenance(), "seeds": [seeds.start, seeds.stop - 1]}
    OUT.parent.mkdir(exist_ok=True)
    content = json.dumps(record | {"summary": summary, "cells": cells}, indent=1) + "\n"
    write_atomically(OUT, lambda stream: stream.write(content.encode()))
    print(json.dumps(summary, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
