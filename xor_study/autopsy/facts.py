"""What is known of a tensor's elements from the operations that computed it, without reading them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_INF = math.inf


class Fact(NamedTuple):
    """What is known of a tensor's elements from how it was computed.

    Attributes:
        what: how, such as "softmax", "1 - sigmoid" or "sum of squares"; "number" for a constant.
        low, high: bounds that the elements can reach (by underflow or rounding), in the tensor's own format.
    """

    what: str
    low: float = -_INF
    high: float = _INF


Facts = Sequence[Fact | None]


class Call(NamedTuple):
    """A call as the functions below see it.

    Attributes:
        facts: of each positional argument; a Python number is a fact too.
        args: the arguments themselves.
        result: the first output.
    """

    facts: Facts
    args: tuple[Any, ...]
    result: Tensor

    @property
    def first(self) -> Fact | None:
        """The first argument's fact."""
        return self.facts[0] if self.facts else None

    @property
    def second(self) -> Fact | None:
        """The second argument's fact."""
        return self.facts[1] if len(self.facts) > 1 else None

    def fact(self, what: str, low: float = -_INF, high: float = _INF) -> Fact:
        """Return a fact of the result, with bounds in its number format."""
        return Fact(what, rounded(low, self.result.dtype), rounded(high, self.result.dtype))


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return a number as a floating-point format holds it; infinite where it is too large."""
    if value != value or math.isinf(value) or dtype not in _FORMATS:
        return value
    try:
        held: float = struct.unpack(_FORMATS[dtype], struct.pack(_FORMATS[dtype], value))[0]
    except OverflowError:
        return math.copysign(_INF, value)
    return _brain(held) if dtype == torch.bfloat16 else held


_FORMATS = {torch.float16: "<e", torch.bfloat16: "<f", torch.float32: "<f"}


def _brain(value: float) -> float:
    """Return a float32 rounded to the nearest bfloat16: its upper 16 bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _keep(call: Call) -> Fact | None:
    """The elements are some of the first argument's, perhaps in another number format."""
    return call.fact(*call.first) if call.first else None


def _copied(call: Call) -> Fact | None:
    """copy_ writes its second argument over its first."""
    return call.fact(*call.second) if call.second else None


def _always(what: str, low: float = -_INF, high: float = _INF) -> Callable[[Call], Fact]:
    return lambda call: call.fact(what, low, high)


def _filled(call: Call) -> Fact | None:
    """A tensor of one number: the last that the call names."""
    numbers = [fact for fact in call.facts if fact and fact.what == "number"]
    return call.fact("number", numbers[-1].low, numbers[-1].high) if numbers else None


def _negative(fact: Fact | None) -> Fact | None:
    if fact is None:
        return None
    what = fact.what.removeprefix("-") if fact.what.startswith("-") else f"-{fact.what}"
    return Fact("number" if fact.what == "number" else what, -fact.high, -fact.low)


def _neg(call: Call) -> Fact | None:
    return _negative(call.first)


_SUMS = {
    ("exp", "exp"): "sum of exp",
    ("exp", "sum of exp"): "sum of exp",
    ("sum of exp", "sum of exp"): "sum of exp",
    ("square", "square"): "sum of squares",
    ("square", "sum of squares"): "sum of squares",
    ("sum of squares", "sum of squares"): "sum of squares",
    ("-square of a mean", "mean of squares"): "E[x^2] - E[x]^2",
    ("output", "output"): "output",
}
_PLUS_ONE = {
    "exp": "1 + exp",
    "exp of an output": "1 + exp",
    "-exp": "1 - exp",
    "-exp of an output": "1 - exp",
    "erf": "1 + erf",
    "-softmax": "1 - softmax",
    "-sigmoid": "1 - sigmoid",
    "-1 - softmax": "softmax",
    "-1 - sigmoid": "sigmoid",
    "-square of tanh": "1 - square of tanh",
    "-square of a cosine": "1 - square of a cosine",
}


def _sum_of(call: Call, a: Fact | None, b: Fact | None) -> Fact | None:
    if a is None or b is None:
        return _shifted(call, a, b)
    low, high = a.low + b.low, a.high + b.high
    if a.what == "number":
        a, b = b, a
    if b.what == "number":
        what = _PLUS_ONE.get(a.what, a.what) if b.low == 1 else a.what
        return call.fact(what, low, high)
    pair = sorted(fact.what.replace("exp of an output", "exp") for fact in (a, b))
    known = _SUMS.get((pair[0], pair[1]))
    return call.fact(known, low, high) if known else _shifted(call, a, b)


def _shifted(call: Call, a: Fact | None, b: Fact | None) -> Fact | None:
    """Return the fact of x - max(x) and x - logsumexp(x), which are at most 0."""
    if any(fact is not None and fact.what in ("-maximum", "-logsumexp") for fact in (a, b)):
        return call.fact("shifted", high=0.0)
    return None


def _add(call: Call) -> Fact | None:
    return _sum_of(call, call.first, call.second)


