"""Replay of traces that the real Axon left: python -m xor_study.conformance [--versions] FILE...

A trace holds the initial weights and the batches of some runs, and what Axon computed from them. Every engine trains
from the same, and everything that was recorded is compared. One line for each trace, run and engine; exit code 1 if a
deviation exceeds its tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xor_study.engines import ENGINES, train
from xor_study.engines.results import Result
from xor_study.errors import StudyError, in_one_line, suggestion
from xor_study.model.losses import LOSSES
from xor_study.training.outcome import running_mean
from xor_study.training.spec import RunSpec


@dataclass(frozen=True)
class Version:
    """A version of Axon that was run, with what its users need to know.

    Attributes:
        axon, nx: the versions.
        loss: the preset of `axon_binary_cross_entropy` with its semantics.
    """

    axon: str
    nx: str
    loss: str

    @property
    def affected(self) -> bool:
        """Whether training the XOR example diverges."""
        return not LOSSES.presets[self.loss].parameters["logits_visible"]


VERSIONS = (
    Version("0.4.1", "0.4.2", "axon_0_7_0"),
    Version("0.5.1", "0.5.3", "axon_0_7_0"),
    Version("0.6.0", "0.6.4", "axon_0_7_0"),
    Version("0.6.1", "0.6.4", "axon_0_6_1"),
    Version("0.6.1", "0.7.3", "axon_0_6_1"),
    Version("parent of 0473cf92", "0.7.2", "axon_0_6_1"),
    Version("0473cf92", "0.7.2", "axon_0_7_0"),
    Version("0.7.0", "0.9.0", "axon_0_7_0"),
)
"""Measured on the real Axon; see tests/data/axon/README.md."""

LABELS = {f"axon_{version.axon.replace('.', '_')}": version.loss for version in VERSIONS if " " not in version.axon}
"""The semantics of a trace by its label."""

OPTIMIZERS = {"sgd": ("sgd", 0.01), "adam": ("polaris_adam", 0.001)}
"""What Axon's names stand for, with the rate they have unless told."""

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
    """Return what a replay of this run may deviate: more where rounding errors grow."""
    if spec.optimizer == "sgd" and spec.lr <= 0.01:
        return CALM
    return SOUND if spec.loss_logits_visible else BROKEN


@dataclass(frozen=True)
class Replay:
    """How far one engine is from one run of a trace: the largest deviations before the run stops being finite.

    Attributes:
        trace, run, engine: which.
        spec: the run as it was trained here, but for its weights and batches.
        loss, running_mean, gradient, logit, parameter: largest deviations (see `Tolerance`).
        onset, expected_onset: the first step after which a parameter is not finite, or None.
        tolerance: what they may be.
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
        """The names of what deviates too much."""
        names = ("loss", "running_mean", "gradient", "logit", "parameter")
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
    """Return a trace as it stands in its file.

    Raises:
        StudyError: if the file can't be read, is no trace, or its label is no version that is known.
    """
    try:
        trace = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(trace, dict) or not {"label", "batches", "runs", "steps"} <= trace.keys():
        raise StudyError(f"{path}: is no trace (needed: label, steps, batches, runs)")
    if trace["label"] not in LABELS:
        raise StudyError(f"{path}: label {trace['label']}: unknown version{suggestion(str(trace['label']), LABELS)}")
    return trace


def floats(pattern: Iterable[str]) -> NDArray[np.float32]:
    """Return float32 numbers from their bit patterns, 8 hexadecimal digits each."""
    return np.array([int(digits, 16) for digits in pattern], np.uint32).view(np.float32)


def replay(trace: Mapping[str, Any], engines: Iterable[str] = tuple(ENGINES)) -> Iterator[Replay]:
    """Yield how far each engine is from each run of a trace (from `read_trace`).

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
    """Return the run that a variant of a trace stands for: `sgd_0_1_relu` is SGD at rate 0.1 with hidden ReLU."""
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
    initial = {name: ours(run["init"], name, spec.hidden) for name in PARAMETERS}
    result = train(spec, engine=engine, batches=batches, initial=initial, every_step=True, snapshots=recorded)
    assert result.history is not None
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
            note("parameter", result.snapshots[int(step)].parameters[name][0].numpy(), ours(there, name, spec.hidden))
    for step, there in run["before_step"].items():
        if int(step) > last:
            continue
        here = result.snapshots[int(step)]
        if int(step) < last or expected is None:  # the gradient is what breaks first
            for name in PARAMETERS:
                note("gradient", here.gradients[name][0].numpy(), ours(there["grads"], name, spec.hidden))
        corner = 2 * batches[0][int(step) - 1] + batches[1][int(step) - 1]
        note("logit", here.logits[0].numpy()[corner], floats(there["logits"]))
    return largest


def ours(theirs: Mapping[str, list[str]], name: str, width: int) -> NDArray[np.float32]:
    """Return one of our parameters from a trace's, in our shape."""
    key, is_kernel = PARAMETERS[name]
    values = floats(theirs[key])
    if not is_kernel:
        return values
    return values.reshape((2, width) if name == "hidden.weight" else (width, 1)).T


def _deviation(here: NDArray[Any], there: NDArray[Any], *, relative: bool = False) -> float:
    """Return the largest difference; equal infinities and two NaN are no difference, one NaN alone is NaN."""
    one, other = here.astype(np.float64), there.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        size = np.maximum(1, np.abs(other)) if relative else 1.0
        difference = np.where(same, 0.0, np.abs(one - other) / size)
    return float(difference.max(initial=0.0))


def versions_table() -> str:
    """Return which Axon with which Nx is affected by which defect, and what to do, as Markdown."""
    lines = [
        "| Axon | Nx | sigmoid's logits reach the loss | gradient of Nx.clip | `:sgd` on XOR | what to do |",
        "|---|---|---|---|---|---|",
    ]
    for version in VERSIONS:
        found = ["**no**", "**squared, and used**", "**diverges, NaN in half of the runs**", "update Axon to 0.7.0"]
        if not version.affected:
            found = ["yes", "squared, but not used", "trains", "nothing"]
        lines.append("| " + " | ".join([version.axon, version.nx, *found]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print one line for each trace, run and engine."""
    parser = argparse.ArgumentParser(
        prog="python -m xor_study.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a trace, as in tests/data/axon")
    parser.add_argument("--versions", action="store_true", help="print which versions of Axon are affected")
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="only this engine; may be repeated")
    options = parser.parse_args()
    if not options.versions and not options.files:
        parser.error("give a trace, or --versions")
    failed = 0
    with in_one_line():
        if options.versions:
            print(versions_table())
        traces = [read_trace(path) for path in options.files]
        for trace in traces:
            for found in replay(trace, options.engine or ENGINES):
                print(found, flush=True)
                failed += bool(found.exceeded)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
