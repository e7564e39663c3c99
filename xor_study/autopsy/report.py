"""What an autopsy found: events, the steps before them, and the story as text."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from xor_study.autopsy.finiteness import Summary
from xor_study.autopsy.sources import Source


@dataclass
class Event:
    """An operation that made something not finite, and whose value was not discarded.

    Attributes:
        operation: such as "aten.log.default".
        phase: "forward", "backward" or "optimizer" (an optimizer's `step`, clipping, unscaling).
        module: name of the module whose forward made the call, such as "Net.layers.2"; None outside any.
        source: the line, also as `filename`, `lineno` and `code`. For a backward operation it is that of the forward
            call it belongs to, except where the user's own Python made it (a custom function's `backward`, a hook).
        forward: for a backward operation, the line of the forward call it belongs to, if known.
        stack: the user's lines that led to it, innermost first.
        step: counted from 1; step k ends with the k-th optimizer step.
        kind: "overflow" (finite in float64), "infinite" (in float64 too), "NaN", or "unknown".
        origin: "operation"; or, for values that were not finite when first seen, "outside", and "constant" for those
            that the code itself asked for, such as a mask's -inf.
        inputs: what went in.
        outputs: what came out.
        reached: where it was found again: "loss", "gradient", "parameter", "Python number", "swallowed" (as in
            x / infinity = 0) or "unread".
        path: the first operations, each on another line, that carried the value on.
        count: how often the same operation on the same line was at fault.
        order: of the candidates, as they arose.
    """

    operation: str
    phase: str
    module: str | None
    source: Source | None
    forward: Source | None
    stack: tuple[Source, ...]
    step: int
    kind: str
    origin: str
    inputs: tuple[Summary, ...]
    outputs: tuple[Summary, ...]
    reached: list[str] = field(default_factory=list)
    path: list[tuple[str, Source | None]] = field(default_factory=list)
    count: int = 1
    order: int = 0

    @property
    def filename(self) -> str | None:
        """The file of the culprit line."""
        return self.source.filename if self.source else None

    @property
    def lineno(self) -> int | None:
        """The culprit line's number, from 1."""
        return self.source.lineno if self.source else None

    @property
    def code(self) -> str:
        """The culprit line's text."""
        return self.source.code if self.source else ""

    def __str__(self) -> str:
        module = f", in {self.module}" if self.module else ""
        place = f"{self.source}: {self.code}" if self.source else "at a line unknown"
        return f"{self.operation} ({self.phase}, step {self.step}{module}) {_did(self)}, {place}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self) | {"filename": self.filename, "lineno": self.lineno, "code": self.code}


@dataclass
class StepSummary:
    """The measures of one step.

    Attributes:
        step: counted from 1.
        loss: of the last `backward()` on a scalar (before GradScaler's scaling), or None.
        gradient_norm: over all parameters of the optimizers that stepped, as they found it.
        largest: per module, the largest absolute value that its forward gave.
        skipped: whether GradScaler left the optimizer's step out.
    """

    step: int
    loss: float | None = None
    gradient_norm: float | None = None
    largest: dict[str, float] = field(default_factory=dict)
    skipped: bool = False

    def __str__(self) -> str:
        parts = [f"step {self.step}:"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.6g}")
        if self.gradient_norm is not None:
            parts.append(f"gradient norm {self.gradient_norm:.6g}")
        if self.largest:
            name = max(self.largest, key=lambda module: _order(self.largest[module]))
            parts.append(f"largest activation {self.largest[name]:.6g} in {name}")
        if self.skipped:
            parts.append("(skipped by GradScaler)")
        return " ".join(parts)


@dataclass
class NearMiss:
    """Something that only came near.

    Attributes:
        kind: "overflow", "subnormal" or "saturated".
        operation, module, source, step: of its first time.
        value: the worst: the largest absolute value, or the share of elements.
        count: how often.
    """

    kind: str
    operation: str
    module: str | None
    source: Source | None
    step: int
    value: float
    count: int = 1

    def __str__(self) -> str:
        words = {
            "overflow": f"came near overflow ({self.value:.3g})",
            "subnormal": f"lost {self.value:.0%} of its elements to subnormal numbers",
            "saturated": f"is saturated in {self.value:.0%} of its elements",
        }
        return f"{self.operation} at {self.source} {words[self.kind]}, first in step {self.step}, {self.count} times"


