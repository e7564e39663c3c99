"""The article's claims, one function each, and what the study's runs say of them.

A function takes the evidence and returns a verdict with an effect and its 95 % interval. Its docstring says what is
claimed, how that is made precise, and which runs are read. Effects are differences of paired rates (of the same seeds)
or of paired steps, unless the docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd

from xor_study.analysis import axon
from xor_study.analysis.cells import Study, describe
from xor_study.analysis.statistics import Effect, holm, paired_difference, paired_shift, wilson
from xor_study.study.mechanism import SIGNIFICANT
from xor_study.training.spec import RunSpec

VERDICTS = ("supported", "refuted", "not the cause", "undecided")

KINDS = ("premise", "observation", "root cause", "fix", "practice", "outcome", "advice", "open question")
"""What the article offers a claim as; open questions are ours."""

AXON = axon.cell(axon.BROKEN)
"""The loss of the report, Axon 0.6.1's."""

NEWEST = axon.cell(axon.NEWEST)
"""The loss of Axon 0.7.0: the logits are visible again; Nx is as it was."""

SETTINGS: dict[str, dict[str, Any]] = {
    "SGD 0.01": {"optimizer": "sgd", "lr": 0.01},
    "SGD 0.1": {"optimizer": "sgd", "lr": 0.1},
    "Adam 0.001": {"optimizer": "polaris_adam", "lr": 0.001},
}
"""The three settings that the broken and the repaired loss were both trained with."""

AS_SHIPPED = {
    "binary_cross_entropy": "PyTorch's",
    "binary_cross_entropy_with_logits": "PyTorch's with logits",
    "binary_cross_entropy_clipped": "Keras's",
}
"""Binary cross-entropy as frameworks ship it."""

EQUIVALENT = 0.05
"""Rates that differ by less are the same for every purpose of the article."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What claims read; the same only as itself.

    Attributes:
        study: the runs of `study=all`.
        tables: by name, what was measured in more detail (see `probes`): "naive_onsets", "boundaries", "importance",
            "monitors".
    """

    study: Study
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Verdict(NamedTuple):
    """What comes of a claim: a row of claims.csv.

    Attributes:
        verdict: one of `VERDICTS`.
        effect, low, high: the effect and the ends of its 95 % interval.
        test: what the p-value, or the interval, is made by.
        n: pairs, or runs, that the effect is of.
        sentence: the same in plain words.
    """

    verdict: str
    effect: float
    low: float
    high: float
    test: str
    n: int
    sentence: str


Judge = Callable[[Evidence], Verdict]


class Claim(NamedTuple):
    """A claim: what it is offered as, the studies whose runs it reads, and how it is judged."""

    kind: str
    studies: str
    judge: Judge


CLAIMS: dict[str, Claim] = {}
"""All claims by name, in the article's order."""


def _claim(kind: str, studies: str) -> Callable[[Judge], Judge]:
    def register(judge: Judge) -> Judge:
        assert kind in KINDS
        CLAIMS[judge.__name__] = Claim(kind, studies, judge)
        return judge

    return register


def verdicts(evidence: Evidence) -> pd.DataFrame:
    """Return the verdicts on all claims: columns claim and the fields of `Verdict`.

    Raises:
        StudyError: if a cell that a claim reads is missing.
    """
    rows = [{"claim": name, **claim.judge(evidence)._asdict()} for name, claim in CLAIMS.items()]
    return pd.DataFrame(rows)


@_claim("premise", "learning_rate")
def capacity(evidence: Evidence) -> Verdict:
    """This network can represent XOR.

    It can if training finds weights that answer all four corners rightly. Reads the article's network with SGD at 0.1.
    The effect is the share that does.
    """
    study = evidence.study
    runs = study.runs_of(study.one(lr=0.1))
    count, (low, high) = _count(runs, "solved")
    verdict = "supported" if count else "undecided"
    sentence = f"The network represents XOR: {_of(count, len(runs))} runs with SGD at 0.1 find weights that do."
    return Verdict(verdict, count / len(runs), low, high, "Wilson", len(runs), sentence)


@_claim("observation", "mechanism")
def symptom(evidence: Evidence) -> Verdict:
    """The loss starts near 0.77, is NaN after the first epoch and stays NaN; all predictions are NaN.

    It is reproduced if Axon 0.6.1's loss with SGD and no rate given makes some runs NaN within the first 1,000 steps
    and all of those end with a NaN loss and no corner right, which only NaN predictions do. Reads these runs. The
    effect is the share that is NaN within the first epoch.
    """
    study = evidence.study
    runs = study.runs_of(study.one(**AXON))
    early = runs["first_nonfinite_step"] <= runs["iterations"]
    count, n = int(early.sum()), len(runs)
    stays = bool((runs.loc[early, "accuracy"] == 0).all() and runs.loc[early, "final_loss"].isna().all())
    low, high = wilson(count, n)
    verdict = "supported" if count and stays else "refuted" if not count else "undecided"
    nan = runs["first_nonfinite_step"].notna()
    sentence = (
        f"With Axon 0.6.1's loss {_of(count, n)} seeds are NaN within the first epoch and {_of(int(nan.sum()), n)} "
        f"within ten, all for good; the first loss is {runs['initial_loss'].median():.2f} in the median."
    )
    return Verdict(verdict, count / n, low, high, "Wilson", n, sentence)


