"""From candidate to event: where a non-finite value goes, and whether it has any effect.

Each storage that holds such a value is registered with the candidates that its value comes from. An operation that
reads it hands them on to its non-finite outputs; where all outputs are finite, it has discarded them. A candidate is
confirmed when its value reaches a loss, a gradient, a parameter or a Python number, when nothing reads it before it is
dropped or the block ends, or when arithmetic swallows it: x / infinity = 0 after other operations have handed the
infinity on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy.events import Call, Operand
from xor_study.autopsy.finiteness import PLAIN, State, overlap, swallowed, tensors_in
from xor_study.autopsy.report import Event, NonFiniteError, Report
from xor_study.autopsy.sources import Source
from xor_study.autopsy.storage import Origins, storage_key

_PATH = 6
"""Operations on an event's path."""

OUTSIDE = ("outside", "received", "uninitialised")
"""Origins of values that were not finite when an operation first read them."""

_UNRESOLVED = 5
_EVENTS = 100
"""Events in a report; what follows is counted only where the same line already has one."""


@dataclass(eq=False)
class Candidate:
    """An operation that may have gone wrong.

    Attributes:
        order: its number; candidates are numbered as they arise.
        event: what the report says of it once it is confirmed.
        state: the worst state of its outputs.
        scaled: whether it overflowed in the backward of a loss scaled by GradScaler.
        pole: whether it is an operation that has poles.
        settled: whether it has been confirmed, or handled by GradScaler.
        lines: those that its path has, and its own.
    """

    order: int
    event: Event
    state: State
    scaled: bool
    pole: bool = False
    settled: bool = False
    lines: set[Source | None] = field(default_factory=set)

    @property
    def real(self) -> bool:
        """Whether an operation made the value, rather than the code's own constants or the outside."""
        return self.event.origin == "operation"


@dataclass(eq=False)
class Value:
    """What is known of a storage that holds a non-finite value.

    Attributes:
        taint: the candidates it comes from, the earliest first.
        state: the worst it holds.
        references: to the storages that share the verdict.
        made: whether an operation made it; otherwise it was not finite when it was first seen.
        carried: whether an operation that is not a candidate itself has handed it on.
        private: whether it is an output for torch's own use.
        read: whether something has read it, for any purpose.
        excused: whether an operation raised an exception while nothing had read it: its repair may have been next.
    """

    taint: tuple[Candidate, ...]
    state: State
    references: list[StorageWeakRef]
    made: bool
    carried: bool = False
    private: bool = False
    read: bool = False
    excused: bool = False

    @property
    def real(self) -> list[Candidate]:
        """The candidates that an operation made."""
        return [candidate for candidate in self.taint if candidate.real]

    def compare(self) -> None:
        """Note that it was compared: an infinity is larger or smaller than all else, but NaN is neither."""
        self.read |= self.state == State.INFINITE

    def alive(self) -> bool:
        """Return whether any of the storages still exists."""
        return not all(reference.expired() for reference in self.references)  # type: ignore[no-untyped-call]


