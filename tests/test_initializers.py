"""Initializers against Axon's own list (formulas, default scales, observed draws), torch and closed forms."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from xor_study import RunSpec
from xor_study.model.data import initial_draws
from xor_study.model.initializers import INITIALIZERS
from xor_study.training.cohorts import initial_parameters
from xor_study.training.table import table_of

AXON = {
    entry["name"]: entry
    for entry in json.loads((Path(__file__).parent / "data/axon/initializers.json").read_text())["initializers"]
}
RANDOM = [name for name, entry in AXON.items() if entry["distribution"] != "constant" and name != "orthogonal"]


def draws(runs: int, fan_out: int, fan_in: int) -> torch.Tensor:
    return torch.from_numpy(initial_draws(range(runs), fan_out * fan_in)).reshape(runs, fan_out, fan_in)


def weights(name: str, runs: int, fan_out: int, fan_in: int, **parameters: object) -> torch.Tensor:
    return INITIALIZERS[name].weight(draws(runs, fan_out, fan_in), **parameters)


def test_has_all_of_axon_and_the_default_of_torch() -> None:
    assert set(INITIALIZERS) == set(AXON) | {"torch_default"}


@pytest.mark.parametrize("name", [name for name, entry in AXON.items() if entry["default_scale"] is not None])
def test_default_scale_is_that_of_axon(name: str) -> None:
    assert INITIALIZERS.parameters(name)["scale"].default == AXON[name]["default_scale"]


@pytest.mark.parametrize("name", RANDOM)
def test_moments_are_those_axon_drew(name: str) -> None:
    """Axon's draw has 2,048 entries, which gives its deviation within 5 / sqrt(2 * 2048) = 8 %."""
    observed = AXON[name]["observed"]
    fan_in, fan_out = observed["shape"]
    ours = weights(name, 64, fan_out, fan_in)
    assert ours.std().item() == pytest.approx(observed["std"], rel=0.08)
    assert abs(ours.mean().item()) < 5 * observed["std"] / math.sqrt(ours.numel())
    if AXON[name]["distribution"] != "normal" and name != "variance_scaling":  # a bounded distribution
        assert ours.max().item() == pytest.approx(observed["max"], rel=0.01)
        assert ours.min().item() == pytest.approx(observed["min"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("lecun_uniform", 1 / 2),
        ("lecun_normal", 1 / 2),
        ("glorot_uniform", 1 / 5),
        ("glorot_normal", 1 / 5),
        ("he_uniform", 2 / 2),
        ("he_normal", 2 / 2),
        ("variance_scaling", 1 / 2),
        ("uniform", 0.01**2 / 3),
        ("normal", 0.01**2),
        ("torch_default", 1 / 2 / 3),
    ],
)
def test_variance_follows_the_formula(name: str, variance: float) -> None:
    """For 2 inputs and 8 outputs, from 80,000 draws; the sample variance is off by about 1 / sqrt(40,000) = 0.5 %."""
    assert weights(name, 5000, 8, 2).var().item() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("name", ["lecun_uniform", "glorot_uniform", "he_uniform", "uniform", "torch_default"])
def test_uniform_ones_are_linear_in_their_draws(name: str) -> None:
    limit = {
        "lecun_uniform": math.sqrt(3 / 2),
        "glorot_uniform": math.sqrt(6 / 10),
        "he_uniform": math.sqrt(6 / 2),
        "uniform": 0.01,
        "torch_default": 1 / math.sqrt(2),
    }[name]
    torch.testing.assert_close(weights(name, 3, 8, 2), (2 * draws(3, 8, 2) - 1) * limit)


@pytest.mark.parametrize("name", ["lecun_normal", "glorot_normal", "he_normal"])
def test_truncated_normal_is_the_inverse_distribution_function(name: str) -> None:
    """Its distribution function is (Phi(x) - Phi(-2)) / (Phi(2) - Phi(-2)) of x in deviations of the uncut normal."""
    sigma = {"lecun_normal": math.sqrt(1 / 2), "glorot_normal": math.sqrt(1 / 5), "he_normal": 1.0}[name]
    x = weights(name, 10, 8, 2) / (sigma / 0.87962566103423978)
    cut = torch.special.ndtr(torch.tensor([-2.0, 2.0], dtype=torch.float64))
    assert x.abs().max() <= 2
    torch.testing.assert_close((torch.special.ndtr(x) - cut[0]) / (cut[1] - cut[0]), draws(10, 8, 2))


def test_variance_scaling_takes_every_mode_and_distribution() -> None:
    shape = (4000, 8, 2)
    for mode, fan in (("fan_in", 2), ("fan_out", 8), ("fan_avg", 5)):
        for distribution in ("normal", "uniform", "truncated_normal"):
            drawn = weights("variance_scaling", *shape, mode=mode, distribution=distribution)
            assert drawn.var().item() == pytest.approx(1 / fan, rel=0.03)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(8, 2), (1, 8), (4, 4)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, int], distribution: str) -> None:
    q = weights("orthogonal", 5, *shape, distribution=distribution)
    product = q.mT @ q if shape[0] >= shape[1] else q @ q.mT
    torch.testing.assert_close(product, torch.eye(min(shape), dtype=torch.float64).expand_as(product))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("zeros", torch.zeros(8, 2)), ("ones", torch.ones(8, 2)), ("identity", torch.eye(8, 2))],
)
def test_constants(name: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(weights(name, 2, 8, 2), expected.double().expand(2, 8, 2))
    torch.testing.assert_close(weights("full", 2, 8, 2, value=3.0), torch.full((2, 8, 2), 3.0, dtype=torch.float64))


def test_torch_default_has_the_ranges_of_linear() -> None:
    """torch.nn.Linear draws weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    start = initial_parameters(table_of([RunSpec(init="torch_default", seed=seed) for seed in range(3000)]))
    torch.manual_seed(0)
    linears = [torch.nn.Linear(2, 8) for _ in range(300)]
    for name in ("weight", "bias"):
        theirs = torch.stack([getattr(linear, name).detach() for linear in linears])
        ours = start[f"hidden.{name}"]
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.002)
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    assert start["output.bias"].abs().max().item() == pytest.approx(1 / math.sqrt(8), rel=0.002)


def test_gain_multiplies_weights_and_bias_is_added_to_biases() -> None:
    plain, told = (
        initial_parameters(table_of([RunSpec(init="torch_default", seed=3, gain=gain, bias=bias)]))
        for gain, bias in ((1.0, 0.0), (-2.5, 0.25))
    )
    for name, value in plain.items():
        expected = value * -2.5 if name.endswith("weight") else value + 0.25
        torch.testing.assert_close(told[name], expected)
    assert not any(initial_parameters(table_of([RunSpec()]))[name].any() for name in ("hidden.bias", "output.bias"))


def test_a_run_starts_the_same_alone_and_among_others() -> None:
    specs = [
        RunSpec(init=name, seed=seed, hidden=3, dtype="float64") for name in INITIALIZERS for seed in (0, 5, 2**63 - 1)
    ]
    together = initial_parameters(table_of(specs))
    for place, spec in enumerate(specs):
        for name, value in initial_parameters(table_of([spec])).items():
            assert torch.equal(value[0], together[name][place]), (spec.init, name)


def test_the_table_may_mix_parameters() -> None:
    table = table_of(pd.DataFrame({"init": ["uniform"] * 2, "init.scale": [0.5, 1.0]}))
    start = initial_parameters(table)["hidden.weight"]
    torch.testing.assert_close(start[0] * 2, start[1])
