"""Outcomes and measures, recomputed from the whole history and provoked one by one."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, train
from xor_study.engines import ENGINES
from xor_study.training.cohorts import cohorts
from xor_study.training.outcome import accumulate, log_spaced, measures, start_of_accumulation, threshold_losses
from xor_study.training.step import Observation
from xor_study.training.table import table_of

SPECS = [
    RunSpec(lr=1.0, epochs=3, iterations=70, seed=1),
    RunSpec(lr=0.01, epochs=3, iterations=70, seed=2),
    RunSpec(loss="binary_cross_entropy_naive", lr=1000.0, epochs=3, iterations=70, seed=3),
    RunSpec(lr=100.0, epochs=3, iterations=70, seed=4),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_measures_are_those_of_the_history(engine: str) -> None:
    result = train(SPECS, engine=engine, every_step=True)
    assert result.history is not None
    for row, (run_id, history) in enumerate(result.history.groupby("run_id", sort=False)):
        run = result.runs.iloc[row]
        assert run["run_id"] == run_id
        loss = history["loss"].to_numpy()
        assert run["initial_loss"] == loss[0]
        assert np.array_equal([run["final_loss"]], loss[-1:], equal_nan=True)
        assert run["min_loss"] == np.nanmin(loss)
        assert run["max_loss"] == np.nanmax(loss)
        assert run["max_abs_logit"] == history["max_abs_logit"].max()
        assert run["max_grad_norm"] == history["grad_norm"].max()
        watched = history[["loss", "max_abs_grad", "max_abs_parameter"]].to_numpy()
        broken = ~np.isfinite(watched).all(1)
        assert pd.isna(run["first_nonfinite_step"]) == (not broken.any())
        if broken.any():
            assert run["first_nonfinite_step"] == history["step"].to_numpy()[broken.argmax()]
        wrong = history["step"][history["corners_right"] < 4].max()
        if run["outcome"] == "solved":
            assert run["solved_step"] == (0 if np.isnan(wrong) else wrong) + 1
        else:
            assert pd.isna(run["solved_step"])
        means = history["loss"].to_numpy().reshape(3, 70).mean(1)
        np.testing.assert_allclose(result.epoch_losses.iloc[row], means, rtol=1e-12)
        recorded = result.losses.iloc[row]
        assert list(recorded.index) == log_spaced(210).tolist()
        np.testing.assert_array_equal(recorded, loss[recorded.index.to_numpy() - 1])


@pytest.mark.parametrize("engine", ENGINES)
def test_every_outcome_can_happen(engine: str) -> None:
    assert list(train(SPECS, engine=engine).runs["outcome"]) == ["solved", "unsolved", "nonfinite", "diverged"]


def test_accuracy_is_that_of_the_final_network() -> None:
    result = train(SPECS)
    x1, x2 = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]])[..., None]
    for row, accuracy in enumerate(result.runs["accuracy"]):
        prediction = result.network(row)(x1, x2)[:, 0]
        target = torch.tensor([False, True, True, False])
        right = torch.where(target, prediction > 0.5, prediction < 0.5)
        assert accuracy == right.double().mean().item()


def weights(hidden: list[list[float]], hidden_bias: list[float], output: list[float], bias: float) -> dict[str, object]:
    return {
        "hidden.weight": torch.tensor(hidden),
        "hidden.bias": torch.tensor(hidden_bias),
        "output.weight": torch.tensor([output]),
        "output.bias": torch.tensor([bias]),
    }


SOLUTION = weights([[10.0, 10.0], [10.0, 10.0]], [-5.0, -15.0], [5.0, -5.0], -5.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_is_right_from_the_start_is_solved_at_step_1(engine: str) -> None:
    (run,) = train(RunSpec(hidden=2, lr=0.0, epochs=1, iterations=5), engine=engine, initial=SOLUTION).runs.to_dict(
        "records"
    )
    assert (run["outcome"], run["solved_step"], run["accuracy"]) == ("solved", 1, 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_solved_by_its_last_update_is_solved_one_step_later(engine: str) -> None:
    """Step T + 1 is the state after the last update: here one update moves the output bias from the wrong side."""
    initial = SOLUTION | {"output.bias": torch.tensor([0.5])}  # 00 and 11 are wrong, by half a unit of the logit
    spec = RunSpec(hidden=2, lr=4.0, epochs=1, iterations=1, loss="hinge")
    batches = ([[0, 1]], [[0, 1]])
    (run,) = train(spec, engine=engine, initial=initial, batches=batches).runs.to_dict("records")
    assert (run["outcome"], run["solved_step"]) == ("solved", 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_infinity_that_passes_is_not_forgotten(engine: str) -> None:
    """The loss overflows at step 1, where a corner is drawn whose error is 1e20, and never again."""
    initial = weights([[1e10, 1e10]], [0.0], [1e10], 0.0)
    fields = {"activation_hidden": "identity", "activation_output": "identity", "loss": "mean_squared_error"}
    spec = RunSpec(hidden=1, lr=0.0, epochs=1, iterations=3, **fields)
    batches = ([[0, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]])
    (run,) = train(spec, engine=engine, initial=initial, batches=batches).runs.to_dict("records")
    assert (run["outcome"], run["first_nonfinite_step"]) == ("nonfinite", 1)
    assert (run["max_loss"], run["final_loss"]) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, math.log(2)),
        ({"loss": "binary_cross_entropy_with_logits"}, math.log(2)),
        ({"loss": "mean_squared_error"}, 0.25),
        ({"loss": "mean_absolute_error"}, 0.5),
        ({"loss": "huber"}, 0.125),
        ({"loss": "huber", "loss_delta": 0.1}, 0.1 * (0.5 - 0.05)),
        ({"loss": "hinge"}, 1.0),
    ],
)
def test_the_loss_of_an_answer_at_the_threshold(fields: dict[str, object], expected: float) -> None:
    (cohort,) = cohorts(table_of([RunSpec(**fields)]))
    assert threshold_losses(cohort, np.arange(1)) == pytest.approx([expected])


def test_log_spaced_steps_are_the_same_for_every_length() -> None:
    assert log_spaced(10).tolist() == [1, 2, 3, 4, 5, 6, 8, 10]
    assert set(log_spaced(500)) <= set(log_spaced(10000))
    assert len(log_spaced(10000)) == 38
    assert log_spaced(1).tolist() == [1]


def test_measures_ignore_nan_but_keep_infinity() -> None:
    """Three networks at three steps: sound, with a NaN, and with nothing but NaN."""
    losses = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.nan, math.nan], [2.0, math.inf, math.nan]])
    right = torch.tensor([[3, 4, 4], [4, 3, 4], [4, 4, 4]])
    so_far = start_of_accumulation(torch.float32, (3,))
    for number, (loss, corners) in enumerate(zip(losses, right, strict=True), 1):
        observed = Observation(loss, loss, loss, loss, loss, corners, corners)
        so_far = accumulate(so_far, observed, torch.tensor(number, dtype=torch.int32))
    assert so_far["least_loss"].tolist() == [1, 2, math.inf]
    assert so_far["largest_loss"].tolist() == so_far["largest_logit"].tolist() == [3, math.inf, -math.inf]
    assert so_far["first_nonfinite"].tolist() == [0, 2, 1]
    assert so_far["last_wrong"].tolist() == [1, 2, 0]
    assert so_far["loss_sum"][0] == 6
    (cohort,) = cohorts(table_of([RunSpec(seed=seed, epochs=1, iterations=3) for seed in range(3)]))
    ends = {"initial_loss": losses[0].numpy(), "final_loss": losses[2].numpy(), "tail_loss": losses[2].numpy()}
    arrays = {name: values.numpy() for name, values in so_far.items()}
    table = measures(cohort, np.arange(3), arrays, **ends, corners_right=np.array([4, 4, 4]))
    assert list(table["outcome"]) == ["solved", "nonfinite", "nonfinite"]
    assert table["min_loss"].tolist()[:2] == [1, 2]
    assert table["max_grad_norm"].tolist()[:2] == [3, math.inf]
    assert table.loc[2, ["min_loss", "max_loss", "max_abs_logit", "max_grad_norm"]].isna().all()
