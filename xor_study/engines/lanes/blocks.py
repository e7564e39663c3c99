"""Blocks of networks in training: their states laid out by lanes, the calls into machine code, and the results."""

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
from xor_study.training.outcome import Detail, Trained, from_segments, log_spaced, start_of_accumulation, tail_length
from xor_study.training.step import Internals, Observation

LONGEST = 1 << 17
"""Most steps of one call into machine code, which can't be interrupted."""

CALL = 1 << 21
"""Steps of one call into machine code, summed over networks: some 30 ms."""

GROUP = 64 << 20
"""Bytes of the states and records of one group."""


def _segment_ends(cohort: Cohort, detail: Detail) -> NDArray[np.int64]:
    """Return the last step of each segment, in order.

    Each is where something is recorded or a sum of losses ends (see `outcome.from_segments`), or where a call ends.
    """
    steps = cohort.steps
    if detail.every_step:
        return np.arange(1, steps + 1)
    wanted = [log_spaced(steps), [steps - tail_length(steps)], [s for s in detail.snapshots if s <= steps]]
    wanted += [np.arange(cohort.iterations, steps + 1, cohort.iterations), np.arange(LONGEST, steps, LONGEST), [steps]]
    ends = np.unique(np.concatenate([np.asarray(numbers, np.int64) for numbers in wanted]))
    return ends[ends > 0]


