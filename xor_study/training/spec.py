"""What a run is: every choice that changes its numbers, checked, with an identity.

A run is a `RunSpec`, or one row of a table with a column for each of its fields. Fields come from two places: the class
below and the signatures in the catalogues, whose parameters become `<group>_<parameter>`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import numpy as np
import pandas as pd

from xor_study.errors import StudyError, show, suggestion
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue, Finite, Interval, NonNegative, OneOf, Parameter, parameter
from xor_study.model.initializers import INITIALIZERS
from xor_study.model.losses import LOSSES, check_pairing
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS

GROUPS: dict[str, Catalogue[Any]] = {
    "optimizer": OPTIMIZERS,
    "init": INITIALIZERS,
    "loss": LOSSES,
    "clip": CLIPPINGS,
}
"""The groups whose choice is a field of its own name, and whose parameters are `<group>_<parameter>`."""

LARGEST = {"float64": float(np.finfo(np.float64).max), "float32": float(np.finfo(np.float32).max)}
LARGEST |= {"bfloat16": (2 - 2**-7) * 2.0**127, "float16": float(np.finfo(np.float16).max)}
"""The largest finite number of each precision that a run can have."""

HALF = ("bfloat16", "float16")
"""Precisions that no machine code is made for."""

MOST_STEPS = 10**8


@dataclass(frozen=True, kw_only=True)
class _Choices:
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    lr: NonNegative = None  # type: ignore[assignment]  # None asks for the optimizer's own and is replaced by it
    init: Annotated[str, OneOf(INITIALIZERS)] = "glorot_uniform"
    gain: Finite = 1.0
    bias: Finite = 0.0
    loss: Annotated[str, OneOf(LOSSES)] = "binary_cross_entropy"
    activation_hidden: Annotated[str, OneOf(HIDDEN_ACTIVATIONS)] = "tanh"
    activation_output: Annotated[str, OneOf(OUTPUT_ACTIVATIONS)] = "sigmoid"
    clip: Annotated[str, OneOf(CLIPPINGS)] = "none"
    hidden: Annotated[int, Interval(1, 1024)] = 8
    batch: Annotated[int | str, Interval(1, 65536, also="full")] = 32
    epochs: Annotated[int, Interval(1, 10**5)] = 10
    iterations: Annotated[int, Interval(1, MOST_STEPS)] = 1000
    dtype: Annotated[str, OneOf(tuple(LARGEST))] = "float32"
    seed: Annotated[int, Interval(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        for field, value in _resolved({field: getattr(self, field) for field in FIELDS}).items():
            object.__setattr__(self, field, value)


OWN: dict[str, Parameter] = {
    field.name: parameter(field.name, get_type_hints(_Choices, include_extras=True)[field.name], field.default)
    for field in dataclasses.fields(_Choices)
}
"""The fields that are not a choice's parameter, by name."""


def _declared() -> dict[str, dict[str, Parameter]]:
    """Return which choices declare a parameter, by field: {"optimizer_momentum": {"sgd": ..., "rmsprop": ...}}."""
    declared: dict[str, dict[str, Parameter]] = {}
    for group, catalogue in GROUPS.items():
        for choice in catalogue:
            for name, found in catalogue.parameters(choice).items():
                declared.setdefault(f"{group}_{name}", {})[choice] = found
    return declared


DECLARED = _declared()


def _ordered() -> list[str]:
    """Return all fields, each group's parameters behind the group and, for the optimizer, its rate."""
    order: list[str] = []
    for name in OWN:
        order.append(name)
        group = {"lr": "optimizer"}.get(name, name)
        if group in GROUPS and name != "optimizer":
            order += [field for field in DECLARED if field.startswith(f"{group}_")]
    return order


FIELDS: list[str] = _ordered()
"""All fields of a run, in the order of the table's columns."""

