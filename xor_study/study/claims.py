"""The article's claims, one function each, and the verdicts on them.

A function takes the evidence and returns a verdict with an effect and its 95 % interval. Its docstring says what is
claimed, how that is made precise, and which runs are read. Effects are differences of paired rates (of the same seeds)
or of paired steps, unless the docstring says otherwise. Sentences are made from the data: none states a conclusion that
other data would not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd

from xor_study.analysis.axon import ADAM, BROKEN, NEWEST, PLATEAU, SETTINGS
from xor_study.analysis.cells import Study, describe
from xor_study.analysis.statistics import Effect, holm, paired_difference, paired_shift, wilson
from xor_study.study.mechanism import SIGNIFICANT
from xor_study.training.spec import RunSpec

VERDICTS = ("supported", "refuted", "not the cause", "undecided")

KINDS = ("premise", "observation", "root cause", "fix", "practice", "outcome", "advice", "open question")
"""The parts that claims play in the article; open questions are ours."""

AS_SHIPPED = {
    "binary_cross_entropy": "PyTorch's",
    "binary_cross_entropy_with_logits": "PyTorch's with logits",
    "binary_cross_entropy_clipped": "Keras's",
}
"""Binary cross-entropy as frameworks ship it."""

EQUIVALENT = 0.05
"""Shares that differ by less are taken for equal."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that `_fixed_runs` can cache by it
class Evidence:
    """The runs and tables that claims read.

    Attributes:
        study: the runs of `study=all`.
        tables: by name, the tables "naive_onsets", "boundaries" and "importance" (see `evidence`) and "monitors".
    """

    study: Study
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Verdict(NamedTuple):
    """The verdict on a claim: a row of claims.csv.

    Attributes:
        verdict: one of `VERDICTS`.
        effect, low, high: the effect and the ends of its 95 % interval.
        test: the method of the p-value, or of the interval.
        n: how many pairs, or runs, the effect is computed from.
        sentence: the evidence in plain words.
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
    """A claim: its kind, one of `KINDS`, the studies whose runs it reads, and the function that judges it."""

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
    count, n = _count(runs, "solved"), len(runs)
    sentence = f"{_of(count, n).capitalize()} runs with SGD at 0.1 find weights that represent XOR."
    return Verdict("supported" if count else "undecided", *_share(count, n), "Wilson", n, sentence)


@_claim("observation", "mechanism")
def symptom(evidence: Evidence) -> Verdict:
    """The loss starts near 0.77, is NaN after the first epoch and stays NaN; all predictions are NaN.

    It is reproduced if Axon 0.6.1's loss with SGD and no rate given makes some runs NaN within the first 1,000 steps
    and all of those end with a NaN loss and no corner right, which only NaN predictions do. Reads these runs. The
    effect is the share that is NaN within the first epoch.
    """
    study = evidence.study
    runs = study.runs_of(study.one(**BROKEN))
    early, nan = runs["first_nonfinite_step"] <= runs["iterations"], runs["first_nonfinite_step"].notna()
    count, n = int(early.sum()), len(runs)
    stays = (runs["accuracy"] == 0) & runs["final_loss"].isna()
    verdict = ("supported" if stays[early].all() else "undecided") if count else "refuted"
    sentence = (
        f"With Axon 0.6.1's loss {_of(count, n)} seeds are NaN within the first epoch and {_of(int(nan.sum()), n)} "
        f"within {runs['epochs'].iloc[0]}; {_of(int(stays[nan].sum()), int(nan.sum()))} of these stay NaN. The first "
        f"loss is {runs['initial_loss'].median():.2f} in the median."
    )
    return Verdict(verdict, *_share(count, n), "Wilson", n, sentence)


def _count(runs: pd.DataFrame, outcome: str) -> int:
    return int((runs["outcome"] == outcome).sum())


def _share(count: int, n: int) -> tuple[float, float, float]:
    """Return a share and the ends of its 95 % interval; of no runs, any share is possible."""
    return (count / n, *wilson(count, n)) if n else (0.0, 0.0, 1.0)


def _beyond(bound: float, low: float, high: float) -> str:
    """Return whether an interval lies above a bound ("supported"), below it ("refuted"), or holds it."""
    return "supported" if low > bound else "refuted" if high < bound else "undecided"


def _of(count: int, n: int) -> str:
    if count and count == n:
        return f"all {n:,}"
    return f"{count:,} of {n:,}" if count else f"none of {n:,}"


def _total(cells: pd.DataFrame, outcome: str) -> str:
    """Return how many runs of some cells had an outcome."""
    return _of(int(cells[f"{outcome}_runs"].sum()), int(cells["n"].sum()))


def _percent(share: Any) -> str:
    return f"{100 * share:.3g} %"


def _more(difference: float) -> str:
    """Return a difference of shares in words."""
    if not difference:
        return "as many runs as"
    return f"{_percent(abs(difference))} {'fewer' if difference < 0 else 'more'} runs than"


def _later(steps: float) -> str:
    """Return a difference of steps in words."""
    if not steps:
        return "as soon as"
    return f"{abs(steps):,.0f} steps {'earlier' if steps < 0 else 'later'} than"


def _rates(chosen: pd.Series[float], tried: pd.Series[float]) -> str:
    """Return some of the rates that were tried in words: as a range only if it leaves none of them out."""
    rates = sorted(set(chosen))
    if not rates:
        return "at no rate"
    if len(rates) == 1 or len(rates) < tried[tried.between(rates[0], rates[-1])].nunique():
        return f"at {', '.join(f'{rate:g}' for rate in rates)}"
    return f"from {rates[0]:g} on" if rates[-1] == tried.max() else f"from {rates[0]:g} to {rates[-1]:g}"


def _with_broken_loss(study: Study) -> str:
    """Return in words how many runs with Axon 0.6.1's loss solve XOR, whatever their rate."""
    cells = study.where("lr", **BROKEN)
    return f"On the broken loss {_total(cells, 'solved')} runs at {_plural(len(cells), 'rate')} solve XOR."


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _nonfinite(study: Study, first: int, second: int) -> Effect:
    return _difference(study, first, second, "nonfinite")


