"""From a cohort to its loop in machine code: traced, written and compiled once, cached in memory and on disk."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from xor_study.engines.lanes import native
from xor_study.engines.lanes.llvm import Loop, text
from xor_study.engines.lanes.native import Kernel
from xor_study.engines.lanes.scalar import ScalarProgram
from xor_study.engines.lanes.trace import trace
from xor_study.files import hash_of_sources
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue
from xor_study.model.data import CORNERS
from xor_study.model.losses import LOSSES
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import Detail, accumulate, start_of_accumulation
from xor_study.training.step import Observation, Program, step

SNAPSHOT = ("parameter", "gradient", "logits")
"""Fields of a record that make a snapshot."""

_SUMMED = ("loss_sum",)
_RECORDED = ("loss_sum", "loss")


def _trace(key: _Key) -> tuple[Loop, ScalarProgram]:
    """Return the loop of all cohorts with this key, and what it computes."""
    dtype = str(key.program.x1.dtype).removeprefix("torch.")
    # In full batches each corner occurs once. Made here, the counts are constants and multiplications by 1 are removed;
    # made within the traced function, they would be the result of an operation.
    once_each = torch.ones(len(CORNERS), dtype=key.program.x1.dtype)
    traced = trace(partial(_one_step, key, once_each), _arguments(key))
    fields: dict[str, tuple[str, int]] = {}
    for name, number in traced.outputs.items():
        vector = name.rpartition(".")[0]
        fields[vector] = (traced.statements[number].type, fields.get(vector, ("", 0))[1] + 1)
    numbers = {f"{group}.{name}": (dtype, 1) for group, name in key.numbers}
    observed = Observation._fields[1:] if key.every_step else ()
    recorded = (*_RECORDED, *observed, *(SNAPSHOT if key.snapshots else ()))
    loop = Loop(dtype, fields, {"key": ("int64", 1)} | numbers, key.schedule, recorded, _SUMMED, key.batch)
    return loop, traced


def _arguments(key: _Key) -> dict[str, Tensor]:
    """Return examples of what `_one_step` takes."""
    program, dtype = key.program, key.program.x1.dtype
    vectors = dict.fromkeys(("parameter", *program.optimizer.state), program.width)
    vectors |= {"count": len(CORNERS)} if key.batch != 0 else {}
    arguments = {name: torch.ones(size, dtype=dtype) for name, size in vectors.items()}
    scalars = [f"schedule.{name}" for name in key.schedule] + [f"{group}.{name}" for group, name in key.numbers]
    arguments |= {name: torch.tensor(1.0, dtype=dtype) for name in scalars}
    return arguments | start_of_accumulation(dtype) | {"step": torch.tensor(1, dtype=torch.int32)}


def _one_step(key: _Key, once_each: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make one step of one network and accumulate its measures: the function that is traced.

    Args:
        key: of the cohort.
        once_each: the counts of the corners where they are not given, shape (4,).
        given: all values before the step, and its inputs, by name.

    Returns:
        the values after the step, under the same names, and what is recorded.
    """
    program = key.program
    numbers: dict[str, dict[str, Tensor]] = {group: {} for group in ("optimizer", "loss", "clip")}
    for group, name in key.numbers:
        numbers[group][name] = given[f"{group}.{name}"]
    state = {name: given[name] for name in program.optimizer.state}
    schedule = {name: given[f"schedule.{name}"] for name in key.schedule}
    updated, new_state, observed, internals = step(
        program, given["parameter"], state, given.get("count", once_each), schedule, numbers
    )
    changed = {name: value for name, value in new_state.items() if value is not given[name]}
    result = {"parameter": updated, **changed, **accumulate(given, observed, given["step"])}
    result |= {"loss": observed.loss, "corners_right": observed.corners_right}
    if key.every_step:
        result |= observed._asdict()
    if key.snapshots:
        result |= internals._asdict()
    return result


@lru_cache(maxsize=256)
def _traced(key: _Key) -> tuple[Loop, str]:
    """Return the loop of all cohorts with this key and its text, from the cache if they are there."""
    # The text depends on our own code and on how this version of torch decomposes operations.
    path = None if key.name is None else native.cache_path(key.name, sources(), torch.__version__, suffix=".json")
    cached = native.read(path)
    if cached is not None:
        described = json.loads(cached)
        return Loop(**described["loop"]), described["text"]
    with _no_collection():
        loop, program = _trace(key)
        module = text(loop, program)
    native.write(path, json.dumps({"loop": asdict(loop), "text": module}).encode())
    return loop, module


@contextmanager
def _no_collection() -> Iterator[None]:
    """Turn Python's search for reference cycles off: among a million small tuples it takes a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


TRACED = ("errors.py", "model", "training")
"""What this engine imports, directly or not, besides its own modules: the code that is traced is among it."""


@cache
def sources() -> str:
    """Return a hash of all code that decides a program, so that a text traced by other code is not used."""
    return hash_of_sources([*TRACED, "engines/lanes"])


def _named(catalogue: Catalogue[Any], entry: Any) -> str | None:
    """Return the name of a catalogue's entry if it is defined in this package, so that `sources` covers its code."""
    for name, known in catalogue.items():
        if known is entry and catalogue.module(name).startswith("xor_study."):
            return name
    return None


@dataclass(frozen=True)
class _Key:
    """Identifies a loop: cohorts with equal keys share it.

    Attributes:
        program: of one of these cohorts.
        choices: functions and values that decide the loop, hashable.
        name: the same as a text that other processes understand, or None where a function is not from this package.
        numbers: the hyperparameters that differ between runs, as (group, name).
        batch, every_step, snapshots: see `Loop` and `Detail`.
    """

    program: Program = field(compare=False)
    choices: tuple[Any, ...]
    name: str | None = field(compare=False)
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

    @property
    def schedule(self) -> tuple[str, ...]:
        """Names of the optimizer's values that depend on the step alone."""
        return tuple(self.program.optimizer.schedule(1, **self.program.constants["optimizer"]))


def traced(cohort: Cohort, detail: Detail) -> tuple[Loop, str]:
    """Return a cohort's loop and its text, tracing it at most once in a process.

    Raises:
        NotCompilable: if the step contains an operation that can't be compiled.
    """
    return _traced(_Key.of(cohort, detail))


def forget() -> None:
    """Clear the caches of this process; the one on disk stays."""
    _traced.cache_clear()
    kernel.cache_clear()


def program_of(cohort: Cohort, detail: Detail) -> ScalarProgram:
    """Return what one lane computes in a step of a cohort; `str` of it is meant to be read."""
    return _trace(_Key.of(cohort, detail))[1]


@lru_cache(maxsize=256)
def kernel(module: str) -> Kernel:
    """Return a loop's machine code."""
    return Kernel(module)
