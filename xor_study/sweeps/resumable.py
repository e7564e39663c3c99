"""`train` as the package offers it: in memory, or in a folder where it can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xor_study import engines
from xor_study.engines.results import Progress, Result, described
from xor_study.errors import StudyError
from xor_study.training.spec import RunSpec
from xor_study.training.table import run_ids, table_of


def train(
    runs: RunSpec | Iterable[RunSpec] | pd.DataFrame,
    *,
    engine: str = engines.AUTO,
    device: str = "cpu",
    threads: int | None = None,
    every_step: bool = False,
    snapshots: Iterable[int] = (),
    batches: tuple[Any, Any] | None = None,
    initial: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Result:
    """Train networks and return their outcomes, measures, losses and parameters.

    Args:
        runs: one spec, several, or a table with a column for each field; missing columns and cells mean the default.
        engine: "plain", "vmap", "lanes", or "auto": lanes for the runs it can compile, vmap for the others, with a
            `FallbackWarning`.
        device: "cpu", "cuda" or "cuda:N".
        threads: threads of the lanes engine; None for one on each core. The results do not depend on it.
        every_step: keep the observations of every step as `Result.history`, not only a few dozen losses.
        snapshots: numbers of steps, from 1, whose parameters, gradients and logits to keep as `Result.snapshots`.
        batches: recorded inputs (x1, x2) for all runs, shape (steps, samples) each, instead of those of their seeds.
        initial: initial parameters by name, shape (*shape) or (runs, *shape), instead of those of the seeds. A run_id
            identifies the spec alone: it does not change with given batches or parameters.
        progress: called several times a second and at the end, always with the same object.
        folder: where to save the results chunk by chunk, as a sweep of the command line does: the same call resumes
            after an interruption, runs in the folder are not trained again, and `runs.csv` holds them all. The result
            then has no parameters, since the folder has none.

    Raises:
        StudyError: if a value is not allowed, before anything is trained; with engine="lanes", also if a run can't be
            compiled; if the folder holds other runs.

    Example:
        >>> from xor_study import RunSpec, train
        >>> specs = [RunSpec(lr=lr, epochs=1, iterations=200) for lr in (0.01, 1.0)]
        >>> result = train(specs, engine="vmap")
        >>> result
        <Result of 2 runs: 1 solved, 1 unsolved; engine vmap>
        >>> result.runs[["lr", "outcome"]]
             lr   outcome
        0  0.01  unsolved
        1  1.00    solved
        >>> import torch
        >>> result.network(1)(torch.tensor([[0.0, 1.0]])).round().item()
        1.0

        In a folder, a longer list of runs extends what is there:

        >>> train(specs, folder="x").runs["outcome"].tolist()
        ['unsolved', 'solved']
        >>> train([*specs, RunSpec(lr=2.0, epochs=1, iterations=200)], folder="x")
        <Result of 3 runs: 2 solved, 1 unsolved; engine lanes>
    """
    if folder is None:
        return engines.train(
            runs,
            engine=engine,
            device=device,
            threads=threads,
            every_step=every_step,
            snapshots=snapshots,
            batches=batches,
            initial=initial,
            progress=progress,
        )
    refused = {"every_step": every_step, "snapshots": tuple(snapshots), "batches": batches, "initial": initial}
    for name, value in refused.items():
        if value not in (False, (), None):
            raise StudyError(f"{name}: is not kept in a folder; leave out folder={str(folder)!r}")
    table = table_of([runs] if isinstance(runs, RunSpec) else runs)
    return _in_folder(table, engine, device, threads, progress, os.fspath(folder))


def _in_folder(
    table: pd.DataFrame,
    engine: str,
    device: str,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    folder: str,
) -> Result:
    """Train what is missing of a checked table in a folder, and return all of it from there."""
    from xor_study.sweeps import records
    from xor_study.sweeps.sweep import Sweep  # it loads LLVM, which training in memory with engine="plain" is spared

    engines.check_device(device)
    engines.check_engine(engine, device, threads)
    ids = run_ids(table)
    distinct = table[~ids.duplicated()].reset_index(drop=True)
    if engine == "lanes":
        engines.check_compilable(distinct, device)
    records.check_folder("folder", folder, sweep=True)
    sweep = Sweep(distinct, engine, device, threads, Path(folder))
    sweep.begin("", [])
    sweep.train(progress or (lambda done: None))
    sweep.parts.scan()
    sweep.merge()
    merged = sweep.parts.merged()
    rows = pd.Index(sweep.parts.run_ids.astype(str)).get_indexer(pd.Index(ids))
    index, numbers = pd.Index(ids, name="run_id"), np.arange(1, merged.epoch_losses.shape[1] + 1)
    runs = pd.concat([described(table, ids), merged.columns(slice(None)).take(rows).reset_index(drop=True)], axis=1)
    return Result(
        runs.astype({"outcome": "str", "engine": "str", "device": "str"}),
        pd.DataFrame(merged.losses[rows], index=index, columns=pd.Index(merged.steps, name="step")),
        pd.DataFrame(merged.epoch_losses[rows], index=index, columns=pd.Index(numbers, name="epoch")),
        {},
        None,
        {},
    )