def _difference(study: Study, first: int, second: int, outcome: str) -> Effect:
    one, other = study.pairs(first, second)
    return paired_difference(one["outcome"] == outcome, other["outcome"] == outcome)


def _steps(study: Study, first: int, second: int) -> tuple[Effect, int]:
    """Return by how many steps the second cell solves later, over the seeds that both solve, and how many these are."""
    one, other = (runs["solved_step"].reset_index(drop=True) for runs in study.pairs(first, second))
    both = one.notna() & other.notna()
    return paired_shift(one[both].astype(float), other[both].astype(float)), int(both.sum())


def _cause(evidence: Evidence, cells: pd.DataFrame, what: str, besides: str) -> Verdict:
    """Judge a root cause: does anything within `cells` turn the sound network, paired by seed, into NaN?

    The effect is that of the cell with the most NaN; p-values are adjusted for the number of cells by Holm's method.

    Args:
        evidence: the runs.
        cells: rows of the study's cells, the sound network among them or not.
        what: the start of the sentence.
        besides: its end.
    """
    study = evidence.study
    sound = study.one()
    # The sound network may be one of the cells; it can't be compared with itself.
    others = [int(cell) for cell in cells.index if cell != sound]
    effects = [_nonfinite(study, sound, cell) for cell in others]
    adjusted = holm([effect.p for effect in effects])
    worst = max(range(len(others)), key=lambda index: effects[index].value)
    n = len(study.pairs(sound, others[worst])[0])
    runs, count = int(cells["n"].sum()), int(cells["nonfinite_runs"].sum())
    if any(p < SIGNIFICANT and e.value > 0 for p, e in zip(adjusted, effects, strict=True)):
        verdict, nan = "supported", f"most with {describe(study.cells.iloc[others[worst]])}"
    else:
        verdict = "undecided" if count else "not the cause"
        nan = f"95 % sure: fewer than {_percent(wilson(count, runs)[1])}"
    sentence = f"{what}: {_of(count, runs)} runs in {len(cells)} cells are NaN ({nan}). {besides}".strip()
    return Verdict(verdict, *effects[worst][:3], f"McNemar, Holm over {len(others)} cells", n, sentence)


