"""Checks that are read together: where reading a number stalls an accelerator, many are read at once."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy import sources
from xor_study.autopsy.events import Call, Context, Contexts, Evidence, Operand
from xor_study.autopsy.finiteness import State, Summary, tensors_in, values_of, worse
from xor_study.autopsy.operations import Execution, Operation, worst_number
from xor_study.autopsy.sites import graph_task
from xor_study.autopsy.storage import covers_storage, reference_to, storage_key
from xor_study.autopsy.taint import Verdicts
from xor_study.autopsy.widening import without_bad_inputs

_COMPARED = "compared"
_MOST = 2000
"""Records that are kept before their checks are read."""


class Bounds(NamedTuple):
    """The smallest and the largest element of a tensor; both NaN if one is."""

    low: float
    high: float

    @property
    def state(self) -> State:
        """The worst state of the elements."""
        if math.isnan(self.low):
            return State.NAN
        return State.INFINITE if math.isinf(self.low) or math.isinf(self.high) else State.FINITE


_UNCHECKED = Bounds(0.0, 0.0)


class Read(NamedTuple):
    """The bounds that were read together.

    Attributes:
        first: number of the first check.
        bounds: of this check and the following ones.
    """

    first: int
    bounds: list[Bounds]

    def of(self, check: int) -> Bounds:
        """Return the bounds of a check; of one that another thread has read before, as if it were finite."""
        return self.bounds[check - self.first] if check >= self.first else _UNCHECKED


@dataclass(eq=False)
class CheckedTensor:
    """What is kept of a tensor until its check is read: not its elements, which would hold up the memory.

    Attributes:
        name: as in `Summary`.
        dtype: as in `Summary`.
        shape: as in `Summary`.
        key, reference: as in `Operand`.
        check: index of its check; None where it has no values to check.
        whole: whether it was written and covers its storage.
        parameter: as in `Operand`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    key: int | None
    reference: StorageWeakRef | None
    check: int | None
    whole: bool = False
    parameter: bool = False

    def state(self, bounds: Read) -> State:
        """Return what its check says."""
        return bounds.of(self.check).state if self.check is not None else State.FINITE

    def summary(self, bounds: Read) -> Summary:
        """Return what its check says, in words for a report."""
        state = self.state(bounds)
        if self.check is None:
            return Summary(self.name, self.dtype, self.shape, None, None)
        if state == State.FINITE:
            return Summary(self.name, self.dtype, self.shape, *bounds.of(self.check))
        nan = state == State.NAN
        return Summary(self.name, self.dtype, self.shape, None, None, nan=int(nan), infinite=int(not nan), exact=False)


class Record(NamedTuple):
    """An operation that is still to be judged; `hidden` is the index of the check of what a mask could hide."""

    context: Context
    inputs: list[CheckedTensor]
    results: list[CheckedTensor]
    hidden: int | None


class Arrival(NamedTuple):
    """Tensors that are a loss or a gradient: `reached`, as in `Event.reached`; empty for what Python reads."""

    tensors: list[CheckedTensor]
    reached: str


