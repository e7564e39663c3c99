"""The article's claims, one function each, and the verdicts on them.

A function takes the evidence and returns a verdict with an effect and its 95 % interval. Its docstring says what is
claimed, by which rule it is judged, and which runs are read. Suspects are judged by the rule of `causes`, remedies by
the words of `remedies`; a question gets an answer. Effects are differences of paired rates (of the same seeds) or of
paired steps, unless the docstring says otherwise. Sentences are made from the data: none states a conclusion that other
data would not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from xor_study.analysis.axon import ADAM, BROKEN, NEWEST, PLATEAU, SETTINGS
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import SIGNIFICANT, Effect, difference_over_levels, holm, wilson
from xor_study.errors import StudyError
from xor_study.study import causes, monitors, remedies, theory
from xor_study.study.effects import difference, steps_between
from xor_study.study.wording import later, listed, more, of, percent, plural, rates, total
from xor_study.training.spec import RunSpec

VERDICTS: dict[str, tuple[str, ...]] = {
    "premise": ("supported", "refuted", "undecided"),
    "observation": ("supported", "refuted", "undecided"),
    "root cause": ("cause", "necessary", "sufficient", "symptom only", "not a cause", "undecided"),
    "fix": remedies.FAILING_WORDS,
    "practice": remedies.FAILING_WORDS,
    "outcome": ("supported", "refuted", "undecided"),
    "advice": ("supported", "refuted", "undecided"),
    "open question": ("yes", "no", "undecided"),
}
"""The verdicts on claims, by the part that they play in the article; open questions are ours."""

EQUIVALENT = 0.05
"""Shares that differ by less are taken for equal."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that `_fixed_runs` can cache by it
class Evidence:
    """The runs and tables that claims read.

    Attributes:
        study: the runs of `study=all`.
        tables: by name, the tables of `evidence` and `monitors` that claims read.
    """

    study: Study
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Verdict(NamedTuple):
    """The verdict on a claim: a row of claims.csv.

    Attributes:
        verdict: one of `VERDICTS` of its kind.
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
    """A claim: its kind, a key of `VERDICTS`, the studies whose runs it reads, and the function that judges it."""

    kind: str
    studies: str
    judge: Judge


CLAIMS: dict[str, Claim] = {}
"""All claims by name, in the article's order."""


def _claim(kind: str, studies: str) -> Callable[[Judge], Judge]:
    def register(judge: Judge) -> Judge:
        assert kind in VERDICTS
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


@lru_cache(maxsize=2)
def suspects_of(evidence: Evidence) -> pd.DataFrame:
    """Return the table of `causes.suspects`, which several claims read."""
    return causes.suspects(evidence.study)


@lru_cache(maxsize=2)
def remedies_of(evidence: Evidence) -> pd.DataFrame:
    """Return the table of `remedies.remedies`, which several claims read."""
    return remedies.remedies(evidence.study)


def _count(runs: pd.DataFrame, outcome: str) -> int:
    return int((runs["outcome"] == outcome).sum())


def _share(count: int, n: int) -> tuple[float, float, float]:
    """Return a share and the ends of its 95 % interval; of no runs, any share is possible."""
    return (count / n if n else 0.0, *wilson(count, n))


def _beyond(bound: float, low: float, high: float, words: tuple[str, str] = ("supported", "refuted")) -> str:
    """Return the first word if an interval lies above a bound, the second if below, "undecided" if it holds it."""
    return words[0] if low > bound else words[1] if high < bound else "undecided"


def _best(cells: pd.DataFrame) -> int:
    """Return the cell that solves most often and, among equals, soonest."""
    ranked = cells.sort_values(["solved", "solved_step_median"], ascending=[False, True], kind="stable")
    return int(ranked.index[0])


@_claim("premise", "learning_rate")
def capacity(evidence: Evidence) -> Verdict:
    """This network can represent XOR.

    It can if training finds weights that answer all four corners rightly. Reads the article's network with SGD at 0.1.
    The effect is the share that does.
    """
    study = evidence.study
    runs = study.runs_of(study.one(lr=0.1))
    count, n = _count(runs, "solved"), len(runs)
    sentence = f"{of(count, n).capitalize()} runs with SGD at 0.1 find weights that represent XOR."
    return Verdict("supported" if count else "undecided", *_share(count, n), "Wilson", n, sentence)