@_claim("root cause", "learning_rate")
def cause_learning_rate(evidence: Evidence) -> Verdict:
    """SGD without a given rate: the default may be too large.

    It is a cause if some rate turns the sound network into NaN. Reads the article's network with SGD at all rates.
    """
    cells = evidence.study.where("lr")
    good, bad = cells[cells["solved"] > 0.99], cells[cells["diverged"] > 0.5]
    besides = f"More than 99 % solve XOR {_rates(good['lr'], cells['lr'])}"
    if len(bad):
        besides += f"; {_rates(bad['lr'], cells['lr'])} most diverge ({_total(bad, 'nonfinite')} go to NaN)"
    what = f"SGD at {len(cells)} rates from {cells['lr'].min():g} to {cells['lr'].max():g}"
    return _cause(evidence, cells, what, f"{besides}.")


@_claim("root cause", "initialization")
def cause_initialization(evidence: Evidence) -> Verdict:
    """Some weight initializations make the gradient explode.

    It is a cause if some initializer, at some gain, turns the sound network into NaN. Reads the article's network with
    every initializer at every gain, with SGD at 0.01 and 0.1.
    """
    cells = evidence.study.where("lr", "init", "init.value", "init.scale", "gain", lr=[0.01, 0.1])
    at_default = cells[(cells["gain"] == 1) & (cells["lr"] == 0.1)]
    never = sorted(at_default[at_default["solved"] == 0]["init"])
    huge = cells[cells["gain"] == cells["gain"].max()]
    besides = f"At gain 1 and rate 0.1 {', '.join(never) or 'no initializer'} never solve{'s' * (len(never) < 2)} XOR. "
    diverged = _percent(huge["diverged_runs"].sum() / huge["n"].sum())
    besides += f"With gain {huge['gain'].iloc[0]:g}, {diverged} diverge."
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
    besides = f"Written as in a textbook, without guards, it is NaN {_rates(nan['lr'], naive['lr'])}"
    besides += f" ({_total(nan, 'nonfinite')} runs)." if len(nan) else "."
    return _cause(evidence, cells, f"Cross-entropy as shipped ({', '.join(AS_SHIPPED.values())})", besides)


@_claim("root cause", "activation,initialization,root_causes")
def cause_activation_pairing(evidence: Evidence) -> Verdict:
    """tanh with sigmoid can make gradients vanish or explode.

    It is a cause if tanh with sigmoid turns into NaN at some rate and initialization with a loss as shipped. Reads all
    runs with tanh, sigmoid and such a loss that differ only in rate, initializer and gain.
    """
    study = evidence.study
    cells = study.where("lr", "init", "init.value", "init.scale", "gain", loss=list(AS_SHIPPED))
    parts = []
    for output in ("identity", "tanh"):
        squared = study.where("lr", "activation.hidden", activation__output=output, loss="mean_squared_error")
        nan = squared[squared["nonfinite_runs"] > 0]
        parts.append(f"{output} {_rates(nan['lr'], squared['lr'])} ({_total(squared, 'nonfinite')} runs)")
    besides = f"With squared error, other outputs are NaN: {', '.join(parts)}."
    return _cause(evidence, cells, "tanh with sigmoid, at any rate and initialization", besides)


