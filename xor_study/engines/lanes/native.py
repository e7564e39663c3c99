"""Machine code: compiled with llvmlite, kept on disk, called without Python's lock."""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from xor_study.engines.lanes.llvm import ENTRY
from xor_study.files import write_atomically

CACHE_VARIABLE = "XOR_STUDY_CACHE"
"""The environment variable that names the folder of compiled programs; empty, nothing is kept."""

_MARK = b"xor_study object 1\n"


@cache
def target() -> tuple[str, str]:
    """Return this processor's name and features, as LLVM knows them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _machine() -> Any:
    name, features = target()
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2, jit=True)


def cache_folder() -> Path | None:
    """Return where compiled programs are kept, or None if they are not."""
    told = os.environ.get(CACHE_VARIABLE)
    if told is not None:
        return Path(told) if told else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xor_study"


def place(*parts: str, suffix: str) -> Path | None:
    """Return where something is kept: under a name made of all that it depends on."""
    folder = cache_folder()
    return folder and folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}{suffix}"


def place_of_code(text: str) -> Path | None:
    """Return where a module's machine code is kept."""
    return place(text, *target(), llvmlite.__version__, str(llvm.llvm_version_info), suffix=".o")


def read(path: Path | None) -> bytes | None:
    """Return what is kept in a file, or None if it is not there or not whole."""
    try:
        content = path.read_bytes() if path is not None else b""
    except OSError:
        return None
    mark, digest, code = content[: len(_MARK)], content[len(_MARK) : len(_MARK) + 32], content[len(_MARK) + 32 :]
    return code if mark == _MARK and hashlib.sha256(code).digest() == digest else None


def keep(path: Path | None, code: bytes) -> None:
    """Write to a file, whole or not at all; a cache that can't be written is no cache."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream: stream.write(_MARK + hashlib.sha256(code).digest() + code))
    except OSError:
        return


def object_code(text: str) -> bytes:
    """Return the machine code of a module, from the cache if it is there."""
    path = place_of_code(text)
    code = read(path)
    if code is None:
        code = bytes(_machine().emit_object(llvm.parse_assembly(text)))
        keep(path, code)
    return code


class Kernel:
    """A compiled module's function; see `llvm.text`."""

    def __init__(self, text: str) -> None:
        code = object_code(text)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())  # owns the code
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        pointers, numbers = [ctypes.c_void_p] * 6, [ctypes.c_int64] * 3
        self._call = ctypes.CFUNCTYPE(None, *pointers, *numbers)(self._engine.get_function_address(ENTRY))

    def __call__(self, *arrays: np.ndarray[Any, Any], blocks: int, first: int, segments: int) -> None:
        """Run; the interpreter's lock is released meanwhile."""
        state = arrays[0].ctypes.data
        self._call(state, *(array.ctypes.data for array in arrays), blocks, first, segments)
