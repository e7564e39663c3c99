"""Monitors: their alarms come before the event, and their scores are those of a count by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest

from xor_study import RunSpec, train
from xor_study.analysis.cells import Study
from xor_study.study import monitors


@pytest.fixture(scope="module")
def study() -> Study:
    specs = [RunSpec(loss=loss, lr=0.1, seed=seed) for loss in ("axon_0_6_1", "axon_0_7_0") for seed in range(24)]
    return Study(train(specs).runs)


@pytest.fixture(scope="module")
def alarms(study: Study) -> pd.DataFrame:
    table = monitors.alarms(study, {"mechanism": 24, "loss": 0, "precision": 0})
    assert set(table["study"]) == {"mechanism"}
    return table


def test_alarms_come_before_the_onset_and_of_the_runs_that_are_meant(study: Study, alarms: pd.DataFrame) -> None:
    onsets = study.runs["first_nonfinite_step"].dropna()
    failing = alarms[alarms["failing"] & (alarms["monitor"] == "largest logit")]
    assert sorted(failing["onset"]) == sorted(onsets)
    assert (~alarms["failing"]).sum() == 4 * (study.runs["outcome"] == "solved").sum()
    for row in alarms[alarms["failing"]].to_dict("records"):
        rose = row["rose"]
        assert (rose[rose > 0] < row["onset"]).all()
        assert ((rose > 0) == (row["highest"] > monitors.THRESHOLDS)).all()
        assert (np.diff(rose[rose > 0]) >= 0).all()  # a higher threshold is passed no earlier


def test_alarms_are_where_a_history_says(study: Study, alarms: pd.DataFrame) -> None:
    run = study.runs[study.runs["outcome"] == "nonfinite"].iloc[3]
    history = train(RunSpec.from_row(run), every_step=True).history
    assert history is not None
    loss = history["loss"].to_numpy()[: run["first_nonfinite_step"] - 1]
    means = np.array([loss[max(0, step - 32) : step].mean() for step in range(1, len(loss) + 1)]) / loss[0]
    own = alarms[(alarms["seed"] == run["seed"]) & alarms["failing"]].set_index("monitor")
    assert own["highest"]["loss above its start"] == pytest.approx(means.max())
    assert own["highest"]["gradient norm"] == history["grad_norm"][: len(loss)].max()
    place = int(np.searchsorted(monitors.THRESHOLDS, 1.3))
    assert own["rose"]["loss above its start"][place] == np.argmax(means > monitors.THRESHOLDS[place]) + 1
    saturated = history["saturated"].to_numpy()[: len(loss)] / 4
    assert own["highest"]["saturation"] == pytest.approx(
        max(saturated[max(0, step - 32) : step].mean() for step in range(1, len(loss) + 1))
    )


def test_the_loss_warns_of_axons_failure(alarms: pd.DataFrame) -> None:
    found = monitors.summary(alarms).set_index(["study", "monitor"]).loc[("mechanism", "loss above its start")]
    assert (found["true"], found["false"]) == (1, 0)
    assert found["lead_median"] > 5
    roc = monitors.roc(alarms)
    assert roc[["true", "false"]].to_numpy().min() == 0
    assert roc[["true", "false"]].to_numpy().max() == 1


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    """And DeLong's variance, from the formula of its paper over all pairs."""
    rng = np.random.default_rng(4)
    failing, sound = rng.integers(0, 9, 30) + 2.0, rng.integers(0, 9, 50).astype(float)
    psi = np.array([[1.0 if f > s else 0.5 if f == s else 0.0 for s in sound] for f in failing])
    area, low, high = monitors.area_under_roc(failing, sound)
    assert area == pytest.approx(psi.mean())
    error = np.sqrt(psi.mean(1).var(ddof=1) / 30 + psi.mean(0).var(ddof=1) / 50)
    assert (low, high) == pytest.approx((area - 1.959964 * error, area + 1.959964 * error))


def test_a_threshold_is_chosen_on_half_of_the_seeds_and_judged_on_the_other() -> None:
    """Even sound seeds reach 1, odd ones 10: chosen at 1, the alarm is false in every odd one."""
    rows = []
    for failing, seed in itertools.product((True, False), range(40)):
        highest = 100.0 if failing else 10.0 if seed % 2 else 1.0
        rose = np.where(highest > monitors.THRESHOLDS, 3, 0)
        rows.append(
            {
                "study": "s",
                "monitor": "m",
                "failing": failing,
                "seed": seed,
                "onset": 7 * failing,
                "highest": highest,
                "rose": rose,
            }
        )
    found = monitors.summary(pd.DataFrame(rows)).iloc[0]
    assert found["threshold"] == 1
    assert (found["true"], found["false"], found["n"], found["m"]) == (1, 1, 20, 20)
    assert found["lead_median"] == 4
