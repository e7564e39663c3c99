"""Cells: found by how they differ from the article's network, summed up with intervals, paired by seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study import RunSpec, StudyError, train
from xor_study.analysis.cells import Study, curves, describe, examples
from xor_study.analysis.statistics import wilson
from xor_study.files import write_table
from xor_study.sweeps.records import RUNS, read_runs


@pytest.fixture(scope="module")
def trained() -> tuple[pd.DataFrame, pd.DataFrame]:
    short = {"epochs": 1, "iterations": 60}
    specs = [RunSpec(lr=lr, seed=seed, **short) for lr in (0.01, 1.0, 30.0) for seed in (2, 0, 1)]
    specs += [RunSpec(optimizer="adam", optimizer_weight_decay=0.1, seed=seed, **short) for seed in range(2)]
    specs += [RunSpec(optimizer="adam", batch="full", seed=seed, **short) for seed in range(2)]
    specs += [RunSpec(loss="binary_cross_entropy_naive", lr=100.0, seed=seed, **short) for seed in range(4)]
    result = train(specs)
    return result.runs, result.losses


SHORT = {"epochs": 1, "iterations": 60}


def test_cells_are_found_by_what_differs(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    assert len(study.cells) == 6
    assert list(study.where("lr", **SHORT)["lr"]) == [0.01, 1.0, 30.0]
    assert list(study.where(lr=[1.0, 30.0], **SHORT)["lr"]) == [1.0, 30.0]
    assert study.where(optimizer="adam", **SHORT).empty  # one has decay, the other other batches
    assert study.where("batch", optimizer="adam", **SHORT)["batch"].tolist() == ["full"]
    assert study.where(optimizer="adam", optimizer__weight_decay=0.1, **SHORT)["n"].tolist() == [2]
    assert study.where().empty  # none is as long as the article's
    assert study.one(**SHORT) == 0
    with pytest.raises(StudyError, match=r"0 cells with lr=7 epochs=1 iterations=60, it takes one"):
        study.one(lr=7, **SHORT)


def test_a_summary_counts_and_bounds(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    naive = study.where("lr", loss="binary_cross_entropy_naive", **SHORT).iloc[0]
    assert (naive["n"], naive["nonfinite_runs"], naive["nonfinite"]) == (4, 4, 1.0)
    assert (naive["nonfinite_low"], naive["nonfinite_high"]) == wilson(4, 4)
    onsets = study.runs_of(int(naive.name))["first_nonfinite_step"].astype(float)
    assert naive["first_nonfinite_step_median"] == np.median(onsets)
    assert study.cells["n"].sum() == len(trained[0])


def test_pairs_share_their_seeds(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    one, other = study.pairs(study.one(**SHORT), study.one(lr=100.0, loss="binary_cross_entropy_naive", **SHORT))
    assert list(one["seed"]) == list(other["seed"]) == [0, 1, 2]
    assert set(one["lr"]) == {0.01}


def test_a_study_reads_back_as_it_was(trained: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    result = train(
        [
            RunSpec(seed=seed, lr=lr, loss=loss, **SHORT)
            for seed in range(2)
            for lr in (0.1, 50.0)
            for loss in ("axon_0_6_1", "binary_cross_entropy_naive")
        ]
    )
    write_table(tmp_path / RUNS, result.runs)
    one, other = Study(result.runs), Study(read_runs(tmp_path))
    switched = {"loss": "axon_binary_cross_entropy", "loss__logits_visible": False}
    for study in (one, other):
        found = study.where("lr", "loss.clip_gradient", "loss.sigmoid_gradient", **switched, **SHORT)
        assert found["lr"].tolist() == [0.1, 50.0]
    before, after = (study.cells.astype(object).where(study.cells.notna(), None) for study in (one, other))
    before["batch"] = before["batch"].astype(str).astype(object)  # a number or "full", so a text in a file
    pd.testing.assert_frame_equal(before, after)
    assert curves(one, result.losses).equals(curves(other, result.losses))


def test_curves_are_quartiles_of_the_finite_losses(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    table = curves(study, trained[1])
    for cell in (study.one(**SHORT), study.one(lr=100.0, loss="binary_cross_entropy_naive", **SHORT)):
        values = trained[1].loc[study.runs_of(cell)["run_id"]].replace([np.inf, -np.inf], np.nan)
        found = table[table["cell"] == cell].set_index("step")
        assert found["finite"].to_dict() == values.count().to_dict()
        for name, share in (("low", 0.25), ("median", 0.5), ("high", 0.75)):
            assert found[name].to_numpy() == pytest.approx(values.quantile(share).to_numpy(), nan_ok=True, rel=1e-6)


def test_the_example_is_the_run_in_the_middle(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    cell = study.one(**SHORT)
    runs = study.runs_of(cell).sort_values("final_loss")
    assert runs["outcome"].nunique() == 1
    shown = examples(study, trained[1])
    shown = shown[shown["cell"] == cell]
    assert shown["seed"].unique().tolist() == [runs["seed"].iloc[1]]
    assert shown["loss"].tolist() == trained[1].loc[runs["run_id"].iloc[1]].tolist()


def test_a_cell_is_described_as_one_would_type_it(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    decayed = study.cells.iloc[study.one(optimizer="adam", optimizer__weight_decay=0.1, **SHORT)]
    assert describe(decayed) == "optimizer=adam optimizer.weight_decay=0.1 epochs=1 iterations=60"
    assert describe(train(RunSpec(epochs=10, lr=0.01)).runs.iloc[0]) == "the article's network"


def test_a_cell_is_found_by_keys_with_dots(trained: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    study = Study(trained[0])
    decayed = study.row(**{"optimizer": "adam", "optimizer.weight_decay": 0.1}, **SHORT)
    assert decayed.name == study.one(optimizer="adam", optimizer__weight_decay=0.1, **SHORT)
