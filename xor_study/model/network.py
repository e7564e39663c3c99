"""The article's network: two inputs, one hidden layer, one output."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xor_study.errors import StudyError
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS


class XORNetwork(nn.Module):
    """Concatenate two inputs, apply a hidden layer with its activation, then a linear unit with its activation.

    With the defaults this is the network of the article: Axon's
    `concatenate |> dense(8, activation: :tanh) |> dense(1, activation: :sigmoid)`. Its parameters are `hidden.weight`
    (width, 2), `hidden.bias` (width,), `output.weight` (1, width) and `output.bias` (1,), initialized as
    `torch.nn.Linear` does. `xor_study.model.initializers` has other ways.

    Args:
        hidden: width of the hidden layer.
        hidden_activation: a name of `xor_study.model.activations.HIDDEN_ACTIVATIONS`.
        output_activation: a name of `xor_study.model.activations.OUTPUT_ACTIVATIONS`.
        device: of the parameters; torch's default if None.
        dtype: of the parameters, any floating-point type; torch's default if None.

    Raises:
        StudyError: if a name is unknown; the message lists the known ones.

    Example:
        >>> network = XORNetwork(hidden=4, hidden_activation="relu")
        >>> corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        >>> network(corners).shape
        torch.Size([4, 1])
        >>> x1, x2 = corners.split(1, dim=1)
        >>> torch.equal(network(x1, x2), network(corners))
        True
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

    def logit(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return the input of the output activation, shape (n, 1); see `forward` for the arguments."""
        x = x1 if x2 is None else torch.cat([x1, x2], dim=-1)  # (n, 2)
        if x.ndim == 0 or x.shape[-1] != 2:
            shapes = " and ".join(str(tuple(given.shape)) for given in (x1, x2) if given is not None)
            raise StudyError(f"XORNetwork: x1 and x2 must be (n, 1) each, or x1 alone (n, 2), not {shapes}")
        hidden = self.hidden_activation(self.hidden(x))  # (n, width)
        logit: Tensor = self.output(hidden)  # (n, 1)
        return logit

    def forward(self, x1: Tensor, x2: Tensor | None = None, *, return_logit: bool = False) -> Tensor:
        """Return the prediction, shape (n, 1).

        Args:
            x1: the first input, shape (n, 1), of the parameters' dtype; or both inputs, shape (n, 2).
            x2: the second input, shape (n, 1), unless x1 has both.
            return_logit: return the input of the output activation instead.

        Raises:
            StudyError: if the last dimensions of the inputs don't add up to 2.
        """
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
    """Return an `XORNetwork` with uninitialized parameters, without drawing from torch's global generator.

    Args:
        hidden: see `XORNetwork`, as are the other arguments.
        hidden_activation: likewise.
        output_activation: likewise.
        device: likewise.
        dtype: likewise.
    """
    network = XORNetwork(hidden, hidden_activation, output_activation, device="meta", dtype=dtype)
    for module in (network.hidden, network.output):
        # The same as `to_empty`, whose first call imports half a second of torch.
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)))
    return network


def plane(network: nn.Module, low: float, high: float, side: int, *, return_logit: bool = False) -> NDArray[np.float64]:
    """Return a network's predictions on a square grid, shape (side, side): rows by x2, columns by x1.

    Args:
        network: an `XORNetwork`.
        low: the smallest x1 and x2.
        high: the largest x1 and x2.
        side: number of points along each axis.
        return_logit: return logits instead of predictions.

    Example:
        >>> network = XORNetwork()
        >>> corners = plane(network, 0, 1, 2)  # of (0, 0) and (1, 0), then of (0, 1) and (1, 1)
        >>> bool(corners[0, 1] == network(torch.tensor([[1.0, 0.0]])).item())
        True
    """
    # The points are computed in torch's default dtype and then rounded, so that they are the same for every dtype.
    line = torch.linspace(low, high, side).to(next(network.parameters()))
    x2, x1 = (axis.reshape(-1, 1) for axis in torch.meshgrid(line, line, indexing="ij"))
    with torch.no_grad():
        values: Tensor = network(x1, x2, return_logit=return_logit)
    return values.reshape(side, side).double().numpy()
