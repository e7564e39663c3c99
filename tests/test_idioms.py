"""What Hydra's users type: each command line plans the runs that Hydra's own sweeper composes, job by job."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.xor_study_sweeper import XORStudySweeper
from xor_study import StudyError, run
from xor_study.sweeps import runner
from xor_study.sweeps.compose import register, values_of
from xor_study.sweeps.loading import with_folders
from xor_study.sweeps.plan import Plan, plan
from xor_study.sweeps.settings import CONFIG_DIR, SETTINGS
from xor_study.training.table import plain, table_of


def ours(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Return the runs that a command line plans."""
    planned: list[Plan] = []
    monkeypatch.setattr(runner, "dry_run", lambda plan, folder=None: planned.append(plan))
    monkeypatch.setattr(sys, "argv", ["xor-study", *arguments, "dry_run=true"])
    run.main()
    return planned[0].table


def jobs(loader: ConfigLoader, lines: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job that Hydra's basic sweeper makes."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(lines))
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


def table(configs: Iterable[DictConfig]) -> pd.DataFrame:
    """Return the distinct runs of composed configurations."""
    fields = [{key: value for key, value in values_of(one).items() if key not in SETTINGS} for one in configs]
    return table_of(pd.DataFrame(fields, dtype=object)).drop_duplicates(ignore_index=True)


def hydras(arguments: Sequence[str]) -> pd.DataFrame:
    """Return the distinct runs that Hydra's basic sweeper composes of a command line."""
    Plugins.instance().register(XORStudySweeper)
    register()
    given = get_args_parser().parse_intermixed_args(list(arguments))
    # Of an application, Hydra takes a relative --config-path for one beside its module.
    paths = create_config_search_path(str(Path(given.config_path or CONFIG_DIR).absolute()))
    if given.config_dir:
        paths.prepend("command-line", f"file://{Path(given.config_dir).absolute()}", SearchPathQuery("schema", None))
    loader, overrides = ConfigLoaderImpl(paths), [*given.overrides, "hydra/sweeper=basic"]
    master = loader.load_configuration(given.config_name or "config", overrides, RunMode.MULTIRUN)
    assert given.multirun or master.hydra.mode == RunMode.MULTIRUN
    params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
    typed = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)
    return table(loader.load_sweep_config(master, job) for job in jobs(loader, [*params, *typed]))


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


EXPERIMENTS = {
    "mine/experiment/a.yaml": "# @package _global_\ndefaults: [override /optimizer: adam]\nlr: 0.25\n",
    "mine/experiment/b.yaml": "# @package _global_\noptimizer: {momentum: 0.5}\ngain: 2\nbias: ${gain}\n",
    "mine/experiment/swept.yaml": (
        "# @package _global_\ngain: 3\nhydra:\n  mode: MULTIRUN\n"
        "  sweeper: {params: {lr: '0.5,1', optimizer: 'sgd,adam'}}\n"
    ),
    "mine/optimizer/calm.yaml": "name: sgd\nmomentum: 0.5\nnesterov: true\n",
}
PRIMARY = {
    "mine/mine.yaml": (
        "defaults: [config, experiment: null, _self_]\nlr: 0.3\nhydra:\n  mode: MULTIRUN\n"
        "  searchpath: [file://other]\n  sweeper: {params: {seed: 'range(0,2)', optimizer.momentum: '0.1,0.2'}}\n"
    ),
    "mine/listed.yaml": (
        "defaults: [optimizer: adam, init: normal, loss: huber, activation: relu_identity, clip: norm, study: null,"
        " experiment: null, _self_, override hydra/sweeper: xor_study]\n"
        "lr: ${gain}\ngain: 0.5\nbias: 0\nhidden: 4\nbatch: full\n"
        "epochs: 1\niterations: 10\ndtype: float32\nseed: 3\nengine: auto\ndevice: cpu\nthreads: null\nlog: epochs\n"
        "shards: null\ndry_run: false\n"
    ),
    "other/optimizer/calm.yaml": "name: sgd\nmomentum: 0.5\nnesterov: true\n",
    **EXPERIMENTS,
}
MINE = ("--config-path", "mine", "--config-name", "mine")
DIR = ("--config-dir", "mine")

