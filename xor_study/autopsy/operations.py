"""What an ATen operation does with its arguments and outputs, as far as its schema and its name tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xor_study.autopsy.finiteness import State, numbers_in, state_of_number, tensors_in

_UNINITIALISED = {
    *("empty", "empty_like", "empty_permuted", "empty_quantized", "empty_strided", "new_empty"),
    *("new_empty_strided", "resize_", "resize_as_", "set_"),
}
_OVERWRITING = {
    *("bernoulli_", "cauchy_", "copy_", "exponential_", "fill_", "geometric_", "log_normal_", "normal_"),
    *("random_", "uniform_", "zero_"),
}
_INSPECTING = {
    *("allclose", "eq", "equal", "ge", "gt", "is_nonzero", "isfinite", "isinf", "isnan", "isneginf", "isposinf"),
    *("le", "lt", "ne", "signbit"),
}
_MOVING = {
    *("_to_copy", "cat", "clone", "contiguous", "copy_", "index_select", "neg", "stack"),
    *("select_backward", "slice_backward"),  # they pad with zeros
}
# No rule in a schema says these; the lists are from reading the operations' definitions.
_SELECTING = {
    *("aminmax", "amax", "amin", "argmax", "argmin", "argsort", "cummax", "cummin", "fmax", "fmin", "gather", "index"),
    *("index_put", "index_put_", "index_select", "kthvalue", "masked_fill", "masked_fill_", "masked_scatter"),
    *("masked_select", "max", "maximum", "median", "min", "minimum", "multinomial", "nanmedian", "nan_to_num"),
    *("nan_to_num_", "nansum", "scatter", "scatter_", "searchsorted", "sort", "take", "topk", "tril", "triu", "where"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "bucketize", "count_nonzero", "nonzero", "embedding"),
}
# They have a finite limit at infinity by design.
_SQUASHING = {
    *("atan", "clamp", "clamp_", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "elu", "erf", "erfc", "exp"),
    *("exp2", "exp_", "expm1", "hardsigmoid", "hardtanh", "heaviside", "log_sigmoid_forward", "logaddexp", "relu"),
    *("logaddexp2", "logsumexp", "relu_", "sgn", "sigmoid", "sigmoid_", "sign", "softplus", "tanh", "tanh_"),
    *("threshold", "_log_softmax", "_safe_softmax", "_softmax", "bernoulli", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"),
}
# Their output is a copy of chosen elements, often of the bad ones themselves, to count or to show them; or only the
# indices beside it are used.
_CHOOSING = {
    *(
        "gather",
        "index",
        "index_select",
        "masked_select",
        "take",
        "aminmax",
        "kthvalue",
        "max",
        "median",
        "min",
        "mode",
    ),
    *("sort", "topk", "unique_dim", "_unique2"),
}
_COMPARING = {"ge", "gt", "le", "lt"}
_DIVIDING = {"div", "div_", "reciprocal", "reciprocal_"}
# They have poles, at which a finite argument gives an infinity.
_POLES = {*_DIVIDING, "log", "log2", "log10", "log1p", "pow", "rsqrt", "tan", "log_", "pow_", "rsqrt_"}
# They add up elements of their inputs, so an infinity in a mask spoils what was finite.
_SUMMING = {
    *("sum", "mean", "mm", "bmm", "addmm", "baddbmm", "dot", "mv", "addmv", "convolution", "var", "std", "var_mean"),
    *("native_layer_norm", "native_batch_norm", "native_group_norm", "linalg_vector_norm", "norm", "prod"),
}
# A view that its schema does not call one.
_SHAPE_ONLY = {"_unsafe_view"}
# Their further outputs are saved for the backward: statistics, indices, workspaces.
_PRIVATE = ("_", "native_", "cudnn_", "miopen_", "mkldnn_")
_NUMBERS = {"Tensor", "number", "float", "Optional[number]", "Optional[float]"}
_COLLECTIVE = {"c10d", "_c10d_functional"}
_WITHOUT_VALUES = {"profiler", "prim", *_COLLECTIVE}


@dataclass(frozen=True)
class Operation:
    """What is known of an operation before it runs.

    Attributes:
        name: such as "aten.log.default".
        short: such as "log".
        names: of its arguments, in the order of the schema.
        checked: whether its output may hold values that none of its inputs held. A view's cannot, uninitialised memory
            has no meaning, and asking about values, as `isnan` and `==` do, does not count as reading them.
        creates: whether it makes values from no tensor's values (`full`, `rand_like`).
        pointwise: whether each output element depends only on the input elements at the same index.
        moves: whether its output holds its inputs' elements, only elsewhere.
        chooses: whether its output is a copy of chosen elements.
        divides: whether an infinite argument can give 0 as a divisor does.
        pole: whether it has poles.
        sums: whether it adds up elements of an input.
        compares: whether it asks which of two numbers is larger, which is no misuse of an infinity.
        composite: whether it is made of other operations, into which autograd takes it apart before it gets here.
        allocates: whether it returns memory with nothing written into it.
        collective: whether it brings in values from other processes.
        squashes: whether it has a finite limit at infinity by design.
        discards: whether code uses it to get rid of infinities (masks, `where`, softmax, squashing functions), so that
            an infinity which disappears in it is not a failure. In 1 / infinity = 0 it is.
        written: names of the arguments that it writes.
        updated: those of `written` whose old values it reads first.
        private: whether outputs after the first are for torch's own backward, not for a user.
        repeatable: whether running it again on copies changes nothing (no random numbers, no writing).
        unscales: whether it is GradScaler's check of the gradients.
        updates_scale: whether it ends GradScaler's step.
        returns_written: whether it returns all that it writes.
        plain: whether it returns one tensor and writes none.
        simple: whether it is checked and returns one tensor, which is all that it may write.
        numbers: names of the arguments that are numbers which enter the values.
        positions: index of each argument that may be given by position.
    """

    name: str
    short: str
    names: tuple[str, ...] = ()
    checked: bool = True
    creates: bool = False
    pointwise: bool = False
    moves: bool = False
    chooses: bool = False
    divides: bool = False
    pole: bool = False
    sums: bool = False
    compares: bool = False
    composite: bool = False
    allocates: bool = False
    collective: bool = False
    squashes: bool = False
    discards: bool = False
    written: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    private: bool = False
    repeatable: bool = False
    unscales: bool = False
    updates_scale: bool = False
    returns_written: bool = True
    plain: bool = False
    simple: bool = False
    numbers: frozenset[str] = frozenset()
    positions: dict[str, int] = field(default_factory=dict)

    @property
    def notable(self) -> bool:
        """Whether it brings in values though no tensor's values enter it."""
        return self.creates or self.allocates or self.collective

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument of that name, or None where it was left out."""
        position = self.positions.get(name, len(args))
        return args[position] if position < len(args) else kwargs.get(name)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return the arguments that were given, with their names."""
        given = list(zip(self.names, args, strict=False))
        given += [(f"argument {i}", value) for i, value in enumerate(args[len(self.names) :], len(self.names))]
        return given + list(kwargs.items())

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors whose old values the operation reads, with their names: "self", "tensors[2]"."""
        outs = [self.argument(name, args, kwargs) for name in self.written if name not in self.updated]
        unread = {id(tensor) for tensor in tensors_in(outs)}
        for name, argument in self.named(args, kwargs):
            listed = isinstance(argument, list | tuple)
            for i, tensor in enumerate(tensors_in(argument)):
                if id(tensor) not in unread:
                    yield (f"{name}[{i}]" if listed else name), tensor

    def written_ids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
        """Return the ids of the tensors that the operation writes."""
        return {id(tensor) for name in self.written for tensor in tensors_in(self.argument(name, args, kwargs))}

    def results(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Iterator[Tensor]:
        """Yield the outputs, and the arguments that the operation wrote without returning them."""
        yield from tensors_in(out)
        if not self.returns_written:
            for name in self.written:
                yield from tensors_in(self.argument(name, args, kwargs))


class Execution(NamedTuple):
    """An operation that has run.

    Attributes:
        func: the `OpOverload` or higher-order operator.
        operation: what is known of it.
        args, kwargs: what it was called with.
        out: what it returned.
        before: what the checks kept from before it ran: by id, copies of the tensors that it overwrote, or only their
            state where they were large.
    """

    func: Any
    operation: Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    before: Mapping[int, Any]

    def results(self) -> list[Tensor]:
        """Return the outputs, and the arguments that it wrote without returning them."""
        return list(self.operation.results(self.args, self.kwargs, self.out))

    def written_ids(self) -> set[int]:
        """Return the ids of the tensors that it wrote."""
        return self.operation.written_ids(self.args, self.kwargs)


def worst_number(args: tuple[Any, ...], kwargs: dict[str, Any]) -> State:
    """Return the worst state of the Python numbers among arguments."""
    return max(map(state_of_number, numbers_in([*args, *kwargs.values()])), default=State.FINITE)


def describe(func: Any) -> Operation:
    """Return what is known of `func`, an `OpOverload` or a higher-order operator."""
    # One line for each attribute, most of them a condition: its complexity is above 15 for that alone.
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Operation(str(func), getattr(func, "__name__", str(func)), private=True)
    namespace, short = schema.name.split("::")
    arguments = schema.arguments
    written, outs = _names(arguments, _is_written), _names(arguments, attrgetter("is_out"))
    updated = tuple(sorted({*written} - {*outs}, key=written.index))
    creates = _creates(schema, short)
    checked = not (creates or _computes_nothing(schema, namespace, short, written))
    plain = not written and len(schema.returns) == 1
    returns_written = not written or any(map(_is_written, schema.returns))
    return Operation(
        name=str(func),
        short=short,
        names=tuple(argument.name for argument in arguments),
        checked=checked,
        creates=creates and short not in _UNINITIALISED,
        pointwise=torch.Tag.pointwise in func.tags,
        moves=short in _MOVING,
        chooses=short in _CHOOSING,
        divides=short in _DIVIDING,
        pole=short in _POLES,
        sums=short in _SUMMING,
        compares=short in _COMPARING,
        composite=namespace == "aten" and _is_composite(schema),
        allocates=short in _UNINITIALISED and short.startswith(("empty", "new_empty")),
        collective=namespace in _COLLECTIVE,
        squashes=short in _SQUASHING,
        discards=short in _SELECTING or short in _SQUASHING,
        written=written,
        updated=() if short in _OVERWRITING else updated,
        private=not written and short.startswith(_PRIVATE) and not short.startswith("_foreach_"),
        repeatable=torch.Tag.nondeterministic_seeded not in func.tags and not outs and namespace == "aten",
        unscales=short == "_amp_foreach_non_finite_check_and_unscale_",
        updates_scale=short == "_amp_update_scale_",
        returns_written=returns_written,
        plain=plain,
        simple=checked and len(schema.returns) == 1 and (plain or (len(written) == 1 and returns_written)),
        numbers=frozenset(_names(arguments, lambda argument: str(argument.type).rstrip("?") in _NUMBERS)),
        positions={argument.name: i for i, argument in enumerate(arguments) if not argument.kwarg_only},
    )


def _is_composite(schema: Any) -> bool:
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def _names(arguments: Sequence[Any], chosen: Callable[[Any], bool]) -> tuple[str, ...]:
    return tuple(argument.name for argument in arguments if chosen(argument))


def _is_written(argument: Any) -> bool:
    """Return whether the operation writes an argument, or returns one that it has written."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _creates(schema: Any, short: str) -> bool:
    """Return whether the outputs' values depend on no tensor's values."""
    takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return not takes_tensors or short.endswith("_like") or short.startswith("new_")


def _computes_nothing(schema: Any, namespace: str, short: str, written: tuple[str, ...]) -> bool:
    """Return whether an operation gives no new values: views, questions about values, uninitialised memory."""
    aliases = [output.alias_info is not None for output in schema.returns]
    is_view = bool(aliases) and all(aliases) and not written
    inspects = short in _INSPECTING or short.startswith("logical_")
    return (
        is_view
        or inspects
        or short in _UNINITIALISED
        or short in _SHAPE_ONLY
        or namespace in _WITHOUT_VALUES
        or not (schema.returns or written)
    )
