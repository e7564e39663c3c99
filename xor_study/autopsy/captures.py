"""What an operation at fault was called with, kept for `Event.reproduce`, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from xor_study.autopsy.finiteness import nonfinite_indices, tensors_in
from xor_study.autopsy.operations import Execution, Operation
from xor_study.autopsy.report import Report

EVENT_BYTES = 4 * 2**20
"""What an event keeps at most; an operation that works element by element needs a few elements only."""

ALL_BYTES = 16 * EVENT_BYTES
"""What all events and candidates keep at most."""

EVENTS = 10
"""The number of confirmed events after which nothing more is kept."""

_WHOLE = 2**14
"""Bytes of the largest tensor of a product or softmax that is kept whole."""

_ELEMENTS = 8
_CHUNK = 2**16
# The result is `self` plus something. If it is not finite with 0 in place of `self`, then whatever `self` was.
_ADDING = ("add_", "addcdiv_", "addcmul_", "sub_", "_foreach_add_", "_foreach_addcdiv_", "_foreach_addcmul_")
_WRITABLE = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(eq=False)
class Capture:
    """A call that can be made again.

    Attributes:
        operation: its name under `torch.ops`, such as "aten.log.default".
        args, kwargs: as it was called, with copies on the CPU in place of tensors.
        names: by id of a copy, the argument it is.
        written: the copies that it writes without returning them.
        elements: the number of the result's elements that the kept inputs give, and of all; None where all are kept.
        unknown: the arguments whose values from before it overwrote them are not known; zeros stand for them.
        random: whether it draws random numbers.
        nbytes: of the copies.
    """

    operation: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: dict[int, str]
    written: list[Tensor]
    elements: tuple[int, int] | None
    unknown: list[str]
    random: bool
    nbytes: int

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """The copies, with the names of their arguments."""
        seen: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors_in([*self.args, *self.kwargs.values()])}
        return [(self.names[key], tensor) for key, tensor in seen.items()]


class NotKeptError(ValueError):
    """Why a call can't be kept; the message says so."""


