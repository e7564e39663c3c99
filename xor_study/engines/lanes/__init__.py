"""The lanes engine: one network per SIMD lane, the whole training loop compiled, on the CPU.

`training.step` is traced (`trace`) to a program on scalars (`program`), whose functions are written out (`functions`)
and which becomes a loop over steps in machine code (`llvm`, `native`). A program serves all runs of the same structure;
rates and seeds are its inputs. A run's bits depend neither on its lane or block nor on the number of
threads: lanes never meet.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.catalogue import Catalogue
from xor_study.data import BATCH_STREAM, CORNERS, splitmix64
from xor_study.engines.lanes import native
from xor_study.engines.lanes import program as scalar
from xor_study.engines.lanes.llvm import LANES, Loop, NotCompilable, empty, text
from xor_study.engines.lanes.native import Kernel
from xor_study.engines.lanes.trace import trace
from xor_study.losses import LOSSES
from xor_study.optimizers import CLIPPINGS, OPTIMIZERS, Optimizer
from xor_study.outcome import (
    Detail,
    Gathered,
    Recorded,
    Snapshot,
    Trained,
    accumulate,
    log_spaced,
    measures,
    start_of_accumulation,
    tail_length,
)
from xor_study.training import Cohort, Observation, Program, step

MOST_PARAMETERS = 257
"""Of a network (64 hidden units): compiling a wider one takes longer than training it otherwise."""

LONGEST = 1 << 17
"""Steps between two looks at whether to go on."""

CALL = 1 << 21
"""Network-steps of one call into machine code, some 30 ms."""

GROUP = 64 << 20
"""Bytes of states and records that are held at a time."""

MOST_SAMPLES = 512
"""Of a batch whose counts are drawn in the loop."""

_SUMMED = ("loss_sum",)
_RECORDED = ("loss_sum", "loss")
_SNAPSHOT = ("parameter", "gradient", "logits")


def check(cohort: Cohort) -> None:
    """Raise NotCompilable for what is known not to compile without a look at the operations."""
    program = cohort.program
    dtype = str(program.x1.dtype).removeprefix("torch.")
    reason = None
    if program.x1.device.type != "cpu":
        reason = f"device={program.x1.device.type}: it runs on the CPU only"
    elif dtype not in LANES:
        reason = f"dtype={dtype}: it compiles only {' and '.join(LANES)}"
    elif program.width > MOST_PARAMETERS:
        reason = f"a network of {program.width} parameters is too wide to compile (at most {MOST_PARAMETERS})"
    elif program.batch > MOST_SAMPLES and cohort.batches.seeds is not None:
        reason = f"batch={program.batch} is too large to compile (at most {MOST_SAMPLES})"
    if reason is not None:
        raise NotCompilable(f"engine=lanes: {reason}")


def _trace(key: _Key) -> tuple[Loop, scalar.Program]:
    """Return the loop of all cohorts with this key, and what it computes."""
    program, dtype = key.program, key.program.x1.dtype
    kind = str(dtype).removeprefix("torch.")
    entries: dict[str, int] = {"parameter": program.width, **dict.fromkeys(program.optimizer.state, program.width)}
    constants = program.constants["optimizer"]
    schedules = tuple(program.optimizer.schedule(1, **constants))
    entries |= {"count": len(CORNERS)} if key.batch != 0 else {}
    arguments = {name: torch.ones(count, dtype=dtype) for name, count in entries.items()}
    single = [f"schedule.{name}" for name in schedules] + [f"{group}.{name}" for group, name in key.numbers]
    arguments |= {name: torch.tensor(1.0, dtype=dtype) for name in single}
    arguments |= {name: start.clone() for name, start in start_of_accumulation(dtype).items()}
    once_each = torch.ones(len(CORNERS), dtype=dtype)
    arguments |= {"step": torch.tensor(1, dtype=torch.int32)}

    def whole(given: dict[str, Tensor]) -> dict[str, Tensor]:
        numbers: dict[str, dict[str, Tensor]] = {group: {} for group in ("optimizer", "loss", "clip")}
        for group, name in key.numbers:
            numbers[group][name] = given[f"{group}.{name}"]
        updated, state, noted, internals = step(
            program,
            given["parameter"],
            {name: given[name] for name in program.optimizer.state},
            given.get("count", once_each),
            {name: given[f"schedule.{name}"] for name in schedules},
            numbers,
        )
        changed = {name: value for name, value in state.items() if value is not given[name]}
        result = {"parameter": updated, **changed, **accumulate(given, noted, given["step"])}
        result |= {"loss": noted.loss, "corners_right": noted.corners_right}
        if key.every_step:
            result |= noted._asdict()
        if key.snapshots:
            result |= internals._asdict()
        return result

    traced = trace(whole, arguments)
    fields: dict[str, tuple[str, int]] = {}
    for name, number in traced.outputs.items():
        field = name.rpartition(".")[0]
        fields[field] = (traced.statements[number].type, fields.get(field, ("", 0))[1] + 1)
    own = {f"{group}.{name}": (kind, 1) for group, name in key.numbers}
    recorded = [*_RECORDED, *(Observation._fields[1:] if key.every_step else ()), *(_SNAPSHOT if key.snapshots else ())]
    loop = Loop(kind, fields, {"key": ("int64", 1)} | own, schedules, tuple(recorded), _SUMMED, key.batch)
    return loop, traced


@lru_cache(maxsize=256)
def _traced(key: _Key) -> tuple[Loop, str]:
    """Return the loop of all cohorts with this key and its text, from the cache if they are there."""
    path = None if key.name is None else native.place(key.name, sources(), torch.__version__, suffix=".json")
    kept = native.read(path)
    if kept is not None:
        described = json.loads(kept)
        return Loop(**described["loop"]), described["text"]
    loop, program = _trace(key)
    module = text(loop, program)
    native.keep(path, json.dumps({"loop": asdict(loop), "text": module}).encode())
    return loop, module


@cache
def sources() -> str:
    """Return a hash of all of this package's code: what was traced with other code is not used."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[2]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def _named(catalogue: Catalogue[Any], entry: Any) -> str | None:
    """Return the name of a catalogue's entry if it is this package's own, whose code `sources` knows."""
    for name, known in catalogue.items():
        if known is entry and catalogue.module(name).startswith("xor_study."):
            return name
    return None


