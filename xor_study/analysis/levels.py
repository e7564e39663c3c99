"""Settings of cells as exact texts, and the levels of one setting with all that belongs to a level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL, is_usual
from xor_study.errors import typed
from xor_study.training.spec import GROUPS
from xor_study.training.table import distinct_rows

ACTIVATIONS = ("activation.hidden", "activation.output")


def texts_of(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return the settings of cells as exact texts, one table below the other: columns CELL, each of categories.

    Values are equal if they read the same as one types them; a column of a file may hold texts already. A missing value
    is an empty text.
    """
    columns = {key: pd.concat([table[key] for table in tables], ignore_index=True) for key in CELL}
    return pd.DataFrame({key: _exact(column) for key, column in columns.items()})


def _exact(column: pd.Series[Any]) -> pd.Categorical[Any]:
    codes, distinct = pd.factorize(column, use_na_sentinel=False)
    texts = ["" if pd.isna(value) else typed(value) for value in distinct.tolist()]
    renumbered, categories = pd.factorize(np.array(texts, dtype=object))
    return pd.Categorical.from_codes(renumbered[codes], pd.Index(categories))


def codes_of(texts: pd.DataFrame, key: str) -> NDArray[np.intp]:
    """Return which of its column's texts each cell has, shape (cells,)."""
    return texts[key].cat.codes.to_numpy().astype(np.intp)


def is_decided(codes: NDArray[np.intp], level: NDArray[np.intp]) -> bool:
    """Return whether cells of the same level always have the same value.

    Args:
        codes: number of each cell's value, shape (cells,).
        level: number of each cell's level, shape (cells,).
    """
    one = np.zeros(level.max() + 1, np.intp)
    one[level] = codes
    return bool((one[level] == codes).all())


def varied(texts: pd.DataFrame, keys: Iterable[str] = CELL) -> list[str]:
    """Return the keys that tell cells apart, without a choice's parameters that only the choice decides."""
    codes = {key: codes_of(texts, key) for key in keys}
    several = {key: code for key, code in codes.items() if code.min() < code.max()}
    return [key for key in several if not _is_of_choice(key, several)]


def _is_of_choice(key: str, codes: dict[str, NDArray[np.intp]]) -> bool:
    group, dot, _ = key.partition(".")
    return bool(dot) and group in codes and is_decided(codes[key], codes[group])


def level_columns(texts: pd.DataFrame, key: str) -> list[str]:
    """Return the columns that tell the levels of a setting apart.

    Of a group these are the choice and those of its parameters that vary within a choice, unless every choice has the
    parameter with the same values: then it is a setting of its own.

    Args:
        texts: of `texts_of`.
        key: one of CELL, or "activation" for both activations.
    """
    if key == "activation":
        return list(ACTIVATIONS)
    if key not in GROUPS:
        return [key]
    choice = codes_of(texts, key)
    parameters = {name: codes_of(texts, name) for name in CELL if name.startswith(f"{key}.")}
    inner = [name for name, codes in parameters.items() if not is_decided(codes, choice)]
    return [key, *(name for name in inner if not _is_crossed(texts, name, parameters[name], choice))]


def _is_crossed(texts: pd.DataFrame, name: str, codes: NDArray[np.intp], choice: NDArray[np.intp]) -> bool:
    """Return whether each choice has a parameter, with the same values."""
    pairs = len(np.unique(codes * (choice.max() + 1) + choice))
    return not (texts[name] == "").any() and pairs == len(np.unique(codes)) * len(np.unique(choice))


