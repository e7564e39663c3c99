"""Tables as text for other programs and for papers: Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xor_study.analysis.statistics import wilson
from xor_study.figures.words import key_words, sentence_words, term_words, value_words
from xor_study.training.outcome import OUTCOMES

FORMATS = ("text", "markdown", "latex", "csv")
"""What `--format` takes; text is for a terminal."""

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    r"""Return a table in Markdown.

    Args:
        header: names of the columns.
        rows: their texts.
        left: how many columns are texts; the others are numbers, which are aligned at the right.

    Example:
        >>> print(as_markdown(["optimizer", "runs"], [["SGD", "20"]]))
        | optimizer | runs |
        |---|--:|
        | SGD | 20 |
    """
    rule = "|".join(["---"] * left + ["--:"] * (len(header) - left))
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    r"""Return a table as LaTeX's tabular with the rules of booktabs; texts are escaped, but for mathematics in $...$.

    Args:
        header: names of the columns.
        rows: their texts.
        left: how many columns are texts; the others are numbers, which are aligned at the right.

    Example:
        >>> print(as_latex(["loss", "solved"], [["mean_squared_error", "50 %"]]))
        \begin{tabular}{lr}
        \toprule
        loss & solved \\
        \midrule
        mean\_squared\_error & 50 \% \\
        \bottomrule
        \end{tabular}
    """
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (header, *rows)]
    columns = "l" * left + "r" * (len(header) - left)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    r"""Return a text for LaTeX: characters that mean something there are escaped outside of $...$.

    Example:
        >>> print(escaped(r"50 % of $\beta_1$ & he_normal"))
        50 \% of $\beta_1$ \& he\_normal
    """
    parts = re.split(r"(\$[^$]+\$)", text)
    return "".join(
        part if number % 2 else "".join(_ESCAPED.get(character, character) for character in part)
        for number, part in enumerate(parts)
    )


def as_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV: numbers as short as they can be to read back as the same, a missing value as nothing."""
    return table.to_csv(index=False, lineterminator="\n").removesuffix("\n")


def sweep_table(cells: pd.DataFrame, keys: Sequence[str], form: str) -> str:
    """Return how many runs of each cell came to which outcome, with shares and Wilson's 95 % intervals.

    Args:
        cells: of `cells.cells`.
        keys: its columns that tell cells apart.
        form: one of `FORMATS`, but not "text".
    """
    rows = cells.to_dict("records")
    if form == "csv":
        return as_csv(pd.DataFrame([{**{key: row[key] for key in (*keys, "runs")}, **_shares(row)} for row in rows]))
    header = [*map(key_words, keys), "runs", *map(value_words, OUTCOMES)]
    texts = [
        [*(value_words(row[key], key) for key in keys), str(row["runs"]), *(_share(row, name) for name in OUTCOMES)]
        for row in rows
    ]
    return _FORMATTERS[form](header, texts, len(keys))


def _shares(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the count, the share and the interval's ends of each outcome of a cell."""
    values: dict[str, Any] = {}
    for name in OUTCOMES:
        low, high = wilson(int(row[name]), int(row["runs"]))
        values |= {f"{name}_runs": row[name], name: row[name] / row["runs"], f"{name}_low": low, f"{name}_high": high}
    return values


def _share(row: Mapping[Any, Any], name: str) -> str:
    low, high = wilson(int(row[name]), int(row["runs"]))
    return f"{row[name]} ({100 * row[name] / row['runs']:.0f} %, {100 * low:.0f} to {100 * high:.0f})"


def comparison_table(table: pd.DataFrame, form: str) -> str:
    """Return paired differences, in percentage points where the format is for people.

    Args:
        table: of `comparison.Comparison`.
        form: one of `FORMATS`, but not "text".
    """
    if form == "csv":
        return as_csv(table)
    keys = comparison_keys(table)
    header, rows = comparison_texts(table)
    texts = [[*map(_in_words, header, row[: len(keys) + 1]), *row[len(keys) + 1 :]] for row in rows]
    return _FORMATTERS[form]([*map(key_words, keys), *header[len(keys) :]], texts, len(keys) + 1)


def _in_words(column: str, text: str) -> str:
    """Return the text of a comparison's column in words."""
    if column == "effect":
        return term_words(text)
    return sentence_words(text) if column in ("level", "baseline") else value_words(text, column)


def comparison_keys(table: pd.DataFrame) -> list[str]:
    """Return the columns of a comparison that say what a row is of: those before pairs or seeds."""
    return list(itertools.takewhile(lambda column: column not in ("pairs", "seeds"), table.columns))


def comparison_texts(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a comparison: its keys, the outcome, and numbers in percentage points."""
    keys = comparison_keys(table)
    shares = {"one": "A", "other": "B"} if "one" in table else {}
    count, difference = ("pairs", "B - A (95 %)") if shares else ("seeds", "effect (95 %)")
    rows = []
    for row in table.to_dict("records"):
        width = row["high"] - row["low"]
        digits = int(width < 0.02) + int(width < 0.002)  # of many runs a narrow interval is not shown as +0 to +0
        middle, low, high = (f"{100 * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
        percent = [f"{100 * row[name]:.{digits}f} %" for name in shares]
        numbers = [str(row[count]), *percent, f"{middle} ({low} to {high})"]
        p = f"as {value_words(row['complement_of'])}" if row["complement_of"] else f"{row['p']:.2g}"
        rows.append([*(row[key] for key in keys), row["outcome"], *numbers, p])
    return [*keys, "outcome", count, *shares.values(), difference, "p"], rows


_FORMATTERS = {"markdown": as_markdown, "latex": as_latex}