class Captures:
    """Keeps calls, in bounds that hold for all of them together.

    Args:
        report: whose events they belong to.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._kept: WeakSet[Capture] = WeakSet()

    def take(self, execution: Execution, result: Tensor | None, indices: Tensor | None) -> Capture | str:
        """Return a call, or why it can't be kept.

        Args:
            execution: the operation, which has just run, as `only_item` gives it.
            result: its first result that is not finite.
            indices: of its elements, as `culprits` gives them.
        """
        try:
            if len(self._report.events) >= EVENTS:
                raise NotKeptError(f"only the first {EVENTS} events keep their inputs")
            room = ALL_BYTES - sum(capture.nbytes for capture in self._kept)
            capture = _capture(execution, result, indices, min(EVENT_BYTES, room))
        except NotKeptError as reason:
            return str(reason)
        except Exception as error:  # a tensor of some unusual kind: that must not end the program that is watched
            return f"its inputs could not be kept ({error})"
        self._kept.add(capture)
        return capture


def only_item(execution: Execution, index: int) -> Execution:
    """Return an execution; of an operation on lists, only what belongs to one result."""
    if not execution.operation.short.startswith(("_foreach_", "_fused_")):
        return execution
    args = tuple(_item(value, index) for value in execution.args)
    return execution._replace(args=args, kwargs={name: _item(value, index) for name, value in execution.kwargs.items()})


def _item(value: Any, index: int) -> Any:
    return [value[index]] if isinstance(value, list | tuple) and index < len(value) else value


def culprits(execution: Execution, result: Tensor) -> Tensor | None:
    """Return flat indices of elements that are not finite, shape (n,), n at most 8; None if unknown.

    Of an operation that works element by element, they are of elements that it made inf or NaN itself, if there are.

    Args:
        execution: the operation, as `only_item` gives it.
        result: that is not finite.
    """
    plain = result.dim() and result.layout == torch.strided and result.itemsize > 1 and type(result) is Tensor
    if plain and _is_elementwise(execution.operation):
        read = [_before(execution, tensor) for tensor in _given(execution)]
        known = [tensor for tensor in read if tensor is not None and tensor.is_floating_point()]
        if all(_fits(tensor, result.shape) for tensor in known):
            return made_at(result.detach(), known)
    return nonfinite_indices(result, _ELEMENTS)


def _is_elementwise(operation: Operation) -> bool:
    return operation.pointwise or operation.short.startswith("_foreach_")


def _given(execution: Execution) -> list[Tensor]:
    return list(tensors_in([*execution.args, *execution.kwargs.values()]))


def _before(execution: Execution, tensor: Tensor) -> Tensor | None:
    """Return a tensor as it was before the operation; None if that is not known."""
    old = execution.before.get(id(tensor))
    if old is None and id(tensor) not in execution.written_ids():
        return tensor
    return old if isinstance(old, Tensor) else None


def _capture(execution: Execution, result: Tensor | None, indices: Tensor | None, room: int) -> Capture:
    """Return a call.

    Raises:
        NotKeptError: if it can't be kept.
    """
    operation = execution.operation
    if not hasattr(execution.func, "_schema"):
        raise NotKeptError(f"{operation.name} is a higher-order operator: it was called with Python functions")
    args, kwargs = execution.args, execution.kwargs
    copies = _Copies(execution, result, indices, room)
    new_args = tuple(copies.of(name, value) for name, value in operation.named(args, {}))
    new_kwargs = {name: copies.of(name, value) for name, value in kwargs.items()}
    written = [] if operation.returns_written else operation.written_ids(args, kwargs)
    return Capture(
        operation=operation.name,
        args=new_args,
        kwargs=new_kwargs,
        names=copies.names,
        written=[copies.made[key] for key in written],
        elements=(copies.kept, result.numel()) if copies.kept and result is not None else None,
        unknown=copies.unknown,
        random=torch.Tag.nondeterministic_seeded in execution.func.tags,
        nbytes=room - copies.room,
    )


@dataclass
class _Copies:
    """Copies of the tensors that an operation was called with.

    Args:
        execution: the operation.
        result: its first result that is not finite.
        indices: of its elements, as `culprits` gives them.
        room: the number of bytes that the copies may take.

    Attributes:
        made: by id of the original, the copy.
        names: by id of the copy, the argument's name.
        unknown: as in `Capture`.
        positions: of an operation that works element by element, flat indices of the result's elements that are kept,
            shape (n,); else None.
        parts: of a large product of matrices or softmax, by id of the original, the part that is kept.
        kept: the number of the result's elements that the kept inputs give; 0 where all are kept.
    """

    execution: Execution
    result: Tensor | None
    indices: Tensor | None
    room: int
    made: dict[int, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    positions: Tensor | None = None
    parts: dict[int, Tensor] = field(default_factory=dict)
    kept: int = 0

    def __post_init__(self) -> None:
        result, operation = self.result, self.execution.operation
        if result is None or not result.dim() or result.layout != torch.strided:
            return
        if _is_elementwise(operation) and all(_fits(tensor, result.shape) for tensor in _given(self.execution)):
            self.positions = self.indices
            self.kept = 0 if self.positions is None else len(self.positions)
        elif operation.short in _IN_PARTS and not operation.written and _is_large([*self.execution.args, result]):
            self.parts, self.kept = _IN_PARTS[operation.short](self.execution.args, result.detach())

    def of(self, name: str, value: Any) -> Any:
        """Return an argument with copies of its tensors.

        Raises:
            NotKeptError: if it can't be kept.
        """
        if isinstance(value, Tensor):
            return self._tensor(name, value)
        if isinstance(value, list | tuple):
            return [self.of(f"{name}[{i}]", item) for i, item in enumerate(value)]
        if value is None or isinstance(value, _WRITABLE):
            return torch.device("cpu") if isinstance(value, torch.device) else value
        raise NotKeptError(f"its argument {name} is a {type(value).__name__}, which a script can't hold")

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.made:
            plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
            if not plain or tensor.is_quantized or tensor.is_meta:
                raise NotKeptError(f"its argument {name} is no plain dense tensor")
            copy = self.made[id(tensor)] = self._copy(name, tensor)
            self.names[id(copy)] = name
        return self.made[id(tensor)]

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        old = _before(self.execution, tensor)
        chosen = self._chosen(tensor if old is None else old)
        self.room -= chosen.nbytes
        if self.room < 0:
            limits = f"{EVENT_BYTES // 2**20} MiB for an event and {ALL_BYTES // 2**20} MiB for all"
            raise NotKeptError(f"its inputs are too large: at most {limits} are kept")
        if old is None:
            self._replace_by_zeros(name)
            return torch.zeros_like(chosen, device="cpu")
        return chosen.detach().to("cpu", copy=True).resolve_conj().resolve_neg()

    def _chosen(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self.parts:
            return self.parts[id(tensor)]
        # A tensor of no dimensions stays one: it takes no part in the promotion of dtypes.
        if self.positions is None or self.result is None or not tensor.dim():
            return tensor
        index = torch.unravel_index(self.positions.to(tensor.device), self.result.shape)
        return tensor.detach().expand(self.result.shape)[index]

    def _replace_by_zeros(self, name: str) -> None:
        operation: Operation = self.execution.operation
        if name.partition("[")[0] in operation.updated:
            if operation.short not in _ADDING:
                raise NotKeptError(f"{operation.name} has overwritten {name}, and the values from before are not kept")
            self.unknown.append(name)


def _is_large(values: Sequence[Any]) -> bool:
    return any(tensor.nbytes > _WHOLE for tensor in tensors_in(list(values)))


def _product_parts(args: tuple[Any, ...], result: Tensor) -> tuple[dict[int, Tensor], int]:
    """Return one row and one column of a product of matrices, with one element of what is added, and 1.

    Args:
        args: the matrices, shape (..., n, k) and (..., k, m), perhaps after what is added to their product.
        result: shape (..., n, m).
    """
    if args[-2] is args[-1]:  # it can't be a row and a column
        return {}, 0
    left, right = (argument.detach() for argument in args[-2:])
    # A row or column is finite if its bounds are.
    bounds = [left.amin(-1, True), left.amax(-1, True), right.amin(-2, True), right.amax(-2, True)]
    made = made_at(result, bounds)
    if made is None:
        return {}, 0
    *batch, row, column = [slice(int(index), int(index) + 1) for index in torch.unravel_index(made[0], result.shape)]
    parts = {id(args[-2]): left[(*batch, row)], id(args[-1]): right[(*batch, slice(None), column)]}
    if len(args) == 3:
        parts[id(args[0])] = args[0].detach().expand(result.shape)[(*batch, row, column)]
    return parts, 1


def _softmax_parts(args: tuple[Any, ...], result: Tensor) -> tuple[dict[int, Tensor], int]:
    """Return the first row of a softmax that is not finite, and its length.

    Args:
        args: the scores, of any shape, and the dimension of the softmax.
        result: of the same shape.
    """
    made = made_at(result, [])
    if made is None:
        return {}, 0
    row = [slice(int(index), int(index) + 1) for index in torch.unravel_index(made[0], result.shape)]
    row[args[1]] = slice(None)
    part = args[0].detach()[tuple(row)]
    return {id(args[0]): part}, part.numel()


_IN_PARTS = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product_parts),
    **dict.fromkeys(("_softmax", "_log_softmax"), _softmax_parts),
}


def _fits(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a tensor can be broadcast to a shape."""
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    return tensor.dim() <= len(shape) and all(size in (1, wanted) for size, wanted in sizes)


