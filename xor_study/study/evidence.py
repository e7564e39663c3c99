"""Tables beyond the runs' outcomes: some runs trained again in more detail, variance shares, survival curves.

Each function returns one table, which claims and figures read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from xor_study.analysis import axon, statistics
from xor_study.analysis.cells import QUARTILES, Study, describe
from xor_study.analysis.survival import not_solved_yet
from xor_study.engines import train
from xor_study.engines.results import Result
from xor_study.model.data import CORNERS, Batches
from xor_study.model.network import plane
from xor_study.training.cohorts import DTYPES
from xor_study.training.outcome import log_spaced, running_mean
from xor_study.training.spec import RunSpec

FACTORS = ("optimizer", "lr", "init", "loss", "activation.hidden")
"""What `study=root_causes` crosses."""

SIDE = 50
"""Points along each side of the article's picture of the unit square."""

PANELS: dict[str, tuple[dict[str, Any], str]] = {
    "solved": ({"lr": 0.1}, "solved"),
    "solved, relu": ({"lr": 0.1, "activation.hidden": "relu"}, "solved"),
    "stuck": ({"lr": 0.001}, "unsolved"),
    "stuck, relu": ({"lr": 0.1, "activation.hidden": "relu"}, "unsolved"),
    "diverged": ({"lr": 10.0}, "diverged"),
    "the article's": (axon.NEWEST, "solved"),
}
"""Networks whose decision boundaries are drawn: their cells, and the outcome whose first seed is taken."""

COURSES: dict[str, RunSpec] = {
    "sound, SGD 0.01": RunSpec(),
    "Axon 0.6.1, SGD 0.01": RunSpec(loss="axon_0_6_1"),
    "sound, SGD 10": RunSpec(lr=10.0),
    "Axon 0.6.1, Adam 0.001": RunSpec(loss="axon_0_6_1", **axon.SETTINGS["Adam 0.001"]),
}
"""Settings whose gradients and logits are followed over time."""


def importance(study: Study) -> pd.DataFrame:
    """Return which share of the variance of success each factor of `root_causes` explains, alone and in pairs.

    Columns: term, share, low, high (see `statistics.decomposition`) and n, the runs read.
    """
    cells = study.where(
        *FACTORS,
        lr=[0.001, 0.01, 0.1, 1.0, 10.0],
        optimizer=["sgd", "adam"],
        init=["glorot_uniform", "glorot_normal", "he_normal", "lecun_normal", "orthogonal", "normal"],
        loss=[
            "binary_cross_entropy",
            "binary_cross_entropy_with_logits",
            "binary_cross_entropy_clipped",
            "mean_squared_error",
        ],
        activation__hidden=["tanh", "relu", "sigmoid"],
    )
    runs = study.pooled(cells)
    # The grid of the article's network has more seeds; the design must be balanced.
    runs = runs[runs["seed"] < cells["n"].min()]
    table = runs.assign(solved=runs["outcome"] == "solved")
    return statistics.decomposition(table, FACTORS, "solved", "seed").assign(n=len(table))


def naive_onsets(study: Study, each: Callable[..., Iterable[pd.DataFrame]] = map) -> pd.DataFrame:
    """Return what rounds when a loss without guards goes to NaN: a row for each such run with SGD.

    The runs are trained again up to their end with a snapshot of the step that is not finite and of the one before.

    Args:
        study: whose runs are trained again.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        Columns dtype, lr, batch, seed, step, side, logit (the largest of a corner in the batch at that step), before
        (one step earlier) and rounded_before (whether some probability was 1 or 0 then already). The side is "one",
        "zero" or "both" if some corner in the batch has a probability p of 1 or 0 at that step, "reciprocal" if instead
        1 / p or 1 / (1 - p) is infinite, else "none".
    """
    cells = study.where(
        "lr", "dtype", "batch", "epochs", "iterations", loss="binary_cross_entropy_naive", optimizer="sgd"
    )
    failed = [study.runs_of(int(cell)) for cell in cells[cells["nonfinite_runs"] > 0].index]
    failed = [runs[runs["first_nonfinite_step"].notna()] for runs in failed]
    specs = [[RunSpec.from_row(row) for _, row in runs.iterrows()] for runs in failed]
    return pd.concat(each(_naive_onsets, specs, [runs["first_nonfinite_step"] for runs in failed]), ignore_index=True)


