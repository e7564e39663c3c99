"""The one builder of calls and events, for checks that are read at once and for those that are read later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy import sources
from xor_study.autopsy.captures import Capture
from xor_study.autopsy.finiteness import State, Summary, newly_bad
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.operations import Operation
from xor_study.autopsy.report import Event, Report
from xor_study.autopsy.sites import Sites, accumulating, graph_task
from xor_study.autopsy.sources import Site, Source, Stack


@dataclass
class LoopState:
    """What the training loop is doing.

    Attributes:
        step: counted from 1.
        updating: whether an optimizer's `step` is running; its closure runs in it, too.
        scaled: whether the last scalar was a loss scaled by GradScaler.
        unscaled: that loss before its scaling, until its backward starts.
        root: the line that called the last `backward`.
        nonfinite_parameters: ids of the parameters that were not finite before their optimizer's first step.
        bad_numbers: which numbers of the running optimizer, such as its learning rate, are not finite, in words.
    """

    step: int = 1
    updating: bool = False
    scaled: bool = False
    unscaled: Tensor | None = None
    root: Source | None = None
    nonfinite_parameters: set[int] = field(default_factory=set)
    bad_numbers: str = ""

    @property
    def in_update(self) -> bool:
        """Whether the optimizer itself is running, not a closure that it has called."""
        return self.updating and not torch.is_grad_enabled() and graph_task() == -1


@dataclass(frozen=True, eq=False)
class Context:
    """All that a verdict or an event needs of an operation beside the values of its tensors.

    Attributes:
        operation: the operation.
        numbers: the worst of its Python numbers.
        allowed: whether the user exempts it.
        accumulating: whether autograd is adding to a leaf's gradient.
        engine: whether it belongs to torch's own backward formula.
        scaled: whether it works on a loss that GradScaler scaled, or on its gradients.
        phase: as in `Event`.
        module: as in `Event`.
        step: as in `Event`.
        caller: the user's line that called it; None where autograd's engine did.
        forward: in a backward, the line of the forward call it belongs to.
        root: in a backward, the line that started it.
        stack: as in `Event`.
        bad_numbers: as in `LoopState`, of an optimizer's operation.
    """

    operation: Operation
    numbers: State
    allowed: bool
    accumulating: bool
    engine: bool
    scaled: bool
    phase: str
    module: str | None
    step: int
    caller: Site | None
    forward: Site | None
    root: Source | None
    stack: tuple[Source, ...]
    bad_numbers: str

    @property
    def line(self) -> Source | None:
        """The culprit line: of an optimizer's step the user's own, since it is some trainer that calls it."""
        site = self.caller or self.forward
        if site is None:
            return self.root
        return (self.own if self.phase == "optimizer" else None) or site.source()

    @property
    def own(self) -> Source | None:
        """The user's own call that led to the culprit line, where that is an installed package's."""
        site = self.caller or self.forward
        return site.own_source() if site else None


class Contexts:
    """Gathers the context of an operation that is running.

    Args:
        modules: which module is running.
        report: whether the user allows everything at present.
        allowed: names of exempt operations, with or without overload.
        sites: the lines that autograd's nodes belong to.
        loop: what the training loop is doing.
    """

    def __init__(
        self, modules: Modules, report: Report, allowed: frozenset[str], sites: Sites, loop: LoopState
    ) -> None:
        self.loop = loop
        self._modules = modules
        self._report = report
        self._allowed = allowed
        self._sites = sites

    def of(
        self,
        operation: Operation,
        numbers: State,
        frame: FrameType,
        stack: Stack | None,
        lines: tuple[Source, ...] = (),
    ) -> Context:
        """Return the context of an operation.

        Args:
            operation: the operation.
            numbers: the worst of its Python numbers.
            frame: its caller.
            stack: what a look at the whole stack says; may be None in a backward.
            lines: of the user's code on that stack, for the event.
        """
        backward = graph_task() != -1
        caller = self._caller(frame)
        forward = self._sites.of_backward() if backward else None
        return Context(
            operation=operation,
            numbers=numbers,
            allowed=self._is_allowed(operation, forward),
            accumulating=accumulating(),
            engine=backward and caller is None,
            scaled=self.loop.scaled and (backward or self.loop.unscaled is not None),
            phase="backward" if backward or stack is None else self._phase(stack),
            module=forward.module if forward else self._modules.current,
            step=self.loop.step,
            caller=caller,
            forward=forward,
            root=self.loop.root if backward else None,
            stack=lines,
            bad_numbers=self.loop.bad_numbers if self.loop.in_update else "",
        )

    def parameter_name(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer of a module that has been called; None for other tensors."""
        return self._modules.parameter_name(tensor)

    def locate(self, frame: FrameType) -> tuple[Source | None, str | None]:
        """Return the culprit line and the module of the operation that is running."""
        forward = self._sites.of_backward() if graph_task() != -1 else None
        site = self._caller(frame) or forward
        root = self.loop.root if graph_task() != -1 else None
        return (site.source() if site else root), (forward.module if forward else self._modules.current)

    def _caller(self, frame: FrameType) -> Site | None:
        user = sources.user_frame(frame)
        return self._sites.site_of(user, False) if user else None

    def _phase(self, stack: Stack) -> str:
        return "optimizer" if stack.update or stack.scaler or self.loop.in_update else "forward"

    def _is_allowed(self, operation: Operation, forward: Site | None) -> bool:
        named = operation.name in self._allowed or operation.name.rpartition(".")[0] in self._allowed
        return bool(self._report.allowing) or named or (forward is not None and forward.allowed)