def _fix(study: Study, pairs: Sequence[tuple[int, int]], what: str) -> Verdict:
    """Judge a fix on the broken loss: do the runs train, without NaN, in all settings?

    The effect is how much more often XOR is solved, in the setting where that is least.

    Args:
        study: the runs.
        pairs: the cells without and with the fix, for each setting.
        what: the start of the sentence.
    """
    effects = [_difference(study, broken, fixed, "solved") for broken, fixed in pairs]
    adjusted = holm([effect.p for effect in effects])
    before, after = (study.cells.loc[list(cells)] for cells in zip(*pairs, strict=True))
    least = min(range(len(pairs)), key=lambda index: effects[index].value)
    cures = all(p < SIGNIFICANT and e.value > 0 for p, e in zip(adjusted, effects, strict=True))
    verdict = "refuted" if effects[least].high < EQUIVALENT else "undecided"
    verdict = "supported" if cures and not after["nonfinite_runs"].sum() else verdict
    sentence = (
        f"{what}: NaN in {_total(before, 'nonfinite')} runs before and {_total(after, 'nonfinite')} after; XOR is "
        f"solved by {_total(after, 'solved')}."
    )
    if verdict == "refuted" and _nonfinite(study, *pairs[least]).value < 0 and after["diverged"].max() > 0.5:
        sentence += " The runs avoid NaN but stall at a high loss."
    n, test = len(study.pairs(*pairs[least])[0]), "McNemar, Holm" if len(pairs) > 1 else "McNemar"
    return Verdict(verdict, *effects[least][:3], test, n, sentence)


@_claim("fix", "mechanism")
def fix_newest_version(evidence: Evidence) -> Verdict:
    """Use the newest version of the framework.

    It is a fix if the loss of Axon 0.7.0, where that of 0.6.1 fails, trains without NaN. Reads both losses with SGD
    at 0.01 and 0.1 and with Adam.
    """
    study = evidence.study
    pairs = [(study.one(**BROKEN, **setting), study.one(**NEWEST, **setting)) for setting in SETTINGS.values()]
    return _fix(study, pairs, f"Axon 0.7.0 instead of 0.6.1 ({', '.join(SETTINGS)})")


@_claim("fix", "mechanism")
def fix_sgd_0_01(evidence: Evidence) -> Verdict:
    """SGD with learning rate 0.01.

    It is a fix if it trains where no rate given does not. Reads the runs of Axon 0.6.1's loss with no rate given, which
    are the runs with 0.01: the study would not even give them two identities.
    """
    study = evidence.study
    pair = study.one(**BROKEN), study.one(**BROKEN, lr=0.01)
    verdict = _fix(study, [pair], "SGD at 0.01 with the loss of Axon 0.6.1")
    same = " 0.01 is already the default rate of SGD, so these are the same runs." if pair[0] == pair[1] else ""
    return verdict._replace(sentence=f"{verdict.sentence}{same}")


@_claim("fix", "mechanism")
def fix_adam(evidence: Evidence) -> Verdict:
    """Adam.

    It is a fix if Adam, at Axon's own rate of 0.001, trains where SGD does not. Reads Axon 0.6.1's loss with both.
    """
    study = evidence.study
    pairs = [(study.one(**BROKEN), study.one(**BROKEN, **SETTINGS["Adam 0.001"]))]
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
    # A larger rate that solves fewer but sooner decides nothing.
    worse = steps.p < SIGNIFICANT and steps.value < 0 and rates.value >= 0
    verdict = "refuted" if worse else "supported" if rates.value <= 0 and steps.value >= 0 else "undecided"
    tiny = cells[cells["lr"] < 0.01].sort_values("lr").iloc[-1]
    sentence = (
        f"The best rate up to 0.01 is {lr[small]:g}; {lr[large]:g} solves {_more(rates.value)} it, "
        f"{_later(steps.value)} it (median of {n:,} pairs). {_percent(tiny['solved'])} solve in "
        f"{_plural(tiny['epochs'], 'epoch')} at {tiny['lr']:g}. {_with_broken_loss(study)}"
    )
    return Verdict(verdict, *steps[:3], "Wilcoxon, bootstrap", n, sentence)


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
    by_name = {name: study.where("lr", optimizer=name) for name in ("sgd", "adam")}
    common = sorted(set(by_name["sgd"]["lr"]) & set(by_name["adam"]["lr"]))
    pairs = [study.pairs(study.one(optimizer="sgd", lr=lr), study.one(optimizer="adam", lr=lr)) for lr in common]
    sgd, adam = (pd.concat(runs)["outcome"] == "solved" for runs in zip(*pairs, strict=True))
    effect = paired_difference(sgd, adam)
    ranges = [_rates(cells[cells["solved"] >= 0.95]["lr"], cells["lr"]) for cells in by_name.values()]
    broken = study.where("lr", **BROKEN, optimizer=ADAM)
    sentence = (
        f"Over {len(common)} rates from {common[0]:g} to {common[-1]:g} Adam solves {_more(effect.value)} SGD; 95 % "
        f"solve {ranges[1]} with Adam and {ranges[0]} with SGD. On the broken loss {_total(broken, 'nonfinite')} runs "
        f"with Adam are NaN and {_total(broken, 'solved')} solve XOR."
    )
    return Verdict(_better(effect), *effect[:3], "McNemar", len(sgd), sentence)


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
    steps, both = _steps(study, tanh, relu)
    solved = study.cells["solved"]
    sentence = (
        f"{_percent(solved[relu])} solve XOR with relu, {_percent(solved[tanh])} with tanh. Where both do, relu "
        f"does so {_later(steps.value)} tanh (median of {both:,} pairs)."
    )
    return Verdict(_better(effect), *effect[:3], "McNemar", len(study.pairs(tanh, relu)[0]), sentence)


