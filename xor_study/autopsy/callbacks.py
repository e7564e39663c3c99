"""What the callbacks for trainers share: a block that is opened and closed by calls, and what is printed at its end."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from xor_study.autopsy.decorator import Block
from xor_study.autopsy.report import NonFiniteError, Report
from xor_study.autopsy.session import autopsy


class TrainerBlock:
    """An autopsy that a trainer's callback opens and closes.

    Args:
        options: the arguments of `autopsy`.

    Attributes:
        report: of the block that was opened last; None before the first.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        autopsy(**options)  # refuses wrong names now, not after hours in which the data were prepared
        self.report: Report | None = None
        self._options = options
        self._block: Block | None = None
        self._metrics: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether the watch is on."""
        return self._block is not None

    def open(self) -> None:
        """Begin to watch, with a new report."""
        self._metrics = {}
        self._block = autopsy(**self._options)
        self.report = self._block.__enter__()

    def close(self, error: BaseException | None, rank: int, ranks: int) -> None:
        """Stop watching, and print the story if something was not finite; do nothing if it is not open.

        Args:
            error: what has ended the training, or None.
            rank: of this process, from 0.
            ranks: the number of processes that train together.

        Raises:
            NonFiniteError: at an event that only the end of the block confirms, if `on_event` is "raise".
        """
        block, self._block = self._block, None
        if block is None:
            return
        block.leave(error)
        report = self.report
        if report is None or isinstance(error, NonFiniteError):  # the message of that error has the story already
            return
        if self._metrics and report.first is None:
            report.note(_unexplained(self._metrics, report))
        if report.first or report.unresolved or self._metrics:
            prefix = f"[rank {rank}] " if ranks > 1 else ""
            print(f"{prefix}{report.story}", file=sys.stderr, flush=True)

    def see_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Remember those that are not finite: a trainer computes them in numpy, which is not watched."""
        bad = {name: value for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
        self._metrics |= bad

    def note_resumption(self, step: int) -> None:
        """Say in the report how its steps and the trainer's differ.

        Args:
            step: the number of steps that the trainer counts before the first one of the block.
        """
        if step and self.report:
            self.report.note(f"training was resumed after step {step}; the steps of this report are counted from there")


def _unexplained(metrics: dict[str, float], report: Report) -> str:
    """Return a note on metrics that are not finite though there is no event."""
    names = ", ".join(f"{name} is {value}" for name, value in metrics.items())
    lines = [f"{operation} at {line}" for operation, line in list(report.discarded)[:3]]
    made = f"; values that were not finite, and that numpy may have read, came from {', '.join(lines)}" if lines else ""
    return f"{names} without an event{made}"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ImportError: if it is not installed, with the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # it is there, but something that it needs is not
            raise
        message = f"xor_study.autopsy.{extra} needs {error.name}: pip install 'xor-study[{extra}]'"
        raise ImportError(message, name=error.name) from None
