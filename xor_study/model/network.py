"""The article's network: two inputs, one hidden layer, one output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS


class XORNetwork(nn.Module):
    """Concatenate two inputs, apply a hidden layer with its activation, then a linear unit with its activation.

    With the defaults this is the network of the article: Axon's
    `concatenate |> dense(8, activation: :tanh) |> dense(1, activation: :sigmoid)`. Its parameters are `hidden.weight`
    (width, 2), `hidden.bias` (width,), `output.weight` (1, width) and `output.bias` (1,); they start as
    `torch.nn.Linear` starts them. `xor_study.model.initializers` has others.

    Args:
        hidden: width of the hidden layer.
        hidden_activation: a name of `xor_study.model.activations.HIDDEN_ACTIVATIONS`.
        output_activation: a name of `xor_study.model.activations.OUTPUT_ACTIVATIONS`.
        device: of the parameters.
        dtype: of the parameters, any floating-point type.

    Raises:
        StudyError: if a name is unknown; the message lists the known ones.
    """

    def __init__(
        self,
        hidden: int = 8,
        hidden_activation: str = "tanh",
        output_activation: str = "sigmoid",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_activation = HIDDEN_ACTIVATIONS[hidden_activation]
        self.output_activation = OUTPUT_ACTIVATIONS[output_activation]
        self.hidden = nn.Linear(2, hidden, device=device, dtype=dtype)
        self.output = nn.Linear(hidden, 1, device=device, dtype=dtype)

    def logit(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return what the output activation is applied to, shape (n, 1), for x1 and x2 of shape (n, 1)."""
        x = torch.cat([x1, x2], dim=-1)  # (n, 2)
        hidden = self.hidden_activation(self.hidden(x))  # (n, width)
        logit: Tensor = self.output(hidden)  # (n, 1)
        return logit

    def forward(self, x1: Tensor, x2: Tensor, *, return_logit: bool = False) -> Tensor:
        """Return the prediction, shape (n, 1), for x1 and x2 of shape (n, 1); or its logit instead."""
        logit = self.logit(x1, x2)
        return logit if return_logit else self.output_activation(logit)


def empty_network(
    hidden: int,
    hidden_activation: str,
    output_activation: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> XORNetwork:
    """Return an `XORNetwork` whose parameters have no value yet, without a draw from torch's global generator."""
    network = XORNetwork(hidden, hidden_activation, output_activation, device="meta", dtype=dtype)
    for module in (network.hidden, network.output):
        for name, parameter in list(module.named_parameters()):  # what `to_empty` does, but that takes half a second
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)))
    return network