@_claim("observation", "interventions")
def symptom(evidence: Evidence) -> Verdict:
    """The loss starts near 0.77, is NaN after the first epoch has ended and stays NaN; all predictions are NaN.

    What is printed is the mean of all losses so far. It is reproduced if, on the failing configuration, that mean lies
    within 5 % of 0.77 at the end of the first epoch in the median of the runs that are not NaN then, some runs are
    first NaN in a later epoch, and every NaN run ends with a NaN loss and no corner right, which only NaN predictions
    do. Reads these runs, and the table "symptom". The effect is the share of all runs that are first NaN after the
    first epoch.
    """
    study = evidence.study
    runs = study.runs_of(study.one(**BROKEN))
    onset, epoch = runs["first_nonfinite_step"], runs["iterations"]
    nan = onset.notna()
    later_epochs = nan & (onset > epoch).fillna(False)
    stays = (runs["accuracy"] == 0) & runs["final_loss"].isna()
    printed = evidence.tables["symptom"].set_index("step")["median"]
    first_epoch = int(epoch.iloc[0])
    count, n = int(later_epochs.sum()), len(runs)
    near = abs(printed[first_epoch] / 0.77 - 1) < EQUIVALENT
    verdict = "supported" if count and near and stays[nan].all() else "refuted" if not nan.any() else "undecided"
    second = int((later_epochs & (onset <= 2 * epoch).fillna(False)).sum())
    sentence = (
        f"{of(int(nan.sum()), n).capitalize()} seeds are NaN within {plural(int(runs['epochs'].iloc[0]), 'epoch')}: "
        f"{percent((nan & ~later_epochs).mean())} first in epoch 1, {percent(second / n)} in epoch 2. "
        f"{of(int(stays[nan].sum()), int(nan.sum())).capitalize()} of these stay NaN. The printed mean is "
        f"{printed.iloc[0]:.2f} at step 1 and {printed[first_epoch]:.2f} at the end of epoch 1 (medians)."
    )
    return Verdict(verdict, *_share(count, n), "Wilson", n, sentence)


def _cause(evidence: Evidence, name: str, besides: str = "") -> Verdict:
    """Judge a suspect by the rule of `causes`; the effect is the necessity of its best change.

    Args:
        evidence: the runs.
        name: of the suspect.
        besides: the end of the sentence.
    """
    table = suspects_of(evidence)
    rows = table[table["suspect"] == name]
    judgement = causes.judge(rows)
    best, worst = judgement.best, judgement.worst
    bound = max(high for column in ("ps", "ps_pytorch") for _, high in causes.simultaneous(rows, column))
    source = max(("ps", "ps_pytorch"), key=lambda column: np.nan_to_num(worst[column], nan=-1))
    on_sound = f"most with {worst['level']}: {percent(worst[source])}"
    if not rows[["ps", "ps_pytorch"]].max().max():
        on_sound = f"none is NaN; with 95 % confidence fewer than {percent(bound)} are with any of the changes"
    sentence = (
        f"On the failing configuration {plural(int(rows['pn'].count()), 'change')}: the best, {best['level']}, takes "
        f"NaN from {percent(best['pn'])} of the seeds that had it; {percent(best['cure'])} solve XOR with it. On sound "
        f"ones {plural(int(rows['ps'].count() + rows['ps_pytorch'].count()), 'change')}: {on_sound}. {besides}"
    ).strip()
    effect = best["pn"], best["pn_low"], best["pn_high"]
    return Verdict(judgement.verdict, *effect, f"PN, PS: Wilson, {len(rows)} changes", int(best["n"]), sentence)


@_claim("root cause", "interventions,learning_rate")
def cause_learning_rate(evidence: Evidence) -> Verdict:
    """SGD without a given rate: the default may be too large.

    Judged by the rule of `causes`: SGD at other rates, with 40 / lr steps below 0.001.
    """
    cells = evidence.study.where("lr")
    good, bad = cells[cells["solved"] > 0.99], cells[cells["diverged"] > 0.5]
    besides = f"With PyTorch's loss more than 99 % solve XOR {rates(good['lr'], cells['lr'])}"
    if len(bad):
        besides += f"; {rates(bad['lr'], cells['lr'])} most diverge ({total(bad, 'nonfinite')} go to NaN)"
    return _cause(evidence, "learning rate", f"{besides}.")


@_claim("root cause", "interventions,initialization")
def cause_initialization(evidence: Evidence) -> Verdict:
    """Some weight initializations make the gradient explode.

    Judged by the rule of `causes`: other initializers, and other scales of the initial weights.
    """
    return _cause(evidence, "initialization")


