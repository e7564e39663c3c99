"""Comparisons: what is a pair, why a run has none, how many tests there are, and effects against other programs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.multitest import multipletests

from xor_study import StudyError
from xor_study.analysis.comparison import compared, compared_by
from xor_study.analysis.factorial import effects_of
from xor_study.analysis.levels import nearly_equal
from xor_study.analysis.outcomes import Outcomes
from xor_study.analysis.statistics import mean_contrasts, paired, paired_difference, paired_differences, wilson
from xor_study.files import write_table
from xor_study.run import main
from xor_study.sweeps import records
from xor_study.sweeps.formats import comparison_texts
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import key_of
from xor_study.training.table import table_of

Rule = Callable[[Mapping[str, Any]], str]
NEAR = 0.30000000000000004


def mixed(run: Mapping[str, Any]) -> str:
    """Return an outcome that depends on all settings and on the seed in no simple way, the same in every process."""
    text = " ".join(str(run[key]) for key in ("optimizer", "lr", "gain"))
    return OUTCOMES[(sum(map(ord, text)) * 7 + run["seed"] * 13 + run["seed"] ** 2) % 11 % 4]


def table(rule: Rule = mixed, **axes: Sequence[Any]) -> pd.DataFrame:
    """Return a grid of runs as in `runs.csv`, whose outcomes are made up."""
    grid = pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes))
    runs = table_of(grid)
    runs = runs.rename(columns={field: key_of(field) for field in runs.columns})
    return runs.assign(outcome=[rule(row) for row in runs.to_dict("records")])


def outcomes(rule: Rule = mixed, **axes: Sequence[Any]) -> Outcomes:
    return Outcomes.of([table(rule, **axes)])


def test_two_sets_are_paired_by_what_they_share() -> None:
    one = table(optimizer=["sgd", "adam"], lr=[0.1, 1.0], seed=range(60))
    other = table(optimizer=["adam", "sgd"], lr=[1.0, 0.1], gain=[3.0], seed=range(59, -1, -1))
    found = compared(Outcomes.of([one]), Outcomes.of([other.sample(frac=1, random_state=0)]))
    assert found.sides == ["gain=1", "gain=3"]
    assert found.notes == []
    assert found.table[["optimizer", "lr"]].drop_duplicates().to_numpy().tolist() == [
        ["sgd", "0.1"],
        ["sgd", "1"],
        ["adam", "0.1"],
        ["adam", "1"],
    ]
    for row in found.table.to_dict("records"):
        a, b = (t[(t["optimizer"] == row["optimizer"]) & (t["lr"] == float(row["lr"]))] for t in (one, other))
        pairs = a.merge(b, on="seed")
        before, after = pairs["outcome_x"] == row["outcome"], pairs["outcome_y"] == row["outcome"]
        effect = paired_difference(before, after)
        assert row["pairs"] == len(pairs) == 60
        assert (row["difference"], row["low"], row["high"]) == pytest.approx(effect[:3])
        assert (row["one"], row["other"]) == pytest.approx((before.mean(), after.mean()))


def test_arrays_of_differences_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    tables = rng.multinomial(50, [0.3, 0.2, 0.1, 0.4], 40)
    tables = np.vstack([tables, [[50, 0, 0, 0], [0, 0, 0, 50], [0, 50, 0, 0]]])
    found = np.transpose(paired_differences(*tables.T[:3], tables.sum(1)))
    for (both, first, second, neither), row in zip(tables.tolist(), found.tolist(), strict=True):
        one = [True] * (both + first) + [False] * (second + neither)
        other = [True] * both + [False] * first + [True] * second + [False] * neither
        assert tuple(row) == paired_difference(one, other)
        assert row[3] == paired(one, other)


def test_a_table_from_a_file_pairs_with_itself(tmp_path: Path) -> None:
    runs = table(optimizer=["sgd", "adam"], lr=[0.1, 1.0], batch=[32, "full"], seed=range(6))
    write_table(tmp_path / "runs.csv", runs)
    found = compared(Outcomes.of([records.read_runs(tmp_path)]), Outcomes.of([runs]))
    assert list(found.sides) == ["", ""]
    assert found.notes == []
    assert found.table.groupby(["optimizer", "lr", "batch"])["pairs"].first().tolist() == [6] * 8
    assert not found.table["difference"].any()


def test_numbers_survive_the_comparison() -> None:
    """A seed beyond 2^53 is not rounded onto its neighbour."""
    big = 2**60
    one, other = (outcomes(lr=[lr], seed=[big, big + 1, big + 2]) for lr in (0.1, 0.2))
    found = compared(one, other).table
    assert set(found["pairs"]) == {3}
    assert np.isfinite(found["p"]).all()


def test_runs_without_a_partner_are_counted_by_reason() -> None:
    """Each run of either side is in a pair or in one of the lines."""
    one = outcomes(optimizer=["sgd", "adam"], lr=[0.1, 0.3, 5.0], seed=range(40))
    other = outcomes(optimizer=["sgd", "adam"], lr=[0.1, NEAR], gain=[2.0], seed=range(10, 30))
    assert compared(one, other).notes == [
        "160 of 240 runs of A have no partner: lr=0.3, 5 not in B",
        "40 of 240 runs of A have no partner: seed 0 to 9, 30 to 39 not in B",
        f"40 of 80 runs of B have no partner: lr={NEAR} not in A",
        f"lr=0.3 and {NEAR} are nearly equal, but not the same: write them alike in all sweeps",
    ]


def test_a_missing_combination_and_a_missing_seed_of_one_cell_are_said() -> None:
    whole = table(optimizer=["sgd", "adam"], lr=[0.1, 1.0], seed=range(5))
    is_gap = (whole["optimizer"] == "adam") & (whole["lr"] == 1.0)
    is_hole = (whole["optimizer"] == "sgd") & (whole["lr"] == 1.0) & whole["seed"].isin([2, 3])
    found = compared(Outcomes.of([whole]), Outcomes.of([whole[~is_gap & ~is_hole]]))
    assert found.notes == [
        "5 of 20 runs of A have no partner: no such combination in B: optimizer=adam lr=1",
        "2 of 20 runs of A have no partner: optimizer=sgd lr=1 has no seed 2 to 3 in B",
    ]
    assert found.table.groupby(["optimizer", "lr"], sort=False)["pairs"].first().tolist() == [5, 3, 5]


def test_no_pairs_at_all_says_why() -> None:
    one = outcomes(lr=[0.1, 0.3], seed=range(3))
    with pytest.raises(StudyError, match=r"^no pairs: 6 of 6 runs of A have no partner: seed 0 to 2 not in B; 6 of 6"):
        compared(one, outcomes(lr=[0.1, 0.3], seed=range(100, 103)))
    with pytest.raises(
        StudyError, match=r"lr=0\.1, 0\.3 not in B.*lr=0\.3 and 0\.30000000000000004, 0\.3 and 0\.300001 are"
    ):
        compared(one, outcomes(lr=[NEAR, 0.300001], seed=range(3)))


def test_nearly_equal_values_are_told_even_where_they_are_the_only_ones() -> None:
    """Runs at 0.3 and at 0.30000000000000004 are pairs then, of which the rate is the difference."""
    found = compared(outcomes(lr=[0.3], seed=range(3)), outcomes(lr=[NEAR], seed=range(3)))
    assert list(found.sides) == ["lr=0.3", f"lr={NEAR}"]
    assert found.notes == [f"lr=0.3 and {NEAR} are nearly equal, but not the same: write them alike in all sweeps"]


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [("0.3", "0.300001", 1), ("1000000", "1000001", 1), ("0.3", "0.30001", 0), ("0", "1e-9", 0), ("-2", "2", 0)],
)
def test_nearly_equal_is_a_hundred_thousandth(one: str, other: str, near: int) -> None:
    assert nearly_equal([one, "tanh"], ["7", other, "full", one]) == [(one, other)] * near


def test_a_run_that_is_there_twice_is_refused() -> None:
    runs = table(lr=[0.1, 1.0], seed=range(3))
    for sides in ([[runs, runs], [runs]], [[runs], [runs, runs]]):
        with pytest.raises(StudyError, match="can't be paired: a run is there twice"):
            compared(*map(Outcomes.of, sides))


def test_cells_that_have_no_runs_yet_do_not_count() -> None:
    """An unfinished sweep knows all of its cells."""
    whole = outcomes(gain=[1.0, 2.0], seed=range(5))
    is_there = whole.cell == 0
    begun = Outcomes(whole.cells, whole.cell[is_there], whole.seed[is_there], whole.outcome[is_there])
    found = compared(begun, outcomes(gain=[3.0], seed=range(5)))
    assert list(found.sides) == ["gain=1", "gain=3"]
    assert found.notes == []
    with pytest.raises(StudyError, match="does not vary"):
        compared_by(begun, "gain")
    with pytest.raises(StudyError, match="no setting varies"):
        effects_of(begun)


def test_complements_are_one_test() -> None:
    """A cell of two outcomes has one test, a cell of three has three: Holm's correction is that of four."""
    rng = np.random.default_rng(3)
    draws = {lr: rng.choice(OUTCOMES[: 2 + index], (2, 40)) for index, lr in enumerate((0.1, 1.0))}
    one, other = (
        table(
            lambda run, side=side: draws[run["lr"]][side, run["seed"]],
            lr=list(draws),
            gain=[1.0 + side],
            seed=range(40),
        )
        for side in (0, 1)
    )
    found = compared(Outcomes.of([one]), Outcomes.of([other]))
    assert found.table["complement_of"].tolist() == ["", "solved", "", "", ""]
    tests = [(0.1, "solved"), *((1.0, outcome) for outcome in OUTCOMES[:3])]
    masks = [[draws[lr][side] == outcome for side in (0, 1)] for lr, outcome in tests]
    expected = multipletests([paired(*both) for both in masks], method="holm")[1]
    assert found.table["p"].tolist() == [expected[0], expected[0], *expected[1:]]
    first, second = found.table["difference"][:2]
    assert first == -second
    assert "Holm's correction for 4 tests; where only two outcomes occur they are complements" in found.method


