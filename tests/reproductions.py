"""A small reproduction to alter: some of the committed cells with 20 seeds, of which 2 are kept, and all figures."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from xor_study.analysis.cells import Study, seeds_of_each_cell
from xor_study.figures import FIGURES
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
    (found.reference / "figures").mkdir(parents=True)
    for path in table_files(REFERENCE):
        shutil.copy(path, found.reference)
    for path in (path for name in FIGURES for path in sorted(REFERENCE.glob(f"figures/{name}.p*"))):
        shutil.copy(path, found.reference / "figures")
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
    record = read_provenance(REFERENCE) | {"environment": environment(), "inputs": inputs()}
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
    """Provide the reproductions; figures are not drawn but copied, and pages are those of `write_pages`.

    Axon's traces are replayed in tests of their own.
    """
    found = made(folder)

    def draw(folder: Path, name: str) -> None:
        for path in (found.reference / "figures").glob(f"{name}.p*"):
            shutil.copy(path, folder / "figures")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(consistency, "SEEDS", KEPT)
        patched.setattr(redrawing, "draw", draw)
        patched.setattr(redrawing, "write_pages", write_pages)
        patched.setattr(comparison, "_trace_differs", lambda path: [])
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """The reproductions of `small`."""
    with small(tmp_path_factory.mktemp("reproductions")) as found:
        yield found


def write_pages(folder: Path, record: Mapping[str, Any]) -> None:
    """Write some pages and the record, in place of those that the package writes, which need all cells of the study.

    They show what those show: claims, counts of cells, pictures, versions; and there are a LaTeX table and captions.
    """
    tables = {name: read_texts(folder, name) for name in ("claims", "cells", "importance", "examples")}
    claims = ["| " + " | ".join(row) + " |" for row in tables["claims"].to_numpy().tolist()]
    versions = [f"- {name}: `{value}`" for name, value in record["environment"].items()]
    versions += [f"- {name}: `{record[name]}`" for name in ("command", "git_commit", "runs", "cells")]
    counts = json.dumps(tables["cells"][["solved_runs", "nonfinite_runs"]].to_numpy().tolist()[:50])
    losses = json.dumps(tables["examples"]["loss"].tolist())
    pictures = "".join(f"<img src=data:{path.read_bytes().hex()}>" for path in sorted(folder.glob("figures/*.png")))
    shares = [" & ".join(row) + r" \\" for row in tables["importance"].to_numpy().tolist()]
    texts = {
        "report.md": ["# None of the suspects is the cause", *claims, *versions],
        "report.html": ["<p>None of the suspects is the cause", *claims, f"<script>{counts}{losses}", pictures],
        "paper.tex": [r"\begin{tabular}{lrrrr}", *shares, r"\end{tabular}"],
        **{f"figures/{name}.txt": [f"How to read {name}: bands are 95 % intervals."] for name in FIGURES},
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines))
    (folder / PROVENANCE).write_text(json.dumps(dict(record)))
    rehash(folder)


TEXTS = ["report.md", "report.html", "paper.tex", "figures/importance.txt"]
"""Pages of every kind."""


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