@_claim("root cause", "interventions,loss")
def cause_loss(evidence: Evidence) -> Verdict:
    """Binary cross-entropy suits the task but needs a fitting learning rate.

    Judged by the rule of `causes`: other losses, in Axon's arithmetic on its configurations. On PyTorch's, a loss
    without guards is another loss, so it does not count against cross-entropy as shipped.
    """
    cells = evidence.study.where("lr", loss="binary_cross_entropy_naive")
    nan = cells[cells["nonfinite_runs"] > 0]
    besides = f"Written as in a textbook, without guards, it is NaN {rates(nan['lr'], cells['lr'])}"
    besides += f" ({total(nan, 'nonfinite')} runs)." if len(nan) else "."
    return _cause(evidence, "loss", besides)


@_claim("root cause", "interventions,activation")
def cause_activation_pairing(evidence: Evidence) -> Verdict:
    """tanh with sigmoid can make gradients vanish or explode.

    Judged by the rule of `causes`: other hidden activations, relu with He's initialization, and another output. What
    gradients do is measured by `gradients_explode` and `gradients_vanish`.
    """
    return _cause(evidence, "activation pairing")


def _remedy(evidence: Evidence, claim: str, besides: str = "") -> Verdict:
    """Judge a fix or a practice by the words of `remedies`; the effect is the share that solves XOR with the best.

    Args:
        evidence: the runs.
        claim: whose remedies are read.
        besides: the end of the sentence.
    """
    table = remedies_of(evidence)
    rows, reported = remedies.of_claim(table, claim), table.iloc[0]
    best = rows.iloc[0]
    sentence = (
        f"On the failing configuration: {_grouped(rows, 'word')}. With {best['remedy']} {percent(best['nan'])} are NaN "
        f"({percent(reported['nan'])} without) and {percent(best['solved'])} solve XOR. On the sound one: "
        f"{_grouped(rows, 'sound_word')}. {besides}"
    ).strip()
    test = f"McNemar, Holm over {len(table) - 1} remedies"
    return Verdict(
        str(best["word"]), best["solved"], best["solved_low"], best["solved_high"], test, best["n"], sentence
    )


def _grouped(rows: pd.DataFrame, column: str) -> str:
    """Return the remedies by their words: "masks (A and B); reduces (C)"."""
    parts = rows.groupby(column, sort=False)["remedy"]
    return "; ".join(f"{word} ({listed(list(names))})" for word, names in parts)


@_claim("fix", "interventions")
def fix_newest_version(evidence: Evidence) -> Verdict:
    """Use the newest version of the framework.

    Judged by the words of `remedies`: Axon 0.7.0 on the failing configuration.
    """
    return _remedy(evidence, "fix_newest_version")


@_claim("fix", "interventions")
def fix_sgd_0_01(evidence: Evidence) -> Verdict:
    """SGD with learning rate 0.01.

    Judged by the words of `remedies`. The runs with no rate given are the runs with 0.01: they have one identity.
    """
    study = evidence.study
    same = (
        "It is the default rate, so these are the same runs."
        if study.one(**BROKEN) == study.one(**BROKEN, lr=0.01)
        else ""
    )
    return _remedy(evidence, "fix_sgd_0_01", same)


@_claim("fix", "interventions")
def fix_adam(evidence: Evidence) -> Verdict:
    """Adam.

    Judged by the words of `remedies`: Axon's Adam at its own rate of 0.001. The sentence also counts other rates.
    """
    cells = evidence.study.where("lr", **BROKEN, optimizer=ADAM)
    nan = cells[cells["nonfinite_runs"] > 0]
    besides = (
        f"At {plural(len(cells), 'rate')} {total(cells, 'solved')} runs solve XOR, and {total(cells, 'nonfinite')}"
    )
    besides += f" are NaN, {rates(nan['lr'], cells['lr'])}." if len(nan) else " are NaN."
    return _remedy(evidence, "fix_adam", besides)


@_claim("practice", "interventions,learning_rate")
def practice_small_rate(evidence: Evidence) -> Verdict:
    """Start SGD at 0.01 or less.

    Judged by the words of `remedies`: smaller rates than the default, with 40 / lr steps below 0.001. The sentence adds
    what ten times the default rate does to PyTorch's network.
    """
    study = evidence.study
    small, large = study.one(), study.one(lr=0.1)
    often, (steps, n) = difference(study, small, large, "solved"), steps_between(study, small, large)
    besides = (
        f"With PyTorch's loss 0.1 solves {more(often.value)} 0.01, {later(steps.value)} it (median of {n:,} pairs)."
    )
    return _remedy(evidence, "practice_small_rate", besides)


