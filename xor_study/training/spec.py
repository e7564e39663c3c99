"""What a run is: every choice that changes its numbers, checked, with an identity.

A run is a `RunSpec`, or one row of a table with a column for each of its fields. What a field may be is declared where
it acts: in `RunSpec` itself, or in the signature of the chosen function, whose parameter `momentum` is the field
`optimizer_momentum`. This module imports neither torch nor pandas, so that a command line is checked before they load.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from xor_study.errors import StudyError, nearest, show, suggestion
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue, Finite, Interval, NonNegative, OneOf, Parameter, parameter
from xor_study.model.initializers import INITIALIZERS
from xor_study.model.losses import LOSSES, check_pairing
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS

if TYPE_CHECKING:
    import pandas as pd

GROUPS: dict[str, Catalogue[Any]] = {
    "optimizer": OPTIMIZERS,
    "init": INITIALIZERS,
    "loss": LOSSES,
    "clip": CLIPPINGS,
}
"""The groups whose choice is a field of its own name, and whose parameters are `<group>_<parameter>`."""

LARGEST = {
    "float64": sys.float_info.max,
    "float32": (2 - 2**-23) * 2.0**127,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float16": 65504.0,
}
"""The largest finite number of each precision that a run can have."""

HALF = ("bfloat16", "float16")
"""Precisions that no machine code is made for."""

MOST_STEPS = 10**8

ALIASES = {
    "learning_rate": "lr",
    "rate": "lr",
    "optimizer.lr": "lr",
    "opt": "optimizer",
    "initializer": "init",
    "initialization": "init",
    "weight_init": "init",
    "loss_fn": "loss",
    "criterion": "loss",
    "hidden_activation": "activation.hidden",
    "output_activation": "activation.output",
    "nonlinearity": "activation.hidden",
    "clipping": "clip",
    "gradient_clipping": "clip",
    "max_norm": "clip.bound",
    "width": "hidden",
    "hidden_size": "hidden",
    "units": "hidden",
    "batch_size": "batch",
    "n_epochs": "epochs",
    "steps": "iterations",
    "precision": "dtype",
    "random_seed": "seed",
    "seeds": "seed",
    "gpu": "device",
}
"""Keys by other names that people use, for the hint in a message; nothing is accepted under them."""


def guesses(name: str, known: Iterable[str]) -> list[str]:
    """Return which of some keys an unknown `name` may have been meant to be; none where nothing is near."""
    known = list(known)
    if ALIASES.get(name) in known:
        return [ALIASES[name]]
    if parts := [key for key in known if "." in key and name in key.split(".")]:
        return parts
    near = [ALIASES.get(guess, guess) for guess in nearest(name, [*known, *ALIASES])]
    return [key for key in near if key in known]


def _parameter(omitted: Any) -> Any:
    """Declare a field that is a parameter of some of a group's functions.

    Args:
        omitted: the value that an identity leaves out where the chosen function has no such parameter. It never
            changes, whatever functions there are and in whatever order: identities that people have kept stay.
    """
    return dataclasses.field(default=None, metadata={"omitted": omitted})


@dataclass(frozen=True, kw_only=True, repr=False)
class RunSpec:
    """One run: every choice that changes its numbers, and nothing else. Frozen; compared by value.

    All fields are keyword arguments with a default, which together are the article's network. A choice is its name
    (`optimizer="sgd"`), a parameter of the chosen function is `<group>_<parameter>` (`optimizer_momentum=0.9`). A
    parameter is the function's default unless given, and None if the chosen function has no such parameter.

    Attributes:
        optimizer, init, loss, clip: a name of the catalogue `GROUPS[...]`; `loss` also takes a preset such as
            "axon_0_6_1", which is stored as the loss and the parameters it stands for.
        lr: the learning rate; by default the optimizer's own (SGD 0.01, Adam 0.001), so it is always a number.
        gain: factor of the initial weights.
        bias: is added to the initial biases, which are 0 unless the initializer draws them.
        activation_hidden, activation_output: names of the two activations.
        hidden: width of the hidden layer.
        batch: random samples a step, or "full" for the four corners once each.
        epochs, iterations: the run takes epochs x iterations steps; an epoch is only what a mean is reported of.
        dtype: what everything is computed in: "float64", "float32", "bfloat16" or "float16".
        seed: decides the initial draws and the batches, the same in every run that shares it.

    Raises:
        StudyError: if there is no such field, if a value has the wrong type or is out of range, or if values cannot be
            combined.

    Example:
        >>> spec = RunSpec(optimizer="adam", seed=3)
        >>> spec
        RunSpec(optimizer='adam', seed=3)
        >>> spec.lr, spec.optimizer_beta1, spec.optimizer_momentum
        (0.001, 0.9, None)
        >>> spec.replace(lr=0.1).run_id
        '44cdaff4770ee6352cf4'
    """

    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    lr: NonNegative = None  # type: ignore[assignment]  # None asks for the optimizer's own and is replaced by it
    optimizer_momentum: float | None = _parameter(0.0)
    optimizer_nesterov: bool | None = _parameter(False)
    optimizer_weight_decay: float | None = _parameter(0.0)
    optimizer_beta1: float | None = _parameter(0.9)
    optimizer_beta2: float | None = _parameter(0.999)
    optimizer_eps: float | None = _parameter(1e-8)
    optimizer_eps_root: float | None = _parameter(1e-15)
    optimizer_momentum_decay: float | None = _parameter(4e-3)
    optimizer_alpha: float | None = _parameter(0.99)
    optimizer_centered: bool | None = _parameter(False)
    optimizer_lr_decay: float | None = _parameter(0.0)
    optimizer_initial_accumulator_value: float | None = _parameter(0.0)
    optimizer_rho: float | None = _parameter(0.9)
    init: Annotated[str, OneOf(INITIALIZERS)] = "glorot_uniform"
    init_value: float | None = _parameter(0.5)
    init_scale: float | None = _parameter(0.01)
    init_mode: str | None = _parameter("fan_in")
    init_distribution: str | None = _parameter("normal")
    gain: Finite = 1.0
    bias: Finite = 0.0
    loss: Annotated[str, OneOf(LOSSES)] = "binary_cross_entropy"
    loss_eps: float | None = _parameter(1e-7)
    loss_delta: float | None = _parameter(1.0)
    loss_logits_visible: bool | None = _parameter(True)
    loss_clip_gradient: str | None = _parameter("correct")
    loss_sigmoid_gradient: str | None = _parameter("stable")
    activation_hidden: Annotated[str, OneOf(HIDDEN_ACTIVATIONS)] = "tanh"
    activation_output: Annotated[str, OneOf(OUTPUT_ACTIVATIONS)] = "sigmoid"
    clip: Annotated[str, OneOf(CLIPPINGS)] = "none"
    clip_bound: float | None = _parameter(1.0)
    hidden: Annotated[int, Interval(1, 1024)] = 8
    batch: Annotated[int | str, Interval(1, 65536, also="full")] = 32
    epochs: Annotated[int, Interval(1, 10**5)] = 10
    iterations: Annotated[int, Interval(1, MOST_STEPS)] = 1000
    dtype: Annotated[str, OneOf(tuple(LARGEST))] = "float32"
    seed: Annotated[int, Interval(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        # The class is frozen, so its own assignment goes by way of object.
        for field, value in _resolved(dataclasses.asdict(self)).items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        shown: dict[str, Any] = {}
        for field in FIELDS:
            value = getattr(self, field)
            if value != rules(field, getattr(self, deciding_group(field) or "", ""))[1]:
                shown[field] = value
        return f"RunSpec({', '.join(f'{field}={value!r}' for field, value in shown.items())})"

    @classmethod
    def from_row(cls, row: pd.Series[Any]) -> RunSpec:
        """Return the run of one row of a table, such as `Result.runs` or `runs.csv`; other columns are passed over."""
        known = row[[key for key in row.index if key in KEYS]]
        return cls(**{KEYS[str(key)]: value for key, value in known.astype(object).where(known.notna(), None).items()})

    @property
    def run_id(self) -> str:
        """The run's identity: 20 hexadecimal digits, a hash of the fields' values with defaults omitted.

        A field that is added later, with a default, changes no identity.
        """
        values = dataclasses.asdict(self)
        return identity(identity_text(values), values["seed"])

    def replace(self, **changes: Any) -> RunSpec:
        """Return this run with `changes`; what depends on a changed group goes back to the new choice's defaults."""
        values = dataclasses.asdict(self)
        for group in GROUPS.keys() & changes.keys():
            values |= dict.fromkeys((field for field in DECLARED if field.startswith(f"{group}_")), None)
            values |= {"lr": None} if group == "optimizer" else {}
        return RunSpec(**(values | changes))


