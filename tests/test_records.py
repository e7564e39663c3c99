"""Tables as files: what is written reads back as it was, however the columns hold it."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xor_study.files import write_table

ROWS = 60_000  # more than are written at once
FLOATS = np.concatenate([[0.1, -0.0, np.nan, np.inf, -np.inf], np.arange(5, ROWS) / 8])
COLUMNS: dict[str, tuple[Any, list[str]]] = {
    "measure": (FLOATS, [repr(value) for value in FLOATS.tolist()]),
    "integers": (np.arange(ROWS), [str(value) for value in range(ROWS)]),
    "one float": (np.full(ROWS, 0.1), ["0.1"] * ROWS),
    "all NaN": (np.full(ROWS, np.nan), ["nan"] * ROWS),
    "some missing": (
        pd.Series([None if row % 7 else row / 2 for row in range(ROWS)], dtype=object),
        ["" if r % 7 else str(r / 2) for r in range(ROWS)],
    ),
    "masked": (pd.array([None, 3] * (ROWS // 2), dtype="Int64"), ["", "3"] * (ROWS // 2)),
    "masked floats": (pd.array([None, 0.5] * (ROWS // 2), dtype="Float64"), ["", "0.5"] * (ROWS // 2)),
    "distinct masked floats": (pd.array(np.arange(ROWS) / 2, dtype="Float64"), [str(row / 2) for row in range(ROWS)]),
    "categories of floats": (pd.Categorical([0.5, None] * (ROWS // 2)), ["0.5", ""] * (ROWS // 2)),
    "truth": (np.arange(ROWS) % 2 == 0, ["True", "False"] * (ROWS // 2)),
    "names": (np.array(["sgd", "adam"] * (ROWS // 2), dtype=object), ["sgd", "adam"] * (ROWS // 2)),
    "identities": ([f"{row:020x}" for row in range(ROWS)], [f"{row:020x}" for row in range(ROWS)]),
    "odd texts": ([f'a "{row}", b' for row in range(ROWS)], [f'"a ""{row}"", b"' for row in range(ROWS)]),
    "identities and a gap": (
        pd.array([None, *(f"{row:020x}" for row in range(1, ROWS))], dtype="str"),
        ["", *(f"{row:020x}" for row in range(1, ROWS))],
    ),
    "one category": (pd.Categorical(["x,y"] * ROWS), ['"x,y"'] * ROWS),
    "categories": (pd.Categorical(["b", None, "a"] * (ROWS // 3)), ["b", "", "a"] * (ROWS // 3)),
    "no category": (pd.Categorical([None] * ROWS), [""] * ROWS),
    "categories of truth": (pd.Categorical([True, None] * (ROWS // 2)), ["True", ""] * (ROWS // 2)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_written_value_by_value(name: str, tmp_path: Path) -> None:
    values, texts = COLUMNS[name]
    table = pd.DataFrame({"before": np.arange(ROWS), name: values, "after": "z"})
    write_table(tmp_path / "table.csv", table)
    lines = [f"{row},{text},z" for row, text in enumerate(texts)]
    assert (tmp_path / "table.csv").read_text().split("\n") == [f"before,{name},after", *lines, ""]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_table_without_rows_is_a_header(name: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / name, pd.DataFrame({"a": [], "b": []}))
    data = path.read_bytes()
    assert (gzip.decompress(data) if path.suffix == ".gz" else data) == b"a,b\n"


def test_a_compressed_table_has_the_same_text_and_always_the_same_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame({name: values for name, (values, _) in COLUMNS.items()})
    paths = [write_table(tmp_path / name, table) for name in ("plain.csv", "one.csv.gz", "other.csv.gz")]
    plain, one, other = (path.read_bytes() for path in paths)
    assert one == other
    assert gzip.decompress(one) == plain


def test_the_shortest_text_of_a_float_reads_back_as_the_same_float(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 63, 100_000, dtype=np.uint64)
    values = bits.view(np.float64)
    write_table(tmp_path / "table.csv", pd.DataFrame({"value": values}))
    again = [float(line) for line in (tmp_path / "table.csv").read_text().split()[1:]]
    np.testing.assert_array_equal(np.array(again), values)
