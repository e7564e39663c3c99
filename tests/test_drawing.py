"""`xor-study figures`: figures of one's own sweep, what it says of others, and what it leaves alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from legibility import indistinct, problems

from xor_study import RunSpec, StudyError, train
from xor_study.__main__ import main
from xor_study.analysis.statistics import wilson
from xor_study.analysis.survival import not_solved_yet
from xor_study.figures import FIGURES, style
from xor_study.files import write_table
from xor_study.study.reference import PROVENANCE, REFERENCE, table_path
from xor_study.sweeps import drawing

SETTINGS = ("optimizer=sgd,adam", "lr=0.01,0.1,1", "init=glorot_uniform,he_normal", "seed=range(0,6)")
SHORT = ("epochs=2", "iterations=60", "batch=full")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Return a function that runs a command in an empty folder and returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["xor-study", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small finished sweep, which must not be changed."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("drawing")
        patch.chdir(path)
        patch.setattr("sys.argv", ["xor-study", "-m", *SETTINGS, *SHORT, "hydra.sweep.dir=sweep"])
        main()
    return path / "sweep"


@pytest.fixture
def sweep(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(folder, tmp_path / "sweep"))


def unfinished(sweep: Path) -> None:
    """Make the sweep in a folder look as if it were still being extended: a plan of more runs than it has parts of."""
    (sweep / "runs.csv").unlink()
    (sweep / "losses.npz").unlink()
    plan = json.loads((sweep / "plan.json").read_text())
    plan["runs"] = plan["runs"] * 4 // 3
    del plan["parts"]
    (sweep / "plan.json").write_text(json.dumps(plan))


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, drawing.Drawn]:
    """Return all figures of the sweep."""
    figures, reasons = drawing.draw(drawing.finished(folder), [], drawing.Axes())
    assert reasons == {}
    return figures


def test_the_figures_of_a_sweep_can_be_read(drawn: dict[str, drawing.Drawn]) -> None:
    assert drawn.keys() == drawing.DRAWN.keys()
    for figure, caption in drawn.values():
        assert figure.get_size_inches()[0] == style.COLUMN
        assert figure.get_size_inches()[1] <= style.TALLEST
        assert problems(figure) == []
        assert indistinct(figure) == []
        assert "{" not in caption
    assert "over learning rate, by optimizer" in drawn["rates"][1]
    assert "pooled over initializer" in drawn["rates"][1]


def test_curves_show_the_shares_of_the_runs(folder: Path, drawn: dict[str, drawing.Drawn]) -> None:
    runs = drawing.finished(folder).runs
    line = next(line for line in drawn["rates"][0].axes[0].lines if line.get_label() == "Adam")
    for rate, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
        members = runs[(runs["optimizer"] == "adam") & (runs["lr"] == rate)]
        assert share == (members["outcome"] == "solved").mean()
        assert len(members) == 12


def test_figures_are_saved_with_their_captions(drawn: dict[str, drawing.Drawn], tmp_path: Path) -> None:
    some = {"heatmap": drawn["heatmap"]}
    paths = drawing.save(some, tmp_path / "new/folder")
    assert [path.name for path in paths] == ["heatmap.png", "heatmap.pdf", "heatmap.txt"]
    assert paths[2].read_text() == drawn["heatmap"][1] + "\n"
    assert b"/Title (Outcomes by two settings)" in paths[1].read_bytes()


def test_axes_are_those_asked_for(sweep: Path) -> None:
    figure, _ = drawing.draw(drawing.finished(sweep), ["heatmap"], drawing.Axes("optimizer", "init"))[0]["heatmap"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["SGD", "Adam"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Glorot uniform", "He normal"]
    lines, _ = drawing.draw(drawing.finished(sweep), ["losses"], drawing.Axes(y="lr"))[0]["losses"]
    assert [line.get_label() for line in lines.axes[0].lines] == ["0.01", "0.1", "1"]


def test_a_folder_that_is_still_being_filled_is_drawn(call: Call, sweep: Path) -> None:
    whole = drawing.finished(sweep)
    assert whole.axes == ("optimizer", "lr", "init")
    unfinished(sweep)
    part = drawing.finished(sweep)
    assert (len(part.runs), part.planned) == (len(whole.runs), len(whole.runs) * 4 // 3)
    columns = ["optimizer", "lr", "init", "seed", "outcome", "solved_step"]
    order = ["optimizer", "lr", "init", "seed"]
    one, other = (
        finished.runs[columns].astype(str).sort_values(order).to_numpy().tolist() for finished in (whole, part)
    )
    assert one == other
    assert part.losses is not None
    assert whole.losses is not None
    assert part.losses.loc[whole.losses.index].equals(whole.losses)
    code, out, _ = call("figures", "sweep", "heatmap", "--x", "optimizer", "--y", "init")
    assert code == 0
    assert (sweep / "figures/heatmap.txt").read_text().startswith("Shares of runs that solve XOR (left)")
    assert "over optimizer and initializer" in (sweep / "figures/heatmap.txt").read_text()
    assert out.endswith("note: 72 of 96 runs are finished\n")


def test_figures_that_can_not_be_drawn_say_what_is_missing(sweep: Path) -> None:
    runs = pd.read_csv(sweep / "runs.csv")
    (sweep / "plan.json").unlink()
    (sweep / "losses.npz").unlink()
    write_table(sweep / "runs.csv", runs.iloc[:-1])
    drawn, reasons = drawing.draw(drawing.finished(sweep), [], drawing.Axes())
    assert reasons == {
        "losses": "the folder has no losses.npz",
        "importance": "the grid is not complete and balanced: combinations or seeds are missing",
    }
    assert drawn.keys() == {"rates", "heatmap", "time_to_solve"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heatmp"], "heatmp: unknown figure of a sweep; did you mean heatmap? (known: rates"),
        (["heatmap", "--x", "lrr"], "--x=lrr: unknown setting; did you mean lr? (known: optimizer, lr, init)"),
        (["heatmap", "--y", "gain"], "--y=gain: is 1 in all runs; settings that vary: optimizer, lr, init"),
        (["losses", "--y", "seed"], "--y=seed: a seed is not a setting"),
        (["heatmap", "--x", "lr", "--y", "lr"], "heatmap: --y=lr: is on the x axis already"),
        (["rates", "--x", "init"], "rates: initializer: a curve needs numbers above 0"),
        (["rates", "--into", "sweep/runs.csv"], "runs.csv: File exists"),
        (["rates", "--z", "lr"], "unrecognized arguments: --z lr"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    call: Call, sweep: Path, arguments: list[str], message: str
) -> None:
    files = sorted(sweep.rglob("*"))
    code, out, err = call("figures", "sweep", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(sweep.rglob("*")) == files


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sweep: shutil.rmtree(sweep), "sweep/: no such folder"),
        (lambda sweep: [path.unlink() for path in sweep.glob("*.*")], "runs.csv: No such file"),
        (lambda sweep: (sweep / "runs.csv").write_text("a,b\n1,2\n"), "not a table of runs"),
        (lambda sweep: (sweep / "runs.csv").write_text(""), "not a table of runs"),
        (lambda sweep: (sweep / "losses.npz").write_bytes(b"no"), "losses.npz: can't be read"),
        (lambda sweep: (unfinished(sweep), shutil.rmtree(sweep / "parts")), "no run of the sweep is finished yet"),
    ],
    ids=["no folder", "no runs", "no columns", "empty", "no losses", "not begun"],
)
def test_a_folder_without_runs_is_one_line(
    call: Call, sweep: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(sweep)
    code, out, err = call("figures", "sweep/")
    assert (code, out) == (1, "")
    assert message.rstrip("/") in err.replace("sweep:", "sweep/:")
    assert err.count("\n") == 1
    assert not (sweep / "figures").exists()


def test_runs_that_differ_only_in_the_seed_have_no_figure(call: Call, tmp_path: Path) -> None:
    runs = train([RunSpec(seed=seed, epochs=1, iterations=5) for seed in range(3)]).runs
    write_table(tmp_path / "runs.csv", runs)
    code, _, err = call("figures", str(tmp_path))
    assert (code, err) == (1, "error: no figure of a sweep applies: its runs differ in nothing but the seed\n")


def test_levels_that_can_not_be_told_apart_are_refused(folder: Path) -> None:
    runs = pd.concat([drawing.finished(folder).runs.head(4).assign(lr=0.1 + k, gain=2.0 + k) for k in range(31)])
    sweep = drawing.Finished(runs, None, ("lr", "gain"), len(runs))
    with pytest.raises(StudyError, match="--y=gain: has 31 levels; at most 10 lines"):
        drawing.draw(sweep, ["rates"], drawing.Axes(y="gain"))
    with pytest.raises(StudyError, match="--x=lr: has 31 levels; a map has room for 30"):
        drawing.draw(sweep, ["heatmap"], drawing.Axes("lr", "gain"))
    assert drawing.draw(sweep, ["rates"], drawing.Axes())[0].keys() == {"rates"}  # one line


def test_settings_that_some_runs_lack_are_refused(folder: Path) -> None:
    runs = drawing.finished(folder).runs.copy()
    runs["clip.bound"] = np.where(runs["lr"] == 1.0, 2.0, np.nan)
    sweep = drawing.Finished(runs, None, ("lr", "clip.bound"), len(runs))
    with pytest.raises(StudyError, match=r"--y=clip\.bound: 48 of 72 runs have none"):
        drawing.draw(sweep, ["rates"], drawing.Axes(y="clip.bound"))


def test_shares_are_those_of_the_runs_with_wilsons_interval(folder: Path) -> None:
    runs = drawing.finished(folder).runs
    for row in drawing.shares(runs, ["lr", "init"]).to_dict("records"):
        members = runs[(runs["lr"] == row["lr"]) & (runs["init"] == row["init"])]
        solved = int((members["outcome"] == "solved").sum())
        assert row["n"] == len(members)
        assert row["solved"] == solved / len(members)
        assert (row["solved_low"], row["solved_high"]) == wilson(solved, len(members))


def test_survival_without_censoring_is_the_share_that_is_left() -> None:
    steps = pd.array([5, 5, 20, 40], dtype="Int64")
    runs = pd.DataFrame({"epochs": 1, "iterations": 100, "solved_step": steps})
    table = not_solved_yet(runs)
    assert table[["step", "unsolved"]].to_numpy().tolist() == [[1, 1], [5, 0.5], [20, 0.25], [40, 0], [100, 0]]
    never = not_solved_yet(runs.assign(solved_step=pd.array([None] * 4, dtype="Int64")))
    assert never[["step", "unsolved"]].to_numpy().tolist() == [[1, 1], [100, 1]]


def reproduction(path: Path, *tables: str) -> Path:
    """Make a folder that is a reproduction with a few of its tables."""
    path.mkdir()
    for name in tables:
        shutil.copy(table_path(REFERENCE, name), table_path(path, name))
    shutil.copy(REFERENCE / PROVENANCE, path / PROVENANCE)
    return path


def test_a_reproduction_draws_the_studys_figures_but_keeps_those_it_has_recorded(call: Call, tmp_path: Path) -> None:
    reproduction(tmp_path / "mine", "survival")
    code, out, err = call("figures", "mine", "time_to_solve")
    assert (code, out) == (1, "")
    assert "mine/figures: its reproduction has recorded the figures in it; add --into FOLDER or --overwrite" in err
    assert not Path("mine/figures").exists()
    code, out, _ = call("figures", "mine", "--into", "here")
    assert code == 0
    assert sorted(path.name for path in Path("here").iterdir()) == [f"time_to_solve.{s}" for s in ("pdf", "png", "txt")]
    assert out.count("note: ") == len(FIGURES) - 1
    assert "note: importance is not drawn: mine/importance.csv is missing" in out
    assert "importance: mine/importance.csv is missing" in call("figures", "mine", "importance", "--overwrite")[2]
    assert "--x and --y: only of a sweep" in call("figures", "mine", "time_to_solve", "--x", "lr")[2]


def test_without_a_folder_no_tracked_file_is_written(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("xor_study.study.reference.CHECKOUT", tmp_path)
    code, out, _ = call("figures", "time_to_solve")
    assert code == 0
    assert out.splitlines()[0] == str(tmp_path / "results/runs/figures/time_to_solve.png")
    ignored = (Path(__file__).resolve().parents[1] / ".gitignore").read_text().splitlines()
    assert "/results/runs/" in ignored
