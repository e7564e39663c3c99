"""Commands that read finished sweeps: `xor-study show FOLDER` and `xor-study compare A B`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from xor_study.analysis.cells import cells, compared, keys_of
from xor_study.errors import StudyError
from xor_study.sweeps import records, terminal
from xor_study.training.spec import KEYS


def main(arguments: Sequence[str]) -> None:
    """Do what a command line asks for whose first word is in COMMANDS.

    Raises:
        StudyError: if a folder holds no results, or results that can't be compared.
    """
    parser = argparse.ArgumentParser(prog="xor-study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show_parser = commands.add_parser("show", help="print the table of a finished sweep again")
    show_parser.add_argument("folder", type=Path, metavar="FOLDER")
    show_parser.add_argument("--figure", action="store_true", help="also draw it, as FOLDER/outcomes.png and .pdf")
    compare_parser = commands.add_parser("compare", help="print the paired differences of two sweeps' outcomes")
    compare_parser.add_argument("one", type=Path, metavar="A")
    compare_parser.add_argument("other", type=Path, metavar="B")
    options = parser.parse_args(arguments)
    if options.command == "show":
        show(options.folder, figure=options.figure)
    else:
        compare(options.one, options.other)


COMMANDS = ("show", "compare")


MOST_BARS = 120


def show(folder: Path, *, figure: bool = False) -> None:
    """Print the table of a sweep's cells from its `runs.csv`, and draw it if asked.

    Raises:
        StudyError: if the folder holds no results, or more cells than a figure can.
    """
    runs = _runs(folder)
    try:
        about = json.loads((folder / records.PLAN).read_text())
        axes, command = [str(axis) for axis in about["axes"]], str(about["command"])
    except (OSError, ValueError, KeyError, TypeError):
        axes, command = [], ""
    known = [axis for axis in axes if axis in runs or axis == "activation"]
    keys = keys_of(runs, known)
    if figure:
        from xor_study import figures  # matplotlib takes a third of a second, which sweeps that import this are spared

        found = cells(runs, keys)
        if len(found) > MOST_BARS:
            raise StudyError(f"{folder}: {len(found)} cells are too many for a figure (at most {MOST_BARS})")
        drawn = figures.save(figures.outcomes(found, keys), folder / "outcomes")
    terminal.show_sweep(runs, known, folder / records.RUNS, records.hints(folder, command))
    if figure:
        print(*drawn, sep="\n")


def compare(one: Path, other: Path) -> None:
    """Print the paired differences between the outcomes of two folders' runs."""
    terminal.show_comparison(one, other, *compared(_runs(one), _runs(other)))


def _runs(folder: Path) -> pd.DataFrame:
    path = folder / records.RUNS
    try:
        runs = records.read_runs(folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no table of runs"
        raise StudyError(f"{path}: {reason}") from error
    lacking = [column for column in (*KEYS, "outcome") if column not in runs]
    if lacking or runs.empty:
        raise StudyError(f"{path}: is no table of runs (no {', '.join(lacking) or 'runs'})")
    return runs
