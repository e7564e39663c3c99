"""A typed program on scalars: what one SIMD lane computes in one step.

A `ScalarProgram` is a list of statements in static single assignment form: a statement is an operation on earlier
statements and is identified by its index in the list. `str(program)` prints one a line::

    %41 = float32 fma %3, %17, %40

`Builder` merges equal statements and applies only simplifications that are exact in IEEE 754 arithmetic, for NaN,
infinities and the sign of zero too. So 0 * x is not 0 (NaN for an infinite x), and x + 0 is not x (0.0 for x = -0.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

FLOATS = ("float32", "float64")
INTEGER_OF = {"float32": "int32", "float64": "int64"}
FLOAT_OF = {integer: kind for kind, integer in INTEGER_OF.items()}
BOOL = "bool"

Number = int
"""A statement, by its index in its program."""


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
"""The operations of statements. All follow IEEE 754: comparisons with NaN are false except `ne`. Those in `MANY` take
any number of operands; `max_abs`, the largest absolute value, is NaN if one of them is."""

_COMMUTATIVE = ("add", "mul", "iadd", "umax", "and", "or", "xor", "eq", "ne")


@dataclass(frozen=True)
class ScalarProgram:
    """What one lane computes in a step.

    Attributes:
        statements: in order.
        outputs: the statements that are results, by name.
        sides: for each statement a value that is equal for those best computed beside it, or None. Most of them are the
            same statement for each of the four corners: the processor computes three while the first one's result is
            not there yet.
    """

    statements: tuple[Statement, ...]
    outputs: dict[str, Number]
    sides: tuple[Any, ...]

    def ordered(self, order: Iterable[Number]) -> ScalarProgram:
        """Return the program with its statements, or some of them, in another order; operands must come first."""
        new: dict[Number, Number] = {}
        statements: list[Statement] = []
        for number in order:
            statement = self.statements[number]
            new[number] = len(statements)
            statements.append(statement._replace(operands=tuple(new[operand] for operand in statement.operands)))
        sides = tuple(self.sides[number] for number in new)
        return ScalarProgram(tuple(statements), {name: new[number] for name, number in self.outputs.items()}, sides)

    def __str__(self) -> str:
        names = {number: name for name, number in self.outputs.items()}
        lines = []
        for number, (op, operands, kind, value) in enumerate(self.statements):
            text = ", ".join(f"%{operand}" for operand in operands)
            if op == "input":
                text = value
            elif op == "constant":
                text = repr(decode(value, kind))
            note = f"  # {names[number]}" if number in names else ""
            lines.append(f"%{number} = {kind} {op} {text}{note}")
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
    """Builds a program; equal statements become one."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self._known: dict[Statement, Number] = {}
        self._sides: list[Any] = []
        self._side: Any = None
        self._index = 0

    def beside(self, side: Any) -> None:
        """Mark the n-th statement from here as best computed beside the n-th after other calls with this `side`."""
        self._side, self._index = side, 0

    def type_of(self, number: Number) -> str:
        """Return a statement's type."""
        return self.statements[number].type

    def input(self, name: str, kind: str) -> Number:
        """Return a value that is given from outside under a name."""
        return self.add(Statement("input", (), kind, name))

    def constant(self, value: float, kind: str) -> Number:
        """Return a constant, rounded to its type."""
        return self.add(Statement("constant", (), kind, encode(value, kind)))

    def value_of(self, number: Number) -> Any:
        """Return a constant's number, or None if the statement is not constant."""
        op, _, kind, value = self.statements[number]
        return decode(value, kind) if op == "constant" else None

    def emit(self, op: str, *operands: Number, kind: str | None = None) -> Number:
        """Return the statement of an operation, simplified.

        Args:
            op: one of `OPERATIONS`.
            operands: earlier statements.
            kind: type of the result; by default bool for a comparison, or else that of the last operand.
        """
        self._index += 1
        return self.simpler(op, *operands, kind=kind)

    def simpler(self, op: str, *operands: Number, kind: str | None = None) -> Number:
        """Do what `emit` does within a simplification, which does not count as a statement for `beside`."""
        # Operands in one order, so that a + b and b + a are one statement; IEEE 754's addition is commutative.
        if op in _COMMUTATIVE:
            operands = tuple(sorted(operands))
        if kind is None:
            kind = BOOL if op in (*COMPARISONS, "all_finite") else self.type_of(operands[-1])
        values = [self.value_of(operand) for operand in operands]
        # Constants are folded in the arithmetic of their type, never in Python's, which is float64.
        if op in _FOLDED and None not in values:
            return self.constant(_computed(op, values, self.type_of(operands[0])), kind)
        rule = _RULES.get(op) or (_FLOAT_RULES.get(op) if kind in FLOATS else None)
        simplified = rule(self, operands, values, kind) if rule else None
        return self.add(Statement(op, operands, kind)) if simplified is None else simplified

    def add(self, statement: Statement) -> Number:
        """Return a statement without simplifying it."""
        if statement not in self._known:
            self._known[statement] = len(self.statements)
            self.statements.append(statement)
            self._sides.append(None if self._side is None else (self._side, statement.op, self._index))
        return self._known[statement]

    def finish(self, outputs: dict[str, Number]) -> ScalarProgram:
        """Return the program that computes `outputs`, without the statements that they don't need."""
        program = ScalarProgram(tuple(self.statements), dict(outputs), tuple(self._sides))
        return program.ordered(self._needed(outputs))

    def _needed(self, outputs: dict[str, Number]) -> list[Number]:
        # Operands come before what uses them, so one pass from the end meets every use of a statement first.
        needed = set(outputs.values())
        for number in range(len(self.statements) - 1, -1, -1):
            if number in needed:
                needed.update(self.statements[number].operands)
        return sorted(needed)


