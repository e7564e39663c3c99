"""What a person at a terminal sees: progress, the summary of a run, the table of a sweep."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.measure import Measurement
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

from xor_study.analysis.cells import keys_of
from xor_study.analysis.outcomes import Outcomes
from xor_study.analysis.power import detectable_difference, wilson_widths
from xor_study.analysis.statistics import wilson
from xor_study.engines import FallbackWarning
from xor_study.engines.results import Progress, Result
from xor_study.errors import typed
from xor_study.model.data import CORNERS, TARGETS
from xor_study.sweeps.chunks import Chunks, Estimate
from xor_study.sweeps.plan import Plan
from xor_study.training.outcome import OUTCOMES, running_mean

if TYPE_CHECKING:
    from xor_study.analysis.comparison import Comparison

COLOURS = {"solved": "green", "unsolved": "yellow", "diverged": "magenta", "nonfinite": "red"}
VERDICT_COLOURS = {
    **dict.fromkeys(("supported", "yes", "cures", "helps"), "green"),
    **dict.fromkeys(("refuted", "no", "masks", "worsens", "harms", "cause"), "red"),
    **dict.fromkeys(("necessary", "sufficient", "symptom only", "not a cause", "reduces", "no effect"), "blue"),
    "undecided": "yellow",
}
MOST_ROWS, MOST_DIFFERENCES = 200, 30
UNBOUNDED = 10_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich calls it where it handles the error; `problems.in_one_line` knows what to do


def console() -> Console:
    """Return the console of standard output, wide enough not to fold a table where output is not a terminal."""
    plain = _Console(highlight=False)  # rich would colour every number
    return plain if plain.is_terminal else _Console(highlight=False, width=200)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Print what the engines have to say as one line each, without where in the code it was said."""
    # Collected and printed afterwards: in between they would break the progress bar.
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