class Verdicts:
    """The register of storages that are not finite, and the decisions that follow from it.

    Args:
        report: where events are entered.
        raising: whether `raise_news` raises `NonFiniteError` after an event.
    """

    def __init__(self, report: Report, raising: bool) -> None:
        self.report = report
        self.values: dict[int, Value] = {}
        self.origins = Origins()
        self.lock = threading.RLock()
        self.raising = raising
        self._news = False
        self._count = 0
        self._known: dict[tuple[str, str, Source | None], Event] = {}
        self._pending: list[Candidate] = []

    def of(self, tensor: Tensor) -> Value | None:
        """Return what is known of a tensor's storage, if that is not finite."""
        return self._of_key(storage_key(tensor))

    def _of_key(self, key: int | None) -> Value | None:
        return self.values.get(key) if key is not None else None

    def may_read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether an operation with these arguments may read a value that is known not to be finite."""
        return any(
            storage_key(value) in self.values
            if type(value) in PLAIN
            else isinstance(value, list | tuple | Tensor) and any(map(self.of, tensors_in(value)))
            for value in ((*args, *kwargs.values()) if kwargs else args)
        )

    def decide(self, call: Call) -> None:
        """Judge an operation, unless it only asks about values that are not finite."""
        known = [value for value in (self._of_key(operand.key) for operand in call.inputs) if value]
        if call.operation.short == "abs" and known:  # isinf and isfinite begin with it: asking is not reading
            self.share(known[0], call.results[0])
        elif call.operation.unscales:
            for value in known:
                self.handle(value)
        else:
            self.judge(call)

    def judge(self, call: Call) -> None:
        """Decide whether an operation is a candidate, and hand on what its inputs came from."""
        taint, carried = self._read_all(call)
        # While GradScaler may still handle an overflow, what follows from it is not accused: NaN from inf - inf is
        # handled with it.
        makes = call.makes and not call.context.allowed and not any(candidate.scaled for candidate in taint)
        if makes:
            event = call.event("operation")
            scaled = call.context.scaled and event.kind == "overflow"
            candidate = self._enter(event, call.worst, scaled)
            candidate.pole = call.operation.pole
            # A mask's -inf is not to blame for what an operation makes of it.
            taint = {earlier for earlier in taint if earlier.real} | {candidate}
        elif self._is_constant(call, taint):
            taint.add(self._enter(call.event("constant"), call.worst))
        elif self._spreads(call, taint):
            taint = {self._enter(call.event("spread"), call.worst)}
        else:
            self._carry(taint, call)
        self._hand_on(call, taint, carried and not makes)

    def _read_all(self, call: Call) -> tuple[set[Candidate], bool]:
        """Return what the inputs hand on to the results, and whether that has been through another operation."""
        taint: set[Candidate] = set()
        # A copy is the same value at another address: x / copy(infinity) is x / infinity as the code wrote it.
        carried = not call.operation.moves
        for operand in call.inputs:
            if operand.state > State.FINITE:
                value = self._known_value(operand, call)
                carried |= value.carried
                taint |= self._read(operand, value, call)
        return taint, carried

    def _is_constant(self, call: Call, taint: set[Candidate]) -> bool:
        """Return whether the code itself gives an infinity or NaN as a Python number, and no operation has made one."""
        given = call.context.numbers > State.FINITE and not call.context.allowed
        return given and not any(candidate.real for candidate in taint)

    def _spreads(self, call: Call, taint: set[Candidate]) -> bool:
        """Return whether a sum takes in the infinities of a mask alone, so that the mask is not to blame."""
        usual = call.context.allowed or call.context.engine or not call.operation.sums
        masked = bool(taint) and all(candidate.event.origin == "constant" for candidate in taint)
        return masked and not usual and call.worst > State.FINITE

    def _hand_on(self, call: Call, taint: set[Candidate], carried: bool) -> None:
        """Register the results that are not finite as coming from `taint`."""
        for index, result in enumerate(call.results):
            # First forget what was overwritten: registering adds to what is known of the storage.
            if result.overwritten:
                self.strike_off(result.key, result.repaired)
            if result.state > State.FINITE and taint:
                # A copy of chosen elements is often made to look at the bad ones; that nothing reads it says nothing.
                private = (call.operation.private and index > 0) or call.operation.chooses
                value = self._register(result, taint, made=True, carried=carried, private=private)
                if result.parameter:
                    self.reach(value, "parameter")

    def constant(self, call: Call) -> None:
        """Enter a constant that the code itself asks for, such as `full(-inf)`."""
        candidate = self._enter(call.event("constant"), call.worst)
        for result in call.results:
            self._register(result, {candidate}, made=False)

    def follow(self, operand: Operand, taint: set[Candidate]) -> Value:
        """Register a result as a consequence of `taint`."""
        return self._register(operand, taint, made=True, carried=True)

    def _known_value(self, operand: Operand, call: Call) -> Value:
        """Return what is known of an input that is not finite; if nothing is, it came in from outside."""
        value = self._of_key(operand.key)
        if value is not None:
            return value
        origin = self.origins.of(operand.key)
        event = call.event(origin.name if origin else "outside")
        event.origin_source, event.origin_operation = (origin.source, origin.operation) if origin else (None, None)
        return self._register(operand, {self._enter(event, operand.state)}, made=False)

    def _read(self, operand: Operand, value: Value, call: Call) -> set[Candidate]:
        """Note that a call reads a value; return what the value hands on to the call's results."""
        operation, context = call.operation, call.context
        # Autograd adds to a leaf's gradient from the second backward on; the first is a view, see `Watch`.
        if context.accumulating:
            self.reach(value, "gradient", hold_scaled=True)
        value.read = True
        exempt = operation.discards or context.allowed or context.engine
        carried = value.carried or (call.operation.divides and any(c.pole for c in value.real))
        if carried and not exempt and _swallows(operand, call):
            self._carry(value.real, call)
            self.reach(value, "swallowed", only_real=True)
        if operation.short == "_local_scalar_dense" and (value.made or value.real):
            # Code may ask for an infinity on purpose, as a running minimum does, but hardly for NaN.
            self.reach(value, "Python number", only_real=operand.state < State.NAN)
        return set(value.taint) if _passes(operand, call) else set()

    def _enter(self, event: Event, state: State, scaled: bool = False) -> Candidate:
        self._count += 1
        candidate = Candidate(self._count, event, state, scaled, lines={event.source})
        self._pending.append(candidate)
        return candidate

    def _register(
        self, operand: Operand, taint: set[Candidate], made: bool, carried: bool = False, private: bool = False
    ) -> Value:
        """Note that a storage is not finite, beside what was known of other parts of it."""
        # A storage may have been written in part; the rest of it keeps its causes.
        known = self._of_key(operand.key)
        everything = taint | set(known.taint) if known else taint
        ordered = tuple(sorted(everything, key=lambda candidate: candidate.order))
        references = [operand.reference] if operand.reference else []
        value = Value(ordered, operand.state, references, made, carried, private)
        if operand.key is not None:
            self.values[operand.key] = value
        return value

    def share(self, value: Value, operand: Operand) -> None:
        """Give another storage the same verdict as `value`."""
        if operand.key is not None and operand.reference is not None:
            value.references.append(operand.reference)
            self.values[operand.key] = value

    def strike_off(self, key: int | None, repaired: bool = False) -> None:
        """Forget a storage that has been overwritten.

        Args:
            key: of the storage.
            repaired: whether only its bad elements were: code that does so has found them.
        """
        value = self.values.pop(key, None) if key is not None else None
        # Overwritten as a whole before anything read it: as good as dropped.
        if value and not value.read and not repaired:
            self._unread(value)

    def excuse(self) -> None:
        """Note that an operation raised an exception, which the program may catch."""
        for value in self.values.values():
            value.excused |= not value.read

    def read_by_python(self, tensor: Tensor) -> None:
        """Note that Python or numpy has read a tensor's values."""
        value = self.of(tensor)
        if value is not None:
            value.read = True

    def arrive(self, tensors: Iterable[Tensor], reached: str) -> None:
        """Confirm all that `tensors` come from: they are a loss or gradients.

        Args:
            tensors: that may not be finite.
            reached: as in `Event.reached`.
        """
        for value in filter(None, map(self.of, tensors)):
            self.reach(value, reached, hold_scaled=True)

    def reach(self, value: Value, reached: str, hold_scaled: bool = False, only_real: bool = False) -> None:
        """Confirm all that a value comes from.

        Args:
            value: of a tensor that is a loss, a gradient, ...
            reached: as in `Event.reached`.
            hold_scaled: leave out what GradScaler may still handle.
            only_real: leave out what no operation made.
        """
        value.read = True
        for candidate in value.real if value.real or only_real else value.taint:
            if not (hold_scaled and candidate.scaled):
                self._confirm(candidate, reached)

    def handle(self, value: Value) -> None:
        """Note that GradScaler has seen a value in a gradient: it handles what its scale caused, not the rest."""
        for candidate in value.taint:
            if candidate.scaled and not candidate.settled:
                candidate.settled = True
                self.report.handled.append(candidate.event)
        self.reach(value, "gradient", hold_scaled=True)

    def _confirm(self, candidate: Candidate, reached: str) -> None:
        """Make an event of a candidate, or count it where the same line already has one."""
        event = candidate.event
        if reached not in event.reached:
            event.reached.append(reached)
            self.report.rank()
        if candidate.settled:
            return
        candidate.settled = True
        # A loop fails on the same line in each step; one event with a count says so.
        same = self._known.setdefault((event.operation, event.phase, event.source), event)
        if same is not event:
            same.count += 1
        elif len(self.report.events) < _EVENTS:
            event.order = candidate.order
            self.report.enter(event)
            self._news = True

    def _carry(self, taint: Iterable[Candidate], call: Call) -> None:
        """Note on the candidates' paths that an operation read their value."""
        for candidate in taint:
            path = candidate.event.path
            if len(path) < _PATH and (source := call.context.line) not in candidate.lines:
                candidate.lines.add(source)
                path.append((call.operation.name, source))

    def end_by_error(self) -> None:
        """Decide what can be decided when an exception ends the block: it may have come before a repair."""
        self.sweep()
        living = {candidate for value in self.values.values() if not value.read for candidate in value.taint}
        unsettled = [candidate.event for candidate in self._pending if candidate.real and candidate in living]
        self.report.unresolved += unsettled[:_UNRESOLVED]

    def sweep(self, final: bool = False) -> None:
        """Confirm what was dropped without being read; at the end also what remains unread."""
        # An expired storage has been freed; its key may belong to another one soon.
        for key, value in list(self.values.items()):
            if final or not value.alive():
                del self.values[key]
                if not value.read:
                    self._unread(value, final)
        living = {candidate for value in self.values.values() for candidate in value.taint}
        pending = [candidate for candidate in self._pending if not candidate.settled]
        self._pending = [candidate for candidate in pending if candidate in living]
        for candidate in pending:
            if candidate not in living and candidate.real:
                line = (candidate.event.operation, str(candidate.event.source))
                self.report.discarded[line] = self.report.discarded.get(line, 0) + 1

    def raise_news(self) -> None:
        """Raise `NonFiniteError` if there has been an event since the last call and events are to raise."""
        if self.raising and self._news:
            self._news = False
            raise NonFiniteError(self.report)

    def _unread(self, value: Value, final: bool = False) -> None:
        value.read = True  # decided now, whatever the outcome
        if value.private or value.excused or not value.made:
            return
        # Infinite data that nothing reads is usual (padding); NaN is not.
        outside = [c for c in value.taint if c.event.origin in OUTSIDE and c.state == State.NAN]
        for candidate in value.real or outside:
            if final or not candidate.scaled:  # GradScaler may still look at it
                self._confirm(candidate, "unread")


def _passes(operand: Operand, call: Call) -> bool:
    """Return whether an input's values can be behind the results that are not finite."""
    results = [result.tensor for result in call.results if result.state > State.FINITE]
    if not call.operation.pointwise or operand.tensor is None:
        return bool(results)
    # Element by element, an infinity that meets no bad result (behind a mask, say) is not the cause.
    return any(result is None or overlap(operand.tensor, result) for result in results)


def _swallows(operand: Operand, call: Call) -> bool:
    """Return whether arithmetic has made finite numbers of an input that is not."""
    # A cast to integers makes no number that is finite instead of infinite: it makes one without meaning.
    results = [result for result in call.results if result.floating]
    if call.operation.pointwise and operand.tensor is not None:
        return any(result.tensor is not None and swallowed(operand.tensor, result.tensor) for result in results)
    return bool(results) and call.worst == State.FINITE
