"""Hold the lanes engine against vmap: python scripts/combinations.py [--every N] [--skip N] [--jobs N] [--json FILE].

Every loss with every pairing of activations it goes with, every optimizer and every clipping, in float64: an hour of
one core. `--every N` takes each N-th of them. The exit code is 1 if any differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xor_study import RunSpec
from xor_study.engines import train_table, vmap
from xor_study.files import write_atomically
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.losses import LOSSES, check_pairing
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.sweeps.provenance import provenance
from xor_study.training.outcome import Detail
from xor_study.training.table import table_of

SHORT = {"epochs": 1, "iterations": 5, "lr": 0.01, "dtype": "float64"}
PARAMETERS, MEASURES = 1e-13, 1e-12
NUMBERS = ["initial_loss", "final_loss", "min_loss", "max_loss", "max_abs_logit", "max_grad_norm"]


def combinations() -> list[dict[str, Any]]:
    """Return all choices that go together."""
    names = ("loss", "activation_output", "activation_hidden", "optimizer", "clip")
    every = itertools.product(LOSSES, OUTPUT_ACTIVATIONS, HIDDEN_ACTIVATIONS, OPTIMIZERS, CLIPPINGS)
    return [dict(zip(names, one, strict=True)) for one in every if check_pairing(one[0], one[1]) is None]


def differences(fields: dict[str, Any]) -> tuple[float, float]:
    """Return how far parameters and (relatively) measures of the two engines are apart."""
    table = table_of([RunSpec(seed=seed, **SHORT, **fields) for seed in range(3)])
    slow, fast = (train_table(table, Detail(), engine=engine) for engine in ("vmap", "lanes"))
    parameters = max(float((fast.parameters[name] - slow.parameters[name]).abs().max()) for name in slow.parameters)
    ours, theirs = (result.runs[NUMBERS].to_numpy(float) for result in (fast, slow))
    return parameters, float(np.max(np.abs(ours - theirs) / np.maximum(1e-3, np.abs(theirs))))


def begin() -> None:
    """Prepare a process."""
    torch.set_num_threads(1)
    vmap.BLOCK = 16  # networks; three are trained


def compared(
    chosen: Sequence[dict[str, Any]], every: Iterable[tuple[float, float]]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Return the largest differences and what differs too much, and print how far it is."""
    worst, failed = [0.0, 0.0], []
    for place, (fields, found) in enumerate(zip(chosen, every, strict=True), start=1):
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
        if not (found[0] <= PARAMETERS and found[1] <= MEASURES):
            failed.append({**fields, "parameters": found[0], "measures": found[1]})
            print(" ".join(fields.values()), *found)
        if place % 100 == 0:
            told = f"parameters within {worst[0]:.1e}, measures within {worst[1]:.1e}"
            print(f"{place} of {len(chosen)}: {told}", flush=True)
    return worst, failed


def main() -> int:
    """Compare, print and if asked write down; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first ones, which another run has done")
    parser.add_argument("--jobs", type=int, default=1, help="processes to work in")
    parser.add_argument("--json", type=Path, help="also write the largest differences here")
    options = parser.parse_args()
    if min(options.every, options.jobs) < 1 or options.skip < 0:
        parser.error("--every and --jobs must be at least 1, --skip at least 0")
    chosen = combinations()[options.skip :: options.every]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), begin) as pool:
        worst, failed = compared(chosen, pool.map(differences, chosen, chunksize=4))
    if options.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            **provenance(),
            "combinations": len(chosen),
            "parameters_apart": worst[0],
            "measures_apart": worst[1],
            "failed": failed,
        }
        write_atomically(options.json, lambda stream: stream.write((json.dumps(record, indent=1) + "\n").encode()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