def _count(runs: pd.DataFrame, outcome: str) -> tuple[int, tuple[float, float]]:
    count = int((runs["outcome"] == outcome).sum())
    return count, wilson(count, len(runs))


def _of(count: int, n: int) -> str:
    return f"all {n:,}" if count == n else f"{count:,} of {n:,}" if count else f"none of {n:,}"


def _total(cells: pd.DataFrame, outcome: str) -> str:
    """Return how many runs of some cells had an outcome."""
    return _of(int(cells[f"{outcome}_runs"].sum()), int(cells["n"].sum()))


def _percent(share: Any) -> str:
    return f"{100 * share:.3g} %"


def _nonfinite(study: Study, first: int, second: int) -> Effect:
    return _difference(study, first, second, "nonfinite")


def _difference(study: Study, first: int, second: int, outcome: str) -> Effect:
    one, other = study.pairs(first, second)
    return paired_difference(one["outcome"] == outcome, other["outcome"] == outcome)


def _steps(study: Study, first: int, second: int) -> tuple[Effect, int]:
    """Return by how many steps the second cell solves later, over the seeds that both solve, and how many these are."""
    one, other = study.pairs(first, second)
    both = (one["solved_step"].notna().to_numpy()) & (other["solved_step"].notna().to_numpy())
    return paired_shift(one["solved_step"][both].astype(float), other["solved_step"][both].astype(float)), int(
        both.sum()
    )


def _cause(evidence: Evidence, cells: pd.DataFrame, what: str, besides: str) -> Verdict:
    """Judge a root cause: does anything within `cells` turn the sound network, paired by seed, into NaN?

    The effect is that of the cell with the most NaN; p-values are adjusted for the number of cells by Holm's method.
    """
    study = evidence.study
    sound = study.one()
    others = [int(cell) for cell in cells.index if cell != sound]
    effects = [_nonfinite(study, sound, cell) for cell in others]
    adjusted = holm([effect.p for effect in effects])
    worst = max(range(len(others)), key=lambda place: effects[place].value)
    effect, n = effects[worst], len(study.pairs(sound, others[worst])[0])
    runs, count = int(cells["n"].sum()), int(cells["nonfinite_runs"].sum())
    if any(p < SIGNIFICANT and e.value > 0 for p, e in zip(adjusted, effects, strict=True)):
        verdict, found = (
            "supported",
            f"{_of(count, runs)} runs are NaN, most with {describe(study.cells.iloc[others[worst]])}",
        )
    else:
        verdict = "undecided" if count else "not the cause"
        bound = wilson(count, runs)[1]
        found = f"{_of(count, runs)} runs in {len(cells)} cells is NaN (95 % sure: fewer than {_percent(bound)})"
    sentence = f"{what}: {found}. {besides}"
    return Verdict(
        verdict, effect.value, effect.low, effect.high, f"McNemar, Holm over {len(others)} cells", n, sentence
    )


@_claim("root cause", "learning_rate")
def cause_learning_rate(evidence: Evidence) -> Verdict:
    """SGD without a given rate: the default may be too large.

    It is a cause if some rate turns the sound network into NaN. Reads the article's network with SGD at all rates.
    """
    study = evidence.study
    cells = study.where("lr")
    good = cells[cells["solved"] > 0.99]["lr"]
    bad = cells[(cells["lr"] > good.max()) & (cells["diverged"] > 0.5)]["lr"]
    besides = f"All but 1 % solve XOR from {good.min():g} to {good.max():g}"
    besides += f"; from {bad.min():g} on they diverge, with finite numbers." if len(bad) else "."
    return _cause(
        evidence, cells, f"SGD at {len(cells)} rates from {cells['lr'].min():g} to {cells['lr'].max():g}", besides
    )