def groups(cohort: Cohort, loop: Loop, detail: Detail) -> Iterator[NDArray[np.intp]]:
    """Yield the members of a cohort in groups whose states fit into `GROUP` bytes."""
    bytes_of_block = loop.state.itemsize + loop.record.itemsize * len(_segment_ends(cohort, detail))
    size = max(1, GROUP // bytes_of_block) * loop.lanes
    for start in range(0, len(cohort.rows), size):
        yield np.arange(start, min(start + size, len(cohort.rows)))


class Group:
    """Blocks of networks in training.

    Args:
        cohort: of the runs.
        loop: of the cohort.
        members: indices of the runs in the cohort.
        detail: what to keep in addition.
    """

    def __init__(self, cohort: Cohort, loop: Loop, members: NDArray[np.intp], detail: Detail) -> None:
        self.cohort, self.loop, self.members, self.detail = cohort, loop, members, detail
        self.blocks = -(-len(members) // loop.lanes)
        self.ends = _segment_ends(cohort, detail)
        self.state = empty(loop.state, self.blocks)
        self.numbers = empty(loop.numbers, self.blocks)
        self.records = empty(loop.record, (self.blocks, len(self.ends)))
        self.corners_right = np.zeros((self.blocks, 1, loop.lanes), np.int32)
        self._made, self._reported = 0, 0
        # All threads add to `_made`, and `+=` of an attribute is not atomic.
        self._lock = threading.Lock()
        # The last block is filled up with copies of the last run.
        filled = np.minimum(np.arange(self.blocks * loop.lanes), len(members) - 1)
        self._fill(members[filled])

    def _lanes(self, rows: Any) -> NDArray[Any]:
        """Rearrange an array with a row for each network into blocks, shape (blocks, n, lanes)."""
        values = np.asarray(rows).reshape(self.blocks, self.loop.lanes, -1)
        return np.swapaxes(values, 1, 2)

    def _fill(self, members: NDArray[np.intp]) -> None:
        cohort, program = self.cohort, self.cohort.program
        parameters = cohort.initial(members)
        self.state["parameter"] = self._lanes(parameters)
        constants = program.constants["optimizer"]
        varying = {name: values[members] for name, values in cohort.numbers["optimizer"].items()}
        columns = {name: torch.from_numpy(values).to(parameters)[:, None] for name, values in varying.items()}
        for name, value in program.optimizer.init(parameters, **constants, **columns).items():
            # A vector that the optimizer never changes is not part of the traced state.
            if name in self.loop.state_fields:
                self.state[name] = self._lanes(value)
        for name, start in start_of_accumulation(parameters.dtype).items():
            self.state[name] = start.item()
        for group, numbers in cohort.numbers.items():
            for name, values in numbers.items():
                self.numbers[f"{group}.{name}"] = self._lanes(values[members])
        if cohort.batches.seeds is not None:
            # The loop computes word i of a stream from its key alone; LLVM's integers have no sign, numpy's field has.
            keys = splitmix64(cohort.batches.seeds[members], BATCH_STREAM)
            self.numbers["key"] = self._lanes(keys.view(np.int64))

    def table(self, steps: range) -> NDArray[Any]:
        """Return the inputs that depend on the step alone, shape (steps, len(loop.table))."""
        cohort = self.cohort
        columns: list[NDArray[Any]] = []
        # Given batches are the same for all runs, so their counts are a column for each corner.
        if self.loop.batch is None:
            columns += list(cohort.batches.counts(np.array([0]), steps)[:, 0].T)
        constants = cohort.program.constants["optimizer"]
        schedule = _schedule(cohort.program.optimizer, cohort.steps, tuple(constants.items()))
        columns += [schedule[name][steps.start - 1 : steps.stop - 1] for name in self.loop.schedule]
        return np.ascontiguousarray(np.array(columns, self.loop.dtype).T)

    def tasks(self, workers: int) -> Iterator[Callable[[Kernel, threading.Event], None]]:
        """Yield functions that train some of the blocks each, for a pool of `workers` threads.

        Each takes the kernel and an event that stops it before its next call into machine code.
        """
        # Few blocks with many steps go one by one; short runs are put together to the length of a call.
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
            # Made for each call: for all steps at once it may take more memory than the states.
            table = self.table(range(before + 1, int(ends[-1]) + 1))
            # The kernel writes the segments of a block one after the other, so a part of them needs its own array.
            part = records if len(ends) == len(self.ends) else empty(self.loop.record, (count, len(ends)))
            kernel(state, numbers, table, ends, part, blocks=count, first=before, segments=len(ends))
            if part is not records:
                records[:, first:last] = part
            first = last
            with self._lock:
                self._made += (int(ends[-1]) - before) * count
        # Each step observes the state before its update, so one more step of a copy observes the final state. For it
        # the inputs of the last step will do: what is on the right side depends on the parameters alone.
        after = empty(self.loop.state, count)
        after[:] = state
        steps = self.cohort.steps
        table, scratch = self.table(range(steps, steps + 1)), empty(self.loop.record, (count, 1))
        kernel(after, numbers, table, np.array([steps + 1]), scratch, blocks=count, first=steps, segments=1)
        self.corners_right[blocks] = after["corners_right"]

    def take_progress(self) -> int:
        """Return the steps made since the last call, summed over networks without the copies."""
        with self._lock:
            made = self._made * len(self.members) // self.blocks  # `_made` counts steps of blocks
        reported, self._reported = self._reported, made
        return made - reported

    def _runs(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """Rearrange an array of shape (blocks, ..., lanes) into one of shape (runs, ...)."""
        rows = np.moveaxis(blocks, -1, 1).reshape(-1, *blocks.shape[1:-1])
        return rows[: len(self.members)]

    def trained(self) -> Trained:
        """Return the runs, once all tasks are done."""
        state = {name: self._runs(self.state[name][:, 0]) for name in start_of_accumulation(torch.float32)}
        history = None
        if self.detail.every_step:
            columns = {name: self._runs(self.records[name][:, :, 0]).T for name in Observation._fields}
            history = {name: values.astype(np.float64) for name, values in columns.items()}
        return from_segments(
            self.cohort,
            self.members,
            _tensor(self._runs(self.state["parameter"])),
            state,
            ends=self.ends,
            losses=self._runs(self.records["loss"][:, :, 0]),
            sums=self._runs(self.records["loss_sum"][:, :, 0]),
            corners_right=self._runs(self.corners_right[:, 0]),
            history=history,
            snapshots={step: self._snapshot(step) for step in self.detail.snapshots if step <= self.cohort.steps},
        )

    def _snapshot(self, step: int) -> tuple[Tensor, Internals]:
        segment = np.searchsorted(self.ends, step)
        parameter, *internals = (_tensor(self._runs(self.records[name][:, segment])) for name in SNAPSHOT)
        return parameter, Internals(*internals)


def _tensor(rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows))


# A group asks for it in each of its calls, and groups of one cohort follow each other.
@lru_cache(maxsize=8)
def _schedule(optimizer: Optimizer, steps: int, constants: tuple[tuple[str, Any], ...]) -> dict[str, NDArray[Any]]:
    return optimizer.schedule(steps, **dict(constants))
