"""`xor-study figures`: draw the figures of a sweep or of the study as PNG and PDF, with their captions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from xor_study.errors import Parser, StudyError, in_one_line, show, suggestion

EPILOG = """\
FOLDER is a sweep's folder, finished or not: names are rates, heatmap, losses, time_to_solve and importance; or a
reproduction's. Without FOLDER the study's figures are drawn from results/reference, into results/runs/figures, which
git ignores. Without NAME all that can be drawn are."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures that are asked for."""
    parser = Parser(
        prog="xor-study figures",
        usage="%(prog)s [FOLDER] [NAME ...] [--x KEY] [--y KEY] [--into FOLDER] [--overwrite]",
        description="Draw figures as PNG and PDF, with their captions as text.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="FOLDER NAME", help=argparse.SUPPRESS)
    parser.add_argument("--x", metavar="KEY", help="setting on the x axis of a sweep's rates and heatmap, such as lr")
    parser.add_argument("--y", metavar="KEY", help="setting of the lines, or on the y axis of heatmap")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="for the files (default: FOLDER/figures)")
    parser.add_argument("--overwrite", action="store_true", help="replace the figures that a reproduction has recorded")
    with in_one_line():
        options = parser.parse_intermixed_args(arguments)
        folder, names = _folder(options.words)
        if folder is None or (folder / "provenance.json").exists():
            if options.x is not None or options.y is not None:
                raise StudyError("--x and --y: only of a sweep's figures")
            _study(folder, names, options.into, overwrite=options.overwrite)
        else:
            _sweep(folder, names, options)


def _folder(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the folder that is named first, if it is one or is written as a path, and the names of figures."""
    if words and (Path(words[0]).is_dir() or "/" in words[0]):
        folder = Path(words[0])
        if not folder.is_dir():
            raise StudyError(f"{show(folder)}: no such folder")
        return folder, list(words[1:])
    return None, list(words)


def _study(folder: Path | None, names: Sequence[str], into: Path | None, *, overwrite: bool) -> None:
    """Draw figures of the study; without names, all whose tables are there."""
    _check_names(names, folder)
    from xor_study.study.reference import CHECKOUT, PROVENANCE, REFERENCE, draw

    source = folder or REFERENCE
    target = into or (folder / "figures" if folder else CHECKOUT / "results/runs/figures")
    if not overwrite and (target.absolute().parent / PROVENANCE).exists():
        raise StudyError(f"{target}: its reproduction has recorded the figures in it; add --into FOLDER or --overwrite")
    drawn, reasons = _possible(source, names)
    if reasons and (names or not drawn):
        raise StudyError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    target.mkdir(parents=True, exist_ok=True)
    for name in drawn:
        print(*draw(source, name, target), sep="\n")
    _say(reasons)


def _check_names(names: Sequence[str], folder: Path | None) -> None:
    from xor_study.figures import FIGURES

    for name in names:
        if name not in FIGURES:
            hint = "" if folder else "; a sweep's folder is named first"
            raise StudyError(f"{show(name)}: unknown figure{suggestion(name, FIGURES)}{hint}")


def _possible(source: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return which figures can be drawn, of these or of all, and why the others can't, by name."""
    from xor_study.figures import FIGURES
    from xor_study.study.reference import table_path

    lacking = {name: [t for t in FIGURES[name] if not table_path(source, t).exists()] for name in names or FIGURES}
    reasons = {name: f"{table_path(source, tables[0])} is missing" for name, tables in lacking.items() if tables}
    return [name for name in lacking if name not in reasons], reasons


def _sweep(folder: Path, names: Sequence[str], options: argparse.Namespace) -> None:
    """Draw figures of a sweep."""
    from xor_study.sweeps import drawing

    sweep = drawing.finished(folder)
    drawn, reasons = drawing.draw(sweep, names, drawing.Axes(options.x, options.y))
    print(*drawing.save(drawn, options.into or folder / "figures"), sep="\n")
    if len(sweep.runs) < sweep.planned:
        print(f"note: {len(sweep.runs):,} of {sweep.planned:,} runs are finished")
    _say(reasons)


def _say(reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        print(f"note: {name} is not drawn: {reason}")
