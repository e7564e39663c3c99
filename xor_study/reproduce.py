"""Reproduce the whole study and compare it with the committed results: `xor-study reproduce`.

Trains `study=all`, judges the claims, draws the figures, writes the report, and prints what differs from the reference.
Needs a checkout: `results/reference`, and the recorded losses of the real Axon in `tests/data/axon`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xor_study.errors import Parser, StudyError, in_one_line

if TYPE_CHECKING:
    import pandas as pd

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
    from xor_study.study import comparison, reference, tables
    from xor_study.study.processes import processes
    from xor_study.sweeps import terminal

    start = time.perf_counter()
    folder, expected = options.out or reference.REPRODUCTION, options.reference or reference.REFERENCE
    becomes_reference = folder.resolve() == expected.resolve()
    # What can fail at the end is checked first, before minutes are spent.
    if not becomes_reference:
        comparison.check_reference(expected)
    tables.axon_losses(reference.AXON)
    jobs = _jobs(options.jobs)
    if not options.check:
        reference.check_out(folder)
    with processes(jobs) as each, tempfile.TemporaryDirectory(prefix="xor_study.") as scratch:
        runs, losses = tables.trained(options.quick, each)
        made = tables.tables_of(runs, losses, options.quick, each)
        if options.check:
            folder = Path(scratch)
            reference.write_tables(folder, made)
        else:
            record = _record(options, made["cells"], time.perf_counter() - start)
            reference.write(folder, made, record, each)
        compared = None if becomes_reference else comparison.differences(expected, folder, options.quick, each)
    terminal.show_claims(made["claims"])
    print(f"{len(runs):,} runs in {len(made['cells']):,} cells, {time.perf_counter() - start:.0f} s")
    if not options.check:
        print(f"written: {folder}")
    if compared is None:
        return 0
    print(f"compared with {expected}:")
    terminal.show_differences(compared.compared, compared.left_out, compared.differing)
    return bool(compared.rows) and options.check


def _record(options: argparse.Namespace, cells: pd.DataFrame, seconds: float) -> dict[str, Any]:
    """Return the record of a reproduction, but for the hashes of its files."""
    from xor_study.engines.lanes import cores
    from xor_study.study import reference, tables
    from xor_study.sweeps.provenance import provenance

    arguments = ["--quick"] * options.quick + (["--out", str(options.out)] if options.out else [])
    return {
        "command": " ".join(["python -m xor_study.reproduce", *arguments]),
        "study": tables.STUDY,
        "runs": int(cells["n"].sum()),
        "cells": len(cells),
        "seconds": round(seconds, 1),
        "cores": cores(),
        "environment": reference.environment(),
        "inputs": reference.inputs(),
        **provenance(),
    }


def _jobs(given: int | None) -> int:
    from xor_study.engines.lanes import cores

    jobs = min(cores(), JOBS) if given is None else given
    if not 1 <= jobs <= MOST_JOBS:
        raise StudyError(f"--jobs={jobs}: must be a whole number in [1, {MOST_JOBS}]")
    return jobs


if __name__ == "__main__":
    main()
