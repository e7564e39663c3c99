"""Checks that are read at once: after each operation, whether all that it gave is finite."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any

import torch
from torch import Tensor

from xor_study.autopsy import sources
from xor_study.autopsy.captures import Capture, Captures, culprits, only_item
from xor_study.autopsy.events import Call, Contexts, Evidence, Operand, newly_bad_elements
from xor_study.autopsy.finiteness import (
    PLAIN,
    State,
    Summary,
    at_indices,
    looks_finite,
    state_of,
    summarise,
    summarise_number,
    tensors_in,
)
from xor_study.autopsy.near_misses import NearMisses
from xor_study.autopsy.operations import Execution, Operation, worst_number
from xor_study.autopsy.report import COMPILED, Report
from xor_study.autopsy.sites import accumulating
from xor_study.autopsy.sources import Source, Stack
from xor_study.autopsy.storage import copies, covers_storage, reference_to, rest_is_finite, storage_key
from xor_study.autopsy.taint import Candidate, Value, Verdicts
from xor_study.autopsy.widening import kind, without_bad_inputs

_NO_COPIES: Mapping[int, Tensor | State] = MappingProxyType({})
_SHOWN = 3
"""Elements of each tensor in a story."""

_REPEATABLE = ("operation", "spread")
_ASKED_FOR = "the code itself asks for this value"
_FROM_OUTSIDE = "its values came in from outside: no operation that was watched has made them"
_SWEEP_EVERY = 256
_MOST_CONSTANTS = 1000
_NEVER_FOLLOWED = ("abs", "copy_", "_local_scalar_dense")


class Immediate:
    """Judges an operation before the next one runs.

    A finite output costs one sum. All else is done only where an output is not finite or some storage was not before.

    Args:
        report: where notes are entered.
        verdicts: the register of what is not finite.
        contexts: gathers what an event needs.
        near: where to note what only comes near, if that is asked for.
    """

    def __init__(self, report: Report, verdicts: Verdicts, contexts: Contexts, near: NearMisses | None) -> None:
        self._report = report
        self._verdicts = verdicts
        self._values = verdicts.values  # the same dict: the fast path looks at it after every operation
        self._contexts = contexts
        self._loop = contexts.loop
        self._near = near
        self._examined = 0
        self._constants: dict[tuple[str, Source | None] | None, Evidence] = {}
        self._captures = Captures(report)

    def before(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[int, Any]:
        """Return, by id, what an operation is going to overwrite."""
        # What an optimizer writes in place is not copied: that would double its traffic.
        if operation.updated and not self._loop.in_update:
            return copies(operation, args, kwargs)
        return _NO_COPIES

    def after(self, execution: Execution) -> None:
        """Judge an operation that has run."""
        operation, out = execution.operation, execution.out
        near = self._near
        # An optimizer's own epsilon guards what it divides by.
        if near is not None and near.watches(operation) and type(out) is Tensor and not self._loop.in_update:
            near.look(execution, self._loop, partial(self._contexts.locate, sys._getframe(1)))
        # A sum that overflows looks bad, too; `_examine` tells the difference.
        if not (self._values and self._verdicts.may_read(execution.args, execution.kwargs)):
            finite = looks_finite(out) if operation.simple and type(out) in PLAIN else None
            if all(map(looks_finite, execution.results())) if finite is None else finite:
                return
        with self._verdicts.lock:
            self._examine(execution, sys._getframe())

    def arrive(self, tensors: Iterable[Tensor], reached: str) -> None:
        """Confirm all that `tensors` come from; see `Verdicts.arrive`."""
        if self._values:
            with self._verdicts.lock:
                self._verdicts.arrive(tensors, reached)

    def compare(self, tensors: Iterable[Tensor]) -> None:
        """Note that an operation compares tensors."""
        with self._verdicts.lock:
            for value in filter(None, map(self._verdicts.of, tensors)):
                value.compare()

    def read_by_python(self, tensor: Tensor) -> None:
        """Note that Python or numpy reads a tensor's values."""
        self._verdicts.read_by_python(tensor)

    def constant(self, execution: Execution, frame: FrameType) -> None:
        """Enter the output of an operation that makes values from Python numbers, if one is not finite."""
        state = worst_number(execution.args, execution.kwargs)
        if state > State.FINITE and not self._report.allowing:
            results = [Operand(storage_key(t), reference_to(t), state, t) for t in tensors_in(execution.out)]
            self._verdicts.constant(self._call(execution, [], results, frame, sources.look_at_stack(frame)))

    def begin_update(self, parameters: Iterable[Tensor]) -> None:
        """Note which of the parameters that an optimizer is about to write for the first time are not finite."""
        strange = [parameter for parameter in parameters if not looks_finite(parameter)]
        self._loop.nonfinite_parameters |= {id(p) for p in strange if storage_key(p) not in self._values}

    def flush(self) -> None:
        """Do nothing: all has been judged."""

    def _examine(self, execution: Execution, frame: FrameType) -> None:
        """Judge an operation that gave something not finite, or that may have read such a thing."""
        # Entries for freed storages make every operation slow: they keep the fast path closed.
        self._examined += 1
        if self._examined % _SWEEP_EVERY == 0:
            self._verdicts.sweep()
            self._verdicts.raise_news()
        operation, args, kwargs, written = *execution[1:4], execution.written_ids()
        if self._follow(execution, written):
            return
        results = [self._result(tensor, id(tensor) in written) for tensor in execution.results()]
        read = [tensor for _, tensor in operation.read(args, kwargs)]
        if not any(map(self._verdicts.of, read)) and all(result.state == State.FINITE for result in results):
            for result in results:
                if result.overwritten:
                    self._verdicts.strike_off(result.key, result.repaired)
            return
        stack = sources.look_at_stack(frame)
        if stack.printing:  # printing a tensor is not reading it
            return
        inputs = [self._input(tensor, execution.before) for tensor in read]
        self._verdicts.decide(self._call(execution, inputs, results, frame, stack))
        self._verdicts.raise_news()

    def _follow(self, execution: Execution, written: set[int]) -> bool:
        """Hand on what follows from an earlier step's event, and return whether that is all there is to do.

        After an event most operations give NaN; this keeps them cheap.
        """
        # These decide something else than where NaN goes: see `Verdicts.decide` and `Verdicts._read`.
        if execution.operation.short in _NEVER_FOLLOWED or execution.operation.unscales:
            return False
        read = list(self._known(tensors_in([*execution.args, *execution.kwargs.values()])))
        taint = {candidate for _, value in read for candidate in value.taint}
        if not self._is_old(taint):
            return False
        # What has spoilt the training explains all that comes of it; less, only NaN that stays NaN.
        serious = all(cause.event.severity == 0 for cause in _causes(taint))
        if not serious and not any(_is_nan_still(tensor, value, written) for tensor, value in read):
            return False
        results = execution.results()
        spoilt = [tensor for tensor in results if not looks_finite(tensor)]
        if written & ({*map(id, results)} - {*map(id, spoilt)}):  # a storage that has become finite is to be forgotten
            return False
        # Only now: `_examine` must find the values as they were if this returns False.
        for _, value in read:
            value.read = True
        for tensor in spoilt:
            self._hand_on(tensor, taint, id(tensor) in written)
        return True

    def _known(self, tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, Value]]:
        """Yield the tensors whose storage is known not to be finite, with what is known of it."""
        for tensor in tensors:
            value = self._verdicts.of(tensor)
            if value is not None:
                yield tensor, value

    def _is_old(self, taint: set[Candidate]) -> bool:
        """Return whether all causes are events of earlier steps, so that nothing new can come of their values."""
        causes = _causes(taint)
        return bool(causes) and all(cause.settled and cause.event.step < self._loop.step for cause in causes)

    def _hand_on(self, tensor: Tensor, taint: set[Candidate], written: bool) -> None:
        value = self._verdicts.follow(Operand(storage_key(tensor), reference_to(tensor), State.NAN), taint)
        if written and tensor.is_leaf and tensor.requires_grad:
            self._verdicts.reach(value, "parameter")
        elif accumulating():
            self._verdicts.reach(value, "gradient")

    def _result(self, tensor: Tensor, written: bool) -> Operand:
        result = Operand(storage_key(tensor), reference_to(tensor), state_of(tensor), tensor)
        result.floating = tensor.is_floating_point() or tensor.is_complex()
        if written:
            result.parameter = tensor.is_leaf and tensor.requires_grad
            result.overwritten = self._verdicts.of(tensor) is not None and rest_is_finite(tensor)
            result.repaired = result.overwritten and not covers_storage(tensor)
        return result

    def _input(self, tensor: Tensor, before: Mapping[int, Tensor | State]) -> Operand:
        """Return an input as it was before the operation."""
        old = before.get(id(tensor), tensor)
        floating = tensor.is_floating_point() or tensor.is_complex()
        if isinstance(old, State):
            return Operand(storage_key(tensor), reference_to(tensor), old, floating=floating)
        known = self._verdicts.of(tensor) is not None or id(tensor) in self._loop.nonfinite_parameters
        # An optimizer writes in place, and all that it reads has been checked before.
        state = State.FINITE if self._loop.in_update and not known else state_of(old)
        return Operand(storage_key(tensor), reference_to(tensor), state, old, floating=floating)

    def _call(
        self, execution: Execution, inputs: list[Operand], results: list[Operand], frame: FrameType, stack: Stack
    ) -> Call:
        def evidence(origin: str) -> Evidence:
            if stack.compiled:
                self._report.note(COMPILED)
            # A mask comes back in each layer and step, and is looked at closely only once.
            key = (execution.operation.name, context.line) if origin == "constant" else None
            if key in self._constants:
                return self._constants[key]
            found = self._named(_evidence(execution, results, origin, self._captures), execution)
            if key and len(self._constants) < _MOST_CONSTANTS:
                self._constants[key] = found
            return found

        def unexplained() -> bool:
            if execution.operation.pointwise:
                return newly_bad_elements(inputs, results)
            out = without_bad_inputs(execution)
            return out is not None and state_of(out) > State.FINITE

        numbers = worst_number(execution.args, execution.kwargs)
        context = self._contexts.of(execution.operation, numbers, frame, stack, stack.sources)
        return Call(context, inputs, results, evidence, unexplained)

    def _named(self, evidence: Evidence, execution: Execution) -> Evidence:
        """Return evidence whose inputs carry the names of parameters."""
        names = dict(execution.operation.read(execution.args, execution.kwargs))
        inputs = tuple(
            replace(summary, parameter=self._contexts.parameter_name(names[summary.name]))
            if summary.name in names
            else summary
            for summary in evidence.inputs
        )
        return evidence._replace(inputs=inputs)


