"""Studies whose outcomes are made up, to judge them where the right answer is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xor_study.analysis.cells import Study
from xor_study.training.spec import KEYS
from xor_study.training.table import plain, table_of


def made_up(cells: Sequence[tuple[Mapping[str, Any], Sequence[str] | str]], seeds: int = 400) -> Study:
    """Return a study of cells with given outcomes, of each seed or of all of them.

    Args:
        cells: values by key, and the outcomes.
        seeds: of each cell.
    """
    tables = []
    for values, outcomes in cells:
        table = table_of(pd.DataFrame([dict(values)] * seeds).assign(seed=range(seeds)))
        named = {key: plain(table[field]) for key, field in KEYS.items()}
        outcome = np.array([outcomes] * seeds if isinstance(outcomes, str) else list(outcomes), object)
        tables.append(pd.DataFrame(named).assign(outcome=outcome))
    runs = pd.concat(tables, ignore_index=True)
    solved, nan = runs["outcome"] == "solved", runs["outcome"] == "nonfinite"
    runs["accuracy"] = np.where(solved, 1.0, 0.0)
    runs["solved_step"] = pd.array(np.where(solved, 1000, 0), "Int64")
    runs.loc[~solved, "solved_step"] = pd.NA
    runs["first_nonfinite_step"] = pd.array(np.where(nan, 1500, 0), "Int64")
    runs.loc[~nan, "first_nonfinite_step"] = pd.NA
    for name in ("initial_loss", "final_loss", "max_abs_logit", "max_grad_norm"):
        runs[name] = np.where(nan, np.nan, 0.7)
    return Study(runs)
