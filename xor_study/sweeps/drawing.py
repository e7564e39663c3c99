"""Figures of a sweep from its folder, also while the folder is still being filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xor_study import figures
from xor_study.analysis.cells import CELL, QUARTILES, cells, keys_of
from xor_study.analysis.outcomes import cells_from_json
from xor_study.analysis.statistics import decomposition, wilson
from xor_study.analysis.survival import not_solved_yet
from xor_study.errors import StudyError, show, suggestion, typed
from xor_study.figures.captions import SWEEP_CAPTIONS, SWEEP_TITLES
from xor_study.figures.words import key_words
from xor_study.sweeps import records
from xor_study.sweeps.parts import read_all
from xor_study.training.table import distinct_rows

Drawn = tuple[Any, str]
"""A matplotlib figure, which only `figures` may import, and its caption."""

MOST_LINES, MOST_COLUMNS, MOST_ROWS = 10, 30, 22
"""How many levels a setting may have to be told apart: as lines, and as columns and rows of a heat map."""


@dataclass(frozen=True)
class Finished:
    """The finished runs of a sweep.

    Attributes:
        runs: as in `runs.csv`, at least one.
        losses: the recorded losses, a row for each run_id and a column for each step; None if the folder has none.
        axes: the settings in which runs differ, in the order in which the sweep was given them.
        planned: how many runs the sweep has, the unfinished ones included.
    """

    runs: pd.DataFrame
    losses: pd.DataFrame | None
    axes: tuple[str, ...]
    planned: int


def finished(folder: Path) -> Finished:
    """Return the finished runs of a folder: of its tables, or of its parts as long as runs are missing in the tables.

    Raises:
        StudyError: if it has none, or if what it holds is not readable.
    """
    from xor_study.sweeps.commands import runs_of

    plan = records.read_plan(folder)
    planned = int(plan.get("runs", 0))
    written = records.path_of_runs(folder).exists()
    runs = runs_of(folder) if written or not plan else None
    losses = _losses(folder) if written else None
    if runs is None or len(runs) < planned:
        runs, losses = read_all(folder)
        runs = _in_order(runs, plan)
    known = [axis for axis in plan.get("axes", ()) if axis in runs or axis == "activation"]
    axes = tuple(key for key in keys_of(runs, known) if runs[key].nunique(dropna=False) > 1)
    return Finished(runs, losses, axes, max(planned, len(runs)))


def _in_order(runs: pd.DataFrame, plan: Mapping[str, Any]) -> pd.DataFrame:
    """Return runs in the order of a plan's cells, and of each cell in that of their seeds."""
    try:
        cells = cells_from_json(plan["cells"])
    except (KeyError, TypeError, ValueError):
        return runs
    number, _ = distinct_rows((pd.concat([cells[key], runs[key]]) for key in CELL), len(cells) + len(runs))
    return runs.iloc[np.lexsort((runs["seed"], number[len(cells) :]))]