@_claim("root cause", "initialization")
def cause_initialization(evidence: Evidence) -> Verdict:
    """Some weight initializations make the gradient explode.

    It is a cause if some initializer, at some gain, turns the sound network into NaN. Reads the article's network with
    every initializer at every gain, with SGD at 0.01 and 0.1.
    """
    cells = evidence.study.where("lr", "init", "init.value", "init.scale", "gain", lr=[0.01, 0.1])
    at_default = cells[(cells["gain"] == 1) & (cells["lr"] == 0.1)]
    never = sorted(at_default[at_default["solved"] == 0]["init"])
    besides = f"It matters for success: at 0.1 {', '.join(never)} never solve XOR." if never else ""
    huge = cells[cells["gain"] == cells["gain"].max()]
    besides += (
        f" With gain {huge['gain'].iloc[0]:g}, {_percent(huge['diverged_runs'].sum() / huge['n'].sum())} diverge."
    )
    what = f"{cells['init'].nunique()} initializers at gains {cells['gain'].min():g} to {cells['gain'].max():g}"
    return _cause(evidence, cells, what, besides)


@_claim("root cause", "loss,learning_rate")
def cause_loss(evidence: Evidence) -> Verdict:
    """Binary cross-entropy suits the task but needs a fitting learning rate.

    It is a cause if binary cross-entropy as frameworks ship it (PyTorch's two, Keras's) turns the sound network into
    NaN at some rate. Reads the article's network with these losses, SGD at all rates.
    """
    study = evidence.study
    cells = study.where("lr", loss=list(AS_SHIPPED))
    naive = study.where("lr", loss="binary_cross_entropy_naive")
    nan = naive[naive["nonfinite_runs"] > 0]
    besides = "A textbook's, without guards, "
    besides += f"is NaN from rate {nan['lr'].min():g} on ({_total(nan, 'nonfinite')} runs)."
    return _cause(evidence, cells, f"Cross-entropy as shipped ({', '.join(AS_SHIPPED.values())})", besides)


@_claim("root cause", "activation,initialization,root_causes")
def cause_activation_pairing(evidence: Evidence) -> Verdict:
    """tanh with sigmoid can make gradients vanish or explode.

    It is a cause if tanh with sigmoid turns into NaN at some rate and initialization with a loss as shipped. Reads all
    runs with tanh, sigmoid and such a loss that differ only in rate, initializer and gain.
    """
    study = evidence.study
    cells = study.where("lr", "init", "init.value", "init.scale", "gain", loss=list(AS_SHIPPED))
    bounded = study.where(
        "lr", "activation.hidden", "activation.output", activation__output=["tanh"], loss="mean_squared_error"
    )
    open_end = study.where("lr", "activation.hidden", activation__output="identity", loss="mean_squared_error")
    nan = open_end[open_end["nonfinite_runs"] > 0]
    besides = (
        f"What does explode is an output without bounds: identity with squared error is NaN from rate "
        f"{nan['lr'].min():g} on, where tanh as output is NaN in {_total(bounded, 'nonfinite')} runs."
    )
    return _cause(evidence, cells, "tanh with sigmoid, at any rate and initialization", besides)


def _fix(study: Study, pairs: Sequence[tuple[int, int]], what: str) -> Verdict:
    """Judge a fix on the broken loss: do the runs train, without NaN, in all settings?

    The effect is how much more often XOR is solved, in the setting where that is least.
    """
    effects = [_difference(study, broken, fixed, "solved") for broken, fixed in pairs]
    adjusted = holm([effect.p for effect in effects])
    nan = [_nonfinite(study, broken, fixed) for broken, fixed in pairs]
    after = study.cells.loc[[fixed for _, fixed in pairs]]
    least = min(range(len(pairs)), key=lambda place: effects[place].value)
    effect, n = effects[least], len(study.pairs(*pairs[least])[0])
    cures = all(p < SIGNIFICANT and e.value > 0 for p, e in zip(adjusted, effects, strict=True))
    if cures and not after["nonfinite_runs"].sum():
        verdict = "supported"
    else:
        verdict = "refuted" if effect.high < EQUIVALENT else "undecided"
    before = study.cells.loc[[broken for broken, _ in pairs]]
    sentence = (
        f"{what}: NaN in {_total(before, 'nonfinite')} runs before and "
        f"{_total(after, 'nonfinite')} after; XOR is solved by "
        f"{_total(after, 'solved')}."
    )
    if verdict == "refuted" and nan[least].value < 0 and after["diverged"].max() > 0.5:
        sentence += " NaN has only been exchanged for a loss that stays high."
    return Verdict(
        verdict, effect.value, effect.low, effect.high, "McNemar, Holm" if len(pairs) > 1 else "McNemar", n, sentence
    )


@_claim("fix", "mechanism")
def fix_newest_version(evidence: Evidence) -> Verdict:
    """Use the newest version of the framework.

    It is a fix if the loss of Axon 0.7.0, where that of 0.6.1 fails, trains without NaN. Reads both losses with SGD
    at 0.01 and 0.1 and with Adam.
    """
    study = evidence.study
    pairs = [(study.one(**AXON, **setting), study.one(**NEWEST, **setting)) for setting in SETTINGS.values()]
    return _fix(study, pairs, f"Axon 0.7.0 instead of 0.6.1 ({', '.join(SETTINGS)})")


