"""The paper: `paper.md` and `paper.tex` with the same content, `references.bib`, and each table as a file of its own.

Its text is `paper.txt` beside this module, in the markup of `document`. What is in double braces there is filled in
from the tables of a reproduction and its record, so every number follows from the data, and so does every sentence that
concludes something. The rules of the analysis are the docstrings of the modules that apply them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from xor_study.analysis.axon import OVERFLOW
from xor_study.analysis.statistics import SIGNIFICANT
from xor_study.errors import StudyError
from xor_study.figures.captions import CAPTIONS
from xor_study.files import write_atomically
from xor_study.study import causes, monitors, paper_tables, remedies, robustness
from xor_study.study.claims import CLAIMS
from xor_study.study.document import (
    Document,
    as_bibtex,
    as_latex,
    as_markdown,
    bibliography,
    latex_table,
    markdown_table,
)
from xor_study.study.paper_tables import REPAIRS, deviations, prose, share, statement
from xor_study.study.report import METHOD, Tables
from xor_study.study.theory import AIMS
from xor_study.study.wording import listed, of, percent, plural
from xor_study.training.spec import HALF, RunSpec

MARKDOWN, LATEX, BIBTEX = "paper.md", "paper.tex", "references.bib"

DEFECTS = "Axon's defects"
"""The suspect that stands for them in the table "suspects"."""


_DEFECTS = {
    "yes": "Three defects of Axon 0.6.1 and Nx together are necessary and sufficient: they are the cause.",
    "no": "Three defects of Axon 0.6.1 and Nx together are not both necessary and sufficient.",
    "undecided": "Whether three defects of Axon 0.6.1 and Nx together are necessary and sufficient is undecided.",
}
"""What the verdict on the defects says."""


def write(folder: Path, tables: Tables, record: Mapping[str, Any]) -> None:
    """Write the paper, its references and its tables into a folder.

    Args:
        folder: of a reproduction, with its figures in `figures/`.
        tables: (name) -> a table of a reproduction.
        record: what made it, as in its provenance.json.
    """
    document = paper(tables, record)
    texts = {MARKDOWN: as_markdown(document), LATEX: as_latex(document), BIBTEX: as_bibtex(document)}
    for name, table in document.tables.items():
        texts |= {f"tables/{name}.md": markdown_table(table), f"tables/{name}.tex": latex_table(name, table)}
    (folder / "tables").mkdir(exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]


def paper(tables: Tables, record: Mapping[str, Any]) -> Document:
    """Return the paper.

    Args:
        tables: (name) -> a table of a reproduction.
        record: what made it, as in its provenance.json.
    """
    resources = files("xor_study.study")
    words = _words(tables, record)
    template = resources.joinpath("paper.txt").read_text(encoding="utf-8")
    source = re.sub(r"\{\{(\w+)\}\}", lambda match: words[match[1]], template)
    # A figure that the study does not draw is left out.
    source = re.sub(r"!figure (\w+)\n", lambda match: match[0] if match[1] in CAPTIONS else "", source)
    captions = {name: prose(caption) for name, caption in CAPTIONS.items()}
    references = bibliography(resources.joinpath(BIBTEX).read_text(encoding="utf-8"))
    return Document(source, paper_tables.tables(tables), captions, references)


def _words(tables: Tables, record: Mapping[str, Any]) -> dict[str, str]:
    """Return what fills the template, by name."""
    claims = tables("claims").set_index("claim")
    suspects, yardstick = tables("suspects"), tables("remedies")
    return {
        **_article(),
        **_rules(),
        **_design(tables("cells"), tables("runs"), record),
        **_of_suspects(suspects, claims),
        **_of_remedies(yardstick, claims),
        **_of_robustness(claims),
        **_of_emulation(tables("mechanism_rates")),
        **_of_theory(tables),
        "chain": _chain(suspects),
        "symptom": _judged(claims, "symptom"),
        "factorial": _judged(claims, "defect_explains_most"),
        "importance": " ".join(prose(claims["sentence"][name]) for name in ("rate_explains_most", "advice_tune")),
        "explode": f"Do they explode? {_judged(claims, 'gradients_explode')}",
        "vanish": f"Do they vanish? {_judged(claims, 'gradients_vanish')}",
        "monitoring": _judged(claims, "advice_monitoring"),
        "answers": "[#suspects], [#remedies] and [#verdicts]",
    }


def _judged(claims: pd.DataFrame, name: str) -> str:
    """Return a verdict and its evidence: "Supported: ..."."""
    sentence = prose(claims["sentence"][name])
    return f"{str(claims['verdict'][name]).capitalize()}. {sentence[0].upper()}{sentence[1:]}"


def _article() -> dict[str, str]:
    """Return what the article says."""
    fixes = [name for name, claim in CLAIMS.items() if claim.kind in ("fix", "practice")]
    named = [name for name, claim in CLAIMS.items() if claim.kind == "root cause"]
    lists = {"suspect_statements": named, "fix_statements": fixes}
    return {key: "\n".join(f"- {statement(name)}" for name in names) for key, names in lists.items()}


def _rules() -> dict[str, str]:
    """Return the rules of the analysis, as the code that applies them states them."""
    modules: dict[str, ModuleType] = {"causes": causes, "remedies": remedies, "robustness": robustness}
    rules = {f"rule_{name}": prose(inspect.getdoc(module) or "") for name, module in modules.items()}
    advice = (inspect.getdoc(monitors.advice) or "").split("\n\n")[1]
    named = {name: getattr(monitors, name) for name in ("JUDGED_BY", "WARNS", "QUIET", "USELESS", "MOST_FALSE")}
    values = listed([f"`{name}` is {value}" for name, value in named.items()])
    text = f"{prose(inspect.getdoc(monitors) or '')}\n\nThe advice to monitor: {prose(advice)} {values}."
    rules["rule_monitors"] = text
    return rules | {"outcomes": prose(METHOD[0]), "statistics": prose(METHOD[1])}


def _design(cells: pd.DataFrame, runs: pd.DataFrame, record: Mapping[str, Any]) -> dict[str, str]:
    """Return what was run, on what, and what is kept of it."""
    spec, made, n = RunSpec(), record["environment"], cells["n"]
    half = cells[cells["dtype"].isin(HALF)]
    steps, others = (part["epochs"] * part["iterations"] for part in (half, cells.drop(half.index)))
    half_precision = f"Half precisions ({listed(sorted(half['dtype'].unique()))}) were trained for at most "
    half_precision += f"{steps.max():,.0f} steps in {plural(len(half), 'cell')}, others for up to {others.max():,.0f}."
    kept = f"Of {record['runs']:,} runs {len(runs):,} are kept row by row, those of the first "
    kept += f"{plural(int(runs['seed'].max()) + 1, 'seed')} of each cell; of the others only the counts of each cell "
    kept += "and the digests of its runs are, so they must be trained again to be looked at one by one."
    return {
        "runs": f"{record['runs']:,}",
        "cells": f"{record['cells']:,}",
        "hidden": str(spec.hidden),
        "activation": spec.activation_hidden,
        "epochs": str(spec.epochs),
        "iterations": f"{spec.iterations:,}",
        "batch": str(spec.batch),
        "overflow": f"{OVERFLOW:.2f}",
        "seeds_of_cells": f"{n.min():,} to {n.max():,}" if n.min() < n.max() else f"{n.max():,}",
        "widths": f"{cells['hidden'].min():,} to {cells['hidden'].max():,}",
        "rates": f"{cells['lr'].min():g} to {cells['lr'].max():g}",
        "half_precision": half_precision if len(half) else "No half precision was trained.",
        "seeds_kept": kept if len(runs) < record["runs"] else "All runs are kept row by row.",
        "command": str(record["command"]),
        "commit": str(record["git_commit"])[:12],
        "package": str(record["package_version"]),
        "seconds": f"{record['seconds']:,.0f}",
        "cores": plural(int(record["cores"]), "core"),
        "processor": f"`{made['processor']}`",
        **{name: str(made[name]) for name in ("instruction_set", "python", "torch")},
    }


def _of_suspects(suspects: pd.DataFrame, claims: pd.DataFrame) -> dict[str, str]:
    """Return the verdicts on the suspects."""
    named = {name: suspect.claim for name, suspect in causes.SUSPECTS.items() if suspect.claim}
    words = {name: causes.MEANINGS[str(claims["verdict"][claim])] for name, claim in named.items()}
    others = [name for name in dict.fromkeys(suspects["suspect"]) if name not in (*named, DEFECTS)]
    beyond = {name: causes.MEANINGS[_verdict(suspects, name)] for name in others}
    lines = [f"- **{name.capitalize()}**: {words[name]}. {prose(claims['sentence'][named[name]])}" for name in named]
    lines += [f"- **Not named by the article**: {_grouped(beyond)}."] if beyond else []
    defects = _DEFECTS[str(claims["verdict"]["defects_are_the_cause"])]
    return {
        "suspects_summary": f"Of the article's {len(named)} suspects: {_grouped(words)}.",
        "defects_summary": defects,
        "suspects_sentences": "\n\n" + "\n".join(lines),
        "defects": f"{defects} {prose(claims['sentence']['defects_are_the_cause'])}",
    }


def _grouped(words: Mapping[str, str]) -> str:
    """Return names by what is said of them: "precision and width: undecided; optimizer: ..."."""
    said: dict[str, list[str]] = {}
    for name, word in words.items():
        said.setdefault(word, []).append(name)
    return "; ".join(f"{listed(names)}: {word}" for word, names in said.items())


def _verdict(suspects: pd.DataFrame, name: str) -> str:
    return causes.judge(suspects[suspects["suspect"] == name]).verdict


def _chain(suspects: pd.DataFrame) -> str:
    """Return what each single repair does, as a list."""
    rows = suspects.drop_duplicates("level").set_index("level").to_dict("index")
    lines = []
    for level, words in REPAIRS.items():
        row = rows.get(level)
        effect = "was not run"
        if row is not None:
            effect = f"takes NaN from {share(row, 'pn')} of them; it makes {share(row, 'cure')} of the seeds solve XOR"
        lines.append(f"1. {words} (`{level}`) {effect}.")
    return "\n".join(lines)


def _of_remedies(yardstick: pd.DataFrame, claims: pd.DataFrame) -> dict[str, str]:
    """Return what remedies do."""
    reported, tried = yardstick.iloc[0].to_dict(), yardstick.iloc[1:]
    fixes = tried[tried["claim"].str.startswith("fix_", na=False)]
    summary = listed([f"{row.remedy} ({row.word}; {percent(row.solved)} solve XOR)" for row in fixes.itertuples()])
    names = ("verify_stable", "verify_accurate", "verify_boundary", "advice_version_first", "advice_optimizers")
    outcomes = [f"- {statement(name)} {_judged(claims, name)}" for name in names]
    return {
        "reported_nan": share(reported, "nan"),
        "reported_solved": percent(reported["solved"]),
        "fixes_summary": f"On the failing configuration the article's fixes do this: {summary}.",
        "remedies": f"What {plural(len(tried), 'change')} do to the failing configuration:\n\n"
        f"{_by_word(tried, 'word')}",
        "remedies_of_sound": f"And to the sound one:\n\n{_by_word(tried, 'sound_word')}",
        "outcomes_of_fixes": "What the article expects and advises beyond its fixes:\n\n" + "\n".join(outcomes),
    }


def _by_word(tried: pd.DataFrame, column: str) -> str:
    """Return remedies by their word, as a list."""
    order = remedies.FAILING_WORDS if column == "word" else remedies.SOUND_WORDS
    groups = {word: map(prose, tried.loc[tried[column] == word, "remedy"]) for word in order}
    return "\n".join(f"- {word}: {names}" for word, group in groups.items() if (names := "; ".join(group)))


def _of_robustness(claims: pd.DataFrame) -> dict[str, str]:
    """Return how many verdicts don't depend on the grid, and which do."""
    judged = claims[claims["robust"].fillna("").astype(str) != ""]
    counts = {str(name): str(text).split(" of ") for name, text in judged["robust"].items()}
    dependent = [name for name, (same, all_of_them) in counts.items() if same != all_of_them]
    robust = of(len(judged) - len(dependent), len(judged))
    names = listed([f"`{name}` ({claims['robust'][name]})" for name in dependent])
    verb = "verdict depends" if len(dependent) == 1 else "verdicts depend"
    details = f" The {verb} on the grid for {names}." if len(dependent) else ""
    return {
        "robust_summary": f"{robust.capitalize()} verdicts that a part of the grid could change are the same on all "
        "of its parts.",
        "robustness": f"Of {plural(len(claims), 'verdict')}, {len(judged)} read cells that some sub-grid lacks; "
        f"{robust} are the same on all their sub-grids.{details}",
    }


