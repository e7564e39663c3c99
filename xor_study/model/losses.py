"""Loss functions, by name: (logit, prediction, target) -> loss of each sample, all of one shape.

Every loss declares how targets are coded, what decides a class and which output activations it makes sense with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from xor_study.model.activations import OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue, Interval, OneOf, Positive, Preset
from xor_study.model.lazy import Lazy

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch, F = Lazy("torch"), Lazy("torch.nn.functional")

PerSample: TypeAlias = "Callable[..., Tensor]"

ClipGradient = Annotated[str, OneOf(("correct", "squared"))]


@dataclass(frozen=True)
class Loss:
    """A loss and what it takes for granted.

    Attributes:
        per_sample: (logit, prediction, target, parameters) -> loss of each sample.
        targets: how "false" and "true" are coded.
        decided_by: "prediction" or "logit": what is held against `threshold`.
        threshold: a sample is right if what decides lies strictly beyond it, on its target's side.
        outputs: the output activations it makes sense with.
        reason: why the others do not.
    """

    per_sample: PerSample
    targets: tuple[float, float] = (0.0, 1.0)
    decided_by: str = "prediction"
    threshold: float = 0.5
    outputs: tuple[str, ...] = tuple(OUTPUT_ACTIVATIONS)
    reason: str = ""

    def is_right(self, logit: Tensor, prediction: Tensor, is_true: Tensor) -> Tensor:
        """Return which samples are on the right side; equal and NaN are wrong.

        Args:
            logit: of any shape.
            prediction: of the same shape.
            is_true: whether the target is "true", boolean, broadcast against them.
        """
        score = logit if self.decided_by == "logit" else prediction
        return torch.where(is_true, score > self.threshold, score < self.threshold)


LOSSES: Catalogue[Loss] = Catalogue("loss")

_PROBABILITY: dict[str, Any] = {
    "outputs": ("sigmoid", "nx_sigmoid", "hard_sigmoid"),
    "reason": "it takes the logarithm of a probability in [0, 1]",
}


def _loss(**declared: Any) -> Callable[[PerSample], PerSample]:
    def register(function: PerSample) -> PerSample:
        LOSSES.add(function, Loss(function, **declared))
        return function

    return register


@_loss(**_PROBABILITY)
def binary_cross_entropy(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), each logarithm cut off at -100.

    The gradient is PyTorch's (p - y) / max((1 - p) p, 1e-12), which does not see the cut. `torch.nn.BCELoss`.
    """
    from xor_study.model.gradients import guarded_cross_entropy  # its classes need torch, this catalogue doesn't

    return guarded_cross_entropy(prediction, target)


@_loss(
    outputs=("sigmoid", "nx_sigmoid"),
    reason="it is the cross-entropy of sigmoid(logit), so the prediction must be sigmoid(logit)",
)
def binary_cross_entropy_with_logits(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """max(z, 0) - z y + log(1 + e^-|z|): the same of p = sigmoid(z), never infinite. `torch.nn.BCEWithLogitsLoss`."""
    # Without a reduction: what weights the corners is their number in the batch.
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


@_loss(**_PROBABILITY)
def binary_cross_entropy_naive(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)) as in a textbook, with no guard: 0 log 0 is NaN."""
    return -(target * torch.log(prediction) + (1 - target) * torch.log(1 - prediction))


@_loss(**_PROBABILITY)
def binary_cross_entropy_clipped(
    logit: Tensor,
    prediction: Tensor,
    target: Tensor,
    *,
    eps: Annotated[float, Interval(0, 0.5, "()")] = 1e-7,
    clip_gradient: ClipGradient = "correct",
) -> Tensor:
    """The same of p clipped into [eps, 1 - eps], as Keras does: beyond the bounds the gradient is 0.

    With `clip_gradient="squared"` the clip is Nx's before pull request 1779, which passes g * g instead of g.
    """
    from xor_study.model.gradients import nx_clip

    clipped = torch.clamp(prediction, eps, 1 - eps) if clip_gradient == "correct" else nx_clip(prediction, eps, 1 - eps)
    return binary_cross_entropy_naive(logit, clipped, target)


@_loss()
def mean_squared_error(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """(p - y)^2. `torch.nn.MSELoss`."""
    return F.mse_loss(prediction, target, reduction="none")


@_loss()
def mean_absolute_error(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """|p - y|, with derivative 0 at 0. `torch.nn.L1Loss`."""
    return F.l1_loss(prediction, target, reduction="none")


@_loss()
def huber(logit: Tensor, prediction: Tensor, target: Tensor, *, delta: Positive = 1.0) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), of d = p - y (Huber 1964). `torch.nn.HuberLoss`."""
    distance = torch.abs(prediction - target)
    # torch's own takes delta as a Python number; here it may be a tensor, one number for each network.
    return torch.where(distance <= delta, 0.5 * distance * distance, delta * (distance - 0.5 * delta))


@_loss(targets=(-1.0, 1.0), decided_by="logit", threshold=0.0)
def hinge(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """max(0, 1 - y z) of the raw logit z and targets -1 and +1 (Cortes & Vapnik 1995)."""
    return torch.relu(1 - target * logit)


@_loss(outputs=("sigmoid", "nx_sigmoid"), reason="Axon's cross-entropy looks for the logits of a sigmoid")
def axon_binary_cross_entropy(
    logit: Tensor,
    prediction: Tensor,
    target: Tensor,
    *,
    logits_visible: bool = True,
    clip_gradient: ClipGradient = "correct",
    sigmoid_gradient: Annotated[str, OneOf(("stable", "exponential"))] = "stable",
) -> Tensor:
    """Binary cross-entropy as Axon computes it, with a switch for each of the three defects found in it.

    With `logits_visible` it is y softplus(-z) + (1 - y) softplus(z), and its gradient is sigmoid(z) - y but exactly 0
    at z = 0. Without, it is -(y log(q + eps) + (1 - y) log((1 - q) + eps)) with q = clip(p, eps, 1 - eps), and its
    gradient is `clipped_gradient` times the sigmoid's, which is p (1 - p) or e^-z p p. The other two switches act only
    there. With the output activation nx_sigmoid, `sigmoid_gradient` must be "exponential" there, which is the same.
    Source: Axon 0.6.1 and 0.7.0 with Nx 0.7.3 and 0.9.0; see tests/data/axon/README.md.
    """
    squared, exponential = clip_gradient == "squared", sigmoid_gradient == "exponential"
    from xor_study.model.gradients import axon_cross_entropy

    return axon_cross_entropy(logit, prediction, target, logits_visible, squared, exponential)


LOSSES.presets |= {
    version: Preset(
        axon_binary_cross_entropy.__name__,
        {"logits_visible": visible, "clip_gradient": "squared", "sigmoid_gradient": "exponential"},
    )
    for version, visible in (("axon_0_6_1", False), ("axon_0_7_0", True))
}


def check_pairing(loss: str, output: str) -> str | None:
    """Return why `loss` and the output activation `output` make no sense together, or None if they do."""
    entry = LOSSES[loss]
    if output in entry.outputs:
        return None
    return f"{loss} cannot go with the output activation {output}: {entry.reason} (use {' or '.join(entry.outputs)})"
