"""What a table says cell by cell, and how it is shown: counts by hand, an interval's exact coverage, widths."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy.stats import multinomial

from xor_study import RunSpec, StudyError, figures, train
from xor_study.analysis.cells import cells, keys_of
from xor_study.analysis.outcomes import Outcomes
from xor_study.analysis.statistics import paired_difference
from xor_study.files import write_table
from xor_study.sweeps import commands as look
from xor_study.sweeps import terminal

ROOT = Path(__file__).resolve().parents[1]


def table(**changes: object) -> pd.DataFrame:
    """Return the runs of a small grid, all with some changes."""
    grid = itertools.product(("sgd", "adam"), (0.1, 1.0), range(6))
    return train([RunSpec(optimizer=o, lr=lr, seed=s, epochs=1, iterations=60, **changes) for o, lr, s in grid]).runs


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return table()


def test_cells_count_outcomes_in_the_order_given(runs: pd.DataFrame) -> None:
    keys = keys_of(runs, ("lr", "optimizer", "seed"))
    assert keys == ["lr", "optimizer"]
    found = cells(runs, keys)
    assert found[keys].to_numpy().tolist() == [[0.1, "sgd"], [1.0, "sgd"], [0.1, "adam"], [1.0, "adam"]]
    for row in found.to_dict("records"):
        members = runs[(runs["lr"] == row["lr"]) & (runs["optimizer"] == row["optimizer"])]
        for outcome in ("solved", "unsolved", "diverged", "nonfinite"):
            assert row[outcome] == (members["outcome"] == outcome).sum()
    assert found["runs"].tolist() == [6] * 4


@pytest.mark.parametrize(("p12", "p21"), [(0.1, 0.1), (0.3, 0.1), (0.05, 0.4)])
def test_the_interval_of_a_paired_difference_covers_it(p12: float, p21: float) -> None:
    """Its exact coverage, over all tables of 30 pairs, is near 95 %."""
    n, covered = 30, 0.0
    for lost, gained in itertools.product(range(n + 1), repeat=2):
        if lost + gained <= n:
            first = [True] * lost + [False] * (n - lost)
            second = [False] * lost + [True] * gained + [False] * (n - lost - gained)
            effect = paired_difference(first, second)
            assert effect.value == pytest.approx((gained - lost) / n)
            if effect.low <= p21 - p12 <= effect.high:
                covered += multinomial.pmf([lost, gained, n - lost - gained], n, [p12, p21, 1 - p12 - p21])
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize("width", [70, 80, 120])
def test_a_table_fits_the_terminal_and_loses_nothing(
    width: int, runs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "console", lambda: terminal.Console(highlight=False, width=width))
    terminal.show_sweep(Outcomes.of([runs]), ("optimizer", "lr"), "x", {})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    assert "…" not in shown
    for text in ("sgd", "adam", "0.1", "nonfinite", "runs"):
        assert text in shown


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_a_sweep_is_drawn_as_one_bar_a_cell(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_table(tmp_path / "runs.csv", runs)
    look.show([tmp_path], figure=True)
    keys = keys_of(runs, ())
    figure = figures.outcomes(cells(runs, keys), keys)
    (axes,) = figure.axes
    solved = [bar.get_width() for bar in axes.containers[0]]
    assert solved == [(runs["outcome"][runs["optimizer"] == "sgd"][runs["lr"] == 0.1] == "solved").mean()]
    assert len(axes.get_yticklabels()) == 4
    assert axes.get_yticklabels()[0].get_text() == "SGD, learning rate 0.1 (n = 6)"
    figures.save(figure, tmp_path / "again", title="Outcomes of each cell")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"again.{kind}").read_bytes() == (tmp_path / f"outcomes.{kind}").read_bytes()


def test_too_many_cells_for_a_figure_are_said(runs: pd.DataFrame, tmp_path: Path) -> None:
    many = pd.concat([runs.head(1).assign(lr=0.1 + i) for i in range(121)])
    write_table(tmp_path / "runs.csv", many)
    with pytest.raises(StudyError, match="121 cells are too many for a figure"):
        look.show([tmp_path], figure=True)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]
