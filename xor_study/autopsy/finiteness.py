"""Whether a tensor is finite: a cheap test for every operation, and an exact one where the cheap test fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# Half-precision sums of finite elements overflow easily, so they are taken in float32.
_SUM_AS = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_SUMMED = {torch.float32, torch.float64, torch.complex64, torch.complex128}
_sum = torch.sum
PLAIN = {Tensor, Parameter}
"""Classes of tensors that need no closer look."""
_PIECE = 2**20
"""Elements that are looked at together where a look needs memory of its own."""


class State(IntEnum):
    """The worst element of a tensor; a larger state is worse."""

    FINITE = 0
    INFINITE = 1
    NAN = 2


def looks_finite(tensor: Tensor) -> bool:
    """Return True only if all elements are finite; False may also mean that their sum overflows or can't be taken.

    A sum with an infinite or NaN term is infinite or NaN in any order of summation, and a sum is the cheapest
    reduction.
    """
    dtype = tensor.dtype
    try:
        if dtype in _SUMMED:
            total = _sum(tensor).item()
        elif dtype in _SUM_AS:
            total = _sum(tensor, dtype=_SUM_AS[dtype]).item()
        else:
            return not dtype.is_floating_point
    except RuntimeError:  # this layout has no sum, or the tensor no values: `state_of` handles both
        return False
    # inf - inf and NaN - NaN are NaN; this form also works for a complex total, which math.isfinite refuses.
    return bool(total - total == 0)


def state_of(tensor: Tensor) -> State:
    """Return the exact state; a tensor without readable values (meta, fake, quantized) counts as finite."""
    values = values_of(tensor)
    if values is None or values.numel() == 0 or looks_finite(values):
        return State.FINITE
    low, high = (bound.item() for bound in torch.aminmax(values))
    if math.isnan(low):  # a single NaN makes both bounds NaN
        return State.NAN
    return State.INFINITE if math.isinf(low) or math.isinf(high) else State.FINITE


def values_of(tensor: Tensor) -> Tensor | None:
    """Return the real, floating-point, dense values of a tensor, of any shape, or None where none can be read."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_quantized or is_foreign(tensor):
        return None
    try:
        tensor = tensor.detach()
        if tensor.is_nested:
            parts = [values_of(part) for part in tensor.unbind()]
            return torch.cat([part.flatten() for part in parts if part is not None])
        tensor = _dense(tensor)
        if tensor.is_meta:
            return None
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        # There are no reductions for the formats of eight bits.
        return tensor.float() if tensor.dtype.itemsize == 1 else tensor
    except (RuntimeError, TypeError):
        return None


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor's values as a strided tensor; of a sparse one, those that it stores."""
    if tensor.layout == torch.strided:
        return tensor
    if tensor.layout == torch.sparse_coo:
        return tensor._values()  # values() refuses a tensor that is not coalesced
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]  # no stub
        return tensor.to_dense()
    return tensor.values()


def is_foreign(tensor: Tensor) -> bool:
    """Return whether a tensor's class handles operations itself (DTensor, FakeTensor): it may have no values here."""
    return handles_itself(type(tensor))


@cache
def handles_itself(kind: type) -> bool:
    """Return whether a class of tensors handles operations itself."""
    # Beside tensors, an operation may take others of torch's objects, such as a DeviceMesh.
    return issubclass(kind, Tensor) and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


@cache
def is_traced(kind: type) -> bool:
    """Return whether a class of tensors stands for values while torch traces: FakeTensor, FunctionalTensor."""
    return kind.__module__.startswith("torch._subclasses.")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors that torch itself handles in a tensor, list, tuple or dict, however nested."""
    if isinstance(value, Tensor):
        if not is_foreign(value):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, or those that it wraps: a DTensor's local shard, a nested tensor's values."""
    if not is_foreign(tensor):
        yield tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        for part in parts:
            if isinstance(part, Tensor):  # a DTensor's device mesh is a part, too
                yield from plain_tensors(part)


def has_numbers(tensor: Tensor) -> bool:
    """Return whether reductions of a tensor that torch itself handles can be read."""
    dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested
    return dense and tensor.is_floating_point() and tensor.numel() > 0


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors, of one shape, in parts of at most 2**20 elements, in the order of flat indices; all views."""
    shape = tensors[0].shape
    if tensors[0].numel() <= _PIECE:
        yield tensors
        return
    axis = next(i for i, size in enumerate(shape) if size > 1)
    length = max(1, shape[axis] * _PIECE // tensors[0].numel())
    for parts in zip(*(torch.split(tensor, length, axis) for tensor in tensors), strict=True):
        yield from pieces(*parts)


def numbers_in(value: Any) -> Iterator[float | complex]:
    """Yield the Python floats in a scalar, list or tuple."""
    if isinstance(value, float | complex):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)


def state_of_number(number: float | complex) -> State:
    """Return the state of a Python number."""
    if number != number:
        return State.NAN
    return State.INFINITE if number - number != 0 else State.FINITE


@dataclass(frozen=True)
class Summary:
    """What a tensor or number held.

    Attributes:
        name: the argument's name in the operation's schema, with its index where the argument is a list.
        dtype: such as "float32"; "number" for a Python scalar.
        shape: the tensor's; None for a number.
        minimum, maximum: of the finite elements; None where there are none, or where they were overwritten.
        nan, infinite, zero: the number of such elements.
        offending: the elements at the output's first non-finite positions (up to three), for an operation that works
            element by element or keeps the shape.
        exact: whether the elements were counted; if not, a count of 1 means "some".
        parameter: its name, if it is a parameter or buffer of a module, such as "Net.head.weight".
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    minimum: float | None
    maximum: float | None
    nan: int = 0
    infinite: int = 0
    zero: int = 0
    offending: tuple[float, ...] = ()
    exact: bool = True
    parameter: str | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} = {self.minimum if self.minimum is not None else self.offending[0]:.6g}"
        label = f"{self.name} = {self.parameter}" if self.parameter else self.name
        text = f"{label}: {self.dtype} {list(self.shape)}"
        if self.minimum is not None:
            text += f", from {self.minimum:.6g} to {self.maximum:.6g}"
        counts = [(self.nan, "NaN"), (self.infinite, "infinite"), (self.zero, "zero")]
        text += "".join(f", {count if self.exact else 'some'} {word}" for count, word in counts if count)
        if self.offending:
            text += " (there: " + ", ".join(f"{value:.6g}" for value in self.offending) + ")"
        return text


