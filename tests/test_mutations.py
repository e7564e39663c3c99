"""Whatever is altered in the committed results is found; the documentation says by which way of checking."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reproductions import TEXTS, Folders, altered, edit, folders, rehash, small

from xor_study.analysis.statistics import wilson
from xor_study.errors import StudyError
from xor_study.study import redrawing
from xor_study.study.comparison import differences
from xor_study.study.consistency import files_differ
from xor_study.study.reference import PROVENANCE, REFERENCE, read_provenance, table_files

__all__ = ["folders"]

PAGE = Path(__file__).resolve().parents[1] / "docs/reproducing.md"

Act = Callable[[Path], object]
MUTATIONS: dict[str, Act] = {}
"""What is altered, in words, and a function that alters it in a folder."""


def mutation(name: str) -> Callable[[Act], Act]:
    def register(act: Act) -> Act:
        MUTATIONS[name] = act
        return act

    return register


def set_to(table: str, row: int, column: str, value: Callable[[str], Any]) -> Act:
    """Return a function that alters one value of a table."""

    def change(texts: pd.DataFrame) -> None:
        texts.loc[row, column] = str(value(texts.loc[row, column]))

    return lambda folder: edit(folder, table, change)


def larger(text: str) -> float:
    return float(text) * 1.001 + 1e-6


def other(outcome: str) -> str:
    return "unsolved" if outcome == "solved" else "solved"


def in_record(**values: Any) -> Act:
    """Return a function that alters the record; a value may be a function of the old one."""

    def act(folder: Path) -> None:
        record = read_provenance(folder)
        for name, value in values.items():
            record[name] = value(record[name]) if callable(value) else value
        (folder / PROVENANCE).write_text(json.dumps(record))

    return act


def in_text(name: str, pattern: str, replacement: str) -> Act:
    """Return a function that alters the first match in a page."""

    def act(folder: Path) -> None:
        text = (folder / name).read_text()
        changed = re.sub(pattern, replacement, text, count=1)
        assert changed != text
        (folder / name).write_text(changed)

    return act


MUTATIONS |= {
    "the outcome of a run": set_to("runs", 6, "outcome", other),
    "a measure of a run, by one bit": set_to("runs", 5, "final_loss", lambda text: np.nextafter(float(text), 1)),
    "a setting of a run": set_to("runs", 4, "lr", lambda text: 10 * float(text)),
    "a run left out": lambda folder: edit(folder, "runs", lambda runs: runs.drop(index=11)),
    "a run twice": lambda folder: edit(folder, "runs", lambda runs: pd.concat([runs, runs.loc[[3]]])),
    "the digest of all runs of a cell": set_to("cells", 9, "digest", lambda text: text[::-1]),
    "a share in a cell": set_to("cells", 12, "solved", larger),
    "the end of a share's interval": set_to("cells", 12, "solved_high", larger),
    "a median in a cell": set_to("cells", 12, "final_loss_median", larger),
    "a cell left out": lambda folder: edit(folder, "cells", lambda cells: cells.drop(index=7)),
    "a loss in the curves": set_to("curves", 40, "median", larger),
    "a loss of an example": set_to("examples", 40, "loss", larger),
    "the effect of a claim": set_to("claims", 3, "effect", lambda text: float(text) + 0.1),
    "the interval of a claim": set_to("claims", 3, "high", lambda text: float(text) + 0.1),
    "the sentence of a claim": set_to("claims", 3, "sentence", lambda text: f"{text} So it is proved."),
    "the verdict on a claim": set_to(
        "claims", 3, "verdict", lambda text: "refuted" if text != "refuted" else "supported"
    ),
    "a number of a monitor": set_to("monitors", 0, "recall", lambda text: float(text) / 2),
    "a point of an ROC curve": set_to("roc", 30, "true", lambda text: float(text) / 2 + 0.1),
    "a point of a survival curve": set_to("survival", 30, "unsolved", lambda text: float(text) / 2),
    "a table left out": lambda folder: (folder / "survival.csv").unlink(),
    "a table more": lambda folder: (folder / "proof.csv").write_text("a,b\n1,2\n"),
    "a column left out": lambda folder: edit(folder, "roc", lambda table: table.drop(columns="threshold")),
    "a word in report.md": in_text("report.md", "None of", "One of"),
    "a word in report.html": in_text("report.html", "None of", "One of"),
    "a count in the picker of report.html": in_text("report.html", r'"(\d+)"', r'"7\1"'),
    "a number of a LaTeX table": in_text("paper.tex", r"& 0\.(\d)", r"& 0.9\1"),
    "a caption": in_text("figures/importance.txt", "95 %", "99 %"),
    "a page left out": lambda folder: (folder / "report.md").unlink(),
    "the version of torch in the record": in_record(environment=lambda found: found | {"torch": "2.0.0"}),
    "the commit in the record": in_record(git_commit="0" * 40),
    "the command in the record": in_record(command="python -m xor_study.reproduce --quick"),
    "the number of runs in the record": in_record(runs=lambda count: count + 1),
    "the hash of an input in the record": in_record(inputs=lambda found: found | {"conf/study/all.yaml": "0" * 64}),
    "no environment in the record": in_record(environment={}),
}


@mutation("the outcome of all runs of a cell")
def count(folder: Path) -> None:
    """Counts, shares and intervals of two outcomes are exchanged, so that they fit each other."""

    def change(cells: pd.DataFrame) -> None:
        row = cells["solved_runs"].astype(int).idxmax()
        for end in ("_runs", "", "_low", "_high"):
            names = [f"solved{end}", f"nonfinite{end}"]
            cells.loc[row, names] = cells.loc[row, names[::-1]].tolist()

    edit(folder, "cells", change)


@mutation("one more run of a cell solved")
def one_more(folder: Path) -> None:
    def change(cells: pd.DataFrame) -> None:
        n = cells["n"].astype(int)
        row = cells.index[(cells["solved_runs"].astype(int) > 5) & (cells["unsolved_runs"].astype(int) > 5)][0]
        for outcome, step in (("solved", 1), ("unsolved", -1)):
            found = int(cells.loc[row, f"{outcome}_runs"]) + step
            low, high = wilson(found, int(n[row]))
            columns = [f"{outcome}{end}" for end in ("_runs", "", "_low", "_high")]
            cells.loc[row, columns] = [str(value) for value in (found, found / n[row], low, high)]

    edit(folder, "cells", change)


@mutation("two cells exchanged")
def exchanged(folder: Path) -> None:
    def change(cells: pd.DataFrame) -> pd.DataFrame:
        order = cells.index.to_list()
        order[3], order[30] = order[30], order[3]
        return cells.loc[order]

    edit(folder, "cells", change)


@mutation("the results of two cells exchanged")
def results_exchanged(folder: Path) -> None:
    def change(cells: pd.DataFrame) -> None:
        results = cells.columns[list(cells.columns).index("n") :]
        first, second = (cells["solved"].astype(float) == 1).idxmax(), (cells["solved"].astype(float) == 0).idxmax()
        cells.loc[[first, second], results] = cells.loc[[second, first], results].to_numpy()

    edit(folder, "cells", change)


@mutation("pixels of a figure (PNG)")
def pixels(folder: Path) -> None:
    import matplotlib.image

    path = folder / "figures/precision.png"
    picture = matplotlib.image.imread(path).copy()
    picture[100:104, 100:104, :3] = 0.5
    matplotlib.image.imsave(path, picture)


@mutation("a curve of a figure (PDF)")
def curve(folder: Path) -> None:
    import zlib

    path = folder / "figures/precision.pdf"
    content = path.read_bytes()
    start = content.index(b"stream\n") + len(b"stream\n")
    end = content.index(b"\nendstream", start)
    drawn = zlib.decompress(content[start:end])
    moved = re.sub(rb"\d+\.\d+ (\d+\.\d+) l\n", rb"1.5 \1 l\n", drawn, count=1)
    assert moved != drawn
    path.write_bytes(content[:start] + zlib.compress(moved) + content[end:])


@mutation("two figures exchanged")
def figures_exchanged(folder: Path) -> None:
    for end in ("png", "pdf"):
        one, another = (folder / f"figures/{name}.{end}" for name in ("precision", "importance"))
        kept = one.read_bytes()
        shutil.copy(another, one)
        another.write_bytes(kept)


@mutation("a figure left out")
def figure_left_out(folder: Path) -> None:
    (folder / "figures/precision.pdf").unlink()


@mutation("a file more")
def file_more(folder: Path) -> None:
    (folder / "figures/proof.txt").write_text("It was the learning rate.\n")


def is_found(reference: Path, folders: Folders, *, quick: bool) -> bool:
    """Return whether the check ends with code 1: for a difference, or because a file can't be read."""
    try:
        return bool(differences(reference, folders.quick if quick else folders.full, quick).rows)
    except StudyError:
        return True


