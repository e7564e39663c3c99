"""Results as files: tables written whole or not at all, with where they come from."""

from __future__ import annotations

import gzip
import io
import itertools
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd
import torch

from xor_study.catalogue import StudyError
from xor_study.data import CORNERS
from xor_study.engines import Result
from xor_study.files import write_atomically
from xor_study.parts import Merged

RUNS, LOSSES, HISTORY, WEIGHTS, CONFIG = "runs.csv", "losses.npz", "history.csv", "weights.pt", "config.yaml"
PLAN = "plan.json"
"""Of a sweep: which runs it has, and the command that made it."""


def check_folder(key: str, name: str, *, sweep: bool = False) -> None:
    """Raise StudyError if results can't go into the folder `name`, set by `key`.

    One that holds results is refused, but for a sweep that goes on with a sweep; `sweep.Sweep` looks at that.
    """
    if not name:
        raise StudyError(f"{key}=: must name a folder")
    folder = Path(name)
    try:
        there = [file for file in (PLAN, RUNS) if (folder / file).exists()]
        if there and not (sweep and PLAN in there):
            raise StudyError(f"{key}={folder}: holds {there[-1]} already; choose another folder or move it away")
        nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise StudyError(f"{key}={folder}: {error.strerror}") from error
    if not nearest.is_dir():
        raise StudyError(f"{key}={folder}: {nearest} is a file; must be a folder")
    try:
        tempfile.TemporaryDirectory(dir=nearest, prefix=".xor_study").cleanup()
    except OSError as error:
        raise StudyError(f"{key}={folder}: can't write in {nearest} ({error.strerror})") from error


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout this package lies in (with "-dirty" if it differs), or None outside one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    sources = [str(here), str(here.parent / "conf"), str(here.parent / "hydra_plugins")]
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", *sources) else commit


def provenance() -> dict[str, str | None]:
    """Return what made a result: columns of `runs.csv`."""
    from xor_study import __version__

    return {"torch_version": torch.__version__, "package_version": __version__, "git_commit": git_commit()}


def runs_table(result: Result) -> pd.DataFrame:
    """Return the table of runs as it is written: what each is, what came of it and what made it."""
    return result.runs.assign(**provenance())


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV: None and <NA> as empty cells, NaN and infinity of a float column as `nan` and `inf`.

    A path that ends in `.gz` is compressed, to the same bytes for the same table.
    """

    def write(stream: IO[bytes]) -> None:
        stream.write((",".join(map(_cell, table.columns)) + "\n").encode())
        for start in range(0, len(table), ROWS_AT_ONCE):
            stream.write("\n".join([*_lines(table.iloc[start : start + ROWS_AT_ONCE]), ""]).encode())

    def compress(stream: IO[bytes]) -> None:
        with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
            write(packed)  # type: ignore[arg-type]

    return write_atomically(path, compress if path.suffix == ".gz" else write)


ROWS_AT_ONCE = 50_000


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


def hints(folder: Path, command: str) -> dict[str, str]:
    """Return commands for who has a sweep's table before him, by what they are for."""
    name = shlex.quote(str(folder))
    found = {"this table again, and as a figure": f"xor-study show {name} --figure"}
    return found | ({"go on, or make it larger": command} if command else {})


def read_runs(folder: Path, name: str = RUNS) -> pd.DataFrame:
    """Return the table of runs in a folder; step numbers that are missing are <NA>."""
    text, whole = ("run_id", "git_commit", "batch"), ("solved_step", "first_nonfinite_step")
    types = dict.fromkeys(text, "str") | dict.fromkeys(whole, "Int64")
    return pd.read_csv(folder / name, dtype=types, low_memory=False)  # in one piece, or its columns get mixed types


def read_losses(folder: Path) -> pd.DataFrame:
    """Return the recorded losses of a folder's runs: columns are step numbers, the index is run_id."""
    with np.load(folder / LOSSES, allow_pickle=False) as arrays:
        return pd.DataFrame(
            arrays["losses"].astype(np.float64), index=arrays["run_id"].astype(str), columns=arrays["steps"]
        )


def write_merged(folder: Path, runs: pd.DataFrame, run_ids: np.ndarray, merged: Merged) -> None:
    """Write the runs and the recorded losses; the runs last, so where they stand everything stands."""
    arrays: dict[str, Any] = {
        "run_id": run_ids,
        "steps": merged.steps,
        "losses": merged.losses,
        "epoch_losses": merged.epoch_losses,
    }
    write_atomically(folder / LOSSES, lambda stream: np.savez(stream, **arrays))
    write_table(folder / RUNS, runs)


def write_weights(folder: Path, result: Result) -> None:
    """Write the parameters of a single run, for `torch.load(..., weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(result.network(0).state_dict(), buffer)
    write_atomically(folder / WEIGHTS, lambda stream: stream.write(buffer.getvalue()))


def write_history(folder: Path, result: Result) -> None:
    """Write what was noted of every step of a single run."""
    assert result.history is not None
    table = result.history.drop(columns=["run_id", "max_abs_grad", "max_abs_parameter", "saturated"])
    table["accuracy"] = table.pop("corners_right") / len(CORNERS)
    write_table(folder / HISTORY, table)
