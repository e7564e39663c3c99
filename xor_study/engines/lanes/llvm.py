"""From a scalar program to LLVM's intermediate representation: a loop over steps, with one network per SIMD lane.

The text is written here and compiled in `native` (https://llvm.org/docs/LangRef.html). No fast-math flag is set, so
NaN, infinities and the sign of zero follow IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xor_study.engines.lanes.functions import accumulated, expanded
from xor_study.engines.lanes.passes import contracted, scheduled, with_fewer_checks
from xor_study.engines.lanes.scalar import (
    BOOL,
    COMPARISONS,
    FLOATS,
    Number,
    ScalarProgram,
    Statement,
    decode,
)
from xor_study.errors import StudyError

LANES = {"float32": 16, "float64": 8}
"""Networks in a block: one register of AVX-512; on processors with narrower ones LLVM uses several."""

_TYPES = {"float32": "float", "float64": "double", "int32": "i32", "int64": "i64", BOOL: "i1"}
_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv", "iadd": "add", "isub": "sub"}
_SAME = ("and", "or", "xor", "shl", "ashr", "lshr")
_PREDICATES = {"eq": ("oeq", "eq"), "ne": ("une", "ne"), "lt": ("olt", "slt"), "le": ("ole", "sle")}
_PREDICATES |= {"gt": ("ogt", "sgt"), "ge": ("oge", "sge")}
_INTRINSICS = {"fma": "fma", "abs": "fabs", "sqrt": "sqrt", "umax": "umax"}
FAR = 64
"""Statements after which an input is loaded again. To hold it in a register longer, LLVM would have to store it."""


class NotCompilable(StudyError):  # noqa: N818  # a property of a program that leads to another engine, not an error
    """A run can't be compiled; the message says what in it."""


@dataclass(frozen=True)
class Loop:
    """Where the inputs of a scalar program come from and where its outputs go.

    Its inputs are "field.index" of the fields below, "schedule.name.0", "count.corner" and "step.0".

    Attributes:
        dtype: of the networks.
        state_fields: values carried from step to step: type and number n of entries by name. The program's outputs of
            the same names are their next values.
        number_fields: values that are fixed for each network, in the same form.
        schedule: names of the values that depend on the step alone.
        recorded: fields of the state that are copied out at the end of each segment of steps.
        summed: fields among them that start from 0 again in each segment.
        batch: samples in a batch of random corners, whose counts are drawn in the loop; None where the counts are given
            for each step, or 0 if they are not used.
    """

    dtype: str
    state_fields: Mapping[str, tuple[str, int]]
    number_fields: Mapping[str, tuple[str, int]]
    schedule: tuple[str, ...]
    recorded: tuple[str, ...]
    summed: tuple[str, ...]
    batch: int | None

    @property
    def lanes(self) -> int:
        """Networks in a block."""
        return LANES[self.dtype]

    @cached_property
    def state(self) -> np.dtype[Any]:
        """One block's state, each field of shape (n, lanes)."""
        return layout(self.state_fields, self.lanes)

    @cached_property
    def numbers(self) -> np.dtype[Any]:
        """One block's numbers."""
        return layout(self.number_fields, self.lanes)

    @property
    def table(self) -> tuple[str, ...]:
        """Names of the inputs that depend on the step alone, in the order of the table's columns."""
        counts = tuple(f"count.{corner}" for corner in range(4)) if self.batch is None else ()
        return (*counts, *(f"schedule.{name}.0" for name in self.schedule))

    @cached_property
    def record(self) -> np.dtype[Any]:
        """One block's record of one segment."""
        return layout({name: self.state_fields[name] for name in self.recorded}, self.lanes)


LINE = 64
"""Bytes of a cache line, and of the widest register."""