def _with_hints(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that raises StudyError, with the nearest field, for a field that does not exist."""

    @functools.wraps(init)
    def checked(self: RunSpec, *values: Any, **fields: Any) -> None:
        if values:
            raise StudyError(f"RunSpec({show(values[0])}): fields are given by name, such as RunSpec(lr=0.1)")
        for field in fields:
            if field not in FIELDS:
                raise StudyError(f"{show(field)}: unknown field{field_hint(field)}")
        init(self, **fields)

    return checked


RunSpec.__init__ = _with_hints(RunSpec.__init__)  # type: ignore[method-assign]  # help() still shows all fields

FIELDS: list[str] = [field.name for field in dataclasses.fields(RunSpec)]
"""All fields of a run, in the order of the table's columns."""

_OMITTED: dict[str, Any] = {
    field.name: field.metadata["omitted"] for field in dataclasses.fields(RunSpec) if "omitted" in field.metadata
}

OWN: dict[str, Parameter] = {
    field.name: parameter(field.name, get_type_hints(RunSpec, include_extras=True)[field.name], field.default)
    for field in dataclasses.fields(RunSpec)
    if field.name not in _OMITTED
}
"""The fields that are not a choice's parameter, by name."""


def _declared(field: str) -> dict[str, Parameter]:
    """Return the choices of a field's group that have it as a parameter."""
    group, _, name = field.partition("_")
    by_choice = {choice: GROUPS[group].parameters(choice) for choice in GROUPS[group]}
    return {choice: parameters[name] for choice, parameters in by_choice.items() if name in parameters}


DECLARED: dict[str, dict[str, Parameter]] = {field: _declared(field) for field in _OMITTED}
"""Which choices have a parameter, by field: {"optimizer_momentum": {"sgd": ..., "rmsprop": ...}}."""


def field_hint(name: str) -> str:
    """Return the end of a message about an unknown field: the nearest field, or all of them."""
    near = guesses(name.replace("_", ".", 1), KEYS) or guesses(name, KEYS)
    fields = [KEYS[key] for key in near]
    return f"; did you mean {' or '.join(fields)}?" if fields else suggestion(name, FIELDS)


def key_of(field: str) -> str:
    """Return a field's name on the command line and in a CSV: `optimizer.momentum` of `optimizer_momentum`."""
    dotted = field in DECLARED or field.startswith("activation_")
    return field.replace("_", ".", 1) if dotted else field


KEYS: dict[str, str] = {key_of(field): field for field in FIELDS}
"""Field by its name on the command line."""


def parameters_of_group(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the parameters that act in the chosen function of `group`, by their name in its signature."""
    return {name: values[f"{group}_{name}"] for name in GROUPS[group].parameters(values[group])}


def rules(field: str, choice: str) -> tuple[Parameter, Any]:
    """Return what a field may be, and what it is unless given, where its group's choice is `choice`."""
    if field == "lr":
        return OWN[field], OPTIMIZERS[choice].lr
    if field in OWN:
        return OWN[field], OWN[field].default
    choices = DECLARED[field]
    if choice in choices:
        return choices[choice], choices[choice].default
    return next(iter(choices.values())), None


def deciding_group(field: str) -> str | None:
    """Return the group whose choice decides what a field's default is, or None."""
    if field == "lr":
        return "optimizer"
    return None if field in OWN else field.split("_", 1)[0]


def without_presets(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return values in which a preset's name is replaced by what it stands for; parameters given beside it stay."""
    result = dict(values)
    for group, catalogue in GROUPS.items():
        preset = catalogue.presets.get(str(result.get(group)))
        if preset is not None:
            result[group] = preset.name
            for name, value in preset.parameters.items():
                field = f"{group}_{name}"
                result[field] = value if result.get(field) is None else result[field]
    return result


def _resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked values of all fields, with None replaced by the default where there is one."""
    values = without_presets(values)
    result: dict[str, Any] = {}
    for field in FIELDS:
        allowed, default = rules(field, result.get(deciding_group(field) or "", ""))
        value = values[field]
        result[field] = default if value is None else allowed.check(value, key_of(field))
    # Initial weights are drawn in float64 and then converted; what enters a step must be a number of its type.
    for field in OF_A_STEP:
        check_representable(field, result[field], result["dtype"])
    check_together(result)
    return result


OF_A_STEP = ["lr", *(field for field in DECLARED if not field.startswith("init_"))]


def check_representable(field: str, value: Any, dtype: str) -> None:
    """Raise StudyError if a number of a step is beyond the type that the step computes in."""
    if isinstance(value, float) and abs(value) > LARGEST[dtype]:
        raise StudyError(f"{key_of(field)}={show(value)}: beyond {dtype}, must be at most {LARGEST[dtype]:.3g}")


def check_together(values: Mapping[str, Any]) -> None:
    """Raise StudyError if values of a run do not go together."""
    reason = check_pairing(values["loss"], values["activation_output"])
    if reason is not None:
        raise StudyError(f"loss={values['loss']} activation.output={values['activation_output']}: {reason}")
    hidden = values["activation_output"] == "nx_sigmoid" and values["loss_logits_visible"] is False
    if hidden and values["loss_sigmoid_gradient"] != "exponential":
        raise StudyError("activation.output=nx_sigmoid: has the gradient of loss.sigmoid_gradient=exponential")
    if values["optimizer_nesterov"] is True and not values["optimizer_momentum"]:
        raise StudyError("optimizer.nesterov=true: needs optimizer.momentum > 0")
    steps = values["epochs"] * values["iterations"]
    if steps > MOST_STEPS:
        raise StudyError(
            f"epochs={values['epochs']} iterations={values['iterations']}: {steps} steps, must be at most {MOST_STEPS}"
        )


TOGETHER = (
    *("loss", "loss_logits_visible", "loss_sigmoid_gradient", "activation_output"),
    *("optimizer_nesterov", "optimizer_momentum", "epochs", "iterations"),
)


def identity_text(values: Mapping[str, Any]) -> str:
    """Return the text that is hashed for all runs of a cell: what differs from the defaults, but for the seed."""
    differing = {"lr": values["lr"]}  # always: an optimizer's own rate may change with its version, identities must not
    for field in FIELDS:
        default = OWN[field].default if field in OWN else rules(field, values[str(deciding_group(field))])[1]
        omitted = _OMITTED[field] if default is None and field in _OMITTED else default
        if field != "seed" and values[field] is not None and values[field] != omitted:
            differing[field] = values[field]
    # Never change this text: it is hashed, and people have kept tables that name runs by the hash.
    return json.dumps(differing, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity(text: str, seed: int) -> str:
    """Return the identity of a run of the cell that `text` describes: 20 hexadecimal digits."""
    return hashlib.sha256(f"{text}#{seed}".encode()).hexdigest()[:20]
