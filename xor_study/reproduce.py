"""Reproduce the whole study and compare it with the committed results: `xor-study reproduce`.

Trains `study=all`, judges the claims, draws the figures, writes the report, and prints what differs from the reference.
Needs a checkout: `results/reference`, and the recorded losses of the real Axon in `tests/data/axon`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from xor_study.errors import Parser, StudyError, in_one_line

if TYPE_CHECKING:
    import pandas as pd

MOST_LINES = 30
JOBS, MOST_JOBS = 8, 61
"""Processes by default, on a machine with as many cores, and at most (on Windows): each takes some 400 MB."""


def main(argv: Sequence[str] | None = None) -> None:
    """Reproduce, write and compare; ends the process with the exit code.

    Args:
        argv: the command line's arguments; those of the process by default.
    """
    parser = Parser(prog="xor-study reproduce", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train a tenth of the seeds of each cell")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with code 1 if anything differs")
    parser.add_argument("--out", type=Path, help="folder of the reproduction (default: results/runs/reproduction)")
    parser.add_argument("--reference", type=Path, help="committed results to compare with (default: results/reference)")
    parser.add_argument("--jobs", type=int, help=f"number of processes (default: one for each core, at most {JOBS})")
    with in_one_line(BrokenExecutor):
        options = parser.parse_args(argv)
        if options.check and options.out:
            parser.error("--check writes nothing: omit --out")
        sys.exit(_reproduce(options))


def _reproduce(options: argparse.Namespace) -> int:
    """Do what the options ask for and return the exit code."""
    # These import torch, pandas and matplotlib, which `--help` does not need.
    from xor_study.engines.lanes import cores
    from xor_study.study import comparison, reference, tables
    from xor_study.study.processes import processes
    from xor_study.sweeps import terminal
    from xor_study.sweeps.provenance import provenance

    start = time.perf_counter()
    folder, expected = options.out or reference.REPRODUCTION, options.reference or reference.REFERENCE
    becomes_reference = folder.resolve() == expected.resolve()
    # What can fail at the end is checked first, before minutes are spent.
    if not becomes_reference:
        reference.read_provenance(expected)
    tables.axon_losses(reference.AXON)
    jobs = _jobs(options.jobs)
    if not options.check:
        reference.check_out(folder)
    with processes(jobs) as each:
        runs, losses = tables.trained(options.quick, each)
        made = tables.tables_of(runs, losses, options.quick, each)
        compared = None if becomes_reference else comparison.differences(expected, made, options.quick, each)
        if not options.check:
            arguments = ["--quick"] * options.quick + (["--out", str(options.out)] if options.out else [])
            record = {
                "command": " ".join(["python -m xor_study.reproduce", *arguments]),
                "study": tables.STUDY,
                "runs": len(runs),
                "cells": len(made["cells"]),
                "seconds": round(time.perf_counter() - start, 1),
                "cores": cores(),
                "environment": reference.environment(),
                **provenance(),
            }
            reference.write(folder, made, record, each)
    terminal.show_claims(made["claims"])
    print(f"{len(runs):,} runs in {len(made['cells']):,} cells, {time.perf_counter() - start:.0f} s")
    if not options.check:
        print(f"written: {folder}")
    return 0 if compared is None else _show(expected, *compared) and options.check


def _jobs(given: int | None) -> int:
    from xor_study.engines.lanes import cores

    jobs = min(cores(), JOBS) if given is None else given
    if not 1 <= jobs <= MOST_JOBS:
        raise StudyError(f"--jobs={jobs}: must be a whole number in [1, {MOST_JOBS}]")
    return jobs


def _show(expected: Path, exact: bool, differing: pd.DataFrame) -> bool:
    """Print what differs from the committed results and return whether anything does."""
    from xor_study.sweeps import terminal

    how = "bit for bit (same versions and processor)" if exact else "by rates (other versions or another processor)"
    print(f"compared with {expected} {how}: {len(differing) or 'no'} differences")
    terminal.show_differences(differing.head(MOST_LINES))
    if len(differing) > MOST_LINES:
        print(f"... and {len(differing) - MOST_LINES} more")
    return bool(len(differing))


if __name__ == "__main__":
    main()