@_claim("practice", "clipping")
def practice_gradient_clipping(evidence: Evidence) -> Verdict:
    """Add gradient clipping against explosion.

    It protects if runs with Axon 0.6.1's loss, SGD at 0.01, are NaN less often with every clipping that was tried;
    whether they then train, which is more than is claimed, is reported. The effect is the difference in NaN of the
    clipping that takes least of it away. Reads that loss, and the sound one, with and without clipping.
    """
    study = evidence.study
    broken = study.one(**BROKEN)
    cells = study.where("clip", "clip.bound", **BROKEN)
    clipped = cells[cells["clip"] != "none"]
    effects = [_nonfinite(study, broken, int(cell)) for cell in clipped.index]
    adjusted = holm([effect.p for effect in effects])
    effect = max(effects, key=lambda effect: effect.value)
    protects = all(p < SIGNIFICANT and e.value < 0 for p, e in zip(adjusted, effects, strict=True))
    verdict = "supported" if protects else "refuted" if effect.low > -EQUIVALENT else "undecided"
    # At rate 10 the sound network diverges, which is what clipping is said to prevent.
    fast = study.where("clip", "clip.bound", lr=10.0)
    best = fast[fast["clip"] != "none"].sort_values("solved").iloc[-1]
    unclipped = fast[fast["clip"] == "none"].iloc[0]
    sentence = (
        f"With the loss of Axon 0.6.1 {_percent(cells.loc[broken, 'nonfinite'])} are NaN without clipping and at most "
        f"{_percent(clipped['nonfinite'].max())} with it; {_total(clipped, 'solved')} clipped runs solve XOR. On the "
        f"sound network at rate 10, {_percent(unclipped['solved'])} solve it without clipping and "
        f"{_percent(best['solved'])} with the best ({describe(best)})."
    )
    n = len(study.runs_of(broken))
    return Verdict(verdict, *effect[:3], f"McNemar, Holm over {len(effects)} cells", n, sentence)


@_claim("practice", "initialization")
def practice_initialization(evidence: Evidence) -> Verdict:
    """Try other weight initializations.

    It helps if some other initializer trains Axon 0.6.1's loss, where the failure is; what it gains on the sound
    network is reported. The effect is the difference in solved runs of the best. Reads all initializers with SGD at
    0.01.
    """
    study = evidence.study
    broken = study.one(**BROKEN)
    others = study.where("init", "init.value", "init.scale", **BROKEN).drop(index=broken)
    effects = [_difference(study, broken, int(cell), "solved") for cell in others.index]
    adjusted = holm([effect.p for effect in effects])
    best = max(range(len(effects)), key=lambda index: effects[index].value)
    effect, n = effects[best], len(study.pairs(broken, int(others.index[best]))[0])
    helps = adjusted[best] < SIGNIFICANT and effect.value > 0
    verdict = "supported" if helps else "refuted" if effect.high < EQUIVALENT else "undecided"
    soonest = _best(study.where("init", "init.value", "init.scale"))
    steps, both = _steps(study, study.one(), soonest)
    sentence = (
        f"With the loss of Axon 0.6.1 {_total(others, 'solved')} runs with {len(others)} other initializers solve XOR. "
        f"The best on the sound network, {study.cells['init'][soonest]}, solves XOR {_later(steps.value)} "
        f"{RunSpec().init} (median of {both:,} pairs)."
    )
    return Verdict(verdict, *effect[:3], f"McNemar, Holm over {len(others)} cells", n, sentence)


