"""A plan divided into chunks: which runs are trained and saved together, on which engine, and what it will cost.

Chunks follow from the whole plan alone, never from what is left to do, so that a resumed sweep makes the same chunks as
one that was never interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.engines import AUTO, check_device, lanes
from xor_study.training.cohorts import cohort_rows, cohorts
from xor_study.training.outcome import log_spaced
from xor_study.training.spec import FIELDS
from xor_study.training.table import distinct_rows

RATES = {"lanes": 40e6, "vmap": 400e3, "plain": 1.3e3}
"""Network-steps a second on one core, about; measured in results/engines/engines.json."""

UNKNOWN_RATE = min(RATES.values())
"""Of an engine that is not measured."""

SECONDS = 2.5
"""About how long a chunk takes on one core: at most this is lost of a sweep that is killed."""

MOST_RUNS = 1 << 16
"""At most in a chunk: its part has some 16 MB."""

CSV_BYTES, PART_BYTES, LOSSES_BYTES = 360, 92, 20
"""About how many bytes a run takes besides its losses: in runs.csv, in a part, in losses.npz."""


@dataclass(frozen=True)
class Chunk:
    """Runs that are trained and saved together.

    Attributes:
        rows: their positions in the plan's table.
        engine: which trains them.
        steps: their total number of network-steps.
        identity: a hash of which runs they are.
    """

    rows: NDArray[np.intp]
    engine: str
    steps: int
    identity: str


@dataclass(frozen=True)
class Chunks:
    """A whole plan, divided into chunks.

    Attributes:
        all: the chunks, the fastest engine's first.
        identity: a hash of which runs the plan has, in their order.
        fallback: why some are not compiled, as one line; or None.
    """

    all: Sequence[Chunk]
    identity: str
    fallback: str | None


def identity(run_ids: NDArray[np.bytes_]) -> str:
    """Return a hash of which runs these are, in their order: 20 hexadecimal digits."""
    return hashlib.sha256(run_ids.tobytes()).hexdigest()[:20]


def chunked(
    table: pd.DataFrame, run_ids: NDArray[np.bytes_], engine: str, device: str, shards: int | None = None
) -> Chunks:
    """Return the chunks of a checked table.

    Args:
        table: of the whole plan.
        run_ids: of its runs.
        engine: by name, or "auto".
        device: that they train on.
        shards: at least how many chunks an engine's runs make, that each job has one.
    """
    kinds = list(cohort_rows(table))
    reasons = _refused(table, kinds, device) if engine == AUTO else {}
    # A cohort is never divided between engines, so that what can't be compiled is known before anything trains.
    chosen = [("vmap" if at in reasons else "lanes") if engine == AUTO else engine for at in range(len(kinds))]
    steps = (table["epochs"] * table["iterations"]).to_numpy(np.int64)
    result: list[Chunk] = []
    for name in [*RATES, *sorted(set(chosen) - RATES.keys())]:
        members = [rows for rows, own in zip(kinds, chosen, strict=True) if own == name]
        if members:
            order = np.concatenate(members)
            share = -(-int(steps[order].sum()) // (shards or 1))  # rounded up
            split = np.split(order, _cuts(steps[order], min(share, int(RATES.get(name, UNKNOWN_RATE) * SECONDS))))
            result += [Chunk(rows, name, int(steps[rows].sum()), identity(run_ids[rows])) for rows in split]
    fallback = None
    if reasons:
        runs = sum(len(kinds[at]) for at in reasons)
        fallback = f"{next(iter(reasons.values()))}; engine=vmap for {runs} runs"
    return Chunks(result, identity(run_ids), fallback)


def _cuts(steps: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return where runs are cut into chunks of about `most` steps and at most MOST_RUNS runs."""
    weights = np.maximum(steps, -(-most // MOST_RUNS))
    number = (np.cumsum(weights) - weights) // most
    return np.flatnonzero(np.diff(number)) + 1


def _refused(table: pd.DataFrame, kinds: Sequence[NDArray[np.intp]], device: str) -> dict[int, str]:
    """Return why lanes can't compile some kinds of runs, by their index; unknown operations show only when traced."""
    firsts = table.iloc[[rows[0] for rows in kinds]]
    alike, ones = distinct_rows((firsts[column] for column in ("hidden", "batch", "dtype")), len(firsts))
    reasons: dict[int, str] = {}
    for number, one in enumerate(ones):
        (cohort,) = cohorts(firsts.iloc[[one]], check_device(device))
        try:
            lanes.check(cohort)
        except lanes.NotCompilable as error:
            reasons |= {int(at): str(error) for at in np.flatnonzero(alike == number)}
    return dict(sorted(reasons.items()))


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost, approximately.

    Attributes:
        cells: combinations of everything but the seed.
        runs, steps, chunks: how many, steps counted over all networks.
        done: how many of the runs are done already.
        seconds: of training the others, on this machine's cores.
        bytes: on disk.
    """

    cells: int
    runs: int
    steps: int
    chunks: int
    done: int
    seconds: float
    bytes: int


def estimate(table: pd.DataFrame, planned: Chunks, threads: int | None, done: NDArray[np.bool_]) -> Estimate:
    """Return what a plan will cost: seconds from the measured RATES, bytes from the sizes of the files' entries.

    Args:
        table: of the whole plan.
        planned: its chunks.
        threads: of engine lanes.
        done: which of the runs are done already, shape (runs,).
    """
    _, cells = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    workers = {"lanes": threads or lanes.cores()}
    steps = (table["epochs"] * table["iterations"]).to_numpy(np.int64)
    left = np.where(done, 0, steps)
    seconds = sum(
        int(left[chunk.rows].sum()) / RATES.get(chunk.engine, UNKNOWN_RATE) / workers.get(chunk.engine, 1)
        for chunk in planned.all
    )
    width = 8 if (table["dtype"] == "float64").any() else 4
    losses = width * len(log_spaced(int(steps.max()))) + 8 * int(table["epochs"].max())
    of_one = CSV_BYTES + PART_BYTES + LOSSES_BYTES + 2 * losses
    return Estimate(
        len(cells), len(table), int(steps.sum()), len(planned.all), int(done.sum()), seconds, of_one * len(table)
    )
