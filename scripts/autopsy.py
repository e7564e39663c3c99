"""Prove the autopsy: python scripts/autopsy.py {failures,ahead,rules,cost} [--out results/autopsy].

`failures` runs every case of `scripts/planted` under the autopsy, under `torch.autograd.set_detect_anomaly`, under
torch's DebugMode, and under guards that look at each module's output, and prints which line each of them names.
`ahead` measures how many steps before a failure the first warning comes, and how many healthy cases are warned of.
`rules` prints what is named and watched for. `cost` times the training step of a transformer and of a convolutional
network with and without the autopsy. All write JSON and markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
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
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from xor_study.autopsy import autopsy
from xor_study.autopsy.near_misses import EDGES
from xor_study.autopsy.rules import RULES
from xor_study.files import write_atomically
from xor_study.sweeps.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
CASES = str(Path(planted.__file__).parent)
EXACT, ELSEWHERE, SILENT, CRASHED, NOT_USABLE = "exact", "another line", "silent", "crashed", "-"
Line = tuple[str, int]


def line_of(trace: TracebackType | None) -> Line | None:
    """Return the innermost line of the planted cases in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if frame.filename.startswith(CASES)]
    return (frames[-1].filename, frames[-1].lineno or 0) if frames else None


def line_in(text: str) -> Line | None:
    """Return the last line of the planted cases that a printed traceback names."""
    found = re.findall(rf'File "({re.escape(CASES)}[^"]*)", line (\d+)', text)
    return (found[-1][0], int(found[-1][1])) if found else None


def by_autopsy(training: Training) -> Line | None:
    """Return the line that the autopsy names first."""
    report = None
    try:
        with autopsy() as report:
            training()
    except torch.linalg.LinAlgError:  # torch's own refusal of a matrix that is not finite, one step later
        pass
    first = report.first if report else None
    return (first.filename or "", first.lineno or 0) if first else None


def by_anomaly_mode(training: Training) -> Line | None:
    """Return the line of the forward call that torch's anomaly mode names, or that of its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True):
                training()
        except torch.linalg.LinAlgError:
            return None
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            named = [str(w.message) for w in caught if "Traceback of forward call" in str(w.message)]
            return line_in("".join(named[:1])) or line_of(error.__traceback__)
    return None


def by_debug_mode(training: Training) -> Line | None:
    """Return the line of the first operation that torch's DebugMode records with a value that is not finite.

    DebugMode records operations and their stacks; a hook of ours says which results are not finite.
    """
    from torch.utils._debug_mode import DebugMode

    def strange(func: Any, types: Any, args: Any, kwargs: Any, result: Any) -> dict[str, Any]:
        if "empty" in str(func):  # memory that nothing has filled yet holds anything
            return {"strange": False}
        return {"strange": any(map(is_strange, torch.utils._pytree.tree_leaves(result)))}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with DebugMode(record_stack_trace=True) as mode, DebugMode.dispatch_hooks(record_hook=strange):
                training()
        except torch.linalg.LinAlgError:
            pass
    for call in mode.operators:
        if call.record and call.record["strange"]:
            return line_in(call.fwd_stack_trace or call.stack_trace or "") or ("", 0)
    return None


def is_strange(value: Any) -> bool:
    """Return whether a value is a tensor with an element that is not finite; False where it has none to read."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        return False
    try:
        return not torch.isfinite(value).all().item()
    except (RuntimeError, NotImplementedError):  # fake, meta, traced or vectorized
        return False


class GuardError(Exception):
    """A module gave something not finite."""


def by_module_guard(training: Training) -> Line | None:
    """Return the line at which the first module whose output is not finite was called."""

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if is_strange(output):
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


