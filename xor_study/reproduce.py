"""The whole study by one command, and its comparison with the committed one: `python -m xor_study.reproduce`.

It trains `study=all`, judges the claims, draws the figures, writes the page, and says what differs from the reference.
It needs a checkout: `results/reference`, and the recorded losses of the real Axon in `tests/data/axon`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import platform
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xor_study import conformance, figures
from xor_study.analysis import axon
from xor_study.analysis.cells import CELL, Study, curves, examples, seeds_of_each_cell
from xor_study.analysis.statistics import holm, two_samples
from xor_study.engines import FallbackWarning, train_table
from xor_study.engines.lanes import cores, native
from xor_study.engines.results import Progress
from xor_study.errors import StudyError, in_one_line
from xor_study.files import write_atomically, write_table
from xor_study.study import claims, mechanism, monitors, report
from xor_study.study import evidence as probes
from xor_study.sweeps import plan, records, terminal
from xor_study.sweeps.provenance import provenance
from xor_study.training.cohorts import cohort_rows
from xor_study.training.outcome import OUTCOMES, Detail
from xor_study.training.spec import HALF, KEYS, RunSpec

CHECKOUT = Path(__file__).resolve().parents[1]
REFERENCE = CHECKOUT / "results/reference"
AXON = CHECKOUT / "tests/data/axon"

STUDY = "study=all"
SEEDS = 20
"""Of each cell, whose runs a reproduction keeps row by row."""

PROVENANCE = "provenance.json"
PACKED = ("runs", "curves", "examples", "panels", "naive_onsets")
"""Tables that are kept compressed."""

MADE_BY = ("run_id", "engine", "device", "torch_version", "package_version", "git_commit")
"""Columns of a run that are not compared: its name, and what made it."""

SIGNIFICANT = 0.01
MOST_LINES = 30
JOBS, MOST_JOBS = 8, 61
"""Processes unless told, on a machine with so many cores, and at most (on Windows): each takes some 400 MB."""


def table_path(folder: Path, name: str) -> Path:
    """Return where a table of a reproduction lies."""
    return folder / f"{name}.csv{'.gz' if name in PACKED else ''}"


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Return a table of a reproduction.

    Raises:
        StudyError: if it is missing or can't be read.
    """
    path = table_path(folder, name)
    try:
        if name in ("runs", "cells"):
            return records.read_runs(folder, path.name)
        return pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error


def draw(folder: Path, name: str, into: Path | None = None) -> list[Path]:
    """Draw one figure from the tables in a folder, into its own folder `figures` unless told, and return its files."""
    function, needed = figures.FIGURES[name]
    drawn = into or folder / "figures"
    drawn.mkdir(exist_ok=True)
    return figures.save(function(*(read_table(folder, table) for table in needed)), drawn / name)


Each = Callable[..., Iterable[Any]]
"""As `map`; that of a pool of processes makes the results side by side."""


@contextmanager
def processes(jobs: int) -> Iterator[Each]:
    """Provide a `map` that works in so many processes, or in this one; an interruption ends them without a word."""
    if jobs == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_process) as pool:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, also while they import
        for _ in range(jobs):
            pool.submit(int)  # they start now, beside what is done before they are needed
        signal.signal(signal.SIGINT, handler)
        with _ended_by_errors():
            yield partial(_each, pool)


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FallbackWarning)


def _each(pool: ProcessPoolExecutor, function: Callable[..., Any], *given: Iterable[Any]) -> Iterator[Any]:
    """As `pool.map`, but cancel nothing: the pool has no answer for what is cancelled when its processes end."""
    waiting = deque([pool.submit(function, *arguments) for arguments in zip(*given, strict=True)])
    with _ended_by_errors():
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _ended_by_errors() -> Iterator[None]:
    """End all processes that work for this one after an error, before anything is removed that they write to."""
    try:
        yield
    except BaseException:
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        raise


def trained(quick: bool, each: Each = map) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the whole study, or of each cell the first tenth of its seeds; return its runs and recorded losses."""
    table = plan.study_table([STUDY])
    if quick:
        cells = table.groupby([key for key in table if key != "seed"], sort=False, dropna=False, observed=True)
        table = table[table["seed"] < cells["seed"].transform("size") // 10].reset_index(drop=True)
    steps = (table["epochs"] * table["iterations"]).to_numpy()
    # Half precisions first: no machine code is made for them, so they take longest.
    members = sorted(cohort_rows(table), key=lambda rows: table["dtype"].iloc[rows[0]] not in HALF)
    progress, found = Progress(len(table), int(steps.sum())), []
    with terminal.progress_bar(len(table)) as follow, warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the half precisions of study=precision, as expected
        for rows, result in zip(members, each(_trained, (table.iloc[rows] for rows in members)), strict=True):
            found.append(result)
            progress.steps_done += int(steps[rows].sum())
            progress.finished(result[0])
            follow(progress)
    order = np.argsort(np.concatenate(members))
    runs, losses = (pd.concat(tables).iloc[order] for tables in zip(*found, strict=True))
    return runs.reset_index(drop=True).assign(**provenance()), losses


def _trained(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    result = train_table(table.reset_index(drop=True), Detail(), threads=1)
    return result.runs, result.losses


def tables_of(runs: pd.DataFrame, losses: pd.DataFrame, quick: bool, each: Each = map) -> dict[str, pd.DataFrame]:
    """Return all tables of a reproduction by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return _tables(Study(runs), losses, 10 if quick else 100, each)


