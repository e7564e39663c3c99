"""XORNetwork: shapes, dtypes and the arithmetic of the article's network."""

from pathlib import Path

import pytest
import torch
from devices import DEVICES

from xor_study import StudyError, XORNetwork


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_logit(device: str, dtype: torch.dtype) -> None:
    network = XORNetwork(5, "relu", "hard_sigmoid", device=device, dtype=dtype)
    x1, x2 = torch.tensor([[0.0, 0, 1], [0, 1, 1]], device=device, dtype=dtype)[..., None]
    w1, b1, w2, b2 = (parameter.detach() for parameter in network.parameters())
    hidden = torch.relu(torch.cat([x1, x2], 1) @ w1.T + b1)
    expected = hidden @ w2.T + b2
    tolerance = {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(network.logit(x1, x2), expected, **tolerance)
    torch.testing.assert_close(network(x1, x2), (expected / 6 + 0.5).clamp(0, 1), **tolerance)
    assert torch.equal(network(x1, x2, return_logit=True), network.logit(x1, x2))
    assert network(x1, x2).shape == (3, 1)
    assert network(x1, x2).dtype == dtype


def test_the_default_is_the_article() -> None:
    network = XORNetwork()
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes == {"hidden.weight": (8, 2), "hidden.bias": (8,), "output.weight": (1, 8), "output.bias": (1,)}
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.fill_(1.0)
        assert network(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(0.7310585786)


def test_it_can_represent_exclusive_or() -> None:
    """tanh units that act as "x1 or x2" and "x1 and x2"; their difference decides."""
    network = XORNetwork(2)
    with torch.no_grad():
        network.hidden.weight.copy_(torch.tensor([[10.0, 10.0], [10.0, 10.0]]))
        network.hidden.bias.copy_(torch.tensor([-5.0, -15.0]))
        network.output.weight.copy_(torch.tensor([[5.0, -5.0]]))
        network.output.bias.fill_(-5.0)
        x1, x2 = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]])[..., None]
        assert (network(x1, x2)[:, 0] > 0.5).tolist() == [False, True, True, False]


def test_its_weights_can_be_saved_and_loaded(tmp_path: Path) -> None:
    network = XORNetwork()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = XORNetwork()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.hidden.weight, network.hidden.weight)


def test_unknown_activations_are_named() -> None:
    with pytest.raises(StudyError, match=r"unknown hidden activation tahn; did you mean tanh\?"):
        XORNetwork(hidden_activation="tahn")
    with pytest.raises(StudyError, match="unknown output activation relu"):
        XORNetwork(output_activation="relu")
