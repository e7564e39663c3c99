"""What training is: one update of one network, and what is noted of it.

`step` is the only definition of an update; `vmap` runs it over thousands of networks at once. It works on the four
corners instead of the batch: the mean over a batch of random bits is a sum over the corners, weighted by their counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vjp

from xor_study.catalogue import StudyError, suggestion
from xor_study.data import CORNERS, TARGETS, Batches, initial_draws
from xor_study.initializers import INITIALIZERS
from xor_study.losses import LOSSES, Loss
from xor_study.network import XORNetwork, empty_network
from xor_study.optimizers import CLIPPINGS, OPTIMIZERS, Clipping, Number, Optimizer, Schedule, State
from xor_study.spec import DECLARED, LARGEST, OWN, distinct_rows, parameters_of_group

DTYPES = {name: getattr(torch, name) for name in LARGEST}


class Observation(NamedTuple):
    """What is noted of one step of one network, each a tensor of no dimension.

    All but `max_abs_parameter` are taken before the update. NaN in what a maximum is taken of makes it NaN.

    Attributes:
        loss: mean over the batch.
        grad_norm: Euclidean norm of the gradient, before clipping; may overflow where the gradient does not.
        max_abs_grad: largest absolute entry of that gradient.
        max_abs_parameter: largest absolute parameter after the update.
        max_abs_logit: largest absolute logit of the four corners.
        corners_right: how many of the four corners are on the right side.
        saturated: how many of the four corners have a logit beyond `SATURATED`.
    """

    loss: Tensor
    grad_norm: Tensor
    max_abs_grad: Tensor
    max_abs_parameter: Tensor
    max_abs_logit: Tensor
    corners_right: Tensor
    saturated: Tensor


SATURATED = math.log(999)
"""The size of a logit whose sigmoid is within 0.1 % of 0 or 1."""


def saturated(logit: Tensor) -> Tensor:
    """Return how many corners are saturated, of their logits (..., 4)."""
    return (torch.abs(logit) > SATURATED).sum(-1)


class Internals(NamedTuple):
    """What a step computes on its way and is kept only where a snapshot is asked for.

    Attributes:
        gradient: of all parameters, before clipping, shape (width,).
        logits: of the four corners before the update, shape (4,).
    """

    gradient: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Program:
    """What runs must share to be trained together: everything that is not a number of theirs.

    Attributes:
        network: on the device and of the dtype the runs have; only its shape matters.
        loss, optimizer, clip: entries of the catalogues.
        constants: parameters of "loss", "optimizer" and "clip" that are the same in all runs, by group and name.
        batch: samples in a batch.
    """

    network: XORNetwork
    loss: Loss
    optimizer: Optimizer
    clip: Clipping
    constants: Mapping[str, Mapping[str, Any]]
    batch: int

    def __post_init__(self) -> None:
        example = self.network.output.bias
        corners = torch.tensor(CORNERS, dtype=example.dtype, device=example.device)
        is_true = torch.tensor(TARGETS, device=example.device)
        low, high = self.loss.targets
        held = {"x1": corners[:, :1], "x2": corners[:, 1:], "is_true": is_true}
        for name, value in (held | {"target": torch.where(is_true, high, low).to(example.dtype)}).items():
            object.__setattr__(self, name, value)

    x1: Tensor = field(init=False)  # (4, 1), of the corners
    x2: Tensor = field(init=False)  # (4, 1)
    is_true: Tensor = field(init=False)  # (4,)
    target: Tensor = field(init=False)  # (4,), as the loss codes it

    @property
    def width(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a vector of all parameters (..., width) as the network's named parameters (..., *shape)."""
        parameters = dict(self.network.named_parameters())
        parts = torch.split(flat, [parameter.numel() for parameter in parameters.values()], -1)
        return {
            name: part.reshape(flat.shape[:-1] + parameter.shape)
            for (name, parameter), part in zip(parameters.items(), parts, strict=True)
        }

    def logit(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the four corners, shape (4,)."""
        logit: Tensor = functional_call(self.network, dict(parameters), (self.x1, self.x2), {"return_logit": True})
        return logit[:, 0]

    def corners_right(self, logit: Tensor) -> Tensor:
        """Return how many corners are on the right side, of their logits (..., 4)."""
        prediction = self.network.output_activation(logit)
        return self.loss.is_right(logit, prediction, self.is_true).sum(-1)


def step(
    program: Program,
    parameters: Tensor,
    state: State,
    counts: Tensor,
    schedule: Schedule,
    numbers: Mapping[str, Mapping[str, Number]],
) -> tuple[Tensor, State, Observation, Internals]:
    """Make one update of one network.

    Args:
        program: what is the same for all networks.
        parameters: all of the network's, a vector.
        state: the optimizer's vectors, of the same length.
        counts: how often each corner stands in the batch, shape (4,), of the parameters' dtype.
        schedule: the optimizer's values of this step.
        numbers: the parameters that differ between networks (the rate among them), by group and name.

    Returns:
        The parameters and the state after the update, what is noted of the step, and how it came about.
    """
    logit, pull_back = vjp(program.logit, program.named(parameters))[:2]  # (4,)

    def mean_loss(logit: Tensor) -> tuple[Tensor, Tensor]:
        prediction = program.network.output_activation(logit)
        losses = program.loss.per_sample(
            logit, prediction, program.target, **program.constants["loss"], **numbers["loss"]
        )  # (4,)
        return losses.sum() / program.batch, losses  # a corner's gradient is that of one sample in the batch

    logit_gradient, losses = grad(mean_loss, has_aux=True)(logit)  # (4,)
    present = counts > 0  # a corner that is absent contributes nothing, rather than 0 times infinity
    (gradients,) = pull_back(torch.where(present, counts * logit_gradient, 0.0))
    gradient = torch.cat([gradients[name].reshape(-1) for name, _ in program.network.named_parameters()])

    clipped = program.clip.transform(gradient, **program.constants["clip"], **numbers["clip"])
    updated, state = program.optimizer.update(
        parameters, clipped, state, schedule, **program.constants["optimizer"], **numbers["optimizer"]
    )
    observation = Observation(
        loss=torch.where(present, counts * losses, 0.0).sum() / program.batch,
        grad_norm=torch.linalg.vector_norm(gradient),
        max_abs_grad=torch.linalg.vector_norm(gradient, torch.inf),
        max_abs_parameter=torch.linalg.vector_norm(updated, torch.inf),
        max_abs_logit=torch.linalg.vector_norm(logit, torch.inf),
        corners_right=program.corners_right(logit),
        saturated=saturated(logit),
    )
    return updated, state, observation, Internals(gradient, logit)


@dataclass(frozen=True)
class Cohort:
    """Runs that share a program, with what each brings of its own.

    Attributes:
        program: what they share.
        rows: their places in the table they come from.
        epochs, iterations: the steps they take.
        numbers: what differs between them, by group and name, shape (runs,), float64.
        initial: (members) -> their initial parameters, shape (members, width), of the program's dtype and device.
        batches: of the same runs in the same order.
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
        """Steps each run takes."""
        return self.epochs * self.iterations


_TRAINED_GROUPS = ("optimizer", "loss", "clip")
_SHARED = [name for name, own in OWN.items() if own.structural and name not in ("seed", "init")]


def places(table: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yield the places of the runs of a checked table that share a program and its steps: of each cohort."""
    keys = table[_SHARED].copy()
    for column, choices in DECLARED.items():
        if column.split("_", 1)[0] in _TRAINED_GROUPS:
            structural = next(iter(choices.values())).structural
            keys[column] = table[column] if structural else table[column] == 0
    yield from _places(keys)


def cohorts(
    table: pd.DataFrame,
    device: torch.device | str = "cpu",
    batches: Batches | None = None,
    initial: Mapping[str, Any] | None = None,
) -> Iterator[Cohort]:
    """Yield the runs of a checked table in cohorts that can be trained together, in the order of the table.

    A parameter that is 0 in a run is a constant of its program: its term is left out.

    Args:
        table: from `spec.table_of`.
        device: where the runs train.
        batches: given batches, the same for all runs, instead of those of their seeds.
        initial: given initial parameters by name, shape (*shape) or (runs, *shape), instead of those of their seeds.
    """
    for rows in places(table):
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
        own_batches = batches or Batches.of(first["batch"], members["seed"])
        program = Program(
            network,
            LOSSES[first["loss"]],
            OPTIMIZERS[first["optimizer"]],
            CLIPPINGS[first["clip"]],
            constants,
            own_batches.size,
        )
        epochs, iterations = int(first["epochs"]), int(first["iterations"])
        own_batches.check_steps(epochs * iterations)
        given = None if initial is None else _given(initial, rows, len(table), network)
        start = partial(_start, members, network, given)
        yield Cohort(program, rows, epochs, iterations, numbers, start, own_batches)


def _start(
    table: pd.DataFrame, network: XORNetwork, given: Mapping[str, Tensor] | None, members: NDArray[np.intp]
) -> Tensor:
    """Return the initial parameters of some rows of a table, (members, width), as `network` has them."""
    if given is None:
        start: Mapping[str, Tensor] = initial_parameters(table.take(members))
    else:
        start = {name: value[torch.from_numpy(members)] for name, value in given.items()}
    flat = torch.cat([start[name].reshape(len(members), -1) for name, _ in network.named_parameters()], dim=1)
    return flat.to(network.output.bias)


def initial_parameters(table: pd.DataFrame) -> dict[str, Tensor]:
    """Return the initial parameters of runs of one width, by name, shape (runs, *shape), float64.

    Draw j of a seed belongs to entry j of the parameters in the network's order, whatever the initializer, so runs
    that share a seed are paired.
    """
    shapes = {
        name: part.shape for name, part in XORNetwork(int(table["hidden"].iloc[0]), device="meta").named_parameters()
    }
    sizes = [shape.numel() for shape in shapes.values()]
    result = {name: torch.empty(len(table), *shape, dtype=torch.float64) for name, shape in shapes.items()}
    columns = ["init", "gain", "bias", *(column for column in DECLARED if column.startswith("init_"))]
    for rows in _places(table[columns]):
        first = _row(table.iloc[rows])
        seeds = table["seed"].to_numpy()[np.resize(rows, -(-len(rows) // _LANES) * _LANES)]
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


def _places(keys: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yield the places of the rows that are equal, for each distinct row in the order of its first."""
    groups, _ = distinct_rows((keys[column] for column in keys), len(keys))
    order = np.argsort(groups, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _row(table: pd.DataFrame) -> dict[str, Any]:
    """Return the first row of a table by column."""
    return {str(column): value for column, value in table.iloc[0].items()}


_LANES = 16
"""Torch's vectorised functions give other last bits in the tail of a tensor: with a multiple of this there is none."""


def _given(initial: Mapping[str, Any], rows: NDArray[np.intp], runs: int, network: XORNetwork) -> dict[str, Tensor]:
    """Return given initial parameters for the runs at `rows`, shape (len(rows), *shape) each."""
    result = {}
    known = dict(network.named_parameters())
    for name in initial:
        if name not in known:
            raise StudyError(f"initial: {name}: unknown parameter{suggestion(name, known)}")
    for name, parameter in known.items():
        if name not in initial:
            raise StudyError(
                f"initial: {name} is missing (needed: {', '.join(n for n, _ in network.named_parameters())})"
            )
        value = torch.as_tensor(initial[name], dtype=torch.float64)
        if value.shape == parameter.shape:
            value = value.expand(runs, *parameter.shape)
        if value.shape != (runs, *parameter.shape):
            shapes = f"{tuple(parameter.shape)} or {(runs, *parameter.shape)}"
            raise StudyError(f"initial: {name} must have the shape {shapes}, not {tuple(value.shape)}")
        result[name] = value[torch.from_numpy(rows)]
    return result
