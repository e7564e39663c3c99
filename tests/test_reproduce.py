"""A reproduction is compared with the committed one: bits first, then tables, figures and pages."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reproductions import Folders, altered, edit, folders, rehash

from xor_study import reproduce
from xor_study.errors import StudyError
from xor_study.figures import FIGURES
from xor_study.figures.pictures import difference
from xor_study.files import write_table
from xor_study.study import consistency, tables
from xor_study.study.comparison import NEEDED, differences
from xor_study.study.digests import ALL, TENTH, digests
from xor_study.study.equality import tables_differ, unequal
from xor_study.study.processes import processes
from xor_study.study.reference import (
    PROVENANCE,
    REFERENCE,
    draw,
    environment,
    inputs,
    read_provenance,
    read_table,
    read_texts,
    table_path,
    write_pages,
)

__all__ = ["folders"]


def rows(folders: Folders, reference: Path, *, quick: bool = False) -> list[list[str]]:
    fresh = folders.quick if quick else folders.full
    return differences(reference, fresh, quick).differing.to_numpy().tolist()  # type: ignore[no-any-return]  # as NumPy's stub


def test_a_difference_names_run_column_and_both_values(folders: Folders, tmp_path: Path) -> None:
    runs = read_texts(folders.reference, "runs")
    solved = runs.index[runs["outcome"] == "solved"][7]

    def change(table: pd.DataFrame) -> None:
        table.loc[solved, "outcome"] = "unsolved"
        table.loc[5, "final_loss"] = str(np.nextafter(float(table["final_loss"][5]), 1))

    reference = altered(folders, tmp_path, lambda folder: edit(folder, "runs", change))
    rehash(reference)
    changed = read_texts(reference, "runs")
    assert rows(folders, reference) == [
        ["run, outcome", runs["run_id"][solved], "unsolved", "solved"],
        ["run, final_loss", runs["run_id"][5], changed["final_loss"][5], runs["final_loss"][5]],
    ]
    found = differences(reference, folders.full, quick=False)
    assert found.compared[0].endswith(
        f"runs identical by the digests of their cells, {len(runs) - 2:,} of {len(runs):,} one by one "
        "(others differ in final_loss, outcome)"
    )


def test_stale_hashes_name_the_files(folders: Folders, tmp_path: Path) -> None:
    def act(folder: Path) -> None:
        (folder / "report.md").write_text("It was the learning rate.\n")
        (folder / "survival.csv").unlink()
        (folder / "figures/proof.txt").write_text("")

    found = rows(folders, altered(folders, tmp_path, act))
    files = {(where, here.partition(" ")[0]) for what, where, _, here in found if what == "file"}
    assert {name for name, _ in files} == {"report.md", "survival.csv", "figures/proof.txt"}
    assert ["table", "survival", "missing", "present"] in found
    assert ["file", "figures/proof.txt", "present", "not made"] in found


def test_runs_that_differ_are_a_difference_whatever_the_processor(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But with another version, which may give other bits, rates and verdicts are compared, and that is said."""
    cells = read_texts(folders.full, "cells")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folders.full, elsewhere)
    edit(elsewhere, "cells", lambda table: table.assign(**{ALL: table[ALL].str[::-1]}))
    here = environment()
    for change, excused in (
        ({"processor": "znver9", "features": "", "instruction_set": "AVX2"}, False),
        ({"torch": "9"}, True),
    ):
        monkeypatch.setattr(consistency, "environment", lambda change=change: here | change)
        found = differences(folders.reference, elsewhere, quick=False)
        assert found.compared[0].startswith(f"0 of {cells['n'].astype(int).sum():,} runs identical")
        assert found.compared[1] == f"rates of {len(cells):,} cells"
        if excused:
            assert found.rows == []
            assert f"versions may be why: torch {here['torch']} there, 9 here" in found.compared[0]
            assert "tables (other versions" in found.left_out[0]
        else:
            assert {what for what, *_ in found.rows} == {f"digest of runs, {ALL}"}
            assert found.left_out == []
    # A rate that is not compatible is a difference with any version.
    row = int((cells["solved_runs"].astype(int) == 20).idxmax())
    edit(elsewhere, "cells", lambda table: table.loc.__setitem__((row, ["solved_runs", "nonfinite_runs"]), ["0", "20"]))
    found = differences(folders.reference, elsewhere, quick=False)
    assert {(what, there, here) for what, _, there, here in found.rows} == {
        ("runs solved", "20 of 20", "0 of 20"),
        ("runs nonfinite", "0 of 20", "20 of 20"),
    }


