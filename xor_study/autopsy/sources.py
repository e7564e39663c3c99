"""Which line of the user's code an operation belongs to, found by walking Python's frames."""

from __future__ import annotations

import linecache
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

# With the separator: torchvision's folder begins with torch's name, too.
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"
# Runs a script for `xor-study autopsy`; below it on the stack is only what started that command.
_PROGRAM = str(Path(__file__).with_name("program.py"))
_STANDARD = f"{Path(linecache.__file__).parent}{os.sep}"
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
# What runs a notebook's cells or tests stands below every line of the user's, and tells nothing.
_RUNNERS = re.compile(
    r"[/\\](site|dist)-packages[/\\](IPython|ipykernel|tornado|execnet|xdist|_?pytest|pluggy)[/\\]|[/\\]bin[/\\]pytest$"
)
_CELL = re.compile(r"<ipython-input-(\d+)-|[/\\]ipykernel_\d+[/\\]\d+\.py$")
_DECORATORS = {"wrapper", "wrapped", "inner", "wrapped_func", "wrapper_func", "decorated", "decorate"}
_OWN, _PACKAGE, _LIBRARY, _SCALER, _UPDATE, _PRINTING, _GRAPH, _ROOT, _FUNCTION, _COMPILER, _OPTIMIZER, _START = range(
    12
)
_USERS = (_OWN, _PACKAGE)
"""Kinds of files whose lines can be named: the user's own, and those of an installed package other than torch."""
_SHOWN, _SHOWN_OF_PACKAGES = 8, 4
"""Lines of a stack in a report: in all, and above the user's own innermost one."""
_SPECIAL = {
    "amp/grad_scaler.py": _SCALER,
    "nn/utils/clip_grad.py": _UPDATE,
    "_tensor_str.py": _PRINTING,
    "autograd/graph.py": _GRAPH,
    "autograd/__init__.py": _ROOT,
    "autograd/function.py": _FUNCTION,
    "_dynamo/eval_frame.py": _COMPILER,
}
_kinds: dict[str, int] = {}


@dataclass(frozen=True)
class Source:
    """A line of source code.

    Attributes:
        filename: as Python knows it.
        lineno: counted from 1.
        function: the name of the function that it is part of.
        code: the line itself, without its indentation; empty if the source is not available.
        columns: the call's range in `code` (start, end), if known.
    """

    filename: str
    lineno: int
    function: str
    code: str
    columns: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.label}:{self.lineno}"

    @property
    def label(self) -> str:
        """The file's name for a reader: of a notebook's cell, "cell [3]" instead of a file that doesn't exist."""
        cell = _CELL.search(self.filename)
        number = cell and (cell[1] or _execution_count(self.filename))
        return f"cell [{number}]" if number else self.filename


def _execution_count(filename: str) -> int | None:
    """Return the number in front of a cell, which IPython keeps by the name of the cell's file, or None."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers.get(filename)


class Site(NamedTuple):
    """The call of an operation: cheap to take, resolved to a `Source` only when asked for.

    Attributes:
        code: the code object of the frame that is named.
        instruction: offset of its current instruction, in bytes.
        module: name of the innermost running `torch.nn.Module`, or None.
        allowed: whether the call is in a block that the user exempted.
        own: the user's own call (code and instruction) that led into an installed package; None where `code` is the
            user's own.
    """

    code: CodeType
    instruction: int
    module: str | None
    allowed: bool
    own: tuple[CodeType, int] | None

    def source(self) -> Source:
        """Return the line, with its text as `linecache` finds it."""
        return _source(self.code, self.instruction)

    def own_source(self) -> Source | None:
        """Return the user's own line that led into an installed package, if it did."""
        return _source(*self.own) if self.own else None


class Stack(NamedTuple):
    """What the whole stack says; it is walked only if something is not finite.

    Attributes:
        sources: lines of the user's own and of installed packages, innermost first.
        scaler: whether it passes through GradScaler.
        update: whether it passes through an optimizer's update or the clipping of gradients, above all user's lines.
        printing: whether it passes through the printing of a tensor.
        compiled: whether it passes through code under torch.compile.
    """

    sources: tuple[Source, ...]
    scaler: bool
    update: bool
    printing: bool
    compiled: bool


def kind_of(filename: str) -> int:
    """Return what a file is: the user's own, an installed package's, torch's, or one of torch's in `_SPECIAL`."""
    kind = _kinds.get(filename)
    if kind is None:
        kind = _kinds[filename] = _new_kind(filename)
    return kind


def _new_kind(filename: str) -> int:
    if filename.startswith(_TORCH):
        name = filename[len(_TORCH) :].replace(os.sep, "/")
        return _SPECIAL.get(name, _OPTIMIZER if name.startswith("optim/") else _LIBRARY)
    if filename == _PROGRAM:
        return _START
    if filename.startswith((_HERE, "<frozen")) or filename == "<string>" or _RUNNERS.search(filename):
        return _LIBRARY
    if _INSTALLED.search(filename):
        return _PACKAGE
    return _LIBRARY if filename.startswith(_STANDARD) else _OWN


