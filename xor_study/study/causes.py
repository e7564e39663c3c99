"""Causes: each suspect varied alone, on the failing configuration and on sound ones.

A seed decides all that is random in a run, and a cell has a run for each seed. So the runs of one seed in two cells are
the potential outcomes of one unit, both known, and Pearl's probabilities of causation (Pearl 1999, "Probabilities of
causation: three counterfactual interpretations and their identification", Synthese 121) are shares of pairs:

- necessity (PN): of the seeds that fail as reported, the share that does not fail with the change;
- sufficiency (PS): of the seeds that don't fail in the sound configuration, the share that fails with the change;
- both (PNS): of all seeds, the share that fails as reported and not with the change.

"Fails" means NaN, as reported. What avoids NaN may still not train, so the share of seeds that fail to solve XOR as
reported and solve it with the change is counted as well: the cure.

The rule for verdicts, which was written down before the results (`judge`), uses intervals that hold together for all
changes of a suspect (Bonferroni). A suspect is

- necessary if some change cures more than 95 % of the seeds: without it there would have been no failure;
- sufficient if some change turns more than 5 % of the seeds of a sound configuration into NaN;
- "cause" if both; "necessary" or "sufficient" if one of them;
- "symptom only" if neither, but some change takes NaN from more than 95 % of the seeds that have it;
- "not a cause" if it is shown to be none of these; else "undecided".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xor_study.analysis.axon import BROKEN, LOSS, NEWEST, SWITCHES
from xor_study.analysis.cells import CELL, Study
from xor_study.analysis.statistics import wilson
from xor_study.errors import StudyError, typed
from xor_study.training.spec import GROUPS

CONTEXTS: dict[str, dict[str, Any]] = {"failing": BROKEN, "sound": NEWEST, "pytorch": {}}
"""The configurations that changes are made to: Axon 0.6.1's, Axon 0.7.0's, and PyTorch's."""

MOST, SOME = 0.95, 0.05
"""Shares of seeds: what a cure must exceed, and what makes a suspect sufficient; for a remedy, more than the first have
to learn, and with fewer than the second there is no NaN or no learning."""

MEANINGS = {
    "cause": "necessary and sufficient, so a cause",
    "necessary": "necessary but not sufficient (another choice cures, this one alone does not fail)",
    "sufficient": "sufficient but not necessary",
    "symptom only": "neither, but with some choice the runs stay finite without learning",
    "not a cause": "neither necessary nor sufficient",
    "undecided": "undecided",
}
"""What a verdict on a suspect says."""

CLIPPED = "binary_cross_entropy_clipped"

OTHER_LOSSES = [name for name in GROUPS["loss"] if name not in ("binary_cross_entropy", CLIPPED, LOSS)]

Change = Mapping[str, Any]
"""Values by key; the value `...` lets a key be anything."""

_ANY: Any = ...


class Suspect(NamedTuple):
    """What may be changed.

    Attributes:
        claim: the article's claim about it, or "" for what the article does not name.
        changes: alternatives for each of `CONTEXTS`; a context that is missing has those of "failing".
    """

    claim: str
    changes: Mapping[str, list[Change]]


def _in_each(*changes: Change) -> dict[str, list[Change]]:
    return {"failing": list(changes)}


_INITIALIZER = {key: _ANY for key in CELL if key == "init" or key.startswith("init.")}
_CLIPPED_BY_NX: Change = {"loss": CLIPPED, "loss.clip_gradient": "squared", "activation.output": "nx_sigmoid"}