def layout(fields: Mapping[str, tuple[str, int]], lanes: int) -> np.dtype[Any]:
    """Return the layout of one block: a field of shape (n, lanes) for each name, from its type and n."""
    # The widest types come first, so that each field is aligned to its vectors without gaps.
    wide_first = sorted(fields.items(), key=lambda item: -np.dtype(item[1][0]).itemsize)
    packed = np.dtype([(name, kind, (count, lanes)) for name, (kind, count) in wide_first])
    parts: Mapping[str, Any] = packed.fields or {}
    names = list(parts)
    formats, offsets = [parts[name][0] for name in names], [parts[name][1] for name in names]
    size = -(-packed.itemsize // LINE) * LINE
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def empty(layout: np.dtype[Any], shape: int | tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return an array of zeros that begins on a cache line: numpy aligns to 16 bytes, and vector loads need more."""
    items = int(np.prod(shape))
    raw = np.zeros(items * layout.itemsize + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + items * layout.itemsize].view(layout).reshape(shape)


class _Writer:
    """Writes the body of the loop, statement by statement.

    Attributes:
        lines: written so far.
        declared: declarations of the intrinsics that are used.
        names: of the result of each statement, by its number.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.lanes = loop, loop.lanes
        self.lines: list[str] = []
        self.declared: set[str] = set()
        self.names: list[str] = []
        self.fresh = 0

    def vector(self, kind: str) -> str:
        return f"<{self.lanes} x {_TYPES[kind]}>"

    def let(self, text: str) -> str:
        """Write an instruction and return the name of its result."""
        self.fresh += 1
        self.lines.append(f"  %v{self.fresh} = {text}")
        return f"%v{self.fresh}"

    def splat(self, scalar: str, kind: str) -> str:
        """Return a vector with the same value in every lane."""
        vector = self.vector(kind)
        one = self.let(f"insertelement {vector} poison, {_TYPES[kind]} {scalar}, i32 0")
        return self.let(f"shufflevector {vector} {one}, {vector} poison, <{self.lanes} x i32> zeroinitializer")

    def constant(self, value: float, kind: str) -> str:
        bits = np.float64(value).view(np.uint64)  # LLVM writes constants of both types as the bits of a double
        text = f"0x{int(bits):016X}" if kind in FLOATS else str(int(value))
        return "<" + ", ".join([f"{_TYPES[kind]} {text}"] * self.lanes) + ">"

    def call(self, name: str, kind: str, *operands: str) -> str:
        vector = self.vector(kind)
        function = f"@llvm.{name}.v{self.lanes}{'i' if kind.startswith('int') else 'f'}{kind[-2:]}"
        self.declared.add(f"declare {vector} {function}({', '.join([vector] * len(operands))})")
        return self.let(f"call {vector} {function}({', '.join(f'{vector} {operand}' for operand in operands)})")

    def field(self, base: str, layout: np.dtype[Any], name: str) -> tuple[str, str, int]:
        """Return the address of "field.index" in a block, its vector type and the alignment."""
        field, _, index = name.rpartition(".")
        assert layout.fields is not None
        kind, offset = layout.fields[field][:2]
        scalar = kind.base
        start = offset + int(index) * scalar.itemsize * self.lanes
        return (
            self.let(f"getelementptr i8, ptr {base}, i64 {start}"),
            self.vector(scalar.name),
            math.gcd(LINE, start, layout.itemsize),
        )

    def load(self, base: str, layout: np.dtype[Any], name: str) -> str:
        address, vector, align = self.field(base, layout, name)
        return self.let(f"load {vector}, ptr {address}, align {align}")

    def input(self, name: str, kind: str) -> str:
        """Return an input of the program as a vector."""
        field, _, index = name.rpartition(".")
        if field == "step":
            return self.splat(self.let("trunc i64 %number to i32"), kind)
        if field == "count" and self.loop.batch:
            return self.counts[int(index)]
        if name in self.loop.table:
            index = self.let(f"mul i64 %row, {len(self.loop.table)}")
            index = self.let(f"add i64 {index}, {self.loop.table.index(name)}")
            address = self.let(f"getelementptr {_TYPES[kind]}, ptr %table, i64 {index}")
            return self.splat(self.let(f"load {_TYPES[kind]}, ptr {address}"), kind)
        if self.in_state(name):
            return self.load("%state", self.loop.state, name)
        return self.load("%numbers", self.loop.numbers, name)

    def draw(self, batch: int, kind: str) -> None:
        """Draw the counts of a batch as `data.batch_words` and `data.Batches.counts` do."""
        # Each word has x1 of 32 samples in its low half and x2 in its high half; their bits and those of x1 & x2 count.
        words = -(-batch // 32)
        wide, half = self.vector("int64"), self.vector("int32")
        keys = self.load("%numbers", self.loop.numbers, "key.0")
        last = self.let(f"mul i64 %number, {words}")
        sums: list[str] = []
        for word in range(words):
            index = self.let(f"sub i64 {last}, {words - 1 - word}")
            index = self.splat(self.let(f"mul i64 {index}, {0x9E3779B97F4A7C15}"), "int64")
            z = self.let(f"add {wide} {keys}, {index}")
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
                shifted = self.let(f"lshr {wide} {z}, {self.constant(shift, 'int64')}")
                z = self.let(f"xor {wide} {z}, {shifted}")
                if factor is not None:
                    z = self.let(f"mul {wide} {z}, {self.constant(factor, 'int64')}")
            high = self.let(f"lshr {wide} {z}, {self.constant(32, 'int64')}")
            x1, x2 = (self.let(f"trunc {wide} {bits} to {half}") for bits in (z, high))
            # Of the last word only the lowest bits belong to the batch.
            if word == words - 1 and batch % 32:
                mask = self.constant((1 << batch % 32) - 1, "int32")
                x1, x2 = (self.let(f"and {half} {bits}, {mask}") for bits in (x1, x2))
            drawn = [self.call("ctpop", "int32", b) for b in (self.let(f"and {half} {x1}, {x2}"), x1, x2)]
            sums = [self.let(f"add {half} {a}, {b}") for a, b in zip(sums, drawn, strict=True)] if sums else drawn
        both, one, two = sums
        rest = self.let(f"sub {half} {self.constant(batch, 'int32')}, {one}")
        rest = self.let(f"sub {half} {rest}, {two}")
        neither = self.let(f"add {half} {rest}, {both}")
        only_two, only_one = (self.let(f"sub {half} {x}, {both}") for x in (two, one))
        self.counts = [
            self.let(f"uitofp {half} {count} to {self.vector(kind)}") for count in (neither, only_two, only_one, both)
        ]

    def statement(self, statement: Statement, kinds: Sequence[str]) -> str:
        """Write one statement, whose operands have the types `kinds`, and return the name of its result."""
        op, numbers, kind, value = statement
        if op == "constant":
            return self.constant(decode(value, kind), kind)
        if op == "input":
            return self.input(value, kind)
        operands = [self.names[number] for number in numbers]
        vector = self.vector(kind)
        if op in _BINARY or op in _SAME:
            return self.let(f"{_BINARY.get(op, op)} {vector} {', '.join(operands)}")
        if op in _INTRINSICS:
            return self.call(_INTRINSICS[op], kind, *operands)
        if op == "neg":
            return self.let(f"fneg {vector} {operands[0]}")
        given = self.vector(kinds[0])
        # "Ordered" comparisons are false for NaN; `ne` is the unordered one, which is true for it.
        if op in COMPARISONS:
            ordered, signed = _PREDICATES[op]
            compare = f"fcmp {ordered}" if kinds[0] in FLOATS else f"icmp {signed}"
            return self.let(f"{compare} {given} {', '.join(operands)}")
        if op == "where":
            condition, yes, no = operands
            return self.let(f"select {given} {condition}, {vector} {yes}, {vector} {no}")
        if op == "bitcast":
            return self.let(f"bitcast {given} {operands[0]} to {vector}")
        assert op == "convert"
        return self.let(f"{_conversion(kinds[0], kind)} {given} {operands[0]} to {vector}")

    def body(self, program: ScalarProgram) -> None:
        """Write one step: all statements, and the stores of the state's next values as early as possible."""
        if self.loop.batch:
            self.draw(self.loop.batch, self.loop.dtype)
        program = lowered(program)
        stores = _stores(program)
        loaded: dict[Number, int] = {}
        for number, statement in enumerate(program.statements):
            for operand in statement.operands:
                name = program.statements[operand].value
                # %again is the same address as %state; through %state LLVM would reuse the first load.
                if number - loaded.get(operand, number) > FAR and self.in_state(name):
                    self.names[operand] = self.load("%again", self.loop.state, name)
                    del loaded[operand]
            kinds = [program.statements[operand].type for operand in statement.operands]
            self.names.append(self.statement(statement, kinds))
            if statement.op == "input":
                loaded[number] = number
            for name in stores.get(number, ()):
                address, vector, align = self.field("%state", self.loop.state, name)
                self.lines.append(f"  store {vector} {self.names[program.outputs[name]]}, ptr {address}, align {align}")

    def in_state(self, name: str) -> bool:
        """Return whether an input is a part of the state."""
        return name.rpartition(".")[0] in self.loop.state_fields

    def hand_out(self) -> None:
        """Write the end of a segment: copy the recorded fields and set the sums to 0."""
        loop, record = self.loop, self.loop.record
        for field in loop.recorded:
            for index in range(loop.state_fields[field][1]):
                name = f"{field}.{index}"
                value = self.load("%state", loop.state, name)
                address, vector, align = self.field("%record", record, name)
                self.lines.append(f"  store {vector} {value}, ptr {address}, align {align}")
                if field in loop.summed:
                    address, vector, align = self.field("%state", loop.state, name)
                    self.lines.append(f"  store {vector} zeroinitializer, ptr {address}, align {align}")


def _stores(program: ScalarProgram) -> dict[Number, list[str]]:
    """Return the outputs to store after each statement: they are computed, and the old values are no longer needed."""
    last_use = {number: number for number in range(len(program.statements))}
    for number, statement in enumerate(program.statements):
        last_use |= dict.fromkeys(statement.operands, number)
    inputs = {statement.value: number for number, statement in enumerate(program.statements) if statement.op == "input"}
    result: dict[Number, list[str]] = {}
    for name, number in program.outputs.items():
        if inputs.get(name) != number:  # else the value does not change
            result.setdefault(max(number, last_use[inputs.get(name, number)] if name in inputs else 0), []).append(name)
    return result


def _conversion(given: str, wanted: str) -> str:
    """Return LLVM's instruction for a conversion."""
    if wanted in FLOATS:
        if given in FLOATS:
            return "fpext" if wanted == "float64" else "fptrunc"
        return "uitofp" if given == BOOL else "sitofp"  # signed, true would be -1
    if given in FLOATS:
        raise NotCompilable("engine=lanes: can't compile the conversion of a floating-point number to an integer")
    return "zext" if given == BOOL else "sext" if wanted == "int64" else "trunc"


def lowered(program: ScalarProgram) -> ScalarProgram:
    """Return the program as it is compiled, after all passes."""
    # Checks come first, since they look through the products that `contracted` merges. Scheduling comes before the
    # functions are written out, while there are few statements and each function is one of them.
    return accumulated(expanded(scheduled(contracted(with_fewer_checks(program)))))


ENTRY = "run"

_FRAME = """define void @{entry}(ptr %states, ptr %same_states, ptr noalias readonly %all_numbers,
    ptr noalias readonly %table, ptr noalias readonly %ends, ptr noalias %records,
    i64 %blocks, i64 %first, i64 %segments)
    alignstack(64) "min-legal-vector-width"="512" "prefer-vector-width"="512" {{
entry:
  br label %block
block:
  %b = phi i64 [ 0, %entry ], [ %b.next, %block.end ]
  %state.at = mul i64 %b, {state}
  %state = getelementptr i8, ptr %states, i64 %state.at
  %again = getelementptr i8, ptr %same_states, i64 %state.at
  %numbers.at = mul i64 %b, {numbers}
  %numbers = getelementptr i8, ptr %all_numbers, i64 %numbers.at
  %record.first = mul i64 %b, %segments
  br label %segment
segment:
  %s = phi i64 [ 0, %block ], [ %s.next, %segment.end ]
  %t.first = phi i64 [ %first, %block ], [ %end, %segment.end ]
  %end.at = getelementptr i64, ptr %ends, i64 %s
  %end = load i64, ptr %end.at
  br label %step
step:
  %t = phi i64 [ %t.first, %segment ], [ %number, %step ]
  %number = add i64 %t, 1
  %row = sub i64 %t, %first
{body}
  %more = icmp slt i64 %number, %end
  br i1 %more, label %step, label %segment.end
segment.end:
  %record.number = add i64 %record.first, %s
  %record.at = mul i64 %record.number, {record}
  %record = getelementptr i8, ptr %records, i64 %record.at
{hand_out}
  %s.next = add i64 %s, 1
  %s.more = icmp slt i64 %s.next, %segments
  br i1 %s.more, label %segment, label %block.end
block.end:
  %b.next = add i64 %b, 1
  %b.more = icmp slt i64 %b.next, %blocks
  br i1 %b.more, label %block, label %exit
exit:
  ret void
}}
"""


def text(loop: Loop, program: ScalarProgram) -> str:
    """Return the module as LLVM's intermediate representation.

    Its function takes pointers to the blocks' states (twice, see `_Writer.body`), to their numbers, the table of the
    inputs that depend on the step, the last steps of the segments, and the blocks' records; then the number of blocks,
    of steps made before, and of segments. Its stack begins on a cache line, as the arrays do: a register that is saved
    across two lines costs twice the time.
    """
    writer = _Writer(loop)
    writer.body(program)
    body, writer.lines = writer.lines, []
    writer.hand_out()
    function = _FRAME.format(
        entry=ENTRY,
        state=loop.state.itemsize,
        numbers=loop.numbers.itemsize,
        record=loop.record.itemsize,
        body="\n".join(body),
        hand_out="\n".join(writer.lines),
    )
    return "\n".join([*sorted(writer.declared), function])