def test_figures_of_another_renderer_are_left_out_and_that_is_said(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = environment()
    monkeypatch.setattr(consistency, "environment", lambda: here | {"matplotlib": "9.9"})
    reference = altered(
        folders, tmp_path, lambda folder: shutil.copy(folder / "figures/remedies.png", folder / "figures/symptom.png")
    )
    rehash(reference)
    found = differences(reference, folders.full, quick=False)
    assert [what for what, *_ in found.rows] == ["page"]  # that holds the picture
    assert found.left_out == [
        f"{2 * len(FIGURES)} pictures of figures (matplotlib {here['matplotlib']} there, 9.9 here)"
    ]


def test_a_quick_check_says_what_it_left_out(folders: Folders) -> None:
    found = differences(folders.reference, folders.quick, quick=True)
    (left,) = found.left_out
    count, total, *_ = map(int, re.findall(r"\d+", left))
    assert 0 < count < total
    names = set(re.findall(r"\w+", left.partition("they need all seeds: ")[2]))
    assert len(names) == count
    assert {"importance", "curves"} <= names
    assert not {"boundaries", "naive_onsets", "axon_losses", "examples"} & names


def test_a_reference_without_digests_is_one_line(folders: Folders, tmp_path: Path) -> None:
    reference = altered(
        folders, tmp_path, lambda folder: edit(folder, "cells", lambda table: table.drop(columns=[ALL, TENTH]))
    )
    rehash(reference)
    for quick in (False, True):
        ((what, where, there, _),) = rows(folders, reference, quick=quick)
        assert (what, where) == ("cells.csv", f"columns {ALL} and {TENTH}")
        assert "reproduce --out" in there


@pytest.mark.parametrize("name", ["runs", "cells", "claims"])
def test_a_table_that_is_needed_is_missed_in_one_line(name: str, folders: Folders, tmp_path: Path) -> None:
    reference = altered(folders, tmp_path, lambda at: table_path(at, name).unlink())
    with pytest.raises(StudyError, match=rf"{name}\.csv\S*: can't be read \(No such file or directory\)$"):
        differences(reference, folders.full, quick=False)
    table_path(reference, name).write_bytes(b"\x1f\x8b\x08\x00damaged")
    with pytest.raises(StudyError, match=rf"{name}\.csv\S*: can't be read \("):
        differences(reference, folders.full, quick=False)
    column = NEEDED[name][-1]
    write_table(table_path(reference, name), read_texts(folders.reference, name).drop(columns=column))
    with pytest.raises(StudyError, match=rf"{name}\.csv\S*: has no column {column}$"):
        differences(reference, folders.full, quick=False)


def test_a_setting_that_only_the_code_has_is_a_column_that_differs(folders: Folders, tmp_path: Path) -> None:
    """As before the reference is written again."""

    def act(folder: Path) -> None:
        for name in ("runs", "cells"):
            edit(folder, name, lambda table: table.drop(columns="loss.eps"))

    reference = altered(folders, tmp_path, act)
    rehash(reference)
    found = rows(folders, reference)
    assert ["run, column", "loss.eps", "missing", "present"] in found
    assert ["table cells, column", "loss.eps", "missing", "present"] in found


def test_digests_depend_on_every_bit_and_on_no_new_column(folders: Folders) -> None:
    runs = read_table(folders.reference, "runs").head(4)
    sizes = np.array([2, 2])
    before = digests(runs, sizes, sizes)
    assert digests(runs[runs.columns[::-1]].assign(new=1), sizes, sizes) == before
    assert digests(runs, sizes, sizes // 2) == [digests(runs.iloc[[row]], [1], np.array([1]))[0] for row in (0, 2)]
    for column in ("outcome", "accuracy", "solved_step", "first_nonfinite_step", "final_loss", "max_grad_norm", "seed"):
        changed = runs.copy()
        values = {"outcome": "diverged", "solved_step": 7, "first_nonfinite_step": 7, "seed": 7}
        changed.loc[runs.index[3], column] = values.get(column) or np.nextafter(runs[column].iloc[3], 9)
        found = digests(changed, sizes, sizes)
        assert (found[0] == before[0], found[1] == before[1]) == (True, False), column


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ("1.0", "1.0000000005", False),
        ("1.0", "1.00000001", True),
        ("0.0", "1e-300", True),
        ("-0.0", "0.0", False),
        ("nan", "nan", False),
        ("nan", "1.0", True),
        ("", "0.0", True),
        ("", "nan", True),
        ("inf", "inf", False),
        ("inf", "1e308", True),
        ("inf", "-inf", True),
        ("sgd", "SGD", True),
        ("12", "13", True),
    ],
)
def test_values_are_equal_to_a_billionth(one: str, other: str, differs: bool) -> None:
    assert unequal(pd.Series([one]), pd.Series([other])).tolist() == [differs]
    assert unequal(pd.Series([other]), pd.Series([one])).tolist() == [differs]


