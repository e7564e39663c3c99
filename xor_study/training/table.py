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
    """Return checked values of one field as numbers, with NaN where one is missing, or else as categories."""
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
    return _column("seed", given, np.full(len(given), "", object)).astype(np.int64)


def _checked_cells(given: Mapping[str, pd.Series[Any]]) -> pd.DataFrame:
    """Return a checked table of the rows that differ in more than their seed, in compact types."""
    table: dict[str, NDArray[Any]] = {}
    rows = len(next(iter(given.values())))
    for field in FIELDS:
        decisive = deciding_group(field)
        choices = table[decisive] if decisive else np.full(rows, "", object)
        table[field] = _column(field, None if field == "seed" else given.get(field), choices)
    for field in OF_A_STEP:
        for dtype in dict.fromkeys(table["dtype"]) if field in given else ():
            values = table[field][table["dtype"] == dtype]
            check_representable(field, max((v for v in values if isinstance(v, float)), default=None), dtype)
    for values in dict.fromkeys(zip(*(table[field] for field in TOGETHER), strict=True)):
        check_together(dict(zip(TOGETHER, values, strict=True)))
    return pd.DataFrame({field: _typed(column.tolist()) for field, column in table.items()})


def plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column of a checked table with values as one would write them: None where one is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = np.array([*column.cat.categories, None], dtype=object)
        return pd.Series(values[column.cat.codes.to_numpy()], index=column.index, name=column.name, dtype=object)
    return column.astype(object).where(column.notna(), None) if column.isna().any() else column


def _column(field: str, given: pd.Series[Any] | None, choices: NDArray[Any]) -> NDArray[Any]:
    """Return the values of one field, each distinct one checked once.

    Args:
        field: its name.
        given: values, missing where the default is meant; None for defaults only.
        choices: for each row, the choice that decides which values are allowed and what the default is.
    """
    known = {choice: rules(field, choice) for choice in dict.fromkeys(choices)}
    column = np.array([known[choice][1] for choice in choices], dtype=object)
    if given is None:
        return column
    # Arrays of objects: in a Series each of these steps takes a hundred times as long where the rows are few.
    values = given.to_numpy(dtype=object)
    present = ~pd.isna(values)
    for choice, (allowed, _) in known.items():
        rows = present & (choices == choice)
        if allowed.type is not bool:
            for value in values[rows][[isinstance(value, bool) for value in values[rows]]]:
                allowed.check(value, key_of(field))  # before True is taken for 1
        # Each distinct value once: a million runs have a handful.
        codes, distinct = pd.factorize(values[rows])
        column[rows] = np.array([allowed.check(value, key_of(field)) for value in distinct], dtype=object)[codes]
    return column


def run_ids(table: pd.DataFrame) -> pd.Series[str]:
    """Return the identity of each row of a checked table."""
    cell_of, firsts = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    texts = [
        identity_text({str(k): None if pd.isna(v) else v for k, v in row.items()})
        for row in table.take(firsts).to_dict("records")
    ]
    ids = [identity(texts[cell], seed) for cell, seed in zip(cell_of.tolist(), table["seed"].tolist(), strict=True)]
    return pd.Series(ids, index=table.index, name="run_id", dtype=object)
