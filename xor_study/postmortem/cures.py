"""What would have prevented a failure: the run repeated with one setting changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xor_study.analysis import axon
from xor_study.analysis.statistics import wilson
from xor_study.errors import show
from xor_study.model import losses
from xor_study.model.losses import LOSSES
from xor_study.model.optimizers import OPTIMIZERS
from xor_study.postmortem.chain import Link
from xor_study.postmortem.replay import Settings, TrainedRun, compiles, optional, trained
from xor_study.training.outcome import OUTCOMES, Detail
from xor_study.training.spec import RunSpec, key_of
from xor_study.training.table import table_of

SEEDS = 100
"""Runs of each switch, with seeds from 0, if lanes can train them."""


@dataclass(frozen=True)
class Share:
    """The number of runs with one outcome, of `n`, with Wilson's 95 % interval of their share."""

    count: int
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Cure:
    """A run with one switch, and its outcome.

    Attributes:
        switch: as on the command line; empty for the run without a change.
        link: the link of the chain that it is meant to break; None for the run without a change.
        outcome: of the run with its seed.
        first_nonfinite_step, solved_step: of the run with its seed.
        prevents: "failure" (the run is solved), "NaN", "divergence", or "nothing".
        shares: of each outcome over some seeds; None if these were not run.
    """

    switch: str
    link: str | None
    outcome: str
    first_nonfinite_step: int | None
    solved_step: int | None
    prevents: str
    shares: dict[str, Share] | None


Candidate = tuple[tuple[str, ...], dict[str, Any]]
"""The links that a switch may break (the first that the chain has counts), and the fields that it sets."""

_WIDER: dict[str, tuple[str, ...]] = {
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float32",),
    "float32": ("float64",),
    "float64": (),
}
_HIDDEN = ("tanh", "leaky_relu")
_NAIVE = losses.binary_cross_entropy_naive.__name__
_GUARDED = (
    losses.binary_cross_entropy_with_logits.__name__,
    losses.binary_cross_entropy.__name__,
    losses.binary_cross_entropy_clipped.__name__,
)


def candidates(spec: RunSpec, links: Sequence[Link]) -> Iterator[Candidate]:
    """Yield switches for a failed run."""
    names = {link.name for link in links}
    yield from _of_loss(spec)
    if names & {"operation", "diverged"}:
        yield from _against_explosion(spec, links)
    if "wrong" in names and "diverged" not in names:
        yield from _against_standstill(spec)


def _of_loss(spec: RunSpec) -> Iterator[Candidate]:
    if spec.loss_logits_visible is False:
        yield ("sign", "mask", "operation", "wrong"), {"loss_logits_visible": True}
    if axon.squared(spec):
        yield ("sign", "wrong"), {"loss_clip_gradient": "correct"}
    if axon.exponential(spec):
        nx = spec.activation_output == "nx_sigmoid"
        yield ("operation", "wrong"), {"activation_output": "sigmoid"} if nx else {"loss_sigmoid_gradient": "stable"}
    if spec.loss_logits_visible is False:
        return
    if spec.loss in (_NAIVE, *_GUARDED):
        # Where one guard fails, another guard is not a cure; computing from the logits may be.
        for guarded in _GUARDED if spec.loss == _NAIVE else _GUARDED[:1]:
            if guarded != spec.loss and spec.activation_output in LOSSES[guarded].outputs:
                yield ("operation", "mask", "wrong"), {"loss": guarded}
    elif spec.loss == losses.mean_squared_error.__name__:
        yield ("operation", "diverged"), {"loss": losses.huber.__name__}


def _against_explosion(spec: RunSpec, links: Sequence[Link]) -> Iterator[Candidate]:
    for dtype in _WIDER[spec.dtype]:
        yield ("operation",), {"dtype": dtype}
    if any(link.values.get("phase") == "optimizer" for link in links) and spec.optimizer_eps is not None:
        yield ("operation",), {"optimizer_eps": 1e-4}
    growth = ("jump", "climb", "diverged", "operation")
    if spec.activation_output == "identity":
        yield growth, {"activation_output": "tanh"}
    if spec.clip == "none":
        yield growth, {"clip": "norm"}
    yield growth, {"lr": spec.lr / 10}
    yield growth, _other_optimizer(spec)
    if abs(spec.gain) > 1:
        yield growth, {"gain": 1.0}


def _against_standstill(spec: RunSpec) -> Iterator[Candidate]:
    stuck = ("dead", "identical", "saturated", "wrong")
    yield stuck, {"init": "he_uniform" if spec.init == "glorot_uniform" else "glorot_uniform"}
    for hidden in _HIDDEN:
        if spec.activation_hidden != hidden:
            yield stuck, {"activation_hidden": hidden}
    if abs(spec.gain) > 1:
        yield stuck, {"gain": 1.0}
    slow = ("wrong",)
    yield slow, {"lr": spec.lr * 10}
    yield slow, _other_optimizer(spec)
    if spec.hidden <= 32:
        yield ("dead", "wrong"), {"hidden": 2 * spec.hidden}
    if spec.epochs <= 100:
        yield slow, {"epochs": 10 * spec.epochs}


def _other_optimizer(spec: RunSpec) -> dict[str, Any]:
    name = "adam" if spec.optimizer != "adam" else "sgd"
    return {"optimizer": name, "lr": OPTIMIZERS[name].lr}


def cures(run: TrainedRun, links: Sequence[Link], settings: Settings, seeds: int | None) -> list[Cure]:
    """Train a failed run without a change, and then with one switch at a time.

    Args:
        run: the run.
        links: of its chain.
        settings: how to train.
        seeds: the number of seeds, from 0, that each switch is tried on beside the run's seed; None for 100 if lanes
            can train them, else 0.
    """
    order = [link.name for link in links]
    result = [_cure(run.spec, run.outcome, {}, None, settings, seeds)]
    for names, fields in candidates(run.spec, links):
        link = next((name for name in names if name in order), None)
        changed = run.spec.replace(**fields)
        if link is not None and changed != run.spec:
            result.append(_cure(changed, run.outcome, fields, link, settings, seeds))
    return result


def _cure(
    spec: RunSpec, before: str, fields: dict[str, Any], link: str | None, settings: Settings, seeds: int | None
) -> Cure:
    cheap = settings.device == "cpu" and compiles(table_of([spec]))
    count = (SEEDS if cheap else 0) if seeds is None else seeds
    table = table_of([spec, *(spec.replace(seed=seed) for seed in range(count))])
    runs = trained(table, settings, Detail()).runs
    first, others = runs.iloc[0], runs.iloc[1:]
    shares = {}
    for outcome in OUTCOMES if count else ():
        hits = int((others["outcome"] == outcome).sum())
        shares[outcome] = Share(hits, count, *wilson(hits, count))
    return Cure(
        switch=" ".join(f"{key_of(field)}={show(value)}" for field, value in fields.items()),
        link=link,
        outcome=str(first["outcome"]),
        first_nonfinite_step=optional(first["first_nonfinite_step"]),
        solved_step=optional(first["solved_step"]),
        prevents=_prevented(before, str(first["outcome"])),
        shares=shares or None,
    )


def _prevented(before: str, after: str) -> str:
    if after == "solved" != before:
        return "failure"
    if before == "nonfinite" != after:
        return "NaN"
    return "divergence" if (before, after) == ("diverged", "unsolved") else "nothing"