def test_levels_are_compared_with_the_baseline_as_two_folders_would_be() -> None:
    axes: dict[str, Any] = {"lr": [0.1, 1.0], "gain": [1.0, 2.0], "seed": range(30)}
    whole = outcomes(optimizer=["adam", "sgd", "rmsprop"], **axes)
    found = compared_by(whole, "optimizer")
    assert list(found.sides) == ["optimizer=sgd", "each other optimizer"]  # the article's, though adam comes first
    assert found.table["optimizer"].unique().tolist() == ["adam", "rmsprop"]
    for name, rows in found.table.groupby("optimizer"):
        alone = compared(outcomes(optimizer=["sgd"], **axes), outcomes(optimizer=[name], **axes)).table
        pd.testing.assert_frame_equal(
            rows.drop(columns=["optimizer", "p"]).reset_index(drop=True), alone.drop(columns="p"), check_dtype=False
        )
    (note,) = found.notes
    assert note.startswith("varies only with optimizer, so each level has its own and runs are paired without it: ")
    assert "optimizer.beta1" in note
    assert "lr" not in note


def test_a_rate_that_is_each_optimizers_own_belongs_to_the_level() -> None:
    found = compared_by(outcomes(optimizer=["sgd", "adam"], seed=range(8)), "optimizer", "adam")
    assert set(found.table["pairs"]) == {8}
    assert "lr (0.001 with optimizer=adam, 0.01 with optimizer=sgd)" in found.notes[0]
    mixed_rates = Outcomes.of(
        [table(optimizer=["sgd"], seed=range(8)), table(optimizer=["adam"], lr=[0.01, 1.0], seed=range(8))]
    )
    found = compared_by(mixed_rates, "optimizer")
    assert set(found.table["pairs"]) == {8}
    assert "8 of 16 runs of optimizer=adam have no partner: lr=1 not in optimizer=sgd" in found.notes


