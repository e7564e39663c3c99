"""Train a run with the fast engine, and repeat the steps around its onset with `plain` under the autopsy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xor_study.autopsy import Report, autopsy
from xor_study.engines import AUTO, FallbackWarning, check_compilable, train_table
from xor_study.engines.plain import Training
from xor_study.engines.results import Progress, Result
from xor_study.errors import StudyError
from xor_study.training.cohorts import Cohort, cohorts
from xor_study.training.corners import Corners, corners
from xor_study.training.outcome import CHUNK, Detail
from xor_study.training.spec import RunSpec
from xor_study.training.step import Internals, Observation
from xor_study.training.table import table_of

BEFORE, AFTER = 15, 5
"""Steps that are watched before the onset and, at most, after it."""

MOST_STEPS = 10**6
"""The longest run that is examined; every step is kept, which takes some hundred megabytes."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        engine: as in `xor_study.train`.
        device: as in `xor_study.train`.
        threads: as in `xor_study.train`.
        progress: called with the progress of each training.
    """

    engine: str = AUTO
    device: str = "cpu"
    threads: int | None = None
    progress: Callable[[Progress], None] | None = None

    def engine_of(self, table: pd.DataFrame) -> str:
        """Return the engine for the runs of a table: plain trains a single run faster than vmap does."""
        if self.engine != AUTO or self.device != "cpu":
            return self.engine
        return AUTO if len(table) > 1 or compiles(table) else "plain"


def compiles(table: pd.DataFrame) -> bool:
    """Return whether lanes, which takes little time for a hundred runs, can train those of a checked table."""
    try:
        check_compilable(table, "cpu")
    except StudyError:
        return False
    return True


def trained(runs: pd.DataFrame, settings: Settings, detail: Detail) -> Result:
    """Train the runs of a checked table."""
    engine = settings.engine_of(runs)
    threads = settings.threads if engine in (AUTO, "lanes") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the result names the engine
        return train_table(
            runs, detail, engine=engine, device=settings.device, threads=threads, progress=settings.progress
        )


@dataclass(frozen=True)
class TrainedRun:
    """A run as the fast engine trained it.

    Attributes:
        spec: the run.
        result: with every step's history.
        cohort: of this run alone, on the CPU.
        arguments: the arguments of its loss, optimizer and clipping, by group and name.
    """

    spec: RunSpec
    result: Result
    cohort: Cohort
    arguments: Mapping[str, Mapping[str, Any]]

    @property
    def outcome(self) -> str:
        """The run's outcome."""
        return str(self.result.runs["outcome"].iloc[0])

    @property
    def engine(self) -> str:
        """The engine that trained it."""
        return str(self.result.runs["engine"].iloc[0])

    @property
    def onset(self) -> int | None:
        """The first step whose loss, gradient or update is not finite."""
        return optional(self.result.runs["first_nonfinite_step"].iloc[0])

    @property
    def steps(self) -> int:
        """The number of steps."""
        return int(self.spec.epochs * self.spec.iterations)

    def present(self, step: int) -> Tensor:
        """Return whether each corner is in the batch of a step, boolean of shape (4,)."""
        counts = self.cohort.batches.counts(np.array([0]), range(step, step + 1))[0, 0]
        return torch.from_numpy(counts > 0)

    def corners(self, parameters: Tensor) -> Corners:
        """Return what the run's network computes on the four corners with some parameters, shape (width,)."""
        return corners(self.cohort.program, self.arguments["loss"], parameters)

    @property
    def history(self) -> pd.DataFrame:
        """The measures of every step, indexed by its number."""
        assert self.result.history is not None
        return self.result.history.set_index("step")


def optional(step: Any) -> int | None:
    """Return a step number, or None if it is missing."""
    return None if pd.isna(step) else int(step)


