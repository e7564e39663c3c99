"""Passes over scalar programs: fewer checks, merged roundings, and an order that needs few registers.

Each takes a program and returns one; `functions` has two more.
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from typing import Any

from xor_study.engines.lanes.scalar import MANY, Builder, Number, ScalarProgram

STRICT = {"add": (0, 1), "sub": (0, 1), "mul": (0, 1), "neg": (0,), "sqrt": (0,), "div": (0,)}
"""Operands without which a result can't be finite: 0 times infinity is NaN, and so is infinity less infinity. A finite
number divided by infinity is 0, so the divisor of `div` is not among them."""


def with_fewer_checks(program: ScalarProgram) -> ScalarProgram:
    """Return the program with one `all_finite` for each conjunction, of the values that do not follow from others.

    Where an updated parameter is finite, so was the gradient it was made from, unless the gradient was clipped.
    """
    builder, new = Builder(), list[Number]()
    follows: dict[Number, set[Number]] = {}

    def implied(number: Number) -> set[Number]:
        """Return the other values that are finite if this one is."""
        # From the statements made so far: their operands are the new numbers.
        if number not in follows:
            statement = builder.statements[number]
            strict = {statement.operands[index] for index in STRICT.get(statement.op, ())}
            follows[number] = strict.union(*(implied(operand) for operand in strict))
        return follows[number]

    for statement, side in zip(program.statements, program.sides, strict=True):
        builder.beside(side)
        operands = tuple(new[operand] for operand in statement.operands)
        checks = [builder.statements[o] for o in operands if builder.statements[o].op == "all_finite"]
        if statement.op == "and" and len(checks) == 2:
            every = dict.fromkeys(number for check in checks for number in check.operands)
            needless = set[Number]().union(*(implied(number) for number in every))
            new.append(builder.emit("all_finite", *(number for number in every if number not in needless)))
        else:
            new.append(builder.add(statement._replace(operands=operands)))
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


def contracted(program: ScalarProgram) -> ScalarProgram:
    """Return the program with every product that is used once, by a sum, merged with it into one rounding.

    Compilers do the same with `a * b + c` where the language allows it, and so do torch's matrix products. The result
    is nearer to the exact one; it is of another kind only where the product alone would overflow.
    """
    statements = program.statements
    # A product with another use has to be computed anyway.
    uses = Counter(operand for statement in statements for operand in statement.operands)
    uses.update(program.outputs.values())
    products = {number for number, (op, *_) in enumerate(statements) if op == "mul" and uses[number] == 1}
    builder, new = Builder(), list[Number]()
    for statement, side in zip(statements, program.sides, strict=True):
        builder.beside(side)
        operands = [new[operand] for operand in statement.operands]
        merged = [index for index, operand in enumerate(statement.operands) if operand in products]
        if merged and statement.op in ("add", "sub"):
            product = statements[statement.operands[merged[-1]]]
            factors = [new[factor] for factor in product.operands]
            new.append(_fused(builder, statement.op, operands, merged[-1], factors))
        else:
            new.append(builder.add(statement._replace(operands=tuple(operands))))
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


def _fused(builder: Builder, op: str, operands: list[Number], index: int, factors: list[Number]) -> Number:
    """Return a sum or difference whose operand `index` is the product of two factors, as an `fma`."""
    (x, y), other = factors, operands[1 - index]
    # a * b - c is fma(a, b, -c), and c - a * b is fma(-a, b, c); changing a sign is exact.
    if op == "sub" and index == 0:
        other = builder.emit("neg", other)
    elif op == "sub":
        x = builder.emit("neg", x)
    return builder.emit("fma", x, y, other)


def bundles(program: ScalarProgram) -> list[list[Number]]:
    """Return the statements in bundles that are best computed side by side; many are alone in theirs."""
    result: dict[Any, list[Number]] = {}
    for number, side in enumerate(program.sides):
        result.setdefault(number if side is None else side, []).append(number)
    # Two bundles may need each other, for instance where one corner's result enters another corner's computation.
    if _acyclic(program, list(result.values())):
        return list(result.values())
    return [[number] for number in range(len(program.statements))]


def _acyclic(program: ScalarProgram, groups: list[list[Number]]) -> bool:
    """Return whether the bundles can be computed one after the other."""
    group_of = {number: index for index, group in enumerate(groups) for number in group}
    edges = {
        index: {group_of[operand] for number in group for operand in program.statements[number].operands}
        for index, group in enumerate(groups)
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError:
        return False
    return True


class _Scheduler:
    """Finds an order of bundles in which few values are held at a time.

    Attributes:
        order: the statements scheduled so far.
        done: the bundles scheduled so far, by index.
    """

    def __init__(self, program: ScalarProgram) -> None:
        self.statements, self.bundles = program.statements, bundles(program)
        self.bundle_of = {number: index for index, bundle in enumerate(self.bundles) for number in bundle}
        self.users: list[set[int]] = [set() for _ in self.statements]
        self.waits_for: list[set[int]] = [set() for _ in self.bundles]
        self.order: list[Number] = []
        self.done: set[int] = set()
        for number, statement in enumerate(self.statements):
            index = self.bundle_of[number]
            self.waits_for[index] |= {self.bundle_of[operand] for operand in statement.operands} - {index}
            # An operation of MANY needs no operand to be held: it takes in each as soon as it is there.
            for operand in () if statement.op in MANY else statement.operands:
                self.users[operand].add(index)

    def require(self, root: int) -> None:
        """Schedule a bundle after all that it waits for, depth first."""
        stack = [root]
        while stack:
            missing = self.waits_for[stack[-1]] - self.done
            if stack[-1] not in self.done and missing:
                stack.extend(sorted(missing, reverse=True))
            else:
                self._take(stack.pop())

    def _take(self, index: int) -> None:
        """Schedule a bundle whose operands are there, then all bundles that free at least as much as they need."""
        pending = [index]
        while pending:
            index = pending.pop()
            if index in self.done:
                continue
            self.done.add(index)
            self.order.extend(self.bundles[index])
            # Only what uses a value that was just computed, or used for the last time, can have become worth it.
            followers = {user for number in self._touched(index) for user in self.users[number]} - self.done
            ready = (f for f in followers if self.waits_for[f] <= self.done and self._gain(f) >= 0)
            pending.extend(sorted(ready, reverse=True))

    def _operands(self, index: int) -> set[Number]:
        return {operand for number in self.bundles[index] for operand in self.statements[number].operands}

    def _touched(self, index: int) -> set[Number]:
        return self._operands(index).union(self.bundles[index])

    def _gain(self, index: int) -> int:
        """Return the number of values that are not needed any more after a bundle, less those that it makes."""
        done = self.done | {index}
        # Constants and inputs are in memory anyway.
        held = [o for o in self._operands(index) if self.statements[o].op not in ("constant", "input")]
        ended = sum(self.users[operand] <= done for operand in held)
        return ended - sum(bool(self.users[number]) for number in self.bundles[index])


def scheduled(program: ScalarProgram) -> ScalarProgram:
    """Return the program in an order that holds few values at a time.

    Bundles are computed when they are first needed, and what frees registers as soon as it can be: a processor has 32
    vector registers, and a step hundreds of values.
    """
    scheduler = _Scheduler(program)
    for root in program.outputs.values():
        scheduler.require(scheduler.bundle_of[root])
    return program.ordered(scheduler.order)
