"""Commands on the folders of sweeps: `xor-study show FOLDER`, `compare A B` and `unlock FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xor_study.errors import Parser, StudyError, in_one_line
from xor_study.training.spec import KEYS

if TYPE_CHECKING:
    import pandas as pd


def show_main(arguments: Sequence[str] | None = None) -> None:
    """Run `xor-study show`."""
    parser = Parser(prog="xor-study show", description="Print the table of a sweep, finished or not, or of several.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a sweep: the one with plan.json")
    parser.add_argument("--figure", action="store_true", help="also draw it, as FOLDER/outcomes.png and .pdf")
    _add_format(parser)
    with in_one_line():
        options = parser.parse_args(arguments)
        show(options.folders, figure=options.figure, form=options.format)


def compare_main(arguments: Sequence[str] | None = None) -> None:
    """Run `xor-study compare`."""
    parser = Parser(
        prog="xor-study compare",
        description="Compare outcomes, paired by seed and by all other settings: two sweeps (A B), two sets of sweeps "
        "(A ... --with B ...), the levels of a setting within sweeps (--by), or all settings (--effects).",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a sweep; several count as one")
    parser.add_argument(
        "--with", dest="others", type=Path, nargs="+", metavar="FOLDER", help="what they are compared with"
    )
    parser.add_argument("--by", metavar="KEY", help="compare each level of a setting or group with the baseline")
    parser.add_argument(
        "--baseline", metavar="VALUE", help="of --by: sgd or optimizer=sgd; the article's, else the first"
    )
    parser.add_argument("--effects", action="store_true", help="main effects and two-way interactions of all settings")
    _add_format(parser)
    with in_one_line():
        options = parser.parse_intermixed_args(arguments)
        one, other = _sides(options.folders, options.others, alone=bool(options.by) or options.effects)
        if options.baseline is not None and options.by is None:
            raise StudyError("--baseline: names a level of --by KEY")
        if options.effects and options.by is not None:
            raise StudyError("--by and --effects: take one of them")
        compare(one, other, by=options.by, baseline=options.baseline, effects=options.effects, form=options.format)


def _sides(folders: list[Path], others: list[Path] | None, *, alone: bool) -> tuple[list[Path], list[Path]]:
    """Return the folders of both sides, of the second none where one side is looked at alone.

    Raises:
        StudyError: if it is not clear which folders are compared.
    """
    if alone and others:
        raise StudyError("--with: --by and --effects compare runs of one set of folders")
    if alone or others:
        return folders, others or []
    if len(folders) == 2:
        return folders[:1], folders[1:]
    if len(folders) == 1:
        raise StudyError("compare takes two folders, or one with --by KEY or --effects; see xor-study compare --help")
    raise StudyError(f"{len(folders)} folders: say which are compared, as in A B --with C, or --by KEY or --effects")


def unlock_main(arguments: Sequence[str] | None = None) -> None:
    """Run `xor-study unlock`."""
    parser = Parser(
        prog="xor-study unlock",
        description="Show which processes hold batches of a sweep, and free those of processes that are dead, stopped, "
        "or silent for a minute. Safe at any time: at worst a batch is trained twice, with the same results.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep")
    parser.add_argument("--force", action="store_true", help="free also what running processes hold")
    with in_one_line():
        options = parser.parse_args(arguments)
        unlock(options.folder, force=options.force)


def _add_format(parser: Parser) -> None:
    parser.add_argument(
        "--format",
        default="text",
        choices=("text", "markdown", "latex", "csv"),
        help="text (for a terminal), or nothing but the table: markdown, latex (booktabs), csv (full precision)",
    )


MOST_BARS = 120


def show(folders: Sequence[Path], *, figure: bool = False, form: str = "text") -> None:
    """Print the table of the cells of some sweeps, finished or not, and draw it if asked.

    Args:
        folders: of the sweeps; a run that is in several of them counts once.
        figure: whether to draw it too, in the first folder.
        form: one of `formats.FORMATS`; any but "text" prints nothing but the table.

    Raises:
        StudyError: if a folder holds no results, or if there are more cells than a figure can show.
    """
    from xor_study.analysis.cells import keys_of
    from xor_study.sweeps import reading, records, terminal

    read = reading.read(folders)
    plan = records.read_plan(folders[0])
    axes = [str(axis) for axis in plan.get("axes", ()) if axis in read.outcomes.cells or axis == "activation"]
    keys = keys_of(read.outcomes.cells, axes)
    drawn = _drawn(folders[0], read.outcomes.by(keys), keys) if figure else []
    if form != "text":
        from xor_study.sweeps import formats

        print(formats.sweep_table(read.outcomes.by(keys), keys, form))
        return
    hints = records.hints(folders[0], str(plan.get("command", ""))) if len(folders) == 1 else {}
    terminal.show_sweep(read.outcomes, axes, ", ".join(str(records.path_of_runs(folder)) for folder in folders), hints)
    notes = [f"{folder}: {note}" for folder in folders if (note := records.read_plan(folder).get("note"))]
    terminal.show_notes([*notes, *read.notes()])
    print(*drawn, sep="\n", end="\n" * bool(drawn))


def _drawn(folder: Path, cells: pd.DataFrame, keys: Sequence[str]) -> list[Path]:
    """Draw a table of cells and return the files."""
    from xor_study import figures  # matplotlib takes a third of a second, which sweeps that import this are spared
    from xor_study.figures.captions import SWEEP_TITLES

    if len(cells) > MOST_BARS:
        raise StudyError(f"{folder}: {len(cells)} cells are too many for a figure (at most {MOST_BARS})")
    title = SWEEP_TITLES["outcomes"]
    return figures.save(figures.outcomes(cells, keys), folder / "outcomes", title=title)


def compare(
    one: Sequence[Path],
    other: Sequence[Path] = (),
    *,
    by: str | None = None,
    baseline: str | None = None,
    effects: bool = False,
    form: str = "text",
) -> None:
    """Print the paired differences between the outcomes of runs.

    Args:
        one: folders of sweeps.
        other: folders that they are compared with; none with `by` and `effects`.
        by: a setting whose levels are compared.
        baseline: the level that the others are compared with.
        effects: whether to print the effects of all settings.
        form: one of `formats.FORMATS`; any but "text" prints nothing but the table, and notes as errors.

    Raises:
        StudyError: if a folder holds no results, or results that can't be compared.
    """
    from xor_study.sweeps import reading

    first, second = reading.read(one), reading.read(other) if other else None
    if effects:
        from xor_study.analysis.factorial import effects_of

        found = effects_of(first.outcomes)
    elif by is not None:
        from xor_study.analysis.comparison import compared_by

        found = compared_by(first.outcomes, by, baseline)
    else:
        from xor_study.analysis.comparison import compared

        found = compared(first.outcomes, (second or first).outcomes)
    sides = {"A: ": first, "B: ": second} if second else {"": first}
    notes = [*found.notes, *(f"{side}{note}" for side, read in sides.items() if read for note in read.notes())]
    if form == "text":
        from xor_study.sweeps import terminal

        terminal.show_comparison(found, (one, other or one), notes)
        return
    from xor_study.sweeps import formats

    print(formats.comparison_table(found.table, form))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def unlock(folder: Path, *, force: bool = False) -> None:
    """Free the locks in a sweep's folder whose holders do nothing, and print one line for each lock.

    Args:
        folder: of the sweep.
        force: whether to free the others too.

    Raises:
        StudyError: if the folder is not that of a sweep.
    """
    from xor_study.sweeps.locks import Locks

    if not (folder / "parts").is_dir():
        raise StudyError(f"{folder}: not the folder of a sweep (no parts)")
    held = [("the folder", lock) for lock in Locks(folder).held().values()]
    held += [(f"batch {name}", lock) for name, lock in Locks(folder / "parts").held().items()]
    for name, lock in held:
        holder = lock.holder()
        if holder is None:  # given back in between
            continue
        freed = force or holder.state != "running"
        if freed:
            lock.free()
        what = "freed" if freed else "kept; --force frees it, and then it may be trained twice, with the same results"
        print(f"{name}: {holder}, {holder.begun}, {holder.state}: {what}")
    if not held:
        print(f"{folder}: nothing is locked")


def runs_of(folder: Path) -> pd.DataFrame:
    """Return the table of runs of a folder.

    Raises:
        StudyError: if it holds none.
    """
    from xor_study.sweeps import records

    path = records.path_of_runs(folder)
    try:
        runs = records.read_runs(folder)
    except StudyError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a table of runs"
        raise StudyError(f"{path}: {reason}") from error
    lacking = [column for column in (*KEYS, "outcome") if column not in runs]
    if lacking or runs.empty:
        raise StudyError(f"{path}: not a table of runs (no {', '.join(lacking) or 'runs'})")
    return runs
