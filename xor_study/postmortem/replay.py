"""Find where a run stops being finite with the fast engine, and do that part again with `plain`, under the watch."""

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
"""Steps that are watched before the event and, at most, after it."""

MOST_STEPS = 10**6
"""Of a run whose every step is kept: some hundred megabytes."""


@dataclass(frozen=True)
class Settings:
    """What a run trains with: `engine`, `device` and `threads` of `engines.train`, and what follows the progress."""

    engine: str = AUTO
    device: str = "cpu"
    threads: int | None = None
    progress: Callable[[Progress], None] | None = None

    def engine_of(self, table: pd.DataFrame) -> str:
        """Return which engine trains the runs of a table: of a single run, plain is faster than vmap."""
        if self.engine != AUTO or self.device != "cpu":
            return self.engine
        return AUTO if len(table) > 1 or compiles(table) else "plain"


def compiles(table: pd.DataFrame) -> bool:
    """Return whether lanes, which trains a hundred runs in no time, can train those of a checked table."""
    try:
        check_compilable(table, "cpu")
    except StudyError:
        return False
    return True


def trained(runs: pd.DataFrame, settings: Settings, detail: Detail) -> Result:
    """Return what came of the runs of a checked table."""
    engine = settings.engine_of(runs)
    threads = settings.threads if engine in (AUTO, "lanes") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the table says which engine it was
        return train_table(
            runs, detail, engine=engine, device=settings.device, threads=threads, progress=settings.progress
        )


@dataclass(frozen=True)
class Found:
    """A run as the fast engine trained it.

    Attributes:
        spec: what run.
        result: with every step's history.
        cohort: of this run alone, on the CPU.
        own: the parameters of its loss, optimizer and clipping, by group and name.
    """

    spec: RunSpec
    result: Result
    cohort: Cohort
    own: Mapping[str, Mapping[str, Any]]

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
        """Steps the run takes."""
        return int(self.spec.epochs * self.spec.iterations)

    def present(self, step: int) -> Tensor:
        """Return whether each corner stands in the batch of a step, shape (4,)."""
        counts = self.cohort.batches.counts(np.array([0]), range(step, step + 1))[0, 0]
        return torch.from_numpy(counts > 0)

    def corners(self, parameters: Tensor) -> Corners:
        """Return what the run's network computes on the four corners with some parameters, shape (width,)."""
        return corners(self.cohort.program, self.own["loss"], parameters)

    @property
    def history(self) -> pd.DataFrame:
        """What was noted of every step, by its number."""
        assert self.result.history is not None
        return self.result.history.set_index("step")


def optional(step: Any) -> int | None:
    """Return a step number, or None where it is missing."""
    return None if pd.isna(step) else int(step)


def find(spec: RunSpec, settings: Settings) -> Found:
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
    return Found(spec, trained(table, settings, Detail(every_step=True)), cohort, Training(cohort, 0).own)


@dataclass
class Replay:
    """Some steps of a run, done again with `plain`.

    Attributes:
        first: the first step that was watched.
        from_start: whether `plain` trained it from the start, or from the fast engine's parameters before `first`.
        onset: the first step that is not finite here; None where all are finite.
        report: of the watch; its steps are counted from `first`.
        before: the parameters before each step that was watched, by number, shape (width,); also after the last.
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


def replay(found: Found, settings: Settings) -> Replay:
    """Do again, with `plain` and watched, the steps around the one at which a run stops being finite.

    An optimizer without memory starts from the fast engine's parameters just before; any other, or where `plain` then
    parts from the fast engine, from the start of the run.
    """
    onset = found.onset
    assert onset is not None
    first = max(1, onset - BEFORE)
    if first > 1 and not _has_memory(found.spec):
        snapshot = trained(
            table_of([found.spec.replace(epochs=1, iterations=onset)]),
            settings,
            Detail(snapshots=frozenset([first - 1])),
        )
        start = {name: value[0] for name, value in snapshot.snapshots[first - 1].parameters.items()}
        again = _watched(found, first, onset, start)
        if again.onset == onset:
            return again
    again = _watched(found, first, onset, None)
    if again.onset == onset:
        return again
    own_onset = _onset_of_plain(found, settings)
    return again if own_onset is None else _watched(found, max(1, own_onset - BEFORE), own_onset, None)


def _has_memory(spec: RunSpec) -> bool:
    """Return whether the optimizer carries anything but the parameters from step to step."""
    return spec.optimizer != "sgd" or bool(spec.optimizer_momentum)


def _watched(found: Found, first: int, onset: int, start: Mapping[str, Tensor] | None) -> Replay:
    (cohort,) = cohorts(table_of([found.spec]), initial=start)
    kept: dict[int, Tensor] = {}

    def keep(number: int, parameters: Tensor, internals: Internals) -> None:
        kept[number + 1] = parameters[0].clone()

    training = Training(cohort, 0, keep)
    if start is None:
        for chunk in range(1, first, CHUNK):
            training.take(range(chunk, min(chunk + CHUNK, first)))
    before, own_onset = {first: training.parameters().clone()}, None
    with autopsy(keep=BEFORE + AFTER + 1) as report:
        for step in range(first, min(onset + AFTER, found.steps) + 1):
            (noted,) = training.take(range(step, step + 1), report.allow)
            if own_onset is None and not is_finite(noted):
                own_onset = step
            if not torch.isfinite(kept[step + 1]).any():
                break
    before |= {step: value for step, value in kept.items() if step > first}
    return Replay(first, start is None, own_onset, report, before)


def _onset_of_plain(found: Found, settings: Settings) -> int | None:
    """Return at which step `plain` stops being finite from the start, or None."""
    table = table_of([found.spec])
    onset = trained(table, Settings("plain", progress=settings.progress), Detail()).runs["first_nonfinite_step"]
    return optional(onset.iloc[0])


def is_finite(noted: Observation) -> bool:
    """Return whether a step's loss, gradient and update are finite, as `outcome.Recorder` judges it."""
    values = torch.stack([noted.loss, noted.max_abs_grad, noted.max_abs_parameter])
    return bool(torch.isfinite(values).all())