@dataclass(frozen=True)
class _Key:
    """What cohorts share that share a loop.

    Attributes:
        program: one of those that are alike.
        choices: what they share, hashable: the functions themselves.
        name: the same as a text that is the same in other processes, or None where a function is not this package's.
        numbers: which parameters differ between runs, as (group, name).
        batch, every_step, snapshots: see `Loop` and `Detail`.
    """

    program: Program
    choices: tuple[Any, ...]
    name: str | None
    numbers: tuple[tuple[str, str], ...]
    batch: int | None
    every_step: bool
    snapshots: bool

    @classmethod
    def of(cls, cohort: Cohort, detail: Detail) -> _Key:
        program = cohort.program
        network = program.network
        chosen: list[tuple[Catalogue[Any], Any]] = [
            (HIDDEN_ACTIVATIONS, network.hidden_activation),
            (OUTPUT_ACTIVATIONS, network.output_activation),
            (LOSSES, program.loss),
            (OPTIMIZERS, program.optimizer),
            (CLIPPINGS, program.clip),
        ]
        shared = (
            *(program.width, str(program.x1.dtype), program.batch),
            *((group, *values.items()) for group, values in program.constants.items()),
        )
        numbers = tuple((group, name) for group, values in cohort.numbers.items() for name in values)
        batches = cohort.batches
        batch = None if batches.given is not None else 0 if batches.seeds is None else batches.size
        kind = (numbers, batch, detail.every_step, bool(detail.snapshots))
        names = [_named(catalogue, entry) for catalogue, entry in chosen]
        name = None if None in names else repr((names, shared, kind))
        return cls(program, (*(entry for _, entry in chosen), *shared), name, *kind)

    def _told(self) -> tuple[Any, ...]:
        return (self.choices, self.numbers, self.batch, self.every_step, self.snapshots)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash(self._told())