@_claim("practice", "learning_rate,optimizer")
def practice_adam_stable(evidence: Evidence) -> Verdict:
    """Adam is usually more stable, good for beginners.

    Judged on PyTorch's network over all rates that SGD and Adam were both trained with: it "helps" if more runs end
    solved with Adam, "harms" if fewer. Which rates are tried decides much, so the interval is one over rates as well as
    seeds, and "undecided" means that other rates may turn the sign.
    """
    study = evidence.study
    by_name = {name: study.where("lr", optimizer=name) for name in ("sgd", "adam")}
    common = sorted(set(by_name["sgd"]["lr"]) & set(by_name["adam"]["lr"]))
    if len(common) < 2:
        raise StudyError("SGD and Adam have fewer than two rates in common")
    pairs = [study.pairs(study.one(optimizer="sgd", lr=lr), study.one(optimizer="adam", lr=lr)) for lr in common]
    least = min(len(one) for one, _ in pairs)
    sgd, adam = (
        np.array([runs.head(least)["outcome"] == "solved" for runs in side]) for side in zip(*pairs, strict=True)
    )
    effect, (low, high) = float(adam.mean() - sgd.mean()), difference_over_levels(sgd, adam)
    ranges = [rates(cells[cells["solved"] >= 0.95]["lr"], cells["lr"]) for cells in by_name.values()]
    sentence = (
        f"Over {len(common)} rates from {common[0]:g} to {common[-1]:g} Adam solves {more(effect)} SGD; 95 % solve "
        f"{ranges[1]} with Adam and {ranges[0]} with SGD."
    )
    verdict = _beyond(0.0, low, high, ("helps", "harms"))
    return Verdict(verdict, effect, low, high, "bootstrap over rates and seeds", sgd.size, sentence)


@_claim("practice", "interventions,activation")
def practice_relu(evidence: Evidence) -> Verdict:
    """Consider ReLU in the hidden layer.

    Judged by the words of `remedies`: relu alone, and with He's initialization. The sentence adds PyTorch's network at
    the rate of 0.1.
    """
    study = evidence.study
    tanh, relu = study.one(lr=0.1), study.one(lr=0.1, activation__hidden="relu")
    solved, (steps, both) = study.cells["solved"], steps_between(study, tanh, relu)
    besides = (
        f"With PyTorch's loss at rate 0.1 {percent(solved[relu])} solve XOR with relu, {percent(solved[tanh])} with "
        f"tanh; where both do, relu does so {later(steps.value)} tanh (median of {both:,} pairs)."
    )
    return _remedy(evidence, "practice_relu", besides)


@_claim("practice", "interventions,clipping")
def practice_gradient_clipping(evidence: Evidence) -> Verdict:
    """Add gradient clipping against explosion.

    Judged by the words of `remedies`: clipping the norm and single values. The sentence counts all bounds and rates.
    """
    study = evidence.study
    cells = study.where("clip", "clip.bound", "lr", **BROKEN)
    clipped = cells[cells["clip"] != "none"]
    nan = clipped[clipped["nonfinite_runs"] > 0]
    besides = (
        f"Over {plural(len(clipped), 'bound and rate').replace('bound and rates', 'bounds and rates')} "
        f"{total(clipped, 'solved')} clipped runs solve XOR, and {total(nan, 'nonfinite')} are NaN "
        f"{rates(nan['lr'], cells['lr'])}."
    )
    return _remedy(evidence, "practice_gradient_clipping", besides)


@_claim("practice", "interventions,initialization")
def practice_initialization(evidence: Evidence) -> Verdict:
    """Try other weight initializations.

    Judged by the words of `remedies`. The sentence counts all initializers, and their scales.
    """
    cells = evidence.study.where("init", "init.value", "init.scale", "init.mode", "init.distribution", "gain", **BROKEN)
    besides = (
        f"On the failing configuration {total(cells, 'solved')} runs with {plural(len(cells), 'initializer')} or "
        f"scales solve XOR, {total(cells, 'nonfinite')} are NaN."
    )
    return _remedy(evidence, "practice_initialization", besides)


