"""A report as one HTML page without scripts or other files; also what a notebook shows of it."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from xor_study.autopsy import drawings
from xor_study.autopsy.report import REASONS

if TYPE_CHECKING:
    from xor_study.autopsy.finiteness import Summary
    from xor_study.autopsy.report import Event, Report
    from xor_study.autopsy.sources import Source

_AROUND = 3
"""Lines that are shown before and after the culprit."""

_STYLE = """
.autopsy { --ink: #1b1b1f; --dim: #66666e; --paper: #fff; --box: #f4f4f6; --edge: #c9c9d0; --bad: #c01c28;
  --badbox: #fdecec; --curve: #1a5fb4; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 0 auto;
  padding: 1rem; font: 16px/1.45 system-ui, sans-serif; text-align: left; }
@media (prefers-color-scheme: dark) { .autopsy { --ink: #e8e8ec; --dim: #a0a0aa; --paper: #17171a; --box: #232328;
  --edge: #4a4a54; --bad: #ff7b72; --badbox: #43201f; --curve: #78aeed; } }
.autopsy h1 { font-size: 1.35rem; line-height: 1.3; margin: .3rem 0 .6rem; overflow-wrap: anywhere; }
.autopsy h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.autopsy p { margin: .4rem 0; }
.autopsy .dim { color: var(--dim); font-size: .875rem; overflow-wrap: anywhere; }
.autopsy pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; background: var(--box); color: var(--ink);
  padding: .6rem 0; margin: .3rem 0; overflow-x: auto; border-radius: 6px; }
.autopsy pre.text { padding: .6rem .8rem; }
.autopsy .line { display: block; padding: 0 .8rem; min-width: max-content; }
.autopsy .line i { color: var(--dim); font-style: normal; display: inline-block; min-width: 3.2em; user-select: none; }
.autopsy .culprit { background: var(--badbox); box-shadow: inset 4px 0 var(--bad); }
.autopsy .culprit b { text-decoration: underline var(--bad) 2px; text-underline-offset: 3px; }
.autopsy .scroll { overflow-x: auto; }
.autopsy table { border-collapse: collapse; font-size: .875rem; background: none; }
.autopsy th, .autopsy td { border-bottom: 1px solid var(--edge); padding: .25rem .6rem; text-align: left;
  vertical-align: top; white-space: nowrap; color: var(--ink); background: none; }
.autopsy td.number, .autopsy th.number { text-align: right; font-variant-numeric: tabular-nums; }
.autopsy td.bad { color: var(--bad); font-weight: 600; }
.autopsy code { font: 13px ui-monospace, Menlo, Consolas, monospace; background: none; color: inherit; padding: 0; }
.autopsy svg { display: block; width: 100%; max-width: 29rem; height: auto; }
.autopsy .curves { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; }
.autopsy .curves figure { margin: 0; flex: 0 1 27rem; min-width: 0; }
.autopsy figcaption { font-size: .875rem; }
.autopsy svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.autopsy svg .mono { font: 11.5px ui-monospace, Menlo, Consolas, monospace; }
.autopsy svg .name { font-weight: 600; }
.autopsy summary { cursor: pointer; color: var(--dim); font-size: .875rem; }
.autopsy svg .dim { fill: var(--dim); font-size: 11px; }
.autopsy svg .bad { fill: var(--bad); }
.autopsy svg rect { fill: var(--box); stroke: var(--edge); }
.autopsy svg rect.bad { fill: var(--badbox); stroke: var(--bad); }
.autopsy svg .axis { stroke: var(--edge); fill: none; }
.autopsy svg .arrow { stroke: var(--ink); fill: none; }
.autopsy svg .head { fill: var(--ink); }
.autopsy svg .curve { stroke: var(--curve); stroke-width: 1.8; fill: none; }
.autopsy svg .point { fill: var(--curve); }
.autopsy svg .cross { stroke: var(--bad); stroke-width: 2; }
.autopsy svg .event { stroke: var(--bad); stroke-dasharray: 3 3; }
""".strip()

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
html, body {{ margin: 0; background: #fff; }}
@media (prefers-color-scheme: dark) {{ html, body {{ background: #17171a; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def document(report: Report, title: str) -> str:
    """Return a whole page.

    Args:
        report: what to show.
        title: of the page, also above its headline.
    """
    return _FRAME.format(title=escape(title), body=fragment(report, title))


def fragment(report: Report, title: str = "Autopsy") -> str:
    """Return the page's content with its style, for use within another page, such as a notebook.

    Args:
        report: what to show.
        title: above the headline.
    """
    headline, *_ = report.story.splitlines()
    parts = [f"<style>{_STYLE}</style>", '<div class="autopsy">', f'<div class="dim">{escape(title)}</div>']
    parts += [f"<h1>{escape(headline)}</h1>"]
    parts += [f'<details><summary>The story as text</summary><pre class="text">{escape(report.story)}</pre></details>']
    if report.first is not None:
        parts += [*_first(report.first)]
    parts += [*_curves(report), *_events(report.events)]
    parts += _list("Not finite, and not read before an exception ended the program", map(str, report.unresolved))
    parts += _list("Near misses", map(str, report.near_misses))
    parts += _list(
        "Risky compositions", (f"{risk}: {risk.source.code}; stable: {risk.stable}" for risk in report.risks)
    )
    parts += _list("Overflows that GradScaler handled (not events)", map(str, report.handled))
    parts += _list("Notes", report.notes)
    parts.append("</div>")
    return "\n".join(parts)


def _first(event: Event) -> Iterator[str]:
    """Yield the sections on one event: where, with which values, and where its value went."""
    if event.origin == "operation" and event.kind in REASONS:
        yield f"<p>{escape(REASONS[event.kind])}</p>"
    if event.cause:
        yield f"<p>{escape(event.cause)}.</p>"
    yield "<h2>Where</h2>"
    phase = "the backward of this line" if event.forward and event.forward == event.source else event.phase
    yield from _code(event.source, f"{phase}, step {event.step}")
    if event.forward is not None and event.forward != event.source:
        yield from _code(event.forward, "in the backward of this line of the forward")
    for source in event.stack:
        if source not in (event.source, event.forward):
            yield f'<div class="dim">called from {escape(str(source))}: <code>{escape(source.code)}</code></div>'
    if event.origin_operation:
        yield from _code(event.origin_source, f"the values are from {event.origin_operation}")
    if event.inputs or event.outputs:
        yield "<h2>Values</h2>"
        yield _values(event.inputs, event.outputs)
    yield "<h2>Where the value went</h2>"
    yield drawings.path(event)


def _code(source: Source | None, caption: str) -> Iterator[str]:
    """Yield the lines around a line, which is marked."""
    if source is None:
        yield f'<p class="dim">{escape(caption)}: the line is unknown</p>'
        return
    yield f'<div class="dim">{escape(str(source))}, in {escape(source.function)} ({escape(caption)})</div>'
    lines = [line.rstrip("\n") for line in linecache.getlines(source.filename)]
    index = source.lineno - 1
    # The file may have been edited while the program ran.
    if not 0 <= index < len(lines) or lines[index].strip() != source.code:
        lines, index, first = [source.code], 0, source.lineno
    else:
        start = max(0, index - _AROUND)
        lines, index, first = lines[start : index + _AROUND + 1], index - start, start + 1
    marked = enumerate(lines)
    text = "".join(_line(first + i, line, source.columns, i == index) for i, line in marked)
    yield f"<pre>{text}</pre>"


def _line(number: int, line: str, columns: tuple[int, int] | None, culprit: bool) -> str:
    """Return a line of code, of a culprit with its call underlined."""
    shown = escape(line)
    if culprit and columns is not None:
        indent = len(line) - len(line.lstrip())
        start, end = columns[0] + indent, columns[1] + indent
        shown = f"{escape(line[:start])}<b>{escape(line[start:end])}</b>{escape(line[end:])}"
    return f'<span class="line{" culprit" if culprit else ""}"><i>{number}</i>{shown}</span>'


def _values(inputs: Sequence[Summary], outputs: Sequence[Summary]) -> str:
    """Return a table of what went in and came out."""
    heads = ["", "where the output is not finite", "type", "shape", "finite values", "zero", "NaN", "infinite"]
    rows = [_value(summary) for summary in (*inputs, *outputs)]
    return _table(heads, rows, numbers={5, 6, 7})


def _value(summary: Summary) -> list[str]:
    shape = "" if summary.shape is None else f"[{', '.join(map(str, summary.shape))}]"
    finite = "none"
    if summary.minimum is not None and summary.maximum is not None:
        finite = f"{summary.minimum:.6g} to {summary.maximum:.6g}"
    counts = [str(count) for count in (summary.zero, summary.nan, summary.infinite)]
    if not summary.exact:  # then 1 stands for any number
        counts = ["", *("some" if count else "" for count in (summary.nan, summary.infinite))]
    offending = ", ".join(f"{value:.6g}" for value in summary.offending)
    return [summary.name, offending, summary.dtype, shape, finite, *counts]


def _curves(report: Report) -> Iterator[str]:
    steps = list(report.history)
    if not steps:
        return
    number = report.first.step if report.first is not None else None
    largest = [max(step.largest.values(), key=_nan_first, default=None) for step in steps]
    measures = {
        "Loss": [step.loss for step in steps],
        "Gradient norm": [step.gradient_norm for step in steps],
        "Largest activation": largest,
    }
    yield "<h2>The last steps</h2>"
    yield '<div class="curves">'
    for title, values in measures.items():
        points = [(step.step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        if points:
            yield f"<figure><figcaption>{title}</figcaption>{drawings.curve(title, points, number)}</figure>"
    yield "</div>"


def _nan_first(value: float) -> float:
    return float("inf") if value != value else value


def _events(events: Sequence[Event]) -> Iterator[str]:
    if not events:
        return
    heads = ["step", "phase", "operation", "line", "code", "kind", "reached", "times"]
    rows = [
        [
            str(event.step),
            event.phase,
            event.operation,
            f"{Path(event.source.label).name}:{event.source.lineno}" if event.source else "unknown",
            event.code,
            event.kind if event.origin == "operation" else f"from {event.origin}",
            ", ".join(event.reached),
            str(event.count),
        ]
        for event in events
    ]
    yield f"<h2>All events ({len(events)})</h2>"
    yield _table(heads, rows, numbers={0, 7})


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """Return a table; cells that say NaN or inf are marked.

    Args:
        heads: titles of the columns.
        rows: their cells.
        numbers: indices of the columns that are aligned at the right.
    """

    def cell(tag: str, index: int, text: str) -> str:
        bad = tag == "td" and {"nan", "inf", "-inf"} & set(text.split(", "))
        classes = " ".join([*["number"] * (index in numbers), *["bad"] * bool(bad)])
        attribute = f' class="{classes}"' if classes else ""
        return f"<{tag}{attribute}>{escape(text)}</{tag}>"

    lines = [f"<tr>{''.join(cell('th', i, head) for i, head in enumerate(heads))}</tr>"]
    lines += [f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _list(title: str, items: Iterable[str]) -> list[str]:
    """Return a section with a list; nothing without items."""
    entries = [f"<li>{escape(item)}</li>" for item in items]
    return [f"<h2>{escape(title)}</h2>", f"<ul>{''.join(entries)}</ul>"] if entries else []
