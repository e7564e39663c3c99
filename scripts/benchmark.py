"""How fast it is: python scripts/benchmark.py {engines,studies} [--rounds N] [--runs N] [--json FILE].

`engines`: the engines, a bare loop, the same program in C by hand and in JAX (extra `bench`), on one pinned core, all
in turn; then the lanes engine on all cores against one. `studies`: whole commands, from the shell prompt to runs.csv.

Each figure is the median of the rounds, each ratio the median of the rounds' ratios, so that a noisy machine disturbs
both sides alike. Before anything is timed, all contestants' losses are held against each other.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from xor_study import RunSpec, XORNetwork, train
from xor_study.engines import lanes
from xor_study.engines.lanes.llvm import empty
from xor_study.files import write_atomically
from xor_study.model.data import BATCH_STREAM, Batches, splitmix64
from xor_study.model.optimizers import OPTIMIZERS
from xor_study.sweeps.provenance import provenance
from xor_study.training.cohorts import cohorts
from xor_study.training.outcome import Detail
from xor_study.training.table import table_of

HERE = Path(__file__).resolve().parent
LR = 0.01
CHECKED = 50
"""Steps after which the contestants' mean losses are compared."""

STEPS = {"bare loop": 400, "plain": 400, "vmap": 300, "lanes": 10_000, "kernel": 2000, "C by hand": 2000}
JAX_STEPS = {"vmap": 400, "scalarised": 400, "vmap on 32": 40}
JAX_FLAGS = {"scalarised": "--xla_cpu_prefer_vector_width=512"}
"""What makes it fastest here; the others are fastest without."""

Timing = Callable[[], float]


def runs_table(optimizer: str, runs: int, steps: int) -> pd.DataFrame:
    """Return runs that differ in their seed."""
    return pd.DataFrame({"seed": range(runs), "lr": LR, "optimizer": optimizer, "epochs": 1, "iterations": steps})


def bare(optimizer: str, steps: int) -> float:
    """Return seconds of the shortest loop one can write: batches at hand, nothing recorded."""
    network = XORNetwork()
    bits = Batches.of(32, [0]).inputs(0, range(1, steps + 1))
    x1, x2 = (torch.from_numpy(half).float()[..., None] for half in bits)
    target = (x1 != x2).float()
    update = OPTIMIZERS[optimizer].reference(network.parameters(), lr=LR)
    loss_of = torch.nn.BCELoss()
    start = time.perf_counter()
    for step in range(steps):
        loss = loss_of(network(x1[step], x2[step]), target[step])
        update.zero_grad()
        loss.backward()
        update.step()
    return time.perf_counter() - start


def engine(name: str, optimizer: str, runs: int, steps: int, threads: int | None = None) -> float:
    """Return seconds of `train`, with everything: planning, drawing weights, recording, tables."""
    table = runs_table(optimizer, runs, steps)
    start = time.perf_counter()
    train(table, engine=name, threads=threads)
    return time.perf_counter() - start