def train_run(spec: RunSpec, settings: Settings) -> TrainedRun:
    """Train a run with the fast engine and keep every step.

    Raises:
        StudyError: if it has too many steps.
    """
    steps = spec.epochs * spec.iterations
    if steps > MOST_STEPS:
        given = f"epochs={spec.epochs} iterations={spec.iterations}"
        raise StudyError(f"{given}: {steps} steps; the autopsy keeps every step, of at most {MOST_STEPS}")
    table = table_of([spec])
    (cohort,) = cohorts(table)
    return TrainedRun(
        spec, trained(table, settings, Detail(every_step=True)), cohort, Training(cohort, 0).hyperparameters
    )


@dataclass
class Replay:
    """Some steps of a run, repeated with `plain` under the autopsy.

    Attributes:
        first: the first step that was watched.
        from_start: whether `plain` trained from the start; otherwise from the fast engine's parameters before `first`.
        onset: the first step that is not finite in the replay; None if all are finite.
        report: the autopsy's; it counts steps from `first`.
        before: the parameters before each watched step and after the last, by the step's number, shape (width,).
    """

    first: int
    from_start: bool
    onset: int | None
    report: Report
    before: dict[int, Tensor]

    @property
    def last(self) -> int:
        """The last step that was watched."""
        return max(self.before) - 1


def replay_run(run: TrainedRun, settings: Settings) -> Replay:
    """Repeat the steps around the one at which a run stops being finite.

    A run whose optimizer has no state starts from the fast engine's parameters a few steps before. Any other run, and
    one whose onset differs then, starts from its beginning: engines round differently, so trajectories diverge.
    """
    onset = run.onset
    assert onset is not None
    first = max(1, onset - BEFORE)
    if first > 1 and not _has_memory(run.spec):
        snapshot = trained(
            table_of([run.spec.replace(epochs=1, iterations=onset)]),
            settings,
            Detail(snapshots=frozenset([first - 1])),
        )
        start = {name: value[0] for name, value in snapshot.snapshots[first - 1].parameters.items()}
        replay = _watch(run, first, onset, start)
        if replay.onset == onset:
            return replay
    replay = _watch(run, first, onset, None)
    if replay.onset == onset:
        return replay
    onset_of_plain = _onset_of_plain(run, settings)
    return replay if onset_of_plain is None else _watch(run, max(1, onset_of_plain - BEFORE), onset_of_plain, None)


def _has_memory(spec: RunSpec) -> bool:
    """Return whether the optimizer carries anything but the parameters from step to step."""
    return spec.optimizer != "sgd" or bool(spec.optimizer_momentum)


def _watch(run: TrainedRun, first: int, onset: int, start: Mapping[str, Tensor] | None) -> Replay:
    (cohort,) = cohorts(table_of([run.spec]), initial=start)
    after: dict[int, Tensor] = {}

    def keep(number: int, parameters: Tensor, internals: Internals) -> None:
        after[number + 1] = parameters[0].clone()

    training = Training(cohort, 0, keep)
    if start is None:
        for chunk in range(1, first, CHUNK):
            training.take(range(chunk, min(chunk + CHUNK, first)))
    before, onset_of_plain = {first: training.parameters().clone()}, None
    with autopsy(keep=BEFORE + AFTER + 1) as report:
        for step in range(first, min(onset + AFTER, run.steps) + 1):
            # What only serves the measures may overflow without the training being at fault, so it is exempt.
            (observation,) = training.take(range(step, step + 1), report.allow)
            if onset_of_plain is None and not is_finite(observation):
                onset_of_plain = step
            if not torch.isfinite(after[step + 1]).any():
                break
    before |= {step: value for step, value in after.items() if step > first}
    return Replay(first, start is None, onset_of_plain, report, before)


def _onset_of_plain(run: TrainedRun, settings: Settings) -> int | None:
    """Return at which step `plain` stops being finite from the start, or None."""
    table = table_of([run.spec])
    onset = trained(table, Settings("plain", progress=settings.progress), Detail()).runs["first_nonfinite_step"]
    return optional(onset.iloc[0])


def is_finite(step: Observation) -> bool:
    """Return whether a step's loss, gradient and update are finite, by the rule for a run's outcome."""
    values = torch.stack([step.loss, step.max_abs_grad, step.max_abs_parameter])
    return bool(torch.isfinite(values).all())
