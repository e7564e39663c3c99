"""What all cases share: the registers, the mark of the culprit line, and a training loop."""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Training = Callable[[], None]
FAILURES: dict[str, Training] = {}
HEALTHY: dict[str, Training] = {}
DRIFTING: dict[str, Training] = {}


@dataclass(frozen=True)
class Culprit:
    """Where a planted failure is."""

    filename: str
    lineno: int
    phase: str


def culprit(training: Training) -> Culprit:
    """Return the marked line of a failing case."""
    lines, start = inspect.getsourcelines(training)
    (found,) = [(i, m[1]) for i, line in enumerate(lines) if (m := re.search(r"# culprit: (\w+)$", line.rstrip()))]
    return Culprit(inspect.getfile(training), start + found[0], found[1])


def failing(training: Training) -> Training:
    """Enter a case among the failures."""
    FAILURES[training.__name__] = training
    return training


def healthy(training: Training) -> Training:
    """Enter a case among the healthy ones."""
    HEALTHY[training.__name__] = training
    return training


def drifting(training: Training) -> Training:
    """Enter a case among those that fail only after many steps."""
    DRIFTING[training.__name__] = training
    return training


def train(model: nn.Module, loss: Callable[[int], Tensor], steps: int = 3, lr: float = 0.01) -> None:
    """Do what every training loop does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def with_warning_silenced(training: Training) -> None:
    """Run without torch's own remark on degrees of freedom."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training()
