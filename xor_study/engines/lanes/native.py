"""Machine code: compiled with llvmlite, cached on disk, called without the interpreter's lock."""

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
"""The environment variable with the folder of the cache; an empty one turns the cache off."""

_HEADER = b"xor_study object 1\n"
"""Begins each file of the cache, before the SHA-256 of the content; change the number when the format changes."""


@cache
def target() -> tuple[str, str]:
    """Return this processor's name and features in LLVM's terms."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _machine() -> Any:
    name, features = target()
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2, jit=True)


def cache_folder() -> Path | None:
    """Return the folder of the cache, or None if it is turned off."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder is not None:
        return Path(folder) if folder else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xor_study"


def cache_path(*parts: str, suffix: str) -> Path | None:
    """Return the cache's path for content that depends on `parts`, or None if the cache is off."""
    folder = cache_folder()
    return folder and folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}{suffix}"


def code_path(text: str) -> Path | None:
    """Return the cache's path for a module's machine code."""
    # The same text gives other code on another processor or with another LLVM.
    return cache_path(text, *target(), llvmlite.__version__, str(llvm.llvm_version_info), suffix=".o")


def read(path: Path | None) -> bytes | None:
    """Return the content of a file of the cache, or None if it is missing or damaged."""
    try:
        content = path.read_bytes() if path is not None else b""
    except OSError:
        return None
    start = len(_HEADER) + hashlib.sha256().digest_size
    header, code = content[:start], content[start:]
    # A process that was killed or a full disk may leave anything, and damaged code would crash the process.
    return code if header == _header_of(code) else None


def _header_of(code: bytes) -> bytes:
    return _HEADER + hashlib.sha256(code).digest()


def write(path: Path | None, code: bytes) -> None:
    """Write a file of the cache atomically; errors are ignored, since everything works without a cache."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream: stream.write(_header_of(code) + code))
    except OSError:
        return


def object_code(text: str) -> bytes:
    """Return the machine code of a module, from the cache if it is there."""
    path = code_path(text)
    code = read(path)
    if code is None:
        code = bytes(_machine().emit_object(llvm.parse_assembly(text)))
        write(path, code)
    return code


class Kernel:
    """The function of a compiled module; see `llvm.text`."""

    def __init__(self, text: str) -> None:
        code = object_code(text)
        # The engine owns the memory of the code, so it lives as long as this object.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        pointers, numbers = [ctypes.c_void_p] * 6, [ctypes.c_int64] * 3
        self._call = ctypes.CFUNCTYPE(None, *pointers, *numbers)(self._engine.get_function_address(ENTRY))

    def __call__(self, *arrays: np.ndarray[Any, Any], blocks: int, first: int, segments: int) -> None:
        """Run the loop; `ctypes` releases the interpreter's lock, so several threads run at the same time.

        Args:
            arrays: states, numbers, table, ends and records, as `blocks.Group` lays them out.
            blocks: number of blocks.
            first: steps that the blocks have made already.
            segments: number of segments that follow.
        """
        state = arrays[0].ctypes.data
        self._call(state, *(array.ctypes.data for array in arrays), blocks, first, segments)