@dataclass(eq=False)
class Operand:
    """A tensor that an operation read or gave.

    Attributes:
        key: of its storage; None where it has none.
        reference: to its storage; keeps the key from being used again.
        state: of its elements; of an input, before the operation.
        tensor: the tensor, or a copy from before it was overwritten; None where it is no longer at hand.
        overwritten: whether the operation has written the whole storage, or left no non-finite value in it.
        repaired: whether it has done so by writing a part of the storage.
        parameter: whether the operation wrote it and it is a leaf that requires a gradient.
        floating: whether its elements can be infinite at all.
    """

    key: int | None
    reference: StorageWeakRef | None
    state: State
    tensor: Tensor | None = None
    overwritten: bool = False
    repaired: bool = False
    parameter: bool = False
    floating: bool = True


class Evidence(NamedTuple):
    """What the values of a call's tensors say: these attributes of its `Event`."""

    kind: str
    inputs: tuple[Summary, ...]
    outputs: tuple[Summary, ...]
    node: str | None = None
    capture: Capture | str = 'batched checks keep no inputs: use checks="each", or give step='


@dataclass(eq=False)
class Call:
    """One operation that read or gave something that is not finite.

    Attributes:
        context: all but the values.
        inputs, results: its tensors.
        evidence: returns what the values say, given the event's origin. It is costly, so only an event asks for it.
        unexplained: returns whether results are not finite at places, or in sums, where the inputs do not explain it.
            It is costly, and asked only where the worst states of all elements don't tell.
    """

    context: Context
    inputs: list[Operand]
    results: list[Operand]
    evidence: Callable[[str], Evidence]
    unexplained: Callable[[], bool] = lambda: False

    @property
    def operation(self) -> Operation:
        """The operation."""
        return self.context.operation

    @property
    def worst(self) -> State:
        """The worst state of its results."""
        return max((result.state for result in self.results), default=State.FINITE)

    @property
    def makes(self) -> bool:
        """Whether it turned finite elements into inf or NaN, or elements without NaN into NaN."""
        worst = self.worst
        if worst == State.FINITE:
            return False
        given = max((operand.state for operand in self.inputs), default=State.FINITE)
        given = max(given, self.context.numbers)
        if given == State.FINITE or (given < State.NAN == worst):
            return True
        return self.context.numbers == State.FINITE and self.unexplained()

    def event(self, origin: str) -> Event:
        """Return the event that this call is, if a verdict says so.

        Args:
            origin: as in `Event`.
        """
        context = self.context
        evidence = self.evidence(origin)
        return Event(
            operation=context.operation.name,
            phase=context.phase,
            module=context.module,
            source=context.line,
            forward=context.forward.source() if context.forward else None,
            stack=_with_own(context.stack, context.own),
            step=context.step,
            origin=origin,
            cause=context.bad_numbers if origin == "constant" else "",
            **evidence._asdict(),
        )


def newly_bad_elements(inputs: list[Operand], results: list[Operand]) -> bool:
    """Return whether an operation that works element by element gave a result worse than all that it read there."""
    given = [operand.tensor for operand in inputs if operand.floating]
    known = [tensor for tensor in given if tensor is not None]
    return len(known) == len(given) and any(
        newly_bad(known, result.tensor) for result in results if result.tensor is not None
    )


def _with_own(stack: tuple[Source, ...], own: Source | None) -> tuple[Source, ...]:
    """Return the lines of a stack with the user's own call, which the stack of a backward doesn't have."""
    return stack if own is None or own in stack else (own, *stack)
