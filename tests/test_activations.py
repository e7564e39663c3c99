"""Activations equal their closed forms, written here once more from the papers."""

import math

import pytest
import torch

from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS

X = torch.linspace(-8, 8, 1001, dtype=torch.float64)
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
PHI = 0.5 * (1 + torch.erf(X / math.sqrt(2)))
POSITIVE = X > 0

CLOSED_FORMS = {
    "tanh": (X.exp() - (-X).exp()) / (X.exp() + (-X).exp()),
    "relu": torch.where(POSITIVE, X, 0.0),
    "leaky_relu": torch.where(POSITIVE, X, 0.01 * X),
    "elu": torch.where(POSITIVE, X, X.exp() - 1),
    "selu": SELU_SCALE * torch.where(POSITIVE, X, SELU_ALPHA * (X.exp() - 1)),
    "celu": X.clamp(min=0) + (X.exp() - 1).clamp(max=0),
    "gelu": X * PHI,
    "silu": X / (1 + (-X).exp()),
    "mish": X * torch.tanh(torch.log(1 + X.exp())),
    "softplus": torch.log(1 + X.exp()),
    "softsign": X / (1 + X.abs()),
    "sigmoid": 1 / (1 + (-X).exp()),
    "hard_tanh": torch.where(X < -1, -1.0, torch.where(X > 1, 1.0, X)),
    "identity": X,
    "nx_sigmoid": 1 / (1 + (-X).exp()),
    "hard_sigmoid": torch.where(X < -3, 0.0, torch.where(X > 3, 1.0, X / 6 + 0.5)),
}


def test_the_catalogues_hold_what_they_should() -> None:
    assert set(HIDDEN_ACTIVATIONS) == set(CLOSED_FORMS) - {"nx_sigmoid", "hard_sigmoid"}
    assert set(OUTPUT_ACTIVATIONS) == {"sigmoid", "nx_sigmoid", "hard_sigmoid", "tanh", "identity"}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_equals_its_closed_form(name: str) -> None:
    for catalogue in (HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS):
        if name in catalogue:
            torch.testing.assert_close(catalogue[name](X), CLOSED_FORMS[name], rtol=1e-13, atol=1e-14)