@_claim("fix", "mechanism")
def fix_sgd_0_01(evidence: Evidence) -> Verdict:
    """SGD with learning rate 0.01.

    It is a fix if it trains where no rate given does not. Reads the runs of Axon 0.6.1's loss with no rate given, which
    are the runs with 0.01: the study would not even give them two identities.
    """
    study = evidence.study
    broken = study.one(**AXON)
    unset, told = RunSpec(loss="axon_0_6_1"), RunSpec(loss="axon_0_6_1", lr=0.01)
    verdict = _fix(study, [(broken, study.one(**AXON, lr=0.01))], "SGD at 0.01 with the loss of Axon 0.6.1")
    same = "It is what SGD without a rate already does, run for run." if unset == told else ""
    return verdict._replace(sentence=f"{verdict.sentence} {same}".strip())


@_claim("fix", "mechanism")
def fix_adam(evidence: Evidence) -> Verdict:
    """Adam.

    It is a fix if Adam, at Axon's own rate of 0.001, trains where SGD does not. Reads Axon 0.6.1's loss with both.
    """
    study = evidence.study
    pairs = [(study.one(**AXON), study.one(**AXON, **SETTINGS["Adam 0.001"]))]
    return _fix(study, pairs, "Adam with the loss of Axon 0.6.1")


@_claim("practice", "learning_rate")
def practice_small_rate(evidence: Evidence) -> Verdict:
    """Start SGD at 0.01 or less.

    It is good practice if the best rate up to 0.01 solves the sound network no less often and no later than the best
    larger one. Reads SGD at all rates. The effect is how many steps the larger rate solves earlier (negative), or the
    difference in rates where they differ.
    """
    study = evidence.study
    cells = study.where("lr")
    small, large = (_best(part) for part in (cells[cells["lr"] <= 0.01], cells[cells["lr"] > 0.01]))
    rates = _difference(study, small, large, "solved")
    steps, n = _steps(study, small, large)
    lr = study.cells["lr"]
    worse = steps.p < SIGNIFICANT and steps.value < 0 and rates.value >= 0
    verdict = "refuted" if worse else "supported" if rates.value <= 0 and steps.value >= 0 else "undecided"
    tiny = cells[cells["lr"] < 0.01].sort_values("lr").iloc[-1]
    sentence = (
        f"The best rate up to 0.01 is {lr[small]:g}; {lr[large]:g} solves as often and {-steps.value:,.0f} steps "
        f"earlier (median of {n} pairs). Below it fewer solve in ten epochs: {_percent(tiny['solved'])} at "
        f"{tiny['lr']:g}. On the broken loss no rate helps."
    )
    return Verdict(verdict, steps.value, steps.low, steps.high, "Wilcoxon, bootstrap", n, sentence)


def _best(cells: pd.DataFrame) -> int:
    """Return the cell that solves most often and, among equals, soonest."""
    ranked = cells.sort_values(["solved", "solved_step_median"], ascending=[False, True], kind="stable")
    return int(ranked.index[0])


@_claim("practice", "learning_rate")
def practice_adam_stable(evidence: Evidence) -> Verdict:
    """Adam is usually more stable, good for beginners.

    It is more stable if, over the rates that both were trained with, fewer runs fail to end solved than with SGD. Reads
    the sound network with SGD and Adam at these rates, paired by rate and seed.
    """
    study = evidence.study
    cells = study.where("lr", "optimizer", optimizer=["sgd", "adam"])
    common = sorted(set(cells[cells["optimizer"] == "sgd"]["lr"]) & set(cells[cells["optimizer"] == "adam"]["lr"]))
    pairs = [study.pairs(study.one(optimizer="sgd", lr=lr), study.one(optimizer="adam", lr=lr)) for lr in common]
    sgd, adam = (pd.concat([pair[place] for pair in pairs]) for place in (0, 1))
    effect = paired_difference(sgd["outcome"] == "solved", adam["outcome"] == "solved")
    ranges = []
    for name in ("sgd", "adam"):
        good = cells[(cells["optimizer"] == name) & (cells["solved"] >= 0.95)]["lr"]
        ranges.append(f"{good.min():g} to {good.max():g}")
    verdict = _better(effect)
    sentence = (
        f"Over {len(common)} rates from {common[0]:g} to {common[-1]:g} Adam solves {_percent(effect.value)} more "
        f"runs; 95 % solve from {ranges[1]} with Adam and from {ranges[0]} with SGD. On the broken loss Adam is "
        "not NaN, and never solves XOR."
    )
    return Verdict(verdict, effect.value, effect.low, effect.high, "McNemar", len(sgd), sentence)