def _tables(study: Study, losses: pd.DataFrame, seeds: int, each: Each) -> dict[str, pd.DataFrame]:
    broken = _mechanism_runs(study)
    typical = mechanism.typical_run(broken)
    watched_seeds = {name: max(4, size * seeds // 100) for name, size in monitors.SEEDS.items()}
    watched = monitors.alarms(study, watched_seeds, each)
    evidence = {
        "importance": probes.importance(study),
        "monitors": monitors.summary(watched),
        "naive_onsets": probes.naive_onsets(study, each),
        "boundaries": probes.boundaries(seeds),
    }
    return evidence | {
        "claims": claims.verdicts(claims.Evidence(study, evidence)),
        "cells": study.cells,
        "runs": seeds_of_each_cell(study, SEEDS),
        "curves": curves(study, losses),
        "examples": examples(study, losses),
        "panels": probes.panels(study),
        "courses": probes.courses(seeds),
        "symptom": probes.symptom(study, seeds),
        "survival": probes.survival(study),
        "roc": monitors.roc(watched),
        "mechanism_cells": mechanism.cells(broken),
        "mechanism_curves": mechanism.curves(broken, losses),
        "mechanism_repairs": mechanism.repairs(broken),
        "mechanism_rates": mechanism.rates(broken, json.loads((AXON / "xla_statistics.json").read_text())),
        "anatomy": mechanism.anatomy(RunSpec.from_row(typical), int(typical["first_nonfinite_step"])),
        "axon_losses": axon_losses(AXON),
    }


def _mechanism_runs(study: Study) -> pd.DataFrame:
    """Return the runs of `study=mechanism`."""
    cells = [study.where(*axon.SWITCHES, loss=axon.LOSS, **setting) for setting in claims.SETTINGS.values()]
    runs = study.pooled(pd.concat(cells))
    kept: pd.DataFrame = runs[runs["seed"] < runs.groupby("cell")["seed"].transform("size").min()]
    return kept


def axon_losses(folder: Path) -> pd.DataFrame:
    """Return what the real Axon's losses were with SGD, while finite: columns version, seed, lr, step and loss."""
    tables = []
    for path in sorted(folder.glob("trace_*.json")):
        trace = conformance.read_trace(path)
        for variant, lr in (("sgd_0_01", 0.01), ("sgd_0_1", 0.1)):
            run = trace["runs"][variant]
            last = run["first_step_with_nonfinite_params"] or trace["steps"]
            columns = {"version": trace["label"], "seed": trace["seed"], "lr": lr, "step": np.arange(1, last + 1)}
            tables.append(pd.DataFrame(columns | {"loss": conformance.floats(run["loss_batch"])[:last]}))
    if not tables:
        raise StudyError(f"{folder}: no traces of Axon here; reproduce needs a checkout of the repository")
    return pd.concat(tables, ignore_index=True)


def environment() -> dict[str, str]:
    """Return what decides whether runs come out bit for bit: versions, processor and instruction set."""
    name, features = native.target()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "llvmlite")},
        "processor": name,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
    }


