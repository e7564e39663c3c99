"""What `autopsy` yields: events, the steps before them, and the story as text."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xor_study.autopsy.finiteness import Summary
from xor_study.autopsy.sources import Source

if TYPE_CHECKING:
    from xor_study.autopsy.advice import Advice
    from xor_study.autopsy.captures import Capture

COMPILED = (
    "code under torch.compile ran uncompiled while it was watched: effects of its fused kernels alone (their rounding, "
    "their order of operations) were not seen"
)


_TRAINING = {"loss", "gradient", "parameter", "error"}


@dataclass
class Event:
    """An operation that gave a non-finite value which had an effect.

    Attributes:
        operation: such as "aten.log.default".
        phase: "forward", "backward" or "optimizer" (an optimizer's `step`, clipping, unscaling).
        module: name of the module whose forward made the call, such as "Net.layers.2"; None outside any.
        source: the line, also as `filename`, `lineno` and `code`. For a backward operation it is that of the forward
            call it belongs to, except where the user's own Python made it (a custom function's `backward`, a hook).
        forward: for a backward operation, the line of the forward call it belongs to, if known.
        stack: the user's lines that led to it, innermost first; empty with batched checks.
        step: counted from 1; step k ends with the k-th optimizer step.
        kind: "overflow" (finite in float64), "infinite" (in float64 too), "NaN", or "unknown".
        origin: "operation"; or "constant" for values that the code itself put in, such as a mask's -inf, and "spread"
            for a sum that took them in; or, for values that were not finite when first read, "received" (from another
            process), "uninitialised" (memory that nothing has been seen to write) or "outside".
        origin_operation, origin_source: what brought in or allocated a value of the last three origins, and its line.
        inputs: what went in.
        outputs: the first output that is not finite.
        reached: what the value reached: "loss", "gradient", "parameter", "error" (the exception that ended the block),
            "Python number", "swallowed" (as in x / infinity = 0) or "unread".
        path: the first operations, each on another line, that passed the value on.
        count: the number of times that the same operation on the same line was at fault.
        order: the number of its candidate, by which events of one step are sorted.
        cause: of a number that is not finite in an optimizer's step, whose it is, such as "lr of SGD's group 0 is nan".
        node: in a backward, autograd's name for the function whose derivative it computes, such as "SqrtBackward0".
        capture: what `reproduce` needs, or why it can't.
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
    origin_operation: str | None = None
    origin_source: Source | None = None
    cause: str = ""
    node: str | None = None
    capture: Capture | str = field(default="it is not known what it was called with", repr=False)

    @property
    def severity(self) -> int:
        """0 for what reached the training itself, 1 for what Python read, 2 for the rest."""
        return 0 if _TRAINING & set(self.reached) else 1 if "Python number" in self.reached else 2

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
        line = f"{self.source}: {self.code}" if self.source else "at an unknown line"
        return f"{self.operation} ({self.phase}, step {self.step}{module}) {_did(self)}, {line}"

    @property
    def advice(self) -> Advice | None:
        """What helps against a failure of this kind, from a table with sources; None if the table has no row for it."""
        from xor_study.autopsy.advice import advice_for  # only a report asks for it

        return advice_for(self)

    def reproduce(self, path: str | os.PathLike[str]) -> None:
        """Write a script that makes the call again, with its inputs, and needs nothing but torch.

        The script prints how many values were not finite before and after, and exits with 1 if the failure shows.
        Of an operation that works element by element, only elements at fault are kept; of others all inputs, up to
        4 MiB for an event and 64 MiB for all. A custom operation's module must be imported in the script by hand.

        Args:
            path: of the script; an existing file is overwritten.

        Raises:
            ValueError: if the inputs were not kept (the message says why), or the failure does not show again.
        """
        from xor_study.autopsy.script import write

        write(self, path)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, capture=""))
        del values["capture"]
        advice = self.advice and self.advice._asdict()
        return values | {"filename": self.filename, "lineno": self.lineno, "code": self.code, "advice": advice}


