"""From candidate to event: where a value that is not finite goes, and whether anything of it is left.

Each storage that holds such a value is registered with the candidates that its value comes from. An operation that reads
it hands these on to outputs that are not finite; where all are finite, it has discarded them. A candidate is confirmed
where a value of it reaches a loss, a gradient, a parameter or a Python number, is dropped or left without having been read,
or is swallowed by arithmetic: x / infinity = 0 after other operations have handed the infinity on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy.finiteness import State
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
        scaled: whether it arose in the backward of a loss scaled by GradScaler and would not have without the scale.
        state: the worst of its output.
    """

    order: int
    event: Event
    scaled: bool
    state: State
    confirmed: bool = False
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
        return not all(reference.expired() for reference in self.references)


class Verdicts:
    """The register of storages that are not finite, and what is decided from it.

    Args:
        report: where events are entered.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.values: dict[int, Value] = {}
        self.confirmed_new = False
        self._count = 0
        self._known: dict[tuple[str, str, Source | None], Event] = {}
        self._order: dict[int, int] = {}
        self._pending: list[Candidate] = []

    def candidate(self, event: Event, state: State, scaled: bool = False) -> Candidate:
        """Enter a candidate."""
        self._count += 1
        candidate = Candidate(self._count, event, scaled, state)
        self._pending.append(candidate)
        return candidate

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return what is known of a tensor's storage, if it is registered."""
        key = _key(tensor)
        return self.values.get(key) if key is not None else None

    def register(
        self,
        tensor: Tensor,
        taint: Iterable[Candidate],
        state: State,
        made: bool,
        carried: bool = False,
        private: bool = False,
    ) -> Value | None:
        """Enter a tensor that is not finite, and take its taint up where its storage is known already."""
        key = _key(tensor)
        if key is None:
            return None
        known = self.values.get(key)
        candidates = set(taint) | (set(known.taint) if known else set())
        ordered = tuple(sorted(candidates, key=lambda candidate: candidate.order))
        value = Value(ordered, state, [StorageWeakRef(tensor.untyped_storage())], made, carried, private)
        self.values[key] = value
        return value

    def share(self, value: Value, tensor: Tensor) -> None:
        """Let the storage of `tensor` have the same verdict as `value`."""
        key = _key(tensor)
        if key is not None:
            value.references.append(StorageWeakRef(tensor.untyped_storage()))
            self.values[key] = value

    def clear(self, tensor: Tensor) -> None:
        """Strike a storage off that has become finite."""
        key = _key(tensor)
        if key is not None:
            value = self.values.pop(key, None)
            if value and not value.read:
                self._unread(value)

    def reach(self, value: Value, place: str, hold_scaled: bool = False, only_real: bool = False) -> None:
        """Confirm all that `value` comes from: it has reached `place`.

        Args:
            value: of a tensor found there.
            place: "loss", "gradient", "parameter", "Python number", "swallowed" or "unread".
            hold_scaled: leave out what GradScaler may still handle.
            only_real: leave out what no operation made.
        """
        real = [candidate for candidate in value.taint if candidate.real]
        for candidate in real if real or only_real else value.taint:
            if not (hold_scaled and candidate.scaled):
                self.confirm(candidate, place)

    def confirm(self, candidate: Candidate, place: str) -> None:
        """Make an event of a candidate, or count it where the same line has had its event."""
        if place not in candidate.event.reached:
            candidate.event.reached.append(place)
        if candidate.confirmed:
            return
        candidate.confirmed = True
        event = candidate.event
        same = self._known.setdefault((event.operation, event.phase, event.source), event)
        if same is not event:
            same.count += 1
        elif len(self.report.events) < _EVENTS:
            self._order[id(event)] = candidate.order
            self.report.events.append(event)
            self.report.events.sort(key=lambda entered: self._order[id(entered)])
            self.confirmed_new = True

    def handle(self, value: Value) -> None:
        """GradScaler has found `value` in a gradient: what its scale caused is handled, the rest reached a gradient."""
        for candidate in value.taint:
            if candidate.scaled and not candidate.confirmed:
                candidate.confirmed = True
                self.report.handled.append(candidate.event)
        self.reach(value, "gradient", hold_scaled=True)

    def carry(self, taint: Iterable[Candidate], operation: str, source: Source | None) -> None:
        """Note on the candidates' paths that `operation` read their value and gave one that is not finite."""
        for candidate in taint:
            if len(candidate.event.path) < _PATH and source not in candidate.lines:
                candidate.lines.add(source)
                candidate.event.path.append((operation, source))

    def sweep(self, final: bool = False) -> None:
        """Decide what has been dropped without being read; at the end, also what is left over."""
        for key, value in list(self.values.items()):
            if final or not value.alive():
                del self.values[key]
                if not value.read:
                    self._unread(value, final)
        living = {candidate for value in self.values.values() for candidate in value.taint}
        for candidate in self._pending:
            if not candidate.confirmed and candidate not in living and candidate.real:
                place = (candidate.event.operation, str(candidate.event.source))
                self.report.discarded[place] = self.report.discarded.get(place, 0) + 1
        self._pending = [candidate for candidate in self._pending if not candidate.confirmed and candidate in living]

    def _unread(self, value: Value, final: bool = False) -> None:
        value.read = True
        if value.private or not value.made:
            return
        real = [candidate for candidate in value.taint if candidate.real]
        from_outside = [c for c in value.taint if c.event.origin == "outside" and c.state == State.NAN]
        for candidate in real or from_outside:
            if final or not candidate.scaled:  # GradScaler may still look at it
                self.confirm(candidate, "unread")


def _key(tensor: Tensor) -> int | None:
    try:
        key: Any = tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse, meta on some backends
        return None
    return int(key)
