"""Optimizers and gradient clippings, by name: pure functions of one network's flat vector of parameters.

Each optimizer is `torch.optim`'s of the same name, written as `(parameter, gradient, state, schedule, lr, ...) ->
(parameter, state)` on vectors of shape (parameters,). What depends on the step number alone (bias corrections,
RAdam's rectification, NAdam's product) is its `schedule`: float64, computed once for all steps, because 1 - 0.999^t in
float32 is off by 1e-5. A number may be a Python float or a tensor of no dimension, one for each network under `vmap`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from xor_study.model.catalogue import Catalogue, Decay, DecayRate, NonNegative, Positive
from xor_study.model.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
else:
    np, torch = Lazy("numpy"), Lazy("torch")

State: TypeAlias = "dict[str, Tensor]"
Schedule = Mapping[str, Any]
Number: TypeAlias = "float | Tensor"
Steps: TypeAlias = "NDArray[np.float64]"
Update: TypeAlias = "Callable[..., tuple[Tensor, State]]"


@dataclass(frozen=True)
class Optimizer:
    """A pure (init, update) pair.

    Attributes:
        update: (parameter, gradient, state, schedule, lr, parameters) -> (parameter, state).
        lr: the rate it has unless given.
        state: the names of its state vectors.
        make_schedule: (steps, structural parameters) -> values by name, one a step.
        reference_name: of the class of `torch.optim` it equals, such as "torch.optim:SGD".
        initial: (parameters) -> what every state vector starts from.
    """

    update: Update
    lr: float
    state: tuple[str, ...]
    make_schedule: Callable[..., dict[str, Steps]]
    reference_name: str
    initial: Callable[..., dict[str, Number]]

    @property
    def reference(self) -> type[torch.optim.Optimizer]:
        """The class of `torch.optim` that it equals."""
        found: type[torch.optim.Optimizer] = pkgutil.resolve_name(self.reference_name)
        return found

    def init(self, parameter: Tensor, **parameters: Any) -> State:
        """Return the state before the first step, of `parameter`'s shape, dtype and device."""
        start = self.initial(**parameters)
        return {name: torch.zeros_like(parameter) + start.get(name, 0.0) for name in self.state}

    def schedule(self, steps: int, **parameters: Any) -> dict[str, Steps]:
        """Return the schedule of steps 1 to `steps`: values by name, float64 of shape (steps,)."""
        return self.make_schedule(np.arange(1, steps + 1, dtype=np.float64), **parameters)

    def torch_arguments(self, **parameters: Any) -> dict[str, Any]:
        """Return the parameters as `reference` takes them: two betas are one argument there."""
        if "beta1" in parameters:
            parameters["betas"] = (parameters.pop("beta1"), parameters.pop("beta2"))
        return parameters


OPTIMIZERS: Catalogue[Optimizer] = Catalogue("optimizer")


def _no_schedule(steps: Steps, **parameters: Any) -> dict[str, Steps]:
    return {}


def _zeros(**parameters: Any) -> dict[str, Number]:
    return {}


def _optimizer(
    reference: str,
    lr: float,
    state: tuple[str, ...],
    schedule: Callable[..., dict[str, Steps]] = _no_schedule,
    initial: Callable[..., dict[str, Number]] = _zeros,
) -> Callable[[Update], Update]:
    def register(update: Update) -> Update:
        OPTIMIZERS.add(update, Optimizer(update, lr, state, schedule, reference, initial))
        return update

    return register


def is_zero(number: Number) -> bool:
    """Return whether a number is 0 for all networks at once, so that its term can be left out of the program."""
    return isinstance(number, float) and number == 0.0


def _decayed(gradient: Tensor, parameter: Tensor, weight_decay: Number) -> Tensor:
    return gradient if is_zero(weight_decay) else gradient + weight_decay * parameter


def _lerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    return start + weight * (end - start)