class Kernel:
    """The lanes engine's machine code alone, without tables around it."""

    def __init__(self, table: pd.DataFrame) -> None:
        (self.cohort,) = cohorts(table_of(table))
        self.loop, module = lanes.traced(self.cohort, Detail())
        self.kernel = lanes.Kernel(module)
        self.group = lanes.Group(self.cohort, self.loop, np.arange(len(self.cohort.rows)), Detail())
        self.start = empty(self.loop.state, self.group.blocks)
        self.start[:] = self.group.state
        self.table = self.group.table(range(1, self.cohort.steps + 1))

    def run(self, cores: int = 1) -> float:
        """Return seconds that all steps take, the blocks shared out among threads."""
        group, blocks = self.group, self.group.blocks
        group.state[:] = self.start
        cuts = [blocks * i // cores for i in range(cores + 1)]
        shares = [slice(*cut) for cut in itertools.pairwise(cuts)]

        def work(share: slice) -> None:
            arrays = group.state[share], group.numbers[share], self.table, group.ends, group.records[share]
            self.kernel(*arrays, blocks=share.stop - share.start, first=0, segments=len(group.ends))

        if cores == 1:
            start = time.perf_counter()
            work(shares[0])
            return time.perf_counter() - start
        ready = threading.Barrier(cores + 1)  # so that each thread has a core before the clock starts
        with ThreadPoolExecutor(cores) as pool:
            working = [pool.submit(lambda share=share: (ready.wait(), work(share))) for share in shares]
            ready.wait()
            start = time.perf_counter()
            for task in working:
                task.result()
            return time.perf_counter() - start

    def losses(self) -> np.ndarray:
        """Return the mean loss of each run after the last `run`."""
        sums = self.group.records["loss_sum"][:, :, 0].sum(1).reshape(-1)
        return np.asarray(sums / self.cohort.steps)


class ByHand:
    """`reference_kernel.c`, built with the machine's C compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise OSError("no C compiler")
        library = folder / "reference_kernel.so"
        arguments = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-Wno-psabi"]
        subprocess.run([*arguments, "-o", str(library), str(HERE / "reference_kernel.c")], check=True, timeout=300)
        self.library = ctypes.CDLL(str(library))
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        self.compiler = version.splitlines()[0]

    def run(self, optimizer: str, like: Kernel) -> tuple[float, np.ndarray]:
        """Return seconds, and each run's mean loss, of the same runs."""
        blocks, lanes_, steps = like.group.blocks, 16, like.cohort.steps
        width = like.cohort.program.width

        def floats(shape: tuple[int, ...]) -> np.ndarray:
            return empty(np.dtype(np.float32), shape)

        p, m, v = (floats((blocks, width, lanes_)) for _ in range(3))
        p[:] = like.start["parameter"]
        lr = floats((blocks, lanes_))
        lr[:] = like.group.numbers["optimizer.lr"][:, 0]
        keys = empty(np.dtype(np.int64), (blocks, lanes_))
        keys[:] = like.group.numbers["key"][:, 0]
        schedule = like.cohort.program.optimizer.schedule(steps, **like.cohort.program.constants["optimizer"])
        columns = list(schedule.values()) or [np.zeros(steps)] * 2
        table = np.ascontiguousarray(np.array(columns, np.float32).T)
        kind = [(name, np.float32, lanes_) for name in ("least", "largest", "logit", "norm")]
        kind += [(name, np.int32, lanes_) for name in ("first", "wrong", "right")]
        records = empty(np.dtype([*kind, ("sum", np.float64, lanes_)], align=False), blocks)
        records["least"], records["largest"] = np.inf, -np.inf
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (p, m, v, lr, keys, table)]
        function = getattr(self.library, optimizer)
        start = time.perf_counter()
        function(*pointers, ctypes.c_int64(blocks), ctypes.c_int64(steps), ctypes.c_void_p(records.ctypes.data))
        return time.perf_counter() - start, records["sum"].reshape(-1) / steps


