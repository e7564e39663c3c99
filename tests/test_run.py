"""The command line, as a user meets it: what it prints, what it leaves, and what it says when it can't."""

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import xor_study
from xor_study import RunSpec, XORNetwork, run, train
from xor_study.sweeps import application, terminal
from xor_study.sweeps.compose import register
from xor_study.sweeps.records import read_runs
from xor_study.sweeps.settings import CONFIG_DIR, SETTINGS
from xor_study.sweeps.sweep import Sweep
from xor_study.training.spec import FIELDS, GROUPS, KEYS, key_of

SHORT = ("epochs=2", "iterations=30")
Call = Callable[..., tuple[int, str, str]]


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in an empty folder: arguments -> (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xor-study", *arguments])
        code = 0
        try:
            run.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


def test_a_single_run_leaves_its_files(call: Call, tmp_path: Path) -> None:
    code, out, err = call(*SHORT, "lr=0.5", "seed=3", "hydra.run.dir=one")
    assert (code, err) == (0, "")
    folder = tmp_path / "one"
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{stem}.{kind}" for stem in ("loss", "boundary") for kind in ("png", "pdf")}
    assert names == pictures | {"config.yaml", "history.csv", "runs.csv", "weights.pt"}
    for name in names - {"config.yaml"}:
        assert f"one/{name}" in out

    spec = RunSpec(epochs=2, iterations=30, lr=0.5, seed=3)
    expected = train(spec, every_step=True)
    history = pd.read_csv(folder / "history.csv")
    assert list(history.columns) == ["step", "epoch", "loss", "grad_norm", "max_abs_logit", "accuracy"]
    assert expected.history is not None
    np.testing.assert_array_equal(history["loss"], expected.history["loss"])
    (row,) = pd.read_csv(folder / "runs.csv").to_dict("records")
    assert row["run_id"] == spec.run_id
    assert row["final_loss"] == expected.runs["final_loss"].iloc[0]
    network = XORNetwork()
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    assert torch.equal(network.hidden.weight, expected.network(0).hidden.weight)
    assert "seed: 3" in (folder / "config.yaml").read_text()
    for (x1, x2), line in zip(((0, 0), (0, 1), (1, 0), (1, 1)), out.split("target\n")[1].splitlines(), strict=False):
        prediction = network(torch.tensor([[float(x1)]]), torch.tensor([[float(x2)]])).item()
        assert line.split()[:2] == [str(x1), str(x2)]
        assert float(line.split()[2]) == pytest.approx(prediction, abs=1e-6)
    assert f"outcome: {row['outcome']}" in out


def test_a_sweep_leaves_one_sorted_table(call: Call, tmp_path: Path) -> None:
    code, out, err = call(
        "-m", *SHORT, "optimizer=sgd,adam", "lr=0.001,0.01,0.1,1", "seed=range(0,20)", "hydra.sweep.dir=many"
    )
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "many/runs.csv")
    assert len(table) == table["run_id"].nunique() == 160
    provenance = ["engine", "device", "torch_version", "package_version", "git_commit", "code"]
    measures = ["outcome", "accuracy", "solved_step", "first_nonfinite_step", "initial_loss", "final_loss", "min_loss"]
    measures += ["max_loss", "max_abs_logit", "max_grad_norm"]
    assert list(table.columns) == ["run_id", *map(key_of, FIELDS), *measures, *provenance]
    grid = [(o, lr, s) for o in ("sgd", "adam") for lr in (0.001, 0.01, 0.1, 1.0) for s in range(20)]
    assert list(table[["optimizer", "lr", "seed"]].itertuples(index=False, name=None)) == grid
    for line, (optimizer, lr) in zip(out.splitlines()[1:], [cell[:2] for cell in grid[::20]], strict=False):
        counts = table[(table["optimizer"] == optimizer) & (table["lr"] == lr)]["outcome"].value_counts()
        assert line.split()[:3] == [optimizer, f"{lr:g}", "20"]
        assert f"{counts.get('solved', 0)} (" in line or "solved" not in counts
    assert "160 runs: many/runs.csv" in out
    one = train(RunSpec(optimizer="adam", lr=0.1, seed=7, epochs=2, iterations=30), engine="lanes")
    row = table[table["run_id"] == one.runs["run_id"].iloc[0]].iloc[0]
    assert row["final_loss"] == one.runs["final_loss"].iloc[0]
    with np.load(tmp_path / "many/losses.npz", allow_pickle=False) as arrays:
        place = arrays["run_id"].astype(str).tolist().index(row["run_id"])
        np.testing.assert_array_equal(arrays["losses"][place], one.losses.iloc[0])
        np.testing.assert_array_equal(arrays["epoch_losses"][place], one.epoch_losses.iloc[0])
        assert arrays["steps"].tolist() == one.losses.columns.tolist()