def traced(cohort: Cohort, detail: Detail) -> tuple[Loop, str]:
    """Return a cohort's loop and its text; what has been traced before in this process is not traced again.

    Raises:
        NotCompilable: if an operation is not known.
    """
    return _traced(_Key.of(cohort, detail))


def forget() -> None:
    """Forget what this process has traced and compiled; what is on disk stays."""
    _traced.cache_clear()
    _kernel.cache_clear()


def program_of(cohort: Cohort, detail: Detail) -> scalar.Program:
    """Return what one lane computes in a step of a cohort, to be printed and read."""
    return _trace(_Key.of(cohort, detail))[1]


@lru_cache(maxsize=256)
def _kernel(module: str) -> Kernel:
    return Kernel(module)


def train(
    cohorts: Sequence[Cohort],
    detail: Detail,
    progress: Callable[[int], None],
    threads: int | None = None,
    refuse: Callable[[Cohort, NotCompilable], None] | None = None,
) -> Iterator[Trained]:
    """Yield what came of the runs, some blocks at a time.

    Args:
        cohorts: runs that share a program each.
        detail: what is kept beyond the usual.
        progress: is told how many network-steps have been made since it was last called.
        threads: at work at the same time; None for one on each core.
        refuse: is called with a cohort that can't be compiled, which is then left out.

    Raises:
        NotCompilable: if a cohort can't be compiled and `refuse` is None.
    """
    workers, stop = threads or cores(), threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from _pipeline(
                _compiled(cohorts, detail, pool, workers, refuse), detail, progress, pool, workers, stop
            )
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiled(
    cohorts: Iterable[Cohort],
    detail: Detail,
    pool: ThreadPoolExecutor,
    workers: int,
    refuse: Callable[[Cohort, NotCompilable], None] | None,
) -> Iterator[tuple[Cohort, Loop, Kernel]]:
    """Yield cohorts with their loops and machine code, while some of the next are being compiled."""
    ahead: deque[tuple[Cohort, Loop, Future[Kernel]]] = deque()
    for cohort in cohorts:
        try:
            check(cohort)
            loop, module = traced(cohort, detail)
        except NotCompilable as error:
            if refuse is None:
                raise
            refuse(cohort, error)
            continue
        ahead.append((cohort, loop, pool.submit(_kernel, module)))
        if len(ahead) > workers:
            first, loop, kernel = ahead.popleft()
            yield first, loop, kernel.result()
    for first, loop, kernel in ahead:
        yield first, loop, kernel.result()


def _pipeline(
    compiled: Iterable[tuple[Cohort, Loop, Kernel]],
    detail: Detail,
    progress: Callable[[int], None],
    pool: ThreadPoolExecutor,
    workers: int,
    stop: threading.Event,
) -> Iterator[Trained]:
    """Train one group of blocks while the next is traced, compiled and laid out."""
    waiting: deque[tuple[Group, list[Future[None]]]] = deque()
    for cohort, loop, kernel in compiled:
        for members in groups(cohort, loop, detail):
            group = Group(cohort, loop, members, detail)
            waiting.append((group, [pool.submit(task, kernel, stop) for task in group.tasks(workers)]))
            if len(waiting) > 1:
                yield _finished(*waiting.popleft(), progress)
    for entry in waiting:
        yield _finished(*entry, progress)


def _finished(group: Group, tasks: list[Future[None]], progress: Callable[[int], None]) -> Trained:
    pending = set(tasks)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
        progress(group.take_progress())
    return Trained(group.cohort, group.members, group.recorded(), group.final_parameters)


def _segment_ends(cohort: Cohort, detail: Detail) -> NDArray[np.int64]:
    """Return the steps after which something is handed out: all, or those that a record names and ends of epochs."""
    steps = cohort.steps
    if detail.every_step:
        return np.arange(1, steps + 1)
    wanted = [log_spaced(steps), [steps - tail_length(steps)], [s for s in detail.snapshots if s <= steps]]
    wanted += [np.arange(cohort.iterations, steps + 1, cohort.iterations), np.arange(LONGEST, steps, LONGEST), [steps]]
    ends = np.unique(np.concatenate([np.asarray(numbers, np.int64) for numbers in wanted]))
    return ends[ends > 0]


