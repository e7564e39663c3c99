"""Remedies, all measured by one yardstick: what each does to the failing configuration, and to a sound one.

The failing configuration is Axon 0.6.1's, the sound one Axon 0.7.0's, both with SGD at 0.01; a remedy changes one thing
in both, with the same seeds. The words follow from the intervals by a rule that is the same for all (`failing_word`,
`sound_word`): "no NaN" means that the share of NaN is below 5 % with 95 % confidence, "learns" that more than 95 %
solve XOR, "does not learn" that fewer than 5 % do. A difference counts if McNemar's p, adjusted for all remedies by
Holm's method, is below 1 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xor_study.analysis.axon import ADAM, BROKEN, LOSS, NEWEST
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import SIGNIFICANT, holm, paired_difference, wilson
from xor_study.errors import StudyError
from xor_study.study.causes import MOST, SOME
from xor_study.study.effects import steps_between

FAILING_WORDS = ("cures", "masks", "reduces", "no effect", "worsens", "undecided")
SOUND_WORDS = ("helps", "harms", "no effect", "undecided")


class Remedy(NamedTuple):
    """A change that is recommended.

    Attributes:
        claim: the article's claim that recommends it, or "".
        failing: the values that it gives the failing configuration.
        sound: those that it gives the sound one, if they are others.
    """

    claim: str
    failing: Mapping[str, Any]
    sound: Mapping[str, Any] | None = None


def _slow(lr: float, iterations: int) -> Remedy:
    return Remedy("practice_small_rate", {"lr": lr, "iterations": iterations})


REMEDIES: dict[str, Remedy] = {
    "Axon 0.7.0": Remedy("fix_newest_version", NEWEST),
    "SGD at 0.01": Remedy("fix_sgd_0_01", {"lr": 0.01}),
    "Adam at 0.001": Remedy("fix_adam", {"optimizer": ADAM, "lr": 0.001}),
    "SGD at 0.003": Remedy("practice_small_rate", {"lr": 0.003}),
    "SGD at 0.001": Remedy("practice_small_rate", {"lr": 0.001}),
    "SGD at 0.0003, longer": _slow(0.0003, 13333),
    "SGD at 0.0001, longer": _slow(0.0001, 40000),
    "relu": Remedy("practice_relu", {"activation.hidden": "relu"}),
    "relu, He's weights": Remedy("practice_relu", {"activation.hidden": "relu", "init": "he_normal"}),
    "clipping to norm 1": Remedy("practice_gradient_clipping", {"clip": "norm", "clip.bound": 1.0}),
    "clipping to norm 0.1": Remedy("practice_gradient_clipping", {"clip": "norm", "clip.bound": 0.1}),
    "clipping values to 1": Remedy("practice_gradient_clipping", {"clip": "value", "clip.bound": 1.0}),
    "He's uniform weights": Remedy("practice_initialization", {"init": "he_uniform"}),
    "LeCun's normal weights": Remedy("practice_initialization", {"init": "lecun_normal"}),
    "orthogonal weights": Remedy("practice_initialization", {"init": "orthogonal"}),
    "zero weights": Remedy("practice_initialization", {"init": "zeros"}),
    "RMSprop at 0.01": Remedy("advice_optimizers", {"optimizer": "rmsprop", "lr": 0.01}),
    "Adagrad at 0.01": Remedy("advice_optimizers", {"optimizer": "adagrad", "lr": 0.01}),
    "mean squared error": Remedy("", {"loss": "mean_squared_error", "activation.output": "nx_sigmoid"}),
    "cross-entropy of logits": Remedy(
        "", {"loss": "binary_cross_entropy_with_logits", "activation.output": "nx_sigmoid"}
    ),
    "correct clip gradient": Remedy("", BROKEN | {"loss.clip_gradient": "correct"}, NEWEST),
    "stable sigmoid gradient": Remedy("", BROKEN | {"loss.sigmoid_gradient": "stable"}, NEWEST),
    "float64": Remedy("", {"dtype": "float64"}),
    "full batches": Remedy("", {"batch": "full"}),
    "32 hidden units": Remedy("", {"hidden": 32}),
}
"""The article's remedies, upstream's workaround (another loss), single repairs, and what a practitioner would try.

"Longer" stands for 40 / lr steps.
"""


def _with(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with a change; another loss replaces the switches of Axon's."""
    other_loss = change.get("loss", LOSS) != LOSS
    return {key: value for key, value in base.items() if not other_loss or not key.startswith("loss")} | dict(change)


