"""A small typed program on scalars: what one SIMD lane computes in one step.

A `Program` is a list of statements in static single assignment form: a statement is an operation on earlier statements
and is named by its place in the list. `str(program)` prints one a line::

    %41 = float32 fma %3, %17, %40

Statements are built by `Builder`, which merges equal ones and simplifies only what is exact in IEEE 754 arithmetic,
NaN, infinities and the sign of zero included. 0 x is no constant: of infinity it is NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import numpy as np

FLOATS = ("float32", "float64")
INTEGER_OF = {"float32": "int32", "float64": "int64"}
FLOAT_OF = {integer: kind for kind, integer in INTEGER_OF.items()}
BOOL = "bool"

Number = int
"""A statement, by its place in its program."""


class Statement(NamedTuple):
    """One operation.

    Attributes:
        op: "constant", "input", or one of `OPERATIONS`.
        operands: earlier statements.
        type: "float32", "float64", "int32", "int64" or "bool".
        value: of a constant its bits (an int); of an input its name.
    """

    op: str
    operands: tuple[Number, ...]
    type: str
    value: Any = None


ARITHMETIC = ("add", "sub", "mul", "div", "fma", "neg", "abs", "sqrt")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
INTEGER = ("iadd", "isub", "umax", "and", "or", "xor", "shl", "ashr", "lshr")
FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "erf")
MANY = {"max_abs": "umax", "all_finite": "or", "sum": "add", "sum_of_squares": "add"}
CONVERSIONS = ("convert", "bitcast")
OPERATIONS = (*ARITHMETIC, *COMPARISONS, *INTEGER, *FUNCTIONS, *CONVERSIONS, *MANY, "where")
"""What a statement may do. All follow IEEE 754: comparisons with NaN are false but for `ne`. Those in `MANY` take any
number of operands; `max_abs`, the largest absolute value, is NaN if one of them is."""

_COMMUTATIVE = ("add", "mul", "iadd", "umax", "and", "or", "xor", "eq", "ne")


@dataclass(frozen=True)
class Program:
    """What one lane computes.

    Attributes:
        statements: in order.
        outputs: the statements that are results, by name.
        sides: for each statement what it shares with those that are best computed beside it, or None. Most belong to
            the four corners: one waits for a result while the others are computed.
    """

    statements: tuple[Statement, ...]
    outputs: dict[str, Number]
    sides: tuple[Any, ...]

    def ordered(self, order: Iterable[Number]) -> Program:
        """Return the statements in another order, or some of them; operands must come before what uses them."""
        new: dict[Number, Number] = {}
        kept: list[Statement] = []
        for number in order:
            op, operands, kind, value = self.statements[number]
            new[number] = len(kept)
            kept.append(Statement(op, tuple(new[operand] for operand in operands), kind, value))
        sides = tuple(self.sides[number] for number in new)
        return Program(tuple(kept), {name: new[number] for name, number in self.outputs.items()}, sides)

    def __str__(self) -> str:
        names = {number: name for name, number in self.outputs.items()}
        lines = []
        for number, (op, operands, kind, value) in enumerate(self.statements):
            told = ", ".join(f"%{operand}" for operand in operands)
            if op == "input":
                told = value
            elif op == "constant":
                told = repr(decode(value, kind))
            note = f"  # {names[number]}" if number in names else ""
            lines.append(f"%{number} = {kind} {op} {told}{note}")
        return "\n".join(lines)


def encode(value: float, kind: str) -> int:
    """Return the bits of a number of a type, so that -0.0 is not 0.0 and NaN equals itself."""
    if kind in FLOATS:
        return int(np.array(value, kind).view(f"u{INTEGER_OF[kind]}"))
    return int(value)


def decode(bits: int, kind: str) -> Any:
    """Return the number whose bits these are."""
    if kind in FLOATS:
        return np.array(bits, f"u{INTEGER_OF[kind]}").view(kind).item()
    return bool(bits) if kind == BOOL else bits


class Builder:
    """Makes statements; equal ones are made once."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self._known: dict[Statement, Number] = {}
        self._sides: list[Any] = []
        self._side: Any = None
        self._place = 0

    def beside(self, side: Any) -> None:
        """Let the n-th statement from here be computed beside the n-th one after other calls with the same `side`."""
        self._side, self._place = side, 0

    def type_of(self, number: Number) -> str:
        """Return a statement's type."""
        return self.statements[number].type

    def input(self, name: str, kind: str) -> Number:
        """Return what is given from outside under a name."""
        return self.add(Statement("input", (), kind, name))

    def constant(self, value: float, kind: str) -> Number:
        """Return a constant, rounded to its type."""
        return self.add(Statement("constant", (), kind, encode(value, kind)))

    def value_of(self, number: Number) -> Any:
        """Return a constant's number, or None if the statement is not constant."""
        op, _, kind, value = self.statements[number]
        return decode(value, kind) if op == "constant" else None

    def emit(self, op: str, *operands: Number, kind: str | None = None) -> Number:
        """Return an operation on statements; `kind` is its type if it is not that of the last operand."""
        self._place += 1
        return self._emit(op, *operands, kind=kind)

    def _emit(self, op: str, *operands: Number, kind: str | None = None) -> Number:
        if op in _COMMUTATIVE:
            operands = tuple(sorted(operands))
        if kind is None:
            kind = BOOL if op in (*COMPARISONS, "all_finite") else self.type_of(operands[-1])
        found = self._simplified(op, operands, kind)
        return self.add(Statement(op, operands, kind)) if found is None else found

    def add(self, statement: Statement) -> Number:
        """Return a statement as it is."""
        if statement not in self._known:
            self._known[statement] = len(self.statements)
            self.statements.append(statement)
            self._sides.append(None if self._side is None else (self._side, statement.op, self._place))
        return self._known[statement]

    def _simplified(self, op: str, operands: tuple[Number, ...], kind: str) -> Number | None:
        values = [self.value_of(operand) for operand in operands]
        if op in ("add", "sub", "mul", "div", "neg", *COMPARISONS) and None not in values:
            return self.constant(_computed(op, values, self.type_of(operands[0])), kind)
        if op == "all_finite" and len(operands) == 1 and self.statements[operands[0]].op == "max_abs":
            return self._emit("all_finite", *self.statements[operands[0]].operands)
        if op == "where":
            _, yes, no = operands
            if values[0] is not None or yes == no:
                return yes if values[0] or yes == no else no
        if op == "and" and (finite := self._finite_idiom(operands)) is not None:
            return self._emit("all_finite", finite)
        if op in ("and", "or") and kind == BOOL and (True in values or False in values):
            at = 0 if values[0] is not None else 1
            decided = op == "or"
            return operands[at] if values[at] == decided else operands[1 - at]
        if kind not in FLOATS:
            return None
        if op == "mul" and (1.0 in values or -1.0 in values):
            at = next(place for place, value in enumerate(values) if value in (1.0, -1.0))
            other = operands[1 - at]
            return other if values[at] == 1.0 else self._emit("neg", other)
        if op == "fma" and (1.0 in values[:2]):
            at = values.index(1.0)
            return self._emit("add", operands[1 - at], operands[2])
        if op == "div" and values[1] is not None and _is_power_of_two(values[1]):
            return self._emit("mul", operands[0], self.constant(1 / values[1], kind))
        if op == "sub" and values[1] == 0 and math.copysign(1, values[1]) > 0:
            return operands[0]
        if op == "neg" and self.statements[operands[0]].op == "neg":
            return self.statements[operands[0]].operands[0]
        if op == "convert" and self.type_of(operands[0]) == kind:
            return operands[0]
        return None

    def _finite_idiom(self, operands: tuple[Number, ...]) -> Number | None:
        """Return x where a conjunction is `torch.isfinite` of it: x == x and |x| != infinity."""
        statements = [self.statements[operand] for operand in operands]
        for same, bounded in (statements, statements[::-1]):
            if same.op == "eq" and bounded.op == "ne" and same.operands[0] == same.operands[1]:
                (x, _), sides = same.operands, bounded.operands
                size = next((s for s in sides if self.statements[s] == Statement("abs", (x,), self.type_of(x))), None)
                if size is not None and math.inf in [self.value_of(side) for side in sides]:
                    return x
        return None

    def finish(self, outputs: dict[str, Number]) -> Program:
        """Return the program that computes `outputs`, without what they don't need."""
        return Program(tuple(self.statements), dict(outputs), tuple(self._sides)).ordered(self._needed(outputs))

    def _needed(self, outputs: dict[str, Number]) -> list[Number]:
        needed = set(outputs.values())
        for number in range(len(self.statements) - 1, -1, -1):
            if number in needed:
                needed.update(self.statements[number].operands)
        return sorted(needed)


