"""Claims: judged on the committed study, and on doctored copies of it where they must come out otherwise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study.analysis.axon import BROKEN, NEWEST, SETTINGS
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import paired_difference, paired_shift, wilson
from xor_study.study.causes import SUSPECTS, simultaneous
from xor_study.study.claims import CLAIMS, VERDICTS, Evidence, suspects_of, verdicts
from xor_study.study.reference import REFERENCE, read_table
from xor_study.study.remedies import REMEDIES

ARTICLE = """capacity symptom cause_learning_rate cause_initialization cause_loss cause_activation_pairing
fix_newest_version fix_sgd_0_01 fix_adam practice_small_rate practice_adam_stable practice_relu
practice_gradient_clipping
practice_initialization verify_stable verify_accurate verify_boundary advice_version_first advice_tune advice_optimizers
advice_monitoring"""
"""The claims as the article makes them."""

TABLES = (
    "importance",
    "theory",
    "factorial",
    "monitors",
    "naive_onsets",
    "boundaries",
    "symptom",
    "explosion",
    "courses",
)


@pytest.fixture(scope="module")
def few() -> Evidence:
    """The committed runs, 20 seeds of each cell, with the committed tables."""
    return Evidence(Study(read_table(REFERENCE, "runs")), {name: read_table(REFERENCE, name) for name in TABLES})


@pytest.fixture(scope="module")
def evidence(few: Evidence) -> Evidence:
    """The runs of `few` that claims read, each twenty times with other seeds: enough to decide by the rules."""
    whole = Evidence(few.study.restricted(np.ones(len(few.study.cells), bool)), few.tables)
    verdicts(whole)
    runs = few.study.runs[few.study.runs["cell"].isin(whole.study.read)].drop(columns="cell")
    copies = [runs.assign(seed=runs["seed"] + 20 * copy) for copy in range(20)]
    return Evidence(Study(pd.concat(copies, ignore_index=True)), few.tables)


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


def test_verdicts_are_those_of_their_kind_and_twenty_seeds_contradict_nothing(few: Evidence) -> None:
    committed = read_table(REFERENCE, "claims").set_index("claim")
    judged = verdicts(few).set_index("claim")
    assert list(judged.index) == list(committed.index)
    for name, claim in CLAIMS.items():
        allowed = (*VERDICTS[claim.kind], *(("helps", "harms") if name == "practice_adam_stable" else ()))
        assert judged["verdict"][name] in allowed
        assert committed["verdict"][name] in allowed
        if claim.kind in ("premise", "observation", "outcome", "advice", "open question"):
            assert judged["verdict"][name] in (committed["verdict"][name], "undecided"), name
        assert judged["low"][name] <= judged["effect"][name] <= judged["high"][name]


def test_the_committed_study_has_all_remedies_and_all_kinds_of_changes() -> None:
    """On a part of the grid a remedy that was not run is left out; the whole must have all of them."""
    assert list(read_table(REFERENCE, "remedies")["remedy"])[1:] == list(REMEDIES)
    suspects = read_table(REFERENCE, "suspects")
    for name in SUSPECTS:
        rows = suspects[suspects["suspect"] == name]
        assert rows["pn"].notna().any(), name
        assert rows["ps"].notna().any(), name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cause_learning_rate", {"lr": 10.0}),
        ("cause_initialization", {"init": "he_normal"}),
        ("cause_loss", {"loss": "hinge"}),
        ("cause_activation_pairing", {"activation.hidden": "relu"}),
    ],
)
def test_a_change_that_brings_nan_to_a_sound_network_is_sufficient(
    evidence: Evidence, name: str, change: dict[str, object]
) -> None:
    before = verdict(evidence, name)
    spoilt = verdict(changed(evidence, evidence.study.one(**change), outcome="nonfinite"), name)
    assert spoilt == {"necessary": "cause"}.get(before, "sufficient")


def test_a_bound_without_nan_holds_for_all_changes_together(evidence: Evidence) -> None:
    rows = suspects_of(evidence)
    rows = rows[rows["suspect"] == "initialization"]
    bound = max(high for _, high in simultaneous(rows, "ps_pytorch"))
    assert bound > wilson(0, 400)[1]
    assert f"fewer than {100 * bound:.3g} % are with any" in CLAIMS["cause_initialization"].judge(evidence).sentence


def test_the_effect_of_a_suspect_is_one_of_its_own_changes(evidence: Evidence) -> None:
    table = suspects_of(evidence)
    for name, suspect in SUSPECTS.items():
        if suspect.claim:
            judged = CLAIMS[suspect.claim].judge(evidence)
            rows = table[table["suspect"] == name]
            assert (judged.effect, judged.low, judged.n) in {
                (row["pn"], row["pn_low"], row["n"]) for row in rows.to_dict("records")
            }


def test_a_fix_must_train_and_not_only_be_finite(evidence: Evidence) -> None:
    """Adam on the failing configuration is never NaN; it cures only if it solves XOR."""
    assert verdict(evidence, "fix_adam") == "masks"
    cell = evidence.study.one(**BROKEN, **SETTINGS["Adam 0.001"])
    assert verdict(changed(evidence, cell, outcome="solved"), "fix_adam") == "cures"


def test_a_fix_that_leaves_nan_does_not_cure(evidence: Evidence) -> None:
    assert verdict(evidence, "fix_newest_version") == "cures"
    spoilt = changed(evidence, evidence.study.one(**NEWEST), outcome="nonfinite")
    assert verdict(spoilt, "fix_newest_version") == "worsens"


def test_the_outcomes_are_those_of_all_three_fixes(evidence: Evidence) -> None:
    """They don't look only at fixes that passed: SGD at 0.01 changes nothing, so training is not stable with it."""
    assert verdict(evidence, "verify_stable") == verdict(evidence, "verify_accurate") == "refuted"
    cells = [evidence.study.one(**BROKEN), evidence.study.one(**BROKEN, **SETTINGS["Adam 0.001"])]
    cured = changed(evidence, *cells, outcome="solved")
    assert verdict(cured, "verify_stable") == verdict(cured, "verify_accurate") == "supported"
    tables = evidence.tables | {"boundaries": evidence.tables["boundaries"].assign(corners_right=True, share_true=0.5)}
    assert verdict(Evidence(evidence.study, tables), "verify_boundary") == "supported"
    assert verdict(evidence, "verify_boundary") == "refuted"


