"""Files that are written whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], prefix: str | None = None) -> Path:
    """Write a file completely or not at all: into a temporary file beside it, which is then renamed.

    Args:
        path: the file to write or replace.
        write: is called with the open file.
        prefix: of the temporary file's name; one is left behind only if the process is killed.

    Returns:
        `path`.
    """
    # In the same folder, since a rename is atomic only within a file system.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix or f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            # Content before name: after a power failure the name could otherwise stand for an empty file.
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide results from a group that shares them
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


@cache
def _umask() -> int:
    # It can be read only by setting it, which must not happen while another thread creates files: so only once.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def hash_of_sources(names: Iterable[str]) -> str:
    """Return a hash of some of this package's files of Python code, and of those in some of its folders.

    Args:
        names: relative to the package, such as "errors.py" or "model".
    """
    package = Path(__file__).resolve().parent
    found = [package / name for name in names]
    digest = hashlib.sha256()
    for path in sorted(file for one in found for file in (one.rglob("*.py") if one.is_dir() else [one])):
        # With the line ends of a checkout on Windows the code is the same.
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def sweep_up(folder: Path, prefix: str) -> None:
    """Remove temporary files that killed processes left behind; call it only under the lock that guards them."""
    for path in folder.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV: None and <NA> as empty cells, NaN and infinity of a float column as `nan` and `inf`.

    A path that ends in `.gz` is compressed, to the same bytes for the same table.
    """
    pieces = (table.iloc[start : start + ROWS_AT_ONCE] for start in range(0, len(table), ROWS_AT_ONCE))
    return write_pieces(path, pieces if len(table) else [table])


def write_pieces(path: Path, pieces: Iterable[pd.DataFrame]) -> Path:
    """Write a table that is made piece by piece, so that it need not be in memory as a whole; see `write_table`.

    Args:
        path: the file.
        pieces: its rows in order, all with the same columns; at least one.
    """

    def write(stream: IO[bytes]) -> None:
        for number, piece in enumerate(pieces):
            header = [] if number else [",".join(map(_cell, piece.columns))]
            lines = _lines(piece) if len(piece) else []
            stream.write("\n".join([*header, *lines, ""]).encode())

    def compress(stream: IO[bytes]) -> None:
        with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
            write(packed)  # type: ignore[arg-type]

    return write_atomically(path, compress if path.suffix == ".gz" else write)


ROWS_AT_ONCE = 50_000
"""Of a table, in memory as texts while they are written."""


def _lines(table: pd.DataFrame) -> Iterator[str]:
    """Return the lines of a CSV file; columns beside each other that say the same everywhere are joined once."""
    columns: list[Iterable[str]] = []
    same: list[str] = []
    for texts in [*(_texts(table[name]) for name in table), None]:
        if isinstance(texts, str):
            same.append(texts)
            continue
        columns += [itertools.repeat(",".join(same), len(table))] if same else []
        columns += [] if texts is None else [texts]
        same = []
    return map(",".join, zip(*columns, strict=True))


def _texts(column: pd.Series[Any]) -> str | Iterable[str]:
    """Return a column as it is written: floats as short as they can be, None as nothing; one text if all are equal."""
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else ""
    unlike = column.head(100).nunique(dropna=False) > 50  # such as measures and identities: no search for equal ones
    if unlike and kind in ("i", "u", "f"):
        return _numbers(column.to_numpy())
    if unlike and not column.hasnans and pd.api.types.infer_dtype(column, skipna=False) == "string":
        values = column.tolist()
        return values if "".join(values).isalnum() else map(_cell, values)
    texts: list[str]
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, texts = column.cat.codes.to_numpy(), [*map(_cell, column.cat.categories), ""]
    else:
        codes, found = pd.factorize(column, use_na_sentinel=False)
        texts = _numbers(found.to_numpy()) if kind == "f" else [*map(_cell, found)]
    if (codes == codes[0]).all():
        return texts[int(codes[0])]
    return [texts[code] for code in codes.tolist()]


def _numbers(values: np.ndarray) -> list[str]:
    """Return the shortest texts that read back as the same numbers; what JSON can't say as `nan`, `inf` and `-inf`."""
    texts = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1].split(",")
    for index in np.flatnonzero(~np.isfinite(values)):
        texts[index] = repr(float(values[index]))
    return texts


def _cell(value: Any) -> str:
    """Return a value as one cell of a CSV file (RFC 4180), a missing one as nothing."""
    if pd.isna(value):
        return ""
    text = repr(float(value)) if isinstance(value, float) else str(value)  # float: not numpy's own repr
    if text.isalnum():
        return text
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text
