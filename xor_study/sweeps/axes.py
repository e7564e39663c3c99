"""Axes that Hydra's grammar lacks: spaced values, several keys that vary together, seeds added until enough.

`lr=logspace(1e-4,10,20)` is one key's axis; `zip(...)`, `ofat(...)` and `sobol(...)` are words of their own, each
an axis whose values are settings of several keys. Hydra reads a command line again; it takes each as a quoted choice.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    FloatRange,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
    ValueType,
)

from xor_study.errors import StudyError, show, suggestion
from xor_study.training.spec import DECLARED, KEYS, OWN

AXES = "axes"
"""The key under which a study file lists designs, and under which Hydra sees those that are typed."""

DESIGNS = ("zip", "ofat", "sobol")
SPACED = ("linspace", "logspace")
UNTIL = "until"

DIGITS = 12
"""Significant digits of computed values: 0.001 of logspace(1e-4,10,6) is the 0.001 that one types."""

MOST_VALUES = 10**7

_OF_HYDRA = ("range", "glob", "choice", "sort", "shuffle", "interval", "tag", "int", "float", "str", "bool", "json_str")
"""Functions of Hydra's grammar."""

_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
_VALUE = re.compile(rf"([\w.]+)=({'|'.join((*SPACED, UNTIL))})(\(.*\))", re.DOTALL)
_SORTED_RANGE = re.compile(r"(?<=sort\()\s*range\(([^()]*)\)")


class _Unset:
    """In a design, what stays as it is composed."""


UNSET = _Unset()


@dataclass
class Design(Sweep):
    """One axis of several keys.

    Attributes:
        kind: one of DESIGNS.
        columns: the values of each key, all of one length, UNSET where a key stays as it is composed.
    """

    kind: str = ""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of settings."""
        return len(next(iter(self.columns.values())))


@dataclass
class Until(ChoiceSweep):
    """Seeds from 0 that are added to a cell until its intervals are narrow enough; `list` has those of all cells.

    Attributes:
        width: that no Wilson 95 % interval of a share may exceed.
        least, most: numbers of seeds of a cell.
        outcome: whose interval counts; None for all outcomes.
    """

    width: float = 0.0
    least: int = 0
    most: int = 0
    outcome: str | None = None


def readable(text: str) -> str:
    """Return a word of a command line as Hydra's parser takes it.

    Example:
        >>> readable("zip(lr=0.1,1; gain=1,2)")
        "axes=choice('zip(lr=0.1,1; gain=1,2)')"
    """
    key, _, value = text.partition("=")
    if key == "note" and value != "null" and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
        return f"note={_quoted(value)}"
    if _word(text):
        return f"{AXES}=choice({_quoted(text)})"
    if key == AXES and not value.startswith("choice(") and _word(value):
        return f"{AXES}=choice({_quoted(value)})"
    if _VALUE.fullmatch(text):
        return f"{key}=choice({_quoted(value)})"
    function = re.fullmatch(r"([A-Za-z_]\w*)\(.*\)", value, re.DOTALL)
    if function and key in KEYS and function[1] not in (*SPACED, UNTIL, *_OF_HYDRA):
        raise StudyError(f"{show(text)}: unknown function{suggestion(function[1], (*SPACED, UNTIL, *_OF_HYDRA[:5]))}")
    if "range" in value and key in KEYS:
        return f"{key}={_SORTED_RANGE.sub(_expanded, value)}"
    return text


def as_typed(text: str) -> str:
    """Return a word that `readable` returned as one would type it."""
    if note := re.fullmatch(r"note='(.*)'", text, re.DOTALL):
        return "note=" + note[1].replace("\\'", "'")
    found = re.fullmatch(r"([\w.]+)=choice\('(.*)'\)", text, re.DOTALL)
    if found is None or not (found[1] == AXES or _VALUE.fullmatch(f"{found[1]}={found[2]}")):
        return text
    inner = found[2].replace("\\'", "'")
    return inner if found[1] == AXES else f"{found[1]}={inner}"


def is_ours(text: str) -> bool:
    """Return whether a word of a command line needs this package's own sweeper."""
    return as_typed(readable(text)) != readable(text) and not text.startswith("note=")


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _word(text: str) -> bool:
    """Return whether a text is a design.

    Raises:
        StudyError: if it is written as one and has an unknown name.
    """
    found = _CALL.fullmatch(text.strip())
    if found and found[1] not in DESIGNS:
        raise StudyError(f"{show(text)}: unknown axis {show(found[1])}{suggestion(found[1], DESIGNS)}")
    return found is not None