@_claim("outcome", "interventions")
def verify_stable(evidence: Evidence) -> Verdict:
    """With the fixes, training is stable, without NaN.

    Reads the failing configuration with each of the article's three fixes. Supported if NaN is below 5 % with each. The
    effect is the largest share of NaN.
    """
    rows = _fixed(evidence)
    worst = rows.sort_values("nan").iloc[-1]
    verdict = "supported" if (rows["nan_high"] < EQUIVALENT).all() else "undecided"
    verdict = "refuted" if (rows["nan_low"] > EQUIVALENT).any() else verdict
    sentence = f"NaN: {listed([f'{percent(row.nan)} with {row.remedy}' for row in rows.itertuples()])}."
    return Verdict(verdict, worst["nan"], worst["nan_low"], worst["nan_high"], "Wilson", worst["n"], sentence)


def _fixed(evidence: Evidence) -> pd.DataFrame:
    """Return the rows of remedies that are the article's fixes, in its order."""
    table = remedies_of(evidence)
    rows = table[table["claim"].str.startswith("fix_")]
    if rows.empty:
        raise StudyError("no fix was run")
    return rows


@_claim("outcome", "interventions")
def verify_accurate(evidence: Evidence) -> Verdict:
    """With the fixes, the network predicts XOR correctly.

    Reads the same runs as `verify_stable`. Supported if more than 95 % solve XOR with each fix. The effect is the
    smallest share.
    """
    rows = _fixed(evidence)
    least = rows.sort_values("solved").iloc[0]
    verdict = "supported" if (rows["solved_low"] > 1 - EQUIVALENT).all() else "undecided"
    verdict = "refuted" if (rows["solved_high"] < 1 - EQUIVALENT).any() else verdict
    sentence = f"XOR is solved by {listed([f'{percent(row.solved)} with {row.remedy}' for row in rows.itertuples()])}."
    return Verdict(verdict, least["solved"], least["solved_low"], least["solved_high"], "Wilson", least["n"], sentence)


@_claim("outcome", "interventions")
def verify_boundary(evidence: Evidence) -> Verdict:
    """With the fixes, a picture shows the decision boundary.

    It does if, in the article's picture of 50 x 50 points over the unit square, both classes appear, the corners are on
    their own sides, and neither class is only a corner (1 % of the points at least). Supported if more than 95 % of the
    pictures do with each fix. Reads the table "boundaries": the pictures of the first 100 seeds with each fix. The
    effect is the smallest share of such pictures.
    """
    table = evidence.tables["boundaries"]
    shows = table.assign(shows=table["corners_right"] & table["share_true"].between(0.01, 0.99))
    by_fix = {str(fix): (int(rows["shows"].sum()), len(rows)) for fix, rows in shows.groupby("fix", sort=False)}
    shares = {fix: _share(*counts) for fix, counts in by_fix.items()}
    verdict = "supported" if all(low > 1 - EQUIVALENT for _, low, _ in shares.values()) else "undecided"
    verdict = "refuted" if any(high < 1 - EQUIVALENT for *_, high in shares.values()) else verdict
    least = min(shares, key=lambda fix: shares[fix][0])
    sentence = f"Pictures that show it: {listed([f'{of(*counts)} with {fix}' for fix, counts in by_fix.items()])}."
    return Verdict(verdict, *shares[least], "Wilson", by_fix[least][1], sentence)


@_claim("advice", "interventions,optimizer,clipping")
def advice_version_first(evidence: Evidence) -> Verdict:
    """Check the framework's version first.

    It is right if, on the failing configuration, the newer version makes more runs solve XOR than the best of all else
    that the article varies: rate, optimizer, clipping, initialization, hidden activation. The effect is the difference
    in solved runs.
    """
    study = evidence.study
    free = [("lr", "optimizer", "iterations"), ("clip", "clip.bound"), ("activation.hidden", "init")]
    free += [("init", "init.value", "init.scale", "init.mode", "init.distribution", "gain")]
    cells = pd.concat([study.where(*keys, **BROKEN) for keys in free])
    others = cells[~cells.index.duplicated()]
    best, newest = _best(others), study.one(**NEWEST)
    effect = difference(study, best, newest, "solved")
    sentence = (
        f"On the failing configuration {total(others, 'solved')} runs solve XOR, over {len(others)} cells of rates, "
        f"optimizers, clippings, initializers and activations; with Axon 0.7.0 "
        f"{percent(study.cells['solved'][newest])} do."
    )
    return Verdict(_better(effect), *effect[:3], "McNemar", len(study.pairs(best, newest)[0]), sentence)


