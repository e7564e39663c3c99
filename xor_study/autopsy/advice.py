"""What helps against the commonest failures: a table of operations, conditions on an event's values, and safe forms.

A row applies only if the event itself shows its condition (which operation, in which phase, which values met): advice
is no guess. Events of batched checks have no such values, so few rows apply to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xor_study.autopsy.finiteness import Summary
    from xor_study.autopsy.report import Event

_DOCS = "https://docs.pytorch.org/docs/stable/"
_GENERATED = f"{_DOCS}generated/torch."
_ISSUES = "https://github.com/pytorch/pytorch/issues/"
_LARGEST = {"float16": 65504.0, "float32": 3.4028235e38, "bfloat16": 3.3895314e38}


class Advice(NamedTuple):
    """One sentence with the safe form, and where it is documented or discussed."""

    text: str
    source: str


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the failure.
        operations: names of ATen operations, without overload, "_foreach_" and the "_" of operations in place; empty
            for any.
        phase: as in `Event`.
        nodes: in a backward, the beginnings of `Event.node`.
        holds: whether the event's values show this failure.
        advice: what helps.
    """

    name: str
    operations: str
    phase: str
    nodes: tuple[str, ...]
    holds: Callable[[Event], bool]
    advice: Advice


def advice_for(event: Event) -> Advice | None:
    """Return the advice of the first row that an event fits, or None."""
    return next((row.advice for row in ROWS if _fits(row, event)), None)


def _fits(row: Row, event: Event) -> bool:
    namespace, name = event.operation.split(".")[:2] if "." in event.operation else ("", event.operation)
    plain = name.removeprefix("_foreach_").removesuffix("_")
    listed = namespace == "aten" and (not row.operations or plain in row.operations.split())
    node = not row.nodes or (event.node or "").startswith(row.nodes)
    return listed and event.phase == row.phase and node and row.holds(event)


def _inputs(event: Event, name: str) -> Iterator[Summary]:
    """Yield the inputs of that name; of an operation on lists, those that belong to the output."""
    yield from (summary for summary in event.inputs if summary.name.partition("[")[0] == name)


def _there(event: Event, name: str) -> tuple[float, ...]:
    """Return an input's elements at the first positions where the output is not finite."""
    return next((summary.offending for summary in _inputs(event, name)), ())


def _dtype(event: Event, name: str) -> str:
    return next((summary.dtype for summary in _inputs(event, name)), "")


def _number(event: Event, name: str) -> float | None:
    """Return a number that the operation was given, or None."""
    for summary in _inputs(event, name):
        if summary.shape is None:
            return summary.minimum if summary.minimum is not None else summary.offending[0]
    return None


def _zero(name: str) -> Callable[[Event], bool]:
    return lambda event: 0 in _there(event, name)


def _negative(name: str) -> Callable[[Event], bool]:
    return lambda event: event.kind == "NaN" and any(value < 0 for value in _there(event, name))


def _zero_over_zero(event: Event) -> bool:
    return (0, 0) in zip(_there(event, "self"), _there(event, "other"), strict=False)


def _infinity_times_zero(event: Event) -> bool:
    pairs = zip(_there(event, "self"), _there(event, "other"), strict=False)
    number = _number(event, "other")
    if number == 0:
        return any(map(math.isinf, _there(event, "self")))
    return any({abs(first), abs(second)} == {0, math.inf} for first, second in pairs)


def _by_a_count(event: Event) -> bool:
    # A finite number divided by an integer is finite unless the integer is 0.
    counts = _dtype(event, "other").startswith(("int", "uint", "bool"))
    return counts and all(map(math.isfinite, _there(event, "self")))


def _exponent_below_zero(event: Event) -> bool:
    number = _number(event, "exponent")
    exponents = _there(event, "exponent") if number is None else (number,) * 3
    return any(base == 0 and power < 0 for base, power in zip(_there(event, "self"), exponents, strict=False))


def _all_masked(event: Event) -> bool:
    there = _there(event, "self")
    return event.kind == "NaN" and bool(there) and all(value == -math.inf for value in there)