def test_tables_are_compared_by_the_names_of_their_rows() -> None:
    here = pd.DataFrame({"claim": ["a", "b", "c"], "effect": ["1.5", "2.5", "3.5"]})
    there = pd.DataFrame({"claim": ["a", "c", "c"], "effect": ["1.5", "3.6", "3.5"]})
    assert list(tables_differ("claims", there, here)) == [
        ("table claims, row", "claim=c", "twice", "once"),
        ("table claims, row", "claim=b", "missing", "present"),
        ("table claims, effect", "claim=c", "3.6", "3.5"),
    ]
    assert [row[:2] for row in tables_differ("claims", here.iloc[::-1], here)] == [
        ("table claims", "order of its rows")
    ]
    points = pd.DataFrame({"study": ["x"] * 9, "threshold": [f"{number}.5" for number in range(9)]})
    moved = points.assign(threshold="0.5")
    assert [row[1] for row in tables_differ("roc", moved, points)] == [
        "row 2 study=x",
        "row 3 study=x",
        "row 4 study=x",
        "5 more of 9 rows",
    ]


def test_an_altered_table_shows_in_its_figure(folders: Folders, tmp_path: Path) -> None:
    """Drawn, not copied: what the table in the documentation leaves open."""
    for folder in ("before", "after"):
        (tmp_path / folder / "figures").mkdir(parents=True)
        shutil.copy(REFERENCE / "importance.csv", tmp_path / folder)
    edit(tmp_path / "after", "importance", lambda table: table.loc.__setitem__((2, "share"), "0.02"))
    for folder in ("before", "after"):
        draw(tmp_path / folder, "importance")
    for kind in ("png", "pdf"):
        one, other = (tmp_path / folder / f"figures/importance.{kind}" for folder in ("before", "after"))
        assert difference(one, other) is not None
        assert difference(one, Path(shutil.copy(one, tmp_path))) is None


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


def test_what_may_decide_about_bits_is_recorded() -> None:
    names = {"torch", "numpy", "llvmlite", "scipy", "statsmodels", "pandas", "matplotlib", "system", "processor"}
    assert names <= environment().keys()
    assert all(environment().values())
    assert {"conf/study/all.yaml", "conf/config.yaml", "tests/data/axon/xla_statistics.json"} <= inputs().keys()


@pytest.mark.parametrize("name", FIGURES)
def test_committed_figures_are_those_of_the_committed_tables(name: str, tmp_path: Path) -> None:
    for path in draw(REFERENCE, name, tmp_path):
        assert difference(REFERENCE / "figures" / path.name, path) is None
        assert b"/FontFile2" in path.read_bytes() or path.suffix != ".pdf"  # embedded


def test_the_reference_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 14e6
    runs, cells = read_table(REFERENCE, "runs"), read_table(REFERENCE, "cells")
    assert len(runs) == 20 * len(cells)
    for name in FIGURES:
        assert (REFERENCE / "figures" / f"{name}.pdf").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--reference", "nowhere"], 1, "error: nowhere/provenance.json: No such file or directory"),
        (["--reference", "mine"], 1, "error: mine/provenance.json: No such file or directory"),
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