@_optimizer("torch.optim:SGD", lr=1e-2, state=("momentum_buffer",))
def sgd(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    momentum: NonNegative = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> tuple[Tensor, State]:
    """Gradient descent with (Nesterov's) momentum. `torch.optim.SGD`; the default rate is Axon's and Keras's."""
    gradient = _decayed(gradient, parameter, weight_decay)
    # A term that is 0 in all networks is left out, not multiplied by 0: 0 * inf would be NaN, and torch leaves it out.
    if is_zero(momentum):
        return parameter - lr * gradient, state
    # torch starts the buffer with the first gradient, which is the same as starting it with 0.
    buffer = momentum * state["momentum_buffer"] + gradient
    direction = gradient + momentum * buffer if nesterov else buffer
    return parameter - lr * direction, {"momentum_buffer": buffer}


def _power(base: float, exponents: Steps) -> Steps:
    """Return the powers of a number, with the same bits on every processor: those of NumPy depend on its vectors."""
    return np.array([base**exponent for exponent in exponents.tolist()])


def _bias_corrections(steps: Steps, *, beta1: float, beta2: float, **_: Any) -> dict[str, Steps]:
    return {"mean": 1 / (1 - _power(beta1, steps)), "root": 1 / np.sqrt(1 - _power(beta2, steps))}


def _moments(gradient: Tensor, state: State, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    # As torch writes it: m + (1 - beta1) (g - m), which rounds differently from beta1 m + (1 - beta1) g.
    mean = _lerp(state["mean"], gradient, 1 - beta1)
    square = beta2 * state["square"] + (1 - beta2) * gradient * gradient
    return mean, square


def _adam_step(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    beta1: float,
    beta2: float,
    eps: Number,
) -> tuple[Tensor, State]:
    mean, square = _moments(gradient, state, beta1, beta2)
    step = lr * schedule["mean"] * mean / (torch.sqrt(square) * schedule["root"] + eps)
    return parameter - step, {"mean": mean, "square": square}


@_optimizer("torch.optim:Adam", lr=1e-3, state=("mean", "square"), schedule=_bias_corrections)
def adam(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    beta1: DecayRate = 0.9,
    beta2: DecayRate = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> tuple[Tensor, State]:
    """Bias-corrected mean over root mean square of the gradient (Kingma & Ba 2015). `torch.optim.Adam`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    return _adam_step(parameter, gradient, state, schedule, lr, beta1, beta2, eps)


@_optimizer("torch.optim:AdamW", lr=1e-3, state=("mean", "square"), schedule=_bias_corrections)
def adamw(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    beta1: DecayRate = 0.9,
    beta2: DecayRate = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> tuple[Tensor, State]:
    """Adam with the weights decayed apart from the gradient (Loshchilov & Hutter 2019). `torch.optim.AdamW`."""
    if not is_zero(weight_decay):  # before the step, of the parameter as it was
        parameter = parameter * (1 - lr * weight_decay)
    return _adam_step(parameter, gradient, state, schedule, lr, beta1, beta2, eps)


def _polaris_schedule(steps: Steps, *, beta1: float, beta2: float, **_: Any) -> dict[str, Steps]:
    return {"mean": 1 / (1 - _power(beta1, steps)), "square": 1 / (1 - _power(beta2, steps))}


@_optimizer("xor_study.model.polaris:PolarisAdam", lr=1e-3, state=("mean", "square"), schedule=_polaris_schedule)
def polaris_adam(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    beta1: DecayRate = 0.9,
    beta2: DecayRate = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 1e-15,
) -> tuple[Tensor, State]:
    """Adam with another small number under the root, as Axon's `:adam` (Polaris 0.1.0) has it. `PolarisAdam`."""
    # Polaris's own order of operations: the replayed traces of Axon are compared to 1e-6 and less.
    mean = beta1 * state["mean"] + (1 - beta1) * gradient
    square = beta2 * state["square"] + (1 - beta2) * gradient * gradient
    step = lr * (mean * schedule["mean"]) / (torch.sqrt(square * schedule["square"] + eps_root) + eps)
    return parameter - step, {"mean": mean, "square": square}


def _nadam_schedule(steps: Steps, *, beta1: float, beta2: float, momentum_decay: float, **_: Any) -> dict[str, Steps]:
    momentum = beta1 * (1 - 0.5 * _power(0.96, steps * momentum_decay))
    following = beta1 * (1 - 0.5 * _power(0.96, (steps + 1) * momentum_decay))
    product = np.cumprod(momentum)
    return {
        "gradient": (1 - momentum) / (1 - product),
        "mean": following / (1 - product * following),
        "root": 1 / np.sqrt(1 - _power(beta2, steps)),
    }


@_optimizer("torch.optim:NAdam", lr=2e-3, state=("mean", "square"), schedule=_nadam_schedule)
def nadam(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    beta1: DecayRate = 0.9,
    beta2: DecayRate = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum_decay: Decay = 4e-3,
) -> tuple[Tensor, State]:
    """Adam with Nesterov's momentum (Dozat 2016). `torch.optim.NAdam`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    mean, square = _moments(gradient, state, beta1, beta2)
    direction = schedule["gradient"] * gradient + schedule["mean"] * mean
    step = lr * direction / (torch.sqrt(square) * schedule["root"] + eps)
    return parameter - step, {"mean": mean, "square": square}


def _radam_schedule(steps: Steps, *, beta1: float, beta2: float, **_: Any) -> dict[str, Steps]:
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * steps * _power(beta2, steps) / (1 - _power(beta2, steps))
    rectified = length > 5  # torch's threshold; the paper (Liu et al. 2020) has 4
    # Where it is not rectified any number does, but the root must exist.
    safe = np.where(rectified, length, 6.0)
    ratio = (safe - 4) * (safe - 2) * longest / ((longest - 4) * (longest - 2) * safe) if longest > 5 else 0 * steps
    return {
        "mean": 1 / (1 - _power(beta1, steps)),
        "rectification": np.where(rectified, np.sqrt(ratio * (1 - _power(beta2, steps))), 0.0),
    }


@_optimizer("torch.optim:RAdam", lr=1e-3, state=("mean", "square"), schedule=_radam_schedule)
def radam(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    beta1: DecayRate = 0.9,
    beta2: DecayRate = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> tuple[Tensor, State]:
    """Adam that rectifies the variance of its early steps (Liu et al. 2020). `torch.optim.RAdam`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    mean, square = _moments(gradient, state, beta1, beta2)
    rectification = torch.as_tensor(schedule["rectification"], dtype=parameter.dtype, device=parameter.device)
    # A select and not a branch: one program serves all steps, and under vmap there is nothing to branch on.
    adaptive = torch.where(rectification > 0, rectification / (torch.sqrt(square) + eps), 1.0)
    return parameter - lr * schedule["mean"] * mean * adaptive, {"mean": mean, "square": square}


@_optimizer("torch.optim:RMSprop", lr=1e-2, state=("square", "mean", "momentum_buffer"))
def rmsprop(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    alpha: DecayRate = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.0,
    centered: bool = False,
) -> tuple[Tensor, State]:
    """Gradient over its running root mean square (Tieleman & Hinton 2012). `torch.optim.RMSprop`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    square = alpha * state["square"] + (1 - alpha) * gradient * gradient
    mean = _lerp(state["mean"], gradient, 1 - alpha) if centered else state["mean"]
    direction = gradient / (torch.sqrt(square - mean * mean if centered else square) + eps)
    buffer = state["momentum_buffer"]
    if not is_zero(momentum):
        direction = buffer = momentum * buffer + direction
    return parameter - lr * direction, {"square": square, "mean": mean, "momentum_buffer": buffer}


def _adagrad_schedule(steps: Steps, *, lr_decay: float, **_: Any) -> dict[str, Steps]:
    return {"rate": 1 / (1 + (steps - 1) * lr_decay)}


def _adagrad_initial(*, initial_accumulator_value: Number, **_: Any) -> dict[str, Number]:
    return {"sum": initial_accumulator_value}


@_optimizer("torch.optim:Adagrad", lr=1e-2, state=("sum",), schedule=_adagrad_schedule, initial=_adagrad_initial)
def adagrad(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    lr_decay: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
) -> tuple[Tensor, State]:
    """Gradient over the root of the sum of all its squares (Duchi et al. 2011). `torch.optim.Adagrad`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    total = state["sum"] + gradient * gradient
    return parameter - lr * schedule["rate"] * gradient / (torch.sqrt(total) + eps), {"sum": total}


@_optimizer("torch.optim:Adadelta", lr=1.0, state=("square", "change"))
def adadelta(
    parameter: Tensor,
    gradient: Tensor,
    state: State,
    schedule: Schedule,
    lr: Number,
    *,
    rho: DecayRate = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> tuple[Tensor, State]:
    """Gradient times root mean square change over root mean square gradient (Zeiler 2012). `torch.optim.Adadelta`."""
    gradient = _decayed(gradient, parameter, weight_decay)
    square = rho * state["square"] + (1 - rho) * gradient * gradient
    step = torch.sqrt(state["change"] + eps) / torch.sqrt(square + eps) * gradient
    change = rho * state["change"] + (1 - rho) * step * step
    return parameter - lr * step, {"square": square, "change": change}


@dataclass(frozen=True)
class Clipping:
    """A transform of one network's gradient.

    Attributes:
        transform: (gradient of shape (parameters,), parameters) -> gradient.
        reference_name: of torch's function that does the same in place, or None for nothing.
    """

    transform: Callable[..., Tensor]
    reference_name: str | None

    @property
    def reference(self) -> Callable[..., Any] | None:
        """Torch's function that does the same in place on a list of parameters, (parameters, bound)."""
        return None if self.reference_name is None else pkgutil.resolve_name(self.reference_name)


CLIPPINGS: Catalogue[Clipping] = Catalogue("clipping")


def _clipping(reference: str | None) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def register(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
        CLIPPINGS.add(transform, Clipping(transform, reference))
        return transform

    return register


@_clipping(None)
def none(gradient: Tensor) -> Tensor:
    """Leave the gradient as it is."""
    return gradient


@_clipping("torch.nn.utils:clip_grad_value_")
def value(gradient: Tensor, *, bound: Positive = 1.0) -> Tensor:
    """Cut each entry off at -bound and bound. `torch.nn.utils.clip_grad_value_`."""
    return torch.clamp(gradient, -bound, bound)


@_clipping("torch.nn.utils:clip_grad_norm_")
def norm(gradient: Tensor, *, bound: Positive = 1.0) -> Tensor:
    """Scale a gradient longer than `bound` to that norm (Pascanu et al. 2013). `torch.nn.utils.clip_grad_norm_`."""
    total = torch.linalg.vector_norm(gradient)
    # torch's formula: a gradient that is shorter than the bound is multiplied by exactly 1.
    return gradient * torch.clamp(bound / (total + 1e-6), max=1.0)
