"""Watches a process until its end, then prints the story and writes the report; for a command or by the environment."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xor_study.autopsy.report import Report

VARIABLE = "XOR_STUDY_AUTOPSY"
_CHILDREN = (
    f"no operation was seen. Processes that the program starts are not watched; if it trains in them, import "
    f"xor_study.autopsy in it and set {VARIABLE}=1"
)
_THREAD = "torch was first imported in another thread than the main one, so nothing was watched"


class Recording:
    """The watch over a whole process.

    It starts when torch has been imported, so that what a program sets before (`OMP_NUM_THREADS`) has its effect, and
    one that never imports torch isn't slowed down.

    Args:
        options: as `command.parser()` returns them.
        name: of the program, for the report's title.

    Attributes:
        report: what was found so far; None as long as torch has not been imported.

    Raises:
        OSError: if the folder for the report or the log can't be written.
    """

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.report: Report | None = None
        self._options = options
        self._name = name
        self._ending = ""
        self._process = os.getpid()
        self._watch: AbstractContextManager[Report] | None = None
        self._folder = options.out.absolute()  # the program may change its working directory
        self._log = options.log and _labelled(options.log.absolute())
        _check_folder(self._folder)  # better now than after hours of training
        if self._log:
            self._log.open("a").close()

    def start(self) -> None:
        """Watch from here on, or from when torch has been imported."""
        if "torch" in sys.modules:
            self._enter()
        else:
            sys.meta_path.insert(0, _AfterTorch(self._enter))
        # Where processes train together, one that another keeps waiting in C++ would delay the end of all.
        alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def end(self, error: BaseException | None) -> bool:
        """Complete the report, print its story and write it.

        Args:
            error: what ended the program, if anything did.

        Returns:
            Whether the program is to end with an error because of an event that only its end has confirmed.
        """
        if os.getpid() != self._process:
            return False
        raised = self._leave(error)
        if error is not None and not isinstance(error, SystemExit):
            self._ending = f", ended by {type(error).__name__}"
        self._publish(printed=self.report is not None and getattr(error, "report", None) is self.report)
        return raised

    def cancel(self) -> None:
        """Watch no more, and report nothing."""
        self._leave(None)
        self._process = -1
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTorch)]

    def _enter(self) -> None:
        from xor_study.autopsy.report import Report
        from xor_study.autopsy.session import autopsy

        options = self._options
        if threading.current_thread() is not threading.main_thread():
            self.report = Report(options.keep)
            self.report.note(_THREAD)
            return
        self._watch = autopsy(
            on_event="raise" if options.raising else "continue",
            allow=options.allow,
            near_misses=options.near_misses,
            lint=options.lint,
            keep=options.keep,
            checks=options.checks,
            start_step=options.start_step,
            every=options.every,
            log=self._log,
        )
        self.report = self._watch.__enter__()

    def _leave(self, error: BaseException | None) -> bool:
        """End the watch, and return whether that has raised an event."""
        watch, self._watch = self._watch, None
        if watch is None:
            return False
        from xor_study.autopsy.report import NonFiniteError

        try:
            watch.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except NonFiniteError:
            return True
        return False

    def _publish(self, printed: bool = False) -> None:
        """Print the story and write the files.

        Args:
            printed: whether the story has been printed already, with the traceback of a `NonFiniteError`.
        """
        report, options = self.report, self._options
        if report is None:
            if not options.quiet and not _process():
                _say(f"Autopsy of {self._name}: it never imported torch, so nothing was watched.")
            return
        if not report.operations and VARIABLE not in os.environ:
            report.note(_CHILDREN)
        if _process() and not report.events:
            return
        rank = os.environ.get("RANK", "0") if _rank() else "0"
        speaks = not options.quiet and (rank == "0" or bool(report.events))
        lines = [] if printed else [self._title(), report.story]
        files = self._write(report)
        lines += [f"Report: {' and '.join(files)}"] if files else []
        if speaks:
            _say("\n".join(lines))  # at once: other ranks print, too

    def _title(self) -> str:
        rank = f", rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}" if _rank() else ""
        process = f", process {os.getpid()}" if _process() else ""
        return f"Autopsy of {self._name}{rank}{process}{self._ending}"

    def _write(self, report: Report) -> list[str]:
        """Write the report's files, and return their paths."""
        page, data = (_labelled(self._folder / name) for name in ("autopsy.html", "autopsy.json"))
        try:
            report.write_json(data)
            report.write_html(page, self._title())
        except Exception as error:  # also one of ours: the program's exit code must stay its own
            _say(f"error: {type(error).__name__}: {error}; the report was not written")
            return []
        return [str(page), str(data)]

    def _terminate(self, number: int, frame: Any) -> None:
        """Report what is known, and end the process as the signal would have ended it."""
        if os.getpid() == self._process:
            self._publish()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class _AfterTorch(MetaPathFinder):
    """Finds torch as usual, and calls a function when it has been imported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return torch's specification with a loader that calls the function."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                self._then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_current: list[Recording] = []
"""The recording of this process, if it has one."""


def begin(recording: Recording) -> None:
    """Start a recording in place of the one that the environment has started."""
    while _current:
        _current.pop().cancel()
    _current.append(recording)
    recording.start()


def follow_environment() -> None:
    """Start what `XOR_STUDY_AUTOPSY` asks for, until the process ends.

    Raises:
        SystemExit: with a line that says what is wrong with the variable's value.
    """
    value = os.environ.get(VARIABLE, "")
    if value in ("", "0") or _current:
        return
    from xor_study.autopsy import command

    try:
        options = command.environment_options("" if value == "1" else value)
        recording = Recording(options, Path(sys.argv[0]).name or "the session")
    except (command.UsageError, OSError) as error:
        raise SystemExit(f"error: {VARIABLE}={value}: {command.one_line(error)}") from error
    begin(recording)
    atexit.register(_end_at_exit, recording)


def _end_at_exit(recording: Recording) -> None:
    if recording in _current:
        recording.end(getattr(sys, "last_value", None))


def _check_folder(folder: Path) -> None:
    """Make a folder if there is none.

    Raises:
        OSError: if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder, prefix=".autopsy").cleanup()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; --out chooses another folder", str(folder)) from error


def _rank() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _process() -> bool:
    """Return whether another process of the program has started this one, to load data or train beside it."""
    return multiprocessing.parent_process() is not None


def _labelled(path: Path) -> Path:
    """Return a path that no other process of the program writes: with the rank, and in a child process its number."""
    label = f".rank{os.environ['RANK']}" if _rank() else ""
    label += f".process{os.getpid()}" if _process() else ""
    return path.with_name(f"{path.stem}{label}{path.suffix}")


def _say(text: str) -> None:
    # Either stream may be closed, or missing (pythonw), or a pipe that nobody reads any more.
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
