"""A checked table of runs: a column for each field, a row for each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.errors import StudyError, show
from xor_study.training.spec import (
    FIELDS,
    GROUPS,
    KEYS,
    OF_A_STEP,
    OWN,
    TOGETHER,
    RunSpec,
    check_representable,
    check_together,
    deciding_group,
    field_hint,
    identity,
    identity_text,
    key_of,
    rules,
    without_presets,
)


def table_of(runs: Iterable[RunSpec | Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Return a checked table of runs: a column for each field, a row for each run, in the order given.

    Args:
        runs: specs, mappings from fields to values, or a table whose columns are some of the fields. Keys with a dot
            stand for their fields; what is missing is the default.

    Raises:
        StudyError: for an unknown column, a value that is not allowed, or an empty table.

    Example:
        >>> table_of([{"lr": 0.1, "seed": 1}, {"optimizer": "adam"}])[["optimizer", "lr", "seed"]]
          optimizer     lr  seed
        0       sgd  0.100     1
        1      adam  0.001     0
    """
    if not isinstance(runs, pd.DataFrame):
        return _of_specs([_spec(run) for run in runs])
    if runs.empty:
        raise StudyError(_EMPTY)
    given = {KEYS.get(str(column), str(column)): runs[column].reset_index(drop=True) for column in runs.columns}
    for column in given:
        if column not in FIELDS:
            raise StudyError(f"{show(column)}: unknown column{field_hint(column)}")
    given = _with_presets_replaced(given)
    # Each value is checked once for all rows that differ only in their seed: millions of runs are few cells.
    columns = [column for field, column in given.items() if field != "seed"]
    types = [column.map(type) for column in columns if column.dtype == object]  # True is not 1
    cell_of, firsts = distinct_rows([*columns, *types], len(runs))
    cells = _checked_cells({field: column.take(firsts).reset_index(drop=True) for field, column in given.items()})
    table = cells.take(cell_of).reset_index(drop=True)
    if "seed" in given:
        table["seed"] = _seeds(given["seed"])
    return table


def _with_presets_replaced(given: dict[str, pd.Series[Any]]) -> dict[str, pd.Series[Any]]:
    """Return columns in which each preset's name is replaced by the choice and the parameters it stands for."""
    result = dict(given)
    for group, catalogue in GROUPS.items():
        if group in given and given[group].isin(list(catalogue.presets)).any():
            parameters = {name for preset in catalogue.presets.values() for name in preset.parameters}
            fields = [group, *(f"{group}_{name}" for name in parameters)]
            rows = pd.DataFrame({field: given[field] for field in fields if field in given}, dtype=object)
            known = rows.where(rows.notna(), None).to_dict("records")
            replaced = pd.DataFrame([without_presets(row) for row in known], dtype=object)
            result |= {str(field): replaced[field] for field in replaced}
    return result


def _spec(run: RunSpec | Mapping[str, Any]) -> RunSpec:
    """Return a run that is given as a spec or as a mapping from fields (or keys with a dot) to values."""
    if isinstance(run, RunSpec):
        return run
    if not isinstance(run, Mapping):
        raise StudyError(f"{show(run)}: a run is a RunSpec, a mapping such as {{'lr': 0.1}}, or a row of a table")
    return RunSpec(**{KEYS.get(str(key), str(key)): value for key, value in run.items()})


_EMPTY = "no runs: the table is empty"


def _of_specs(specs: Sequence[RunSpec]) -> pd.DataFrame:
    """Return the table of some specs, whose values are checked already: the same as that of a table of their values."""
    if not specs:
        raise StudyError(_EMPTY)
    return pd.DataFrame({field: _typed([getattr(spec, field) for spec in specs]) for field in FIELDS})


def _typed(values: list[Any]) -> NDArray[Any] | pd.Categorical[Any]:
    """Return checked values of one field in the type that `_compact` gives their column."""
    kinds = set(map(type, values))
    if float in kinds and kinds <= {float, type(None)}:
        return np.array(values, np.float64)  # None becomes NaN
    if kinds in ({int}, {bool}):
        return np.array(values)
    if type(None) in kinds:
        return pd.Categorical(np.array(values, dtype=object))
    return pd.Categorical(pd.Series(values, dtype=object).infer_objects())


