"""What came of a run: its outcome and its measures, gathered step by step.

Steps count from 1, and what is noted at step k is the state before the k-th update; "step T + 1" is the state after the
last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.model.data import CORNERS
from xor_study.training.cohorts import Cohort
from xor_study.training.step import Internals, Observation

CHUNK = 100
"""Steps that an engine makes before it hands over what it noted of them."""

OUTCOMES = ("solved", "unsolved", "diverged", "nonfinite")


def log_spaced(steps: int) -> NDArray[np.int64]:
    """Return the steps whose losses a sweep records: ten a decade, from 1, the same for every length."""
    exponents = np.arange(0, 10 * math.log10(steps) + 1e-9)
    return np.unique(np.round(10 ** (exponents / 10))).astype(np.int64)


def threshold_losses(cohort: Cohort, members: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean loss of a network that always answers with the threshold, for some runs: log 2 for cross-entropy.

    Returns:
        shape (members,), or (1,) where all have the same.
    """
    program, own = cohort.program, cohort.numbers["loss"]
    logit = torch.zeros(len(members) if own else 1, len(CORNERS), dtype=torch.float64)
    numbers = {name: torch.from_numpy(values[members])[:, None] for name, values in own.items()}
    target = program.target.double().cpu().expand_as(logit)
    losses = program.loss.per_sample(logit, torch.full_like(logit, 0.5), target, **program.constants["loss"], **numbers)
    return losses.mean(1).numpy()