class JAX:
    """`peers.py` in a process of its own."""

    def __init__(self, peer: str) -> None:
        flags = f"--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 {JAX_FLAGS.get(peer, '')}"
        environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(HERE / "peers.py")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.peer, self.version = peer, ""

    def run(self, optimizer: str, steps: int, data: Path) -> tuple[float, np.ndarray]:
        """Return seconds, and each run's mean loss."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"peer": self.peer, "optimizer": optimizer, "steps": steps, "data": str(data)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        self.version = told["version"]
        return told["seconds"], np.array(told["losses"])


def data_for_jax(optimizer: str, runs: int, folder: Path) -> Path:
    """Write the weights, keys and rates that all contestants start from."""
    (cohort,) = cohorts(table_of(runs_table(optimizer, runs, 1)))
    keys = splitmix64(np.arange(runs, dtype=np.uint64), BATCH_STREAM)
    path = folder / f"{optimizer}.npz"
    lr = np.full(runs, LR, np.float32)
    np.savez(path, parameters=cohort.initial(np.arange(runs)).numpy(), keys=keys, lr=lr)
    return path


def contestants(
    optimizer: str, runs: int, folder: Path, by_hand: ByHand | None, jax: Mapping[str, JAX]
) -> dict[str, tuple[int, Timing]]:
    """Return what is measured by name: network-steps of one timing, and the timing."""
    found: dict[str, tuple[int, Timing]] = {
        "bare loop": (STEPS["bare loop"], partial(bare, optimizer, STEPS["bare loop"])),
        "plain": (STEPS["plain"], partial(engine, "plain", optimizer, 1, STEPS["plain"])),
        "vmap": (runs * STEPS["vmap"], partial(engine, "vmap", optimizer, runs, STEPS["vmap"])),
        "lanes": (runs * STEPS["lanes"], partial(engine, "lanes", optimizer, runs, STEPS["lanes"], 1)),
    }
    kernel = Kernel(runs_table(optimizer, runs, STEPS["kernel"]))
    found["lanes, kernel alone"] = runs * STEPS["kernel"], kernel.run
    if by_hand is not None:
        found["C by hand"] = runs * STEPS["C by hand"], lambda: by_hand.run(optimizer, kernel)[0]
    if jax:
        data = data_for_jax(optimizer, runs, folder)
        for name, peer in jax.items():
            steps = JAX_STEPS[name]
            found[f"JAX {name}"] = runs * steps, lambda p=peer, s=steps: p.run(optimizer, s, data)[0]
    return found


def check(optimizer: str, runs: int, folder: Path, by_hand: ByHand | None, jax: Mapping[str, JAX]) -> float:
    """Return how far apart the contestants' mean losses are after a few steps, relative to the plain engine's."""
    kernel = Kernel(runs_table(optimizer, runs, CHECKED))
    kernel.run()
    found = {"lanes": kernel.losses()[:runs]}
    found["plain"] = train(runs_table(optimizer, 4, CHECKED), engine="plain").epoch_losses.to_numpy()[:, 0]
    found["vmap"] = train(runs_table(optimizer, 64, CHECKED), engine="vmap").epoch_losses.to_numpy()[:, 0]
    if by_hand is not None:
        found["C by hand"] = by_hand.run(optimizer, kernel)[1][:runs]
    if jax:
        data = data_for_jax(optimizer, runs, folder)
        found |= {f"JAX {name}": peer.run(optimizer, CHECKED, data)[1] for name, peer in jax.items()}
    worst = 0.0
    for name, losses in found.items():
        apart = float(np.max(np.abs(losses / found["lanes"][: len(losses)] - 1)))
        if not apart < 1e-4:
            raise SystemExit(f"{name}: its losses are not those of the lanes engine (off by {apart:g})")
        worst = max(worst, apart)
    return worst


def measure(found: Mapping[str, tuple[int, Timing]], rounds: int) -> dict[str, list[float]]:
    """Return seconds a network-step of all contestants, taken in turn."""
    for _, timing in found.values():
        timing()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, (steps, timing) in found.items():
            times[name].append(timing() / steps)
    return times


def ratio(of: list[float], to: list[float]) -> float:
    """Return how many times as fast `to` is."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def engines(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the engines and their peers."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else [0]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[0]})
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            by_hand: ByHand | None = ByHand(folder) if platform.machine() == "x86_64" else None
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"without C: {error}", file=sys.stderr)
            by_hand = None
        jax = {peer: JAX(peer) for peer in JAX_STEPS} if importlib.util.find_spec("jax") else {}
        apart = {}
        for optimizer in ("sgd", "adam"):
            apart[optimizer] = check(optimizer, options.runs, folder, by_hand, jax)
            times = measure(contestants(optimizer, options.runs, folder, by_hand, jax), options.rounds)
            for contestant, seconds in times.items():
                kernel = contestant.startswith("C ")
                rows.append(
                    {
                        "optimizer": optimizer,
                        "contestant": contestant,
                        "network_steps_per_second": 1 / statistics.median(seconds),
                        "times_plain": ratio(times["plain"], seconds),
                        "lanes_is_times": ratio(seconds, times["lanes, kernel alone" if kernel else "lanes"]),
                    }
                )
        versions |= {"jax": next(iter(jax.values())).version} if jax else {}
        versions |= {"c_compiler": by_hand.compiler} if by_hand else {}
        for peer in jax.values():
            peer.process.terminate()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    scaling = {}
    for optimizer in ("sgd", "adam"):
        whole = Kernel(runs_table(optimizer, options.runs, STEPS["kernel"] * len(cores)))
        both: dict[str, tuple[int, Timing]] = {"one": (1, whole.run), "all": (1, partial(whole.run, len(cores)))}
        times = measure(both, options.rounds)
        scaling[optimizer] = ratio(times["one"], times["all"])
    table = Table("optimizer", "contestant", "network-steps/s", "x plain", "lanes is x", box=None)
    for row in rows:
        speed, times_plain = f"{row['network_steps_per_second']:,.0f}", f"{row['times_plain']:,.1f}"
        table.add_row(row["optimizer"], row["contestant"], speed, times_plain, f"{row['lanes_is_times']:,.2f}")
    console = Console(width=120)
    console.print(f"one core, {options.runs} runs, recording on, median of {options.rounds} rounds")
    console.print(table)
    for optimizer, times_one in scaling.items():
        console.print(f"{optimizer}: {len(cores)} cores are {times_one:.2f} times one")
    return {"rows": rows, "losses_apart": apart, "cores": len(cores), "all_cores_are_times_one": scaling, **versions}


STUDIES = {
    "21,600 runs of 10,000 steps": [
        "optimizer=sgd,adam",
        "loss=binary_cross_entropy,mean_squared_error,binary_cross_entropy_with_logits",
        "activation.hidden=tanh,relu,sigmoid",
        "lr=0.001,0.003,0.01,0.03,0.1,0.3,1,3,10,30,100,300",
        "seed=range(0,100)",
    ],
    "a million runs of 1,000 full-batch steps": [
        "batch=full",
        "epochs=1",
        "lr=0.01,0.02,0.05,0.1,0.2,0.5,1,2,5,10",
        "seed=range(0,100000)",
    ],
}


