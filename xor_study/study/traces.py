"""Recorded training of the real Axon, replayed on our engines.

A trace holds the initial weights and the batches of some runs, and what Axon computed from them. An engine trains from
the same, and everything that was recorded is compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xor_study.analysis import axon
from xor_study.engines import ENGINES, train
from xor_study.engines.results import Result
from xor_study.errors import StudyError, suggestion
from xor_study.study.versions import VERSIONS
from xor_study.training.outcome import running_mean
from xor_study.training.spec import RunSpec

LABELS = {f"axon_{version.axon.replace('.', '_')}": version.loss for version in VERSIONS if " " not in version.axon}
"""The semantics of a trace by its label."""

OPTIMIZERS = {"sgd": ("sgd", 0.01), "adam": (axon.ADAM, 0.001)}
"""Our optimizer and the default rate for each of Axon's names."""

PARAMETERS = {
    "hidden.weight": ("dense_0.kernel", True),
    "hidden.bias": ("dense_0.bias", False),
    "output.weight": ("dense_1.kernel", True),
    "output.bias": ("dense_1.bias", False),
}
"""Axon's name of each parameter, and whether it is a kernel, the transpose of a weight."""


@dataclass(frozen=True)
class Tolerance:
    """The largest deviations that pass: of losses relative to max(1, |loss|), of the rest absolute."""

    loss: float
    running_mean: float
    gradient: float
    logit: float
    parameter: float


CALM = Tolerance(loss=2.4e-7, running_mean=6e-7, gradient=2e-7, logit=6e-7, parameter=3e-7)
SOUND = Tolerance(loss=1.2e-6, running_mean=1.2e-6, gradient=1e-6, logit=1e-5, parameter=1e-5)
BROKEN = Tolerance(loss=4.4e-5, running_mean=4.4e-5, gradient=5e-5, logit=5e-4, parameter=3e-5)
"""Of losses twice the deviation of an independent float32 re-implementation in numpy: 1.2e-7 in runs at rate 0.01, 6e-7
in all runs with sound semantics, 2.2e-5 in all with broken ones. It adds a batch sample by sample, as Nx does; the
engines here add four corners, or leave the order to torch. The running mean is a float32 sum of up to 200 losses. Of
gradients, logits and parameters, for which there is no such figure, three to five times what the four traces show."""


def tolerance(spec: RunSpec) -> Tolerance:
    """Return by how much a replay of a run may deviate: more where rounding errors grow."""
    if spec.optimizer == "sgd" and spec.lr <= 0.01:
        return CALM
    return SOUND if spec.loss_logits_visible else BROKEN


@dataclass(frozen=True)
class Replay:
    """How far one engine is from one run of a trace: the largest deviations before the run stops being finite.

    Attributes:
        trace, run, engine: their names.
        spec: the run as it was trained here, except for its weights and batches.
        loss, running_mean, gradient, logit, parameter: largest deviations (see `Tolerance`).
        onset, expected_onset: the first step after which a parameter is not finite, here and in the trace, or None.
        tolerance: the deviations that pass.
    """

    trace: str
    run: str
    engine: str
    spec: RunSpec
    loss: float
    running_mean: float
    gradient: float
    logit: float
    parameter: float
    onset: int | None
    expected_onset: int | None
    tolerance: Tolerance

    @property
    def exceeded(self) -> list[str]:
        """The names of the deviations beyond their tolerance."""
        names = ("loss", "running_mean", "gradient", "logit", "parameter")
        # Not "greater": a deviation of NaN is beyond any tolerance.
        beyond = [name for name in names if not getattr(self, name) <= getattr(self.tolerance, name)]
        return beyond + ["onset"] * (self.onset != self.expected_onset)

    def __str__(self) -> str:
        onset = "finite" if self.onset is None else f"not finite from step {self.onset}"
        verdict = (
            f"EXCEEDED: {', '.join(self.exceeded)} (expected onset {self.expected_onset})" if self.exceeded else "ok"
        )
        return (
            f"{self.trace:<24} {self.run:<17} {self.engine:<6} loss {self.loss:.1e}  mean {self.running_mean:.1e}  "
            f"gradient {self.gradient:.1e}  logit {self.logit:.1e}  parameter {self.parameter:.1e}  {onset}  {verdict}"
        )


def read_trace(path: Path) -> dict[str, Any]:
    """Return the content of a trace's file.

    Raises:
        StudyError: if the file can't be read, is not a trace, or its label is not a known version.
    """
    try:
        trace = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(trace, dict) or not {"label", "batches", "runs", "steps"} <= trace.keys():
        raise StudyError(f"{path}: is not a trace (needed: label, steps, batches, runs)")
    if trace["label"] not in LABELS:
        raise StudyError(f"{path}: label {trace['label']}: unknown version{suggestion(str(trace['label']), LABELS)}")
    return trace


def floats(pattern: Iterable[str]) -> NDArray[np.float32]:
    """Return float32 numbers from their bit patterns, 8 hexadecimal digits each."""
    return np.array([int(digits, 16) for digits in pattern], np.uint32).view(np.float32)


def replay(trace: Mapping[str, Any], engines: Iterable[str] = tuple(ENGINES)) -> Iterator[Replay]:
    """Yield how far each engine is from each run of a trace.

    Args:
        trace: from `read_trace`.
        engines: names of engines.

    Raises:
        StudyError: if the trace contradicts itself or has a run of unknown kind.
    """
    try:
        yield from _replay(trace, list(engines))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, StudyError):
            raise
        raise StudyError(f"trace {trace['label']}: something is missing or malformed ({error!r})") from error


