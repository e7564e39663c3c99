"""The whole examination of a run: what it found, as text and as plain values."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from xor_study.postmortem.chain import Link, chain
from xor_study.postmortem.cures import Cure, cures
from xor_study.postmortem.finite import standing
from xor_study.postmortem.replay import Found, Replay, Settings, find, replay
from xor_study.training.corners import NAMES
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import RunSpec

WIDTH = 110
SHOWN = 60
"""Steps before the end whose measures go into JSON and into the picture."""


@dataclass(frozen=True)
class Postmortem:
    """What an examination found.

    Attributes:
        title: what run, as it was asked for.
        found: the run as the fast engine trained it.
        again: the part that `plain` did again, for a run that is not finite to the end.
        links: what happened, in order.
        cures: the run as it is and with one switch each; none for a run that is solved.
    """

    title: str
    found: Found
    again: Replay | None
    links: list[Link]
    cures: list[Cure]

    @property
    def end(self) -> int:
        """The step at which the run stopped being finite (where the replay's differs, the replay's), or its last."""
        return (self.again and self.again.onset) or self.found.onset or self.found.steps

    @property
    def history(self) -> pd.DataFrame:
        """The measures of the last steps up to the end, with their number in `step`."""
        return self.found.history.loc[max(1, self.end - SHOWN + 1) : self.end].reset_index()

    @property
    def corners(self) -> pd.DataFrame:
        """What the network computed on the corners in the steps that were replayed, up to the end.

        Columns: step, corner, logit, prediction, upstream, slope, gradient and, where the sigmoid's derivative is made
        of it, exponential: e^-z.
        """
        if self.again is None:
            return pd.DataFrame()
        tables = []
        for step in range(self.again.first, min(self.end, self.again.last) + 1):
            now = self.found.corners(self.again.before[step])
            columns = ("logit", "prediction", "upstream", "slope", "gradient")
            values = {name: getattr(now, name).double().numpy() for name in columns}
            if self.found.spec.loss_sigmoid_gradient == "exponential":
                values["exponential"] = (-now.logit).exp().double().numpy()
            tables.append(pd.DataFrame({"step": step, "corner": NAMES} | values))
        return pd.concat(tables, ignore_index=True)

    @property
    def marks(self) -> dict[str, int]:
        """The steps worth a mark in the course of the loss, by what they are."""
        steps = {link.name: link.step for link in self.links}
        told = {"climb": "climbs for good", "solved": "solved"}
        marks = {text: min(steps[name], self.found.steps) for name, text in told.items() if name in steps}
        return marks | {"not finite" if self.found.onset is not None else "end": self.end}

    @property
    def text(self) -> str:
        """The story."""
        return "\n".join(_lines(self))

    def as_dict(self) -> dict[str, Any]:
        """Return all that is in the story as plain values; what is not finite as "nan", "inf" or "-inf"."""
        found, again = self.found, self.again
        replayed = None
        if again is not None:
            first = again.report.first
            replayed = {
                "engine": "plain",
                "from_step": 1 if again.from_start else again.first,
                "watched_from_step": again.first,
                "first_nonfinite_step": again.onset,
                "operation": first.operation if first else None,
            }
        told = {
            "run": self.title,
            "run_id": found.spec.run_id,
            "spec": asdict(found.spec),
            "outcome": found.outcome,
            "engine": found.engine,
            "steps": found.steps,
            "first_nonfinite_step": found.onset,
            "replay": replayed,
            "links": [asdict(link) for link in self.links],
            "cures": [asdict(cure) for cure in self.cures],
            "history": self.history.drop(columns="run_id").to_dict("records"),
            "corners": self.corners.to_dict("records"),
        }
        plain: dict[str, Any] = _plain(told)
        return plain


def examine(spec: RunSpec, title: str = "", settings: Settings | None = None, seeds: int | None = None) -> Postmortem:
    """Find out what became of a run, how, and what would have prevented it.

    Args:
        spec: the run.
        title: what to call it; its identity unless told.
        settings: how to train it and its variants.
        seeds: how many seeds each switch is tried on, beside the run's own; None for 100 where that costs little.
    """
    settings = settings or Settings()
    found = find(spec, settings)
    again = replay(found, settings) if found.onset is not None else None
    links = chain(found, again) if again is not None else standing(found)
    tried = [] if found.outcome == "solved" else cures(found, links, settings, seeds)
    return Postmortem(title or spec.run_id, found, again, links, tried)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value.item() if hasattr(value, "item") else value


def _lines(found: Postmortem) -> Iterator[str]:
    yield from textwrap.wrap(_headline(found), WIDTH)
    yield ""
    width = max(len(f"{link.step:,}") for link in found.links)
    for place, link in enumerate(found.links, 1):
        head = f"{place:2d}. step {link.step:>{width},}  "
        yield from textwrap.wrap(
            head + link.text, WIDTH, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
        )
    if found.cures:
        yield ""
        yield from _table(found)


def _headline(story: Postmortem) -> str:
    found, again = story.found, story.again
    if again is None:
        return f"{story.title}: {found.outcome} after {found.steps:,} steps (engine {found.engine})."
    text = f"{story.title}: not finite from step {found.onset:,} of {found.steps:,} (engine {found.engine})."
    how = "from the start" if again.from_start else f"from the parameters before step {again.first:,}"
    if again.onset == found.onset:
        return f"{text} Done again with plain {how}, and watched: the same step."
    if again.onset is None:
        return f"{text} With plain, {how}, it stays finite: the trajectories part by their rounding."
    return f"{text} The trajectories part by their rounding: with plain, {how}, it is step {again.onset:,}, told here."


def _table(story: Postmortem) -> Iterator[str]:
    places = {link.name: place for place, link in reversed(list(enumerate(story.links, 1)))}
    shares = [next(iter(cure.shares.values())) for cure in story.cures if cure.shares]
    counted = f" ({shares[0].n} seeds: 0 to {shares[0].n - 1}; 95 % intervals)" if shares else ""
    yield f"The run again with one switch each{counted}"
    rows = [("switch", "aims at", "this run", "prevents", *(OUTCOMES if shares else ()))]
    for cure in story.cures:
        aim = str(places[cure.link]) if cure.link else ""
        row = (cure.switch or "(as it is)", aim, _outcome(cure), cure.prevents if cure.link else "")
        rows.append((*row, *(_share(cure, outcome) for outcome in OUTCOMES if shares)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _outcome(cure: Cure) -> str:
    if cure.first_nonfinite_step is not None:
        return f"not finite, step {cure.first_nonfinite_step:,}"
    return f"solved, step {cure.solved_step:,}" if cure.solved_step is not None else cure.outcome


def _share(cure: Cure, outcome: str) -> str:
    if cure.shares is None:
        return ""
    share = cure.shares[outcome]
    return f"{share.count / share.n:.0%} ({100 * share.low:.0f}-{100 * share.high:.0f})"
