"""The figure of a postmortem: a run's loss and its last steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xor_study.figures.factors import factors, logits
from xor_study.figures.style import GREY, LEVEL_COLOURS, NAN, TALLEST, legend_beside, styled, subplots


@styled()
def last_steps(
    title: str, history: pd.DataFrame, last: pd.DataFrame, corners: pd.DataFrame, marks: Mapping[str, int]
) -> Figure:
    """Draw a run's loss and its last steps, in two panels or, with corners, in four.

    Args:
        title: describes the run.
        history: of the whole run: column loss, the index is the step.
        last: of the last steps: columns step, grad_norm and max_abs_logit.
        corners: of the steps that were replayed: columns step, corner, logit, prediction, upstream, slope, gradient and
            perhaps exponential (e^-z); may be empty.
        marks: steps to mark in the curve of the loss, by their meaning.
    """
    panels = 4 if len(corners) else 2
    figure, axes = subplots(panels, height=TALLEST if len(corners) else 2.7, height_ratios=[1.1, 1, 1, 1.2][:panels])
    figure.suptitle(title if len(title) <= 60 else title[:57] + "...", fontsize=8, x=0.01, ha="left")
    _loss(axes[0], history, marks)
    _growth(axes[1], last)
    titles = ["loss", "the last steps"]
    if len(corners):
        logits(axes[2], corners)
        titles += ["logits of the corners", f"gradient of corner {factors(axes[3], corners)}, and its factors"]
        for ax in axes[1:3]:
            ax.sharex(axes[3])
            ax.tick_params(axis="x", labelbottom=False)
    for ax, text, letter in zip(axes, titles, "abcd", strict=False):
        ax.set_title(f"({letter}) {text}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[-1].set_xlabel("step")
    return figure


def _loss(axes: Axes, history: pd.DataFrame, marks: Mapping[str, int]) -> None:
    end = max(marks.values(), default=len(history))
    loss = history["loss"].loc[: end + 1]
    finite = loss[np.isfinite(loss)]
    mean = finite.rolling(10, min_periods=1).mean()
    axes.plot(finite.index, finite, color=GREY, alpha=0.6, linewidth=0.4, label="each step")
    axes.plot(mean.index, mean, color="black", linewidth=1, label="mean of 10")
    if len(finite) and finite.min() > 0 and finite.max() > 20 * finite.median():
        axes.set_yscale("log")
    for (what, step), line, colour in zip(marks.items(), ("--", "-", ":"), (GREY, NAN, "black"), strict=False):
        axes.axvline(step, color=colour, linestyle=line, linewidth=1, label=f"{what},\nstep {step:,}")
    axes.set_ylabel("loss")
    legend_beside(axes)


def _growth(axes: Axes, last: pd.DataFrame) -> None:
    for column, label, marker, colour, line in (
        ("max_abs_logit", "largest $|z|$", "o", LEVEL_COLOURS[0], "-"),
        ("grad_norm", "gradient\nnorm", "s", LEVEL_COLOURS[1], "--"),
    ):
        values = last[column].where(np.isfinite(last[column]) & (last[column] > 0))
        axes.plot(last["step"], values, line, color=colour, marker=marker, markersize=2, linewidth=0.8, label=label)
    axes.set_yscale("log")
    legend_beside(axes)
