"""From candidate to event: where a value that is not finite goes, and whether anything of it is left.

Each storage that holds such a value is registered with the candidates that its value comes from. An operation that
reads it hands these on to outputs that are not finite; where all are finite, it has discarded them. A candidate is
confirmed where a value of it reaches a loss, a gradient, a parameter or a Python number, is dropped or left without
having been read, or is swallowed by arithmetic: x / infinity = 0 after other operations have handed the infinity on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy.finiteness import State, overlap, swallowed
from xor_study.autopsy.operations import Operation
from xor_study.autopsy.report import Event, Report
from xor_study.autopsy.sources import Source

_PATH = 6
_EVENTS = 100


@dataclass(eq=False)
class Candidate:
    """An operation that may have gone wrong.

    Attributes:
        order: candidates are numbered as they arise.
        event: all that is to be said of it.
        state: the worst of its output.
        scaled: whether it overflowed in the backward of a loss scaled by GradScaler.
        settled: whether it has been confirmed, or handled by GradScaler.
    """

    order: int
    event: Event
    state: State
    scaled: bool
    settled: bool = False
    lines: set[Source | None] = field(default_factory=set)

    @property
    def real(self) -> bool:
        """Whether an operation made it, rather than the code's own infinities or the world outside."""
        return self.event.origin == "operation"


@dataclass(eq=False)
class Value:
    """What is known of a storage that is not finite.

    Attributes:
        taint: the candidates it comes from, the earliest first.
        state: the worst it holds.
        references: to the storages that share the verdict.
        made: whether an operation made it, rather than its coming from outside as it is.
        carried: whether an operation that was no candidate itself has handed it on.
        private: whether it is an output for torch's own use.
        read: whether something has read it, to whatever end.
    """

    taint: tuple[Candidate, ...]
    state: State
    references: list[StorageWeakRef]
    made: bool
    carried: bool = False
    private: bool = False
    read: bool = False

    def alive(self) -> bool:
        """Return whether any of the storages still exists."""
        return not all(reference.expired() for reference in self.references)  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class Operand:
    """A tensor that an operation read or gave.

    Attributes:
        key: of its storage; None where it has none.
        reference: to its storage, which keeps the key from being used again.
        state: of its elements; of an input, before the operation.
        tensor: it, or a copy from before it was overwritten; None where it is no longer at hand.
        overwritten: whether the operation has written the whole storage, or left nothing in it that is not finite.
        parameter: whether the operation wrote it and it is a leaf that requires a gradient.
    """

    key: int | None
    reference: StorageWeakRef | None
    state: State
    tensor: Tensor | None = None
    overwritten: bool = False
    parameter: bool = False


@dataclass(eq=False)
class Call:
    """One operation that read or gave something not finite.

    Attributes:
        operation: which.
        inputs, results: its tensors.
        numbers: the worst of its Python numbers.
        allowed: whether the user allows it anything.
        accumulating: whether autograd is adding to a leaf's gradient.
        engine: whether it belongs to torch's own backward formula.
        scaled: whether it works on a loss that GradScaler scaled, or on its gradients.
        line: gives the culprit line.
        describe: gives the event, for an origin.
    """

    operation: Operation
    inputs: list[Operand]
    results: list[Operand]
    numbers: State
    allowed: bool
    accumulating: bool
    engine: bool
    scaled: bool
    line: Callable[[], Source | None]
    describe: Callable[[str], Event]

    @property
    def worst(self) -> State:
        """The worst that came out."""
        return max((result.state for result in self.results), default=State.FINITE)

    @property
    def given(self) -> State:
        """The worst that went in."""
        return max((operand.state for operand in self.inputs), default=self.numbers)

    @property
    def makes(self) -> bool:
        """Whether it made something not finite of what was, or NaN of what was not NaN."""
        given = max(self.given, self.numbers)
        return self.worst > State.FINITE and (given == State.FINITE or (given < State.NAN == self.worst))