def test_a_parameter_that_varies_within_a_choice_makes_levels() -> None:
    parts = [table(clip=["none"], seed=range(6)), table(clip=["norm"], clip_bound=[0.5, 1.0], seed=range(6))]
    runs = Outcomes.of(parts)
    found = compared_by(runs, "clip")
    assert list(found.sides) == ["clip=none", "each other clip"]
    assert found.table[["clip", "clip.bound"]].drop_duplicates().to_numpy().tolist() == [["norm", "0.5"], ["norm", "1"]]
    assert compared_by(runs, "clip", "clip=norm clip.bound=1").sides[0] == "clip=norm clip.bound=1"
    assert compared_by(runs, "clip", "norm,clip.bound=1.0").sides[0] == "clip=norm clip.bound=1"
    with pytest.raises(
        StudyError, match=r"--baseline norm: may be clip=norm clip\.bound=0\.5, clip=norm clip\.bound=1$"
    ):
        compared_by(runs, "clip", "norm")
    found = compared_by(runs, "clip.bound", "1")
    assert found.notes[0] == "6 runs have no clip.bound and are left out"
    assert found.table["clip.bound"].unique().tolist() == ["0.5"]


def test_a_parameter_that_all_choices_share_is_paired_by() -> None:
    runs = outcomes(optimizer=["adam", "adamw"], optimizer_beta1=[0.5, 0.9], lr=[0.1], seed=range(6))
    found = compared_by(runs, "optimizer", "adamw")
    assert found.table[["optimizer", "optimizer.beta1"]].drop_duplicates().to_numpy().tolist() == [
        ["adam", "0.5"],
        ["adam", "0.9"],
    ]
    assert "optimizer.weight_decay (0.01 with optimizer=adamw, 0 with optimizer=adam)" in found.notes[0]


