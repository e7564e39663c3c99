"""Axon's defects as switches of a run, and which of them each version has: the one place for both."""

from __future__ import annotations

import math
from typing import Any

from xor_study.model.gradients import AXON_EPSILON
from xor_study.model.losses import LOSSES
from xor_study.training.spec import LARGEST

LOSS = "axon_binary_cross_entropy"


def _of_version(preset: str) -> dict[str, Any]:
    """Return the switches that a version's preset sets, by their keys on the command line."""
    return {f"loss.{name}": value for name, value in LOSSES.presets[preset].parameters.items()}


BROKEN = _of_version("axon_0_6_1")
"""Axon 0.6.1: all three defects act."""

NEWEST = _of_version("axon_0_7_0")
"""Axon 0.7.0: the logits are visible again, so the two other defects don't act."""

SWITCHES = list(BROKEN)

REPAIRED = {key: LOSSES.parameters(LOSS)[key.removeprefix("loss.")].default for key in SWITCHES}
"""Each switch as it is without its defect."""

PLATEAU = -math.log(2 * AXON_EPSILON) / 2
"""The mean loss of 0.6.1 once every prediction is 0: half of the targets cost -log(2 eps) each."""

OVERFLOW = math.log(LARGEST["float32"])
"""Beyond -z = 88.72, e^-z is infinite in float32."""


def cell(switches: dict[str, Any]) -> dict[str, Any]:
    """Return switches and their loss as `Cells.where` takes them: a dot is written as two underscores."""
    return {"loss": LOSS} | {key.replace(".", "__"): value for key, value in switches.items()}
