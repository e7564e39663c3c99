"""Numbers in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def number(value: float) -> str:
    """Return a number with four digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{value + 0.0:.4g}"  # no -0


def each(what: str, values: Tensor, names: Sequence[str], verb: bool = True) -> str:
    """Return what the corners' values are: once where all say the same, else one by one.

    Args:
        what: the value's name.
        values: one for each of `names`.
        names: of the corners.
        verb: whether a verb is to stand between the name and the numbers.
    """
    shown = [number(float(value)) for value in values]
    if len(set(shown)) == 1:
        return f"every {what} is {shown[0]}" if verb else f"{what} {shown[0]}"
    listed = ", ".join(f"{value} at {name}" for name, value in zip(names, shown, strict=True))
    return f"{what} is {listed}" if verb else f"{what} {listed}"
