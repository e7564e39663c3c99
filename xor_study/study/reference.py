"""The committed results: where they are, how they are read and written, and the record of what made them."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from xor_study import figures
from xor_study.engines.lanes import native
from xor_study.errors import StudyError
from xor_study.figures.captions import CAPTIONS, TITLES
from xor_study.files import write_atomically, write_table
from xor_study.study import report
from xor_study.study.processes import Each
from xor_study.sweeps import records

CHECKOUT = Path(__file__).resolve().parents[2]
REFERENCE = CHECKOUT / "results/reference"
REPRODUCTION = CHECKOUT / "results/runs/reproduction"
"""Where a reproduction goes by default."""
AXON = CHECKOUT / "tests/data/axon"
"""What the real Axon did, recorded."""

PROVENANCE = "provenance.json"
PACKED = ("runs", "curves", "examples", "panels", "naive_onsets")
"""Tables that are stored compressed."""


def table_path(folder: Path, name: str) -> Path:
    """Return the path of a table of a reproduction."""
    return folder / f"{name}.csv{'.gz' if name in PACKED else ''}"


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a reproduction.

    Args:
        folder: such as `REFERENCE`.
        name: without a suffix, such as "cells".

    Raises:
        StudyError: if it is missing or can't be read.

    Example:
        >>> read_table(REFERENCE, "claims").set_index("claim")["verdict"]["fix_adam"]
        'refuted'
    """
    path = table_path(folder, name)
    try:
        if name in ("runs", "cells"):
            return records.read_runs(folder, path.name)
        return pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error


def draw(folder: Path, name: str, into: Path | None = None) -> list[Path]:
    """Draw one figure from the tables in a folder and return its files.

    Args:
        folder: of a reproduction.
        name: a key of `figures.FIGURES`.
        into: an existing folder; `folder/figures` by default.

    Raises:
        StudyError: if a table is missing.
    """
    target = into or folder / "figures"
    target.mkdir(exist_ok=True)
    figure = getattr(figures, name)(*(read_table(folder, table) for table in figures.FIGURES[name]))
    return figures.save(figure, target / name, title=TITLES[name], caption=CAPTIONS[name])


def environment() -> dict[str, str]:
    """Return what decides whether runs are equal bit for bit: versions, processor and instruction set."""
    name, features = native.target()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "llvmlite")},
        "processor": name,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
    }


def check_out(folder: Path) -> None:
    """Check that a reproduction can be written into a folder.

    Raises:
        StudyError: if it can't, or if the folder holds anything but a reproduction.
    """
    records.check_folder("--out", str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PROVENANCE).exists():
        raise StudyError(f"--out={folder}: holds files that are not a reproduction; choose another folder")


def write(folder: Path, tables: Mapping[str, pd.DataFrame], record: Mapping[str, Any], each: Each = map) -> None:
    """Write a reproduction: tables, figures and pages; the folder has all of it or is left as it was.

    Args:
        folder: is replaced if it exists.
        tables: by name.
        record: what made them.
        each: as `map`, or `map` of a pool of processes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, not in the system's temporary one: only within a file system a renaming can't be interrupted.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        fresh, old = Path(name) / "new", Path(name) / "old"
        fresh.mkdir()
        for table in tables:
            write_table(table_path(fresh, table), tables[table])
        list(each(partial(draw, fresh), figures.FIGURES))
        write_pages(fresh, record)
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


def write_pages(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the pages from the tables and figures in a folder, and the record with the hashes of all files.

    Args:
        folder: of a reproduction.
        record: what made its tables, as in its provenance.json; hashes in it are replaced.
    """
    report.write(folder, partial(read_table, folder), record)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    hashes = {str(path.relative_to(folder)): sha256(path) for path in files if path.name != PROVENANCE}
    text = json.dumps({**record, "sha256": hashes}, indent=1) + "\n"
    write_atomically(folder / PROVENANCE, lambda stream: stream.write(text.encode()))


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the record of a reproduction.

    Raises:
        StudyError: if it is missing or malformed.
    """
    path = folder / PROVENANCE
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}; reproduce needs a checkout of the repository") from error
    except ValueError as error:
        raise StudyError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(record, dict) or not {"environment", "sha256"} <= record.keys():
        raise StudyError(f"{path}: has no environment or no hashes")
    return record
