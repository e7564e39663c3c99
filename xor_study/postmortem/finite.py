"""How a run stands that is finite to the end: solved, diverged, or stuck, and what it is stuck on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from xor_study.postmortem.chain import Link, chain, mask, start, threshold_loss
from xor_study.postmortem.replay import Found, optional
from xor_study.postmortem.words import each, number
from xor_study.training.corners import NAMES, Corners
from xor_study.training.outcome import tail_length

SATURATED = 0.01
"""A unit whose derivative is below this at every corner hands almost nothing back."""

ALIKE = 1e-5
"""Units whose incoming weights and bias differ by no more than this compute the same."""


def standing(found: Found) -> list[Link]:
    """Return the links of a run that is finite to the end."""
    final = nn.utils.parameters_to_vector(found.result.network(0).parameters()).detach()
    end = found.corners(final)
    if found.outcome == "solved":
        return [start(found), _solved(found, end)]
    links = [start(found)]
    if found.outcome == "diverged":
        everywhere = torch.ones(len(NAMES), dtype=torch.bool)
        links = [*chain(found, None), _diverged(found), *mask(found, final, everywhere, found.steps + 1)]
    return [
        *links,
        _wrong(found, end),
        *_units(found, end),
        *_identical(found),
        _gradient(found, final),
        _course(found),
    ]


def dead(state: Corners) -> Tensor:
    """Return which hidden units give 0 with derivative 0 at every corner, boolean of shape (width,)."""
    return ((state.hidden == 0) & (state.hidden_slope == 0)).all(0)


def saturated(state: Corners) -> Tensor:
    """Return which hidden units that are not dead have hardly a derivative at any corner, shape (width,)."""
    return (state.hidden_slope.abs() < SATURATED).all(0) & ~dead(state)


def _solved(found: Found, end: Corners) -> Link:
    loss = found.cohort.program.loss
    score = end.logit if loss.decided_by == "logit" else end.prediction
    distance = (score - loss.threshold).abs()
    step = optional(found.result.runs["solved_step"].iloc[0]) or found.steps + 1
    least = int(distance.argmin())
    what = "z" if loss.decided_by == "logit" else "p"
    text = (
        f"All four corners are right from here on. In the end {each(what, score, NAMES)}: the nearest to the threshold "
        f"{loss.threshold:g} is corner {NAMES[least]}, {number(float(distance[least]))} away."
    )
    values = {"margin": float(distance[least]), "corner": NAMES[least], "score": _named(score)}
    return Link("solved", step, text, values)


def _named(values: Tensor) -> dict[str, float]:
    return dict(zip(NAMES, map(float, values), strict=True))


def _diverged(found: Found) -> Link:
    tail = found.history["loss"].to_numpy()[-tail_length(found.steps) :]
    mean, constant = float(np.mean(tail)), threshold_loss(found)
    text = f"Diverged, though finite: the mean loss of the last tenth is {number(mean)}, above 2 x {number(constant)}."
    return Link("diverged", found.steps, text, {"tail_loss": mean, "threshold_loss": constant})


def _wrong(found: Found, end: Corners) -> Link:
    names = [name for name, right in zip(NAMES, end.right, strict=True) if not right]
    text = (
        f"{len(names) or 'No'} of the four corners {'is' if len(names) == 1 else 'are'} on the wrong side"
        + (f" ({', '.join(names)})" if names else "")
        + f": {each('z', end.logit, NAMES)}, and {each('p', end.prediction, NAMES)}."
    )
    values = {"wrong": names, "logit": _named(end.logit), "prediction": _named(end.prediction)}
    return Link("wrong", found.steps + 1, text, values)


def _units(found: Found, end: Corners) -> Iterator[Link]:
    width, before = found.spec.hidden, found.corners(found.cohort.initial(np.array([0]))[0])
    for name, judge, meaning in (
        ("dead", dead, "0 with derivative 0 at all four corners, so no gradient reaches what feeds them"),
        ("saturated", saturated, f"a derivative below {SATURATED:g} at all four corners, so hardly a gradient passes"),
    ):
        count, first = int(judge(end).sum()), int(judge(before).sum())
        if count:
            verb = "is" if count == 1 else "are"
            text = f"{count} of {width} hidden units {verb} {name}: {meaning} ({first} at the start)."
            yield Link(name, found.steps + 1, text, {"units": count, "at_start": first, "width": width})


def _identical(found: Found) -> Iterator[Link]:
    network, width = found.result.network(0), found.spec.hidden
    rows = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], 1).detach().double()  # (width, 3)
    distance = torch.cdist(rows, rows, p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist")
    distinct = width - int((distance.tril(-1) + torch.ones(width, width).triu() <= ALIKE).any(1).sum())
    if distinct < width:
        text = f"Of the {width} hidden units only {distinct} differ: units that start alike get the same gradient."
        if distinct == 1:
            text = (
                f"All {width} hidden units are the same: they start alike, get the same gradient and stay alike. "
                "The network is as good as one unit wide."
            )
        yield Link("identical", found.steps + 1, text, {"distinct": distinct, "width": width})


def gradient_norm(found: Found, parameters: Tensor) -> float:
    """Return the norm of the gradient of the mean loss over the four corners, each once."""
    program = found.cohort.program
    leaf = parameters.detach().clone().requires_grad_(True)
    logit = program.logit(program.named(leaf))
    prediction = program.network.output_activation(logit)
    losses = program.loss.per_sample(logit, prediction, program.target, **found.own["loss"])
    (gradient,) = torch.autograd.grad(losses.mean(), leaf)
    return float(torch.linalg.vector_norm(gradient.double()))


def _gradient(found: Found, final: Tensor) -> Link:
    first = gradient_norm(found, found.cohort.initial(np.array([0]))[0])
    last = gradient_norm(found, final)
    vanished = last < 1e-3 * first
    text = f"The gradient over the four corners has norm {number(last)}, {number(first)} at the start"
    text += ": it has vanished." if vanished else "."
    return Link("gradient", found.steps + 1, text, {"norm": last, "norm_at_start": first, "vanished": vanished})


def _course(found: Found) -> Link:
    loss, tail = found.history["loss"].to_numpy(), tail_length(found.steps)
    last, before = (
        float(loss[-tail:].mean()),
        float(loss[-2 * tail : -tail].mean()) if found.steps > 1 else float("nan"),
    )
    if last < 0.99 * before:
        how = f"is still falling: {number(before)} before, {number(last)} in the last tenth of the steps"
    elif last > 1.01 * before:
        how = f"is rising: {number(before)} before, {number(last)} in the last tenth of the steps"
    else:
        how = (
            f"stands still at {number(last)}; always answering with the threshold costs {number(threshold_loss(found))}"
        )
    return Link("course", found.steps + 1, f"The loss {how}.", {"last_tenth": last, "tenth_before": before})
