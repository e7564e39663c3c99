"""The study as one page: `report.html`, which needs nothing but itself, and `report.md` with the same content."""

from __future__ import annotations

import base64
import html
import inspect
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xor_study.analysis.axon import SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures import FIGURES
from xor_study.files import write_atomically
from xor_study.study.claims import AXON, CLAIMS, NEWEST
from xor_study.training.outcome import OUTCOMES

PAGE, MARKDOWN = "report.html", "report.md"

Tables = Callable[[str], pd.DataFrame]

QUESTION = "Why did this small network train to NaN, and what really cures it?"

CAPTIONS = {
    "symptom": "What the loop of Axon 0.6.1 prints: the mean of all losses so far, never reset, so one NaN stays. "
    "Above the "
    "median and the quartiles of the runs that are not NaN yet, and one run that is NaN within the first epoch; "
    "below the "
    "share that is NaN.",
    "mechanism": "The cause, three defects in a chain. (a) The loss climbs to the plateau that theory predicts; "
    "hollow marks "
    "are the real Axon's. (b) What each single repair cures. (c) The last steps of one run.",
    "learning_rate": "Which share of runs solves XOR and which goes to NaN, over the rate; bands are Wilson's 95 % "
    "intervals.",
    "heatmaps": "How runs end over the rate and three of the article's other suspects, with SGD; a bar of shares for "
    "each "
    "cell.",
    "loss_curves": "The loss over time, sound and broken: medians and quartiles.",
    "precision": "The logit at which a loss without guards goes to NaN, and the largest one step before: between "
    "them lies "
    "the logit from which on p rounds to 1, which is p log 2 or (p + 1) log 2 of p significant bits.",
    "boundaries": "What trained networks answer around the unit square, and the article's own picture.",
    "gradients": "Norm of the gradient and largest logit over time: medians and quartiles.",
    "monitors": "What warns of NaN. (a) to (c) How many failures a monitor sees before they happen against how many "
    "sound "
    "runs it accuses, over all thresholds, study by study; (d) how early it warns at a threshold with few false "
    "alarms.",
    "fixes": "The effect of every claim with its 95 % interval.",
    "importance": "Which share of the variance of success each factor explains on sound networks, alone and in pairs; "
    "bootstrap intervals over seeds.",
    "time_to_solve": "Which share of runs has not solved XOR yet; Kaplan and Meier's estimate with 95 % intervals.",
}
"""What a reader is told of each figure."""


class Content(NamedTuple):
    """What both pages say.

    Attributes:
        answer: three sentences.
        chain: the defects in order, each with the command that shows it.
        claims: rows claim, kind, verdict, effect, interval, test, n, sentence, statement, command.
        method, versions: paragraphs, and what it was made with.
    """

    answer: list[str]
    chain: list[tuple[str, str]]
    claims: list[dict[str, str]]
    method: list[str]
    versions: dict[str, str]


