"""The folder of a sweep: references in its name, and the command that is said to resume it."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from xor_study import run
from xor_study.sweeps import folders
from xor_study.sweeps.overrides import unquoted

SHORT = ("-m", "epochs=1", "iterations=5", "seed=0,1")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in an empty folder: arguments -> (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xor-study", *arguments])
        code = 0
        try:
            run.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run_it


def hint(out: str) -> list[str]:
    """Return the command that is said to resume a sweep, as words."""
    return shlex.split(out.partition("resume or extend it: ")[2])


def test_what_resumes_names_the_folder_that_is_there(call: Call, tmp_path: Path) -> None:
    code, out, err = call(*SHORT, "hydra.sweep.dir=at_${now:%Y-%m-%d_%H-%M-%S-%f}")
    assert (code, err) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert hint(out)[-1] == f"hydra.sweep.dir={folder.name}"
    assert "2 of 2 runs are already done" in call(*hint(out)[1:])[1]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_so_it_does_where_a_file_names_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nhydra: {sweep: {dir: 'a_${now:%Y}/${epochs}'}}\n")
    code, out, err = call(*SHORT, "-cp", ".", "-cn", "mine")
    assert (code, err) == (0, "")
    (table,) = tmp_path.glob("a_*/1/runs.csv")
    assert hint(out)[-1] == f"hydra.sweep.dir={table.parent.relative_to(tmp_path)}"
    assert "2 of 2 runs are already done" in call(*hint(out)[1:])[1]


def test_a_moved_folder_is_named_where_it_is(call: Call, tmp_path: Path) -> None:
    out = call(*SHORT, "hydra.sweep.dir=before")[1]
    assert hint(out)[-1] == "hydra.sweep.dir=before"
    (tmp_path / "before").rename(tmp_path / "it's, (now)")
    found = hint(call("show", "it's, (now)")[1])
    assert found[:-1] == hint(out)[:-1]
    assert "2 of 2 runs are already done" in call(*found[1:])[1]
    assert [path.name for path in tmp_path.iterdir()] == ["it's, (now)"]


@pytest.mark.parametrize(
    "name", ["plain", "/a/b-c.d", "a b, (c)", "it's", "x=y", "7", "010", "true", "[a]", "a\\", "\u00e9"]
)
def test_any_name_of_a_folder_is_read_back(name: str) -> None:
    parsed = OverridesParser.create().parse_override(folders.override(name))
    assert str(unquoted(parsed.value())) == name
    assert folders.override(name) in shlex.split(folders.command_in(Path(name), ["a", "hydra.sweep.dir=${now:%Y}"]))
    assert shlex.split(folders.command_in(Path(name), ["a", folders.override(name)])) == ["a", folders.override(name)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["lr=choice(0.1)", "hydra.sweep.dir=sw_${lr}_${hidden}"], "sw_0.1_8"),
        (["optimizer=adam", "optimizer.beta1=0.5", "hydra.sweep.dir=${optimizer.name}_${optimizer.beta1}"], "adam_0.5"),
        (["loss=axon_0_6_1", "hydra.sweep.dir=${hydra.runtime.choices.loss}"], "axon_0_6_1"),
        (["+hydra.sweeper.params.lr=0.5", "hydra.sweep.dir=sw_${lr}"], "sw_0.5"),
    ],
    ids=lambda one: one[-1] if isinstance(one, list) else "",
)
def test_a_reference_to_what_all_runs_share_is_resolved(
    arguments: list[str], name: str, call: Call, tmp_path: Path
) -> None:
    code, out, err = call(*SHORT, *arguments, "shards=2")  # so that the launcher's jobs need the folder too
    assert (code, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert hint(out)[-1] == "shards=2"
    assert f"hydra.sweep.dir={name}" in hint(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr=1,2", "hydra.sweep.dir=sw_${lr}"], "sw_${lr}: a sweep has one folder, and lr has 2 values"),
        (["hydra.sweep.dir=sw_${seed}"], "a sweep has one folder, and seed has 2 values"),
        (["gain=${lr}", "lr=1,2", "hydra.sweep.dir=sw_${gain}"], "a sweep has one folder, and gain has 2 values"),
        (["optimizer=sgd,adam", "hydra.sweep.dir=${optimizer.name}"], "and optimizer has 2 values"),
        (["optimizer=sgd,adam", "hydra.sweep.dir=${hydra.runtime.choices.optimizer}"], "and optimizer has 2 values"),
        (["activation=relu_tanh,tanh_tanh", "loss=huber", "hydra.sweep.dir=${activation.hidden}"], "hidden has 2 val"),
        (["hydra.sweep.dir=sw_${nothing}"], "hydra.sweep.dir=sw_${nothing}: Interpolation key 'nothing' not found"),
    ],
    ids=lambda one: one[-1] if isinstance(one, list) else "",
)
def test_a_reference_to_what_varies_is_refused(arguments: list[str], message: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call(*SHORT, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_single_run_may_refer_to_its_values(call: Call, tmp_path: Path) -> None:
    code, _, err = call("epochs=1", "iterations=5", "optimizer.momentum=0.5", "hydra.run.dir=run_${optimizer.momentum}")
    assert (code, err) == (0, "")
    assert (tmp_path / "run_0.5/runs.csv").exists()


def test_a_launcher_without_shards_says_that_it_makes_one_job(call: Call) -> None:
    told = "note: hydra/launcher=joblib makes one job without shards; shards=K makes K\n"
    assert told in call(*SHORT, "hydra/launcher=joblib", "dry_run=true")[1]
    assert told not in call(*SHORT, "hydra/launcher=joblib", "shards=2", "dry_run=true")[1]
    assert "makes one job" not in call(*SHORT, "dry_run=true")[1]
