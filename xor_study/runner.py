"""What the command line does once its plan is checked: train, write the results into a folder, say what came of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xor_study import figures, records, terminal
from xor_study.data import CORNERS
from xor_study.engines import Result, train_table
from xor_study.losses import LOSSES
from xor_study.outcome import Detail

GRID, MARGIN = 200, 0.25
"""Points along each axis of the decision boundary's picture, and how far it reaches beyond the corners."""


def run_one(
    table: pd.DataFrame, engine: str, device: str, threads: int | None, folder: Path, log: str = "epochs"
) -> Result:
    """Train a single run and leave history, table, weights and pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records.git_commit()  # asked now, while the files are those that were loaded
    with terminal.progress_bar(1) as follow, terminal.notes():
        detail = Detail(every_step=True)
        result = train_table(table, detail, engine=engine, device=device, threads=threads, progress=follow)
    assert result.history is not None
    run = result.runs.iloc[0]
    title = f"{run['optimizer']}, lr {run['lr']:g}, seed {run['seed']}: {run['outcome']}"
    records.write_history(folder, result)
    records.write_weights(folder, result)
    figures.save(figures.loss_curve(result.history, title), folder / "loss")
    decides = LOSSES[run["loss"]]
    predictions = plane(result, return_logit=decides.decided_by == "logit")
    boundary = figures.decision_boundary(predictions, (-MARGIN, 1 + MARGIN), decides.threshold, title)
    figures.save(boundary, folder / "boundary")
    records.write_table(folder / records.RUNS, records.runs_table(result))
    if log == "axon":
        terminal.show_running_mean(result.history)
    else:
        terminal.show_epochs(result.epoch_losses.iloc[0])
    terminal.show_run(result, corner_predictions(result), sorted(folder.iterdir()))
    return result


def run_sweep(
    table: pd.DataFrame,
    axes: tuple[str, ...],
    engine: str,
    device: str,
    threads: int | None,
    folder: Path,
    duplicates: int = 0,
) -> Result:
    """Train all runs of a plan and leave one table of them, with the recorded losses, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records.git_commit()  # asked now, while the files are those that were loaded
    if duplicates:
        terminal.console().print(f"note: {duplicates} of {len(table) + duplicates} runs stood twice and run once")
    with terminal.progress_bar(len(table)) as follow, terminal.notes():
        result = train_table(table, Detail(), engine=engine, device=device, threads=threads, progress=follow)
    records.write_result(folder, result)
    terminal.show_sweep(result.runs, axes, folder / records.RUNS)
    return result


def corner_predictions(result: Result) -> list[float]:
    """Return a single run's predictions of the four corners."""
    network = result.network(0)
    x1, x2 = torch.tensor(CORNERS).to(network.output.bias).T[..., None]
    with torch.no_grad():
        return [float(value) for value in network(x1, x2)[:, 0]]


def plane(result: Result, *, return_logit: bool) -> np.ndarray:
    """Return a single run's predictions, or logits, over the plane around the corners: rows by x2, columns by x1."""
    network = result.network(0)
    line = torch.linspace(-MARGIN, 1 + MARGIN, GRID).to(network.output.bias)
    x2, x1 = (axis.reshape(-1, 1) for axis in torch.meshgrid(line, line, indexing="ij"))
    with torch.no_grad():
        values: torch.Tensor = network(x1, x2, return_logit=return_logit)
    return values.reshape(GRID, GRID).double().numpy()
