"""What training is: one update of one network, and what is noted of it.

`step` is the only definition of an update; `vmap` runs it over thousands of networks at once. It works on the four
corners instead of the batch: the mean over a batch of random bits is a sum over the corners, weighted by their counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp

from xor_study.model.data import CORNERS, TARGETS
from xor_study.model.losses import Loss
from xor_study.model.network import XORNetwork
from xor_study.model.optimizers import Clipping, Number, Optimizer, Schedule, State


class Observation(NamedTuple):
    """What is noted of one step of one network, each a tensor of no dimension.

    All but `max_abs_parameter` are taken before the update. NaN in what a maximum is taken of makes it NaN.

    Attributes:
        loss: mean over the batch.
        grad_norm: Euclidean norm of the gradient, before clipping; may overflow where the gradient does not.
        max_abs_grad: largest absolute entry of that gradient.
        max_abs_parameter: largest absolute parameter after the update.
        max_abs_logit: largest absolute logit of the four corners.
        corners_right: how many of the four corners are on the right side.
        saturated: how many of the four corners have a logit beyond `SATURATED`.
    """

    loss: Tensor
    grad_norm: Tensor
    max_abs_grad: Tensor
    max_abs_parameter: Tensor
    max_abs_logit: Tensor
    corners_right: Tensor
    saturated: Tensor


SATURATED = math.log(999)
"""The size of a logit whose sigmoid is within 0.1 % of 0 or 1."""


def saturated(logit: Tensor) -> Tensor:
    """Return how many corners are saturated, of their logits (..., 4)."""
    return (torch.abs(logit) > SATURATED).sum(-1)


class Internals(NamedTuple):
    """What a step computes on its way and is kept only where a snapshot is asked for.

    Attributes:
        gradient: of all parameters, before clipping, shape (width,).
        logits: of the four corners before the update, shape (4,).
    """

    gradient: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Program:
    """What runs must share to be trained together: everything that is not a number of theirs.

    Attributes:
        network: on the device and of the dtype the runs have; only its shape matters.
        loss, optimizer, clip: entries of the catalogues.
        constants: parameters of "loss", "optimizer" and "clip" that are the same in all runs, by group and name.
        batch: samples in a batch.
    """

    network: XORNetwork
    loss: Loss
    optimizer: Optimizer
    clip: Clipping
    constants: Mapping[str, Mapping[str, Any]]
    batch: int

    def __post_init__(self) -> None:
        example = self.network.output.bias
        corners = torch.tensor(CORNERS, dtype=example.dtype, device=example.device)
        is_true = torch.tensor(TARGETS, device=example.device)
        low, high = self.loss.targets
        held = {"x1": corners[:, :1], "x2": corners[:, 1:], "is_true": is_true}
        for name, value in (held | {"target": torch.where(is_true, high, low).to(example.dtype)}).items():
            object.__setattr__(self, name, value)

    x1: Tensor = field(init=False)  # (4, 1), of the corners
    x2: Tensor = field(init=False)  # (4, 1)
    is_true: Tensor = field(init=False)  # (4,)
    target: Tensor = field(init=False)  # (4,), as the loss codes it

    @property
    def width(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a vector of all parameters (..., width) as the network's named parameters (..., *shape)."""
        parameters = dict(self.network.named_parameters())
        parts = torch.split(flat, [parameter.numel() for parameter in parameters.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + parameter.shape)
            for (name, parameter), part in zip(parameters.items(), parts, strict=True)
        }

    def logit(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the four corners, shape (4,)."""
        logit: Tensor = functional_call(self.network, dict(parameters), (self.x1, self.x2), {"return_logit": True})
        return logit[:, 0]

    def corners_right(self, logit: Tensor) -> Tensor:
        """Return how many corners are on the right side, of their logits (..., 4)."""
        prediction = self.network.output_activation(logit)
        return self.loss.is_right(logit, prediction, self.is_true).sum(-1)


def step(
    program: Program,
    parameters: Tensor,
    state: State,
    counts: Tensor,
    schedule: Schedule,
    numbers: Mapping[str, Mapping[str, Number]],
) -> tuple[Tensor, State, Observation, Internals]:
    """Make one update of one network.

    Args:
        program: what is the same for all networks.
        parameters: all of the network's, a vector.
        state: the optimizer's vectors, of the same length.
        counts: how often each corner stands in the batch, shape (4,), of the parameters' dtype.
        schedule: the optimizer's values of this step.
        numbers: the parameters that differ between networks (the rate among them), by group and name.

    Returns:
        The parameters and the state after the update, what is noted of the step, and how it came about.
    """
    logit, pull_back = vjp(program.logit, program.named(parameters))[:2]  # (4,)

    def mean_loss(logit: Tensor) -> tuple[Tensor, Tensor]:
        prediction = program.network.output_activation(logit)
        losses = program.loss.per_sample(
            logit, prediction, program.target, **program.constants["loss"], **numbers["loss"]
        )  # (4,)
        return losses.sum() / program.batch, losses  # a corner's gradient is that of one sample in the batch

    logit_gradient, losses = grad(mean_loss, has_aux=True)(logit)  # (4,)
    present = counts > 0  # a corner that is absent contributes nothing, rather than 0 times infinity
    (gradients,) = pull_back(torch.where(present, counts * logit_gradient, 0.0))
    gradient = torch.cat([gradients[name].reshape(-1) for name, _ in program.network.named_parameters()])

    clipped = program.clip.transform(gradient, **program.constants["clip"], **numbers["clip"])
    updated, state = program.optimizer.update(
        parameters, clipped, state, schedule, **program.constants["optimizer"], **numbers["optimizer"]
    )
    observation = Observation(
        loss=torch.where(present, counts * losses, 0.0).sum() / program.batch,
        grad_norm=torch.linalg.vector_norm(gradient),
        max_abs_grad=torch.linalg.vector_norm(gradient, torch.inf),
        max_abs_parameter=torch.linalg.vector_norm(updated, torch.inf),
        max_abs_logit=torch.linalg.vector_norm(logit, torch.inf),
        corners_right=program.corners_right(logit),
        saturated=saturated(logit),
    )
    return updated, state, observation, Internals(gradient, logit)
