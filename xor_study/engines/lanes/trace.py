"""From `training.step` to a program on scalars.

A dispatch mode records the ATen operations of a step: forward pass, loss, gradient, clipping, optimizer and measures.
Here each tensor becomes an array of statements, and each operation acts on its entries, so no loss or optimizer is
written a second time. Views share their entries as torch's do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from xor_study.engines.lanes.llvm import NotCompilable
from xor_study.engines.lanes.scalar import BOOL, FLOATS, FUNCTIONS, Builder, Number, ScalarProgram
from xor_study.model.data import CORNERS

Numbers = NDArray[np.int64]
"""The entries of a tensor: the statements that compute them, in its shape."""

_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.int32: "int32", torch.bool: BOOL}
_TYPES[torch.int64] = "int32"  # the only integers of a step are numbers of corners, at most 4


def trace(function: Callable[..., Mapping[str, torch.Tensor]], arguments: Mapping[str, torch.Tensor]) -> ScalarProgram:
    """Return the program of a function from named tensors to named tensors.

    Args:
        function: takes the arguments as one dictionary.
        arguments: examples; only their shapes and dtypes matter. Entry i of the tensor "x" becomes the input "x.i";
            outputs are named in the same way.

    Raises:
        NotCompilable: if the function uses a dtype or an operation that is not supported here.

    Example:
        >>> print(trace(lambda given: {"y": given["x"] * 2}, {"x": torch.ones(1)}))
        %0 = float32 input x.0
        %1 = float32 constant 2.0
        %2 = float32 mul %0, %1  # y.0
    """
    # Tensors are identified by `id`, so each argument must be an object of its own.
    inputs = {name: tensor.clone() for name, tensor in arguments.items()}
    with _Recorder() as recorder:
        results = function(inputs)
    writer = _Writer()
    known = {id(tensor): writer.inputs(name, tensor) for name, tensor in inputs.items()}

    def numbers(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in known:  # not a result of a recorded operation, so it is a constant
            known[id(value)] = writer.constants(value)
        return known[id(value)]

    for call in recorder.needed(results.values()):
        written = writer.operation(call.target, *tree_map(numbers, (call.arguments, call.keywords)))
        for tensor, entries in zip(tree_leaves(call.result), tree_leaves(written), strict=True):
            known[id(tensor)] = entries
    return writer.finish({name: numbers(tensor) for name, tensor in results.items()})


class _Call(NamedTuple):
    """A call of an operation, with its result."""

    target: torch._ops.OpOverload[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Any


class _Recorder(TorchDispatchMode):
    """Records the operations that run beneath autograd and the transforms of torch.func.

    It keeps their tensors, so that no `id` is used twice. An operation that returns a Python number (`item`, `bool`) is
    refused: the number would be a constant of the program, but it depends on the inputs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = target(*args, **(kwargs or {}))
        if not any(isinstance(value, torch.Tensor) for value in tree_leaves(result)):
            raise NotCompilable(f"engine=lanes: can't compile the operation {target}, whose result is no tensor")
        self.calls.append(_Call(target, args, kwargs or {}, result))
        return result

    def needed(self, results: Iterable[torch.Tensor]) -> list[_Call]:
        """Return the calls that some results depend on, in their order."""
        wanted, needed = {id(tensor) for tensor in results}, []
        for call in reversed(self.calls):
            # A call that writes into its arguments may change what a later one reads through a view.
            if call.target._schema.is_mutable or any(id(tensor) in wanted for tensor in tree_leaves(call.result)):
                wanted |= {id(value) for value in tree_leaves((call.arguments, call.keywords))}
                needed.append(call)
        return needed[::-1]


def _type(dtype: torch.dtype) -> str:
    if dtype not in _TYPES:
        raise NotCompilable(f"engine=lanes: can't compile {str(dtype).removeprefix('torch.')}")
    return _TYPES[dtype]


