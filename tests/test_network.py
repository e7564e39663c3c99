"""XORNetwork: shapes, dtypes and the arithmetic of the article's network."""

import re
from pathlib import Path

import pytest
import torch
from devices import DEVICES

from xor_study import StudyError, XORNetwork
from xor_study.model.network import plane


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


def test_both_inputs_may_be_one_tensor() -> None:
    network = XORNetwork(3)
    x = torch.rand(5, 2)
    assert torch.equal(network(x), network(x[:, :1], x[:, 1:]))
    assert torch.equal(network.logit(x), network(x, return_logit=True))
    assert network(x[0]).shape == (1,)


@pytest.mark.parametrize("shapes", [[(4, 3)], [(4, 1)], [()], [(4, 2), (4, 2)]])
def test_inputs_of_another_shape_are_refused(shapes: list[tuple[int, ...]]) -> None:
    given = re.escape(" and ".join(str(shape) for shape in shapes))
    with pytest.raises(StudyError, match=rf"x1 and x2 must be \(n, 1\) each, or x1 alone \(n, 2\), not {given}$"):
        XORNetwork()(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_plane_has_rows_by_x2_and_columns_by_x1(dtype: torch.dtype) -> None:
    network = XORNetwork(4, dtype=dtype)
    logits, predictions = (plane(network, -0.5, 1.5, 5, return_logit=logit) for logit in (True, False))
    assert logits.shape == predictions.shape == (5, 5)
    assert logits.dtype == "float64"
    with torch.no_grad():
        point = torch.tensor([[1.0, -0.5]], dtype=dtype)
        expected = network(point, return_logit=True).double().item(), network(point).double().item()
    assert (logits[0, 3], predictions[0, 3]) == pytest.approx(expected, abs=4 * torch.finfo(dtype).eps)
    assert logits[0, 3] != logits[3, 0]