def remedies(study: Study) -> pd.DataFrame:
    """Return what each of `REMEDIES` does to the failing and to the sound configuration.

    Returns:
        A row for the failing configuration as reported and one for each remedy: columns remedy, claim, n; nan and
        solved of the failing configuration, sound_nan and sound_solved of the sound one, each with the ends of Wilson's
        95 % interval (`_low`, `_high`); sound_steps, by how many steps the sound one solves XOR later (median of the
        seeds that solve it with and without), with its interval; word and sound_word.

    A remedy whose cells are not in the study is left out.

    Raises:
        StudyError: if the configurations themselves are not in it.
    """
    bases = study.one(**BROKEN), study.one(**NEWEST)
    rows = [_row(study, "as reported", "", bases, bases)]
    for name, remedy in REMEDIES.items():
        with suppress(StudyError):
            rows.append(_row(study, name, remedy.claim, _cells(study, remedy), bases))
    table = pd.DataFrame(rows)
    for name in ("nan", "solved", "sound_nan", "sound_solved", "sound_steps"):
        table[f"{name}_p"] = holm(list(table[f"{name}_p"]))
    adjusted: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    table.insert(3, "word", list(map(failing_word, adjusted)))
    table.insert(4, "sound_word", list(map(sound_word, adjusted)))
    return table


def _cells(study: Study, remedy: Remedy) -> tuple[int, int]:
    """Return the cells of the failing and of the sound configuration with a remedy."""
    sound = remedy.failing if remedy.sound is None else remedy.sound
    return study.one(**_with(BROKEN, remedy.failing)), study.one(**_with(NEWEST, sound))


def cells_of(study: Study, claim: str) -> list[int]:
    """Return the cells that decide a claim, with and without its remedies; none if it has none."""
    found: list[int] = []
    for remedy in REMEDIES.values():
        if claim == remedy.claim or (claim.startswith("verify") and remedy.claim.startswith("fix")):
            with suppress(StudyError):
                found += _cells(study, remedy)
    return found


def _row(study: Study, name: str, claim: str, cells: tuple[int, int], bases: tuple[int, int]) -> dict[str, Any]:
    measured = study.once(("remedy", cells, bases), lambda: _measured(study, cells, bases))
    return {"remedy": name, "claim": claim, "n": len(study.runs_of(cells[0]))} | measured


def _measured(study: Study, cells: tuple[int, int], bases: tuple[int, int]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for prefix, base, cell in zip(("", "sound_"), bases, cells, strict=True):
        before, after = study.pairs(base, cell)
        for what, outcome in (("nan", "nonfinite"), ("solved", "solved")):
            count = int((after["outcome"] == outcome).sum())
            effect = paired_difference(before["outcome"] == outcome, after["outcome"] == outcome)
            row |= {f"{prefix}{what}": count / len(after), f"{prefix}{what}_change": effect.value}
            row |= dict(zip((f"{prefix}{what}_low", f"{prefix}{what}_high"), wilson(count, len(after)), strict=True))
            row[f"{prefix}{what}_p"] = effect.p
    steps, _ = steps_between(study, bases[1], cells[1])
    return row | {
        "sound_steps": steps.value,
        "sound_steps_low": steps.low,
        "sound_steps_high": steps.high,
        "sound_steps_p": steps.p,
    }


def failing_word(row: Mapping[str, Any]) -> str:
    """Return what a remedy does to the failing configuration.

    "cures": no NaN, and it learns. "masks": no NaN, and it does not learn. "reduces": no NaN and some learn, or
    significantly fewer NaN. "worsens": significantly more NaN. "no effect": no significant change in the share of NaN,
    which is known to 5 percentage points, and it does not learn. Else, or where there are too few runs to tell,
    "undecided".

    Args:
        row: of `remedies`.
    """
    learns, stalls = row["solved_low"] > MOST, row["solved_high"] < SOME
    if row["nan_high"] < SOME:
        some = row["solved_low"] > SOME and row["solved_high"] < MOST
        return "cures" if learns else "masks" if stalls else "reduces" if some else "undecided"
    if not row["nan"]:
        return "undecided"
    if row["nan_p"] < SIGNIFICANT:
        return "reduces" if row["nan_change"] < 0 else "worsens"
    return "no effect" if stalls and row["nan_high"] - row["nan_low"] < 2 * SOME else "undecided"


def sound_word(row: Mapping[str, Any]) -> str:
    """Return what a remedy does to the sound configuration.

    "harms": it solves XOR significantly less often, or significantly later; "helps": more often or earlier, and neither
    of these. Else "no effect".

    Args:
        row: of `remedies`.
    """
    changes = [
        np.sign(row[f"sound_{name}"]) * sign
        for name, sign, p in (
            ("solved_change", 1, row["sound_solved_p"]),
            ("nan_change", -1, row["sound_nan_p"]),
            ("steps", -1, row["sound_steps_p"]),
        )
        if p < SIGNIFICANT
    ]
    return "harms" if -1 in changes else "helps" if 1 in changes else "no effect"


def of_claim(table: pd.DataFrame, claim: str) -> pd.DataFrame:
    """Return the rows of `remedies` that a claim recommends, the best first.

    The best is the one with the best word, and among equals with the most solved, then the fewest NaN.

    Args:
        table: of `remedies`.
        claim: its name.

    Raises:
        StudyError: if there are none.
    """
    rows = table[table["claim"] == claim]
    if rows.empty:
        raise StudyError(f"no remedy of {claim} was run")
    order = rows["word"].map({word: rank for rank, word in enumerate(FAILING_WORDS)})
    ranked = rows.assign(order=order).sort_values(
        ["order", "solved", "nan"], ascending=[True, False, True], kind="stable"
    )
    return ranked.drop(columns="order")
