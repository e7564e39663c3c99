"""Replay recorded training of the real Axon on our engines: `xor-study conformance FILE...`.

Prints one line for each trace, run and engine. The exit code is 1 if a deviation exceeds its tolerance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from xor_study.errors import Parser, StudyError, in_one_line, suggestion
from xor_study.study.versions import versions_table


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line asks for.

    Args:
        argv: its arguments; those of the process by default.
    """
    parser = Parser(prog="xor-study conformance", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a trace, as in tests/data/axon")
    parser.add_argument("--versions", action="store_true", help="print which versions of Axon are affected")
    parser.add_argument(
        "--engine", action="append", metavar="NAME", help="only this engine (plain, vmap or lanes); may be repeated"
    )
    with in_one_line():
        options = parser.parse_args(argv)
        if not options.versions and not options.files:
            parser.error("give a trace, or --versions")
        if options.versions:
            print(versions_table())
        sys.exit(1 if options.files and _replay(options.files, options.engine) else 0)


def _replay(files: Sequence[Path], engines: Sequence[str] | None) -> int:
    """Print how far the engines are from the traces and return how many replays exceed their tolerance."""
    from xor_study.engines import ENGINES  # imports torch, which takes seconds
    from xor_study.study.traces import read_trace, replay

    for name in engines or ():
        if name not in ENGINES:
            raise StudyError(f"--engine {name}: unknown{suggestion(name, ENGINES)}")
    exceeded = 0
    for trace in [read_trace(path) for path in files]:  # all are read before the first is replayed
        for result in replay(trace, engines or ENGINES):
            print(result, flush=True)
            exceeded += bool(result.exceeded)
    return exceeded


if __name__ == "__main__":
    main()
