"""Cohorts: runs that share a program and differ in seeds and numbers only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from xor_study.errors import StudyError, suggestion
from xor_study.model.data import Batches, initial_draws
from xor_study.model.initializers import INITIALIZERS
from xor_study.model.losses import LOSSES
from xor_study.model.network import XORNetwork, empty_network
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.training.spec import DECLARED, LARGEST, OWN, parameters_of_group
from xor_study.training.step import Program
from xor_study.training.table import distinct_rows

DTYPES = {name: getattr(torch, name) for name in LARGEST}
"""The dtypes a run can have, by the names used on the command line."""


@dataclass(frozen=True)
class Cohort:
    """Runs that share a program. Arrays with a row for each run are in the order of `rows`.

    Attributes:
        program: the configuration that the runs share.
        rows: positions of the runs in the table they come from, shape (runs,).
        epochs, iterations: epochs, and steps in each of them.
        numbers: hyperparameters that differ between the runs, by group and name, shape (runs,) each, float64.
        initial: takes indices into `rows` and returns the initial parameters of these runs, shape (indices, width), of
            the program's dtype and device.
        batches: of the runs.
    """

    program: Program
    rows: NDArray[np.intp]
    epochs: int
    iterations: int
    numbers: Mapping[str, Mapping[str, NDArray[np.float64]]]
    initial: Callable[[NDArray[np.intp]], Tensor]
    batches: Batches

    @property
    def steps(self) -> int:
        """Steps of each run."""
        return self.epochs * self.iterations


_TRAINED_GROUPS = ("optimizer", "loss", "clip")

# Seed and initializer decide only where a run starts, so runs that differ in them share a program.
_SHARED = [name for name, parameter in OWN.items() if parameter.structural and name not in ("seed", "init")]


def cohort_rows(table: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of the runs of each cohort in a checked table, in the order of `cohorts`."""
    keys = table[_SHARED].copy()
    for column, choices in DECLARED.items():
        if column.split("_", 1)[0] in _TRAINED_GROUPS:
            structural = next(iter(choices.values())).structural
            # A hyperparameter that is 0 is a constant; of one that is not 0 the value does not matter.
            keys[column] = table[column] if structural else table[column] == 0
    yield from _equal_rows(keys)


def cohorts(
    table: pd.DataFrame,
    device: torch.device | str = "cpu",
    batches: Batches | None = None,
    initial: Mapping[str, Any] | None = None,
) -> Iterator[Cohort]:
    """Yield the runs of a checked table in cohorts, ordered by the first run of each.

    A hyperparameter that is 0 is a constant of the program, so that its term is left out of the computation.

    Args:
        table: from `table.table_of`.
        device: of the networks.
        batches: for all runs, instead of those of their seeds.
        initial: initial parameters by name, shape (*shape) or (runs, *shape), instead of those of the seeds.

    Raises:
        StudyError: if `batches` has too few steps, or `initial` a wrong name or shape.
    """
    for rows in cohort_rows(table):
        members = table.iloc[rows]
        first = _row(members)
        dtype = DTYPES[first["dtype"]]
        network = empty_network(
            first["hidden"], first["activation_hidden"], first["activation_output"], device=device, dtype=dtype
        ).requires_grad_(False)
        constants: dict[str, dict[str, Any]] = {group: {} for group in _TRAINED_GROUPS}
        numbers: dict[str, dict[str, NDArray[np.float64]]] = {group: {} for group in _TRAINED_GROUPS}
        numbers["optimizer"]["lr"] = members["lr"].to_numpy(np.float64, copy=True)
        for group in _TRAINED_GROUPS:
            for name, value in parameters_of_group(first, group).items():
                declared = DECLARED[f"{group}_{name}"][first[group]]
                if declared.structural or value == 0:
                    constants[group][name] = value
                else:
                    numbers[group][name] = members[f"{group}_{name}"].to_numpy(np.float64, copy=True)
        used_batches = batches or Batches.of(first["batch"], members["seed"])
        program = Program(
            network,
            LOSSES[first["loss"]],
            OPTIMIZERS[first["optimizer"]],
            CLIPPINGS[first["clip"]],
            constants,
            used_batches.size,
        )
        epochs, iterations = int(first["epochs"]), int(first["iterations"])
        used_batches.check_steps(epochs * iterations)
        given = None if initial is None else _given(initial, rows, len(table), network)
        start = partial(_start, members, network, given)
        yield Cohort(program, rows, epochs, iterations, numbers, start, used_batches)


