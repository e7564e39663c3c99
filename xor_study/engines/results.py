"""What training gives: results in the order of the table, and how far a training is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.model.data import CORNERS
from xor_study.model.network import XORNetwork, empty_network
from xor_study.training.cohorts import DTYPES, Cohort
from xor_study.training.outcome import OUTCOMES, Detail, Recorded, Trained
from xor_study.training.spec import FIELDS, key_of
from xor_study.training.table import plain, run_ids


@dataclass
class Progress:
    """How far a training is; one object, kept up to date.

    Attributes:
        runs, steps: how many there are, steps counted over all networks.
        runs_done, steps_done: how many of them are finished.
        outcomes: of the runs that are finished.
    """

    runs: int
    steps: int
    runs_done: int = 0
    steps_done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def finished(self, measures: pd.DataFrame) -> None:
        """Take in the measures of runs that are finished."""
        counts = measures["outcome"].value_counts()
        self.runs_done += len(measures)
        self.outcomes.update({name: int(counts.get(name, 0)) for name in OUTCOMES})


@dataclass(frozen=True)
class Details:
    """One step of all runs.

    Attributes:
        parameters: by name, after the step's update, shape (runs, *shape); zeros where a run is narrower.
        gradients: likewise, before clipping.
        logits: of the four corners before the update, shape (runs, 4). Zeros where a run has fewer steps.
    """

    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Result:
    """What training some runs gave. All tables have a row for each run, in the order they were given.

    Attributes:
        runs: run_id, the fields (named as on the command line), the measures, engine and device.
        losses: losses at the recorded steps, of the runs' dtype; columns are step numbers, the index is run_id. NaN
            where a run has fewer steps, or where its loss is NaN.
        epoch_losses: mean loss of each epoch, likewise.
        parameters: final parameters by name, shape (runs, *shape). A network that is narrower than the widest is
            filled up with zeros; `network` gives it as it is.
        history: all that was noted of every step, a row for each run and step, or None if it was not asked for.
        snapshots: the steps in detail that were asked for, by number.
    """

    runs: pd.DataFrame
    losses: pd.DataFrame
    epoch_losses: pd.DataFrame
    parameters: dict[str, Tensor]
    history: pd.DataFrame | None
    snapshots: dict[int, Details]

    def network(self, run: int) -> XORNetwork:
        """Return the trained network of the run at place `run`, on the CPU."""
        row = self.runs.iloc[run]
        network = empty_network(
            int(row["hidden"]), row["activation.hidden"], row["activation.output"], dtype=DTYPES[row["dtype"]]
        )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.parameters[name][run][tuple(slice(size) for size in parameter.shape)])
        return network


@dataclass(frozen=True)
class Measured:
    """What came of the runs of a table, in its order, without their parameters.

    Attributes:
        measures: outcome and measures, see `outcome.measures`.
        engines: that trained each, by name.
        steps: whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)), of the runs' dtype; NaN where a run has fewer steps.
        epoch_losses: mean of each epoch, shape (runs, epochs), likewise.
    """

    measures: pd.DataFrame
    engines: NDArray[np.object_]
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]


def described(table: pd.DataFrame, ids: pd.Series[str], *, categories: bool = False) -> pd.DataFrame:
    """Return run_id and fields of a checked table's runs, named as on the command line.

    Args:
        table: checked.
        ids: of `spec.run_ids`.
        categories: leave columns of categories as they are, which takes a hundredth of the time and memory.
    """
    kept = {field: categories and isinstance(table[field].dtype, pd.CategoricalDtype) for field in FIELDS}
    columns = {key_of(field): table[field] if kept[field] else plain(table[field]) for field in FIELDS}
    return pd.DataFrame({"run_id": ids} | columns, copy=False)


class TableRecord:
    """Puts what engines measured of a table's runs back into the order of the table."""

    def __init__(self, runs: int) -> None:
        self.engines = np.empty(runs, dtype=object)
        self.missing = runs
        self.pieces: list[tuple[NDArray[np.intp], Recorded]] = []

    def add(self, engine: str, part: Trained) -> None:
        """Take in what `engine` trained."""
        rows = part.cohort.rows[part.members]
        self.engines[rows] = engine
        self.pieces.append((rows, part.recorded))
        self.missing -= len(rows)

    def measured(self) -> Measured:
        """Return what came of all runs."""
        order = np.argsort(np.concatenate([rows for rows, _ in self.pieces]), kind="stable")
        measures = pd.concat([recorded.measures for _, recorded in self.pieces], ignore_index=True).iloc[order]
        steps, losses = self._wide({id(r): (r.steps, r.losses) for _, r in self.pieces})
        _, epochs = self._wide(
            {id(r): (np.arange(1, r.epoch_losses.shape[1] + 1), r.epoch_losses) for _, r in self.pieces}
        )
        return Measured(measures.reset_index(drop=True), self.engines, steps, losses, epochs)

    def _wide(
        self, values: dict[int, tuple[NDArray[np.int64], NDArray[np.floating[Any]]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        columns = np.unique(np.concatenate([numbers for numbers, _ in values.values()]))
        kind = np.result_type(*(block for _, block in values.values()))
        filled = np.full((len(self.engines), len(columns)), np.nan, kind)
        for rows, recorded in self.pieces:
            numbers, block = values[id(recorded)]
            if len(numbers) == len(columns):
                filled[rows] = block
            else:
                filled[np.ix_(rows, np.searchsorted(columns, numbers))] = block
        return columns, filled


class Collection:
    """Puts what the engines yield, with parameters and details, back into the order of the table."""

    def __init__(self, table: pd.DataFrame, detail: Detail) -> None:
        self.table, self.ids = table, run_ids(table)
        self.record = TableRecord(len(table))
        self.dtype = torch.float64 if (table["dtype"] == "float64").any() else torch.float32
        self.parameters = self._zeros()
        self.snapshots = {
            step: Details(self._zeros(), self._zeros(), torch.zeros(len(table), len(CORNERS), dtype=self.dtype))
            for step in sorted(detail.snapshots)
        }

    def _zeros(self) -> dict[str, Tensor]:
        wide = XORNetwork(int(self.table["hidden"].max()), device="meta")
        return {
            name: torch.zeros(len(self.table), *parameter.shape, dtype=self.dtype)
            for name, parameter in wide.named_parameters()
        }

    def add(self, engine: str, part: Trained) -> None:
        """Take in what `engine` trained."""
        self.record.add(engine, part)
        cohort, members, recorded, parameters = part
        rows = cohort.rows[members]
        self._place(self.parameters, cohort, rows, parameters)
        for step, snapshot in recorded.snapshots.items():
            kept = self.snapshots[step]
            self._place(kept.parameters, cohort, rows, snapshot.parameters)
            self._place(kept.gradients, cohort, rows, snapshot.gradient)
            kept.logits[torch.from_numpy(rows)] = snapshot.logits.to(kept.logits)

    def _place(self, named: dict[str, Tensor], cohort: Cohort, rows: NDArray[np.intp], flat: Tensor) -> None:
        for name, value in cohort.program.named(flat.detach().cpu()).items():
            region: tuple[Any, ...] = (torch.from_numpy(rows), *(slice(size) for size in value.shape[1:]))
            named[name][region] = value.to(self.dtype)

    def result(self, device: str) -> Result:
        """Return all of it."""
        measured, history = self.record.measured(), self._history()
        runs = pd.concat([described(self.table, self.ids), measured.measures], axis=1)
        index = pd.Index(self.ids, name="run_id")
        epochs = pd.Index(np.arange(1, measured.epoch_losses.shape[1] + 1), name="epoch")
        losses = pd.DataFrame(measured.losses, index=index, columns=pd.Index(measured.steps, name="step"))
        means = pd.DataFrame(measured.epoch_losses, index=index, columns=epochs)
        runs = runs.assign(engine=measured.engines, device=device)
        return Result(runs, losses, means, self.parameters, history, self.snapshots)

    def _history(self) -> pd.DataFrame | None:
        tables = []
        for rows, recorded in self.record.pieces:
            if recorded.history is None:
                return None
            steps = len(recorded.history["loss"])
            iterations = np.repeat(self.table["iterations"].to_numpy()[rows], steps)
            columns = {
                "row": np.repeat(rows, steps),
                "run_id": np.repeat(self.ids.to_numpy()[rows], steps),
                "step": np.tile(np.arange(1, steps + 1), len(rows)),
            }
            columns["epoch"] = (columns["step"] - 1) // iterations + 1
            noted = {name: values.T.reshape(-1) for name, values in recorded.history.items()}
            tables.append(pd.DataFrame(columns | noted))
        return pd.concat(tables).sort_values(["row", "step"]).drop(columns="row").reset_index(drop=True)
