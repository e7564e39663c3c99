"""An event of the autopsy as a line of arithmetic, and why it happens in this package's own programs."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from xor_study.autopsy import Event
from xor_study.autopsy.finiteness import Summary
from xor_study.postmortem.words import number
from xor_study.training.spec import LARGEST, RunSpec

_ROOT = Path(__file__).resolve().parents[2]

_SIGNS = {"mul": " x ", "div": " / ", "add": " + ", "sub": " - "}
_PRODUCTS = ("mm", "addmm", "bmm", "mv", "dot")
"""Operations whose output's elements are made of more than the same elements of their inputs."""


def place_of(event: Event) -> str | None:
    """Return file and line of an event, the file relative to the package, and the line's text."""
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
    name, made = short_name(event), _made(event)
    place = _worst(event)
    operands = [summary.offending[place] if summary.offending else summary.minimum for summary in event.inputs]
    exact = name not in _PRODUCTS and all(summary.offending or summary.shape is None for summary in event.inputs)
    if exact and operands and all(value is not None for value in operands):
        shown = [number(value) for value in operands if value is not None]
        if name in _SIGNS and len(shown) >= 2:
            return f"{shown[0]}{_SIGNS[name]}{shown[1]} = {made}"
        if name == "addcdiv" and len(shown) >= 3:
            return f"{shown[1]} / {shown[2]} = {made}"
        return f"{name}({', '.join(shown)}) = {made}"
    ranges = [_range(summary) for summary in event.inputs if summary.minimum is not None]
    return f"{name} of {', '.join(ranges)} gives {made}" if ranges else f"{name} gives {made}"


def _worst(event: Event) -> int:
    """Return which of the elements that are known of an event is to be told: the first NaN, or the first."""
    shown = next((summary.offending for summary in event.outputs if summary.offending), (0.0,))
    return next((place for place, value in enumerate(shown) if math.isnan(value)), 0)


def _range(summary: Summary) -> str:
    low, high = summary.minimum, summary.maximum
    if low is None or high is None:
        return summary.name
    text = f"{summary.name} = {number(low)}" if low == high else f"{summary.name} from {number(low)} to {number(high)}"
    counts = [f"{count} {word}" for count, word in ((summary.infinite, "infinite"), (summary.nan, "NaN")) if count]
    return f"{text} ({' and '.join(counts)})" if counts else text


def _made(event: Event) -> str:
    for summary in event.outputs:
        if summary.offending:
            return number(summary.offending[_worst(event)])
        if summary.nan or summary.infinite:
            return "NaN" if summary.nan else "infinity"
    return "a value that is not finite"


def reason(event: Event, spec: RunSpec) -> str:
    """Return why an event of a run happens, in a sentence; empty where there is nothing to add."""
    function, name = event.source.function if event.source else "", short_name(event)
    largest = LARGEST[spec.dtype]
    if (function, name) == ("exponential_sigmoid_gradient", "exp"):
        edge = number(math.log(largest))
        return f"The sigmoid's derivative is written e^-z p p, and e^-z is infinite in {spec.dtype} where -z > {edge}."
    if (function, name) == ("exponential_sigmoid_gradient", "mul"):
        return "p is 0 there, and infinity times 0 is NaN; times the upstream's 0 it stays NaN."
    if function == "binary_cross_entropy_naive" and name == "log":
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
    return f"The squared gradient has underflown: {spec.dtype} has nothing between 0 and {number(tiny)}{eps}."