def running_mean(loss: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean of all losses so far, in float32 and step by step as Axon's loop does: never reset."""
    mean, means = np.float32(0), []
    with np.errstate(invalid="ignore", over="ignore"):
        for step, value in enumerate(loss.astype(np.float32)):
            mean = (mean * np.float32(step) + value) / np.float32(step + 1)
            means.append(mean)
    return np.array(means, np.float32)


@dataclass(frozen=True)
class Detail:
    """What is kept beyond the usual.

    Attributes:
        every_step: all that is noted of every step.
        snapshots: the steps of which parameters, gradients and logits are kept.
    """

    every_step: bool = False
    snapshots: frozenset[int] = frozenset()


class Snapshot(NamedTuple):
    """One step of all runs.

    Attributes:
        parameters: after its update, shape (runs, width).
        gradient: before clipping, shape (runs, width).
        logits: of the four corners before the update, shape (runs, 4).
    """

    parameters: Tensor
    gradient: Tensor
    logits: Tensor


@dataclass
class Recorder:
    """Gathers what is noted of a cohort's runs, a chunk of steps at a time.

    Args:
        cohort: whose runs are recorded.
        members: which of them, by their place in the cohort; one may stand several times.
        detail: what is kept beyond the usual.
    """

    cohort: Cohort
    members: NDArray[np.intp]
    detail: Detail
    _chunks: list[Observation] = field(default_factory=list)
    _snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.cohort.program.x1.device
        self._steps = log_spaced(self.cohort.steps)
        self._tail = tail_length(self.cohort.steps)

        def start(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((len(self.members),), value, dtype=dtype, device=device)

        self._last_wrong, self._first_nonfinite = start(0, torch.int64), start(0, torch.int64)
        self._min_loss, self._max_loss = start(math.nan), start(math.nan)
        self._max_logit, self._max_norm, self._tail_sum = start(math.nan), start(math.nan), start(0)
        self._initial, self._final = start(math.nan), start(math.nan)
        self._losses = torch.full((len(self._steps), len(self.members)), math.nan, dtype=torch.float64, device=device)
        self._epochs = torch.zeros((self.cohort.epochs, len(self.members)), dtype=torch.float64, device=device)

    def add(self, steps: range, noted: Observation) -> None:
        """Take in what was noted at `steps`, tensors of shape (steps, members)."""
        loss = noted.loss.double()
        number = torch.arange(steps.start, steps.stop, device=loss.device)[:, None]  # (steps, 1)
        finite = torch.isfinite(loss) & torch.isfinite(noted.max_abs_grad) & torch.isfinite(noted.max_abs_parameter)
        onset = torch.where(finite, torch.iinfo(torch.int64).max, number).amin(0)
        unseen = (self._first_nonfinite == 0) & ~finite.all(0)
        self._first_nonfinite = torch.where(unseen, onset, self._first_nonfinite)
        wrong = torch.where(noted.corners_right < len(CORNERS), number, 0).amax(0)
        self._last_wrong = torch.maximum(self._last_wrong, wrong)
        self._min_loss = torch.fmin(self._min_loss, _over_steps(torch.fmin, loss))
        self._max_loss = torch.fmax(self._max_loss, _over_steps(torch.fmax, loss))
        self._max_logit = torch.fmax(self._max_logit, _over_steps(torch.fmax, noted.max_abs_logit.double()))
        self._max_norm = torch.fmax(self._max_norm, _over_steps(torch.fmax, noted.grad_norm.double()))
        self._tail_sum += loss[max(0, self.cohort.steps - self._tail - steps.start + 1) :].sum(0)
        self._initial = loss[0] if steps.start == 1 else self._initial
        self._final = loss[-1]
        for row, recorded in enumerate(self._steps.tolist()):
            if recorded in steps:
                self._losses[row] = loss[recorded - steps.start]
        for epoch in range((steps.start - 1) // self.cohort.iterations, (steps.stop - 2) // self.cohort.iterations + 1):
            first = epoch * self.cohort.iterations + 1 - steps.start
            self._epochs[epoch] += loss[max(0, first) : first + self.cohort.iterations].sum(0)
        if self.detail.every_step:
            self._chunks.append(noted)

    def add_snapshot(self, step: int, parameters: Tensor, internals: Internals) -> None:
        """Take in one step in detail if it is asked for; all tensors have a row for each member."""
        if step in self.detail.snapshots:
            self._snapshots[step] = Snapshot(parameters.clone(), internals.gradient.clone(), internals.logits.clone())

    def finish(self, corners_right: Tensor) -> Recorded:
        """Return the record of all runs, given how many corners are right in the end, shape (runs,)."""
        gathered = Gathered(
            initial_loss=_numpy(self._initial),
            final_loss=_numpy(self._final),
            min_loss=_numpy(self._min_loss),
            max_loss=_numpy(self._max_loss),
            max_abs_logit=_numpy(self._max_logit),
            max_grad_norm=_numpy(self._max_norm),
            tail_loss=_numpy(self._tail_sum / self._tail),
            first_nonfinite=self._first_nonfinite.cpu().numpy(),
            last_wrong=self._last_wrong.cpu().numpy(),
            corners_right=corners_right.cpu().numpy(),
        )
        history = None
        if self.detail.every_step:
            parts = zip(Observation._fields, zip(*self._chunks, strict=True), strict=True)
            history = {name: _numpy(torch.cat(part)) for name, part in parts}
        epoch_losses = _numpy((self._epochs / self.cohort.iterations).T)
        measured = measures(self.cohort, self.members, gathered)
        wide = self.cohort.program.x1.dtype == torch.float64
        losses = self._losses.T.to(torch.float64 if wide else torch.float32).cpu().numpy()
        return Recorded(measured, self._steps, losses, epoch_losses, history, self._snapshots)


class Gathered(NamedTuple):
    """What outcome and measures are made of; each of shape (runs,).

    Attributes:
        initial_loss, final_loss, min_loss, max_loss, max_abs_logit, max_grad_norm: the measures themselves.
        tail_loss: mean of the last tenth of the steps.
        first_nonfinite: the first step whose loss, gradient or update is not finite, or 0.
        last_wrong: the last step before which a corner is on the wrong side, or 0.
        corners_right: how many are on the right side in the end.
    """

    initial_loss: NDArray[np.float64]
    final_loss: NDArray[np.float64]
    min_loss: NDArray[np.float64]
    max_loss: NDArray[np.float64]
    max_abs_logit: NDArray[np.float64]
    max_grad_norm: NDArray[np.float64]
    tail_loss: NDArray[np.float64]
    first_nonfinite: NDArray[np.integer[Any]]
    last_wrong: NDArray[np.integer[Any]]
    corners_right: NDArray[np.integer[Any]]


NUMBERS = Gathered._fields[:6]
"""The measures that are numbers, as columns of a table."""


def tail_length(steps: int) -> int:
    """Return how many steps the last tenth has."""
    return -(-steps // 10)


def measures(cohort: Cohort, members: NDArray[np.intp], gathered: Gathered) -> pd.DataFrame:
    """Return outcome and measures of some members of a cohort, a row for each."""
    nonfinite, solved = gathered.first_nonfinite > 0, gathered.corners_right == len(CORNERS)
    diverged = gathered.tail_loss > 2 * threshold_losses(cohort, members)
    code = np.select([nonfinite, solved, diverged], [3, 0, 2], 1)
    columns = {
        "outcome": np.array(OUTCOMES, dtype=object)[code],
        "accuracy": gathered.corners_right / len(CORNERS),
        "solved_step": _optional(np.where(solved, gathered.last_wrong + 1, 0)),
        "first_nonfinite_step": _optional(gathered.first_nonfinite),
    }
    return pd.DataFrame(columns | {name: getattr(gathered, name) for name in NUMBERS})


def accumulate(so_far: Mapping[str, Tensor], noted: Observation, number: Tensor) -> dict[str, Tensor]:
    """Return what is gathered of one network's steps so far with step `number` taken in.

    What `Recorder.add` does with many steps at once, for an engine that keeps no history. NaN is passed over in
    smallest and largest values.

    Args:
        so_far: by the names in `start_of_accumulation`; tensors of no dimension.
        noted: of this step.
        number: of this step, from 1.
    """
    finite = torch.isfinite(noted.loss) & torch.isfinite(noted.max_abs_grad) & torch.isfinite(noted.max_abs_parameter)
    first, last = so_far["first_nonfinite"], so_far["last_wrong"]

    def larger(name: str, value: Tensor) -> Tensor:
        return torch.where(value > so_far[name], value, so_far[name])

    return {
        "loss_sum": so_far["loss_sum"] + noted.loss.double(),
        "least_loss": torch.where(noted.loss < so_far["least_loss"], noted.loss, so_far["least_loss"]),
        "largest_loss": larger("largest_loss", noted.loss),
        "largest_logit": larger("largest_logit", noted.max_abs_logit),
        "largest_grad_norm": larger("largest_grad_norm", noted.grad_norm),
        "first_nonfinite": torch.where(finite | (first > 0), first, number),
        "last_wrong": torch.where(noted.corners_right < len(CORNERS), number, last),
    }


def start_of_accumulation(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what `accumulate` starts from, for networks of a type."""
    low, high = torch.tensor(-math.inf, dtype=dtype), torch.tensor(math.inf, dtype=dtype)
    none = torch.tensor(0, dtype=torch.int32)
    return {
        "loss_sum": torch.tensor(0.0, dtype=torch.float64),
        "least_loss": high,
        "largest_loss": low,
        "largest_logit": low,
        "largest_grad_norm": low,
        "first_nonfinite": none,
        "last_wrong": none,
    }


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def _optional(steps: NDArray[np.integer[Any]]) -> pd.api.extensions.ExtensionArray:
    """Return step numbers as whole numbers that are missing where they are 0."""
    return pd.arrays.IntegerArray(steps.astype(np.int64), steps == 0)


def _over_steps(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """Return the smallest or largest over the first dimension, NaN ignored."""
    fill = math.inf if combine is torch.fmin else -math.inf
    missing = torch.isnan(values)
    best = torch.where(missing, fill, values)
    best = best.amin(0) if combine is torch.fmin else best.amax(0)
    return torch.where(missing.all(0), math.nan, best)


@dataclass(frozen=True)
class Recorded:
    """What is known of a cohort's runs after training; every array has a row for each run, in its order.

    Attributes:
        measures: the columns `MEASURES`.
        steps: the steps whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)), of the runs' own dtype but at least float32.
        epoch_losses: mean of each epoch, shape (runs, epochs).
        history: all that was noted of every step, shape (steps, runs) each, if it was asked for.
        snapshots: the steps in detail that were asked for, by number.
    """

    measures: pd.DataFrame
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.float64]
    history: dict[str, NDArray[np.float64]] | None
    snapshots: dict[int, Snapshot]

    def first(self, runs: int) -> Recorded:
        """Return the record of the first `runs` runs."""
        history = self.history and {name: values[:, :runs] for name, values in self.history.items()}
        snapshots = {
            step: Snapshot(*(tensor[:runs] for tensor in snapshot)) for step, snapshot in self.snapshots.items()
        }
        losses, epochs = self.losses[:runs], self.epoch_losses[:runs]
        return Recorded(self.measures[:runs], self.steps, losses, epochs, history, snapshots)


class Trained(NamedTuple):
    """What an engine gives back of some runs.

    Attributes:
        cohort: they belong to.
        members: their places in it.
        recorded: what came of them, in that order.
        parameters: in the end, shape (runs, width).
    """

    cohort: Cohort
    members: NDArray[np.intp]
    recorded: Recorded
    parameters: Tensor
