"""The compositions of operations that `autopsy(lint=True)` names: each with its stable form and a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from xor_study.autopsy.facts import Fact, Facts

_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch."


class Operand(NamedTuple):
    """An operand that a rule looks at.

    Attributes:
        role: what is done to it, such as "log" or "division".
        fact: what is known of it.
        gradient: whether its gradient will be computed.
        dtype: of the result.
    """

    role: str
    fact: Fact
    gradient: bool
    dtype: torch.dtype


def _at_zero(operand: Operand) -> bool:
    """The operand can be 0 or less, where the result is not finite."""
    return operand.fact.low <= 0


def _slope_at_zero(operand: Operand) -> bool:
    """The operand can be 0 or less, where the derivative is not finite."""
    return operand.fact.low < 0 or (operand.fact.low == 0 and operand.gradient)


def _below_zero(operand: Operand) -> bool:
    """The operand can be negative."""
    return operand.fact.low < 0


def _at_minus_one(operand: Operand) -> bool:
    """The operand of log1p can be -1."""
    return operand.fact.low <= -1


def _overflowing(operand: Operand) -> bool:
    """The operand can overflow."""
    return operand.fact.high > torch.finfo(operand.dtype).max


def _at_one(operand: Operand) -> bool:
    """The operand can be beyond 1 (NaN), or be 1 (where the derivative is not finite)."""
    return operand.fact.high > 1 or (operand.fact.high == 1 and operand.gradient)


def _at_an_end(operand: Operand) -> bool:
    """The operand can be 0 or 1 (atanh: -1 or 1), where the result is infinite."""
    return operand.fact.high >= 1


class Rule(NamedTuple):
    """A composition that can fail, and what to write instead.

    Attributes:
        name: as in the report.
        role: what is done to the operand.
        of: how the operand was computed (`Fact.what`), any of these.
        when: whether the operand can reach the edge.
        stable: the form that cannot fail, or fails later.
        source: address of the documentation, paper or known issue that says so.
    """

    name: str
    role: str
    of: frozenset[str]
    when: Callable[[Operand], bool]
    stable: str
    source: str


def _rule(name: str, role: str, of: str, when: Callable[[Operand], bool], stable: str, source: str) -> Rule:
    return Rule(name, role, frozenset(of.split(", ")), when, stable, source if "://" in source else _DOCS + source)


_PROBABILITIES = "softmax, sigmoid, 1 - softmax, 1 - sigmoid"

RULES = (
    _rule("log of softmax", "log", "softmax", _at_zero, "F.log_softmax(x, dim)", "nn.functional.log_softmax.html"),
    _rule(
        "log of sigmoid",
        "log",
        "sigmoid",
        _at_zero,
        "F.logsigmoid(x), or F.binary_cross_entropy_with_logits(x, y) for the whole loss",
        "nn.BCEWithLogitsLoss.html",
    ),
    _rule(
        "log of 1 - sigmoid",
        "log",
        "1 - sigmoid",
        _at_zero,
        "F.logsigmoid(-x), or F.binary_cross_entropy_with_logits(x, y) for the whole loss",
        "nn.BCEWithLogitsLoss.html",
    ),
    _rule(
        "log1p of -sigmoid",
        "log1p",
        "-sigmoid",
        _at_minus_one,
        "F.logsigmoid(-x), or F.binary_cross_entropy_with_logits(x, y) for the whole loss",
        "nn.BCEWithLogitsLoss.html",
    ),
    _rule(
        "log of 1 - softmax",
        "log",
        "1 - softmax",
        _at_zero,
        "torch.logsumexp of the other logits minus that of all, or torch.log1p(-p.clamp(max=1 - 1e-6))",
        "logsumexp.html",
    ),
    _rule(
        "log1p of -softmax",
        "log1p",
        "-softmax",
        _at_minus_one,
        "torch.logsumexp of the other logits minus that of all, or torch.log1p(-p.clamp(max=1 - 1e-6))",
        "logsumexp.html",
    ),
    _rule(
        "log of a product of probabilities",
        "log",
        "product of probabilities",
        _at_zero,
        "the sum of the log-probabilities: F.log_softmax(x, dim) or F.logsigmoid(x), then .sum()",
        "nn.functional.log_softmax.html",
    ),
    _rule("log of 1 + exp", "log", "1 + exp", _overflowing, "F.softplus(x)", "nn.functional.softplus.html"),
    _rule("log1p of exp", "log1p", "exp, exp of an output", _overflowing, "F.softplus(x)", "nn.Softplus.html"),
    _rule(
        "log of 1 - exp",
        "log",
        "1 - exp",
        _at_zero,
        "torch.log(-torch.expm1(x)) near 0, torch.log1p(-torch.exp(x)) below -0.69, and x.clamp(max=-eps)",
        "https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf",
    ),
    _rule(
        "log of a sum of exp",
        "log",
        "sum of exp",
        _overflowing,
        "torch.logsumexp(x, dim) (torch.logcumsumexp for a running sum)",
        "logsumexp.html",
    ),
    _rule(
        "softmax without a shift",
        "division",
        "sum of exp",
        _overflowing,
        "torch.softmax(x, dim) (torch.tanh for a quotient of exp(x) - exp(-x))",
        "https://doi.org/10.1093/imanum/draa038",
    ),
    _rule(
        "sigmoid by hand",
        "division",
        "1 + exp",
        _overflowing,
        "torch.sigmoid(x) (F.silu for x * sigmoid(x)): at exp(-x) = inf the gradient is 0 * inf",
        "sigmoid.html",
    ),
    _rule(
        "log of 1 - tanh^2",
        "log",
        "1 - square of tanh",
        _at_zero,
        "2 * (math.log(2) - x - F.softplus(-2 * x))",
        "https://github.com/pytorch/pytorch/blob/main/torch/distributions/transforms.py",
    ),
    _rule(
        "log of 1 + erf",
        "log",
        "1 + erf",
        _at_zero,
        "torch.special.log_ndtr(x * 2**0.5)",
        "https://docs.pytorch.org/docs/stable/special.html",
    ),
    _rule("log of a determinant", "log", "determinant", _at_zero, "torch.linalg.slogdet(A)", "linalg.slogdet.html"),
    _rule(
        "log of a value that reaches 0",
        "log",
        "relu, abs, square, sum of squares, mean of squares, norm, variance, standard deviation",
        _at_zero,
        "torch.log(x + eps), torch.log(x.clamp(min=eps)) or torch.log1p(x)",
        "https://github.com/pytorch/pytorch/issues/1817",
    ),
    _rule(
        "log of a signed output",
        "log",
        "output, tanh, E[x^2] - E[x]^2",
        _at_zero,
        "let the layer give the logarithm itself, or F.softplus(x) + eps before it",
        "nn.Softplus.html",
    ),
    _rule(
        "sqrt of a probability",
        "root",
        _PROBABILITIES,
        _slope_at_zero,
        "torch.exp(0.5 * F.log_softmax(x, dim)) (logsigmoid), or torch.sqrt(p + eps)",
        "https://github.com/pytorch/pytorch/issues/6394",
    ),
    _rule(
        "sqrt of a value that reaches 0",
        "root",
        "abs, square, 1 - square of tanh",  # not relu, whose gradient at 0 is 0 whatever comes in
        _slope_at_zero,
        "torch.sqrt(x + eps): the derivative at 0 is infinite",
        "https://github.com/pytorch/pytorch/issues/6394",
    ),
    _rule(
        "sqrt of a sum of squares",
        "root",
        "sum of squares, mean of squares",
        _slope_at_zero,
        "torch.linalg.vector_norm(x, dim=dim), whose gradient at 0 is 0, or eps inside the root",
        "https://github.com/pytorch/pytorch/issues/2421",
    ),
    _rule(
        "sqrt of a variance",
        "root",
        "variance",
        _slope_at_zero,
        "torch.std, whose gradient at 0 is 0, or eps inside the root",
        "std.html",
    ),
    _rule(
        "sine from a cosine",
        "root",
        "1 - square of a cosine",
        _slope_at_zero,
        "torch.linalg.cross and torch.linalg.vector_norm, or eps inside the root",
        "linalg.cross.html",
    ),
    _rule(
        "variance as E[x^2] - E[x]^2",
        "root",
        "E[x^2] - E[x]^2",
        _slope_at_zero,
        "torch.var(x, dim): rounding makes the difference negative where the mean is large",
        "https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance",
    ),
    _rule(
        "division by a variance as E[x^2] - E[x]^2",
        "division",
        "E[x^2] - E[x]^2",
        _at_zero,
        "torch.var(x, dim) + eps",
        "https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance",
    ),
    _rule(
        "division by a norm",
        "division",
        "norm, product of norms, sum of squares",
        _at_zero,
        "F.normalize(x, dim=dim) or F.cosine_similarity, which hold the norm above eps",
        "nn.functional.normalize.html",
    ),
    _rule(
        "division by a standard deviation",
        "division",
        "standard deviation, variance",
        _at_zero,
        "add eps to it as torch's layers do (F.layer_norm, F.batch_norm)",
        "nn.LayerNorm.html",
    ),
    _rule(
        "division by a probability",
        "division",
        _PROBABILITIES + ", product of probabilities",
        _at_zero,
        "torch.exp of a difference of log-probabilities (torch.exp(x) for the odds of sigmoid(x)), or p.clamp(min=eps)",
        "nn.functional.log_softmax.html",
    ),
    _rule(
        "division by a value that reaches 0",
        "division",
        "relu, abs, square, mean of squares, 1 - square of tanh",
        _at_zero,
        "x + eps or x.clamp(min=eps) in the denominator",
        "https://github.com/pytorch/pytorch/issues/26799",
    ),
    _rule(
        "fractional power of a signed output",
        "fractional power",
        "output, tanh, cosine",
        _below_zero,
        "x.abs().clamp(min=eps) ** p * x.sign(), or F.softplus(x) before it",
        "pow.html",
    ),
    _rule(
        "angle from an unclamped cosine",
        "arc",
        "cosine",
        _at_one,
        "cosine.clamp(-1 + eps, 1 - eps), or torch.atan2 of sine and cosine",
        "https://github.com/pytorch/pytorch/issues/8069",
    ),
    _rule(
        "inverse of a saturated function",
        "inverse",
        "sigmoid, softmax, tanh",
        _at_an_end,
        "keep the value before the sigmoid or tanh, or torch.logit(p, eps=1e-6)",
        "logit.html",
    ),
    _rule(
        "exp of an unbounded output as a scale",
        "scale",
        "exp of an output",
        _overflowing,
        "F.softplus(x) + eps, or x.clamp(-20, 10) before exp",
        "https://github.com/pyg-team/pytorch_geometric/issues/500",
    ),
)
"""What `report.risks` can name. torch's own issues and documents are cited where they say it."""

