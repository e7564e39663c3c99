"""The figures: what they show of a table, whether they can be read, and that they leave matplotlib alone."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from legibility import indistinct, lightness, line_colours, problems, texts
from matplotlib.figure import Figure

from xor_study import figures
from xor_study.figures import panels, study, style, verdicts, words
from xor_study.figures.captions import CAPTIONS, SWEEP_CAPTIONS, SWEEP_TITLES, TITLES
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.study.reference import REFERENCE, read_table, table_path
from xor_study.study.remedies import FAILING_WORDS, SOUND_WORDS
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import GROUPS, KEYS

SCRIPT = """
import sys
import matplotlib
matplotlib.use("svg")  # the user's
from pathlib import Path
import numpy as np, pandas as pd
from xor_study import figures
assert not any(name.startswith("xor_study.figures.") for name in sys.modules), "imported before it was asked for"
history = pd.DataFrame({"step": np.arange(1, 9), "epoch": np.repeat([1, 2], 4), "loss": np.linspace(1, 0, 8)})
figure = figures.loss_curve(history, "a run")
before = matplotlib.rcParams.copy()
figures.save(figure, Path(sys.argv[1]) / "loss")
assert "matplotlib.pyplot" not in sys.modules
assert not {"scipy.stats", "statsmodels"} & set(sys.modules)
assert matplotlib.get_backend() == "svg"
assert matplotlib.rcParams == before
import matplotlib.pyplot as plt
assert plt.get_fignums() == []
"""


def test_drawing_changes_nothing_of_matplotlib(tmp_path: object) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, timeout=120)


def with_interval(table: pd.DataFrame, *columns: str, half: float = 0.04) -> pd.DataFrame:
    """Return a table with ends of intervals beside some columns."""
    ends = {f"{name}_{end}": table[name] + sign * half for name in columns for end, sign in (("low", -1), ("high", 1))}
    return table.assign(**ends)


def remedies(rows: int = 22) -> pd.DataFrame:
    """Return a table of remedies: the first is none, the words go round."""
    rng = np.random.default_rng(0)
    names = ["as reported", *(f"RMSprop, learning rate {number / 1000:g}" for number in range(1, rows))]
    kinds = FAILING_WORDS
    columns = {
        "remedy": names,
        "word": [kinds[number % len(kinds)] for number in range(rows)],
        "sound_word": [SOUND_WORDS[number % len(SOUND_WORDS)] for number in range(rows)],
        **{name: rng.uniform(0.1, 0.9, rows) for name in ("nan", "solved", "sound_nan", "sound_solved")},
        "sound_steps": rng.normal(0, 1500, rows),
    }
    table = with_interval(pd.DataFrame(columns), "nan", "solved", "sound_nan", "sound_solved")
    return with_interval(table, "sound_steps", half=150)


def suspects(levels: int = 3) -> pd.DataFrame:
    """Return a table of suspects: six of them, with so many levels each."""
    names = ["learning rate", "initializer", "loss", "hidden activation", "gradient clipping", "Axon's defects"]
    rng = np.random.default_rng(1)
    rows = [
        (name, f"level {level} of {name}"[:24], *rng.uniform(0.1, 0.9, 3)) for name in names for level in range(levels)
    ]
    return with_interval(pd.DataFrame(rows, columns=["suspect", "level", "ps", "pn", "cure"]), "ps", "pn", "cure")


MADE = {"remedies": remedies, "suspects": suspects}
"""Tables that are made here: the figures must do with any values."""

OURS = [name for name in figures.FIGURES if name != "monitors"]


@cache
def table(name: str) -> pd.DataFrame:
    return MADE[name]() if name in MADE else read_table(REFERENCE, name)


@cache
def drawn(name: str) -> Figure:
    """Return a figure of the study; it must not be changed."""
    return getattr(figures, name)(*(table(needed) for needed in figures.FIGURES[name]))


@pytest.mark.parametrize("name", OURS)
def test_a_figure_fits_a_column_and_nothing_in_it_is_hidden(name: str) -> None:
    figure = drawn(name)
    width, height = figure.get_size_inches()
    assert width == style.COLUMN
    assert height <= style.TALLEST
    assert problems(figure) == []
    assert indistinct(figure) == []


def test_what_is_looked_for_is_found() -> None:
    """A figure with each of the faults has each of them reported."""
    figure, axes = style.subplots(height=2.0)
    axes.plot([0, 1], [0, 1], color="#009e73", label="one")
    axes.plot([0, 1], [1, 0], color="#d55e00", label="one")
    axes.text(0.5, 0.5, "lr_or_so")
    axes.text(0.5, 0.52, "over it")
    axes.text(0.9, 0.5, "far too long to stay inside of the figure")
    axes.set_xlabel("e^-z")
    axes.legend()
    found = "\n".join(problems(figure))
    for fault in ("outside: 'far", "overlap: 'lr_or_so'", "covers data: 'lr_or_so'", "internal name: 'lr_or_so'"):
        assert fault in found
    assert "internal name: 'e^-z'" in found
    assert "legend entries twice" in found
    assert indistinct(figure) == ["one and one"]


def test_a_colour_has_one_meaning_and_a_meaning_one_colour() -> None:
    """In all figures; lines of figures about other things may be black or grey."""
    meanings = {
        "Axon 0.6.1": [line_colours(drawn(name)) for name in ("mechanism", "gradients", "learning_rate")],
        "sound": [line_colours(drawn(name)) for name in ("gradients", "learning_rate")],
        "Axon 0.7.0": [line_colours(drawn("mechanism"))],
        "Adam": [line_colours(drawn(name)) for name in ("loss_curves", "time_to_solve", "learning_rate")],
    }
    found = {
        meaning: {colour for colours in figures_of for label, colour in colours.items() if label.startswith(meaning)}
        for meaning, figures_of in meanings.items()
    }
    assert found["Axon 0.6.1"] == {style.BROKEN_COLOUR}
    assert found["sound"] == found["Axon 0.7.0"] == {style.SOUND}
    assert {
        line_colours(drawn(name))[label]
        for name, label in (
            ("loss_curves", "Adam, rate 0.001"),
            ("time_to_solve", "Adam 0.001"),
            ("learning_rate", "Adam"),
        )
    } == {style.level_styles("optimizer", ["adam"])[0]["color"]}
    assert line_colours(drawn("loss_curves"))["SGD, rate 0.01"] == line_colours(drawn("time_to_solve"))["SGD 0.01"]
    assert line_colours(drawn("precision"))["at the NaN"] == style.NAN
    taken = [*style.OUTCOME_COLOURS.values(), style.SOUND, style.BROKEN_COLOUR, style.UNGUARDED, *style.LEVEL_COLOURS]
    assert len({colour.lower() for colour in taken}) == len(taken)


def test_outcomes_differ_in_grey_by_lightness_or_hatch() -> None:
    looks = [(round(lightness(style.OUTCOME_COLOURS[name]), 1), style.OUTCOME_HATCHES[name]) for name in OUTCOMES]
    assert len(set(looks)) == len(OUTCOMES)
    assert len(set(style.OUTCOME_HATCHES.values())) == len(OUTCOMES)


@pytest.mark.parametrize("group", [*GROUPS, "activation.hidden", "activation.output"])
def test_each_choice_has_a_word_and_a_look_of_its_own(group: str) -> None:
    names = list({**GROUPS, "activation.hidden": HIDDEN_ACTIVATIONS, "activation.output": OUTPUT_ACTIVATIONS}[group])
    spelled = [words.value_words(name, group) for name in names]
    assert len(set(spelled)) == len(names)
    assert not any("_" in word for word in [*spelled, *map(words.key_words, KEYS)] if "$" not in word)
    looks = [tuple(map(str, look.values())) for look in style.level_styles(group, names)]
    assert len(set(looks)) == len(names)
    assert style.level_styles(group, names[::-1]) == style.level_styles(group, names)[::-1]


def test_scales_are_even_in_grey() -> None:
    """Else a middle value could pass for a large one."""
    for scale in (style.PREDICTIONS, style.shades(style.SOLVED), style.shades(style.NAN)):
        grey = [lightness(scale(value)[:3]) for value in np.linspace(0, 1, 50)]
        assert (np.diff(grey) < 0).all()
        assert grey[0] - grey[-1] > 0.7
    rates = [lightness(style.rate_colour(10.0**power)) for power in range(-4, 3)]
    assert (np.diff(rates) > 0).all()


def test_files_have_title_author_and_embedded_fonts_and_the_same_bits_again(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        figure = figures.loss_curve(history([0.7, 0.6, 0.5, np.nan]), "a run")
        paths = figures.save(
            figure, tmp_path / folder / "anatomy", title=TITLES["anatomy"], caption=CAPTIONS["anatomy"]
        )
        assert [path.name for path in paths] == ["anatomy.png", "anatomy.pdf", "anatomy.txt"]
    for name in ("anatomy.png", "anatomy.pdf", "anatomy.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pdf = (tmp_path / "a/anatomy.pdf").read_bytes()
    assert f"/Title ({TITLES['anatomy']})".encode() in pdf
    assert f"/Author ({style.author()})".encode() in pdf
    assert style.author()
    assert b"/CreationDate" not in pdf
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert TITLES["anatomy"].encode() in (tmp_path / "a/anatomy.png").read_bytes()
    assert (tmp_path / "a/anatomy.txt").read_text() == f"{CAPTIONS['anatomy']}\n"


def test_each_figure_has_a_title_and_a_caption() -> None:
    assert TITLES.keys() == CAPTIONS.keys() >= figures.FIGURES.keys()
    assert SWEEP_TITLES.keys() >= SWEEP_CAPTIONS.keys()
    with_n = [name for name in figures.FIGURES if name not in ("suspects", "remedies", "boundaries", "monitors")]
    assert [name for name in with_n if "n: " not in CAPTIONS[name]] == []


def test_a_heat_map_shows_the_values_and_what_is_missing() -> None:
    cells = pd.DataFrame({"lr": [0.1, 1.0, 0.1], "init": ["a", "a", "b"], "solved": [0.25, 1.0, 0.0]})
    figure, axes = style.subplots(height=2.0)
    ticks = {"x": {"0.1": 0.1, "1": 1.0}, "y": {"b": "b", "a": "a"}}
    mesh = panels.heat_map(axes, cells, "lr", "init", "solved", ticks)
    assert mesh.get_array().filled(-1).tolist() == [[0.0, -1.0], [0.25, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert figure.axes == [axes]


def test_saturation_has_a_panel_where_it_was_measured() -> None:
    courses = table("courses")
    half = courses[courses["measure"] == "max_abs_logit"].assign(measure="saturated", low=0.4, median=0.5, high=0.6)
    figure = figures.gradients(pd.concat([courses[courses["measure"] != "saturated"], half]))
    assert len(figure.axes) == 3
    assert {value for line in figure.axes[2].lines for value in line.get_ydata()} == {0.5}
    assert problems(figure) == []


def test_the_heat_maps_have_the_same_rates_in_all_panels() -> None:
    figure = drawn("heatmaps")
    maps = [axes for axes in figure.axes if axes.get_xlim() == (-0.5, 5.5)]
    assert len(maps) == 6
    for column in (maps[0::2], maps[1::2]):
        assert all(axes._sharex in (None, column[0]) for axes in column)
        assert [label.get_text() for label in column[-1].get_xticklabels()][::5] == ["$10^{-3}$", "$10^{2}$"]
    shown = {text.get_text() for text in texts(figure)}
    assert {"Glorot uniform", "Axon 0.6.1", "ReLU", "mean squared error"} <= shown


def test_every_word_of_the_rules_has_a_group_or_a_mark() -> None:
    assert set(verdicts.WORDS) == set(FAILING_WORDS)
    assert set(verdicts.SOUND_MARKS) == set(SOUND_WORDS)


def test_what_was_not_measured_is_left_out() -> None:
    """Of a remedy that no run solves XOR with, steps are missing; of a change made to one configuration, the others."""
    rows, levels = remedies(6), suspects(2)
    steps = [name for name in rows if name.startswith("sound_steps")]
    rows.loc[2, steps] = np.nan
    levels.loc[levels.index[1:], [name for name in levels if name.startswith("ps")]] = np.nan
    for figure in (figures.remedies(rows), figures.suspects(levels)):
        assert problems(figure) == []


def test_remedies_are_grouped_by_their_word_and_drawn_where_their_values_are() -> None:
    figure, rows = drawn("remedies"), table("remedies")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    heights = dict(zip(labels, figure.axes[0].get_yticks(), strict=True))
    assert heights["as reported"] == min(heights.values())
    for row in rows.iloc[1:].to_dict("records"):
        later = [heights[word] for word in set(rows["word"]) if heights[word] > heights[row["word"]]]
        assert heights[row["word"]] < heights[row["remedy"]] < min(later, default=np.inf)
    for axes, column in zip(figure.axes, ("nan", "solved", "sound_solved"), strict=False):
        (line,) = (line for line in axes.lines if len(line.get_xdata()) == len(rows))
        drawn_at = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert all(drawn_at[heights[row["remedy"]]] == row[column] for row in rows.to_dict("records"))
    steps = figure.axes[3].lines
    assert sum(len(line.get_xdata()) for line in steps if line.get_marker() in "oDX") == len(rows)


@pytest.mark.parametrize("draw", [lambda: figures.remedies(remedies(40)), lambda: figures.suspects(suspects(12))])
def test_many_remedies_and_suspects_still_fit_a_column(draw: Callable[[], Figure]) -> None:
    figure = draw()
    assert figure.get_size_inches().tolist() == [style.COLUMN, style.TALLEST]
    assert problems(figure) == []
    heights = [height for line in figure.axes[0].lines for height in line.get_ydata() if len(line.get_ydata()) > 2]
    assert len(set(heights)) == len(heights)


def test_few_remedies_and_suspects_make_a_small_figure() -> None:
    for figure in (figures.remedies(remedies(4)), figures.suspects(suspects(1))):
        assert figure.get_size_inches()[1] < 3
        assert problems(figure) == []


def test_suspects_are_drawn_where_their_values_are_below_their_heading() -> None:
    figure, rows = drawn("suspects"), table("suspects")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    heights = dict(zip(labels, figure.axes[0].get_yticks(), strict=True))
    for axes, column in zip(figure.axes, ("ps", "pn", "cure"), strict=True):
        (line,) = (line for line in axes.lines if len(line.get_xdata()) == len(rows))
        drawn_at = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        for row in rows.to_dict("records"):
            assert drawn_at[heights[row["level"]]] == row[column]
            assert heights[row["suspect"]] < heights[row["level"]]


def history(losses: list[float]) -> pd.DataFrame:
    half = len(losses) // 2
    epochs = [1] * half + [2] * (len(losses) - half)
    return pd.DataFrame({"step": range(1, len(losses) + 1), "epoch": epochs, "loss": losses})


def test_a_run_that_fails_is_marked_where_its_table_says_it_fails() -> None:
    figure = figures.loss_curve(history([0.7, 0.6, 0.8, np.nan]), words.run_title(run("nonfinite")), onset=3)
    labels = [text.get_text().replace("\n", " ") for text in texts(figure)]
    assert "not finite from step 3" in labels
    assert "SGD, learning rate 0.01, binary cross-entropy, seed 3: NaN" in labels
    assert problems(figure) == []


def test_a_legend_has_no_entry_for_a_line_without_points() -> None:
    figure = figures.loss_curve(history([0.7, np.nan]).assign(epoch=1), "a run")
    assert "mean of an epoch" not in line_colours(figure)
    sound = figures.loss_curve(history([0.7, 0.6, 0.5, 0.4]), "a run")
    assert set(line_colours(sound)) == {"each step", "mean of an epoch"}


def run(outcome: str) -> dict[str, object]:
    return {"optimizer": "sgd", "lr": 0.01, "loss": "binary_cross_entropy", "seed": 3, "outcome": outcome}


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_a_decision_boundary_can_be_read(threshold: float) -> None:
    plane = np.linspace(-1, 1, 100).reshape(10, 10) + threshold
    for values in (plane, np.full((10, 10), np.nan)):
        figure = figures.decision_boundary(values, (-0.25, 1.25), threshold, words.run_title(run("solved")))
        assert figure.get_size_inches()[0] == style.COLUMN
        assert problems(figure) == []


def corners(steps: int = 6) -> pd.DataFrame:
    """Return corners of which two have the same logits, and all break at the last step."""
    rows = []
    for step in range(1, steps + 1):
        for corner, factor in (("00", 1.0), ("01", 1.0), ("10", 1.1), ("11", 0.5)):
            end = step == steps
            logit = -1000.0 if end else -factor * 2.0**step
            columns = {"step": step, "corner": corner, "logit": logit, "prediction": np.exp(logit), "upstream": 1e3}
            exponential = np.inf if end else np.exp(-logit)
            rows.append(
                columns | {"slope": np.exp(logit), "exponential": exponential, "gradient": np.nan if end else 0.1}
            )
    return pd.DataFrame(rows)


def test_the_last_steps_show_all_corners_and_fit_a_column() -> None:
    losses = pd.DataFrame({"loss": [0.7, 0.7, 0.8, 1.0, 5.0, np.nan]}, index=range(1, 7))
    last = pd.DataFrame({"step": range(1, 7), "grad_norm": 2.0 ** np.arange(6), "max_abs_logit": 3.0 ** np.arange(6)})
    marks = {"first\nabove 5": 4, "NaN": 6}
    figure = figures.last_steps("Axon 0.6.1, seed 109", losses, last, corners(), marks)
    assert figure.get_size_inches()[1] <= style.TALLEST
    assert problems(figure) == []
    lines = [line for line in figure.axes[2].lines if line.get_label() in ("00", "01", "10", "11")]
    sizes = [line.get_markersize() for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert {line.get_fillstyle() for line in lines} == {"none"}
    assert figures.last_steps("a run", losses, last, corners().head(0), marks).get_size_inches()[1] < 3


def test_the_logit_at_which_p_rounds_to_one_is_that_of_the_precision() -> None:
    for name in ("float32", "float64"):
        z = np.dtype(name).type(study.rounding_logit(name))
        assert 1 / (1 + np.exp(-z * 1.001)) == 1
        assert 1 / (1 + np.exp(-z * 0.97)) < 1


def test_the_committed_tables_are_those_that_the_figures_take() -> None:
    """Or they are made by a later reproduction."""
    for name in figures.FIGURES:
        for needed in figures.FIGURES[name]:
            assert table_path(REFERENCE, needed).exists() or needed in MADE


def test_no_module_has_the_name_of_a_figure_of_another() -> None:
    """A module of the package, once imported, would take the place of a function of its name."""
    modules = {path.stem for path in Path(figures.__file__).parent.glob("*.py")}
    assert not modules & set(figures.__all__)
