"""The table of advice: each row by a program that fails so, and none where its condition does not hold."""

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xor_study.autopsy import Event, autopsy
from xor_study.autopsy.advice import ROWS, advice_for

INF = math.inf
MASKED = torch.tensor([[-INF, -INF, -INF], [0.0, 0.0, 0.0]])


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def masked_scores() -> Tensor:
    return torch.zeros(2, 3, requires_grad=True) + MASKED


def updated(kind: type[torch.optim.Optimizer], value: Tensor, gradient: list[float], **options: float) -> Tensor:
    """Take an optimizer's step and return the parameter."""
    parameter = nn.Parameter(value)
    optimizer = kind([parameter], **options)
    parameter.grad = torch.tensor(gradient, dtype=value.dtype)
    optimizer.step()
    return parameter


def masked_root() -> Tensor:
    x = leaf(0, 1)
    return torch.where(x > 0, x.sqrt(), 0)


def masked_division() -> Tensor:
    n = torch.tensor([0.0, 2.0])
    return torch.where(n > 0, leaf(1, 1) / n, 0)


def masked_log() -> Tensor:
    x = leaf(0, 1)
    return torch.where(x > 0, x.log(), 0)


def masked_logsumexp() -> Tensor:
    total = masked_scores().logsumexp(1)
    return torch.where(total.isinf(), 0, total)


def rotated() -> Tensor:
    return torch.linalg.eigh(torch.eye(3, requires_grad=True))[1]


def aligned() -> Tensor:
    log_probs = torch.zeros(3, 1, 5, requires_grad=True).log_softmax(2)
    return F.ctc_loss(log_probs, torch.tensor([[1, 1, 2]]), torch.tensor([3]), torch.tensor([3]))


HALF = torch.float16
SECOND = torch.tensor([False, True])
FAILING: list[tuple[str, Callable[[], Tensor]]] = [
    ("log of zero", lambda: leaf(0, 200).softmax(0).log()),
    ("log of zero", lambda: torch.log2(leaf(1, 0) * 3)),
    ("log of a negative number", lambda: leaf(-1, 1).log()),
    ("root of a negative number", lambda: (leaf(0.1, 2) - 0.2).sqrt()),
    ("reciprocal of zero", lambda: leaf(0, 1).rsqrt()),
    ("gradient of a root at zero", lambda: leaf(0, 4).sqrt()),
    ("gradient of a root at zero", masked_root),
    ("where around a result", masked_division),
    ("where around a result", masked_log),
    ("fractional power of a negative number", lambda: leaf(-8, 8) ** (1 / 3)),
    ("negative power of zero", lambda: leaf(0, 1) ** -0.5),
    ("gradient of a power at zero", lambda: leaf(0, 1) ** 0.5),
    ("division by a count of zero", lambda: leaf(1, 1) / torch.zeros(2, 3).bool().sum(1)),
    ("division by zero in float16", lambda: leaf(1, 1, dtype=HALF) / (leaf(0, 1, dtype=HALF) + 1e-8)),
    ("division by zero", lambda: (x := leaf(0, 0)) / x.norm()),
    ("mean of nothing", lambda: leaf(1, 2)[:0].mean()),
    ("loss of ignored targets only", lambda: F.cross_entropy(leaf(1, 2)[None], torch.tensor([-100]))),
    ("softmax of a masked row", lambda: masked_scores().softmax(1)),
    ("softmax of a masked row", lambda: masked_scores().log_softmax(1)),
    ("gradient of logsumexp of a masked row", masked_logsumexp),
    ("overflow of exp", lambda: (1 + leaf(100, 1).exp()).log()),
    ("overflow of exp", lambda: leaf(12, 1, dtype=HALF).exp()),
    ("gradient of arc cosine at one", lambda: leaf(1, 0.5).acos()),
    ("arc cosine outside of its domain", lambda: (leaf(1, 0.5) * 1.0001).acos()),
    ("inverse function at its end", lambda: leaf(0.5, 1).logit()),
    ("inverse function at its end", lambda: leaf(0.5, -1).atanh()),
    ("deviation of one sample", lambda: leaf(3).std()),
    ("gradient of equal eigenvalues", rotated),
    ("impossible alignment", aligned),
    ("infinity times a mask", lambda: torch.tensor([INF, 1]) * leaf(1, 1) * torch.tensor([0.0, 1])),
    (
        "optimizer with a number that is not finite",
        lambda: updated(torch.optim.SGD, torch.ones(2), [1, 2], lr=math.nan),
    ),
    ("update that overflows", lambda: updated(torch.optim.SGD, torch.ones(2), [10, 20], lr=1e38)),
    ("optimizer's eps in float16", lambda: updated(torch.optim.Adam, torch.zeros(2).half(), [0, 1])),
    ("optimizer's eps in float16", lambda: updated(torch.optim.AdamW, torch.zeros(2).half(), [0, 1], foreach=True)),
    ("optimizer without eps", lambda: updated(torch.optim.Adam, torch.zeros(2), [0, 1], eps=0.0)),
    ("overflow of float16", lambda: leaf(300, 1, dtype=HALF) ** 2),
    ("overflow of float16", lambda: torch.full((2, 300), 30.0, dtype=HALF) @ torch.full((300, 2), 30.0, dtype=HALF)),
]

