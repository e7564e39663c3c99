"""Risky compositions: operations on an operand that can reach an edge, where a stable form of the same exists.

Nothing has to fail: what counts is how an operand was computed. Each tensor carries a `Fact`, such as "this is a
softmax, so its elements are between 0 and 1, both included", through operations on it; `log` of it is then named,
while `log` of the same tensor after `clamp(min=1e-8)` is not. Facts are kept for a storage, so views share them, a
write in place changes or removes them, and they end with the storage. They hold no tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from xor_study.autopsy import sources
from xor_study.autopsy.facts import DERIVE, Call, Fact, Facts
from xor_study.autopsy.finiteness import tensors_in
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.report import Report, Risk
from xor_study.autopsy.rules import BY_ROLE, ROLES, Operand, Rule, roles_of
from xor_study.autopsy.sites import graph_task
from xor_study.autopsy.storage import covers_storage, reference_to, storage_key

_SWEEP_EVERY = 1024
_TORCH = Path(torch.__file__).parent
_LAYERS = tuple(str(_TORCH / folder) + os.sep for folder in ("nn", "distributions", "optim", "utils"))


class _Kept(NamedTuple):
    """A storage's fact; the reference keeps its key from being used for another storage."""

    fact: Fact
    reference: StorageWeakRef


class _Known(NamedTuple):
    """What is known of an operation: its name without overload and trailing underscore, and what it writes."""

    short: str
    derive: Callable[[Call], Fact | None] | None
    writes: tuple[int | str, ...]


def _known(func: Any) -> _Known:
    schema = getattr(func, "_schema", None)
    if schema is None:
        return _Known("", None, ())
    writes = tuple(
        argument.name if argument.kwarg_only else index
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    short = schema.name.partition("::")[2].rstrip("_")
    if short == "div" and "mode" in str(func):  # rounds: another function
        return _Known("", None, writes)
    return _Known(short, DERIVE.get(short), writes)


class Lint:
    """Names risky compositions in the forward. Reads no tensor's values.

    Args:
        report: where risks are entered.
        modules: which module is running.
    """

    def __init__(self, report: Report, modules: Modules) -> None:
        self._report = report
        self._modules = modules
        self._facts: dict[int, _Kept] = {}
        self._limit = _SWEEP_EVERY
        self._operations: dict[Any, _Known] = {}
        self._risks: dict[tuple[str, str, int], Risk] = {}

    def before(self, func: Any, args: tuple[Any, ...]) -> Facts | None:
        """Return what is known of the positional arguments of an operation that is about to run.

        Args:
            func: the operation.
            args: its positional arguments; of an operation that joins tensors, each of them is one.

        Returns:
            One fact for each, or None if the operation tells nothing.
        """
        known = self._operations.get(func)
        if known is None:
            known = self._operations[func] = _known(func)
        if not (known.derive or known.short in ROLES) or graph_task() != -1:
            return None
        listed = args[0] if known.short in ("cat", "stack") else args
        return [self._fact(argument) for argument in listed]

    def after(
        self, func: Any, facts: Facts | None, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, frame: FrameType
    ) -> None:
        """Name an operation that has run if it is risky, and note what is known of its result.

        Args:
            func: the operation.
            facts: what `before` returned.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: what it returned.
            frame: its caller.
        """
        known = self._operations.get(func) or _known(func)  # `before` may have failed
        derived = None
        result = next(tensors_in(out), None)
        if facts is not None and result is not None and (result.is_floating_point() or result.is_complex()):
            self._check(known.short, facts, args, result, frame)
            if known.derive and kwargs.get("alpha", 1) == 1:
                derived = known.derive(Call(self._with_bounds(facts, kwargs), args, result))
        if known.writes:
            written = tensors_in([args[at] if isinstance(at, int) else kwargs.get(at) for at in known.writes])
            for tensor in written:
                self._overwrite(tensor, derived)
        elif result is not None and derived:
            self._keep_fact(result, derived)

    def _fact(self, argument: Any) -> Fact | None:
        if isinstance(argument, Tensor):
            kept = self._facts.get(storage_key(argument) or 0) if self._facts else None
            return kept.fact if kept else None
        number = isinstance(argument, int | float) and not isinstance(argument, bool)
        return Fact("number", float(argument), float(argument)) if number else None

    def _with_bounds(self, facts: Facts, kwargs: dict[str, Any]) -> Facts:
        """Return facts of positional arguments with those of clamp's `min` and `max` where they are named."""
        if "max" not in kwargs and "min" not in kwargs:
            return facts
        rest = [self._fact(kwargs[name]) if name in kwargs else None for name in ("min", "max")]
        return [*facts[:1], facts[1] if len(facts) > 1 else rest[0], facts[2] if len(facts) > 2 else rest[1]]

    def _overwrite(self, tensor: Tensor, derived: Fact | None) -> None:
        """Replace a storage's fact; where only a part of it was written, the rest must be of the same sort."""
        key = storage_key(tensor)
        old = self._facts.pop(key, None) if key is not None else None
        if derived is None or key is None:
            return
        if covers_storage(tensor):
            self._keep_fact(tensor, derived)
        elif old and old.fact.what == derived.what:
            low, high = min(old.fact.low, derived.low), max(old.fact.high, derived.high)
            self._keep_fact(tensor, Fact(derived.what, low, high))

    def _keep_fact(self, tensor: Tensor, fact: Fact) -> None:
        key, reference = storage_key(tensor), reference_to(tensor)
        if key is None or reference is None:
            return
        self._facts[key] = _Kept(fact, reference)
        if len(self._facts) > self._limit:
            self._facts = {
                key: kept
                for key, kept in list(self._facts.items())  # another thread may add to it
                if not kept.reference.expired()  # type: ignore[no-untyped-call]
            }
            self._limit = 2 * len(self._facts) + _SWEEP_EVERY

    def _check(self, short: str, facts: Facts, args: tuple[Any, ...], result: Tensor, frame: FrameType) -> None:
        for role, position in roles_of(short, facts):
            fact = facts[position] if position < len(facts) else None
            if fact is None or fact.what == "number":
                continue
            gradient = torch.is_grad_enabled() and args[position].requires_grad
            operand = Operand(role, fact, gradient, result.dtype)
            for rule in BY_ROLE.get(role, ()):
                if fact.what in rule.of and rule.when(operand):
                    self._enter(rule, short, frame)

    def _enter(self, rule: Rule, short: str, frame: FrameType) -> None:
        user = sources.user_frame(frame)
        if user is None or _is_torchs_own(frame, user):
            return
        source = sources.source_of(user)
        key = rule.name, source.filename, source.lineno
        risk = self._risks.get(key)
        if risk is None:
            module = self._modules.current
            risk = Risk(rule.name, f"aten.{short}", module, source, rule.stable, rule.source, 0)
            self._risks[key] = risk
            self._report.risks.append(risk)
        risk.count += 1


def _is_torchs_own(frame: FrameType | None, user: FrameType) -> bool:
    """Return whether a layer, distribution or optimizer of torch made the call: the user cannot write it otherwise."""
    while frame is not None and frame is not user:
        if frame.f_code.co_filename.startswith(_LAYERS):
            return True
        frame = frame.f_back
    return False
