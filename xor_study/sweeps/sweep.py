"""A sweep in its folder: missing runs are trained chunk by chunk, and all parts are merged into one table.

Processes that work in one folder at the same time share its chunks by file locks. Correctness does not depend on the
locks, only that no chunk is trained twice: training a chunk again gives the same part.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.outcomes import Outcomes, cells_to_json
from xor_study.engines import AUTO, train_batches
from xor_study.engines.results import Measured, Progress
from xor_study.errors import StudyError, interrupts_held
from xor_study.files import sweep_up
from xor_study.sweeps import records, values
from xor_study.sweeps.chunks import Chunk, Chunks, chunked
from xor_study.sweeps.locks import Lock, Locks, wait_for
from xor_study.sweeps.parts import NO_RUNS, Part, Parts, cells_of, outcomes
from xor_study.sweeps.provenance import provenance
from xor_study.sweeps.settings import FORMATS
from xor_study.training.table import run_ids

MOST_WAITING = 2
"""How many parts may wait to be written before training waits for them."""

MOST_CELLS = 10**5
"""Whose settings are kept in `plan.json`, in the order of the plan."""


@dataclass
class _Claim:
    """A chunk that this process would train: which of its runs are missing, and its lock once that is decided.

    Attributes:
        begun: whether this process trains it; None as long as that is open.
    """

    chunk: Chunk
    rows: NDArray[np.intp]
    lock: Lock | None = None
    begun: bool | None = None


@dataclass
class Sweep:
    """All runs of a plan, in a folder.

    Args:
        table: the plan's runs, checked and distinct.
        engine, device, threads: see `xor_study.train`; the engine may be "auto".
        folder: where the parts are and the results go.
        shards: how many jobs share the work, or None.
        plan_identity: of the plan whose runs these are, where it is not the hash of exactly these.

    Attributes:
        planned: the chunks that they are trained in.
        parts: the results so far.
    """

    table: pd.DataFrame
    engine: str
    device: str
    threads: int | None
    folder: Path
    shards: int | None = None
    plan_identity: str = ""
    planned: Chunks = field(init=False)
    parts: Parts = field(init=False)
    _locks: Locks = field(init=False)

    def __post_init__(self) -> None:
        ids = run_ids(self.table).to_numpy().astype("S20")
        self.planned = chunked(self.table, ids, self.engine, self.device, self.shards)
        self.parts = Parts(self.folder, ids, {chunk.identity: chunk.rows for chunk in self.planned.all})
        self._locks = Locks(self.parts.path)

    def begin(self, command: str, axes: Sequence[str], more: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
        """Claim the folder for this sweep, or resume the sweep in it, and return notes on its content.

        A folder belongs to one plan, which may be extended: a sweep that asks for all its runs and more resumes it.

        Args:
            command: the command line that resumes this sweep, to be shown.
            axes: the keys that were given several values, for `xor-study show`.
            more: what else `plan.json` is to hold.

        Raises:
            StudyError: if the folder holds results of another plan, or results without their parts.
        """
        self.parts.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self.parts.scan()
            kept, now = records.read_plan(self.folder), values.kept(self.table)
            changed = values.changed_default(kept, now)
            if changed is not None and (self.parts.others or self.parts.done.any()):
                raise StudyError(f"hydra.sweep.dir={self.folder}: {changed}; choose another folder")
            before = self._before()
            if before != self.identity and self.parts.others:
                raise StudyError(
                    f"hydra.sweep.dir={self.folder}: holds {self.parts.others} runs that this command does not ask "
                    f"for; choose another folder or include them{values.differences(kept, now)}"
                )
            if (self.folder / records.RUNS).exists() and not self.parts.done.any():
                raise StudyError(f"hydra.sweep.dir={self.folder}: holds {records.RUNS} without its parts; move it away")
            about = {
                "identity": self.identity,
                "runs": len(self.table),
                "command": command,
                "axes": axes,
                **now,
                **more,
            }
            _, cells = cells_of(self.table)
            if len(cells) <= MOST_CELLS:
                about["cells"] = cells_to_json(cells)
            records.write_plan(self.folder, about)
        return list(self._notes())

    @property
    def identity(self) -> str:
        """The identity of the plan that the folder is to belong to."""
        return self.plan_identity or self.planned.identity

    def _before(self) -> str | None:
        """Return the identity of the plan that the folder belongs to, or None if it is unknown."""
        identity = records.read_plan(self.folder).get("identity")
        return None if identity is None else str(identity)

    def check_shared(self) -> None:
        """Raise StudyError unless this host sees the folder in which another process began this sweep."""
        if self._before() != self.identity:
            raise StudyError(
                f"{self.folder}: host {socket.gethostname()} does not see the sweep in this folder; it must be on a "
                "file system that all hosts share"
            )

    def _notes(self) -> Iterator[str]:
        for name, problem in self.parts.problems.items():
            if self.plan_identity and problem == NO_RUNS:
                continue  # of a later round
            yield f"{self.parts.path / name}: {problem}; ignored"
        if self.parts.done.any():
            yield f"{int(self.parts.done.sum())} of {len(self.table)} runs are already done"
        usual = {"lanes", "vmap"} if self.engine == AUTO else {self.engine}
        for what, runs in self.parts.differing_provenance(self._provenance(), usual).items():
            yield f"{runs} of them were trained with {what}; their rows record it"
        if self.planned.fallback is not None:
            yield self.planned.fallback

    def _provenance(self) -> dict[str, str | None]:
        return {"device": self.device, **provenance()}

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the whole folder."""
        lock = Locks(self.folder).lock("")
        if not lock.acquire():
            wait_for([lock], lock.acquire, "the folder, which another process is about to change", self.folder)
        try:
            yield
        finally:
            lock.release()

    def chunks_of(self, shard: int | None = None) -> Sequence[Chunk]:
        """Return the chunks of a shard, which are dealt to the shards in turn, or all of them."""
        return self.planned.all if shard is None else self.planned.all[shard :: self.shards]

    def lost(self) -> list[int]:
        """Return the shards that did not finish."""
        shards = range(self.shards or 1)
        return [
            shard for shard in shards if any(not self.parts.done[chunk.rows].all() for chunk in self.chunks_of(shard))
        ]

    def train(self, follow: Callable[[Progress], None], shard: int | None = None) -> None:
        """Train the missing runs and save a part of each chunk; return when all are done, here or in other processes.

        Args:
            follow: called with the progress after each step of it.
            shard: which shard's chunks to train, from 0; None for all.
        """
        own = self.chunks_of(shard)
        if shard is not None:
            # All jobs together would otherwise read each part as often as there are jobs.
            self.parts.not_read = self.parts.chunks.keys() - {chunk.identity for chunk in own}
            self.parts.scan()
        rows = np.concatenate([np.zeros(0, np.intp), *(chunk.rows for chunk in own)])
        todo = rows[~self.parts.done[rows]]
        progress = Progress(len(rows), int(self._steps[todo].sum()), len(rows) - len(todo))
        progress.outcomes.update({name: count for name, count in self.parts.outcomes().items() if shard is None})

        def advance(made: int, measures: pd.DataFrame | None) -> None:
            progress.steps_done += made
            if measures is not None:
                progress.finished(measures)
            follow(progress)
            check()

        # First whatever no other process holds; then, one by one, what others have not finished, e.g. when killed.
        with interrupts_held() as check:
            while own := self._train(own, advance, check):
                count = f"{len(own)} batch{'es' * (len(own) > 1)} that another process trains"
                locks = [self._locks.lock(chunk.identity) for chunk in own]
                wait_for(locks, partial(self._any_ready, own, check), count, self.folder)

    @contextlib.contextmanager
    def watched(self, follow: Callable[[Progress], None], seconds: float = 1.0) -> Iterator[None]:
        """Report the progress of a sweep that other processes train, from the parts that they save.

        A part that can't be read yet is read again when all are merged: on a network file system a new file may be
        seen before its content.

        Args:
            follow: called with the progress.
            seconds: between two scans of the folder.
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
        """Number of steps of each run."""
        return (self.table["epochs"] * self.table["iterations"]).to_numpy(np.int64)

    def _train(
        self, own: Sequence[Chunk], advance: Callable[[int, pd.DataFrame | None], None], check: Callable[[], None]
    ) -> list[Chunk]:
        """Train the missing runs of some chunks and return the chunks that other processes hold."""
        others: list[Chunk] = []
        held: set[Lock] = set()
        made = self._provenance()
        with ThreadPoolExecutor(1) as writer:
            writing: deque[Future[None]] = deque()

            def write(claim: _Claim, measured: Measured) -> None:
                # The lock is released only when the part is on disk: whoever gets it next must see the part.
                table = self.table.take(claim.rows)
                part = Part.of(table, self.parts.run_ids[claim.rows], measured, made)
                self.parts.add(claim.chunk, claim.rows, part)
                assert claim.lock is not None
                claim.lock.release()
                held.discard(claim.lock)

            def begin(claim: _Claim) -> bool:
                if claim.begun is None:
                    claim.begun = self._claim(claim, others)
                    held.update([] if claim.lock is None else [claim.lock])
                return claim.begun

            try:
                for engine, members in groupby(own, key=lambda chunk: chunk.engine):
                    trained = train_batches(
                        self._missing(members, check),
                        engine=AUTO if engine == "lanes" and self.engine == AUTO else engine,
                        device=self.device,
                        threads=self.threads if engine == "lanes" else None,
                        advance=advance,
                        begin=begin,
                    )
                    # An interruption must also end the engine's threads, which a generator that is left open keeps.
                    with contextlib.closing(trained):
                        for claim, measured in trained:
                            writing.append(writer.submit(write, claim, measured))
                            while len(writing) > MOST_WAITING or (writing and writing[0].done()):
                                writing.popleft().result()
            finally:
                # Parts that are still being written are finished first, also after an interruption or an error.
                errors = [error for error in (future.exception() for future in writing) if error is not None]
                for lock in held:
                    lock.release()
            for error in errors:
                raise error
        return others

    def _missing(self, own: Iterable[Chunk], check: Callable[[], None]) -> Iterator[tuple[_Claim, pd.DataFrame]]:
        """Yield the missing runs of some chunks, which engines take some batches ahead of training."""
        for chunk in own:
            check()
            rows = chunk.rows[~self.parts.done[chunk.rows]]
            if len(rows):
                yield _Claim(chunk, rows), self.table.take(rows).reset_index(drop=True)

    def _claim(self, claim: _Claim, others: list[Chunk]) -> bool:
        """Lock a chunk if its runs are still missing; add it to `others` if another process holds it."""
        lock = self._locks.claim(claim.chunk.identity)
        if lock is None:
            others.append(claim.chunk)
            return False
        self.parts.scan()  # another process may have finished it just now
        if self.parts.done[claim.rows].all():
            lock.release()
            return False
        sweep_up(self.parts.path, f".{claim.chunk.identity}.")
        claim.lock = lock
        return True

    def _any_ready(self, chunks: Sequence[Chunk], check: Callable[[], None]) -> bool:
        """Return whether one of some chunks is done, or free to be trained here."""
        check()
        self.parts.scan()
        if any(self.parts.done[chunk.rows].all() for chunk in chunks):
            return True
        free = (self._locks.claim(chunk.identity) for chunk in chunks)
        lock = next((lock for lock in free if lock is not None), None)
        if lock is not None:
            lock.release()
        return lock is not None

    def merge(self, form: str = "csv") -> Outcomes:
        """Write the table of runs and `losses.npz` from the parts and return the runs' outcomes.

        Args:
            form: of the table, one of `FORMATS`.

        Raises:
            StudyError: if runs are missing, or if a sweep with another plan has claimed the folder.
        """
        merged = self.parts.merged()
        with self._lock():
            if self._before() != self.identity:
                raise StudyError(
                    f"{self.folder}: another sweep has started in this folder; its {records.RUNS} is not overwritten"
                )
            for name in (*FORMATS.values(), records.LOSSES, records.PLAN):
                sweep_up(self.folder, f".{name}.")
            records.write_merged(self.folder, self.table, self.parts.run_ids, merged, form)
            records.write_plan(self.folder, records.read_plan(self.folder) | {"parts": self.parts.used})
            self._locks.remove()
        return outcomes(self.table, merged.rows)