def groups(cohort: Cohort, loop: Loop, detail: Detail) -> Iterator[NDArray[np.intp]]:
    """Yield the members of a cohort in groups that are trained with their states in memory."""
    bytes_of_block = loop.state.itemsize + loop.record.itemsize * len(_segment_ends(cohort, detail))
    size = max(1, GROUP // bytes_of_block) * loop.lanes
    for start in range(0, len(cohort.rows), size):
        yield np.arange(start, min(start + size, len(cohort.rows)))


class Group:
    """Blocks of networks in training."""

    def __init__(self, cohort: Cohort, loop: Loop, members: NDArray[np.intp], detail: Detail) -> None:
        self.cohort, self.loop, self.members, self.detail = cohort, loop, members, detail
        self.blocks = -(-len(members) // loop.lanes)
        self.ends = _segment_ends(cohort, detail)
        self.state = empty(loop.state, self.blocks)
        self.numbers = empty(loop.numbers, self.blocks)
        self.records = empty(loop.record, (self.blocks, len(self.ends)))
        self.corners_right = np.zeros((self.blocks, 1, loop.lanes), np.int32)
        self._made, self._told = 0, 0
        self._lock = threading.Lock()
        filled = np.minimum(np.arange(self.blocks * loop.lanes), len(members) - 1)
        self._fill(members[filled])

    def _lanes(self, rows: Any) -> NDArray[Any]:
        """Return an array with a row for each network as blocks (blocks, n, lanes)."""
        values = np.asarray(rows).reshape(self.blocks, self.loop.lanes, -1)
        return np.swapaxes(values, 1, 2)

    def _fill(self, members: NDArray[np.intp]) -> None:
        cohort, program = self.cohort, self.cohort.program
        parameters = cohort.initial(members)
        self.state["parameter"] = self._lanes(parameters)
        constants = program.constants["optimizer"]
        own = {name: values[members] for name, values in cohort.numbers["optimizer"].items()}
        columns = {name: torch.from_numpy(values).to(parameters)[:, None] for name, values in own.items()}
        for name, value in program.optimizer.init(parameters, **constants, **columns).items():
            if name in self.loop.state_fields:
                self.state[name] = self._lanes(value)
        for name, start in start_of_accumulation(parameters.dtype).items():
            self.state[name] = start.item()
        for group, numbers in cohort.numbers.items():
            for name, values in numbers.items():
                self.numbers[f"{group}.{name}"] = self._lanes(values[members])
        if cohort.batches.seeds is not None:
            keys = splitmix64(cohort.batches.seeds[members], BATCH_STREAM)
            self.numbers["key"] = self._lanes(keys.view(np.int64))

    def table(self, steps: range) -> NDArray[Any]:
        """Return what depends on the step, a row for each."""
        cohort = self.cohort
        columns: list[NDArray[Any]] = []
        if self.loop.batch is None:
            columns += list(cohort.batches.counts(np.array([0]), steps)[:, 0].T)
        constants = cohort.program.constants["optimizer"]
        schedule = _schedule(cohort.program.optimizer, cohort.steps, tuple(constants.items()))
        columns += [schedule[name][steps.start - 1 : steps.stop - 1] for name in self.loop.schedule]
        return np.ascontiguousarray(np.array(columns, self.loop.dtype).T)

    def tasks(self, workers: int) -> Iterator[Callable[[Kernel, threading.Event], None]]:
        """Yield functions that train some of the blocks each, to be called from any threads."""
        at_once = max(1, CALL // (self.cohort.steps * self.loop.lanes))
        at_once = max(1, min(at_once, -(-self.blocks // workers)))
        for start in range(0, self.blocks, at_once):
            yield partial(self._train, slice(start, min(start + at_once, self.blocks)))

    def _train(self, blocks: slice, kernel: Kernel, stop: threading.Event) -> None:
        state, numbers, records = self.state[blocks], self.numbers[blocks], self.records[blocks]
        count, first = len(state), 0
        longest = max(LONGEST, CALL // (count * self.loop.lanes))
        while first < len(self.ends) and not stop.is_set():
            before = int(self.ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(self.ends, before + longest, side="right")))
            ends = self.ends[first:last]
            table = self.table(range(before + 1, int(ends[-1]) + 1))
            part = records if len(ends) == len(self.ends) else empty(self.loop.record, (count, len(ends)))
            kernel(state, numbers, table, ends, part, blocks=count, first=before, segments=len(ends))
            if part is not records:
                records[:, first:last] = part
            first = last
            with self._lock:
                self._made += (int(ends[-1]) - before) * count
        after = empty(self.loop.state, count)  # one step more, only to see what it sees before its update
        after[:] = state
        steps = self.cohort.steps
        table, scratch = self.table(range(steps, steps + 1)), empty(self.loop.record, (count, 1))
        kernel(after, numbers, table, np.array([steps + 1]), scratch, blocks=count, first=steps, segments=1)
        self.corners_right[blocks] = after["corners_right"]

    def take_progress(self) -> int:
        """Return how many network-steps have been made since the last call; filled-up lanes are not counted."""
        with self._lock:
            made = self._made * len(self.members) // self.blocks
        told, self._told = self._told, made
        return made - told

    def _runs(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """Return an array (blocks, ..., lanes) with a row for each network, (runs, ...)."""
        rows = np.moveaxis(blocks, -1, 1).reshape(-1, *blocks.shape[1:-1])
        return rows[: len(self.members)]

    @property
    def final_parameters(self) -> Tensor:
        """Shape (runs, width)."""
        return torch.from_numpy(np.ascontiguousarray(self._runs(self.state["parameter"])))

    def recorded(self) -> Recorded:
        """Return what is known of the runs once all tasks are done."""
        cohort, steps = self.cohort, self.cohort.steps
        state = {name: self._runs(self.state[name][:, 0]) for name in start_of_accumulation(torch.float32)}
        loss = self._runs(self.records["loss"][:, :, 0])
        sums = self._runs(self.records["loss_sum"][:, :, 0])
        tail = tail_length(steps)
        missing = state["least_loss"] > state["largest_loss"]
        gathered = Gathered(
            initial_loss=loss[:, 0].astype(np.float64),
            final_loss=loss[:, -1].astype(np.float64),
            min_loss=np.where(missing, np.nan, state["least_loss"].astype(np.float64)),
            max_loss=np.where(missing, np.nan, state["largest_loss"].astype(np.float64)),
            max_abs_logit=_seen(state["largest_logit"]),
            max_grad_norm=_seen(state["largest_grad_norm"]),
            tail_loss=sums[:, np.searchsorted(self.ends, steps - tail, side="right") :].sum(1) / tail,
            first_nonfinite=state["first_nonfinite"],
            last_wrong=state["last_wrong"],
            corners_right=self._runs(self.corners_right[:, 0]),
        )
        epochs = np.searchsorted(self.ends, np.arange(cohort.epochs) * cohort.iterations, side="right")
        history, snapshots = None, {}
        if self.detail.every_step:
            history = {
                name: self._runs(self.records[name][:, :, 0]).T.astype(np.float64) for name in Observation._fields
            }
        for number in self.detail.snapshots:
            if number <= steps:
                place = np.searchsorted(self.ends, number)
                parts = (self._runs(self.records[name][:, place]) for name in _SNAPSHOT)
                snapshots[number] = Snapshot(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
        recorded = log_spaced(steps)
        return Recorded(
            measures(cohort, self.members, gathered),
            recorded,
            loss[:, np.searchsorted(self.ends, recorded)],
            np.add.reduceat(sums, epochs, axis=1) / cohort.iterations,
            history,
            snapshots,
        )


def _seen(largest: NDArray[Any]) -> NDArray[np.float64]:
    """Return largest sizes, NaN where none was seen."""
    return np.where(largest < 0, np.nan, largest.astype(np.float64))


@lru_cache(maxsize=8)
def _schedule(optimizer: Optimizer, steps: int, constants: tuple[tuple[str, Any], ...]) -> dict[str, NDArray[Any]]:
    return optimizer.schedule(steps, **dict(constants))
