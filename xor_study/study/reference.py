"""The committed results: where they are, how they are read and written, and the record of what made them."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from xor_study.figures.pictures import renderer
from xor_study.files import write_atomically, write_table
from xor_study.study import paper, report
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


def table_files(folder: Path) -> list[Path]:
    """Return the paths of all tables of a reproduction."""
    return sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])


def files_of(folder: Path) -> list[str]:
    """Return the names of all files of a reproduction but its record, relative to the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return [path.relative_to(folder).as_posix() for path in files if path != folder / PROVENANCE]


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a reproduction.

    Args:
        folder: such as `REFERENCE`.
        name: without a suffix, such as "cells".

    Raises:
        StudyError: if it is missing or can't be read.

    Example:
        >>> read_table(REFERENCE, "claims").set_index("claim")["verdict"]["fix_adam"]
        'masks'
    """
    path = table_path(folder, name)
    with _readable(path):
        if name in ("runs", "cells"):
            return records.read_runs(folder, path.name)
        return pd.read_csv(path, low_memory=False)


def read_texts(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a reproduction as it is written, every value a text: nothing is rounded or taken for missing.

    Args:
        folder: such as `REFERENCE`.
        name: without a suffix.

    Raises:
        StudyError: as `read_table`.
    """
    path = table_path(folder, name)
    with _readable(path):
        return pd.read_csv(path, dtype=str, keep_default_na=False)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error) as error:  # the last two are those of a damaged compressed file
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
    """Return what may decide about the bits of results: versions, operating system, processor and instruction set."""
    name, features = native.target()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "llvmlite", "scipy", "statsmodels", "pandas")},
        **renderer(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "processor": name,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
    }


def inputs() -> dict[str, str]:
    """Return the hashes of configurations and of what the real Axon did, by path in the checkout."""
    files = sorted([*CHECKOUT.glob("conf/**/*.yaml"), *AXON.glob("*.json")])
    return {path.relative_to(CHECKOUT).as_posix(): sha256(path) for path in files}


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
        write_tables(fresh, tables)
        list(each(partial(draw, fresh), figures.FIGURES))
        write_pages(fresh, record)
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write the tables of a reproduction into an existing folder."""
    for name, table in tables.items():
        write_table(table_path(folder, name), table)


def write_pages(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the pages from the tables and figures in a folder, and the record with the hashes of all files.

    Args:
        folder: of a reproduction.
        record: what made its tables, as in its provenance.json; hashes in it are replaced.
    """
    report.write(folder, partial(read_table, folder), record)
    paper.write(folder, partial(read_table, folder), record)
    hashes = {name: sha256(folder / name) for name in files_of(folder)}
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
    parts = ("environment", "sha256")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), dict) for name in parts):
        raise StudyError(f"{path}: has no environment or no hashes")
    return record
