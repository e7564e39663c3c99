"""The links of the chain that ends in a run's failure, in the order in which they came about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.postmortem.explain import arithmetic, place_of, reason
from xor_study.postmortem.replay import Found, Replay
from xor_study.postmortem.words import each, number
from xor_study.training.corners import NAMES
from xor_study.training.outcome import threshold_losses

WINDOW, CLIMB, JUMP = 10, 1.5, 3.0
"""Steps that a loss is averaged over; by which factor it must have left its lowest mean; what is a jump of a logit."""

MOST_EVENTS = 5


@dataclass(frozen=True)
class Link:
    """One thing that happened.

    Attributes:
        name: what sort of thing it is, such as "climb" or "operation".
        step: when.
        text: what, in a sentence or two.
        values: the numbers of it.
    """

    name: str
    step: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def climb(loss: NDArray[np.float64]) -> int | None:
    """Return the first step from which a loss has left its low for good, or None if it never does.

    From there on the mean of the last 10 losses stays above 1.5 times the lowest such mean; a loss that is not finite
    is above it.
    """
    means = pd.Series(loss).rolling(WINDOW, min_periods=1).mean().to_numpy()
    means = np.where(np.isfinite(loss), means, np.inf)  # pandas passes over what is not finite
    if not np.isfinite(means).any():
        return None
    last = int(np.flatnonzero(means <= CLIMB * means.min())[-1])
    return last + 2 if last + 1 < len(means) else None


def chain(found: Found, again: Replay | None) -> list[Link]:
    """Return the links of a run that diverged or, with its replay, of one that is not finite in the end."""
    onset = again.onset if again is not None else None
    end = onset or found.onset or found.steps
    links = [start(found), *_wrong_sign(found), *_climb(found, end), *_jump(found, end)]
    if again is not None and onset is not None:
        links += [_state(found, again, onset), *mask(found, again.before[onset], found.present(onset), onset)]
        links += [*_events(found, again), _parameters(found, again, onset)]
    return sorted(links, key=lambda link: link.step)


def start(found: Found) -> Link:
    """Return where a run starts."""
    loss, constant = float(found.history["loss"].iloc[0]), threshold_loss(found)
    text = f"The loss is {number(loss)}; always answering with the threshold would cost {number(constant)}."
    return Link("start", 1, text, {"loss": loss, "threshold_loss": constant})


def threshold_loss(found: Found) -> float:
    """Return the mean loss of a network that always answers with the threshold."""
    return float(threshold_losses(found.cohort, np.array([0]))[0])


def _wrong_sign(found: Found) -> Iterator[Link]:
    spec, program = found.spec, found.cohort.program
    if spec.loss_logits_visible is not False or spec.loss_clip_gradient != "squared":
        return
    first = found.corners(found.cohort.initial(np.array([0]))[0])
    right = (first.prediction - program.target) / program.batch
    worst = int(torch.argmax(first.gradient.abs() * program.is_true))
    p, wrong, correct = (float(of[worst]) for of in (first.prediction, first.gradient, right))
    text = (
        "The loss does not see the logits and clips p; the clip's gradient is squared and so has lost its sign: at "
        f"corner {NAMES[worst]}, target 1 and p = {number(p)}, a sample's derivative by z is "
        f"{number(wrong)} where {number(correct)} is right. Every p is pushed to 0."
    )
    values = {"corner": NAMES[worst], "prediction": p, "gradient": wrong, "correct_gradient": correct}
    yield Link("sign", 1, text, values)


def _climb(found: Found, end: int) -> Iterator[Link]:
    loss = found.history["loss"].to_numpy()[:end]
    finite = loss[np.isfinite(loss)]
    step = climb(loss)
    if not len(finite):
        return
    low, latest = float(pd.Series(finite).rolling(WINDOW, min_periods=1).mean().min()), float(finite[-1])
    if step is None or step >= end:
        text = f"The loss has given no warning: at its last finite step it is {number(latest)}."
        yield Link("no_warning", len(finite), text, {"loss": latest, "lowest": low})
        return
    text = (
        f"The loss starts to climb: from here on the mean of {WINDOW} steps stays above {CLIMB:g} times its lowest, "
        f"{number(low)}. It comes to {number(latest)} at step {len(finite):,}."
    )
    yield Link("climb", step, text, {"lowest": low, "loss": float(loss[step - 1]), "last": latest})


def _jump(found: Found, end: int) -> Iterator[Link]:
    """Yield the last update before the end, where it made the largest logit several times as large."""
    if found.onset is None or end < 2 or end > found.steps:
        return
    before, after = (float(v) for v in found.history["max_abs_logit"].to_numpy(np.float64)[end - 2 : end])
    if not after > JUMP * before:
        return
    norm = float(found.history["grad_norm"].to_numpy()[end - 2])
    text = (
        f"The gradient has grown to norm {number(norm)}. With rate {found.spec.lr:g} this one update takes the largest "
        f"|z| from {number(before)} to {number(after)}."
    )
    yield Link("jump", end - 1, text, {"grad_norm": norm, "logit_before": before, "logit_after": after})


def _state(found: Found, again: Replay, onset: int) -> Link:
    now, present = found.corners(again.before[onset]), found.present(onset)
    names = [name for name, there in zip(NAMES, present, strict=True) if there]
    logits, predictions = now.logit[present], now.prediction[present]
    losses = now.loss[present]
    text = (
        f"Before this update {each('z', logits, names)}, and {each('p', predictions, names)}. "
        f"{each('A sample costs', losses, names, verb=False)}."
    )
    return Link("state", onset, text, _by_corner(names, logit=logits, prediction=predictions, loss=losses))


def _by_corner(names: list[str], **values: Tensor) -> dict[str, Any]:
    return {key: dict(zip(names, map(float, value), strict=True)) for key, value in values.items()}


def mask(found: Found, parameters: Tensor, present: Tensor, step: int) -> Iterator[Link]:
    """Yield that a clip of p hands down no gradient, if with some parameters it doesn't at a corner that is present."""
    eps = {"axon_binary_cross_entropy": 1e-7, "binary_cross_entropy_clipped": found.spec.loss_eps}.get(found.spec.loss)
    if eps is None or found.spec.loss_logits_visible is True:
        return
    masked = present & (found.corners(parameters).upstream == 0)
    if not masked.any():
        return
    names = [name for name, there in zip(NAMES, masked, strict=True) if there]
    which = "every corner of the batch" if bool((masked == present).all()) else "corner " + ", ".join(names)
    text = f"p is outside [{eps:g}, 1 - {eps:g}], so the clip's mask has made the upstream gradient 0 at {which}."
    yield Link("mask", step, text, {"corners": names, "eps": eps})