def test_a_baseline_may_be_a_preset_or_both_activations() -> None:
    runs = outcomes(loss=["axon_0_6_1", "axon_0_7_0", "binary_cross_entropy"], seed=range(4))
    assert compared_by(runs, "loss").sides[0] == "loss=binary_cross_entropy"
    assert "loss.logits_visible=false" in compared_by(runs, "loss", "axon_0_6_1").sides[0]
    with pytest.raises(StudyError, match="axon_0_6_1: no run has it"):
        compared_by(outcomes(loss=["axon_0_7_0", "binary_cross_entropy"], seed=range(4)), "loss", "axon_0_6_1")
    runs = outcomes(activation_hidden=["relu", "tanh"], seed=range(4))
    assert compared_by(runs, "activation").sides[0] == "activation.hidden=tanh activation.output=sigmoid"
    assert compared_by(runs, "activation", "relu_sigmoid").table["activation.hidden"].unique().tolist() == ["tanh"]


def test_a_narrow_interval_has_the_digits_that_it_needs() -> None:
    """Of 20,000 pairs 60 get better: 0.3 points, which is not nothing."""

    def rule(run: Mapping[str, Any]) -> str:
        return "solved" if run["gain"] == 2 and run["seed"] < 60 else "unsolved"

    one, other = (outcomes(rule, gain=[gain], seed=range(20_000)) for gain in (1.0, 2.0))
    _, (first, _) = comparison_texts(compared(one, other).table)
    assert first[:5] == ["solved", "20000", "0.00 %", "0.30 %", "+0.30 (+0.23 to +0.39)"]


@pytest.mark.parametrize(
    ("key", "baseline", "message"),
    [
        ("learning_rate", None, "--by learning_rate: unknown setting; did you mean lr?"),
        ("lrr", None, "--by lrr: unknown setting; did you mean lr?"),
        ("seed", None, "--by seed: pairs the runs"),
        ("gain", None, "--by gain: does not vary, all runs have gain=1; what varies: optimizer, lr"),
        ("clip.bound", None, "--by clip.bound: no run has it"),
        ("lr", "7", "--baseline 7: no run has it (there are lr=0.1, lr=0.30000000000000004)"),
        ("lr", "0.3", f"--baseline 0.3: no run has it; nearly equal: {NEAR} (there are lr=0.1, lr={NEAR})"),
        ("lr", "gain=1", "--baseline gain=1: gain is not a setting of lr"),
        ("optimizer", "sdg", "--baseline sdg: no run has it (there are optimizer=sgd, optimizer=adam)"),
        ("optimizer", "", "--baseline : no run has it (there are optimizer=sgd, optimizer=adam)"),
    ],
)
def test_bad_levels_are_said_in_one_line(key: str, baseline: str | None, message: str) -> None:
    with pytest.raises(StudyError) as raised:
        compared_by(outcomes(optimizer=["sgd", "adam"], lr=[0.1, NEAR], seed=range(3)), key, baseline)
    assert str(raised.value) == message