def _causes(taint: set[Candidate]) -> list[Candidate]:
    """Return the candidates without constants, such as masks, that had no effect."""
    return [candidate for candidate in taint if candidate.real or candidate.event.reached]


def _is_nan_still(tensor: Tensor, value: Value, written: set[int]) -> bool:
    """Return whether a tensor of a storage known to hold NaN holds it itself; what was overwritten held it before."""
    return value.state == State.NAN and (id(tensor) in written or not looks_finite(tensor))


def _evidence(execution: Execution, results: list[Operand], origin: str, captures: Captures) -> Evidence:
    """Return what the values of an operation say, and what it takes to repeat it."""
    worst = max((result.state for result in results), default=State.FINITE)
    sort = kind(execution, worst) if origin == "operation" else "unknown"
    node: Any = torch._C._current_autograd_node()
    name = node.name() if node is not None else None
    capture: Capture | str = _ASKED_FOR if origin == "constant" else _FROM_OUTSIDE
    for index, result in enumerate(results):
        if result.state > State.FINITE and result.tensor is not None:
            item = only_item(execution, index)
            indices = culprits(item, result.tensor)
            if origin in _REPEATABLE:
                capture = captures.take(item, result.tensor, indices)
            first = indices[:_SHOWN] if indices is not None else None
            inputs = _summaries(execution, index, result.tensor.shape, first)
            return Evidence(sort, tuple(inputs), (summarise("output", result.tensor, first),), name, capture)
    return Evidence(sort, tuple(_summaries(execution, 0, None, None)), (), name, capture)


