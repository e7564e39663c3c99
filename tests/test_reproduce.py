"""A reproduction is held against the committed one: what was doctored is found out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study import reproduce
from xor_study.figures import FIGURES
from xor_study.files import write_table
from xor_study.study import comparison, tables
from xor_study.study.comparison import differences
from xor_study.study.processes import processes
from xor_study.study.reference import (
    PROVENANCE,
    REFERENCE,
    draw,
    environment,
    read_provenance,
    read_table,
    sha256,
    table_path,
    write_pages,
)

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def here() -> Tables:
    """What a reproduction would have found that equals the reference."""
    return {name: read_table(REFERENCE, name) for name in ("cells", "runs", "claims")}


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the reference that may be doctored, made on this very machine as far as it says."""
    folder = tmp_path / "reference"
    shutil.copytree(REFERENCE, folder)
    told = json.loads((folder / PROVENANCE).read_text())
    monkeypatch.setattr(comparison, "environment", lambda: told["environment"])
    monkeypatch.setattr(comparison, "_trace_differs", lambda path: [])  # they are replayed in tests of their own
    return folder


def rehash(folder: Path, name: str) -> None:
    """Make the hash of a doctored file right again, as whoever doctors would."""
    told = json.loads((folder / PROVENANCE).read_text())
    path = table_path(folder, name)
    told["sha256"][path.name] = sha256(path)
    (folder / PROVENANCE).write_text(json.dumps(told))


def doctor(folder: Path, name: str, table: pd.DataFrame) -> None:
    write_table(table_path(folder, name), table)
    rehash(folder, name)


def test_the_reference_equals_itself(reference: Path, here: Tables) -> None:
    exact, found = differences(reference, here, quick=False)
    assert exact
    assert found.empty


def test_a_flipped_outcome_is_found(reference: Path, here: Tables) -> None:
    runs = read_table(reference, "runs")
    place = runs.index[runs["outcome"] == "solved"][7]
    runs.loc[place, "outcome"] = "unsolved"
    doctor(reference, "runs", runs)
    _, found = differences(reference, here, quick=False)
    assert found.to_dict("records") == [
        {"what": "outcome", "where": runs["run_id"][place], "reference": "unsolved", "here": "solved"}
    ]


def test_a_measure_that_is_off_by_a_bit_is_found(reference: Path, here: Tables) -> None:
    runs = read_table(reference, "runs")
    runs.loc[5, "final_loss"] = np.nextafter(runs.loc[5, "final_loss"], 1)
    doctor(reference, "runs", runs)
    _, found = differences(reference, here, quick=False)
    assert found[["what", "where"]].to_numpy().tolist() == [["final_loss", runs["run_id"][5]]]


def test_a_changed_verdict_is_found(reference: Path, here: Tables) -> None:
    claims = read_table(reference, "claims").set_index("claim")
    claims.loc["cause_learning_rate", "verdict"] = "supported"
    doctor(reference, "claims", claims.reset_index())
    for quick in (False, True):
        _, found = differences(reference, here, quick=quick)
        assert found.to_numpy().tolist() == [["verdict", "cause_learning_rate", "supported", "not the cause"]]


def test_a_missing_row_a_second_one_and_a_missing_cell_are_found(reference: Path, here: Tables) -> None:
    runs = read_table(reference, "runs")
    doctor(reference, "runs", pd.concat([runs.drop(index=11), runs.loc[[3]]]))
    _, found = differences(reference, here, quick=False)
    assert found.to_numpy().tolist() == [
        ["run", runs["run_id"][11], "missing", "present"],
        ["run", runs["run_id"][3], "twice", "once"],
    ]
    doctor(reference, "runs", runs)
    cells = read_table(reference, "cells")
    doctor(reference, "cells", cells.drop(index=0))
    _, found = differences(reference, here, quick=False)
    assert found[["what", "reference", "here"]].to_numpy().tolist() == [["cell", "missing", "present"]]


def test_a_file_that_is_not_as_it_was_written_is_found(reference: Path, here: Tables) -> None:
    (reference / "report.md").write_text("It was the learning rate.\n")
    (reference / "survival.csv").unlink()
    _, found = differences(reference, here, quick=False)
    assert found[["what", "where"]].to_numpy().tolist() == [["file", "report.md"], ["file", "survival.csv"]]
    assert found["here"].iloc[1] == "missing"


