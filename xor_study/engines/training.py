"""`train` and its relatives: from runs to their results, with any engine."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch

from xor_study.engines.names import AUTO, FallbackWarning, check_engine
from xor_study.engines.results import Collector, Measured, Progress, Result
from xor_study.errors import StudyError, show
from xor_study.model.data import Batches
from xor_study.training.cohorts import Cohort, cohorts
from xor_study.training.outcome import Detail, Trained
from xor_study.training.spec import RunSpec
from xor_study.training.table import table_of

if TYPE_CHECKING:
    from xor_study.engines.lanes import NotCompilable

Key = TypeVar("Key")


def check_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        StudyError: if it is not "cpu" or "cuda", or if there is no such CUDA device on this machine.
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


def check_compilable(table: pd.DataFrame, device: str) -> None:
    """Raise StudyError if lanes is known not to compile some runs of a checked table."""
    from xor_study.engines import lanes

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
    """Train networks in memory; `xor_study.train`, which also saves what it trains, says what the arguments are.

    Raises:
        StudyError: if a value is not allowed, before anything is trained; with engine="lanes", also if a run can't be
            compiled.
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
    """Train the runs of a table that `table.table_of` has checked; see `xor_study.train` for the arguments."""
    check_engine(engine, device, threads)
    given = Batches.explicit(*batches) if batches is not None else None
    groups = list(cohorts(table, check_device(device), given, initial))
    state = Progress(len(table), int((table["epochs"] * table["iterations"]).sum()))
    longest = int((table["epochs"] * table["iterations"]).max())
    # Everything is checked before anything is trained.
    for step in detail.snapshots:
        if not 1 <= step <= longest:
            raise StudyError(f"snapshots: step {step}: must be in [1, {longest}]")
    collected = Collector(table)

    def advance(steps: int) -> None:
        state.steps_done += steps
        if progress is not None:
            progress(state)

    for name, part in _trained(groups, engine, threads, detail, advance):
        collected.add(name, part)
        state.finished(part.measures)
        advance(0)
    return collected.result(device, detail)


def train_batches(
    batches: Iterable[tuple[Key, pd.DataFrame]],
    *,
    engine: str = AUTO,
    device: str = "cpu",
    threads: int | None = None,
    advance: Callable[[int, pd.DataFrame | None], None],
    begin: Callable[[Key], bool] = lambda key: True,
) -> Generator[tuple[Key, Measured], None, None]:
    """Train checked tables one after another, without a pause between them, and yield the measures of each.

    Args:
        batches: pairs of a key and a table from `table.table_of`; the next is taken when the engine has room for it.
        engine: see `xor_study.train`.
        device: see `xor_study.train`.
        threads: see `xor_study.train`.
        advance: called with the number of steps made since the last call, summed over networks, and with the measures
            of runs that have finished, or None.
        begin: called with a key right before its runs are trained, perhaps several times; returns whether to train
            them.

    Yields:
        the key of a table and the measures of its runs, as soon as the last of them has finished.
    """
    check_engine(engine, device, threads)
    on, waiting = check_device(device), dict[int, tuple[Cohort, Key, Collector]]()

    def feed() -> Iterator[Cohort]:
        for key, table in batches:
            collector = Collector(table)
            for cohort in cohorts(table, on):
                waiting[id(cohort)] = (cohort, key, collector)  # holds the cohort: another could get a free one's id
                yield cohort

    def start(cohort: Cohort) -> bool:
        return begin(waiting[id(cohort)][1]) or waiting.pop(id(cohort)) is None

    for name, part in _trained(feed(), engine, threads, Detail(), lambda steps: advance(steps, None), start):
        _, key, collector = waiting[id(part.cohort)]
        collector.add(name, part)
        advance(0, part.measures)
        if collector.missing == 0:
            for number in [number for number, (*_, other) in waiting.items() if other is collector]:
                del waiting[number]
            yield key, collector.measured()


def train_function(engine: str) -> Callable[..., Iterator[Trained]]:
    """Import an engine and return its `train`: vmap loads torch's tracer, lanes loads LLVM; plain needs neither."""
    function: Callable[..., Iterator[Trained]] = importlib.import_module(f"xor_study.engines.{engine}").train
    return function


def _trained(
    cohorts: Iterable[Cohort],
    engine: str,
    threads: int | None,
    detail: Detail,
    progress: Callable[[int], None],
    begin: Callable[[Cohort], bool] | None = None,
) -> Iterator[tuple[str, Trained]]:
    """Yield trained runs, each with the name of the engine that trained them."""
    if engine not in (AUTO, "lanes"):
        begun = cohorts if begin is None else filter(begin, cohorts)
        yield from ((engine, part) for part in train_function(engine)(begun, detail, progress))
        return
    refused: list[tuple[Cohort, NotCompilable]] = []
    refuse = None if engine == "lanes" else lambda cohort, error: refused.append((cohort, error))
    for part in train_function("lanes")(cohorts, detail, progress, threads, refuse, begin):
        yield "lanes", part
    if refused:
        runs = sum(len(cohort.rows) for cohort, _ in refused)
        warnings.warn(f"{refused[0][1]}; engine=vmap for {runs} runs", FallbackWarning, stacklevel=4)
        yield from _trained([cohort for cohort, _ in refused], "vmap", None, detail, progress, begin)