def found_by(name: str, folders: Folders, folder: Path) -> dict[str, str]:
    """Return which check finds what was altered: with right hashes, and with all pages written again as well."""
    reference = altered(folders, folder, MUTATIONS[name])
    record = read_provenance(reference)
    if record == read_provenance(folders.reference):
        assert list(files_differ(reference, record["sha256"]))  # in both ways of checking
    found = {}
    for level in ("hashes", "pages"):
        if level == "pages":
            if any(word in name for word in ("record", "report", "left out", "LaTeX", "caption")):
                found |= {"full, pages": "", "quick, pages": ""}
                continue
            redrawing.write_pages(reference, record)
        rehash(reference)
        for how, quick in (("full", False), ("quick", True)):
            found[f"{how}, {level}"] = "yes" if is_found(reference, folders, quick=quick) else "no"
    return found


def row(name: str, found: dict[str, str]) -> str:
    """Return what the documentation's table says."""
    return f"| {name} | {found['full, hashes']} | {found['quick, hashes']} | {found['quick, pages']} |"


def test_nothing_is_found_where_nothing_was_altered(folders: Folders) -> None:
    for fresh, quick in ((folders.full, False), (folders.quick, True)):
        found = differences(folders.reference, fresh, quick)
        assert found.differing.to_numpy().tolist() == []
        assert found.compared[0].endswith("runs identical")


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_altered_is_found(name: str, folders: Folders, tmp_path: Path) -> None:
    """With stale hashes, with right ones, and with all pages written again from what was altered."""
    found = found_by(name, folders, tmp_path)
    assert found["full, hashes"] == "yes"
    assert found["full, pages"] in ("yes", "")
    assert row(name, found) in PAGE.read_text().splitlines()


