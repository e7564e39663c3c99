"""The links of the chain that ends in a run's failure, in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.analysis import axon
from xor_study.autopsy import Event
from xor_study.model.gradients import AXON_EPSILON
from xor_study.model.losses import binary_cross_entropy_clipped
from xor_study.postmortem.explain import arithmetic, each, location, number, reason
from xor_study.postmortem.replay import Replay, TrainedRun
from xor_study.training.corners import NAMES
from xor_study.training.outcome import threshold_losses

WINDOW, CLIMB, JUMP = 10, 1.5, 3.0
"""Steps in a mean of the loss; the factor over the lowest mean that is a climb, and over a logit that is a jump."""

MOST_EVENTS = 5


@dataclass(frozen=True)
class Link:
    """One thing that happened.

    Attributes:
        name: its sort, such as "climb" or "operation".
        step: when, from 1.
        text: what, in a sentence or two.
        values: the numbers behind the text.
    """

    name: str
    step: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def climb(loss: NDArray[np.float64]) -> int | None:
    """Return the first step from which a loss stays above its low, or None if it never does.

    From there on the mean of the last 10 losses is always above 1.5 times the lowest such mean; a loss that is not
    finite counts as above it.

    Args:
        loss: of each step, shape (steps,).
    """
    means = pd.Series(loss).rolling(WINDOW, min_periods=1).mean().to_numpy()
    means = np.where(np.isfinite(loss), means, np.inf)  # pandas leaves NaN out of its means
    if not np.isfinite(means).any():
        return None
    last = int(np.flatnonzero(means <= CLIMB * means.min())[-1])
    return last + 2 if last + 1 < len(means) else None


def chain(run: TrainedRun, replay: Replay | None) -> list[Link]:
    """Return the links of a run that diverged or, with its replay, of one that stopped being finite."""
    onset = replay.onset if replay is not None else None
    end = onset or run.onset or run.steps
    links = [start(run), *_wrong_sign(run), *_climb(run, end), *_jump(run, end)]
    if replay is not None and onset is not None:
        links += [_state(run, replay, onset), *mask(run, replay.before[onset], run.present(onset), onset)]
        links += [*_events(run, replay), _parameters(run, replay, onset)]
    return sorted(links, key=lambda link: link.step)


def start(run: TrainedRun) -> Link:
    """Return the link with the loss at the start."""
    loss, constant = float(run.history["loss"].iloc[0]), threshold_loss(run)
    text = f"The loss is {number(loss)}; a network that always answers with the threshold has {number(constant)}."
    return Link("start", 1, text, {"loss": loss, "threshold_loss": constant})


def threshold_loss(run: TrainedRun) -> float:
    """Return the mean loss of a network that always answers with the threshold."""
    return float(threshold_losses(run.cohort, np.array([0]))[0])


def _wrong_sign(run: TrainedRun) -> Iterator[Link]:
    spec, program = run.spec, run.cohort.program
    if not axon.squared(spec):
        return
    first = run.corners(run.cohort.initial(np.array([0]))[0])
    right = (first.prediction - program.target) / program.batch
    worst = int(torch.argmax(first.gradient.abs() * program.is_true))
    p, wrong, correct = (float(of[worst]) for of in (first.prediction, first.gradient, right))
    clips = "does not see the logits and clips p" if spec.loss_logits_visible is False else "clips p"
    text = (
        f"The loss {clips}. The clip's gradient is squared, so its sign is lost: at "
        f"corner {NAMES[worst]}, with target 1 and p = {number(p)}, a sample's derivative with respect to z is "
        f"{number(wrong)} instead of {number(correct)}. Every p is pushed to 0."
    )
    values = {"corner": NAMES[worst], "prediction": p, "gradient": wrong, "correct_gradient": correct}
    yield Link("sign", 1, text, values)


def _climb(run: TrainedRun, end: int) -> Iterator[Link]:
    loss = run.history["loss"].to_numpy()[:end]
    finite = loss[np.isfinite(loss)]
    step = climb(loss)
    if not len(finite):
        return
    low, latest = float(pd.Series(finite).rolling(WINDOW, min_periods=1).mean().min()), float(finite[-1])
    if step is None or step >= end:
        text = f"The loss gives no warning: at its last finite step it is {number(latest)}."
        yield Link("no_warning", len(finite), text, {"loss": latest, "lowest": low})
        return
    text = (
        f"The loss starts to climb: from here on the mean of {WINDOW} steps stays above {CLIMB:g} times its lowest, "
        f"{number(low)}. It reaches {number(latest)} at step {len(finite):,}."
    )
    yield Link("climb", step, text, {"lowest": low, "loss": float(loss[step - 1]), "last": latest})


def _jump(run: TrainedRun, end: int) -> Iterator[Link]:
    """Yield the last update before the end, where it made the largest logit several times as large."""
    if run.onset is None or end < 2 or end > run.steps:
        return
    before, after = (float(v) for v in run.history["max_abs_logit"].to_numpy(np.float64)[end - 2 : end])
    if not after > JUMP * before:
        return
    norm = float(run.history["grad_norm"].to_numpy()[end - 2])
    text = (
        f"The norm of the gradient has grown to {number(norm)}. With learning rate {run.spec.lr:g} this one update "
        f"takes the largest |z| from {number(before)} to {number(after)}."
    )
    yield Link("jump", end - 1, text, {"grad_norm": norm, "logit_before": before, "logit_after": after})


def _state(run: TrainedRun, replay: Replay, onset: int) -> Link:
    now, present = run.corners(replay.before[onset]), run.present(onset)
    names = [name for name, there in zip(NAMES, present, strict=True) if there]
    logits, predictions = now.logit[present], now.prediction[present]
    losses = now.loss[present]
    text = (
        f"Before this update {each('z', logits, names)}, and {each('p', predictions, names)}. "
        f"{each('The loss of a sample is', losses, names, verb=False)}."
    )
    return Link("state", onset, text, _by_corner(names, logit=logits, prediction=predictions, loss=losses))


def _by_corner(names: list[str], **values: Tensor) -> dict[str, Any]:
    return {key: dict(zip(names, map(float, value), strict=True)) for key, value in values.items()}


def mask(run: TrainedRun, parameters: Tensor, present: Tensor, step: int) -> Iterator[Link]:
    """Yield that a loss's clip of p blocks the gradient, if it does so at a corner of the batch.

    Args:
        run: the run.
        parameters: the network's, shape (width,).
        present: whether each corner is in the batch, boolean of shape (4,).
        step: the link's.
    """
    clips = {axon.LOSS: AXON_EPSILON, binary_cross_entropy_clipped.__name__: run.spec.loss_eps}
    eps = clips.get(run.spec.loss)
    if eps is None or run.spec.loss_logits_visible is True:
        return
    masked = present & (run.corners(parameters).upstream == 0)
    if not masked.any():
        return
    names = [name for name, there in zip(NAMES, masked, strict=True) if there]
    which = "every corner of the batch" if bool((masked == present).all()) else "corner " + ", ".join(names)
    text = f"p is outside [{eps:g}, 1 - {eps:g}], so the clip sets the upstream gradient to 0 at {which}."
    yield Link("mask", step, text, {"corners": names, "eps": eps})


def _events(run: TrainedRun, replay: Replay) -> Iterator[Link]:
    for index, event in enumerate(replay.report.events[:MOST_EVENTS]):
        where, why = location(event), reason(event, run.spec)
        text = f"{event.phase.capitalize()}: {arithmetic(event)}{f', at {where}' if where else ''}. {why}"
        name = "operation" if index == 0 else "consequence"
        yield Link(name, event.step + replay.first - 1, text.strip(), _values(event, where))


def _values(event: Event, where: str | None) -> dict[str, Any]:
    return {
        "operation": event.operation,
        "phase": event.phase,
        "kind": event.kind,
        "where": where,
        "code": event.code,
        "inputs": list(map(str, event.inputs)),
        "outputs": list(map(str, event.outputs)),
    }


def _parameters(run: TrainedRun, replay: Replay, onset: int) -> Link:
    """Return how non-finite values spread over the parameters."""
    counts = {step - 1: int((~torch.isfinite(flat)).sum()) for step, flat in replay.before.items() if step > onset}
    width = len(replay.before[replay.first])
    first = next((step for step, count in counts.items() if count), None)
    if first is None:
        return Link("parameters", onset, f"All {width} parameters are still finite {len(counts)} steps later.", {})
    count, nan = counts[first], int(torch.isnan(replay.before[first + 1]).sum())
    share = f"{count} of {width}" if count < width else f"all {width}"
    text = f"The update leaves {share} parameters {'NaN' if nan == count else 'not finite'}"
    whole = next((step for step, hits in counts.items() if hits == width), first)
    text += f"; all are from step {whole:,} on." if whole != first else "."
    loss = run.history["loss"]
    if replay.onset == run.onset and not np.isfinite(loss.iloc[-1]):
        text += f" The loss is not finite from step {loss.index[~np.isfinite(loss)][0]:,} on."
    values = {"not_finite": {str(step): count for step, count in counts.items()}, "parameters": width}
    return Link("parameters", first, text, values)
