"""Risky compositions: each rule with a program that it names, and the same programs as they should be written."""

import gc
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xor_study.autopsy import Report, autopsy
from xor_study.autopsy.facts import rounded
from xor_study.autopsy.near_misses import EDGES, smallest
from xor_study.autopsy.rules import RULES

ROOT = Path(__file__).resolve().parents[1]
Program = Callable[[Tensor], Tensor]


def names(program: Program, x: Tensor | None = None) -> list[str]:
    """Return the rules that a program breaks on healthy numbers."""
    torch.manual_seed(0)
    given = torch.rand(4, 4) + 0.1 if x is None else x
    with autopsy(lint=True) as report:
        program(given.clone().requires_grad_(given.is_floating_point()))
    assert not report.notes, report.notes
    return [risk.rule for risk in report.risks]


def layer(x: Tensor) -> Tensor:
    """An output of either sign."""
    return F.linear(x, torch.randn(4, 4), torch.zeros(4))


RISKY: dict[str, list[Program]] = {
    "log of softmax": [
        lambda x: x.softmax(-1).log(),
        lambda x: torch.log2(x.softmax(-1)[:, 0]),
        lambda x: x.softmax(-1).gather(-1, torch.zeros(4, 1, dtype=torch.long)).log(),
        lambda x: x.softmax(-1).view(2, 8).t().reshape(16).log10(),
        lambda x: (1 - (1 - x.softmax(-1))).log(),
        lambda x: torch.stack([x.softmax(-1), x.softmax(0)]).log(),
    ],
    "log of sigmoid": [
        lambda x: x.sigmoid().log(),
        lambda x: (1 / (1 + torch.exp(-x))).log(),
        lambda x: x.sigmoid().clamp(0, 1).log(),
        lambda x: (x.sigmoid() * 0.5).log(),
    ],
    "log of 1 - sigmoid": [
        lambda x: (1 - x.sigmoid()).log(),
        lambda x: (torch.ones_like(x) - x.sigmoid()).log(),
        lambda x: (-x.sigmoid() + 1).log(),
        lambda x: (1 - x.sigmoid().clamp(1e-8, 1 - 1e-8)).log(),  # 1 - 1e-8 is 1 in float32
    ],
    "log1p of -sigmoid": [lambda x: torch.log1p(-x.sigmoid())],
    "log of 1 - softmax": [lambda x: (1 - x.softmax(-1)).log()],
    "log1p of -softmax": [lambda x: torch.log1p(-x.softmax(-1))],
    "log of a product of probabilities": [
        lambda x: x.softmax(-1).prod().log(),
        lambda x: x.sigmoid().cumprod(-1).log(),
        lambda x: (x.sigmoid() * x.softmax(-1)).log(),
    ],
    "log of 1 + exp": [lambda x: (1 + x.exp()).log()],
    "log1p of exp": [lambda x: x.exp().log1p()],
    "log of 1 - exp": [lambda x: (1 - (x - 9).exp()).log()],
    "log of a sum of exp": [
        lambda x: x.exp().sum(-1).log(),
        lambda x: (x.exp() + (2 * x).exp()).log(),
        lambda x: x.exp().cumsum(-1).log(),
    ],
    "softmax without a shift": [
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    ],
    "sigmoid by hand": [lambda x: 1 / (1 + torch.exp(-x)), lambda x: x / (1 + torch.exp(-x))],
    "log of 1 - tanh^2": [lambda x: (1 - x.tanh() ** 2).log()],
    "log of 1 + erf": [lambda x: (0.5 * (1 + torch.erf(x))).log()],
    "log of a determinant": [lambda x: torch.linalg.det(x + torch.eye(4)).log()],
    "log of a value that reaches 0": [
        lambda x: x.relu().log(),
        lambda x: torch.fft.rfft(x).abs().log(),
        lambda x: x.norm(dim=-1).log(),
        lambda x: x.var(-1).log(),
    ],
    "log of a signed output": [lambda x: layer(x).abs().add(1).log() + layer(x).log()],
    "sqrt of a probability": [lambda x: x.softmax(-1).sqrt(), lambda x: (1 - x.sigmoid()) ** 0.5],
    "sqrt of a value that reaches 0": [lambda x: x.abs().sqrt()],
    "sqrt of a sum of squares": [
        lambda x: (x**2).sum(-1).sqrt(),
        lambda x: (x * x).mean().sqrt(),
        lambda x: F.mse_loss(x, x + 1).sqrt(),
        lambda x: (x[0].square() + x[1].square()).sqrt(),
    ],
    "sqrt of a variance": [lambda x: x.var(0).sqrt()],
    "sine from a cosine": [lambda x: (1 - (F.normalize(x) @ F.normalize(x).T) ** 2).sqrt()],
    "variance as E[x^2] - E[x]^2": [lambda x: ((x**2).mean(0) - x.mean(0) ** 2 + 1e-5).sqrt()],
    "division by a variance as E[x^2] - E[x]^2": [lambda x: x * torch.rsqrt((x * x).mean(0) - x.mean(0).square())],
    "division by a norm": [
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: x / (x**2).sum(-1, keepdim=True).add(1e-12).sqrt().sub(1e-6),
        lambda x: (x * x).sum() / (x.norm() * x.norm()),
        lambda x: x / x.abs().amax(),
    ],
    "division by a standard deviation": [lambda x: x / x.std(0), lambda x: x * x.var(0).rsqrt()],
    "division by a probability": [lambda x: x.sigmoid() / (1 - x.sigmoid()), lambda x: x.softmax(-1).reciprocal()],
    "division by a value that reaches 0": [lambda x: x / x.abs(), lambda x: x.relu() ** -1],
    "fractional power of a signed output": [lambda x: layer(x) ** 1.5],
    "angle from an unclamped cosine": [
        lambda x: F.cosine_similarity(x, x + 1).acos(),
        lambda x: (F.normalize(x) @ F.normalize(x).T).acos(),
        lambda x: F.cosine_similarity(x, x + 1).clamp(-1, 1).acos(),  # the slope at 1 is infinite
    ],
    "inverse of a saturated function": [lambda x: x.sigmoid().logit(), lambda x: x.tanh().atanh()],
    "exp of an unbounded output as a scale": [
        lambda x: x * layer(x).mul(0.5).exp(),
        lambda x: x.square() / layer(x).exp(),
    ],
}
STABLE: dict[str, Program] = {
    "log_softmax": lambda x: x.log_softmax(-1),
    "cross entropy": lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.long), label_smoothing=0.1),
    "logsigmoid": lambda x: F.logsigmoid(-x),
    "with logits": lambda x: F.binary_cross_entropy_with_logits(x, x.detach().sigmoid()),
    "binary cross entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), torch.zeros(4, 4)),
    "softplus": lambda x: F.softplus(x),
    "logsumexp": lambda x: x.logsumexp(-1) + x.logcumsumexp(-1),
    "softmax with eps": lambda x: (x.softmax(-1) + 1e-8).log(),
    "softmax clamped": lambda x: x.softmax(-1).clamp_min(1e-8).log() + x.softmax(-1).clamp(min=1e-8).log(),
    "softmax with a maximum": lambda x: torch.maximum(x.softmax(-1), torch.tensor(1e-8)).log(),
    "softmax chosen by where": lambda x: torch.where(x > 0, x.softmax(-1), 1.0).log(),
    "1 - sigmoid with eps": lambda x: (1 - x.sigmoid() + 1e-6).log(),
    "sigmoid clamped on both sides": lambda x: (1 - x.sigmoid().clamp(1e-6, 1 - 1e-6)).log(),
    "shifted softmax by hand": lambda x: (
        (x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, True)).exp().sum(-1, True)
    ),
    "shifted logsumexp by hand": lambda x: (x - x.max(-1, keepdim=True).values).exp().sum(-1).log(),
    "exp of log-probabilities": lambda x: x.log_softmax(-1).exp().sum(-1).log(),
    "exp of a cosine": lambda x: (F.normalize(x) @ F.normalize(x).T / 0.1).exp().sum(-1).log(),
    "exp of a clamped output": lambda x: x * layer(x).clamp(-20, 10).exp(),
    "exp of tanh": lambda x: x * layer(x).tanh().exp(),
    "1 + exp of something bounded": lambda x: (1 + x.tanh().exp()).log(),
    "root with eps": lambda x: ((x**2).sum(-1) + 1e-12).sqrt() + (x.var(0) + 1e-5).rsqrt(),
    "root of relu": lambda x: x.relu().sqrt(),  # relu's gradient at 0 is 0, whatever comes in
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1) + x.std(-1),
    "normalize": lambda x: F.normalize(x) + F.layer_norm(x, (4,)),
    "cosine": lambda x: F.cosine_similarity(x, x + 1) + F.cosine_similarity(x, x + 1).clamp(-0.999, 0.999).acos(),
    "division by a norm with eps": lambda x: x / (x.norm() + 1e-6) + x / x.norm().clamp(min=1e-6),
    "division by a deviation with eps": lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6),
    "logit with eps": lambda x: torch.logit(x.sigmoid(), eps=1e-6),
    "data": lambda x: x.log() + x.sqrt() + 1 / x + x**-0.5 + x**1.5,
    "slogdet": lambda x: torch.linalg.slogdet(x).logabsdet,
    "xlogy": lambda x: torch.special.xlogy(x.softmax(-1), x) + torch.special.entr(x.softmax(-1)),
    "distributions": lambda x: (
        torch.distributions.Categorical(logits=x).entropy().sum()
        + torch.distributions.Bernoulli(logits=x).log_prob(torch.ones(4, 4)).sum()
        + torch.distributions.Normal(x, F.softplus(x) + 1e-3).log_prob(x).sum()
    ),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "integers": lambda x: (x.softmax(-1) * 10).long().float(),
    "rounded quotient": lambda x: torch.div(x, x.norm(), rounding_mode="floor"),
}