def _sub(call: Call) -> Fact | None:
    return _sum_of(call, call.first, _negative(call.second))


def _rsub(call: Call) -> Fact | None:
    return _sum_of(call, call.second, _negative(call.first))


def _scaled(call: Call, fact: Fact, factor: float) -> Fact | None:
    if factor == 0 or factor != factor:
        return None
    if factor < 0:
        return _scaled(call, _negative(fact) or fact, -factor)
    return call.fact(fact.what, fact.low * factor, fact.high * factor)


_PRODUCTS = {
    ("norm", "norm"): ("product of norms", 0.0, _INF),
    ("unit", "unit"): ("unit product", -1.0, 1.0),
    **{
        (a, b): ("product of probabilities", 0.0, 1.0)
        for a in ("1 - sigmoid", "1 - softmax", "product of probabilities", "sigmoid", "softmax")
        for b in ("1 - sigmoid", "1 - softmax", "product of probabilities", "sigmoid", "softmax")
    },
}


def _mul(call: Call) -> Fact | None:
    a, b = call.first, call.second
    if _same(call.args):
        return _square(call)
    if a is None or b is None:
        return None
    if a.what == "number":
        a, b = b, a
    if b.what == "number":
        return _scaled(call, a, b.low) if b.low == b.high else None
    known = _PRODUCTS.get((a.what, b.what))
    if known and (known[0] != "product of probabilities" or min(a.low, b.low) <= 0):
        return call.fact(*known)
    return None


def _same(args: tuple[Any, ...]) -> bool:
    return len(args) > 1 and isinstance(args[0], Tensor) and args[0] is args[1]


def _div(call: Call) -> Fact | None:
    a, b = call.first, call.second
    if b is None:
        return None
    if b.what == "number":
        return _scaled(call, a, 1 / b.low) if a and b.low == b.high != 0 else None
    if b.what == "sum of exp":
        return call.fact("softmax", a.low / b.high if a and a.low > 0 else 0.0, 1.0)
    if b.what == "1 + exp":
        return call.fact("sigmoid", 0.0, 1.0) if a else None
    if b.what == "product of norms":
        return _cosine(call)
    return call.fact("unit", -1.0, 1.0) if b.what == "norm" else None


def _cosine(call: Call) -> Fact:
    """A cosine that was computed can be above 1, by rounding."""
    beyond = 1 + torch.finfo(call.result.dtype).eps
    return Fact("cosine", -beyond, beyond)


def _reciprocal(call: Call) -> Fact | None:
    return call.fact("sigmoid", 0.0, 1.0) if call.first and call.first.what == "1 + exp" else None


_SQUARES = {"number": "number", "mean": "square of a mean", "tanh": "square of tanh", "cosine": "square of a cosine"}


def _square(call: Call) -> Fact:
    fact = call.first or Fact("")
    ends = abs(fact.low), abs(fact.high)
    low = 0.0 if fact.low <= 0 <= fact.high else min(ends) ** 2
    high = max(ends) ** 2 if max(ends) < 1e154 else _INF
    return call.fact(_SQUARES.get(fact.what, "square"), low, high)


_ROOTS = {
    "sum of squares": "norm",
    "mean of squares": "norm",
    "variance": "standard deviation",
    "E[x^2] - E[x]^2": "standard deviation",
}


def _sqrt(call: Call) -> Fact | None:
    fact = call.first
    if fact is None or fact.what not in _ROOTS:
        return None
    return call.fact(_ROOTS[fact.what], math.sqrt(max(fact.low, 0.0)), math.sqrt(max(fact.high, 0.0)))


def _pow(call: Call) -> Fact | None:
    exponent = call.second
    if exponent is None or exponent.what != "number":
        return None
    if exponent.low == 2:
        return _square(call)
    return _sqrt(call) if exponent.low == 0.5 else None


def _exp(call: Call) -> Fact:
    fact = call.first or Fact("")
    what = "exp of an output" if fact.what.removeprefix("-") == "output" else "exp"
    limit = math.log(torch.finfo(call.result.dtype).max)
    return call.fact(what, math.exp(min(fact.low, limit)), math.exp(fact.high) if fact.high <= limit else _INF)


_TOTALS = {
    "square": "sum of squares",
    "sum of squares": "sum of squares",
    "exp": "sum of exp",
    "exp of an output": "sum of exp",
    "sum of exp": "sum of exp",
    "abs": "norm",
}