def _better(effect: Effect) -> str:
    """Return whether an effect supports "more often", refutes it, or is undecided."""
    if effect.p < SIGNIFICANT:
        return "supported" if effect.value > 0 else "refuted"
    return "refuted" if effect.high < EQUIVALENT else "undecided"


@_claim("practice", "activation")
def practice_relu(evidence: Evidence) -> Verdict:
    """Consider ReLU in the hidden layer.

    It is good practice if relu solves XOR more often than tanh. Reads the sound network with both, SGD at 0.1.
    """
    study = evidence.study
    tanh, relu = study.one(lr=0.1), study.one(lr=0.1, activation__hidden="relu")
    effect = _difference(study, tanh, relu, "solved")
    steps, _both = _steps(study, tanh, relu)
    n = len(study.pairs(tanh, relu)[0])
    solved = study.cells["solved"]
    sentence = (
        f"relu solves {_percent(solved[relu])} where tanh solves {_percent(solved[tanh])}: "
        f"units that are dead from the start stay dead. Where both solve, relu is {-steps.value:,.0f} steps earlier."
    )
    return Verdict(_better(effect), effect.value, effect.low, effect.high, "McNemar", n, sentence)


@_claim("practice", "clipping")
def practice_gradient_clipping(evidence: Evidence) -> Verdict:
    """Add gradient clipping against explosion.

    It protects if runs with Axon 0.6.1's loss, SGD at 0.01, are NaN less often with every clipping that was tried; that
    they then train is more than is claimed, and is said. The effect is the difference in NaN of the clipping
    that takes least of it away. Reads that loss, and the sound one, with and without clipping.
    """
    study = evidence.study
    broken = study.one(**AXON)
    cells = study.where("clip", "clip.bound", **AXON)
    clipped = cells[cells["clip"] != "none"]
    effects = {int(cell): _nonfinite(study, broken, int(cell)) for cell in clipped.index}
    adjusted = holm([effect.p for effect in effects.values()])
    effect = max(effects.values(), key=lambda effect: effect.value)
    protects = all(p < SIGNIFICANT and e.value < 0 for p, e in zip(adjusted, effects.values(), strict=True))
    fast = study.where("clip", "clip.bound", lr=10.0)
    best = fast[fast["clip"] != "none"].sort_values("solved").iloc[-1]
    plain = fast[fast["clip"] == "none"].iloc[0]
    sentence = (
        f"With the loss of Axon 0.6.1 it takes NaN from {_percent(cells.loc[broken, 'nonfinite'])} to at most "
        f"{_percent(clipped['nonfinite'].max())}, but {_total(clipped, 'solved')} "
        f"clipped runs learn XOR. On the sound network at rate 10 it makes {_percent(best['solved'])} solve "
        f"({describe(best)}) instead of {_percent(plain['solved'])}."
    )
    verdict = "supported" if protects else "refuted" if effect.low > -EQUIVALENT else "undecided"
    n = len(study.pairs(broken, broken)[0])
    return Verdict(
        verdict, effect.value, effect.low, effect.high, f"McNemar, Holm over {len(effects)} cells", n, sentence
    )


@_claim("practice", "initialization")
def practice_initialization(evidence: Evidence) -> Verdict:
    """Try other weight initializations.

    It helps if some other initializer trains Axon 0.6.1's loss, where the failure is; what it gains on the sound
    network is said. The effect is the difference in solved runs of the best. Reads all initializers with SGD at 0.01.
    """
    study = evidence.study
    broken = study.one(**AXON)
    others = study.where("init", "init.value", "init.scale", **AXON).drop(index=broken)
    effects = [_difference(study, broken, int(cell), "solved") for cell in others.index]
    adjusted = holm([effect.p for effect in effects])
    best = max(range(len(effects)), key=lambda place: effects[place].value)
    effect, n = effects[best], len(study.pairs(broken, int(others.index[best]))[0])
    helps = adjusted[best] < SIGNIFICANT and effect.value > 0
    verdict = "supported" if helps else "refuted" if effect.high < EQUIVALENT else "undecided"
    sound = study.where("init", "init.value", "init.scale")
    soonest = _best(sound)
    steps, both = _steps(study, study.one(), soonest)
    sentence = (
        f"With the loss of Axon 0.6.1 {_total(others, 'solved')} runs with "
        f"{len(others)} other initializers solve XOR. On the sound network {study.cells['init'][soonest]} is "
        f"{-steps.value:,.0f} steps earlier than glorot_uniform (median of {both} pairs)."
    )
    return Verdict(
        verdict, effect.value, effect.low, effect.high, f"McNemar, Holm over {len(others)} cells", n, sentence
    )


