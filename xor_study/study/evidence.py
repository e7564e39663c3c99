"""Tables beyond the runs' outcomes: some runs trained again in more detail, variance shares, survival curves.

Each function returns one table, which claims and figures read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from xor_study.analysis import axon, statistics
from xor_study.analysis.cells import QUARTILES, Study, describe
from xor_study.analysis.survival import not_solved_yet
from xor_study.engines import train
from xor_study.engines.results import Result
from xor_study.errors import StudyError
from xor_study.model.data import CORNERS, Batches
from xor_study.model.network import plane
from xor_study.training.cohorts import DTYPES
from xor_study.training.outcome import log_spaced, running_mean
from xor_study.training.spec import RunSpec

FACTORS = ("optimizer", "lr", "init", "loss", "activation.hidden")
"""What `study=root_causes` crosses."""

FACTORIAL = ("lr", "init", "activation.hidden", "optimizer")
"""What `study=interventions` crosses with Axon's version and loss."""

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


def importance(study: Study, resamples: int = 1000) -> pd.DataFrame:
    """Return which share of the variance of success each factor of `root_causes` explains, alone and in pairs.

    Args:
        study: the runs.
        resamples: of the bootstrap.

    Returns:
        Columns term, share, low, high (see `statistics.decomposition`) and n, the runs read.

    Raises:
        StudyError: if the study has not all of the design.
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
    runs = _balanced(study, cells)
    return _decomposed(runs.assign(solved=runs["outcome"] == "solved"), FACTORS, "solved", resamples)


def _balanced(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of some cells, of each as many seeds as the smallest has: a design must be balanced."""
    runs = study.pooled(cells)
    balanced: pd.DataFrame = runs[runs["seed"] < cells["n"].min()]
    return balanced


def _decomposed(runs: pd.DataFrame, factors: Sequence[str], outcome: str, resamples: int) -> pd.DataFrame:
    try:
        return statistics.decomposition(runs, factors, outcome, "seed", resamples).assign(n=len(runs))
    except ValueError as error:
        raise StudyError(str(error)) from error


def factorial(study: Study, resamples: int = 1000) -> pd.DataFrame:
    """Return which share of the variance of NaN, and of solving XOR, the defects of Axon explain beside the suspects.

    The factors are Axon's version (0.6.1 or 0.7.0), its loss (cross-entropy or mean squared error, with Nx's sigmoid),
    rate, initializer, hidden activation and optimizer, all crossed, in ten epochs. With mean squared error both
    versions compute the same, so those runs count for both.

    Args:
        study: the runs.
        resamples: of the bootstrap.

    Returns:
        As `importance`, with columns outcome ("nonfinite" or "solved") and kind: "share" of a term, or "total", the
        share of all terms that contain a factor (see `statistics.total_shares`).

    Raises:
        StudyError: if the study has not all of the design.
    """
    levels: dict[str, Any] = {
        "lr": [0.0001, 0.001, 0.01, 0.1, 1.0],
        "init": ["glorot_uniform", "he_normal", "lecun_normal", "normal"],
        "activation__hidden": ["tanh", "relu"],
        "optimizer": ["sgd", axon.ADAM],
    }
    squared = {"loss": "mean_squared_error", "activation__output": "nx_sigmoid"}
    parts = [
        study.where(**levels, **loss).assign(version=version, kind=kind)
        for version, of_version in (("0.6.1", axon.BROKEN), ("0.7.0", axon.NEWEST))
        for kind, loss in (("cross-entropy", of_version), ("mean squared error", squared))
    ]
    if not all(map(len, parts)):
        raise StudyError("the design is not complete: a version or a loss is missing")
    seeds, tables = min(int(part["n"].min()) for part in parts), []
    for part in parts:
        runs = study.pooled(part)
        first = part.iloc[0]
        tables.append(runs[runs["seed"] < seeds].assign(version=first["version"], kind=first["kind"]))
    runs = pd.concat(tables).drop(columns="loss").rename(columns={"kind": "loss"})
    factors = ("version", "loss", *FACTORIAL)
    result = []
    for outcome in ("nonfinite", "solved"):
        events = runs.assign(event=runs["outcome"] == outcome)
        table = _decomposed(events, factors, "event", resamples).assign(kind="share")
        totals = statistics.total_shares(events, factors, "event", "seed", resamples)
        totals = totals.rename(columns={"factor": "term"}).assign(n=len(events), kind="total")
        result.append(pd.concat([table, totals]).assign(outcome=outcome))
    return pd.concat(result, ignore_index=True)


