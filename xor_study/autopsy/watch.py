"""The dispatch mode: it sees every ATen operation of forward, backward and optimizer step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xor_study.autopsy import sources
from xor_study.autopsy.finiteness import (
    State,
    Summary,
    looks_finite,
    numbers_in,
    overlap,
    swallowed,
    places_of,
    state_of,
    state_of_number,
    summarise,
    summarise_number,
    tensors_in,
)
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.operations import Operation, describe
from xor_study.autopsy.report import Event, NonFiniteError, Report
from xor_study.autopsy.sources import Site, Source
from xor_study.autopsy.verdicts import Candidate, Value, Verdicts

_graph_task: Callable[[], int] = torch._C._current_graph_task_id
_next_sequence: Callable[[], int] = torch._C._autograd._get_sequence_nr
_ROOT_GRADIENT = torch.ops.aten.ones_like.default
_SCALING = torch.ops.aten.mul.Tensor
_UNSCALING = "_amp_foreach_non_finite_check_and_unscale_"
_SITES = 200_000
_COPIED = 2**16
_SWEEP_EVERY = 256


class Watch(TorchDispatchMode):
    """Checks what every operation gives and hands what is not finite to `Verdicts`.

    An operation costs one sum of its output. A forward operation that makes a node of autograd's graph also leaves its
    `Site` under the node's sequence number, so that an operation of the backward finds the line it belongs to.

    Args:
        report: where events are entered.
        modules: which module is running.
        allowed: names of operations that may give what they like, with or without overload.
        raising: whether to raise `NonFiniteError` at an event.
        on_loss: called with each scalar that `backward` starts from, before GradScaler's scaling.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        report: Report,
        modules: Modules,
        allowed: frozenset[str],
        raising: bool,
        on_loss: Callable[[Tensor], None],
    ) -> None:
        super().__init__()
        self.report = report
        self.verdicts = Verdicts(report)
        self.step = 1
        self.updating = False
        self.scaled = False
        self.not_finite_before: set[int] = set()
        self._modules = modules
        self._allowed = allowed
        self.raising = raising
        self._on_loss = on_loss
        self._operations: dict[Any, Operation] = {}
        self._sites: dict[int, Site] = {}
        self._sequence = _next_sequence()
        self._unscaled: Tensor | None = None
        self._root: Source | None = None
        self._examined = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, then look at what it gave."""
        kwargs = kwargs or {}
        operation = self._operations.get(func)
        if operation is None:
            operation = self._operations[func] = describe(func)
        self.report.operations += 1
        sequence = _next_sequence()
        if sequence != self._sequence:
            self._leave_site(func, args, sequence, sys._getframe(1))
        if not operation.checked:
            out = func(*args, **kwargs)
            if self.verdicts.values or operation.creates:
                self._examine_unchecked(func, operation, args, kwargs, out)
            return out
        before = {} if self.updating or not operation.updated else _copies(operation, args, kwargs)
        out = func(*args, **kwargs)
        if type(out) is Tensor and operation.plain and not self.verdicts.values:
            if looks_finite(out):
                return out
        elif not self.verdicts.values and all(map(looks_finite, _results(operation, args, kwargs, out))):
            return out
        self._examine(func, operation, args, kwargs, out, before)
        return out

    def _leave_site(self, func: Any, args: tuple[Any, ...], sequence: int, frame: FrameType) -> None:
        """Note where the node that autograd has just made was called from."""
        previous = self._sites.get(self._sequence - 1)
        if _graph_task() != -1 and (user := sources.user_frame(frame)) is None:  # a backward that is itself recorded
            site = self._sites.get(_sequence_of(torch._C._current_autograd_node()))
        else:
            user = None if torch.is_grad_enabled() else sources.applying_frame(frame)
            user = user or sources.user_frame(frame)
            site = Site(user.f_code, user.f_lasti, self._modules.current, self.report.allowing > 0) if user else None
            if func is _SCALING and sources.called_by(frame)[0]:
                self.scaled = True
                self._unscaled = args[0]
        for number in range(self._sequence, sequence - 1):  # made after the operation before this one: CopySlices, views
            if previous:
                self._sites[number] = previous
        if site:
            self._sites[sequence - 1] = site
        self._sequence = sequence
        if len(self._sites) > _SITES:
            for number in list(self._sites)[: _SITES // 2]:
                del self._sites[number]

    def _examine_unchecked(
        self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Look at an operation that makes no values out of others: constants, the root of a backward, views."""
        if func is _ROOT_GRADIENT and _graph_task() == -1:
            self._see_root(args[0], sys._getframe(2))
        elif operation.creates:
            state = max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE)
            if state != State.FINITE and not self.report.allowing:
                self._enter_constant(operation, args, kwargs, out, state, sys._getframe(2))
        elif self.verdicts.values and _accumulating():
            for value in filter(None, map(self.verdicts.value_of, tensors_in(args))):
                value.read = True
                self.verdicts.reach(value, "gradient", hold_scaled=True)
        self._raise_if_told()

    def _see_root(self, loss: Tensor, frame: FrameType) -> None:
        """Note the tensor that a backward starts from, if that is what is being done."""
        if not sources.called_by(frame)[1]:
            return
        self.updating = False
        user = sources.outer_user_frame(frame)
        self._root = sources.source_of(user) if user else None
        value = self.verdicts.value_of(loss)
        if value:
            value.read = True
            self.verdicts.reach(value, "loss", hold_scaled=True)
        if loss.numel() == 1:
            self._on_loss(self._unscaled if self._unscaled is not None and self._unscaled.numel() == 1 else loss)
        self._unscaled = None

    def _enter_constant(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, state: State, frame: FrameType
    ) -> None:
        event = self._event(operation, args, kwargs, {}, [(t, state) for t in tensors_in(out)], "constant", frame)
        candidate = self.verdicts.candidate(event, state)
        for tensor in tensors_in(out):
            self.verdicts.register(tensor, [candidate], state, made=False)

    def _examine(
        self,
        func: Any,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        before: dict[int, Tensor | State],
    ) -> None:
        """Look closely at an operation that gave something not finite, or that may have read such a thing."""
        self._examined += 1
        if self._examined % _SWEEP_EVERY == 0:
            self.sweep()
        results = [(tensor, state_of(tensor)) for tensor in _results(operation, args, kwargs, out)]
        worst = max((state for _, state in results), default=State.FINITE)
        outs = [operation.argument(name, args, kwargs) for name in operation.written if name not in operation.updated]
        unread = {id(tensor) for tensor in tensors_in(outs)}
        inputs = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if id(tensor) not in unread]
        if worst == State.FINITE and not any(map(self.verdicts.value_of, inputs)):
            self._strike_off(operation, results, args, kwargs)
            return
        frame = sys._getframe(2)
        if sources.look_at_stack(frame).printing:
            return
        if operation.short == "abs" and (value := self.verdicts.value_of(inputs[0])):  # isinf and isfinite begin so
            self.verdicts.share(value, out)
            return
        if operation.short == _UNSCALING:
            for value in filter(None, map(self.verdicts.value_of, inputs)):
                value.read = True
                self.verdicts.handle(value)
            self._raise_if_told()
            return
        self._judge(func, operation, args, kwargs, out, before, results, worst, inputs, frame)
        self._raise_if_told()

    def _judge(
        self,
        func: Any,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        before: dict[int, Tensor | State],
        results: list[tuple[Tensor, State]],
        worst: State,
        inputs: list[Tensor],
        frame: FrameType,
    ) -> None:
        """Decide whether the operation is a candidate, and hand on what its inputs came from."""
        allowed = self._is_allowed(operation)
        read = [(tensor, *self._input(tensor, before)) for tensor in inputs]
        numbers = max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE)
        given = max((state for _, state, _ in read), default=State.FINITE)
        given = max(given, numbers)
        taint: set[Candidate] = set()
        for tensor, state, value in read:
            if state == State.FINITE:
                continue
            if value is None:
                value = self._from_outside(operation, args, kwargs, before, results, tensor, state, frame)
            value.read = True
            if _accumulating():
                self.verdicts.reach(value, "gradient", hold_scaled=True)
            old = before.get(id(tensor), tensor)
            if worst > State.FINITE and _passes(operation, old, results):
                taint |= set(value.taint)
            if value.carried and not operation.discards and not allowed and _swallows(operation, old, results, frame):
                self.verdicts.carry((c for c in value.taint if c.real), operation.name, self._locate(frame)[0])
                self.verdicts.reach(value, "swallowed", only_real=True)
            if operation.short == "_local_scalar_dense" and (value.made or any(c.real for c in value.taint)):
                if any(c.real for c in value.taint) or state == State.NAN:
                    self.verdicts.reach(value, "Python number")
        makes = given == State.FINITE or (given == State.INFINITE and worst == State.NAN)
        makes = makes and worst > State.FINITE and not any(candidate.scaled for candidate in taint)
        if worst > State.FINITE and not allowed:
            if makes:
                candidate = self._candidate(func, operation, args, kwargs, before, results, worst, frame)
                taint = {earlier for earlier in taint if earlier.real} | {candidate}
            elif numbers > State.FINITE and not any(candidate.real for candidate in taint):
                event = self._event(operation, args, kwargs, before, results, "constant", frame)
                taint.add(self.verdicts.candidate(event, worst))
        if taint and not makes:
            self.verdicts.carry(taint, operation.name, self._locate(frame)[0])
        self._strike_off(operation, results, args, kwargs)
        carried = not makes and (not operation.moves or any(value and value.carried for _, _, value in read))
        for index, (tensor, state) in enumerate(results):
            if state > State.FINITE and taint:
                private = operation.private and index > 0
                value = self.verdicts.register(tensor, taint, state, made=True, carried=carried, private=private)
                if value and id(tensor) in _written(operation, args, kwargs) and tensor.is_leaf and tensor.requires_grad:
                    value.read = True
                    self.verdicts.reach(value, "parameter")

    def _input(self, tensor: Tensor, before: dict[int, Tensor | State]) -> tuple[State, Value | None]:
        """Return the state in which an operation found an input, and what is known of it."""
        value = self.verdicts.value_of(tensor)
        if id(tensor) in before:
            old = before[id(tensor)]
            return (state_of(old) if isinstance(old, Tensor) else old), value
        if self.updating and value is None and id(tensor) not in self.not_finite_before:
            return State.FINITE, None
        return state_of(tensor), value

    def _strike_off(
        self,
        operation: Operation,
        results: list[tuple[Tensor, State]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Forget what was known of the storages that an operation has overwritten."""
        written = _written(operation, args, kwargs)
        for tensor, state in results:
            if id(tensor) in written and self.verdicts.value_of(tensor):
                storage = tensor.untyped_storage()
                whole = tensor.numel() * tensor.itemsize == storage.nbytes()
                if whole or state_of(torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)) == State.FINITE:
                    self.verdicts.clear(tensor)

    def _from_outside(
        self,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: dict[int, Tensor | State],
        results: list[tuple[Tensor, State]],
        tensor: Tensor,
        state: State,
        frame: FrameType,
    ) -> Value:
        """Enter a tensor that was not finite before anything that was watched touched it."""
        event = self._event(operation, args, kwargs, before, results, "outside", frame)
        candidate = self.verdicts.candidate(event, state)
        value = self.verdicts.register(tensor, [candidate], state, made=False)
        return value or Value((candidate,), state, [], made=False)

    def _candidate(
        self,
        func: Any,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: dict[int, Tensor | State],
        results: list[tuple[Tensor, State]],
        worst: State,
        frame: FrameType,
    ) -> Candidate:
        event = self._event(operation, args, kwargs, before, results, "operation", frame)
        event.kind = _kind(func, operation, args, kwargs, before, worst)
        scaled = self.scaled and event.kind == "overflow" and (event.phase == "backward" or self._unscaled is not None)
        return self.verdicts.candidate(event, worst, scaled)

    def _event(
        self,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: dict[int, Tensor | State],
        results: list[tuple[Tensor, State]],
        origin: str,
        frame: FrameType,
    ) -> Event:
        """Gather all that is to be said of an operation."""
        stack = sources.look_at_stack(frame)
        source, forward, module = self._locate(frame)
        phase = "forward"
        if _graph_task() != -1:
            phase = "backward"
        elif stack.update or stack.scaler or (self.updating and not torch.is_grad_enabled()):
            phase = "optimizer"
        if stack.compiled or self._modules.compiled:
            self.report.note(
                "code under torch.compile ran uncompiled while it was watched: what only its fused kernels do "
                "(their rounding, their order of operations) was not seen"
            )
        bad = next((i for i, (_, state) in enumerate(results) if state > State.FINITE), None)
        places = places_of(results[bad][0]) if bad is not None else None
        shape = results[bad][0].shape if bad is not None else None
        return Event(
            operation=operation.name,
            phase=phase,
            module=module,
            source=source,
            forward=forward,
            stack=stack.sources,
            step=self.step,
            kind="unknown",
            origin=origin,
            inputs=tuple(_summaries(operation, args, kwargs, before, bad or 0, shape, places)),
            outputs=(summarise("output", results[bad][0], places),) if bad is not None else (),
        )

    def _locate(self, frame: FrameType | None) -> tuple[Source | None, Source | None, str | None]:
        """Return the culprit line, the forward line of a backward operation, and the module."""
        user = sources.user_frame(frame)
        if _graph_task() == -1:
            return (sources.source_of(user) if user else None), None, self._modules.current
        node = torch._C._current_autograd_node()
        number = _sequence_of(node)
        site = self._sites.get(number - 1 if node is not None and node.name() == "CopySlices" else number)
        forward = site.source() if site else None
        own = sources.source_of(user) if user else None
        return own or forward or self._root, forward, (site.module if site else self._modules.current)

    def _is_allowed(self, operation: Operation) -> bool:
        if self.report.allowing or operation.name in self._allowed or operation.name.rpartition(".")[0] in self._allowed:
            return True
        if _graph_task() == -1:
            return False
        site = self._sites.get(_sequence_of(torch._C._current_autograd_node()))
        return site is not None and site.allowed

    def sweep(self, final: bool = False) -> None:
        """Decide what can be decided, and raise if told to."""
        self.verdicts.sweep(final)
        self._raise_if_told()

    def check_gradients(self, gradients: list[Tensor]) -> None:
        """Confirm what has reached the gradients that an optimizer is about to use."""
        for value in filter(None, map(self.verdicts.value_of, gradients)):
            self.verdicts.reach(value, "gradient", hold_scaled=True)
        self._raise_if_told()

    def _raise_if_told(self) -> None:
        if self.raising and self.verdicts.confirmed_new:
            self.verdicts.confirmed_new = False
            raise NonFiniteError(self.report)


def _sequence_of(node: Any) -> int:
    return int(node._sequence_nr()) if node is not None else -1


def _accumulating() -> bool:
    """Return whether autograd is adding to a leaf's gradient."""
    if _graph_task() == -1:
        return False
    node = torch._C._current_autograd_node()
    return node is not None and "AccumulateGrad" in node.name()


def _copies(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Tensor | State]:
    """Return, by id, the old values of what an operation will overwrite: a copy, or only their state where it is large."""
    kept: dict[int, Tensor | State] = {}
    for name in operation.updated:
        for tensor in tensors_in(operation.argument(name, args, kwargs)):
            if tensor.is_floating_point() or tensor.is_complex():
                small = tensor.numel() <= _COPIED and tensor.layout == torch.strided and not tensor.is_meta
                kept[id(tensor)] = tensor.clone() if small else state_of(tensor)
    return kept


def _written(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    return {id(t) for name in operation.written for t in tensors_in(operation.argument(name, args, kwargs))}


def _results(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Tensor]:
    """Yield what an operation gave: its outputs, and the arguments that it wrote without returning them."""
    yield from tensors_in(out)
    if not operation.returns_written:
        for name in operation.written:
            yield from tensors_in(operation.argument(name, args, kwargs))


def _passes(operation: Operation, old: Tensor | State, results: list[tuple[Tensor, State]]) -> bool:
    """Return whether an input's values can be behind the outputs that are not finite."""
    if not operation.pointwise or not isinstance(old, Tensor):
        return True
    return any(state > State.FINITE and overlap(old, result) for result, state in results)


def _swallows(
    operation: Operation, old: Tensor | State, results: list[tuple[Tensor, State]], frame: FrameType
) -> bool:
    """Return whether arithmetic has made finite numbers of an input that is not; torch's own backward may."""
    if not results or not results[0][0].is_floating_point():
        return False
    if _graph_task() != -1 and sources.user_frame(frame) is None:
        return False
    if operation.pointwise and isinstance(old, Tensor):
        return any(swallowed(old, result) for result, _ in results)
    return all(state == State.FINITE for _, state in results)


def _kind(
    func: Any,
    operation: Operation,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    before: dict[int, Tensor | State],
    worst: State,
) -> str:
    """Return what sort of failure an operation is, by doing it again in float64 on copies."""
    unknown = "NaN" if worst == State.NAN else "unknown"
    if not operation.repeatable or any(isinstance(old, State) for old in before.values()):
        return unknown
    if operation.written and not before:
        return unknown
    widen = _Widen(before)
    try:
        again = func(*widen(args), **widen(kwargs))
    except (RuntimeError, NotImplementedError, TypeError):
        return unknown
    if not widen.widened:
        return unknown
    state = max(map(state_of, _results(operation, widen(args), widen(kwargs), again)), default=State.FINITE)
    return {State.FINITE: "overflow", State.INFINITE: "infinite", State.NAN: "NaN"}[state]


class _Widen:
    """Replaces floating-point tensors and dtypes by float64, and what was overwritten by its copy."""

    def __init__(self, before: dict[int, Tensor | State]) -> None:
        self._before = before
        self._made: dict[int, Tensor] = {}
        self.widened = False

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            if id(value) not in self._made:
                old = self._before.get(id(value), value)
                self._made[id(value)] = (old if isinstance(old, Tensor) else value).to(torch.float64, copy=True)
                self.widened |= value.dtype != torch.float64
            return self._made[id(value)]
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return value


def _summaries(
    operation: Operation,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    before: dict[int, Tensor | State],
    bad: int,
    shape: torch.Size | None,
    places: Tensor | None,
) -> Iterator[Summary]:
    """Yield what went into an operation; of a long list only the item that belongs to the first bad output."""
    overwritten = _written(operation, args, kwargs) - before.keys()
    for name, value in operation.named(args, kwargs):
        if isinstance(value, Tensor):
            tensors = [(name, value)]
        elif isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            chosen = range(len(value)) if len(value) <= 4 else [bad] if bad < len(value) else []
            tensors = [(f"{name}[{i}]", value[i]) for i in chosen if isinstance(value[i], Tensor)]
        else:
            tensors = []
            if name in operation.numbers and isinstance(value, int | float) and not isinstance(value, bool):
                yield summarise_number(name, value)
        for label, tensor in tensors:
            old = before.get(id(tensor), tensor)
            if id(tensor) in overwritten or not isinstance(old, Tensor):
                yield Summary(label, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), None, None)
            else:
                yield _summary(label, old, shape, places)


def _summary(name: str, tensor: Tensor, shape: torch.Size | None, places: Tensor | None) -> Summary:
    summary = summarise(name, tensor)
    if shape is None or places is None or not tensor.is_floating_point() or tensor.layout != torch.strided:
        return summary
    try:
        there = tensor.detach().expand(shape).flatten()[places]
    except RuntimeError:
        return summary
    return Summary(**{**summary.__dict__, "offending": tuple(map(float, there))})


def largest(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor; NaN if it holds one."""
    low, high = (bound.item() for bound in torch.aminmax(tensor))
    return math.nan if math.isnan(low) else max(-low, high)