def summarise(name: str, tensor: Tensor, indices: Tensor | None = None) -> Summary:
    """Return what a tensor holds.

    Args:
        name: what to call it.
        tensor: of any shape, layout and dtype.
        indices: flat indices of the elements to report as `offending`.
    """
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    values = values_of(tensor)
    if values is None or values.numel() == 0:
        return Summary(name, dtype, shape, None, None)
    low, high, nan, infinite, zero = math.inf, -math.inf, 0, 0, 0
    for (part,) in pieces(values):
        finite = part[torch.isfinite(part)]
        if finite.numel():
            bounds = [bound.item() for bound in torch.aminmax(finite)]
            low, high = min(low, bounds[0]), max(high, bounds[1])
        bad = int(torch.isnan(part).sum())
        nan, infinite = nan + bad, infinite + part.numel() - finite.numel() - bad
        zero += int((finite == 0).sum())
    offending = tuple(at_indices(values, values.shape, indices).tolist()) if indices is not None else ()
    some = low <= high
    return Summary(name, dtype, shape, low if some else None, high if some else None, nan, infinite, zero, offending)


def at_indices(tensor: Tensor, shape: torch.Size, indices: Tensor) -> Tensor:
    """Return the elements of a tensor, broadcast to a shape, at flat indices: shape (len(indices),).

    Raises:
        RuntimeError: if it can't be broadcast to that shape.
    """
    whole = tensor.detach().expand(shape)
    # Of a single number, unravel_index gives no index at all.
    return whole[torch.unravel_index(indices.to(tensor.device), shape)] if shape else whole.expand(len(indices))


def summarise_number(name: str, number: float) -> Summary:
    """Return what a Python number is."""
    if state_of_number(number) == State.FINITE:
        return Summary(name, "number", None, float(number), float(number), zero=int(number == 0))
    return Summary(name, "number", None, None, None, int(number != number), int(number == number), 0, (float(number),))


def nonfinite_indices(tensor: Tensor, limit: int = 3) -> Tensor | None:
    """Return the flat indices of the first non-finite elements, shape (limit,) or shorter; None if there are none."""
    values = values_of(tensor)
    if values is None or values.shape != tensor.shape:
        return None
    offset, found, count = 0, [], 0
    for (part,) in pieces(values):
        bad = torch.nonzero(~torch.isfinite(part.flatten()), as_tuple=True)[0][:limit]
        if bad.numel():
            found.append(bad + offset)
            count += bad.numel()
        if count >= limit:
            break
        offset += part.numel()
    return torch.cat(found)[:limit] if found else None


def overlap(source: Tensor, result: Tensor) -> bool:
    """Return whether `source` (broadcast) and `result` have a common non-finite position; True if unknown."""
    return _any(lambda given, made: ~torch.isfinite(given) & ~torch.isfinite(made), True, source, result)


def swallowed(source: Tensor, result: Tensor) -> bool:
    """Return whether `result` is finite at a position where `source` (broadcast) is not; False if unknown."""
    return _any(lambda given, made: ~torch.isfinite(given) & torch.isfinite(made), False, source, result)


def newly_bad(sources: Sequence[Tensor], result: Tensor) -> bool:
    """Return whether an element of `result` is worse than those of all `sources` (broadcast) at its place.

    Worse is inf or NaN where all are finite, or NaN where none is NaN. False if unknown.
    """
    return _any(worse, False, *sources, result)


def worse(*tensors: Tensor) -> Tensor:
    """Return, by element of the last tensor, whether it is worse than those of all others, of the same shape."""
    *given, made = tensors
    bad, nan = ~torch.isfinite(made), torch.isnan(made)
    for tensor in given:
        bad &= torch.isfinite(tensor)
        nan &= ~torch.isnan(tensor)
    return bad | nan


def _any(test: Callable[..., Tensor], unknown: bool, *tensors: Tensor) -> bool:
    """Return whether `test` holds anywhere in tensors that are broadcast to the last one's shape."""
    *sources, result = tensors
    try:
        given = [source.detach().expand_as(result) for source in sources]
        return any(bool(test(*parts).any()) for parts in pieces(*given, result.detach()))
    except (RuntimeError, NotImplementedError):
        return unknown
