"""Why about half of the broken runs go to NaN: the last steps before the blow-up as a map, and what it predicts.

docs/theory.md derives it. In short: with Axon 0.6.1's loss the logit z of a corner with target 1 falls, and u = -z
grows by about a e^u in each step. A corner beyond u = -log(1e-7) is masked and stays where it is; one beyond the
logarithm of the dtype's largest number makes NaN. So a run ends in NaN if its last step jumps over all between.

What the map needs is measured in runs that are not among those it predicts, before their fate is decided. No outcome is
read and nothing is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jacrev, vjp, vmap

from xor_study.analysis import axon
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import wilson
from xor_study.engines import train
from xor_study.errors import StudyError
from xor_study.model.data import CORNERS, TARGETS
from xor_study.model.gradients import AXON_EPSILON
from xor_study.training.cohorts import cohorts
from xor_study.training.spec import LARGEST, RunSpec
from xor_study.training.step import Program
from xor_study.training.table import table_of

Numbers = NDArray[np.float64]

FROZEN = -math.log(AXON_EPSILON)
"""Beyond u = 16.12 the clip masks a corner with target 1."""

RUNGS = ("alone", "coupled", "carried")
"""How a step moves the logits, from the simplest theory to the one that predicts.

alone: only the worst corner, by the tangent kernel of the measured state. coupled: all corners, by that kernel.
carried: by what a step of finite length does to the measured network, which moves along.
"""

PREDICTS = RUNGS[-1]

AIMS = {"float32": 0.03, "float64": 0.04}
"""How far from the measured share of NaN a prediction may be."""

LEVEL = 0.1
"""The share of NaN at which a rate is called the threshold."""

MEASURED_FROM = 1_000_000
"""The first seed of the runs in which the theory's quantities are measured: disjoint from the study's."""

DISCRETE = 0.3
"""The growth of the largest |z| in one step from which on training is a map rather than a flow."""

CLIMBED = 0.98
"""The share of runs of a cell that must have diverged or gone to NaN by their end: the theory is about those."""

MOST_TRAINED = 8000
"""Steps of the longest runs in which the theory's quantities are measured."""

MOST_STEPS_OF_ALL = 500_000
"""Steps, summed over the runs in which one cell is measured: 200 to 4,000 runs, or fewer in proportion to `seeds`."""

_Move = Callable[[NDArray[np.intp], Numbers, Numbers], Numbers]
"""From the indices of some runs, their logits and their pushes, shape (rows, 4) each, to the logits after a step."""

_IS_TRUE = np.array(TARGETS)
_MOST_STEPS = 1000
_STRAGGLERS = 0.002
"""The share of runs that need not have ended when the map is no longer followed; they count as not NaN."""


def edge(dtype: str) -> float:
    """Return the u from which on e^u is infinite in a dtype: 88.72 in float32, 709.78 in float64."""
    return math.log(LARGEST[dtype])


def growth(u: Numbers | float) -> Numbers:
    """Return how fast a corner with target 1 grows at u, for a = 1: e^u (p / (p + eps))^2, and 0 where it is frozen.

    The second factor is 1 until p comes near the clip's eps = 1e-7, where it is 1/4.
    """
    u = np.asarray(u, np.float64)
    p = 1 / (1 + np.exp(np.minimum(u, FROZEN)))
    return np.where(u < FROZEN, p * (1 - p) / (p + AXON_EPSILON) ** 2, 0.0)


def smallest_growth(dtype: str) -> float:
    """Return the a below which no step of u + a growth(u) leads from below the mask beyond the edge.

    The growth is largest just below the mask, where it is 1 / (4 eps).
    """
    return 4 * AXON_EPSILON * (edge(dtype) - FROZEN)


def zones(a: float, dtype: str) -> tuple[float, float]:
    """Return the two u that divide what one step of a lone corner leads to.

    From below the first, the step stays below the mask: the corner climbs on. From between the two it ends between
    mask and edge: the corner is frozen. From between the second and the mask it ends beyond the edge: NaN.

    Args:
        a: growth of u per unit of `growth(u)`.
        dtype: of the run.
    """
    return _where_a_step_leads_to(a, FROZEN), _where_a_step_leads_to(a, edge(dtype))