def _total(call: Call) -> Fact | None:
    fact = call.first
    if fact is not None and fact.what == "unit product":
        return _cosine(call)
    if fact is None or fact.what not in _TOTALS:
        return None
    count = max(call.args[0].numel() // max(call.result.numel(), 1), 1)
    return call.fact(_TOTALS[fact.what], fact.low, fact.high * count)


def _running_total(call: Call) -> Fact | None:
    return _total(call) if call.first and call.first.what != "unit product" else None


def _mean(call: Call) -> Fact | None:
    fact = call.first or Fact("")
    what = "mean of squares" if fact.what in ("square", "sum of squares") else "mean"
    return call.fact(what, fact.low, fact.high)


def _maximum_of(call: Call) -> Fact | None:
    """The largest element; of absolute values it is a norm."""
    fact = call.first or Fact("")
    return call.fact("norm" if fact.what == "abs" else "maximum", fact.low, fact.high)


def _max(call: Call) -> Fact | None:
    """max() along a dimension, or of two tensors."""
    other = len(call.args) > 1 and isinstance(call.args[1], Tensor)
    return _clamp(call) if other else _maximum_of(call)


def _bounded(call: Call, least: Fact | None, most: Fact | None) -> Fact | None:
    """Return the fact of a tensor that is clamped; bounds that are not known count for nothing."""
    fact = call.first or Fact("clamped")
    low = max(fact.low, rounded(least.low, call.result.dtype)) if least else fact.low
    high = min(fact.high, rounded(most.high, call.result.dtype)) if most else fact.high
    known = call.first or least or most
    return call.fact(fact.what, low, max(low, high)) if known else None


def _clamp(call: Call) -> Fact | None:
    if _is_unknown(call, 1) or _is_unknown(call, 2):  # a bound that is a tensor may well be above 0
        return None
    return _bounded(call, call.second, call.facts[2] if len(call.facts) > 2 else None)


def _is_unknown(call: Call, position: int) -> bool:
    return position < len(call.args) and isinstance(call.args[position], Tensor) and call.facts[position] is None


def _clamp_max(call: Call) -> Fact | None:
    return None if _is_unknown(call, 1) else _bounded(call, None, call.second)


def _hardtanh(call: Call) -> Fact | None:
    least, most = [*call.facts[1:3], Fact("number", -1.0, -1.0), Fact("number", 1.0, 1.0)][:2]
    return _bounded(call, least, most)


def _joined(call: Call) -> Fact | None:
    """cat and stack: of the same sort, with the wider bounds."""
    parts = call.args[0] if call.args else ()
    facts = call.facts[: len(parts)]
    if not facts or any(fact is None or facts[0] is None or fact.what != facts[0].what for fact in facts):
        return None
    known = [fact for fact in facts if fact]
    return call.fact(known[0].what, min(fact.low for fact in known), max(fact.high for fact in known))


def _prod(call: Call) -> Fact | None:
    fact = call.first
    probable = fact and fact.what in ("softmax", "sigmoid", "1 - softmax", "1 - sigmoid", "product of probabilities")
    return call.fact("product of probabilities", 0.0, 1.0) if probable else None


def _matmul(call: Call) -> Fact | None:
    return _cosine(call) if call.first and call.second and call.first.what == call.second.what == "unit" else None


DERIVE: dict[str, Callable[[Call], Fact | None]] = {
    **dict.fromkeys(("clone", "_to_copy", "contiguous", "_unsafe_view", "lift_fresh", "flip", "roll"), _keep),
    **dict.fromkeys(("gather", "index", "index_select", "take", "repeat", "masked_select", "sort", "topk"), _keep),
    **dict.fromkeys(("full", "full_like", "scalar_tensor", "new_full", "fill"), _filled),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _always("number", 1.0, 1.0)),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _always("number", 0.0, 0.0)),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), _always("sigmoid", 0.0, 1.0)),
    **dict.fromkeys(("_softmax", "_safe_softmax"), _always("softmax", 0.0, 1.0)),
    **dict.fromkeys(("_log_softmax", "log_sigmoid_forward"), _always("log-probability", high=0.0)),
    **dict.fromkeys(("addmm", "convolution", "native_layer_norm", "native_batch_norm"), _always("output")),
    **dict.fromkeys(("native_group_norm", "_native_batch_norm_legit", "linear"), _always("output")),
    **dict.fromkeys(("var", "var_mean"), _always("variance", 0.0)),
    **dict.fromkeys(("std", "std_mean"), _always("standard deviation", 0.0)),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _always("norm", 0.0)),
    **dict.fromkeys(("mm", "bmm"), _matmul),
    **dict.fromkeys(("clamp_min", "maximum"), _clamp),
    **dict.fromkeys(("clamp_max", "minimum"), _clamp_max),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("prod", "cumprod"), _prod),
    "copy": _copied,
    "mse_loss": _always("mean of squares", 0.0),
    "tanh": _always("tanh", -1.0, 1.0),
    "erf": _always("erf", -1.0, 1.0),
    "relu": _always("relu", 0.0),
    "abs": _always("abs", 0.0),
    "logsumexp": _always("logsumexp"),
    "_linalg_det": _always("determinant"),
    "amax": _maximum_of,
    "max": _max,
    "clamp": _clamp,
    "hardtanh": _hardtanh,
    "neg": _neg,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "reciprocal": _reciprocal,
    "square": _square,
    "sqrt": _sqrt,
    "pow": _pow,
    "exp": _exp,
    "sum": _total,
    "cumsum": _running_total,
    "mean": _mean,
}
"""By the name of an operation (without overload and trailing underscore): the fact of its first output."""
