"""Results of training: how far it is, and what it gave, in the order of the table of runs."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.errors import StudyError
from xor_study.model.data import CORNERS
from xor_study.model.network import XORNetwork, empty_network
from xor_study.training.cohorts import DTYPES
from xor_study.training.outcome import OUTCOMES, Detail, Trained
from xor_study.training.spec import FIELDS, key_of
from xor_study.training.table import plain, run_ids


def _counts(outcomes: Mapping[str, int]) -> str:
    """Return outcomes with their numbers of runs, such as "3 solved, 1 nonfinite"."""
    return ", ".join(f"{outcomes[name]:,} {name}" for name in OUTCOMES if outcomes.get(name, 0) > 0)


@dataclass(repr=False)
class Progress:
    """How far a training is; one object, kept up to date.

    Attributes:
        runs, steps: to be trained; steps are summed over all networks.
        runs_done, steps_done: finished so far.
        outcomes: numbers of finished runs by outcome.
    """

    runs: int
    steps: int
    runs_done: int = 0
    steps_done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __repr__(self) -> str:
        done = f"{self.runs_done:,} of {self.runs:,} runs, {self.steps_done:,} of {self.steps:,} steps"
        return f"<Progress: {'; '.join(filter(None, [done, _counts(self.outcomes)]))}>"

    def finished(self, measures: pd.DataFrame) -> None:
        """Count runs that have finished, given their measures."""
        counts = measures["outcome"].value_counts()
        self.runs_done += len(measures)
        self.outcomes.update({name: int(counts.get(name, 0)) for name in OUTCOMES})


@dataclass(frozen=True)
class Snapshot:
    """One step of all runs of a `Result`, in its order.

    Attributes:
        parameters: by name, after the step's update, shape (runs, *shape); zeros where a network is narrower.
        gradients: of the loss by the parameters, before clipping, in the same form.
        logits: of the four corners before the update, shape (runs, 4); zeros where a run has fewer steps.
    """

    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True, repr=False)
class Result:
    """What `train` returns. All tables have a row for each run, in the order in which the runs were given.

    Attributes:
        runs: run_id, the fields (named as on the command line), the measures, engine and device.
        losses: losses at the recorded steps, of the runs' dtype; columns are step numbers, the index is run_id. NaN
            where a run has fewer steps, or where its loss is NaN.
        epoch_losses: mean loss of each epoch, in the same form.
        parameters: final parameters by name, shape (runs, *shape). A network that is narrower than the widest is
            filled up with zeros; `network` returns it in its own size. Empty for runs from a folder.
        history: the observations of every step, a row for each run and step, or None if not requested.
        snapshots: the requested steps, by number.
    """

    runs: pd.DataFrame
    losses: pd.DataFrame
    epoch_losses: pd.DataFrame
    parameters: dict[str, Tensor]
    history: pd.DataFrame | None
    snapshots: dict[int, Snapshot]

    def __repr__(self) -> str:
        engines = ", ".join(self.runs["engine"].unique())
        runs = f"{len(self.runs):,} run{'s' if len(self.runs) > 1 else ''}"
        return f"<Result of {runs}: {_counts(Counter(self.runs['outcome']))}; engine {engines}>"

    def _repr_html_(self) -> str:
        """Return the table of outcomes for a notebook: a row for each setting, its seeds counted together."""
        keys = [key for key in map(key_of, FIELDS) if key != "seed" and self.runs[key].nunique(dropna=False) > 1]
        counts = pd.DataFrame({"runs": 1} | {name: self.runs["outcome"] == name for name in OUTCOMES})
        setting = self.runs[keys].astype(object).to_records(index=False).tolist() if keys else [("all",)] * len(counts)
        index = pd.MultiIndex.from_tuples(setting, names=keys or ["setting"])
        table = counts.set_index(index).groupby(level=list(range(index.nlevels)), sort=False, dropna=False).sum()
        more = f"<p>and {len(table) - _HTML_ROWS:,} more settings</p>" if len(table) > _HTML_ROWS else ""
        return f"<p>{html.escape(repr(self))}</p>{table.head(_HTML_ROWS).to_html()}{more}"

    def network(self, run: int) -> XORNetwork:
        """Return the trained network of one run, on the CPU, in its dtype.

        Args:
            run: its position in `runs`, from 0.

        Raises:
            StudyError: if the runs come from a folder (`train(..., folder=...)`).

        Example:
            >>> from xor_study import RunSpec, train
            >>> network = train(RunSpec(hidden=3, epochs=1, iterations=1), engine="plain").network(0)
            >>> network.hidden.weight.shape
            torch.Size([3, 2])
        """
        if not self.parameters:
            raise StudyError("network: the runs come from a folder, which has no parameters; train without folder=")
        row = self.runs.iloc[run]
        network = empty_network(
            int(row["hidden"]), row["activation.hidden"], row["activation.output"], dtype=DTYPES[row["dtype"]]
        )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                # The network may be narrower than the widest, to which all are filled up.
                parameter.copy_(self.parameters[name][run][tuple(slice(size) for size in parameter.shape)])
        return network


_HTML_ROWS = 20


@dataclass(frozen=True)
class Measured:
    """The measures and losses of a table's runs, in its order: what a sweep keeps, a `Result` without parameters.

    Attributes:
        measures: see `outcome.measures`.
        engines: the name of the engine that trained each run, shape (runs,).
        steps: the steps whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)), of the runs' dtype; NaN where a run has fewer steps.
        epoch_losses: mean of each epoch, shape (runs, epochs); NaN where a run has fewer epochs.
    """

    measures: pd.DataFrame
    engines: NDArray[np.object_]
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]


def described(table: pd.DataFrame, ids: pd.Series[str], *, categories: bool = False) -> pd.DataFrame:
    """Return run_id and fields of a checked table's runs, named as on the command line.

    Args:
        table: from `table.table_of`.
        ids: from `table.run_ids`.
        categories: leave categorical columns as they are, which takes a hundredth of the time and memory.
    """
    columns = {}
    for name in FIELDS:
        unchanged = categories and isinstance(table[name].dtype, pd.CategoricalDtype)
        columns[key_of(name)] = table[name] if unchanged else plain(table[name])
    return pd.DataFrame({"run_id": ids} | columns, copy=False)


Positions = NDArray[np.intp] | slice


def span(positions: NDArray[np.intp]) -> Positions:
    """Return consecutive positions as a slice, which numpy reads and writes three times as fast; others as they are."""
    consecutive = len(positions) > 0 and positions[-1] - positions[0] == len(positions) - 1
    if consecutive and (np.diff(positions) == 1).all():
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


class Blocks:
    """A table of numbers put together from blocks of rows, each with some of the columns; NaN where no block is.

    Args:
        rows: of the table.
        columns: numbers of the columns of each block, in ascending order.
        dtypes: of each block.

    Attributes:
        columns: the union of the blocks' columns, in ascending order.
        values: shape (rows, columns), of the widest dtype, at least float32.

    Example:
        >>> steps, blocks = [np.array([1, 2]), np.array([1, 2, 3])], [np.ones((2, 2)), np.zeros((1, 3))]
        >>> table = Blocks(3, steps, [block.dtype for block in blocks])
        >>> table.put(np.array([0, 2]), steps[0], blocks[0])
        >>> table.put(np.array([1]), steps[1], blocks[1])
        >>> table.values
        array([[ 1.,  1., nan],
               [ 0.,  0.,  0.],
               [ 1.,  1., nan]])
    """

    def __init__(self, rows: int, columns: Iterable[NDArray[np.int64]], dtypes: Iterable[np.dtype[Any]]) -> None:
        distinct = {numbers.tobytes(): numbers for numbers in columns}  # most blocks have the same columns
        self.columns = np.unique(np.concatenate([np.zeros(0, np.int64), *distinct.values()]))
        self.values = np.full((rows, len(self.columns)), np.nan, np.result_type(np.float32, *dtypes))

    def put(self, rows: NDArray[np.intp], columns: NDArray[np.int64], block: NDArray[np.floating[Any]]) -> None:
        """Write a block, shape (rows, columns), at some rows of the table."""
        down, across = span(rows), span(np.searchsorted(self.columns, columns))
        if isinstance(down, slice) or isinstance(across, slice):
            self.values[down, across] = block
        else:  # two arrays would be taken as pairs of a row and a column
            self.values[np.ix_(down, across)] = block


class Collector:
    """Collects the runs of a table as engines finish them, and returns them in the order of the table."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table, self.missing = table, len(table)
        self.engines = np.empty(len(table), dtype=object)
        self.dtype = torch.float64 if (table["dtype"] == "float64").any() else torch.float32
        self.parts: list[tuple[NDArray[np.intp], Trained]] = []

    def add(self, engine: str, part: Trained) -> None:
        """Take in runs that an engine has trained."""
        rows = part.cohort.rows[part.members]
        self.engines[rows] = engine
        self.parts.append((rows, part))
        self.missing -= len(rows)

    def measured(self) -> Measured:
        """Return measures and losses of all runs."""
        # Stable, and every row occurs once: this is the inverse of the order in which the runs came.
        order = np.argsort(np.concatenate([rows for rows, _ in self.parts]), kind="stable")
        measures = pd.concat([part.measures for _, part in self.parts], ignore_index=True).iloc[order]
        losses = self._wide([(rows, part.steps, part.losses) for rows, part in self.parts])
        epochs = self._wide(
            [(rows, np.arange(1, part.cohort.epochs + 1), part.epoch_losses) for rows, part in self.parts]
        )
        return Measured(measures.reset_index(drop=True), self.engines, losses.columns, losses.values, epochs.values)

    def _wide(self, blocks: list[tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.floating[Any]]]]) -> Blocks:
        wide = Blocks(len(self.table), [columns for _, columns, _ in blocks], [block.dtype for *_, block in blocks])
        for block in blocks:
            wide.put(*block)
        return wide

    def result(self, device: str, detail: Detail) -> Result:
        """Return all that is known of all runs.

        Args:
            device: its name, for the column of that name.
            detail: what the engines were told to keep.
        """
        measured, ids = self.measured(), run_ids(self.table)
        runs = pd.concat([described(self.table, ids), measured.measures], axis=1)
        index = pd.Index(ids, name="run_id")
        epochs = pd.Index(np.arange(1, measured.epoch_losses.shape[1] + 1), name="epoch")
        losses = pd.DataFrame(measured.losses, index=index, columns=pd.Index(measured.steps, name="step"))
        means = pd.DataFrame(measured.epoch_losses, index=index, columns=epochs)
        runs = runs.assign(engine=measured.engines, device=device)
        parameters = self._named((rows, part, part.parameters) for rows, part in self.parts)
        snapshots = {step: self._snapshot(step) for step in sorted(detail.snapshots)}
        return Result(runs, losses, means, parameters, self._history(ids) if detail.every_step else None, snapshots)

    def _named(self, values: Iterable[tuple[NDArray[np.intp], Trained, Tensor]]) -> dict[str, Tensor]:
        """Return one vector of parameters for each run by name, given vectors of shape (rows, width)."""
        wide = XORNetwork(int(self.table["hidden"].max()), device="meta")
        named = {
            name: torch.zeros(len(self.table), *parameter.shape, dtype=self.dtype)
            for name, parameter in wide.named_parameters()
        }
        for rows, part, flat in values:
            for name, value in part.cohort.program.named(flat.detach().cpu()).items():
                region: tuple[Any, ...] = (torch.from_numpy(rows), *(slice(size) for size in value.shape[1:]))
                named[name][region] = value.to(self.dtype)
        return named

    def _snapshot(self, step: int) -> Snapshot:
        parts = [(rows, part, *part.snapshots[step]) for rows, part in self.parts if step in part.snapshots]
        logits = torch.zeros(len(self.table), len(CORNERS), dtype=self.dtype)
        for rows, _, _, internals in parts:
            logits[torch.from_numpy(rows)] = internals.logits.to(logits)
        parameters = self._named((rows, part, parameters) for rows, part, parameters, _ in parts)
        gradients = self._named((rows, part, internals.gradient) for rows, part, _, internals in parts)
        return Snapshot(parameters, gradients, logits)

    def _history(self, ids: pd.Series[str]) -> pd.DataFrame:
        tables = []
        for rows, part in self.parts:
            steps = part.cohort.steps
            columns = {
                "row": np.repeat(rows, steps),
                "run_id": np.repeat(ids.to_numpy()[rows], steps),
                "step": np.tile(np.arange(1, steps + 1), len(rows)),
            }
            columns["epoch"] = (columns["step"] - 1) // part.cohort.iterations + 1
            observed = {name: values.T.reshape(-1) for name, values in (part.history or {}).items()}
            tables.append(pd.DataFrame(columns | observed))
        return pd.concat(tables).sort_values(["row", "step"]).drop(columns="row").reset_index(drop=True)