@lru_cache(maxsize=1)
def _fixed_runs(evidence: Evidence) -> tuple[str, pd.DataFrame]:
    """Return the names of the fixes that are supported, and the runs with them; none if no fix is."""
    study = evidence.study
    settings: dict[str, list[dict[str, Any]]] = {
        "fix_newest_version": [NEWEST | setting for setting in SETTINGS.values()],
        "fix_sgd_0_01": [AXON | SETTINGS["SGD 0.01"]],
        "fix_adam": [AXON | SETTINGS["Adam 0.001"]],
    }
    names = [name for name in settings if CLAIMS[name].judge(evidence).verdict == "supported"]
    cells = [study.one(**setting) for name in names for setting in settings[name]]
    return ", ".join(names) or "no fix", study.pooled(study.cells.loc[cells])


@_claim("outcome", "mechanism")
def verify_stable(evidence: Evidence) -> Verdict:
    """With the fixes, training is stable, without NaN.

    Reads the runs with the fixes whose own verdict is `supported`. The effect is the share of NaN.
    """
    names, runs = _fixed_runs(evidence)
    count, (low, high) = _count(runs, "nonfinite") if len(runs) else (0, (0.0, 1.0))
    verdict = "supported" if not count and high < EQUIVALENT else "refuted" if count else "undecided"
    sentence = f"With {names}, {_of(count, len(runs))} runs are NaN (95 % sure: fewer than {_percent(high)})."
    return Verdict(verdict, count / max(len(runs), 1), low, high, "Wilson", len(runs), sentence)


@_claim("outcome", "mechanism")
def verify_accurate(evidence: Evidence) -> Verdict:
    """With the fixes, the network predicts XOR correctly.

    Reads the same runs as `verify_stable`. The effect is the share that solves XOR.
    """
    names, runs = _fixed_runs(evidence)
    count, (low, high) = _count(runs, "solved") if len(runs) else (0, (0.0, 1.0))
    verdict = "supported" if low > 1 - EQUIVALENT else "refuted" if high < 1 - EQUIVALENT else "undecided"
    sentence = f"With {names}, {_of(count, len(runs))} runs answer all four corners rightly."
    return Verdict(verdict, count / max(len(runs), 1), low, high, "Wilson", len(runs), sentence)


@_claim("outcome", "mechanism")
def verify_boundary(evidence: Evidence) -> Verdict:
    """With the fixes, a picture shows the decision boundary.

    It does if, in the article's picture of 50 x 50 points over the unit square, both classes appear, the corners are on
    their own sides, and neither class is only a corner (1 % of the points at least). Reads the table "boundaries": the
    pictures of the first 100 seeds with Axon 0.7.0's loss and SGD at 0.01. The effect is the share of such pictures.
    """
    table = evidence.tables["boundaries"]
    shows = table["corners_right"] & table["share_true"].between(0.01, 0.99)
    count, n = int(shows.sum()), len(table)
    low, high = wilson(count, n)
    verdict = "supported" if low > 1 - EQUIVALENT else "refuted" if high < 1 - EQUIVALENT else "undecided"
    share = table["share_true"].median()
    sentence = (
        f"{_of(count, n).capitalize()} pictures show it; {_percent(share)} of the square is called true in the median."
    )
    return Verdict(verdict, count / n, low, high, "Wilson", n, sentence)


@_claim("advice", "mechanism,optimizer,clipping,initialization")
def advice_version_first(evidence: Evidence) -> Verdict:
    """Check the framework's version first.

    It is right if, with the broken loss, the newer version trains and nothing else that the article varies does: rate,
    optimizer, clipping, initialization. The effect is the difference in solved runs between the version and the best of
    all else, at SGD 0.01. Reads all runs with Axon 0.6.1's loss.
    """
    study = evidence.study
    else_ = study.where("lr", "optimizer", "clip", "clip.bound", "init", "init.value", "init.scale", **AXON)
    best = _best(else_)
    effect = _difference(study, best, study.one(**NEWEST), "solved")
    n = len(study.pairs(best, study.one(**NEWEST))[0])
    sentence = (
        f"With the loss of 0.6.1 {_total(else_, 'solved')} runs learn XOR, whatever "
        f"rate, optimizer, clipping or initializer ({len(else_)} cells); with that of 0.7.0 "
        f"{_percent(study.cells['solved'][study.one(**NEWEST)])} do."
    )
    return Verdict(_better(effect), effect.value, effect.low, effect.high, "McNemar", n, sentence)


