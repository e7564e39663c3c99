"""Weight initializers, by name: each turns uniform draws into the weights of one linear layer.

The fourteen of Axon 0.7.0 (`Axon.Initializers`, same formulas) and PyTorch's own default. Draws and weights have
PyTorch's order (..., fan_out, fan_in), the transpose of Axon's kernel; draws lie in (0, 1) and are float64. Draw j
decides weight j alone (but for `orthogonal`), so two initializers with the same seed are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from xor_study.model.catalogue import Catalogue, Finite, OneOf, Positive
from xor_study.model.lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

Weights: TypeAlias = "Callable[..., Tensor]"
Fan = Annotated[str, OneOf(("fan_in", "fan_out", "fan_avg"))]

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal truncated to [-2, 2]."""


@dataclass(frozen=True)
class Initializer:
    """How a linear layer starts.

    Attributes:
        weight: (draws of shape (..., fan_out, fan_in), parameters) -> weights of that shape.
        bias: (draws of shape (..., fan_out), fan_in) -> biases of that shape, or None where they start at zero.
    """

    weight: Weights
    bias: Callable[[Tensor, int], Tensor] | None

    def __call__(
        self, weight_draws: Tensor, bias_draws: Tensor, *, gain: float, bias: float, **parameters: Any
    ) -> tuple[Tensor, Tensor]:
        """Return weights times `gain`, and biases plus `bias`, of the draws' shapes."""
        weights: Tensor = self.weight(weight_draws, **parameters) * gain
        biases = torch.zeros_like(bias_draws) if self.bias is None else self.bias(bias_draws, weight_draws.shape[-1])
        return weights, biases + bias


INITIALIZERS: Catalogue[Initializer] = Catalogue("initializer")


def _initializer(bias: Callable[[Tensor, int], Tensor] | None = None) -> Callable[[Weights], Weights]:
    def register(weight: Weights) -> Weights:
        INITIALIZERS.add(weight, Initializer(weight, bias))
        return weight

    return register


def _uniform(draws: Tensor, limit: float) -> Tensor:
    return (2 * draws - 1) * limit


def _normal(draws: Tensor, std: float) -> Tensor:
    # By the inverse of the distribution function, so that one draw decides one weight and cells are paired.
    standard: Tensor = torch.special.ndtri(draws)
    return standard * std


def _truncated_normal(draws: Tensor, variance: float) -> Tensor:
    """Draw from a normal cut at two deviations by its inverse: sqrt(2) erfinv(u), u from U(-erf(sqrt2), erf(sqrt2))."""
    edge = math.erf(math.sqrt(2))
    standard = math.sqrt(2) * torch.erfinv((2 * draws - 1) * edge)
    # erfinv rounds: a draw near 0 or 1 could come out just beyond 2.
    return standard.clamp(-2, 2) * (math.sqrt(variance) / TRUNCATED_STD)


def _variance(draws: Tensor, scale: float, mode: str) -> float:
    fan_out, fan_in = draws.shape[-2:]
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    return scale / max(fan, 1)


@_initializer()
def zeros(draws: Tensor) -> Tensor:
    """All 0: every hidden unit stays the same as its neighbours."""
    return torch.zeros_like(draws)


@_initializer()
def ones(draws: Tensor) -> Tensor:
    """All 1."""
    return torch.ones_like(draws)


@_initializer()
def full(draws: Tensor, *, value: Finite = 0.5) -> Tensor:
    """All `value` (Axon gives no default)."""
    return torch.full_like(draws, value)


@_initializer()
def identity(draws: Tensor) -> Tensor:
    """1 on the diagonal, else 0 (`Nx.eye`)."""
    return torch.eye(*draws.shape[-2:], dtype=draws.dtype, device=draws.device).expand(draws.shape).clone()


@_initializer()
def uniform(draws: Tensor, *, scale: Positive = 0.01) -> Tensor:
    """U(-scale, scale)."""
    return _uniform(draws, scale)


@_initializer()
def normal(draws: Tensor, *, scale: Positive = 0.01) -> Tensor:
    """N(0, scale^2)."""
    return _normal(draws, scale)


