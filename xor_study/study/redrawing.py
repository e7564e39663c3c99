"""Figures and pages drawn and written again, and how the committed ones differ from them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xor_study.errors import one_line
from xor_study.figures import FIGURES
from xor_study.figures.pictures import difference
from xor_study.study.equality import Difference, texts_differ
from xor_study.study.processes import Each
from xor_study.study.reference import draw, files_of, table_files, write_pages

PICTURES = (".png", ".pdf")


def redrawn(
    reference: Path, tables: Path, record: Mapping[str, Any], pictures: bool, each: Each = map
) -> tuple[int, int, list[Difference]]:
    """Draw all figures and write all pages again in a temporary folder, and compare the reference's with them.

    Args:
        reference: the folder of the reference.
        tables: the folder of the tables to draw from: the reference, or a reproduction, whose figures are taken if it
            has them.
        record: the reference's, which pages show.
        pictures: whether pictures are compared; figures of another renderer look otherwise.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        how many pictures and how many pages were made again, and the differences.
    """
    with tempfile.TemporaryDirectory(prefix="xor_study.") as name:
        scratch = Path(name)
        for path in table_files(tables):
            shutil.copy(path, scratch)
        if tables != reference and (tables / "figures").is_dir():
            shutil.copytree(tables / "figures", scratch / "figures")
            differing = []
        else:
            (scratch / "figures").mkdir()
            differing = [found for found in each(partial(_draw, scratch), FIGURES) if found is not None]
        drawn = [name for name in files_of(scratch) if Path(name).suffix in PICTURES]
        if pictures:
            differing += _pictures_differ(reference, scratch, drawn)
        # Pages may hold the pictures themselves. With the committed ones every other letter must be the same.
        for name in drawn:
            if (reference / name).is_file():
                shutil.copy(reference / name, scratch / name)
        differing += _write_pages(scratch, record)
        tables_too = {path.name for path in table_files(scratch)}
        pages = [name for name in files_of(scratch) if name not in {*drawn, *tables_too}]
        for name in pages:
            if (reference / name).is_file():
                differing += texts_differ(reference / name, scratch / name, name)
        differing += _files_differ(files_of(reference), files_of(scratch))
    return len(drawn), len(pages), differing


def _draw(folder: Path, name: str) -> Difference | None:
    """Draw a figure and return why it can't be drawn, if so: a damaged table may raise anything."""
    try:
        draw(folder, name)
    except Exception as error:
        return "figure", name, f"its tables can't be drawn ({one_line(error)})", "drawn"
    return None


def _write_pages(folder: Path, record: Mapping[str, Any]) -> Iterable[Difference]:
    try:
        write_pages(folder, record)
    except Exception as error:  # as for figures
        return [("page", "all", f"its tables can't be written up ({one_line(error)})", "written")]
    return []


def _pictures_differ(reference: Path, scratch: Path, names: Iterable[str]) -> Iterable[Difference]:
    for name in names:
        if (reference / name).is_file() and (found := difference(reference / name, scratch / name)):
            yield "figure", name, f"differs in {found}", "as drawn from the tables"


def _files_differ(there: list[str], here: list[str]) -> Iterable[Difference]:
    for name in sorted(set(there) ^ set(here)):
        yield "file", name, *(("present", "not made") if name in there else ("missing", "made"))
