"""Claims: judged on the committed study, and on doctored copies of it where they must come out otherwise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study.analysis.axon import BROKEN, NEWEST, SETTINGS
from xor_study.analysis.cells import Study
from xor_study.study.claims import CLAIMS, VERDICTS, Evidence, verdicts
from xor_study.study.reference import REFERENCE, read_table

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


def changed(evidence: Evidence, *cells: int, **values: object) -> Evidence:
    """Return the evidence with other results in some cells."""
    runs = evidence.study.runs.copy()
    for column, value in values.items():
        runs.loc[runs["cell"].isin(cells), column] = value
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
    cell = evidence.study.one(**BROKEN, **SETTINGS["Adam 0.001"])
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
    relu = [evidence.study.one(lr=lr, activation__hidden="relu") for lr in (0.01, 0.1, 1.0)]
    better = changed(evidence, *relu, outcome="solved", solved_step=3)
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


def sentence(evidence: Evidence, name: str) -> str:
    return CLAIMS[name].judge(evidence).sentence


def test_what_is_said_of_the_broken_loss_is_counted(evidence: Evidence) -> None:
    """No sentence says by itself that nothing helps: with runs that solve XOR it says so."""
    broken = evidence.study.where("lr", "optimizer", **BROKEN).index
    trained = changed(evidence, *broken, outcome="solved", final_loss=0.1)
    for name in ("practice_small_rate", "practice_adam_stable", "advice_tune", "advice_optimizers"):
        before, after = (sentence(runs, name).partition("On the broken loss")[2] for runs in (evidence, trained))
        assert "none of" in before
        assert "all " in after
    assert "in the median, near the plateau of 7.71" in sentence(evidence, "advice_optimizers")
    assert after.endswith("Adam's loss ends at 0.1 in the median, not near the plateau of 7.71.")


def test_a_range_of_rates_leaves_none_out(evidence: Evidence) -> None:
    assert "More than 99 % solve XOR from 0.01 to 3; from 10 on most diverge" in sentence(
        evidence, "cause_learning_rate"
    )
    spoilt = changed(evidence, evidence.study.one(lr=0.1), outcome="unsolved")
    assert "More than 99 % solve XOR at 0.01, 0.03, 0.3, 1, 3;" in sentence(spoilt, "cause_learning_rate")
    never = changed(evidence, *evidence.study.where("lr").index, outcome="unsolved")
    assert sentence(never, "cause_learning_rate").endswith("More than 99 % solve XOR at no rate.")
    nan = changed(evidence, evidence.study.one(lr=100.0), outcome="nonfinite")
    assert "(none of " in sentence(evidence, "cause_learning_rate").partition(";")[2]
    assert "from 10 on" not in sentence(nan, "cause_learning_rate")  # at 100 they no longer diverge with finite numbers


def test_losses_that_are_never_nan_are_not_said_to_be(evidence: Evidence) -> None:
    assert "without guards, it is NaN from 10 on (all 60 runs)" in sentence(evidence, "cause_loss")
    naive = evidence.study.where("lr", loss="binary_cross_entropy_naive").index
    sound = changed(evidence, *naive, outcome="unsolved")
    assert sentence(sound, "cause_loss").endswith("without guards, it is NaN at no rate.")
    assert "identity from 1 on" in sentence(evidence, "cause_activation_pairing")
    bounded = evidence.study.one(lr=1.0, activation__output="tanh", loss="mean_squared_error")
    assert "tanh at no rate (none of" in sentence(evidence, "cause_activation_pairing")
    spoilt = changed(evidence, bounded, outcome="nonfinite")
    assert "tanh at 1 (20 of" in sentence(spoilt, "cause_activation_pairing")


def test_later_is_not_called_earlier(evidence: Evidence) -> None:
    study = evidence.study
    assert "relu does so 152 steps earlier than tanh" in sentence(evidence, "practice_relu")
    relu, fast = study.one(lr=0.1, activation__hidden="relu"), study.one(lr=0.1)
    assert "steps later" in sentence(changed(evidence, relu, solved_step=9999), "practice_relu")
    assert "steps later than 0.01" in sentence(changed(evidence, fast, solved_step=9999), "small_rate_is_enough")
    slow = changed(evidence, *study.where("lr", "optimizer").index, solved_step=9999)
    assert "solves XOR as soon as SGD" in sentence(slow, "advice_optimizers")


def test_more_is_not_called_fewer(evidence: Evidence) -> None:
    rates, one = (0.01, 0.1, 1.0), evidence.study.one
    better = changed(evidence, *(one(lr=lr) for lr in rates), outcome="unsolved")
    better = changed(better, *(one(lr=lr, activation__hidden="relu") for lr in rates), outcome="solved")
    assert "100 % more runs than tanh" in sentence(better, "relu_as_good_as_tanh")
    assert "more runs than SGD" in sentence(evidence, "practice_adam_stable")
    worse = changed(evidence, *evidence.study.where("lr", optimizer="adam").index, outcome="unsolved")
    assert "fewer runs than SGD" in sentence(worse, "practice_adam_stable")
    assert "at no rate with Adam" in sentence(worse, "practice_adam_stable")


def test_the_symptom_stays_only_if_it_does(evidence: Evidence) -> None:
    study = evidence.study
    assert "all 6 of these stay NaN" in sentence(evidence, "symptom")
    recovered = changed(evidence, study.one(**BROKEN), accuracy=1.0)
    assert "none of 6 of these stay NaN" in sentence(recovered, "symptom")
    assert verdict(recovered, "symptom") == "undecided"


def test_the_logit_of_a_rounding_is_measured(evidence: Evidence) -> None:
    table = evidence.tables["naive_onsets"]
    assert "in float32 is 16.7." in sentence(evidence, "naive_loss_rounds")
    doctored = Evidence(evidence.study, {"naive_onsets": table.assign(logit=table["logit"] + 100)})
    assert "in float32 is 117." in sentence(doctored, "naive_loss_rounds")


def test_a_stall_is_said_only_of_runs_that_stall(evidence: Evidence) -> None:
    study = evidence.study
    adam = study.one(**BROKEN, **SETTINGS["Adam 0.001"])
    runs = study.runs[study.runs["cell"].isin([study.one(**BROKEN), adam])]
    many = pd.concat([runs.assign(seed=runs["seed"] + 20 * copy) for copy in range(20)]).drop(columns="cell")
    plenty = Evidence(Study(many), {})
    assert verdict(plenty, "fix_adam") == "refuted"
    assert "stall at a high loss" in sentence(plenty, "fix_adam")
    cell = plenty.study.one(**BROKEN, **SETTINGS["Adam 0.001"])
    assert "stall" not in sentence(changed(plenty, cell, outcome="unsolved"), "fix_adam")


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