@lru_cache(maxsize=1)
def _fixed_runs(evidence: Evidence) -> tuple[str, pd.DataFrame]:
    """Return the names of the fixes that are supported, and the runs with them; none if no fix is."""
    study = evidence.study
    settings: dict[str, list[dict[str, Any]]] = {
        "fix_newest_version": [NEWEST | setting for setting in SETTINGS.values()],
        "fix_sgd_0_01": [BROKEN | SETTINGS["SGD 0.01"]],
        "fix_adam": [BROKEN | SETTINGS["Adam 0.001"]],
    }
    names = [name for name in settings if CLAIMS[name].judge(evidence).verdict == "supported"]
    cells = [study.one(**setting) for name in names for setting in settings[name]]
    return ", ".join(names) or "no fix", study.pooled(study.cells.loc[cells])


@_claim("outcome", "mechanism")
def verify_stable(evidence: Evidence) -> Verdict:
    """With the fixes, training is stable, without NaN.

    Reads the runs with the fixes whose verdict is `supported`. The effect is the share of NaN.
    """
    names, runs = _fixed_runs(evidence)
    count, n = _count(runs, "nonfinite"), len(runs)
    share, low, high = _share(count, n)
    verdict = "refuted" if count else "supported" if high < EQUIVALENT else "undecided"
    sentence = f"With {names}, {_of(count, n)} runs are NaN (95 % sure: fewer than {_percent(high)})."
    return Verdict(verdict, share, low, high, "Wilson", n, sentence)


@_claim("outcome", "mechanism")
def verify_accurate(evidence: Evidence) -> Verdict:
    """With the fixes, the network predicts XOR correctly.

    Reads the same runs as `verify_stable`. The effect is the share that solves XOR.
    """
    names, runs = _fixed_runs(evidence)
    count, n = _count(runs, "solved"), len(runs)
    share = _share(count, n)
    sentence = f"With {names}, {_of(count, n)} runs answer all four corners rightly."
    return Verdict(_beyond(1 - EQUIVALENT, *share[1:]), *share, "Wilson", n, sentence)


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
    share = _share(count, n)
    median = _percent(table["share_true"].median())
    sentence = f"{_of(count, n).capitalize()} pictures show it; {median} of the square is called true in the median."
    return Verdict(_beyond(1 - EQUIVALENT, *share[1:]), *share, "Wilson", n, sentence)


@_claim("advice", "mechanism,optimizer,clipping,initialization")
def advice_version_first(evidence: Evidence) -> Verdict:
    """Check the framework's version first.

    It is right if, with the broken loss, the newer version trains and nothing else that the article varies does: rate,
    optimizer, clipping, initialization. The effect is the difference in solved runs between the version and the best of
    all else, at SGD 0.01. Reads all runs with Axon 0.6.1's loss.
    """
    study = evidence.study
    others = study.where("lr", "optimizer", "clip", "clip.bound", "init", "init.value", "init.scale", **BROKEN)
    best, newest = _best(others), study.one(**NEWEST)
    effect = _difference(study, best, newest, "solved")
    sentence = (
        f"With the loss of 0.6.1 {_total(others, 'solved')} runs solve XOR, over {len(others)} cells of rates, "
        f"optimizers, clippings and initializers; with that of 0.7.0 {_percent(study.cells['solved'][newest])} do."
    )
    return Verdict(_better(effect), *effect[:3], "McNemar", len(study.pairs(best, newest)[0]), sentence)