@_claim("advice", "root_causes")
def advice_tune(evidence: Evidence) -> Verdict:
    """Tune hyperparameters, the learning rate above all.

    It is right about the sound network if, of the factors that `root_causes` crosses, the rate alone explains most of
    the variance of success. Reads the table "importance". The effect is the rate's share of the variance less the next
    single factor's, between the ends of their intervals.
    """
    table = evidence.tables["importance"].set_index("term")
    singles = table[[" x " not in str(term) and term != "higher order" for term in table.index]]
    rate, rest = (
        singles.loc["lr"].to_dict(),
        singles.drop(index="lr").sort_values("share").reset_index().iloc[-1].to_dict(),
    )
    low, high = rate["low"] - rest["high"], rate["high"] - rest["low"]
    verdict = "supported" if low > 0 else "refuted" if high < 0 else "undecided"
    sentence = (
        f"On sound networks the rate alone explains {_percent(rate['share'])} of the variance of success, the next "
        f"single factor, {rest['term']}, {_percent(rest['share'])}. On the broken loss no rate trains."
    )
    n = int(table["n"].iloc[0])
    return Verdict(verdict, rate["share"] - rest["share"], low, high, "variance decomposition, bootstrap", n, sentence)


@_claim("advice", "optimizer")
def advice_optimizers(evidence: Evidence) -> Verdict:
    """Try several optimizers.

    It is good advice about the sound network if, each at its own default rate, some other one solves XOR sooner than
    SGD at its own and no less often. The effect is by how many steps the best is later (negative: sooner). Reads the
    sound network with every optimizer at its default rate.
    """
    study = evidence.study
    sgd = study.one()
    defaults = {name: RunSpec(optimizer=name).lr for name in study.where("lr", "optimizer")["optimizer"].unique()}
    others = {name: study.where(optimizer=name, lr=rate) for name, rate in defaults.items() if name != "sgd"}
    found = {
        name: (int(cell.index[0]), *_steps(study, sgd, int(cell.index[0])))
        for name, cell in others.items()
        if len(cell)
    }
    adjusted = dict(zip(found, holm([effect.p for _, effect, _ in found.values()]), strict=True))
    name = min(found, key=lambda name: found[name][1].value)
    cell, steps, n = found[name]
    often = _difference(study, sgd, cell, "solved")
    sooner = adjusted[name] < SIGNIFICANT and steps.value < 0 and often.low > -EQUIVALENT
    verdict = "supported" if sooner else "refuted" if steps.value >= 0 else "undecided"
    sentence = (
        f"At their own rates {name} ({defaults[name]:g}) solves {-steps.value:,.0f} steps sooner than SGD "
        f"(0.01), {_percent(study.cells['solved'][cell])} of runs. "
        "On the broken loss it changes nothing: Adam ends on a plateau."
    )
    return Verdict(
        verdict, steps.value, steps.low, steps.high, f"Wilcoxon, Holm over {len(found)}, bootstrap", n, sentence
    )


@_claim("advice", "mechanism,loss,precision")
def advice_monitoring(evidence: Evidence) -> Verdict:
    """Monitor training so that numerical anomalies are seen early.

    It is right about the reported failure if some monitor warns before nearly every NaN and in nearly no run that ends
    solved. Reads the table "monitors": four monitors over the studies `mechanism`, `loss` and `precision`, at
    thresholds chosen on half of the seeds and judged on the other. The effect is the share of NaN that the loss above
    its start warns of in `mechanism`.
    """
    table = evidence.tables["monitors"].set_index(["study", "monitor"])
    row = table.to_dict("index")["mechanism", "loss above its start"]
    warns, quiet = row["true_low"] > 1 - 2 * EQUIVALENT, row["false_high"] < EQUIVALENT
    verdict = "supported" if warns and quiet and row["lead_median"] > 0 else "undecided"
    verdict = "refuted" if row["true_high"] < 0.5 or row["false_low"] > EQUIVALENT else verdict
    most, best = max((found["true"], monitor) for monitor, found in table.loc["all"].iterrows())
    sentence = (
        f"With Axon's loss a mean loss above {row['threshold']:.3g} times its start warns of {_percent(row['true'])} "
        f"of NaN, {row['lead_median']:,.0f} steps ahead in the median, with {_percent(row['false'])} false alarms. "
        "Over all failures, the sudden ones of losses without guards among them, no monitor warns of more than "
        f"{_percent(most)} ({best})."
    )
    return Verdict(verdict, row["true"], row["true_low"], row["true_high"], "Wilson", int(row["n"]), sentence)


