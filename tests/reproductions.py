"""A small reproduction to alter: some of the committed cells with 20 seeds, of which 2 are kept, and all figures."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from xor_study.analysis.cells import Study, seeds_of_each_cell
from xor_study.files import write_table
from xor_study.study import comparison, consistency, redrawing
from xor_study.study.digests import cells_with_digests
from xor_study.study.reference import (
    PROVENANCE,
    REFERENCE,
    environment,
    files_of,
    inputs,
    read_provenance,
    read_table,
    read_texts,
    sha256,
    table_files,
    table_path,
    write_pages,
)

KEPT = 2
"""Seeds of each cell that are kept: a tenth of what was trained, as of most cells of the reference a half of it."""

EVERY = 10
"""Of the cells with the fewest seeds each tenth is taken."""

STEPS = ["1", "10", "100", "1000", "10000"]
"""Recorded steps that are kept, so that tables are small."""


class Folders(NamedTuple):
    """A reference that is as it should be, and reproductions that equal it: of all seeds, and of a tenth."""

    reference: Path
    full: Path
    quick: Path


def made(folder: Path) -> Folders:
    """Make the reproductions."""
    found = Folders(*(folder / name for name in Folders._fields))
    shutil.copytree(REFERENCE, found.reference)
    n = read_table(REFERENCE, "cells")["n"]
    cells = n.index[(n > n.min()) | (n.index % EVERY == 0)]  # pages look up some of those with many seeds
    numbers = {str(cell): str(number) for number, cell in enumerate(cells)}
    runs = read_table(REFERENCE, "runs")
    runs = runs[np.isin(np.repeat(n.index, 20), cells)]
    study, tenth = Study(runs), Study(runs[runs["seed"] < KEPT])
    for name in ("curves", "examples"):
        table = read_texts(REFERENCE, name)
        table = table[table["step"].isin(STEPS) & table["cell"].isin(numbers)]
        write_table(table_path(found.reference, name), table.assign(cell=table["cell"].map(numbers)))
    tables = {"cells": cells_with_digests(study), "runs": seeds_of_each_cell(study, KEPT)}
    for name, table in tables.items():
        write_table(table_path(found.reference, name), table)
    record = read_provenance(found.reference) | {"environment": environment(), "inputs": inputs()}
    write_pages(found.reference, record | {"runs": len(runs), "cells": len(study.cells)})
    shutil.copytree(found.reference, found.full)
    found.quick.mkdir()
    for path in table_files(found.reference):
        shutil.copy(path, found.quick)
    write_table(table_path(found.quick, "cells"), cells_with_digests(tenth))
    for name in ("boundaries", "naive_onsets"):
        table = read_table(REFERENCE, name)
        write_table(table_path(found.quick, name), table[table["seed"] < KEPT])
    return found


@contextmanager
def small(folder: Path) -> Iterator[Folders]:
    """Provide the reproductions; figures are not drawn but copied, and pages written once for each content.

    Axon's traces are replayed in tests of their own.
    """
    found = made(folder)

    def draw(folder: Path, name: str) -> None:
        for path in (found.reference / "figures").glob(f"{name}.*"):
            shutil.copy(path, folder / "figures")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(consistency, "SEEDS", KEPT)
        patched.setattr(redrawing, "draw", draw)
        patched.setattr(redrawing, "write_pages", partial(write_once, {}))
        patched.setattr(comparison, "_trace_differs", lambda path: [])
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """The reproductions of `small`."""
    with small(tmp_path_factory.mktemp("reproductions")) as found:
        yield found


def write_once(known: dict[str, dict[str, bytes]], folder: Path, record: dict[str, Any]) -> None:
    """Write the pages as `write_pages` does, from memory if they were written from the same files before."""
    before = {name: sha256(folder / name) for name in files_of(folder)}
    told = {name: value for name, value in record.items() if name != "sha256"}
    key = hashlib.sha256(json.dumps([before, told], sort_keys=True).encode()).hexdigest()
    if key not in known:
        write_pages(folder, record)
        known[key] = {name: (folder / name).read_bytes() for name in files_of(folder) if name not in before}
    for name, content in known[key].items():
        (folder / name).write_bytes(content)


def altered(folders: Folders, folder: Path, act: Callable[[Path], object]) -> Path:
    """Return a copy of the reference that was altered; its hashes are as they were."""
    copy = folder / "altered"
    shutil.copytree(folders.reference, copy)
    act(copy)
    return copy


def rehash(folder: Path) -> None:
    """Make the hashes right again, as whoever alters files would."""
    record = read_provenance(folder)
    record["sha256"] = {name: sha256(folder / name) for name in files_of(folder)}
    (folder / PROVENANCE).write_text(json.dumps(record))


def edit(folder: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Alter a table of texts, in place or by returning another."""
    table = read_texts(folder, name)
    found = change(table)
    write_table(table_path(folder, name), table if found is None else found)
