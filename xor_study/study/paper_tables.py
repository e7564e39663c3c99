"""The tables of the paper: what they are read from, and their cells in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

import pandas as pd

from xor_study.analysis.axon import REPAIRED, SWITCHES
from xor_study.errors import StudyError, typed
from xor_study.study import causes
from xor_study.study.claims import CLAIMS
from xor_study.study.document import Table
from xor_study.study.report import Tables
from xor_study.study.theory import AIMS, PREDICTS
from xor_study.study.versions import VERSIONS
from xor_study.study.wording import percent, plural

Row = Mapping[Any, Any]

_REPAIRS = ("Showing the logits", "A correct gradient of the clip", "A stable gradient of the sigmoid")

REPAIRS = {f"{switch}={typed(REPAIRED[switch])}": words for switch, words in zip(SWITCHES, _REPAIRS, strict=True)}
"""What each repair of one defect does, by the change as one would type it."""

TERMS = {"lr": "rate", "init": "initialization", "activation.hidden": "hidden activation"}
"""Names of settings that are no words."""


def prose(text: str) -> str:
    """Return a text of the code or of a table in the markup: settings as words or code, powers as mathematics."""
    parts = re.split(r"(`[^`]+`|\$[^$]+\$)", text)  # what is marked already stays
    return "".join(part if index % 2 else _words(part) for index, part in enumerate(parts))


_SETTING = re.compile(r"(?<![\w.])(?:\w[\w.]*=[^\s,;)]*[^\s,;.:)]|\w[\w.]*_[\w.]*\w)")


def _words(text: str) -> str:
    text = _SETTING.sub(lambda match: f"`{match[0]}`", text)
    parts = re.split(r"(`[^`]+`)", text)
    for name, words in TERMS.items():
        parts[::2] = (re.sub(rf"(?<![\w.=]){re.escape(name)}(?![\w=]|\.\w)", words, part) for part in parts[::2])
    parts[::2] = (re.sub(r"\be\^-z\b", "$e^{-z}$", part) for part in parts[::2])
    parts[::2] = (
        re.sub(r"\b(\d(?:\.\d+)?)e([+-]\d+)", lambda m: rf"${m[1]} \times 10^{{{int(m[2])}}}$", part)
        for part in parts[::2]
    )
    return "".join(parts)


def share(row: Row, name: str) -> str:
    """Return a share with its interval, "45.6 % (42.5 to 48.7)"; a dash if it is missing."""
    if pd.isna(row.get(name)):
        return "-"
    return f"{percent(row[name])} ({100 * row[f'{name}_low']:.3g} to {100 * row[f'{name}_high']:.3g})"


def statement(name: str) -> str:
    """Return what a claim says."""
    return prose((inspect.getdoc(CLAIMS[name].judge) or "").partition("\n")[0])


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], table.to_dict("records"))


WIDTH, GAP = 17.0, 0.29
"""Of the page's text and between two columns, in centimetres."""


def _wide(*weights: float) -> list[str]:
    """Return specifications of columns that break lines and fill the page, by their shares of its width."""
    unit = (WIDTH - GAP * (len(weights) - 1)) / sum(weights)
    return [rf">{{\raggedright\arraybackslash}}p{{{weight * unit:.2f}cm}}" for weight in weights]


def tables(read: Tables) -> dict[str, Table]:
    """Return the tables of the paper by name.

    Args:
        read: (name) -> a table of a reproduction.
    """
    found = {
        "versions": versions(),
        "rules": rules(),
        "emulation": emulation(read("mechanism_rates")),
        "suspects": suspects(read("suspects")),
        "factorial": factorial(read("factorial")),
        "remedies": remedies(read("remedies")),
        "verdicts": verdicts(read("claims"), read("robustness")),
        "monitors": early_warnings(read("monitors")),
        "changes": changes(read("suspects")),
    }
    try:
        return found | {"theory": theory(read("theory"))}
    except StudyError:  # a reproduction need not have it
        return found


def versions() -> Table:
    """Return the versions of the real Axon that were run."""
    rows = [
        [version.axon, version.nx, "no" if version.affected else "yes", "diverges" if version.affected else "trains"]
        for version in VERSIONS
    ]
    caption = "Versions of Axon and Nx that were run with Nx's own backend, and what they do on XOR with SGD."
    return Table(caption, ["Axon", "Nx", "loss sees logits", "on XOR"], rows, list("llll"))


def rules() -> Table:
    """Return all claims with the rules that judge them, from the docstrings of the functions that do."""
    rows = []
    for name, claim in CLAIMS.items():
        rule = (inspect.getdoc(claim.judge) or "").partition("\n")[2]
        rows.append([f"`{name}`", claim.kind, statement(name), prose(" ".join(rule.split()))])
    caption = "The statements that are judged, and by which rule. Open questions are ours, all others the article's."
    return Table(caption, ["name", "kind", "statement", "rule"], rows, _wide(2.6, 1.6, 4, 7.6))


