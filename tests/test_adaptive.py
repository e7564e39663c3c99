"""Seeds until intervals are narrow: the same table whatever happened on the way, and no seed more than it takes."""

import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import Command, start

from xor_study.analysis.power import detectable_difference, wilson_trials, wilson_widths
from xor_study.analysis.statistics import paired, wilson
from xor_study.sweeps.records import read_plan, read_runs
from xor_study.training.outcome import OUTCOMES

FEW = ["-m", "epochs=2", "iterations=50", "lr=0.1,0.5,1", "optimizer=sgd,adam"]
UNTIL = [*FEW, "seed=until(width=0.2, max=150, min=20)"]
HERE = [*UNTIL, "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of an undisturbed sweep, and the seconds it took."""
    folder = tmp_path_factory.mktemp("adaptive")
    start([*FEW, "seed=0", "hydra.sweep.dir=cold"], folder).wait()
    begun = time.monotonic()
    command = start(HERE, folder)
    assert (command.wait(), command.err) == (0, "")
    assert command.out.count("more runs, for") >= 2
    return folder / "sweep", time.monotonic() - begun


def same(folder: Path, reference: Path) -> bool:
    return all((folder / name).read_bytes() == (reference / name).read_bytes() for name in ("runs.csv", "losses.npz"))


def cells(folder: Path) -> pd.DataFrame:
    """Return the number of seeds of each cell and the width of its widest interval."""
    runs = read_runs(folder)
    rows = []
    for (lr, optimizer), cell in runs.groupby(["lr", "optimizer"], sort=False):
        ends = [wilson(int((cell["outcome"] == name).sum()), len(cell)) for name in OUTCOMES]
        assert cell["seed"].tolist() == list(range(len(cell)))
        rows.append((lr, optimizer, len(cell), max(high - low for low, high in ends)))
    return pd.DataFrame(rows, columns=["lr", "optimizer", "seeds", "width"])


def test_each_cell_is_narrow_or_has_all_seeds(reference: tuple[Path, float]) -> None:
    found = cells(reference[0])
    assert len(found) == 6
    assert ((found["width"] <= 0.2) | (found["seeds"] == 150)).all()
    assert found["seeds"].min() < found["seeds"].max() <= 150
    until = {"width": 0.2, "min": 20, "max": 150, "outcome": None}
    assert read_plan(reference[0])["until"] == until


def test_the_runs_are_those_of_a_plain_sweep(reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start([*FEW, "seed=range(0,150)", "hydra.sweep.dir=plain"], tmp_path)
    assert command.wait() == 0, command.err
    whole = pd.read_csv(tmp_path / "plain/runs.csv", dtype=str)
    part = pd.read_csv(reference[0] / "runs.csv", dtype=str)
    restricted = whole[whole["run_id"].isin(part["run_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(restricted, part)


@pytest.mark.parametrize("trial", range(2))
def test_killed_at_any_two_moments(trial: int, reference: tuple[Path, float], tmp_path: Path) -> None:
    moments = random.Random(trial)
    for _ in range(2):
        command = start(HERE, tmp_path)
        time.sleep(moments.uniform(0.3, 1) * reference[1])
        command.process.kill()
        assert command.wait() in (0, -signal.SIGKILL)
    again = start(HERE, tmp_path)
    assert (again.wait(), again.err) == (0, "")
    assert same(tmp_path / "sweep", reference[0])


def test_interrupted_in_a_later_round(reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start(HERE, tmp_path)
    while len(list((tmp_path / "sweep/parts").glob("*.npz"))) < 10:  # 120 runs of the first round are eight parts
        assert command.process.is_alive(), command.err
        time.sleep(0.002)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait() in (0, 130)
    again = start(HERE, tmp_path)
    assert (again.wait(), again.err) == (0, "")
    assert "ignored" not in again.out
    assert same(tmp_path / "sweep", reference[0])


def test_two_processes(reference: tuple[Path, float], tmp_path: Path) -> None:
    both: list[Command] = [start(HERE, tmp_path, name=name) for name in ("one", "two")]
    assert [command.wait() for command in both] == [0, 0], both[0].err + both[1].err
    assert same(tmp_path / "sweep", reference[0])


def test_shards_of_a_launcher(reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start([*HERE, "shards=2"], tmp_path)
    assert (command.wait(), command.err) == (0, "")
    assert same(tmp_path / "sweep", reference[0])


def test_all_seeds_are_used_where_no_width_is_reached(tmp_path: Path) -> None:
    command = start([*FEW, "seed=until(width=0.01, max=30)", "hydra.sweep.dir=x"], tmp_path)
    assert command.wait() == 0, command.err
    assert "0 of 6 cells reached width 0.01 with no seeds; 6 stopped at max=30, the widest at" in command.out
    assert cells(tmp_path / "x")["seeds"].tolist() == [30] * 6


def test_one_outcome_may_decide(tmp_path: Path) -> None:
    words = [*FEW, "seed=until(width=0.2, max=150, min=20, outcome=nonfinite)", "hydra.sweep.dir=x"]
    command = start(words, tmp_path)
    assert command.wait() == 0, command.err
    assert cells(tmp_path / "x")["seeds"].tolist() == [20] * 6  # none is


def test_more_seeds_extend_it_and_fewer_are_refused(reference: tuple[Path, float], tmp_path: Path) -> None:
    assert start([*FEW, "seed=range(0,20)", "hydra.sweep.dir=sweep"], tmp_path).wait() == 0
    grown = start(HERE, tmp_path)
    assert (grown.wait(), grown.err) == (0, "")
    assert re.search(r"^note: 120 of \d+ runs are already done$", grown.out, re.MULTILINE)
    assert same(tmp_path / "sweep", reference[0])
    fewer = start([*FEW, "seed=range(0,20)", "hydra.sweep.dir=sweep"], tmp_path)
    assert fewer.wait() == 1
    assert "runs that this command does not ask for" in fewer.err
    assert same(tmp_path / "sweep", reference[0])


def test_a_dry_run_says_what_is_done_and_writes_nothing(reference: tuple[Path, float], tmp_path: Path) -> None:
    first = start([*HERE, "dry_run=true"], tmp_path)
    assert first.wait() == 0, first.err
    words = " ".join(first.out.split())
    assert "runs at least 120, at most 900" in words
    assert "seeds until intervals are 0.2 wide, 20 to 150 a cell" in words
    assert "done already" not in words
    assert not (tmp_path / "sweep").exists()
    before = {path: path.stat().st_mtime_ns for path in reference[0].rglob("*")}
    again = start([*HERE, "dry_run=true"], reference[0].parent, name="dry")
    assert again.wait() == 0, again.err
    runs = len(read_runs(reference[0]))
    assert f"done already {runs} runs, in sweep" in " ".join(again.out.split())
    assert {path: path.stat().st_mtime_ns for path in reference[0].rglob("*")} == before


def test_a_dry_run_counts_the_rest_of_a_sweep(tmp_path: Path) -> None:
    assert start([*FEW, "seed=range(0,10)", "hydra.sweep.dir=x"], tmp_path).wait() == 0
    more = start([*FEW, "seed=range(0,400)", "hydra.sweep.dir=x", "dry_run=true"], tmp_path)
    assert more.wait() == 0, more.err
    words = " ".join(more.out.split())
    assert "runs 2,400" in words
    assert "done already 60 runs, in x" in words
    assert "400 seeds a cell: Wilson's 95 % intervals are at most 9.8 points wide." in words
    assert "detects a difference of 10 points (13 points after Holm's correction for 6 cells) with 80 % power" in words


def test_a_study_with_two_rules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    text = "grids:\n  - {lr: 1, seed: 'until(width=0.1, max=9)'}\n  - {lr: 2, seed: 'range(0,9)'}\n"
    (tmp_path / "study/mine.yaml").write_text(text)
    command = start(["-m", f"--config-dir={tmp_path}", "study=mine", "hydra.sweep.dir=x"], tmp_path)
    assert command.wait() == 1
    assert command.err == "error: seed: the grids of a study must agree on until(...)\n"


@pytest.mark.parametrize("width", [0.01, 0.05, 0.3])
def test_the_number_of_trials_is_the_smallest(width: float) -> None:
    share = np.array([0.0, 0.1, 0.5, 1.0])
    trials = wilson_trials(share, width)
    for one, n in zip(share, trials.tolist(), strict=True):
        assert wilson_widths(np.array(one * n), np.array(n)) <= width + 1e-12
        assert wilson_widths(np.array(one * (n - 1)), np.array(n - 1)) > width


def test_widths_are_those_of_the_intervals() -> None:
    for k, n in ((0, 7), (3, 7), (50, 100), (100, 100)):
        low, high = wilson(k, n)
        assert float(wilson_widths(np.array(k), np.array(n))) == pytest.approx(high - low, abs=1e-15)


@pytest.mark.parametrize(("pairs", "comparisons"), [(40, 1), (400, 1), (400, 12)])
def test_the_power_is_what_simulation_gives(pairs: int, comparisons: int) -> None:
    difference = detectable_difference(pairs, comparisons)
    assert difference is not None
    rng = np.random.default_rng(0)
    one, other = (rng.random((2000, pairs)) < 0.5 + sign * difference / 2 for sign in (1, -1))
    found = np.mean([paired(a, b) <= 0.05 / comparisons for a, b in zip(one, other, strict=True)])
    assert found == pytest.approx(0.8, abs=0.04)


def test_few_pairs_detect_nothing() -> None:
    assert detectable_difference(4) is None
    assert detectable_difference(400, 10**200) is None
