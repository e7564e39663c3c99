"""A sweep in its folder: what is missing is trained, batch by batch, and all there is becomes one table.

Processes that work in one folder at the same time share its batches by locks; nothing depends on them but that no
batch is trained twice. A part that appears twice is the same part.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import BaseFileLock, FileLock
from numpy.typing import NDArray

from xor_study.engines import AUTO, train_batches
from xor_study.engines.results import Measured, Progress, described
from xor_study.errors import StudyError, interrupts_held
from xor_study.files import sweep_up, write_atomically
from xor_study.sweeps import records
from xor_study.sweeps.chunks import Batch, Batches, batches
from xor_study.sweeps.parts import Part, Parts
from xor_study.sweeps.provenance import provenance
from xor_study.training.table import run_ids

MOST_WAITING = 2
"""Parts that may wait to be written, before training waits for them."""

CLAIM_SECONDS = 0.5
"""How long to wait for another process's batch, before looking whether to go on waiting."""


@dataclass(frozen=True)
class _Claim:
    """A batch that this process trains: which of the plan's runs are missing of it, under which lock."""

    batch: Batch
    rows: NDArray[np.intp]
    lock: BaseFileLock


@dataclass
class Sweep:
    """All runs of a plan, in a folder.

    Args:
        table: the plan's runs, checked and distinct.
        engine, device, threads: see `engines.train`; the engine may be "auto".
        folder: where the parts are and the results go.
        shards: how many jobs share the work, or None.

    Attributes:
        ids: the runs' identities.
        planned: the batches they are trained in.
        parts: what there is already.
    """

    table: pd.DataFrame
    engine: str
    device: str
    threads: int | None
    folder: Path
    shards: int | None = None
    ids: pd.Series[str] = field(init=False)
    planned: Batches = field(init=False)
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.ids = run_ids(self.table)
        self.parts = Parts(self.folder, self.ids.to_numpy().astype("S20"))
        self.planned = batches(self.table, self.parts.run_ids, self.engine, self.device, self.shards)

    def begin(self, command: str, axes: Sequence[str]) -> list[str]:
        """Make the folder this sweep's, or go on in it, and return notes on what was found there.

        A folder belongs to one plan, which may grow: a sweep that asks for all the runs in it and more goes on.

        Args:
            command: that goes on with this sweep, for people.
            axes: that were given, for who shows it again.

        Raises:
            StudyError: if the folder holds results of another plan, or results without their parts.
        """
        self.parts.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self.parts.scan()
            before = self._before()
            if before != self.planned.identity and self.parts.others:
                raise StudyError(
                    f"hydra.sweep.dir={self.folder}: holds {self.parts.others} runs that are not asked for; "
                    "choose another folder, or ask for them too"
                )
            if (self.folder / records.RUNS).exists() and not self.parts.done.any():
                raise StudyError(f"hydra.sweep.dir={self.folder}: holds {records.RUNS} without its parts; move it away")
            about = {"identity": self.planned.identity, "runs": len(self.table), "command": command, "axes": axes}
            text = json.dumps(about, indent=1) + "\n"
            write_atomically(self.folder / records.PLAN, lambda stream: stream.write(text.encode()))
        return list(self._notes())

    def _before(self) -> str | None:
        """Return the identity of the plan that the folder belongs to, or None if nobody knows."""
        try:
            return str(json.loads((self.folder / records.PLAN).read_text())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _notes(self) -> Iterator[str]:
        for name, problem in self.parts.problems.items():
            yield f"{self.parts.path / name}: {problem}; passed over"
        if self.parts.done.any():
            yield f"{int(self.parts.done.sum())} of {len(self.table)} runs are done already"
        usual = {"lanes", "vmap"} if self.engine == AUTO else {self.engine}
        for what, runs in self.parts.made_otherwise(self._made(), usual).items():
            yield f"{runs} of them were made with {what}, as their columns say"
        if self.planned.fallback is not None:
            yield self.planned.fallback

    def _made(self) -> dict[str, str | None]:
        return {"device": self.device, **provenance()}

    def _lock(self) -> BaseFileLock:
        return FileLock(self.folder / ".lock")

    def own(self, shard: int | None = None) -> Sequence[Batch]:
        """Return the batches of a shard, which are dealt to them in turn, or all of them."""
        return self.planned.all if shard is None else self.planned.all[shard :: self.shards]

    def lost(self) -> list[int]:
        """Return the shards that left runs out."""
        shards = range(self.shards or 1)
        return [shard for shard in shards if any(not self.parts.done[batch.rows].all() for batch in self.own(shard))]

    def train(self, follow: Callable[[Progress], None], shard: int | None = None) -> None:
        """Train what is missing, and leave a part of each batch; return when all is done, here or elsewhere.

        Args:
            follow: is told how far it is.
            shard: which share of the batches, from 0; None for all.
        """
        own = self.own(shard)
        rows = np.concatenate([np.zeros(0, np.intp), *(batch.rows for batch in own)])
        todo = rows[~self.parts.done[rows]]
        progress = Progress(len(rows), int(self._steps[todo].sum()), len(rows) - len(todo))
        progress.outcomes.update({name: count for name, count in self.parts.outcomes().items() if shard is None})

        def advance(made: int, measures: pd.DataFrame | None) -> None:
            progress.steps_done += made
            if measures is not None:
                progress.finished(measures)
            follow(progress)
            check()

        with interrupts_held() as check:
            others = self._train(own, advance, check, wait=False)
            self._train(others, advance, check, wait=True)

    @contextlib.contextmanager
    def watched(self, follow: Callable[[Progress], None], seconds: float = 1.0) -> Iterator[None]:
        """Tell how far the sweep is while other processes train it, by the parts that they leave.

        What can't be read meanwhile is read again by who merges: over a network a file may be seen half there.

        Args:
            follow: is told.
            seconds: between two looks.
        """
        todo, over, problems = ~self.parts.done, threading.Event(), dict(self.parts.problems)

        def look() -> None:
            while not over.wait(seconds):
                with contextlib.suppress(OSError):
                    self.parts.scan()
                done = self.parts.done
                steps = int(self._steps[todo].sum()), int(self._steps[todo & done].sum())
                follow(Progress(len(done), steps[0], int(done.sum()), steps[1], Counter(self.parts.outcomes())))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.parts.problems = problems

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        """How many steps each run takes."""
        return (self.table["epochs"] * self.table["iterations"]).to_numpy(np.int64)

    def _train(
        self,
        own: Sequence[Batch],
        advance: Callable[[int, pd.DataFrame | None], None],
        check: Callable[[], None],
        *,
        wait: bool,
    ) -> list[Batch]:
        """Train what is missing of some batches and return those that another process has; `check` may interrupt."""
        others: list[Batch] = []
        held: set[BaseFileLock] = set()
        made = self._made()
        with ThreadPoolExecutor(1) as writer:
            writing: deque[Future[None]] = deque()

            def write(claim: _Claim, measured: Measured) -> None:
                part = Part.of(self.parts.run_ids[claim.rows], measured, made)
                self.parts.add(claim.batch, claim.rows, part)
                claim.lock.release()
                held.discard(claim.lock)

            try:
                for engine, members in groupby(own, key=lambda batch: batch.engine):
                    trained = train_batches(
                        self._claimed(members, held, others, check, wait=wait),
                        engine=AUTO if engine == "lanes" and self.engine == AUTO else engine,
                        device=self.device,
                        threads=self.threads if engine == "lanes" else None,
                        advance=advance,
                    )
                    with contextlib.closing(trained):
                        for claim, measured in trained:
                            writing.append(writer.submit(write, claim, measured))
                            while len(writing) > MOST_WAITING or (writing and writing[0].done()):
                                writing.popleft().result()
            finally:
                errors = [error for error in (future.exception() for future in writing) if error is not None]
                for lock in held:
                    lock.release()
            for error in errors:
                raise error
        return others

    def _claimed(
        self,
        own: Iterable[Batch],
        held: set[BaseFileLock],
        others: list[Batch],
        check: Callable[[], None],
        *,
        wait: bool,
    ) -> Iterator[tuple[_Claim, pd.DataFrame]]:
        """Yield what is missing of the batches that this process could claim; add the rest to `others`."""
        for batch in own:
            if self.parts.done[batch.rows].all():
                continue
            check()
            while (lock := self.parts.claim(batch, CLAIM_SECONDS if wait else 0)) is None and wait:
                check()
            if lock is None:
                others.append(batch)
                continue
            held.add(lock)
            self.parts.scan()  # another process may have finished it just now
            rows = batch.rows[~self.parts.done[batch.rows]]
            if len(rows):
                yield _Claim(batch, rows, lock), self.table.take(rows).reset_index(drop=True)
            else:
                lock.release()
                held.discard(lock)

    def merge(self) -> pd.DataFrame:
        """Write `runs.csv` and `losses.npz` from the parts and return the table of runs.

        Raises:
            StudyError: if runs are missing, or if a sweep of other runs has taken the folder over.
        """
        merged = self.parts.merged()
        runs = pd.concat([described(self.table, self.ids, categories=True), merged.columns], axis=1)
        with self._lock():
            if self._before() != self.planned.identity:
                raise StudyError(f"{self.folder}: another sweep was begun here; its {records.RUNS} is not written over")
            for name in (records.RUNS, records.LOSSES, records.PLAN):
                sweep_up(self.folder, f".{name}.")
            records.write_merged(self.folder, runs, self.parts.run_ids, merged)
            self.parts.remove_locks()
        return runs
