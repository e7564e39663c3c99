"""Draw the figures of the study as PNG and PDF: python scripts/figures.py [NAME...] (default: all)."""

from __future__ import annotations

import argparse
from pathlib import Path

from xor_study.errors import in_one_line
from xor_study.figures import FIGURES
from xor_study.study.reference import REFERENCE, draw


def main() -> None:
    """Draw the figures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--folder", type=Path, default=REFERENCE, help="of a reproduction (default: results/reference)")
    parser.add_argument("--into", type=Path, help="existing folder for the files (default: FOLDER/figures)")
    options = parser.parse_args()
    for name in options.names:
        if name not in FIGURES:
            parser.error(f"unknown figure {name} (known: {', '.join(FIGURES)})")
    with in_one_line():
        for name in options.names or FIGURES:
            print(*draw(options.folder, name, options.into), sep="\n")


if __name__ == "__main__":
    main()
