"""The outcome and the measures of a run, accumulated step by step.

Steps count from 1. What is observed at step k is the state before the k-th update; "step T + 1" is the state after the
last one.

`accumulate` is the only definition of the measures: plain and vmap call it through a `Recorder`, lanes traces it into
its loop. Sums of losses are the exception. Their bits depend on the order of the additions, so each way of training
keeps its own order: `Recorder` adds up the sums of chunks of steps, `from_segments` those of segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.model.data import CORNERS
from xor_study.training.cohorts import Cohort
from xor_study.training.step import Internals, Observation

CHUNK = 100
"""Steps that plain and vmap make between two calls of `Recorder.add`."""

OUTCOMES = ("solved", "unsolved", "diverged", "nonfinite")

NUMBERS = ("initial_loss", "final_loss", "min_loss", "max_loss", "max_abs_logit", "max_grad_norm")
"""The measures that are floating-point numbers, as columns of a table."""


def log_spaced(steps: int) -> NDArray[np.int64]:
    """Return the steps whose losses are recorded: ten a decade, from 1, the same for runs of every length.

    >>> log_spaced(30)
    array([ 1,  2,  3,  4,  5,  6,  8, 10, 13, 16, 20, 25])
    """
    exponents = np.arange(0, 10 * math.log10(steps) + 1e-9)  # the small term keeps `steps` itself if it is 10, 100, ...
    return np.unique(np.round(10 ** (exponents / 10))).astype(np.int64)


def threshold_losses(cohort: Cohort, members: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean loss of a network whose every prediction is the threshold: log 2 for cross-entropy.

    Args:
        cohort: of the runs.
        members: indices of the runs in the cohort.

    Returns:
        shape (members,), or (1,) where all runs have the same.
    """
    program, varying = cohort.program, cohort.numbers["loss"]
    logit = torch.zeros(len(members) if varying else 1, len(CORNERS), dtype=torch.float64)
    numbers = {name: torch.from_numpy(values[members])[:, None] for name, values in varying.items()}
    target = program.target.double().cpu().expand_as(logit)
    losses = program.loss.per_sample(logit, torch.full_like(logit, 0.5), target, **program.constants["loss"], **numbers)
    return losses.mean(1).numpy()