def write(folder: Path, tables: Mapping[str, pd.DataFrame], command: str, seconds: float, each: Each = map) -> None:
    """Write all of a reproduction into a folder: tables, figures, page, and last where it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table(table_path(folder, name), table)
    list(each(partial(draw, folder), figures.FIGURES))
    record: dict[str, Any] = {
        "command": command,
        "study": STUDY,
        "runs": int(tables["cells"]["n"].sum()),
        "cells": len(tables["cells"]),
        "seconds": round(seconds, 1),
        "cores": torch.get_num_threads(),
        "environment": environment(),
        **provenance(),
    }
    report.write(folder, lambda table: read_table(folder, table), record)
    hashes = {str(path.relative_to(folder)): _hash(path) for path in sorted(folder.rglob("*")) if _is_hashed(path)}
    text = json.dumps(record | {"sha256": hashes}, indent=1) + "\n"
    write_atomically(folder / PROVENANCE, lambda stream: stream.write(text.encode()))


def _is_hashed(path: Path) -> bool:
    return path.is_file() and path.name != PROVENANCE and not path.name.startswith(".")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_provenance(reference: Path) -> dict[str, Any]:
    """Return what a reproduction says about itself.

    Raises:
        StudyError: if it is missing or malformed.
    """
    path = reference / PROVENANCE
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}; reproduce needs a checkout of the repository") from error
    except ValueError as error:
        raise StudyError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(found, dict) or not {"environment", "sha256"} <= found.keys():
        raise StudyError(f"{path}: says nothing of environment and hashes")
    return found


def differences(
    reference: Path, tables: Mapping[str, pd.DataFrame], quick: bool, each: Each = map
) -> tuple[bool, pd.DataFrame]:
    """Return whether bits were compared, and what differs from the reference: columns what, where, reference, here.

    Where versions and processor are the reference's, runs and cells must be equal bit for bit; elsewhere the rates of
    each cell must be compatible (Fisher's exact test at 1 %, Holm's correction). Verdicts must be the same; of a quick
    run, which has a tenth of the seeds, they must not contradict. The reference's files must be as they were written.
    """
    told = read_provenance(reference)
    exact = told["environment"] == environment()
    parts = [
        *_altered_files(reference, told["sha256"]),
        *_cells_differ(reference, tables["cells"], exact and not quick),
    ]
    parts += [
        *_runs_differ(reference, tables["runs"], exact, quick),
        *_verdicts_differ(reference, tables["claims"], quick),
    ]
    for found in each(_trace_differs, sorted(AXON.glob("trace_*.json"))):
        parts += found
    return exact, pd.DataFrame(parts, columns=["what", "where", "reference", "here"])


Difference = tuple[str, str, str, str]


def _altered_files(reference: Path, hashes: Mapping[str, str]) -> Iterator[Difference]:
    for name, told in hashes.items():
        path = reference / name
        if not path.is_file():
            yield "file", name, told[:12], "missing"
        elif _hash(path) != told:
            yield "file", name, told[:12], f"altered, {_hash(path)[:12]}"


def _named(table: pd.DataFrame) -> pd.Series[Any]:
    """Return a name for each cell: what it differs in from the article's network."""
    keys = table[CELL].astype(object)
    return pd.Series(["|".join("" if pd.isna(v) else _plain(v) for v in row) for row in keys.itertuples(index=False)])


def _plain(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


def _cells_differ(reference: Path, here: pd.DataFrame, exact: bool) -> Iterator[Difference]:
    there = read_table(reference, "cells")
    there, here = (table.assign(name=_named(table).to_numpy()).set_index("name") for table in (there, here))
    for name in there.index.symmetric_difference(here.index):
        present = name in here.index
        yield "cell", _shown(str(name)), "missing" if present else "there", "there" if present else "missing"
    common = there.index.intersection(here.index)
    there, here = there.loc[common], here.loc[common]
    compared = []
    for outcome in OUTCOMES:
        counts = [table[f"{outcome}_runs"].to_numpy(np.int64) for table in (there, here)]
        totals = [table["n"].to_numpy(np.int64) for table in (there, here)]
        differ = np.flatnonzero((counts[0] != counts[1]) if exact else (counts[0] * totals[1] != counts[1] * totals[0]))
        for place in differ.tolist():
            pair = tuple((int(count[place]), int(total[place])) for count, total in zip(counts, totals, strict=True))
            compared.append((outcome, str(common[place]), pair))
    chance = [two_samples((one[0], other[0]), (one[1], other[1])) for _, _, (one, other) in compared]
    # Cells that agree count as comparisons too: their p is 1.
    adjusted = holm(chance + [1.0] * (len(common) * len(OUTCOMES) - len(chance)))[: len(chance)] if chance else []
    for (outcome, name, (one, other)), p in zip(compared, adjusted, strict=True):
        if exact or p < SIGNIFICANT:
            yield f"runs {outcome}", _shown(name), f"{one[0]} of {one[1]}", f"{other[0]} of {other[1]}"


def _shown(name: str) -> str:
    values = dict(zip(CELL, name.split("|"), strict=True))
    usual = dict(zip(CELL, _usual_name().split("|"), strict=True))
    return (
        " ".join(f"{key}={value}" for key, value in values.items() if value != usual[key] and value) or "the article's"
    )


def _usual_name() -> str:
    values = {key: getattr(RunSpec(), field) for key, field in KEYS.items() if key != "seed"}
    return str(_named(pd.DataFrame([values], dtype=object))[0])


def _runs_differ(reference: Path, here: pd.DataFrame, exact: bool, quick: bool) -> Iterator[Difference]:
    there = read_table(reference, "runs").set_index("run_id")
    here = here.set_index("run_id")
    if quick:  # of cells with fewer than 200 runs it has fewer than 20 seeds
        there = there[there.index.isin(here.index) | (there["seed"] == 0)]
    for run_id in there.index.symmetric_difference(here.index):
        present = run_id in here.index
        yield "run", str(run_id), "missing" if present else "there", "there" if present else "missing"
    for run_id in there.index[there.index.duplicated()]:
        yield "run", str(run_id), "twice", "once"
    common = there.index.intersection(here.index)
    there, here = there[~there.index.duplicated()].loc[common], here.loc[common]
    if not exact:
        return
    for column in there.columns.difference([*MADE_BY, *CELL]):
        one, other = (table[column].astype(object) for table in (there, here))
        same = (one == other).fillna(False) | (one.isna() & other.isna())
        for run_id in common[~same.to_numpy(bool)]:
            yield column, str(run_id), str(one[run_id]), str(other[run_id])


def _verdicts_differ(reference: Path, here: pd.DataFrame, quick: bool) -> Iterator[Difference]:
    there, now = (table.set_index("claim")["verdict"] for table in (read_table(reference, "claims"), here))
    for name in there.index.union(now.index, sort=False):
        one, other = str(there.get(name, "missing")), str(now.get(name, "missing"))
        if one != other and not (quick and "undecided" in (one, other)):
            yield "verdict", str(name), one, other


def _trace_differs(path: Path) -> list[Difference]:
    """Return which replays of the real Axon's recorded training are beyond their tolerance, on the fast engine."""
    return [
        ("trace", f"{found.trace} {found.run}", "within tolerance", ", ".join(found.exceeded))
        for found in conformance.replay(conformance.read_trace(path), ["lanes"])
        if found.exceeded
    ]


def main() -> None:
    """Reproduce, write and compare."""
    parser = argparse.ArgumentParser(prog="python -m xor_study.reproduce", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the seeds of each cell")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if anything differs")
    parser.add_argument("--out", type=Path, help="where the reproduction goes (default: results/runs/reproduction)")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="what it is held against")
    parser.add_argument("--jobs", type=int, help=f"processes to work in (default: one for each core, at most {JOBS})")
    options = parser.parse_args()
    if options.check and options.out:
        parser.error("--check writes nothing: leave --out away")
    with in_one_line(BrokenExecutor):
        sys.exit(_reproduce(options))


