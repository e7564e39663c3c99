"""Tables of runs as Parquet, a tenth of the size of CSV and read by column; needs the package pyarrow."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from xor_study.errors import StudyError
from xor_study.files import write_atomically


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
            fields = [(name, _type(piece[name])) for name in piece]
            table = arrow.Table.from_pandas(piece, arrow.schema(fields), preserve_index=False)
            # Without pandas' metadata: it holds pandas' version, and the same runs must be the same bytes.
            table = table.replace_schema_metadata(None)
            writer = writer or parquet.ParquetWriter(stream, table.schema, compression="zstd", compression_level=9)
            writer.write_table(table)
        if writer is not None:
            writer.close()

    write_atomically(path, save)


def _type(column: pd.Series[Any]) -> Any:
    """Return Arrow's type of a column, the same for every piece of a table: categories are those of the whole table."""
    arrow = pyarrow("pyarrow")
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return arrow.string() if column.dtype == object else arrow.Array.from_pandas(column.head(0)).type
    values = column.cat.categories
    kinds = {bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64()}
    found = {kinds.get(type(value), arrow.string()) for value in values.tolist()}
    return found.pop() if len(found) == 1 else arrow.string()


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
