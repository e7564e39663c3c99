"""`xor-study figures`: draw the figures of the study as PNG and PDF, from its committed tables or a reproduction's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xor_study.errors import Parser, StudyError, in_one_line, show, suggestion


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures that are asked for."""
    parser = Parser(prog="xor-study figures", description="Draw the figures of the study.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of a figure (default: all; an unknown one lists them)"
    )
    parser.add_argument("--folder", type=Path, help="of the tables (default: results/reference of the checkout)")
    parser.add_argument("--into", type=Path, help="existing folder for the pictures (default: figures in that folder)")
    with in_one_line():
        options = parser.parse_args(arguments)
        from xor_study.figures import FIGURES
        from xor_study.study.reference import REFERENCE, draw

        for name in options.names:
            if name not in FIGURES:
                raise StudyError(f"{show(name)}: unknown figure{suggestion(name, FIGURES)}")
        for name in options.names or FIGURES:
            print(*draw(options.folder or REFERENCE, name, options.into), sep="\n")
