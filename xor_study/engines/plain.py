"""The plain engine: an ordinary training loop, the reference for the other engines.

Autograd, `torch.optim` and `torch.nn.utils.clip_grad_*` on all samples of the batch, one network at a time. It shares
with the other engines only the forward functions of the catalogues and the definition of the measures.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from xor_study.engines.threads import one_thread
from xor_study.model.network import XORNetwork
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import CHUNK, Detail, Recorder, Trained
from xor_study.training.step import Internals, Observation, saturated


def train(cohorts: Iterable[Cohort], detail: Detail, progress: Callable[[int], None]) -> Iterator[Trained]:
    """Train runs one after the other and yield each.

    Args:
        cohorts: of the runs.
        detail: what to keep in addition to measures and recorded losses.
        progress: called with the number of steps made since the last call.
    """
    for cohort in cohorts:
        for member in range(len(cohort.rows)):
            with one_thread():
                trained = _train_one(cohort, member, detail, progress)
            yield trained


def _train_one(cohort: Cohort, member: int, detail: Detail, progress: Callable[[int], None]) -> Trained:
    members = np.array([member])
    recorder = Recorder(cohort, members, detail)
    training = Training(cohort, member, recorder.add_snapshot)
    for first in range(1, cohort.steps + 1, CHUNK):
        steps = range(first, min(first + CHUNK, cohort.steps + 1))
        columns = zip(*training.take(steps), strict=True)
        recorder.add(steps, Observation(*(torch.stack(column)[:, None] for column in columns)))
        progress(len(steps))
    right = cohort.program.corners_right(training.corner_logits())[None]
    return recorder.finish(training.parameters()[None], right, 1)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` torch's default, in which `torch.optim.NAdam` keeps its product of momenta."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _nothing(number: int, parameters: Tensor, internals: Internals) -> None:
    """Ignore a step."""


class Training:
    """One network with its optimizer, to be trained step by step.

    Args:
        cohort: of the run.
        member: index of the run in the cohort.
        keep: called after each step with its number, the parameters after it, shape (1, width), and its intermediate
            values, which have a first dimension of 1 too.

    Attributes:
        network: in its present state.
        hyperparameters: of "loss", "optimizer" and "clip" of this run, by group and name.
    """

    def __init__(self, cohort: Cohort, member: int, keep: Callable[[int, Tensor, Internals], None] = _nothing) -> None:
        self.hyperparameters = {
            group: dict(cohort.program.constants[group])
            | {name: float(values[member]) for name, values in varying.items()}
            for group, varying in cohort.numbers.items()
        }
        self.network = _network(cohort, member)
        self._cohort, self._member, self._keep = cohort, member, keep
        self._parameters = list(self.network.parameters())
        optimizer, arguments = cohort.program.optimizer, self.hyperparameters["optimizer"]
        self._optimizer = optimizer.reference(self._parameters, **optimizer.torch_arguments(**arguments))

    def parameters(self) -> Tensor:
        """Return all parameters in their present state, shape (width,)."""
        return nn.utils.parameters_to_vector(self._parameters).detach()

    def corner_logits(self) -> Tensor:
        """Return the logits of the four corners, shape (4,)."""
        with torch.no_grad():
            logits: Tensor = self.network(self._cohort.program.x1, self._cohort.program.x2, return_logit=True)[:, 0]
        return logits

    def take(
        self, steps: range, aside: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    ) -> list[Observation]:
        """Make some steps and return the observation of each.

        Args:
            steps: their numbers, from 1, which decide the batches.
            aside: makes the context for computations that only serve the observation, so that a caller can exclude
                them from what it watches.
        """
        with _default_dtype(self._cohort.program.x1.dtype):
            return list(self._take(steps, aside))

    def _take(self, steps: range, aside: Callable[[], AbstractContextManager[object]]) -> Iterator[Observation]:
        program, parameters = self._cohort.program, self._parameters
        low, high = program.loss.targets
        bits = self._cohort.batches.inputs(self._member, steps)
        inputs = (torch.from_numpy(half).to(parameters[0])[..., None] for half in bits)
        for number, x1, x2 in zip(steps, *inputs, strict=True):  # (n, 1) each
            target = torch.where(x1 != x2, high, low).to(x1.dtype)
            logit = self.network(x1, x2, return_logit=True)
            prediction = self.network.output_activation(logit)
            loss = program.loss.per_sample(logit, prediction, target, **self.hyperparameters["loss"]).mean()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotations there
            # Taken before clipping, which writes into the same tensors.
            with aside():
                gradient = nn.utils.parameters_to_vector(p.grad for p in parameters if p.grad is not None)
                logits = self.corner_logits()
            if program.clip.reference is not None:
                program.clip.reference(parameters, self.hyperparameters["clip"]["bound"])
            self._optimizer.step()
            with aside():
                updated = self.parameters()
                self._keep(number, updated[None], Internals(gradient[None], logits[None]))
                observation = Observation(
                    loss=loss.detach(),
                    grad_norm=torch.linalg.vector_norm(gradient),
                    max_abs_grad=gradient.abs().max(),
                    max_abs_parameter=updated.abs().max(),
                    max_abs_logit=logits.abs().max(),
                    corners_right=program.corners_right(logits),
                    saturated=saturated(logits),
                )
            yield observation


def _network(cohort: Cohort, member: int) -> XORNetwork:
    network = copy.deepcopy(cohort.program.network)  # the cohort's is shared and stays untrained
    nn.utils.vector_to_parameters(cohort.initial(np.array([member]))[0], network.parameters())
    return network.requires_grad_(True)