@_claim("open question", "loss,precision")
def naive_loss_rounds(evidence: Evidence) -> Verdict:
    """Does a loss without guards go NaN exactly when a present corner's probability rounds to 1 or to 0?

    Yes if at the first step that is not finite some corner in the batch has a probability of exactly 1 or 0, and at the
    step before none has. Reads the table "naive_onsets": such runs of the studies `loss` and `precision` with SGD, in
    four precisions. The effect is the share of runs where both hold.
    """
    table = evidence.tables["naive_onsets"]
    exact = table["side"].isin(["one", "zero", "both"]) & ~table["rounded_before"]
    beyond = table[table["side"] == "reciprocal"]
    count, n = int(exact.sum()), len(table)
    low, high = wilson(count, n)
    verdict = "supported" if low > 1 - EQUIVALENT else "refuted" if high < 1 - EQUIVALENT else "undecided"
    ones = int(table["side"].isin(["one", "both"]).sum())
    sentence = (
        f"In {_of(count, n)} runs it is the very step at which a probability rounds, in {_of(ones, n)} to 1; "
        f"success itself kills a loss without guards, in float32 at a logit of 16.6."
        + (
            f" In {len(beyond)}, all in {', '.join(beyond['dtype'].unique())}, 1 / p overflows first."
            if len(beyond)
            else ""
        )
    )
    return Verdict(verdict, count / n, low, high, "Wilson", n, sentence)


@_claim("open question", "learning_rate")
def small_rate_is_enough(evidence: Evidence) -> Verdict:
    """Is 0.01 or less enough within ten epochs, and what does a larger rate gain?

    It is if 0.01 solves XOR within 10,000 steps in 99 % of runs. Reads SGD at all rates. The effect is the share that
    is solved.
    """
    study = evidence.study
    cell, faster = study.one(), study.one(lr=0.1)
    row = study.cells.to_dict("index")[cell]
    verdict = "supported" if row["solved_low"] > 0.99 else "refuted" if row["solved_high"] < 0.99 else "undecided"
    steps, n = _steps(study, cell, faster)
    lower = ", ".join(
        f"{_percent(other['solved'])} at {other['lr']:g}"
        for other in study.where("lr").sort_values("lr", ascending=False).to_dict("records")
        if 0.001 <= other["lr"] < 0.01
    )
    sentence = (
        f"0.01 solves {_percent(row['solved'])} within ten epochs, less does not ({lower}); 0.1 gains "
        f"{-steps.value:,.0f} of {row['solved_step_median']:,.0f} steps (median of {n} pairs)."
    )
    return Verdict(verdict, row["solved"], row["solved_low"], row["solved_high"], "Wilson", int(row["n"]), sentence)


@_claim("open question", "activation,width")
def relu_as_good_as_tanh(evidence: Evidence) -> Verdict:
    """Does relu solve as often as tanh at this width?

    It does if the rates differ by less than 5 %, at 0.01, 0.1 and 1. Reads the sound network with both. The effect is
    the largest difference.
    """
    study = evidence.study
    pairs = [(study.one(lr=lr), study.one(lr=lr, activation__hidden="relu")) for lr in (0.01, 0.1, 1.0)]
    effects = [_difference(study, tanh, relu, "solved") for tanh, relu in pairs]
    adjusted = holm([effect.p for effect in effects])
    place = max(range(len(effects)), key=lambda i: abs(effects[i].value))
    effect = effects[place]
    same = all(e.low > -EQUIVALENT and e.high < EQUIVALENT for e in effects)
    verdict = "supported" if same else "refuted" if adjusted[place] < SIGNIFICANT else "undecided"
    wide = study.where("hidden", lr=0.1, activation__hidden="relu")
    enough = wide[wide["solved_low"] > 0.95]["hidden"]
    sentence = f"relu solves {_percent(-effect.value)} fewer runs than tanh with 8 units"
    sentence += f"; it takes {enough.min()} units to solve 95 %." if len(enough) else "."
    n = len(study.pairs(*pairs[place])[0])
    return Verdict(verdict, effect.value, effect.low, effect.high, "McNemar, Holm over 3 rates", n, sentence)


@_claim("open question", "root_causes")
def rate_explains_most(evidence: Evidence) -> Verdict:
    """Which factor explains most of the variance of the outcome?

    The rate does if its share is the largest of all terms, interactions included. Reads the table "importance". The
    effect is the share of the term that explains most.
    """
    table = evidence.tables["importance"]
    first, second, *_ = table.to_dict("records")
    clear = first["low"] > second["high"]
    verdict = "undecided" if not clear else "supported" if first["term"] == "lr" else "refuted"
    rest = ", ".join(f"{row['term']} {_percent(row['share'])}" for row in table.iloc[1:4].to_dict("records"))
    sentence = f"{first['term']} explains {_percent(first['share'])} of the variance of solving XOR; then come {rest}."
    return Verdict(
        verdict,
        first["share"],
        first["low"],
        first["high"],
        "variance decomposition, bootstrap",
        int(first["n"]),
        sentence,
    )
