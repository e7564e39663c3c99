"""The summary of the mechanism study: verdicts on runs made for the purpose."""

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, StudyError, train
from xor_study.analysis.statistics import wilson
from xor_study.figures.mechanism import OVERFLOW, PLATEAU
from xor_study.model.gradients import clipped_gradient, exponential_sigmoid_gradient
from xor_study.study import mechanism


@pytest.fixture(scope="module")
def study() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A small mechanism study at a rate where everything happens early."""
    specs = [
        RunSpec(
            loss="axon_binary_cross_entropy",
            loss_logits_visible=visible,
            loss_clip_gradient=clip,
            loss_sigmoid_gradient=sigmoid,
            lr=0.1,
            epochs=1,
            iterations=1000,
            seed=seed,
        )
        for visible in (True, False)
        for clip in ("correct", "squared")
        for sigmoid in ("stable", "exponential")
        for seed in range(60)
    ]
    result = train(specs)
    return result.runs, result.losses


def test_cells_hold_shares_with_their_intervals(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells = mechanism.cells(study[0])
    assert len(cells) == 8
    for cell in cells.to_dict("records"):
        runs = study[0]
        for column in mechanism.SWITCHES:
            runs = runs[runs[column] == cell[column]]
        count = (runs["outcome"] == "nonfinite").sum()
        assert cell["nonfinite"] == count / 60
        assert (cell["nonfinite_low"], cell["nonfinite_high"]) == wilson(count, 60)
        assert sum(cell[outcome] for outcome in ("solved", "unsolved", "diverged", "nonfinite")) == pytest.approx(1)


def test_each_repair_cures_what_it_cured_in_axon(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """tests/data/axon/README.md: clip or logits alone: trains; a stable sigmoid alone: no NaN, but it still climbs."""
    repairs = mechanism.repairs(study[0]).set_index("repair")
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


def test_switches_that_act_behind_visible_logits_change_nothing(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    visible = study[0][study[0]["loss.logits_visible"]]
    for _, runs in visible.groupby("seed"):
        assert runs["final_loss"].nunique() == 1


def test_rates_are_compared_as_two_samples(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = {"variant": "061", "steps": 1000, "lr": 0.1, "adam": False, "seeds": 200, "frac_nan_by_1000": 0.565}
    found |= {"frac_nan_by_end": 0.565, "frac_xor_solved": 0.0}
    other = found | {"frac_nan_by_1000": 0.05, "frac_nan_by_end": 0.05}
    agree, differ = (mechanism.rates(study[0], {"results": [one]}) for one in (found, other))
    assert agree["what"].tolist() == ["nan by step 1000", "nan by the end", "solved"]
    assert (agree["p"] > 0.01).all()
    assert differ["p_holm"].iloc[0] < 1e-6
    assert agree["there"].tolist() == [0.565, 0.565, 0.0]


def test_curves_are_quantiles_of_the_runs_that_are_finite(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, losses = study
    curves = mechanism.curves(runs, losses)
    switches = [(column, value) for column, value in mechanism.BROKEN.items()]
    for column, value in switches:
        curves, runs = curves[curves[column] == value], runs[runs[column] == value]
    curves = curves.set_index("step")
    assert curves.loc[1, "finite"] == curves.loc[1, "n"] == 60
    assert curves.loc[1000, "finite"] == 60 - (runs["outcome"] == "nonfinite").sum()
    values = losses.loc[runs["run_id"], 1000]
    assert curves.loc[1000, "median"] == np.nanmedian(values)


def test_the_anatomy_ends_with_infinity_times_zero(study: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs = study[0]
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
    with pytest.raises(StudyError, match="study=mechanism"):
        mechanism.cells(train(RunSpec(epochs=1, iterations=1)).runs)


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
