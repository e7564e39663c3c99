"""Catalogues: functions found by their own name, with the parameters that their signatures declare.

A function's keyword-only arguments are the parameters a user may set. Their annotation says what is allowed, their
default is the default everywhere (command line, `RunSpec`, CSV), so nothing is written twice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from xor_study.errors import StudyError, UnknownNameError, show, suggestion

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """Numbers between `low` and `high`; `bounds` says whether the ends belong to it, as in `"[)"`.

    A word may be admitted beside them (`also`).
    """

    low: float = -math.inf
    high: float = math.inf
    bounds: str = "[]"
    also: str | None = None

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.bounds[0] == "[" else value > self.low
        below = value <= self.high if self.bounds[1] == "]" else value < self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        word = f" or {self.also}" if self.also else ""
        if self.low == -math.inf and self.high == math.inf:
            return "finite" + word
        if self.high == math.inf:
            return f"finite and {'>=' if self.bounds[0] == '[' else '>'} {self.low:g}{word}"
        return f"in {self.bounds[0]}{_number(self.low)}, {_number(self.high)}{self.bounds[1]}{word}"


def _number(value: float) -> str:
    return f"2^{round(math.log2(value + 1))} - 1" if value >= 2**53 else f"{value:g}"


@dataclass(frozen=True)
class OneOf:
    """A name among those of a collection, which is read when it is needed."""

    names: Iterable[str]

    def __contains__(self, value: str) -> bool:
        return value in tuple(self.names)

    def __str__(self) -> str:
        return "one of " + ", ".join(self.names)


STRUCTURAL = "structural"
"""Marks a number that enters a step's compiled constants, so that runs which differ in it never share a batch."""

Finite = Annotated[float, Interval()]
Positive = Annotated[float, Interval(0, bounds="(]")]
NonNegative = Annotated[float, Interval(0)]
Decay = Annotated[float, Interval(0), STRUCTURAL]
DecayRate = Annotated[float, Interval(0, 1, "[)"), STRUCTURAL]


@dataclass(frozen=True)
class Parameter:
    """What may be set under one name.

    Attributes:
        name: as in the signature it comes from.
        type: float, int, bool or str.
        default: the value it has unless given.
        allowed: what values of that type are admitted; None means all.
        structural: whether the value decides the program of a step (names, switches and decay rates do) rather than
            being one of its inputs.
    """

    name: str
    type: type
    default: Any
    allowed: Interval | OneOf | None
    structural: bool

    def check(self, value: Any, key: str) -> Any:
        """Return `value` as this parameter's type.

        Raises:
            StudyError: if it is of another type or not allowed; the message names `key`, the value and what is allowed.
        """
        if isinstance(self.allowed, Interval) and self.allowed.also is not None and value == self.allowed.also:
            return value
        converted = _convert(value, self.type)
        if converted is None:
            wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}[self.type]
            allowed = f", {self.allowed}" if self.allowed is not None else ""
            raise StudyError(f"{key}={show(value)}: must be {wanted}{allowed}")
        if isinstance(self.allowed, OneOf) and converted not in self.allowed:
            raise StudyError(f"{key}={show(value)}: unknown{suggestion(converted, self.allowed.names)}")
        if self.allowed is not None and converted not in self.allowed:
            raise StudyError(f"{key}={show(value)}: must be {self.allowed}")
        return converted


def _convert(value: Any, wanted: type) -> Any:
    """Return `value` as `wanted`, or None where that would not be the same value."""
    if hasattr(value, "item"):  # a numpy scalar, from a column of a table
        value = value.item()
    if wanted is bool:
        return {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, bool | str) else None
    if wanted is str:
        return value if isinstance(value, str) else None
    number = _number_in(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    if wanted is int:
        return int(number) if not isinstance(number, float) or number.is_integer() else None
    try:
        return float(number) + 0.0  # -0.0 becomes 0.0: one value, one identity
    except OverflowError:  # a whole number beyond the largest float
        return math.inf


def _number_in(text: str) -> int | float | None:
    try:
        # Not through float where it is whole: seeds go up to 2^63 - 1, and a float has 53 bits.
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None


def parameter(name: str, annotation: Any, default: Any) -> Parameter:
    """Return the parameter that an annotation declares, such as `Annotated[float, Interval(0, 1)]`."""
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    if annotation == int | str:  # a whole number or the word that its interval admits
        annotation = int
    allowed = next((extra for extra in extras if isinstance(extra, Interval | OneOf)), None)
    structural = annotation is not float or STRUCTURAL in extras
    return Parameter(name, annotation, default, allowed, structural)


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the keyword-only arguments of `function` that have a default, by name."""
    declared = {
        name: argument
        for name, argument in inspect.signature(function).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and argument.default is not argument.empty
    }
    # Only of these: the annotations of tensors name torch, which may not be loaded yet.
    annotated = SimpleNamespace(__annotations__={name: argument.annotation for name, argument in declared.items()})
    hints = get_type_hints(annotated, function.__globals__, include_extras=True)
    return {name: parameter(name, hints[name], argument.default) for name, argument in declared.items()}


@dataclass(frozen=True)
class Preset:
    """A name for an entry with some of its parameters set; a run that is given it stores these."""

    name: str
    parameters: Mapping[str, Any]


class Catalogue(Mapping[str, T], Generic[T]):
    """Entries by name, in the order of their definition.

    Args:
        kind: what an entry is, for messages.

    Attributes:
        presets: other names, each for an entry with parameters set.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.presets: dict[str, Preset] = {}
        self._entries: dict[str, T] = {}
        self._parameters: dict[str, dict[str, Parameter]] = {}
        self._functions: dict[str, Callable[..., Any]] = {}

    def add(self, function: Callable[..., Any], entry: T) -> None:
        """Enter `entry` under the name of `function`, with the parameters of its signature."""
        self._entries[function.__name__] = entry
        self._parameters[function.__name__] = parameters_of(function)
        self._functions[function.__name__] = function

    def parameters(self, name: str) -> dict[str, Parameter]:
        """Return the parameters of the entry `name`."""
        self[name]
        return self._parameters[name]

    def module(self, name: str) -> str:
        """Return the module in which the function of the entry `name` is."""
        self[name]
        return self._functions[name].__module__

    def summary(self, name: str) -> str:
        """Return what the entry `name` computes: the first paragraph of its function's docstring, in one line."""
        self[name]
        return " ".join((self._functions[name].__doc__ or "").partition("\n\n")[0].split())

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(f"unknown {self.kind} {show(name)}{suggestion(name, self)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
