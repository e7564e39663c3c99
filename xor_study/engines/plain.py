"""The plain engine: what a reader would write, and the judge of the other engines.

Autograd, `torch.optim` and `torch.nn.utils.clip_grad_*` on all samples of the batch, one network at a time. It shares
with the other engines only the forward functions of the catalogues.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from xor_study.engines.threads import one_thread
from xor_study.network import XORNetwork
from xor_study.outcome import CHUNK, Detail, Recorder, Trained
from xor_study.training import Cohort, Internals, Observation, saturated


def train(cohorts: Iterable[Cohort], detail: Detail, progress: Callable[[int], None]) -> Iterator[Trained]:
    """Yield what came of the runs, one at a time.

    Args:
        cohorts: runs that share a program each.
        detail: what is kept beyond the usual.
        progress: is told how many network-steps have been made since it was last called.
    """
    for cohort in cohorts:
        for member in range(len(cohort.rows)):
            with one_thread():
                trained = _train_one(cohort, member, detail, progress)
            yield trained


def _train_one(cohort: Cohort, member: int, detail: Detail, progress: Callable[[int], None]) -> Trained:
    members = np.array([member])
    recorder = Recorder(cohort, members, detail)
    network = _network(cohort, member)
    take_steps = _trainer(cohort, member, network, recorder)
    for first in range(1, cohort.steps + 1, CHUNK):
        steps = range(first, min(first + CHUNK, cohort.steps + 1))
        with _default_dtype(cohort.program.x1.dtype):
            noted = list(take_steps(steps))
        columns = (torch.stack(column)[:, None] for column in zip(*noted, strict=True))
        recorder.add(steps, Observation(*columns))
        progress(len(steps))
    right = cohort.program.corners_right(_corner_logits(cohort, network))[None]
    parameters = nn.utils.parameters_to_vector(network.parameters()).detach()
    return Trained(cohort, members, recorder.finish(right), parameters[None])


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` torch's default: its NAdam keeps the product of momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _network(cohort: Cohort, member: int) -> XORNetwork:
    network = copy.deepcopy(cohort.program.network)
    nn.utils.vector_to_parameters(cohort.initial(np.array([member]))[0], network.parameters())
    return network.requires_grad_(True)


def _corner_logits(cohort: Cohort, network: XORNetwork) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(cohort.program.x1, cohort.program.x2, return_logit=True)[:, 0]
    return logits


def _trainer(
    cohort: Cohort, member: int, network: XORNetwork, recorder: Recorder
) -> Callable[[range], Iterator[Observation]]:
    """Return a function that trains one network over a range of steps and yields what is noted of each."""
    program = cohort.program
    own = {
        group: {**program.constants[group], **{name: float(values[member]) for name, values in numbers.items()}}
        for group, numbers in cohort.numbers.items()
    }
    parameters = list(network.parameters())
    optimizer = program.optimizer.reference(parameters, **program.optimizer.torch_arguments(**own["optimizer"]))
    low, high = program.loss.targets

    def take_steps(steps: range) -> Iterator[Observation]:
        inputs = (torch.from_numpy(bits).to(parameters[0])[..., None] for bits in cohort.batches.inputs(member, steps))
        for number, x1, x2 in zip(steps, *inputs, strict=True):  # (n, 1) each
            target = torch.where(x1 != x2, high, low).to(x1.dtype)
            logit = network(x1, x2, return_logit=True)
            prediction = network.output_activation(logit)
            loss = program.loss.per_sample(logit, prediction, target, **own["loss"]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotations there
            gradient = nn.utils.parameters_to_vector(p.grad for p in parameters if p.grad is not None)
            if program.clip.reference is not None:
                program.clip.reference(parameters, own["clip"]["bound"])
            logits = _corner_logits(cohort, network)
            optimizer.step()
            updated = nn.utils.parameters_to_vector(parameters).detach()
            recorder.add_snapshot(number, updated[None], Internals(gradient[None], logits[None]))
            yield Observation(
                loss=loss.detach(),
                grad_norm=torch.linalg.vector_norm(gradient),
                max_abs_grad=gradient.abs().max(),
                max_abs_parameter=updated.abs().max(),
                max_abs_logit=logits.abs().max(),
                corners_right=program.corners_right(logits),
                saturated=saturated(logits),
            )

    return take_steps