def explosion(study: Study, seeds: int = 200, last: int = 100) -> pd.DataFrame:
    """Return how the gradient of the failing configuration grows in its last steps before NaN, step by step.

    Args:
        study: the runs.
        seeds: how many of its runs are trained again.
        last: how many steps.

    Returns:
        Columns before (steps before NaN, from `last` to 1), n (runs that have the step), and of the gradient's norm,
        and of the share of the four corners that are saturated, low, median and high (quartiles) and most.

    Raises:
        StudyError: if none goes to NaN.
    """
    runs = study.runs_of(study.one(**axon.BROKEN)).head(seeds)
    failing = runs[runs["first_nonfinite_step"].notna()]
    if failing.empty:
        raise StudyError("no run of the failing configuration goes to NaN")
    onsets = failing["first_nonfinite_step"].to_numpy(np.int64)
    specs = [RunSpec.from_row(row).replace(epochs=1, iterations=int(onsets.max())) for _, row in failing.iterrows()]
    history = train(specs, every_step=True).history
    assert history is not None
    table = pd.DataFrame({"before": np.arange(last, 0, -1)})
    for name, unit in (("grad_norm", 1), ("saturated", len(CORNERS))):
        of_runs = history[name].to_numpy(np.float64).reshape(len(specs), -1) / unit
        steps = [values[max(0, onset - 1 - last) : onset - 1] for values, onset in zip(of_runs, onsets, strict=True)]
        stacked = np.array([np.pad(values, (last - len(values), 0), constant_values=np.nan) for values in steps])
        table["n"] = np.isfinite(stacked).sum(0)
        quartiles = np.nanquantile(stacked, list(QUARTILES.values()), axis=0)
        table = table.assign(**{f"{name}_{end}": row for end, row in zip(QUARTILES, quartiles, strict=True)})
        table[f"{name}_most"] = np.nanmax(stacked, axis=0)
    return table


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


FIXES: dict[str, RunSpec] = {
    "Axon 0.7.0": RunSpec(loss="axon_0_7_0"),
    "SGD at 0.01": RunSpec(loss="axon_0_6_1", lr=0.01),
    "Adam": RunSpec(loss="axon_0_6_1", **axon.SETTINGS["Adam 0.001"]),
}
"""The article's three fixes, on the configuration that fails."""


def boundaries(seeds: int = 100) -> pd.DataFrame:
    """Return what the article's picture shows with each of its fixes, a row for each fix and seed.

    Columns: fix, seed, corners_right, and share_true, the share of the 50 x 50 points of the unit square called true.
    """
    rows = []
    for fix, spec in FIXES.items():
        result = train([spec.replace(seed=seed) for seed in range(seeds)])
        for run in range(seeds):
            predictions = plane(result.network(run), 0.0, 1.0, SIDE)
            corners = predictions[[0, 0, -1, -1], [0, -1, 0, -1]]  # by x2, x1
            right = bool(((corners > 0.5) == np.array([False, True, True, False])).all())
            share = float((predictions > 0.5).mean())
            rows.append({"fix": fix, "seed": run, "corners_right": right, "share_true": share})
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
    """Return how gradient, largest logit, loss and saturation change over time in `COURSES`, at ten steps a decade.

    Columns: step, n, finite (how many are), low, median and high (quartiles of those), setting, measure. The measure
    "saturated" is the share of the hidden units' outputs on the four corners that are beyond `SATURATED_UNIT`.
    """
    rows = []
    for name, spec in COURSES.items():
        shown = log_spaced(spec.epochs * spec.iterations)
        result = train([spec.replace(seed=s) for s in range(seeds)], every_step=True, snapshots=shown.tolist())
        assert result.history is not None
        history = result.history[result.history["step"].isin(shown)]
        measured = {measure: history[["step", measure]] for measure in ("grad_norm", "max_abs_logit", "loss")}
        saturated = [pd.DataFrame({"step": step, "saturated": _saturated_units(result, step)}) for step in shown]
        for measure, values in (measured | {"saturated": pd.concat(saturated)}).items():
            finite = values.assign(value=values[measure].where(np.isfinite(values[measure])))
            grouped = finite.groupby("step")["value"]
            table = grouped.quantile(np.array(list(QUARTILES.values()))).unstack().set_axis(list(QUARTILES), axis=1)
            table.insert(0, "finite", grouped.count())
            table.insert(0, "n", seeds)
            rows.append(table.reset_index().assign(setting=name, measure=measure))
    return pd.concat(rows, ignore_index=True)