def test_nan_is_data_and_a_missing_value_is_an_empty_cell(call: Call, tmp_path: Path) -> None:
    call("-m", *SHORT, "loss=binary_cross_entropy_naive", "lr=1000", "seed=1,2", "hydra.sweep.dir=nan")
    text = pd.read_csv(tmp_path / "nan/runs.csv", dtype=str, keep_default_na=False)
    assert set(text["outcome"]) == {"nonfinite"}
    assert set(text["final_loss"]) == {"nan"}
    assert set(text["solved_step"]) == {""}
    assert all(text["first_nonfinite_step"].str.fullmatch("[0-9]+"))


def test_a_parameter_that_only_the_swept_choices_have(call: Call, tmp_path: Path) -> None:
    """Hydra composes what is fixed with the default groups first, which have no such parameter."""
    code, _, err = call("-m", *SHORT, "optimizer=adam,nadam", "optimizer.beta1=0.5", "hydra.sweep.dir=betas")
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "betas/runs.csv")
    expected = [RunSpec(optimizer=o, optimizer_beta1=0.5, epochs=2, iterations=30).run_id for o in ("adam", "nadam")]
    assert table["run_id"].tolist() == expected


def test_numbers_that_overflow_are_data(call: Call, tmp_path: Path) -> None:
    code, _, err = call("-m", *SHORT, "gain=1e300", "seed=1,2", "hydra.sweep.dir=huge")
    assert (code, err) == (0, "")
    assert set(pd.read_csv(tmp_path / "huge/runs.csv")["outcome"]) == {"nonfinite"}