OTHERS: dict[str, Callable[[], Tensor]] = {
    "quotient that overflows": lambda: leaf(1e30, 1) / torch.tensor([1e-20, 1]),
    "softmax with an infinite score": lambda: (leaf(1, 2) + torch.tensor([INF, 0])).softmax(0),
    "square that overflows in float32": lambda: leaf(1e20, 1) ** 2,
    "difference of infinities": lambda: (x := leaf(1, 2) * torch.tensor([INF, 1])) - x.detach(),
    "product that overflows": lambda: leaf(1e20, 1e20).prod(),
    "gamma function at its pole": lambda: torch.lgamma(leaf(0, 1)),
    "sum that overflows": lambda: leaf(3e38, 3e38).sum(),
    "layer norm of a constant without eps": lambda: F.layer_norm(torch.zeros(2, 4), (4,), eps=0),
    "inverse of a singular matrix": lambda: torch.linalg.inv_ex(torch.zeros(2, 2))[0],
    "update that divides too little": lambda: updated(torch.optim.Adam, torch.zeros(1), [1e-25], lr=1e36, eps=1e-30),
}


def first_event(program: Callable[[], Tensor], checks: str = "each") -> Event:
    with autopsy(checks=checks) as report:
        loss = program().sum()
        if loss.requires_grad:
            loss.backward()
        loss.item()
        del loss
    assert report.first is not None
    return report.first


@pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom")
@pytest.mark.parametrize(("name", "program"), FAILING, ids=[f"{i} {name}" for i, (name, _) in enumerate(FAILING)])
def test_each_row_helps_where_a_program_fails_so(name: str, program: Callable[[], Tensor]) -> None:
    event = first_event(program)
    (row,) = (row for row in ROWS if row.name == name)
    assert event.advice == row.advice
    assert event.as_dict()["advice"] == {"text": row.advice.text, "source": row.advice.source}


def test_every_row_is_tested() -> None:
    assert {row.name for row in ROWS} == {name for name, _ in FAILING}


@pytest.mark.parametrize("name", OTHERS)
def test_no_advice_where_no_condition_holds(name: str) -> None:
    event = first_event(OTHERS[name])
    assert event.advice is None
    assert event.as_dict()["advice"] is None


@pytest.mark.parametrize("index", range(6))
def test_batched_checks_know_too_little_for_advice(index: int) -> None:
    assert first_event(FAILING[index][1], checks="batched").advice is None


def test_a_row_needs_its_values_and_its_phase() -> None:
    event = first_event(FAILING[0][1])
    assert advice_for(event) is not None
    event.phase = "backward"
    assert advice_for(event) is None


def test_values_are_of_the_elements_that_went_wrong() -> None:
    """The first elements of the exponents are infinite, as a mask gives them; the fourth overflows."""
    mask = torch.tensor([INF, -INF, INF, 0, 0])
    event = first_event(lambda: (leaf(1, 2, 3, 100, 200) + mask).exp().clamp(max=1e30).log())
    assert event.operation == "aten.exp.default"
    assert event.inputs[0].offending == (100, 200)
    assert event.advice == next(row.advice for row in ROWS if row.name == "overflow of exp")


def test_the_story_ends_with_the_advice() -> None:
    with autopsy() as report:
        leaf(0, 1).log().sum().backward()
    (line,) = (line for line in report.story.splitlines() if line.startswith("What helps: "))
    assert re.search(r"torch\.xlogy.* \(https://docs\.pytorch\.org/\S+log_softmax\.html\)$", line)


def test_sources_are_torchs_own() -> None:
    places = r"https://(docs\.pytorch\.org/docs/stable|github\.com/pytorch/pytorch/issues)/"
    for row in ROWS:
        assert re.match(places, row.advice.source)
        assert row.advice.text.endswith(".")


SAFE = {
    "log of zero": lambda: F.log_softmax(leaf(0, 200), 0) + torch.xlogy(leaf(0, 1), torch.tensor([0.0, 1.0])),
    "root of a negative number": lambda: (leaf(0.1, 2) - 0.2).clamp(min=1e-6).sqrt(),
    "gradient of a root at zero": lambda: (leaf(0, 4) + 1e-8).sqrt(),
    "where around a result": lambda: torch.where(SECOND, leaf(1, 1) / torch.where(SECOND, leaf(0, 2), 1), 0),
    "division by a count of zero": lambda: leaf(1, 1) / torch.zeros(2, 3).bool().sum(1).clamp(min=1),
    "division by zero": lambda: F.normalize(leaf(0, 0), dim=0),
    "softmax of a masked row": lambda: (torch.zeros(2, 3, requires_grad=True) + MASKED.clamp(min=-3.4e38)).softmax(1),
    "overflow of exp": lambda: F.softplus(leaf(100, 1)) + torch.logsumexp(leaf(100, 1), 0),
    "gradient of arc cosine at one": lambda: leaf(1, 0.5).clamp(-1 + 1e-6, 1 - 1e-6).acos(),
    "inverse function at its end": lambda: torch.logit(leaf(0.5, 1), eps=1e-6),
    "deviation of one sample": lambda: leaf(3).std(correction=0),
    "optimizer's eps in float16": lambda: updated(torch.optim.Adam, torch.zeros(2).half(), [0, 1], eps=1e-4),
}


@pytest.mark.parametrize("name", SAFE)
def test_the_safe_form_is_safe(name: str) -> None:
    assert name in {row.name for row in ROWS}
    with autopsy() as report:
        loss = SAFE[name]().sum()
        loss.backward()
    assert report.first is None, report.story
    assert loss.isfinite()
