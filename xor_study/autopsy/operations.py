"""What an ATen operation does with memory, as far as its schema and its name say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

_UNINITIALISED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_quantized",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "resize_as_",
    "set_",
}
_OVERWRITING = {
    "bernoulli_",
    "cauchy_",
    "copy_",
    "exponential_",
    "fill_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
    "zero_",
}
_INSPECTING = {
    "allclose",
    "eq",
    "equal",
    "ge",
    "gt",
    "is_nonzero",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "le",
    "lt",
    "ne",
    "signbit",
}
_MOVING = {"_to_copy", "cat", "clone", "contiguous", "copy_", "index_select", "neg", "stack"}
_DISCARDING = {
    # choose among values
    *("aminmax", "amax", "amin", "argmax", "argmin", "argsort", "cummax", "cummin", "fmax", "fmin", "gather", "index"),
    *("index_put", "index_put_", "index_select", "kthvalue", "masked_fill", "masked_fill_", "masked_scatter"),
    *("masked_select", "max", "maximum", "median", "min", "minimum", "multinomial", "nanmedian", "nan_to_num"),
    *("nan_to_num_", "nansum", "scatter", "scatter_", "searchsorted", "sort", "take", "topk", "tril", "triu", "where"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "bucketize", "count_nonzero", "nonzero", "embedding"),
    # have a finite limit at infinity by design
    *("atan", "clamp", "clamp_", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "elu", "erf", "erfc", "exp"),
    *("exp2", "exp_", "expm1", "hardsigmoid", "hardtanh", "heaviside", "log_sigmoid_forward", "logaddexp", "relu"),
    *("logaddexp2", "logsumexp", "relu_", "sgn", "sigmoid", "sigmoid_", "sign", "softplus", "tanh", "tanh_"),
    *("threshold", "_log_softmax", "_safe_softmax", "_softmax", "bernoulli", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"),
}
_SHAPE_ONLY = {"select_backward", "slice_backward"}
_PRIVATE = ("_", "native_", "cudnn_", "miopen_", "mkldnn_")
_NUMBERS = {"Tensor", "number", "float", "Optional[number]", "Optional[float]"}
_WITHOUT_VALUES = {"profiler", "prim", "c10d", "_c10d_functional"}


@dataclass(frozen=True)
class Operation:
    """What is known of an operation before it runs.

    Attributes:
        name: such as "aten.log.default".
        short: such as "log".
        names: of its arguments, in the order of the schema.
        checked: whether its output may hold values that none of its inputs held (a view's cannot, and uninitialised
            memory's mean nothing; asking about values, as `isnan` and `==` do, is not reading them either).
        creates: whether it makes values from no tensor's values (`full`, `rand_like`).
        pointwise: whether each output element depends on the input elements in the same place alone.
        moves: whether its output holds its inputs' elements, only elsewhere.
        discards: whether code uses it to be rid of infinities (masks, `where`, softmax, squashing functions), so that
            one which does not come out again is no failure; 1 / infinity = 0 is.
        written: names of the arguments that it writes.
        updated: those of `written` whose old values it reads first.
        private: whether outputs after the first are for torch's own backward, not for a user.
        repeatable: whether running it again on copies changes nothing (no random numbers, no writing).
        unscales: whether it is GradScaler's check of the gradients.
        updates_scale: whether it ends GradScaler's step.
        returns_written: whether all that it writes is among what it returns.
        plain: whether it returns one tensor and writes none.
        numbers: names of the arguments that are numbers which enter the values.
        positions: where an argument stands that may be given by position.
    """

    name: str
    short: str
    names: tuple[str, ...] = ()
    checked: bool = True
    creates: bool = False
    pointwise: bool = False
    moves: bool = False
    discards: bool = False
    written: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    private: bool = False
    repeatable: bool = False
    unscales: bool = False
    updates_scale: bool = False
    returns_written: bool = True
    plain: bool = False
    numbers: frozenset[str] = frozenset()
    positions: dict[str, int] = field(default_factory=dict)

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument of that name, or None where it was left out."""
        position = self.positions.get(name, len(args))
        return args[position] if position < len(args) else kwargs.get(name)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return the arguments that were given, with their names."""
        given = list(zip(self.names, args, strict=False))
        given += [(f"argument {i}", value) for i, value in enumerate(args[len(self.names) :], len(self.names))]
        return given + list(kwargs.items())


def describe(func: Any) -> Operation:
    """Return what is known of `func`, an `OpOverload` or a higher-order operator."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Operation(str(func), getattr(func, "__name__", str(func)), private=True)
    namespace, short = schema.name.split("::")
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    outs = {a.name for a in schema.arguments if a.is_out}
    updated = () if short in _OVERWRITING else tuple(name for name in written if name not in outs)
    aliases = [r.alias_info is not None for r in schema.returns]
    view = bool(aliases) and all(aliases) and not written
    tensors = any("Tensor" in str(a.type) for a in schema.arguments)
    creates = not tensors or short.endswith("_like") or short.startswith("new_")
    inspects = short in _INSPECTING or short.startswith("logical_")
    unchecked = (
        view
        or creates
        or inspects
        or short in _UNINITIALISED
        or short in _SHAPE_ONLY
        or namespace in _WITHOUT_VALUES
        or (not schema.returns and not written)
    )
    return Operation(
        name=str(func),
        short=short,
        names=tuple(a.name for a in schema.arguments),
        checked=not unchecked,
        creates=creates and short not in _UNINITIALISED,
        pointwise=torch.Tag.pointwise in func.tags,
        moves=short in _MOVING,
        discards=short in _DISCARDING,
        written=written,
        updated=updated,
        private=not written and short.startswith(_PRIVATE) and not short.startswith("_foreach_"),
        repeatable=torch.Tag.nondeterministic_seeded not in func.tags and not outs and namespace == "aten",
        unscales=short == "_amp_foreach_non_finite_check_and_unscale_",
        updates_scale=short == "_amp_update_scale_",
        returns_written=not written or any(r.alias_info is not None and r.alias_info.is_write for r in schema.returns),
        plain=not written and len(schema.returns) == 1,
        numbers=frozenset(a.name for a in schema.arguments if str(a.type).rstrip("?") in _NUMBERS),
        positions={a.name: i for i, a in enumerate(schema.arguments) if not a.kwarg_only},
    )
