"""What sort of failure an operation is: its result in float64 tells an overflow from a pole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xor_study.autopsy.finiteness import State, at_indices, nonfinite_indices, state_of, tensors_in
from xor_study.autopsy.operations import Execution

_KINDS = {State.FINITE: "overflow", State.INFINITE: "infinite", State.NAN: "NaN"}
_MOST = 2**21
"""Elements of the arguments, in all, with which an operation that can't be narrowed down is run again."""

_ERRORS = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)
"""What running an operation on other arguments may raise: some take no float64, some no nested tensor."""

_LINEAR = {
    *("sum", "mean", "cumsum", "mm", "bmm", "addmm", "baddbmm", "dot", "mv", "addmv", "addbmm", "convolution", "trace"),
    *("index_add", "scatter_add", "linear", "nansum", "_foreach_norm", "linalg_vector_norm"),
}
_PRODUCTS = {"prod", "cumprod"}


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
    try:
        args, kwargs = _narrow(execution)
        if args is None:
            return unknown
        widen = _Replace(before, lambda tensor: tensor.to(torch.float64, copy=True), torch.float64)
        out = execution.func(*widen(args), **widen(kwargs))
        # If it was float64 already, or read integers, nothing has been tested.
        if all(tensor.dtype == torch.float64 for tensor in widen.replaced):
            return unknown
        results = operation.results(widen(args), widen(kwargs), out)
        return _KINDS[max(map(state_of, results), default=State.FINITE)]
    except _ERRORS:
        return unknown


def without_bad_inputs(execution: Execution) -> Tensor | None:
    """Return what a sum or product gives without what is not finite in its inputs; None for other operations."""
    operation = execution.operation
    neutral = 0.0 if operation.short in _LINEAR else 1.0 if operation.short in _PRODUCTS else None
    if neutral is None or operation.written or not _is_small(execution.args):
        return None
    keep = _Replace({}, lambda tensor: tensor.detach().masked_fill(~torch.isfinite(tensor.detach()), neutral))
    try:
        out = execution.func(*keep(execution.args), **keep(execution.kwargs))
    except _ERRORS:
        return None
    return out if isinstance(out, Tensor) else None


def _is_small(value: Any) -> bool:
    return sum(tensor.numel() for tensor in tensors_in(value)) <= _MOST


def _narrow(execution: Execution) -> tuple[Any, dict[str, Any]] | tuple[None, dict[str, Any]]:
    """Return arguments that give the first bad elements alone, or all if they are small; (None, {}) if they are not."""
    args, kwargs = execution.args, execution.kwargs
    if _is_small([args, kwargs]):
        return args, kwargs
    bad = next((tensor for tensor in execution.results() if state_of(tensor) > State.FINITE), None)
    indices = nonfinite_indices(bad) if bad is not None else None
    if bad is None or indices is None or execution.before:
        return None, {}
    if execution.operation.pointwise:
        shape = bad.shape

        def pick(value: Any) -> Any:
            return at_indices(value, shape, indices) if isinstance(value, Tensor) else value

        return tuple(map(pick, args)), {key: pick(value) for key, value in kwargs.items()}
    slices = _PRODUCT_SLICES.get(execution.operation.short)
    if slices is None:
        return None, {}
    return slices(args, [int(index) for index in torch.unravel_index(indices[0], bad.shape)]), kwargs


def _rows(left: Tensor, right: Tensor, place: list[int]) -> tuple[Tensor, Tensor]:
    """Return the parts of two matrices, or batches of them, whose product is one element."""
    *batch, row, column = (slice(index, index + 1) for index in place)
    return left[(*batch, row)], right[(*batch, slice(None), column)]


_PRODUCT_SLICES: dict[str, Callable[[Any, list[int]], tuple[Any, ...]]] = {
    "mm": lambda args, place: _rows(args[0], args[1], place),
    "bmm": lambda args, place: _rows(args[0], args[1], place),
    "addmm": lambda args, place: (_one(args[0], args, place), *_rows(args[1], args[2], place)),
    "baddbmm": lambda args, place: (_one(args[0], args, place), *_rows(args[1], args[2], place)),
}


def _one(added: Tensor, args: Any, place: list[int]) -> Tensor:
    """Return the element of a bias, broadcast to the product's shape, at a place, with all its dimensions."""
    whole = added.expand(*args[1].shape[:-1], args[2].shape[-1])
    return whole[tuple(slice(index, index + 1) for index in place)]


class _Replace:
    """Replaces floating-point tensors by others, overwritten ones by what their copies give, and dtypes by one.

    Args:
        before: by id, copies of the tensors that the operation overwrote.
        change: gives the tensor to use instead of one; it must be a new one.
        dtype: to use instead of floating-point dtypes; None keeps them.
    """

    def __init__(
        self,
        before: Mapping[int, Tensor | State],
        change: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._before = before
        self._change = change
        self._dtype = dtype
        self._changed: dict[int, Tensor] = {}
        self.replaced: list[Tensor] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return self._tensor(value)
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return self._dtype or value
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        # One copy for each tensor: an argument that is given twice stays one, and a written one is found again.
        if id(tensor) not in self._changed:
            old = self._before.get(id(tensor), tensor)
            self._changed[id(tensor)] = self._change(old if isinstance(old, Tensor) else tensor)
            self.replaced.append(tensor)
        return self._changed[id(tensor)]
