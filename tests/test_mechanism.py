"""The summary of the mechanism study: verdicts on runs made for the purpose."""

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, StudyError, train
from xor_study.analysis.axon import BROKEN, LOSS, OVERFLOW, PLATEAU, SETTINGS, SWITCHES
from xor_study.analysis.cells import Study, curves
from xor_study.analysis.statistics import wilson
from xor_study.model.gradients import clipped_gradient, exponential_sigmoid_gradient
from xor_study.study import mechanism
from xor_study.training.cohorts import cohorts
from xor_study.training.corners import corners, factors
from xor_study.training.table import table_of


@pytest.fixture(scope="module")
def trained() -> tuple[Study, pd.DataFrame]:
    """A small mechanism study, with its losses: all combinations at SGD 0.1, single repairs in the other settings."""
    specs = []
    for name, setting in SETTINGS.items():
        for visible, clip, sigmoid in ((v, c, s) for v in (True, False) for c in CLIPS for s in SIGMOIDS):
            defects = (not visible) + (clip == "squared") + (sigmoid == "exponential")
            if name == "SGD 0.1" or defects >= 2:
                switches = {"loss_logits_visible": visible, "loss_clip_gradient": clip}
                spec = RunSpec(loss=LOSS, loss_sigmoid_gradient=sigmoid, **switches, **setting)
                specs += [spec.replace(seed=seed) for seed in range(60 if name == "SGD 0.1" else 20)]
    result = train(specs)
    return Study(result.runs), result.losses


CLIPS, SIGMOIDS = ("correct", "squared"), ("stable", "exponential")


@pytest.fixture(scope="module")
def study(trained: tuple[Study, pd.DataFrame]) -> Study:
    return trained[0]


def test_cells_hold_shares_with_their_intervals(study: Study) -> None:
    cells = study.where(*SWITCHES, loss=LOSS, lr=0.1)
    assert len(cells) == 8
    for cell in cells.to_dict("records"):
        runs = study.runs[study.runs["lr"] == 0.1]
        for column in SWITCHES:
            runs = runs[runs[column] == cell[column]]
        count = (runs["outcome"] == "nonfinite").sum()
        assert cell["nonfinite"] == count / 60
        assert (cell["nonfinite_low"], cell["nonfinite_high"]) == wilson(count, 60)
        assert sum(cell[outcome] for outcome in ("solved", "unsolved", "diverged", "nonfinite")) == pytest.approx(1)


def test_each_repair_cures_what_it_cured_in_axon(study: Study) -> None:
    """tests/data/axon/README.md: clip or logits alone: trains; a stable sigmoid alone: no NaN, but it still climbs."""
    repairs = mechanism.repairs(study)
    assert repairs[["optimizer", "lr"]].drop_duplicates().to_dict("records") == list(SETTINGS.values())
    assert set(repairs[repairs["optimizer"] == "polaris_adam"]["cures_nan"]) == {"nothing to cure"}
    repairs = repairs[repairs["lr"] == 0.1].set_index("repair")
    assert repairs["n"].tolist() == [60] * 3
    assert repairs["cures_nan"].to_dict() == {
        "loss.logits_visible=True": "yes",
        "loss.clip_gradient=correct": "yes",
        "loss.sigmoid_gradient=stable": "yes",
    }
    assert repairs["cures_divergence"].to_dict() == {
        "loss.logits_visible=True": "yes",
        "loss.clip_gradient=correct": "yes",
        "loss.sigmoid_gradient=stable": "no",
    }


def test_switches_that_act_behind_visible_logits_change_nothing(study: Study) -> None:
    visible = study.runs[study.runs["loss.logits_visible"] & (study.runs["lr"] == 0.1)]
    for _, runs in visible.groupby("seed"):
        assert runs["final_loss"].nunique() == 1


def test_rates_are_compared_as_two_samples(study: Study) -> None:
    found = {"variant": "061", "steps": 10_000, "lr": 0.1, "adam": False, "seeds": 200, "frac_nan_by_1000": 0.565}
    found |= {"frac_nan_by_end": 0.565, "frac_xor_solved": 0.0}
    other = found | {"frac_nan_by_1000": 0.05, "frac_nan_by_end": 0.05}
    agree, differ = (mechanism.rates(study, {"results": [one]}) for one in (found, other))
    assert agree["what"].tolist() == ["nan by step 1000", "nan by the end", "solved"]
    assert (agree["p"] > 0.01).all()
    assert differ["p_holm"].iloc[0] < 1e-6
    assert agree["there"].tolist() == [0.565, 0.565, 0.0]


