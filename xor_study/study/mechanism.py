"""What the mechanism study shows: which of Axon's defects does what, and whether our rates are those of a reference.

Everything here reads the table of runs of `-m study=mechanism` but `anatomy`, which trains one run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from xor_study.analysis import axon
from xor_study.analysis.axon import BROKEN, NEWEST, REPAIRED, SWITCHES
from xor_study.analysis.statistics import holm, paired, two_samples, wilson
from xor_study.engines import train
from xor_study.errors import StudyError
from xor_study.model.data import CORNERS, TARGETS
from xor_study.model.gradients import clipped_gradient, exponential_sigmoid_gradient
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import RunSpec

SETTING = ["optimizer", "lr"]

REFERENCE: dict[str, dict[str, Any]] = {
    "061": BROKEN,
    "061_stable_sigmoid": BROKEN | {"loss.sigmoid_gradient": "stable"},
    "clipfixed": BROKEN | {"loss.clip_gradient": "correct"},
    "main": NEWEST,
}
"""The variants of xla_statistics.json as switches."""

FAILURES = {"nan": ["nonfinite"], "divergence": ["diverged", "nonfinite"]}
"""What a repair may cure, by the outcomes it takes away."""

SIGNIFICANT = 0.01


def of_study(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that belong to the mechanism study.

    Raises:
        StudyError: if there are none.
    """
    members = runs[runs["loss"] == axon.LOSS]
    if members.empty:
        raise StudyError(f"no run has loss={axon.LOSS}; make some with -m study=mechanism")
    return members


