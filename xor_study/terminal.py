"""What a person at a terminal sees: progress, the summary of a run, the table of a sweep."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from xor_study.batches import Batches, Estimate
from xor_study.data import CORNERS, TARGETS
from xor_study.engines import FallbackWarning, Progress, Result
from xor_study.outcome import OUTCOMES, running_mean
from xor_study.spec import OWN, key_of

COLOURS = {"solved": "green", "unsolved": "yellow", "diverged": "magenta", "nonfinite": "red"}
MOST_ROWS = 200


def console() -> Console:
    """Return the console of standard output, wide enough not to fold a table where output is no terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=200)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Print what the engines have to say as one line each, without where in the code it was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, FallbackWarning):
            console().print(f"note: {warning.message}")
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def show_notes(lines: Sequence[str]) -> None:
    """Print notes, one a line."""
    for line in lines:
        console().print(f"note: {line}", markup=False, soft_wrap=True)


def show_plan(estimated: Estimate, planned: Batches, axes: Sequence[str], duplicates: int) -> None:
    """Print what a plan would run."""
    out = console()
    table = Table(box=None, pad_edge=False, show_header=False)
    engines = Counter(batch.engine for batch in planned.all)
    rows = {
        "cells": f"{estimated.cells:,}",
        "runs": f"{estimated.runs:,}" + (f" ({duplicates:,} more stood twice)" if duplicates else ""),
        "axes": ", ".join(axes) or "none",
        "network-steps": f"{estimated.steps:,}",
        "batches": ", ".join(f"{count:,} on {engine}" for engine, count in engines.items()),
        "time": f"about {duration(estimated.seconds)} of training on this machine",
        "size": f"about {estimated.bytes / 1e6:,.1f} MB",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    out.print(table)
    show_notes([planned.fallback] if planned.fallback else [])
    out.print("Nothing was run: dry_run=true.")


def duration(seconds: float) -> str:
    """Return a time as people say it: two of its largest units."""
    whole = max(1, round(seconds))
    units = {"d": whole // 86400, "h": whole // 3600 % 24, "min": whole // 60 % 60, "s": whole % 60}
    told = [f"{count} {unit}" for unit, count in units.items() if count]
    return " ".join(told[:2])


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = f"{(task.speed or 0) / 1e3:,.0f}k network-steps/s" if task.speed else ""
        return Text(speed, no_wrap=True)


@contextlib.contextmanager
def progress_bar(runs: int) -> Iterator[Callable[[Progress], None]]:
    """Show a bar that the function given follows: runs done, outcomes so far, network-steps a second, time left."""
    counts = [
        TextColumn(f"{{task.fields[{name}]}}", table_column=Column(no_wrap=True)) for name in ("runs", "outcomes")
    ]
    columns = [BarColumn(bar_width=12), *(counts if runs > 1 else []), _Speed(), TimeRemainingColumn()]
    errors = Console(stderr=True)
    with Bars(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        task = bars.add_task("", total=None, runs="", outcomes="")

        def follow(progress: Progress) -> None:
            outcomes = ", ".join(
                f"[{COLOURS[name]}]{progress.outcomes[name]} {name}[/]" for name in OUTCOMES if progress.outcomes[name]
            )
            bars.update(
                task,
                total=progress.steps,
                completed=progress.steps_done,
                runs=f"{progress.runs_done}/{progress.runs} runs",
                outcomes=outcomes,
            )

        yield follow


def show_epochs(losses: pd.Series[float]) -> None:
    """Print the mean loss of each epoch, of many epochs the first and the last ten."""
    out = console()
    out.print("epoch  mean loss")
    shown = losses if len(losses) <= 20 else pd.concat([losses[:10], losses[-10:]])
    for epoch, loss in shown.items():
        out.print(f"{epoch:5d}  {loss:.6g}")


def show_running_mean(history: pd.DataFrame) -> None:
    """Print the loss as Axon's loop does: the mean of all steps so far, never reset, so that one NaN stays."""
    out = console()
    means = running_mean(history["loss"].to_numpy())
    iterations = int((history["epoch"] == 1).sum())
    shown = sorted({0, iterations // 4 - 1, iterations // 2 - 1, 3 * iterations // 4 - 1, iterations - 1} - {-1})
    for epoch in range(int(history["epoch"].max())):
        for batch in shown:
            loss = f"{means[epoch * iterations + batch]:.7f}".replace("nan", "NaN")
            out.print(f"Epoch: {epoch}, Batch: {batch + 1}, loss: {loss}")


def show_run(result: Result, predictions: Sequence[float], files: Sequence[Path]) -> None:
    """Print the summary of a single run: the four predictions, the outcome, the files."""
    out, run = console(), result.runs.iloc[0]
    out.print()
    out.print("x1 x2  prediction  target")
    for (x1, x2), prediction, target in zip(CORNERS, predictions, TARGETS, strict=True):
        out.print(f" {x1}  {x2}  {prediction:10.6f}  {int(target):6d}")
    out.print()
    out.print(_verdict(run))
    for path in files:
        out.print(f"  {path}", soft_wrap=True, markup=False)


def _verdict(run: pd.Series[Any]) -> str:
    outcome = run["outcome"]
    details = f"accuracy {run['accuracy']:g}, final loss {run['final_loss']:.6g}"
    if outcome == "solved":
        details += f", all corners right from step {run['solved_step']}"
    if outcome == "nonfinite":
        details += f", not finite from step {run['first_nonfinite_step']}"
    return f"outcome: [{COLOURS[outcome]}]{outcome}[/] ({details})"


def show_sweep(runs: pd.DataFrame, axes: Sequence[str], path: Path) -> None:
    """Print how many runs of each cell came to which outcome, seeds collapsed, and where the table is."""
    out = console()
    varied = [name for name in OWN if "." not in key_of(name) and runs[name].nunique() > 1]
    columns = (column for axis in dict.fromkeys([*axes, *varied]) for column in _columns(runs, axis))
    keys = [key for key in dict.fromkeys(columns) if key != "seed"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in keys:
        table.add_column(key, no_wrap=True)
    for name in ("runs", *OUTCOMES):
        table.add_column(name, justify="right", no_wrap=True)
    cells = [((), runs)] if not keys else runs.groupby(keys, sort=False, dropna=False)
    rows = 0
    for cell, members in cells:
        rows += 1
        if rows > MOST_ROWS:
            continue
        counts = members["outcome"].value_counts()
        values = [_share(int(counts.get(name, 0)), len(members), COLOURS[name]) for name in OUTCOMES]
        table.add_row(
            *(f"{value:g}" if isinstance(value, float) else str(value) for value in cell), str(len(members)), *values
        )
    out.print(table)
    if rows > MOST_ROWS:
        out.print(f"... and {rows - MOST_ROWS} more cells")
    out.print(f"{len(runs)} runs: {path}", soft_wrap=True, markup=False)


def _columns(runs: pd.DataFrame, axis: str) -> list[str]:
    """Return the columns that tell an axis's values apart: of a group, also parameters that differ within a choice."""
    if axis == "activation":
        return ["activation.hidden", "activation.output"]
    parameters = [column for column in runs.columns if column.startswith(f"{axis}.")]
    return [axis, *(p for p in parameters if runs.groupby(axis)[p].nunique(dropna=False).max() > 1)]


def _share(count: int, runs: int, colour: str) -> str:
    return f"[{colour}]{count} ({count / runs:.0%})[/]" if count else "-"