def by_underflow_overflow(training: Training) -> Line | str | None:
    """Return where the modules were called when Hugging Face's DebugUnderflowOverflow raised, "-" without modules."""
    try:
        from transformers.debug_utils import DebugUnderflowOverflow
    except ImportError:
        return NOT_USABLE
    roots: dict[nn.Module, Any] = {}

    def attach(module: nn.Module, args: Any) -> None:
        if not any(module in root.modules() for root in roots):
            roots[module] = DebugUnderflowOverflow(module)

    handle = register_module_forward_pre_hook(attach)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its last 21 frames
            training()
    except ValueError as error:
        if "DebugUnderflowOverflow" not in str(error):
            raise
        return line_of(error.__traceback__)
    except torch.linalg.LinAlgError:
        return None
    finally:
        handle.remove()
    return None if roots else NOT_USABLE


GUARDS: dict[str, Callable[[Training], Line | str | None]] = {
    "autopsy": by_autopsy,
    "anomaly mode": by_anomaly_mode,
    "module hooks": by_module_guard,
    "DebugMode": by_debug_mode,
    "DebugUnderflowOverflow": by_underflow_overflow,
}


def run(guard: str, training: Training) -> Line | str | None:
    """Return what a guard says of a case; "crashed" if the case doesn't end under it as it does without."""
    torch.manual_seed(0)
    try:
        return GUARDS[guard](training)
    except Exception:
        return CRASHED


def verdict(named: Line | str | None, culprit: Culprit) -> str:
    """Return whether a guard has named the culprit line."""
    if isinstance(named, str):
        return named
    return SILENT if named is None else EXACT if named == (culprit.filename, culprit.lineno) else ELSEWHERE


def failures() -> pd.DataFrame:
    """Return one row per planted failure: what each guard says."""
    rows = []
    for name, training in planted.FAILURES.items():
        culprit = planted.culprit(training)
        row: dict[str, Any] = {"failure": name.replace("_", " "), "phase": culprit.phase}
        rows.append(row | {guard: verdict(run(guard, training), culprit) for guard in GUARDS})
    return pd.DataFrame(rows)


def false_accusations() -> pd.DataFrame:
    """Return one row per healthy case: whether a guard accuses it of anything."""
    rows = []
    for name, training in planted.HEALTHY.items():
        row: dict[str, Any] = {"healthy": name.replace("_", " ")}
        for guard in GUARDS:
            named = run(guard, training)
            row[guard] = named if isinstance(named, str) else SILENT if named is None else "accused"
        rows.append(row)
    return pd.DataFrame(rows)