def test_the_documentation_has_no_other_rows() -> None:
    rows = re.findall(r"^\| (.*?) \| yes \| (?:yes|no) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == list(MUTATIONS)


@pytest.mark.parametrize("name", sorted(path.name.partition(".")[0] for path in table_files(REFERENCE)))
def test_an_altered_number_of_any_table_is_found(name: str, folders: Folders, tmp_path: Path) -> None:
    """The last number of the middle row, by a millionth, or by one if it is whole."""

    def change(table: pd.DataFrame) -> None:
        row = len(table) // 2
        column = [name for name in table if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", table[name].iloc[row])][-1]
        text = table[column].iloc[row]
        value = int(text) + 1 if text.isdigit() else float(text) * (1 + 1e-6) + 1e-12
        table.loc[table.index[row], column] = str(value)

    reference = altered(folders, tmp_path, lambda folder: edit(folder, name, change))
    rehash(reference)
    assert is_found(reference, folders, quick=False)


@pytest.mark.parametrize("name", TEXTS)
def test_an_altered_letter_of_any_text_is_found(name: str, folders: Folders, tmp_path: Path) -> None:
    """The letter in the middle."""

    def act(folder: Path) -> None:
        content = (folder / name).read_bytes()
        middle = len(content) // 2
        (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])

    reference = altered(folders, tmp_path, act)
    rehash(reference)
    for quick in (False, True):
        assert is_found(reference, folders, quick=quick)


def main() -> None:
    """Print the documentation's table."""
    with tempfile.TemporaryDirectory() as folder, small(Path(folder)) as made:
        for number, name in enumerate(MUTATIONS):
            (Path(folder) / str(number)).mkdir()
            print(row(name, found_by(name, made, Path(folder) / str(number))), flush=True)


if __name__ == "__main__":
    main()
