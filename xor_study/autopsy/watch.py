"""The dispatch mode: it sees every ATen operation of forward, backward and optimizer step."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

from xor_study.autopsy import sources
from xor_study.autopsy.deferred import Deferred
from xor_study.autopsy.events import Contexts, LoopState
from xor_study.autopsy.finiteness import PLAIN, handles_itself, is_traced, looks_finite, plain_tensors, tensors_in
from xor_study.autopsy.immediate import Immediate
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.near_misses import NearMisses
from xor_study.autopsy.operations import Execution, Operation, describe
from xor_study.autopsy.patches import InThread, keep_uncompiled
from xor_study.autopsy.report import NonFiniteError, Report
from xor_study.autopsy.sites import Sites, accumulating, graph_task, next_sequence
from xor_study.autopsy.taint import Value, Verdicts

if TYPE_CHECKING:
    from xor_study.autopsy.lint import Lint

_ROOT_GRADIENT = torch.ops.aten.ones_like.default
_SCALING = torch.ops.aten.mul.Tensor
_modes_below: Callable[[], int] = torch._C._len_torch_dispatch_stack
_TRACING = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
    torch._C._TorchDispatchModeKey.PROXY,
)
_FLAGS = (
    "old_dispatch_mode_flags",
    "old_non_infra_dispatch_mode_flags",
    "old_without_ignore_compile_internals_dispatch_mode_flags",
)
_NOTHING: Mapping[int, Any] = MappingProxyType({})
_MOST_ERRORS = 10
"""Internal errors after which nothing more is watched."""


class Watch(TorchDispatchMode):
    """Runs every operation through its checks, and keeps what the training loop is doing.

    An operation costs one sum of its output. A forward operation that makes a node of autograd's graph also leaves its
    line in `Sites`, so that an operation of the backward finds the line it belongs to.

    Args:
        report: where events are entered.
        modules: which module is running.
        allowed: names of exempt operations, with or without overload.
        raising: whether to raise `NonFiniteError` at an event.
        batched: read the checks together, at the end of a step or after many operations, instead of each at once.
        near_misses: whether to note what only comes near; not with `batched`.
        lint: whether to name compositions of operations that have a stable form.
        on_loss: called with each scalar that `backward` starts from, before GradScaler's scaling.
        on_scale_update: called when GradScaler ends its step.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        report: Report,
        modules: Modules,
        *,
        allowed: frozenset[str],
        raising: bool,
        batched: bool,
        near_misses: bool,
        lint: bool,
        on_loss: Callable[[Tensor], None],
        on_scale_update: Callable[[], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report
        self._loop = LoopState()
        self._verdicts = Verdicts(report, raising)
        self._sites = Sites(modules, report)
        contexts = Contexts(modules, report, allowed, self._sites, self._loop)
        near = NearMisses(report) if near_misses else None
        self._checks: Deferred | Immediate = (
            Deferred(self._verdicts, contexts) if batched else Immediate(report, self._verdicts, contexts, near)
        )
        self._lint = _new_lint(report, modules) if lint else None
        self._on_loss = on_loss
        self._on_scale_update = on_scale_update
        self._paused = False
        self._suspended = True
        self._active = False
        self._thread = threading.get_ident()
        self._depth = torch._C._len_torch_dispatch_stack()
        self._contexts = contexts
        self._errors = 0
        self._failure: tuple[int, str, list[Value]] = (0, "", [])
        self._batched = batched
        self._values = self._verdicts.values  # the same dict
        self._fast = not (batched or near_misses or lint)
        nested = any(isinstance(mode, Watch | InThread) for mode in _get_current_dispatch_mode_stack())
        self._call: Callable[..., Any] = self._hidden if nested else _directly
        self._operations: dict[Any, Operation] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # `keep_uncompiled` does the same without three more calls an operation

    @property
    def step(self) -> int:
        """The number of the present step, from 1."""
        return self._loop.step

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and check what it gives."""
        kwargs = kwargs or {}
        if types and any(map(handles_itself, types)):
            if any(map(is_traced, types)):  # a tracing mode below this one handles it
                return func(*args, **kwargs)
            return NotImplemented  # its class takes it apart; the parts come back to here
        if self._paused or self._suspended or (_modes_below() and _is_tracing()):
            return func(*args, **kwargs)
        operation = self._operations.get(func)
        if operation is None:
            operation = self._operations[func] = describe(func)
        if operation.composite:  # in inference mode; autograd takes them apart elsewhere
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        prepared: Any = _NOTHING, None
        try:
            prepared = self._call(self._prepare, func, operation, args, kwargs)
        except Exception as error:
            self.fail(error)
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self._note_failure(error, operation, args, kwargs)
            raise
        try:
            self._call(self._look, func, operation, args, kwargs, out, prepared)
        except Exception as error:
            self.fail(error)
        return out

    def _hidden(self, check: Callable[..., Any], *args: Any) -> Any:
        """Call a check whose operations another autopsy, around this one, must not take for the user's."""
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            return check(*args)

    def _prepare(
        self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Note where an operation is called, and return what the checks and the lint keep from before it runs."""
        self._report.operations += 1
        # Autograd has made the operation's node, if any, before it dispatched the operation to here.
        sequence = next_sequence()
        if sequence != self._sites.thread.sequence:
            self._enter_site(func, operation, args, sequence, sys._getframe(2))
        before: Any = _NOTHING
        if operation.checked and (operation.written or self._batched or operation.updates_scale):
            before = self._before(operation, args, kwargs)
        return before, self._lint.before(func, args) if self._lint is not None else None

    def _look(
        self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, prepared: Any
    ) -> None:
        """Check what an operation gave."""
        quick = self._fast and operation.simple and type(out) in PLAIN and looks_finite(out)
        if quick and not (self._values and self._verdicts.may_read(args, kwargs)):
            return
        before, facts = prepared
        if operation.checked:
            self._checks.after(Execution(func, operation, args, kwargs, out, before))
        elif operation.compares:
            if self._values or self._batched:
                self._checks.compare(tensors_in(args))
        elif operation.notable or self._batched or (self._values and graph_task() != -1):
            self._see_unchecked(Execution(func, operation, args, kwargs, out, before), sys._getframe(2))
        if self._lint is not None:
            self._lint.after(func, facts, args, kwargs, out, sys._getframe(2))

    def fail(self, error: Exception) -> None:
        """Note an error of the autopsy itself: it must not end the user's program.

        Raises:
            NonFiniteError: if it is one, which `on_event="raise"` asks for.
        """
        if isinstance(error, NonFiniteError):
            raise error
        self._errors += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        if self._errors == 1:
            self._report.note(f"an internal error of the autopsy: {type(error).__name__} at {place}: {error}")
        if self._errors == _MOST_ERRORS:
            self._report.note(f"after {_MOST_ERRORS} internal errors, operations are not watched any more")
            self._paused = True

    def _note_failure(self, error: Exception, operation: Operation, args: Any, kwargs: Any) -> None:
        """Note which values that were not finite an operation refused, without keeping the tensors or the error."""
        try:
            self.flush()
            read = [self._verdicts.of(tensor) for _, tensor in operation.read(args, kwargs)]
            self._failure = id(error), str(error), [value for value in read if value is not None]
            with self._verdicts.lock:
                self._verdicts.excuse()
        except Exception as internal:
            self.fail(internal)

    def _before(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation.written and self._verdicts.origins.any:
            for name in operation.written:
                for tensor in tensors_in(operation.argument(name, args, kwargs)):
                    self._verdicts.origins.forget(tensor)
        # GradScaler.update ends a step, and nothing else tells of one that it has skipped.
        if operation.updates_scale:
            self._end_scaling()
        return self._checks.before(operation, args, kwargs)

    def _enter_site(
        self, func: Any, operation: Operation, args: tuple[Any, ...], sequence: int, frame: FrameType
    ) -> None:
        self._sites.enter(sequence, operation.short, frame)
        # GradScaler.scale multiplies the loss by its scale; what comes next works on large numbers by intent.
        if func is _SCALING and sources.called_by(frame)[0]:
            self._loop.scaled = True
            self._loop.unscaled = args[0]

    def _end_scaling(self) -> None:
        self.flush()
        self._loop.scaled = False
        self._on_scale_update()

    def _see_unchecked(self, execution: Execution, frame: FrameType) -> None:
        """Look at an operation that makes no values out of others: constants, the root of a backward, views."""
        if execution.func is _ROOT_GRADIENT and graph_task() == -1:
            self._see_root(execution.args[0], frame)
        elif execution.operation.allocates or execution.operation.collective:
            self._see_origin(execution, frame)
        elif execution.operation.creates:
            self._checks.constant(execution, frame)
        elif accumulating():  # the first gradient of a leaf is a view of what the backward gave
            self._checks.arrive(tensors_in(execution.args), "gradient")
        self._verdicts.raise_news()

    def _see_origin(self, execution: Execution, frame: FrameType) -> None:
        """Note memory that was allocated without being filled, or that another process fills."""
        operation = execution.operation
        user = sources.outer_user_frame(frame)
        source = sources.source_of(user) if user else None
        if operation.allocates:
            for tensor in tensors_in(execution.out):
                self._verdicts.origins.note(tensor, "uninitialised", operation.name, source)
            return
        for tensor in tensors_in([execution.args, list(execution.kwargs.values()), execution.out]):
            if self._verdicts.of(tensor) is None:  # what this process has given is finite
                self._verdicts.origins.note(tensor, "received", f"{operation.name}{_other_rank()}", source)

    def read_by_python(self, tensor: Tensor) -> None:
        """Note that Python or numpy reads a tensor's values."""
        try:
            if (self._values or self._batched) and not (self._paused or self._suspended):
                printing = sources.look_at_stack(sys._getframe()).printing  # printing a tensor is not reading it
                for plain in () if printing else plain_tensors(tensor):
                    self._checks.read_by_python(plain)
        except Exception as error:
            self.fail(error)

    def _see_root(self, loss: Tensor, frame: FrameType) -> None:
        """Note the tensor that a backward starts from, if one is starting."""
        if not sources.called_by(frame)[1]:  # the user's own ones_like
            return
        loop = self._loop
        user = sources.outer_user_frame(frame)
        loop.root = sources.source_of(user) if user else None
        self._checks.arrive([loss], "loss")
        if self._values:  # masks of the forward are gone by now, and make every operation slower
            with self._verdicts.lock:
                self._verdicts.sweep()
        if loss.numel() == 1:
            known = loop.unscaled is not None and loop.unscaled.numel() == 1
            self._on_loss(loop.unscaled if known and loop.unscaled is not None else loss)
        loop.unscaled = None

    @property
    def names(self) -> set[str]:
        """The names of the operations that were seen, with and without overload."""
        full = {operation.name for operation in list(self._operations.values())}
        return full | {name.rpartition(".")[0] for name in full}

    @property
    def watching(self) -> bool:
        """Whether operations of the present step are seen."""
        return not self._suspended

    def resume(self) -> None:
        """See operations from here on: at the start, or after `suspend`."""
        if not self._suspended:
            return
        self._suspended = False
        self._sites.skip()  # nodes that were made meanwhile belong to no line
        # Above another mode, this one would be what that mode's end removes; a later step may have the stack as it was.
        own = threading.get_ident() == self._thread and torch._C._len_torch_dispatch_stack() == self._depth
        if own and not self._active:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._active = True

    def suspend(self) -> None:
        """See no operations from here on, and leave the stack of modes, where even a mode that does nothing is slow."""
        self._suspended = True
        # Where another mode has come above this one, or in another thread, it must stay where it is.
        if self._active and _get_current_dispatch_mode() is self:
            self.close()

    def close(self) -> None:
        """Leave the stack of modes."""
        if self._active:
            # A trainer or a fixture may have entered other modes, to leave them later; torch leaves the one on top.
            above = []
            while self in _modes()[:-1]:
                above.append(_pop_mode())
            if not above:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            else:
                self._leave_below(above)
            self._active = False

    def _leave_below(self, above: list[TorchDispatchMode]) -> None:
        """Leave the stack below modes that were taken off it, the lowest last, and put those back."""
        for name in _FLAGS:  # what torch will restore when the next mode is left is what this one found
            found, kept = getattr(self, name, None), getattr(above[-1], name, None)
            if found and kept:
                kept[-1] = found.pop()
        _pop_mode()
        for mode in reversed(above):
            _push_mode(mode)

    def batch(self) -> None:
        """Read checks together from here on; to be called between steps."""
        if not self._batched:
            self._batched, self._fast = True, False
            self._checks = Deferred(self._verdicts, self._contexts)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let operations in this block pass unseen."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def flush(self) -> None:
        """Judge what has been recorded."""
        self._checks.flush()

    def sweep(self) -> None:
        """Decide what can be decided, and raise `NonFiniteError` if an event is to."""
        with self._verdicts.lock:
            self._verdicts.sweep()
        self._verdicts.raise_news()

    def finish(self) -> None:
        """Decide what is left, at the end of the block, and raise `NonFiniteError` if an event is to."""
        self.flush()
        with self._verdicts.lock:
            self._verdicts.sweep(final=True)
        self._verdicts.raise_news()

    def finish_after(self, error: BaseException) -> None:
        """Decide what can be decided when an exception ends the block; raise nothing in its place."""
        self._verdicts.raising = False
        self.flush()
        with self._verdicts.lock:
            number, text, values = self._failure
            if any(id(one) == number and str(one) == text for one in _chain(error)):
                for value in values:
                    self._verdicts.reach(value, "error")
            self._verdicts.end_by_error()

    def end(self) -> None:
        """Watch nothing more, in threads that outlive the block."""
        self._paused = True

    def check_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Confirm what has reached the gradients that an optimizer is about to use."""
        self.flush()  # the register must know the last backward
        with self._verdicts.lock:
            self._verdicts.arrive(gradients, "gradient")
        self._verdicts.raise_news()

    def begin_update(self, parameters: Iterable[Tensor]) -> None:
        """Note that an optimizer starts its step.

        Args:
            parameters: those that it is about to write for the first time.
        """
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            self._checks.begin_update(parameters)
        self._loop.updating = True

    def note_numbers(self, words: str) -> None:
        """Note which numbers of the optimizer that starts its step are not finite."""
        self._loop.bad_numbers = words

    def end_update(self) -> None:
        """Note that an optimizer has ended its step."""
        self._loop.updating = False
        self.flush()

    def begin_step(self, step: int) -> None:
        """Count what follows as belonging to a step."""
        self._loop.step = step


keep_uncompiled(Watch.__torch_dispatch__)


def _directly(check: Callable[..., Any], *args: Any) -> Any:
    return check(*args)


def _is_tracing() -> bool:
    """Return whether torch is tracing: then checks would become a part of the graph."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


def _new_lint(report: Report, modules: Modules) -> Lint:
    from xor_study.autopsy.lint import Lint  # with its tables, which few blocks need

    return Lint(report, modules)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    seen = 0
    while error is not None and seen < 100:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _other_rank() -> str:
    """Return which other processes a collective's values can be from, in words."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return ""
    size, rank = distributed.get_world_size(), distributed.get_rank()
    if size == 2:
        return f" (from rank {1 - rank}; this is rank {rank})"
    return f" (from a rank other than {rank}, of {size})"


def _modes() -> list[TorchDispatchMode]:
    """Return the modes that are entered, the innermost last, without torch's own (fake tensors, tracing)."""
    stack = _get_current_dispatch_mode_stack()
    return [mode for mode in stack if getattr(mode, "_mode_key", None) is None]
