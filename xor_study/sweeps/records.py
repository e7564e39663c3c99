"""Results as files: tables, losses, weights and history, with their provenance."""

from __future__ import annotations

import io
import json
import shlex
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xor_study.engines.results import Result, described
from xor_study.errors import StudyError
from xor_study.files import ROWS_AT_ONCE, write_atomically, write_pieces, write_table
from xor_study.model.data import CORNERS
from xor_study.sweeps import parquet
from xor_study.sweeps.folders import moved
from xor_study.sweeps.parts import Merged
from xor_study.sweeps.provenance import provenance
from xor_study.sweeps.settings import FORMATS

RUNS = FORMATS["csv"]
LOSSES, HISTORY, WEIGHTS, CONFIG = "losses.npz", "history.csv", "weights.pt", "config.yaml"
PLAN = "plan.json"
"""Of a sweep: which runs it has, and the command that made it."""


def check_folder(key: str, name: str, *, sweep: bool = False) -> None:
    """Raise StudyError if results can't go into the folder `name`, set by `key`.

    A folder that holds results is refused, unless a sweep is to resume a sweep, which `sweep.Sweep` checks.
    """
    if not name:
        raise StudyError(f"{key}=: must name a folder")
    folder = Path(name)
    try:
        there = [file for file in (PLAN, *FORMATS.values()) if (folder / file).exists()]
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


def runs_table(result: Result) -> pd.DataFrame:
    """Return the table of runs as it is written: the fields of each, its results and their provenance."""
    return result.runs.assign(**provenance())


def read_plan(folder: Path) -> dict[str, Any]:
    """Return what `plan.json` says, or nothing if the folder has none that can be read."""
    try:
        plan = json.loads((folder / PLAN).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


def hints(folder: Path, command: str) -> dict[str, str]:
    """Return commands for who has a sweep's table before him, by what they are for; its folder may have been moved."""
    name = shlex.quote(str(folder))
    found = {"this table again, and as a figure": f"xor-study show {name} --figure"}
    return found | ({"resume or extend it": moved(folder, command)} if command else {})


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write `plan.json`."""
    text = json.dumps(plan, indent=1) + "\n"
    write_atomically(folder / PLAN, lambda stream: stream.write(text.encode()))


def read_runs(folder: Path, name: str | None = None) -> pd.DataFrame:
    """Return the table of runs in a folder; step numbers that are missing are <NA>.

    Args:
        folder: of a sweep or of a single run.
        name: of the file; by default the one of FORMATS that is there.
    """
    (table,) = read_pieces(folder / name if name else path_of_runs(folder), None, None)
    return table


def path_of_runs(folder: Path) -> Path:
    """Return the table of runs in a folder, in the format that is there; `runs.csv` if none is."""
    paths = [folder / name for name in FORMATS.values()]
    return next((path for path in paths if path.exists()), paths[0])


def read_pieces(path: Path, columns: Collection[str] | None, rows: int | None) -> Iterator[pd.DataFrame]:
    """Yield a table of runs piece by piece; see `read_runs`.

    Args:
        path: of the file.
        columns: those to read, as far as they are there; None for all.
        rows: of a piece; None for one piece.
    """
    if path.suffix == ".parquet":
        yield from parquet.read(path, columns, rows)
        return
    text, whole = ("run_id", "git_commit", "code", "batch"), ("solved_step", "first_nonfinite_step")
    types = dict.fromkeys(text, "str") | dict.fromkeys(whole, "Int64")
    wanted = None if columns is None else lambda name: name in columns
    # In one piece, or its columns get mixed types.
    options: dict[str, Any] = {"dtype": types, "usecols": wanted, "low_memory": False}
    if rows is None:
        yield pd.read_csv(path, **options)
    else:
        with pd.read_csv(path, chunksize=rows, **options) as pieces:
            yield from pieces


def read_losses(folder: Path) -> pd.DataFrame:
    """Return the recorded losses of a folder's runs: columns are step numbers, the index is run_id."""
    with np.load(folder / LOSSES, allow_pickle=False) as arrays:
        return pd.DataFrame(
            arrays["losses"].astype(np.float64), index=arrays["run_id"].astype(str), columns=arrays["steps"]
        )


def write_merged(folder: Path, table: pd.DataFrame, run_ids: np.ndarray, merged: Merged, form: str) -> None:
    """Write the runs and the recorded losses; the runs last, so that where they are, the losses are too.

    Args:
        folder: of the sweep.
        table: the plan's runs, checked.
        run_ids: their identities.
        merged: their results.
        form: one of FORMATS; a table in another format, from an earlier command, is removed.
    """
    arrays: dict[str, Any] = {
        "run_id": run_ids,
        "steps": merged.steps,
        "losses": merged.losses,
        "epoch_losses": merged.epoch_losses,
    }
    write_atomically(folder / LOSSES, lambda stream: np.savez(stream, **arrays))

    def piece(start: int) -> pd.DataFrame:
        span = slice(start, start + ROWS_AT_ONCE)
        ids = pd.Series(run_ids[span].astype(str).astype(object))
        settings = described(table.iloc[span].reset_index(drop=True), ids, categories=True)
        return pd.concat([settings, merged.columns(span)], axis=1)

    pieces = map(piece, range(0, len(table), ROWS_AT_ONCE))
    (parquet.write if form == "parquet" else write_pieces)(folder / FORMATS[form], pieces)
    for other in FORMATS.keys() - {form}:
        (folder / FORMATS[other]).unlink(missing_ok=True)


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