def _finite_inputs(event: Event) -> bool:
    return not any(summary.nan or summary.infinite for summary in event.inputs)


def _of_nothing(event: Event) -> bool:
    return any(summary.shape is not None and 0 in summary.shape for summary in _inputs(event, "self"))


def _too_few(event: Event) -> bool:
    return event.kind == "NaN" and _finite_inputs(event)


def _overflows(event: Event) -> bool:
    return event.kind in ("overflow", "infinite") and any(map(math.isfinite, _there(event, "self")))


def _infinite_of_finite(event: Event) -> bool:
    return event.kind == "infinite" and _finite_inputs(event)


def _in_half(event: Event) -> bool:
    return event.kind == "overflow" and any(summary.dtype == "float16" for summary in event.outputs)


def _beyond(limit: float) -> Callable[[Event], bool]:
    return lambda event: any(abs(value) > limit for value in _there(event, "self"))


def _at_the_end(event: Event) -> bool:
    ends = (0, 1) if ".logit." in event.operation else (-1, 1)
    return any(value in ends for value in _there(event, "self"))


def _number_not_finite(event: Event) -> bool:
    numbers = [_number(event, name) for name in ("alpha", "value")]
    return any(number is not None and not math.isfinite(number) for number in numbers)


def _step_overflows(event: Event) -> bool:
    alpha, there = _number(event, "alpha"), _there(event, "other")
    limit = _LARGEST.get(_dtype(event, "other"), math.inf)
    return alpha is not None and any(abs(alpha * value) > limit for value in there)


def _denominator(*dtypes: str) -> Callable[[Event], bool]:
    return lambda event: 0 in _there(event, "tensor2") and (not dtypes or _dtype(event, "tensor2") in dtypes)


