"""What sort of failure an operation is: its result in float64 tells an overflow from a pole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xor_study.autopsy.finiteness import State, state_of
from xor_study.autopsy.operations import Execution

_KINDS = {State.FINITE: "overflow", State.INFINITE: "infinite", State.NAN: "NaN"}


def kind(execution: Execution, worst: State) -> str:
    """Return `Event.kind` of an operation, by running it again in float64 on copies.

    Args:
        execution: the operation.
        worst: the worst state of its results.
    """
    operation, before = execution.operation, execution.before
    # Without the old values of what it has overwritten, an operation can't run again.
    unknown = "NaN" if worst == State.NAN else "unknown"
    if not operation.repeatable or any(isinstance(old, State) for old in before.values()):
        return unknown
    if operation.written and not before:
        return unknown
    widen = _Widen(before)
    try:
        out = execution.func(*widen(execution.args), **widen(execution.kwargs))
    except (RuntimeError, NotImplementedError, TypeError):  # some operations take no float64
        return unknown
    if not widen.widened:  # it was float64 already, or read integers: nothing has been tested
        return unknown
    results = operation.results(widen(execution.args), widen(execution.kwargs), out)
    return _KINDS[max(map(state_of, results), default=State.FINITE)]


class _Widen:
    """Replaces floating-point tensors and dtypes by float64, and overwritten tensors by their copies."""

    def __init__(self, before: Mapping[int, Tensor | State]) -> None:
        self._before = before
        self._widened: dict[int, Tensor] = {}
        self.widened = False

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return self._tensor(value)
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        # One copy for each tensor: an argument that is given twice stays one, and a written one is found again.
        if id(tensor) not in self._widened:
            old = self._before.get(id(tensor), tensor)
            source = old if isinstance(old, Tensor) else tensor
            self._widened[id(tensor)] = source.to(torch.float64, copy=True)
            self.widened |= tensor.dtype != torch.float64
        return self._widened[id(tensor)]
