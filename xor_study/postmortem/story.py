"""The examination of a run, and its story as text and as plain values."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from xor_study.analysis import axon
from xor_study.postmortem.chain import Link, chain
from xor_study.postmortem.cures import Cure, cures
from xor_study.postmortem.explain import location
from xor_study.postmortem.finite import finite_chain
from xor_study.postmortem.replay import Replay, Settings, TrainedRun, replay_run, train_run
from xor_study.training.corners import NAMES
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import RunSpec

WIDTH = 110
"""Columns of the text."""

SHOWN = 60
"""The number of last steps whose measures go into the JSON and the figure."""


@dataclass(frozen=True, repr=False)
class Postmortem:
    """What an examination found out.

    Attributes:
        title: the run's name in the story.
        run: the run as the fast engine trained it.
        replay: the steps that `plain` repeated; None for a run that stays finite.
        links: what happened, in order.
        cures: the run without a change, and with one switch each; none for a run that is solved.
    """

    title: str
    run: TrainedRun
    replay: Replay | None
    links: list[Link]
    cures: list[Cure]

    @property
    def end(self) -> int:
        """The step at which the run stopped being finite (where the replay's differs, the replay's), or its last."""
        return (self.replay and self.replay.onset) or self.run.onset or self.run.steps

    @property
    def history(self) -> pd.DataFrame:
        """The measures of the last steps up to the end, with their number in `step`."""
        return self.run.history.loc[max(1, self.end - SHOWN + 1) : self.end].reset_index()

    @property
    def corners(self) -> pd.DataFrame:
        """What the network computed on the corners in the replayed steps up to the end; empty without a replay.

        Columns: step, corner, logit, prediction, upstream, slope, gradient and, if the sigmoid's derivative contains
        it, exponential: e^-z.
        """
        if self.replay is None:
            return pd.DataFrame()
        tables = []
        for step in range(self.replay.first, min(self.end, self.replay.last) + 1):
            now = self.run.corners(self.replay.before[step])
            columns = ("logit", "prediction", "upstream", "slope", "gradient")
            values = {name: getattr(now, name).double().numpy() for name in columns}
            if axon.exponential(self.run.spec):
                values["exponential"] = (-now.logit).exp().double().numpy()
            tables.append(pd.DataFrame({"step": step, "corner": NAMES} | values))
        return pd.concat(tables, ignore_index=True)

    @property
    def marks(self) -> dict[str, int]:
        """The steps to mark in a plot of the loss, by their labels."""
        steps = {link.name: link.step for link in self.links}
        labels = {"climb": "climbs for good", "solved": "solved"}
        marks = {label: min(steps[name], self.run.steps) for name, label in labels.items() if name in steps}
        return marks | {"not finite" if self.run.onset is not None else "end": self.end}

    @property
    def text(self) -> str:
        """The story."""
        return "\n".join(_lines(self))

    def __repr__(self) -> str:
        run, first = self.run, self.replay and self.replay.report.first
        end = f"not finite from step {run.onset:,}" if run.onset is not None else run.outcome
        operation = f"; first: {first.operation} at {location(first)}" if first else ""
        return f"<Postmortem of {self.title}: {end} of {run.steps:,} steps, {len(self.links)} links{operation}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"

    def as_dict(self) -> dict[str, Any]:
        """Return the story and the measures behind it as plain values; non-finite numbers as "nan", "inf", "-inf"."""
        run, replay = self.run, self.replay
        steps = None
        if replay is not None:
            first = replay.report.first
            steps = {
                "engine": "plain",
                "from_step": 1 if replay.from_start else replay.first,
                "watched_from_step": replay.first,
                "first_nonfinite_step": replay.onset,
                "operation": first.operation if first else None,
            }
        values = {
            "run": self.title,
            "run_id": run.spec.run_id,
            "spec": asdict(run.spec),
            "outcome": run.outcome,
            "engine": run.engine,
            "steps": run.steps,
            "first_nonfinite_step": run.onset,
            "replay": steps,
            "links": [asdict(link) for link in self.links],
            "cures": [asdict(cure) for cure in self.cures],
            "history": self.history.drop(columns="run_id").to_dict("records"),
            "corners": self.corners.to_dict("records"),
        }
        result: dict[str, Any] = _json(values)
        return result


def examine(spec: RunSpec, title: str = "", settings: Settings | None = None, seeds: int | None = None) -> Postmortem:
    """Explain how a run ended, and what would have prevented its failure.

    Args:
        spec: the run.
        title: its name in the story; if empty, its run id.
        settings: how to train it and its variants.
        seeds: the number of seeds that each switch is tried on, beside the run's seed; None for 100 if that costs
            little, else 0.

    Raises:
        StudyError: if the run has more than a million steps, or can't be trained.

    Example:
        >>> from xor_study import RunSpec
        >>> from xor_study.postmortem import examine
        >>> spec = RunSpec(loss="binary_cross_entropy_naive", lr=10.0, epochs=1)
        >>> story = examine(spec, "a textbook's cross-entropy", seeds=0)
        >>> next(link for link in story.links if link.name == "operation").values["operation"]
        'aten.log.default'
        >>> next(cure.switch for cure in story.cures if cure.prevents == "failure")
        'lr=1.0'
    """
    settings = settings or Settings()
    run = train_run(spec, settings)
    replay = replay_run(run, settings) if run.onset is not None else None
    links = chain(run, replay) if replay is not None else finite_chain(run)
    tried = [] if run.outcome == "solved" else cures(run, links, settings, seeds)
    return Postmortem(title or spec.run_id, run, replay, links, tried)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value.item() if hasattr(value, "item") else value


def _lines(story: Postmortem) -> Iterator[str]:
    yield from textwrap.wrap(_headline(story), WIDTH)
    yield ""
    width = max(len(f"{link.step:,}") for link in story.links)
    for number, link in enumerate(story.links, 1):
        head = f"{number:2d}. step {link.step:>{width},}  "
        yield from textwrap.wrap(
            head + link.text, WIDTH, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
        )
    if story.cures:
        yield ""
        yield from _table(story)


def _headline(story: Postmortem) -> str:
    run, replay = story.run, story.replay
    if replay is None:
        return f"{story.title}: {run.outcome} after {run.steps:,} steps (engine {run.engine})."
    text = f"{story.title}: not finite from step {run.onset:,} of {run.steps:,} (engine {run.engine})."
    start = "from the start" if replay.from_start else f"from the parameters before step {replay.first:,}"
    if replay.onset == run.onset:
        return f"{text} Replayed with plain {start} under the autopsy: not finite from the same step."
    if replay.onset is None:
        return f"{text} Replayed with plain {start}, it stays finite: the engines' roundings differ."
    return (
        f"{text} Replayed with plain {start}, it is not finite from step {replay.onset:,}, because the engines' "
        "roundings differ; what follows is the replay."
    )


def _table(story: Postmortem) -> Iterator[str]:
    shares = [next(iter(cure.shares.values())) for cure in story.cures if cure.shares]
    counted = f" ({shares[0].n} seeds: 0 to {shares[0].n - 1}; 95 % intervals)" if shares else ""
    yield f"The run repeated with one switch each{counted}"
    outcomes = OUTCOMES if shares else ()
    rows = [("switch", "breaks", "this run", "prevents", *outcomes), *_rows(story, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rows(story: Postmortem, outcomes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    numbers: dict[str, int] = {}
    for number, link in enumerate(story.links, 1):
        numbers.setdefault(link.name, number)
    for cure in story.cures:
        shares = (_share(cure, outcome) for outcome in outcomes)
        if cure.link is None:
            yield "(no change)", "", _outcome(cure), "", *shares
        else:
            yield cure.switch, str(numbers[cure.link]), _outcome(cure), cure.prevents, *shares


def _outcome(cure: Cure) -> str:
    if cure.first_nonfinite_step is not None:
        return f"not finite, step {cure.first_nonfinite_step:,}"
    return f"solved, step {cure.solved_step:,}" if cure.solved_step is not None else cure.outcome


def _share(cure: Cure, outcome: str) -> str:
    if cure.shares is None:
        return ""
    share = cure.shares[outcome]
    return f"{share.count / share.n:.0%} ({100 * share.low:.0f}-{100 * share.high:.0f})"