def _where_a_step_leads_to(a: float, target: float) -> float:
    """Return the u below the mask from which a step leads to the target, or the mask if none does."""
    low, high = -50.0, FROZEN
    for _ in range(80):
        middle = (low + high) / 2
        if middle + a * float(growth(middle)) < target:
            low = middle
        else:
            high = middle
    return high


def logit_gradients(logits: Numbers) -> Numbers:
    """Return n^2 times the derivative of one sample's loss / n with respect to z, for each corner.

    With target 1 it is e^-z (p / (p + eps))^2, with target 0 e^-z (p / (1 - p + eps))^2, and 0 where p is clipped; see
    `model.gradients`. Both are positive: every logit falls.

    Args:
        logits: shape (..., 4).
    """
    z = np.clip(logits, -FROZEN - 1, FROZEN + 1)  # what is further out is clipped
    p = 1 / (1 + np.exp(-z))
    inside = (p > AXON_EPSILON) & (p < 1 - AXON_EPSILON)
    upstream = np.where(_IS_TRUE, p + AXON_EPSILON, 1 - p + AXON_EPSILON) ** -2.0
    return np.where(inside, p * (1 - p) * upstream, 0.0)


@dataclass(frozen=True)
class States:
    """Networks at the last moment before a step changes a logit by more than `DISCRETE`.

    Attributes:
        program: what they are, in float64.
        parameters: shape (runs, width), float64.
        first: whether that step is the run's first one, shape (runs,).
        logits: of the corners, shape (runs, 4).
        kernel: how far the logit of one corner falls per unit of logit gradient at another: the tangent kernel
            J J^T of the logits' derivatives by the parameters, shape (runs, 4, 4). K of a corner is on the diagonal.
    """

    program: Program
    parameters: Tensor
    first: NDArray[np.bool_]
    logits: Numbers
    kernel: Numbers

    @classmethod
    def of(cls, program: Program, parameters: Tensor, first: NDArray[np.bool_]) -> States:
        """Return states with their logits and kernels.

        Args:
            program: in float64.
            parameters: shape (runs, width).
            first: shape (runs,).
        """
        parameters = parameters.double()
        slopes = vmap(jacrev(partial(_logit, program)))(parameters)  # (runs, 4, width)
        kernel = slopes @ slopes.mT
        logits = vmap(partial(_logit, program))(parameters)
        return cls(program, parameters, first, logits.numpy(), kernel.numpy())

    @property
    def worst(self) -> NDArray[np.intp]:
        """The corner with target 1 whose logit is the lowest, shape (runs,)."""
        return np.asarray(np.where(_IS_TRUE, self.logits, np.inf).argmin(1))

    def repeated(self, times: int) -> States:
        """Return each state several times in a row."""
        many = self.parameters.repeat_interleave(times, 0)
        first, logits, kernel = (np.repeat(of, times, axis=0) for of in (self.first, self.logits, self.kernel))
        return States(self.program, many, first.astype(bool), logits.astype(float), kernel.astype(float))


def _logit(program: Program, parameters: Tensor) -> Tensor:
    return program.logit(program.named(parameters))


def _moved(program: Program, parameters: Tensor, push: Tensor) -> Tensor:
    """Return one network's parameters after a step of SGD.

    Args:
        program: what the network is.
        parameters: shape (width,).
        push: rate times logit gradient of each corner, shape (4,).
    """
    pull_back: Any = vjp(partial(_logit, program), parameters)[1]
    (gradient,) = pull_back(push)
    moved: Tensor = parameters - gradient
    return moved