def test_a_network_that_never_solves_is_not_shown_to_have_the_capacity(evidence: Evidence) -> None:
    cell = evidence.study.one(lr=0.1)
    assert verdict(changed(evidence, cell, outcome="unsolved"), "capacity") == "undecided"


def test_relu_is_as_good_if_it_solves_as_often(evidence: Evidence) -> None:
    relu = [evidence.study.one(lr=lr, activation__hidden="relu") for lr in (0.01, 0.1, 1.0)]
    better = changed(evidence, *relu, outcome="solved", solved_step=3)
    assert CLAIMS["relu_as_good_as_tanh"].judge(better)[:2] == ("yes", 0)


def test_adam_is_more_stable_only_if_other_rates_would_not_turn_the_sign(evidence: Evidence) -> None:
    """Over these rates it solves more, but the interval is one over rates."""
    judged = CLAIMS["practice_adam_stable"].judge(evidence)
    assert judged.low < 0 < judged.effect < judged.high
    assert judged.verdict == "undecided"
    sgd = evidence.study.where("lr").index
    assert verdict(changed(evidence, *sgd, outcome="unsolved"), "practice_adam_stable") == "helps"


def test_a_rounding_that_comes_earlier_refutes_the_rounding(evidence: Evidence) -> None:
    tables = evidence.tables | {"naive_onsets": evidence.tables["naive_onsets"].assign(rounded_before=True)}
    assert verdict(evidence, "naive_loss_rounds") == "yes"
    assert verdict(Evidence(evidence.study, tables), "naive_loss_rounds") == "no"


def test_a_small_rate_is_enough_only_if_every_one_is(evidence: Evidence) -> None:
    assert verdict(evidence, "small_rate_is_enough") == "no"
    cells = evidence.study.where("lr")
    small = cells[cells["lr"] <= 0.01].index
    assert verdict(changed(evidence, *small, outcome="solved"), "small_rate_is_enough") == "yes"


def test_importance_decides_two_claims(evidence: Evidence) -> None:
    def judged(lr: float, init: float, both: float) -> tuple[str, str]:
        terms = {"lr": lr, "init": init, "loss x init": both, "higher order": 0.0}
        table = pd.DataFrame({"term": terms.keys(), "share": terms.values()}).sort_values("share", ascending=False)
        table = table.assign(low=table["share"] - 0.01, high=table["share"] + 0.01, n=100)
        own = Evidence(evidence.study, {"importance": table})
        return verdict(own, "advice_tune"), verdict(own, "rate_explains_most")

    assert judged(0.6, 0.2, 0.1) == ("supported", "yes")
    assert judged(0.3, 0.2, 0.5) == ("supported", "no")
    assert judged(0.2, 0.6, 0.1) == ("refuted", "no")
    assert judged(0.4, 0.395, 0.1) == ("undecided", "undecided")


