"""Reading sweeps back: the outcomes of one folder or of many, finished or not, in 13 bytes a run."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xor_study.analysis.outcomes import Outcomes, cells_from_json
from xor_study.errors import StudyError
from xor_study.sweeps import parts, records
from xor_study.sweeps.provenance import code
from xor_study.training.spec import KEYS

ROWS = 1 << 17
"""Of a table that are read at a time."""

SPARSE = 8
"""Bytes a run that may be spent on finding runs that are there twice before sorting is cheaper."""


@dataclass(frozen=True)
class Read:
    """What one or several folders hold.

    Attributes:
        outcomes: of all runs; one that is there several times counts once.
        planned: how many runs the sweeps have, the unfinished ones included.
        codes: the number of runs by the hash of the code that computed them; None where it is unknown.
    """

    outcomes: Outcomes
    planned: int
    codes: Counter[str | None]

    def notes(self) -> Iterator[str]:
        """Yield what should be known about the runs, as lines."""
        if len(self.outcomes) < self.planned:
            yield f"unfinished: {len(self.outcomes):,} of {self.planned:,} runs"
        others = {key: runs for key, runs in self.codes.items() if key != code()}
        for key, runs in others.items():
            known = f"code={key or 'unknown'}, here {code()}"
            yield f"{runs:,} runs were computed by another version of the code ({known})"


def outcomes_of(folders: Sequence[Path]) -> Outcomes:
    """Return the outcomes of all runs in some folders; a run that is in several of them counts once.

    Raises:
        StudyError: if a folder holds no runs.
    """
    return read(folders).outcomes


def read(folders: Sequence[Path]) -> Read:
    """Return what some folders hold.

    Raises:
        StudyError: if a folder holds no runs.
    """
    blocks = _Blocks()
    planned = sum(blocks.read(folder) for folder in folders)
    outcomes = _distinct(Outcomes.joined(blocks.outcomes))
    return Read(outcomes, max(planned, len(outcomes)), blocks.codes)


@dataclass
class _Blocks:
    """What has been read so far."""

    outcomes: list[Outcomes] = field(default_factory=list)
    codes: Counter[str | None] = field(default_factory=Counter)

    def read(self, folder: Path) -> int:
        """Read the runs of a folder and return how many it has in its plan.

        Of a sweep they are in its parts: all that there are, or once it has finished those that its table was made of.
        """
        plan = records.read_plan(folder)
        self._order(plan)
        known = plan.get("parts")
        names = parts.names(folder / parts.FOLDER) if plan and known is None else known
        if not (isinstance(names, list) and self._parts(folder, names, finished=known is not None)):
            if plan and not records.path_of_runs(folder).exists():
                raise StudyError(f"{folder}: no run of the sweep is finished yet")
            self._table(folder)
        return int(plan.get("runs", 0))

    def _order(self, plan: Mapping[str, Any]) -> None:
        """Put the cells in the order of a plan, before those that are read from files in any order."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            none = np.zeros(0)
            cells = cells_from_json(plan["cells"])
            self.outcomes.append(Outcomes(cells, none.astype(np.int32), none.astype(np.int64), none.astype(np.uint8)))

    def _parts(self, folder: Path, names: Sequence[str], *, finished: bool) -> bool:
        """Read parts; return whether they could be read, all of them if the sweep has finished."""
        read = []
        for name in names:
            try:
                read.append(parts.read_outcomes(folder / parts.FOLDER / str(name)))
            except parts.DamagedError:
                if finished:
                    return False
        for outcomes, made in read:
            self.outcomes.append(outcomes)
            self.codes[made.get("code")] += len(outcomes)
        return bool(read)

    def _table(self, folder: Path) -> None:
        """Read the table of runs of a folder."""
        path = records.path_of_runs(folder)
        try:
            for piece in records.read_pieces(path, {*KEYS, "outcome", "code"}, ROWS):
                lacking = [column for column in (*KEYS, "outcome") if column not in piece]
                if lacking:
                    raise StudyError(f"{path}: not a table of runs (no {', '.join(lacking)})")
                if len(piece):
                    self.outcomes.append(Outcomes.of([piece]))
                    self._count(piece)
        except StudyError:
            raise
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a table of runs"
            raise StudyError(f"{path}: {reason}") from error
        if not self.codes:
            raise StudyError(f"{path}: not a table of runs (no runs)")

    def _count(self, piece: pd.DataFrame) -> None:
        codes = piece["code"] if "code" in piece else pd.Series([None] * len(piece), dtype=object)
        for key, runs in codes.value_counts(dropna=False).items():
            self.codes[key if isinstance(key, str) else None] += int(runs)


def _distinct(outcomes: Outcomes) -> Outcomes:
    """Return outcomes with each run once: two processes that trained it at once have left it in two parts."""
    if not _repeated(outcomes):
        return outcomes
    order = np.lexsort((outcomes.seed, outcomes.cell))
    cell, seed = outcomes.cell[order], outcomes.seed[order]
    keep = np.ones(len(outcomes), bool)
    keep[order[1:][(cell[1:] == cell[:-1]) & (seed[1:] == seed[:-1])]] = False
    return Outcomes(outcomes.cells, outcomes.cell[keep], outcomes.seed[keep], outcomes.outcome[keep])


def _repeated(outcomes: Outcomes) -> bool:
    """Return whether a run may be there twice, in a byte a run where a cell's seeds are close to each other."""
    count = len(outcomes.cells)
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, outcomes.cell, outcomes.seed)
    np.maximum.at(high, outcomes.cell, outcomes.seed)
    widths = np.maximum(high - low + 1.0, 0)
    if widths.sum() > SPARSE * len(outcomes):
        return True
    starts = np.append(0, np.cumsum(widths)[:-1]).astype(np.int64) - low
    seen = np.zeros(int(widths.sum()), bool)
    for at in range(0, len(outcomes), ROWS):
        span = slice(at, at + ROWS)
        seen[starts[outcomes.cell[span]] + outcomes.seed[span]] = True
    return int(seen.sum()) < len(outcomes)