Values = Callable[[str], tuple[str, list[Any]]]
"""key=value -> the key and its values."""


def understood(override: Override, values: Values) -> Override:
    """Return an override with the axis that its quoted text stands for, or as it is.

    Args:
        override: as Hydra's parser returned it.
        values: reads an axis inside a design.

    Raises:
        StudyError: if the axis can't be made.
    """
    given = override._value
    if not (isinstance(given, ChoiceSweep) and len(given.list) == 1):
        return override
    key, value = override.key_or_group, given.list[0]
    text = value.text if isinstance(value, QuotedString) else str(value)
    call = _CALL.fullmatch(text.strip())
    if call is None:
        return override
    if key == AXES:
        return _understood_design(call[1], call[2], text.strip(), values)
    if call[1] not in (*SPACED, UNTIL):
        return override
    text = f"{key}={text}"
    sweep = until(key, call[2], text) if call[1] == UNTIL else ChoiceSweep(list=spaced(call[1], key, call[2], text))
    return Override(OverrideType.CHANGE, key, ValueType.CHOICE_SWEEP, sweep, input_line=text)


def _understood_design(kind: str, inside: str, text: str, values: Values) -> Override:
    columns = {"zip": _zipped, "ofat": _one_at_a_time, "sobol": _sobol}[kind](inside, text, values)
    key, design = f"{kind}({', '.join(columns)})", Design(kind=kind, columns=columns)
    return Override(OverrideType.CHANGE, key, ValueType.CHOICE_SWEEP, design, input_line=text)  # type: ignore[arg-type]


def _inner(inside: str, text: str, values: Values) -> dict[str, list[Any]]:
    """Return the axes inside a design, which semicolons separate.

    Raises:
        StudyError: if there are none, or if a key is given twice.
    """
    result: dict[str, list[Any]] = {}
    for part in filter(None, map(str.strip, inside.split(";"))):
        if "=" not in part:
            raise StudyError(f"{show(text)}: {show(part)}: must be key=value,value,...")
        key, found = values(part)
        if key in result:
            raise StudyError(f"{show(text)}: {key} is given twice")
        result[key] = found
    if not result:
        raise StudyError(f"{show(text)}: has no axes; write KEY=VALUE,VALUE,... separated by semicolons")
    return result


def _zipped(inside: str, text: str, values: Values) -> dict[str, list[Any]]:
    result = _inner(inside, text, values)
    if len(set(map(len, result.values()))) > 1:
        lengths = ", ".join(f"{key} has {len(column)}" for key, column in result.items())
        raise StudyError(f"{show(text)}: zip pairs axes of the same number of values; {lengths}")
    return result


def _one_at_a_time(inside: str, text: str, values: Values) -> dict[str, list[Any]]:
    axes = _inner(inside, text, values)
    if "seed" in axes:
        raise StudyError(f"{show(text)}: seed is crossed with all of ofat; give it beside")
    rows = 1 + sum(map(len, axes.values()))
    result, start = {}, 1
    for key, given in axes.items():
        result[key] = [UNSET] * start + given + [UNSET] * (rows - start - len(given))
        start += len(given)
    return result


