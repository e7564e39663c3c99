"""Monitors: alarms precede the event, thresholds know nothing of what they are judged on, scores are counts by hand."""

import io
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xor_study import RunSpec, figures, train
from xor_study.analysis.cells import Study
from xor_study.study import monitors

LOSS = "loss above its start"
NONE = dict.fromkeys(monitors.SEEDS, 0)


@pytest.fixture(scope="module")
def study() -> Study:
    specs = [RunSpec(loss=loss, lr=0.1, seed=seed) for loss in ("axon_0_6_1", "axon_0_7_0") for seed in range(24)]
    return Study(train(specs).runs)


@pytest.fixture(scope="module")
def alarms(study: Study) -> pd.DataFrame:
    return monitors.alarms(study, NONE | {"mechanism": 24})


@pytest.fixture(scope="module")
def synthetic() -> pd.DataFrame:
    """A table as of `alarms`: four classes and a fifth, two studies, eight cells, with random scores that overlap."""
    rng = np.random.default_rng(3)
    rows = []
    middle = {"nonfinite": 1.3, "broken": 1.0, "unsolved": 0.2, "sound": 0.0, "immediate": -np.inf}
    for number in range(600):
        kind = str(rng.choice(list(middle), p=[0.2, 0.2, 0.1, 0.45, 0.05]))
        cell = int(rng.integers(8))
        highest = 10 ** (middle[kind] + 0.5 * rng.standard_normal())
        steps = np.sort(rng.integers(1, 800, len(monitors.THRESHOLDS)))
        rose = np.where(highest > monitors.THRESHOLDS, steps, 0)
        row: dict[str, Any] = {
            "study": ("mechanism", "loss")[cell // 4],
            "cell": cell,
            "half": cell % 2,
            "seed": 2 * number + cell % 2,
        }
        row |= {"setting": f"sgd {0.1 * (1 + cell // 2):g}", "lr": 0.1 * (1 + cell // 2), "class": kind}
        onset = {"nonfinite": 900, "immediate": 1}.get(kind, 0)
        rows.append(row | {"onset": onset, "steps": 1000, "monitor": LOSS, "highest": highest, "rose": rose})
    return pd.DataFrame(rows)


def row_of(table: pd.DataFrame, **values: object) -> pd.Series:
    """Return the only row of a summary with these values; a whole study's unless a setting is given."""
    chosen = table["setting"] == values.pop("setting") if "setting" in values else table["setting"].isna()
    for column, value in values.items():
        chosen &= table[column] == value
    (row,) = (row for _, row in table[chosen].iterrows())
    return row


def test_alarms_come_before_the_onset(study: Study, alarms: pd.DataFrame) -> None:
    onsets = study.runs.set_index(["cell", "seed"])["first_nonfinite_step"].fillna(0)
    keys = pd.MultiIndex.from_frame(alarms[["cell", "seed"]])
    assert (alarms["onset"].to_numpy() == onsets.loc[keys].to_numpy()).all()
    assert (alarms["onset"] > 0).any()
    for row in alarms.to_dict("records"):
        rose = row["rose"]
        assert (rose[rose > 0] < (row["onset"] or math.inf)).all()
        assert ((rose > 0) == (row["highest"] > monitors.THRESHOLDS)).all()
        assert (np.diff(rose[rose > 0]) >= 0).all()  # a higher threshold is passed no earlier


def test_no_run_of_the_chosen_seeds_is_left_out(study: Study, alarms: pd.DataFrame) -> None:
    """Those that stay broken without NaN are in, which makes the difference between NaN and failure."""
    assert len(alarms) == len(monitors.MONITORS) * len(study.runs) / 2
    counts = alarms[alarms["monitor"] == LOSS]["class"].value_counts()
    assert counts["broken"] > 0
    assert counts["sound"] == 12
    assert counts["broken"] + counts["nonfinite"] == 12


def test_alarms_are_where_a_history_says(study: Study, alarms: pd.DataFrame) -> None:
    own = alarms[alarms["class"] == "nonfinite"]
    own = own[own["seed"] == own["seed"].iloc[0]].set_index("monitor")
    cell, seed = own["cell"].iloc[0], own["seed"].iloc[0]
    run = study.runs[(study.runs["cell"] == cell) & (study.runs["seed"] == seed)].iloc[0]
    history = train(RunSpec.from_row(run), every_step=True).history
    assert history is not None
    loss = history["loss"].to_numpy()[: run["first_nonfinite_step"] - 1]
    means = np.array([loss[max(0, step - 32) : step].mean() for step in range(1, len(loss) + 1)]) / loss[0]
    assert own["highest"][LOSS] == pytest.approx(means.max())
    assert own["highest"]["gradient norm"] == history["grad_norm"][: len(loss)].max()
    place = int(np.searchsorted(monitors.THRESHOLDS, 1.3))
    assert own["rose"][LOSS][place] == np.argmax(means > monitors.THRESHOLDS[place]) + 1
    saturated = history["saturated"].to_numpy()[: len(loss)] / 4
    assert own["highest"]["saturation"] == pytest.approx(
        max(saturated[max(0, step - 32) : step].mean() for step in range(1, len(loss) + 1))
    )


def runs_of(*outcomes: tuple[str, str, float, int | None]) -> pd.DataFrame:
    """Return runs with given outcomes: of each loss, lr, outcome and first step that is not finite, two seeds."""
    specs = [RunSpec(loss=loss, lr=lr, seed=seed) for loss, _, lr, _ in outcomes for seed in (0, 1)]
    runs = train([spec.replace(epochs=1, iterations=2) for spec in specs]).runs
    steps = [step for *_, step in outcomes for _ in (0, 1)]
    first = pd.array(steps, dtype="Int64")
    return runs.assign(outcome=[name for _, name, *_ in outcomes for _ in (0, 1)], first_nonfinite_step=first)


def test_every_run_is_in_one_class() -> None:
    runs = runs_of(
        ("binary_cross_entropy", "solved", 0.1, None),
        ("binary_cross_entropy", "unsolved", 0.01, None),  # of a loss that solves: healthy but slow
        ("binary_cross_entropy", "diverged", 1.0, None),
        ("axon_0_6_1", "unsolved", 0.01, None),  # no run of this loss solves
        ("axon_0_7_0", "solved", 0.01, None),  # the same function with other switches
        ("axon_0_6_1", "nonfinite", 0.1, 2),
        ("axon_0_6_1", "nonfinite", 1.0, 1),
    )
    study = Study(runs)
    kinds = dict(zip(study.runs["run_id"], monitors.classes(study), strict=True))
    expected = ["sound", "unsolved", "broken", "broken", "sound", "nonfinite", "immediate"]
    assert [kinds[run_id] for run_id in runs["run_id"]] == [kind for kind in expected for _ in (0, 1)]
    assert set(expected) == set(monitors.CLASSES)


def test_cells_and_seeds_of_the_halves_are_disjoint() -> None:
    losses = ("binary_cross_entropy", "mean_squared_error", "hinge")
    rates = (0.001, 0.01, 0.1, 1.0)
    specs = [RunSpec(loss=loss, lr=lr, seed=seed) for loss in losses for lr in rates for seed in range(4)]
    runs = train([spec.replace(batch="full", epochs=1, iterations=500) for spec in specs]).runs
    table = monitors.alarms(Study(runs), NONE | {"precision": 4})
    first, second = (table[table["half"] == half] for half in (0, 1))
    assert len(first)
    assert len(second)
    assert not set(first["cell"]) & set(second["cell"])
    assert not set(first["seed"]) & set(second["seed"])
    # Neither outcomes nor the other cells decide where a cell belongs.
    shuffled = Study(runs.assign(outcome="diverged").sample(frac=1, random_state=0))
    fewer = Study(runs[runs["loss"] == losses[1]])
    for other in (shuffled, fewer):
        half = dict(zip(other.runs.drop_duplicates("cell")["run_id"], monitors.halves(other), strict=True))
        own = dict(zip(Study(runs).runs.drop_duplicates("cell")["run_id"], monitors.halves(Study(runs)), strict=True))
        assert all(own[run_id] == value for run_id, value in half.items())


def test_no_run_is_in_two_studies() -> None:
    rates = (0.01, 0.1)
    specs = [RunSpec(lr=lr, loss=loss) for lr in rates for loss in ("binary_cross_entropy", "axon_0_6_1", "hinge")]
    specs += [RunSpec(batch=batch, lr=0.1) for batch in (1, 2)] + [RunSpec(loss="axon_0_6_1", lr=1.0)]
    study = Study(train([*specs, RunSpec(lr=3.0)]).runs)
    cells = [cell for table in monitors.studies(study).values() for cell in table.index]
    assert sorted(cells) == list(range(len(study.cells)))
    named = monitors.studies(study)
    assert {name: len(table) for name, table in named.items()} == {
        "mechanism": 2, "axon_rates": 1, "learning_rate": 3, "batching": 2, "loss": 2
    }  # fmt: skip
    assert set(named["batching"]["batch"].astype(str)) == {"1", "2"}
    assert 3.0 in set(named["learning_rate"]["lr"])


@pytest.mark.parametrize("half", [0, 1])
def test_a_threshold_knows_nothing_of_the_half_that_it_is_judged_on(synthetic: pd.DataFrame, half: int) -> None:
    """Everything about one half is changed: only the threshold that this half tunes may change."""
    before = monitors.summary(synthetic)
    changed = synthetic.copy()
    rows = changed.index[changed["half"] == half]
    rng = np.random.default_rng(0)
    changed.loc[rows, "class"] = rng.permutation(changed.loc[rows, "class"].to_numpy())
    changed.loc[rows, "highest"] *= 30
    after = monitors.summary(changed)
    for name in ("mechanism", "loss", "all"):
        old, new = (row_of(table, tuned_on=name, study=name, target="failure") for table in (before, after))
        assert new[f"threshold_{1 - half}"] == old[f"threshold_{1 - half}"]
        assert new[f"threshold_{half}"] > old[f"threshold_{half}"]


def test_a_threshold_is_the_lowest_that_few_sound_runs_of_its_half_exceed(synthetic: pd.DataFrame) -> None:
    table = monitors.summary(synthetic)
    for half in (0, 1):
        chosen = row_of(table, tuned_on="all", study="all", target="failure")[f"threshold_{half}"]
        sound = synthetic[(synthetic["half"] == half) & (synthetic["class"] == "sound")]["highest"].to_numpy()
        below = monitors.THRESHOLDS[list(monitors.THRESHOLDS).index(chosen) - 1]
        assert (sound > chosen).mean() <= 0.01 < (sound > below).mean()


@pytest.mark.parametrize("target", ["nonfinite", "failure"])
@pytest.mark.parametrize("setting", [None, "sgd 0.1"])
def test_scores_are_those_of_a_count_run_by_run(synthetic: pd.DataFrame, target: str, setting: str | None) -> None:
    values = {"setting": setting} if setting else {}
    row = row_of(monitors.summary(synthetic), tuned_on="mechanism", study="mechanism", target=target, **values)
    positives = {"nonfinite": ["nonfinite"], "failure": ["nonfinite", "broken"]}[target]
    true = false = missed = quiet = sound = 0
    lead, thousands, alarms = [], 0.0, 0
    for run in synthetic[synthetic["study"] == "mechanism"].to_dict("records"):
        if run["class"] == "immediate" or (setting and run["setting"] != setting):
            continue
        threshold = row[f"threshold_{1 - run['half']}"]
        alarmed = run["highest"] > threshold
        at = run["rose"][list(monitors.THRESHOLDS).index(threshold)]
        true += alarmed and run["class"] in positives
        false += alarmed and run["class"] not in positives
        missed += not alarmed and run["class"] in positives
        if run["class"] == "sound":
            sound += 1
            quiet += not alarmed
            alarms += bool(alarmed)
            thousands += (at if alarmed else run["steps"]) / 1000
        if alarmed and run["class"] == "nonfinite":
            lead.append(run["onset"] - at)
    assert row["precision"] == true / (true + false)
    assert row["recall"] == true / (true + missed)
    assert (row["sound"], row["specificity"]) == (sound, quiet / sound)
    assert row["false_rate"] == pytest.approx(alarms / thousands)
    assert (row["lead_low"], row["lead_median"], row["lead_high"]) == tuple(np.quantile(lead, [0.25, 0.5, 0.75]))
    total = sum(row[name] for name in monitors.JUDGED)
    assert row["prevalence"] == (true + missed) / total
    for name in ("precision", "recall", "specificity"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"] or row[name] in (0, 1)


def test_a_run_that_stays_broken_is_a_false_warning_of_nan_but_a_true_one_of_failure(synthetic: pd.DataFrame) -> None:
    def precision(table: pd.DataFrame, target: str) -> float:
        return float(row_of(monitors.summary(table), tuned_on="all", study="all", target=target)["precision"])

    without = synthetic[synthetic["class"] != "broken"]
    assert precision(synthetic, "nonfinite") < precision(without, "nonfinite")
    assert precision(synthetic, "failure") > precision(without, "failure")


def test_an_immediate_nan_is_counted_and_judged_nowhere(synthetic: pd.DataFrame) -> None:
    table, without = (monitors.summary(t) for t in (synthetic, synthetic[synthetic["class"] != "immediate"]))
    counts = synthetic[synthetic["class"] == "immediate"]["study"].value_counts()
    for name, count in {**counts, "all": counts.sum()}.items():
        assert row_of(table, tuned_on=name, study=name, target="failure")["immediate"] == count
    pd.testing.assert_frame_equal(table.drop(columns="immediate"), without.drop(columns="immediate"))


def test_an_roc_curve_goes_from_no_alarm_to_all(synthetic: pd.DataFrame) -> None:
    curves = monitors.roc(synthetic)
    for (_, target), curve in curves.groupby(["study", "target"]):
        ordered = curve.sort_values("threshold")
        assert ordered[["false", "true"]].iloc[0].tolist() == [1, 1]
        assert ordered[["false", "true"]].iloc[-1].tolist() == [0, 0]
        assert (np.diff(ordered["true"]) <= 0).all()
        assert target in monitors.TARGETS
    both = synthetic[synthetic["class"] != "immediate"]
    point = curves[(curves["study"] == "all") & (curves["target"] == "failure")].iloc[20]
    failing = both["class"].isin(["nonfinite", "broken"])
    assert point["true"] == (both["highest"][failing] > point["threshold"]).mean()
    assert point["false"] == (both["highest"][~failing] > point["threshold"]).mean()


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    """And, where each run is a cell of its own, DeLong's variance, from the formula of its paper over all pairs."""
    rng = np.random.default_rng(4)
    failing, sound = rng.integers(2, 11, 30).astype(float), rng.integers(0, 9, 50).astype(float)
    psi = np.array([[1.0 if f > s else 0.5 if f == s else 0.0 for s in sound] for f in failing])
    area, low, high = monitors.area_under_roc(failing, sound, np.arange(30), np.arange(30, 80))
    assert area == pytest.approx(psi.mean())
    error = np.sqrt(psi.mean(1).var(ddof=1) / 30 + psi.mean(0).var(ddof=1) / 50)
    assert (low, high) == pytest.approx((area - 1.959964 * error, area + 1.959964 * error))


def test_intervals_cover_cells_that_differ() -> None:
    """Cells shift all of their runs: of 300 simulated tables some 95 % of intervals must hold the true area."""
    rng = np.random.default_rng(1)
    true = NormalDist().cdf(1 / math.sqrt(2 * (1 + 0.3**2)))  # the difference of two runs is normal
    covered = 0
    for _ in range(300):
        cell, run = rng.standard_normal((2, 12, 1)), rng.standard_normal((2, 12, 20))
        failing, sound = 1 + cell[0] + 0.3 * run[0], cell[1] + 0.3 * run[1]
        cells = np.repeat(np.arange(12), 20)
        _, low, high = monitors.area_under_roc(failing.ravel(), sound.ravel(), cells, cells + 12)
        covered += low < true < high
    assert 0.88 <= covered / 300 <= 0.99


def test_the_rate_of_false_alarms_has_an_interval_that_holds_without_alarms_and_between_cells() -> None:
    quiet = monitors.false_alarm_rate(np.zeros(10, int), np.full(10, 500), np.arange(10))
    assert quiet[:2] == (0, 0)
    assert quiet[2] == pytest.approx(-math.log(0.025) / 5)  # Poisson: e^-x = 0.025
    at = np.array([100] * 10 + [0] * 90)
    apart = monitors.false_alarm_rate(at, np.full(100, 1000), np.repeat(np.arange(10), 10))
    mixed = monitors.false_alarm_rate(at, np.full(100, 1000), np.tile(np.arange(10), 10))
    assert apart[0] == mixed[0] == pytest.approx(10 / 91)
    assert apart[2] > 1.5 * mixed[2]  # all alarms in one cell say less about the next cell
    assert np.isnan(monitors.false_alarm_rate(*(np.array([], int) for _ in range(3)))).all()


def read_back(table: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


def test_the_advice_is_decided_by_the_table(alarms: pd.DataFrame) -> None:
    """Also by a table that was read from a file, where an empty setting and a text such as NaN are the same."""
    # Both cells of the fixture are needed in each half, so its runs are dealt out anew.
    dealt = pd.concat([alarms.assign(half=half, seed=2 * alarms["seed"] + half) for half in (0, 1)], ignore_index=True)
    table = monitors.summary(dealt)
    fresh, stored = (monitors.advice(version) for version in (table, read_back(table)))
    assert fresh == stored
    row = row_of(table, tuned_on="mechanism", study="mechanism", target="failure", monitor=LOSS)
    assert (fresh.effect, fresh.n) == (row["recall"], row["nonfinite"] + row["broken"])
    assert "Axon 0.6.1 sgd 0.1" in fresh.sentence

    def judged(**values: float) -> str:
        return monitors.advice(table.assign(**values)).verdict

    sure = {"recall_low": 0.95, "specificity_low": 0.96, "sound": 200}
    assert judged(**sure) == "supported"
    assert judged(**sure | {"sound": 199}) == "undecided"  # 1 % of fewer than 100 in each half is less than a run
    assert judged(**sure | {"recall_low": 0.8}) == "undecided"
    assert judged(**sure | {"specificity_low": 0.94}) == "undecided"
    assert judged(**sure, lead_median=0.0) == "undecided"
    assert judged(**sure, recall_high=0.4) == "refuted"
    assert judged(**sure, specificity_high=0.94) == "refuted"


def test_the_figure_shows_every_curve_from_corner_to_corner(synthetic: pd.DataFrame) -> None:
    figure = figures.monitors(read_back(monitors.roc(synthetic)), read_back(monitors.summary(synthetic)))
    assert figure.get_size_inches()[0] <= 3.4
    assert figure.get_size_inches()[1] <= 4.5
    curve = figure.axes[0].lines[0]
    ends = {tuple(point) for point in np.asarray(curve.get_xydata()).tolist()}
    assert {(0.0, 0.0), (1.0, 1.0)} <= ends
    # Counts are in labels, not over curves.
    assert not [text for axes in figure.axes for text in axes.texts]