def emulation(rates: pd.DataFrame) -> Table:
    """Return our rates beside those of the emulation on XLA."""
    variants = {
        "061": "0.6.1",
        "061_stable_sigmoid": "0.6.1, stable sigmoid",
        "clipfixed": "0.6.1, correct clip",
        "main": "0.7.0",
    }
    rows = [
        [
            f"{'SGD' if row['optimizer'] == 'sgd' else 'Adam'} {row['lr']:g}",
            variants.get(row["variant"], f"`{row['variant']}`"),
            str(row["what"]).replace("nan", "NaN"),
            f"{share(row, 'here')}, n = {row['here_n']:,}",
            f"{share(row, 'there')}, n = {row['there_n']:,}",
            f"{row['p_holm']:.2g}",
        ]
        for row in _records(rates)
    ]
    caption = "Our shares of runs beside those of an independent emulation on XLA's CPU backend, with Wilson's 95 % "
    caption += "intervals; p is that of Fisher's exact test after Holm's correction."
    return Table(caption, ["training", "Axon", "event", "here", "on XLA", "p"], rows, list("lllllr"))


def suspects(table: pd.DataFrame) -> Table:
    """Return the suspects with their probabilities of causation: of each the change that decides."""
    rows = []
    for name in dict.fromkeys(table["suspect"]):
        members = table[table["suspect"] == name]
        judged = causes.judge(members)
        sound = [share(_largest(members, column), column) for column in ("ps", "ps_pytorch")]
        made = f"{int(members['pn'].count())} / {int(members['ps'].count())} / {int(members['ps_pytorch'].count())}"
        best = judged.best.to_dict()
        shares = [share(best, column) for column in ("pn", "pns", "cure")]
        rows.append([name, made, _code(best["level"]), *shares, *sound, judged.verdict])
    header = ["suspect", "changes", "best change", "PN", "PNS", "cure", "PS, 0.7.0", "PS, PyTorch", "verdict"]
    caption = (
        "Probabilities of causation of each suspect. Changes: how many were made to the failing configuration, to Axon "
        "0.7.0's and to PyTorch's. The best change is the one on the failing configuration that most seeds solve XOR "
        "with; PN, PNS and cure are its probabilities of necessity, of both, and of solving XOR. PS is the largest "
        "probability of sufficiency of any change. Wilson's 95 % intervals, each by itself; verdicts use simultaneous "
        "ones."
    )
    return Table(caption, header, rows, _wide(1.5, 1.5, 2.6, 1.8, 1.8, 1.8, 1.8, 1.8, 1.4))