def test_effects_are_those_of_a_regression_with_errors_clustered_by_seed() -> None:
    """Least squares on settings coded as -1/2 and 1/2 has main effects and interactions as its coefficients."""
    runs = table(optimizer=["sgd", "adam"], lr=[0.01, 1.0], gain=[1.0, 2.0], seed=range(50))
    found = effects_of(Outcomes.of([runs])).table
    assert found["effect"].unique().tolist() == [
        "optimizer",
        "lr",
        "gain",
        "optimizer x lr",
        "optimizer x gain",
        "lr x gain",
    ]
    coded = runs[["optimizer", "lr", "gain", "seed"]].assign(
        optimizer=(runs["optimizer"] == "adam") - 0.5, lr=(runs["lr"] == 1) - 0.5, gain=(runs["gain"] == 2) - 0.5
    )
    for outcome, rows in found.groupby("outcome"):
        data = coded.astype(float).assign(y=(runs["outcome"] == outcome).astype(float))
        fit = smf.ols("y ~ (optimizer + lr + gain) ** 3", data).fit(
            cov_type="cluster", cov_kwds={"groups": data["seed"].astype(int), "use_correction": False}
        )
        for row in rows.to_dict("records"):
            name = row["effect"].replace(" x ", ":")
            assert row["difference"] == pytest.approx(fit.params[name])
            error = fit.bse[name] * np.sqrt(50 / 49)  # of the mean, with one degree of freedom less
            assert row["high"] - row["difference"] == pytest.approx(2.009575 * error, rel=1e-5)  # t, 49 degrees


def test_effects_of_more_levels_are_each_against_the_baseline() -> None:
    def rule(run: Mapping[str, Any]) -> str:
        return "solved" if run["lr"] == 0.1 or (run["lr"] == 1 and run["optimizer"] == "adam") else "nonfinite"

    found = effects_of(outcomes(rule, lr=[1.0, 0.1, 0.01], optimizer=["adam", "sgd"], seed=range(20)))
    table = found.table[found.table["outcome"] == "solved"].set_index("level")
    assert table["baseline"].unique().tolist() == ["optimizer=sgd", "lr=0.01", "optimizer=sgd lr=0.01"]
    assert table["difference"].to_dict() == {
        "optimizer=adam": pytest.approx(1 / 3),
        "lr=1": 0.5,
        "lr=0.1": 1.0,
        "optimizer=adam lr=1": 1.0,
        "optimizer=adam lr=0.1": 0.0,
    }
    assert (found.table["complement_of"] == ["", "solved"] * 5).all()
    assert "Holm's correction for 5 tests" in found.method
    # All seeds agree, so there is no variance: Wilson's bound on those that wouldn't, and the sign test.
    assert table["low"]["lr=0.1"] == pytest.approx(1 - 2 * wilson(0, 20)[1])
    assert table["high"]["lr=0.1"] == 1
    assert table["p"]["lr=0.1"] == pytest.approx(5 * 2 * 0.5**20)


def test_a_rate_of_its_own_and_parameters_are_no_factors() -> None:
    axes: dict[str, Any] = {"optimizer": ["sgd", "adam"], "seed": range(4)}
    clipped = table(clip=["norm"], clip_bound=[0.5, 2.0], **axes)
    runs = Outcomes.of([table(clip=["none"], **axes), clipped])
    found = effects_of(runs)
    assert found.table["effect"].unique().tolist() == ["optimizer", "clip", "optimizer x clip"]
    assert set(found.table["level"]) >= {"optimizer=adam", "clip=norm clip.bound=0.5", "clip=norm clip.bound=2"}
    assert found.notes[0].startswith("varies only with optimizer")
    assert "lr (0.01 with optimizer=sgd, 0.001 with optimizer=adam)" in found.notes[0]