@_claim("advice", "root_causes")
def advice_tune(evidence: Evidence) -> Verdict:
    """Tune hyperparameters, the learning rate above all.

    It is right about the sound network if, of the factors that `root_causes` crosses, the rate alone explains most of
    the variance of success. Reads the table "importance". The effect is the rate's share of the variance less the next
    single factor's, between the ends of their intervals.
    """
    table = evidence.tables["importance"]
    singles = table[~table["term"].str.contains(" x ") & (table["term"] != "higher order")].sort_values("share")
    rate = singles[singles["term"] == "lr"].to_dict("records")[-1]
    rest = singles[singles["term"] != "lr"].to_dict("records")[-1]
    # Wider than the interval of the difference, whose two shares come from the same seeds.
    low, high = rate["low"] - rest["high"], rate["high"] - rest["low"]
    sentence = (
        f"On sound networks the rate alone explains {_percent(rate['share'])} of the variance of success, the largest "
        f"other single factor, {rest['term']}, {_percent(rest['share'])}. {_with_broken_loss(evidence.study)}"
    )
    effect = rate["share"] - rest["share"], low, high
    n = int(table["n"].iloc[0])
    return Verdict(_beyond(0.0, low, high), *effect, "variance decomposition, bootstrap", n, sentence)


@_claim("advice", "optimizer")
def advice_optimizers(evidence: Evidence) -> Verdict:
    """Try several optimizers.

    It is good advice about the sound network if, each at its own default rate, some other one solves XOR sooner than
    SGD at its own and no less often. The effect is by how many steps the best is later (negative: sooner). Reads the
    sound network with every optimizer at its default rate.
    """
    study = evidence.study
    sgd = study.one()
    rates = {name: RunSpec(optimizer=name).lr for name in study.where("lr", "optimizer")["optimizer"].unique()}
    others = {name: study.where(optimizer=name, lr=rate) for name, rate in rates.items() if name != "sgd"}
    tried = {name: int(cell.index[0]) for name, cell in others.items() if len(cell)}
    effects = {name: _steps(study, sgd, cell) for name, cell in tried.items()}
    adjusted = dict(zip(effects, holm([effect.p for effect, _ in effects.values()]), strict=True))
    name = min(effects, key=lambda name: effects[name][0].value)
    steps, n = effects[name]
    often = _difference(study, sgd, tried[name], "solved")
    sooner = adjusted[name] < SIGNIFICANT and steps.value < 0 and often.low > -EQUIVALENT
    verdict = "supported" if sooner else "refuted" if steps.value >= 0 else "undecided"
    sentence = (
        f"At their own rates {name} ({rates[name]:g}) solves XOR {_later(steps.value)} SGD ({rates['sgd']:g}), "
        f"{_percent(study.cells['solved'][tried[name]])} of runs. {_other_optimizers_on_broken_loss(study)}"
    )
    return Verdict(verdict, *steps[:3], f"Wilcoxon, Holm over {len(effects)}, bootstrap", n, sentence)