def _better(effect: Effect) -> str:
    """Return whether an effect supports "more often", refutes it, or is undecided."""
    if effect.p < SIGNIFICANT:
        return "supported" if effect.value > 0 else "refuted"
    return "refuted" if effect.high < EQUIVALENT else "undecided"


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
        f"On sound networks the rate alone explains {percent(rate['share'])} of the variance of success, the largest "
        f"other single factor, {rest['term']}, {percent(rest['share'])}."
    )
    effect = rate["share"] - rest["share"], low, high
    n = int(table["n"].iloc[0])
    return Verdict(_beyond(0.0, low, high), *effect, "variance decomposition, bootstrap", n, sentence)


@_claim("advice", "interventions,optimizer")
def advice_optimizers(evidence: Evidence) -> Verdict:
    """Try several optimizers.

    It is good advice if some other optimizer cures the failing configuration, each at its own default rate; what the
    best gains on PyTorch's network is reported. The effect is the largest share of runs that solve XOR on the failing
    configuration.
    """
    study = evidence.study
    tried = {}
    for name in study.where("lr", "optimizer", **BROKEN)["optimizer"].unique():
        cells = study.where(**BROKEN, optimizer=name, lr=RunSpec(optimizer=str(name)).lr)
        if name != "sgd" and len(cells):
            tried[str(name)] = int(cells.index[0])
    if not tried:
        raise StudyError("no other optimizer was tried on the failing configuration")
    row = study.cells.to_dict("index")[_best(study.cells.loc[list(tried.values())])]
    effect = row["solved"], row["solved_low"], row["solved_high"]
    loss = study.row(**BROKEN, **SETTINGS["Adam 0.001"])["final_loss_median"]
    near = "near" if abs(loss / PLATEAU - 1) < 0.1 else "not near"
    sentence = (
        f"On the failing configuration {total(study.cells.loc[list(tried.values())], 'solved')} runs with "
        f"{listed(list(tried))} solve XOR; Adam's loss ends at {loss:.3g} in the median, {near} the plateau of "
        f"{PLATEAU:.3g}. {_soonest(study)}"
    )
    return Verdict(_beyond(1 - EQUIVALENT, *effect[1:]), *effect, "Wilson", int(row["n"]), sentence)


def _soonest(study: Study) -> str:
    """Return in words which optimizer, at its own rate, solves PyTorch's network soonest."""
    sgd = study.one()
    own = {name: RunSpec(optimizer=name).lr for name in study.where("lr", "optimizer")["optimizer"].unique()}
    cells = {name: study.where(optimizer=name, lr=rate) for name, rate in own.items() if name != "sgd"}
    effects = {name: steps_between(study, sgd, int(cell.index[0])) for name, cell in cells.items() if len(cell)}
    if not effects:
        return ""
    name = min(effects, key=lambda name: effects[name][0].value)
    steps, n = effects[name]
    solved = percent(cells[name]["solved"].iloc[0])
    return (
        f"With PyTorch's loss {name} ({own[name]:g}) solves XOR {later(steps.value)} SGD ({own['sgd']:g}; median of "
        f"{n:,} pairs), in {solved} of runs."
    )


@_claim("advice", "mechanism,learning_rate,batching,precision,loss")
def advice_monitoring(evidence: Evidence) -> Verdict:
    """Monitor training so that numerical anomalies are seen early.

    Reads the table "monitors"; the rule is that of `monitors.advice`.
    """
    judged = monitors.advice(evidence.tables["monitors"])
    return Verdict(judged.verdict, judged.effect, judged.low, judged.high, "Wilson", judged.n, judged.sentence)


@_claim("open question", "interventions")
def defects_are_the_cause(evidence: Evidence) -> Verdict:
    """Are Axon's defects the cause?

    Yes if the rule of `causes`, by which the article's suspects are judged, finds them necessary and sufficient: single
    repairs on the failing configuration, all three put into the sound ones.
    """
    verdict = _cause(evidence, "Axon's defects")
    answer = {"cause": "yes", "undecided": "undecided"}.get(verdict.verdict, "no")
    return verdict._replace(verdict=answer)


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
        f"In {of(count, n)} runs it is the very step at which a probability rounds, in {of(int(to_one.sum()), n)} to "
        f"1; the smallest logit at which it does so in float32 is {smallest:.3g}."
    )
    if len(beyond):
        sentence += f" In {len(beyond)}, all in {', '.join(beyond['dtype'].unique())}, 1 / p overflows first."
    return Verdict(_beyond(1 - EQUIVALENT, *share[1:], ("yes", "no")), *share, "Wilson", n, sentence)