@dataclass
class StepSummary:
    """The measures of one step.

    Attributes:
        step: counted from 1.
        loss: of the last `backward()` on a scalar (before GradScaler's scaling), or None.
        gradient_norm: over all parameters of the optimizer that stepped last, before its step.
        largest: by module, the largest absolute value of its outputs.
        skipped: whether GradScaler skipped the optimizer's step.
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
    """An operand near the edge of its operation, or a finite output near a limit of its format or activation.

    Attributes:
        kind: "edge", "overflow", "subnormal" or "saturated".
        operation, module, source, step: of the first occurrence.
        value: the worst occurrence: the element nearest to the edge, the largest absolute value, or the share of
            elements, from 0 to 1.
        count: the number of occurrences.
        edge: for "edge", which one, such as "0, where it is -inf".
    """

    kind: str
    operation: str
    module: str | None
    source: Source | None
    step: int
    value: float
    count: int = 1
    edge: str | None = None

    def __str__(self) -> str:
        words = {
            "edge": f"came near {self.edge} ({self.value:.9g})",
            "overflow": f"came near overflow ({self.value:.3g})",
            "subnormal": f"lost {self.value:.0%} of its elements to subnormal numbers",
            "saturated": f"is saturated in {self.value:.0%} of its elements",
        }
        return f"{self.operation} at {self.source} {words[self.kind]}, first in step {self.step}, {self.count} times"


@dataclass
class Risk:
    """A composition of operations that can fail, and has a stable form; see `xor_study.autopsy.lint.RULES`.

    Attributes:
        rule: its name, such as "log of softmax".
        operation, module, source: of the last of the operations, where it ran first.
        stable: what to write instead.
        reference: address of what says so.
        count: how often it ran.
    """

    rule: str
    operation: str
    module: str | None
    source: Source
    stable: str
    reference: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.source}: {self.rule}"


class NonFiniteError(FloatingPointError):
    """Raised at an event if `on_event="raise"`; `event` is the event and `report` the report so far."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.events[0]}\n{report.story}")
        self.report = report
        self.event = report.events[0]


