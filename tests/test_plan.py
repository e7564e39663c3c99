"""Plans: from overrides to a checked table, and what is said when that is not possible."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hydra_plugins.xor_study_sweeper import XORStudySweeper
from xor_study import RunSpec, StudyError
from xor_study.sweeps.compose import register, values_of
from xor_study.sweeps.plan import Plan, plan
from xor_study.sweeps.settings import CONFIG_DIR, SETTINGS
from xor_study.training.spec import FIELDS, GROUPS, OWN
from xor_study.training.table import distinct_rows, run_ids, table_of


@pytest.fixture(scope="module")
def loader() -> ConfigLoader:
    """Hydra's loader of our configuration, which keeps what it has read: as in a process, one for all that is asked."""
    Plugins.instance().register(XORStudySweeper)
    register()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def sweep(loader: ConfigLoader, *overrides: str) -> Plan:
    return plan(loader, overrides, sweep=True)


def ids(planned: Plan) -> list[str]:
    return run_ids(planned.table).tolist()


def test_no_override_is_the_article(loader: ConfigLoader) -> None:
    assert ids(plan(loader, [], sweep=False)) == [RunSpec().run_id]


def test_the_configuration_has_the_defaults_of_a_run() -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "config.yaml"))
    assert isinstance(config, dict)
    for name, own in OWN.items():
        if name in config:
            assert config[name] == own.default, name
    chosen = {k: v for default in config["defaults"] if isinstance(default, dict) for k, v in default.items()}
    assert {group: chosen[group] for group in GROUPS} == {group: OWN[group].default for group in GROUPS}
    assert chosen["activation"] == f"{OWN['activation_hidden'].default}_{OWN['activation_output'].default}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_can_be_planned(loader: ConfigLoader, group: str) -> None:
    output = ["activation.output=sigmoid"] if group == "loss" else []
    planned = sweep(loader, f"{group}=glob(*)", *output)
    names = {*GROUPS[group], *GROUPS[group].presets}
    expected = dict.fromkeys(RunSpec(**{group: name}).run_id for name in sorted(names))
    assert ids(planned) == list(expected)


def test_a_grid_is_every_combination_in_the_order_given(loader: ConfigLoader) -> None:
    planned = sweep(loader, "optimizer=sgd,adam", "lr=0.001,0.01,0.1,1", "seed=range(0,20)")
    expected = [
        RunSpec(optimizer=optimizer, lr=lr, seed=seed).run_id
        for optimizer in ("sgd", "adam")
        for lr in (0.001, 0.01, 0.1, 1.0)
        for seed in range(20)
    ]
    assert ids(planned) == expected
    assert planned.axes == ("optimizer", "lr", "seed")
    assert list(planned.table.columns) == FIELDS
    turned = sweep(loader, "seed=2,1", "optimizer=sgd,adam")
    assert turned.table[["seed", "optimizer"]].to_numpy().tolist() == [[2, "sgd"], [2, "adam"], [1, "sgd"], [1, "adam"]]


def test_pairings_parameters_and_quotes(loader: ConfigLoader) -> None:
    planned = sweep(
        loader,
        "activation=relu_identity,tanh_tanh",
        "loss=huber",
        "loss.delta=choice(0.1,0.5)",
        "optimizer.momentum='0.5'",
        "batch=full,8",
    )
    assert ids(planned) == [
        RunSpec(
            activation_hidden=h, activation_output=o, loss="huber", loss_delta=d, optimizer_momentum=0.5, batch=b
        ).run_id
        for h, o in (("relu", "identity"), ("tanh", "tanh"))
        for d in (0.1, 0.5)
        for b in ("full", 8)
    ]


def test_an_unset_rate_in_a_list_is_the_optimizers_own(loader: ConfigLoader) -> None:
    planned = sweep(loader, "optimizer=sgd,adam", "lr=null,0.5")
    assert planned.table["lr"].tolist() == [0.01, 0.5, 0.001, 0.5]


def test_interpolations_are_resolved_after_the_axes(loader: ConfigLoader) -> None:
    planned = sweep(loader, "lr=0.1,0.2", "optimizer.momentum=${lr}", "hidden=4,5", "batch=${hidden}")
    assert planned.table["optimizer_momentum"].tolist() == [0.1, 0.1, 0.2, 0.2]
    assert planned.table["batch"].tolist() == [4, 5, 4, 5]