@_claim("open question", "learning_rate")
def small_rate_is_enough(evidence: Evidence) -> Verdict:
    """Is any rate of 0.01 or less enough within ten epochs?

    Yes if every such rate solves XOR within 10,000 steps in more than 99 % of runs, no if some does not. Reads SGD on
    PyTorch's network. The effect is the share that the smallest rate solves.
    """
    cells = evidence.study.where("lr").sort_values("lr")
    small = cells[cells["lr"] <= 0.01]
    if small.empty:
        raise StudyError("no rate of 0.01 or less was run")
    least = small.sort_values("solved").to_dict("records")[0]
    verdict = "yes" if (small["solved_low"] > 0.99).all() else "no" if least["solved_high"] < 0.99 else "undecided"
    shares = [f"{percent(row['solved'])} at {row['lr']:g}" for _, row in small.iterrows()]
    sentence = f"XOR is solved within {plural(int(least['epochs']), 'epoch')} by {listed(shares)}."
    effect = least["solved"], least["solved_low"], least["solved_high"]
    return Verdict(verdict, *effect, "Wilson", int(least["n"]), sentence)


@_claim("open question", "activation,width")
def relu_as_good_as_tanh(evidence: Evidence) -> Verdict:
    """Does relu solve as often as tanh at this width?

    It does if the rates differ by less than 5 %, at 0.01, 0.1 and 1. Reads the sound network with both. The effect is
    the largest difference.
    """
    study = evidence.study
    pairs = [(study.one(lr=lr), study.one(lr=lr, activation__hidden="relu")) for lr in (0.01, 0.1, 1.0)]
    effects = [difference(study, tanh, relu, "solved") for tanh, relu in pairs]
    adjusted = holm([effect.p for effect in effects])
    largest = max(range(len(effects)), key=lambda index: abs(effects[index].value))
    same = all(e.low > -EQUIVALENT and e.high < EQUIVALENT for e in effects)
    verdict = "yes" if same else "no" if adjusted[largest] < SIGNIFICANT else "undecided"
    wide = study.where("hidden", lr=0.1, activation__hidden="relu")
    enough = wide[wide["solved_low"] > 0.95]["hidden"]
    effect, rate = effects[largest], study.cells["lr"][pairs[largest][0]]
    sentence = f"relu solves {more(effect.value)} tanh with {RunSpec().hidden} units at {rate:g}"
    sentence += f"; at 0.1 it takes {enough.min()} units to solve 95 %." if len(enough) else "."
    n = len(study.pairs(*pairs[largest])[0])
    return Verdict(verdict, *effect[:3], f"McNemar, Holm over {len(effects)} rates", n, sentence)


@_claim("open question", "root_causes")
def rate_explains_most(evidence: Evidence) -> Verdict:
    """Does the rate, alone or in an interaction, explain most of the variance of the outcome on sound networks?

    Yes if the term with the largest share contains the rate. Reads the table "importance". The effect is the
    share of the term that explains most.
    """
    return _explains_most(evidence.tables["importance"], "lr", "solving XOR")


@_claim("open question", "interventions")
def defect_explains_most(evidence: Evidence) -> Verdict:
    """Do Axon's defects take part in most of the variance of NaN, beside rate, loss, initialization, and so on?

    Yes if, crossed with the suspects, Axon's version has the largest share of the variance, alone and in interactions
    (its total index); undecided with fewer than 30 seeds, of which a bootstrap is too narrow. Reads the table
    "factorial". The effect is the largest such share.
    """
    table = evidence.tables["factorial"]
    table = table[(table["kind"] == "total") & (table["outcome"] == "nonfinite")]
    verdict = _explains_most(table, "version", "NaN")
    seeds = evidence.study.cells["n"].min()  # not by `where`: the cells that decide are those of the table
    return verdict if seeds >= FEWEST_SEEDS else verdict._replace(verdict="undecided")


FEWEST_SEEDS = 30
"""Of a bootstrap over seeds."""


def _explains_most(table: pd.DataFrame, factor: str, what: str) -> Verdict:
    """Judge whether the term that explains most is a factor, or the factor in an interaction with others."""
    first, second, *others = table.to_dict("records")
    contains = [factor in str(row["term"]).split(" x ") for row in (first, second)]
    # Two terms that can't be ranked decide nothing, unless both are of the factor or neither is.
    clear = first["low"] > second["high"] or contains[0] == contains[1]
    verdict = ("yes" if contains[0] else "no") if clear else "undecided"
    rest = ", ".join(f"{row['term']} {percent(row['share'])}" for row in (second, *others[:2]))
    sentence = f"{first['term']}: {percent(first['share'])} of the variance of {what}; then come {rest}."
    effect = first["share"], first["low"], first["high"]
    return Verdict(verdict, *effect, "variance decomposition, bootstrap", int(first["n"]), sentence)