def totals(planted_table: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """Return one row per guard: how often it named the culprit line, accused a healthy case, or broke a program."""
    rows = []
    for guard in GUARDS:
        failing, sound = planted_table[guard], healthy[guard]
        usable = int((failing != NOT_USABLE).sum()), int((sound != NOT_USABLE).sum())
        crashed = int((failing == CRASHED).sum() + (sound == CRASHED).sum())
        row: dict[str, Any] = {"guard": guard, "culprit line named": f"{(failing == EXACT).sum()} of {usable[0]}"}
        row |= {
            "healthy accused": f"{(sound == 'accused').sum()} of {usable[1]}",
            "crashed": f"{crashed} of {sum(usable)}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def ahead() -> pd.DataFrame:
    """Return one row per program that fails after many steps: how many steps before it the first warning comes."""
    rows = []
    for name, training in planted.DRIFTING.items():
        torch.manual_seed(0)
        with autopsy(near_misses=True, lint=True) as report:
            training()
        first, culprit = report.first, planted.culprit(training)
        assert first is not None, name
        near = [miss for miss in report.near_misses if miss.kind in ("edge", "overflow")]
        warned = min(near, key=lambda miss: miss.step, default=None)
        named = {risk.rule: risk.source.lineno == culprit.lineno for risk in report.risks}
        assert all(risk.count >= first.step - 1 for risk in report.risks), name  # from the first step on
        row: dict[str, Any] = {"program": name.replace("_", " "), "fails in step": first.step, "at": first.operation}
        row["line named"] = verdict((first.filename or "", first.lineno or 0), culprit)
        row["first warning"] = f"{warned.operation}, {warned.kind}" if warned else "none"
        row["steps ahead"] = first.step - warned.step if warned else 0
        row["lint, in the first step"] = "; ".join(named) or "none"
        row["on the failing line"] = "yes" if any(named.values()) else "no"
        rows.append(row)
    return pd.DataFrame(rows)


def false_warnings() -> pd.DataFrame:
    """Return one row per sort of warning: how many healthy cases have one, and which."""
    named: dict[str, list[str]] = {"lint": [], "edge": [], "overflow": [], "subnormal": [], "saturated": []}
    for name, training in planted.HEALTHY.items():
        torch.manual_seed(0)
        try:
            with autopsy(near_misses=True, lint=True) as report:
                training()
        except Exception:  # `failures` counts these
            continue
        kinds = {miss.kind for miss in report.near_misses} | ({"lint"} if report.risks else set())
        for kind in kinds:
            named[kind].append(name.replace("_", " "))
    count = len(planted.HEALTHY)
    rows = [
        {"warning": kind, "healthy cases with it": f"{len(cases)} of {count}", "which": "; ".join(cases) or "none"}
        for kind, cases in named.items()
    ]
    return pd.DataFrame(rows)


def rules() -> pd.DataFrame:
    """Return one row per composition that `lint=True` names."""
    rows = [{"composition": rule.name, "stable form": rule.stable, "source": link(rule.source)} for rule in RULES]
    return pd.DataFrame(rows)


def edges() -> pd.DataFrame:
    """Return one row per edge that `near_misses=True` watches."""
    rows = []
    for edge in EDGES:
        plain = sorted(name for name in edge.operations if not name.endswith("_"))
        rows.append({"operation": ", ".join(plain), "edge": edge.where, "source": link(edge.source)})
    return pd.DataFrame(rows)


def link(address: str) -> str:
    """Return a short link in markdown."""
    words = address.removesuffix(".html").removesuffix(".pdf").split("/")
    return f"[{'/'.join(words[-3:]) if 'issues' in words else words[-1]}]({address})"


class Transformer(nn.Module):
    """Four encoder layers with a causal mask, over 256 symbols.

    Args:
        width: of the layers.
        before: whether a layer normalises its input, with GELU, as GPT-2 does, or its output, with ReLU.
    """

    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        activation = F.gelu if before else F.relu
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, batch_first=True, norm_first=before, activation=activation
        )
        self.embedding = nn.Embedding(256, width)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

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


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut: a block of ResNet-18 (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm2d(channels), nn.ReLU(True), second, nn.BatchNorm2d(channels))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            narrow = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(narrow, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images, shape (n, channels_in, height, width)."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet18() -> nn.Sequential:
    """Return ResNet-18 for ten classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for channels_in, channels, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Residual(channels_in, channels, stride), Residual(channels, channels, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Bare(TorchDispatchMode):
    """Passes every operation on and does nothing else: the least that any tool costs that sees all of them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        return func(*args, **(kwargs or {}))


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
    made: dict[str, tuple[nn.Module, Training]] = {}
    texts = {
        "transformer, 4 layers of 128, batch 8 x 64, AdamW": (Transformer(128, before=False), 8, 64),
        "GPT-2, 4 layers of 256, batch 4 x 64, AdamW": (Transformer(256, before=True), 4, 64),
        "GPT-2, 4 layers of 64, batch 2 x 16, AdamW": (Transformer(64, before=True), 2, 16),
    }
    for name, (model, batch, length) in texts.items():
        made[name] = (
            model,
            stepper(model, torch.optim.AdamW(model.parameters()), *torch.randint(256, (2, batch, length))),
        )
    images = {
        "CNN, batch 16 of 32 x 32, SGD with momentum": (convolutions(), 16, 32),
        "ResNet-18, batch 8 of 64 x 64, SGD with momentum": (resnet18(), 8, 64),
    }
    for name, (model, batch, size) in images.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        made[name] = model, stepper(model, optimizer, torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))
    return made


def milliseconds(step: Training, repeats: int) -> float:
    """Return the mean time of a step."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats * 1000


COSTLY = {
    "bare": "a mode that does nothing",
    "anomaly": "anomaly mode",
    "near misses": "with near misses",
    "lint": "with lint",
    "after an event": "after an event",
}


def cost(rounds: int, repeats: int) -> pd.DataFrame:
    """Return medians over rounds that take all kinds of steps in turn, the last after an event; one thread."""
    torch.set_num_threads(1)
    rows = []
    for name, (_, step) in steppers().items():
        milliseconds(step, repeats)
        times: dict[str, list[float]] = {kind: [] for kind in ("eager", "autopsy", *COSTLY)}
        for _ in range(rounds):
            times["eager"].append(milliseconds(step, repeats))
            with autopsy() as report:
                times["autopsy"].append(milliseconds(step, repeats))
            assert report.first is None
            with Bare():
                times["bare"].append(milliseconds(step, repeats))
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
                times["anomaly"].append(milliseconds(step, repeats))
            with autopsy(near_misses=True):
                times["near misses"].append(milliseconds(step, repeats))
            with autopsy(lint=True):
                times["lint"].append(milliseconds(step, repeats))
            model, spoilt = steppers()[name]
            with autopsy() as report:
                with torch.no_grad():
                    next(model.parameters()).div_(0)
                spoilt()
                times["after an event"].append(milliseconds(spoilt, repeats))
            assert report.first is not None
        ratios = {
            kind: [watched / base for watched, base in zip(times[kind], times["eager"], strict=True)]
            for kind in ("autopsy", *COSTLY)
        }
        row: dict[str, Any] = {"training step": name, "eager, ms": statistics.median(times["eager"])}
        row["autopsy, ms"] = statistics.median(times["autopsy"])
        row["times eager"] = statistics.median(ratios["autopsy"])
        row["lowest"], row["highest"] = min(ratios["autopsy"]), max(ratios["autopsy"])
        row |= {f"{words}, times": statistics.median(ratios[kind]) for kind, words in COSTLY.items()}
        row["operations"] = report.operations // (repeats + 1)
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table in markdown."""
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row] for row in table.to_numpy()]
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run one of the proofs, print its table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=["failures", "ahead", "rules", "cost"])
    parser.add_argument("--out", type=Path, default=ROOT / "results/autopsy")
    parser.add_argument("--rounds", type=int, default=9, help="of the cost measurement")
    parser.add_argument("--repeats", type=int, default=10, help="steps in a round")
    options = parser.parse_args()
    if min(options.rounds, options.repeats) < 1:
        print("error: --rounds and --repeats must be at least 1", file=sys.stderr)
        sys.exit(1)
    if options.proof == "cost":
        tables = {"cost": cost(options.rounds, options.repeats)}
    elif options.proof == "rules":
        tables = {"rules": rules(), "edges": edges()}
    elif options.proof == "ahead":
        tables = {"ahead": ahead(), "healthy": false_warnings()}
    else:
        planted_table, healthy = failures(), false_accusations()
        tables = {"failures": planted_table, "healthy": healthy, "totals": totals(planted_table, healthy)}
    text = "\n".join(markdown(table) for table in tables.values())
    print(text)
    command = " ".join(["python scripts/autopsy.py", *sys.argv[1:]])
    record = {"command": command, "threads": torch.get_num_threads(), "made_with": provenance()}
    record |= {name: table.to_dict("records") for name, table in tables.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", json.dumps(record, indent=1) + "\n"), ("md", f"`{command}`\n\n{text}")):
        path = options.out / f"{options.proof}.{suffix}"
        write_atomically(path, lambda stream, content=content: stream.write(content.encode()))


if __name__ == "__main__":
    main()
