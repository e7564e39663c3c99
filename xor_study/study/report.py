"""The report of the study: `report.html`, which needs nothing but itself, and `report.md` with the same content."""

from __future__ import annotations

import base64
import html
import inspect
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from xor_study.analysis.axon import BROKEN, LOSS, NEWEST, OVERFLOW, PLATEAU, PLATEAU_FORMULA, SETTINGS, SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures import FIGURES
from xor_study.figures.captions import CAPTIONS
from xor_study.files import write_atomically
from xor_study.study import causes
from xor_study.study.claims import CLAIMS
from xor_study.study.wording import listed
from xor_study.sweeps import formats
from xor_study.training.outcome import OUTCOMES

PAGE, MARKDOWN = "report.html", "report.md"

Tables = Callable[[str], pd.DataFrame]
"""(name) -> a table of a reproduction."""

QUESTION = "Why did this small network train to NaN, and what cures it?"

RUN = "python -m xor_study.run"

METHOD = [
    "A run is solved if all four corners are on their right sides in the end, NaN from the first step whose loss, "
    "gradient or update is not finite, diverged if the mean of the last tenth of its losses exceeds twice the loss of "
    "a network that answers with its threshold, else unsolved.",
    "Rates have Wilson's intervals; differences of paired rates have McNemar's exact test and Newcombe's interval; "
    "paired steps have Wilcoxon's test and a bootstrap interval; several comparisons have Holm's correction. A "
    "difference needs p < 0.01.",
    "The rules for suspects, remedies and robustness are those of the modules `causes`, `remedies` and `robustness` of "
    "`xor_study.study`; the paper states them.",
]


class Content(NamedTuple):
    """The content of both pages.

    Attributes:
        answer: three sentences.
        chain: the defects in order, each with the command that shows it.
        claims: rows claim, kind, verdict, effect, interval, test, n, robust, sentence, statement, command.
        remedies: the yardstick's rows as texts, under their headings.
        method: paragraphs.
        versions: software, command and time of the results, by name.
    """

    answer: list[str]
    chain: list[tuple[str, str]]
    claims: list[dict[str, str]]
    remedies: pd.DataFrame
    method: list[str]
    versions: dict[str, str]


def content(tables: Tables, record: Mapping[str, Any]) -> Content:
    """Return the content of the pages.

    Args:
        tables: (name) -> a table of a reproduction.
        record: what made it, as in its provenance.json.
    """
    claims, cells = tables("claims").set_index("claim"), Cells(tables("cells"))
    runs = (
        f"{record['runs']:,} runs in {record['cells']:,} cells, each with the seeds 0, 1, 2, ...: a seed gives the "
        "same initial draws and the same batches in every cell, so cells are compared in pairs."
    )
    versions = {name: str(value) for name, value in record["environment"].items()}
    versions |= {"xor_study": str(record["package_version"]), "commit": str(record["git_commit"])}
    versions |= {name: str(record[name]) for name in ("command", "seconds")}
    return Content(
        answer(claims["verdict"], cells, record["runs"]),
        chain(cells, tables("mechanism_repairs"), tables("anatomy")),
        _claims(claims),
        yardstick(tables("remedies")),
        [runs, *METHOD],
        versions,
    )


