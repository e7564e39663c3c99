"""What a network computes on the four corners, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from xor_study.model.data import CORNERS
from xor_study.model.gradients import clipped_gradient, exponential_sigmoid_gradient
from xor_study.training.step import Program

NAMES = tuple(f"{x1}{x2}" for x1, x2 in CORNERS)
"""The corners' names: 00, 01, 10, 11."""


@dataclass(frozen=True)
class Corners:
    """A network on the four corners; all of shape (4,) except the hidden layer's, (4, width).

    Attributes:
        preactivation: of the hidden units.
        hidden: their outputs.
        hidden_slope: the derivative of the hidden activation.
        logit: z.
        prediction: p.
        loss: of one sample.
        upstream: the derivative of loss / batch size with respect to p; NaN if the loss does not depend on p.
        slope: the derivative of p with respect to z, by the rule that the loss uses.
        gradient: the derivative of loss / batch size with respect to z.
        right: whether the corner is on its target's side.
    """

    preactivation: Tensor
    hidden: Tensor
    hidden_slope: Tensor
    logit: Tensor
    prediction: Tensor
    loss: Tensor
    upstream: Tensor
    slope: Tensor
    gradient: Tensor
    right: Tensor


def corners(program: Program, loss_parameters: Mapping[str, Any], parameters: Tensor) -> Corners:
    """Return what a network computes on the four corners.

    Args:
        program: the run's program.
        loss_parameters: the arguments of its loss, by name.
        parameters: all of the network's, shape (width,), on the program's device.
    """
    network, target = program.network, program.target
    named = program.named(parameters)
    inputs = torch.cat([program.x1, program.x2], -1)  # (4, 2)
    preactivation = torch.nn.functional.linear(inputs, named["hidden.weight"], named["hidden.bias"])
    hidden_slope = _derivative(network.hidden_activation, preactivation)
    logit = functional_call(network, named, (program.x1, program.x2), {"return_logit": True})[:, 0].detach()

    return Corners(
        preactivation=preactivation,
        hidden=network.hidden_activation(preactivation),
        hidden_slope=hidden_slope,
        logit=logit,
        loss=program.loss.per_sample(logit, network.output_activation(logit), target, **loss_parameters),
        right=program.loss.is_right(logit, network.output_activation(logit), program.is_true),
        **factors(program, loss_parameters, logit)._asdict(),
    )


class Factors(NamedTuple):
    """What the gradient of a corner's logit is made of; see `Corners`."""

    prediction: Tensor
    upstream: Tensor
    slope: Tensor
    gradient: Tensor


def factors(program: Program, loss_parameters: Mapping[str, Any], logit: Tensor) -> Factors:
    """Return the predictions of the four corners and the derivatives that lead back to their logits.

    Args:
        program: what the network is.
        loss_parameters: of its loss.
        logit: of the four corners, shape (4,), on the program's device.
    """
    network, target = program.network, program.target

    def share(z: Tensor, p: Tensor) -> Tensor:
        losses: Tensor = program.loss.per_sample(z, p, target, **loss_parameters)
        return losses / program.batch

    prediction = network.output_activation(logit)
    upstream = _derivative(lambda p: share(logit, p), prediction)
    slope = _derivative(network.output_activation, logit)
    if not loss_parameters.get("logits_visible", True):  # its backward goes to z in one step and bypasses p
        one = torch.tensor(1 / program.batch, dtype=logit.dtype, device=logit.device)
        squared = loss_parameters["clip_gradient"] == "squared"
        upstream = clipped_gradient(prediction, target, one, squared=squared)
        if loss_parameters["sigmoid_gradient"] == "exponential":
            slope = exponential_sigmoid_gradient(logit, prediction)
    gradient = _derivative(lambda z: share(z, network.output_activation(z)), logit)
    return Factors(prediction, upstream, slope, gradient)


def _derivative(function: Any, at: Tensor) -> Tensor:
    """Return the derivative of a function that works element by element; NaN if it does not depend on its input."""
    leaf = at.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        value = function(leaf)
    if not value.requires_grad:
        return torch.full_like(at, torch.nan)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    return torch.full_like(at, torch.nan) if gradient is None else gradient