SUSPECTS: dict[str, Suspect] = {
    "learning rate": Suspect("cause_learning_rate", _in_each({"lr": _ANY, "iterations": _ANY})),
    "initialization": Suspect(
        "cause_initialization", _in_each(_INITIALIZER, {"gain": _ANY}, {"init": "normal", "init.scale": _ANY})
    ),
    "loss": Suspect(
        "cause_loss",
        {
            # With Nx's sigmoid, which both versions of Axon compute with. The loss that clips is not among them: it is
            # what 0.6.1's cross-entropy becomes on hidden logits, so it counts with the defects.
            "failing": [
                {"loss": ["binary_cross_entropy", *OTHER_LOSSES], "loss.delta": _ANY, "activation.output": "nx_sigmoid"}
            ],
            "pytorch": [{"loss": [CLIPPED, *OTHER_LOSSES], "loss.eps": _ANY, "loss.delta": _ANY}],
        },
    ),
    "activation pairing": Suspect(
        "cause_activation_pairing",
        {
            "failing": [
                {"activation.hidden": _ANY},
                {"activation.hidden": "relu", "init": "he_normal"},
                # Another output has no logits to hide, so the loss is the one that clips, with Nx's clip.
                {**_CLIPPED_BY_NX, "activation.output": "hard_sigmoid"},
            ],
            "sound": [{"activation.hidden": _ANY}, {"activation.hidden": "relu", "init": "he_normal"}],
            "pytorch": [
                {"activation.hidden": _ANY},
                {"activation.output": "hard_sigmoid"},
                {"activation.hidden": "relu", "init": "he_normal"},
            ],
        },
    ),
    "gradient clipping": Suspect("", _in_each({"clip": _ANY, "clip.bound": _ANY})),
    "optimizer": Suspect("", _in_each({"optimizer": _ANY})),
    "precision": Suspect("", _in_each({"dtype": _ANY})),
    "batch size": Suspect("", _in_each({"batch": _ANY})),
    "width": Suspect("", _in_each({"hidden": _ANY})),
    "Axon's defects": Suspect(
        "",
        {
            "failing": [{"loss": LOSS, **dict.fromkeys(SWITCHES, _ANY)}],
            # Into a sound configuration the defects are put all together: alone none of them acts. Nx's two suffice
            # where the loss itself clips, in any version of Axon.
            "sound": [BROKEN, _CLIPPED_BY_NX],
            "pytorch": [BROKEN, _CLIPPED_BY_NX],
        },
    ),
}
"""What is varied: the article's four suspects, what else a practitioner would change, and the defects themselves."""


def _cells(study: Study, context: str, suspect: Suspect) -> dict[str, int]:
    """Return the cells of a suspect's changes to a context, by the change as one would type it."""
    base = CONTEXTS[context]
    found: dict[str, int] = {}
    start = study.row(**base)
    for change in suspect.changes.get(context, suspect.changes["failing"]):
        free = [key for key, value in change.items() if value is _ANY]
        fixed = {key: value for key, value in change.items() if value is not _ANY}
        # A loss replaces the switches of Axon's.
        kept = {key: value for key, value in base.items() if "loss" not in change or not key.startswith("loss")}
        for cell, row in study.where(*free, **(kept | fixed)).to_dict("index").items():
            name = _name(start, row, change)
            # Of a rate with two numbers of steps, the larger one: too few steps are no cure.
            if name and (name not in found or row["iterations"] > study.cells["iterations"][found[name]]):
                found[name] = int(str(cell))
    return found


def _name(start: pd.Series[Any], row: Mapping[Any, Any], change: Change) -> str:
    """Return the values in which a cell differs from the one it started from, as one would type them."""
    if change is BROKEN or change is _CLIPPED_BY_NX:
        return "all three" if change is BROKEN else "Nx's two, with a loss that clips"
    # What follows from the rest of the change: more steps at small rates, and Axon's arithmetic.
    implied = {"iterations", *(("loss.clip_gradient",) if change.get("loss") != LOSS else ())}
    named = []
    for key in change:
        one, other = start[key], row[key]
        if key not in implied and not pd.isna(other) and (pd.isna(one) or one != other) and other != "nx_sigmoid":
            named.append(f"{key}={typed(other)}")
    return " ".join(named)


def cells_of(study: Study, claim: str) -> list[int]:
    """Return the cells that decide a claim about a suspect; none of another claim."""
    own = [suspect for suspect in SUSPECTS.values() if suspect.claim and suspect.claim == claim]
    return [cell for suspect in own for context in CONTEXTS for cell in _cells(study, context, suspect).values()]