@_claim("open question", "interventions,theory")
def why_half(evidence: Evidence) -> Verdict:
    """Why do half of the runs go to NaN: does one jump past the edge of e^x, in a random phase, explain the share?

    Yes if the theory of docs/theory.md, into which no share of NaN enters, predicts it within 3 percentage points in
    float32 and 4 in float64 in more than 90 % of the cells, no if it does so in fewer; undecided if the shares are
    themselves known less well than to twice that. Reads the table "theory". The effect is the share of such cells.
    """
    table = evidence.tables["theory"]
    agreement = theory.agreement(table)
    n, failures = int(agreement["cells"]), len(agreement["failures"])
    parts = [
        f"{100 * agreement[dtype]['worst']:.1f} percentage points in {agreement[dtype]['cells']} cells of {dtype}"
        for dtype in theory.AIMS
    ]
    ratio = agreement["thresholds"]["ratio"]
    sentence = (
        f"The prediction is within its aim in {of(n - failures, n)} cells of rates, precisions, widths and batches; it "
        f"is off by at most {listed(parts)}."
    )
    if len(ratio):
        sentence += f" Its threshold rates are {ratio.min():.2f} to {ratio.max():.2f} times the measured ones."
    share = _share(n - failures, n)
    known = ((table["high"] - table["low"]) / 2 <= 2 * table["dtype"].map(theory.AIMS)).mean() > 0.5
    verdict = _beyond(0.9, *share[1:], ("yes", "no")) if known else "undecided"
    return Verdict(verdict, *share, "Wilson", n, sentence)


@_claim("open question", "interventions")
def gradients_explode(evidence: Evidence) -> Verdict:
    """Do gradients explode, as the article says?

    Yes if one step before NaN the gradient's norm exceeds ten times its norm 100 steps before in the median. It is what
    happens last, not why: the norm is measured on the failing configuration, where the defects act. Reads the table
    "explosion". The effect is the median norm one step before NaN, between its quartiles.
    """
    before, *_, last = evidence.tables["explosion"].to_dict("records")
    verdict = "yes" if last["grad_norm_low"] > 10 * before["grad_norm_high"] else "no"
    sentence = (
        f"One step before NaN the gradient's norm is {last['grad_norm_median']:,.3g} in the median and up to "
        f"{last['grad_norm_most']:,.3g}; {before['before']} steps before it is {before['grad_norm_median']:.3g}."
    )
    effect = last["grad_norm_median"], last["grad_norm_low"], last["grad_norm_high"]
    return Verdict(verdict, *effect, "quartiles", int(last["n"]), sentence)


@_claim("open question", "interventions")
def gradients_vanish(evidence: Evidence) -> Verdict:
    """Do gradients vanish, as the article says?

    Yes if the runs of the failing configuration that stay finite end with a gradient below a millionth in the median,
    no if the lower quartile is above it. It is where the failure ends: predictions are beyond the clip's bound, where
    the gradient is 0. Reads the table "courses". The effect is the median norm at the end, between its quartiles.
    """
    table = evidence.tables["courses"]
    ends = table.sort_values("step", kind="stable").drop_duplicates(["setting", "measure"], keep="last")
    by_name = {(row["setting"], row["measure"]): row for row in ends.to_dict("records")}
    failing, sound = "Axon 0.6.1, SGD 0.01", "sound, SGD 0.01"
    norm = by_name[failing, "grad_norm"]
    verdict = "yes" if norm["median"] < TINY else "no" if norm["low"] > TINY else "undecided"
    saturated = [percent(by_name[name, "saturated"]["median"]) for name in (failing, sound)]
    sentence = (
        f"The gradient's norm at the end is {norm['median']:.3g} in the median of the {norm['finite']} of {norm['n']} "
        f"failing runs that stay finite, and {by_name[sound, 'grad_norm']['median']:.3g} of the sound ones. Hidden "
        f"outputs beyond 0.99: {saturated[0]} and {saturated[1]}."
    )
    return Verdict(verdict, norm["median"], norm["low"], norm["high"], "quartiles", int(norm["finite"]), sentence)


TINY = 1e-6
"""A gradient's norm below which it has vanished."""