def _is_power_of_two(value: float) -> bool:
    return math.isfinite(value) and 2.0**-60 < abs(value) < 2.0**60 and math.frexp(value)[0] in (0.5, -0.5)


def _computed(op: str, values: Sequence[Any], kind: str) -> Any:
    """Return an operation's result on constants, in their type's arithmetic."""
    numbers = [np.array(value, kind)[()] for value in values]
    function: Any = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "neg": np.negative,
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }[op]
    with np.errstate(all="ignore"):
        return function(*numbers).item()


STRICT = {"add": (0, 1), "sub": (0, 1), "mul": (0, 1), "neg": (0,), "sqrt": (0,), "div": (0,)}
"""Operations whose result is not finite if one of these operands is not: 0 times infinity is NaN, and so is infinity
less infinity. (A number divided by infinity is 0.)"""


def with_fewer_checks(program: Program) -> Program:
    """Return the program with `all_finite` asked once, of what does not follow from something else that is asked.

    Where an updated parameter is finite, so was the gradient it was made from, unless a clip or the like was between.
    """
    builder, new = Builder(), list[Number]()
    follows: dict[Number, set[Number]] = {}

    def implied(number: Number) -> set[Number]:
        """Return all that is finite if this is, but for itself."""
        if number not in follows:
            op, operands, _, _ = builder.statements[number]
            sure = {operands[place] for place in STRICT.get(op, ())}
            follows[number] = sure.union(*(implied(operand) for operand in sure))
        return follows[number]

    for (op, operands, kind, value), side in zip(program.statements, program.sides, strict=True):
        builder.beside(side)
        moved = tuple(new[operand] for operand in operands)
        asked = [builder.statements[o] for o in moved if builder.statements[o].op == "all_finite"]
        if op == "and" and len(asked) == 2:
            every = dict.fromkeys(number for statement in asked for number in statement.operands)
            needless = set[Number]().union(*(implied(number) for number in every))
            new.append(builder.emit("all_finite", *(number for number in every if number not in needless)))
        else:
            new.append(builder.add(Statement(op, moved, kind, value)))
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