VALUES: dict[str, Sequence[str]] = {
    "list": ["lr=0.1,1"],
    "choice": ["lr=choice(0.1,1)"],
    "range": ["seed=range(0,3)"],
    "range to": ["seed=range(2)"],
    "range down": ["seed=range(9,0,-4)"],
    "range of floats": ["lr=range(0.5,2,0.5)"],
    "glob": ["optimizer=glob([a*,sgd],exclude=[ada*,asgd])"],
    "groups": ["optimizer=sgd,adam", "lr=null,0.5"],
    "parameter of a group": ["optimizer=adam,nadam", "optimizer.eps=1e-3,1e-4"],
    "pairings": ["activation=relu_identity,tanh_tanh", "loss=huber", "loss.delta=0.5"],
    "part of a pairing": ["activation.hidden=relu,softplus"],
    "integers": ["epochs=1,+2", "iterations=1_0"],
    "floats": ["lr=1e-3,.5,1.,0"],
    "booleans": ["optimizer.momentum=0.5", "optimizer.nesterov=true,FALSE"],
    "quoted": ["lr='0.1',\"1\"", "batch='full',8"],
    "sort": ["lr=sort(1,0.1)"],
    "sort, reversed": ["lr=sort(0.1,1,reverse=true)"],
    "sorted range": ["seed=sort(range(3,0,-1))"],
    "tag": ["lr=tag(mine,choice(0.1,1))"],
    "cast": ["seed=int(1.0,2.0)", "lr=float(1,2)"],
    "null": ["lr=null", "seed=0,1"],
    "forced": ["++lr=0.1,1"],
    "later wins": ["lr=1,2", "seed=0,1", "lr=3"],
    "twice": ["lr=1,1.0,1e0"],
    "interpolation": ["lr=0.1,0.2", "optimizer.weight_decay=${lr}"],
    "interpolation before its source": ["optimizer.weight_decay=${lr}", "lr=0.1,0.2"],
    "interpolation of a default": ["bias=${gain}", "seed=0,1"],
    "interpolations in a list": ["optimizer.weight_decay=${lr},0.5,${gain}", "lr=0.1,0.2"],
    "interpolations of each other": ["gain=0.1,0.2", "lr=${gain},1", "optimizer.momentum=${lr}"],
    "interpolated seed": ["hidden=2,3", "seed=${hidden},7"],
    "relative interpolation": ["optimizer.momentum=0.1,0.2", "optimizer.weight_decay=0,${.momentum}"],
}
"""Overrides that need no other file: by the name of the idiom."""

COMMANDS: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
    "mode": (["hydra.mode=MULTIRUN", "seed=0,1"], {}),
    "params, typed": (["-m", "+hydra.sweeper.params.lr=0.1,1"], {}),
    "params, quoted": (["-m", '+hydra.sweeper.params.lr="0.1,1"'], {}),
    "params as a mapping": (["-m", 'hydra.sweeper.params={lr: "0.1,1", seed: "range(0,2)"}', "seed=4,5,6"], {}),
    "params in a file": ([*MINE], PRIMARY),
    "params in a file, typed again": ([*MINE, "optimizer.momentum=0.7", "lr=1,2"], PRIMARY),
    "searchpath": (["-m", "hydra.searchpath=[file://mine]", "optimizer=calm,sgd"], EXPERIMENTS),
    "searchpath in a file": ([*MINE, "optimizer=calm,sgd"], PRIMARY),
    "+experiment": (["-m", *DIR, "+experiment=a", "seed=0,1"], EXPERIMENTS),
    "+experiment, list": (["-m", *DIR, "seed=0,1", "+experiment=a,b"], EXPERIMENTS),
    "+experiment, glob": (["-m", *DIR, "+experiment=glob(*,exclude=swept)", "gain=1,2"], EXPERIMENTS),
    "+experiment, typed again": (["-m", *DIR, "+experiment=a,b", "lr=0.5,1", "optimizer=sgd"], EXPERIMENTS),
    "+experiment with groups": (["-m", *DIR, "+experiment=b", "optimizer=sgd,rmsprop", "lr=1,2"], EXPERIMENTS),
    "+experiment that sweeps": ([*DIR, "+experiment=swept"], EXPERIMENTS),
    "experiment": ([*MINE, "experiment=b"], PRIMARY),
    "experiment, list": (["-m", "-cp", "mine", "-cn", "listed", "experiment=b,a", "optimizer=sgd"], PRIMARY),
    "experiment, both at once": (["-m", *DIR, "+experiment=[b,swept]", "seed=0,1", "lr=1,2"], EXPERIMENTS),
    "experiment, deleted": ([*MINE, "~experiment", "lr=1"], PRIMARY),
    "interpolation, typed": (["-m", "optimizer.weight_decay=${lr}", "lr=0.1,0.2"], {}),
    "--config-dir last": (["-m", "optimizer=calm,sgd", "lr=1,2", "--config-dir=mine"], EXPERIMENTS),
    "--config-dir between": (["-m", "optimizer=calm,sgd", *DIR, "lr=1,2"], EXPERIMENTS),
    "--config-path, groups listed": (["-m", "-cp", "mine", "-cn", "listed", "gain=1,2", "optimizer=adam,sgd"], PRIMARY),
}
"""Arguments, and the files that are there."""