def suspects(study: Study) -> pd.DataFrame:
    """Return the probabilities of causation of each change of each suspect.

    Returns:
        Columns suspect, level (the change as one would type it), n (pairs with the failing configuration), nan and
        solved (shares with the change there), and of each of pn, pns, cure, ps and ps_pytorch the share, the ends of
        Wilson's 95 % interval (`_low`, `_high`), and of how many pairs (`_of`); missing where the change was not made.

    Raises:
        StudyError: if a context was not run.
    """
    rows = []
    for name, suspect in SUSPECTS.items():
        by_context = {context: _cells(study, context, suspect) for context in CONTEXTS}
        for level in dict.fromkeys(level for found in by_context.values() for level in found):
            row: dict[str, Any] = {"suspect": name, "level": level}
            for context, found in by_context.items():
                if level in found:
                    row |= _probabilities(study, context, found[level])
            rows.append(row)
    return pd.DataFrame(rows)


def _probabilities(study: Study, context: str, cell: int) -> dict[str, Any]:
    return study.once(("causation", context, cell), lambda: _counted(study, context, cell))


def _counted(study: Study, context: str, cell: int) -> dict[str, Any]:
    before, after = study.pairs(study.one(**CONTEXTS[context]), cell)
    nan_before, nan = ((runs["outcome"] == "nonfinite").to_numpy() for runs in (before, after))
    solved_before, solved = ((runs["outcome"] == "solved").to_numpy() for runs in (before, after))
    if context != "failing":
        return _share("ps" if context == "sound" else "ps_pytorch", nan[~nan_before])
    result: dict[str, Any] = {"n": len(nan), "nan": nan.mean(), "solved": solved.mean()}
    result |= _share("pn", ~nan[nan_before]) | _share("pns", nan_before & ~nan)
    return result | _share("cure", solved[~solved_before])


def _share(name: str, happened: np.ndarray) -> dict[str, Any]:
    count, n = int(happened.sum()), len(happened)
    low, high = wilson(count, n)
    share = count / n if n else np.nan
    return {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_of": n}


class Judgement(NamedTuple):
    """What the rule says of a suspect.

    Attributes:
        verdict: see the module's docstring.
        necessary, sufficient, symptom: whether each is shown (True), refuted (False), or open (None).
        best, worst: the rows with the largest share of cures (then of avoided NaN), and with the largest sufficiency.
    """

    verdict: str
    necessary: bool | None
    sufficient: bool | None
    symptom: bool | None
    best: pd.Series[Any]
    worst: pd.Series[Any]


def judge(rows: pd.DataFrame) -> Judgement:
    """Apply the rule to the changes of one suspect.

    Args:
        rows: of `suspects`.

    Raises:
        StudyError: if there are none.
    """
    if rows.empty:
        raise StudyError("no change of the suspect was run")
    necessary, symptom = _exceeds(rows, "cure", MOST), _exceeds(rows, "pn", MOST)
    sufficient = _any(_exceeds(rows, name, SOME) for name in ("ps", "ps_pytorch"))
    if necessary or sufficient:
        verdict = "cause" if necessary and sufficient else "necessary" if necessary else "sufficient"
        # What one of the two decides must not hide that the other is open.
        verdict = "undecided" if None in (necessary, sufficient) and verdict != "cause" else verdict
    elif necessary is None or sufficient is None:
        verdict = "undecided"
    else:
        verdict = {True: "symptom only", False: "not a cause", None: "undecided"}[symptom]
    by_cure = rows.sort_values(["cure", "pn", "n"], ascending=False, kind="stable", na_position="last")
    by_ps = rows.assign(most=rows[["ps", "ps_pytorch"]].max(axis=1)).sort_values("most", ascending=False, kind="stable")
    return Judgement(verdict, necessary, sufficient, symptom, by_cure.iloc[0], by_ps.iloc[0])


def _exceeds(rows: pd.DataFrame, name: str, bound: float) -> bool | None:
    """Return whether some change's share exceeds a bound (True), none does (False), or neither is shown (None)."""
    ends = list(simultaneous(rows, name))
    return _any(True if low > bound else False if high <= bound else None for low, high in ends)


def simultaneous(rows: pd.DataFrame, name: str) -> Iterator[tuple[float, float]]:
    """Yield the ends of intervals of a probability that hold together for all changes in some rows of `suspects`."""
    known = rows.dropna(subset=name)
    for share, n in zip(known[name], known[f"{name}_of"].astype(int), strict=True):
        yield wilson(round(share * n), n, len(known))


def _any(values: Iterator[bool | None] | Any) -> bool | None:
    """Return whether some value is true, in the logic that knows an unknown."""
    known = list(values)
    return True if True in known else None if None in known else False