def _summaries(execution: Execution, index: int, shape: torch.Size | None, indices: Tensor | None) -> Iterator[Summary]:
    """Yield what went into an operation.

    Args:
        execution: the operation.
        index: which result is the first that is not finite.
        shape: of that result.
        indices: flat indices of its elements that are not finite.
    """
    operation, args, kwargs, before = execution.operation, execution.args, execution.kwargs, execution.before
    overwritten = execution.written_ids() - before.keys()
    for name, value in operation.named(args, kwargs):
        if name in operation.numbers and isinstance(value, int | float) and not isinstance(value, bool):
            yield summarise_number(name, value)
        for label, tensor in _chosen(operation, name, value, index):
            old = before.get(id(tensor), tensor)
            if id(tensor) in overwritten or not isinstance(old, Tensor):
                yield Summary(label, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), None, None)
            else:
                yield _summary(label, old, shape, indices)


def _chosen(operation: Operation, name: str, value: Any, index: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an argument that are worth a summary, with their names; of a long list only some."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple) and value:
        # Item i of each list of these operations belongs to output i.
        alike = operation.short.startswith(("_foreach_", "_fused_"))
        for i in [index % len(value)] if alike else range(min(len(value), 4)):
            if isinstance(value[i], Tensor):
                yield f"{name}[{i}]", value[i]


def _summary(name: str, tensor: Tensor, shape: torch.Size | None, indices: Tensor | None) -> Summary:
    """Return what an input held, with its elements (broadcast to the result's shape) at some flat indices."""
    summary = summarise(name, tensor)
    if shape is None or indices is None or not tensor.is_floating_point() or tensor.layout != torch.strided:
        return summary
    try:
        offending = at_indices(tensor, shape, indices)
    except RuntimeError:  # not element by element
        return summary
    return replace(summary, offending=tuple(map(float, offending)))