def test_the_same_sweep_gives_the_same_bytes(call: Call, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        call("-m", *SHORT, "seed=1,2", "lr=0.1,1", f"hydra.sweep.dir={folder}")
    for name in ("runs.csv", "losses.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_pictures_have_the_same_bytes_for_the_same_run(call: Call, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        call(*SHORT, f"hydra.run.dir={folder}")
    for name in ("loss.png", "loss.pdf", "boundary.png", "boundary.pdf", "history.csv", "weights.pt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_run_that_goes_to_nan_is_drawn_too(call: Call, tmp_path: Path) -> None:
    code, out, _ = call(*SHORT, "loss=binary_cross_entropy_naive", "lr=1000", "hydra.run.dir=nan")
    assert code == 0
    assert "outcome: nonfinite" in out
    assert "not finite from step" in out
    assert (tmp_path / "nan/boundary.png").stat().st_size > 1000


def test_duplicates_run_once_and_are_mentioned(call: Call) -> None:
    _, out, _ = call("-m", *SHORT, "lr=0.1,1e-1", "hydra.sweep.dir=twice")
    assert "dropped 1 duplicate runs (of 2)" in out


def test_results_are_never_overwritten(call: Call, tmp_path: Path) -> None:
    single, many = ((), "hydra.run.dir"), (("-m",), "hydra.sweep.dir")
    for mode, key in (single, many):
        assert call(*mode, *SHORT, f"{key}={key}")[0] == 0
        before = contents(tmp_path / key)
        for other, other_key in (single, many):
            code, _, err = call(*other, *SHORT, "seed=5", f"{other_key}={key}")
            assert code == 1
            assert f"{other_key}={key}: holds " in err
            assert contents(tmp_path / key) == before


BAD = [
    (["lr=abc"], "lr=abc: must be a number, finite and >= 0"),
    (["optimizer=sdg"], "optimizer=sdg: unknown; did you mean sgd?"),
    (["learning_rate=1"], "learning_rate: unknown key; did you mean lr?"),
    (["lr=1,2"], "add -m"),
    (["-m", "lr=1,abc"], "lr=abc: must be a number"),
    (["-m", "optimizer=sdg"], "optimizer=sdg: unknown; did you mean sgd?"),
    (["-m", "study=mechanisms"], "study=mechanisms: unknown; did you mean mechanism?"),
    (["study=mechanism"], "study=mechanism: a study is many runs; add -m (--multirun)"),
    (["-m", "study=mechanism", "log=axon"], "log=axon: prints the loss of a single run"),
    (["log=axn"], "log=axn: unknown; did you mean axon?"),
    (["-m", "seed=range(0,0)"], "an empty sweep"),
    (["-m", "optimizer=sgd,adam", "optimizer.momentum=0.5"], "optimizer=adam has no such parameter"),
    (["lr=1e39"], "lr=1e+39: beyond float32, must be at most 3.4e+38"),
    (["loss.eps=1e-3"], "loss.eps: loss=binary_cross_entropy has no such parameter (it has none)"),
    (["-m", "optimizer.beta1=0.5"], "optimizer.beta1: optimizer=sgd has no such parameter (it has optimizer.momentum"),
    (["seed=" + "9" * 5000], "can't be read as key=value"),
    (["seed=\u00e9("], "can't be read as key=value"),
    (["-m", "seed=range(0,1000000000)"], "more than 10000000 values"),
    (["-m", "seed=range(0,10000)", "lr=range(0,10000)"], "100000000 runs in one sweep, must be at most 10000000"),
    (["hydra.run.dir="], "hydra.run.dir=: must name a folder"),
    (["hydra.run.dir=" + "x" * 300], "File name too long"),
    (["-m", "shards=0"], "shards=0: must be a whole number in [1, 100000]"),
    (["-m", "shards=true"], "shards=true: must be a whole number"),
    (["-m", "dry_run=perhaps"], "dry_run=perhaps: must be true or false"),
    (["dry_run=1"], "dry_run=1: must be true or false"),
    (["hydra.launcher._target_=os.system"], "names code to be run, which no setting may"),
    (["hydra.nothing=1"], "Could not override 'hydra.nothing'"),
    (["hydra/sweeper=nothing"], "nothing"),
    (["device=cuda:9"], "device=cuda:9: torch"),
    (["hydra.run.dir=/proc/nowhere"], "hydra.run.dir=/proc/nowhere: can't write in /proc"),
    (["-m", "hydra.sweep.dir=/proc/nowhere"], "hydra.sweep.dir=/proc/nowhere: can't write in /proc"),
    (["hydra.run.dir=/dev/null/x"], "/dev/null is a file; must be a folder"),
    (["--config-name=nothing"], "nothing"),
    (["--config-dir=nowhere"], "nowhere"),
    (["--nonsense"], "--nonsense: unknown option; see xor-study --help"),
    (["-m", "--cfg", "job"], "only one of --run, --multirun, --cfg"),
    (["--resolve"], "--resolve goes with --cfg"),
    (["--cfg", "everything"], "invalid choice: 'everything'"),
    (["--experimental-rerun", "config.pickle"], "would run code from a pickle"),
    (["lr", "=", "0.1"], "lr = 0.1: write lr=0.1, without blanks around ="),
    (["lr=", "0.1"], "lr = 0.1: write lr=0.1, without blanks around ="),
    (["seed=1", "lr", "=0.1"], "lr = 0.1: write lr=0.1, without blanks around ="),
    (["--optimizer=adam"], "--optimizer=adam: settings have no dashes; write optimizer=adam"),
    (["--lr", "0.1"], "--lr: settings have no dashes; write lr=VALUE"),
    (["-m", "study=nothing"], "study=nothing: unknown (known: activation, all"),
    (["-m", "study=loss", "study=width"], "study=loss study=width: a study is given once; for both write study=A,B"),
    (["+foo=1"], "foo: unknown key (known: activation"),
    (["+lr=1"], "+lr=1: must be key=value; write lr=1"),
    (["~lr"], "~lr: must be key=value"),
    (["shw", "folder"], "shw: unknown command; did you mean show? (known: autopsy, "),
    (["show"], "the following arguments are required: FOLDER; see xor-study show --help"),
    (["show", "a", "b"], "a/runs.csv: No such file or directory"),
    (["show", "a", "--b"], "unrecognized arguments: --b; see xor-study show --help"),
    (["-m", "format=xml"], "format=xml: unknown (known: csv, parquet)"),
    (["format=parquet"], "format=parquet requires a sweep; add -m (--multirun)"),
    (["figures", "mechanisms"], "mechanisms: unknown figure; did you mean mechanism?"),
    (["--help", "optimizer"], "--help optimizer: the only topic is choices"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    call: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_is_one_screen_that_names_every_key_and_command(call: Call, tmp_path: Path) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110
    config = OmegaConf.load(CONFIG_DIR / "config.yaml")
    for key in {key.partition(".")[0] for key in KEYS} | set(SETTINGS):
        default = config.get(key, next((entry[key] for entry in config.defaults if key in entry), None))
        shown = "null" if default is None else str(default).replace("False", "false")
        assert f"\n  {key}={shown} " in out, key
    for command in (run.AUTOPSY, *run.COMMANDS):
        assert f"\n  {command} " in out
    assert list(tmp_path.iterdir()) == []


def test_help_choices_lists_every_name_with_its_parameters(call: Call) -> None:
    out = call("--help", "choices")[1]
    for group, catalogue in GROUPS.items():
        section = out.partition(f"{group}=\n")[2].partition("\n\n")[0]
        names = [
            line.strip().partition(":")[0] for line in section.splitlines() if line.startswith("  ") and line[2] != " "
        ]
        assert names == [*catalogue, *catalogue.presets]
    assert "optimizer.beta1=0.9 optimizer.beta2=0.999 optimizer.eps=1e-08" in out
    assert "short for loss=axon_binary_cross_entropy loss.logits_visible=false" in out
    for path in (CONFIG_DIR / "study").glob("*.yaml"):
        assert re.search(rf"^  {path.stem}: [A-Z]", out, re.MULTILINE)


def test_the_version_is_this_packages(call: Call) -> None:
    assert call("--version") == (0, f"xor-study {xor_study.__version__}\n", "")


def test_the_garbage_collector_runs_while_a_command_trains_and_after_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool] = []
    monkeypatch.setattr(Sweep, "train", lambda self, follow: states.append(gc.isenabled()))
    call("-m", *SHORT, "seed=1,2", "hydra.sweep.dir=a")
    assert states == [True]
    call("lrr=1")
    assert gc.isenabled()


def test_flags_and_overrides_go_in_any_order(call: Call, tmp_path: Path) -> None:
    tables = []
    for place in range(4):
        arguments = [*SHORT, "lr=0.1,0.2", "hydra.sweep.dir=sweep"]
        arguments.insert(place, "--multirun")
        code, _, err = call(*arguments)
        assert (code, err) == (0, "")
        tables.append((tmp_path / "sweep/runs.csv").read_bytes())
        shutil.rmtree(tmp_path / "sweep")
    assert len(set(tables)) == 1


def test_the_configuration_can_be_shown(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("--cfg", "job", "optimizer=adam")
    assert code == 0
    assert "name: adam\n  beta1: 0.9" in out
    assert "hydra" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_folder_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/calm.yaml").write_text("name: sgd\nmomentum: 0.5\nnesterov: true\n")
    for mode, key in (((), "hydra.run.dir"), (("-m",), "hydra.sweep.dir")):
        code, _, err = call("--config-dir=mine", *mode, *SHORT, "optimizer=calm", f"{key}={key}")
        assert (code, err) == (0, "")
        (row,) = pd.read_csv(tmp_path / key / "runs.csv").to_dict("records")
        expected = RunSpec(optimizer_momentum=0.5, optimizer_nesterov=True, epochs=2, iterations=30)
        assert row["run_id"] == expected.run_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids: []", "study=mine: its file must have `grids`"),
        ("grids: 3", "study=mine: its file must have `grids`"),
        ("about: nothing", "study=mine: its file must have `grids`"),
        ("grids: [{lr: fast}]", "lr=fast: must be a number"),
        ("grids: [{lr: 1}, {engine: plain}]", "engine: the grids of a study must agree on it, not have"),
        ("grids: [", "is not valid YAML"),
    ],
)
def test_a_wrong_study_file_is_said(call: Call, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine/study").mkdir(parents=True)
    (tmp_path / "mine/study/mine.yaml").write_text(text)
    code, _, err = call("--config-dir=mine", "-m", "study=mine")
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_study_of_ones_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine/study").mkdir(parents=True)
    (tmp_path / "mine/study/mine.yaml").write_text("grids: [{lr: [null, 0.5], seed: 'range(0,2)'}, {optimizer: adam}]")
    code, _, err = call("--config-dir=mine", "-m", *SHORT, "study=mine", "hydra.sweep.dir=out")
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "out/runs.csv")[["optimizer", "lr", "seed"]]
    expected = [["sgd", 0.01, 0], ["sgd", 0.01, 1], ["sgd", 0.5, 0], ["sgd", 0.5, 1], ["adam", 0.001, 0]]
    assert table.to_numpy().tolist() == expected


def test_a_study_may_be_made_of_another_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine/study").mkdir(parents=True)
    (tmp_path / "mine/study/base.yaml").write_text("grids: [{lr: [1, 2]}]")
    (tmp_path / "mine/study/mine.yaml").write_text("defaults: [base]")
    code, out, err = call("--config-dir=mine", "-m", *SHORT, "study=mine", "dry_run=true")
    assert (code, err) == (0, "")
    assert re.search(r"^runs +2 *$", out, re.MULTILINE)


def test_a_group_file_without_a_name_is_said(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/odd.yaml").write_text("momentum: 0.5\n")
    code, _, err = call("--config-dir=mine", "optimizer=odd")
    assert code == 1
    assert "optimizer: its configuration has no name" in err


def test_another_sweeper_runs_one_job_each(call: Call, tmp_path: Path) -> None:
    code, _, err = call("-m", *SHORT, "hydra/sweeper=basic", "seed=1,2", "hydra.sweep.dir=basic")
    assert (code, err) == (0, "")
    for place, seed in enumerate((1, 2)):
        (row,) = pd.read_csv(tmp_path / f"basic/{place}/runs.csv").to_dict("records")
        assert row["run_id"] == RunSpec(epochs=2, iterations=30, seed=seed).run_id


@pytest.mark.parametrize("how", ["module", "script"])
def test_it_runs_from_any_folder(tmp_path: Path, how: str) -> None:
    command = (
        [sys.executable, "-m", "xor_study.run"] if how == "module" else [str(Path(sys.executable).parent / "xor-study")]
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HYDRA_FULL_ERROR")}
    done = subprocess.run(
        [*command, "-m", *SHORT, "seed=1,2"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (table,) = (tmp_path / "results/runs").glob("*/runs.csv")
    assert f"2 runs: {table.relative_to(tmp_path)}" in done.stdout


def test_a_dry_run_says_what_would_run_and_runs_nothing(call: Call, tmp_path: Path) -> None:
    code, out, err = call("-m", "optimizer=sgd,adam", "lr=0.1,1,1.0", "seed=range(0,1000)", "dry_run=true")
    assert (code, err) == (0, "")
    told = {line.split("  ")[0]: line.partition("  ")[2].strip() for line in out.splitlines()}
    assert told["cells"] == "4"
    assert told["runs"] == "4,000 (2,000 duplicates dropped)"
    assert told["axes"] == "optimizer, lr, seed"
    assert told["network-steps"] == "40,000,000"
    assert list(tmp_path.iterdir()) == []
    assert "runs           1 " in call("dry_run=true")[1]
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_of_size_is_about_right(call: Call, tmp_path: Path) -> None:
    call("-m", *SHORT, "seed=range(0,2000)", "hydra.sweep.dir=many")
    size = sum(path.stat().st_size for path in (tmp_path / "many").rglob("*") if path.is_file())
    (line,) = [ln for ln in call("-m", *SHORT, "seed=range(0,2000)", "dry_run=true")[1].splitlines() if "size" in ln]
    assert float(line.split()[2]) == pytest.approx(size / 1e6, rel=0.2)


def test_a_sweep_is_shown_again_and_compared(call: Call, tmp_path: Path) -> None:
    arguments = ("-m", *SHORT, "optimizer=sgd,adam", "seed=range(0,4)")
    out = call(*arguments, "hydra.sweep.dir=a")[1]
    assert call("show", "a")[:2] == (0, out)
    assert f"resume or extend it: xor-study {' '.join(arguments[:4])}" in out
    call(*arguments, "gain=2", "hydra.sweep.dir=b")
    code, out, err = call("compare", "a", "b")
    assert (code, err) == (0, "")
    assert out.startswith("A: a (gain=1)\nB: b (gain=2)\n")
    for arguments, message in (
        (("show", "c"), "error: c/runs.csv: No such file or directory\n"),
        (("compare", "a", "c"), "error: c/runs.csv: No such file or directory\n"),
    ):
        assert call(*arguments) == (1, "", message)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/runs.csv").write_text("a,b\n1,2\n")
    assert "c/runs.csv: not a table of runs" in call("show", "c")[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("xor-study optimizer=ad", ["optimizer=adadelta", "optimizer=adagrad", "optimizer=adam", "optimizer=adamw"]),
        ("xor-study -m study=me", ["study=mechanism"]),
        ("xor-study ite", ["iterations="]),
        ("xor-study clip=norm clip.b", ["clip.bound="]),
    ],
)
def test_tab_completes_keys_and_choices(
    call: Call, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, _ = call("-sc", "query=bash")
    assert code == 0
    assert out.split() == expected


def test_colours_only_where_they_are_wanted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("-m", *SHORT, "seed=range(0,4)", "lr=0.1,1", "hydra.sweep.dir=a")
    assert "\x1b" not in call(*arguments)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[33m" in call("show", "a")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in call("show", "a")[1]


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    code, _, err = call("-m", *SHORT, "seed=range(0,8)", "engine=plain", "hydra.sweep.dir=a")
    assert code == 0
    assert re.search(r"^8/8 runs; .*8 unsolved; .*k network-steps/s; 1 s left$", err, re.MULTILINE)
    assert "\r" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("overrides", "finite"), [(["lr=0.1"], True), (["loss=binary_cross_entropy_naive", "lr=100"], False)]
)
def test_a_job_returns_what_another_sweeper_minimizes(
    overrides: list[str], finite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as hydra/sweeper=optuna, which takes no other answer than a number."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}}))
    register()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        found = application._task(hydra.compose("config", ["epochs=1", "iterations=50", *overrides]))
    assert np.isfinite(found) == finite
    if finite:
        assert found == read_runs(tmp_path)["final_loss"][0]


def test_another_sweeper_has_no_dry_run(call: Call, tmp_path: Path) -> None:
    code, _, err = call("-m", "hydra/sweeper=basic", "seed=1,2", "dry_run=true")
    assert code == 1
    assert "dry_run=true: only hydra/sweeper=xor_study knows its runs" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sweeper", [("-m", "hydra/sweeper=basic"), ()])
def test_shards_and_dry_runs_are_of_sweeps(call: Call, sweeper: tuple[str, ...]) -> None:
    code, _, err = call(*sweeper, *SHORT, "shards=2", "hydra.run.dir=a", "hydra.sweep.dir=a")
    assert code == 1
    assert "shards=2 requires a sweep; add -m (--multirun)" in err
