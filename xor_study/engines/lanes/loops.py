"""From a cohort to its loop in machine code: traced, written as text and compiled once, kept in memory and on disk."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xor_study.engines.lanes import native
from xor_study.engines.lanes import program as scalar
from xor_study.engines.lanes.llvm import Loop, text
from xor_study.engines.lanes.native import Kernel
from xor_study.engines.lanes.trace import trace
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue
from xor_study.model.data import CORNERS
from xor_study.model.losses import LOSSES
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import Detail, accumulate, start_of_accumulation
from xor_study.training.step import Observation, Program, step

SNAPSHOT = ("parameter", "gradient", "logits")
"""Fields of a record when snapshots are taken."""

_SUMMED = ("loss_sum",)
_RECORDED = ("loss_sum", "loss")


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
    recorded = [*_RECORDED, *(Observation._fields[1:] if key.every_step else ()), *(SNAPSHOT if key.snapshots else ())]
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
    with _no_collection():
        loop, program = _trace(key)
        module = text(loop, program)
    native.keep(path, json.dumps({"loop": asdict(loop), "text": module}).encode())
    return loop, module


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles: among a million small tuples that takes a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


TRACED = ("errors.py", "model", "training")
"""What this engine imports by any way besides its own modules: what becomes a program is among them."""


@cache
def sources() -> str:
    """Return a hash of the code that programs are made of and by: what was traced with other code is not used."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[2]
    folders = [package / name for name in TRACED] + [Path(__file__).parent]
    for path in sorted(file for folder in folders for file in (folder.rglob("*.py") if folder.is_dir() else [folder])):
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
    kernel.cache_clear()


def program_of(cohort: Cohort, detail: Detail) -> scalar.Program:
    """Return what one lane computes in a step of a cohort, to be printed and read."""
    return _trace(_Key.of(cohort, detail))[1]


@lru_cache(maxsize=256)
def kernel(module: str) -> Kernel:
    """Return a loop's machine code."""
    return Kernel(module)