def distinct_rows(columns: Iterable[pd.Series[Any]], rows: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which distinct row each row of some columns is, and where each appears first, in that order."""
    numbers = np.zeros(rows, np.intp)
    for column in columns:
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes, count = column.cat.codes.to_numpy().astype(np.intp) + 1, len(column.cat.categories) + 1
        elif column.dtype.kind in "if" and (column.to_numpy() == column.iloc[0]).all():
            continue
        else:
            codes, distinct = pd.factorize(column, use_na_sentinel=False)
            count = len(distinct)
        # Renumbered after each column, so that the products stay below 2^63 however many columns there are.
        if codes.min() < codes.max():
            numbers = pd.factorize(numbers * count + codes)[0]
    return numbers, np.flatnonzero(~pd.Series(numbers).duplicated().to_numpy())


def _seeds(given: pd.Series[Any]) -> NDArray[np.int64]:
    """Return checked seeds."""
    if given.dtype == np.int64:
        for extreme in (given.min(), given.max()):
            OWN["seed"].check(int(extreme), "seed")
        return given.to_numpy()
    return _column("seed", given, pd.Series("", index=given.index)).to_numpy(np.int64)


def _checked_cells(given: Mapping[str, pd.Series[Any]]) -> pd.DataFrame:
    """Return a checked table of the rows that differ in more than their seed, in compact types."""
    table: dict[str, pd.Series[Any]] = {}
    rows = len(next(iter(given.values())))
    for field in FIELDS:
        decisive = deciding_group(field)
        choices = table[decisive] if decisive else pd.Series("", index=range(rows))
        column = None if field == "seed" else given.get(field)
        table[field] = _column(field, column, choices)
    result = pd.DataFrame(table)
    for field in OF_A_STEP:
        if field in given:
            for dtype, numbers in result[field].groupby(result["dtype"]):
                check_representable(field, pd.to_numeric(numbers, errors="coerce").astype(float).max(), str(dtype))
    for values in result[list(TOGETHER)].drop_duplicates().to_dict("records"):
        check_together({str(field): value for field, value in values.items()})
    return pd.DataFrame({field: _compact(column) for field, column in table.items()})


def _compact(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column as numbers, with NaN where a number is missing, or else as categories."""
    known = column.dropna()
    if len(known) and all(isinstance(value, float) for value in known):
        return column.astype(np.float64)
    return column.astype("category") if column.dtype == object or column.dtype == "str" else column


def plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column of a checked table with values as one would write them: None where one is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = np.array([*column.cat.categories, None], dtype=object)
        return pd.Series(values[column.cat.codes.to_numpy()], index=column.index, name=column.name, dtype=object)
    return column.astype(object).where(column.notna(), None) if column.isna().any() else column


def _column(field: str, given: pd.Series[Any] | None, choices: pd.Series[Any]) -> pd.Series[Any]:
    """Return one column of a table, each distinct value checked once."""
    known = {choice: rules(field, choice) for choice in choices.unique()}
    column = choices.map({choice: default for choice, (_, default) in known.items()})
    if given is not None:
        column = column.astype(object)
        for choice, (allowed, _) in known.items():
            rows = (choices == choice) & given.notna()
            if allowed.type is not bool:
                for value in given[rows][[isinstance(value, bool) for value in given[rows]]]:
                    allowed.check(value, key_of(field))  # before True is taken for 1
            # Each distinct value once: a million runs have a handful.
            codes, distinct = pd.factorize(given[rows])
            checked = [allowed.check(value, key_of(field)) for value in distinct]
            column[rows] = pd.Series(checked, dtype=object).to_numpy()[codes]
    return column if column.isna().any() else column.infer_objects()


def run_ids(table: pd.DataFrame) -> pd.Series[str]:
    """Return the identity of each row of a checked table."""
    cell_of, firsts = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    texts = [
        identity_text({str(k): None if pd.isna(v) else v for k, v in row.items()})
        for row in table.take(firsts).to_dict("records")
    ]
    ids = [identity(texts[cell], seed) for cell, seed in zip(cell_of.tolist(), table["seed"].tolist(), strict=True)]
    return pd.Series(ids, index=table.index, name="run_id", dtype=object)