ROWS = [
    Row(
        "log of zero",
        "log log2 log10",
        "forward",
        (),
        _zero("self"),
        Advice(
            "log(0) is -inf. The log of a softmax is F.log_softmax, the log of a sigmoid F.logsigmoid, x * log(y) "
            "is torch.xlogy(x, y); otherwise clamp the argument, torch.log(x.clamp(min=eps)).",
            f"{_GENERATED}nn.functional.log_softmax.html",
        ),
    ),
    Row(
        "log of a negative number",
        "log log2 log10",
        "forward",
        (),
        _negative("self"),
        Advice(
            "The logarithm of a negative number is NaN: make the argument positive, as F.softplus(x) does, or clamp "
            "it.",
            f"{_GENERATED}log.html",
        ),
    ),
    Row(
        "root of a negative number",
        "sqrt rsqrt",
        "forward",
        (),
        _negative("self"),
        Advice(
            "The root of a negative number is NaN: clamp the argument, x.clamp(min=eps).sqrt(). Rounding makes a "
            "difference of squares negative; torch.var is never negative.",
            f"{_GENERATED}var.html",
        ),
    ),
    Row(
        "reciprocal of zero",
        "rsqrt reciprocal",
        "forward",
        (),
        _zero("self"),
        Advice("1 / 0 is infinite: keep the argument away from 0, (x + eps).rsqrt().", f"{_GENERATED}rsqrt.html"),
    ),
    Row(
        "gradient of a root at zero",
        "div",
        "backward",
        ("SqrtBackward",),
        _zero("other"),
        Advice(
            "The derivative of sqrt at 0 is infinite: add eps inside the root, (x + eps).sqrt(). If the value is "
            "masked out, replace the root's input, torch.where(ok, x, 1).sqrt(): torch.where around the result comes "
            "too late.",
            f"{_ISSUES}6394",
        ),
    ),
    Row(
        "where around a result",
        "div",
        "backward",
        ("DivBackward", "LogBackward", "Log2Backward", "Log10Backward"),
        _zero_over_zero,
        Advice(
            "The backward computes 0 / 0 there, as it does where torch.where or a mask discards the result but not its "
            "derivative: put torch.where around the input as well, torch.where(ok, x / torch.where(ok, y, 1), 0).",
            f"{_ISSUES}10729",
        ),
    ),
    Row(
        "fractional power of a negative number",
        "pow",
        "forward",
        (),
        _negative("self"),
        Advice(
            "A negative number to a fractional power is NaN: use x.clamp(min=eps) ** p, or x.sign() * x.abs() ** p.",
            f"{_GENERATED}pow.html",
        ),
    ),
    Row(
        "negative power of zero",
        "pow",
        "forward",
        (),
        _exponent_below_zero,
        Advice("0 to a negative power is infinite: keep the base from 0, (x + eps) ** p.", f"{_GENERATED}pow.html"),
    ),
    Row(
        "gradient of a power at zero",
        "pow",
        "backward",
        ("PowBackward",),
        _exponent_below_zero,
        Advice("The derivative of x ** p at 0 is infinite for p < 1: use (x + eps) ** p.", f"{_ISSUES}44452"),
    ),
    Row(
        "division by a count of zero",
        "div",
        "forward",
        (),
        _by_a_count,
        Advice("The divisor is an integer, and 0: divide by count.clamp(min=1).", f"{_GENERATED}clamp.html"),
    ),
    Row(
        "division by zero in float16",
        "div",
        "forward",
        (),
        lambda event: 0 in _there(event, "other") and _dtype(event, "other") == "float16",
        Advice(
            "The divisor is 0. In float16 every number below 3e-8 is 0, also an eps of 1e-8: add at least 1e-7, or "
            "divide in float32.",
            f"{_DOCS}type_info.html",
        ),
    ),
    Row(
        "division by zero",
        "div",
        "forward",
        (),
        _zero("other"),
        Advice(
            "The divisor is 0: use x / y.clamp(min=eps), and for a norm F.normalize(x).",
            f"{_GENERATED}nn.functional.normalize.html",
        ),
    ),
    Row(
        "mean of nothing",
        "mean",
        "forward",
        (),
        _of_nothing,
        Advice(
            "The mean of no elements is 0 / 0: use x.sum() / max(x.numel(), 1), or leave the batch out.",
            f"{_GENERATED}mean.html",
        ),
    ),
    Row(
        "loss of ignored targets only",
        "nll_loss_forward nll_loss2d_forward",
        "forward",
        (),
        _too_few,
        Advice(
            "No target counts (ignore_index, or weights of 0), and the mean over none is 0 / 0: use reduction='sum' "
            "and divide by (target != ignore_index).sum().clamp(min=1).",
            f"{_GENERATED}nn.CrossEntropyLoss.html",
        ),
    ),
    Row(
        "softmax of a masked row",
        "_softmax _log_softmax",
        "forward",
        (),
        _all_masked,
        Advice(
            "All entries of the row are -inf: leave one of each row unmasked, or mask with torch.finfo(x.dtype).min "
            "instead of -inf. F.scaled_dot_product_attention gives 0 for such rows.",
            f"{_ISSUES}41508",
        ),
    ),
    Row(
        "gradient of logsumexp of a masked row",
        "sub",
        "backward",
        ("LogsumexpBackward",),
        _all_masked,
        Advice(
            "All entries of the row are -inf, and -inf - -inf is NaN: mask with torch.finfo(x.dtype).min instead.",
            f"{_ISSUES}31829",
        ),
    ),
    Row(
        "overflow of exp",
        "exp exp2 expm1 cosh sinh",
        "forward",
        (),
        _overflows,
        Advice(
            "exp(x) overflows from x = 88.8 in float32 and 11.1 in float16: log(sum(exp(x))) is torch.logsumexp, "
            "log(1 + exp(x)) is F.softplus, exp(x) / sum(exp(x)) is F.softmax; or clamp x.",
            f"{_GENERATED}logsumexp.html",
        ),
    ),
    Row(
        "gradient of arc cosine at one",
        "rsqrt",
        "backward",
        ("AcosBackward", "AsinBackward"),
        _zero("self"),
        Advice(
            "The derivative of acos and asin at -1 and 1 is infinite: use x.clamp(-1 + eps, 1 - eps), or for an angle "
            "torch.atan2(sine, cosine).",
            f"{_ISSUES}8069",
        ),
    ),
    Row(
        "arc cosine outside of its domain",
        "acos asin",
        "forward",
        (),
        _beyond(1),
        Advice("acos and asin take values from -1 to 1: use x.clamp(-1 + eps, 1 - eps).", f"{_ISSUES}8069"),
    ),
    Row(
        "inverse function at its end",
        "logit atanh erfinv",
        "forward",
        (),
        _at_the_end,
        Advice(
            "The function is infinite at the end of its domain: clamp the argument; torch.logit takes an eps for that.",
            f"{_GENERATED}logit.html",
        ),
    ),
    Row(
        "deviation of one sample",
        "std var std_mean var_mean",
        "forward",
        (),
        _too_few,
        Advice(
            "No more elements than `correction` (1 by default) give 0 / 0: use correction=0, or more samples.",
            f"{_GENERATED}std.html",
        ),
    ),
    Row(
        "gradient of equal eigenvalues",
        "div",
        "backward",
        ("LinalgEigh", "LinalgSvd", "LinalgEig"),
        _zero("other"),
        Advice(
            "The gradient of eigenvectors and singular vectors divides by differences of eigenvalues, and some are "
            "equal: use the values alone (torch.linalg.eigvalsh, svdvals), or add small different numbers to the "
            "diagonal.",
            f"{_GENERATED}linalg.eigh.html",
        ),
    ),
    Row(
        "impossible alignment",
        "_ctc_loss _cudnn_ctc_loss",
        "forward",
        (),
        _infinite_of_finite,
        Advice(
            "The target is longer than the input allows (repeated labels need a blank between them), so the loss is "
            "infinite: pass zero_infinity=True, or leave such samples out.",
            f"{_GENERATED}nn.CTCLoss.html",
        ),
    ),
    Row(
        "infinity times a mask",
        "mul",
        "forward",
        (),
        _infinity_times_zero,
        Advice(
            "infinity * 0 is NaN: choose with torch.where(mask, x, 0) or x.masked_fill(~mask, 0) instead of "
            "multiplying by a mask.",
            f"{_GENERATED}where.html",
        ),
    ),
    Row(
        "optimizer with a number that is not finite",
        "add sub addcdiv addcmul mul",
        "optimizer",
        (),
        _number_not_finite,
        Advice(
            "The number that the optimizer multiplies its update by is not finite: look at param_group['lr'] and at "
            "what the scheduler has set it to.",
            f"{_DOCS}optim.html#how-to-adjust-learning-rate",
        ),
    ),
    Row(
        "update that overflows",
        "add sub",
        "optimizer",
        (),
        _step_overflows,
        Advice(
            "A number times a tensor (in SGD, the learning rate times the gradient) overflows: lower the rate, or clip "
            "with torch.nn.utils.clip_grad_norm_.",
            f"{_GENERATED}nn.utils.clip_grad_norm_.html",
        ),
    ),
    Row(
        "optimizer's eps in float16",
        "addcdiv",
        "optimizer",
        (),
        _denominator("float16"),
        Advice(
            "The optimizer divides by 0: in float16 an eps of 1e-8 is 0. Keep the parameters in float32 (autocast), or "
            "set eps=1e-4.",
            f"{_ISSUES}26218",
        ),
    ),
    Row(
        "optimizer without eps",
        "addcdiv",
        "optimizer",
        (),
        _denominator(),
        Advice(
            "The optimizer divides by 0: its eps is 0, or too small for this dtype.", f"{_GENERATED}optim.Adam.html"
        ),
    ),
    Row(
        "overflow of float16",
        "",
        "forward",
        (),
        _in_half,
        Advice(
            "float16 ends at 65504: compute this layer in float32 (with torch.autocast(device, enabled=False): "
            "layer(x.float())), or use bfloat16, which has the range of float32.",
            f"{_DOCS}amp.html",
        ),
    ),
]
"""The first row that fits counts."""
