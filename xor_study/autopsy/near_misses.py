"""Near misses: values close to overflow, collapse into subnormal numbers, saturated activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xor_study.autopsy.finiteness import values_of
from xor_study.autopsy.operations import Operation
from xor_study.autopsy.report import NearMiss, Report
from xor_study.autopsy.sources import Source

Locate = Callable[[], tuple[Source | None, str | None]]

_ENDS = {
    "sigmoid": (0.0, 1.0),
    "sigmoid_": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "tanh_": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
}


@dataclass
class NearMisses:
    """Looks at finite outputs, at the cost of a few more reductions each.

    Args:
        report: where near misses are entered, one for each kind, operation and line.
        factor: an element within this factor of the largest number of its format is near overflow.
        share: the least share of elements, from 0 to 1, that must be lost or saturated.
    """

    report: Report
    factor: float = 16.0
    share: float = 0.5
    _known: dict[tuple[str, str, Source | None], NearMiss] = field(default_factory=dict)

    def look(self, operation: Operation, out: Tensor, step: int, locate: Locate) -> None:
        """Look at an output, if it is finite.

        Args:
            operation: what gave it.
            out: of any shape.
            step: the present step, from 1.
            locate: returns the line and the module of the call.
        """
        values = values_of(out)
        if values is None or not values.numel():
            return
        limits = torch.finfo(values.dtype)
        size = values.abs()
        size = size.masked_fill(size == limits.max, 0)  # finfo.min in a mask is intended
        top = size.max().item()
        if not math.isfinite(top):
            return
        if top > limits.max / self.factor:
            self._note("overflow", operation, top, step, locate)
        tiny = limits.tiny
        present = int((size > 0).sum())
        if present and (lost := int(((size > 0) & (size < tiny)).sum()) / present) >= self.share:
            self._note("subnormal", operation, lost, step, locate)
        if operation.short in _ENDS:
            low, high = _ENDS[operation.short]
            ends = (values - low <= limits.eps * abs(low)) | (high - values <= limits.eps * abs(high))
            if (saturated := ends.float().mean().item()) >= self.share:
                self._note("saturated", operation, saturated, step, locate)

    def _note(self, kind: str, operation: Operation, value: float, step: int, locate: Locate) -> None:
        source, module = locate()
        miss = self._known.get((kind, operation.name, source))
        if miss is None:
            miss = self._known[kind, operation.name, source] = NearMiss(
                kind, operation.name, module, source, step, value, 0
            )
            self.report.near_misses.append(miss)
        miss.count += 1
        miss.value = max(miss.value, value)