def user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside torch, or None where autograd's engine (C++) was the caller."""
    kinds = _kinds
    while frame is not None:
        code = frame.f_code
        filename = code.co_filename
        kind = kinds.get(filename)
        if kind is None:
            kind = kind_of(filename)
        if kind <= _PACKAGE:
            return frame
        # Below it are the lines that called `backward`: they did not call this operation, the engine did.
        if kind == _GRAPH and code.co_name == "_engine_run_backward":
            return None
        frame = frame.f_back
    return None


def own_call(frame: FrameType) -> tuple[CodeType, int] | None:
    """Return the user's own innermost call below an installed package's frame; None if `frame` is the user's own."""
    if kind_of(frame.f_code.co_filename) == _OWN:
        return None
    below = _outer_frame(frame, (_OWN,))
    return (below.f_code, below.f_lasti) if below else None


def applying_frame(frame: FrameType | None) -> FrameType | None:
    """Return the user's frame that called `Function.apply`, when inside a custom function's forward; else None."""
    while frame is not None:
        if kind_of(frame.f_code.co_filename) == _FUNCTION and frame.f_code.co_name == "apply":
            return user_frame(frame.f_back)
        frame = frame.f_back
    return None


def outer_user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside torch below the engine: the one that called `backward`."""
    return _outer_frame(frame, _USERS)


def _outer_frame(frame: FrameType | None, kinds: tuple[int, ...]) -> FrameType | None:
    while frame is not None and (kind := kind_of(frame.f_code.co_filename)) not in kinds:
        frame = frame.f_back if kind != _START else None
    return frame


def look_at_stack(frame: FrameType | None) -> Stack:
    """Return the user's lines, innermost first, and through which special files of torch the stack passes."""
    sources: list[Source] = []
    seen, names = set(), set()
    update = owned = False
    packages = 0
    while frame is not None:
        kind = kind_of(frame.f_code.co_filename)
        seen.add(kind)
        if kind == _OWN:
            owned = True
            sources.append(_source(frame.f_code, frame.f_lasti))
        elif kind == _PACKAGE:
            # A decorator's frame tells nothing, and the package's outer frames less than the user's own.
            if not sources or (packages < _SHOWN_OF_PACKAGES and frame.f_code.co_name not in _DECORATORS):
                sources.append(_source(frame.f_code, frame.f_lasti))
                packages += 1
        elif kind == _COMPILER:
            names.add(frame.f_code.co_name)
        elif kind in (_UPDATE, _OPTIMIZER):
            update |= not sources  # below a line of a closure it has called the closure
        elif kind == _START:
            break
        # Eight lines are enough for a report, and a deep recursion would make each look slow.
        if owned and kind in (*_USERS, _GRAPH) and len(sources) >= _SHOWN:
            break
        frame = frame.f_back
    return Stack(
        tuple(sources),
        scaler=_SCALER in seen,
        update=update,
        printing=_PRINTING in seen,
        compiled="compile_wrapper" in names,
    )


def called_by(frame: FrameType | None) -> tuple[bool, bool]:
    """Return whether the nearest frames are GradScaler's, and whether they make the root gradient of a backward."""
    for _ in range(4):
        if frame is None:
            break
        kind = kind_of(frame.f_code.co_filename)
        if kind == _SCALER:
            return True, False
        if kind == _ROOT and frame.f_code.co_name == "_make_grads":
            return False, True
        frame = frame.f_back
    return False, False


def source_of(frame: FrameType) -> Source:
    """Return the line that a frame is at."""
    return _source(frame.f_code, frame.f_lasti)


def _source(code: CodeType, instruction: int) -> Source:
    # Code objects of the same text compare equal though their files differ, as two cells' do.
    return _source_in(code.co_filename, code, instruction)


@lru_cache(maxsize=4096)
def _source_in(filename: str, code: CodeType, instruction: int) -> Source:
    # Two bytes an instruction: co_positions() yields one entry for each.
    position = next(islice(code.co_positions(), max(instruction, 0) // 2, None), (None, None, None, None))
    lineno, end_lineno, start, end = position
    lineno = lineno or code.co_firstlineno
    line = linecache.getline(filename, lineno)
    text = line.strip()
    columns = None
    if text and start is not None and end is not None and end_lineno == lineno:
        indent = len(line) - len(line.lstrip())
        raw = line.encode()  # columns count UTF-8 bytes
        first, last = len(raw[:start].decode()) - indent, len(raw[:end].decode()) - indent
        columns = (first, last) if 0 <= first < last <= len(text) and (first, last) != (0, len(text)) else None
    return Source(filename, lineno, code.co_name, text, columns)