IN_A_FILE = {
    "params, typed": ["-m", "lr=0.1,1"],
    "params, quoted": ["-m", "lr=0.1,1"],
    "params as a mapping": ["-m", "lr=0.1,1", "seed=4,5,6"],
}
"""What Hydra's sweeper composes where these params are in a file; typed, it ends in a traceback."""


@pytest.fixture(scope="module")
def loader() -> ConfigLoader:
    """Hydra's loader of our configuration, which keeps what it has read."""
    Plugins.instance().register(XORStudySweeper)
    register()
    return ConfigLoaderImpl(create_config_search_path(str(CONFIG_DIR)))


@pytest.mark.parametrize("idiom", VALUES)
def test_values_are_those_that_hydra_composes(idiom: str, loader: ConfigLoader) -> None:
    expected = table(loader.load_configuration("config", job, RunMode.RUN) for job in jobs(loader, VALUES[idiom]))
    planned = plan(loader, VALUES[idiom], sweep=True).table
    pd.testing.assert_frame_equal(planned.apply(plain), expected.apply(plain), check_dtype=False)


@pytest.mark.parametrize("idiom", COMMANDS)
def test_a_command_plans_what_hydra_composes(idiom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, files = COMMANDS[idiom]
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    planned, expected = ours(arguments, monkeypatch), hydras(IN_A_FILE.get(idiom, arguments))
    pd.testing.assert_frame_equal(planned.apply(plain), expected.apply(plain), check_dtype=False)


def refused(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command line is refused."""
    with pytest.raises(SystemExit, match="1"):
        ours(arguments, monkeypatch)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


MEANINGS = {"1_000": 1000, "08": 8, "1e3": 1000, "'010'": 10, "'1e3'": 1000, "0x10": None, "0o10": None, "1:30": None}
MEANINGS |= {"010": None, "0b11": None, "yes": None, "2024-01-01": None, "-0": 0}
"""What a seed is that is written so in a file; None where it is refused."""


@pytest.mark.parametrize("text", MEANINGS)
def test_a_number_in_a_file_is_decimal_or_refused(text: str, tmp_path: Path, loader: ConfigLoader) -> None:
    write(tmp_path, {"study/mine.yaml": f"grids:\n  - gain: 2\n    seed: [3, {text}]\n"})
    finding = with_folders(loader, (str(tmp_path),))
    if MEANINGS[text] is not None:
        assert plan(finding, ["study=mine"], sweep=True).table["seed"].tolist() == [3, MEANINGS[text]]
        return
    with pytest.raises(StudyError) as caught:
        plan(finding, ["study=mine"], sweep=True)
    by_line = f"{tmp_path}/study/mine.yaml:3: {text}: YAML reads it as "
    assert str(caught.value).startswith((by_line, "seed=")), caught.value
    assert str(caught.value).startswith(by_line) == (text in ("010", "0x10", "0b11", "1:30"))


@pytest.mark.parametrize("text", MEANINGS)
def test_a_number_that_is_typed_is_decimal_or_refused(text: str, loader: ConfigLoader) -> None:
    meaning = {"010": 10}.get(text, MEANINGS[text])
    if meaning is not None:
        assert plan(loader, [f"seed={text}"], sweep=True).table["seed"].tolist() == [meaning]
    else:
        with pytest.raises(StudyError, match="must be a whole number"):
            plan(loader, [f"seed={text}"], sweep=True)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("defaults: [config, _self_]\nseed: 010\n", ["-cp=mine", "-cn=experiment/e"]),
        ("defaults: [/config, _self_]\nhydra: {sweeper: {params: {seed: 010}}}\n", ["-cp=mine/experiment", "-cn=e"]),
        ("# @package _global_\nseed: 010\n", [*DIR, "+experiment=e"]),
        ("# @package _global_\nseed: 010\n", ["-m", *DIR, "+experiment=e"]),
        ("# @package _global_\nseed: 010\n", ["hydra.searchpath=[mine]", "-m", "+experiment=a,e"]),
    ],
    ids=["primary", "params", "experiment", "experiment of a sweep", "one of several"],
)
def test_so_it_is_in_each_kind_of_file(
    text: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, EXPERIMENTS | {"mine/experiment/e.yaml": text})
    monkeypatch.chdir(tmp_path)
    assert "e.yaml:2: 010: YAML reads it as 8; write a decimal number" in refused(arguments, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "hydra.searchpath=[file://nowhere]"], "nowhere: no such folder"),
        (["-m", "hydra.searchpath=nowhere"], "hydra.searchpath=nowhere: must be a list of folders"),
        (["--config-path=nowhere"], "--config-path=nowhere: no such folder"),
        (["+experiment=a"], "experiment: unknown key"),
        ([*DIR, "+experiment=x"], "experiment=x: unknown (known: a, b, fast, "),
        ([*DIR, "+experiment=a,b"], "experiment=a,b: several values; add -m"),
        ([*DIR, "-m", "+experiment=null"], "experiment=null: unknown (known: a, b, "),
        ([*DIR, "-m", "+experiment=a,null"], "experiment=null: unknown (known: a, b, "),
        ([*DIR, "++experiment=a"], "force-add of config groups is not supported"),
        ([*DIR, "-m", "+experiment=fast,b"], "engine: one for the whole sweep, but +experiment sets plain, auto"),
        ([*DIR, "-m", "+experiment=studied,b"], "several values, one of which chooses a study; give them one by one"),
        ([*DIR, "+experiment=studied"], "study=width: a study is many runs; add -m"),
        (["-m", "+hydra.sweeper.params.lrr=1,2"], "lrr: unknown key; did you mean lr?"),
        (
            ["-m", 'hydra.sweeper.params={hydra.sweep.dir: "x"}'],
            "one for the whole sweep; give it outside of the params",
        ),
        ([*DIR, "+experiment=local"], "experiment: unknown key; its file must begin with '# @package _global_'"),
        (["-m", "+hydra.sweeper.params.lr=x,1"], "lr=x: must be a number"),
        (["-m", "lr=${gian}"], "Interpolation key 'gian' not found"),
        (["-m", "lr=1,${gian}"], "Interpolation key 'gian' not found"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = {
        "mine/experiment/local.yaml": "lr: 1\n",
        "mine/experiment/fast.yaml": "# @package _global_\nengine: plain\n",
        "mine/experiment/studied.yaml": "# @package _global_\ndefaults: [override /study: width]\n",
    }
    write(tmp_path, EXPERIMENTS | others)
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, monkeypatch, capsys)


def test_a_study_that_an_experiment_chooses_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"mine/experiment/e.yaml": "# @package _global_\ndefaults: [override /study: width]\nepochs: 1\n"})
    monkeypatch.chdir(tmp_path)
    planned = ours(["-m", *DIR, "+experiment=e", "seed=0,1"], monkeypatch)
    assert set(planned["hidden"]) == set(ours(["-m", "study=width", "seed=0"], monkeypatch)["hidden"])
    assert set(planned["epochs"]) == {1}
