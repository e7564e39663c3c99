"""Measure how long a person waits before anything happens: python scripts/startup.py [--rounds N] [--out FOLDER].

Whole processes, interleaved with `python -c "import torch"`, since machines are noisy: what counts is the median over
the rounds of the difference to (or the ratio with) the import in the same round. Writes JSON and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xor_study.files import write_atomically
from xor_study.sweeps.provenance import provenance

TORCH = "import torch"
XOR = [sys.executable, "-m", "xor_study"]
SWEEP = ["-m", "optimizer=sgd,adam", "lr=0.001,0.01,0.1,1", "seed=range(0,20)"]

CASES: dict[str, list[str]] = {
    TORCH: [sys.executable, "-c", "import torch"],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "import xor_study": [sys.executable, "-c", "import xor_study"],
    "import the autopsy": [sys.executable, "-c", "from xor_study.autopsy import autopsy"],
    "xor-study --version": [*XOR, "--version"],
    "xor-study --help": [*XOR, "--help"],
    "xor-study lrr=0.1 (a typo)": [*XOR, "lrr=0.1"],
    "tab completion": [*XOR, "-sc", "query=bash"],
    "the sweep of README's first command": [*XOR, *SWEEP, "hydra.sweep.dir=sweep"],
    "a single run": [*XOR, "hydra.run.dir=run"],
}
"""What is started, by its name in the table."""

BESIDE_TORCH = ("import the autopsy", "the sweep of README's first command", "a single run")
"""What needs torch, and is measured beside the import of torch alone."""

MODULES = """
import sys
from xor_study.autopsy import autopsy
print(sum(name.split(".")[0] == "xor_study" for name in sys.modules))
"""


def seconds(command: list[str]) -> float:
    """Return how long a process takes in an empty folder."""
    folder = tempfile.mkdtemp()
    environment = os.environ | {"COMP_LINE": "xor-study optimizer=ad", "COMP_POINT": "22"}
    try:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(folder)


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in each round; a round before the first compiles and fills caches."""
    for command in CASES.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, command in CASES.items():
            times[name].append(seconds(command))
    return times


def table(times: dict[str, list[float]]) -> str:
    """Return the medians, beside the import of torch where that is part of it, as Markdown."""
    lines = ["| what | seconds | beside import torch |", "| --- | --- | --- |"]
    for name, values in times.items():
        beside = ""
        if name in BESIDE_TORCH:
            beside = f"{statistics.median(a - b for a, b in zip(values, times[TORCH], strict=True)):.2f}"
        lines.append(f"| {name} | {statistics.median(values):.2f} | {beside} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table and write it with its provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is started (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("results/startup"), help="where the results go")
    options = parser.parse_args()
    times = measure(options.rounds)
    modules = int(subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True).stdout)
    record = {
        "command": "python scripts/startup.py",
        **provenance(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seconds": times,
        "modules of xor_study that the autopsy loads": modules,
    }
    text = table(times)
    print(text, f"the autopsy loads {modules} modules of xor_study", sep="")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        options.out / "startup.json", lambda file: file.write((json.dumps(record, indent=1) + "\n").encode())
    )
    write_atomically(options.out / "startup.md", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
