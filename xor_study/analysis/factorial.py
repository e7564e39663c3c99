"""Main effects and two-way interactions of all settings that vary in a complete grid, paired by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.analysis.comparison import Comparison, corrected, correction, rows_of
from xor_study.analysis.levels import Levels, codes_of, is_decided, near_hint, nearly_equal, ranges, texts_of, varied
from xor_study.analysis.outcomes import Outcomes
from xor_study.analysis.statistics import mean_contrasts
from xor_study.errors import StudyError
from xor_study.training.outcome import OUTCOMES

METHOD = (
    "effects in percentage points: a level's share less the baseline's, averaged over all levels of the other "
    "settings; of a x b by how much that difference of a grows from b's baseline to its level; 95 % intervals and p: "
    "Student's t over the seeds' contrasts (where all seeds agree, Wilson's bound and the sign test), after "
)


def effects_of(runs: Outcomes) -> Comparison:
    """Return main effects and two-way interactions of all settings that vary on the share of each outcome.

    A main effect is by how much a level's share exceeds that of the baseline (the article's value, or else the first),
    averaged over all levels of the other settings. An interaction is by how much such a difference exceeds that at the
    baseline of another setting. Each seed gives one value of each; see `statistics.mean_contrasts`.

    Args:
        runs: of one or several sweeps, together a complete grid with the same seeds in each cell.

    Returns:
        a comparison whose table has the columns effect, level, baseline, seeds, outcome, difference, low, high, p
        and complement_of.

    Raises:
        StudyError: if the grid is not complete, if nothing varies, or if there are fewer than two seeds.
    """
    runs = runs.restricted()
    cells = texts_of(runs.cells)
    factors = [levels.from_baseline(levels.usual(runs.cells)) for levels in _factors(cells)]
    if not factors:
        raise StudyError("--effects: no setting varies")
    grid = _grid(replace(runs, cells=cells), factors)
    if len(grid) < 2 or (grid == grid.flat[0]).all():
        reason = "there is one seed only" if len(grid) < 2 else f"all runs are {OUTCOMES[grid.flat[0]]}"
        raise StudyError(f"--effects: {reason}, so there is nothing to estimate")
    terms = [term for size in (1, 2) for term in itertools.combinations(range(len(factors)), size)]
    table = corrected(pd.concat([_term(grid, factors, term) for term in terms], ignore_index=True))
    notes = [note for levels in factors for note in levels.belonging(cells, _decided(cells, levels))]
    return Comparison((), table, notes, f"{METHOD}{correction(table)}")


def _factors(cells: pd.DataFrame) -> Iterator[Levels]:
    """Return the levels of each setting that varies, but not of one that varies only with another one."""
    known: list[Levels] = []
    for key in varied(cells):
        codes = codes_of(cells, key)
        if not any(key in levels.columns or is_decided(codes, levels.number) for levels in known):
            known.append(Levels.of(cells, key))
    yield from known


def _decided(cells: pd.DataFrame, levels: Levels) -> list[str]:
    codes = {key: codes_of(cells, key) for key in CELL}
    return [key for key in CELL if codes[key].min() < codes[key].max() and is_decided(codes[key], levels.number)]


def _grid(runs: Outcomes, factors: Sequence[Levels]) -> NDArray[np.uint8]:
    """Return the outcomes as positions in OUTCOMES, shape (seeds, levels of the first factor, ...).

    Raises:
        StudyError: if a combination or a seed is missing.
    """
    shape = [len(levels.names) for levels in factors]
    if len(runs.cells) < math.prod(shape):
        raise StudyError(f"{_INCOMPLETE}: {_missing(runs.cells, factors)}")
    place = np.ravel_multi_index([levels.number for levels in factors], shape)
    seeds, seed = np.unique(runs.seed, return_inverse=True)
    filled = np.zeros((len(seeds), len(place)), bool)
    filled[seed, place[runs.cell]] = True
    if not filled.all():
        which = int(np.argmin(filled.all(0)))
        name = _name(factors, [int(level) for level in np.unravel_index(which, shape)])
        raise StudyError(f"{_INCOMPLETE}: {name} lacks seed {ranges(seeds[~filled[:, which]])}")
    if len(runs) > filled.size:
        raise StudyError("--effects: a run is there twice")
    grid = np.empty(filled.shape, np.uint8)
    grid[seed, place[runs.cell]] = runs.outcome
    return grid.reshape(len(seeds), *shape)


_INCOMPLETE = "--effects needs all combinations of the settings with the same seeds"


def _missing(cells: pd.DataFrame, factors: Sequence[Levels]) -> str:
    """Return which combinations of levels are missing, and what may be why."""
    shape = [len(levels.names) for levels in factors]
    there = set(zip(*(levels.number.tolist() for levels in factors), strict=True))
    first = next(cell for cell in itertools.product(*map(range, shape)) if cell not in there)
    count = f"{math.prod(shape) - len(cells):,} of {math.prod(shape):,}"
    values = {key: cells[key].unique().tolist() for key in CELL}
    near = [hint for key, texts in values.items() for hint in near_hint(key, nearly_equal(texts, texts))]
    return "; ".join([f"{count} are missing, such as {_name(factors, first)}", *near])


def _name(factors: Sequence[Levels], cell: Sequence[int]) -> str:
    return " ".join(levels.names[level] for levels, level in zip(factors, cell, strict=True))


def _term(grid: NDArray[np.uint8], factors: Sequence[Levels], term: tuple[int, ...]) -> pd.DataFrame:
    """Return the effects of one term: rows for each combination of levels that are not a baseline, and outcome."""
    others = tuple(axis + 1 for axis in range(len(factors)) if axis not in term)
    # Whole numbers, so that contrasts of seeds that agree are equal: shape (seeds, levels, ..., outcomes).
    contrasts = np.stack([(grid == code).sum(others, dtype=np.int64) for code in range(len(OUTCOMES))], axis=-1)
    occurs = contrasts.any(0)
    for axis in range(len(term)):
        contrasts = np.delete(contrasts, 0, axis + 1) - np.take(contrasts, [0], axis + 1)
        occurs = np.delete(occurs, 0, axis) | np.take(occurs, [0], axis)
    contrast, outcome, complement_of = rows_of(occurs.reshape(-1, len(OUTCOMES)))
    averaged = math.prod(grid.shape[axis] for axis in others)
    shares = contrasts.reshape(len(grid), -1, len(OUTCOMES))[:, contrast, outcome] / averaged
    mean, low, high, p = mean_contrasts(shares, largest=len(term))
    named = [factors[axis] for axis in term]
    levels = np.array([" ".join(names) for names in itertools.product(*(factor.names[1:] for factor in named))])
    columns = {
        "effect": " x ".join(factor.key for factor in named),
        "level": levels[contrast],
        "baseline": " ".join(factor.names[0] for factor in named),
        "seeds": len(grid),
        "outcome": np.array(OUTCOMES)[outcome],
        "difference": mean,
        "low": low,
        "high": high,
        "p": p,
    }
    return pd.DataFrame(columns | {"complement_of": complement_of})
