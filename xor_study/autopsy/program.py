"""Runs a script or module as Python itself would: as `__main__`, with its own arguments, path and traceback."""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

_HERE = str(Path(__file__).parent)
# Files of torch that call a mode, and an operation on a mode's behalf.
_CALLS_MODE = ("/torch/_compile.py", "/torch/_dynamo/eval_frame.py")
_CALLS_OPERATION = ("/torch/_ops.py",)


class ProgramError(ValueError):
    """There is no such program; the message is one line."""


class Program:
    """A script or module that is about to run in this process.

    Creating it makes the process the program's: `sys.argv`, `sys.path[0]` and the module `__main__` are set as Python
    sets them, and stay so, since the program's threads and exit functions may need them after its last line.

    Args:
        name: the script's path, or the module's dotted name.
        arguments: the program's own.
        module: whether `name` is a module's, as after `python -m`.

    Attributes:
        name: as given.

    Raises:
        ProgramError: if there is no such script or module.
        SyntaxError: if it can't be compiled.
        Exception: what a package raises that is imported because a module is in it.
    """

    def __init__(self, name: str, arguments: list[str], module: bool = False) -> None:
        self.name = name
        self._module = ModuleType("__main__")
        self._module.__dict__["__builtins__"] = builtins
        self._code = self._locate(name, arguments) if module else self._read(name, arguments)

    def run(self) -> None:
        """Run the program to its end. What it raises is raised."""
        # The second is what multiprocessing calls the first, once imported, for what child processes send.
        for name in {"__main__", "__mp_main__"} & set(sys.modules):
            sys.modules[name] = self._module
        exec(self._code, self._module.__dict__)

    def _read(self, name: str, arguments: list[str]) -> CodeType:
        path = os.path.abspath(name)  # noqa: PTH100  # as Python does: symbolic links are not followed
        try:
            source = Path(path).read_bytes()
        except OSError as error:
            raise ProgramError(f"{name}: {error.strerror}") from error
        code = compile(source, path, "exec", dont_inherit=True)  # inherited: this file's `from __future__`
        sys.argv[:] = [name, *arguments]
        _set_first_path(str(Path(path).resolve().parent))
        loader = SourceFileLoader("__main__", path)
        self._module.__dict__.update(__file__=path, __cached__=None, __loader__=loader, __package__=None)
        return code

    def _locate(self, name: str, arguments: list[str]) -> CodeType:
        sys.argv[:] = ["-m", *arguments]  # what a package sees that is imported to find a module in it
        _set_first_path(os.getcwd())  # noqa: PTH109
        spec = _spec_of(name)
        code = spec.loader.get_code(spec.name) if spec.loader is not None else None  # type: ignore[attr-defined]
        if code is None or spec.origin is None:
            raise ProgramError(f"{name}: there is no Python code in this module")
        sys.argv[0] = spec.origin
        names = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": spec.loader, "__spec__": spec}
        self._module.__dict__.update(names, __package__=spec.parent)
        return code  # type: ignore[no-any-return]  # a loader's methods have no types


def _spec_of(name: str) -> ModuleSpec:
    """Return the specification of a module, or of a package's `__main__`."""
    try:
        spec = None if name.startswith(".") else importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # The package that was to have the module, rather than one that is missing in the package's own imports.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = None
    except ValueError:  # a module without a specification
        spec = None
    if spec is None:
        hint = f"; for a script, leave out -m: {name}" if name.endswith(".py") else ""
        raise ProgramError(f"no module named {name}{hint}")
    if spec.submodule_search_locations is None:
        return spec
    if name.endswith(".__main__"):
        raise ProgramError(f"{name} is a package and can't be run")
    try:
        return _spec_of(f"{name}.__main__")
    except ProgramError as error:
        raise ProgramError(f"{name} is a package without __main__ and can't be run") from error


def _set_first_path(folder: str) -> None:
    # With -P or PYTHONSAFEPATH, Python has put no folder there.
    if not sys.flags.safe_path:
        sys.path[0] = folder


def show(error: BaseException) -> None:
    """Have Python print an error that ended the program, as if we were not there."""
    for each in _with_causes(error):
        each.__traceback__ = without_ours(each.__traceback__)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.stdout.flush()
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception as wrong:  # the program's own hook is at fault
        wrong.__suppress_context__ = True
        print("Error in sys.excepthook:", file=sys.stderr)
        wrong.__traceback__ = without_ours(wrong.__traceback__)
        sys.__excepthook__(type(wrong), wrong, wrong.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, error.__traceback__)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it is raised from or that were being handled, each once."""
    left, seen = [error], set()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [other for other in (each.__cause__, each.__context__) if other is not None]


def without_ours(entry: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the autopsy, and without torch's around them."""
    kept: list[TracebackType] = []
    inside = False
    while entry is not None:
        filename = entry.tb_frame.f_code.co_filename
        ours = filename.startswith(_HERE)
        while ours and kept and _is_of(kept[-1].tb_frame.f_code.co_filename, _CALLS_MODE):
            kept.pop()
        inside = ours or (inside and _is_of(filename, _CALLS_OPERATION))
        if not inside:
            kept.append(entry)
        entry = entry.tb_next
    for each, following in pairwise([*kept, None]):
        each.tb_next = following  # type: ignore[union-attr]  # only the last is None
    return kept[0] if kept else None


def _is_of(filename: str, files: tuple[str, ...]) -> bool:
    return filename.replace("\\", "/").endswith(files)