def content(tables: Tables, record: Mapping[str, Any]) -> Content:
    """Return what the pages say, with numbers from the tables of a reproduction and from its record."""
    claims = tables("claims").to_dict("records")
    by_name = {str(row["claim"]): row for row in claims}
    found = Cells(tables("cells"))
    broken, newest = (found.cells.iloc[found.one(**values)] for values in (AXON, NEWEST))
    causes = [row for row in claims if str(row["claim"]).startswith("cause_")]
    innocent = sum(row["verdict"] == "not the cause" for row in causes)
    answer = [
        f"None of it was what the article suspects: {innocent} of its {len(causes)} causes are not the cause, in "
        f"{record['runs']:,} runs.",
        f"Axon 0.6.1 hides the logits from the loss, Nx's clip then squares the gradient so that the loss climbs, "
        f"and the "
        f"sigmoid's own gradient turns infinity times 0 into NaN in {100 * broken['nonfinite']:.0f} % of runs.",
        f"The newer version cures it ({100 * newest['solved']:.0f} % solve XOR); SGD at 0.01 changes nothing and "
        f"Adam only "
        "exchanges NaN for a loss that stays high.",
    ]
    run = "python -m xor_study.run"
    chain = [
        (
            "Axon 0.6.1 wraps the sigmoid's output once more, so the loss does not see its logits and falls back to "
            "clipping "
            "probabilities (loss.logits_visible=false).",
            f"{run} loss=axon_0_6_1 seed=109 log=axon",
        ),
        (
            "Nx's clip passes g squared instead of g: the sign is lost, every probability is pushed to 0, and the "
            "loss climbs "
            "to \N{MINUS SIGN}log(2e-7)/2 = 7.7 (loss.clip_gradient=squared).",
            f"{run} loss=axon_0_6_1 loss.clip_gradient=correct seed=109",
        ),
        (
            "Nx's gradient of the sigmoid is e^-z p p: beyond -z = 88.72 e^-z is infinite in float32, the clip's "
            "gradient is "
            "0, and infinity times 0 is NaN (loss.sigmoid_gradient=exponential).",
            f"{run} loss=axon_0_6_1 loss.sigmoid_gradient=stable seed=109",
        ),
    ]
    rows = []
    for name, claim in CLAIMS.items():
        row = by_name[name]
        rows.append(
            {
                "claim": name,
                "kind": claim.kind,
                "verdict": str(row["verdict"]),
                "effect": f"{row['effect']:.3g}",
                "interval": f"{row['low']:.3g} to {row['high']:.3g}",
                "test": str(row["test"]),
                "n": f"{row['n']:,}",
                "sentence": str(row["sentence"]),
                "statement": (inspect.getdoc(claim.judge) or "").partition("\n")[0],
                "command": f"{run} -m study={claim.studies}",
            }
        )
    method = [
        f"{record['runs']:,} runs in {record['cells']:,} cells, each with the seeds 0, 1, 2, ...: a seed gives the "
        f"same "
        "initial draws and the same batches in every cell, so cells are compared in pairs.",
        "A run is solved if all four corners are on their right sides in the end, NaN from the first step whose "
        "loss, gradient "
        "or update is not finite, diverged if the last tenth of its loss is above twice that of a network that knows "
        "nothing, "
        "else unsolved.",
        "Rates have Wilson's intervals; differences of paired rates McNemar's exact test and Newcombe's interval; "
        "paired "
        "steps Wilcoxon's test and a bootstrap interval; several comparisons Holm's correction. A claim needs p < "
        "0.01.",
        "A suspect is a cause of the reported failure only if varying it within what the article describes turns the "
        "sound "
        "network into NaN. A fix is judged on the broken loss of the report.",
    ]
    versions = {name: str(value) for name, value in record["environment"].items()}
    versions |= {"xor_study": str(record["package_version"]), "commit": str(record["git_commit"])}
    versions |= {"command": str(record["command"]), "seconds": str(record["seconds"])}
    return Content(answer, chain, rows, method, versions)


def write(folder: Path, tables: Tables, record: Mapping[str, Any]) -> None:
    """Write both pages into the folder of a reproduction, whose figures lie in `figures/`."""
    said = content(tables, record)
    pictures = {name: (folder / "figures" / f"{name}.png").read_bytes() for name in FIGURES}
    data = cells_for_the_picker(tables)
    for name, text in ((PAGE, as_html(said, pictures, data)), (MARKDOWN, as_markdown(said))):
        write_atomically(folder / name, lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]


def as_markdown(said: Content) -> str:
    """Return the page as Markdown, with the figures beside it."""
    lines = [f"# {QUESTION}", "", " ".join(said.answer), "", "## The cause, a chain of three defects", ""]
    for number, (text, command) in enumerate(said.chain, start=1):
        lines += [f"{number}. {text}", "", f"   `{command}`", ""]
    lines += ["## The claims", "", "| claim | verdict | effect (95 %) | n | in plain words |", "|---|---|---|---|---|"]
    for row in said.claims:
        cells = [
            f"`{row['claim']}`: {row['statement']}",
            f"**{row['verdict']}**",
            f"{row['effect']} ({row['interval']})",
        ]
        cells += [row["n"], f"{row['sentence']} `{row['command']}`"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "Effects are differences of paired rates, or of steps where the sentence speaks of steps.", ""]
    lines += ["## Figures", ""]
    for name, caption in CAPTIONS.items():
        lines += [f"![{name}](figures/{name}.png)", "", f"{caption} `python scripts/figures.py {name}`", ""]
    lines += ["## Method", "", *(f"- {text}" for text in said.method), "", "## Made with", ""]
    lines += [f"- {name}: `{value}`" for name, value in said.versions.items()]
    return "\n".join(lines) + "\n"


