"""Blocks of networks in training: states laid out by lanes, the calls into machine code, and what came of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.engines.lanes.llvm import Loop, empty
from xor_study.engines.lanes.loops import SNAPSHOT
from xor_study.engines.lanes.native import Kernel
from xor_study.model.data import BATCH_STREAM, splitmix64
from xor_study.model.optimizers import Optimizer
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import (
    Detail,
    Gathered,
    Recorded,
    Snapshot,
    log_spaced,
    measures,
    start_of_accumulation,
    tail_length,
)
from xor_study.training.step import Observation

LONGEST = 1 << 17
"""Steps between two looks at whether to go on."""

CALL = 1 << 21
"""Network-steps of one call into machine code, some 30 ms."""

GROUP = 64 << 20
"""Bytes of states and records that are held at a time."""


def _segment_ends(cohort: Cohort, detail: Detail) -> NDArray[np.int64]:
    """Return the steps after which something is handed out: all, or those that a record names and ends of epochs."""
    steps = cohort.steps
    if detail.every_step:
        return np.arange(1, steps + 1)
    wanted = [log_spaced(steps), [steps - tail_length(steps)], [s for s in detail.snapshots if s <= steps]]
    wanted += [np.arange(cohort.iterations, steps + 1, cohort.iterations), np.arange(LONGEST, steps, LONGEST), [steps]]
    ends = np.unique(np.concatenate([np.asarray(numbers, np.int64) for numbers in wanted]))
    return ends[ends > 0]


def groups(cohort: Cohort, loop: Loop, detail: Detail) -> Iterator[NDArray[np.intp]]:
    """Yield the members of a cohort in groups that are trained with their states in memory."""
    bytes_of_block = loop.state.itemsize + loop.record.itemsize * len(_segment_ends(cohort, detail))
    size = max(1, GROUP // bytes_of_block) * loop.lanes
    for start in range(0, len(cohort.rows), size):
        yield np.arange(start, min(start + size, len(cohort.rows)))


class Group:
    """Blocks of networks in training."""

    def __init__(self, cohort: Cohort, loop: Loop, members: NDArray[np.intp], detail: Detail) -> None:
        self.cohort, self.loop, self.members, self.detail = cohort, loop, members, detail
        self.blocks = -(-len(members) // loop.lanes)
        self.ends = _segment_ends(cohort, detail)
        self.state = empty(loop.state, self.blocks)
        self.numbers = empty(loop.numbers, self.blocks)
        self.records = empty(loop.record, (self.blocks, len(self.ends)))
        self.corners_right = np.zeros((self.blocks, 1, loop.lanes), np.int32)
        self._made, self._told = 0, 0
        self._lock = threading.Lock()
        filled = np.minimum(np.arange(self.blocks * loop.lanes), len(members) - 1)
        self._fill(members[filled])

    def _lanes(self, rows: Any) -> NDArray[Any]:
        """Return an array with a row for each network as blocks (blocks, n, lanes)."""
        values = np.asarray(rows).reshape(self.blocks, self.loop.lanes, -1)
        return np.swapaxes(values, 1, 2)

    def _fill(self, members: NDArray[np.intp]) -> None:
        cohort, program = self.cohort, self.cohort.program
        parameters = cohort.initial(members)
        self.state["parameter"] = self._lanes(parameters)
        constants = program.constants["optimizer"]
        own = {name: values[members] for name, values in cohort.numbers["optimizer"].items()}
        columns = {name: torch.from_numpy(values).to(parameters)[:, None] for name, values in own.items()}
        for name, value in program.optimizer.init(parameters, **constants, **columns).items():
            if name in self.loop.state_fields:
                self.state[name] = self._lanes(value)
        for name, start in start_of_accumulation(parameters.dtype).items():
            self.state[name] = start.item()
        for group, numbers in cohort.numbers.items():
            for name, values in numbers.items():
                self.numbers[f"{group}.{name}"] = self._lanes(values[members])
        if cohort.batches.seeds is not None:
            keys = splitmix64(cohort.batches.seeds[members], BATCH_STREAM)
            self.numbers["key"] = self._lanes(keys.view(np.int64))

    def table(self, steps: range) -> NDArray[Any]:
        """Return what depends on the step, a row for each."""
        cohort = self.cohort
        columns: list[NDArray[Any]] = []
        if self.loop.batch is None:
            columns += list(cohort.batches.counts(np.array([0]), steps)[:, 0].T)
        constants = cohort.program.constants["optimizer"]
        schedule = _schedule(cohort.program.optimizer, cohort.steps, tuple(constants.items()))
        columns += [schedule[name][steps.start - 1 : steps.stop - 1] for name in self.loop.schedule]
        return np.ascontiguousarray(np.array(columns, self.loop.dtype).T)

    def tasks(self, workers: int) -> Iterator[Callable[[Kernel, threading.Event], None]]:
        """Yield functions that train some of the blocks each, to be called from any threads."""
        at_once = max(1, CALL // (self.cohort.steps * self.loop.lanes))
        at_once = max(1, min(at_once, -(-self.blocks // workers)))
        for start in range(0, self.blocks, at_once):
            yield partial(self._train, slice(start, min(start + at_once, self.blocks)))

    def _train(self, blocks: slice, kernel: Kernel, stop: threading.Event) -> None:
        state, numbers, records = self.state[blocks], self.numbers[blocks], self.records[blocks]
        count, first = len(state), 0
        longest = max(LONGEST, CALL // (count * self.loop.lanes))
        while first < len(self.ends) and not stop.is_set():
            before = int(self.ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(self.ends, before + longest, side="right")))
            ends = self.ends[first:last]
            table = self.table(range(before + 1, int(ends[-1]) + 1))
            part = records if len(ends) == len(self.ends) else empty(self.loop.record, (count, len(ends)))
            kernel(state, numbers, table, ends, part, blocks=count, first=before, segments=len(ends))
            if part is not records:
                records[:, first:last] = part
            first = last
            with self._lock:
                self._made += (int(ends[-1]) - before) * count
        after = empty(self.loop.state, count)  # one step more, only to see what it sees before its update
        after[:] = state
        steps = self.cohort.steps
        table, scratch = self.table(range(steps, steps + 1)), empty(self.loop.record, (count, 1))
        kernel(after, numbers, table, np.array([steps + 1]), scratch, blocks=count, first=steps, segments=1)
        self.corners_right[blocks] = after["corners_right"]

    def take_progress(self) -> int:
        """Return how many network-steps have been made since the last call; filled-up lanes are not counted."""
        with self._lock:
            made = self._made * len(self.members) // self.blocks
        told, self._told = self._told, made
        return made - told

    def _runs(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """Return an array (blocks, ..., lanes) with a row for each network, (runs, ...)."""
        rows = np.moveaxis(blocks, -1, 1).reshape(-1, *blocks.shape[1:-1])
        return rows[: len(self.members)]

    @property
    def final_parameters(self) -> Tensor:
        """Shape (runs, width)."""
        return torch.from_numpy(np.ascontiguousarray(self._runs(self.state["parameter"])))

    def recorded(self) -> Recorded:
        """Return what is known of the runs once all tasks are done."""
        cohort, steps = self.cohort, self.cohort.steps
        state = {name: self._runs(self.state[name][:, 0]) for name in start_of_accumulation(torch.float32)}
        loss = self._runs(self.records["loss"][:, :, 0])
        sums = self._runs(self.records["loss_sum"][:, :, 0])
        tail = tail_length(steps)
        missing = state["least_loss"] > state["largest_loss"]
        gathered = Gathered(
            initial_loss=loss[:, 0].astype(np.float64),
            final_loss=loss[:, -1].astype(np.float64),
            min_loss=np.where(missing, np.nan, state["least_loss"].astype(np.float64)),
            max_loss=np.where(missing, np.nan, state["largest_loss"].astype(np.float64)),
            max_abs_logit=_seen(state["largest_logit"]),
            max_grad_norm=_seen(state["largest_grad_norm"]),
            tail_loss=sums[:, np.searchsorted(self.ends, steps - tail, side="right") :].sum(1) / tail,
            first_nonfinite=state["first_nonfinite"],
            last_wrong=state["last_wrong"],
            corners_right=self._runs(self.corners_right[:, 0]),
        )
        epochs = np.searchsorted(self.ends, np.arange(cohort.epochs) * cohort.iterations, side="right")
        history, snapshots = None, {}
        if self.detail.every_step:
            history = {
                name: self._runs(self.records[name][:, :, 0]).T.astype(np.float64) for name in Observation._fields
            }
        for number in self.detail.snapshots:
            if number <= steps:
                place = np.searchsorted(self.ends, number)
                parts = (self._runs(self.records[name][:, place]) for name in SNAPSHOT)
                snapshots[number] = Snapshot(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
        recorded = log_spaced(steps)
        return Recorded(
            measures(cohort, self.members, gathered),
            recorded,
            loss[:, np.searchsorted(self.ends, recorded)],
            np.add.reduceat(sums, epochs, axis=1) / cohort.iterations,
            history,
            snapshots,
        )


def _seen(largest: NDArray[Any]) -> NDArray[np.float64]:
    """Return largest sizes, NaN where none was seen."""
    return np.where(largest < 0, np.nan, largest.astype(np.float64))


@lru_cache(maxsize=8)
def _schedule(optimizer: Optimizer, steps: int, constants: tuple[tuple[str, Any], ...]) -> dict[str, NDArray[Any]]:
    return optimizer.schedule(steps, **dict(constants))
