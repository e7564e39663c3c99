"""How a run that stays finite ends: solved, diverged, or stuck, and what it is stuck on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from xor_study.postmortem.chain import Link, chain, mask, start, threshold_loss
from xor_study.postmortem.explain import each, number
from xor_study.postmortem.replay import TrainedRun, optional
from xor_study.training.corners import NAMES, Corners
from xor_study.training.outcome import tail_length

SATURATED = 0.01
"""A unit is saturated if its derivative is below this at every corner: it passes almost no gradient back."""

ALIKE = 1e-5
"""Units are identical if their incoming weights and biases differ by no more than this."""


def finite_chain(run: TrainedRun) -> list[Link]:
    """Return the links of a run that stays finite."""
    final = nn.utils.parameters_to_vector(run.result.network(0).parameters()).detach()
    end = run.corners(final)
    if run.outcome == "solved":
        return [start(run), _solved(run, end)]
    links = [start(run)]
    if run.outcome == "diverged":
        everywhere = torch.ones(len(NAMES), dtype=torch.bool)
        links = [*chain(run, None), _diverged(run), *mask(run, final, everywhere, run.steps + 1)]
    return [
        *links,
        _wrong(run, end),
        *_units(run, end),
        *_identical(run),
        _gradient(run, final),
        _course(run),
    ]


def dead(state: Corners) -> Tensor:
    """Return which hidden units give 0 with derivative 0 at every corner, boolean of shape (width,)."""
    return ((state.hidden == 0) & (state.hidden_slope == 0)).all(0)


def saturated(state: Corners) -> Tensor:
    """Return which hidden units are saturated but not dead, boolean of shape (width,)."""
    return (state.hidden_slope.abs() < SATURATED).all(0) & ~dead(state)


def _solved(run: TrainedRun, end: Corners) -> Link:
    loss = run.cohort.program.loss
    score = end.logit if loss.decided_by == "logit" else end.prediction
    distance = (score - loss.threshold).abs()
    step = optional(run.result.runs["solved_step"].iloc[0]) or run.steps + 1
    least = int(distance.argmin())
    what = "z" if loss.decided_by == "logit" else "p"
    text = (
        f"All four corners are right from here on. In the end {each(what, score, NAMES)}: the nearest to the threshold "
        f"{loss.threshold:g} is corner {NAMES[least]}, at a distance of {number(float(distance[least]))}."
    )
    values = {"margin": float(distance[least]), "corner": NAMES[least], "score": _named(score)}
    return Link("solved", step, text, values)


def _named(values: Tensor) -> dict[str, float]:
    return dict(zip(NAMES, map(float, values), strict=True))


def _diverged(run: TrainedRun) -> Link:
    tail = run.history["loss"].to_numpy()[-tail_length(run.steps) :]
    mean, constant = float(np.mean(tail)), threshold_loss(run)
    text = (
        f"Diverged, though finite: the mean loss of the last tenth of the steps is {number(mean)}, above 2 x "
        f"{number(constant)}."
    )
    return Link("diverged", run.steps, text, {"tail_loss": mean, "threshold_loss": constant})


def _wrong(run: TrainedRun, end: Corners) -> Link:
    names = [name for name, right in zip(NAMES, end.right, strict=True) if not right]
    text = (
        f"{len(names) or 'No'} of the four corners {'is' if len(names) == 1 else 'are'} on the wrong side"
        + (f" ({', '.join(names)})" if names else "")
        + f": {each('z', end.logit, NAMES)}, and {each('p', end.prediction, NAMES)}."
    )
    values = {"wrong": names, "logit": _named(end.logit), "prediction": _named(end.prediction)}
    return Link("wrong", run.steps + 1, text, values)


def _units(run: TrainedRun, end: Corners) -> Iterator[Link]:
    width, before = run.spec.hidden, run.corners(run.cohort.initial(np.array([0]))[0])
    for name, judge, meaning in (
        ("dead", dead, "0 with derivative 0 at all four corners, so no gradient passes to their weights"),
        ("saturated", saturated, f"a derivative below {SATURATED:g} at all four corners, so almost no gradient passes"),
    ):
        count, first = int(judge(end).sum()), int(judge(before).sum())
        if count:
            verb = "is" if count == 1 else "are"
            text = f"{count} of {width} hidden units {verb} {name}: {meaning} ({first} at the start)."
            yield Link(name, run.steps + 1, text, {"units": count, "at_start": first, "width": width})


def _identical(run: TrainedRun) -> Iterator[Link]:
    network, width = run.result.network(0), run.spec.hidden
    rows = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], 1).detach().double()  # (width, 3)
    distance = torch.cdist(rows, rows, p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist")
    distinct = width - int((distance.tril(-1) + torch.ones(width, width).triu() <= ALIKE).any(1).sum())
    if distinct < width:
        text = f"Of the {width} hidden units only {distinct} differ: units that start equal get equal gradients."
        if distinct == 1:
            text = (
                f"All {width} hidden units are equal: they start equal, get equal gradients and stay equal. "
                "The network has in effect one hidden unit."
            )
        yield Link("identical", run.steps + 1, text, {"distinct": distinct, "width": width})


def gradient_norm(run: TrainedRun, parameters: Tensor) -> float:
    """Return the norm of the gradient of the mean loss over the four corners, each counted once.

    Args:
        run: the run.
        parameters: the network's, shape (width,).
    """
    program = run.cohort.program
    leaf = parameters.detach().clone().requires_grad_(True)
    logit = program.logit(program.named(leaf))
    prediction = program.network.output_activation(logit)
    losses = program.loss.per_sample(logit, prediction, program.target, **run.arguments["loss"])
    (gradient,) = torch.autograd.grad(losses.mean(), leaf)
    return float(torch.linalg.vector_norm(gradient.double()))


def _gradient(run: TrainedRun, final: Tensor) -> Link:
    first = gradient_norm(run, run.cohort.initial(np.array([0]))[0])
    last = gradient_norm(run, final)
    vanished = last < 1e-3 * first
    text = f"The gradient over the four corners has norm {number(last)} ({number(first)} at the start)"
    text += ": it has vanished." if vanished else "."
    return Link("gradient", run.steps + 1, text, {"norm": last, "norm_at_start": first, "vanished": vanished})


def _course(run: TrainedRun) -> Link:
    loss, tail = run.history["loss"].to_numpy(), tail_length(run.steps)
    last = float(loss[-tail:].mean())
    before = float(loss[-2 * tail : -tail].mean()) if run.steps > 1 else math.nan
    means = f"its mean over the last tenth of the steps is {number(last)}, and {number(before)} over the tenth before"
    if last < 0.99 * before:
        text = f"The loss is still falling: {means}."
    elif last > 1.01 * before:
        text = f"The loss is rising: {means}."
    else:
        constant = number(threshold_loss(run))
        text = f"The loss stays at {number(last)}; a network that always answers with the threshold has {constant}."
    return Link("course", run.steps + 1, text, {"last_tenth": last, "tenth_before": before})