@pytest.mark.parametrize("rule", RISKY)
def test_names_the_composition(rule: str) -> None:
    for program in RISKY[rule]:
        assert rule in names(program), inspect.getsource(program)


def test_every_rule_is_tested_and_has_a_stable_form_and_a_source() -> None:
    assert RISKY.keys() == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert re.fullmatch(r"https://[\w./#-]+", rule.source), rule
        assert rule.stable


def test_the_documentation_has_every_rule_and_edge() -> None:
    page = (ROOT / "docs/autopsy.md").read_text()
    missing = [rule.name for rule in RULES if f"| {rule.name} | {rule.stable} |" not in page]
    missing += [edge.where for edge in EDGES if f" | {edge.where} | " not in page]
    assert missing == []


@pytest.mark.parametrize("name", STABLE)
def test_is_silent_on_the_stable_form(name: str) -> None:
    assert names(STABLE[name]) == []


def test_an_epsilon_that_the_format_rounds_away_protects_nothing() -> None:
    eps: Program = lambda x: (x.softmax(-1) + 1e-8).log()  # noqa: E731
    assert names(eps, torch.randn(4, 4)) == []
    assert names(eps, torch.randn(4, 4).double()) == []
    assert names(eps, torch.randn(4, 4).half()) == ["log of softmax"]
    assert names(eps, torch.randn(4, 4).bfloat16()) == []
    cast: Program = lambda x: x.softmax(-1).clamp(min=1e-8).half().log()  # noqa: E731
    assert names(cast) == ["log of softmax"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bounds_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    for value in (0.1, 1 - 1e-8, 1e-8, 65519.9, 7e4, 1e39, -1e-46, 3.14159, math.inf, -0.999, 1 + 2**-9):
        assert rounded(value, dtype) == torch.tensor(value, dtype=torch.float64).to(dtype).item(), value


def test_what_is_near_0_depends_on_the_format() -> None:
    formats = {torch.float16: 1.5e-5, torch.bfloat16: 2.0e-27, torch.float32: 1.3e-30, torch.float64: 2.9e-216}
    for dtype, expected in formats.items():
        assert smallest(dtype) == pytest.approx(expected, rel=0.05)


def test_derivatives_count_only_where_a_gradient_is_computed() -> None:
    root: Program = lambda x: (x**2).sum(-1).sqrt()  # noqa: E731
    assert names(root) == ["sqrt of a sum of squares"]
    with torch.no_grad():
        assert names(root) == []
    assert names(lambda x: root(x.detach())) == []


def test_a_write_in_place_changes_what_is_known_of_all_views() -> None:
    def overwritten(x: Tensor) -> Tensor:
        p = x.softmax(-1).detach()
        view = p[1:]
        p.add_(1e-3)
        return view.log()

    def partly(x: Tensor) -> Tensor:
        p = x.softmax(-1).detach()
        p[0] = x.detach()[0]
        return p.log()

    def through_a_view(x: Tensor) -> Tensor:
        p = torch.zeros(4, 4)
        p.view(16).copy_(x.softmax(-1).detach().view(16))
        return p.log()

    def of_each_row(x: Tensor) -> Tensor:
        p = x.softmax(-1).detach()
        p[1:].copy_(p[:3] * 1.0)
        return p.log()

    assert names(overwritten) == []
    assert names(partly) == []
    assert names(through_a_view) == ["log of softmax"]
    assert names(of_each_row) == ["log of softmax"]


def test_what_is_known_ends_with_the_memory() -> None:
    from xor_study.autopsy.lint import Lint
    from xor_study.autopsy.modules import Modules

    lint = Lint(Report(1), Modules(lambda name, output: None, lambda: None))
    softmax = torch.ops.aten._softmax.default
    kept = []
    for step in range(10_000):
        x = torch.randn(2, 2)
        args = (x, -1, False)
        facts = lint.before(softmax, args)
        out = softmax(*args)
        lint.after(softmax, facts, args, {}, out, inspect.currentframe())  # type: ignore[arg-type]
        if step % 100 == 0:
            kept.append(out)
    gc.collect()
    assert len(lint._facts) < 3000
    (known,) = lint.before(torch.ops.aten.log.default, (kept[0],)) or [None]
    assert known is not None
    assert known.what == "softmax"


class Net(nn.Module):
    """A head that takes the logarithm of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 4) to (n, 3)."""
        p = self.head(x).softmax(-1)
        return torch.log(p)


def test_a_risk_says_where_and_what_to_write() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with autopsy(lint=True) as report:
        for _ in range(3):
            optimizer.zero_grad()
            (-net(torch.randn(5, 4))[:, 0].mean()).backward()
            optimizer.step()
    (risk,) = report.risks
    line = inspect.getsourcelines(Net.forward)[1] + 3
    assert (risk.rule, risk.operation, risk.module, risk.count) == ("log of softmax", "aten.log", "Net", 3)
    assert (risk.source.filename, risk.source.lineno, risk.source.code) == (__file__, line, "return torch.log(p)")
    assert report.first is None
    assert report.story.splitlines()[1:] == [
        "Risky:",
        f"  {__file__}:{line}: log of softmax",
        "    return torch.log(p)",
        "    stable: F.log_softmax(x, dim)",
        "    see https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html",
    ]
    assert report.as_dict()["risks"][0]["stable"] == risk.stable


def test_without_the_option_nothing_is_named() -> None:
    with autopsy() as report:
        torch.randn(3).softmax(0).log()
    assert report.risks == []


def test_layers_and_optimizers_of_torch_are_not_named() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    with autopsy(lint=True) as report:
        F.gaussian_nll_loss(model(torch.randn(2, 4)), torch.zeros(2, 4), torch.ones(2, 4)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert report.risks == []


@pytest.mark.parametrize("checks", ["each", "batched"])
def test_lint_works_with_both_ways_of_checking_and_beside_an_event(checks: str) -> None:
    with autopsy(lint=True, checks=checks) as report:  # type: ignore[arg-type]
        x = torch.full((3,), -200.0, requires_grad=True)
        x.sigmoid().log().sum().backward()
    assert report.first is not None
    assert [risk.rule for risk in report.risks] == ["log of sigmoid"]


def test_transforms_fake_tensors_and_inference_mode_pass() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with autopsy(lint=True) as report:
        torch.func.vmap(torch.func.grad(lambda x: x.softmax(-1).log().sum()))(torch.randn(3, 4))
        with FakeTensorMode() as mode:
            mode.from_tensor(torch.randn(3)).softmax(-1).log()
        torch.rand(3).to_sparse().sqrt()
        nested = torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=torch.jagged)
        nested.sigmoid().log()
        torch.empty(3, device="meta").sigmoid().log()
        with torch.inference_mode():
            torch.randn(3).softmax(-1).log()
    assert report.first is None
    assert not [note for note in report.notes if "internal error" in note], report.notes
    assert {risk.rule for risk in report.risks} <= {"log of softmax", "log of sigmoid"}
    assert "log of softmax" in {risk.rule for risk in report.risks}
