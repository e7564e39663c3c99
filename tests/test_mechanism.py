"""The summary of the mechanism study: statistics against published numbers, verdicts on runs made for the purpose."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, StudyError, figures, mechanism, run, train
from xor_study.losses import clipped_gradient, exponential_sigmoid_gradient
from xor_study.statistics import holm, paired, two_samples, wilson

ROOT = Path(__file__).resolve().parents[1]


def test_wilson_is_the_interval_of_its_formula() -> None:
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964."""
    z, p, n = 1.959963984540054, 31 / 200, 200
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert wilson(31, 200) == pytest.approx(ends)
    assert wilson(0, 400)[0] == 0
    assert wilson(400, 400)[1] == 1


def test_fishers_test_of_the_lady_tasting_tea() -> None:
    """Fisher (1935): 3 of 4 cups right in both kinds has p = 34/70 two-sided."""
    assert two_samples((3, 1), (4, 4)) == pytest.approx(34 / 70)


def test_mcnemar_counts_discordant_pairs_only() -> None:
    """6 against 1 discordant pairs: 2 (C(7,0) + C(7,1)) / 2^7."""
    first = [True] * 6 + [False] + [True] * 20 + [False] * 9
    second = [False] * 6 + [True] + [True] * 20 + [False] * 9
    assert paired(first, second) == pytest.approx(2 * 8 / 128)


def test_holm_multiplies_by_what_is_left() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


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
    assert (killed["logit"] < -figures.OVERFLOW).all()
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
    assert result.runs["initial_loss"].iloc[0] == pytest.approx(figures.PLATEAU, rel=1e-6)


def test_the_scripts_go_from_a_small_study_to_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seeds are three of those that go to NaN earliest at SGD 0.01."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    grid = ["-m", "study=mechanism", "seed=353,11,166", "epochs=1", "iterations=500", "hydra.sweep.dir=study"]
    monkeypatch.setattr(sys, "argv", ["xor-study", *grid])
    run.main()
    scripts = {name: runpy.run_path(str(ROOT / f"scripts/{name}.py")) for name in ("mechanism", "figures")}
    monkeypatch.setattr(sys, "argv", ["mechanism.py", "study", "--out", "out"])
    scripts["mechanism"]["main"]()
    printed = capsys.readouterr().out
    assert "No rate given is the same run as lr=0.01" in printed
    assert {path.name for path in Path("out").iterdir()} == {
        *(f"{name}.csv" for name in ("cells", "repairs", "rates", "curves", "anatomy")),
        "provenance.json",
    }
    anatomy = pd.read_csv("out/anatomy.csv", dtype=str, keep_default_na=False)
    assert set(anatomy["gradient"].tail(4)) == {"nan"}
    tables = [pd.read_csv(f"out/{name}.csv") for name in ("curves", "cells", "anatomy")]
    for stem in ("one", "two"):
        figures.save(figures.mechanism(*tables, [("axon_0_6_1", 0.1, np.ones(200, np.float32))]), Path(stem))
    for kind in ("png", "pdf"):
        assert Path(f"one.{kind}").read_bytes() == Path(f"two.{kind}").read_bytes()
    monkeypatch.setattr(sys, "argv", ["mechanism.py", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        scripts["mechanism"]["main"]()
    assert ended.value.code == 1
    monkeypatch.setattr(sys, "argv", ["figures.py", "nothing"])
    with pytest.raises(SystemExit) as ended:
        scripts["figures"]["main"]()
    assert ended.value.code == 2
