"""Axes that Hydra's grammar lacks: which runs each stands for, and what is said where one can't be made."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from processes import start
from scipy.stats.qmc import Sobol

from hydra_plugins.xor_study_sweeper import XORStudySweeper
from xor_study import RunSpec, StudyError
from xor_study.sweeps.axes import as_typed, readable
from xor_study.sweeps.compose import register
from xor_study.sweeps.plan import Plan, plan
from xor_study.sweeps.settings import CONFIG_DIR
from xor_study.training.table import run_ids


@pytest.fixture(scope="module")
def loader() -> ConfigLoader:
    Plugins.instance().register(XORStudySweeper)
    register()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def sweep(loader: ConfigLoader, *overrides: str) -> Plan:
    return plan(loader, overrides, sweep=True)


def same(planned: Plan, specs: Sequence[RunSpec]) -> bool:
    return run_ids(planned.table).tolist() == [spec.run_id for spec in specs]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("range(0.1,0.4,0.1)", [0.1, 0.2, 0.3]),
        ("range(0,1,0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("range(0.3,0,-0.1)", [0.3, 0.2, 0.1]),
        ("range(1.1,2,0.3)", [1.1, 1.4, 1.7]),
        ("range(start=1e-3,stop=4e-3,step=1e-3)", [0.001, 0.002, 0.003]),
        ("sort(range(0.1,0.45,0.1),reverse=true)", [0.4, 0.3, 0.2, 0.1]),
        ("sort(range(0.4,0,-0.1))", [0.1, 0.2, 0.3, 0.4]),
        ("sort(range(1,10,3),reverse=true)", [7, 4, 1]),
        ("range(1,4)", [1, 2, 3]),
    ],
)
def test_ranges_go_in_decimal_steps_without_the_end(loader: ConfigLoader, given: str, expected: list[float]) -> None:
    assert sweep(loader, f"lr={given}").table["lr"].tolist() == expected


def test_a_shuffled_range_has_the_same_values(loader: ConfigLoader) -> None:
    assert sorted(sweep(loader, "lr=shuffle(range(0.1,0.4,0.1))").table["lr"]) == [0.1, 0.2, 0.3]
    seeds = sweep(loader, "seed=shuffle(range(0,50))").table["seed"].tolist()
    assert sorted(seeds) == list(range(50)) != seeds
    assert sweep(loader, "seed=shuffle(range(0,50))").table["seed"].tolist() == seeds  # in each job, and when resumed
    names = sweep(loader, "optimizer=shuffle(sgd,adam,nadam,adagrad)").table["optimizer"].tolist()
    assert sorted(names) == ["adagrad", "adam", "nadam", "sgd"]
    assert sweep(loader, "optimizer=shuffle(sgd,adam,nadam,adagrad)").table["optimizer"].tolist() == names


def test_where_hydras_range_differs_is_said_once(loader: ConfigLoader) -> None:
    (remark,) = sweep(loader, "lr=range(0.1,0.4,0.1)", "seed=range(0,3)").remarks
    assert remark.startswith("lr=range(0.1,0.4,0.1): value 3 is 0.3 (decimal steps, end excluded); Hydra's own range")
    assert sweep(loader, "lr=range(0.5,2,0.5)").remarks == ()


def test_zip_pairs_values_and_is_crossed_with_the_rest(loader: ConfigLoader) -> None:
    planned = sweep(loader, "hidden=4,8", "zip(optimizer=sgd,adam; lr=0.1,0.001)", "seed=range(0,2)")
    pairs = [("sgd", 0.1), ("adam", 0.001)]
    expected = itertools.product((4, 8), pairs, range(2))
    assert same(planned, [RunSpec(hidden=h, optimizer=o, lr=lr, seed=seed) for h, (o, lr), seed in expected])
    assert planned.axes == ("hidden", "optimizer", "lr", "seed")


def test_two_designs_are_crossed_wherever_the_seed_is(loader: ConfigLoader) -> None:
    planned = sweep(loader, "zip(lr=0.1,1; gain=1,2)", "seed=7,3", "zip(hidden=2,4; batch=8,16)")
    expected = itertools.product([(0.1, 1), (1, 2)], (7, 3), [(2, 8), (4, 16)])
    specs = [RunSpec(lr=lr, gain=g, seed=s, hidden=h, batch=b) for (lr, g), s, (h, b) in expected]
    assert same(planned, specs)


def test_what_refers_to_a_zipped_value_follows_it(loader: ConfigLoader) -> None:
    planned = sweep(loader, "zip(hidden=2,4; lr=0.1,1)", "batch=${hidden}", "seed=0,1")
    assert planned.table["batch"].tolist() == [2, 2, 4, 4]


def test_ofat_varies_one_at_a_time_from_the_baseline(loader: ConfigLoader) -> None:
    planned = sweep(loader, "lr=0.5", "ofat(lr=1,2; gain=3; init=he_normal)")
    base = {"lr": 0.5}
    changes: list[dict[str, object]] = [{}, {"lr": 1.0}, {"lr": 2.0}, {"gain": 3.0}, {"init": "he_normal"}]
    assert same(planned, [RunSpec(**(base | change)) for change in changes])  # type: ignore[arg-type]


def test_ofat_takes_a_choices_own_defaults(loader: ConfigLoader) -> None:
    planned = sweep(loader, "ofat(optimizer=adam,sgd; optimizer.momentum=0.9)", "seed=range(0,2)")
    specs = [RunSpec(), RunSpec(optimizer="adam"), RunSpec(optimizer_momentum=0.9)]
    assert same(planned, [spec.replace(seed=seed) for spec in specs for seed in range(2)])
    assert planned.duplicates == 2  # the baseline again


def test_logspace_and_linspace_have_both_ends(loader: ConfigLoader) -> None:
    rates = sweep(loader, "lr=logspace(1e-4,10,20)").table["lr"].to_numpy()
    np.testing.assert_allclose(rates, np.geomspace(1e-4, 10, 20), rtol=1e-11)
    assert (rates[0], rates[-1]) == (1e-4, 10)
    assert sweep(loader, "lr=logspace(1e-4,10,6)").table["lr"].tolist() == [1e-4, 1e-3, 1e-2, 0.1, 1, 10]
    assert sweep(loader, "lr=linspace(0,0.3,4)").table["lr"].tolist() == [0, 0.1, 0.2, 0.3]
    assert sweep(loader, "hidden=logspace(1,8,7)").table["hidden"].tolist() == [1, 2, 3, 4, 6, 8]


def test_sobol_is_scipys_scrambled_sequence(loader: ConfigLoader) -> None:
    planned = sweep(loader, "sobol(lr=1e-4..10 log, gain=0.1..10, hidden=2..5; n=256, seed=3)", "seed=0,1")
    unit = Sobol(3, rng=np.random.default_rng(3)).random(256)
    table = planned.table[planned.table["seed"] == 1]
    np.testing.assert_allclose(table["lr"], 1e-4 * 1e5 ** unit[:, 0], rtol=1e-11)
    np.testing.assert_allclose(table["gain"], 0.1 + 9.9 * unit[:, 1], rtol=1e-11)
    assert table["hidden"].value_counts().to_dict() == {2: 64, 3: 64, 4: 64, 5: 64}
    assert len(planned.table) == 512


def test_designs_in_study_files(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    text = (
        "grids:\n"
        "  - axes: ['zip(lr=0.1,1; gain=1,2)', 'ofat(hidden=2,4; batch=16)']\n"
        "    epochs: 1\n"
        "    iterations: 10\n"
        "    seed: range(0,2)\n"
        "  - lr: range(0.1,0.4,0.1)\n"
        "    axes: sobol(gain=0.1..10 log, bias=0..1; n=4)\n"
        "    epochs: 1\n"
        "    iterations: 10\n"
    )
    (tmp_path / "study/mine.yaml").write_text(text)
    command = start(["-m", f"--config-dir={tmp_path}", "study=mine", "hydra.sweep.dir=x"], tmp_path)
    assert (command.wait(), command.err) == (0, "")
    assert f"{2 * 4 * 2 + 3 * 4} runs: x/runs.csv" in command.out


def test_the_command_line_takes_them_and_can_be_repeated(tmp_path: Path) -> None:
    words = [
        "-m",
        "zip(lr=0.1,1; gain=1,2)",
        "hidden=logspace(2,8,3)",
        "epochs=1",
        "iterations=10",
        "note=it's a, b (c)",
    ]
    command = start([*words, "hydra.sweep.dir=x"], tmp_path)
    assert (command.wait(), command.err) == (0, "")
    assert "6 runs: x/runs.csv" in command.out
    assert "-m 'zip(lr=0.1,1; gain=1,2)' 'hidden=logspace(2,8,3)' epochs=1" in command.out
    shown = start(["show", "x"], tmp_path)
    assert shown.wait() == 0
    assert "note: x: it's a, b (c)" in shown.out


@pytest.mark.parametrize(
    "text", ["zip(lr=0.1,1; gain=1,2)", "lr=logspace(1,2,3)", "note=it's", "lr=1", "axes=zip(lr=1)"]
)
def test_what_hydra_reads_is_shown_as_it_was_typed(text: str) -> None:
    assert as_typed(readable(text)) == text.removeprefix("axes=")
    assert readable(readable(text)) == readable(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["zip(lr=0.1,1; gain=1,2,3)"], "zip pairs axes of the same number of values; lr has 2, gain has 3"),
        (["zip(lr=0.1,1; gian=1,2)"], "gian: unknown key; did you mean gain"),
        (["zip(lr=1,2; lr=1,2)"], "lr is given twice"),
        (["zip(lr=0.1,1; gain=1,2)", "lr=0.5"], "lr: given twice, in lr=0.5 and in zip"),
        (["zip(lr=0.1,1; gain=1,2)", "ofat(lr=3,4)"], "lr: given twice, in zip.* and in ofat"),
        (["ofat(lr=0.1,1)", "lr=1,2"], "lr: given twice"),
        (["ofat(hidden=2,4; batch=16)", "batch=${hidden}"], "batch=.*hidden.*: refers to other values"),
        (["zip()"], r"zip\(\): has no axes"),
        (["zip(0.1,1)"], "0.1,1: must be key=value"),
        (["zip(engine=plain,vmap; lr=1,2)"], "engine has one value for the whole sweep"),
        (["zip(optimizer=sgd,sdg; lr=1,2)"], "optimizer=sdg: unknown; did you mean sgd"),
        (["zip(init=glob(z*); optimizer.momentum=0.5)", "optimizer=adam"], "optimizer=adam has no such parameter"),
        (["zipp(lr=0.1)"], "unknown axis zipp; did you mean zip"),
        (["ofat(seed=1,2)"], "seed is crossed with all of ofat"),
        (["lr=logspace(0,1,3)"], "ends of logspace must be above 0"),
        (["lr=logspace(1,10,0)"], "count=0: must be a whole number"),
        (["lr=logspace(1,10)"], r"must be logspace\(FIRST,LAST,COUNT\)"),
        (["lr=logspace(1,x,3)"], "an end=x: must be a number"),
        (["lr=linspace(-1,1,3)"], "lr=-1.0: must be finite and >= 0"),
        (["lr=logspce(1,10,3)"], "unknown function; did you mean logspace"),
        (["optimizer=logspace(1,2,3)"], "optimizer: is not a number"),
        (["sobol(lr=10..1; n=8)"], "the lower end comes first"),
        (["sobol(lr=0..1 log; n=8)"], "a log scale begins above 0"),
        (["sobol(lr=0.1..1; n=100)"], "Sobol points need a power of two, such as 64 or 128"),
        (["sobol(lr=0.1..1; n=0)"], "n=0: must be a whole number"),
        (["sobol(lr=0.1..1)"], "n=: must be a whole number"),
        (["sobol(; n=4)"], "has no dimensions"),
        (["sobol(lr=0.1; n=4)"], r"must be KEY=LOW\.\.HIGH"),
        (["sobol(lrr=0.1..1; n=4)"], "lrr: unknown key; did you mean lr"),
        (["sobol(dtype=1..2; n=4)"], "dtype: is not a number"),
        (["sobol(lr=0.1..1, lr=1..2; n=8)"], "lr is given twice"),
        (["sobol(seed=0..9; n=8)"], "seed is crossed with all points"),
        (["sobol(lr=0.1..1; n=8, m=2)"], "m=2: must be one of n=, seed="),
        (["sobol(hidden=2..9999; n=8)"], "hidden=.*: must be in"),
        (["lr=until(width=0.1,max=3)"], "only seeds are added"),
        (["seed=until(width=0.1)"], "max=: must be a whole number"),
        (["seed=until(max=10)"], "width=: must be a number"),
        (["seed=until(width=2,max=3)"], "width=2: must be above 0 and below 1"),
        (["seed=until(width=0.1,max=10,min=20)"], r"min=20: must be a whole number in \[1, 10\]"),
        (["seed=until(width=0.1,max=10,outcome=bad)"], "outcome=bad: unknown"),
        (["seed=until(width=0.1,max=10,width=0.2)"], "width is given twice"),
        (["lr=range(0.1,0.4,0)"], "range"),
        (["lr=range(0.1,0.1,0.1)"], "an empty sweep"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(loader: ConfigLoader, overrides: list[str], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        sweep(loader, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["zip(lr=0.1,1; gain=1,2)", "ofat(lr=1)", "sobol(lr=1..2; n=2)", "seed=until(width=0.1,max=9)"]
)
def test_designs_need_a_sweep(loader: ConfigLoader, word: str) -> None:
    with pytest.raises(StudyError, match="several values; add -m"):
        plan(loader, [word], sweep=False)


def test_designs_need_this_packages_sweeper(tmp_path: Path) -> None:
    command = start(["-m", "zip(lr=1,2; gain=1,2)", "hydra/sweeper=basic", "hydra.sweep.dir=x"], tmp_path)
    assert command.wait() == 1
    assert command.err == "error: zip(lr=1,2; gain=1,2): only hydra/sweeper=xor_study knows this axis\n"
    assert not (tmp_path / "x").exists()