def contracted(program: Program) -> Program:
    """Return the program with every product that is used once, by a sum, merged with it into one rounding.

    This is what a compiler does with `a * b + c` where the language allows it (C does, and torch's matrix products):
    the result is nearer to the exact one, and differs in kind only where the product alone would overflow.
    """
    statements = program.statements
    uses = Counter(operand for statement in statements for operand in statement.operands)
    uses.update(program.outputs.values())
    products = {number for number, (op, *_) in enumerate(statements) if op == "mul" and uses[number] == 1}
    builder, new = Builder(), list[Number]()
    for (op, operands, kind, value), side in zip(statements, program.sides, strict=True):
        builder.beside(side)
        merged = next((operand for operand in reversed(operands) if operand in products), None)
        if merged is None or op not in ("add", "sub"):
            new.append(builder.add(Statement(op, tuple(new[o] for o in operands), kind, value)))
            continue
        x, y = (new[factor] for factor in statements[merged].operands)
        if op == "add":
            other = operands[1] if operands[0] == merged else operands[0]
            new.append(builder.emit("fma", x, y, new[other]))
        elif operands[0] == merged:
            new.append(builder.emit("fma", x, y, builder.emit("neg", new[operands[1]])))
        else:
            new.append(builder.emit("fma", builder.emit("neg", x), y, new[operands[0]]))
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


def bundles(program: Program) -> list[list[Number]]:
    """Return the statements in bundles that are best computed side by side; many are alone in theirs."""
    found: dict[Any, list[Number]] = {}
    for number, side in enumerate(program.sides):
        found.setdefault(number if side is None else side, []).append(number)
    return list(found.values())


def _acyclic(program: Program, groups: list[list[Number]]) -> bool:
    """Return whether the bundles can be computed one after the other."""
    group_of = {number: place for place, group in enumerate(groups) for number in group}
    edges = {
        place: {group_of[operand] for number in group for operand in program.statements[number].operands}
        for place, group in enumerate(groups)
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError:
        return False
    return True


def scheduled(program: Program) -> Program:
    """Return the program in an order that holds few values at a time.

    Bundles are computed when they are first needed, depth first, and what makes room is computed as soon as it can be:
    a processor has 32 vector registers, and a step hundreds of values.
    """
    groups = bundles(program)
    if not _acyclic(program, groups):
        groups = [[number] for number in range(len(program.statements))]
    group_of = {number: place for place, group in enumerate(groups) for number in group}
    users: list[set[int]] = [set() for _ in program.statements]
    waits_for: list[set[int]] = [set() for _ in groups]
    for place, group in enumerate(groups):
        for number in group:
            for operand in program.statements[number].operands:
                if program.statements[number].op not in MANY:  # which takes each in as soon as it is there
                    users[operand].add(place)
                if group_of[operand] != place:
                    waits_for[place].add(group_of[operand])
    done: set[int] = set()
    order: list[Number] = []

    def take(place: int) -> None:
        """Compute a bundle whose operands are there, then all that makes room."""
        pending = [place]
        while pending:
            place = pending.pop()
            if place in done:
                continue
            done.add(place)
            order.extend(groups[place])
            touched = {*groups[place], *(o for number in groups[place] for o in program.statements[number].operands)}
            followers = {user for number in touched for user in users[number]} - done
            pending.extend(sorted((f for f in followers if waits_for[f] <= done and gain(f) >= 0), reverse=True))

    def gain(place: int) -> int:
        """Return how many values are not needed any more after a bundle, less those it makes."""
        operands = {o for number in groups[place] for o in program.statements[number].operands}
        ended = sum(
            users[o] <= done | {place} for o in operands if program.statements[o].op not in ("constant", "input")
        )
        return ended - sum(bool(users[number]) for number in groups[place])

    for root in program.outputs.values():
        stack = [group_of[root]]
        while stack:
            missing = waits_for[stack[-1]] - done
            if stack[-1] in done or not missing:
                place = stack.pop()
                if place not in done:
                    take(place)
            else:
                stack.extend(sorted(missing, reverse=True))
    return program.ordered(order)