def answer(verdicts: pd.Series[str], cells: Cells, runs: int) -> list[str]:
    """Return the answer to the question in three sentences.

    Args:
        verdicts: by claim.
        cells: of the study.
        runs: how many the study has.
    """
    judged = verdicts[verdicts.index.str.startswith("cause_")]
    by_verdict: dict[str, list[str]] = {}
    for claim, verdict in judged.items():
        by_verdict.setdefault(verdict, []).append(str(claim).removeprefix("cause_").replace("_", " "))
    defects = {"yes": "are necessary and sufficient", "no": "are not both necessary and sufficient"}
    suspects = (
        f"In {runs:,} runs, Axon's defects {defects.get(verdicts['defects_are_the_cause'], 'can not be judged')} for "
        f"the failure. Of the article's {len(judged)} suspects: "
        f"{'; '.join(f'{causes.MEANINGS[verdict]}: {listed(names)}' for verdict, names in by_verdict.items())}."
    )
    default, newest, adam = (cells.row(**values) for values in (BROKEN, NEWEST, BROKEN | SETTINGS["Adam 0.001"]))
    failure = (
        "Axon 0.6.1 hides the logits from the loss, so two defects of Nx act: its clip squares the gradient, and its "
        f"sigmoid's gradient is a product with e^-z. {_percent(default, 'nonfinite')} of runs go to NaN and "
        f"{_percent(default, 'diverged')} diverge."
    )
    fixes = (
        f"Axon 0.7.0: {verdicts['fix_newest_version']} ({_percent(newest, 'solved')} solve XOR). SGD at 0.01: "
        f"{verdicts['fix_sgd_0_01']}. Adam: {verdicts['fix_adam']} ({_percent(adam, 'nonfinite')} go to NaN, "
        f"{_percent(adam, 'solved')} solve XOR)."
    )
    return [suspects, failure, fixes]


def _percent(cell: pd.Series[Any], outcome: str) -> str:
    return f"{100 * cell[outcome]:.0f} %"


