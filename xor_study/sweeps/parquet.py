"""Tables of runs as Parquet, a tenth of the size of CSV and read by column; needs the package pyarrow."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from xor_study.errors import StudyError
from xor_study.files import write_atomically
from xor_study.training.outcome import NUMBERS


def pyarrow(name: str = "pyarrow.parquet") -> Any:
    """Return a module of pyarrow.

    Raises:
        StudyError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StudyError("a table of Parquet needs pyarrow; pip install 'xor-study[parquet]'") from error


def write(path: Path, pieces: Iterable[pd.DataFrame]) -> None:
    """Write a table that is made piece by piece; see `files.write_pieces`."""
    arrow, parquet = pyarrow("pyarrow"), pyarrow()

    def save(stream: Any) -> None:
        writer = None
        for piece in pieces:
            table = arrow.table({name: _array(piece[name]) for name in piece})
            writer = writer or parquet.ParquetWriter(stream, table.schema, **_options(table))
            writer.write_table(table)
        if writer is not None:
            writer.close()

    write_atomically(path, save)


def _options(table: Any) -> dict[str, Any]:
    """Return how columns are encoded, which makes two thirds of the size: most measures are distinct floats."""
    few = {column for column in table.column_names if column not in ("run_id", "seed", *NUMBERS)}
    encoding = dict.fromkeys(NUMBERS, "BYTE_STREAM_SPLIT") | {"seed": "DELTA_BINARY_PACKED"}
    return {"compression": "zstd", "use_dictionary": sorted(few), "column_encoding": encoding}


def _array(column: pd.Series[Any]) -> Any:
    """Return a column as Arrow's array, of the same type in every piece of a table: NaN stays, None is missing."""
    arrow = pyarrow("pyarrow")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _of_categories(column)
    if column.dtype != object:
        return arrow.array(column.array if column.dtype == "Int64" else column.to_numpy(), from_pandas=False)
    # Texts, or floats that are missing in some runs, perhaps in all of this piece.
    texts = pd.api.types.infer_dtype(column, skipna=True) == "string"
    return arrow.array(column.tolist(), arrow.string() if texts else arrow.float64(), from_pandas=False)


def _of_categories(column: pd.Series[Any]) -> Any:
    arrow = pyarrow("pyarrow")
    values = column.cat.categories.tolist()  # of the whole table, whatever a piece has of them
    alike = len(set(map(type, values))) == 1 and not isinstance(values[0], str)
    codes = arrow.array(column.cat.codes.to_numpy(), mask=column.isna().to_numpy())
    kinds = arrow.array(values if alike else list(map(str, values)), None if alike else arrow.string())
    return kinds.take(codes)


def read(path: Path, columns: Collection[str] | None, rows: int | None) -> Iterator[pd.DataFrame]:
    """Yield a table piece by piece, as the same table of CSV would be read.

    Args:
        path: of the file.
        columns: those to read, as far as they are there; None for all.
        rows: of a piece; None for one piece.
    """
    with pyarrow().ParquetFile(path) as file:
        wanted = [name for name in file.schema_arrow.names if columns is None or name in columns]
        for batch in file.iter_batches(rows or max(1, file.metadata.num_rows), columns=wanted):
            table = batch.to_pandas()
            whole = [name for name in ("solved_step", "first_nonfinite_step") if name in table]
            yield table.astype(dict.fromkeys(whole, "Int64"))
