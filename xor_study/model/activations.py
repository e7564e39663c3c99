"""Activation functions of the hidden and of the output layer, by name.

Each maps a tensor of any shape to one of the same shape and is PyTorch's own function wherever PyTorch has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from xor_study.model.catalogue import Catalogue
from xor_study.model.lazy import Lazy

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch, F = Lazy("torch"), Lazy("torch.nn.functional")

Activation: TypeAlias = "Callable[[Tensor], Tensor]"

HIDDEN_ACTIVATIONS: Catalogue[Activation] = Catalogue("hidden activation")
OUTPUT_ACTIVATIONS: Catalogue[Activation] = Catalogue("output activation")


def _hidden(function: Activation) -> Activation:
    HIDDEN_ACTIVATIONS.add(function, function)
    return function


def _output(function: Activation) -> Activation:
    OUTPUT_ACTIVATIONS.add(function, function)
    return function


@_hidden
def tanh(x: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x), the article's hidden activation. `torch.tanh`."""
    return torch.tanh(x)


@_hidden
def relu(x: Tensor) -> Tensor:
    """max(0, x), with derivative 0 at 0 (Nair & Hinton 2010). `torch.relu`."""
    return torch.relu(x)


@_hidden
def leaky_relu(x: Tensor) -> Tensor:
    """x where x > 0, else 0.01 x (Maas et al. 2013). `torch.nn.functional.leaky_relu`."""
    return F.leaky_relu(x)


@_hidden
def elu(x: Tensor) -> Tensor:
    """x where x > 0, else e^x - 1 (Clevert et al. 2016, alpha 1). `torch.nn.functional.elu`."""
    return F.elu(x)


@_hidden
def selu(x: Tensor) -> Tensor:
    """1.0507 (x where x > 0, else 1.6733 (e^x - 1)) (Klambauer et al. 2017). `torch.selu`."""
    return torch.selu(x)


@_hidden
def celu(x: Tensor) -> Tensor:
    """max(0, x) + min(0, e^x - 1) (Barron 2017, alpha 1). `torch.nn.functional.celu`."""
    return F.celu(x)


@_hidden
def gelu(x: Tensor) -> Tensor:
    """x Phi(x) with the normal distribution function Phi, not its tanh approximation (Hendrycks & Gimpel 2016).

    `torch.nn.functional.gelu`.
    """
    return F.gelu(x)


@_hidden
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), also called swish (Elfwing et al. 2018). `torch.nn.functional.silu`."""
    return F.silu(x)


@_hidden
def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra 2019). `torch.nn.functional.mish`, whose own gradient has no batching rule."""
    return x * torch.tanh(F.softplus(x))


@_hidden
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), and x itself above 20 (Dugas et al. 2001). `torch.nn.functional.softplus`."""
    return F.softplus(x)


@_hidden
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|) (Glorot & Bengio 2010). `torch.nn.functional.softsign`."""
    return F.softsign(x)


@_output
@_hidden
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), the article's output activation. `torch.sigmoid`."""
    return torch.sigmoid(x)


@_output
def nx_sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) with Nx's gradient e^-x p p, of p = 1 / (1 + e^-x): infinite or NaN where e^-x overflows.

    Axon's sigmoid with every loss but the cross-entropy on visible logits. Source: Nx 0.4.2 to 0.9.0.
    """
    from xor_study.model.gradients import nx_sigmoid  # its class needs torch, this catalogue doesn't

    return nx_sigmoid(x)


@_hidden
def hard_tanh(x: Tensor) -> Tensor:
    """max(-1, min(1, x)) (Collobert 2004). `torch.nn.functional.hardtanh`."""
    return F.hardtanh(x)


@_output
def hard_sigmoid(x: Tensor) -> Tensor:
    """max(0, min(1, x / 6 + 1/2)) (Howard et al. 2019; Keras's slope is 1/5). `torch.nn.functional.hardsigmoid`."""
    return F.hardsigmoid(x)


_output(tanh)


@_output
@_hidden
def identity(x: Tensor) -> Tensor:
    """x itself: a linear layer."""
    return x