def test_a_reference_that_was_not_run_here_is_said(study: Study) -> None:
    other = {"variant": "061", "steps": 10_000, "lr": 0.3, "adam": False, "seeds": 9}
    runs = study.runs_of(study.one(**BROKEN, lr=0.1)).assign(lr=0.3)  # also not of study=mechanism, were it run
    for here in (study, Study(runs.drop(columns="cell"))):
        with pytest.raises(StudyError, match="no setting of the reference"):
            mechanism.rates(here, {"results": [other]})


def test_curves_are_quantiles_of_the_runs_that_are_finite(trained: tuple[Study, pd.DataFrame]) -> None:
    study, losses = trained
    cell = study.one(**BROKEN, lr=0.1)
    table, runs = curves(study, losses), study.runs_of(cell)
    table = table[table["cell"] == cell].set_index("step")
    assert table.loc[1, "finite"] == study.cells.loc[cell, "n"] == 60
    assert table.loc[10_000, "finite"] == 60 - (runs["outcome"] == "nonfinite").sum()
    values = losses.loc[runs["run_id"], 10_000]
    assert table.loc[10_000, "median"] == pytest.approx(np.nanmedian(values), rel=1e-6)


def test_the_typical_run_is_the_median(study: Study) -> None:
    onsets = study.runs_of(study.one(**BROKEN))["first_nonfinite_step"].dropna()
    typical = mechanism.typical_run(study)["first_nonfinite_step"]
    assert (onsets < typical).sum() == len(onsets) // 2
    never = study.runs.drop(columns="cell").assign(first_nonfinite_step=pd.Series(pd.NA, study.runs.index, "Int64"))
    with pytest.raises(StudyError, match="goes to NaN"):
        mechanism.typical_run(Study(never))


def test_the_factors_of_a_gradient_are_those_of_the_corners() -> None:
    """The autopsy of a run and the anatomy of the study compute them in one place."""
    spec = RunSpec(loss="axon_0_6_1", seed=3)
    (cohort,) = cohorts(table_of([spec]))
    constants = cohort.program.constants["loss"]
    whole = corners(cohort.program, constants, cohort.initial(np.array([0]))[0])
    for name, value in factors(cohort.program, constants, whole.logit)._asdict().items():
        assert torch.equal(value, getattr(whole, name))
    torch.testing.assert_close(whole.gradient, whole.upstream * whole.slope)


def test_the_anatomy_ends_with_infinity_times_zero(study: Study) -> None:
    runs = study.runs_of(study.one(**BROKEN, lr=0.1))
    broken = runs[(runs["outcome"] == "nonfinite")].iloc[0]
    spec = RunSpec(loss="axon_0_6_1", lr=0.1, seed=int(broken["seed"]))
    onset = int(broken["first_nonfinite_step"])
    anatomy = mechanism.anatomy(spec, onset)
    last, before = anatomy[anatomy["step"] == onset], anatomy[anatomy["step"] < onset]
    assert before["gradient"].notna().all()
    killed = last[last["gradient"].isna()]
    assert len(killed) >= 1
    assert (killed["logit"] < -OVERFLOW).all()
    assert (killed["exponential"] == np.inf).all()
    assert (killed["upstream"] == 0).all()
    assert (killed["prediction"] == 0).all()  # so e^-z p is infinity times 0 already
    assert killed["sigmoid_gradient"].isna().all()
    with pytest.raises(StudyError, match=r"loss.logits_visible=false loss.sigmoid_gradient=exponential"):
        mechanism.anatomy(RunSpec(loss="axon_0_7_0"), 3)


def test_just_beyond_the_edge_it_is_the_clips_zero_that_meets_infinity() -> None:
    """Nx's subnormal p at -90 makes e^-z p p infinite; the clip's 0 times that is NaN (golden table, y = 1)."""
    logit, p = torch.tensor([-90.0]), torch.tensor([8.19401e-40])
    infinite = exponential_sigmoid_gradient(logit, p)
    upstream = clipped_gradient(p, torch.ones(1), torch.tensor(1 / 32), squared=True)
    assert (infinite.item(), upstream.item()) == (np.inf, 0)
    assert (infinite * upstream).isnan().all()


def test_no_runs_of_the_study_is_said() -> None:
    with pytest.raises(StudyError, match="the study has 0 cells with loss=axon_binary_cross_entropy"):
        mechanism.repairs(Study(train(RunSpec(epochs=1, iterations=1)).runs))


def test_the_plateau_is_that_of_the_loss() -> None:
    """With every probability 0, half of the targets cost -log(eps + eps) and the other half -log(1)."""
    result = train(
        RunSpec(loss="axon_0_6_1", batch="full", lr=0.0, epochs=1, iterations=1),
        initial={
            "hidden.weight": np.zeros((8, 2)),
            "hidden.bias": np.zeros(8),
            "output.weight": np.zeros((1, 8)),
            "output.bias": np.full(1, -80.0),
        },
    )
    assert result.runs["initial_loss"].iloc[0] == pytest.approx(PLATEAU, rel=1e-6)
