"""What each of Axon's defects does: single repairs, rates beside a reference's, and the last steps of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from xor_study.analysis.axon import ADAM, BROKEN, NEWEST, REPAIRED, SETTINGS, SWITCHES
from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import SIGNIFICANT, holm, paired, two_samples, wilson
from xor_study.engines import train
from xor_study.errors import StudyError
from xor_study.model.data import CORNERS
from xor_study.training.cohorts import cohorts
from xor_study.training.corners import factors
from xor_study.training.spec import RunSpec
from xor_study.training.table import table_of

REFERENCE: dict[str, dict[str, Any]] = {
    "061": BROKEN,
    "061_stable_sigmoid": BROKEN | {"loss.sigmoid_gradient": "stable"},
    "clipfixed": BROKEN | {"loss.clip_gradient": "correct"},
    "main": NEWEST,
}
"""The variants of xla_statistics.json as switches."""

FAILURES = {"nan": ["nonfinite"], "divergence": ["diverged", "nonfinite"]}
"""What a repair may cure, by the outcomes it removes."""


def repairs(study: Study) -> pd.DataFrame:
    """Return what each single repair of the broken loss cures, paired by seed.

    A repair cures NaN (or divergence, which includes NaN) if no run has it any more and McNemar's exact test, adjusted
    for the number of comparisons by Holm's method, finds the difference significant at 1 %.

    Returns:
        Columns optimizer, lr, repair, n (pairs) and, of NaN and of divergence: the share before and after, p, p after
        Holm's correction, and whether it is cured ("yes", "no" or "nothing to cure").

    Raises:
        StudyError: if a cell of `study=mechanism` is missing.
    """
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS.values():
        for switch in SWITCHES:
            repaired = BROKEN | {switch: REPAIRED[switch]}
            pair = study.pairs(study.one(**BROKEN, **setting), study.one(**repaired, **setting))
            row = setting | {"repair": f"{switch}={REPAIRED[switch]}", "n": len(pair[0])}
            for what, outcomes in FAILURES.items():
                before, after = (runs["outcome"].isin(outcomes).to_numpy() for runs in pair)
                row |= {f"{what}_before": before.mean(), f"{what}_after": after.mean()}
                row[f"{what}_p"] = paired(before, after)
            rows.append(row)
    table = pd.DataFrame(rows)
    adjusted = np.split(np.array(holm([p for what in FAILURES for p in table[f"{what}_p"]])), len(FAILURES))
    for what, p in zip(FAILURES, adjusted, strict=True):
        table[f"{what}_p_holm"] = p
        cured = (table[f"{what}_after"] == 0) & (p < SIGNIFICANT)
        nothing = table[f"{what}_before"] == 0
        table[f"cures_{what}"] = np.where(nothing, "nothing to cure", np.where(cured, "yes", "no"))
    return table


def rates(study: Study, reference: Mapping[str, Any]) -> pd.DataFrame:
    """Return our rates beside those of a reference, as two independent samples.

    Args:
        study: our runs; of the reference only the `SETTINGS` that it has are compared.
        reference: the content of xla_statistics.json.

    Returns:
        Columns optimizer, lr, variant; what is counted; rate, low, high and n here and there; Fisher's exact p, and
        adjusted by Holm's method.

    Raises:
        StudyError: if the study has no setting of the reference.
    """
    rows = []
    for theirs in reference["results"]:
        setting = {"optimizer": ADAM if theirs["adam"] else "sgd", "lr": theirs["lr"]}
        members = study.pooled(study.where(**REFERENCE[theirs["variant"]], **setting))
        if setting not in SETTINGS.values() or members.empty:
            continue
        onset = members["first_nonfinite_step"]
        counted = {"nan by step 1000": (onset <= 1000, theirs["frac_nan_by_1000"])}
        if int((members["epochs"] * members["iterations"]).iloc[0]) == theirs["steps"]:
            counted["nan by the end"] = (onset.notna(), theirs["frac_nan_by_end"])
            counted["solved"] = (members["outcome"] == "solved", theirs["frac_xor_solved"])
        for what, (here, share) in counted.items():
            counts = {"here": (int(here.sum()), len(members))}
            counts["there"] = (round(share * theirs["seeds"]), theirs["seeds"])
            row = setting | {"variant": theirs["variant"], "what": what}
            for name, (count, total) in counts.items():
                low, high = wilson(count, total)
                row |= {f"{name}": count / total, f"{name}_low": low, f"{name}_high": high, f"{name}_n": total}
            successes, trials = zip(*counts.values(), strict=True)
            rows.append(row | {"p": two_samples(successes, trials)})
    if not rows:
        raise StudyError("no setting of the reference was run here")
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(list(table["p"]))
    return table


def typical_run(study: Study) -> pd.Series[Any]:
    """Return the run with Axon 0.6.1's loss and SGD at 0.01 whose onset is the median of those that go to NaN.

    Raises:
        StudyError: if none goes to NaN.
    """
    runs = study.runs_of(study.one(**BROKEN))
    broken = runs.dropna(subset="first_nonfinite_step").sort_values("first_nonfinite_step", kind="stable")
    if broken.empty:
        raise StudyError("no run with SGD at rate 0.01 and broken semantics goes to NaN")
    return broken.iloc[len(broken) // 2]


def anatomy(spec: RunSpec, onset: int, last: int = 15) -> pd.DataFrame:
    """Return the last steps of a run that goes to NaN, a row for each step and corner of the inputs.

    Args:
        spec: the run, which is trained again.
        onset: the step at which it goes to NaN, from 1.
        last: how many steps up to that one.

    Returns:
        Columns step, x1, x2, logit (z), prediction (p), upstream (the gradient with respect to p of one sample in the
        batch), exponential (e^-z), sigmoid_gradient (e^-z p p) and gradient (upstream times sigmoid_gradient), all in
        float32.

    Raises:
        StudyError: if the run does not have hidden logits and the exponential sigmoid gradient.
    """
    if spec.loss_logits_visible is not False or spec.loss_sigmoid_gradient != "exponential":
        raise StudyError("anatomy: only of runs with loss.logits_visible=false loss.sigmoid_gradient=exponential")
    steps = range(max(1, onset - last + 1), onset + 1)
    result = train(spec.replace(epochs=1, iterations=onset), engine="vmap", snapshots=steps)
    (cohort,) = cohorts(table_of([spec]))
    x1, x2 = zip(*CORNERS, strict=True)
    rows = []
    for step in steps:
        logit = result.snapshots[step].logits[0]
        prediction, upstream, slope, gradient = factors(cohort.program, cohort.program.constants["loss"], logit)
        values = {"logit": logit, "prediction": prediction, "upstream": upstream, "exponential": torch.exp(-logit)}
        values |= {"sigmoid_gradient": slope, "gradient": gradient}
        columns = {name: value.numpy() for name, value in values.items()}
        rows.append(pd.DataFrame({"step": step, "x1": x1, "x2": x2} | columns))
    return pd.concat(rows, ignore_index=True)
