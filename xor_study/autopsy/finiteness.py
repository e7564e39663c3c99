"""Whether a tensor is finite: a cheap test for every operation, and an exact one where the cheap test fails."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

# Half-precision sums of finite elements overflow easily, so they are taken in float32.
_SUM_AS = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
_sum = torch.sum


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
    dtype = _SUM_AS.get(tensor.dtype)
    if dtype is None:
        return not tensor.dtype.is_floating_point
    try:
        total = _sum(tensor, dtype=dtype).item()
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
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_quantized:
        return None
    try:
        tensor = tensor.detach()
        if tensor.is_nested:
            parts = [values_of(part) for part in tensor.unbind()]
            return torch.cat([part.flatten() for part in parts if part is not None])
        tensor = _dense(tensor)
        if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, list, tuple or dict, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


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

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} = {self.minimum if self.minimum is not None else self.offending[0]:.6g}"
        text = f"{self.name}: {self.dtype} {list(self.shape)}"
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
    finite = values[torch.isfinite(values)]
    low, high = (bound.item() for bound in torch.aminmax(finite)) if finite.numel() else (None, None)
    return Summary(
        name,
        dtype,
        shape,
        low,
        high,
        nan=int(torch.isnan(values).sum()),
        infinite=int(torch.isinf(values).sum()),
        zero=int((finite == 0).sum()),
        offending=tuple(values.flatten()[indices].tolist()) if indices is not None else (),
    )


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
    bad = torch.nonzero(~torch.isfinite(values.flatten()), as_tuple=True)[0]
    return bad[:limit] if bad.numel() else None


def overlap(source: Tensor, result: Tensor) -> bool:
    """Return whether `source` (broadcast) and `result` have a common non-finite position; True if unknown."""
    try:
        return bool((~torch.isfinite(source.detach().expand_as(result)) & ~torch.isfinite(result.detach())).any())
    except (RuntimeError, NotImplementedError):
        return True


def swallowed(source: Tensor, result: Tensor) -> bool:
    """Return whether `result` is finite at a position where `source` (broadcast) is not; False if unknown."""
    try:
        return bool((~torch.isfinite(source.detach().expand_as(result)) & torch.isfinite(result.detach())).any())
    except (RuntimeError, NotImplementedError):
        return False
