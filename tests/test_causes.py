"""Suspects and remedies: judged on made-up outcomes, where the right answer is known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import made_up

from xor_study import StudyError
from xor_study.analysis.axon import BROKEN, NEWEST
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import wilson
from xor_study.study import causes, remedies
from xor_study.study.causes import judge, suspects
from xor_study.study.remedies import REMEDIES, failing_word, sound_word

SEEDS = 400
HALF = np.where(np.arange(SEEDS) % 2, "nonfinite", "diverged").tolist()
BASES: list[tuple[dict[str, Any], Any]] = [(BROKEN, HALF), (NEWEST, "solved"), ({}, "solved")]


def rows(study: Study, suspect: str) -> pd.DataFrame:
    table = suspects(study)
    return table[table["suspect"] == suspect]


def judged(*cells: tuple[dict[str, Any], Any], suspect: str = "learning rate") -> str:
    return judge(rows(made_up([*BASES, *cells]), suspect)).verdict


def in_all(values: dict[str, Any], failing: Any, sound: Any) -> list[tuple[dict[str, Any], Any]]:
    """Return a change of every configuration, with the outcomes on the failing and on the sound ones."""
    return [(BROKEN | values, failing), (NEWEST | values, sound), (values, sound)]


@pytest.mark.parametrize(
    ("failing", "sound", "verdict"),
    [
        ("solved", "solved", "necessary"),
        ("solved", "nonfinite", "cause"),
        (HALF, "nonfinite", "sufficient"),
        ("diverged", "solved", "symptom only"),
        (HALF, "solved", "not a cause"),
        (["solved"] * 380 + HALF[:20], "solved", "undecided"),  # 95 % exactly
        (HALF, ["nonfinite"] * 20 + ["solved"] * 380, "undecided"),  # 5 % exactly
    ],
)
def test_the_rule_for_a_suspect(failing: Any, sound: Any, verdict: str) -> None:
    assert judged(*in_all({"lr": 0.1}, failing, sound)) == verdict


def test_one_change_that_cures_is_enough_and_one_that_is_open_prevents_an_acquittal() -> None:
    harmless = in_all({"lr": 0.03}, HALF, "solved")
    assert judged(*harmless, *in_all({"lr": 0.1}, "solved", "solved")) == "necessary"
    few = [(values, outcome) for values, outcome in in_all({"lr": 0.1}, "unsolved", "solved")]
    assert judged(*harmless, *few) == "symptom only"
    assert judge(rows(made_up([*BASES, *harmless]), "learning rate")).verdict == "not a cause"
    # Ten runs without NaN exclude nothing.
    small = made_up(
        [
            (values, outcome[:10] if isinstance(outcome, list) else outcome)
            for values, outcome in BASES + in_all({"lr": 0.03}, HALF, "solved")
        ],
        seeds=10,
    )
    assert judge(rows(small, "learning rate")).verdict == "undecided"


def test_probabilities_are_shares_of_pairs() -> None:
    rng = np.random.default_rng(3)
    names = np.array(["nonfinite", "diverged", "solved"], object)
    failing, changed, sound, spoilt = (names[rng.integers(0, 3, SEEDS)] for _ in range(4))
    study = made_up(
        [
            (BROKEN, failing),
            (NEWEST, sound),
            ({}, "solved"),
            (BROKEN | {"lr": 0.1}, changed),
            (NEWEST | {"lr": 0.1}, spoilt),
        ]
    )
    (row,) = rows(study, "learning rate").to_dict("records")
    before, after = failing == "nonfinite", changed == "nonfinite"
    assert row["pn"] == (before & ~after).sum() / before.sum()
    assert row["pns"] == (before & ~after).mean()
    assert row["cure"] == ((failing != "solved") & (changed == "solved")).sum() / (failing != "solved").sum()
    quiet = sound != "nonfinite"
    assert row["ps"] == (quiet & (spoilt == "nonfinite")).sum() / quiet.sum()
    assert (row["pn_low"], row["pn_high"]) == wilson(int((before & ~after).sum()), int(before.sum()))
    assert np.isnan(row["ps_pytorch"])


def test_a_rate_with_more_steps_counts_instead_of_one_with_fewer() -> None:
    cells = [(BROKEN | {"lr": 1e-4}, HALF), (BROKEN | {"lr": 1e-4, "iterations": 40000}, "diverged")]
    (row,) = rows(made_up([*BASES, *cells]), "learning rate").to_dict("records")
    assert (row["level"], row["pn"]) == ("lr=0.0001", 1.0)


def test_another_loss_is_in_the_arithmetic_of_its_configuration() -> None:
    nx = {"activation.output": "nx_sigmoid"}
    squared = {"loss": "mean_squared_error"}
    study = made_up([*BASES, (squared | nx, "solved"), (squared, "nonfinite"), (dict(causes._CLIPPED_BY_NX), HALF)])
    (row,) = rows(study, "loss").to_dict("records")
    assert (row["cure"], row["ps"], row["ps_pytorch"]) == (1.0, 0.0, 1.0)
    defects = rows(study, "Axon's defects").set_index("level")
    assert defects["ps"]["Nx's two, with a loss that clips"] == 0.5
    assert defects["ps"]["all three"] == 0.5


def test_intervals_hold_for_all_changes_together() -> None:
    study = made_up([*BASES, *in_all({"lr": 0.1}, HALF, "solved"), *in_all({"lr": 0.03}, HALF, "solved")])
    ends = list(causes.simultaneous(rows(study, "learning rate"), "ps"))
    assert ends == [wilson(0, SEEDS, 2)] * 2
    assert ends[0][1] > wilson(0, SEEDS)[1]


def test_a_suspect_without_changes_is_not_judged() -> None:
    with pytest.raises(StudyError, match="no change"):
        judge(suspects(made_up([*BASES, *in_all({"lr": 0.1}, HALF, "solved")])).query("suspect == 'width'"))


def word(nan: tuple[float, float, float], solved: tuple[float, float, float], change: float, p: float) -> str:
    names = ("nan", "nan_low", "nan_high", "solved", "solved_low", "solved_high")
    row = dict(zip(names, (*nan, *solved), strict=True)) | {"nan_change": change, "nan_p": p, "solved_p": 1.0}
    return failing_word(row)


NONE, ALL, SOME_OF = (0.0, 0.0, 0.01), (1.0, 0.99, 1.0), (0.4, 0.36, 0.44)


@pytest.mark.parametrize(
    ("nan", "solved", "change", "p", "expected"),
    [
        (NONE, ALL, -0.4, 0.0, "cures"),
        (NONE, NONE, -0.4, 0.0, "masks"),
        (NONE, SOME_OF, -0.4, 0.0, "reduces"),
        (SOME_OF, NONE, -0.1, 0.001, "reduces"),
        (SOME_OF, NONE, 0.1, 0.001, "worsens"),
        (SOME_OF, NONE, 0.1, 0.5, "no effect"),
        ((0.4, 0.3, 0.5), NONE, 0.0, 1.0, "undecided"),  # a change of ten points would not be seen
        ((0.0, 0.0, 0.2), ALL, -0.4, 0.0, "undecided"),  # too few runs to exclude NaN
        (NONE, (0.96, 0.90, 0.99), -0.4, 0.0, "undecided"),
        (SOME_OF, SOME_OF, 0.0, 1.0, "undecided"),
    ],
)
def test_the_words_for_a_remedy(nan: Any, solved: Any, change: float, p: float, expected: str) -> None:
    assert word(nan, solved, change, p) == expected


@pytest.mark.parametrize(
    ("solved", "steps", "expected"),
    [
        ((0.1, 0.0), (0.0, 1.0), "helps"),
        ((0.0, 1.0), (-50.0, 0.0), "helps"),
        ((0.0, 1.0), (50.0, 0.0), "harms"),
        ((-0.1, 0.0), (-50.0, 0.0), "harms"),
        ((0.1, 0.5), (9.0, 0.5), "no effect"),
    ],
)
def test_the_words_on_the_sound_configuration(
    solved: tuple[float, float], steps: tuple[float, float], expected: str
) -> None:
    row = {"sound_solved_change": solved[0], "sound_solved_p": solved[1], "sound_nan_change": 0.0, "sound_nan_p": 1.0}
    assert sound_word(row | {"sound_steps": steps[0], "sound_steps_p": steps[1]}) == expected


def test_the_same_yardstick_gives_the_same_word() -> None:
    """Adam and clipping that do the same are called the same, in whatever claim they stand."""
    adam, clip = REMEDIES["Adam at 0.001"].failing, REMEDIES["clipping to norm 1"].failing
    study = made_up(
        [
            *BASES,
            (BROKEN | dict(adam), "diverged"),
            (BROKEN | dict(clip), "diverged"),
            (NEWEST | dict(adam), "solved"),
            (NEWEST | dict(clip), "solved"),
        ]
    )
    table = remedies.remedies(study).set_index("remedy")
    assert list(table.index) == ["as reported", "Axon 0.7.0", "SGD at 0.01", "Adam at 0.001", "clipping to norm 1"]
    assert table["word"].tolist() == ["no effect", "cures", "no effect", "masks", "masks"]
    assert set(table["sound_word"]) == {"no effect"}
    assert remedies.of_claim(table.reset_index(), "fix_adam")["remedy"].tolist() == ["Adam at 0.001"]
    with pytest.raises(StudyError, match="practice_relu"):
        remedies.of_claim(table.reset_index(), "practice_relu")
