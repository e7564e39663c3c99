"""What a folder's runs were is kept: a default that has changed relabels none of them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from xor_study import RunSpec, StudyError, run
from xor_study.sweeps import values
from xor_study.sweeps.sweep import Sweep
from xor_study.training.spec import DECLARED, KEYS, OWN
from xor_study.training.table import run_ids, table_of


def sweep(folder: Path, *, train: bool = True, **columns: Any) -> Sweep:
    """Begin a sweep of runs that differ in some fields, and train it."""
    rows = pd.DataFrame({"epochs": 1, "iterations": 5, **columns})
    begun = Sweep(table_of(rows), "auto", "cpu", None, folder)
    begun.begin("", [])
    if train:
        begun.train(lambda progress: None)
    return begun


def test_a_plan_keeps_all_values_defaults_too(tmp_path: Path) -> None:
    sweep(tmp_path, lr=[0.1, 1.0] * 200, seed=range(400), optimizer=["sgd", "sgd", "adam", "adam"] * 100, train=False)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fixed"].keys() | plan["varied"].keys() == KEYS.keys()
    assert plan["fixed"]["gain"] == RunSpec().gain
    assert plan["varied"]["lr"] == [0.1, 1.0]
    assert plan["varied"]["optimizer.beta1"] == [None, 0.9]
    assert plan["varied"]["seed"] == {"count": 400, "least": 0, "greatest": 399}
    assert plan["defaults"]["optimizer=adam optimizer.beta1"] == 0.9
    assert len(json.dumps(plan)) < 3000


def test_an_own_default_that_has_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(pd.DataFrame({"epochs": 1, "iterations": 5, "lr": [0.1, 1.0]}))
    sweep(tmp_path, lr=[0.1, 1.0])
    plan = (tmp_path / "plan.json").read_bytes()
    monkeypatch.setitem(OWN, "gain", replace(OWN["gain"], default=2.0))
    message = r"gain was 1 by default when its runs were made and is 2 now; choose another folder"
    with pytest.raises(StudyError, match=message):
        sweep(tmp_path, lr=[0.1, 1.0])
    with pytest.raises(StudyError, match=message):
        sweep(tmp_path, lr=[0.1, 1.0], gain=1.0)
    assert (tmp_path / "plan.json").read_bytes() == plan
    # The runs would have been taken for the new ones, which have their ids.
    monkeypatch.undo()
    ids = list(run_ids(table))
    monkeypatch.setitem(OWN, "gain", replace(OWN["gain"], default=2.0))
    assert list(run_ids(table.assign(gain=2.0))) == ids


def test_a_parameters_default_that_has_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, optimizers in (("both", ["sgd", "adam"]), ("one", ["sgd", "sgd"])):
        sweep(tmp_path / name, optimizer=optimizers, seed=[0, 1])
    beta = DECLARED["optimizer_beta2"]
    monkeypatch.setitem(beta, "adam", replace(beta["adam"], default=0.9))
    with pytest.raises(StudyError, match=r"optimizer=adam optimizer.beta2 was 0.999 by default .* and is 0.9 now"):
        sweep(tmp_path / "both", optimizer=["sgd", "adam"], seed=[0, 1])
    sweep(tmp_path / "one", optimizer=["sgd", "sgd", "adam"], seed=[0, 1, 2])  # none of its runs has the old default


def test_runs_that_have_neither_default_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path, gain=[3.0, 4.0])
    monkeypatch.setitem(OWN, "gain", replace(OWN["gain"], default=2.0))
    assert sweep(tmp_path, gain=[3.0, 4.0, 5.0], train=False).parts.done.tolist() == [True, True, False]


def test_a_folder_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    sweep(tmp_path, lr=[0.1, 1.0])
    plan = json.loads((tmp_path / "plan.json").read_text())
    for key in ("fixed", "varied", "defaults"):
        del plan[key]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert sweep(tmp_path, lr=[0.1, 1.0], train=False).parts.done.all()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"lr": [0.1, 1.0], "gain": 2.0}, r"\(gain: 1 there, 2 here\)"),
        ({"lr": [0.1]}, r"\(lr: 0.1, 1 there, 0.1 here\)"),
        (
            {"lr": [0.1, 1.0], "optimizer": "adam"},
            r"\(optimizer: sgd there, adam here; optimizer.momentum: 0 there, null",
        ),
    ],
)
def test_another_plan_is_told_which_values_differ(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    sweep(tmp_path, lr=[0.1, 1.0])
    with pytest.raises(StudyError, match=f"holds . runs that this command does not ask for; .* {message}"):
        sweep(tmp_path, **other)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (range(300), range(50), "seed: 300 values from 0 to 299 there, 50 values from 0 to 49 here"),
        (range(300), range(200), "seed: 300 values from 0 to 299 there, 200 values from 0 to 199 here"),
        (range(3), range(200), ""),
        (range(110), range(300), ""),
    ],
)
def test_many_values_are_told_by_their_range(old: range, new: range, expected: str) -> None:
    before, now = (json.loads(json.dumps(values.kept(table_of(pd.DataFrame({"seed": seeds}))))) for seeds in (old, new))
    assert values.differences(before, now) == (f" ({expected})" if expected else "")


def test_many_values_beside_a_missing_one() -> None:
    mixed = pd.DataFrame(
        {"optimizer": ["adam"] + ["sgd"] * 150, "optimizer_momentum": [None, *(k / 200 for k in range(150))]}
    )
    kept = values.kept(table_of(mixed))
    assert kept["varied"]["optimizer.momentum"] == {"count": 151, "least": 0.0, "greatest": 149 / 200}
    assert values.differences(kept, kept) == ""


def test_a_users_file_that_has_changed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["xor-study", "-m", "-cp", ".", "-cn", "mine", "seed=0,1", "hydra.sweep.dir=out"]
    for gain in (3.0, 4.0):
        (tmp_path / "mine.yaml").write_text(f"defaults: [config, _self_]\nepochs: 1\niterations: 5\ngain: {gain}\n")
        monkeypatch.setattr(sys, "argv", command)
        if gain == 3.0:
            run.main()
            continue
        with pytest.raises(SystemExit, match="1"):
            run.main()
    assert "choose another folder or include them (gain: 3 there, 4 here)\n" in capsys.readouterr().err