class Deferred:
    """Runs operations, records each with checks of its outputs, and judges them in their order when told to.

    A storage is judged as a whole: of a tensor that covers part of it, the rest is not checked.

    Args:
        verdicts: the register of what is not finite.
        contexts: gathers what an event needs.
    """

    def __init__(self, verdicts: Verdicts, contexts: Contexts) -> None:
        self._verdicts = verdicts
        self._contexts = contexts
        self._records: list[Record | Arrival] = []
        self._checks: list[tuple[Tensor, Tensor]] = []
        self._first = 0  # number of the first of them
        self._latest: dict[int, tuple[int, StorageWeakRef]] = {}
        self._masked: dict[int, StorageWeakRef] = {}  # storages with an infinity that the code has put in

    def before(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Mapping[int, CheckedTensor]:
        """Return, by number, what is kept of the inputs: of one that it overwrites, the check of its old values."""
        with self._verdicts.lock:
            inputs = [self._checked(name, tensor, fresh=False) for name, tensor in operation.read(args, kwargs)]
            return dict(enumerate(inputs))

    def after(self, execution: Execution) -> None:
        """Record an operation that has run."""
        with self._verdicts.lock:
            operation, args, kwargs = execution[1:4]
            # Results always get a new check: a storage's last one was of its old values.
            written = execution.written_ids()
            results = [self._result(tensor, id(tensor) in written) for tensor in execution.results()]
            frame = sys._getframe(1)  # not its own: a frame that holds itself keeps its tensors alive
            stack = sources.look_at_stack(frame) if graph_task() == -1 else None
            numbers = worst_number(args, kwargs)
            context = self._contexts.of(operation, numbers, frame, stack)
            hidden = self._look_behind_mask(execution, numbers, results)
            if hidden is not None:
                self._checks.append(hidden)
            index = None if hidden is None else self._first + len(self._checks) - 1
            self._records.append(Record(context, list(execution.before.values()), results, index))
            # A number that goes to Python has made the accelerator wait in any case.
            if len(self._records) >= _MOST or operation.short == "_local_scalar_dense":
                self.flush()
                self._verdicts.sweep()
                self._verdicts.raise_news()

    def _look_behind_mask(
        self, execution: Execution, numbers: State, results: list[CheckedTensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Check what an infinity that the code has put in could hide, and follow that infinity.

        Returns:
            Bounds that are not 0 or not finite if an element went bad that was not before; None without a mask.
        """
        operation = execution.operation
        read = [tensor for _, tensor in operation.read(execution.args, execution.kwargs)]
        masked = any(storage_key(tensor) in self._masked for tensor in read)
        if numbers > State.FINITE or (masked and not operation.squashes):
            self._mark(results)
        out = execution.out
        if not masked or numbers > State.FINITE or not operation.plain or not _is_floating(out):
            return None
        if operation.pointwise:
            given = [tensor.detach().expand_as(out) for tensor in read if tensor.is_floating_point()]
            fresh = worse(*given, out.detach()).any().to(torch.float32)
            return fresh, fresh
        rest = without_bad_inputs(execution)
        return None if rest is None else torch.aminmax(rest * 0)

    def _mark(self, tensors: Iterable[CheckedTensor]) -> None:
        for tensor in tensors:
            if tensor.key is not None and tensor.reference is not None:
                self._masked[tensor.key] = tensor.reference

    def read_by_python(self, tensor: Tensor) -> None:
        """Record that Python or numpy reads a tensor's values."""
        # The check is no operation of the user's.
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            self.arrive([tensor], "")

    def compare(self, tensors: Iterable[Tensor]) -> None:
        """Record that an operation compares tensors."""
        self.arrive(tensors, _COMPARED)

    def arrive(self, tensors: Iterable[Tensor], reached: str) -> None:
        """Record that `tensors` are a loss or a gradient."""
        with self._verdicts.lock:
            checked = [self._checked(reached, tensor, fresh=False) for tensor in tensors]
            self._records.append(Arrival(checked, reached))
            if len(self._records) >= _MOST:
                self.flush()

    def constant(self, execution: Execution, frame: FrameType) -> None:
        """Note a constant that is not finite; it is judged when an operation reads it, as coming from outside."""
        if worst_number(execution.args, execution.kwargs) > State.FINITE:
            self._mark(self._checked("output", tensor, fresh=True) for tensor in tensors_in(execution.out))

    def begin_update(self, parameters: Iterable[Tensor]) -> None:
        """Do nothing: parameters are checked when they are read."""

    def flush(self) -> None:
        """Read all checks, with one synchronisation for each dtype and device, and judge the records."""
        with self._verdicts.lock, torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            records, self._records = self._records, []  # first: judging may raise
            # Storages that were finite get a new check when they are read next; the others will be in the register.
            checks, self._checks, self._latest = self._checks, [], {}
            bounds = Read(self._first, _read(checks))
            self._first += len(checks)
            for record in records:
                if isinstance(record, Arrival):
                    self._arrive(record)
                else:
                    self._judge(record, bounds)
            self._masked = {key: ref for key, ref in self._masked.items() if not ref.expired()}  # type: ignore[no-untyped-call]

    def _checked(self, name: str, tensor: Tensor, fresh: bool) -> CheckedTensor:
        """Return what is kept of a tensor, and check it if it is `fresh` or its storage has no check yet."""
        key, reference, check = storage_key(tensor), reference_to(tensor), None
        if (fresh or key not in self._latest) and (values := values_of(tensor)) is not None and values.numel():
            check = self._first + len(self._checks)
            low, high = torch.aminmax(values)
            self._checks.append((low, high))
            # The reference keeps the key from being used for another storage before the flush.
            if key is not None and reference is not None:
                self._latest[key] = check, reference
        elif key is not None and key in self._latest and not fresh:
            check = self._latest[key][0]
        dtype = str(tensor.dtype).removeprefix("torch.")
        return CheckedTensor(name, dtype, tuple(tensor.shape), key, reference, check)

    def _result(self, tensor: Tensor, written: bool) -> CheckedTensor:
        result = self._checked("output", tensor, fresh=True)
        if written:
            result.parameter = tensor.is_leaf and tensor.requires_grad
            result.whole = result.key is not None and covers_storage(tensor)
        return result

    def _arrive(self, arrival: Arrival) -> None:
        for tensor in arrival.tensors:
            value = self._verdicts.values.get(tensor.key) if tensor.key is not None else None
            if value is not None and arrival.reached == _COMPARED:
                value.compare()
            elif value is not None and arrival.reached:
                self._verdicts.reach(value, arrival.reached, hold_scaled=True)
            elif value is not None:
                value.read = True

    def _judge(self, record: Record, bounds: Read) -> None:
        context, values = record.context, self._verdicts.values
        inputs = [
            Operand(tensor.key, tensor.reference, tensor.state(bounds), floating=tensor.check is not None)
            for tensor in record.inputs
        ]
        for operand in inputs:
            if operand.key in values:  # the check may be older than what is known
                operand.state = values[operand.key].state
        results = [
            Operand(
                tensor.key,
                tensor.reference,
                tensor.state(bounds),
                overwritten=tensor.whole and tensor.key in values,
                parameter=tensor.parameter,
                floating=tensor.check is not None,
            )
            for tensor in record.results
        ]

        def evidence(origin: str) -> Evidence:
            return _evidence(record, bounds)

        known = any(operand.key in values for operand in inputs)
        if known or any(operand.state > State.FINITE for operand in inputs + results):
            hidden = record.hidden is not None and bounds.of(record.hidden) != _UNCHECKED
            self._verdicts.decide(Call(context, inputs, results, evidence, lambda: hidden))


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _evidence(record: Record, bounds: Read) -> Evidence:
    """Return what the checks say of an operation; without its tensors, its kind is a guess."""
    outputs = [tensor for tensor in record.results if tensor.state(bounds) > State.FINITE]
    kind = "overflow" if record.context.scaled else "unknown"
    if any(tensor.state(bounds) == State.NAN for tensor in outputs):
        kind = "NaN"
    inputs = tuple(tensor.summary(bounds) for tensor in record.inputs)
    return Evidence(kind, inputs, tuple(tensor.summary(bounds) for tensor in outputs[:1]))


def _read(checks: list[tuple[Tensor, Tensor]]) -> list[Bounds]:
    """Return the numbers behind the checks."""
    bounds = [_UNCHECKED] * len(checks)
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    # torch.stack takes one dtype and device; .tolist() is the only wait for the device.
    for index, (low, _) in enumerate(checks):
        groups.setdefault((low.dtype, low.device), []).append(index)
    for indices in groups.values():
        stacked = torch.stack([bound for index in indices for bound in checks[index]]).tolist()
        for position, index in enumerate(indices):
            bounds[index] = Bounds(stacked[2 * position], stacked[2 * position + 1])
    return bounds