class Report:
    """What an autopsy has found so far; complete after the `with` block.

    Attributes:
        events: what reached the loss, a gradient, a parameter or an error first, then what Python read, then the rest;
            among these in the order in which their operations ran.
        unresolved: if an exception ended the block, values that were not finite and that nothing had read by then.
        handled: overflows of a scaled loss's gradient that GradScaler caught by skipping the step; not events.
        near_misses: if `near_misses` was set.
        risks: if `lint` was set: compositions that have a stable form, in the order in which they ran.
        history: the last steps, the oldest first.
        discarded: the number of non-finite values that were made and then discarded, by operation and line.
        notes: what the autopsy could not see.
        operations: the number of operations that were watched.
        on_event: is called with each event as it is confirmed, when what it reaches later is not yet known.

    Args:
        keep: the number of last steps in `history`.
    """

    def __init__(self, keep: int) -> None:
        self.events: list[Event] = []
        self.unresolved: list[Event] = []
        self.handled: list[Event] = []
        self.near_misses: list[NearMiss] = []
        self.risks: list[Risk] = []
        self.history: deque[StepSummary] = deque(maxlen=keep)
        self.discarded: dict[tuple[str, str], int] = {}
        self.notes: list[str] = []
        self.operations = 0
        self.allowing = 0
        self.on_event: Callable[[Event], object] | None = None

    @property
    def first(self) -> Event | None:
        """The earliest of the most severe events, or None."""
        return self.events[0] if self.events else None

    def enter(self, event: Event) -> None:
        """Add an event at its place, and tell `on_event`."""
        self.events.append(event)
        self.rank()
        if self.on_event is not None:
            self.on_event(event)

    def rank(self) -> None:
        """Put the events in order. Candidates are not confirmed in the order in which they arise."""
        self.events.sort(key=lambda event: (event.severity, event.step, event.order))

    def find(
        self,
        *,
        module: str | None = None,
        file: str | None = None,
        phase: str | None = None,
        reached: str | None = None,
    ) -> list[Event]:
        """Return the events that fit all that is given.

        Args:
            module: a module's name or a pattern for it, such as "Net.layers.*"; modules within it fit, too.
            file: the end of the culprit line's file name, or a pattern for it.
            phase: as in `Event`.
            reached: as in `Event`.

        Example:
            >>> import torch
            >>> from xor_study.autopsy import autopsy
            >>> with autopsy() as report:
            ...     torch.log(torch.zeros(1, requires_grad=True)).sum().backward()
            >>> [event.operation for event in report.find(phase="forward")], report.find(phase="optimizer")
            (['aten.log.default'], [])
        """
        return [
            event
            for event in self.events
            if (module is None or fnmatchcase(event.module or "", module) or _within(event.module, module))
            and (file is None or fnmatchcase(event.filename or "", f"*{file}"))
            and phase in (None, event.phase)
            and (reached is None or reached in event.reached)
        ]

    def reproduce(self, path: str | os.PathLike[str]) -> None:
        """Write a script that shows the first event's failure in isolation; see `Event.reproduce`.

        Raises:
            ValueError: if there is no event, or as `Event.reproduce` does.

        Example:
            >>> import torch
            >>> from xor_study.autopsy import autopsy
            >>> with autopsy() as report:
            ...     scores = torch.full((2, 4), 90.0).exp()
            >>> report.reproduce("failure.py")
            >>> print(Path("failure.py").read_text().splitlines()[0])
            # aten.exp.default (forward, step 1) made 8 infinite of 8 elements, ...
        """
        if self.first is None:
            raise ValueError("there is nothing to reproduce: the report has no event")
        self.first.reproduce(path)

    @contextmanager
    def allow(self) -> Iterator[None]:
        """Exempt all operations in this block, and their backward."""
        self.allowing += 1
        try:
            yield
        finally:
            self.allowing -= 1

    def note(self, text: str) -> None:
        """Add a note, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def story(self) -> str:
        """What happened, as text."""
        return "\n".join(_story(self))

    def __str__(self) -> str:
        return self.story

    def __repr__(self) -> str:
        text = f"Report: {_count(len(self.events), 'event')}"
        if self.history:
            text += f" in {_count(self.history[-1].step, 'step')}"
        if self.first is None:
            return f"<{text}, {_count(self.operations, 'operation')}>"
        source = self.first.source
        line = f"{Path(source.label).name}:{source.lineno}: {source.code}" if source else "an unknown line"
        return f"<{text}; first: {self.first.operation} ({self.first.phase}, step {self.first.step}) at {line}>"

    def _repr_html_(self) -> str:
        from xor_study.autopsy import page  # rarely needed, and costs a tenth of what the package takes to import

        return page.fragment(self)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; non-finite numbers are floats (see `write_json`)."""
        return {
            "events": [event.as_dict() for event in self.events],
            "unresolved": [event.as_dict() for event in self.unresolved],
            "handled": [event.as_dict() for event in self.handled],
            "near_misses": [dataclasses.asdict(miss) for miss in self.near_misses],
            "risks": [dataclasses.asdict(risk) for risk in self.risks],
            "history": [dataclasses.asdict(summary) for summary in self.history],
            "notes": self.notes,
            "operations": self.operations,
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the story and `as_dict()` as JSON, in which non-finite numbers are "nan", "inf" and "-inf".

        Args:
            path: the file to write or replace.

        Raises:
            OSError: if it can't be written.

        Example:
            >>> import json, torch
            >>> from pathlib import Path
            >>> from xor_study.autopsy import autopsy
            >>> with autopsy() as report:
            ...     torch.zeros(1).log()
            tensor([-inf])
            >>> report.write_json("autopsy.json")
            >>> json.loads(Path("autopsy.json").read_text())["events"][0]["outputs"][0]["offending"]
            ['-inf']
        """
        values = {"story": self.story, **self.as_dict()}
        Path(path).write_text(f"{json.dumps(json_values(values), indent=1, allow_nan=False)}\n", encoding="utf-8")

    def write_html(self, path: str | os.PathLike[str], title: str = "Autopsy") -> None:
        """Write the report as one page that needs no other file: the story, code, values, path and curves.

        Args:
            path: the file to write or replace.
            title: of the page.

        Raises:
            OSError: if it can't be written.

        Example:
            >>> import torch
            >>> from xor_study.autopsy import autopsy
            >>> with autopsy() as report:
            ...     torch.zeros(1).log()
            tensor([-inf])
            >>> report.write_html("autopsy.html")
        """
        from xor_study.autopsy import page

        Path(path).write_text(page.document(self, title), encoding="utf-8")


def json_values(value: Any) -> Any:
    """Return plain values as JSON can say them: non-finite numbers as "nan", "inf" or "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    return [json_values(item) for item in value] if isinstance(value, list | tuple) else value


def _within(name: str | None, module: str) -> bool:
    return name is not None and name.startswith(f"{module}.")


def _order(value: float) -> float:
    return math.inf if value != value else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _did(event: Event) -> str:
    nan = sum(summary.nan for summary in event.outputs)
    if not all(summary.exact for summary in event.outputs):
        return "made NaN" if nan else "made infinities"
    values = _values(event, nan)
    return _ORIGINS.get(event.origin, "made {}").format(values)


_ORIGINS = {
    "outside": "is the first to read values that came in from outside and were not finite; it gave {}",
    "received": "is the first to read values that came from another process and were not finite; it gave {}",
    "uninitialised": "is the first to read memory that nothing has been seen to write; it gave {}",
    "constant": "put in {}, as the code asks",
    "spread": "summed over infinities that the code had put in, and gave {}",
}


def _values(event: Event, nan: int) -> str:
    """Return the number of outputs that are not finite, of an event whose elements were counted."""
    infinite = sum(summary.infinite for summary in event.outputs)
    elements = sum(math.prod(summary.shape or ()) for summary in event.outputs)
    counts = [f"{count} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {_count(elements, 'element')}" if counts else "values not finite"


def _source_lines(source: Source | None, indent: str = "  ") -> list[str]:
    if source is None:
        return [f"{indent}(line unknown)"]
    lines = [f"{indent}{source}, in {source.function}"]
    if source.code:
        lines.append(f"{indent}  {source.code}")
    if source.columns:
        start, end = source.columns
        lines.append(f"{indent}  {' ' * start}{'^' * (end - start)}")
    return lines


REASONS = {
    "overflow": "In float64 the result would be finite: the number format overflowed.",
    "infinite": "In float64 it is infinite too: a pole, or growth without bound.",
    "NaN": "It is not defined for these values, in any number format.",
}
"""What each kind of event means."""


_ENDS = {
    "swallowed": "It was swallowed on the way, as in x / infinity = 0.",
    "unread": "Nothing read what was left of it.",
}


def _story(report: Report) -> list[str]:
    if report.first is None:
        lines = [f"Nothing went wrong in {report.operations} operations."]
    else:
        lines = [*_event_story(report.first), *_surroundings(report, report.first)]
    if report.unresolved:
        lines.append("An exception ended the block while values were not finite that nothing had read yet:")
        lines += [f"  {event}" for event in report.unresolved]
    if report.handled:
        overflows = _count(len(report.handled), "overflow")
        lines.append(f"GradScaler handled {overflows} of the scaled loss (not events), such as")
        lines.append(f"  {report.handled[-1]}")
    lines += [f"Near miss: {miss}" for miss in report.near_misses]
    lines += _titled("Risky:", [line for risk in report.risks for line in _risk_lines(risk)])
    lines += [f"Note: {note}" for note in report.notes]
    return lines


def _risk_lines(risk: Risk) -> Iterator[str]:
    yield str(risk)
    yield f"  {risk.source.code}"
    yield f"  stable: {risk.stable}"
    yield f"  see {risk.reference}"


def _surroundings(report: Report, event: Event) -> Iterator[str]:
    """Yield the steps before the first event, and the later events."""
    before = [summary for summary in report.history if summary.step <= event.step]
    if before:
        yield "Before it:"
        yield from (f"  {summary}" for summary in before[-8:])
    if len(report.events) > 1:
        yield "After it:"
        yield from (f"  {later}" for later in report.events[1:6])
    if len(report.events) > 6:
        yield f"  and {len(report.events) - 6} more"


def _event_story(event: Event) -> Iterator[str]:
    module = f" in {event.module}" if event.module else ""
    yield f"Step {event.step}, {event.phase}{module}: {event.operation} {_did(event)}."
    yield from _source_lines(event.source)
    if event.forward and event.forward != event.source:
        yield "  in the backward of"
        yield from _source_lines(event.forward, "    ")
    yield from (f"  called from {source}: {source.code}" for source in event.stack if source != event.source)
    yield from _titled("Inputs:", event.inputs)
    yield from _titled("Outputs:", event.outputs)
    if event.origin == "operation" and event.kind in REASONS:
        yield REASONS[event.kind]
    if event.cause:
        yield f"{event.cause}."
    if event.origin_operation:
        verb = "came with" if event.origin == "received" else "was allocated by"
        yield f"What it read {verb} {event.origin_operation}:"
        yield from _source_lines(event.origin_source)
    steps = [f"{name}  {source}: {source.code}" if source else name for name, source in event.path]
    yield from _titled("The value went on through:", steps)
    reached = [_article(what) for what in event.reached if what not in _ENDS]
    if reached:
        yield f"It reached {', '.join(reached)}."
    yield from (_ENDS[what] for what in event.reached if what in _ENDS)
    if event.advice:
        yield f"What helps: {event.advice.text} ({event.advice.source})"


def _article(noun: str) -> str:
    return "the error that ended the block" if noun == "error" else f"a {noun}"


def _titled(title: str, items: Sequence[object]) -> list[str]:
    """Return a title and its items, indented; nothing without items."""
    return [title, *(f"  {item}" for item in items)] if items else []