def _events(found: Found, again: Replay) -> Iterator[Link]:
    for place, event in enumerate(again.report.events[:MOST_EVENTS]):
        step = event.step + again.first - 1
        where = place_of(event)
        text = f"{event.phase.capitalize()}: {arithmetic(event)}{f', at {where}' if where else ''}."
        why = reason(event, found.spec)
        values = {
            "operation": event.operation,
            "phase": event.phase,
            "kind": event.kind,
            "where": where,
            "code": event.code,
            "inputs": [str(summary) for summary in event.inputs],
            "outputs": [str(summary) for summary in event.outputs],
        }
        yield Link("operation" if place == 0 else "consequence", step, f"{text} {why}".strip(), values)


def _parameters(found: Found, again: Replay, onset: int) -> Link:
    """Return how what is not finite spreads over the parameters."""
    counts = {step - 1: int((~torch.isfinite(flat)).sum()) for step, flat in again.before.items() if step > onset}
    width = len(next(iter(again.before.values())))
    hit = {step: count for step, count in counts.items() if count}
    if not hit:
        return Link("parameters", onset, f"All {width} parameters are still finite {len(counts)} steps later.", {})
    first, count = next(iter(hit.items()))
    text = f"The update leaves {count if count < width else 'all'} {f'of {width} ' if count < width else f'{width} '}"
    nan = int(torch.isnan(again.before[first + 1]).sum())
    text += "parameters NaN" if nan == count else "parameters not finite"
    whole = next((step for step, hits in hit.items() if hits == width), None)
    text += f"; all are from step {whole:,} on." if whole and whole != first else "."
    loss = found.history["loss"]
    if again.onset == found.onset and not np.isfinite(loss.iloc[-1]):
        text += f" The loss is not finite from step {loss.index[~np.isfinite(loss)][0]:,} on."
    return Link("parameters", first, text, {"not_finite": {str(s): c for s, c in counts.items()}, "parameters": width})
