"""Checks that are read together: where asking for a number stops an accelerator, it is asked for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy.finiteness import State, Summary, values_of
from xor_study.autopsy.operations import Operation
from xor_study.autopsy.report import Event
from xor_study.autopsy.sources import Source
from xor_study.autopsy.taint import Call, Operand, Verdicts

SIZE = 2000


class Bounds(NamedTuple):
    """The smallest and the largest element of a tensor; both NaN if one is."""

    low: float
    high: float

    @property
    def state(self) -> State:
        """What they say of all elements."""
        if math.isnan(self.low):
            return State.NAN
        return State.INFINITE if math.isinf(self.low) or math.isinf(self.high) else State.FINITE


@dataclass(eq=False)
class Part:
    """A tensor of a recorded operation: its storage, and which check belongs to it, if any."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    key: int | None
    reference: StorageWeakRef | None
    check: int | None
    whole: bool = False
    parameter: bool = False

    def summary(self, bounds: Bounds | None) -> Summary:
        """Return what its check says."""
        if bounds is None:
            return Summary(self.name, self.dtype, self.shape, None, None)
        if bounds.state == State.FINITE:
            return Summary(self.name, self.dtype, self.shape, bounds.low, bounds.high)
        nan = bounds.state == State.NAN
        return Summary(self.name, self.dtype, self.shape, None, None, nan=int(nan), infinite=int(not nan), exact=False)


@dataclass(eq=False)
class Record:
    """An operation whose outputs are still to be judged, or a place that a tensor has reached."""

    operation: Operation
    inputs: list[Part]
    results: list[Part]
    numbers: State
    allowed: bool
    accumulating: bool
    engine: bool
    scaled: bool
    phase: str
    module: str | None
    step: int
    locate: Callable[[], tuple[Source | None, Source | None]]
    place: str = ""


@dataclass(eq=False)
class Batch:
    """Records operations with a check of each output, and judges them when told to.

    A storage is judged as a whole: of a tensor that covers part of it, the rest is not looked at.

    Args:
        verdicts: what judges.
    """

    verdicts: Verdicts
    records: list[Record] = field(default_factory=list)
    _checks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _latest: dict[int, tuple[int, StorageWeakRef]] = field(default_factory=dict)

    def part(self, name: str, tensor: Tensor, key: int | None, reference: StorageWeakRef | None, fresh: bool) -> Part:
        """Return a tensor's part in a record, and check it if it is `fresh` or has never been checked."""
        check = None
        if (fresh or key not in self._latest) and (values := values_of(tensor)) is not None and values.numel():
            check = len(self._checks)
            low, high = torch.aminmax(values)
            self._checks.append((low, high))
            if key is not None and reference is not None:
                self._latest[key] = check, reference
        elif key is not None and key in self._latest and not fresh:
            check = self._latest[key][0]
        dtype = str(tensor.dtype).removeprefix("torch.")
        return Part(name, dtype, tuple(tensor.shape), key, reference, check)

    def flush(self) -> None:
        """Fetch all checks, with one synchronisation for each dtype, and judge the records in their order."""
        records, self.records = self.records, []
        bounds = _fetch(self._checks)
        for record in records:
            if record.place:
                self._reach(record)
            else:
                self._judge(record, bounds)
        self._forget()

    def _forget(self) -> None:
        """Drop the checks; storages that live on and were finite need no new one."""
        self._checks = []
        self._latest = {}

    def _reach(self, record: Record) -> None:
        for part in record.inputs:
            value = self.verdicts.values.get(part.key) if part.key is not None else None
            if value:
                self.verdicts.reach(value, record.place, hold_scaled=True)

    def _judge(self, record: Record, bounds: list[Bounds]) -> None:
        def state(part: Part) -> State:
            return bounds[part.check].state if part.check is not None else State.FINITE

        def summaries(parts: Iterable[Part]) -> tuple[Summary, ...]:
            return tuple(part.summary(bounds[part.check] if part.check is not None else None) for part in parts)

        def describe(origin: str) -> Event:
            source, forward = record.locate()
            return Event(
                operation=record.operation.name,
                phase=record.phase,
                module=record.module,
                source=source,
                forward=forward,
                stack=(),
                step=record.step,
                kind="NaN"
                if max(map(state, record.results)) == State.NAN
                else "overflow"
                if record.scaled
                else "unknown",
                origin=origin,
                inputs=summaries(record.inputs),
                outputs=summaries(part for part in record.results if state(part) > State.FINITE)[:1],
            )

        values = self.verdicts.values
        inputs = [Operand(part.key, part.reference, self._input_state(part, state(part))) for part in record.inputs]
        results = [
            Operand(
                part.key,
                part.reference,
                state(part),
                overwritten=part.whole and part.key in values,
                parameter=part.parameter,
            )
            for part in record.results
        ]
        known = [values[operand.key] for operand in inputs if operand.key in values]
        if not known and all(operand.state == State.FINITE for operand in inputs + results):
            return
        if record.operation.short == "abs" and known:
            self.verdicts.share(known[0], results[0])
        elif record.operation.unscales:
            for value in known:
                self.verdicts.handle(value)
        else:
            call = Call(
                operation=record.operation,
                inputs=inputs,
                results=results,
                numbers=record.numbers,
                allowed=record.allowed,
                accumulating=record.accumulating,
                engine=record.engine,
                scaled=record.scaled,
                line=lambda: record.locate()[0],
                describe=describe,
            )
            self.verdicts.judge(call)

    def _input_state(self, part: Part, checked: State) -> State:
        value = self.verdicts.values.get(part.key) if part.key is not None else None
        return value.state if value else checked


def _fetch(checks: list[tuple[Tensor, Tensor]]) -> list[Bounds]:
    """Return the numbers behind the checks."""
    found: list[Bounds] = [Bounds(0.0, 0.0)] * len(checks)
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, (low, _) in enumerate(checks):
        groups.setdefault((low.dtype, low.device), []).append(index)
    for indices in groups.values():
        stacked = torch.stack([bound for index in indices for bound in checks[index]]).tolist()
        for position, index in enumerate(indices):
            found[index] = Bounds(stacked[2 * position], stacked[2 * position + 1])
    return found