def _largest(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    known = _records(rows.dropna(subset=column))
    return max(known, key=lambda row: float(row[column]), default={})


def _code(level: str) -> str:
    """Return a change as code; words are left as they are."""
    return f"`{level}`" if "=" in level else level


def changes(table: pd.DataFrame) -> Table:
    """Return every single change with its probabilities of causation."""
    columns = ("pn", "pns", "cure", "ps", "ps_pytorch")
    rows = [[row["suspect"], _code(row["level"]), *(share(row, name) for name in columns)] for row in _records(table)]
    header = ["suspect", "change", "PN", "PNS", "cure", "PS, 0.7.0", "PS, PyTorch"]
    caption = (
        "Every single change, as one would type it, with its probabilities of causation (see [#suspects]); a dash: "
    )
    caption += "not made to that configuration."
    return Table(caption, header, rows, _wide(1.6, 4, 2, 2, 2, 2, 2))


def factorial(table: pd.DataFrame) -> Table:
    """Return the total shares of the variance of NaN and of solving XOR."""
    totals = table[table["kind"] == "total"]
    totals = totals.rename(columns={"low": "share_low", "high": "share_high"})
    by_outcome = {str(name): part.set_index("term") for name, part in totals.groupby("outcome", sort=False)}
    nan, solved = (by_outcome[name] for name in ("nonfinite", "solved"))
    order = nan.sort_values("share", ascending=False, kind="stable").index
    rows = [[prose(str(term)), *(share(part.loc[term], "share") for part in (nan, solved))] for term in order]
    caption = (
        f"Share of the variance of NaN and of solving XOR that each factor takes part in, alone or in interactions, "
        f"over {int(totals['n'].max()):,} runs of a complete design; shares add up to more than 1. Percentiles of a "
        "bootstrap over seeds."
    )
    return Table(caption, ["factor", "NaN", "solved"], rows, list("lll"))


def remedies(table: pd.DataFrame) -> Table:
    """Return the yardstick: what each remedy does to the failing and to the sound configuration."""
    rows = []
    for row in _records(table):
        steps = "-" if pd.isna(row["sound_steps"]) else f"{row['sound_steps']:+,.0f}"
        failing = [share(row, "nan"), share(row, "solved"), row["word"]]
        sound = [share(row, "sound_nan"), share(row, "sound_solved"), steps, row["sound_word"]]
        rows.append([prose(row["remedy"]), *failing, *sound])
    header = ["remedy", "NaN", "solved", "failing", "NaN, sound", "solved, sound", "steps, sound", "sound"]
    caption = (
        f"What each remedy does to the failing configuration (Axon 0.6.1) and to the sound one (Axon 0.7.0), "
        f"{_numbers_of_seeds(table['n'])} each. Shares of runs with Wilson's 95 % intervals; steps: median number of "
        "steps by which the sound one solves XOR later. The words follow by the rule for remedies."
    )
    return Table(caption, header, rows, _wide(2.6, 2.2, 2.2, 1.4, 2, 2.2, 1.4, 1.3))


def _numbers_of_seeds(n: pd.Series[Any]) -> str:
    least, most = int(n.min()), int(n.max())
    return plural(most, "seed") if least == most else f"{least:,} to {plural(most, 'seed')}"


def verdicts(claims: pd.DataFrame, subgrids: pd.DataFrame) -> Table:
    """Return all verdicts with their effects and how robust they are."""
    rows = []
    for row in _records(claims):
        effect = f"{row['effect']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        others = subgrids[(subgrids["claim"] == row["claim"]) & ~subgrids["same"].astype(bool)]
        span = f"{row['least']:.3g} to {row['most']:.3g}"
        robust = "-" if pd.isna(row["robust"]) or not row["robust"] else str(row["robust"])
        kind = CLAIMS[row["claim"]].kind if row["claim"] in CLAIMS else ""
        cells = [f"`{row['claim']}`", kind, row["verdict"], prose(effect), f"{row['n']:,}", robust, prose(span)]
        rows.append([*cells, _dependence(others)])
    header = ["claim", "kind", "verdict", "effect (95 %)", "n", "same on", "effects there", "other verdicts"]
    caption = (
        "All verdicts. Same on: on how many sub-grids the verdict is that of the whole grid; a dash: no sub-grid lacks "
        "what it reads. Effects there: the least and the largest on any sub-grid. [#rules] has statements and rules."
    )
    return Table(caption, header, rows, _wide(2.9, 1.5, 1.6, 2.4, 1, 1.2, 1.8, 3.6))


SHOWN = 3
"""Sub-grids that are named for each other verdict."""


def _dependence(others: pd.DataFrame) -> str:
    """Return on which sub-grids a verdict is another one, the first ones by name."""
    parts = []
    for verdict, rows in others.groupby("verdict", sort=False):
        names = [prose(str(name)) for name in rows["subgrid"]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{verdict}: {', '.join(names[:SHOWN])}{more}")
    return "; ".join(parts) or "-"


def early_warnings(table: pd.DataFrame) -> Table:
    """Return how good each monitor is on the reported failure and on all studies, each with its own thresholds."""
    whole = table[table["setting"].isna() & (table["tuned_on"] == table["study"])]
    whole = whole[whole["study"].isin(["mechanism", "all"])]
    targets = {"nonfinite": "NaN", "failure": "NaN or broken"}
    rows = [
        [
            prose(str(row["study"])),
            row["monitor"],
            targets.get(row["target"], row["target"]),
            *(share(row, name) for name in ("precision", "recall", "specificity")),
            f"{row['false_rate']:.2g}" if pd.notna(row["false_rate"]) else "-",
            f"{row['lead_median']:,.0f}" if pd.notna(row["lead_median"]) else "-",
        ]
        for row in _records(whole)
    ]
    header = ["study", "monitor", "target", "precision", "recall", "specificity", "false alarms", "lead"]
    caption = (
        "Early warnings, by the study whose runs are watched: shares with Wilson's 95 % intervals, false alarms per "
        "1,000 steps of runs that solve XOR, and the median number of steps from alarm to NaN. Thresholds are tuned on "
        "other cells and seeds. `monitors.csv` has the other studies, and single settings."
    )
    return Table(caption, header, rows, _wide(2, 2.2, 1.8, 2.4, 2.4, 2.4, 1.2, 1))


def deviations(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return how far predicted shares of NaN are from measured ones, by dtype: cells, mean, worst, and how many within.

    Args:
        table: "theory" of a reproduction.
    """
    off = (table[PREDICTS] - table["measured"]).abs()
    by_dtype = {dtype: off[table["dtype"] == dtype] for dtype in AIMS if (table["dtype"] == dtype).any()}
    return {
        dtype: {
            "cells": len(values),
            "mean": values.mean(),
            "worst": values.max(),
            "within": int((values <= AIMS[dtype]).sum()),
        }
        for dtype, values in by_dtype.items()
    }


def theory(table: pd.DataFrame) -> Table:
    """Return predicted and measured shares of NaN."""
    rows = [
        [
            row["dtype"],
            str(row["hidden"]),
            str(row["batch"]),
            f"{row['lr']:g}",
            percent(row[PREDICTS]),
            share(row | {"measured_low": row["low"], "measured_high": row["high"]}, "measured"),
            f"{100 * (row[PREDICTS] - row['measured']):+.2g}",
        ]
        for row in _records(table)
    ]
    header = ["precision", "width", "batch", "rate", "predicted", "measured", "difference"]
    caption = "Predicted and measured shares of NaN with Axon 0.6.1's loss and SGD, with Wilson's 95 % intervals; "
    caption += "differences in percentage points."
    return Table(caption, header, rows, list("lrrrrlr"))