class NonFiniteError(FloatingPointError):
    """Raised at an event where `on_event="raise"`; `event` and `report` say all that is known."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.events[0]}\n{report.story}")
        self.report = report
        self.event = report.events[0]


class Report:
    """What is known so far; complete after the `with` block.

    Attributes:
        events: confirmed candidates in the order in which they arose.
        handled: overflows of a scaled loss's gradient that GradScaler caught by skipping the step; no events.
        near_misses: what came near, where that was asked for.
        history: the last steps, the oldest first.
        discarded: how often a value that was not finite was made and then discarded, by operation and line.
        notes: what could not be seen.
        operations: how many operations were watched.
    """

    def __init__(self, keep: int) -> None:
        self.events: list[Event] = []
        self.handled: list[Event] = []
        self.near_misses: list[NearMiss] = []
        self.history: deque[StepSummary] = deque(maxlen=keep)
        self.discarded: dict[tuple[str, str], int] = {}
        self.notes: list[str] = []
        self.operations = 0
        self.allowing = 0

    @property
    def first(self) -> Event | None:
        """The earliest event, or None."""
        return self.events[0] if self.events else None

    @contextmanager
    def allow(self) -> Iterator[None]:
        """Within this block any operation may give what it likes, and so may its backward."""
        self.allowing += 1
        try:
            yield
        finally:
            self.allowing -= 1

    def note(self, text: str) -> None:
        """Say once what could not be seen."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def story(self) -> str:
        """What happened, as text."""
        return "\n".join(_story(self))

    def __str__(self) -> str:
        return self.story

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON (not finite numbers included)."""
        return {
            "events": [event.as_dict() for event in self.events],
            "handled": [event.as_dict() for event in self.handled],
            "near_misses": [dataclasses.asdict(miss) for miss in self.near_misses],
            "history": [dataclasses.asdict(summary) for summary in self.history],
            "notes": self.notes,
            "operations": self.operations,
        }


def _order(value: float) -> float:
    return float("inf") if value != value else value


def _did(event: Event) -> str:
    nan = sum(summary.nan for summary in event.outputs)
    infinite = sum(summary.infinite for summary in event.outputs)
    elements = sum(_numel(summary) for summary in event.outputs)
    if not all(summary.exact for summary in event.outputs):
        return "made NaN" if nan else "made infinities"
    counts = [f"{count} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count]
    made = (
        " and ".join(counts) + f" of {elements} element{'s' if elements != 1 else ''}"
        if counts
        else "values not finite"
    )
    if event.origin == "outside":
        return f"is the first to read values that came in from outside already not finite; it gave {made}"
    if event.origin == "constant":
        return f"put in {made}, as the code asks"
    return f"made {made}"


def _numel(summary: Summary) -> int:
    count = 1
    for size in summary.shape or ():
        count *= size
    return count


def _place(source: Source | None, indent: str = "  ") -> list[str]:
    if source is None:
        return [f"{indent}(line unknown)"]
    lines = [f"{indent}{source}, in {source.function}"]
    if source.code:
        lines.append(f"{indent}  {source.code}")
    if source.columns:
        start, end = source.columns
        lines.append(f"{indent}  {' ' * start}{'^' * (end - start)}")
    return lines


_REASONS = {
    "overflow": "In float64 the result would be finite: the number format overflowed.",
    "infinite": "In float64 it is infinite too: a pole, or growth without bound.",
    "NaN": "It is not defined for these values, in any number format.",
}


_ENDS = {
    "swallowed": "It was swallowed on the way, as in x / infinity = 0.",
    "unread": "Nothing read what was left of it.",
}


def _story(report: Report) -> list[str]:
    event = report.first
    if event is None:
        lines = [f"Nothing went wrong in {report.operations} operations."]
    else:
        lines = _event_story(event)
        before = [summary for summary in report.history if summary.step <= event.step]
        if before:
            lines += ["Before it:", *(f"  {summary}" for summary in before[-8:])]
        if len(report.events) > 1:
            lines.append("After it:")
            lines += [f"  {later}" for later in report.events[1:6]]
            lines += [f"  and {len(report.events) - 6} more"] if len(report.events) > 6 else []
    if report.handled:
        lines.append(f"Overflows of the scaled loss that GradScaler handled, no events: {len(report.handled)}, such as")
        lines.append(f"  {report.handled[-1]}")
    lines += [f"Near miss: {miss}" for miss in report.near_misses]
    lines += [f"Note: {note}" for note in report.notes]
    return lines


def _event_story(event: Event) -> list[str]:
    module = f" in {event.module}" if event.module else ""
    lines = [f"Step {event.step}, {event.phase}{module}: {event.operation} {_did(event)}."]
    lines += _place(event.source)
    if event.forward and event.forward != event.source:
        lines += ["  in the backward of", *_place(event.forward, "    ")]
    lines += [f"  called from {source}: {source.code}" for source in event.stack if source != event.source]
    lines += ["Inputs:", *(f"  {summary}" for summary in event.inputs)] if event.inputs else []
    lines += ["Outputs:", *(f"  {summary}" for summary in event.outputs)] if event.outputs else []
    if event.origin == "operation" and event.kind in _REASONS:
        lines.append(_REASONS[event.kind])
    if event.path:
        lines.append("The value went on through:")
        lines += [
            f"  {operation}  {source}: {source.code}" if source else f"  {operation}"
            for operation, source in event.path
        ]
    reached = [f"a {place}" for place in event.reached if place not in _ENDS]
    lines += [f"It reached {', '.join(reached)}."] if reached else []
    return lines + [_ENDS[place] for place in event.reached if place in _ENDS]
