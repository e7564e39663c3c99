"""Gradients that autograd would not find by itself: PyTorch's cross-entropy without its error, and Axon's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _BinaryCrossEntropy(torch.autograd.Function):
    """torch's value and torch's gradient, but a NaN probability gives NaN where torch raises an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(prediction: Tensor, target: Tensor) -> Tensor:
        if_true = torch.where(target == 0, 0.0, target * torch.clamp(torch.log(prediction), min=-100))
        if_false = torch.where(target == 1, 0.0, (target - 1) * torch.clamp(torch.log1p(-prediction), min=-100))
        return if_false - if_true  # where one factor is 0 the other term has all there is, NaN included

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        prediction, target = ctx.saved_tensors
        return upstream * (prediction - target) / torch.clamp((1 - prediction) * prediction, min=1e-12), None


AXON_EPSILON = 1e-7


def _clipped(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Return Axon's epsilon and the prediction clipped with it, both rounded to the prediction's dtype."""
    eps = torch.tensor(AXON_EPSILON, dtype=prediction.dtype, device=prediction.device)
    return eps, torch.clamp(prediction, eps, 1 - eps)


def clipped_gradient(prediction: Tensor, target: Tensor, upstream: Tensor, *, squared: bool) -> Tensor:
    """Return the gradient of Axon's guarded cross-entropy with respect to the prediction.

    With q = clip(p, eps, 1 - eps) it is g = upstream (-y / (q + eps) + (1 - y) / ((1 - q) + eps)) strictly between the
    bounds and 0 elsewhere. Nx before pull request 1779 multiplied by the derivative of its clip as if that were g
    itself, which gives g^2 (`squared`); `upstream` is 1 / n, inside the square.
    """
    eps, clipped = _clipped(prediction)
    gradient = (-target / (clipped + eps) + (1 - target) / ((1 - clipped) + eps)) * upstream
    inside = (prediction > eps) & (prediction < 1 - eps)  # at a bound Nx's gradient is 0; torch.clamp's would be g
    return torch.where(inside, gradient * gradient if squared else gradient, 0.0)


def exponential_sigmoid_gradient(logit: Tensor, prediction: Tensor) -> Tensor:
    """Return Nx's derivative of the sigmoid, e^-z p p: e^-z is infinite in float32 below z = -88.72."""
    return torch.exp(-logit) * prediction * prediction


class _NxSigmoid(torch.autograd.Function):
    """The sigmoid with Nx's gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor) -> Tensor:
        return torch.sigmoid(logit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> Tensor | None:
        if upstream is None:  # of a loss that is computed from the logit: no 0 may meet an infinity
            return None
        logit, prediction = ctx.saved_tensors
        return upstream * exponential_sigmoid_gradient(logit, prediction)


def nx_sigmoid(logit: Tensor) -> Tensor:
    """Return sigmoid(logit), of the same shape; its gradient is `exponential_sigmoid_gradient`."""
    apply: Callable[..., Tensor] = _NxSigmoid.apply
    return apply(logit)


class _NxClip(torch.autograd.Function):
    """The clip with Nx's gradient before pull request 1779."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: Any, high: Any) -> Tensor:
        return torch.clamp(value, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any, Any], output: Tensor) -> None:
        value, low, high = inputs
        ctx.save_for_backward((value > low) & (value < high))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, upstream * upstream, 0.0), None, None


def nx_clip(value: Tensor, low: Any, high: Any) -> Tensor:
    """Return `value` limited to [low, high]; backward squares the gradient, which is 0 at the bounds and beyond.

    Args:
        value: of any shape.
        low: a number or a tensor that broadcasts.
        high: likewise.
    """
    apply: Callable[..., Tensor] = _NxClip.apply
    return apply(value, low, high)


def softplus_gradient(logit: Tensor) -> Tensor:
    """Return Nx's derivative of max(0, z) + log(1 + e^-|z|): sigmoid(z), but 0 at z = 0, where 1/2 and -1/2 meet."""
    small = torch.exp(-torch.abs(logit))
    small = small / (1 + small)
    return torch.where(logit > 0, 1 - small, torch.where(logit < 0, small, 0.0 * logit))


class _AxonCrossEntropy(torch.autograd.Function):
    """Axon's value with Nx's gradient, which autograd would not find by itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logit: Tensor, prediction: Tensor, target: Tensor, logits_visible: bool, squared: bool, exponential: bool
    ) -> Tensor:
        if logits_visible:
            guard = torch.log1p(torch.exp(-torch.abs(logit)))
            return target * (torch.relu(-logit) + guard) + (1 - target) * (torch.relu(logit) + guard)
        eps, clipped = _clipped(prediction)
        return -(target * torch.log(clipped + eps) + (1 - target) * torch.log((1 - clipped) + eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logit, prediction, target, *ctx.switches = inputs
        ctx.save_for_backward(logit, prediction, target)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logit, prediction, target = ctx.saved_tensors
        logits_visible, squared, exponential = ctx.switches
        if logits_visible:
            # Nx differentiates both softplus terms apart: at z = 0 that gives exactly 0, where sigmoid(z) - y does not.
            gradient = (1 - target) * softplus_gradient(logit) - target * softplus_gradient(-logit)
            return gradient * upstream, None, None, None, None, None
        by_prediction = clipped_gradient(prediction, target, upstream, squared=squared)
        stable = prediction * (1 - prediction)
        by_logit = exponential_sigmoid_gradient(logit, prediction) if exponential else stable
        # The product is what goes wrong: the mask has made the first factor 0 where the second is infinite.
        return by_prediction * by_logit, None, None, None, None, None


def guarded_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Return `torch.nn.BCELoss`'s loss of each sample, with its gradient; NaN where the prediction is NaN."""
    apply: Callable[..., Tensor] = _BinaryCrossEntropy.apply
    return apply(prediction, target)


def axon_cross_entropy(
    logit: Tensor, prediction: Tensor, target: Tensor, logits_visible: bool, squared: bool, exponential: bool
) -> Tensor:
    """Return Axon's loss of each sample, with Nx's gradient; see `losses.axon_binary_cross_entropy`."""
    apply: Callable[..., Tensor] = _AxonCrossEntropy.apply
    return apply(logit, prediction, target, logits_visible, squared, exponential)