def _start(
    table: pd.DataFrame, network: XORNetwork, given: Mapping[str, Tensor] | None, members: NDArray[np.intp]
) -> Tensor:
    """Return the initial parameters of some rows of a table, shape (members, width), of the network's dtype."""
    if given is None:
        start: Mapping[str, Tensor] = initial_parameters(table.take(members))
    else:
        start = {name: value[torch.from_numpy(members)] for name, value in given.items()}
    flat = torch.cat([start[name].reshape(len(members), -1) for name, _ in network.named_parameters()], dim=1)
    return flat.to(network.output.bias)


def initial_parameters(table: pd.DataFrame) -> dict[str, Tensor]:
    """Return the initial parameters of runs with one width, by name, shape (runs, *shape), float64.

    Draw j of a seed belongs to entry j of the parameters in the network's order for every initializer, so runs that
    share a seed are paired.
    """
    shapes = {
        name: part.shape for name, part in XORNetwork(int(table["hidden"].iloc[0]), device="meta").named_parameters()
    }
    sizes = [shape.numel() for shape in shapes.values()]
    result = {name: torch.empty(len(table), *shape, dtype=torch.float64) for name, shape in shapes.items()}
    columns = ["init", "gain", "bias", *(column for column in DECLARED if column.startswith("init_"))]
    for rows in _equal_rows(table[columns]):
        first = _row(table.iloc[rows])
        # Torch's vectorized functions give other last bits in the tail of a tensor, so fill it up to whole vectors.
        seeds = table["seed"].to_numpy()[np.resize(rows, -(-len(rows) // _VECTOR) * _VECTOR)]
        parts = torch.split(torch.from_numpy(initial_draws(seeds, sum(sizes))), sizes, dim=1)
        draws = {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        for layer in ("hidden", "output"):
            drawn = INITIALIZERS[first["init"]](
                draws[f"{layer}.weight"],
                draws[f"{layer}.bias"],
                gain=first["gain"],
                bias=first["bias"],
                **parameters_of_group(first, "init"),
            )
            for name, value in zip(("weight", "bias"), drawn, strict=True):
                result[f"{layer}.{name}"][torch.from_numpy(rows)] = value[: len(rows)]
    return result


def _equal_rows(keys: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of equal rows, for each distinct row, in the order in which these first occur."""
    groups, _ = distinct_rows((keys[column] for column in keys), len(keys))
    order = np.argsort(groups, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _row(table: pd.DataFrame) -> dict[str, Any]:
    """Return the first row of a table, by column."""
    return {str(column): value for column, value in table.iloc[0].items()}


_VECTOR = 16
"""Entries of the widest vector of torch's functions: 16 of float32 in AVX-512."""


def _given(initial: Mapping[str, Any], rows: NDArray[np.intp], runs: int, network: XORNetwork) -> dict[str, Tensor]:
    """Return the rows of given initial parameters that belong to `rows`, shape (len(rows), *shape) each.

    Raises:
        StudyError: if a name is unknown or missing, or a shape is wrong.
    """
    result = {}
    known = dict(network.named_parameters())
    for name in initial:
        if name not in known:
            raise StudyError(f"initial: {name}: unknown parameter{suggestion(name, known)}")
    for name, parameter in known.items():
        if name not in initial:
            raise StudyError(f"initial: {name} is missing (needed: {', '.join(known)})")
        value = torch.as_tensor(initial[name], dtype=torch.float64)
        if value.shape == parameter.shape:
            value = value.expand(runs, *parameter.shape)
        if value.shape != (runs, *parameter.shape):
            shapes = f"{tuple(parameter.shape)} or {(runs, *parameter.shape)}"
            raise StudyError(f"initial: {name} must have the shape {shapes}, not {tuple(value.shape)}")
        result[name] = value[torch.from_numpy(rows)]
    return result