def command(arguments: list[str], environment: Mapping[str, str]) -> float:
    """Return seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=dict(environment), check=True, capture_output=True)
    return time.perf_counter() - start


def kernel_seconds(folder: Path) -> float:
    """Return seconds that a finished study's network-steps take in the machine code, on all cores."""
    table = table_of(pd.read_csv(folder / "runs.csv", usecols=[*STUDY_KEYS]))
    cores, total = lanes.cores(), 0.0
    for cohort in cohorts(table):
        loop, module = lanes.traced(cohort, Detail())
        kernel = lanes.Kernel(module)
        for members in lanes.groups(cohort, loop, Detail()):
            group = lanes.Group(cohort, loop, members, Detail())
            with ThreadPoolExecutor(cores) as pool:
                start = time.perf_counter()
                list(pool.map(lambda task, k=kernel: task(k, lanes.threading.Event()), group.tasks(cores)))
                total += time.perf_counter() - start
    return total


STUDY_KEYS = ("optimizer", "lr", "loss", "activation.hidden", "batch", "epochs", "iterations", "seed")


def compile_seconds() -> dict[str, float]:
    """Return median seconds of the parts of compiling the first study's programs."""
    axes = [override.partition("=")[2].split(",") for override in STUDIES["21,600 runs of 10,000 steps"][:3]]
    names = ("optimizer", "loss", "activation_hidden")
    specs = [RunSpec(**dict(zip(names, values, strict=True))) for values in itertools.product(*axes)]
    parts: dict[str, list[float]] = {"trace and write": [], "compile and load": []}
    for cohort in cohorts(table_of(specs)):
        start = time.perf_counter()
        _, module = lanes.traced(cohort, Detail())
        traced = time.perf_counter()
        lanes.Kernel(module)
        parts["trace and write"].append(traced - start)
        parts["compile and load"].append(time.perf_counter() - traced)
    return {part: statistics.median(seconds) for part, seconds in parts.items()}


def studies(options: argparse.Namespace) -> dict[str, Any]:
    """Measure whole commands."""
    result: dict[str, Any] = {"cores": lanes.cores()}
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"XOR_STUDY_CACHE": str(folder / "cache")}
        for study, overrides in STUDIES.items():
            rows = []
            for turn in range(options.rounds + 1):
                out = folder / "out"
                shutil.rmtree(out, ignore_errors=True)
                imports = command(["-c", "import torch"], environment)
                arguments = ["-m", "xor_study.run", "-m", *overrides, f"hydra.sweep.dir={out}"]
                whole = command(arguments, environment)
                rows.append({"cold": turn == 0, "seconds": whole, "imports": imports, "kernel": kernel_seconds(out)})
            memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            warm = [row for row in rows if not row["cold"]]
            found = {
                "rounds": rows,
                "cold_seconds": rows[0]["seconds"],
                "seconds": statistics.median(row["seconds"] for row in warm),
                "kernel_seconds": statistics.median(row["kernel"] for row in warm),
                "times_kernel": statistics.median((row["seconds"] - row["imports"]) / row["kernel"] for row in warm),
                "cold_times_kernel": (rows[0]["seconds"] - rows[0]["imports"]) / rows[0]["kernel"],
                "peak_memory_mb": memory / 1024,
            }
            result[study] = found
            console.print(
                f"{study}: {found['seconds']:.1f} s from the prompt to runs.csv, {found['times_kernel']:.2f} times "
                f"the kernel's {found['kernel_seconds']:.1f} s (first time {found['cold_seconds']:.1f} s, "
                f"{found['cold_times_kernel']:.2f} times); at most {memory / 1024:,.0f} MB"
            )
        os.environ["XOR_STUDY_CACHE"] = ""
        lanes.forget()
        result["compile_seconds"] = compile_seconds()
        console.print(", ".join(f"{part} {seconds:.3f} s" for part, seconds in result["compile_seconds"].items()))
    return result


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    """Measure, print, and if asked write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("engines", "studies"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=4096, help="networks trained at once, a multiple of 512")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.rounds < 1 or options.runs < 512 or options.runs % 512:
        parser.error("--rounds must be at least 1, --runs a multiple of 512")
    found = {"engines": engines, "studies": studies}[options.what](options)
    if options.json:
        name, _ = lanes.native.target()
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {"processor": processor(), "llvm_name": name, "isa": torch.backends.cpu.get_cpu_capability()},
            "python": platform.python_version(),
            "llvmlite": lanes.native.llvmlite.__version__,
            **provenance(),
            "rounds": options.rounds,
            "runs": options.runs,
            **found,
        }
        write_atomically(options.json, lambda stream: stream.write((json.dumps(record, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