@dataclass(frozen=True)
class Levels:
    """The levels of a setting.

    Attributes:
        key: the setting, or a group.
        columns: that tell its levels apart; see `level_columns`.
        number: which level each cell has, shape (cells,).
        names: of the levels, as one types them.
    """

    key: str
    columns: list[str]
    number: NDArray[np.intp]
    names: list[str]

    @classmethod
    def of(cls, texts: pd.DataFrame, key: str) -> Self:
        """Return the levels of a setting, in the order in which cells have them."""
        columns = level_columns(texts, key)
        number, firsts = distinct_rows((texts[column] for column in columns), len(texts))
        return cls(key, columns, number, labels(texts, firsts, columns))

    def usual(self, cells: pd.DataFrame) -> int:
        """Return the article's level, or else the first.

        Args:
            cells: as in `Outcomes`, not as texts.
        """
        found = self.number[np.logical_and.reduce([is_usual(cells, column) for column in self.columns])]
        return int(found[0]) if len(found) else 0

    def from_baseline(self, baseline: int) -> Self:
        """Return the same levels with one of them first."""
        order = [baseline, *(level for level in range(len(self.names)) if level != baseline)]
        return replace(self, number=np.argsort(order)[self.number], names=[self.names[level] for level in order])

    def belonging(self, texts: pd.DataFrame, keys: Iterable[str]) -> Iterator[str]:
        """Return what is told about settings that each level has one value of.

        Args:
            texts: of the cells.
            keys: the settings, of which those that tell the levels apart are passed over.
        """
        _, firsts = np.unique(self.number, return_index=True)
        known = [(key, texts[key].take(firsts).tolist()) for key in keys if key not in self.columns]
        if known:
            told = ", ".join(key + self._values(values) for key, values in known)
            yield f"varies only with {self.key}, so each level has its own and runs are paired without it: {told}"

    def _values(self, values: Sequence[str]) -> str:
        known = [f"{value} with {name}" for value, name in zip(values, self.names, strict=True) if value != ""]
        return f" ({shortened(known)})" if len({*values} - {""}) > 1 else ""


def labels(texts: pd.DataFrame, cells: Sequence[int] | NDArray[Any], keys: Sequence[str]) -> list[str]:
    """Return the settings of some cells as one types them; those that a cell doesn't have are left out.

    Example:
        >>> labels(pd.DataFrame({"optimizer": ["sgd", "adam"], "optimizer.momentum": ["0", ""]}), [1], ["optimizer"])
        ['optimizer=adam']
    """
    columns = [[f"{key}={text}" if text else "" for text in texts[key].take(cells)] for key in keys]
    return [" ".join(filter(None, words)) for words in zip(*columns, strict=True)] if keys else [""] * len(cells)


def shortened(values: Sequence[str], most: int = 5) -> str:
    """Return some values as one text, of many only the first and how many there are.

    Example:
        >>> shortened(["0.1", "0.2", "0.3"], most=2)
        '0.1, 0.2, ... (3 in all)'
    """
    more = f", ... ({len(values):,} in all)" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def ranges(numbers: NDArray[np.int64]) -> str:
    """Return whole numbers as ranges.

    Example:
        >>> ranges(np.array([7, 1, 2, 3, 3]))
        '1 to 3, 7'
    """
    values = np.unique(numbers)
    parts = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return shortened([str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts])


def nearly_equal(some: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of unequal texts of numbers whose difference is a hundred-thousandth of them or less.

    Args:
        some: texts, of which those that are not numbers are passed over.
        others: likewise.

    Example:
        >>> nearly_equal(["0.3", "1", "sgd"], ["0.30000000000000004", "2"])
        [('0.3', '0.30000000000000004')]
    """
    known = sorted((number, text) for text in others if (number := _number(text)) is not None) if some else []
    numbers = np.array([number for number, _ in known])
    pairs = []
    for text in some:
        number = _number(text)
        if number is None:
            continue
        at = int(np.searchsorted(numbers, number))
        beside = known[max(at - 1, 0) : at + 2]
        pairs += [(text, t) for value, t in beside if t != text and math.isclose(value, number, rel_tol=1e-5)]
    return pairs


def near_hint(key: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line about the values of a setting that are nearly equal, if there are any.

    Args:
        key: the setting.
        pairs: of `nearly_equal`; one that is there both ways round is told once.
    """
    distinct = {frozenset(pair): f"{pair[0]} and {pair[1]}" for pair in pairs}
    hint = "are nearly equal, but not the same: write them alike in all sweeps"
    return [f"{key}={shortened(list(distinct.values()), most=3)} {hint}"] if distinct else []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