def _replay(trace: Mapping[str, Any], engines: Sequence[str]) -> Iterator[Replay]:
    x1, x2, y = (bits(trace["batches"][name]) for name in ("x1", "x2", "y"))
    if not np.array_equal(x1 ^ x2, y):
        raise StudyError(f"trace {trace['label']}: the targets are not the exclusive or of the inputs")
    name = f"{trace['label']} seed {trace.get('seed', '?')}"
    for variant, run in trace["runs"].items():
        for engine in engines:
            yield _compare(name, variant, engine, trace["label"], run, (x1, x2))


def bits(lines: Iterable[str]) -> NDArray[np.uint8]:
    """Return lines of binary digits as an array of shape (lines, digits)."""
    return np.array([[int(digit) for digit in line] for line in lines], np.uint8)


def spec_of(label: str, variant: str, run: Mapping[str, Any], steps: int, batch: int) -> RunSpec:
    """Return the run that a variant of a trace stands for: `sgd_0_1_relu` is SGD at rate 0.1 with hidden ReLU.

    Args:
        label: of the trace, a key of `LABELS`.
        variant: the run's name in the trace.
        run: its content.
        steps: how many it takes.
        batch: samples in a batch.

    Raises:
        StudyError: if the variant has an unknown optimizer or no rate.
    """
    optimizer, *rate = variant.removesuffix("_relu").split("_")
    if optimizer not in OPTIMIZERS:
        raise StudyError(f"run {variant}: unknown optimizer{suggestion(optimizer, OPTIMIZERS)}")
    ours, default = OPTIMIZERS[optimizer]
    try:
        lr = default if rate == ["default"] else float(".".join(rate))
    except ValueError:
        raise StudyError(f"run {variant}: its rate must be default or a number such as 0_1") from None
    return RunSpec(
        loss=LABELS[label],
        optimizer=ours,
        lr=lr,
        activation_hidden=run.get("hidden", "relu" if variant.endswith("_relu") else "tanh"),
        hidden=len(run["init"]["dense_0.bias"]),
        batch=batch,
        epochs=1,
        iterations=steps,
    )


def _compare(
    trace: str,
    variant: str,
    engine: str,
    label: str,
    run: Mapping[str, Any],
    batches: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> Replay:
    steps, batch = batches[0].shape
    spec = spec_of(label, variant, run, steps, batch)
    recorded = sorted({int(step) for part in ("params_after_step", "before_step") for step in run[part]})
    initial = {name: parameter(run["init"], name, spec.hidden) for name in PARAMETERS}
    result = train(spec, engine=engine, batches=batches, initial=initial, every_step=True, snapshots=recorded)
    assert result.history is not None
    # NaN in any parameter makes the largest one NaN.
    broken = ~np.isfinite(result.history["max_abs_parameter"].to_numpy())
    onset = int(broken.argmax()) + 1 if broken.any() else None
    expected = run["first_step_with_nonfinite_params"]
    last = steps if expected is None else expected  # from then on Nx's clip hides NaN, which torch and XLA do not
    loss = result.history["loss"].to_numpy()[:last]
    return Replay(
        trace,
        variant,
        engine,
        spec,
        _deviation(loss, floats(run["loss_batch"])[:last], relative=True),
        _deviation(running_mean(loss), floats(run["loss_running_mean"])[:last], relative=True),
        **_snapshots(result, run, spec, batches, last),
        onset=onset,
        expected_onset=expected,
        tolerance=tolerance(spec),
    )


def _snapshots(
    result: Result,
    run: Mapping[str, Any],
    spec: RunSpec,
    batches: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    last: int,
) -> dict[str, float]:
    """Return the largest deviations of gradients, logits and parameters at the recorded steps up to `last`."""
    expected = run["first_step_with_nonfinite_params"]
    largest = {"gradient": 0.0, "logit": 0.0, "parameter": 0.0}

    def note(what: str, here: NDArray[np.float32], there: NDArray[np.float32]) -> None:
        largest[what] = max(largest[what], _deviation(here, there), key=lambda x: math.inf if math.isnan(x) else x)

    for step, there in run["params_after_step"].items():
        for name in PARAMETERS if int(step) < last or expected is None else ():
            note(
                "parameter",
                result.snapshots[int(step)].parameters[name][0].numpy(),
                parameter(there, name, spec.hidden),
            )
    for step, there in run["before_step"].items():
        if int(step) > last:
            continue
        here = result.snapshots[int(step)]
        if int(step) < last or expected is None:  # the gradient is what breaks first
            for name in PARAMETERS:
                note("gradient", here.gradients[name][0].numpy(), parameter(there["grads"], name, spec.hidden))
        corner = 2 * batches[0][int(step) - 1] + batches[1][int(step) - 1]
        note("logit", here.logits[0].numpy()[corner], floats(there["logits"]))
    return largest


def parameter(theirs: Mapping[str, list[str]], name: str, width: int) -> NDArray[np.float32]:
    """Return one of our parameters from a trace's, in our shape.

    Args:
        theirs: bit patterns by Axon's names.
        name: ours.
        width: of the hidden layer.
    """
    key, is_kernel = PARAMETERS[name]
    values = floats(theirs[key])
    if not is_kernel:
        return values
    return values.reshape((2, width) if name == "hidden.weight" else (width, 1)).T


def _deviation(here: NDArray[Any], there: NDArray[Any], *, relative: bool = False) -> float:
    """Return the largest difference; equal infinities and two NaN differ by 0, one NaN alone gives NaN."""
    one, other = here.astype(np.float64), there.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        size = np.maximum(1, np.abs(other)) if relative else 1.0
        difference = np.where(same, 0.0, np.abs(one - other) / size)
    return float(difference.max(initial=0.0))