class _Writer:
    """Writes ATen operations as statements.

    Attributes:
        builder: of the program.
        operations: number of operations so far; tells them apart for `Builder.beside`.
    """

    def __init__(self) -> None:
        self.builder = Builder()
        self.operations = 0

    def inputs(self, name: str, tensor: torch.Tensor) -> Numbers:
        kind = _type(tensor.dtype)
        numbers = [self.builder.input(f"{name}.{index}", kind) for index in range(tensor.numel())]
        return np.array(numbers, np.int64).reshape(tensor.shape)

    def constants(self, tensor: torch.Tensor) -> Numbers:
        kind = _type(tensor.dtype)
        numbers = [self.builder.constant(value, kind) for value in tensor.detach().reshape(-1).tolist()]
        return np.array(numbers, np.int64).reshape(tensor.shape)

    def full(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Numbers:
        return np.full(shape, self.builder.constant(value, _type(dtype)))

    def finish(self, outputs: Mapping[str, Numbers]) -> ScalarProgram:
        flat = {f"{name}.{i}": int(v) for name, array in outputs.items() for i, v in enumerate(np.ravel(array))}
        return self.builder.finish(flat)

    def operation(
        self, target: torch._ops.OpOverload[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """Return the result of an operation; one whose name ends in "_" also writes it into its first argument."""
        name = target.overloadpacket.__name__
        in_place = name.endswith("_") and not name.startswith("_")
        base = name.removesuffix("_") if in_place else name
        if base in _SHAPES:
            result = _SHAPES[base](self, *arguments, **keywords)
        elif base in _ELEMENTWISE:
            result = self.elementwise(_ELEMENTWISE[base], arguments, keywords)
        else:
            raise NotCompilable(f"engine=lanes: can't compile the operation {target}")
        if in_place:
            arguments[0][...] = result
            return arguments[0]
        return result

    def elementwise(self, formula: Callable[..., Any], arguments: tuple[Any, ...], keywords: Any) -> Numbers:
        """Return the result of a formula applied to each entry of its broadcast arguments."""
        tensors = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
        wide = [np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else None for x in arguments]
        result = np.empty(shape, np.int64)
        self.operations += 1
        for index in np.ndindex(shape):
            # The four corners don't depend on each other, so they are best computed side by side.
            side_by_side = len(shape) > 0 and shape[0] == len(CORNERS)
            self.builder.beside((self.operations, index[1:]) if side_by_side else None)
            operands = [
                value if tensor is None else _Scalar(self.builder, int(tensor[index]))
                for value, tensor in zip(arguments, wide, strict=True)
            ]
            result[index] = formula(*operands, **keywords).number
        self.builder.beside(None)
        return result

    def summed(self, terms: Numbers) -> Number:
        """Return the sum of some numbers, added in pairs; of truth values the number of true ones."""
        values = [_Scalar(self.builder, int(term)) for term in np.ravel(terms)]
        if values[0].kind == BOOL:
            values = [value.convert("int32") for value in values]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            values = [a + b for a, b in pairs] + (values[-1:] if len(values) % 2 else [])
        return values[0].number

    def sum(self, tensor: Numbers, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Numbers:
        axes = tuple(dim % tensor.ndim for dim in (range(tensor.ndim) if dims is None else dims))
        others = [axis for axis in range(tensor.ndim) if axis not in axes]
        rows = np.transpose(tensor, [*others, *axes]).reshape(*(tensor.shape[axis] for axis in others), -1)
        result = np.empty(rows.shape[:-1], np.int64)
        for index in np.ndindex(result.shape):
            result[index] = self.summed(rows[index])
        return np.expand_dims(result, axes) if keepdim else result

    def product(self, left: Numbers, right: Numbers, start: Numbers | None = None) -> Numbers:
        """Return the product of two matrices, shapes (m, k) and (k, n), plus `start`.

        A sum over the hidden units is one "sum": each product is rounded, and may become infinite, before it is added,
        as in torch. Whether a logit is infinite or NaN then decides the further course of a diverging run.
        """
        result = np.empty((left.shape[0], right.shape[1]), np.int64)
        starts = None if start is None else np.broadcast_to(start, result.shape)
        self.operations += 1
        for row, column in np.ndindex(result.shape):
            self.builder.beside((self.operations, column) if len(result) == len(CORNERS) else None)
            factors = zip(left[row].tolist(), right[:, column].tolist(), strict=True)
            terms = [self.builder.emit("mul", a, b) for a, b in factors]
            first = [] if starts is None else [int(starts[row, column])]
            # A sum over the four corners is written out: the passes can merge its products.
            if len(terms) > len(CORNERS):
                result[row, column] = self.builder.emit("sum", *first, *terms)
            else:
                result[row, column] = functools.reduce(lambda a, b: self.builder.emit("add", a, b), first + terms)
        self.builder.beside(None)
        return result

    def norm(self, tensor: Numbers, order: float = 2, *_: Any, **__: Any) -> Numbers:
        """Return the norm of a whole vector."""
        if order not in (2, math.inf) or _ or __:
            raise NotCompilable(f"engine=lanes: can't compile the norm of order {order} along a dimension")
        operands = [int(number) for number in np.ravel(tensor)]
        if order == math.inf:
            return np.array(self.builder.emit("max_abs", *operands))
        return np.array(self.builder.emit("sqrt", self.builder.emit("sum_of_squares", *operands)))


class _Scalar:
    """One entry of a tensor, with the operators that formulas are written in."""

    def __init__(self, builder: Builder, number: Number) -> None:
        self.builder, self.number = builder, number

    @property
    def kind(self) -> str:
        return self.builder.type_of(self.number)

    def of(self, value: Any) -> _Scalar:
        """Return a number as a constant of this scalar's type; a scalar is returned unchanged."""
        return value if isinstance(value, _Scalar) else _Scalar(self.builder, self.builder.constant(value, self.kind))

    def apply(self, op: str, *operands: Any, kind: str | None = None) -> _Scalar:
        numbers = [self.of(operand).number for operand in operands]
        kinds = {self.builder.type_of(number) for number in numbers}
        if len(kinds) > 1 and op != "where":
            raise NotCompilable(f"engine=lanes: can't compile {op} of {' and '.join(sorted(kinds))}")
        return _Scalar(self.builder, self.builder.emit(op, *numbers, kind=kind))

    def convert(self, kind: str) -> _Scalar:
        return self.apply("convert", self, kind=kind)

    def where(self, yes: Any, no: Any) -> _Scalar:
        """Return `yes` where this is true, else `no`; at least one is a scalar."""
        like = yes if isinstance(yes, _Scalar) else no
        return _Scalar(self.builder, self.builder.emit("where", self.number, like.of(yes).number, like.of(no).number))

    def _arithmetic(self, op: str) -> str:
        return op if self.kind in FLOATS else f"i{op}"

    def __add__(self, other: Any) -> _Scalar:
        return self.apply(self._arithmetic("add"), self, other)

    def __sub__(self, other: Any) -> _Scalar:
        return self.apply(self._arithmetic("sub"), self, other)

    def __rsub__(self, other: Any) -> _Scalar:
        return self.of(other) - self

    def __mul__(self, other: Any) -> _Scalar:
        return self & other if self.kind == BOOL else self.apply("mul", self, other)

    def __truediv__(self, other: Any) -> _Scalar:
        return self.apply("div", self, other)

    def __rtruediv__(self, other: Any) -> _Scalar:
        return self.of(other) / self

    def __neg__(self) -> _Scalar:
        return self.apply("neg", self)

    def __abs__(self) -> _Scalar:
        return self.apply("abs", self)

    def __lt__(self, other: Any) -> _Scalar:
        return self.apply("lt", self, other)

    def __le__(self, other: Any) -> _Scalar:
        return self.apply("le", self, other)

    def __gt__(self, other: Any) -> _Scalar:
        return self.apply("gt", self, other)

    def __ge__(self, other: Any) -> _Scalar:
        return self.apply("ge", self, other)

    def __and__(self, other: Any) -> _Scalar:
        return self.apply("and", self, other)

    def __or__(self, other: Any) -> _Scalar:
        return self.apply("or", self, other)

    def __invert__(self) -> _Scalar:
        return self.apply("xor", self, True)

    __radd__, __rmul__ = __add__, __mul__


def _function(name: str) -> Callable[[_Scalar], _Scalar]:
    return lambda x: x.apply(name, x)


_exp, _expm1, _log1p, _erf = (_function(name) for name in ("exp", "expm1", "log1p", "erf"))


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """Return x limited to [low, high]; NaN stays NaN, since a comparison with it is false."""
    x = x if low is None else (x < low).where(low, x)
    return x if high is None else (x > high).where(high, x)


def _elu(x: _Scalar, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> _Scalar:
    return (x <= 0).where(_expm1(x * input_scale) * (alpha * scale), x * scale)


def _elu_backward(
    upstream: _Scalar, alpha: float, scale: float, input_scale: float, is_result: bool, x: _Scalar
) -> _Scalar:
    below = x + alpha * scale if is_result else _exp(x * input_scale) * (alpha * scale)
    return (x <= 0).where(upstream * input_scale * below, upstream * scale)


def _gelu(x: _Scalar, approximate: str = "none") -> _Scalar:
    return x * _normal(x, approximate)


def _gelu_backward(upstream: _Scalar, x: _Scalar, approximate: str = "none") -> _Scalar:
    density = _exp(x * x * -0.5) * math.sqrt(0.5 / math.pi)
    return upstream * (_normal(x, approximate) + x * density)


def _normal(x: _Scalar, approximate: str) -> _Scalar:
    """Return the normal distribution function."""
    if approximate != "none":
        raise NotCompilable(f"engine=lanes: can't compile gelu's approximation {approximate!r}")
    return (_erf(x * math.sqrt(0.5)) + 1) * 0.5


# torch.nn.functional.softplus is linear above its threshold, where exp would overflow.
def _softplus(x: _Scalar, beta: float = 1, threshold: float = 20) -> _Scalar:
    return (x * beta > threshold).where(x, _log1p(_exp(x * beta)) / beta)


def _softplus_backward(upstream: _Scalar, x: _Scalar, beta: float, threshold: float) -> _Scalar:
    power = _exp(x * beta)
    return (x * beta > threshold).where(upstream, upstream * power / (power + 1))


def _squared_error(x: _Scalar, y: _Scalar, reduction: int = 1) -> _Scalar:
    _check_no_reduction(reduction)
    return (x - y) * (x - y)


def _squared_error_backward(upstream: _Scalar, x: _Scalar, y: _Scalar, reduction: int) -> _Scalar:
    _check_no_reduction(reduction)
    return (x - y) * 2 * upstream


def _check_no_reduction(reduction: int) -> None:
    if reduction != 0:
        raise NotCompilable("engine=lanes: can't compile a loss that is reduced by itself")


def _add(x: Any, y: Any, alpha: float = 1) -> Any:
    return x + (y if alpha == 1 else y * alpha)


def _subtract(x: Any, y: Any, alpha: float = 1) -> Any:
    return x - (y if alpha == 1 else y * alpha)


_SIXTH = float(np.float32(1) / np.float32(6))
"""The constant of hardsigmoid's gradient in torch, which is float32's 1/6 in float64 too."""

_ELEMENTWISE: dict[str, Callable[..., _Scalar]] = {
    "add": _add,
    "sub": _subtract,
    "rsub": lambda x, y, alpha=1: _subtract(x.of(y), x, alpha),
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "abs": lambda x: abs(x),
    "sgn": lambda x: (x > 0).where(x.of(1), (x < 0).where(x.of(-1), x.of(0))),
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x.apply("eq", x, y),
    "ne": lambda x, y: x.apply("ne", x, y),
    "logical_and": lambda x, y: x & y,
    "logical_or": lambda x, y: x | y,
    "logical_not": lambda x: ~x,
    "bitwise_and": lambda x, y: x & y,
    "bitwise_or": lambda x, y: x | y,
    "bitwise_not": lambda x: ~x,
    "where": lambda condition, x, y: condition.where(x, y),
    **{name: _function(name) for name in ("sqrt", *FUNCTIONS)},
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "relu": lambda x: _clamp(x, 0),
    "threshold_backward": lambda upstream, x, threshold: (x <= threshold).where(0, upstream),
    "sigmoid": lambda x: 1 / (_exp(-x) + 1),
    "sigmoid_backward": lambda upstream, p: upstream * ((1 - p) * p),
    "tanh_backward": lambda upstream, h: upstream * (1 - h * h),
    "leaky_relu": lambda x, slope=0.01: (x > 0).where(x, x * slope),
    "leaky_relu_backward": lambda upstream, x, slope, _: (x > 0).where(upstream, upstream * slope),
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": lambda x, alpha=1: _elu(x, alpha, 1, 1 / alpha),
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "silu": lambda x: x / (_exp(-x) + 1),
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "hardtanh": lambda x, low=-1, high=1: _clamp(x, low, high),
    "hardtanh_backward": lambda upstream, x, low, high: ((x <= low) | (x >= high)).where(0, upstream),
    "hardsigmoid": lambda x: _clamp(x + 3, 0, 6) / 6,
    "hardsigmoid_backward": lambda upstream, x: ((x > -3) & (x < 3)).where(upstream * _SIXTH, 0),
    "mse_loss": _squared_error,
    "mse_loss_backward": _squared_error_backward,
}
"""Elementwise operations by name: torch's documented formulas on one entry of each tensor, NaN included."""


def _converted(writer: _Writer, tensor: Numbers, *, dtype: torch.dtype | None = None, **_: Any) -> Numbers:
    if dtype is None:
        return tensor.copy()
    return writer.elementwise(lambda x: x.convert(_type(dtype)), (tensor,), {})


def _of_one_value(value: float) -> Callable[..., Numbers]:
    """Return an operation that makes a tensor of one value, in the shape and type of another."""

    def like(writer: _Writer, tensor: Numbers, **_: Any) -> Numbers:
        kind = writer.builder.type_of(int(tensor.flat[0]))
        return np.full(tensor.shape, writer.builder.constant(value, kind))

    return like


def _filled(writer: _Writer, tensor: Numbers, value: Any) -> Numbers:
    return writer.elementwise(lambda x: x.of(value), (tensor,), {})


def _selected_back(writer: _Writer, upstream: Numbers, shape: Any, dim: int, index: int) -> Numbers:
    result = _of_one_value(0)(writer, np.full(shape, upstream.flat[0]))
    np.moveaxis(result, dim, 0)[index] = upstream
    return result


_SHAPES: dict[str, Callable[..., Any]] = {
    "view": lambda _, tensor, shape: tensor.reshape(shape),
    "reshape": lambda _, tensor, shape: tensor.reshape(shape),
    "_unsafe_view": lambda _, tensor, shape: tensor.reshape(shape),
    "t": lambda _, tensor: tensor.T,
    "expand": lambda _, tensor, shape: np.broadcast_to(tensor, shape),
    "unsqueeze": lambda _, tensor, dim: np.expand_dims(tensor, dim),
    "select": lambda _, tensor, dim, index: np.moveaxis(tensor, dim, 0)[index, ...],
    "select_backward": _selected_back,
    "split_with_sizes": lambda _, tensor, sizes, dim=0: np.split(tensor, np.cumsum(sizes)[:-1], dim),
    "cat": lambda _, tensors, dim=0: np.concatenate(tensors, dim),
    "detach": lambda _, tensor: tensor,
    "alias": lambda _, tensor: tensor,
    "clone": lambda _, tensor, **__: tensor.copy(),
    "lift_fresh": lambda _, tensor: tensor,
    "_to_copy": _converted,
    "ones_like": _of_one_value(1),
    "zeros_like": _of_one_value(0),
    "empty_like": _of_one_value(0),
    "scalar_tensor": lambda writer, value, dtype, **_: writer.full((), value, dtype),
    "full": lambda writer, shape, value, dtype, **_: writer.full(tuple(shape), value, dtype),
    "fill": _filled,
    "sum": _Writer.sum,
    "mm": _Writer.product,
    "addmm": lambda writer, start, left, right: writer.product(left, right, start),
    "linalg_vector_norm": _Writer.norm,
}
"""Operations on whole tensors by name: (writer, arguments) -> statements."""