def test_what_effects_need_is_said() -> None:
    runs = table(optimizer=["sgd", "adam"], lr=[0.1, 1.0], seed=range(5))
    needs = "--effects needs all combinations of the settings with the same seeds: "
    is_gap = (runs["optimizer"] == "adam") & (runs["lr"] == 0.1)
    for some, message in (
        (runs[~is_gap], f"{needs}1 of 4 are missing, such as optimizer=adam lr=0.1"),
        (runs[~(is_gap & (runs["seed"] > 2))], f"{needs}optimizer=adam lr=0.1 lacks seed 3 to 4"),
        (
            pd.concat([runs[~is_gap], runs[is_gap].assign(lr=0.1000001)]),
            f"{needs}2 of 6 are missing, such as optimizer=sgd lr=0.1000001; lr=0.1000001 and 0.1 are nearly equal, "
            "but not the same: write them alike in all sweeps",
        ),
        (pd.concat([runs, runs[:1]]), "--effects: a run is there twice"),
        (runs[runs["seed"] == 0], "--effects: there is one seed only, so there is nothing to estimate"),
        (runs.assign(outcome="solved"), "--effects: all runs are solved, so there is nothing to estimate"),
        (runs[is_gap], "--effects: no setting varies"),
    ):
        with pytest.raises(StudyError) as raised:
            effects_of(Outcomes.of([some]))
        assert str(raised.value) == message


def test_the_interval_of_an_effect_covers_it() -> None:
    """2,000 samples of 20 seeds that differ among themselves and decide four cells each."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 1, (20, 2000, 1))
    first, second = (rng.normal(0, 1, (20, 2000, 4)) + seeds + shift > 0 for shift in (0.0, 1.0))
    _, low, high, _ = mean_contrasts((second.sum(-1) - first.sum(-1)) / 4)
    truth = 0.5 * (1 + math.erf(1 / 2)) - 0.5  # of a normal distribution of variance 2
    assert 0.93 < ((low <= truth) & (truth <= high)).mean() < 0.97


def test_the_commands_print_what_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seeds, gain in (("a", range(8), 1.0), ("b", range(8, 12), 1.0), ("c", range(10), 2.0)):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "runs.csv", table(optimizer=["sgd", "adam"], gain=[gain], seed=seeds))

    def printed(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["compare", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    code, out, err = printed("a", "b", "--with", "c")
    assert (code, err) == (0, "")
    assert out.startswith("A: a b (gain=1)\nB: c (gain=2)\n")
    assert "note: 4 of 24 runs of A have no partner: seed 10 to 11 not in B\n" in out
    assert "note: B: 20 runs were computed by another version of the code" in out
    code, out, err = printed("a", "--by", "optimizer", "b", "--baseline", "optimizer=adam", "--format", "csv")
    assert code == 0
    assert out.startswith("optimizer,pairs,outcome,one,other,difference,low,high,p,complement_of\nsgd,12,")
    assert err.startswith("note: varies only with optimizer, so each level")
    code, out, err = printed("a", "b", "c", "--effects")
    assert code == 1
    assert err.endswith("with the same seeds: optimizer=sgd gain=2 lacks seed 10 to 11\n")
    code, out, err = printed("a", "b", "--effects", "--format", "latex")
    assert code == 0
    assert out.startswith("\\begin{tabular}{llllrrr}")
    assert "optimizer & Adam & SGD & solved & 12 &" in out
    for arguments, message in (
        (["a"], "compare takes two folders, or one with --by KEY or --effects"),
        (["a", "b", "c"], "3 folders: say which are compared, as in A B --with C, or --by KEY or --effects"),
        (["a", "--with", "b", "--by", "lr"], "--with: --by and --effects compare runs of one set of folders"),
        (["a", "b", "--baseline", "lr=1"], "--baseline: names a level of --by KEY"),
        (["a", "--effects", "--by", "lr"], "--by and --effects: take one of them"),
        (["--by", "lr"], "the following arguments are required: FOLDER"),
        (["a", "--by", "gain"], "--by gain: does not vary"),
    ):
        code, out, err = printed(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
