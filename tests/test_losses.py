"""Losses and their gradients against torch's own classes and closed forms."""

import pytest
import torch
from torch import nn

from xor_study.errors import StudyError
from xor_study.model.activations import OUTPUT_ACTIVATIONS
from xor_study.model.losses import LOSSES, check_pairing

LOGIT = torch.linspace(-12, 12, 97, dtype=torch.float64)


def value_and_gradient(name: str, target: float, **parameters: float) -> tuple[torch.Tensor, torch.Tensor]:
    logit = LOGIT.clone().requires_grad_()
    loss = LOSSES[name].per_sample(logit, torch.sigmoid(logit), torch.full_like(LOGIT, target), **parameters)
    loss.sum().backward()
    assert logit.grad is not None
    return loss.detach(), logit.grad


def of_torch(module: nn.Module, target: float, *, of_logit: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logit = LOGIT.clone().requires_grad_()
    loss = module(logit if of_logit else torch.sigmoid(logit), torch.full_like(LOGIT, target))
    loss.sum().backward()
    assert logit.grad is not None
    return loss.detach(), logit.grad


TORCH = {
    "binary_cross_entropy": (nn.BCELoss(reduction="none"), False),
    "binary_cross_entropy_naive": (nn.BCELoss(reduction="none"), False),
    "binary_cross_entropy_with_logits": (nn.BCEWithLogitsLoss(reduction="none"), True),
    "mean_squared_error": (nn.MSELoss(reduction="none"), False),
    "mean_absolute_error": (nn.L1Loss(reduction="none"), False),
    "huber": (nn.HuberLoss(reduction="none"), False),
}


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(name: str, target: float) -> None:
    module, of_logit = TORCH[name]
    for ours, theirs in zip(value_and_gradient(name, target), of_torch(module, target, of_logit=of_logit), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_huber_with_another_delta_equals_torch(target: float) -> None:
    expected = of_torch(nn.HuberLoss(reduction="none", delta=0.25), target, of_logit=False)
    for ours, theirs in zip(value_and_gradient("huber", target, delta=0.25), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_hinge_is_its_closed_form() -> None:
    for target in (-1.0, 1.0):
        loss, gradient = value_and_gradient("hinge", target)
        margin = 1 - target * LOGIT
        torch.testing.assert_close(loss, margin.clamp(min=0))
        torch.testing.assert_close(gradient, torch.where(margin > 0, -target, 0.0).double())


def test_cross_entropy_is_cut_off_at_100_with_the_gradient_of_torch() -> None:
    """torch: the logarithm is at least -100, and the gradient is (p - y) / max((1 - p) p, 1e-12)."""
    p = torch.tensor([0.0, 1.0, 1e-30], dtype=torch.float64, requires_grad=True)
    loss = LOSSES["binary_cross_entropy"].per_sample(p, p, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([100.0, 100.0, 69.0775527898])
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([-1e12, 1e12, -1e12])


def test_cross_entropy_of_nan_is_nan() -> None:
    """torch raises an error instead."""
    p = torch.tensor([float("nan")], requires_grad=True)
    loss = LOSSES["binary_cross_entropy"].per_sample(p, p, torch.ones(1))
    loss.sum().backward()
    assert p.grad is not None
    assert loss.isnan().all()
    assert p.grad.isnan().all()


@pytest.mark.parametrize(("p", "target"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_naive_cross_entropy_has_no_guard(p: float, target: float) -> None:
    """A probability of exactly 0 or 1 is not finite even where it is right: 0 * log 0."""
    probability = torch.tensor([p], requires_grad=True)
    loss = LOSSES["binary_cross_entropy_naive"].per_sample(probability, probability, torch.tensor([target]))
    loss.sum().backward()
    assert probability.grad is not None
    assert not torch.isfinite(loss).any()
    assert not torch.isfinite(probability.grad).any()


@pytest.mark.parametrize("eps", [1e-7, 1e-2])
def test_clipped_cross_entropy_is_flat_beyond_its_bounds(eps: float) -> None:
    p = torch.tensor([0.0, eps / 2, 0.3, 1 - eps / 2, 1.0], dtype=torch.float64, requires_grad=True)
    loss = LOSSES["binary_cross_entropy_clipped"].per_sample(p, p, torch.ones(5, dtype=torch.float64), eps=eps)
    loss.sum().backward()
    inside = p.detach().clamp(eps, 1 - eps)
    torch.testing.assert_close(loss.detach(), -inside.log())
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([0, 0, -1 / 0.3, 0, 0])


def test_decisions_are_strict() -> None:
    values = torch.tensor([0.49, 0.5, 0.51, float("nan")])
    is_true = torch.tensor([True])
    by_prediction, by_logit = LOSSES["mean_squared_error"], LOSSES["hinge"]
    assert by_prediction.is_right(-values, values, is_true).tolist() == [False, False, True, False]
    assert by_prediction.is_right(-values, values, ~is_true).tolist() == [True, False, False, False]
    logits = values - 0.5
    assert by_logit.is_right(logits, -values, is_true).tolist() == [False, False, True, False]
    assert by_logit.is_right(logits, -values, ~is_true).tolist() == [True, False, False, False]


def test_only_hinge_codes_targets_as_signs() -> None:
    coded = {name: (loss.targets, loss.decided_by, loss.threshold) for name, loss in LOSSES.items()}
    assert coded.pop("hinge") == ((-1.0, 1.0), "logit", 0.0)
    assert set(coded.values()) == {((0.0, 1.0), "prediction", 0.5)}


def test_pairings_without_sense_are_refused_with_the_reason() -> None:
    refused = {(loss, output) for loss in LOSSES for output in OUTPUT_ACTIVATIONS if check_pairing(loss, output)}
    cross_entropies = {name for name in LOSSES if name.startswith("binary")}
    outside = {(name, output) for name in cross_entropies for output in ("tanh", "identity")}
    of_sigmoid_only = {("binary_cross_entropy_with_logits", "hard_sigmoid")}
    of_sigmoid_only |= {("axon_binary_cross_entropy", output) for output in ("hard_sigmoid", "tanh", "identity")}
    assert refused == outside | of_sigmoid_only
    assert "logarithm of a probability" in str(check_pairing("binary_cross_entropy", "identity"))


def test_an_unknown_loss_is_answered_with_the_known_ones() -> None:
    assert LOSSES.get("hing") is None
    with pytest.raises(StudyError, match=r"unknown loss hing; did you mean hinge\? .*mean_squared_error"):
        LOSSES["hing"]