def _naive_onsets(specs: list[RunSpec], onsets: pd.Series[Any]) -> pd.DataFrame:
    steps = onsets.to_numpy(np.int64)
    # Runs of a cell train together to the latest onset, with snapshots of all the steps that any of them needs.
    wanted = np.unique([steps, np.maximum(steps - 1, 1)])
    result = train([spec.replace(epochs=1, iterations=int(steps.max())) for spec in specs], snapshots=wanted.tolist())
    batches = Batches.of(specs[0].batch, [spec.seed for spec in specs])
    rows = []
    for run, (spec, step) in enumerate(zip(specs, steps.tolist(), strict=True)):
        now, before = (_present(result, batches, run, number, spec.dtype) for number in (step, max(step - 1, 1)))
        one, zero = bool((now[1] == 1).any()), bool((now[1] == 0).any())
        side = "both" if one and zero else "one" if one else "zero" if zero else "none"
        if side == "none" and bool(torch.isinf(torch.cat([1 / now[1], 1 / (1 - now[1])])).any()):
            side = "reciprocal"
        row = {"dtype": spec.dtype, "lr": spec.lr, "batch": spec.batch, "seed": spec.seed, "step": step, "side": side}
        row |= {"logit": float(now[0].max()), "before": float(before[0].max()) if step > 1 else np.nan}
        row["rounded_before"] = step > 1 and bool(((before[1] == 1) | (before[1] == 0)).any())
        rows.append(row)
    return pd.DataFrame(rows)


