"""The tables of a reproduction: the runs of the whole study, trained, and all that is computed from them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from xor_study.analysis.cells import Study, curves, examples, seeds_of_each_cell
from xor_study.engines import FallbackWarning, train_table
from xor_study.engines.results import Progress
from xor_study.errors import StudyError
from xor_study.study import claims, evidence, mechanism, monitors, robustness, theory
from xor_study.study.digests import cells_with_digests
from xor_study.study.processes import Each
from xor_study.study.reference import AXON
from xor_study.study.traces import floats, read_trace
from xor_study.sweeps import plan, terminal
from xor_study.sweeps.provenance import provenance
from xor_study.training.cohorts import cohort_rows
from xor_study.training.outcome import Detail
from xor_study.training.spec import HALF, RunSpec

STUDY = "study=all"
SEEDS = 20
"""Of each cell, whose runs a reproduction stores row by row."""


@contextmanager
def _without_notes() -> Iterator[None]:
    """Ignore that no machine code is made for the half precisions of study=precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        yield


def trained(quick: bool, each: Each = map) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the whole study.

    Args:
        quick: whether to train only the first tenth of the seeds of each cell.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        The runs, as in `runs.csv`, and their recorded losses: a row for each run_id, a column for each step.
    """
    table = plan.study_table([STUDY])
    if quick:
        cells = table.groupby([key for key in table if key != "seed"], sort=False, dropna=False, observed=True)
        table = table[table["seed"] < cells["seed"].transform("size") // 10].reset_index(drop=True)
    steps = (table["epochs"] * table["iterations"]).to_numpy()
    # Half precisions first: no machine code is made for them, so they take longest.
    members = sorted(cohort_rows(table), key=lambda rows: table["dtype"].iloc[rows[0]] not in HALF)
    progress, results = Progress(len(table), int(steps.sum())), []
    with terminal.progress_bar(len(table)) as follow, _without_notes():
        for rows, result in zip(members, each(_trained, (table.iloc[rows] for rows in members)), strict=True):
            results.append(result)
            progress.steps_done += int(steps[rows].sum())
            progress.finished(result[0])
            follow(progress)
    order = np.argsort(np.concatenate(members))
    runs, losses = (pd.concat(tables).iloc[order] for tables in zip(*results, strict=True))
    return runs.reset_index(drop=True).assign(**provenance()), losses


def _trained(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    result = train_table(table.reset_index(drop=True), Detail(), threads=1)
    return result.runs, result.losses


def tables_of(runs: pd.DataFrame, losses: pd.DataFrame, quick: bool, each: Each = map) -> dict[str, pd.DataFrame]:
    """Return all tables of a reproduction by name.

    Args:
        runs: from `trained`.
        losses: likewise.
        quick: whether to train a tenth of the seeds again where runs are looked at in detail.
        each: as `map`, or `map` of a pool of processes.
    """
    study, seeds = Study(runs), 10 if quick else 100
    with _without_notes():
        watched = monitors.alarms(study, {name: max(4, n * seeds // 100) for name, n in monitors.SEEDS.items()}, each)
        read_by_claims = {
            "importance": evidence.importance(study),
            "factorial": evidence.factorial(study),
            "explosion": evidence.explosion(study, 2 * seeds),
            "courses": evidence.courses(seeds),
            "symptom": evidence.symptom(study, each),
            "monitors": monitors.summary(watched),
            "naive_onsets": evidence.naive_onsets(study, each),
            "boundaries": evidence.boundaries(seeds),
            "theory": theory.theory(study, 10 * seeds, each),
            "last_logits": theory.last_logits(4 * seeds, each=each),
        }
        judged = claims.Evidence(study, read_by_claims)
        # Of a tenth of the seeds too few verdicts are decided to ask what they depend on.
        subgrids = pd.DataFrame(columns=robustness.COLUMNS) if quick else robustness.robustness(judged)
        typical = mechanism.typical_run(study)
        return read_by_claims | {
            "claims": robustness.summary(claims.verdicts(judged), subgrids),
            "robustness": subgrids,
            "suspects": claims.suspects_of(judged),
            "remedies": claims.remedies_of(judged),
            "cells": cells_with_digests(study),
            "runs": seeds_of_each_cell(study, SEEDS),
            "curves": curves(study, losses),
            "examples": examples(study, losses),
            "panels": evidence.panels(study),
            "survival": evidence.survival(study),
            "roc": monitors.roc(watched),
            "mechanism_repairs": mechanism.repairs(study),
            "mechanism_rates": mechanism.rates(study, json.loads((AXON / "xla_statistics.json").read_text())),
            "anatomy": mechanism.anatomy(RunSpec.from_row(typical), int(typical["first_nonfinite_step"])),
            "axon_losses": axon_losses(AXON),
        }


def axon_losses(folder: Path) -> pd.DataFrame:
    """Return the losses of the real Axon with SGD, while finite: columns version, seed, lr, step and loss.

    Raises:
        StudyError: if the folder has no traces.
    """
    tables = []
    for path in sorted(folder.glob("trace_*.json")):
        trace = read_trace(path)
        for variant, lr in (("sgd_0_01", 0.01), ("sgd_0_1", 0.1)):
            run = trace["runs"][variant]
            last = run["first_step_with_nonfinite_params"] or trace["steps"]
            columns = {"version": trace["label"], "seed": trace["seed"], "lr": lr, "step": np.arange(1, last + 1)}
            tables.append(pd.DataFrame(columns | {"loss": floats(run["loss_batch"])[:last]}))
    if not tables:
        raise StudyError(f"{folder}: no traces of Axon here; reproduce needs a checkout of the repository")
    return pd.concat(tables, ignore_index=True)