def _is_power_of_two(value: float) -> bool:
    # Within these bounds neither the number nor its reciprocal is subnormal, in float32 too.
    return math.isfinite(value) and 2.0**-60 < abs(value) < 2.0**60 and math.frexp(value)[0] in (0.5, -0.5)


_FOLDED: dict[str, Callable[..., Any]] = {
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
}
"""Operations that are computed here if all their operands are constants."""


def _computed(op: str, values: Sequence[Any], kind: str) -> Any:
    """Return the result of an operation on constants, in the arithmetic of their type."""
    numbers = [np.array(value, kind)[()] for value in values]
    with np.errstate(all="ignore"):
        return _FOLDED[op](*numbers).item()


Operands = tuple[Number, ...]

# The rules below hold for every value of an operand, bit by bit: they are tested in `test_simplifications_are_exact`.


def _all_finite(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    """A largest absolute value is finite if all values are."""
    statement = builder.statements[operands[0]]
    if len(operands) > 1 or statement.op != "max_abs":
        return None
    return builder.simpler("all_finite", *statement.operands)


def _where(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    _, yes, no = operands
    if yes == no or values[0] is None:
        return yes if yes == no else None
    return yes if values[0] else no


def _and(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    finite = _finite_idiom(builder, operands)
    if finite is not None:
        return builder.simpler("all_finite", finite)
    return _with_truth_value(operands, values, kind, decisive=False)


def _or(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    return _with_truth_value(operands, values, kind, decisive=True)


def _with_truth_value(operands: Operands, values: list[Any], kind: str, *, decisive: bool) -> Number | None:
    """Simplify an operation with a constant, which decides the result if it is `decisive`, or else does not matter."""
    if kind != BOOL or not (True in values or False in values):
        return None
    constant = 0 if values[0] is not None else 1
    return operands[constant] if values[constant] == decisive else operands[1 - constant]


def _mul(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    # Not for 0.0: of infinity and NaN the product is NaN, and these are what the study is about.
    for value, other in zip(values, reversed(operands), strict=True):
        if value in (1.0, -1.0):
            return other if value == 1.0 else builder.simpler("neg", other)
    return None


def _fma(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    # Not for a term of 0.0: x * y + 0.0 is 0.0 where x * y is -0.0.
    if 1.0 not in values[:2]:
        return None
    return builder.simpler("add", operands[1 - values.index(1.0)], operands[2])


def _div(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    """The reciprocal of a power of two is exact, and multiplying takes a fraction of the time."""
    if values[1] is None or not _is_power_of_two(values[1]):
        return None
    return builder.simpler("mul", operands[0], builder.constant(1 / values[1], kind))


def _sub(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    """x - 0.0 is x for every x; -0.0 - -0.0 is 0.0."""
    positive_zero = values[1] == 0 and math.copysign(1, values[1]) > 0
    return operands[0] if positive_zero else None


def _neg(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    statement = builder.statements[operands[0]]
    return statement.operands[0] if statement.op == "neg" else None


def _convert(builder: Builder, operands: Operands, values: list[Any], kind: str) -> Number | None:
    return operands[0] if builder.type_of(operands[0]) == kind else None


Rule = Callable[[Builder, Operands, list[Any], str], Number | None]
"""A simplification: (builder, operands, their values or None, type of the result) -> an equal statement, or None."""

_RULES: dict[str, Rule] = {"all_finite": _all_finite, "where": _where, "and": _and, "or": _or}
_FLOAT_RULES: dict[str, Rule] = {"mul": _mul, "fma": _fma, "div": _div, "sub": _sub, "neg": _neg, "convert": _convert}
"""Those of operations whose result is a floating-point number."""


def _finite_idiom(builder: Builder, operands: Operands) -> Number | None:
    """Return x if a conjunction is what `torch.isfinite` of x decomposes into: x == x and |x| != infinity."""
    statements = [builder.statements[operand] for operand in operands]
    for same, bounded in (statements, statements[::-1]):
        if same.op == "eq" and bounded.op == "ne" and same.operands[0] == same.operands[1]:
            x = same.operands[0]
            size = Statement("abs", (x,), builder.type_of(x))
            has_size = size in [builder.statements[side] for side in bounded.operands]
            if has_size and math.inf in [builder.value_of(side) for side in bounded.operands]:
                return x
    return None
