"""The pictures of a report's page, as SVG: the path of a value, and curves of the last steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xor_study.autopsy.report import Event
    from xor_study.autopsy.sources import Source

_WIDTH = 440
_BOX, _GAP = 46, 24
_CHARACTERS = 58
"""As many as fit into a box in the font of its second line."""

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 160, 64, 14, 22, 22
_LOGARITHMIC = 50.0
"""The ratio of the largest to the smallest value from which a curve is drawn on a logarithmic scale."""

_Point = tuple[int, float]


def path(event: Event) -> str:
    """Return the operations that passed an event's value on, from the event to what it reached."""
    boxes = [(event.operation, _location(event.source), event.code)]
    boxes += [(name, _location(source), source.code if source else "") for name, source in event.path]
    reached = ", ".join(event.reached) or "nothing that is known"
    height = (len(boxes) + 1) * (_BOX + _GAP) - _GAP + 2
    parts = [_box(index, *box, bad=index == 0) for index, box in enumerate(boxes)]
    parts.append(_box(len(boxes), f"reached: {reached}", "", "", bad=True))
    words = f"The value went from {' to '.join(name for name, _, _ in boxes)}; reached: {reached}"
    return _svg(height, words, parts)


def _location(source: Source | None) -> str:
    return f"{Path(source.label).name}:{source.lineno}" if source else "at an unknown line"


def _box(index: int, name: str, location: str, code: str, bad: bool) -> str:
    """Return a box, and the arrow that leads to it from the one above."""
    top = index * (_BOX + _GAP) + 1
    text = f"{location}  {code}" if code else location
    middle = top + (20 if text else 28)
    parts = [f"<title>{escape(f'{name}  {text}')}</title>"]
    if index:
        tip = top - 1
        parts.append(f'<line class="arrow" x1="24" y1="{tip - _GAP + 2}" x2="24" y2="{tip - 6}"/>')
        parts.append(f'<path class="head" d="M24 {tip} l-5 -8 h10 z"/>')
    parts.append(f'<rect{_class(bad)} x="1" y="{top}" width="{_WIDTH - 2}" height="{_BOX}" rx="6"/>')
    parts.append(f'<text class="name" x="12" y="{middle}">{escape(_shortened(name))}</text>')
    if text:
        parts.append(f'<text class="mono" x="12" y="{top + 37}" xml:space="preserve">{escape(_shortened(text))}</text>')
    return f"<g>{''.join(parts)}</g>"


def _class(bad: bool) -> str:
    return ' class="bad"' if bad else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"


def curve(title: str, points: Sequence[_Point], event: int | None) -> str:
    """Return a curve over the steps; a value that is not finite is a cross at the top.

    Args:
        title: what the values are.
        points: step and value of each, at least one.
        event: the step of the first event, which is marked.
    """
    steps = [step for step, _ in points]
    finite = [value for _, value in points if math.isfinite(value)]
    across, up = _across(min(steps), max(steps)), _scale(finite)
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP} V{_HEIGHT - _BOTTOM} H{_WIDTH - _RIGHT}"/>']
    parts += _ticks(finite, up, min(steps), max(steps), across)
    if event is not None and min(steps) <= event <= max(steps):
        x = across(event)
        parts.append(f'<line class="event" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
    for run in _runs(points):
        corners = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in run)
        parts.append(f'<polyline class="curve" points="{corners}"/>')
    named = ""
    for step, value in points:
        name = _name(value)
        parts.append(_mark(across(step), up(value) if not name else None, step, value, name if name != named else ""))
        named = name  # once for those in a row, whose names would overlap
    said = ", ".join(f"step {step}: {value:.6g}" for step, value in points)
    return _svg(_HEIGHT, f"{title}: {said}", parts)


def _across(first: int, last: int) -> Callable[[int], float]:
    """Return the function from a step to its x."""
    width = _WIDTH - _LEFT - _RIGHT - 16
    return lambda step: _LEFT + 8 + width * ((step - first) / (last - first) if last > first else 0.5)


def _scale(values: Sequence[float]) -> Callable[[float], float]:
    """Return the function from a finite value to its y, logarithmic where values span orders of magnitude."""
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    take: Callable[[float], float] = math.log10 if low > 0 and high / low > _LOGARITHMIC else float
    # Divided before they are subtracted: the difference of two large numbers of float64 may be infinite.
    bottom, span = take(low) / 2, take(high) / 2 - take(low) / 2
    height = _HEIGHT - _TOP - _BOTTOM - 24
    return lambda value: _HEIGHT - _BOTTOM - 8 - height * ((take(value) / 2 - bottom) / span if span > 0 else 0.5)


def _ticks(
    values: Sequence[float], up: Callable[[float], float], first: int, last: int, across: Callable[[int], float]
) -> Iterator[str]:
    """Yield the smallest and largest value and the first and last step."""
    for value in dict.fromkeys((min(values), max(values)) if values else ()):
        yield f'<text class="dim" x="{_LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    for step in dict.fromkeys((first, last)):
        yield f'<text class="dim" x="{across(step):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{step}</text>'
    if values and min(values) > 0 and max(values) / min(values) > _LOGARITHMIC:
        yield f'<text class="dim" x="{_LEFT - 6}" y="{_HEIGHT - _BOTTOM + 12}" text-anchor="end">log</text>'


def _runs(points: Sequence[_Point]) -> Iterator[list[_Point]]:
    """Yield the longest parts without a value that is not finite, each of at least two points."""
    run: list[_Point] = []
    for step, value in [*points, (0, math.nan)]:
        if math.isfinite(value):
            run.append((step, value))
            continue
        if len(run) > 1:
            yield run
        run = []


def _name(value: float) -> str:
    """Return what a value is, if it is not finite."""
    if math.isfinite(value):
        return ""
    return "NaN" if value != value else "inf"


def _mark(x: float, y: float | None, step: int, value: float, name: str) -> str:
    """Return a point, or without a y a cross with its name."""
    title = f"<title>step {step}: {value:.6g}</title>"
    if y is not None:
        return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{title}</circle>'
    cross = f'<path class="cross" d="M{x - 4:.1f} {_TOP - 4} l8 8 m0 -8 l-8 8"/>'
    label = f'<text class="bad" x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">{name}</text>' if name else ""
    return f"<g>{title}{cross}{label}</g>"


def _svg(height: int, words: str, parts: Sequence[str]) -> str:
    """Return a picture of the common width.

    Args:
        height: in the picture's own units.
        words: what it shows, for those who can't see it.
        parts: its elements.
    """
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(words)}" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}{''.join(parts)}</svg>"