def test_settings_refer_to_what_is_fixed(loader: ConfigLoader) -> None:
    planned = sweep(loader, "threads=${hidden}", "hidden=2", "seed=0,1")
    assert planned.threads == 2
    assert planned.table["hidden"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("change", "overrides"),
    [
        ({"optimizer": {"weight_decay": 0.0}}, "optimizer=sgd,adamw"),
        ({"optimizer": {"momentum": 0.5}}, "optimizer=sgd,sgd lr=1,2"),
        ({"lr": "???"}, "lr=0.1"),
        ({"lr": "???"}, "lr=0.1,0.2 optimizer=sgd,adam"),
        ({"lr": "${gain}", "gain": 2.0}, "hidden=2,3 optimizer=sgd,adam"),
        ({"lr": "${gain}"}, "gain=2 optimizer=adam"),
        ({"optimizer.default": "???"}, "optimizer=sgd,adam init=zeros,normal"),
        ({"optimizer.default": "???"}, "optimizer=adam lr=1,2"),
        ({"clip.default": None}, "clip=none,value optimizer=adam,sgd"),
        ({"clip.default": None}, "clip=value"),
        ({"lr": "???", "seed": "???"}, "lr=0.1,0.2 seed=1,2"),
    ],
    ids=str,
)
def test_a_sweep_is_what_hydra_composes_of_any_configuration(
    change: dict[str, Any], overrides: str, tmp_path: Path
) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "config.yaml"))
    assert isinstance(config, dict)
    for key, value in change.items():
        group, _, of_group = key.partition(".")
        if of_group:
            (entry,) = (entry for entry in config["defaults"] if group in entry)
            entry[group] = value
        else:
            config[key] = value
    OmegaConf.save(OmegaConf.create(config), tmp_path / "mine.yaml")
    Plugins.instance().register(XORStudySweeper)
    register()
    axes = [
        [f"{line.partition('=')[0]}={value}" for value in line.partition("=")[2].split(",")]
        for line in overrides.split()
    ]
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        planned = plan(GlobalHydra.instance().config_loader(), overrides.split(), sweep=True, config_name="mine")
        composed = [values_of(hydra.compose("mine", list(line))) for line in itertools.product(*axes)]
    rows = [{key: value for key, value in values.items() if key not in SETTINGS} for values in composed]
    assert ids(planned) == list(dict.fromkeys(run_ids(table_of(pd.DataFrame(rows, dtype=object)))))


def test_relative_interpolations_too(loader: ConfigLoader) -> None:
    planned = sweep(loader, "optimizer.momentum=0.1,0.2", "optimizer.weight_decay=${.momentum}")
    assert planned.table["optimizer_weight_decay"].tolist() == [0.1, 0.2]


