"""What the runs of a folder are: all their values, kept with the plan.

Run ids leave defaults out, so with another default the same ids would mean other runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from xor_study.errors import typed
from xor_study.training.spec import DECLARED, KEYS, OWN, deciding_group

MOST_LISTED = 100
"""Of more values of a key, a plan keeps how many there are, the least and the greatest."""

MOST_SHOWN = 4

Kept = Mapping[str, Any]


def kept(table: pd.DataFrame) -> dict[str, Any]:
    """Return what a plan keeps of the values of its runs, as JSON has them.

    Args:
        table: the runs, checked.

    Returns:
        fixed: the keys that have one value in all runs, defaults included.
        varied: of the others, a list of their values, or {"count", "least", "greatest"}.
        defaults: what the run ids leave out; of a choice's parameter by "optimizer=sgd optimizer.momentum".
    """
    distinct = {key: _distinct(table[field]) for key, field in KEYS.items()}
    fixed = {key: values[0] for key, values in distinct.items() if len(values) == 1}
    varied = {key: _compact(values) for key, values in distinct.items() if len(values) > 1}
    return {"fixed": fixed, "varied": varied, "defaults": dict(_defaults(distinct))}


def _distinct(column: pd.Series[Any]) -> list[Any]:
    """Return the different values of a column in the order of the table, None where one is missing."""
    values = column.to_numpy() if column.dtype.kind in "ifb" else None
    constant = values is not None and bool((values == values[0]).all())
    found = column.iloc[:1] if constant else pd.Series(column.unique())
    return [None if pd.isna(value) else value for value in found.astype(object).tolist()]


def _compact(values: list[Any]) -> Any:
    numbers = _numbers(values)
    if len(numbers) <= MOST_LISTED:
        return values
    return {"count": len(values), "least": min(numbers), "greatest": max(numbers)}


def _numbers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, int | float)]


def _defaults(distinct: Mapping[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the defaults that the ids of runs with these values may leave out."""
    for key, field in KEYS.items():
        if field in DECLARED:
            group = str(deciding_group(field))
            for choice in distinct[group]:
                if choice in DECLARED[field]:
                    yield f"{group}={choice} {key}", DECLARED[field][choice].default
        elif field not in ("lr", "seed"):  # these are in every id
            yield key, OWN[field].default


def changed_default(before: Kept, now: Kept) -> str | None:
    """Return which default has changed since a folder's runs were planned, if runs then or now have it, as text."""
    old, new = _part(before, "defaults"), now["defaults"]
    for name in new:
        key = name.rpartition(" ")[2]
        if old.get(name, new[name]) != new[name] and (_has(before, key, old[name]) or _has(now, key, new[name])):
            return f"{name} was {typed(old[name])} by default when its runs were made and is {typed(new[name])} now"
    return None


def differences(before: Kept, now: Kept) -> str:
    """Return in which keys a folder's runs have values that a plan has not, as " (gain: 1 there, 2 here)"."""
    found = []
    for key in KEYS:
        old, new = _values(before, key), _values(now, key)
        if not _covers(new, old):
            found.append(f"{key}: {_shown(old)} there, {_shown(new)} here")
    return f" ({'; '.join(found[:MOST_SHOWN])})" if found else ""


def _part(plan: Kept, name: str) -> Mapping[str, Any]:
    """Return a part of a plan, empty if it has none: it is of an older version, or damaged."""
    part = plan.get(name)
    return part if isinstance(part, Mapping) else {}


def _values(plan: Kept, key: str) -> Any:
    """Return the values of a key as they are kept; an empty list if they are not."""
    fixed, varied = _part(plan, "fixed"), _part(plan, "varied")
    return [fixed[key]] if key in fixed else varied.get(key, [])


def _has(plan: Kept, key: str, value: Any) -> bool:
    """Return whether runs of a plan may have a value."""
    return _covers(_values(plan, key), [value])


def _covers(values: Any, others: Any) -> bool:
    """Return whether all of some values may be among others; only the range of many is known."""
    if isinstance(values, Mapping):
        ends = [others["least"], others["greatest"]] if isinstance(others, Mapping) else _numbers(others)
        return all(values["least"] <= end <= values["greatest"] for end in ends)
    return not isinstance(others, Mapping) and all(value in values for value in others)


def _shown(values: Any) -> str:
    if isinstance(values, Mapping):
        return f"{values['count']} values from {typed(values['least'])} to {typed(values['greatest'])}"
    if len(values) > MOST_SHOWN:
        return f"{len(values)} values from {typed(values[0])} to {typed(values[-1])}"
    return ", ".join(map(typed, values))