def running_mean(loss: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean of all losses so far, in float32 and step by step as Axon's loop does.

    Axon never resets it, so the loss that it prints is NaN from the first NaN on.

    Args:
        loss: shape (steps,) or (steps, runs), as the result.

    >>> running_mean(np.array([1.0, 2.0, 6.0])).tolist()
    [1.0, 1.5, 3.0]
    """
    mean, means = np.zeros(loss.shape[1:], np.float32), []
    with np.errstate(invalid="ignore", over="ignore"):
        for step, value in enumerate(loss.astype(np.float32)):
            mean = (mean * np.float32(step) + value) / np.float32(step + 1)
            means.append(mean)
    return np.array(means, np.float32)


@dataclass(frozen=True)
class Detail:
    """What to keep of each run in addition to its measures and recorded losses.

    Attributes:
        every_step: keep the observations of every step.
        snapshots: the steps of which to keep parameters, gradients and logits.
    """

    every_step: bool = False
    snapshots: frozenset[int] = frozenset()


def tail_length(steps: int) -> int:
    """Return the number of steps in the last tenth of a run, rounded up."""
    return -(-steps // 10)


def accumulate(so_far: Mapping[str, Tensor], observed: Observation, number: Tensor) -> dict[str, Tensor]:
    """Return the accumulated values with one more step taken into account.

    All operations are elementwise: the tensors have no dimension, or the shape (networks,).

    Args:
        so_far: by the names in `start_of_accumulation`.
        observed: at this step.
        number: of this step, from 1, of type int32.
    """
    finite = torch.isfinite(observed.loss)
    finite = finite & torch.isfinite(observed.max_abs_grad) & torch.isfinite(observed.max_abs_parameter)
    first, last = so_far["first_nonfinite"], so_far["last_wrong"]

    def larger(name: str, value: Tensor) -> Tensor:
        return torch.where(value > so_far[name], value, so_far[name])

    # A comparison with NaN is false, so `where` ignores NaN as fmin and fmax do; `minimum` and `amax` would keep it.
    return {
        "loss_sum": so_far["loss_sum"] + observed.loss.double(),
        "least_loss": torch.where(observed.loss < so_far["least_loss"], observed.loss, so_far["least_loss"]),
        "largest_loss": larger("largest_loss", observed.loss),
        "largest_logit": larger("largest_logit", observed.max_abs_logit),
        "largest_grad_norm": larger("largest_grad_norm", observed.grad_norm),
        "first_nonfinite": torch.where(finite | (first > 0), first, number),
        "last_wrong": torch.where(observed.corners_right < len(CORNERS), number, last),
    }


def start_of_accumulation(
    dtype: torch.dtype, shape: tuple[int, ...] = (), device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return the values before the first step, for `accumulate`.

    Args:
        dtype: of the networks.
        shape: of each tensor.
        device: of each tensor; the CPU by default.

    Returns:
        loss_sum: sum of the losses, float64 for every dtype.
        least_loss, largest_loss, largest_logit, largest_grad_norm: extremes; the initial infinities remain where every
            value was NaN.
        first_nonfinite: the first step whose loss, gradient or update is not finite, or 0.
        last_wrong: the last step before which a corner was on the wrong side, or 0.
    """

    def full(value: float, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    return {
        "loss_sum": full(0.0, torch.float64),
        "least_loss": full(math.inf),
        "largest_loss": full(-math.inf),
        "largest_logit": full(-math.inf),
        "largest_grad_norm": full(-math.inf),
        "first_nonfinite": full(0, torch.int32),
        "last_wrong": full(0, torch.int32),
    }


def measures(
    cohort: Cohort,
    members: NDArray[np.intp],
    so_far: Mapping[str, NDArray[Any]],
    *,
    initial_loss: NDArray[Any],
    final_loss: NDArray[Any],
    tail_loss: NDArray[np.float64],
    corners_right: NDArray[Any],
) -> pd.DataFrame:
    """Return outcome and measures of some members of a cohort, a row for each; all arrays have the shape (members,).

    Args:
        cohort: of the runs.
        members: indices of the runs in the cohort.
        so_far: the result of `accumulate` after the last step.
        initial_loss: at the first step.
        final_loss: at the last step.
        tail_loss: mean over the last tenth of the steps.
        corners_right: number of corners on the right side after the last update.
    """
    nonfinite, solved = so_far["first_nonfinite"] > 0, corners_right == len(CORNERS)
    diverged = tail_loss > 2 * threshold_losses(cohort, members)
    # In this order: a run that was not finite at any step is not counted as solved.
    code = np.select([nonfinite, solved, diverged], [3, 0, 2], 1)
    # The extremes still have their initial values if every loss was NaN.
    no_loss = so_far["least_loss"] > so_far["largest_loss"]
    return pd.DataFrame(
        {
            "outcome": np.array(OUTCOMES, dtype=object)[code],
            "accuracy": corners_right / len(CORNERS),
            "solved_step": _optional(np.where(solved, so_far["last_wrong"] + 1, 0)),
            "first_nonfinite_step": _optional(so_far["first_nonfinite"]),
            "initial_loss": initial_loss.astype(np.float64),
            "final_loss": final_loss.astype(np.float64),
            "min_loss": _or_nan(so_far["least_loss"], no_loss),
            "max_loss": _or_nan(so_far["largest_loss"], no_loss),
            "max_abs_logit": _or_nan(so_far["largest_logit"], so_far["largest_logit"] < 0),
            "max_grad_norm": _or_nan(so_far["largest_grad_norm"], so_far["largest_grad_norm"] < 0),
        }
    )


def _optional(steps: NDArray[np.integer[Any]]) -> pd.api.extensions.ExtensionArray:
    """Return step numbers as integers that are missing where they are 0."""
    return pd.arrays.IntegerArray(steps.astype(np.int64), steps == 0)


def _or_nan(extremes: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(missing, np.nan, extremes.astype(np.float64))


@dataclass(frozen=True)
class Trained:
    """What an engine yields: some runs of one cohort. Every array but `history` has a row for each run.

    Attributes:
        cohort: of the runs.
        members: indices of the runs in the cohort.
        parameters: after the last update, shape (runs, width).
        measures: see `measures`.
        steps: the steps whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)), of the runs' dtype but at least float32.
        epoch_losses: mean of each epoch, shape (runs, epochs).
        history: the observations of every step by name, shape (steps, runs) each, or None if not requested.
        snapshots: the requested steps by number: parameters after the update, shape (runs, width), and internals.
    """

    cohort: Cohort
    members: NDArray[np.intp]
    parameters: Tensor
    measures: pd.DataFrame
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.float64]
    history: dict[str, NDArray[np.float64]] | None
    snapshots: dict[int, tuple[Tensor, Internals]]


class Recorder:
    """Records the runs of an engine that makes one step at a time.

    Args:
        cohort: of the runs.
        members: indices of the runs in the cohort, shape (networks,); an index may occur more than once.
        detail: what to keep in addition.
    """

    def __init__(self, cohort: Cohort, members: NDArray[np.intp], detail: Detail) -> None:
        self.cohort, self.members, self.detail = cohort, members, detail
        example, networks = cohort.program.x1, len(members)
        self._so_far = start_of_accumulation(example.dtype, (networks,), example.device)
        self._steps = log_spaced(cohort.steps)
        self._tail = tail_length(cohort.steps)
        zeros = partial(torch.zeros, dtype=torch.float64, device=example.device)
        self._losses, self._epoch_sums = zeros(len(self._steps), networks), zeros(cohort.epochs, networks)
        self._tail_sum, self._final = zeros(networks), zeros(networks)
        self._history: list[Observation] = []
        self._snapshots: dict[int, tuple[Tensor, Internals]] = {}

    def add(self, steps: range, observed: Observation) -> None:
        """Record some steps, which follow those of the last call; tensors of shape (steps, networks)."""
        numbers = torch.arange(steps.start, steps.stop, dtype=torch.int32, device=observed.loss.device)
        for number, *values in zip(numbers, *observed, strict=True):
            self._so_far = accumulate(self._so_far, Observation(*values), number)
        # Sums in float64: a sum of many losses in their own dtype would stop growing.
        loss, iterations = observed.loss.double(), self.cohort.iterations
        self._final = loss[-1]
        # Rows and columns of `loss` count from the first of `steps`.
        for row in np.flatnonzero((steps.start <= self._steps) & (self._steps < steps.stop)):
            self._losses[row] = loss[self._steps[row] - steps.start]
        self._tail_sum += loss[max(0, self.cohort.steps - self._tail - steps.start + 1) :].sum(0)
        for epoch in range((steps.start - 1) // iterations, (steps.stop - 2) // iterations + 1):
            first = epoch * iterations + 1 - steps.start
            self._epoch_sums[epoch] += loss[max(0, first) : first + iterations].sum(0)
        if self.detail.every_step:
            self._history.append(observed)

    def add_snapshot(self, step: int, parameters: Tensor, internals: Internals) -> None:
        """Keep a copy of one step if it was requested; all tensors have a row for each network."""
        if step in self.detail.snapshots:
            self._snapshots[step] = (parameters.clone(), Internals(*(value.clone() for value in internals)))

    def finish(self, parameters: Tensor, corners_right: Tensor, runs: int) -> Trained:
        """Return the first `runs` networks.

        Args:
            parameters: after the last update, shape (networks, width).
            corners_right: number of corners on the right side then, shape (networks,).
            runs: how many of the networks are runs; the others only fill the block.
        """
        measured = measures(
            self.cohort,
            self.members[:runs],
            {name: _numpy(values[:runs]) for name, values in self._so_far.items()},
            initial_loss=_numpy(self._losses[0, :runs]),
            final_loss=_numpy(self._final[:runs]),
            tail_loss=_numpy(self._tail_sum[:runs] / self._tail),
            corners_right=_numpy(corners_right[:runs]),
        )
        history = None
        if self.detail.every_step:
            columns = (torch.cat(column)[:, :runs] for column in zip(*self._history, strict=True))
            history = dict(zip(Observation._fields, map(_numpy, columns), strict=True))
        snapshots = {
            step: (parameters[:runs], Internals(*(value[:runs] for value in internals)))
            for step, (parameters, internals) in self._snapshots.items()
        }
        wide = self.cohort.program.x1.dtype == torch.float64
        return Trained(
            self.cohort,
            self.members[:runs],
            parameters[:runs],
            measured,
            self._steps,
            _numpy(self._losses[:, :runs].T).astype(np.float64 if wide else np.float32),
            _numpy((self._epoch_sums / self.cohort.iterations).T[:runs]),
            history,
            snapshots,
        )


def from_segments(
    cohort: Cohort,
    members: NDArray[np.intp],
    parameters: Tensor,
    so_far: Mapping[str, NDArray[Any]],
    *,
    ends: NDArray[np.int64],
    losses: NDArray[np.floating[Any]],
    sums: NDArray[np.float64],
    corners_right: NDArray[np.integer[Any]],
    history: dict[str, NDArray[np.float64]] | None,
    snapshots: dict[int, tuple[Tensor, Internals]],
) -> Trained:
    """Return runs of an engine that reports segments of steps instead of every step.

    Args:
        cohort: see `Trained`, as are members, parameters, history and snapshots.
        members: likewise.
        parameters: likewise.
        so_far: the result of `accumulate` after the last step, shape (runs,) each.
        ends: the last step of each segment, in order; among them those of `log_spaced`, the end of each epoch, the step
            before the last tenth, and the last step.
        losses: at these steps, shape (runs, segments).
        sums: of the losses in each segment, shape (runs, segments).
        corners_right: number of corners on the right side after the last update, shape (runs,).
        history: see `Trained`.
        snapshots: likewise.
    """
    steps, tail = log_spaced(cohort.steps), tail_length(cohort.steps)
    in_tail = np.searchsorted(ends, cohort.steps - tail, side="right")
    epochs = np.searchsorted(ends, np.arange(cohort.epochs) * cohort.iterations, side="right")
    measured = measures(
        cohort,
        members,
        so_far,
        initial_loss=losses[:, 0],
        final_loss=losses[:, -1],
        tail_loss=sums[:, in_tail:].sum(1) / tail,
        corners_right=corners_right,
    )
    recorded = losses[:, np.searchsorted(ends, steps)]
    epoch_losses = np.add.reduceat(sums, epochs, axis=1) / cohort.iterations
    return Trained(cohort, members, parameters, measured, steps, recorded, epoch_losses, history, snapshots)


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
