"""Each optimizer equals torch.optim's within 1e-12 over 500 steps in float64; clippings equal torch's functions."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.model.polaris import PolarisAdam
from xor_study.training.spec import RunSpec

STEPS = 500
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("adam", {}),
    ("adam", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.3, "beta1": 0.0}),
    ("polaris_adam", {}),
    ("polaris_adam", {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "eps_root": 1e-4}),
    ("nadam", {}),
    ("nadam", {"momentum_decay": 0.1, "weight_decay": 0.01}),
    ("radam", {}),
    ("radam", {"beta2": 0.9, "weight_decay": 0.01}),
    ("radam", {"beta2": 0.5}),  # too short an average to be rectified ever
    ("rmsprop", {}),
    ("rmsprop", {"momentum": 0.5, "centered": True, "alpha": 0.9, "weight_decay": 0.01}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1, "weight_decay": 0.01}),
    ("adadelta", {}),
    ("adadelta", {"rho": 0.5, "eps": 1e-4, "weight_decay": 0.01}),
]


@pytest.fixture
def _double() -> Iterator[None]:
    """Make float64 torch's default: its NAdam keeps the product of momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def gradient(x: torch.Tensor, step: int) -> torch.Tensor:
    """A noisy gradient of some curved function, of very different size in each direction."""
    scales = 10.0 ** torch.linspace(-3, 1, len(x))
    return scales * (torch.sin(3 * x) + x + torch.cos(torch.arange(len(x)) + 0.7 * step))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(("name", "told"), CASES)
def test_equals_torch(name: str, told: dict[str, Any]) -> None:
    optimizer = OPTIMIZERS[name]
    parameters = {key: found.default for key, found in OPTIMIZERS.parameters(name).items()} | told
    start = torch.linspace(-2, 2, 33)
    theirs = start.clone().requires_grad_()
    reference = optimizer.reference([theirs], lr=0.01, **optimizer.torch_arguments(**parameters))
    ours, state = start.clone(), optimizer.init(start, **parameters)
    schedule = optimizer.schedule(STEPS, **parameters)
    for step in range(1, STEPS + 1):
        theirs.grad = gradient(theirs.detach(), step)
        reference.step()
        now = {key: float(values[step - 1]) for key, values in schedule.items()}
        ours, state = optimizer.update(ours, gradient(ours, step), state, now, 0.01, **parameters)
    assert (ours - theirs.detach()).abs().max().item() < 1e-12
    assert (ours - start).abs().max().item() > 1e-2


def test_all_are_tested() -> None:
    assert {name for name, _ in CASES} == set(OPTIMIZERS)
    told = {(name, key) for name, parameters in CASES for key in parameters}
    assert told >= {(name, "weight_decay") for name in set(OPTIMIZERS) - {"polaris_adam"}}


def test_polaris_adam_without_its_own_term_is_adam() -> None:
    ours, theirs = (torch.linspace(-2, 2, 33, dtype=torch.float64).requires_grad_() for _ in range(2))
    steppers = PolarisAdam([ours], lr=0.01, eps_root=0.0), torch.optim.Adam([theirs], lr=0.01)
    for step in range(1, STEPS + 1):
        for x, stepper in zip((ours, theirs), steppers, strict=True):
            x.grad = gradient(x.detach(), step)
            stepper.step()
    assert (ours - theirs).abs().max().item() < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_have_the_defaults_of_torch(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    ours = optimizer.torch_arguments(**{k: found.default for k, found in OPTIMIZERS.parameters(name).items()})
    theirs = optimizer.reference([torch.zeros(1)]).defaults
    assert {key: theirs[key] for key in ours} == ours


def test_default_rates() -> None:
    rates = {name: RunSpec(optimizer=name).lr for name in OPTIMIZERS}
    assert rates["sgd"] == 0.01  # Axon's and Keras's; torch's is 0.001
    assert rates["adam"] == 0.001
    for name in set(OPTIMIZERS) - {"sgd"}:
        assert rates[name] == OPTIMIZERS[name].reference([torch.zeros(1)]).defaults["lr"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ["value", "norm"])
def test_clipping_equals_torch(name: str, scale: float) -> None:
    clipping = CLIPPINGS[name]
    assert clipping.reference is not None
    for bound in (0.1, 1.0, 7.0):
        given = scale * torch.linspace(-1, 2, 33, dtype=torch.float64)
        parts = [part.clone().requires_grad_() for part in (given[:16], given[16:])]
        for part in parts:
            part.grad = part.detach().clone()
        clipping.reference(parts, bound)
        theirs = torch.cat([part.grad for part in parts if part.grad is not None])
        torch.testing.assert_close(clipping.transform(given, bound=bound), theirs, rtol=1e-14, atol=0)


def test_no_clipping_changes_nothing() -> None:
    given = torch.tensor([1e30, float("nan"), -3.0])
    assert CLIPPINGS["none"].transform(given) is given


@pytest.mark.parametrize("name", ["value", "norm"])
def test_clipping_keeps_nan(name: str) -> None:
    assert CLIPPINGS[name].transform(torch.tensor([1.0, float("nan")]), bound=0.5).isnan().any()