def _losses(folder: Path) -> pd.DataFrame | None:
    try:
        return records.read_losses(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{folder / records.LOSSES}: can't be read ({type(error).__name__})") from error


@dataclass(frozen=True)
class Axes:
    """The settings that are drawn, as asked for: `x` and `y`, or None for the figure's own choice."""

    x: str | None = None
    y: str | None = None


def draw(sweep: Finished, names: Sequence[str], asked: Axes) -> tuple[dict[str, Drawn], dict[str, str]]:
    """Return figures of a sweep with their captions, and why others can't be drawn; nothing is written.

    Args:
        sweep: its finished runs.
        names: of `DRAWN`; empty: all that can be drawn.
        asked: the settings to draw.

    Raises:
        StudyError: if one of the names is unknown or can't be drawn, or if no figure can be.
    """
    for name in names:
        if name not in DRAWN:
            raise StudyError(f"{show(name)}: unknown figure of a sweep{suggestion(name, DRAWN)}")
    for option in ("x", "y"):
        axis = getattr(asked, option)
        if axis is not None:
            _check_axis(sweep, f"--{option}={show(axis)}", axis)
    if not sweep.axes:
        raise StudyError("no figure of a sweep applies: its runs differ in nothing but the seed")
    drawn: dict[str, Drawn] = {}
    reasons: dict[str, str] = {}
    for name in names or DRAWN:
        try:
            drawn[name] = DRAWN[name](sweep, asked)
        except StudyError as error:
            if names:
                raise StudyError(f"{name}: {error}") from error
            reasons[name] = str(error)
    if not drawn:
        raise StudyError(f"no figure of this sweep can be drawn; {'; '.join(f'{k}: {v}' for k, v in reasons.items())}")
    return drawn, reasons


def save(drawn: dict[str, Drawn], into: Path) -> list[Path]:
    """Write figures with their captions into a folder, which is made if it is missing, and return the files."""
    into.mkdir(parents=True, exist_ok=True)
    return [
        path
        for name, (figure, caption) in drawn.items()
        for path in figures.save(figure, into / name, title=SWEEP_TITLES[name], caption=caption, lay_out_once=True)
    ]


def _check_axis(sweep: Finished, text: str, axis: str) -> None:
    """Raise StudyError unless a setting can be an axis: it has several values, and each run has one."""
    if axis not in sweep.axes:
        if axis in keys_of(sweep.runs, ()) or axis in sweep.runs.columns[: list(sweep.runs.columns).index("outcome")]:
            value = sweep.runs[axis].iloc[0]
            reason = "a seed is not a setting" if axis == "seed" else f"is {typed(value)} in all runs"
            raise StudyError(f"{text}: {reason}; settings that vary: {', '.join(sweep.axes) or 'none'}")
        raise StudyError(f"{text}: unknown setting{suggestion(axis, sweep.axes)}")
    missing = int(sweep.runs[axis].isna().sum())
    if missing:
        raise StudyError(f"{text}: {missing} of {len(sweep.runs)} runs have none; choose another setting")


def _usable(sweep: Finished, most: int, without: str | None = None) -> list[str]:
    """Return the settings that can be told apart by at most so many levels, in the order of the sweep."""
    return [
        axis
        for axis in sweep.axes
        if axis != without and sweep.runs[axis].notna().all() and sweep.runs[axis].nunique() <= most
    ]


def _levels(sweep: Finished, asked: str | None, without: str | None = None) -> str | None:
    """Return the setting whose levels are lines: the one asked for, or the first that has few enough; or None."""
    if asked is None:
        return next(iter(_usable(sweep, MOST_LINES, without)), None)
    if asked == without:
        raise StudyError(f"--y={asked}: is on the x axis already")
    count = sweep.runs[asked].nunique()
    if count > MOST_LINES:
        raise StudyError(f"--y={asked}: has {count} levels; at most {MOST_LINES} lines can be told apart")
    return asked


def shares(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the shares of runs that solve XOR and that go to NaN, for each combination of some settings.

    Args:
        runs: as in `runs.csv`.
        keys: the settings.

    Returns:
        Columns keys, n, and solved and nonfinite with _low and _high, Wilson's 95 % interval.
    """
    table = cells(runs, keys).rename(columns={"runs": "n"})
    for outcome in ("solved", "nonfinite"):
        ends = [wilson(int(k), int(n)) for k, n in zip(table[outcome], table["n"], strict=True)]
        table[f"{outcome}_low"], table[f"{outcome}_high"] = np.array(ends).T
        table[outcome] = table[outcome] / table["n"]
    return table


def _caption(name: str, sweep: Finished, x: str | None, y: str | None) -> str:
    others = [key_words(axis) for axis in sweep.axes if axis not in (x, y)]
    pooled = f", pooled over {', '.join(others)} as if all were independent" if others else ""
    texts = {"x": key_words(x or ""), "y": key_words(y or ""), "by": f", by {key_words(y)}" if y else ""}
    return SWEEP_CAPTIONS[name].format(pooled=pooled, **texts)


def _rates(sweep: Finished, asked: Axes) -> Drawn:
    x = asked.x or "lr"
    if x not in sweep.axes:
        raise StudyError("the learning rate does not vary; choose a setting with --x")
    values = sweep.runs[x]
    if not pd.api.types.is_numeric_dtype(values) or not (np.isfinite(values) & (values > 0)).all():
        raise StudyError(f"{key_words(x)}: a curve needs numbers above 0 on its x axis")
    by = _levels(sweep, asked.y, without=x)
    figure = figures.rate_curves(shares(sweep.runs, [x, *([by] if by else [])]), x, by)
    return figure, _caption("rates", sweep, x, by)


def _heat_map(sweep: Finished, asked: Axes) -> Drawn:
    usual = sorted(_usable(sweep, MOST_COLUMNS, asked.y), key=lambda axis: axis != "lr")
    x = asked.x or next(iter(usual), None)
    y = asked.y or next(iter(_usable(sweep, MOST_ROWS, x)), None)
    if x is None or y is None:
        raise StudyError(f"a map needs two settings that vary, with at most {MOST_COLUMNS} and {MOST_ROWS} levels")
    if x == y:
        raise StudyError(f"--y={y}: is on the x axis already")
    for option, axis, most in (("x", x, MOST_COLUMNS), ("y", y, MOST_ROWS)):
        count = sweep.runs[axis].nunique()
        if count > most:
            raise StudyError(f"--{option}={axis}: has {count} levels; a map has room for {most}")
    return figures.heat_map(shares(sweep.runs, [x, y]), x, y), _caption("heatmap", sweep, x, y)


def _by_level(sweep: Finished, asked: Axes) -> tuple[str, dict[Any, pd.DataFrame]]:
    """Return the setting whose levels are lines, and the runs of each level."""
    by = _levels(sweep, asked.y)
    if by is None:
        raise StudyError(f"no setting varies over at most {MOST_LINES} levels; nothing to compare")
    return by, {level: sweep.runs[sweep.runs[by] == level] for level in dict.fromkeys(sweep.runs[by])}


def _loss_bands(sweep: Finished, asked: Axes) -> Drawn:
    by, levels = _by_level(sweep, asked)
    if sweep.losses is None:
        raise StudyError(f"the folder has no {records.LOSSES}")
    bands = {level: _quartiles(sweep.losses.reindex(runs["run_id"])) for level, runs in levels.items()}
    bands = {level: table for level, table in bands.items() if len(table)}
    if not bands:
        raise StudyError("no recorded loss is finite and above 0")
    figure = figures.loss_by_level(bands, by, [len(levels[level]) for level in bands])
    return figure, _caption("losses", sweep, None, by)


def _quartiles(losses: pd.DataFrame) -> pd.DataFrame:
    """Return quartiles over runs of the losses that are finite, at each step that has one: step, low, median, high."""
    finite = losses.where(np.isfinite(losses) & (losses > 0)).dropna(axis=1, how="all")
    quartiles = finite.quantile(list(QUARTILES.values())).T.set_axis(list(QUARTILES), axis=1)
    return quartiles.rename_axis("step").reset_index()


def _survival(sweep: Finished, asked: Axes) -> Drawn:
    by, levels = _by_level(sweep, asked)
    table = pd.concat([not_solved_yet(runs).assign(setting=level) for level, runs in levels.items()])
    return figures.solved_by_level(table, by), _caption("time_to_solve", sweep, None, by)


def _importance(sweep: Finished, asked: Axes) -> Drawn:
    if len(sweep.axes) < 2:
        raise StudyError("the variance is shared among at least two settings that vary")
    table = sweep.runs.assign(solved=sweep.runs["outcome"] == "solved")
    if table["solved"].nunique() == 1:
        raise StudyError("all runs have the same outcome; there is no variance to explain")
    if table.duplicated([*sweep.axes, "seed"]).any() or table[list(sweep.axes)].isna().to_numpy().any():
        raise StudyError("the grid is not complete and balanced: settings depend on each other")
    try:
        shared = decomposition(table, sweep.axes, "solved", "seed")
    except ValueError as error:
        raise StudyError("the grid is not complete and balanced: combinations or seeds are missing") from error
    figure = figures.importance(shared.assign(n=len(table)), "success")
    return figure, _caption("importance", sweep, None, None)


DRAWN: dict[str, Callable[[Finished, Axes], Drawn]] = {
    "rates": _rates,
    "heatmap": _heat_map,
    "losses": _loss_bands,
    "time_to_solve": _survival,
    "importance": _importance,
}
"""The figures of a sweep by name: functions that draw them and return their caption too."""