if TYPE_CHECKING:

    class _Fields(_Choices):
        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    _Fields = dataclasses.make_dataclass(
        "_Fields",
        [(field, next(iter(choices.values())).type | None, None) for field, choices in DECLARED.items()],
        bases=(_Choices,),
        frozen=True,
        kw_only=True,
    )


class RunSpec(_Fields):
    """One run: every choice that changes its numbers, and nothing else. Frozen; compared by value.

    All fields are keyword arguments with a default, which together are the article's network. A choice is its name
    (`optimizer="sgd"`), a choice's parameter is `<group>_<parameter>` (`optimizer_momentum=0.9`, `loss_eps=1e-6`); a
    parameter that the chosen function does not have is None unless given.

    Attributes:
        optimizer, init, loss, clip: a name of the catalogue `GROUPS[...]`.
        lr: the rate; unset it becomes the optimizer's own (SGD 0.01, Adam 0.001), so it is always a number.
        gain: multiplies the initial weights.
        bias: is added to the initial biases, which are 0 unless the initializer draws them.
        activation_hidden, activation_output: names of the two activations.
        hidden: width of the hidden layer.
        batch: random samples a step, or "full" for the four corners once each.
        epochs, iterations: the run takes epochs x iterations steps; an epoch is only what a mean is reported of.
        dtype: what everything is computed in: "float64", "float32", "bfloat16" or "float16".
        seed: decides the initial draws and the batches, the same in every run that shares it.

    Raises:
        StudyError: if there is no such field, if a value has the wrong type or is out of range, or if values do not go
            together.
    """

    def __init__(self, **fields: Any) -> None:
        for field in fields:
            if field not in FIELDS:
                raise StudyError(f"{show(field)}: unknown field{suggestion(field, FIELDS)}")
        super().__init__(**fields)

    @classmethod
    def from_row(cls, row: pd.Series[Any]) -> RunSpec:
        """Return the run of one row of a table, such as `Result.runs` or `runs.csv`; other columns are passed over."""
        given = {KEYS[str(key)]: value for key, value in row.items() if key in KEYS}
        return cls(**{field: None if pd.isna(value) else value for field, value in given.items()})

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
                result[field] = value if pd.isna(result.get(field)) else result[field]
    return result


def _resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked values of all fields, with None replaced by the default where there is one."""
    values = without_presets(values)
    result: dict[str, Any] = {}
    for field in FIELDS:
        allowed, default = rules(field, result.get(deciding_group(field) or "", ""))
        value = values[field]
        result[field] = default if value is None else allowed.check(value, key_of(field))
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
    if values["optimizer_nesterov"] is True and not values["optimizer_momentum"]:
        raise StudyError("optimizer.nesterov=true: needs optimizer.momentum > 0")
    steps = values["epochs"] * values["iterations"]
    if steps > MOST_STEPS:
        raise StudyError(
            f"epochs={values['epochs']} iterations={values['iterations']}: {steps} steps, must be at most {MOST_STEPS}"
        )


TOGETHER = ("loss", "activation_output", "optimizer_nesterov", "optimizer_momentum", "epochs", "iterations")


def identity_text(values: Mapping[str, Any]) -> str:
    """Return the text that is hashed for all runs of a cell: what differs from the defaults, but for the seed."""
    told = {"lr": values["lr"]}
    for field in FIELDS:
        default = OWN[field].default if field in OWN else _any_default(field, values[str(deciding_group(field))])
        if field != "seed" and values[field] is not None and values[field] != default:
            told[field] = values[field]
    return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _any_default(field: str, choice: str) -> Any:
    """Return the default of a choice's parameter, or of its first namesake where the choice has none.

    So that identities stay, new functions go below the old ones in their module.
    """
    allowed, default = rules(field, choice)
    return allowed.default if default is None else default


def identity(text: str, seed: int) -> str:
    """Return the identity of a run of the cell that `text` describes: 20 hexadecimal digits."""
    return hashlib.sha256(f"{text}#{seed}".encode()).hexdigest()[:20]