def _where(runs: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    for column, value in wanted.items():
        runs = runs[runs[column] == value]
    return runs


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each outcome in each cell, with Wilson's interval: columns n, <outcome>, _low, _high."""
    rows = []
    for cell, members in of_study(runs).groupby([*SETTING, *SWITCHES], sort=False):
        row = dict(zip([*SETTING, *SWITCHES], cell, strict=True)) | {"n": len(members)}
        for outcome in OUTCOMES:
            count = int((members["outcome"] == outcome).sum())
            low, high = wilson(count, len(members))
            row |= {outcome: count / len(members), f"{outcome}_low": low, f"{outcome}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def repairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each single repair of the broken loss cures, paired by seed.

    A repair cures NaN (or divergence, which includes NaN) if no run has it any more and McNemar's exact test, adjusted
    for the number of comparisons by Holm's method, finds the difference significant at 1 %.
    """
    rows: list[dict[str, Any]] = []
    for setting, members in of_study(runs).groupby(SETTING, sort=False):
        broken = _where(members, BROKEN).set_index("seed")
        for switch in SWITCHES:
            repaired = _where(members, BROKEN | {switch: REPAIRED[switch]}).set_index("seed").reindex(broken.index)
            if broken.empty or repaired["outcome"].isna().any():
                raise StudyError(f"{switch}: not every seed was run broken and repaired; use the whole study=mechanism")
            row = dict(zip(SETTING, setting, strict=True)) | {
                "repair": f"{switch}={REPAIRED[switch]}",
                "n": len(broken),
            }
            for what, outcomes in FAILURES.items():
                before, after = (table["outcome"].isin(outcomes) for table in (broken, repaired))
                row |= {
                    f"{what}_before": before.mean(),
                    f"{what}_after": after.mean(),
                    f"{what}_p": paired(before, after),
                }
            rows.append(row)
    table = pd.DataFrame(rows)
    adjusted = holm([p for what in FAILURES for p in table[f"{what}_p"]])
    for place, what in enumerate(FAILURES):
        table[f"{what}_p_holm"] = adjusted[place * len(table) : (place + 1) * len(table)]
        cured = (table[f"{what}_after"] == 0) & (table[f"{what}_p_holm"] < SIGNIFICANT)
        nothing = table[f"{what}_before"] == 0
        table[f"cures_{what}"] = np.where(nothing, "nothing to cure", np.where(cured, "yes", "no"))
    return table


def rates(runs: pd.DataFrame, reference: Mapping[str, Any]) -> pd.DataFrame:
    """Return our rates beside those of a reference (xla_statistics.json), as two independent samples.

    Columns: which cell; what is counted; rate, low, high and n here and there; Fisher's exact p, and adjusted by Holm's
    method. Settings of the reference that were not run here are left out.
    """
    rows = []
    for found in reference["results"]:
        setting = {"optimizer": "polaris_adam" if found["adam"] else "sgd", "lr": found["lr"]}
        members = _where(of_study(runs), setting | REFERENCE[found["variant"]])
        if members.empty:
            continue
        steps = int((members["epochs"] * members["iterations"]).iloc[0])
        onset = members["first_nonfinite_step"]
        counted = {"nan by step 1000": (onset <= 1000, found["frac_nan_by_1000"])}
        if steps == found["steps"]:
            counted["nan by the end"] = (onset.notna(), found["frac_nan_by_end"])
            counted["solved"] = (members["outcome"] == "solved", found["frac_xor_solved"])
        for what, (here, there) in counted.items():
            ours, n, theirs, m = int(here.sum()), len(members), round(there * found["seeds"]), found["seeds"]
            row = setting | {"variant": found["variant"], "what": what}
            for name, count, total in (("here", ours, n), ("there", theirs, m)):
                low, high = wilson(count, total)
                row |= {f"{name}": count / total, f"{name}_low": low, f"{name}_high": high, f"{name}_n": total}
            rows.append(row | {"p": two_samples((ours, theirs), (n, m))})
    if not rows:
        raise StudyError("no setting of the reference was run here")
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(list(table["p"]))
    return table


def curves(runs: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Return median and quartiles of the recorded losses of each cell: columns step, n, finite, median, low, high.

    They are those of the runs whose loss is still finite, `finite` of n.
    """
    rows = []
    for cell, members in of_study(runs).groupby([*SETTING, *SWITCHES], sort=False):
        values = losses.loc[members["run_id"]].to_numpy()
        of_cell = pd.DataFrame(values, columns=losses.columns).replace([np.inf, -np.inf], np.nan)
        found = of_cell.quantile([0.25, 0.5, 0.75]).T.set_axis(["low", "median", "high"], axis=1)
        labels: dict[str, Any] = dict(zip([*SETTING, *SWITCHES], cell, strict=True))
        for column, value in labels.items():
            found[column] = value
        found["n"], found["finite"] = len(members), of_cell.count()
        rows.append(found.rename_axis("step").reset_index())
    return pd.concat(rows, ignore_index=True)[[*SETTING, *SWITCHES, "step", "n", "finite", "median", "low", "high"]]


def typical_run(runs: pd.DataFrame) -> pd.Series[Any]:
    """Return the broken run, at SGD's own rate, whose onset is the median of those that go to NaN."""
    broken = _where(of_study(runs), BROKEN | {"optimizer": "sgd", "lr": 0.01})
    broken = broken.dropna(subset="first_nonfinite_step").sort_values("first_nonfinite_step", kind="stable")
    if broken.empty:
        raise StudyError("no run with SGD at rate 0.01 and broken semantics goes to NaN")
    return broken.iloc[len(broken) // 2]


def anatomy(spec: RunSpec, onset: int, last: int = 15, engine: str = "vmap") -> pd.DataFrame:
    """Return the last steps of a run that goes to NaN at step `onset`, a row for each step and corner of the inputs.

    Columns: step, x1, x2, logit (z), prediction (p), upstream (the gradient with respect to p of one sample in the
    batch), exponential (e^-z), sigmoid_gradient (e^-z p p) and gradient (upstream times sigmoid_gradient), in float32.

    Raises:
        StudyError: if the run does not have hidden logits and the exponential sigmoid gradient.
    """
    if spec.loss_logits_visible is not False or spec.loss_sigmoid_gradient != "exponential":
        raise StudyError("anatomy: only of runs with loss.logits_visible=false loss.sigmoid_gradient=exponential")
    steps: Iterable[int] = range(max(1, onset - last + 1), onset + 1)
    result = train(spec.replace(epochs=1, iterations=onset), engine=engine, snapshots=steps)
    target = torch.tensor(TARGETS).float()
    share = torch.tensor(1 / (len(CORNERS) if spec.batch == "full" else int(spec.batch)))
    rows = []
    for step in steps:
        logit = result.snapshots[step].logits[0]
        prediction = torch.sigmoid(logit)
        upstream = clipped_gradient(prediction, target, share, squared=spec.loss_clip_gradient == "squared")
        sigmoid_gradient = exponential_sigmoid_gradient(logit, prediction)
        table = {
            "step": step,
            "x1": [x1 for x1, _ in CORNERS],
            "x2": [x2 for _, x2 in CORNERS],
            "logit": logit,
            "prediction": prediction,
            "upstream": upstream,
            "exponential": torch.exp(-logit),
            "sigmoid_gradient": sigmoid_gradient,
            "gradient": upstream * sigmoid_gradient,
        }
        rows.append(pd.DataFrame({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in table.items()}))
    return pd.concat(rows, ignore_index=True)
