"""Engines: different ways to compute the same training, and `train`, the one entry to all of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study import spec
from xor_study.catalogue import StudyError, show, suggestion
from xor_study.data import CORNERS, Batches
from xor_study.engines import lanes, plain, vmap
from xor_study.engines.lanes.llvm import NotCompilable
from xor_study.network import XORNetwork, empty_network
from xor_study.outcome import OUTCOMES, Detail, Recorded, Trained
from xor_study.spec import FIELDS, RunSpec, key_of, run_ids, table_of
from xor_study.training import DTYPES, Cohort, cohorts

Key = TypeVar("Key")
Engine = Callable[[Iterable[Cohort], Detail, Callable[[int], None]], Iterator[Trained]]

ENGINES: dict[str, Engine] = {"plain": plain.train, "vmap": vmap.train, "lanes": lanes.train}
AUTO = "auto"
"""The fastest engine that can do it: lanes, or else vmap."""


class FallbackWarning(UserWarning):
    """Some runs can't be compiled and are trained by another engine."""


MOST_THREADS = 1024


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
    columns = {key_of(field): table[field] if kept[field] else spec.plain(table[field]) for field in FIELDS}
    return pd.DataFrame({"run_id": ids} | columns, copy=False)


def check_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        StudyError: if it is not "cpu" or "cuda", or if there is no such CUDA device here.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise StudyError(f"device={show(name)}: must be cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here"
        raise StudyError(f"device={show(name)}: {seen}; use device=cpu")
    return device


def check_engine(name: str, device: str = "cpu", threads: int | None = None) -> str:
    """Return the name of an engine, or "auto".

    Raises:
        StudyError: if there is no such engine, or if it can't run on the device or with so many threads.
    """
    if name != AUTO and name not in ENGINES:
        raise StudyError(f"engine={show(name)}: unknown{suggestion(str(name), [AUTO, *ENGINES])}")
    if name == "lanes" and check_device(device).type != "cpu":
        raise StudyError(f"engine=lanes device={show(device)}: it runs on the CPU only; use engine=vmap")
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise StudyError(f"threads={show(threads)}: must be a whole number in [1, {MOST_THREADS}]")
        if name not in (AUTO, "lanes"):
            raise StudyError(f"threads={threads} engine={name}: it has one thread; only lanes has several")
    return name


def check_compilable(table: pd.DataFrame, device: str) -> None:
    """Raise StudyError if lanes is known not to compile some runs of a checked table."""
    for cohort in cohorts(table, check_device(device)):
        lanes.check(cohort)


def train(
    runs: RunSpec | Iterable[RunSpec] | pd.DataFrame,
    *,
    engine: str = AUTO,
    device: str = "cpu",
    threads: int | None = None,
    every_step: bool = False,
    snapshots: Iterable[int] = (),
    batches: tuple[Any, Any] | None = None,
    initial: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train networks and say what came of each.

    Args:
        runs: specs, or a table with one column for each field (missing ones mean the default).
        engine: "plain", "vmap", "lanes", or "auto": lanes where it can, else vmap with a `FallbackWarning`.
        device: "cpu", "cuda" or "cuda:N".
        threads: that lanes may use; None for one on each core. They change no bit of the result.
        every_step: keep what is noted of every step (`Result.history`) instead of a few dozen losses.
        snapshots: numbers of steps of which to keep parameters, gradients and logits (`Result.snapshots`).
        batches: recorded inputs (x1, x2), shape (steps, samples) each, for all runs, instead of those of their seeds.
        initial: initial parameters by name, shape (*shape) or (runs, *shape), instead of those of the seeds. With given
            batches or parameters a run_id is that of the spec, and no longer says all about the run.
        progress: called every now and then, and at the end.

    Raises:
        StudyError: if anything asked for is not possible; nothing has been trained then.
    """
    table = table_of([runs] if isinstance(runs, RunSpec) else runs)
    return train_table(
        table,
        Detail(every_step, frozenset(snapshots)),
        engine=engine,
        device=device,
        threads=threads,
        batches=batches,
        initial=initial,
        progress=progress,
    )


def train_table(
    table: pd.DataFrame,
    detail: Detail,
    *,
    engine: str = AUTO,
    device: str = "cpu",
    threads: int | None = None,
    batches: tuple[Any, Any] | None = None,
    initial: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Do what `train` does with a table that `spec.table_of` has checked."""
    check_engine(engine, device, threads)
    given = Batches.explicit(*batches) if batches is not None else None
    groups = list(cohorts(table, check_device(device), given, initial))
    state = Progress(len(table), int((table["epochs"] * table["iterations"]).sum()))
    longest = int((table["epochs"] * table["iterations"]).max())
    for step in detail.snapshots:
        if not 1 <= step <= longest:
            raise StudyError(f"snapshots: step {step}: must be in [1, {longest}]")
    collected = _Collection(table, detail)

    def advance(steps: int) -> None:
        state.steps_done += steps
        if progress is not None:
            progress(state)

    for name, part in _trained(groups, engine, threads, detail, advance):
        collected.add(name, part)
        state.finished(part.recorded.measures)
        advance(0)
    return collected.result(device)


def train_batches(
    batches: Iterable[tuple[Key, pd.DataFrame]],
    *,
    engine: str = AUTO,
    device: str = "cpu",
    threads: int | None = None,
    advance: Callable[[int, pd.DataFrame | None], None],
) -> Generator[tuple[Key, Measured], None, None]:
    """Train checked tables one after another, without a pause between them, and yield what came of each.

    Args:
        batches: tables from `spec.table_of`, each under a key of the caller's; taken when the engine can use more.
        engine: see `train`, as are device and threads.
        device: likewise.
        threads: likewise.
        advance: is told network-steps made since it was last called, and measures of runs that are finished.
    """
    check_engine(engine, device, threads)
    on, waiting = check_device(device), dict[int, tuple[Cohort, Key, _Record]]()

    def feed() -> Iterator[Cohort]:
        for key, table in batches:
            record = _Record(len(table))
            for cohort in cohorts(table, on):
                waiting[id(cohort)] = (cohort, key, record)  # kept, so that its id stays its own
                yield cohort

    for name, part in _trained(feed(), engine, threads, Detail(), lambda steps: advance(steps, None)):
        _, key, record = waiting[id(part.cohort)]
        record.add(name, part)
        advance(0, part.recorded.measures)
        if record.missing == 0:
            for number in [number for number, (_, _, own) in waiting.items() if own is record]:
                del waiting[number]
            yield key, record.measured()


def _trained(
    cohorts: Iterable[Cohort], engine: str, threads: int | None, detail: Detail, progress: Callable[[int], None]
) -> Iterator[tuple[str, Trained]]:
    """Yield what came of the runs, each with the engine that trained it."""
    if engine not in (AUTO, "lanes"):
        yield from ((engine, part) for part in ENGINES[engine](cohorts, detail, progress))
        return
    refused: list[tuple[Cohort, NotCompilable]] = []
    refuse = None if engine == "lanes" else lambda cohort, error: refused.append((cohort, error))
    for part in lanes.train(cohorts, detail, progress, threads, refuse):
        yield "lanes", part
    if refused:
        runs = sum(len(cohort.rows) for cohort, _ in refused)
        warnings.warn(f"{refused[0][1]}; engine=vmap for {runs} runs", FallbackWarning, stacklevel=4)
        for part in vmap.train([cohort for cohort, _ in refused], detail, progress):
            yield "vmap", part


class _Record:
    """Puts what engines measured of a table's runs back into the order of the table."""

    def __init__(self, runs: int) -> None:
        self.engines = np.empty(runs, dtype=object)
        self.missing = runs
        self.pieces: list[tuple[NDArray[np.intp], Recorded]] = []

    def add(self, engine: str, part: Trained) -> None:
        rows = part.cohort.rows[part.members]
        self.engines[rows] = engine
        self.pieces.append((rows, part.recorded))
        self.missing -= len(rows)

    def measured(self) -> Measured:
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


class _Collection:
    """Puts what the engines yield, with parameters and details, back into the order of the table."""

    def __init__(self, table: pd.DataFrame, detail: Detail) -> None:
        self.table, self.ids = table, run_ids(table)
        self.record = _Record(len(table))
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