def made_at(result: Tensor, inputs: list[Tensor]) -> Tensor | None:
    """Return flat indices of elements that an element-by-element operation made inf or NaN, shape (n,), n at most 8.

    Elements that were not finite before count only if there are no others.

    Args:
        result: of any shape.
        inputs: that can be broadcast to that shape.
    """
    flat = result.flatten()  # a view where the result is contiguous
    first: Tensor | None = None
    made: list[Tensor] = []
    for start in range(0, flat.numel(), _CHUNK):
        bad = torch.nonzero(~torch.isfinite(flat[start : start + _CHUNK]), as_tuple=True)[0] + start
        if not len(bad):
            continue
        first = bad[:_ELEMENTS] if first is None else first
        # Mostly the first few are enough.
        for some in (bad[:_ELEMENTS], bad[_ELEMENTS:]):
            made.append(some[_newly_bad(flat[some], some, result.shape, inputs)])
            if sum(map(len, made)) >= _ELEMENTS:
                return torch.cat(made)[:_ELEMENTS]
    return torch.cat(made) if any(map(len, made)) else first


def _newly_bad(values: Tensor, indices: Tensor, shape: torch.Size, inputs: list[Tensor]) -> Tensor:
    """Return which elements that are not finite are worse than what was read there, shape (n,).

    Args:
        values: the elements, shape (n,).
        indices: their flat indices, shape (n,).
        shape: of the result.
        inputs: that can be broadcast to that shape.
    """
    index = torch.unravel_index(indices, shape)
    given = [tensor.detach().expand(shape)[index] for tensor in inputs]
    infinite, nan = torch.zeros_like(indices, dtype=torch.bool), torch.zeros_like(indices, dtype=torch.bool)
    for read in given:
        infinite |= ~torch.isfinite(read)
        nan |= torch.isnan(read)
    return ~infinite | (torch.isnan(values) & ~nan)
