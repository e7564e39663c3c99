"""Paired comparisons of outcomes: of two sets of runs, or of the levels of one setting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.analysis.levels import (
    ACTIVATIONS,
    Levels,
    codes_of,
    is_decided,
    labels,
    near_hint,
    nearly_equal,
    ranges,
    shortened,
    texts_of,
    varied,
)
from xor_study.analysis.outcomes import Outcomes
from xor_study.analysis.statistics import holm, paired_differences
from xor_study.errors import StudyError, show, suggestion, typed
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import GROUPS, guesses
from xor_study.training.table import distinct_rows

MOST_EXPLAINED = 10
"""Levels whose unpaired runs are explained one by one."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences of outcomes.

    Attributes:
        sides: in what the two sides differ, as one types it; in a comparison of levels what they are; none of effects.
        table: a row for each cell and outcome that occurs in it: columns of the cell's settings as exact texts, then
            pairs, outcome, one, other (shares), difference, low, high (Newcombe's 95 % interval), p (McNemar's exact
            test, adjusted by Holm's method) and complement_of: where only two outcomes occur in a cell, the first of
            them in the row of the second. These are one test, counted once.
        notes: what a reader must know: runs without a partner and why, values that are nearly equal, settings that
            belong to a level.
        method: what the numbers are.
    """

    sides: Sequence[str]
    table: pd.DataFrame
    notes: list[str]
    method: str


@dataclass(frozen=True)
class _Design:
    """Runs whose cells belong to levels, of which the first is the baseline.

    Attributes:
        runs: their `cells` are texts.
        level: of each cell; 0 is the baseline.
        names: of the levels.
        own: the settings that belong to a level: each level has one value of them.
        rest: a number of each cell, equal for cells that agree in all other settings.
    """

    runs: Outcomes
    level: NDArray[np.intp]
    names: Sequence[str]
    own: list[str]
    rest: NDArray[np.intp]

    @classmethod
    def of(cls, runs: Outcomes, level: NDArray[np.intp], names: Sequence[str]) -> _Design:
        codes = {key: codes_of(runs.cells, key) for key in CELL}
        several = [key for key in CELL if codes[key].min() < codes[key].max()]
        own = [key for key in several if is_decided(codes[key], level)]
        rest, _ = distinct_rows((runs.cells[key] for key in several if key not in own), len(level))
        return cls(runs, level, names, own, rest)

    def cells_of(self, level: int) -> NDArray[np.intp]:
        """Return which cells a level has."""
        return np.flatnonzero(self.level == level)

    def shared(self, cells: NDArray[np.intp]) -> list[str]:
        """Return the settings that tell some cells apart, but for those that belong to a level."""
        return varied(self.runs.cells.take(cells), [key for key in CELL if key not in self.own])


def compared(one: Outcomes, other: Outcomes) -> Comparison:
    """Return the paired differences between two sets of runs.

    A setting that has one value in all of one set and another in all of the other is what they differ in; runs that
    agree in all other settings and in the seed are a pair.

    Args:
        one: the runs whose share is subtracted.
        other: the runs of the other set.

    Raises:
        StudyError: if there are no pairs, or if a set has a run twice.
    """
    one, other = one.restricted(), other.restricted()
    cells = texts_of(one.cells, other.cells)
    joined = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("seed", "outcome")}
    cell = np.concatenate([one.cell, other.cell + np.int32(len(one.cells))])
    level = np.repeat([0, 1], [len(one.cells), len(other.cells)])
    design = _Design.of(Outcomes(cells, cell, **joined), level, ("A", "B"))
    return _compared(design, [], labels(cells, [0, len(one.cells)], design.own))


def compared_by(runs: Outcomes, key: str, baseline: str | None = None) -> Comparison:
    """Return the paired differences between one level of a setting and each of its others.

    A setting that has one value within each level, but not the same in all, belongs to the level and does not keep runs
    from being paired: the parameters of a choice, or a learning rate that is each optimizer's own.

    Args:
        runs: of one or several sweeps.
        key: a setting, a group such as "optimizer", or "activation".
        baseline: a level as one types it: "sgd", "optimizer=sgd", or with its parameters "clip=norm clip.bound=1"; by
            default the article's, or else the first.

    Raises:
        StudyError: if there is no such setting or level, if the setting doesn't vary, or if there are no pairs.
    """
    known = [*CELL, "activation"]
    if key not in known:
        near = guesses(key, known)
        hint = f"; did you mean {' or '.join(near)}?" if near else suggestion(key, known)
        raise StudyError(f"--by {show(key)}: {'pairs the runs' if key == 'seed' else f'unknown setting{hint}'}")
    # A parameter is missing where another choice has none of that name.
    runs = runs.restricted()
    kept = runs.restricted(runs.cells[key].notna().to_numpy() if key in runs.cells else True)
    if not len(kept):
        raise StudyError(f"--by {key}: no run has it")
    cells = texts_of(kept.cells)
    levels = Levels.of(cells, key)
    if len(levels.names) < 2:
        others = [name for name in varied(texts_of(runs.cells)) if name not in levels.columns]
        raise StudyError(
            f"--by {key}: does not vary, all runs have {levels.names[0]}; what varies: {', '.join(others) or 'nothing'}"
        )
    base = levels.usual(kept.cells) if baseline is None else _level(levels, cells, baseline)
    levels = levels.from_baseline(base)
    design = _Design.of(replace(kept, cells=cells), levels.number, levels.names)
    comparison = _compared(design, levels.columns, (levels.names[0], f"each other {key}"))
    left_out = len(runs) - len(kept)
    notes = [f"{left_out:,} runs have no {key} and are left out"] if left_out else []
    return replace(comparison, notes=[*notes, *levels.belonging(cells, design.own), *comparison.notes])


def _level(levels: Levels, cells: pd.DataFrame, given: str) -> int:
    """Return the number of the level that is given as one types it."""
    wanted = _settings(levels.key, given)
    values = cells.assign(activation=cells[ACTIVATIONS[0]].astype(str) + "_" + cells[ACTIVATIONS[1]].astype(str))
    matching = np.ones(len(cells), bool)
    for name, value in wanted.items():
        if name not in values or not (name == levels.key or name.startswith(f"{levels.key}.")):
            raise StudyError(f"--baseline {show(given)}: {show(name)} is not a setting of {levels.key}")
        matching &= (values[name] == value).to_numpy(bool)
    found = np.unique(levels.number[matching]).tolist()
    if len(found) > 1:
        raise StudyError(f"--baseline {show(given)}: may be {shortened([levels.names[level] for level in found])}")
    if not found or not matching[levels.number == found[0]].all():
        pairs = [pair for key in wanted for pair in nearly_equal([wanted[key]], list(values[key].unique()))]
        hint = f"; nearly equal: {', '.join(near for _, near in pairs)}" if pairs else ""
        raise StudyError(
            f"--baseline {show(given)}: no run has it{hint} (there are {shortened(levels.names, most=12)})"
        )
    return int(found[0])


def _settings(key: str, given: str) -> dict[str, str]:
    """Return what one types for a level, by column: numbers as exact texts, a preset as what it stands for."""
    pairs = [word.rpartition("=")[::2] for word in re.split(r"[,\s]+", given.strip())]
    settings = {name or key: _as_exact(value) for name, value in pairs}
    preset = GROUPS[key].presets.get(settings.get(key, "")) if key in GROUPS else None
    if preset is None:
        return settings
    implied = {f"{key}.{name}": typed(value) for name, value in preset.parameters.items()}
    return implied | settings | {key: preset.name}


def _as_exact(text: str) -> str:
    try:
        return typed(float(text))
    except ValueError:
        return text


def _compared(design: _Design, columns: Sequence[str], sides: Sequence[str]) -> Comparison:
    partner = _partners(design)
    notes = [*_unpaired(design, partner), *_nearly_equal(design)]
    paired = np.flatnonzero(partner >= 0)
    if not len(paired):
        raise StudyError(f"no pairs: {'; '.join(notes)}")
    runs = design.runs
    number = runs.cell[paired].astype(np.intp) * len(OUTCOMES) ** 2
    number += runs.outcome[partner[paired]].astype(np.intp) * len(OUTCOMES) + runs.outcome[paired]
    counts = np.bincount(number, minlength=len(runs.cells) * len(OUTCOMES) ** 2)
    counts = counts.reshape(len(runs.cells), len(OUTCOMES), len(OUTCOMES))
    cells = np.flatnonzero(counts.any((1, 2)))
    cells = cells[np.lexsort((design.rest[cells], design.level[cells]))]
    settings = runs.cells[[*columns, *design.shared(np.arange(len(runs.cells)))]].take(cells).astype(str)
    table = _table(settings, counts[cells])
    method = (
        "differences in percentage points with Newcombe's 95 % intervals, paired by seed and by all other settings; "
    )
    return Comparison(sides, table, notes, f"{method}p: McNemar's exact test after {correction(table)}")


def correction(table: pd.DataFrame) -> str:
    """Return what is told about the family of a table's tests."""
    tests = int((table["complement_of"] == "").sum())
    text = f"Holm's correction for {tests:,} {'test' if tests == 1 else 'tests'}"
    is_one = "; where only two outcomes occur they are complements, which are one test"
    return text + (is_one if tests < len(table) else "")


def _partners(design: _Design) -> NDArray[np.intp]:
    """Return the run of the baseline that each run of another level is paired with, -1 for none.

    Raises:
        StudyError: if two runs are the same.
    """
    runs, side = design.runs, design.level[design.runs.cell]
    seed, seeds = pd.factorize(runs.seed)
    if not pd.Index(runs.cell.astype(np.int64) * len(seeds) + seed).is_unique:
        raise StudyError("runs can't be paired: a run is there twice on one side")
    number = design.rest[runs.cell] * len(seeds) + seed
    base, others = np.flatnonzero(side == 0), np.flatnonzero(side > 0)
    found = pd.Index(number[base]).get_indexer(number[others])
    partner = np.full(len(runs), -1, np.intp)
    partner[others[found >= 0]] = base[found[found >= 0]]
    return partner


def _table(settings: pd.DataFrame, counts: NDArray[np.intp]) -> pd.DataFrame:
    """Return the table of a comparison.

    Args:
        settings: of each cell.
        counts: pairs by the outcomes of both runs, shape (cells, outcomes, outcomes).
    """
    one, other = counts.sum(2), counts.sum(1)
    cell, outcome, complement_of = rows_of((one + other) > 0)
    before, after, both = one[cell, outcome], other[cell, outcome], counts[cell, outcome, outcome]
    pairs = one.sum(1)[cell]
    value, low, high, p = paired_differences(both, before - both, after - both, pairs)
    columns = {
        "pairs": pairs,
        "outcome": np.array(OUTCOMES)[outcome],
        "one": before / pairs,
        "other": after / pairs,
        "difference": value,
        "low": low,
        "high": high,
        "p": p,
        "complement_of": complement_of,
    }
    return corrected(settings.take(cell).reset_index(drop=True).assign(**columns))


def rows_of(occurs: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
    """Return the rows of a table: which cell and which outcome, and of which outcome it is the complement.

    Args:
        occurs: which outcomes each cell has, shape (cells, outcomes).

    Returns:
        three arrays of shape (rows,); the third of names, empty where there is no complement or it comes later.
    """
    cell, outcome = np.nonzero(occurs)
    is_second = (occurs.sum(1)[cell] == 2) & (np.diff(cell, prepend=-1) == 0)
    return cell, outcome, np.where(is_second, np.array(OUTCOMES)[np.roll(outcome, 1)], "")


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose p are adjusted by Holm's method; a complement is one test with the row before it."""
    is_second = (table["complement_of"] != "").to_numpy()
    p = table["p"].to_numpy(float, copy=True)
    p[~is_second] = holm(p[~is_second])
    p[is_second] = p[np.flatnonzero(is_second) - 1]
    return table.assign(p=p)


def _unpaired(design: _Design, partner: NDArray[np.intp]) -> Iterator[str]:
    """Return why runs have no partner, a line for each reason."""
    runs = design.runs
    side = design.level[runs.cell]
    sizes, paired = (np.bincount(levels, minlength=len(design.names)) for levels in (side, side[partner >= 0]))
    incomplete = [level for level in range(1, len(sizes)) if paired[level] < max(sizes[level], sizes[0])]
    for level in incomplete[:MOST_EXPLAINED]:
        with_partner = np.zeros(len(runs), bool)
        own = (side == level) & (partner >= 0)
        with_partner[partner[own]] = with_partner[own] = True
        for one, other in ((0, level), (level, 0)):
            alone = np.flatnonzero((side == one) & ~with_partner)
            for count, reason in _reasons(design, alone, one, other):
                verb = "has" if count == 1 else "have"
                yield f"{count:,} of {sizes[one]:,} runs of {design.names[one]} {verb} no partner: {reason}"
    if len(incomplete) > MOST_EXPLAINED:
        yield f"and runs of {len(incomplete) - MOST_EXPLAINED:,} more levels have no partner"


def _reasons(design: _Design, alone: NDArray[np.intp], level: int, other: int) -> Iterator[tuple[int, str]]:
    """Return how many runs of a level have no partner in another one for which reason."""
    if not len(alone):
        return
    runs, there, name = design.runs, design.cells_of(other), design.names[other]
    cells, which, counts = np.unique(runs.cell[alone], return_inverse=True, return_counts=True)
    is_left = ~np.isin(design.rest[cells], design.rest[there])
    has_cell = ~is_left[which]
    for key in (key for key in CELL if key not in design.own):
        codes = codes_of(runs.cells, key)
        lacking = is_left & ~np.isin(codes[cells], codes[there])
        if lacking.any():
            values = [text or "(none)" for text in runs.cells[key].take(cells[lacking]).unique()]
            yield int(counts[lacking].sum()), f"{key}={shortened(values)} not in {name}"
        is_left &= ~lacking
    shown = design.shared(np.append(cells, there))
    if is_left.any():
        (example,) = labels(runs.cells, cells[is_left][:1], shown)
        yield int(counts[is_left].sum()), f"no such combination in {name}: {example}{_more(int(is_left.sum()))}"
    yield from _of_seeds(design, alone[has_cell], other, shown)


def _more(cells: int) -> str:
    return f", and {cells - 1:,} more" if cells > 1 else ""


def _of_seeds(design: _Design, alone: NDArray[np.intp], other: int, shown: list[str]) -> Iterator[tuple[int, str]]:
    """Return the same for runs whose cell the other level has, but not with their seed."""
    runs, name = design.runs, design.names[other]
    is_absent = ~np.isin(runs.seed[alone], runs.seed[design.level[runs.cell] == other])
    if is_absent.any():
        yield int(is_absent.sum()), f"seed {ranges(runs.seed[alone[is_absent]])} not in {name}"
    rest = alone[~is_absent]
    if len(rest):
        cell = int(runs.cell[rest[0]])
        seeds = ranges(runs.seed[rest[runs.cell[rest] == cell]])
        (example,) = labels(runs.cells, [cell], shown)
        more = _more(len(np.unique(runs.cell[rest])))
        yield len(rest), f"{example} has no seed {seeds} in {name}{more}"


def _nearly_equal(design: _Design) -> Iterator[str]:
    """Return which values of the baseline and of other levels differ only in their last digits."""
    # Where several levels are compared, their own values are what is asked about.
    own = design.own if len(design.names) > 2 else ()
    for key in (key for key in CELL if key not in own):
        codes, texts = codes_of(design.runs.cells, key), design.runs.cells[key].cat.categories
        here, there = (np.unique(codes[side]) for side in (design.level == 0, design.level > 0))
        mine, theirs = np.setdiff1d(here, there), np.setdiff1d(there, here)
        pairs = nearly_equal(list(texts[theirs]), list(texts[here]))
        yield from near_hint(key, nearly_equal(list(texts[mine]), list(texts[there])) + [pair[::-1] for pair in pairs])
