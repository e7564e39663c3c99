"""Near misses: operands near the edge of an operation, values near overflow or lost to underflow, saturation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from xor_study.autopsy.events import LoopState
from xor_study.autopsy.finiteness import values_of
from xor_study.autopsy.operations import Execution, Operation
from xor_study.autopsy.report import NearMiss, Report
from xor_study.autopsy.sites import graph_task
from xor_study.autopsy.sources import Source
from xor_study.autopsy.storage import covers_storage

Locate = Callable[[], tuple[Source | None, str | None]]

_SAMPLE = 256
_GRIST = "https://doi.org/10.1145/3468264.3468612"
_LOG_SUM_EXP = "https://doi.org/10.1093/imanum/draa038"


def smallest(dtype: torch.dtype) -> float:
    """Return the number below which an operand counts as near 0: the smallest positive number to the power 2/3.

    That is the lowest third of the format's negative exponents, whatever the format: 1.3e-30 in float32, 1.5e-5 in
    float16, 2.0e-27 in bfloat16, 2.9e-216 in float64.
    """
    limits = torch.finfo(dtype)
    return float((limits.tiny * limits.eps) ** (2 / 3))


def _near_zero(values: Tensor) -> float | None:
    """Return the smallest absolute value beside 0 if that is near 0."""
    low, high = (bound.item() for bound in torch.aminmax(values))
    limit = smallest(values.dtype)
    if low >= limit or high <= -limit:
        return None
    if low <= 0 <= high:  # of either sign, or with 0 itself
        size = values.abs()
        low = size.masked_fill_(size == 0, math.inf).min().item()
    least = min(abs(low), abs(high))
    return least if 0 < least < limit else None


def _near_overflow(values: Tensor) -> float | None:
    """Return the largest element if exp of it is finite, but would not be if it were a tenth larger."""
    limit = math.log(torch.finfo(values.dtype).max)
    high = values.max().item()
    return high if 0.9 * limit < high <= limit else None


def _near_minus_one(values: Tensor) -> float | None:
    """Return the smallest element if it is next to -1."""
    low = values.min().item()
    return low if -1 < low <= -1 + 4 * torch.finfo(values.dtype).eps else None


def _near_one(values: Tensor) -> float | None:
    """Return the absolute value next to 1, if there is one below it."""
    low, high = (bound.item() for bound in torch.aminmax(values))
    size = max(abs(low), abs(high))
    return size if 1 > size >= 1 - 4 * torch.finfo(values.dtype).eps else None


def _near_underflow_of_squares(values: Tensor) -> float | None:
    """Return the largest absolute value if the square of every element is subnormal or 0, and not all are 0."""
    low, high = (bound.item() for bound in torch.aminmax(values))
    size: float = max(-low, high)
    return size if 0 < size < math.sqrt(torch.finfo(values.dtype).tiny) else None


class Edge(NamedTuple):
    """Where an operation stops being finite.

    Attributes:
        operations: their names without overload.
        operand: its position.
        where: the edge, as in the report.
        near: returns the element nearest to the edge if it is near.
        slope: whether only the derivative is infinite there; without a gradient it doesn't matter.
        source: address of what says so.
    """

    operations: frozenset[str]
    operand: int
    where: str
    near: Callable[[Tensor], float | None]
    slope: bool
    source: str


def _edge(
    names: str, where: str, near: Callable[[Tensor], float | None], source: str, operand: int = 0, slope: bool = False
) -> Edge:
    return Edge(frozenset(names.split()), operand, where, near, slope, source)


EDGES = (
    _edge("log log_ log2 log2_ log10 log10_", "0, where it is -inf", _near_zero, _GRIST),
    _edge("div div_ true_divide", "a denominator of 0", _near_zero, _GRIST, operand=1),
    _edge("reciprocal reciprocal_ rsqrt rsqrt_", "0, where it is infinite", _near_zero, _GRIST),
    _edge(
        "sqrt sqrt_",
        "0, where its derivative is infinite",
        _near_zero,
        "https://github.com/pytorch/pytorch/issues/6394",
        slope=True,
    ),
    _edge("exp exp_ expm1 expm1_ sinh cosh", "its overflow", _near_overflow, _LOG_SUM_EXP),
    _edge("log1p log1p_", "-1, where it is -inf", _near_minus_one, _GRIST),
    _edge("linalg_vector_norm norm", "0, as the squares underflow", _near_underflow_of_squares, _GRIST),
    _edge(
        "acos acos_ asin asin_",
        "1, where its derivative is infinite",
        _near_one,
        "https://github.com/pytorch/pytorch/issues/8069",
        slope=True,
    ),
    _edge("atanh atanh_ logit", "1, where it is infinite", _near_one, _GRIST),
)
"""The edges that `near_misses` looks at, in the forward."""

_BY_NAME = {name: edge for edge in EDGES for name in edge.operations}
# Only these can make numbers many times larger or smaller than all that they read; sums need many steps for it.
_GROWING = {
    *("mul", "mul_", "div", "div_", "pow", "pow_", "square", "exp", "exp_", "expm1", "reciprocal", "rsqrt", "prod"),
    *("mm", "bmm", "addmm", "baddbmm", "addbmm", "convolution", "convolution_backward", "dot", "mv", "sum", "cumsum"),
    *("cumprod", "addcmul", "addcmul_", "addcdiv", "addcdiv_", "linalg_vector_norm", "var", "sinh", "cosh"),
    *("_to_copy", "einsum", "linear", "mse_loss", "mse_loss_backward", "native_batch_norm_backward"),
}
_SHRINKING = {
    *("mul", "mul_", "div", "div_", "pow", "pow_", "square", "exp", "exp_", "prod", "cumprod", "_softmax", "sigmoid"),
    *("sigmoid_", "_softmax_backward_data", "sigmoid_backward", "tanh_backward", "softplus", "_to_copy"),
}
_ENDS = {
    "sigmoid": (0.0, 1.0),
    "sigmoid_": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "tanh_": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
}
_WATCHED = _BY_NAME.keys() | _GROWING | _SHRINKING | _ENDS.keys()
_FORMATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass
class NearMisses:
    """Looks at the operations that can come near an edge: one or two reductions each, of small samples where it can.

    What is lost to subnormal numbers and what is saturated is estimated from 256 elements of each tensor.

    Args:
        report: where near misses are entered, one for each kind, operation and line.
        factor: an element within this factor of the largest number of its format is near overflow.
        share: the least share of elements, from 0 to 1, that must be lost or saturated.
    """

    report: Report
    factor: float = 16.0
    share: float = 0.5
    _known: dict[tuple[str, str, Source | None], NearMiss] = field(default_factory=dict)

    def watches(self, operation: Operation) -> bool:
        """Return whether an operation can come near an edge at all."""
        return operation.short in _WATCHED

    def look(self, execution: Execution, loop: LoopState, locate: Locate) -> None:
        """Look at an operation that has run and returned one tensor.

        Args:
            execution: it; only its finite values are looked at.
            loop: what the training loop is doing.
            locate: returns the line and the module of the call.
        """
        self._look_at_operand(execution, loop, locate)
        operation, out = execution.operation, execution.out
        if out.dtype not in _FORMATS or out.layout != torch.strided or out.is_meta or not out.numel():
            return
        # Large values in the backward of a loss that GradScaler has scaled are its doing.
        if operation.short in _GROWING and not loop.scaled:
            top = _largest(out)
            if top > torch.finfo(out.dtype).max / self.factor and math.isfinite(top):
                self._note("overflow", operation, top, loop.step, locate)
        if operation.short in _SHRINKING and (lost := _lost(_sample(out))) >= self.share:
            self._note("subnormal", operation, lost, loop.step, locate)
        if operation.short in _ENDS:
            saturated = _saturated(_sample(out), *_ENDS[operation.short])
            if saturated >= self.share:
                self._note("saturated", operation, saturated, loop.step, locate)

    def _look_at_operand(self, execution: Execution, loop: LoopState, locate: Locate) -> None:
        edge = _BY_NAME.get(execution.operation.short)
        if edge is None or graph_task() != -1 or edge.operand >= len(execution.args):
            return
        given = execution.args[edge.operand]
        # Of what was overwritten only small tensors have a copy.
        overwritten = execution.operation.written and edge.operand == 0
        operand = execution.before.get(id(given)) if overwritten else given
        if not isinstance(operand, Tensor) or not operand.is_floating_point():
            return
        if edge.slope and not (given.requires_grad and torch.is_grad_enabled()):
            return
        values = values_of(operand)
        if values is not None and values.numel() and (value := edge.near(values)) is not None:
            self._note("edge", execution.operation, value, loop.step, locate, edge.where)

    def _note(
        self, kind: str, operation: Operation, value: float, step: int, locate: Locate, edge: str | None = None
    ) -> None:
        source, module = locate()
        miss = self._known.get((kind, operation.name, source))
        if miss is None:
            miss = NearMiss(kind, operation.name, module, source, step, value, 0, edge)
            self._known[kind, operation.name, source] = miss
            self.report.near_misses.append(miss)
        miss.count += 1
        # What comes near 0 is worst where it is smallest.
        nearer = min if edge and "0" in edge else max
        miss.value = nearer(miss.value, value, key=abs)


def _largest(values: Tensor) -> float:
    """Return the largest absolute value; finfo.max itself is a mask's and doesn't count."""
    low, high = (bound.item() for bound in torch.aminmax(values))
    top: float = max(-low, high)
    if top == torch.finfo(values.dtype).max:
        size = values.abs()
        top = size.masked_fill_(size == top, 0).max().item()
    return top


def _sample(values: Tensor) -> Tensor:
    """Return about 256 elements, evenly spread over a tensor's memory."""
    step = max(values.numel() // _SAMPLE, 1)
    if covers_storage(values):  # whatever the order of its dimensions
        return torch.as_strided(values, (values.numel() // step,), (step,), 0)
    return values.flatten()[::step]


def _lost(sample: Tensor) -> float:
    """Return the share of the elements beside 0 that are subnormal, from 0 to 1."""
    size = sample.abs()
    small = size < torch.finfo(sample.dtype).tiny
    count = int(small.sum())
    if not count:
        return 0.0
    zero = int((size == 0).sum())
    return (count - zero) / max(size.numel() - zero, 1)


def _saturated(sample: Tensor, low: float, high: float) -> float:
    """Return the share of elements at an end of an activation's range, from 0 to 1."""
    eps = torch.finfo(sample.dtype).eps
    ends = (sample - low <= eps * abs(low)) | (high - sample <= eps * abs(high))
    return float(ends.float().mean())
