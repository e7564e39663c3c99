"""Commands that read finished sweeps: `xor-study show FOLDER` and `xor-study compare A B`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xor_study.errors import Parser, StudyError, in_one_line
from xor_study.training.spec import KEYS

if TYPE_CHECKING:
    import pandas as pd


def show_main(arguments: Sequence[str] | None = None) -> None:
    """Run `xor-study show`."""
    parser = Parser(prog="xor-study show", description="Print the table of a sweep again.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep: the one that holds runs.csv")
    parser.add_argument("--figure", action="store_true", help="also draw it, as FOLDER/outcomes.png and .pdf")
    _add_format(parser)
    with in_one_line():
        options = parser.parse_args(arguments)
        show(options.folder, figure=options.figure, form=options.format)


def compare_main(arguments: Sequence[str] | None = None) -> None:
    """Run `xor-study compare`."""
    parser = Parser(
        prog="xor-study compare",
        description="Compare the outcomes of two sweeps: differences paired by seed and by all else that they share.",
    )
    parser.add_argument("one", type=Path, metavar="A", help="folder of a sweep")
    parser.add_argument("other", type=Path, metavar="B", help="folder of another")
    _add_format(parser)
    with in_one_line():
        options = parser.parse_args(arguments)
        compare(options.one, options.other, form=options.format)


def _add_format(parser: Parser) -> None:
    parser.add_argument(
        "--format",
        default="text",
        choices=("text", "markdown", "latex", "csv"),
        help="text (for a terminal), or nothing but the table: markdown, latex (booktabs), csv (full precision)",
    )


MOST_BARS = 120


def show(folder: Path, *, figure: bool = False, form: str = "text") -> None:
    """Print the table of a sweep's cells from its `runs.csv`, and draw it if asked.

    Args:
        folder: of the sweep.
        figure: whether to draw it too.
        form: one of `formats.FORMATS`; any but "text" prints nothing but the table.

    Raises:
        StudyError: if the folder holds no results, or more cells than a figure can.
    """
    from xor_study.analysis.cells import cells, keys_of
    from xor_study.sweeps import records, terminal

    runs = runs_of(folder)
    try:
        about = json.loads((folder / records.PLAN).read_text())
        axes, command = [str(axis) for axis in about["axes"]], str(about["command"])
    except (OSError, ValueError, KeyError, TypeError):
        axes, command = [], ""
    known = [axis for axis in axes if axis in runs or axis == "activation"]
    keys = keys_of(runs, known)
    if figure:
        from xor_study import figures  # matplotlib takes a third of a second, which sweeps that import this are spared
        from xor_study.figures.captions import SWEEP_TITLES

        found = cells(runs, keys)
        if len(found) > MOST_BARS:
            raise StudyError(f"{folder}: {len(found)} cells are too many for a figure (at most {MOST_BARS})")
        title = SWEEP_TITLES["outcomes"]
        drawn = figures.save(figures.outcomes(found, keys), folder / "outcomes", title=title)
    if form != "text":
        from xor_study.sweeps import formats

        print(formats.sweep_table(cells(runs, keys), keys, form))
        return
    terminal.show_sweep(runs, known, folder / records.RUNS, records.hints(folder, command))
    if figure:
        print(*drawn, sep="\n")


def compare(one: Path, other: Path, *, form: str = "text") -> None:
    """Print the paired differences between the outcomes of two folders' runs.

    Args:
        one: folder of a sweep.
        other: folder of another.
        form: one of `formats.FORMATS`; any but "text" prints nothing but the table.

    Raises:
        StudyError: if a folder holds no results, or results that can't be compared.
    """
    from xor_study.analysis.cells import compared
    from xor_study.sweeps import terminal

    differing, table = compared(runs_of(one), runs_of(other))
    if form != "text":
        from xor_study.sweeps import formats

        print(formats.comparison_table(table, form))
        return
    terminal.show_comparison(one, other, differing, table)


def runs_of(folder: Path) -> pd.DataFrame:
    """Return the runs of a folder.

    Raises:
        StudyError: if it holds no table of runs.
    """
    from xor_study.sweeps import records

    path = folder / records.RUNS
    try:
        runs = records.read_runs(folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a table of runs"
        raise StudyError(f"{path}: {reason}") from error
    lacking = [column for column in (*KEYS, "outcome") if column not in runs]
    if lacking or runs.empty:
        raise StudyError(f"{path}: not a table of runs (no {', '.join(lacking) or 'runs'})")
    return runs
