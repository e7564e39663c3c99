"""Claims: judged on the committed study, and on doctored copies of it where they must come out otherwise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study.analysis.cells import Study
from xor_study.study.reference import REFERENCE, read_table
from xor_study.study.claims import AXON, CLAIMS, NEWEST, VERDICTS, Evidence, verdicts

ARTICLE = """capacity symptom cause_learning_rate cause_initialization cause_loss cause_activation_pairing
fix_newest_version fix_sgd_0_01 fix_adam practice_small_rate practice_adam_stable practice_relu
practice_gradient_clipping
practice_initialization verify_stable verify_accurate verify_boundary advice_version_first advice_tune advice_optimizers
advice_monitoring"""
"""The claims as the article makes them."""

TABLES = ("importance", "monitors", "naive_onsets", "boundaries")


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """The committed runs, 20 seeds of each cell, with the committed tables."""
    return Evidence(Study(read_table(REFERENCE, "runs")), {name: read_table(REFERENCE, name) for name in TABLES})


def changed(evidence: Evidence, cell: int, **values: object) -> Evidence:
    """Return the evidence with other results in one cell."""
    runs = evidence.study.runs.copy()
    for column, value in values.items():
        runs.loc[runs["cell"] == cell, column] = value
    return Evidence(Study(runs.drop(columns="cell")), evidence.tables)


def verdict(evidence: Evidence, name: str) -> str:
    return CLAIMS[name].judge(evidence).verdict


def test_every_claim_of_the_article_is_judged_in_its_order() -> None:
    assert list(CLAIMS)[: len(ARTICLE.split())] == ARTICLE.split()
    assert all(claim.kind == "open question" for name, claim in CLAIMS.items() if name not in ARTICLE.split())


def test_twenty_seeds_never_contradict_a_thousand(evidence: Evidence) -> None:
    committed = read_table(REFERENCE, "claims").set_index("claim")
    few = verdicts(evidence).set_index("claim")
    assert list(few.index) == list(committed.index)
    for name in few.index:
        assert few["verdict"][name] in VERDICTS
        assert few["verdict"][name] in (committed["verdict"][name], "undecided"), name
        assert few["low"][name] <= few["effect"][name] <= few["high"][name]
        assert few["n"][name] <= committed["n"][name] or name in TABLES or few["n"][name] == committed["n"][name]


@pytest.mark.parametrize("name", ["cause_learning_rate", "cause_loss", "cause_activation_pairing"])
def test_a_rate_that_brings_nan_is_a_cause(evidence: Evidence, name: str) -> None:
    assert verdict(evidence, name) == "not the cause"
    spoilt = changed(evidence, evidence.study.one(lr=10.0), outcome="nonfinite")
    assert verdict(spoilt, name) == "supported"


def test_an_initializer_that_brings_nan_is_a_cause(evidence: Evidence) -> None:
    spoilt = changed(evidence, evidence.study.one(init="he_normal", gain=100.0, lr=0.1), outcome="nonfinite")
    assert verdict(spoilt, "cause_initialization") == "supported"
    assert verdict(spoilt, "cause_learning_rate") == "not the cause"


def test_one_nan_alone_decides_nothing(evidence: Evidence) -> None:
    runs = evidence.study.runs.copy()
    place = runs.index[runs["cell"] == evidence.study.one(lr=10.0)][0]
    runs.loc[place, "outcome"] = "nonfinite"
    assert verdict(Evidence(Study(runs.drop(columns="cell"))), "cause_learning_rate") == "undecided"


def test_a_fix_must_train_and_not_only_be_finite(evidence: Evidence) -> None:
    """Adam on the broken loss is never NaN; it is a fix only if it solves XOR."""
    assert verdict(evidence, "fix_adam") != "supported"
    cell = evidence.study.one(**AXON, optimizer="polaris_adam", lr=0.001)
    assert verdict(changed(evidence, cell, outcome="solved"), "fix_adam") == "supported"


def test_a_fix_that_leaves_nan_is_none(evidence: Evidence) -> None:
    assert verdict(evidence, "fix_newest_version") == "supported"
    runs = evidence.study.runs.copy()
    place = runs.index[runs["cell"] == evidence.study.one(**NEWEST)][0]
    runs.loc[place, "outcome"] = "nonfinite"
    spoilt = Evidence(Study(runs.drop(columns="cell")), evidence.tables)
    assert verdict(spoilt, "fix_newest_version") != "supported"
    assert verdict(spoilt, "verify_stable") == "undecided"  # there is no fix left to judge it on


def test_a_network_that_never_solves_is_not_shown_to_have_the_capacity(evidence: Evidence) -> None:
    cell = evidence.study.one(lr=0.1)
    assert verdict(changed(evidence, cell, outcome="unsolved"), "capacity") == "undecided"


def test_relu_is_as_good_if_it_solves_as_often(evidence: Evidence) -> None:
    better = evidence
    for lr in (0.01, 0.1, 1.0):
        better = changed(better, better.study.one(lr=lr, activation__hidden="relu"), outcome="solved", solved_step=3)
    assert verdict(better, "practice_relu") != "supported"
    assert CLAIMS["relu_as_good_as_tanh"].judge(better).effect == 0


def test_a_rounding_that_comes_earlier_refutes_the_rounding(evidence: Evidence) -> None:
    tables = evidence.tables | {"naive_onsets": evidence.tables["naive_onsets"].assign(rounded_before=True)}
    assert verdict(evidence, "naive_loss_rounds") == "supported"
    assert verdict(Evidence(evidence.study, tables), "naive_loss_rounds") == "refuted"


def test_a_monitor_must_warn_early_and_not_cry_wolf(evidence: Evidence) -> None:
    def judged(**values: float) -> str:
        table = evidence.tables["monitors"].assign(**values)
        return verdict(Evidence(evidence.study, {"monitors": table}), "advice_monitoring")

    assert judged() == "supported"
    assert judged(false=1.0, false_low=0.99, false_high=1.0) == "refuted"
    assert judged(true=0.1, true_low=0.05, true_high=0.2) == "refuted"
    assert judged(lead_median=0.0) == "undecided"


def test_importance_decides_two_claims(evidence: Evidence) -> None:
    def judged(lr: float, init: float, both: float) -> tuple[str, str]:
        terms = {"lr": lr, "init": init, "lr x init": both, "higher order": 0.0}
        table = pd.DataFrame({"term": terms.keys(), "share": terms.values()}).sort_values("share", ascending=False)
        table = table.assign(low=table["share"] - 0.01, high=table["share"] + 0.01, n=100)
        own = Evidence(evidence.study, {"importance": table})
        return verdict(own, "advice_tune"), verdict(own, "rate_explains_most")

    assert judged(0.6, 0.2, 0.1) == ("supported", "supported")
    assert judged(0.3, 0.2, 0.5) == ("supported", "refuted")
    assert judged(0.2, 0.6, 0.1) == ("refuted", "refuted")
    assert judged(0.4, 0.395, 0.1) == ("undecided", "undecided")


def test_the_committed_onsets_lie_on_the_theory() -> None:
    """A probability is 1 from z = p log 2 (in the precision itself) or (p + 1) log 2 (rounded from a wider one) on."""
    table = read_table(REFERENCE, "naive_onsets")
    table = table[table["side"].isin(("one", "both"))]
    for dtype, bits in (("bfloat16", 8 + 1), ("float16", 11 + 1), ("float32", 24), ("float64", 53)):
        runs = table[table["dtype"] == dtype]
        assert len(runs) > 100
        assert runs["logit"].min() >= bits * np.log(2) * (1 - 2**-8)  # of a logit of few bits
        assert runs["before"].max() < bits * np.log(2)


def test_the_committed_study_has_no_absolute_paths() -> None:
    for name in ("provenance.json", "report.md"):
        assert str(Path.home()) not in (REFERENCE / name).read_text()