def test_gradients_that_stay_small_do_not_explode_or_vanish(evidence: Evidence) -> None:
    assert verdict(evidence, "gradients_explode") == "yes"
    calm = evidence.tables["explosion"].assign(grad_norm_low=0.1, grad_norm_median=0.1, grad_norm_high=0.1)
    assert verdict(Evidence(evidence.study, evidence.tables | {"explosion": calm}), "gradients_explode") == "no"
    courses = evidence.tables["courses"].assign(low=0.1, median=0.2, high=0.3)
    assert verdict(Evidence(evidence.study, evidence.tables | {"courses": courses}), "gradients_vanish") == "no"
    gone = courses.assign(low=0.0, median=0.0)
    assert verdict(Evidence(evidence.study, evidence.tables | {"courses": gone}), "gradients_vanish") == "yes"


def sentence(evidence: Evidence, name: str) -> str:
    return CLAIMS[name].judge(evidence).sentence


def test_what_is_said_of_the_failing_configuration_is_counted(evidence: Evidence) -> None:
    """No sentence says by itself that nothing helps: with runs that solve XOR it says so."""
    broken = evidence.study.where("lr", "optimizer", "clip", "clip.bound", **BROKEN).index
    trained = changed(evidence, *broken, outcome="solved", final_loss=0.1)
    for name in ("fix_adam", "practice_gradient_clipping", "advice_version_first", "advice_optimizers"):
        assert sentence(evidence, name) != sentence(trained, name)
    assert "in the median, near the plateau of 7.71" in sentence(evidence, "advice_optimizers")
    assert "Adam's loss ends at 0.1 in the median, not near the plateau of 7.71." in sentence(
        trained, "advice_optimizers"
    )


def test_a_range_of_rates_leaves_none_out(evidence: Evidence) -> None:
    assert "more than 99 % solve XOR from 0.01 to 3; from 10 on most diverge" in sentence(
        evidence, "cause_learning_rate"
    )
    spoilt = changed(evidence, evidence.study.one(lr=0.1), outcome="unsolved")
    assert "more than 99 % solve XOR at 0.01, 0.03, 0.3, 1, 3;" in sentence(spoilt, "cause_learning_rate")
    never = changed(evidence, *evidence.study.where("lr").index, outcome="unsolved")
    assert sentence(never, "cause_learning_rate").endswith("more than 99 % solve XOR at no rate.")


def test_losses_that_are_never_nan_are_not_said_to_be(evidence: Evidence) -> None:
    assert "without guards, it is NaN from 10 on (all " in sentence(evidence, "cause_loss")
    naive = evidence.study.where("lr", loss="binary_cross_entropy_naive").index
    sound = changed(evidence, *naive, outcome="unsolved")
    assert sentence(sound, "cause_loss").endswith("without guards, it is NaN at no rate.")


def test_later_is_not_called_earlier(evidence: Evidence) -> None:
    study = evidence.study
    assert "steps earlier than tanh" in sentence(evidence, "practice_relu")
    relu, fast = study.one(lr=0.1, activation__hidden="relu"), study.one(lr=0.1)
    assert "steps later" in sentence(changed(evidence, relu, solved_step=9999), "practice_relu")
    assert "steps later than it" in sentence(changed(evidence, fast, solved_step=9999), "practice_small_rate")
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


def test_the_symptom_is_the_printed_mean_and_a_nan_after_the_first_epoch_that_stays(evidence: Evidence) -> None:
    study, name = evidence.study, "symptom"
    cell = study.one(**BROKEN)
    assert verdict(evidence, name) == "supported"
    recovered = changed(evidence, cell, accuracy=1.0)
    assert verdict(recovered, name) == "undecided"
    assert "None of" in sentence(recovered, name)
    early = changed(evidence, cell, first_nonfinite_step=1)
    assert verdict(early, name) == "undecided"
    assert "100 % first in epoch 1, 0 % in epoch 2" in sentence(early, name)
    lower = evidence.tables["symptom"].assign(median=0.6)
    assert verdict(Evidence(study, evidence.tables | {"symptom": lower}), name) == "undecided"


def test_the_logit_of_a_rounding_is_measured(evidence: Evidence) -> None:
    table = evidence.tables["naive_onsets"]
    assert "in float32 is 16.7." in sentence(evidence, "naive_loss_rounds")
    doctored = Evidence(evidence.study, {"naive_onsets": table.assign(logit=table["logit"] + 100)})
    assert "in float32 is 117." in sentence(doctored, "naive_loss_rounds")


def test_effects_of_no_pairs_say_that_nothing_is_known() -> None:
    assert paired_difference([], [])[1:] == (-1.0, 1.0, 1.0)
    assert paired_shift([], [])[1:] == (-np.inf, np.inf, 1.0)
    assert np.isnan(paired_shift([], []).value)
    assert wilson(0, 0) == (0.0, 1.0)


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
        assert f"{Path.home()}/" not in (REFERENCE / name).read_text()
