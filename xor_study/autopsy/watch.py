"""The dispatch mode: it sees every ATen operation of forward, backward and optimizer step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from xor_study.autopsy import sources
from xor_study.autopsy.deferred import SIZE, Batch, Part, Record
from xor_study.autopsy.finiteness import (
    State,
    Summary,
    looks_finite,
    numbers_in,
    places_of,
    state_of,
    state_of_number,
    summarise,
    summarise_number,
    tensors_in,
)
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.near_misses import NearMisses
from xor_study.autopsy.operations import Operation, describe
from xor_study.autopsy.report import Event, NonFiniteError, Report
from xor_study.autopsy.sources import Site, Source, Stack
from xor_study.autopsy.taint import Call, Candidate, Operand, Value, Verdicts

_graph_task: Callable[[], int] = torch._C._current_graph_task_id
_next_sequence: Callable[[], int] = torch._C._autograd._get_sequence_nr
_ROOT_GRADIENT = torch.ops.aten.ones_like.default
_SCALING = torch.ops.aten.mul.Tensor
COMPILED = (
    "code under torch.compile ran uncompiled while it was watched: what only its fused kernels do (their rounding, "
    "their order of operations) was not seen"
)
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
        batched: read the checks together, at the end of a step or after many operations, instead of each at once.
        near: where to note what only comes near.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        report: Report,
        modules: Modules,
        allowed: frozenset[str],
        raising: bool,
        on_loss: Callable[[Tensor], None],
        batched: bool = False,
        near: NearMisses | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.report = report
        self.verdicts = Verdicts(report)
        self.step = 1
        self.updating = False
        self.scaled = False
        self.idle = False
        self.on_scale_update: Callable[[], None] | None = None
        self._near = near
        self.not_finite_before: set[int] = set()
        self._modules = modules
        self._allowed = allowed
        self.raising = raising
        self._on_loss = on_loss
        self._operations: dict[Any, Operation] = {}
        self._sites: dict[int, Site] = {}
        self._sequence = _next_sequence()
        self.batch = Batch(self.verdicts) if batched else None
        self._unscaled: Tensor | None = None
        self._root: Source | None = None
        self._examined = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, then look at what it gave."""
        kwargs = kwargs or {}
        if self.idle:
            return func(*args, **kwargs)
        operation = self._operations.get(func)
        if operation is None:
            operation = self._operations[func] = describe(func)
        self.report.operations += 1
        sequence = _next_sequence()
        if sequence != self._sequence:
            self._leave_site(func, args, sequence, sys._getframe(1))
        if not operation.checked:
            out = func(*args, **kwargs)
            if self.verdicts.values or operation.creates or self.batch is not None:
                self._examine_unchecked(func, operation, args, kwargs, out)
            return out
        if self.batch is not None:
            return self._run_batched(func, operation, args, kwargs, sys._getframe(1))
        before = {} if self.updating or not operation.updated else _copies(operation, args, kwargs)
        out = func(*args, **kwargs)
        if operation.updates_scale:
            self._see_scale_update()
        if self._near is not None and type(out) is Tensor:
            self._look_nearer(operation, out, sys._getframe(1))
        if type(out) is Tensor and operation.plain and not self.verdicts.values:
            if looks_finite(out):
                return out
        elif not self.verdicts.values and all(map(looks_finite, results_of(operation, args, kwargs, out))):
            return out
        self._examine(func, operation, args, kwargs, out, before)
        return out

    def _see_scale_update(self) -> None:
        self.scaled = False
        if self.on_scale_update is not None:
            self.on_scale_update()

    def _look_nearer(self, operation: Operation, out: Tensor, frame: FrameType) -> None:
        def place() -> tuple[Source | None, str | None]:
            source, _, module = self._locate(frame)
            return source, module

        assert self._near is not None
        self._near.look(operation, out, self.step, place)

    def _run_batched(
        self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> Any:
        """Run an operation and record it with checks of its outputs, which are read later."""
        assert self.batch is not None
        if operation.updates_scale:
            self.flush()
            self._see_scale_update()
        outs = [operation.argument(name, args, kwargs) for name in operation.written if name not in operation.updated]
        unread = {id(tensor) for tensor in tensors_in(outs)}
        given = [
            self._part(f"{name}[{i}]" if isinstance(argument, list | tuple) else name, tensor, fresh=False)
            for name, argument in operation.named(args, kwargs)
            for i, tensor in enumerate(tensors_in(argument))
            if id(tensor) not in unread
        ]
        out = func(*args, **kwargs)
        written = _written(operation, args, kwargs)
        results = []
        for tensor in results_of(operation, args, kwargs, out):
            part = self._part("output", tensor, fresh=True)
            if id(tensor) in written:
                part.parameter = tensor.is_leaf and tensor.requires_grad
                part.whole = storage_key(tensor) is not None and (
                    tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()
                )
            results.append(part)
        self._record(operation, given, results, args, kwargs, frame)
        if len(self.batch.records) >= SIZE or operation.short == "_local_scalar_dense":
            self.flush()
            self.sweep()
        return out

    def _part(self, name: str, tensor: Tensor, fresh: bool) -> Part:
        assert self.batch is not None
        return self.batch.part(name, tensor, storage_key(tensor), reference_to(tensor), fresh)

    def _record(
        self,
        operation: Operation,
        given: list[Part],
        results: list[Part],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        frame: FrameType,
        place: str = "",
    ) -> None:
        assert self.batch is not None
        backward = _graph_task() != -1
        user = sources.user_frame(frame)
        own = Site(user.f_code, user.f_lasti, self._modules.current, False) if user else None
        site = self._site_of(torch._C._current_autograd_node()) if backward else None
        root = self._root

        def locate() -> tuple[Source | None, Source | None]:
            forward = site.source() if site else None
            return (own.source() if own else forward or root), forward

        self.batch.records.append(
            Record(
                operation=operation,
                inputs=given,
                results=results,
                numbers=max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE),
                allowed=self._is_allowed(operation),
                accumulating=_accumulating(),
                engine=backward and user is None,
                scaled=self.scaled and (backward or self._unscaled is not None),
                phase=self._phase(sources.look_at_stack(frame) if not backward else None),
                module=site.module if site else self._modules.current,
                step=self.step,
                locate=locate,
                place=place,
            )
        )

    def flush(self) -> None:
        """Judge what has been recorded."""
        if self.batch is not None:
            with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
                self.batch.flush()

    def _leave_site(self, func: Any, args: tuple[Any, ...], sequence: int, frame: FrameType) -> None:
        """Note where the node that autograd has just made was called from."""
        previous = self._sites.get(self._sequence - 1)
        if _graph_task() != -1 and (user := sources.user_frame(frame)) is None:  # a backward that is itself recorded
            site = self._site_of(torch._C._current_autograd_node())
        else:
            user = None if torch.is_grad_enabled() else sources.applying_frame(frame)
            user = user or sources.user_frame(frame)
            site = Site(user.f_code, user.f_lasti, self._modules.current, self.report.allowing > 0) if user else None
            if func is _SCALING and sources.called_by(frame)[0]:
                self.scaled = True
                self._unscaled = args[0]
        if previous:  # nodes that were made after the operation before this one: CopySlices, views
            self._sites.update(dict.fromkeys(range(self._sequence, sequence - 1), previous))
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
        frame = sys._getframe(2)
        if func is _ROOT_GRADIENT and _graph_task() == -1:
            self._see_root(args[0], frame)
        elif operation.creates:
            state = max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE)
            if state > State.FINITE and not self.report.allowing and self.batch is None:
                results = [Operand(storage_key(t), reference_to(t), state, t) for t in tensors_in(out)]
                self.verdicts.constant(self._call(func, operation, args, kwargs, [], results, {}, frame))
        elif self.batch is not None and _accumulating():
            given = [self._part("gradient", tensor, fresh=False) for tensor in tensors_in(args)]
            self._record(operation, given, [], (), {}, frame, place="gradient")
        elif self.verdicts.values and _accumulating():
            for value in filter(None, map(self._value_of, tensors_in(args))):
                self.verdicts.reach(value, "gradient", hold_scaled=True)
        self._raise_if_told()

    def _see_root(self, loss: Tensor, frame: FrameType) -> None:
        """Note the tensor that a backward starts from, if that is what is being done."""
        if not sources.called_by(frame)[1]:
            return
        self.updating = False
        user = sources.outer_user_frame(frame)
        self._root = sources.source_of(user) if user else None
        if self.batch is not None:
            loss_operation = Operation("loss", "loss")
            self._record(loss_operation, [self._part("loss", loss, False)], [], (), {}, frame, place="loss")
        elif value := self._value_of(loss):
            self.verdicts.reach(value, "loss", hold_scaled=True)
        if loss.numel() == 1:
            self._on_loss(self._unscaled if self._unscaled is not None and self._unscaled.numel() == 1 else loss)
        self._unscaled = None

    def _value_of(self, tensor: Tensor) -> Value | None:
        key = storage_key(tensor)
        return self.verdicts.values.get(key) if key is not None else None

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
        written = _written(operation, args, kwargs)
        if self._follow(operation, args, kwargs, out, written):
            return
        results = [self._result(tensor, id(tensor) in written) for tensor in results_of(operation, args, kwargs, out)]
        outs = [operation.argument(name, args, kwargs) for name in operation.written if name not in operation.updated]
        unread = {id(tensor) for tensor in tensors_in(outs)}
        tensors = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if id(tensor) not in unread]
        values = [value for value in map(self._value_of, tensors) if value]
        if not values and all(result.state == State.FINITE for result in results):
            for result in results:
                if result.overwritten:
                    self.verdicts.strike_off(result.key)
            return
        frame = sys._getframe(2)
        if sources.look_at_stack(frame).printing:
            return
        if operation.short == "abs" and values:  # with it isinf and isfinite begin
            self.verdicts.share(values[0], results[0])
        elif operation.unscales:
            for value in values:
                self.verdicts.handle(value)
        else:
            inputs = [self._input(tensor, before) for tensor in tensors]
            self.verdicts.judge(self._call(func, operation, args, kwargs, inputs, results, before, frame))
        self._raise_if_told()

    def _follow(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, written: set[int]
    ) -> bool:
        """Hand on NaN that is the consequence of an earlier step's event, where nothing new can come of it.

        After an event most operations give NaN; this keeps them cheap.
        """
        if operation.short == "abs" or operation.unscales or operation.short in ("copy_", "_local_scalar_dense"):
            return False
        taint: set[Candidate] = set()
        spoilt = False
        read = [(tensor, self._value_of(tensor)) for tensor in tensors_in([*args, *kwargs.values()])]
        for tensor, value in read:
            if value is not None:
                taint |= set(value.taint)
                spoilt |= value.state == State.NAN and (id(tensor) in written or not looks_finite(tensor))
        causes = [candidate for candidate in taint if candidate.real or candidate.event.reached]
        if not (spoilt and causes and all(cause.settled and cause.event.step < self.step for cause in causes)):
            return False
        results = [(tensor, looks_finite(tensor)) for tensor in results_of(operation, args, kwargs, out)]
        if any(finite and id(tensor) in written for tensor, finite in results):
            return False
        for _, value in read:
            if value is not None:
                value.read = True
        for tensor, finite in results:
            if not finite:
                operand = Operand(storage_key(tensor), reference_to(tensor), State.NAN)
                value = self.verdicts.follow(operand, taint)
                if id(tensor) in written and tensor.is_leaf and tensor.requires_grad:
                    self.verdicts.reach(value, "parameter")
                elif _accumulating():
                    self.verdicts.reach(value, "gradient")
        return True

    def _result(self, tensor: Tensor, written: bool) -> Operand:
        state = state_of(tensor)
        result = Operand(storage_key(tensor), reference_to(tensor), state, tensor)
        if written:
            result.parameter = tensor.is_leaf and tensor.requires_grad
            result.overwritten = self._value_of(tensor) is not None and _nothing_is_left(tensor)
        return result

    def _input(self, tensor: Tensor, before: dict[int, Tensor | State]) -> Operand:
        """Return an input as the operation found it."""
        known = self._value_of(tensor)
        old = before.get(id(tensor), tensor)
        if isinstance(old, State):
            return Operand(storage_key(tensor), reference_to(tensor), old)
        if self.updating and known is None and id(tensor) not in self.not_finite_before:
            state = State.FINITE  # an optimizer writes in place, and what was seen before it was finite
        else:
            state = state_of(old)
        return Operand(storage_key(tensor), reference_to(tensor), state, old)

    def _call(
        self,
        func: Any,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Operand],
        results: list[Operand],
        before: dict[int, Tensor | State],
        frame: FrameType,
    ) -> Call:
        """Return all that a verdict needs; what costs time only on demand."""
        bad = [(result.tensor, result.state) for result in results if result.tensor is not None]

        def describe(origin: str) -> Event:
            event = self._event(operation, args, kwargs, before, bad, origin, frame)
            if origin == "operation":
                event.kind = _kind(func, operation, args, kwargs, before, max(state for _, state in bad))
            return event

        backward = _graph_task() != -1
        return Call(
            operation=operation,
            inputs=inputs,
            results=results,
            numbers=max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE),
            allowed=self._is_allowed(operation),
            accumulating=_accumulating(),
            engine=backward and sources.user_frame(frame) is None,
            scaled=self.scaled and (backward or self._unscaled is not None),
            line=lambda: self._locate(frame)[0],
            describe=describe,
        )

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
        if stack.compiled:
            self.report.note(COMPILED)
        bad = next((i for i, (_, state) in enumerate(results) if state > State.FINITE), None)
        places = places_of(results[bad][0]) if bad is not None else None
        shape = results[bad][0].shape if bad is not None else None
        return Event(
            operation=operation.name,
            phase=self._phase(stack),
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

    def _phase(self, stack: Stack | None) -> str:
        if _graph_task() != -1 or stack is None:
            return "backward"
        updates = stack.update or stack.scaler or (self.updating and not torch.is_grad_enabled())
        return "optimizer" if updates else "forward"

    def _site_of(self, node: Any) -> Site | None:
        """Return where the forward call stands that a node of the graph belongs to."""
        number = _sequence_of(node)
        return self._sites.get(number - 1 if node is not None and node.name() == "CopySlices" else number)

    def _locate(self, frame: FrameType | None) -> tuple[Source | None, Source | None, str | None]:
        """Return the culprit line, the forward line of a backward operation, and the module."""
        user = sources.user_frame(frame)
        if _graph_task() == -1:
            return (sources.source_of(user) if user else None), None, self._modules.current
        site = self._site_of(torch._C._current_autograd_node())
        forward = site.source() if site else None
        own = sources.source_of(user) if user else None
        return own or forward or self._root, forward, (site.module if site else self._modules.current)

    def _is_allowed(self, operation: Operation) -> bool:
        if (
            self.report.allowing
            or operation.name in self._allowed
            or operation.name.rpartition(".")[0] in self._allowed
        ):
            return True
        if _graph_task() == -1:
            return False
        site = self._site_of(torch._C._current_autograd_node())
        return site is not None and site.allowed

    def sweep(self, final: bool = False) -> None:
        """Decide what can be decided, and raise if told to."""
        if final:
            self.flush()
        self.verdicts.sweep(final)
        self._raise_if_told()

    def check_gradients(self, gradients: list[Tensor]) -> None:
        """Confirm what has reached the gradients that an optimizer is about to use."""
        self.flush()
        for value in filter(None, map(self._value_of, gradients)):
            self.verdicts.reach(value, "gradient", hold_scaled=True)
        self._raise_if_told()

    def _raise_if_told(self) -> None:
        if self.raising and self.verdicts.news:
            self.verdicts.news = False
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
    """Return, by id, the old values of what an operation will overwrite: copies, or the state of what is large."""
    kept: dict[int, Tensor | State] = {}
    for name in operation.updated:
        for tensor in tensors_in(operation.argument(name, args, kwargs)):
            if tensor.is_floating_point() or tensor.is_complex():
                small = tensor.numel() <= _COPIED and tensor.layout == torch.strided and not tensor.is_meta
                kept[id(tensor)] = tensor.clone() if small else state_of(tensor)
    return kept


def _written(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    return {id(t) for name in operation.written for t in tensors_in(operation.argument(name, args, kwargs))}


def results_of(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Tensor]:
    """Yield what an operation gave: its outputs, and the arguments that it wrote without returning them."""
    yield from tensors_in(out)
    if not operation.returns_written:
        for name in operation.written:
            yield from tensors_in(operation.argument(name, args, kwargs))


def storage_key(tensor: Tensor) -> int | None:
    """Return what tells a tensor's storage from all others that are referred to; None where it has none."""
    storage = _storage(tensor)
    return storage._cdata if storage is not None else None


def reference_to(tensor: Tensor) -> StorageWeakRef | None:
    """Return a weak reference to a tensor's storage, while which exists the key is not used again."""
    storage = _storage(tensor)
    return StorageWeakRef(storage) if storage is not None else None  # type: ignore[no-untyped-call]


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return where a tensor's values are: of a sparse one, its values' storage."""
    try:
        if tensor.layout == torch.sparse_coo:
            return tensor._values().untyped_storage()
        return (tensor if tensor.layout == torch.strided else tensor.values()).untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def _nothing_is_left(tensor: Tensor) -> bool:
    """Return whether a tensor that has been written covers its storage, or the rest of that is finite."""
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.itemsize == storage.nbytes():
        return True
    return state_of(torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)) == State.FINITE


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
    state = max(map(state_of, results_of(operation, widen(args), widen(kwargs), again)), default=State.FINITE)
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
            alike = operation.short.startswith(("_foreach_", "_fused_"))  # item i of each list belongs to output i
            chosen = [bad % len(value)] if alike else range(min(len(value), 4))
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
