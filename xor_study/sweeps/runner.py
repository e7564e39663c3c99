"""What the command line does with a checked plan: train, write the results into a folder, print a summary."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from xor_study.engines import FallbackWarning, train_table
from xor_study.engines.results import Result
from xor_study.errors import StudyError, one_line
from xor_study.files import write_atomically, write_table
from xor_study.model.data import CORNERS
from xor_study.model.losses import LOSSES
from xor_study.model.network import plane
from xor_study.sweeps import folders, records, terminal
from xor_study.sweeps.chunks import chunked, estimate
from xor_study.sweeps.plan import Plan
from xor_study.sweeps.provenance import git_commit
from xor_study.sweeps.sweep import Sweep
from xor_study.training.outcome import Detail
from xor_study.training.table import run_ids

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


class InterruptedSweep(KeyboardInterrupt):
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
    sweep = Sweep(planned.table, planned.engine, planned.device, planned.threads, folder, shards)
    collect_again()
    git_commit()  # cached now: the files may change while the sweep trains
    command = _command(folder)
    notes = sweep.begin(command, planned.axes)
    write_atomically(folder / MULTIRUN, lambda stream: stream.write(config.encode()))
    if planned.duplicates:
        given = len(planned.table) + planned.duplicates
        notes.insert(0, f"dropped {planned.duplicates} duplicate runs (of {given})")
    terminal.show_notes(notes)
    problems: list[str] = []
    try:
        if launch is None:
            with terminal.progress_bar(len(planned.table)) as follow, terminal.notes():
                sweep.train(follow)
        elif sweep.lost():
            with terminal.progress_bar(len(planned.table)) as follow, sweep.watched(follow):
                problems = launch(folder, sweep.planned.identity)
        runs = _merge(sweep, problems)
    except (StudyError, OSError) as error:
        raise StudyError(f"{one_line(error)}; {_kept(sweep, command)}") from error
    except KeyboardInterrupt as error:
        raise InterruptedSweep(f"interrupted; {_kept(sweep, command)}") from error
    terminal.show_notes(problems)
    terminal.show_sweep(runs, planned.axes, folder / records.RUNS, records.hints(folder, command))


MULTIRUN = "multirun.yaml"


def _merge(sweep: Sweep, problems: Sequence[str]) -> pd.DataFrame:
    """Return the table of all runs, written.

    Raises:
        StudyError: if runs are missing; it names the shards that were lost.
    """
    sweep.parts.scan()
    lost = sweep.lost()
    if lost:
        numbers = " and ".join(filter(None, [", ".join(map(str, lost[:-1])), str(lost[-1])]))
        names = f"shard{'s' * (len(lost) > 1)} {numbers} of {sweep.shards} did not finish"
        raise StudyError("; ".join([names, *problems]))
    return sweep.merge()


def _kept(sweep: Sweep, command: str) -> str:
    """Return how many runs of an unfinished sweep are kept, and the command that resumes it."""
    sweep.parts.scan()
    done, runs = int(sweep.parts.done.sum()), len(sweep.table)
    return f"{done} of {runs} runs are kept in {sweep.folder}; to resume: {command}"


def _command(folder: Path) -> str:
    """Return the command line that resumes a sweep: the one that was given, in this folder."""
    script = Path(sys.argv[0]).name
    own = ["xor-study"] if script == "xor-study" else ["python", "-m", "xor_study.run"]
    return folders.command_in(folder, [*own, *sys.argv[1:]])


def run_shard(sweep: Sweep, shard: int, identity: str) -> None:
    """Train one shard of a sweep that another process began.

    Raises:
        StudyError: if the plan differs from the one that started the sweep, as with another version of this package.
    """
    if sweep.planned.identity != identity:
        raise StudyError(
            f"{sweep.folder}: this host's plan differs from the one that started the sweep; "
            "check that package versions match"
        )
    sweep.parts.scan()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        sweep.train(lambda progress: None, shard)


def dry_run(planned: Plan) -> None:
    """Say what a plan would run, about how long it takes and how large it gets."""
    ids = run_ids(planned.table).to_numpy().astype("S20")
    found = chunked(planned.table, ids, planned.engine, planned.device, planned.shards)
    terminal.show_plan(estimate(planned.table, found, planned.threads), found, planned.axes, planned.duplicates)


def corner_predictions(result: Result) -> list[float]:
    """Return a single run's predictions of the four corners."""
    network = result.network(0)
    x1, x2 = torch.tensor(CORNERS).to(network.output.bias).T[..., None]
    with torch.no_grad():
        return [float(value) for value in network(x1, x2)[:, 0]]
