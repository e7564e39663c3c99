"""`train(..., folder=...)`: the results of `train`, saved and resumed as by the command line."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import start

import xor_study
from xor_study import Progress, RunSpec, StudyError, engines, train
from xor_study.sweeps import chunks
from xor_study.sweeps.records import read_plan

SPECS = [
    RunSpec(optimizer=name, lr=lr, seed=seed, epochs=1, iterations=20)
    for name in ("sgd", "adam")
    for lr in (0.1, 1.0)
    for seed in range(6)
]


def test_it_has_the_arguments_of_the_engines_train_and_a_folder() -> None:
    ours, theirs = (inspect.signature(function).parameters for function in (train, engines.train))
    assert [*ours] == [*theirs, "folder"]
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert train is xor_study.train
    for name in ours:
        assert f"        {name}: " in (train.__doc__ or "")


def test_the_result_is_that_of_training_in_memory(tmp_path: Path) -> None:
    given = [SPECS[3], *SPECS]  # a run that is asked for twice has two rows
    saved, expected = train(given, folder=tmp_path / "x"), train(given)
    for name in ("runs", "losses", "epoch_losses"):
        ours, theirs = getattr(saved, name), getattr(expected, name)
        pd.testing.assert_frame_equal(ours[theirs.columns], theirs)
    assert repr(saved) == repr(expected)
    assert saved.history is None
    with pytest.raises(StudyError, match="from a folder, which has no parameters"):
        saved.network(0)


def test_it_resumes_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MOST_RUNS", 4)
    train(SPECS, folder=tmp_path / "undisturbed")

    def interrupt(progress: Progress) -> None:
        if progress.runs_done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SPECS, folder=tmp_path / "x", progress=interrupt)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "x/parts").glob("*.npz")}
    assert 1 <= len(kept) < len(SPECS) / 4
    assert not (tmp_path / "x/runs.csv").exists()
    train(SPECS, folder=str(tmp_path / "x"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("runs.csv", "losses.npz"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    grown = train([*SPECS, RunSpec(seed=99, epochs=1, iterations=20)], folder=tmp_path / "x")
    assert len(grown.runs) == len(SPECS) + 1
    with pytest.raises(StudyError, match="holds 1 runs that this command does not ask for"):
        train(SPECS, folder=tmp_path / "x")


def test_the_command_line_and_python_share_a_folder(tmp_path: Path) -> None:
    train(SPECS, folder=tmp_path / "x")
    words = ["-m", "optimizer=sgd,adam", "lr=0.1,1", "seed=range(0,6)", "epochs=1", "iterations=20"]
    command = start([*words, "hydra.sweep.dir=x"], tmp_path)
    assert (command.wait(), command.err) == (0, "")
    assert "24 of 24 runs are already done" in command.out


@pytest.mark.parametrize(
    "given",
    [
        {"every_step": True},
        {"snapshots": [1]},
        {"initial": {}},
        {"batches": (np.zeros((20, 2)), np.zeros((20, 2)))},
        {"device": "tpu"},
        {"engine": "fast"},
        {"folder": ""},
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(StudyError, match=name) as caught:
        train(SPECS, **({"folder": tmp_path / "x"} | given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_note_is_kept_and_changes_no_run(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "epochs=1", "iterations=10", "hydra.sweep.dir=x"]
    ids = []
    for more, kept in ((["note=first: lr, too high"], "first: lr, too high"), ([], "first: lr, too high")):
        command = start([*words, *more], tmp_path)
        assert (command.wait(), command.err) == (0, "")
        assert read_plan(tmp_path / "x")["note"] == kept
        ids.append((tmp_path / "x/runs.csv").read_bytes())
    assert ids[0] == ids[1]
    assert pd.read_csv(tmp_path / "x/runs.csv")["run_id"][0] == RunSpec(epochs=1, iterations=10).run_id
    single = start(["note=5, or so", "epochs=1", "iterations=10", "hydra.run.dir=one"], tmp_path)
    assert (single.wait(), single.err) == (0, "")
    assert "\nnote: 5, or so\n" in (tmp_path / "one/config.yaml").read_text()