def chain(cells: Cells, repairs: pd.DataFrame, anatomy: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the three defects in order: what each is and does, and the command that shows it.

    Args:
        cells: of the study.
        repairs: of `mechanism.repairs`.
        anatomy: of `mechanism.anatomy`.
    """
    climbing = cells.row(**BROKEN | {"loss.sigmoid_gradient": "stable"})
    loss = climbing["final_loss_median"]
    near = "near" if abs(loss / PLATEAU - 1) < 0.1 else "not near"
    texts = [
        "Axon 0.6.1 wraps the sigmoid's output once more, so the loss does not see its logits and falls back to "
        "clipping probabilities (loss.logits_visible=false).",
        "Nx's clip passes g squared instead of g, so the sign is lost (loss.clip_gradient=squared). With a stable "
        f"sigmoid, where no NaN interrupts it, the loss ends at {loss:.3g} in the median, {near} {PLATEAU:.3g} = "
        f"{PLATEAU_FORMULA}, the loss of a network that predicts 0 everywhere.",
        f"Nx's gradient of the sigmoid is e^-z p p, and beyond -z = {OVERFLOW:.2f} e^-z is infinite in float32 "
        f"(loss.sigmoid_gradient=exponential). {_last_step(anatomy)}",
    ]
    options = ["log=axon", "loss.clip_gradient=correct", "loss.sigmoid_gradient=stable"]
    return [
        (f"{text} {_alone(repairs, switch)}", f"{RUN} loss=axon_0_6_1 {option} seed=109")
        for text, switch, option in zip(texts, SWITCHES, options, strict=True)
    ]


def _alone(repairs: pd.DataFrame, switch: str) -> str:
    """Return in words what the repair of one switch alone cures, in all settings that have it."""
    rows = repairs[repairs["repair"].str.startswith(f"{switch}=")]
    names = {"cures_nan": "NaN", "cures_divergence": "divergence"}
    cured = [name for column, name in names.items() if set(rows[column]) <= {"yes", "nothing to cure"}]
    return f"Repairing this alone removes {' and '.join(cured) or 'neither'}" + (
        "." if len(cured) != 1 else f" but not {next(name for name in names.values() if name not in cured)}."
    )


def _last_step(anatomy: pd.DataFrame) -> str:
    """Return in words what makes the gradient NaN at the last step of a run."""
    last = anatomy[anatomy["step"] == anatomy["step"].max()]
    broken = last[last["gradient"].isna()]
    factors = broken[np.isinf(broken["exponential"]) & (broken["upstream"] == 0)]
    where = f"At step {last['step'].iloc[0]:,} of one run"
    if factors.empty:
        return f"{where} the gradient of {len(broken)} corners is NaN."
    return (
        f"{where} -z is {-factors['logit'].min():,.0f}, the gradient that the clip passes on is 0, and infinity times "
        "0 is NaN."
    )


def _claims(claims: pd.DataFrame) -> list[dict[str, str]]:
    """Return the rows of the table of claims as texts.

    Args:
        claims: of `claims.verdicts`, indexed by claim.
    """
    rows = []
    for name, claim in CLAIMS.items():
        row = claims.loc[name]
        texts = {
            "claim": name,
            "kind": claim.kind,
            "verdict": str(row["verdict"]),
            "effect": f"{row['effect']:.3g}",
            "interval": f"{row['low']:.3g} to {row['high']:.3g}",
            "test": str(row["test"]),
            "n": f"{row['n']:,}",
            "robust": str(row["robust"]) if isinstance(row["robust"], str) else "",
            "depends": str(row["depends"]) if isinstance(row["depends"], str) else "",
            "sentence": str(row["sentence"]),
            "statement": (inspect.getdoc(claim.judge) or "").partition("\n")[0],
            "command": f"{RUN} -m study={claim.studies}",
        }
        rows.append(texts)
    return rows


def yardstick(remedies: pd.DataFrame) -> pd.DataFrame:
    """Return the table of remedies as texts: what each does to the failing and to the sound configuration.

    Args:
        remedies: of `remedies.remedies`.
    """

    def share(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.1f} % ({100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f})"

    rows = []
    for row in cast(list[dict[str, Any]], remedies.to_dict("records")):
        texts = {"remedy": row["remedy"], "failing: NaN": share(row, "nan"), "failing: solved": share(row, "solved")}
        texts |= {"sound: NaN": share(row, "sound_nan"), "sound: solved": share(row, "sound_solved")}
        steps = row["sound_steps"]
        texts["sound: steps later"] = "" if np.isnan(steps) else f"{steps:+,.0f}"
        rows.append(texts | {"on the failing": row["word"], "on the sound": row["sound_word"]})
    return pd.DataFrame(rows)


def write(folder: Path, tables: Tables, record: Mapping[str, Any]) -> None:
    """Write both pages into a folder.

    Args:
        folder: of a reproduction, with its figures in `figures/`.
        tables: (name) -> a table of a reproduction.
        record: what made it, as in its provenance.json.
    """
    page = content(tables, record)
    pictures = {name: (folder / "figures" / f"{name}.png").read_bytes() for name in FIGURES}
    data = cells_for_the_picker(tables)
    for name, text in ((PAGE, as_html(page, pictures, data)), (MARKDOWN, as_markdown(page))):
        write_atomically(folder / name, lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]


def as_markdown(page: Content) -> str:
    """Return the page as Markdown that links the figures in `figures/`."""
    lines = [f"# {QUESTION}", "", " ".join(page.answer), "", "## A chain of three defects", ""]
    for number, (text, command) in enumerate(page.chain, start=1):
        lines += [f"{number}. {text}", "", f"   `{command}`", ""]
    lines += [
        "The paper, with the rules of the analysis, its theory and its limits, is [paper.md](paper.md).",
        "",
        "## Remedies",
        "",
        formats.as_markdown(list(page.remedies.columns), page.remedies.to_numpy().tolist()),
        "",
        "## Verdicts on the article's claims",
        "",
        "| claim | verdict | effect (95 %) | n | robust | evidence |",
        "|---|---|---|---|---|---|",
    ]
    for row in page.claims:
        cells = [
            f"`{row['claim']}`: {row['statement']}",
            f"**{row['verdict']}**",
            f"{row['effect']} ({row['interval']})",
        ]
        depends = f" Otherwise on sub-grids: {row['depends']}." if row["depends"] else ""
        cells += [row["n"], row["robust"], f"{row['sentence']}{depends} `{row['command']}`"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "What the effect is, each claim's docstring says (`xor_study/study/claims.py`).", ""]
    lines += ["## Figures", ""]
    for name, caption in CAPTIONS.items():
        lines += [f"![{name}](figures/{name}.png)", "", f"{caption} `python scripts/figures.py {name}`", ""]
    lines += ["## Method", "", *(f"- {text}" for text in page.method), "", "## Made with", ""]
    lines += [f"- {name}: `{value}`" for name, value in page.versions.items()]
    return "\n".join(lines) + "\n"


def as_html(page: Content, pictures: Mapping[str, bytes], data: Mapping[str, Any]) -> str:
    """Return the page as one HTML file that needs nothing else.

    Args:
        page: its content.
        pictures: PNG by name of figure.
        data: of `cells_for_the_picker`.
    """
    e = html.escape
    chain = "".join(f"<li>{e(text)}<br><code>{e(command)}</code></li>" for text, command in page.chain)
    rows = "".join(
        f"<tr><td><code>{e(row['claim'])}</code><br><small>{e(row['kind'])}: {e(row['statement'])}</small></td>"
        f'<td><span class="verdict {e(row["verdict"]).replace(" ", "-")}">{e(row["verdict"])}</span></td>'
        f"<td>{e(row['effect'])}<br><small>{e(row['interval'])}<br>{e(row['test'])}, n = {e(row['n'])}"
        f"{'<br>robust in ' + e(row['robust']) + ' sub-grids' if row['robust'] else ''}</small></td>"
        f"<td>{e(row['sentence'])}<br><code>{e(row['command'])}</code></td></tr>"
        for row in page.claims
    )
    shown = "".join(
        f'<figure id="{name}"><img alt="{e(name)}" src="{_data_url(pictures[name])}">'
        f"<figcaption>{e(caption)} <code>python scripts/figures.py {name}</code></figcaption></figure>"
        for name, caption in CAPTIONS.items()
    )
    parts = {
        "question": e(QUESTION),
        "answer": " ".join(e(text) for text in page.answer),
        "chain": chain,
        "claims": rows,
        "remedies": page.remedies.to_html(index=False, border=0, classes="remedies"),
        "figures": shown,
        "method": "".join(f"<li>{e(text)}</li>" for text in page.method),
        "versions": "".join(
            f"<dt>{e(name)}</dt><dd><code>{e(value)}</code></dd>" for name, value in page.versions.items()
        ),
        # In a script "</" ends the script, whatever string it is in.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = files("xor_study.study").joinpath("report.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->" if name != "data" else "/*data*/", text, 1)
    return template


def _data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


PICKED = ("optimizer", "lr", "init", "loss", "activation")
"""The settings that a reader of the page chooses a cell by."""


def cells_for_the_picker(tables: Tables) -> dict[str, Any]:
    """Return the cells that differ from the article's network in `PICKED` only, with their median seeds' losses.

    Args:
        tables: (name) -> a table of a reproduction; reads "cells" and "examples".

    Returns:
        Keys choose (the settings), steps (at which losses are recorded), and cells: lists of the chosen values, the
        counts of the outcomes, the median seed and its losses as far as they are finite.
    """
    activations = ("activation.hidden", "activation.output")
    cells = Cells(tables("cells")).where("optimizer", "lr", "init", "loss", *SWITCHES, *activations)
    names = {tuple(BROKEN[key] for key in SWITCHES): "axon 0.6.1", tuple(NEWEST[key] for key in SWITCHES): "axon 0.7.0"}
    curves: dict[Any, pd.DataFrame] = dict(iter(tables("examples").groupby("cell")))
    steps = sorted(int(step) for step in tables("examples")["step"].unique())
    rows = []
    for cell, row in cells.to_dict("index").items():
        loss = row["loss"]
        if loss == LOSS:
            switches = tuple(row[key] for key in SWITCHES)
            if switches not in names:
                continue
            loss = names[switches]
        elif row["loss.clip_gradient"] == "squared":
            loss = f"{loss}, Nx's clip"
        activation = f"{row['activation.hidden']}, {row['activation.output']}"
        curve = curves[cell]
        # Three digits, and only up to the first loss that is not finite: JSON has no NaN.
        losses = [float(f"{value:.3g}") for value in curve["loss"][np.isfinite(curve["loss"]).cummin()]]
        counts = [int(row[f"{outcome}_runs"]) for outcome in OUTCOMES]
        chosen = [row["optimizer"], f"{row['lr']:g}", row["init"], loss, activation]
        rows.append([*chosen, counts, int(curve["seed"].iloc[0]), losses])
    return {"choose": list(PICKED), "outcomes": list(OUTCOMES), "steps": steps, "cells": rows}