def test_elsewhere_rates_are_compared_and_not_bits(
    reference: Path, here: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run more or less is chance; a cell whose rate is another is none."""
    monkeypatch.setattr(comparison, "environment", lambda: {"torch": "another"})
    cells = read_table(reference, "cells")
    place = int(cells.index[(cells["nonfinite_runs"] > 100) & (cells["n"] == 400)][0])
    for change, differ in ((1, 0), (-90, 2)):
        doctored = cells.copy()
        doctored.loc[place, "nonfinite_runs"] += change
        doctored.loc[place, "diverged_runs"] -= change
        doctor(reference, "cells", doctored)
        exact, found = differences(reference, here, quick=False)
        assert not exact
        assert len(found) == differ


def test_a_quick_run_is_a_part_of_the_whole(reference: Path, here: Tables) -> None:
    runs = here["runs"]
    part = runs[runs["seed"] < 10]
    cells = here["cells"].copy()
    cells["n"] = cells["n"] // 10
    for outcome in ("solved", "unsolved", "diverged", "nonfinite"):
        cells[f"{outcome}_runs"] = (cells[f"{outcome}_runs"] / 10).round().astype(int)
    quick = here | {"runs": part, "cells": cells}
    assert differences(reference, quick, quick=True)[1].empty
    without = quick | {"runs": part[part["run_id"] != part["run_id"].iloc[0]]}
    assert part["seed"].iloc[0] == 0
    assert differences(reference, without, quick=True)[1]["what"].tolist() == ["run"]


def test_pages_are_written_again_without_training(tmp_path: Path) -> None:
    """After a change of wording; everything but the pages keeps its bits, and the hashes are right."""
    folder = tmp_path / "reference"
    shutil.copytree(REFERENCE, folder)
    (folder / "report.md").write_text("an old wording\n")
    before = read_provenance(folder)
    write_pages(folder, before)
    assert read_provenance(folder) == before
    assert (folder / "report.md").read_bytes() == (REFERENCE / "report.md").read_bytes()


def test_the_reference_has_the_tables_that_are_made_and_no_others() -> None:
    """No row is stored twice: cells and curves of `study=mechanism` are rows of the tables of all."""
    names = {path.name.partition(".")[0] for path in REFERENCE.glob("*.csv*")}
    assert not {"mechanism_cells", "mechanism_curves"} & names
    assert {table for needed in FIGURES.values() for table in needed} <= names
    assert set(read_provenance(REFERENCE)["sha256"]) == {
        str(path.relative_to(REFERENCE)) for path in REFERENCE.rglob("*") if path.is_file() and path.name != PROVENANCE
    }


def test_help_needs_no_torch() -> None:
    script = "import sys; from xor_study.{0} import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "assert not {{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)"
    for name in ("reproduce", "conformance"):
        subprocess.run([sys.executable, "-c", script.format(name)], check=True, capture_output=True, timeout=60)


def test_what_decides_bits_is_told() -> None:
    assert {"torch", "numpy", "llvmlite", "processor", "instruction_set"} <= environment().keys()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_the_same_bits_for_the_same_tables(name: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        draw(REFERENCE, name, tmp_path / folder)
    for kind in ("png", "pdf"):
        drawn = (tmp_path / "one" / f"{name}.{kind}").read_bytes()
        assert drawn == (tmp_path / "two" / f"{name}.{kind}").read_bytes()
        assert b"/FontFile2" in drawn or kind == "png"  # embedded


def test_the_reference_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 12e6
    runs, cells = read_table(REFERENCE, "runs"), read_table(REFERENCE, "cells")
    assert len(runs) == 20 * len(cells)
    for name in FIGURES:
        assert (REFERENCE / "figures" / f"{name}.pdf").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--reference", "nowhere"], 1, "error: nowhere/provenance.json: No such file or directory"),
        (["--check", "--out", "x"], 1, "--check writes nothing: omit --out"),
        (["--jobs", "0"], 1, "error: --jobs=0: must be a whole number in [1, 61]"),
        (["--out", "mine"], 1, "error: --out=mine: holds files that are not a reproduction"),
        (["--wrong"], 1, "unrecognized arguments: --wrong"),
    ],
)
def test_wrong_input_is_said_before_anything_is_trained(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/precious.txt").write_text("mine")
    monkeypatch.setattr(tables, "trained", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(arguments)
    assert ended.value.code == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "precious.txt"]


WORK = """
import os, signal, sys, time
from concurrent.futures import BrokenExecutor
from xor_study.errors import in_one_line
from xor_study.study.processes import processes

def work(number):
    print("at work", flush=True)
    if sys.argv[1] == "dies":
        os._exit(1)
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    with in_one_line(BrokenExecutor), processes(2) as each:
        list(each(work, range(9)))
"""


@pytest.mark.parametrize(
    ("happens", "code", "line"),
    [
        ("interrupted", 130, "interrupted; no results were written"),
        ("alone interrupted", 130, "interrupted; no results were written"),
        ("dies", 1, "error: A process in the process pool was terminated abruptly"),
    ],
)
def test_processes_end_with_one_line(happens: str, code: int, line: str, tmp_path: Path) -> None:
    """As a whole group by Ctrl-C, or only the first of them, or because the system ends one for want of memory."""
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, "work.py", happens]
    piped = subprocess.PIPE
    with subprocess.Popen(command, stdout=piped, stderr=piped, text=True, cwd=tmp_path, start_new_session=True) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == "at work\n"
        if happens == "interrupted":
            os.killpg(done.pid, signal.SIGINT)
        elif happens == "alone interrupted":
            os.kill(done.pid, signal.SIGINT)
        _, err = done.communicate(timeout=60)
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert done.returncode == code


def test_work_in_processes_gives_the_same() -> None:
    found = []
    for jobs in (1, 2):
        with processes(jobs) as each:
            found.append(list(each(divmod, [7, 8, 9], [2, 3, 4])))
    assert found == [[(3, 1), (2, 2), (2, 1)]] * 2