BY_ROLE: dict[str, list[Rule]] = {}
for _entry in RULES:
    BY_ROLE.setdefault(_entry.role, []).append(_entry)

ROLES: dict[str, tuple[tuple[str, int], ...]] = {
    **dict.fromkeys(("log", "log2", "log10"), (("log", 0),)),
    "log1p": (("log1p", 0),),
    "sqrt": (("root", 0),),
    **dict.fromkeys(("rsqrt", "reciprocal"), (("division", 0),)),
    "div": (("division", 1), ("scale", 1)),
    **dict.fromkeys(("acos", "asin"), (("arc", 0),)),
    **dict.fromkeys(("logit", "atanh"), (("inverse", 0),)),
    "mul": (("scale", 0), ("scale", 1)),
    "pow": (),  # by the exponent, see below
}


def roles_of(short: str, facts: Facts) -> Iterator[tuple[str, int]]:
    """Yield what an operation does to its operands: the role and the operand's position."""
    second = facts[1] if len(facts) > 1 else None
    number = second.low if second and second.what == "number" else None
    if short == "pow":
        yield from _powers(number)
    elif short != "logit" or number is None:  # logit's second argument is eps, which guards it
        yield from ROLES.get(short, ())


def _powers(exponent: float | None) -> Iterator[tuple[str, int]]:
    if exponent is None:
        return
    if exponent < 0:
        yield "division", 0
    elif 0 < exponent < 1:
        yield "root", 0
    if exponent != int(exponent):
        yield "fractional power", 0