@_initializer()
def lecun_uniform(draws: Tensor, *, scale: Positive = 1.0) -> Tensor:
    """U(-a, a) with a = sqrt(3 scale / fan_in): the variance of a layer's input is kept (LeCun et al. 1998)."""
    return _uniform(draws, math.sqrt(3 * _variance(draws, scale, "fan_in")))


@_initializer()
def lecun_normal(draws: Tensor, *, scale: Positive = 1.0) -> Tensor:
    """Truncated normal of variance scale / fan_in (LeCun et al. 1998), cut at two deviations."""
    return _truncated_normal(draws, _variance(draws, scale, "fan_in"))


@_initializer()
def glorot_uniform(draws: Tensor, *, scale: Positive = 1.0) -> Tensor:
    """U(-a, a) with a = sqrt(6 scale / (fan_in + fan_out)), the default of Axon and Keras.

    A compromise between keeping the variance of activations and of gradients (Glorot & Bengio 2010, eq. 16). At scale 1
    it equals `torch.nn.init.xavier_uniform_`.
    """
    return _uniform(draws, math.sqrt(3 * _variance(draws, scale, "fan_avg")))


@_initializer()
def glorot_normal(draws: Tensor, *, scale: Positive = 1.0) -> Tensor:
    """Truncated normal of variance 2 scale / (fan_in + fan_out) (Glorot & Bengio 2010), cut at two deviations."""
    return _truncated_normal(draws, _variance(draws, scale, "fan_avg"))


@_initializer()
def he_uniform(draws: Tensor, *, scale: Positive = 2.0) -> Tensor:
    """U(-a, a) with a = sqrt(3 scale / fan_in), meant for relu (He et al. 2015). `torch.nn.init.kaiming_uniform_`."""
    return _uniform(draws, math.sqrt(3 * _variance(draws, scale, "fan_in")))


@_initializer()
def he_normal(draws: Tensor, *, scale: Positive = 2.0) -> Tensor:
    """Truncated normal of variance scale / fan_in, meant for relu (He et al. 2015), cut at two deviations."""
    return _truncated_normal(draws, _variance(draws, scale, "fan_in"))


@_initializer()
def variance_scaling(
    draws: Tensor,
    *,
    scale: Positive = 1.0,
    mode: Fan = "fan_in",
    distribution: Annotated[str, OneOf(("normal", "uniform", "truncated_normal"))] = "normal",
) -> Tensor:
    """Variance scale / fan, of the fan and the distribution named (Axon's code has scale 1, its docstring 0.01)."""
    variance = _variance(draws, scale, mode)
    if distribution == "uniform":
        return _uniform(draws, math.sqrt(3 * variance))
    if distribution == "truncated_normal":
        return _truncated_normal(draws, variance)
    return _normal(draws, math.sqrt(variance))


@_initializer()
def orthogonal(draws: Tensor, *, distribution: Annotated[str, OneOf(("normal", "uniform"))] = "normal") -> Tensor:
    """Q of the QR decomposition of a random matrix, no sign correction (Saxe et al. 2014).

    The matrix has Axon's order (fan_in, fan_out); where that is wider than tall, for which Axon's own slicing fails,
    its transpose is decomposed, as in `torch.nn.init.orthogonal_`.
    """
    matrix = _normal(draws, 1.0) if distribution == "normal" else draws
    fan_out, fan_in = draws.shape[-2:]
    q: Tensor = torch.linalg.qr(matrix if fan_out > fan_in else matrix.mT).Q
    return q if fan_out > fan_in else q.mT.contiguous()


def _torch_default_bias(draws: Tensor, fan_in: int) -> Tensor:
    return _uniform(draws, 1 / math.sqrt(fan_in))


@_initializer(bias=_torch_default_bias)
def torch_default(draws: Tensor) -> Tensor:
    """U(-a, a) with a = 1 / sqrt(fan_in), for the biases too: what `torch.nn.Linear` does by itself."""
    return _uniform(draws, 1 / math.sqrt(draws.shape[-1]))
