"""Prove the autopsy: python scripts/autopsy.py {failures,cost} [--out results/autopsy].

`failures` runs every case of `scripts/planted.py` under the autopsy, under `torch.autograd.set_detect_anomaly` and
under a guard that looks at each module's output, and prints which line each of them names. `cost` times the training
step of a transformer and of a convolutional network with and without the autopsy. Both write JSON and markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import planted
import torch
import torch.nn.functional as F
from planted import Culprit, Training
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from xor_study.autopsy import autopsy
from xor_study.files import write_atomically
from xor_study.sweeps.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
EXACT, ELSEWHERE, SILENT = "exact", "another line", "silent"


def line_of(trace: TracebackType | None) -> int | None:
    """Return the innermost line of the planted cases in a traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == planted.__file__]
    return lines[-1] if lines else None


def by_autopsy(training: Training) -> int | None:
    """Return the line that the autopsy names first."""
    report = None
    try:
        with autopsy() as report:
            training()
    except torch.linalg.LinAlgError:  # torch's own refusal of a matrix that is not finite, one step later
        pass
    return report.first.lineno if report and report.first else None


def by_anomaly_mode(training: Training) -> int | None:
    """Return the line of the forward call that torch's anomaly mode names, or that of its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True):
                training()
        except RuntimeError as error:
            named = [str(w.message) for w in caught if "Traceback of forward call" in str(w.message)]
            lines = [line for line in "".join(named[:1]).splitlines() if planted.__file__ in line]
            if "returned nan values" not in str(error):
                return None
            return int(lines[-1].split(", line ")[1].split(",")[0]) if lines else line_of(error.__traceback__)
    return None


class GuardError(Exception):
    """A module gave something not finite."""


def by_module_guard(training: Training) -> int | None:
    """Return the line at which the first module whose output is not finite was called."""

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
            raise GuardError

    handle = register_module_forward_hook(look)
    try:
        training()
    except GuardError as error:
        return line_of(error.__traceback__)
    except torch.linalg.LinAlgError:
        return None
    finally:
        handle.remove()
    return None


GUARDS: dict[str, Callable[[Training], int | None]] = {
    "autopsy": by_autopsy,
    "anomaly mode": by_anomaly_mode,
    "module hooks": by_module_guard,
}


def verdict(line: int | None, culprit: Culprit) -> str:
    """Return whether a guard has named the culprit line."""
    return SILENT if line is None else EXACT if line == culprit.lineno else ELSEWHERE


def failures() -> pd.DataFrame:
    """Return one row per planted failure: what each guard says."""
    rows = []
    for name, training in planted.FAILURES.items():
        culprit = planted.culprit(training)
        row: dict[str, Any] = {"failure": name.replace("_", " "), "phase": culprit.phase}
        for guard, run in GUARDS.items():
            torch.manual_seed(0)
            row[guard] = verdict(run(training), culprit)
        rows.append(row)
    return pd.DataFrame(rows)


def false_accusations() -> pd.DataFrame:
    """Return one row per healthy case: whether a guard accuses it of anything."""
    rows = []
    for name, training in planted.HEALTHY.items():
        row: dict[str, Any] = {"healthy": name.replace("_", " ")}
        for guard, run in GUARDS.items():
            torch.manual_seed(0)
            row[guard] = "silent" if run(training) is None else "accused"
        rows.append(row)
    return pd.DataFrame(rows)


class Transformer(nn.Module):
    """Four encoder layers of width 128 with a causal mask, over 256 symbols."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.embedding = nn.Embedding(256, 128)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Map symbols, shape (batch, length), to logits (batch, length, 256)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(self.embedding(x), mask=mask, is_causal=True))


