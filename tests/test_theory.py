"""The theory of the blow-up: its map by brute force, its limits in closed form, and that it reads no outcome."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, StudyError, train
from xor_study.analysis.axon import BROKEN
from xor_study.analysis.cells import Study
from xor_study.figures import why_half, width_two
from xor_study.figures.theory import NOT_MONOTONE
from xor_study.model.activations import HIDDEN_ACTIVATIONS
from xor_study.model.data import CORNERS, TARGETS
from xor_study.study import theory
from xor_study.study.theory import FROZEN, States
from xor_study.training.cohorts import cohorts
from xor_study.training.corners import factors
from xor_study.training.step import Program
from xor_study.training.table import table_of

DTYPES = ("float32", "float64")


def program(batch: int = 32, hidden: int = 8) -> Program:
    (cohort,) = cohorts(table_of([RunSpec(loss="axon_0_6_1", dtype="float64", batch=batch, hidden=hidden)]))
    return cohort.program


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a", [1e-4, 1e-3, 0.1, 3.0])
def test_zones_hold_what_brute_force_finds(dtype: str, a: float) -> None:
    freezes, overflows = theory.zones(a, dtype)
    u = np.linspace(-10, FROZEN - 1e-6, 20_000)
    after = u + a * theory.growth(u)
    zone = np.select([after < FROZEN, after <= theory.edge(dtype)], [0, 1], 2)
    expected = np.select([u < freezes, u <= overflows], [0, 1], 2)
    assert (zone == expected).mean() > 1 - 2 / len(u)
    assert freezes < overflows or (freezes == overflows == FROZEN)


@pytest.mark.parametrize("dtype", DTYPES)
def test_below_the_smallest_growth_no_step_reaches_the_edge(dtype: str) -> None:
    a = theory.smallest_growth(dtype)
    assert theory.zones(0.99 * a, dtype)[1] == FROZEN
    assert theory.zones(1.01 * a, dtype)[1] < FROZEN - 0.01
    largest = theory.growth(np.linspace(0, FROZEN - 1e-9, 100_000)).max()
    assert largest == pytest.approx(1 / (4e-7), rel=1e-3)


def test_float64_raises_the_threshold_by_the_ratio_of_the_jumps() -> None:
    ratio = theory.smallest_growth("float64") / theory.smallest_growth("float32")
    assert ratio == pytest.approx((709.7827 - 16.1181) / (88.7228 - 16.1181), rel=1e-5)


def test_growth_is_exponential_and_a_quarter_of_it_at_the_mask() -> None:
    assert theory.growth(8.0) == pytest.approx(math.exp(8), rel=1e-3)
    assert theory.growth(FROZEN - 1e-9) == pytest.approx(1 / 4e-7, rel=1e-3)
    assert theory.growth(FROZEN + 1e-9) == 0


def test_logit_gradients_are_those_of_the_loss() -> None:
    """Against autograd through the loss itself, in float64, where nothing overflows."""
    for batch in (4, 32):
        of = program(batch=batch)
        for shift in np.linspace(-20, 20, 41):
            logits = torch.tensor([0.3, -0.2, 0.7, -1.0], dtype=torch.float64) + shift
            expected = factors(of, of.constants["loss"], logits).gradient.numpy()
            np.testing.assert_allclose(theory.logit_gradients(logits.numpy()) / batch**2, expected, rtol=1e-9)


def test_logit_gradients_are_finite_everywhere() -> None:
    far = theory.logit_gradients(np.array([[-1e300] * 4, [1e300] * 4, [-800.0] * 4]))
    assert (far == 0).all()


def test_kernel_is_what_a_small_step_does_and_carried_what_a_large_one_does() -> None:
    """One step of the theory against one step of the package's own training."""
    spec = RunSpec(loss="axon_0_6_1", dtype="float64", batch="full", lr=0.5, epochs=1, iterations=2)
    (cohort,) = cohorts(table_of([spec]))
    start = States.of(cohort.program, cohort.initial(np.array([0])), np.array([True]))
    for lr, rung, tolerance in ((1e-6, "coupled", 1e-9), (0.5, "carried", 1e-12)):
        made = theory.climbs(start, lr, "full", rung, np.random.default_rng(0)).logits
        trained = train(spec.replace(lr=lr), engine="plain", snapshots=[2]).snapshots[2].logits[0].numpy()
        np.testing.assert_allclose(made[1, 0] - made[0, 0], trained - made[0, 0], rtol=1e3 * tolerance, atol=tolerance)
    # K of a corner in closed form: 1 + |h|^2 + (1 + |x|^2) sum (w phi')^2.
    named = cohort.program.named(start.parameters[0])
    h = torch.tanh(named["hidden.weight"] @ torch.tensor([0.0, 1.0], dtype=torch.float64) + named["hidden.bias"])
    slope = named["output.weight"][0] * (1 - h * h)
    assert start.kernel[0, 1, 1] == pytest.approx(float(1 + h @ h + 2 * slope @ slope))