def as_html(said: Content, pictures: Mapping[str, bytes], data: Mapping[str, Any]) -> str:
    """Return the page as one HTML file that needs nothing else."""
    e = html.escape
    chain = "".join(f"<li>{e(text)}<br><code>{e(command)}</code></li>" for text, command in said.chain)
    rows = "".join(
        f"<tr><td><code>{e(row['claim'])}</code><br><small>{e(row['kind'])}: {e(row['statement'])}</small></td>"
        f'<td><span class="verdict {e(row["verdict"]).replace(" ", "-")}">{e(row["verdict"])}</span></td>'
        f"<td>{e(row['effect'])}<br><small>{e(row['interval'])}<br>{e(row['test'])}, n = {e(row['n'])}</small></td>"
        f"<td>{e(row['sentence'])}<br><code>{e(row['command'])}</code></td></tr>"
        for row in said.claims
    )
    shown = "".join(
        f'<figure id="{name}"><img alt="{e(name)}" src="{_data_url(pictures[name])}">'
        f"<figcaption>{e(caption)} <code>python scripts/figures.py {name}</code></figcaption></figure>"
        for name, caption in CAPTIONS.items()
    )
    parts = {
        "question": e(QUESTION),
        "answer": " ".join(e(text) for text in said.answer),
        "chain": chain,
        "claims": rows,
        "figures": shown,
        "method": "".join(f"<li>{e(text)}</li>" for text in said.method),
        "versions": "".join(
            f"<dt>{e(name)}</dt><dd><code>{e(value)}</code></dd>" for name, value in said.versions.items()
        ),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    page = files("xor_study.study").joinpath("report.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->" if name != "data" else "/*data*/", text, 1)
    return page


def _data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


PICKED = ("optimizer", "lr", "init", "loss", "activation")
"""What a reader of the page chooses."""


def cells_for_the_picker(tables: Tables) -> dict[str, Any]:
    """Return the cells that differ from the article's network in `PICKED` only, with their median seeds' losses.

    Keys: choose (the keys), steps (that losses are recorded at), cells: lists of the chosen values, the counts of the
    outcomes, the median seed and its losses as far as they are finite.
    """
    found = Cells(tables("cells"))
    activations = ("activation.hidden", "activation.output")
    cells = found.where("optimizer", "lr", "init", "loss", *SWITCHES, *activations)
    names = {(False, "squared", "exponential"): "axon 0.6.1", (True, "squared", "exponential"): "axon 0.7.0"}
    curves: dict[Any, pd.DataFrame] = dict(iter(tables("examples").groupby("cell")))
    steps = sorted(int(step) for step in tables("examples")["step"].unique())
    rows = []
    for cell, row in cells.to_dict("index").items():
        loss = row["loss"]
        if pd.notna(row["loss.logits_visible"]):
            switches = tuple(row[key] for key in SWITCHES)
            if switches not in names:
                continue
            loss = names[switches]
        activation = f"{row['activation.hidden']}, {row['activation.output']}"
        curve = curves[cell]
        losses = [float(f"{value:.3g}") for value in curve["loss"][np.isfinite(curve["loss"]).cummin()]]
        counts = [int(row[f"{outcome}_runs"]) for outcome in OUTCOMES]
        chosen = [row["optimizer"], f"{row['lr']:g}", row["init"], loss, activation]
        rows.append([*chosen, counts, int(curve["seed"].iloc[0]), losses])
    return {"choose": list(PICKED), "outcomes": list(OUTCOMES), "steps": steps, "cells": rows}
