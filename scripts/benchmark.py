"""How fast the engines are: python scripts/benchmark.py [--rounds N] [--runs N] [--json FILE].

All contestants take turns in one process that is pinned to one core. Each figure is the median of the rounds, each
ratio the median of the rounds' ratios, so that a noisy machine disturbs both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from xor_study import RunSpec, XORNetwork, train
from xor_study.data import Batches
from xor_study.optimizers import OPTIMIZERS
from xor_study.records import provenance, write_atomically

PLAIN_STEPS, VMAP_STEPS = 400, 300


def bare(optimizer: str) -> float:
    """Return seconds a network-step of the shortest loop one can write: batches at hand, nothing recorded."""
    network = XORNetwork()
    bits = Batches.of(32, [0]).inputs(0, range(1, PLAIN_STEPS + 1))
    x1, x2 = (torch.from_numpy(half).float()[..., None] for half in bits)
    target = (x1 != x2).float()
    update = OPTIMIZERS[optimizer].reference(network.parameters(), lr=0.01)
    loss_of = torch.nn.BCELoss()
    start = time.perf_counter()
    for step in range(PLAIN_STEPS):
        loss = loss_of(network(x1[step], x2[step]), target[step])
        update.zero_grad()
        loss.backward()
        update.step()
    return (time.perf_counter() - start) / PLAIN_STEPS


def engine(name: str, optimizer: str, runs: int, steps: int) -> float:
    """Return seconds a network-step of `train`, tracing and recording included."""
    table = pd.DataFrame({"seed": range(runs), "optimizer": optimizer, "epochs": 1, "iterations": steps})
    start = time.perf_counter()
    train(table, engine=name)
    return (time.perf_counter() - start) / (runs * steps)


def contestants(runs: int) -> dict[tuple[str, str], Callable[[], float]]:
    """Return what is measured, by optimizer and name."""
    found: dict[tuple[str, str], Callable[[], float]] = {}
    for optimizer in ("sgd", "adam"):
        found[optimizer, "bare loop"] = lambda o=optimizer: bare(o)
        found[optimizer, "plain"] = lambda o=optimizer: engine("plain", o, 1, PLAIN_STEPS)
        found[optimizer, "vmap"] = lambda o=optimizer: engine("vmap", o, runs, VMAP_STEPS)
    return found


def main() -> None:
    """Measure, print a table and, if asked, write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=4096, help="runs that vmap trains at once")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.rounds < 1 or options.runs < 1:
        parser.error("--rounds and --runs must be at least 1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)

    measured = contestants(options.runs)
    train([RunSpec(epochs=1, iterations=1, seed=seed) for seed in range(2)])  # what torch loads on first use
    times: dict[tuple[str, str], list[float]] = {key: [] for key in measured}
    for _ in range(options.rounds):
        for key, measure in measured.items():
            times[key].append(measure())

    table = Table("optimizer", "engine", "network-steps/s", "x bare loop", "x plain", box=None)
    rows = []
    for (optimizer, name), seconds in times.items():
        ratios = {
            base: statistics.median(b / s for b, s in zip(times[optimizer, base], seconds, strict=True))
            for base in ("bare loop", "plain")
        }
        speed = 1 / statistics.median(seconds)
        rows.append({"optimizer": optimizer, "engine": name, "network_steps_per_second": speed, "times": ratios})
        table.add_row(optimizer, name, f"{speed:,.0f}", f"{ratios['bare loop']:.1f}", f"{ratios['plain']:.1f}")
    console = Console()
    console.print(f"one core, {options.runs} runs under vmap, recording on, median of {options.rounds} rounds")
    console.print(table)
    if options.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "isa": torch.backends.cpu.get_cpu_capability(),
            },
            "python": platform.python_version(),
            **provenance(),
            "rounds": options.rounds,
            "rows": rows,
        }
        write_atomically(options.json, lambda stream: stream.write((json.dumps(record, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