def states(runs: pd.DataFrame) -> States:
    """Train runs up to where their steps become discrete and return their networks there.

    A run whose logits never jump is left out. Whether and how a run fails later has no influence.

    Args:
        runs: that differ in their seeds only, a column for each field, as `train` takes them.

    Raises:
        StudyError: if no logit of any run jumps.
    """
    history = train(runs, threads=1, every_step=True).history
    assert history is not None
    sizes = history["max_abs_logit"].to_numpy().reshape(len(runs), -1)  # before each step
    jumps = ~(np.diff(sizes, axis=1) <= DISCRETE)  # also where the next one is NaN
    kept = np.flatnonzero(jumps.any(1))
    if not len(kept):
        raise StudyError("theory: no run blows up; it takes more steps")
    before = jumps.argmax(1)[kept]  # steps made before the jump
    # A few steps earlier is as good, and fewer snapshots do.
    before -= before % max(1, sizes.shape[1] // 1000)
    (cohort,) = cohorts(table_of(runs.assign(dtype="float64")))
    parameters = cohort.initial(kept)
    for step, at in _snapshots(runs.iloc[kept], np.unique(before[before > 0])):
        rows = torch.from_numpy(before == step)
        parameters[rows] = at[rows].double()
    return States.of(cohort.program, parameters, before == 0)


def _snapshots(runs: pd.DataFrame, steps: NDArray[np.intp]) -> Iterable[tuple[int, Tensor]]:
    """Yield the parameters of all runs after some steps, shape (runs, width)."""
    if not len(steps):
        return
    cut = runs.assign(epochs=1, iterations=int(steps.max()))
    result = train(cut, threads=1, snapshots=steps.tolist())
    for step in steps.tolist():
        named = result.snapshots[step].parameters
        yield step, torch.cat([part.reshape(len(cut), -1) for part in named.values()], dim=1)


@dataclass(frozen=True)
class Climbs:
    """What the theory makes of some states.

    Attributes:
        logits: before each step, shape (steps + 1, runs, 4).
        present: whether a corner is in the batch of a step, shape (steps, runs, 4).
    """

    logits: Numbers
    present: NDArray[np.bool_]

    def nan(self, dtype: str) -> NDArray[np.bool_]:
        """Return which runs go to NaN, shape (runs,): a corner in some batch, or at the end any, is beyond the edge."""
        beyond = -self.logits > edge(dtype)
        return np.asarray((beyond[:-1] & self.present).any((0, 2)) | beyond[-1].any(1))

    def last(self, dtype: str) -> Numbers:
        """Return the logit from which a corner jumps beyond the edge, for each run in which one does."""
        beyond = -self.logits > edge(dtype)
        runs = np.flatnonzero(beyond.any((0, 2)) & ~beyond[0].any(1))
        step = beyond.any(2).argmax(0)[runs]
        corner = self.logits[step, runs].argmin(1)
        return np.asarray(self.logits[step - 1, runs, corner])


def climbs(start: States, lr: float, batch: int | str, rung: str, generator: np.random.Generator) -> Climbs:
    """Follow the theory's map from some states until all corners with target 1 are frozen.

    The counts of the corners are drawn anew for each step, as training draws them. The first step is shortened to a
    uniform fraction: where a run is within a step when its steps become discrete is a matter of chance (the phase).
    Only a run that begins there has no phase.

    Args:
        start: of the runs.
        lr: rate of the steps.
        batch: samples in a batch, or "full".
        rung: one of `RUNGS`.
        generator: of counts and phases.
    """
    move, watched = _mover(start, rung)
    runs = len(start.logits)
    n = len(CORNERS) if batch == "full" else int(batch)
    phase = np.where(start.first, 1.0, generator.uniform(size=runs))[:, None]
    logits, present = [start.logits], []
    for _ in range(_MOST_STEPS):
        z = logits[-1]
        active = (watched & _IS_TRUE & (-z <= FROZEN)).any(1)
        if active.mean() <= _STRAGGLERS:
            break
        rows = np.flatnonzero(active)
        counts = generator.multinomial(n, [1 / len(CORNERS)] * len(CORNERS), size=len(rows))
        if batch == "full":
            counts = np.ones_like(counts)
        push = np.where(watched[rows], lr * counts / n**2 * logit_gradients(z[rows]) * phase[rows], 0.0)
        moved, there = z.copy(), np.zeros(z.shape, bool)
        moved[rows], there[rows] = move(rows, z[rows], push), watched[rows] & (counts > 0)
        logits.append(moved)
        present.append(there)
        phase = np.ones((runs, 1))
    return Climbs(np.stack(logits), np.array(present, bool).reshape(len(present), runs, len(CORNERS)))


def _mover(start: States, rung: str) -> tuple[_Move, NDArray[np.bool_]]:
    """Return what moves the logits of some runs, and which corners a rung looks at, shape (runs, 4)."""
    step, answer = vmap(partial(_moved, start.program)), vmap(partial(_logit, start.program))
    parameters = start.parameters.clone()

    def carried(rows: NDArray[np.intp], _: Numbers, push: Numbers) -> Numbers:
        moved = step(parameters[rows], torch.from_numpy(push))
        parameters[rows] = moved
        return np.asarray(answer(moved).numpy())

    def by_kernel(rows: NDArray[np.intp], logits: Numbers, push: Numbers) -> Numbers:
        return np.asarray(logits - np.einsum("rcd,rd->rc", start.kernel[rows], push))

    if rung == "alone":
        return by_kernel, start.worst[:, None] == np.arange(len(CORNERS))
    return {"coupled": by_kernel, "carried": carried}[rung], np.ones(start.logits.shape, bool)


def measured_cells(study: Study) -> pd.DataFrame:
    """Return the cells that the theory is about: Axon 0.6.1's loss with SGD, of any rate, dtype, width and batch.

    Of cells that differ in their length only, the longest is taken; one in which fewer than `CLIMBED` of the runs blew
    up is left out, and so is one with far fewer seeds than others.
    """
    cells = study.where("lr", "dtype", "hidden", "batch", "epochs", "iterations", optimizer="sgd", **axon.BROKEN)
    cells = cells[cells["dtype"].isin(list(AIMS))]
    cells = cells[(cells["diverged"] + cells["nonfinite"] >= CLIMBED) & (2 * cells["n"] > cells["n"].max())]
    steps = (cells["epochs"] * cells["iterations"]).rename("steps")
    longest = cells.join(steps).sort_values("steps").drop_duplicates(["lr", "dtype", "hidden", "batch"], keep="last")
    ordered: pd.DataFrame = longest.sort_values(["hidden", "batch", "lr", "dtype"], key=_sortable)
    return ordered.drop(columns="steps")


def _sortable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return batches as numbers, a full one before all others."""
    if column.name != "batch":
        return column
    return column.astype(str).replace("full", "0").astype(int)


def theory(study: Study, seeds: int = 1000, each: Callable[..., Iterable[pd.DataFrame]] = map) -> pd.DataFrame:
    """Return predicted and measured shares of NaN, a row for each cell of `measured_cells`.

    Args:
        study: whose shares are predicted.
        seeds: 1,000 for all runs in which the theory's quantities are measured, 100 for a tenth of them.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        Columns lr, dtype, hidden, batch, n; measured, low, high (the study's share of NaN with Wilson's 95 % interval);
        the predictions of all `RUNGS`; runs (in which was measured); height (the median of u where the steps become
        discrete); k_low, k_median, k_high (quartiles of K of the worst corner there); coupling (median of how far the
        other corner with target 1 is moved along, over K).
    """
    cells = measured_cells(study)[["lr", "dtype", "hidden", "batch", "n", "nonfinite_runs"]].copy()
    cells["batch"] = cells["batch"].astype(str)
    groups = [(int(hidden), str(batch)) for hidden, batch in cells[["hidden", "batch"]].drop_duplicates().to_numpy()]
    rates = [sorted({float(lr) for lr in _of(cells, *group)["lr"]}) for group in groups]
    # Rates of one width and batch share machine code; the costly groups first, so that the last one is short.
    order = sorted(range(len(groups)), key=lambda i: -groups[i][0] * len(rates[i]))
    tables = each(_predicted, *zip(*[(*groups[i], rates[i], seeds) for i in order], strict=True))
    predicted = pd.concat(list(tables), ignore_index=True)
    ends = np.array([wilson(int(k), int(n)) for k, n in zip(cells["nonfinite_runs"], cells["n"], strict=True)])
    cells = cells.assign(measured=cells["nonfinite_runs"] / cells["n"], low=ends[:, 0], high=ends[:, 1])
    measured = cells.drop(columns="nonfinite_runs")
    return measured.merge(predicted, on=["lr", "dtype", "hidden", "batch"], how="left")


def _of(cells: pd.DataFrame, hidden: int, batch: str) -> pd.DataFrame:
    return cells[(cells["hidden"] == hidden) & (cells["batch"] == batch)]


def runs_to_measure(lr: float, hidden: int, batch: int | str, seeds: int) -> pd.DataFrame:
    """Return the runs in which the theory's quantities are measured, as `train` takes them.

    The time to the blow-up goes with n / lr. Below a rate it would take too long: there, states of a higher rate serve,
    from which the map then climbs in more steps.

    Args:
        lr: the rate of the runs that are to be predicted.
        hidden: their width.
        batch: samples in a batch, or "full".
        seeds: 1,000 for all of them; fewer in proportion.
    """
    n = len(CORNERS) if batch == "full" else int(batch)
    lr = max(lr, 2 * n / MOST_TRAINED)
    steps = max(60, math.ceil(2 * n / lr))
    count = max(10, int(np.clip(MOST_STEPS_OF_ALL / steps, 200, 4000) * seeds / 1000))
    fields = {"loss": "axon_0_6_1", "lr": lr, "hidden": hidden, "batch": batch, "epochs": 1, "iterations": steps}
    return pd.DataFrame({"seed": MEASURED_FROM + np.arange(count)} | fields)


def _predicted(hidden: int, batch: str, rates: list[float], seeds: int) -> pd.DataFrame:
    """Return the predictions for some rates of one width and batch, a row for each rate and dtype of `AIMS`."""
    size = batch if batch == "full" else int(batch)
    rows, known = [], dict[float, States]()
    for lr in rates:
        runs = runs_to_measure(lr, hidden, size, seeds)
        trained_at = float(runs["lr"].iloc[0])
        start = known[trained_at] = known.get(trained_at) or states(runs)
        row = {"lr": lr, "hidden": hidden, "batch": batch} | _measured(start)
        many = start.repeated(max(1, 4 * seeds // len(start.logits)))
        made = {rung: climbs(many, lr, size, rung, np.random.default_rng(0)) for rung in RUNGS}
        rows += [row | {"dtype": d} | {rung: made[rung].nan(d).mean() for rung in RUNGS} for d in AIMS]
    return pd.DataFrame(rows)


def _measured(start: States) -> dict[str, float]:
    """Return quartiles of what is measured in some states, by the columns of `theory`."""
    runs, worst = np.arange(len(start.logits)), start.worst
    other = len(CORNERS) - 1 - worst  # of the two corners with target 1
    k = start.kernel[runs, worst, worst]
    low, median, high = np.quantile(k, [0.25, 0.5, 0.75])
    values = {"runs": len(runs), "height": np.median(-start.logits[runs, worst])}
    values |= {"k_low": low, "k_median": median, "k_high": high}
    return values | {"coupling": float(np.median(start.kernel[runs, worst, other] / k))}


def thresholds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rates at which the share of NaN rises above `LEVEL`, interpolated in the logarithm of the rate.

    Args:
        table: of `theory`.

    Returns:
        Columns dtype, hidden, batch, measured, predicted (rates) and ratio (predicted over measured): a row for each
        series of rates in which both shares cross the level.
    """
    rows = []
    for (dtype, hidden, batch), cells in table.groupby(["dtype", "hidden", "batch"], sort=False):
        measured, predicted = (_crossing(cells["lr"], cells[name]) for name in ("measured", PREDICTS))
        if measured is not None and predicted is not None:
            row = {"dtype": dtype, "hidden": hidden, "batch": batch, "measured": measured, "predicted": predicted}
            rows.append(row | {"ratio": predicted / measured})
    return pd.DataFrame(rows, columns=["dtype", "hidden", "batch", "measured", "predicted", "ratio"])


def _crossing(rates: pd.Series[float], shares: pd.Series[float]) -> float | None:
    """Return the rate at which a share first rises above `LEVEL`, or None if it does not from below."""
    order = np.argsort(rates.to_numpy())
    logs, values = np.log(rates.to_numpy()[order]), shares.to_numpy()[order]
    above = int(np.argmax(values > LEVEL))
    if not above > 0:
        return None
    part = (LEVEL - values[above - 1]) / (values[above] - values[above - 1])
    return float(np.exp(logs[above - 1] + part * (logs[above] - logs[above - 1])))


def agreement(table: pd.DataFrame) -> dict[str, Any]:
    """Return how well the theory does, for the claim `why_half`.

    Args:
        table: of `theory`.

    Returns:
        cells; for each dtype its cells, worst (largest absolute deviation), mean (absolute deviation), within (share
        of cells within the dtype's aim); mean_by_rung; failures (the rows outside of the aim); thresholds (of
        `thresholds`); and precision_ratio, that of the thresholds of float64 and float32: measured, predicted and
        lone_corner.
    """
    off = (table[PREDICTS] - table["measured"]).abs()
    by_dtype = {}
    for dtype, aim in AIMS.items():
        chosen = off[table["dtype"] == dtype]
        by_dtype[dtype] = {"cells": len(chosen), "worst": chosen.max(), "mean": chosen.mean()}
        by_dtype[dtype]["within"] = (chosen <= aim).mean()
    failures = table[off > table["dtype"].map(AIMS)]
    mean_by_rung = {rung: float((table[rung] - table["measured"]).abs().mean()) for rung in RUNGS}
    found = thresholds(table)
    result: dict[str, Any] = {"cells": len(table), **by_dtype, "mean_by_rung": mean_by_rung, "failures": failures}
    return result | {"thresholds": found, "precision_ratio": _precision_ratio(found)}


def _precision_ratio(found: pd.DataFrame) -> dict[str, float]:
    """Return by which factor float64 raises the threshold, measured, predicted, and of a lone corner."""
    ratio = {"lone_corner": smallest_growth("float64") / smallest_growth("float32")}
    series = found.pivot(index=["hidden", "batch"], columns="dtype", values=["measured", "predicted"]).dropna()
    for name in ("measured", "predicted") if len(series) else ():
        ratio[name] = float((series[name]["float64"] / series[name]["float32"]).iloc[0])
    return ratio


def last_logits(
    seeds: int = 400, rates: Iterable[float] = (0.01, 0.1, 1.0), each: Callable[..., Iterable[pd.DataFrame]] = map
) -> pd.DataFrame:
    """Return the logit from which the worst corner jumps into NaN, measured and predicted, for the article's network.

    Args:
        seeds: of the runs, from 0; those in which the states are measured are others.
        rates: of SGD.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        A row for each dtype, rate and source ("measured" or "predicted"): n (runs that go to NaN), low, median, high
        (quartiles), least and most.
    """
    arguments = [(lr, dtype, seeds) for dtype in AIMS for lr in rates]
    return pd.concat(list(each(_last_logits, *zip(*arguments, strict=True))), ignore_index=True)


def _last_logits(lr: float, dtype: str, seeds: int) -> pd.DataFrame:
    usual = RunSpec()
    runs = runs_to_measure(lr, usual.hidden, usual.batch, 1000 if seeds >= 400 else 2 * seeds)
    start = states(runs)
    many = start.repeated(max(1, 4 * seeds // len(start.logits)))
    made = climbs(many, lr, usual.batch, PREDICTS, np.random.default_rng(0))
    others = runs.iloc[:1].loc[[runs.index[0]] * seeds].assign(seed=np.arange(seeds), dtype=dtype)
    rows = []
    for source, values in (("measured", _logits_before_nan(others)), ("predicted", made.last(dtype))):
        names = dict(zip(("low", "median", "high"), np.quantile(values, [0.25, 0.5, 0.75]), strict=True))
        row = {"dtype": dtype, "lr": lr, "source": source, "n": len(values)} | names
        rows.append(row | {"least": values.min(), "most": values.max()})
    return pd.DataFrame(rows)


def _logits_before_nan(runs: pd.DataFrame) -> Numbers:
    """Return, for each run that goes to NaN, the worst corner's logit one step before, shape (runs,)."""
    onset = train(runs, threads=1).runs["first_nonfinite_step"]
    failed = runs[onset.notna().to_numpy()]
    steps = onset.dropna().to_numpy(np.int64)
    wanted = np.unique([steps, steps - 1])
    cut = failed.assign(iterations=int(steps.max()))
    snapshots = train(cut, threads=1, snapshots=wanted[wanted > 0].tolist()).snapshots
    values = []
    for run, step in enumerate(steps.tolist()):
        if step > 1:
            corner = int(snapshots[step].logits[run].argmin())
            values.append(float(snapshots[step - 1].logits[run, corner]))
    return np.array(values)
