"""One training step of one network: the update, and what is observed before it.

`step` is the only definition of an update. The vmap engine maps it over many networks, the lanes engine compiles it. It
works on the four corners instead of the batch: the mean over a batch of random bits is a sum over the corners, weighted
by their counts.
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
    """What is observed at one step of one network, each a tensor of no dimension.

    All but `max_abs_parameter` describe the state before the update. A maximum over values with a NaN is NaN.

    Attributes:
        loss: mean over the batch.
        grad_norm: Euclidean norm of the gradient, before clipping; may overflow where the gradient does not.
        max_abs_grad: largest absolute entry of that gradient.
        max_abs_parameter: largest absolute parameter after the update.
        max_abs_logit: largest absolute logit of the four corners.
        corners_right: number of the four corners that are on the right side.
        saturated: number of the four corners whose logit is beyond `SATURATED`.
    """

    loss: Tensor
    grad_norm: Tensor
    max_abs_grad: Tensor
    max_abs_parameter: Tensor
    max_abs_logit: Tensor
    corners_right: Tensor
    saturated: Tensor


SATURATED = math.log(999)
"""The absolute value of a logit from which on its sigmoid is within 0.1 % of 0 or 1."""


def saturated(logit: Tensor) -> Tensor:
    """Return the number of saturated corners, shape (...), for their logits, shape (..., 4)."""
    return (torch.abs(logit) > SATURATED).sum(-1)


class Internals(NamedTuple):
    """Intermediate values of a step, which are kept only for snapshots.

    Attributes:
        gradient: of the loss by all parameters, before clipping, shape (width,).
        logits: of the four corners before the update, shape (4,).
    """

    gradient: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Program:
    """Static configuration of runs that train together; what differs between them is in `Cohort.numbers`.

    Attributes:
        network: of the runs' device and dtype; the values of its parameters are not used.
        loss, optimizer, clip: entries of the catalogues.
        constants: hyperparameters of "loss", "optimizer" and "clip" with one value for all runs, by group and name.
        batch: samples in a batch.
        x1, x2: inputs of the four corners, shape (4, 1) each.
        is_true: exclusive or of the corners, shape (4,), bool.
        target: the same as the numbers that the loss uses, shape (4,).
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
        target = torch.where(is_true, high, low).to(example.dtype)
        tensors = {"x1": corners[:, :1], "x2": corners[:, 1:], "is_true": is_true, "target": target}
        for name, value in tensors.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    x1: Tensor = field(init=False)
    x2: Tensor = field(init=False)
    is_true: Tensor = field(init=False)
    target: Tensor = field(init=False)

    @property
    def width(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Split a vector of all parameters, shape (..., width), into the network's parameters, shape (..., *shape)."""
        parameters = dict(self.network.named_parameters())
        parts = torch.split(flat, [parameter.numel() for parameter in parameters.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + parameter.shape)
            for (name, parameter), part in zip(parameters.items(), parts, strict=True)
        }

    def logit(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the four corners, shape (4,), for one network's named parameters."""
        logit: Tensor = functional_call(self.network, dict(parameters), (self.x1, self.x2), {"return_logit": True})
        return logit[:, 0]

    def corners_right(self, logit: Tensor) -> Tensor:
        """Return the number of corners on the right side, shape (...), for their logits, shape (..., 4)."""
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
        program: the configuration that all networks share.
        parameters: all parameters of the network, shape (width,).
        state: the optimizer's vectors by name, shape (width,) each.
        counts: number of samples at each corner in the batch, shape (4,), of the parameters' dtype.
        schedule: the optimizer's values for this step, such as bias corrections; see `Optimizer.schedule`.
        numbers: the hyperparameters that differ between networks, among them the learning rate, by group and name.

    Returns:
        The parameters and the state after the update, the observation of the step, and its intermediate values.
    """
    logit, pull_back = vjp(program.logit, program.named(parameters))[:2]  # (4,)

    def mean_loss(logit: Tensor) -> tuple[Tensor, Tensor]:
        prediction = program.network.output_activation(logit)
        losses = program.loss.per_sample(
            logit, prediction, program.target, **program.constants["loss"], **numbers["loss"]
        )  # (4,)
        # The counts are left out here, so the gradient for each corner is that of one sample of the batch.
        return losses.sum() / program.batch, losses

    logit_gradient, losses = grad(mean_loss, has_aux=True)(logit)  # (4,)
    # A corner that is not in the batch must contribute 0: its loss may be infinite, and 0 times infinity is NaN.
    present = counts > 0
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
