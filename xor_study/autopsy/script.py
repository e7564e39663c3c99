"""Scripts that show an event's failure in isolation: the call, its inputs, and a test of the outputs."""

from __future__ import annotations

import base64
import keyword
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from xor_study.autopsy.captures import Capture
from xor_study.autopsy.finiteness import State, state_of, tensors_in
from xor_study.autopsy.report import Event

_LITERAL = 64
"""Elements of the largest tensor that is written as a list of numbers."""

_NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
_BUILT_IN = ("aten", "prims", "quantized", "mkldnn", "mkl")
_TAKEN = {"base64", "inf", "load", "nan", "name", "output", "outputs", "shows", "summarise", "sys", "tensor", "torch"}

_LOAD = '''
def load(text, dtype):
    """Return the elements that are written as text."""
    return torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(text.replace("\\n", "")))), dtype=dtype)

'''

_SUMMARISE = '''
def summarise(name, tensor):
    """Print what a tensor holds."""
    values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    nan, infinite = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
    print(f"{name}: {tensor.dtype} {list(tensor.shape)}, {nan} NaN, {infinite} infinite")
    return EXPECTED

'''

_END = """
outputs = OUTPUTS
outputs = [tensor for tensor in outputs if isinstance(tensor, torch.Tensor)]
shows = sum([summarise("output", tensor) for tensor in outputs])
print("The failure shows." if shows else "The failure does not show.")
sys.exit(1 if shows else 0)
"""


def write(event: Event, path: str | os.PathLike[str]) -> None:
    """Write the script of an event; see `Event.reproduce`.

    Raises:
        ValueError: if the inputs were not kept, or the failure does not show again.
    """
    if isinstance(event.capture, str):
        raise ValueError(f"{event.operation} can't be reproduced: {event.capture}")
    if not _shows(event, event.capture):
        reason = "it draws random numbers" if event.capture.random else "it depends on more than its inputs"
        raise ValueError(f"{event.operation} can't be reproduced: the failure does not show again; {reason}")
    Path(path).write_text("\n".join(_lines(event, event.capture)), encoding="utf-8")


def _shows(event: Event, capture: Capture) -> bool:
    """Return whether the call fails again when it is made with the kept inputs, here and now."""
    copies: dict[int, Tensor] = {id(tensor): tensor.clone() for _, tensor in capture.tensors}

    def copied(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [copied(item) for item in value]
        return copies[id(value)] if isinstance(value, Tensor) else value

    function = torch.ops
    for name in capture.operation.split("."):
        function = getattr(function, name)
    kwargs = {name: copied(value) for name, value in capture.kwargs.items()}
    with _disable_current_modes(), torch.no_grad():
        try:
            output = function(*copied(capture.args), **kwargs)  # type: ignore[operator]
        except RuntimeError as error:
            raise ValueError(f"{event.operation} can't be reproduced: {error}") from None
        outputs = [*tensors_in(output), *(copies[id(tensor)] for tensor in capture.written)]
        expected = State.NAN if _expects_nan(event) else State.INFINITE
        return max(map(state_of, outputs), default=State.FINITE) >= expected


def _expects_nan(event: Event) -> bool:
    return any(summary.nan for summary in event.outputs)


def _lines(event: Event, capture: Capture) -> Iterator[str]:
    """Yield the lines of a script."""
    names = {id(tensor): _identifier(name) for name, tensor in capture.tensors}
    tensors = [f"{names[id(tensor)]} = {_tensor(tensor)}" for _, tensor in capture.tensors]
    yield from (f"# {line}".rstrip() for line in _header(event, capture))
    yield ""
    text = "\n".join(tensors)
    packed = "load(" in text
    yield from ("import base64",) if packed else ()
    yield "import sys"
    yield from ("import zlib",) if packed else ()
    if re.search(r"\b(inf|nan)\b", text + _call(capture, names)):
        yield "from math import inf, nan"
    yield "\nimport torch\n"
    yield from (_LOAD,) if packed else ()
    yield _SUMMARISE.replace("EXPECTED", "nan" if _expects_nan(event) else "nan + infinite")
    yield from tensors
    yield from (f'summarise("{name}", {names[id(tensor)]})' for name, tensor in capture.tensors)
    yield from _import_by_hand(capture)
    yield f"\noutput = {_call(capture, names)}"
    written = "".join(f", {names[id(tensor)]}" for tensor in capture.written)
    outputs = f"[*(output if isinstance(output, (list, tuple)) else [output]){written}]"
    yield _END.lstrip("\n").replace("OUTPUTS", outputs)


def _header(event: Event, capture: Capture) -> Iterator[str]:
    """Yield the comment at a script's top."""
    yield str(event)
    yield from (f"called from {line}: {line.code}" for line in event.stack if line != event.source)
    yield ""
    if capture.elements:
        kept, total = capture.elements
        yield f"It has the inputs of {kept} of the {total} elements of the result, which are not finite."
    if capture.unknown:
        yield f"Zeros stand for {', '.join(capture.unknown)}, which was overwritten: what is added to it is at fault."
    if capture.random:
        yield "The operation draws random numbers."
    yield "Exit code: 1 if the failure shows, 0 if it does not."


def _import_by_hand(capture: Capture) -> Iterator[str]:
    """Yield the lines that ask for the module of a custom operation."""
    namespace, name, _ = capture.operation.split(".")
    if namespace not in _BUILT_IN:
        yield f"\n# {namespace}::{name} is a custom operation, which torch alone does not have: import its module here."
        yield f'if not hasattr(torch.ops.{namespace}, "{name}"):'
        yield f'    print("{namespace}::{name} is a custom operation: import its module in this script")'
        yield "    sys.exit(2)"


def _identifier(name: str) -> str:
    """Return a variable's name for an argument's, such as "self" or "tensors[2]"."""
    text = re.sub(r"\W+", "_", name).strip("_")
    return f"{text}_" if keyword.iskeyword(text) or text in _TAKEN or text == "self" else text


def _tensor(tensor: Tensor) -> str:
    """Return an expression for a dense tensor, with its strides."""
    flat = tensor.as_strided((tensor.numel(),), (1,))  # in the order of its memory
    if tensor.numel() <= _LITERAL and tensor.dtype in _NUMBERS:
        text = f"torch.tensor({flat.tolist()}, dtype={tensor.dtype})"
    else:
        packed = base64.b85encode(zlib.compress(flat.view(torch.uint8).numpy().tobytes())).decode()
        lines = "\n".join(packed[i : i + 116] for i in range(0, len(packed), 116))
        text = f'load("""\n{lines}\n""", {tensor.dtype})'
    if tensor.dim() == 1:
        return text
    if tensor.is_contiguous():
        return f"{text}.reshape({tuple(tensor.shape)})"
    return f"{text}.as_strided({tuple(tensor.shape)}, {tensor.stride()})"


def _call(capture: Capture, names: dict[int, str]) -> str:
    """Return the expression that calls the operation."""
    arguments = [_value(value, names) for value in capture.args]
    arguments += [f"{name}={_value(value, names)}" for name, value in capture.kwargs.items()]
    return f"torch.ops.{capture.operation}({', '.join(arguments)})"


def _value(value: Any, names: dict[int, str]) -> str:
    """Return an expression for an argument."""
    if isinstance(value, Tensor):
        return names[id(value)]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item, names) for item in value)}]"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)