STUDIES = sorted(path.stem for path in (CONFIG_DIR / "study").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_planned(loader: ConfigLoader, study: str) -> None:
    """With the same seeds, from 0 without a gap, in every cell."""
    table = sweep(loader, f"study={study}").table
    cells, _ = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    for seeds in np.split(table["seed"].to_numpy()[np.argsort(cells, kind="stable")], np.cumsum(np.bincount(cells)))[
        :-1
    ]:
        assert sorted(seeds) == list(range(len(seeds)))
        assert len(seeds) in (100, 400, 1000)


def test_all_holds_every_other_study_once(loader: ConfigLoader) -> None:
    whole = sweep(loader, "study=all", "seed=0")
    parts = sweep(loader, f"study={','.join(name for name in STUDIES if name != 'all')}", "seed=0")
    assert set(run_ids(whole.table)) == set(run_ids(parts.table))
    assert whole.table.shape == whole.table.drop_duplicates().shape


def test_a_study_is_a_grid_whose_axes_can_be_overridden(loader: ConfigLoader) -> None:
    whole = sweep(loader, "study=mechanism")
    assert len(whole.table) == 8 * 3 * 400
    part = sweep(loader, "study=mechanism", "seed=range(0,2)", "loss.clip_gradient=squared")
    assert len(part.table) == 4 * 3 * 2
    assert set(ids(part)) < set(ids(whole))
    twice = sweep(loader, "study=mechanism,mechanism", "seed=1")
    assert (len(twice.table), twice.duplicates) == (24, 24)


def test_duplicates_are_dropped_and_counted(loader: ConfigLoader) -> None:
    planned = sweep(loader, "lr=0.01,1e-2,null", "seed=1,2")
    assert ids(planned) == [RunSpec(seed=1).run_id, RunSpec(seed=2).run_id]
    assert planned.duplicates == 4


def test_a_later_override_wins(loader: ConfigLoader) -> None:
    planned = sweep(loader, "lr=1,2", "optimizer=adam,sgd", "lr=3", "optimizer=sgd")
    assert ids(planned) == [RunSpec(lr=3).run_id]
    assert planned.axes == ()


WRONG_ANYWHERE: list[tuple[Sequence[str], str]] = [
    (["optimizer=sdg"], r"optimizer=sdg: unknown; did you mean sgd\? \(known: adadelta, .*\)"),
    (["optimiser=sgd"], r"optimiser: unknown key; did you mean optimizer\?"),
    (["learning_rate=1"], r"learning_rate: unknown key; did you mean lr\?"),
    (["momentum=1"], r"momentum: unknown key; did you mean optimizer.momentum\?"),
    (["weight_decay=1"], r"did you mean optimizer.weight_decay\?"),
    (["zzzz=1"], r"zzzz: unknown key \(known: activation, .*\)"),
    (["=1"], r": unknown key \(known: activation, .*\)"),
    ([".lr=1"], r"\.lr=1: can't be read as key=value"),
    (["optimizer._target_=os.system"], r"optimizer\._target_: unknown key"),
    (["_target_=os.system"], r"_target_: unknown key"),
    (["lr"], r"lr: can't be read as key=value"),
    (["optimizer.name=adam"], "optimizer.name: unknown key; choose with optimizer=..."),
    (["activation=relu"], r"activation=relu: unknown; did you mean relu_sigmoid\?"),
    (["optimizer=adam", "optimizer.momentum=0.9"], r"optimizer=adam has no such parameter \(it has optimizer.beta1"),
    (["init=zeros", "init.scale=2"], r"init.scale: init=zeros has no such parameter \(it has none\)"),
    (["loss.eps=0.1"], r"loss.eps: loss=binary_cross_entropy has no such parameter \(it has none\)"),
    (["optimizer.weight_decay=1e39"], r"optimizer.weight_decay=1e\+39: beyond float32"),
    (["lr=abc"], "lr=abc: must be a number, finite and >= 0"),
    (["lr=nan"], "lr=nan: must be finite and >= 0"),
    (["lr=-0.5"], "lr=-0.5: must be finite and >= 0"),
    (["lr="], "lr=: must be a number"),
    (["lr=[1]"], "lr=.*1.*: must be "),
    (["lr={a:1}"], "lr=.*: must be "),
    (["lr=[1"], r"lr=\[1: can't be read as key=value"),
    (["seed=1.5"], "seed=1.5: must be a whole number"),
    (["seed=true"], "seed=true: must be a whole number"),
    (["optimizer=null"], "optimizer=null: unknown"),
    (["optimizer=[sgd]"], "optimizer=.*: unknown"),
    (["optimizer@x=sgd"], "must be key=value"),
    (["+lr=1"], r"\+lr=1: must be key=value"),
    (["~clip"], "~clip: must be key=value"),
    (["lr=${nothing}"], "lr: Interpolation key 'nothing' not found"),
    (["loss=hinge", "activation.output=soft"], "activation.output=soft: unknown"),
    (["activation.output=identity"], "cannot go with the output activation identity"),
    (["device=cuda:77"], "device=cuda:77: torch .*; use device=cpu"),
    (["engine=fast"], r"engine=fast: unknown \(known: auto, plain, vmap, lanes\)"),
    (["engine=lanes", "hidden=100"], "engine=lanes: a network of 401 parameters is too wide to compile"),
    (["threads=two"], r"threads=two: must be a whole number in \[1, 1024\]"),
    (["threads=2", "engine=plain"], "threads=2 engine=plain: it has one thread; only lanes has several"),
    (["epochs=0"], "epochs=0: must be in"),
]


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(("overrides", "message"), WRONG_ANYWHERE, ids=[" ".join(o) for o, _ in WRONG_ANYWHERE])
def test_what_is_wrong_is_said_in_one_line(
    loader: ConfigLoader, overrides: Sequence[str], message: str, multirun: bool
) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        plan(loader, overrides, sweep=multirun)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=range(0,0)"], r"seed=range\(0,0\): an empty sweep"),
        (["optimizer=glob(z*)"], r"optimizer=glob\(z\*\): an empty sweep"),
        (["lr=interval(0,1)"], r"lr=interval\(0,1\): needs another sweeper"),
        (["lr=glob(*)"], r"lr=glob\(\*\): glob chooses among names"),
        (["engine=plain,vmap"], "engine has one value for the whole sweep"),
        (["hydra.verbose=true,false"], "hydra.verbose has one value for the whole sweep"),
        (["lr=0.1,abc"], "lr=abc: must be a number"),
        (["lr=0.1,nan"], "lr=nan: must be finite"),
        (["optimizer=sgd,adam", "optimizer.momentum=0,0.9"], "optimizer=adam has no such parameter"),
        (["optimizer=sgd,adamm"], r"optimizer=adamm: unknown; did you mean adam\?"),
        (["loss=huber,binary_cross_entropy", "activation.output=sigmoid,identity"], "cannot go with"),
        (["optimizer.nesterov=true,false"], "needs optimizer.momentum > 0"),
        (["seed=range(0,5,0)"], "seed=range"),
    ],
)
def test_wrong_sweeps(loader: ConfigLoader, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        sweep(loader, *overrides)


def test_a_sweep_without_multirun_is_refused(loader: ConfigLoader) -> None:
    with pytest.raises(StudyError, match=r"lr=1,2: several values; add -m"):
        plan(loader, ["lr=1,2"], sweep=False)