def _present(result: Result, batches: Batches, run: int, step: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and probabilities, in the run's precision, of the corners that are in a step's batch.

    Args:
        result: with a snapshot of the step.
        batches: of the result's runs, in their order.
        run: which of them.
        step: from 1.
        dtype: of the run; a snapshot may hold a wider one.
    """
    counts = np.broadcast_to(batches.counts(np.array([run]), range(step, step + 1)), (1, 1, len(CORNERS)))[0, 0]
    logits = result.snapshots[step].logits[run][torch.from_numpy(counts > 0)].to(DTYPES[dtype])
    return logits, torch.sigmoid(logits)


def boundaries(seeds: int = 100) -> pd.DataFrame:
    """Return what the article's picture shows with Axon 0.7.0's loss and SGD at 0.01, a row for each seed.

    Columns: seed, corners_right, and share_true, the share of the 50 x 50 points of the unit square called true.
    """
    result = train([RunSpec(loss="axon_0_7_0", seed=seed) for seed in range(seeds)])
    rows = []
    for run in range(seeds):
        predictions = plane(result.network(run), 0.0, 1.0, SIDE)
        corners = predictions[[0, 0, -1, -1], [0, -1, 0, -1]]  # by x2, x1
        right = bool(((corners > 0.5) == np.array([False, True, True, False])).all())
        rows.append({"seed": run, "corners_right": right, "share_true": float((predictions > 0.5).mean())})
    return pd.DataFrame(rows)


def panels(study: Study) -> pd.DataFrame:
    """Return the predictions of some networks around the unit square.

    Columns: panel, what (the run, as one would type it), outcome, x1, x2, prediction.
    """
    tables = []
    for name, (values, outcome) in PANELS.items():
        runs = study.runs_of(study.one(**values))
        spec = RunSpec.from_row(runs[runs["outcome"] == outcome].iloc[0])
        result = train(spec)
        low, high = (0.0, 1.0) if name == "the article's" else (-0.25, 1.25)
        line = np.linspace(low, high, SIDE)
        what = f"{describe(result.runs.iloc[0])} seed={spec.seed}"
        columns: dict[str, Any] = {"panel": name, "what": what, "outcome": outcome}
        columns |= {"x1": np.tile(line, SIDE), "x2": np.repeat(line, SIDE)}
        tables.append(pd.DataFrame(columns | {"prediction": plane(result.network(0), low, high, SIDE).reshape(-1)}))
    return pd.concat(tables, ignore_index=True)


def courses(seeds: int = 100) -> pd.DataFrame:
    """Return how gradient, largest logit and loss change over time in `COURSES`, at ten steps a decade.

    Columns: step, n, finite (how many are), low, median and high (quartiles of those), setting, measure.
    """
    rows = []
    for name, spec in COURSES.items():
        result = train([spec.replace(seed=seed) for seed in range(seeds)], every_step=True)
        assert result.history is not None
        history = result.history[result.history["step"].isin(log_spaced(spec.epochs * spec.iterations))]
        for measure in ("grad_norm", "max_abs_logit", "loss"):
            values = history.assign(value=history[measure].where(np.isfinite(history[measure])))
            grouped = values.groupby("step")["value"]
            table = grouped.quantile(np.array(list(QUARTILES.values()))).unstack().set_axis(list(QUARTILES), axis=1)
            table.insert(0, "finite", grouped.count())
            table.insert(0, "n", seeds)
            rows.append(table.reset_index().assign(setting=name, measure=measure))
    return pd.concat(rows, ignore_index=True)


def symptom(study: Study, seeds: int = 100) -> pd.DataFrame:
    """Return what Axon's loop prints with Axon 0.6.1's loss and SGD: the mean of all losses so far.

    Columns: step (ten a decade and each 200th), n, nan (share of runs whose mean is NaN by then) with nan_low and
    nan_high, low, median and high (quartiles of those that are not), example, the first run to be NaN within the first
    epoch, and example_seed, its seed.
    """
    runs = study.runs_of(study.one(**axon.BROKEN))
    # Step numbers are missing where a run stays finite, and a missing value is not False.
    early = runs[(runs["first_nonfinite_step"] <= 1000).fillna(False)]
    example = int(early["seed"].iloc[0])
    chosen = [*range(seeds), *([example] if example >= seeds else [])]
    result = train([RunSpec(loss="axon_0_6_1", seed=seed) for seed in chosen], every_step=True)
    assert result.history is not None
    steps = int(result.history["step"].max())
    means = np.array([running_mean(loss) for loss in result.history["loss"].to_numpy().reshape(len(chosen), steps)])
    shown = np.union1d(log_spaced(steps), np.arange(200, steps + 1, 200))
    values = np.where(np.isfinite(means), means, np.nan)[:, shown - 1]
    low, median, high = np.nanquantile(values[:seeds], list(QUARTILES.values()), axis=0)
    nan = np.isnan(values[:seeds]).sum(0)
    ends = np.array([statistics.wilson(int(count), seeds) for count in nan])
    columns = {"step": shown, "n": seeds, "nan": nan / seeds, "nan_low": ends[:, 0], "nan_high": ends[:, 1]}
    columns |= {"low": low, "median": median, "high": high, "example": values[chosen.index(example)]}
    return pd.DataFrame(columns).assign(example_seed=example)


def survival(study: Study) -> pd.DataFrame:
    """Return the share of runs that have not solved XOR yet after each step, for some settings.

    Kaplan and Meier's estimate with its 95 % interval (log-log); runs that end unsolved are censored there. Columns:
    setting, n, step, unsolved, low, high.
    """
    settings: dict[str, dict[str, Any]] = {
        "SGD 0.01": {},
        "SGD 0.1": {"lr": 0.1},
        "SGD 0.001": {"lr": 0.001},
        "Adam 0.001": {"optimizer": "adam", "lr": 0.001},
        "SGD 0.1, relu": {"lr": 0.1, "activation__hidden": "relu"},
    }
    tables = []
    for name, values in settings.items():
        runs = study.runs_of(study.one(**values))
        table = not_solved_yet(runs)
        table.insert(0, "setting", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
