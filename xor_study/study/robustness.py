"""Robustness: does a verdict depend on which grid was run?

Each claim is judged again on a declared family of sub-grids (`family`): windows of rates that begin later or end
earlier by a decade or more, and grids that lack one level of a factor. A sub-grid counts for a claim if it lacks a cell
that the claim reads and still has all that the claim needs; tables of variance shares are computed again on it. A claim
is robust if it has the same verdict on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.axon import LOSS
from xor_study.analysis.cells import Cells
from xor_study.errors import StudyError, typed
from xor_study.study import causes, remedies
from xor_study.study import evidence as probes
from xor_study.study.claims import CLAIMS, Evidence, Verdict, remedies_of, suspects_of
from xor_study.training.spec import KEYS, RunSpec

FIRST_RATES, LAST_RATES = (0.001, 0.01, 0.1), (100.0, 10.0, 1.0)
"""Where windows of rates begin and end, other than at the ends of the grid."""

FACTORS = ("init", "loss", "activation.hidden", "optimizer", "clip.bound", "batch", "hidden")
"""Whose levels are left out, one at a time, but for the article's own."""

RESAMPLES = 100
"""Of the bootstrap of variance shares on a sub-grid, of which only the order matters."""

RECOMPUTED: dict[str, Callable[..., pd.DataFrame]] = {
    "importance": probes.importance,
    "factorial": probes.factorial,
}
"""The tables of evidence that are computed again on a sub-grid."""


class SubGrid(NamedTuple):
    """A part of the study's grid: its name, and which cells it has, shape (cells,)."""

    name: str
    kept: NDArray[np.bool_]


def family(study: Cells) -> Iterator[SubGrid]:
    """Yield the sub-grids on which claims are judged again."""
    lr = study.cells["lr"].to_numpy(float)
    for first in FIRST_RATES:
        yield SubGrid(f"rates from {first:g}", lr >= first)
    for last in LAST_RATES:
        yield SubGrid(f"rates up to {last:g}", lr <= last)
    yield SubGrid(
        f"rates from {FIRST_RATES[0]:g} to {LAST_RATES[-1]:g}", (lr >= FIRST_RATES[0]) & (lr <= LAST_RATES[-1])
    )
    for factor in FACTORS:
        column = study.cells[factor].map(typed, na_action="ignore")  # as texts: of a file, 32 and "full" are texts
        # Without the article's own network there is nothing left to compare with.
        own = {typed(getattr(RunSpec(), KEYS[factor])), LOSS}
        for level in dict.fromkeys(value for value in column.dropna() if value not in own):
            yield SubGrid(f"without {factor}={level}", (column != level).fillna(True).to_numpy(bool))


def robustness(evidence: Evidence) -> pd.DataFrame:
    """Return the verdict on each claim on each sub-grid that counts for it.

    Args:
        evidence: of the whole grid.

    Returns:
        Columns claim, subgrid, verdict (there), effect (there), same (whether it is that of the whole grid).
    """
    complete = Evidence(evidence.study.restricted(np.ones(len(evidence.study.cells), bool)), evidence.tables)
    suspects_of(complete), remedies_of(complete)  # shared by many claims, of which each is decided by a part
    whole = {name: _read(complete, name) for name in CLAIMS}
    rows: list[dict[str, Any]] = []
    for subgrid in family(evidence.study):
        affected = {name: verdict for name, (verdict, read) in whole.items() if not subgrid.kept[read].all()}
        there = _restricted(evidence, subgrid, {TABLES_OF[name] for name in affected.keys() & TABLES_OF.keys()})
        for name, verdict in affected.items():
            judged = _judged(there, name)
            if judged is not None:
                row = {"claim": name, "subgrid": subgrid.name, "verdict": judged.verdict, "effect": judged.effect}
                rows.append(row | {"same": judged.verdict == verdict})
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = ["claim", "subgrid", "verdict", "effect", "same"]

TABLES_OF = {
    "advice_tune": "importance",
    "rate_explains_most": "importance",
    "defect_explains_most": "factorial",
}
"""The claims that read a table of `RECOMPUTED`."""


def _read(evidence: Evidence, name: str) -> tuple[str, list[int]]:
    """Return the verdict on a claim, and the indices of the cells that decide it."""
    study = evidence.study
    study.read.clear()
    verdict = CLAIMS[name].judge(evidence).verdict
    if name in TABLES_OF:
        RECOMPUTED[TABLES_OF[name]](study, 1)
    return verdict, [*study.read, *causes.cells_of(study, name), *remedies.cells_of(study, name)]


def _restricted(evidence: Evidence, subgrid: SubGrid, tables: set[str]) -> Evidence:
    """Return the evidence of a sub-grid with some tables computed again; without those that it does not suffice for."""
    study, computed = evidence.study.restricted(subgrid.kept), dict(evidence.tables)
    for name in tables:
        del computed[name]
        with suppress(StudyError):
            computed[name] = RECOMPUTED[name](study, RESAMPLES)
    return Evidence(study, computed)


def _judged(evidence: Evidence, name: str) -> Verdict | None:
    """Return the verdict on a claim on a sub-grid; None if the sub-grid lacks what the claim needs."""
    if name in TABLES_OF and TABLES_OF[name] not in evidence.tables:
        return None
    with suppress(StudyError):
        return CLAIMS[name].judge(evidence)
    return None


def summary(claims: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the claims with how robust each is.

    Args:
        claims: of `claims.verdicts`.
        table: of `robustness`.

    Returns:
        The claims with columns robust ("14 of 14"; "" where no sub-grid counts), depends (the sub-grids with another
        verdict, and that) and the least and the largest effect over all sub-grids, least and most.
    """
    rows = []
    for claim in claims.to_dict("records"):
        of_claim = table[table["claim"] == claim["claim"]]
        others = of_claim[~of_claim["same"].astype(bool)]  # of no rows it is no bool yet
        by_verdict = {str(verdict): list(part["subgrid"]) for verdict, part in others.groupby("verdict", sort=False)}
        effects = [claim["effect"], *of_claim["effect"]]
        rows.append(
            {
                "robust": f"{int(of_claim['same'].sum())} of {len(of_claim)}" if len(of_claim) else "",
                "depends": "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items()),
                "least": min(effects),
                "most": max(effects),
            }
        )
    return pd.concat([claims, pd.DataFrame(rows)], axis=1)
