"""An event of the autopsy as a line of arithmetic, why it happens in our programs, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xor_study.autopsy import Event
from xor_study.autopsy.finiteness import Summary
from xor_study.model.gradients import exponential_sigmoid_gradient
from xor_study.model.losses import binary_cross_entropy_naive
from xor_study.training.spec import LARGEST, RunSpec

_ROOT = Path(__file__).resolve().parents[2]

_SIGNS = {"mul": " x ", "div": " / ", "add": " + ", "sub": " - "}
_PRODUCTS = ("mm", "addmm", "bmm", "mv", "dot")
"""Operations whose output elements depend on more than the input elements at the same index."""


def number(value: float) -> str:
    """Return a number with four digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{value + 0.0:.4g}"  # + 0.0 turns -0 into 0


def each(what: str, values: Tensor, names: Sequence[str], verb: bool = True) -> str:
    """Return the corners' values in words: once if all look the same, else one by one.

    Args:
        what: the name of the value.
        values: shape (names,).
        names: of the corners.
        verb: whether to put a verb between the name and the numbers.
    """
    shown = [number(float(value)) for value in values]
    if len(set(shown)) == 1:
        return f"every {what} is {shown[0]}" if verb else f"{what} {shown[0]}"
    listed = ", ".join(f"{value} at {name}" for name, value in zip(names, shown, strict=True))
    return f"{what} is {listed}" if verb else f"{what} {listed}"


def location(event: Event) -> str | None:
    """Return the file (relative to the checkout), line number and text of an event's line, or None if it is unknown."""
    if event.source is None:
        return None
    path = Path(event.source.filename)
    shown = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else Path(path.name)
    return f"{shown.as_posix()}:{event.lineno}: {event.code.partition('  #')[0]}"


def short_name(event: Event) -> str:
    """Return an operation's name without its namespace and overload: "exp" of "aten.exp.default"."""
    return event.operation.split(".")[1].strip("_").removeprefix("foreach_")


def arithmetic(event: Event) -> str:
    """Return what an event computed, with its numbers where it works element by element: "exp(1008) = infinity"."""
    name, result = short_name(event), _result(event)
    shown = _operands(event) if name not in _PRODUCTS else []
    if name in _SIGNS and len(shown) >= 2:
        return f"{shown[0]}{_SIGNS[name]}{shown[1]} = {result}"
    if name == "addcdiv" and len(shown) >= 3:  # x + value a / b: x is finite
        return f"{shown[1]} / {shown[2]} = {result}"
    if shown:
        return f"{name}({', '.join(shown)}) = {result}"
    ranges = [_range(summary) for summary in event.inputs if summary.minimum is not None]
    return f"{name} of {', '.join(ranges)} gives {result}" if ranges else f"{name} gives {result}"


def _operands(event: Event) -> list[str]:
    """Return the numbers that met in an event's worst element; none if one is not known."""
    index, shown = _worst(event), []
    for summary in event.inputs:
        value = summary.offending[index] if summary.offending else summary.minimum
        if value is None or not (summary.offending or summary.shape is None):
            return []
        shown.append(number(value))
    return shown


def _worst(event: Event) -> int:
    """Return which of an event's known output elements to describe: the first NaN, or else the first."""
    shown = next((summary.offending for summary in event.outputs if summary.offending), (0.0,))
    return next((index for index, value in enumerate(shown) if math.isnan(value)), 0)


def _range(summary: Summary) -> str:
    low, high = summary.minimum, summary.maximum
    if low is None or high is None:
        return summary.name
    text = f"{summary.name} = {number(low)}" if low == high else f"{summary.name} from {number(low)} to {number(high)}"
    counts = [f"{count} {word}" for count, word in ((summary.infinite, "infinite"), (summary.nan, "NaN")) if count]
    return f"{text} ({' and '.join(counts)})" if counts else text


def _result(event: Event) -> str:
    for summary in event.outputs:
        if summary.offending:
            return number(summary.offending[_worst(event)])
        if summary.nan or summary.infinite:
            return "NaN" if summary.nan else "infinity"
    return "a value that is not finite"


def reason(event: Event, spec: RunSpec) -> str:
    """Return why an event of a run happens, in a sentence; empty if there is nothing to add."""
    function, name = event.source.function if event.source else "", short_name(event)
    largest = LARGEST[spec.dtype]
    # The names come from the functions, so that renaming one cannot lose its sentence.
    if (function, name) == (exponential_sigmoid_gradient.__name__, "exp"):
        edge = number(math.log(largest))
        return f"The sigmoid's derivative is written e^-z p p, and e^-z is infinite in {spec.dtype} where -z > {edge}."
    if (function, name) == (exponential_sigmoid_gradient.__name__, "mul"):
        return "p is 0 there, and infinity times 0 is NaN; times the upstream's 0 it stays NaN."
    if (function, name) == (binary_cross_entropy_naive.__name__, "log"):
        return f"A p has rounded to 0 or 1 in {spec.dtype}, and nothing guards the logarithm."
    if event.phase == "optimizer" and name in ("addcdiv", "div") and spec.optimizer_eps is not None:
        return _denominator(spec)
    if event.kind == "overflow":
        return f"{spec.dtype} ends at {number(largest)}; in float64 it would be finite."
    return ""


def _denominator(spec: RunSpec) -> str:
    """Return why an adaptive optimizer's denominator is 0."""
    dtype = getattr(torch, spec.dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    gone = float(torch.tensor(spec.optimizer_eps, dtype=dtype)) == 0
    eps = f", and eps = {spec.optimizer_eps:g} is 0 there" if gone else ""
    return f"The squared gradient has underflowed: {spec.dtype} has nothing between 0 and {number(tiny)}{eps}."