def convolutions() -> nn.Sequential:
    """Return three blocks of convolution, batch norm, ReLU and pooling for 32 x 32 images."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Training:
    """Return a function that does one training step."""

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()

    return step


def steppers() -> dict[str, tuple[nn.Module, Training]]:
    """Return the models and training steps that are timed."""
    torch.manual_seed(0)
    transformer, cnn = Transformer(), convolutions()
    tokens, images = torch.randint(256, (2, 8, 64)), torch.randn(16, 3, 32, 32)
    return {
        "transformer, width 128, 4 layers, batch 8 x 64, AdamW": (
            transformer,
            stepper(transformer, torch.optim.AdamW(transformer.parameters()), *tokens),
        ),
        "CNN, 32 x 32 images, batch 16, SGD with momentum": (
            cnn,
            stepper(cnn, torch.optim.SGD(cnn.parameters(), lr=0.01, momentum=0.9), images, torch.randint(10, (16,))),
        ),
    }


def milliseconds(step: Training, repeats: int) -> float:
    """Return the mean time of a step."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats * 1000


def cost(rounds: int, repeats: int) -> pd.DataFrame:
    """Return medians over rounds that take all kinds of steps in turn, the last after an event; one thread."""
    torch.set_num_threads(1)
    rows = []
    for name, (_, step) in steppers().items():
        milliseconds(step, repeats)
        times: dict[str, list[float]] = {"eager": [], "autopsy": [], "near misses": [], "after an event": []}
        for _ in range(rounds):
            times["eager"].append(milliseconds(step, repeats))
            with autopsy() as report:
                times["autopsy"].append(milliseconds(step, repeats))
            assert report.first is None
            with autopsy(near_misses=True):
                times["near misses"].append(milliseconds(step, repeats))
            model, spoilt = steppers()[name]
            with autopsy() as report:
                with torch.no_grad():
                    next(model.parameters()).div_(0)
                spoilt()
                times["after an event"].append(milliseconds(spoilt, repeats))
            assert report.first is not None
        ratios, near, after = (
            [watched / base for watched, base in zip(times[kind], times["eager"], strict=True)]
            for kind in ("autopsy", "near misses", "after an event")
        )
        row: dict[str, Any] = {"training step": name, "eager, ms": statistics.median(times["eager"])}
        row["autopsy, ms"] = statistics.median(times["autopsy"])
        row["times eager"] = statistics.median(ratios)
        row["lowest"], row["highest"] = min(ratios), max(ratios)
        row["with near misses, times"] = statistics.median(near)
        row["after an event, times"] = statistics.median(after)
        row["operations"] = report.operations // (repeats + 1)
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table in markdown."""
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row] for row in table.to_numpy()]
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run one of the two proofs, print its table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=["failures", "cost"])
    parser.add_argument("--out", type=Path, default=ROOT / "results/autopsy")
    parser.add_argument("--rounds", type=int, default=9, help="of the cost measurement")
    parser.add_argument("--repeats", type=int, default=10, help="steps in a round")
    options = parser.parse_args()
    if min(options.rounds, options.repeats) < 1:
        print("error: --rounds and --repeats must be at least 1", file=sys.stderr)
        sys.exit(1)
    if options.proof == "cost":
        tables = {"cost": cost(options.rounds, options.repeats)}
    else:
        planted_table, healthy = failures(), false_accusations()
        exact = [f"{(planted_table[guard] == EXACT).sum()} of {len(planted_table)}" for guard in GUARDS]
        accused = [f"{(healthy[guard] == 'accused').sum()} of {len(healthy)}" for guard in GUARDS]
        totals = pd.DataFrame({"guard": list(GUARDS), "culprit line named": exact, "healthy accused": accused})
        tables = {"failures": planted_table, "healthy": healthy, "totals": totals}
    text = "\n".join(markdown(table) for table in tables.values())
    print(text)
    command = f"python scripts/autopsy.py {options.proof}"
    record = {"command": command, "threads": torch.get_num_threads(), "made_with": provenance()}
    record |= {name: table.to_dict("records") for name, table in tables.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", json.dumps(record, indent=1) + "\n"), ("md", f"`{command}`\n\n{text}")):
        path = options.out / f"{options.proof}.{suffix}"
        write_atomically(path, lambda stream, content=content: stream.write(content.encode()))


if __name__ == "__main__":
    main()