SATURATED_UNIT = 0.99
"""The absolute output of tanh from which on its derivative is below 0.02."""


def _saturated_units(result: Result, step: int) -> NDArray[np.float64]:
    """Return each run's share of saturated hidden outputs on the corners after a step; NaN once it is not finite."""
    parameters = result.snapshots[step].parameters
    weight, bias = (parameters[f"hidden.{name}"].double() for name in ("weight", "bias"))
    inputs = torch.tensor(CORNERS, dtype=torch.float64)
    outputs = torch.tanh(inputs @ weight.transpose(1, 2) + bias[:, None])  # (runs, 4, width)
    share = (outputs.abs() > SATURATED_UNIT).double().mean((1, 2))
    return torch.where(torch.isfinite(outputs).all(2).all(1), share, torch.nan).numpy()


def symptom(study: Study, each: Callable[..., Iterable[Any]] = map) -> pd.DataFrame:
    """Return what Axon's loop prints on the failing configuration: the mean of all losses so far.

    Args:
        study: all of whose runs of that configuration are trained again.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        Columns step (ten a decade and each 200th), n, nan (share of runs whose mean is NaN by then) with nan_low and
        nan_high, low, median and high (quartiles of those that are not), example, the first run to be NaN within the
        first epoch, and example_seed, its seed.
    """
    runs = study.runs_of(study.one(**axon.BROKEN))
    # Step numbers are missing where a run stays finite, and a missing value is not False.
    early = runs[(runs["first_nonfinite_step"] <= RunSpec().iterations).fillna(False)]
    example = int(early["seed"].iloc[0])
    seeds = runs["seed"].to_numpy()
    # In parts, since every step's observations are kept: 60 MB for 100 runs.
    parts = list(each(_printed, np.array_split(seeds, -(-len(seeds) // 100))))
    shown, values = parts[0][0], np.concatenate([part[1] for part in parts])
    low, median, high = np.nanquantile(values, list(QUARTILES.values()), axis=0)
    nan = np.isnan(values).sum(0)
    ends = np.array([statistics.wilson(int(count), len(seeds)) for count in nan])
    columns = {"step": shown, "n": len(seeds), "nan": nan / len(seeds), "nan_low": ends[:, 0], "nan_high": ends[:, 1]}
    columns |= {"low": low, "median": median, "high": high, "example": values[seeds.tolist().index(example)]}
    return pd.DataFrame(columns).assign(example_seed=example)


def _printed(seeds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return some steps, and the means that are printed there with some seeds, shape (seeds, steps)."""
    result = train([RunSpec(loss="axon_0_6_1", seed=int(seed)) for seed in seeds], every_step=True)
    assert result.history is not None
    means = running_mean(result.history["loss"].to_numpy().reshape(len(seeds), -1).T).T
    shown = np.union1d(log_spaced(means.shape[1]), np.arange(200, means.shape[1] + 1, 200))
    return shown, np.where(np.isfinite(means), means, np.nan)[:, shown - 1].astype(np.float64)


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