def without_features(u: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> States:
    """Return networks whose hidden unit does nothing: all logits are -u, and K is 1 within and between corners."""
    of = program(hidden=1)
    parameters = torch.zeros(len(u), of.width, dtype=torch.float64)
    parameters[:, -1] = -torch.from_numpy(u)  # the output's bias
    return States.of(of, parameters, np.ones(len(u), bool))


def test_alone_is_the_map_itself() -> None:
    u = np.linspace(2, 15, 50)
    start = without_features(u)
    np.testing.assert_allclose(start.kernel, 1)
    made = theory.climbs(start, 16 * 2e-3, "full", "alone", np.random.default_rng(0))
    expected = u.copy()
    for step in range(1, len(made.logits)):
        expected = expected + 2e-3 * theory.growth(expected)
        np.testing.assert_allclose(-made.logits[step].min(1), expected, rtol=1e-9)
    for dtype in DTYPES:
        np.testing.assert_array_equal(made.nan(dtype), expected > theory.edge(dtype))
    assert 0 < made.nan("float64").mean() < made.nan("float32").mean() < 1


def test_coupled_corners_with_one_kernel_climb_as_one_of_twice_the_rate() -> None:
    start = without_features(np.full(3, 5.0))
    both = theory.climbs(start, 0.001, "full", "coupled", np.random.default_rng(0)).logits[1]
    one = theory.climbs(start, 0.002, "full", "alone", np.random.default_rng(0)).logits[1]
    np.testing.assert_allclose(both.min(1) + 5, one.min(1) + 5, rtol=1e-3)


def test_the_phase_is_uniform_unless_a_run_begins_there() -> None:
    start = without_features(np.full(2000, 5.0))
    free = States(start.program, start.parameters, np.zeros(2000, bool), start.logits, start.kernel)
    steps = [
        -5 - theory.climbs(s, 0.001, "full", "alone", np.random.default_rng(0)).logits[1].min(1) for s in (start, free)
    ]
    assert np.ptp(steps[0]) == 0
    fractions = steps[1] / steps[0]
    assert fractions.mean() == pytest.approx(0.5, abs=0.03)
    assert np.quantile(fractions, 0.1) == pytest.approx(0.1, abs=0.03)


def test_last_returns_the_height_before_the_jump() -> None:
    logits = -np.array([[[0, 5, 4, 0.0]], [[0, 14, 4, 0.0]], [[0, 100, 50, 0.0]]])
    made = theory.Climbs(logits, np.ones((2, 1, 4), bool))
    assert made.last("float32").tolist() == [-14]
    assert made.last("float64").tolist() == []
    assert made.nan("float32").tolist() == [True]
    assert made.nan("float64").tolist() == [False]


def test_states_do_not_depend_on_how_a_run_ends() -> None:
    """The same seeds in more steps, and an engine's outcomes scrambled, give the same states; seeds are disjoint."""
    runs = theory.runs_to_measure(1.0, 4, 32, 100)
    assert runs["seed"].min() >= theory.MEASURED_FROM
    one, other = theory.states(runs), theory.states(runs.assign(iterations=runs["iterations"] + 40))
    assert torch.equal(one.parameters, other.parameters)
    parts = (theory.states, theory._predicted, theory.climbs)
    source = "".join(inspect.getsource(part) for part in parts).replace('"', " ")
    assert not {"outcome", "first_nonfinite_step", "nonfinite", "measured_cells"} & set(source.split())


def test_runs_that_never_jump_are_refused() -> None:
    with pytest.raises(StudyError, match="no run blows up"):
        theory.states(pd.DataFrame({"seed": [0, 1], "epochs": 1, "iterations": 20}))


@pytest.fixture(scope="module")
def study() -> Study:
    # The rate decides how long the climb takes.
    cells = [(0.1, 400), (1.0, 60), (10.0, 40)]
    specs = [
        RunSpec(loss="axon_0_6_1", epochs=1, dtype=dtype, seed=seed, lr=lr, iterations=iterations)
        for dtype in DTYPES
        for lr, iterations in cells
        for seed in range(300)
    ]
    slow = [RunSpec(loss="axon_0_6_1", epochs=1, iterations=40, seed=seed) for seed in range(300)]
    return Study(train([*specs, *slow]).runs)


@pytest.fixture(scope="module")
def table(study: Study) -> pd.DataFrame:
    return theory.theory(study, 250)


def test_predictions_agree_with_runs(table: pd.DataFrame) -> None:
    """Within four standard errors of 300 runs and of the states; where NaN is rare, 1 % is no agreement with 30."""
    assert len(table) == 6  # without the cell whose runs have not blown up
    assert (table["measured"] - table["carried"]).abs().max() < 0.1
    by_dtype = table.groupby("dtype")["carried"].mean()
    assert by_dtype["float32"] > by_dtype["float64"] + 0.15
    assert table["k_low"].between(2, 8).all()
    assert (table["k_low"] < table["k_median"]).all()
    # A lone corner has too few chances, by the kernel two have too many.
    assert (table["alone"] < table["coupled"]).all()


def test_predictions_don_t_change_with_the_outcomes(study: Study, table: pd.DataFrame) -> None:
    swapped = study.runs.assign(outcome=study.runs["outcome"].replace({"nonfinite": "diverged"}))
    without = theory.theory(Study(swapped[(swapped["lr"] != 0.1) & (swapped["lr"] != 10.0)].drop(columns="cell")), 250)
    assert (without["measured"] == 0).all()
    same = table[table["lr"] == 1.0].reset_index(drop=True)
    pd.testing.assert_frame_equal(without[[*theory.RUNGS, "k_median"]], same[[*theory.RUNGS, "k_median"]])


def test_agreement_counts_cells_and_finds_thresholds() -> None:
    rates = [0.001, 0.01, 0.1]
    rows = [
        {"dtype": dtype, "hidden": 8, "batch": "32", "lr": lr * factor, "measured": share, "n": 1000}
        for dtype, factor in (("float32", 1.0), ("float64", 10.0))
        for lr, share in zip(rates, (0.0, 0.2, 0.5), strict=True)
    ]
    table = pd.DataFrame(rows).assign(alone=0.0, coupled=1.0, carried=lambda t: t["measured"] + 0.035)
    found = theory.agreement(table)
    assert found["float32"]["within"] == 0
    assert found["float64"]["within"] == 1
    assert found["float64"]["worst"] == pytest.approx(0.035)
    assert len(found["failures"]) == 3
    assert found["thresholds"]["measured"].tolist() == pytest.approx([10**-2.5, 10**-1.5])  # half way in log lr
    assert found["precision_ratio"]["measured"] == pytest.approx(10)
    assert (found["thresholds"]["ratio"] < 1).all()
    assert theory.thresholds(table[table["lr"] > 0.005]).query("dtype == 'float32'").empty  # never below the level


def test_last_logits_lie_where_the_theory_says() -> None:
    table = theory.last_logits(60, rates=[1.0])
    assert set(table["source"]) == {"measured", "predicted"}
    assert (
        -table["least"] <= 16.2
    ).all()  # the highest start of a jump is just below the mask, or a push by another corner
    medians = table.pivot(index="dtype", columns="source", values="median")
    assert (medians["measured"] - medians["predicted"]).abs().max() < 1.5
    assert medians["predicted"]["float64"] < medians["predicted"]["float32"]


def test_in_half_precision_all_runs_that_climb_go_to_nan() -> None:
    """e^u overflows in float16 at 11.09, before the mask: nothing is between."""
    assert math.log(65504) < FROZEN
    specs = [RunSpec(loss="axon_0_6_1", dtype="float16", lr=1.0, batch="full", epochs=1, iterations=60)]
    runs = train([spec.replace(seed=seed) for spec in specs for seed in range(30)], engine="vmap").runs
    assert (runs["outcome"] == "nonfinite").all()


@pytest.mark.parametrize("name", list(HIDDEN_ACTIVATIONS))
def test_one_unit_that_falls_and_rises_represents_xor(name: str) -> None:
    """The proof of docs/theory.md, with its numbers: three pre-activations b, b + w, b + 2w around the minimum."""
    f = HIDDEN_ACTIVATIONS[name]
    x = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    y = f(x)
    falls_and_rises = bool((y.diff() < -1e-9).any() and (y.diff() > 1e-9).any())
    assert falls_and_rises == (name in NOT_MONOTONE)
    if falls_and_rises:
        lowest = x[int(y.argmin())]
        low, middle, high = f(torch.stack([lowest - 1, lowest, lowest + 1]))
        threshold = (middle + torch.minimum(low, high)) / 2
        one_unit = {0: threshold - low, 1: threshold - middle, 2: threshold - high}  # by x1 + x2
        corners = [bool(one_unit[x1 + x2] > 0) for x1, x2 in CORNERS]
        assert corners == list(TARGETS)


def test_figures_draw(table: pd.DataFrame) -> None:
    usual = table.iloc[:1].assign(lr=RunSpec().lr)
    figure = why_half(pd.concat([table, usual]))
    assert figure.get_figheight() <= 4.5
    specs = [
        RunSpec(hidden=2, activation_hidden=name, lr=0.1, batch="full", seed=seed, epochs=2)
        for name in ("gelu", "tanh")
        for seed in range(4)
    ]
    drawn = width_two(Study(train(specs).runs).cells).axes[0]
    assert {label.get_text() for label in drawn.get_yticklabels()} == {"GELU", "tanh"}


def test_axon_s_loss_is_the_one_of_the_theory() -> None:
    assert BROKEN["loss.clip_gradient"] == "squared"
    assert BROKEN["loss.sigmoid_gradient"] == "exponential"
    assert BROKEN["loss.logits_visible"] is False