class Verdicts:
    """The register of storages that are not finite, and what is decided from it.

    Args:
        report: where events are entered.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.values: dict[int, Value] = {}
        self.news = False
        self._count = 0
        self._known: dict[tuple[str, str, Source | None], Event] = {}
        self._pending: list[Candidate] = []

    def judge(self, call: Call) -> None:
        """Decide whether an operation is a candidate, and hand on what its inputs came from."""
        taint: set[Candidate] = set()
        carried = not call.operation.moves
        for operand in call.inputs:
            if operand.state > State.FINITE:
                value = self._known_value(operand, call)
                carried |= value.carried
                taint |= self._read(operand, value, call)
        makes = call.makes and not call.allowed and not any(candidate.scaled for candidate in taint)
        if makes:
            event = call.describe("operation")
            candidate = self._enter(event, call.worst, scaled=call.scaled and event.kind == "overflow")
            taint = {earlier for earlier in taint if earlier.real} | {candidate}
        elif call.numbers > State.FINITE and not call.allowed and not any(candidate.real for candidate in taint):
            taint.add(self._enter(call.describe("constant"), call.worst))
        else:
            self._carry(taint, call)
        for index, result in enumerate(call.results):
            if result.overwritten:
                self.strike_off(result.key)
            if result.state > State.FINITE and taint:
                private = call.operation.private and index > 0
                value = self._register(result, taint, made=True, carried=carried and not makes, private=private)
                if result.parameter:
                    self.reach(value, "parameter")

    def constant(self, call: Call) -> None:
        """Enter what the code itself asks for, such as `full(-inf)`."""
        candidate = self._enter(call.describe("constant"), call.worst)
        for result in call.results:
            self._register(result, {candidate}, made=False)

    def follow(self, operand: Operand, taint: set[Candidate]) -> Value:
        """Enter a result as the mere consequence of `taint`."""
        return self._register(operand, taint, made=True, carried=True)

    def _known_value(self, operand: Operand, call: Call) -> Value:
        """Return what is known of an input that is not finite; if nothing is, it came in from outside."""
        value = self.values.get(operand.key) if operand.key is not None else None
        return value or self._register(operand, {self._enter(call.describe("outside"), operand.state)}, made=False)

    def _read(self, operand: Operand, value: Value, call: Call) -> set[Candidate]:
        """Let a call read a value; return what it hands on to the call's results."""
        operation = call.operation
        if call.accumulating:
            self.reach(value, "gradient", hold_scaled=True)
        value.read = True
        if value.carried and not (operation.discards or call.allowed or call.engine) and _swallows(operand, call):
            self._carry([candidate for candidate in value.taint if candidate.real], call)
            self.reach(value, "swallowed", only_real=True)
        if operation.short == "_local_scalar_dense" and (value.made or any(c.real for c in value.taint)):
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
        known = self.values.get(operand.key) if operand.key is not None else None
        everything = sorted(taint | set(known.taint if known else ()), key=lambda candidate: candidate.order)
        references = [operand.reference] if operand.reference else []
        value = Value(tuple(everything), operand.state, references, made, carried, private)
        if operand.key is not None:
            self.values[operand.key] = value
        return value

    def share(self, value: Value, operand: Operand) -> None:
        """Let another storage have the same verdict as `value`."""
        if operand.key is not None and operand.reference is not None:
            value.references.append(operand.reference)
            self.values[operand.key] = value

    def strike_off(self, key: int | None) -> None:
        """Forget a storage that has been overwritten."""
        value = self.values.pop(key, None) if key is not None else None
        if value and not value.read:
            self._unread(value)

    def reach(self, value: Value, place: str, hold_scaled: bool = False, only_real: bool = False) -> None:
        """Confirm all that `value` comes from: it has reached `place`.

        Args:
            value: of a tensor found there.
            place: as in `Event.reached`.
            hold_scaled: leave out what GradScaler may still handle.
            only_real: leave out what no operation made.
        """
        value.read = True
        real = [candidate for candidate in value.taint if candidate.real]
        for candidate in real if real or only_real else value.taint:
            if not (hold_scaled and candidate.scaled):
                self._confirm(candidate, place)

    def handle(self, value: Value) -> None:
        """GradScaler has found `value` in a gradient: what its scale caused is handled, the rest is not."""
        for candidate in value.taint:
            if candidate.scaled and not candidate.settled:
                candidate.settled = True
                self.report.handled.append(candidate.event)
        self.reach(value, "gradient", hold_scaled=True)

    def _confirm(self, candidate: Candidate, place: str) -> None:
        """Make an event of a candidate, or count it where the same line has had its event."""
        event = candidate.event
        if place not in event.reached:
            event.reached.append(place)
        if candidate.settled:
            return
        candidate.settled = True
        same = self._known.setdefault((event.operation, event.phase, event.source), event)
        if same is not event:
            same.count += 1
        elif len(self.report.events) < _EVENTS:
            event.order = candidate.order
            self.report.events.append(event)
            self.report.events.sort(key=lambda entered: (entered.step, entered.order))
            self.news = True

    def _carry(self, taint: Iterable[Candidate], call: Call) -> None:
        """Note on the candidates' paths that an operation read their value."""
        for candidate in taint:
            path = candidate.event.path
            if len(path) < _PATH and (source := call.line()) not in candidate.lines:
                candidate.lines.add(source)
                path.append((call.operation.name, source))

    def sweep(self, final: bool = False) -> None:
        """Decide what has been dropped without being read; at the end, also what is left over."""
        for key, value in list(self.values.items()):
            if final or not value.alive():
                del self.values[key]
                if not value.read:
                    self._unread(value, final)
        living = {candidate for value in self.values.values() for candidate in value.taint}
        for candidate in self._pending:
            if not candidate.settled and candidate not in living and candidate.real:
                place = (candidate.event.operation, str(candidate.event.source))
                self.report.discarded[place] = self.report.discarded.get(place, 0) + 1
        self._pending = [candidate for candidate in self._pending if not candidate.settled and candidate in living]

    def _unread(self, value: Value, final: bool = False) -> None:
        value.read = True
        if value.private or not value.made:
            return
        real = [candidate for candidate in value.taint if candidate.real]
        outside = [c for c in value.taint if c.event.origin == "outside" and c.state == State.NAN]
        for candidate in real or outside:
            if final or not candidate.scaled:  # GradScaler may still look at it
                self._confirm(candidate, "unread")


def _passes(operand: Operand, call: Call) -> bool:
    """Return whether an input's values can be behind the results that are not finite."""
    results = [result.tensor for result in call.results if result.state > State.FINITE]
    if not call.operation.pointwise or operand.tensor is None:
        return bool(results)
    return any(result is None or overlap(operand.tensor, result) for result in results)


def _swallows(operand: Operand, call: Call) -> bool:
    """Return whether arithmetic has made finite numbers of an input that is not."""
    if call.operation.pointwise and operand.tensor is not None:
        return any(result.tensor is not None and swallowed(operand.tensor, result.tensor) for result in call.results)
    return bool(call.results) and call.worst == State.FINITE
