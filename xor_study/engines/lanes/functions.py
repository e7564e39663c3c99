"""Elementary functions as statements: polynomials on reduced arguments.

Results are within 2.5 units in the last place of the exact value in float32, and within 4 in float64, for all arguments
including subnormal ones (`tests/test_lanes.py`). NaN gives NaN; infinities and the edges of the domain give what C's
functions do. The coefficients are minimax fits (Remez's algorithm) of the expressions named beside them.

No step needs a conversion to an integer, for which many processors have no vector instruction in float64. Adding
1.5 * 2^23 (2^52 in float64) to a number rounds it to an integer, which is then in the low bits of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from xor_study.engines.lanes.scalar import FLOAT_OF, INTEGER_OF, MANY, Builder, Number, ScalarProgram, Statement


@dataclass(frozen=True)
class _Format:
    """Constants of one floating-point type.

    Attributes:
        mantissa: its stored bits.
        bias: of the exponent.
        ln2: log(2) as a sum of two numbers. The first has so few bits that its product with an exponent is exact (Cody
            & Waite 1980, "Software Manual for the Elementary Functions").
        exp: (e^r - 1 - r) / r^2 for |r| <= log(2) / 2.
        log: (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)].
        erf: erf(x) / x for x in [0, 1], of x^2.
        erfc: erfc(x) e^(x^2) for x from 1 on, of (x - 2) / (x + 2).
        smallest, largest: exp is 0 below, infinite above.
        saturation, saturation_of_tanh: erf and tanh are 1 from here on.
    """

    mantissa: int
    bias: int
    ln2: tuple[float, float]
    exp: tuple[float, ...]
    log: tuple[float, ...]
    erf: tuple[float, ...]
    erfc: tuple[float, ...]
    smallest: float
    largest: float
    saturation: float
    saturation_of_tanh: float

    @property
    def magic(self) -> float:
        """1.5 * 2^mantissa: the numbers around it are the integers, so a sum with it is rounded to one."""
        return float(3 << self.mantissa - 1)


# fmt: off
FORMATS = {
    "float32": _Format(
        mantissa=23,
        bias=127,
        ln2=(0.693359375, -2.12194440e-4),
        exp=(
            0.5000000044118259, 0.16666666366093044, 0.041666360922360056, 0.008333390174102884, 0.0013940630399284163,
            0.00019845513745999277,
        ),
        log=(
            0.33333331703564567, -0.25000820992847134, 0.200012274924777, -0.16623358746905242, 0.14201742431759934,
            -0.13160156383603266, 0.12761680938988987, -0.07634688630854013,
        ),
        erf=(
            1.1283791657286681, -0.37612625837211233, 0.11283585295890443, -0.026853817886840162,
            0.0051883383389185285, -0.0008010281036307006, 7.85413065992411e-05,
        ),
        erfc=(
            0.25539567802858437, -0.42718585394458003, 0.24165721613170424, -0.07898742607948318,
            0.0037279425857711474, 0.007210443937210717,
        ),
        smallest=-104.0,
        largest=89.0,
        saturation=4.0,
        saturation_of_tanh=9.1,
    ),
    "float64": _Format(
        mantissa=52,
        bias=1023,
        ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
        exp=(
            0.5, 0.16666666666666677, 0.041666666666666505, 0.008333333333321728, 0.0013888888888962726,
            0.00019841269885883937, 2.4801587171889383e-05, 2.755724444710991e-06, 2.755740311667341e-07,
            2.510895675546167e-08, 2.087521087161426e-09,
        ),
        log=(
            0.3333333333333335, -0.25000000000000366, 0.1999999999999395, -0.16666666666547877, 0.14285714286573464,
            -0.1250000001455142, 0.11111111058685116, -0.09999999075783579, 0.09090910478430701, -0.08333367530244873,
            0.07692305044814204, -0.0714208841806078, 0.06665898602674519, -0.06260368397222686, 0.05902505824460989,
            -0.05479467955011265, 0.0502792343055928, -0.051891991289760735, 0.060529028352425365,
            -0.05409721506324394, 0.02248403407835477,
        ),
        erf=(
            1.1283791670955126, -0.3761263890318375, 0.11283791670954857, -0.026866170645072907, 0.005223977624780973,
            -0.0008548326978747705, 0.00012055331037080689, -1.492559351079968e-05, 1.6460972873074723e-06,
            -1.6350025750890193e-07, 1.4657882983771873e-08, -1.1365676638359753e-09, 5.94527752971668e-11,
        ),
        erfc=(
            0.25539567631050575, -0.4271858474139584, 0.24165819424246673, -0.07897858101574948, 0.003732892404116417,
            0.006997461740329055, -0.0008471432251935993, -0.000981976979078814, 4.3554665926421865e-05,
            0.0001743564960967595, 2.7532537615904577e-05, -2.7485865055153037e-05, -1.3829603579056892e-05,
            9.300803530761298e-07, 2.1999956163631204e-06,
        ),
        smallest=-746.0,
        largest=710.0,
        saturation=6.0,
        saturation_of_tanh=19.1,
    ),
}
# fmt: on


Side = tuple[Number, ...]
"""One statement for each of several arguments; their functions are written side by side and run in parallel."""


class _Maker:
    """Writes statements of one floating-point type for several arguments at a time."""

    def __init__(self, builder: Builder, kind: str, width: int) -> None:
        self.builder, self.kind, self.width = builder, kind, width
        self.integer, self.format = INTEGER_OF[kind], FORMATS[kind]

    def emit(self, op: str, *operands: Side, kind: str | None = None) -> Side:
        return tuple(self.builder.emit(op, *each, kind=kind) for each in zip(*operands, strict=True))

    def number(self, value: float) -> Side:
        return (self.builder.constant(value, self.kind),) * self.width

    def whole(self, value: int) -> Side:
        return (self.builder.constant(value, self.integer),) * self.width

    def polynomial(self, x: Side, coefficients: tuple[float, ...]) -> Side:
        """Return a polynomial by Horner's rule; coefficients in ascending order."""
        result = self.number(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            result = self.emit("fma", result, x, self.number(coefficient))
        return result

    def clamped(self, x: Side, low: float, high: float) -> Side:
        """Return x limited to [low, high]; NaN stays NaN."""
        for op, bound in (("lt", low), ("gt", high)):
            edge = self.number(bound)
            x = self.emit("where", self.emit(op, x, edge), edge, x)
        return x

    def bits(self, x: Side) -> Side:
        return self.emit("bitcast", x, kind=self.integer)

    def power_of_two(self, exponent: Side) -> Side:
        """Return 2^n for integers n in the range of normal numbers, by writing their exponent field."""
        shifted = self.emit("iadd", exponent, self.whole(self.format.bias))
        return self.emit("bitcast", self.emit("shl", shifted, self.whole(self.format.mantissa)), kind=self.kind)

    def reduced(self, x: Side, magic: Side) -> tuple[Side, Side, Side]:
        """Split x = n log(2) + r with |r| <= log(2) / 2; return n + magic, r, and e^r - 1 - r."""
        shifted = self.emit("fma", x, self.number(1 / math.log(2)), magic)
        nearest = self.emit("sub", magic, shifted)  # -n
        high, low = self.format.ln2
        rest = self.emit("fma", nearest, self.number(high), x)
        rest = self.emit("fma", nearest, self.number(low), rest)
        tail = self.emit("mul", self.polynomial(rest, self.format.exp), self.emit("mul", rest, rest))
        return shifted, rest, tail

    def exponential(self, x: Side) -> tuple[Side, Side]:
        """Split x = n log(2) + r; return e^r - 1 and the integer n."""
        magic = self.number(self.format.magic)
        shifted, rest, tail = self.reduced(x, magic)
        return self.emit("add", rest, tail), self.emit("isub", self.bits(shifted), self.bits(magic))

    def exp(self, x: Side) -> Side:
        less, exponent = self.exponential(self.clamped(x, self.format.smallest, self.format.largest))
        # Multiply by 2^n in two steps: 2^n itself may be infinite or subnormal.
        half = self.emit("ashr", exponent, self.whole(1))
        result = self.emit("add", less, self.number(1))
        result = self.emit("mul", result, self.power_of_two(half))
        return self.emit("mul", result, self.power_of_two(self.emit("isub", exponent, half)))

    def expm1(self, x: Side) -> Side:
        less, exponent = self.exponential(self.clamped(x, -60.0, self.format.largest))
        # e^x - 1 = 2 (2^(n-1) (e^r - 1) + 2^(n-1) - 1/2): 2^n may be infinite where the result is not.
        half = self.power_of_two(self.emit("isub", exponent, self.whole(1)))
        result = self.emit("fma", half, less, self.emit("sub", half, self.number(0.5)))
        result = self.emit("add", result, result)
        # Without a power of two the result is e^r - 1 itself, and 0.0 and -0.0 are returned as they are.
        tiny = self.emit("eq", exponent, self.whole(0))
        return self.emit("where", tiny, self._or_itself(x, less), result)

    def _or_itself(self, x: Side, result: Side) -> Side:
        """Return x where it is zero, whose sign a sum would lose, else `result`."""
        zero = self.emit("eq", x, self.number(0))
        return self.emit("where", zero, x, result)

    def tanh(self, x: Side) -> Side:
        """Return t / (t + 2) of t = e^(2 |x|) - 1, with the sign of x.

        The larger t, the less the result depends on it: near 1 only the rounding of the quotient matters, so log(2) as
        one number is precise enough. A rational function of x takes fewer statements, but is off by 4.5 units near 1.
        """
        size = self.emit("abs", self.emit("add", x, x))
        edge = self.number(2 * self.format.saturation_of_tanh)
        size = self.emit("where", self.emit("gt", size, edge), edge, size)
        # With the bias in it, the low bits of the sum are the exponent field of 2^n.
        magic = self.number(self.format.magic + self.format.bias)
        shifted = self.emit("fma", size, self.number(1 / math.log(2)), magic)
        power = self.emit("shl", self.bits(shifted), self.whole(self.format.mantissa))
        power = self.emit("bitcast", power, kind=self.kind)
        rest = self.emit("fma", self.emit("sub", magic, shifted), self.number(math.log(2)), size)
        less = self.emit("fma", self.polynomial(rest, self.format.exp), self.emit("mul", rest, rest), rest)
        t = self.emit("fma", power, less, self.emit("sub", power, self.number(1)))
        return self.signed(self.emit("div", t, self.emit("add", t, self.number(2))), x)

    def signed(self, size: Side, x: Side) -> Side:
        """Return `size`, which is not negative, with the sign of x."""
        sign = self.emit("and", self.bits(x), self.whole(-1 << int(self.integer[-2:]) - 1))
        return self.emit("bitcast", self.emit("or", self.bits(size), sign), kind=self.kind)

    def log(self, x: Side) -> Side:
        # A subnormal number has no exponent field to read, so it is multiplied by a power of two first.
        tiny = self.emit("lt", x, self.number(2.0 ** (1 - self.format.bias)))
        scale = 2.0**self.format.mantissa
        normal = self.emit("where", tiny, self.emit("mul", x, self.number(scale)), x)
        shift = self.emit("where", tiny, self.number(self.format.mantissa), self.number(0))
        mantissa, exponent = self.split(normal)
        result = self.logarithm(self.emit("sub", mantissa, self.number(1)), self.emit("sub", exponent, shift))
        return self.edges(x, x, result)

    def log1p(self, x: Side) -> Side:
        """Return log(s) with s = 1 + x rounded, corrected by (1 + x - s) / s, the relative error of the rounding."""
        one = self.number(1)
        sum_ = self.emit("add", x, one)
        lost = self.emit("sub", x, self.emit("sub", sum_, one))
        mantissa, exponent, inverse = self.split(sum_, inverse=True)
        huge = self.emit("gt", sum_, self.number(2.0**60))
        lost = self.emit("where", huge, self.number(0), self.emit("mul", lost, inverse))
        argument = self.emit("add", self.emit("sub", mantissa, one), lost)
        return self._or_itself(x, self.edges(x, sum_, self.logarithm(argument, exponent)))

    def split(self, x: Side, *, inverse: bool = False) -> tuple[Side, ...]:
        """Split x = m 2^n, m in [sqrt(1/2), sqrt(2)); return m, n as a floating-point number, and 2^-n on request."""
        root = self.bits(self.number(math.sqrt(0.5)))
        shift = self.whole(self.format.mantissa)
        exponent = self.emit("ashr", self.emit("isub", self.bits(x), root), shift)
        field = self.emit("shl", exponent, shift)
        mantissa = self.emit("bitcast", self.emit("isub", self.bits(x), field), kind=self.kind)
        # An integer added to the bits of the magic number is added to its value.
        magic = self.number(self.format.magic)
        shifted = self.emit("bitcast", self.emit("iadd", self.bits(magic), exponent), kind=self.kind)
        result = (mantissa, self.emit("sub", shifted, magic))
        if not inverse:
            return result
        return (*result, self.power_of_two(self.emit("isub", self.whole(0), exponent)))

    def logarithm(self, f: Side, exponent: Side) -> Side:
        """Return log(1 + f) + exponent * log(2), adding the smallest terms first."""
        high, low = self.format.ln2
        square = self.emit("mul", f, f)
        result = self.emit("mul", self.emit("mul", self.polynomial(f, self.format.log), f), square)
        result = self.emit("fma", exponent, self.number(low), result)
        result = self.emit("fma", square, self.number(-0.5), result)
        result = self.emit("add", f, result)
        return self.emit("fma", exponent, self.number(high), result)

    def edges(self, x: Side, argument: Side, result: Side) -> Side:
        """Return `result` where the argument of the logarithm is positive and finite, else -inf, NaN, or x + x."""
        zero, infinity = self.number(0), self.number(math.inf)
        result = self.emit("where", self.emit("eq", argument, zero), self.number(-math.inf), result)
        result = self.emit("where", self.emit("lt", argument, zero), self.number(math.nan), result)
        inside = self.emit("lt", x, infinity)  # neither infinite nor NaN
        return self.emit("where", inside, result, self.emit("add", x, x))

    def erf(self, x: Side) -> Side:
        size = self.clamped(self.emit("abs", x), 0.0, self.format.saturation)
        square = self.emit("mul", size, size)
        near = self.emit("mul", x, self.polynomial(square, self.format.erf))
        two = self.number(2)
        # This maps [1, infinity) to [-1/3, 1), where a polynomial fits.
        mapped = self.emit("div", self.emit("sub", size, two), self.emit("add", size, two))
        tail = self.emit("mul", self.exp(self.emit("neg", square)), self.polynomial(mapped, self.format.erfc))
        far = self.signed(self.emit("sub", self.number(1), tail), x)
        return self.emit("where", self.emit("lt", size, self.number(1)), near, far)


EXPANSIONS: dict[str, Callable[[_Maker, Side], Side]] = {
    "exp": _Maker.exp,
    "expm1": _Maker.expm1,
    "log": _Maker.log,
    "log1p": _Maker.log1p,
    "tanh": _Maker.tanh,
    "erf": _Maker.erf,
}


def expanded(program: ScalarProgram) -> ScalarProgram:
    """Return the program with every elementary function written out, those of neighbours with one side together."""
    builder, new = Builder(), list[Number]()
    sides = program.sides
    for _, neighbours in groupby(range(len(sides)), lambda number: number if sides[number] is None else sides[number]):
        numbers = list(neighbours)
        statements, side = [program.statements[number] for number in numbers], sides[numbers[0]]
        operands = [tuple(new[operand] for operand in statement.operands) for statement in statements]
        op = statements[0].op
        if op in EXPANSIONS:
            maker = _Maker(builder, statements[0].type, len(statements))
            new.extend(EXPANSIONS[op](maker, tuple(argument for (argument,) in operands)))
            continue
        for statement, moved in zip(statements, operands, strict=True):
            builder.beside(side)
            new.append(builder.add(statement._replace(operands=moved)))
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


def accumulated(program: ScalarProgram) -> ScalarProgram:
    """Return the program with every operation on many operands written as operations on two.

    Each operand is combined as soon as it is computed, so none is held in a register until the last one is. There are
    several chains, because each operation of a chain waits for the one before it.
    """
    builder, new = Builder(), list[Number]()
    takers: dict[Number, list[Number]] = {}
    for number, statement in enumerate(program.statements):
        if statement.op in MANY:
            for operand in statement.operands:
                takers.setdefault(operand, []).append(number)
    chains: dict[Number, list[Number]] = {number: [] for numbers in takers.values() for number in numbers}
    for number, (op, operands, kind, value) in enumerate(program.statements):
        if op in MANY:
            new.append(_merged(builder, op, chains[number]))
        else:
            new.append(builder.add(Statement(op, tuple(new[operand] for operand in operands), kind, value)))
        for taker in takers.get(number, ()):
            _take_in(builder, program.statements[taker].op, chains[taker], new[number])
    return builder.finish({name: new[number] for name, number in program.outputs.items()})


_CHAINS = 4  # the latency of an addition, in cycles, on the processors of the last years


def _take_in(builder: Builder, op: str, chains: list[Number], x: Number) -> None:
    """Combine an operand with the oldest of the chains, or start a new one."""
    kind = builder.type_of(x)
    whole = INTEGER_OF[kind]
    if op == "sum_of_squares" and len(chains) == _CHAINS:
        chains.append(builder.emit("fma", x, x, chains.pop(0)))
        return
    if op == "sum_of_squares":
        x = builder.emit("mul", x, x)
    elif op == "max_abs":
        # Without the sign, the bits of numbers are integers in the same order, with NaN above infinity.
        magnitude = builder.constant((1 << int(whole[-2:]) - 1) - 1, whole)
        x = builder.emit("and", builder.emit("bitcast", x, kind=whole), magnitude)
    elif op == "all_finite":
        # x - x is 0.0 for a finite x and NaN for the others, so the bits of all of them are or-ed.
        x = builder.emit("bitcast", builder.emit("sub", x, x), kind=whole)
    chains.append(x if len(chains) < _CHAINS else builder.emit(MANY[op], chains.pop(0), x))


def _merged(builder: Builder, op: str, chains: list[Number]) -> Number:
    """Return the result of an operation whose operands have all been taken in."""
    result, *others = chains
    for other in others:
        result = builder.emit(MANY[op], result, other)
    if op == "all_finite":
        return builder.emit("eq", result, builder.constant(0, builder.type_of(result)))
    if op == "max_abs":
        return builder.emit("bitcast", result, kind=FLOAT_OF[builder.type_of(result)])
    return result
