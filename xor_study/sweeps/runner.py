"""What the command line does with a checked plan: train, write the results into a folder, print a summary."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xor_study.engines import FallbackWarning, train_table
from xor_study.engines.results import Result
from xor_study.errors import Interrupted, StudyError, interruption, one_line, signal_of
from xor_study.files import write_atomically, write_table
from xor_study.model.data import CORNERS
from xor_study.model.losses import LOSSES
from xor_study.model.network import plane
from xor_study.sweeps import folders, records, terminal
from xor_study.sweeps.adaptive import described, rounds, summary
from xor_study.sweeps.axes import as_typed
from xor_study.sweeps.chunks import estimate
from xor_study.sweeps.plan import Plan
from xor_study.sweeps.provenance import git_commit
from xor_study.sweeps.settings import FORMATS
from xor_study.sweeps.sweep import Sweep
from xor_study.training.outcome import Detail

GRID, MARGIN = 200, 0.25
"""Points along each axis of the decision boundary's picture, and how far it reaches beyond the corners."""


def collect_again() -> None:
    """Let Python's garbage collector run again, if a command has paused it, but not look at what is there already."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run_one(
    table: pd.DataFrame, engine: str, device: str, threads: int | None, folder: Path, log: str = "epochs"
) -> Result:
    """Train a single run and leave history, table, weights and pictures in `folder`."""
    from xor_study import figures  # matplotlib takes a third of a second, which a sweep is spared

    folder.mkdir(parents=True, exist_ok=True)
    collect_again()
    git_commit()  # cached now: the files may change while the run trains
    with terminal.progress_bar(1) as follow, terminal.notes():
        detail = Detail(every_step=True)
        result = train_table(table, detail, engine=engine, device=device, threads=threads, progress=follow)
    assert result.history is not None
    run = result.runs.iloc[0]
    title = figures.run_title(run.to_dict())
    records.write_history(folder, result)
    records.write_weights(folder, result)
    onset = None if pd.isna(run["first_nonfinite_step"]) else int(run["first_nonfinite_step"])
    figures.save(figures.loss_curve(result.history, title, onset), folder / "loss", lay_out_once=True, title=title)
    decides = LOSSES[run["loss"]]
    by_logit = decides.decided_by == "logit"
    predictions = plane(result.network(0), -MARGIN, 1 + MARGIN, GRID, return_logit=by_logit)
    boundary = figures.decision_boundary(predictions, (-MARGIN, 1 + MARGIN), decides.threshold, title)
    figures.save(boundary, folder / "boundary", lay_out_once=True, title=title)
    # The table last: where it is, everything else is.
    write_table(folder / records.RUNS, records.runs_table(result))
    if log == "axon":
        terminal.show_running_mean(result.history)
    else:
        terminal.show_epochs(result.epoch_losses.iloc[0])
    terminal.show_run(result, corner_predictions(result), sorted(folder.iterdir()))
    return result


Launch = Callable[[Path, str], list[str]]
"""(folder, identity of the plan) -> what was wrong with which job, as lines."""


class InterruptedSweep(Interrupted):
    """A sweep was interrupted; the message says what is kept and how to resume."""


def run_sweep(
    planned: Plan, folder: Path, config: str = "", shards: int | None = None, launch: Launch | None = None
) -> None:
    """Train what is missing of a plan in `folder`, and leave one table of all runs, with the recorded losses.

    Args:
        planned: the plan.
        folder: new, or of the same sweep.
        config: Hydra's configuration of the sweep, to be kept.
        shards: how many jobs `launch` makes.
        launch: trains all shards in jobs of their own; None trains in this process.

    Raises:
        StudyError: if something went wrong; what is finished is kept.
        InterruptedSweep: likewise.
    """
    collect_again()
    git_commit()  # cached now: the files may change while the sweep trains
    command, problems, begun = _command(folder), list[str](), False
    for sweep in rounds(planned, folder, shards):
        if planned.until is not None:
            sweep.parts.scan()
        if planned.until is None or not sweep.parts.done.all():
            notes = _begin(sweep, planned, command, config)
            terminal.show_notes([_further(sweep)] if begun else notes)
            begun = True
            with _kept(sweep, command):
                problems += _train(sweep, launch)
                _check_finished(sweep, problems)
    if not begun:
        terminal.show_notes(_begin(sweep, planned, command, config))
    with _kept(sweep, command):
        outcomes = sweep.merge(planned.format)
    terminal.show_notes([*problems, *([summary(sweep, planned.until)] if planned.until else [])])
    table = folder / FORMATS[planned.format]
    terminal.show_sweep(outcomes, planned.axes, str(table), records.hints(folder, command))


MULTIRUN = "multirun.yaml"


def _begin(sweep: Sweep, planned: Plan, command: str, config: str) -> list[str]:
    """Claim the folder, and return notes on its content and on the plan."""
    before = records.read_plan(sweep.folder)
    more = {
        "note": before.get("note") if planned.note is None else str(planned.note),
        "until": planned.until and described(planned.until),
    }
    notes = sweep.begin(command, planned.axes, {name: value for name, value in more.items() if value is not None})
    write_atomically(sweep.folder / MULTIRUN, lambda stream: stream.write(config.encode()))
    if planned.duplicates:
        given = len(planned.table) + planned.duplicates
        notes.insert(0, f"dropped {planned.duplicates} duplicate runs (of {given})")
    return [*planned.remarks, *notes]


def _further(sweep: Sweep) -> str:
    missing = ~sweep.parts.done
    cells = len(np.unique(np.cumsum(sweep.table["seed"] == 0)[missing]))
    return f"{int(missing.sum())} more runs, for {cells} cells whose intervals are too wide"


def _train(sweep: Sweep, launch: Launch | None) -> list[str]:
    """Train what is missing and return what was wrong with which job."""
    if launch is None:
        with terminal.progress_bar(len(sweep.table)) as follow, terminal.notes():
            sweep.train(follow)
    elif sweep.lost():
        with terminal.progress_bar(len(sweep.table)) as follow, sweep.watched(follow):
            return launch(sweep.folder, sweep.planned.identity)
    return []


def _check_finished(sweep: Sweep, problems: Sequence[str]) -> None:
    """Raise StudyError if runs are missing; it names the shards that were lost."""
    sweep.parts.scan()
    lost = sweep.lost()
    if lost:
        numbers = " and ".join(filter(None, [", ".join(map(str, lost[:-1])), str(lost[-1])]))
        names = f"shard{'s' * (len(lost) > 1)} {numbers} of {sweep.shards} did not finish"
        raise StudyError("; ".join([names, *problems]))


@contextlib.contextmanager
def _kept(sweep: Sweep, command: str) -> Iterator[None]:
    """Let an error or an interruption also say how many runs of the sweep are kept, and the command that resumes it."""

    def kept() -> str:
        sweep.parts.scan()
        done, runs = int(sweep.parts.done.sum()), len(sweep.table)
        return f"{done} of {runs} runs are kept in {sweep.folder}; to resume: {command}"

    try:
        yield
    except (StudyError, OSError) as error:
        raise StudyError(f"{one_line(error)}; {kept()}") from error
    except KeyboardInterrupt as error:
        number = signal_of(error)
        raise InterruptedSweep(f"{interruption(number)}; {kept()}", number=number) from error


def _command(folder: Path) -> str:
    """Return the command line that resumes a sweep: the one that was given, in this folder."""
    script = Path(sys.argv[0]).name
    own = ["xor-study"] if script == "xor-study" else ["python", "-m", "xor_study.run"]
    return folders.command_in(folder, [*own, *map(as_typed, sys.argv[1:])])


def run_shard(planned: Plan, folder: Path, shards: int, shard: int, identity: str) -> None:
    """Train one shard of a sweep that another process began.

    Args:
        planned: the plan, made on this host.
        folder: of the sweep.
        shards: how many there are.
        shard: which one, from 0.
        identity: of the runs of this round.

    Raises:
        StudyError: if the plan differs from the one that started the sweep, as with another version of this package, or
            if this host does not see the sweep's folder.
    """
    for sweep in rounds(planned, folder, shards):
        if sweep.planned.identity == identity:
            break
        if not records.read_plan(folder):
            sweep.check_shared()  # without the parts of earlier rounds, this one can't be known
        sweep.parts.scan()
        if planned.until is None or not sweep.parts.done.all():
            raise StudyError(
                f"{folder}: this host's plan differs from the one that started the sweep; "
                "check that package versions match"
            )
    sweep.check_shared()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        sweep.train(lambda progress: None, shard)


def dry_run(planned: Plan, folder: Path | None = None) -> None:
    """Say what a plan would run, about how long it takes and how large it gets, and what is done already.

    Args:
        planned: the plan.
        folder: where it would run; nothing is written there.
    """
    there = folder is not None and (folder / records.PLAN).exists()
    for sweep in rounds(planned, folder or Path(), planned.shards):
        if there:
            sweep.parts.scan()
        if not sweep.parts.done.all():
            break
    estimated = estimate(sweep.table, sweep.planned, planned.threads, sweep.parts.done)
    terminal.show_plan(estimated, sweep.planned, planned, folder if there else None)


def corner_predictions(result: Result) -> list[float]:
    """Return a single run's predictions of the four corners."""
    network = result.network(0)
    x1, x2 = torch.tensor(CORNERS).to(network.output.bias).T[..., None]
    with torch.no_grad():
        return [float(value) for value in network(x1, x2)[:, 0]]