def show_plan(estimated: Estimate, chunks: Chunks, planned: Plan, folder: Path | None) -> None:
    """Print what a plan would run.

    Args:
        estimated: what it will cost; with `until`, the runs that are wanted so far.
        chunks: of these runs.
        planned: the plan.
        folder: that holds some of the runs already, or None.
    """
    out = console()
    table = Table(box=None, pad_edge=False, show_header=False)
    engines = Counter(chunk.engine for chunk in chunks.all)
    rule = planned.until
    finished = estimated.done == estimated.runs
    most = estimated.runs if finished or rule is None else estimated.cells * rule.most
    # Runs that may come on top cost as much as those that are wanted so far.
    more = (most - estimated.done) / max(estimated.runs - estimated.done, 1)
    least = "at least " if most > estimated.runs else ""
    rows = {
        "cells": f"{estimated.cells:,}",
        "runs": f"{least}{estimated.runs:,}" + (f", at most {most:,}" if least else ""),
        "seeds": f"until intervals are {rule.width:g} wide, {rule.least} to {rule.most} a cell" if rule else "",
        "done already": f"{estimated.done:,} runs, in {folder}" if folder else "",
        "axes": ", ".join(planned.axes) or "none",
        "network-steps": f"{least}{estimated.steps:,}",
        "chunks": ", ".join(f"{count:,} on {engine}" for engine, count in engines.items()),
        "time": "none" if finished else f"about {duration(estimated.seconds)} of training on this machine",
        "size": f"about {estimated.bytes / 1e6:,.1f} MB",
    }
    rows["runs"] += f" ({planned.duplicates:,} duplicates dropped)" if planned.duplicates else ""
    if least:
        rows["time"] += f", at most {duration(more * estimated.seconds)}"
        rows["size"] += f", at most {estimated.bytes * most / estimated.runs / 1e6:,.1f} MB"
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    out.print(table)
    for line in _power(estimated.cells, rule.most if rule else estimated.runs // estimated.cells):
        out.print(line, soft_wrap=True)
    show_notes([*planned.remarks, *([chunks.fallback] if chunks.fallback else [])])
    out.print("Nothing was run: dry_run=true.")


def _power(cells: int, seeds: int) -> Iterator[str]:
    """Yield what so many seeds of a cell can tell, about 95 % intervals and about comparisons."""
    if seeds < 2:
        return
    width = float(wilson_widths(np.array([seeds // 2]), np.array([seeds]))[0])
    yield f"{seeds:,} seeds a cell: Wilson's 95 % intervals are at most {100 * width:.2g} points wide."
    alone, among = detectable_difference(seeds), detectable_difference(seeds, cells)
    if alone is None:
        yield "So few seeds can't show a difference between two cells (McNemar's exact test, p < 0.05, 80 % power)."
        return
    corrected = "no difference" if among is None else f"{100 * among:.2g} points"
    holm = f" ({corrected} after Holm's correction for {cells:,} cells)" if cells > 1 else ""
    yield (
        f"A comparison of two cells detects a difference of {100 * alone:.2g} points{holm} with 80 % power: McNemar's "
        "exact test, p < 0.05, shares near 50 %, outcomes independent within pairs, which is the least favourable case."
    )


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
    """Follow a training: runs done, outcomes so far, network-steps a second, time left.

    On a terminal that is a bar, which goes away in the end; elsewhere a line every LINE_SECONDS, from then on.
    """
    errors = Console(stderr=True, highlight=False)
    if not errors.is_terminal:
        yield _Lines(errors).follow
        return
    counts = [
        TextColumn(f"{{task.fields[{name}]}}", table_column=Column(no_wrap=True)) for name in ("runs", "outcomes")
    ]
    columns = [BarColumn(bar_width=12), *(counts if runs > 1 else []), _Speed(), TimeRemainingColumn()]
    with Bars(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=None, runs="", outcomes="")

        def follow(progress: Progress) -> None:
            bars.update(
                task,
                total=progress.steps,
                completed=progress.steps_done,
                runs=_runs(progress),
                outcomes=_outcomes(progress),
            )

        yield follow


LINE_SECONDS = 30.0


class _Lines:
    """Says how far a training is in lines of text."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begun = self.told = time.monotonic()

    def follow(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.told < LINE_SECONDS or not progress.steps_done:
            return
        self.told, speed = now, progress.steps_done / (now - self.begun)
        left = duration((progress.steps - progress.steps_done) / speed)
        parts = [_runs(progress), _outcomes(progress), f"{speed / 1e3:,.0f}k network-steps/s", f"{left} left"]
        self.console.print("; ".join(part for part in parts if part), soft_wrap=True)


def _runs(progress: Progress) -> str:
    return f"{progress.runs_done}/{progress.runs} runs"


def _outcomes(progress: Progress) -> str:
    return ", ".join(
        f"[{COLOURS[name]}]{progress.outcomes[name]} {name}[/]" for name in OUTCOMES if progress.outcomes[name]
    )


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


def show_sweep(outcomes: Outcomes, axes: Sequence[str], where: str, hints: Mapping[str, str]) -> None:
    """Print how many runs of each cell came to which outcome, seeds collapsed, and where to go from there.

    Args:
        outcomes: of the runs.
        axes: that were given, in order.
        where: the runs are.
        hints: commands, by what they are for.
    """
    out = console()
    keys = keys_of(outcomes.cells, axes)
    found = outcomes.by(keys)
    rows = [
        ([_text(row[key]) for key in keys], int(row["runs"]), [int(row[name]) for name in OUTCOMES])
        for row in found.head(MOST_ROWS).to_dict("records")
    ]
    # From the widest to the narrowest: the first that fits the terminal is printed.
    layouts = ((False, False), (False, True), (True, True))
    for stacked, two_lines in layouts:
        table = _cells_table(keys, rows, stacked=stacked, two_lines=two_lines)
        if Measurement.get(out, out.options.update(max_width=UNBOUNDED), table).maximum <= out.width:
            break
    out.print(table)
    if len(found) > MOST_ROWS:
        out.print(f"... and {len(found) - MOST_ROWS} more cells")
    if len(outcomes) > len(found):
        out.print("shares with Wilson's 95 % interval")
    out.print(f"{len(outcomes)} runs: {where}", soft_wrap=True, markup=False)
    for purpose, command in hints.items():
        out.print(f"{purpose}: {command}", soft_wrap=True, markup=False)


def _cells_table(
    keys: Sequence[str], rows: Sequence[tuple[list[str], int, list[int]]], *, stacked: bool, two_lines: bool
) -> Table:
    """Return a table of cells: the keys as columns or stacked in one, an interval beside its share or below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in ["cell"] if stacked and keys else keys:
        table.add_column(key, no_wrap=not stacked, overflow="fold")
    for name in ("runs", *OUTCOMES):
        table.add_column(name, justify="right", no_wrap=not stacked, overflow="fold")
    for cell, runs, counts in rows:
        shares = [_share(count, runs, COLOURS[name], two_lines) for name, count in zip(OUTCOMES, counts, strict=True)]
        stack = ["\n".join(f"{key}={value}" for key, value in zip(keys, cell, strict=True))] if cell else []
        table.add_row(*(stack if stacked else cell), str(runs), *shares)
    return table


def _text(value: Any) -> str:
    return "" if pd.isna(value) else typed(value)  # exactly: 0.3 and 0.30000000000000004 are two cells


def _share(count: int, runs: int, colour: str, two_lines: bool) -> str:
    if not count:
        return "-"
    low, high = wilson(count, runs)
    interval = f"{100 * low:.0f} to {100 * high:.0f}"
    between, end = ("\n", "") if two_lines else (", ", ")")
    return f"[{colour}]{count} ({count / runs:.0%}{')' if two_lines else ''}{between}{interval}{end}[/]"


def show_comparison(
    comparison: Comparison, folders: tuple[Sequence[Path], Sequence[Path]], notes: Sequence[str]
) -> None:
    """Print paired differences, runs without a partner, and how to read the numbers.

    Args:
        comparison: what to print.
        folders: of both sides.
        notes: on the comparison and on the folders.
    """
    from xor_study.sweeps.formats import comparison_keys, comparison_texts

    out = console()
    for side, paths, settings in zip("AB", folders, comparison.sides, strict=False):
        named = f" ({settings})" if settings else ""
        out.print(f"{side}: {' '.join(map(str, paths))}{named}", soft_wrap=True, markup=False)
    keys = comparison_keys(comparison.table)
    header, rows = comparison_texts(comparison.table.head(MOST_ROWS))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header):
        is_text = number <= len(keys)
        table.add_column(name, overflow="fold", justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        outcome = Text(row[len(keys)], COLOURS[row[len(keys)]])
        table.add_row(*map(Text, row[: len(keys)]), outcome, *row[len(keys) + 1 :])
    out.print(table)
    if len(comparison.table) > MOST_ROWS:
        out.print(f"... and {len(comparison.table) - MOST_ROWS:,} more rows")
    show_notes(notes)
    out.print(comparison.method, soft_wrap=True, markup=False)


def show_claims(claims: pd.DataFrame) -> None:
    """Print the verdict on each claim with its effect, its interval, and one sentence."""
    table = Table(
        "claim", Column("verdict", no_wrap=True), Column("effect (95 %)", no_wrap=True), "in plain words", box=None
    )
    for row in claims.to_dict("records"):
        effect = f"{row['effect']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        table.add_row(row["claim"], f"[{VERDICT_COLOURS[row['verdict']]}]{row['verdict']}[/]", effect, row["sentence"])
    console().print(table)


def show_differences(compared: Sequence[str], left_out: Sequence[str], differing: pd.DataFrame) -> None:
    """Print what was compared, what differs, and in the last line what was not compared.

    Args:
        compared: in a few words each.
        left_out: likewise, with the reason.
        differing: columns what, where, and the value in both.
    """
    out = console()
    for text in compared:
        out.print(f"  {text}", soft_wrap=True, markup=False)
    if len(differing):
        printed = Table(*differing.columns, box=None)
        for row in differing.head(MOST_DIFFERENCES).astype(str).itertuples(index=False):
            printed.add_row(*(Text(str(value)) for value in row))
        out.print(printed)
    if len(differing) > MOST_DIFFERENCES:
        out.print(f"... and {len(differing) - MOST_DIFFERENCES:,} more")
    out.print(f"{len(differing) or 'no'} differences; not compared: {'; '.join(left_out) or 'nothing'}", soft_wrap=True)
