"""The vmap engine: `training.step` mapped over many networks at once, on any device.

Networks are trained in blocks of one fixed size, the last one filled up with copies, so that every tensor has the same
shape for any number of runs: a run's bits depend neither on its neighbours nor on its position among them. The step is
traced once (`torch.fx`) and then replayed, which avoids the cost of `torch.func`'s transforms at every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from xor_study.engines.threads import one_thread
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import CHUNK, Detail, Recorder, Trained
from xor_study.training.step import Observation, step

BLOCK = 512
"""Networks in a block."""


def train(cohorts: Iterable[Cohort], detail: Detail, progress: Callable[[int], None]) -> Iterator[Trained]:
    """Train runs and yield them, a block at a time.

    Args:
        cohorts: of the runs.
        detail: what to keep in addition to measures and recorded losses.
        progress: called with the number of steps made since the last call, summed over networks.
    """
    for cohort in cohorts:
        yield from _train_cohort(cohort, detail, progress)


def _train_cohort(cohort: Cohort, detail: Detail, progress: Callable[[int], None]) -> Iterator[Trained]:
    runs, compiled = len(cohort.rows), None
    for start in range(0, runs, BLOCK):
        members = np.minimum(np.arange(start, start + BLOCK), runs - 1)  # the last run fills the block up
        real = min(BLOCK, runs - start)
        with one_thread(), torch.no_grad():
            block = _Block(cohort, members)
            compiled = compiled or block.trace()
            recorder = Recorder(cohort, members, detail)
            for first in range(1, cohort.steps + 1, CHUNK):
                steps = range(first, min(first + CHUNK, cohort.steps + 1))
                recorder.add(steps, block.run(compiled, steps, recorder))
                progress(len(steps) * real)
            logits = torch.vmap(cohort.program.logit)(cohort.program.named(block.parameters))
            trained = recorder.finish(block.parameters, cohort.program.corners_right(logits), real)
        yield trained


class _Block:
    """The state of one block of networks in training."""

    def __init__(self, cohort: Cohort, members: np.ndarray) -> None:
        self.cohort, self.members = cohort, members
        self.parameters = cohort.initial(members)
        constants = cohort.program.constants["optimizer"]
        self.numbers = {
            group: {name: self._tensor(values[members]) for name, values in numbers.items()}
            for group, numbers in cohort.numbers.items()
        }
        columns = {name: values[:, None] for name, values in self.numbers["optimizer"].items()}  # (networks, 1)
        self.state = cohort.program.optimizer.init(self.parameters, **constants, **columns)
        schedule = cohort.program.optimizer.schedule(cohort.steps, **constants)
        self.schedule = {name: self._tensor(values) for name, values in schedule.items()}

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.parameters)

    def _counts(self, steps: range) -> Tensor:
        counts = self.cohort.batches.counts(self.members, steps)
        wide = np.broadcast_to(counts, (len(steps), len(self.members), counts.shape[-1]))
        return self._tensor(wide.astype(np.float64))

    def trace(self) -> Callable[..., Any]:
        """Return one step of the whole block as a flat graph of operations."""

        def one(parameters: Tensor, state: Any, counts: Tensor, schedule: Any, numbers: Any) -> Any:
            return step(self.cohort.program, parameters, state, counts, schedule, numbers)

        now = {name: values[0] for name, values in self.schedule.items()}
        arguments = (self.parameters, self.state, self._counts(range(1, 2))[0], now, self.numbers)
        # The graph is for tensors of one shape, so it serves all blocks of the cohort and no other.
        graph = make_fx(torch.vmap(one, in_dims=(0, 0, 0, None, 0)))(*arguments)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph

    def run(self, compiled: Callable[..., Any], steps: range, recorder: Recorder) -> Observation:
        """Make some steps and return their observations, tensors of shape (steps, networks)."""
        observations = []
        for index, counts in enumerate(self._counts(steps), start=steps.start - 1):
            now = {name: values[index] for name, values in self.schedule.items()}
            self.parameters, self.state, observation, internals = compiled(
                self.parameters, self.state, counts, now, self.numbers
            )
            recorder.add_snapshot(index + 1, self.parameters, internals)
            observations.append(observation)
        return Observation(*(torch.stack(column) for column in zip(*observations, strict=True)))