def _other_optimizers_on_broken_loss(study: Study) -> str:
    """Return in words how the other optimizers than SGD end with Axon 0.6.1's loss, whatever their rate."""
    cells = study.where("lr", "optimizer", **BROKEN)
    others = cells[cells["optimizer"] != "sgd"]
    loss = study.row(**BROKEN, **SETTINGS["Adam 0.001"])["final_loss_median"]
    near = "near" if abs(loss / PLATEAU - 1) < 0.1 else "not near"
    return (
        f"On the broken loss {_total(others, 'solved')} runs with {', '.join(others['optimizer'].unique())} solve XOR; "
        f"Adam's loss ends at {loss:.3g} in the median, {near} the plateau of {PLATEAU:.3g}."
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
    most, best = max((monitor["true"], name) for name, monitor in table.loc["all"].iterrows())
    sentence = (
        f"With Axon's loss a mean loss above {row['threshold']:.3g} times its start warns of {_percent(row['true'])} "
        f"of NaN, {row['lead_median']:,.0f} steps ahead in the median, with {_percent(row['false'])} false alarms. "
        f"Over all failures, those of losses without guards included, the best monitor ({best}) warns of "
        f"{_percent(most)}."
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
    to_one = table["side"].isin(["one", "both"])
    exact = (to_one | (table["side"] == "zero")) & ~table["rounded_before"]
    beyond = table[table["side"] == "reciprocal"]
    count, n = int(exact.sum()), len(table)
    share = _share(count, n)
    smallest = table["logit"][to_one & (table["dtype"] == "float32")].min()
    sentence = (
        f"In {_of(count, n)} runs it is the very step at which a probability rounds, in {_of(int(to_one.sum()), n)} to "
        f"1; the smallest logit at which it does so in float32 is {smallest:.3g}."
    )
    if len(beyond):
        sentence += f" In {len(beyond)}, all in {', '.join(beyond['dtype'].unique())}, 1 / p overflows first."
    return Verdict(_beyond(1 - EQUIVALENT, *share[1:]), *share, "Wilson", n, sentence)


@_claim("open question", "learning_rate")
def small_rate_is_enough(evidence: Evidence) -> Verdict:
    """Is 0.01 or less enough within ten epochs, and what does a larger rate gain?

    It is if 0.01 solves XOR within 10,000 steps in 99 % of runs. Reads SGD at all rates. The effect is the share that
    is solved.
    """
    study = evidence.study
    cell, faster = study.one(), study.one(lr=0.1)
    row = study.cells.to_dict("index")[cell]
    share = row["solved"], row["solved_low"], row["solved_high"]
    steps, n = _steps(study, cell, faster)
    smaller = study.where("lr").sort_values("lr", ascending=False).query("0.001 <= lr < 0.01")
    lower = ", ".join(f"{_percent(other['solved'])} at {other['lr']:g}" for _, other in smaller.iterrows())
    sentence = (
        f"{_percent(row['solved'])} solve XOR within {_plural(row['epochs'], 'epoch')} at 0.01, {lower}; 0.1 solves it "
        f"{_later(steps.value)} 0.01, which takes {row['solved_step_median']:,.0f} (medians, {n:,} pairs)."
    )
    return Verdict(_beyond(0.99, *share[1:]), *share, "Wilson", int(row["n"]), sentence)


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
    largest = max(range(len(effects)), key=lambda index: abs(effects[index].value))
    same = all(e.low > -EQUIVALENT and e.high < EQUIVALENT for e in effects)
    verdict = "supported" if same else "refuted" if adjusted[largest] < SIGNIFICANT else "undecided"
    wide = study.where("hidden", lr=0.1, activation__hidden="relu")
    enough = wide[wide["solved_low"] > 0.95]["hidden"]
    effect, rate = effects[largest], study.cells["lr"][pairs[largest][0]]
    sentence = f"relu solves {_more(effect.value)} tanh with {RunSpec().hidden} units at {rate:g}"
    sentence += f"; at 0.1 it takes {enough.min()} units to solve 95 %." if len(enough) else "."
    n = len(study.pairs(*pairs[largest])[0])
    return Verdict(verdict, *effect[:3], f"McNemar, Holm over {len(effects)} rates", n, sentence)


@_claim("open question", "root_causes")
def rate_explains_most(evidence: Evidence) -> Verdict:
    """Which factor explains most of the variance of the outcome?

    The rate does if its share is the largest of all terms, interactions included. Reads the table "importance". The
    effect is the share of the term that explains most.
    """
    first, second, *others = evidence.tables["importance"].to_dict("records")
    clear = first["low"] > second["high"]
    verdict = ("supported" if first["term"] == "lr" else "refuted") if clear else "undecided"
    rest = ", ".join(f"{row['term']} {_percent(row['share'])}" for row in (second, *others[:2]))
    sentence = f"{first['term']} explains {_percent(first['share'])} of the variance of solving XOR; then come {rest}."
    effect = first["share"], first["low"], first["high"]
    return Verdict(verdict, *effect, "variance decomposition, bootstrap", int(first["n"]), sentence)