def _arguments(inside: str, text: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """Return named arguments, such as those of "n=256, seed=0", over their defaults.

    Raises:
        StudyError: if one is unknown or given twice.
    """
    result: dict[str, str] = {}
    for part in filter(None, map(str.strip, inside.split(","))):
        name, separator, value = (word.strip() for word in part.partition("="))
        if not separator or name not in defaults:
            raise StudyError(f"{show(text)}: {show(part)}: must be one of {', '.join(f'{key}=' for key in defaults)}")
        if name in result:
            raise StudyError(f"{show(text)}: {name} is given twice")
        result[name] = value
    return {**defaults, **result}


def _number(value: str, name: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise StudyError(f"{show(text)}: {name}={show(value)}: must be a number")
    return number


def _count(value: str, name: str, text: str, least: int = 1, most: int = MOST_VALUES) -> int:
    if not value.isdecimal() or not least <= int(value) <= most:
        raise StudyError(f"{show(text)}: {name}={show(value)}: must be a whole number in [{least}, {most}]")
    return int(value)


def _is_whole(key: str) -> bool:
    """Return whether a key takes whole numbers.

    Raises:
        StudyError: if it takes no numbers.
    """
    parameter = OWN.get(KEYS.get(key, "")) or next(iter(DECLARED.get(KEYS.get(key, ""), {}).values()), None)
    if parameter is None or parameter.type not in (int, float):
        raise StudyError(f"{key}: is not a number; give its values as a list")
    return parameter.type is int


def spaced(name: str, key: str, inside: str, text: str) -> list[Any]:
    """Return values with equal differences or ratios, both ends included, whole ones (and each once) for such keys.

    Raises:
        StudyError: if there are none.
    """
    import numpy as np

    given = [part.strip() for part in inside.split(",")]
    if len(given) != 3:
        raise StudyError(f"{show(text)}: must be {name}(FIRST,LAST,COUNT), where both ends are values, not exponents")
    first, last = (_number(end, "an end", text) for end in given[:2])
    count = _count(given[2], "count", text)
    if name == "logspace" and not first * last > 0:
        raise StudyError(f"{show(text)}: the ends of logspace must be above 0; for a 0 add an axis of its own")
    values = (np.geomspace if name == "logspace" else np.linspace)(first, last, count)
    return _rounded(values, first, last, whole=_is_whole(key))


def _rounded(values: Any, first: float, last: float, *, whole: bool) -> list[Any]:
    """Return computed values without the noise of their last digits; the ends as they are given."""
    if whole:
        return list(dict.fromkeys(round(value) for value in values.tolist()))
    result = [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
    result[0] = first
    if len(result) > 1:
        result[-1] = last
    return result


_DIMENSION = re.compile(r"([\w.]+)\s*=\s*(\S+?)\.\.(\S+?)(?:\s+(log|linear))?")


def _sobol(inside: str, text: str, values: Values) -> dict[str, list[Any]]:
    """Return scrambled Sobol points."""
    given, _, rest = inside.partition(";")
    options = _arguments(rest, text, {"n": "", "seed": "0"})
    n, seed = _count(options["n"], "n", text), _count(options["seed"], "seed", text, 0, 2**32 - 1)
    if n & (n - 1):
        near = 1 << (n.bit_length() - 1)
        raise StudyError(f"{show(text)}: n={n}: Sobol points need a power of two, such as {near} or {2 * near}")
    parts = [part.strip() for part in given.split(",") if part.strip()]
    scales: dict[str, tuple[float, float, bool]] = {}
    for part in parts:
        found = _DIMENSION.fullmatch(part)
        if found is None:
            raise StudyError(f"{show(text)}: {show(part)}: must be KEY=LOW..HIGH or KEY=LOW..HIGH log")
        key = found[1]
        values(f"{key}={found[2]}")  # a known key
        if key in scales or key == "seed":
            problem = "is given twice" if key in scales else "is crossed with all points; give it beside"
            raise StudyError(f"{show(text)}: {key} {problem}")
        scales[key] = _scale(found, text)
    if not scales:
        raise StudyError(f"{show(text)}: has no dimensions; write KEY=LOW..HIGH, separated by commas")
    return _points(scales, n, seed)


def _scale(found: re.Match[str], text: str) -> tuple[float, float, bool]:
    low, high = (_number(end, found[1], text) for end in found.group(2, 3))
    if not low < high:
        raise StudyError(f"{show(text)}: {show(found[0])}: the lower end comes first")
    if found[4] == "log" and low <= 0:
        raise StudyError(f"{show(text)}: {show(found[0])}: a log scale begins above 0")
    return low, high, found[4] == "log"


def _points(scales: Mapping[str, tuple[float, float, bool]], n: int, seed: int) -> dict[str, list[Any]]:
    import numpy as np
    from scipy.stats.qmc import Sobol

    unit = Sobol(len(scales), rng=np.random.default_rng(seed)).random(n)
    result: dict[str, list[Any]] = {}
    for (key, (low, high, log)), share in zip(scales.items(), unit.T, strict=True):
        whole = _is_whole(key)
        top = high + 1 if whole else high  # each whole number is equally likely, the last one too
        at = low * (top / low) ** share if log else low + (top - low) * share
        if whole:
            result[key] = np.clip(np.floor(at), low, high).astype(int).tolist()
        else:
            result[key] = [float(f"{value:.{DIGITS}g}") for value in at.tolist()]
    return result


def until(key: str, inside: str, text: str) -> Until:
    """Return the rule of `seed=until(width=0.05, max=2000)`.

    Raises:
        StudyError: if it is not of seeds, or if an argument is missing or not allowed.
    """
    if key != "seed":
        raise StudyError(f"{show(text)}: only seeds are added until intervals are narrow; write seed=until(...)")
    options = _arguments(inside, text, {"width": "", "max": "", "min": "", "outcome": ""})
    width = _number(options["width"], "width", text)
    if not 0 < width < 1:
        raise StudyError(f"{show(text)}: width={options['width']}: must be above 0 and below 1, as a share")
    most = _count(options["max"], "max", text)
    least = _count(options["min"] or str(min(64, most)), "min", text, 1, most)
    if options["outcome"]:
        from xor_study.training.outcome import OUTCOMES  # loads torch, which a mistake elsewhere need not wait for

        if options["outcome"] not in OUTCOMES:
            unknown = suggestion(options["outcome"], OUTCOMES)
            raise StudyError(f"{show(text)}: outcome={show(options['outcome'])}: unknown{unknown}")
    return Until(list=list(range(least)), width=width, least=least, most=most, outcome=options["outcome"] or None)


def range_values(given: RangeSweep) -> range | Iterator[float]:
    """Return the values of a range in decimal steps, the end excluded, lazily: there may be more than memory holds.

    Example:
        >>> list(range_values(RangeSweep(start=0.1, stop=0.4, step=0.1)))
        [0.1, 0.2, 0.3]
    """
    if all(isinstance(number, int) for number in (given.start, given.stop, given.step)):
        return range(given.start, given.stop, given.step)  # type: ignore[arg-type]
    return _decimals(*(Decimal(str(number)) for number in (given.start, given.stop, given.step)))


def _decimals(start: Decimal, stop: Decimal, step: Decimal) -> Iterator[float]:
    if not step:
        raise ValueError("range() arg 3 must not be zero")
    at = start
    while at < stop if step > 0 else at > stop:
        yield float(at)
        at += step


def _expanded(found: re.Match[str]) -> str:
    """Return a range within sort(...) as a choice: Hydra reverses ranges by their ends, which are not always values."""
    names, given = ("start", "stop", "step"), {"step": "1", "start": "0"}
    parts = [part.strip() for part in found[1].split(",")]
    positions = names[1:2] if len(parts) == 1 else names
    for name, part in zip(positions, parts, strict=False):
        key, separator, value = part.partition("=")
        given |= {key.strip(): value.strip()} if separator else {name: part}
    try:
        start, stop, step = (int(given[n]) if given[n].lstrip("+-").isdecimal() else float(given[n]) for n in names)
    except (KeyError, ValueError):
        return found[0]  # Hydra says what is wrong
    values = []
    for value in range_values(RangeSweep(start=start, stop=stop, step=step)) if step else ():
        values.append(str(value))
        if len(values) > _MOST_SORTED:
            return found[0]
    return f"choice({','.join(values)})" if values else found[0]


_MOST_SORTED = 1000
_MOST_COMPARED = 10**5


def range_note(override: Override) -> str | None:
    """Return what a range is here and what it would be to Hydra's own sweepers, or None where that is the same."""
    given = override._value
    if not isinstance(given, RangeSweep):
        return None
    ours = range_values(given)
    if isinstance(ours, range):
        return None
    theirs = FloatRange(given.start, given.stop, given.step)  # type: ignore[arg-type]
    pairs = enumerate(itertools.islice(itertools.zip_longest(ours, theirs), _MOST_COMPARED), 1)
    at, (own, other) = next((found for found in pairs if found[1][0] != found[1][1]), (0, (None, None)))
    if not at:
        return None
    what = "no value" if own is None else repr(own)
    return f"{override.input_line}: value {at} is {what} (decimal steps, end excluded); Hydra's own range has {other!r}"


def check_once(parsed: Sequence[Override]) -> None:
    """Raise StudyError if a key of a design is given again; beside ofat, a single value is its baseline."""
    by_itself = {override.key_or_group: override for override in parsed}
    seen: dict[str, Override] = {}
    for override in parsed:
        if not isinstance(override._value, Design):
            continue
        for key in override._value.columns:
            other = seen.setdefault(key, override)
            beside = by_itself.get(key)
            if other is override and beside is not None:
                other = override if override._value.kind == "ofat" and not beside.is_sweep_override() else beside
            if other is not override:
                raise StudyError(f"{key}: given twice, in {show(other.input_line)} and in {show(override.input_line)}")


def with_baselines(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Return axes, of which single values beside a design have become what the design leaves unset."""
    result = dict(axes)
    for name, design in axes.items():
        if isinstance(design, Design):
            columns = dict(design.columns)
            for key in columns.keys() & axes.keys():
                (value,) = result.pop(key)
                columns[key] = [value if given is UNSET else given for given in columns[key]]
            result[name] = Design(kind=design.kind, columns=columns)
    return result