def _reproduce(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    folder = options.out or CHECKOUT / "results/runs/reproduction"
    becomes_reference = folder.resolve() == options.reference.resolve()
    if not becomes_reference:
        read_provenance(options.reference)  # before minutes are spent
    axon_losses(AXON)
    jobs = min(cores(), JOBS) if options.jobs is None else options.jobs
    if not 1 <= jobs <= MOST_JOBS:
        raise StudyError(f"--jobs={jobs}: must be a whole number in [1, {MOST_JOBS}]")
    if not options.check:
        _check_out(folder)
    with processes(jobs) as each:
        runs, losses = trained(options.quick, each)
        gc.freeze()  # statsmodels collects garbage at each correction for many tests
        tables = tables_of(runs, losses, options.quick, each)
        compared = None if becomes_reference else differences(options.reference, tables, options.quick, each)
        if not options.check:
            arguments = " ".join(["--quick"] * options.quick + ([f"--out {options.out}"] if options.out else []))
            command = f"python -m xor_study.reproduce {arguments}".strip()
            _replace(folder, tables, command, time.perf_counter() - start, each)
    terminal.show_claims(tables["claims"])
    print(f"{len(runs):,} runs in {len(tables['cells']):,} cells, {time.perf_counter() - start:.0f} s")
    if compared is None:
        print(f"the reference is written: {folder}")
        return 0
    exact, differ = compared
    how = "bit for bit (same versions and processor)" if exact else "by rates (other versions or another processor)"
    print(f"compared with {options.reference} {how}: {len(differ) or 'no'} differences")
    terminal.show_differences(differ.head(MOST_LINES))
    if len(differ) > MOST_LINES:
        print(f"... and {len(differ) - MOST_LINES} more")
    if not options.check:
        print(f"written: {folder / report.PAGE}")
    return 1 if options.check and len(differ) else 0


def _check_out(folder: Path) -> None:
    """Raise StudyError if a reproduction can't go into a folder, or if the folder holds anything else."""
    records.check_folder("--out", str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PROVENANCE).exists():
        raise StudyError(f"--out={folder}: holds something that is no reproduction; choose another folder")


def _replace(folder: Path, tables: Mapping[str, pd.DataFrame], command: str, seconds: float, each: Each) -> None:
    """Write a reproduction beside its place first, so that it stands there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        fresh, old = Path(name) / "new", Path(name) / "old"
        write(fresh, tables, command, seconds, each)
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
