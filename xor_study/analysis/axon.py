"""Axon's defects as switches of a run, and which of them each version has: the one place for both."""

from __future__ import annotations

import math
from typing import Any

from xor_study.model.gradients import AXON_EPSILON
from xor_study.model.losses import LOSSES
from xor_study.training.spec import LARGEST, RunSpec

LOSS = "axon_binary_cross_entropy"
ADAM = "polaris_adam"
"""What `:adam` is in Axon."""


def _of_version(preset: str) -> dict[str, Any]:
    """Return the loss of a version, named by its preset, with its switches, by their keys on the command line."""
    return {"loss": LOSS} | {f"loss.{name}": value for name, value in LOSSES.presets[preset].parameters.items()}


BROKEN = _of_version("axon_0_6_1")
"""Axon 0.6.1: all three defects act."""

NEWEST = _of_version("axon_0_7_0")
"""Axon 0.7.0: the logits are visible again, so the two other defects don't act."""

SWITCHES = [key for key in BROKEN if key != "loss"]

REPAIRED = {key: LOSSES.parameters(LOSS)[key.removeprefix("loss.")].default for key in SWITCHES}
"""Each switch as it is without its defect."""

SETTINGS: dict[str, dict[str, Any]] = {
    "SGD 0.01": {"optimizer": "sgd", "lr": 0.01},
    "SGD 0.1": {"optimizer": "sgd", "lr": 0.1},
    "Adam 0.001": {"optimizer": ADAM, "lr": 0.001},
}
"""The optimizers and rates that `study=mechanism` trains every combination of the switches with."""

PLATEAU = -math.log(2 * AXON_EPSILON) / 2
"""The mean loss of 0.6.1 once every prediction is 0: half of the targets cost -log(2 eps) each."""

PLATEAU_FORMULA = f"-log({2 * AXON_EPSILON:.0e}) / 2".replace("e-0", "e-")

OVERFLOW = math.log(LARGEST["float32"])
"""Beyond -z = 88.72, e^-z is infinite in float32."""


def squared(spec: RunSpec) -> bool:
    """Return whether a run's loss clips its prediction and Nx's clip squares the gradient."""
    return spec.loss_clip_gradient == "squared" and spec.loss_logits_visible is not True


def exponential(spec: RunSpec) -> bool:
    """Return whether the sigmoid's gradient is Nx's e^-z p p, by the loss or by the output activation."""
    return spec.loss_sigmoid_gradient == "exponential" or spec.activation_output == "nx_sigmoid"