def _of_emulation(rates: pd.DataFrame) -> dict[str, str]:
    """Return how our rates agree with those of an emulation on XLA."""
    least, different = rates["p_holm"].min(), int((rates["p_holm"] < SIGNIFICANT).sum())
    n = sorted({int(value) for value in rates["there_n"]})
    agree = "none differs" if not different else f"{of(different, len(rates))} differ"
    sentence = (
        f"Shares are compared with those of an independent emulation on XLA ([#emulation]). Of "
        f"{plural(len(rates), 'share')} {agree} significantly (Fisher's exact test; the smallest p after Holm's "
        f"correction is {least:.2g})."
    )
    return {"emulation": prose(sentence), "emulation_seeds": listed([f"{value:,}" for value in n])}


def _of_theory(tables: Tables) -> dict[str, str]:
    """Return what the theory predicts and how well; nothing of it if the reproduction has no table of it."""
    try:
        table = tables("theory")
    except StudyError:
        return {"theory": "This reproduction has no table of predictions.", "theory_summary": ""}
    by_dtype = deviations(table)
    parts = [
        f"in {dtype} it is off by {100 * row['mean']:.2g} percentage points on average and {100 * row['worst']:.2g} at "
        f"most, and within {100 * AIMS[dtype]:g} in {of(row['within'], row['cells'])} cells"
        for dtype, row in by_dtype.items()
    ]
    result = f"[#theory] has predicted and measured shares of NaN in {plural(len(table), 'cell')}: {'; '.join(parts)}."
    summary = f"A theory without fitted parameters predicts the share of NaN: {'; '.join(parts)}."
    return {"theory": f"{result}\n\n!table theory\n\n!figure theory\n", "theory_summary": summary}
