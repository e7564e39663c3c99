"""Engines: different ways to compute the same training, and `train`, the one entry to all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pandas as pd
import torch

from xor_study.engines import lanes, plain, vmap
from xor_study.engines.lanes.llvm import NotCompilable
from xor_study.engines.results import Collection, Measured, Progress, Result, TableRecord
from xor_study.errors import StudyError, show, suggestion
from xor_study.model.data import Batches
from xor_study.training.cohorts import Cohort, cohorts
from xor_study.training.outcome import Detail, Trained
from xor_study.training.spec import RunSpec
from xor_study.training.table import table_of

Key = TypeVar("Key")
Engine = Callable[[Iterable[Cohort], Detail, Callable[[int], None]], Iterator[Trained]]

ENGINES: dict[str, Engine] = {"plain": plain.train, "vmap": vmap.train, "lanes": lanes.train}
AUTO = "auto"
"""The fastest engine that can do it: lanes, or else vmap."""


class FallbackWarning(UserWarning):
    """Some runs can't be compiled and are trained by another engine."""


MOST_THREADS = 1024


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
    collected = Collection(table, detail)

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
    on, waiting = check_device(device), dict[int, tuple[Cohort, Key, TableRecord]]()

    def feed() -> Iterator[Cohort]:
        for key, table in batches:
            record = TableRecord(len(table))
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
