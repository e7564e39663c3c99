"""Errors that users see, and how a command ends that can't do what it is asked: one line, no traceback."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class StudyError(ValueError):
    """Something a user asked for cannot be done; the message is one line that says what and what is allowed."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; the message, if any, is one line.

    Args:
        *message: as of any exception.
        number: of the signal that asked.
    """

    def __init__(self, *message: str, number: int = signal.SIGINT) -> None:
        super().__init__(*message)
        self.number = number


ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR2") if hasattr(signal, name)]
"""Signals by which a shell, a terminal that is closed, and schedulers ask a process to end."""


class UnknownNameError(StudyError, KeyError):
    """A catalogue has no entry of that name; the message lists those it has."""

    __str__ = Exception.__str__  # KeyError's would put it in quotes


def typed(value: Any) -> str:
    """Return a value as one types it on the command line, exactly.

    Args:
        value: of a field: Python's or NumPy's.

    Example:
        >>> typed(True), typed(None), typed(10.0), typed(1e-7), typed("sgd")
        ('true', 'null', '10', '1e-07', 'sgd')
    """
    plain = value.item() if hasattr(value, "item") else value  # of NumPy's types, whose own repr names them
    if isinstance(plain, bool | None):
        return "null" if plain is None else str(plain).lower()
    return repr(plain).removesuffix(".0") if isinstance(plain, float) else str(plain)


def show(value: object) -> str:
    """Return `value` as one short line for a message."""
    text = typed(value) if isinstance(value, bool | None) else str(value)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 60 else line[:57] + "..."


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the one of some names that `name` is a likely misspelling of, as a list of at most one."""
    # Two letters swapped in a short word give 0.67 ("sdg", "sgd"), and so do long words with nothing but an ending in
    # common ("nothing", "batching").
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.6 if len(name) < 5 else 0.7)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown `name`: the nearest known one, if any, and all of them."""
    known = list(known)
    guess = "".join(f"; did you mean {near}?" for near in nearest(name, known))
    return f"{guess} (known: {', '.join(known)})"


def one_line(error: BaseException) -> str:
    """Return what an error says as one line: its first line and, for an error that is not ours, its cause's."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    from yaml import YAMLError  # only commands that read configurations have loaded it

    if isinstance(error, YAMLError):
        return f"a configuration file is not valid YAML: {' '.join(str(error).split())}"
    errors = [error] if isinstance(error, StudyError) else [error, error.__cause__]
    lines = [str(e).strip().splitlines()[0].strip().rstrip(".") for e in errors if e is not None and str(e).strip()]
    return "; ".join(dict.fromkeys(lines)) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """Parser of a command's arguments that reports wrong ones as all else is reported, by a StudyError."""

    def error(self, message: str) -> NoReturn:
        """Raise StudyError in place of printing the usage."""
        raise StudyError(f"{message}; see {self.prog} --help")


@contextmanager
def in_one_line(*expected: type[Exception]) -> Iterator[None]:
    """End the process with one line if what is done within can't be done.

    The exit code is 1 after a StudyError, an OSError or one of those expected, 128 + n after an interruption by signal
    n, as of a process that the signal ends, and likewise 141 if nobody reads the output any more.
    """
    try:
        try:
            with _interrupted_by(ENDING):
                yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(141)
    except (StudyError, OSError, *expected) as error:  # type: ignore[misc]  # mypy can't read the unpacked types
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupted:
        number = signal_of(interrupted)
        print(interrupted if interrupted.args else f"{interruption(number)}; no results were written", file=sys.stderr)
        sys.exit(128 + number)


def signal_of(interrupted: KeyboardInterrupt) -> int:
    """Return the number of the signal that interrupted a process."""
    return interrupted.number if isinstance(interrupted, Interrupted) else signal.SIGINT


def interruption(number: int) -> str:
    """Return the beginning of a message on a process that a signal has interrupted."""
    return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted(number=number)


@contextmanager
def _interrupted_by(numbers: Iterable[int]) -> Iterator[None]:
    """Raise Interrupted on some signals, except those that are ignored or have a handler already."""
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold interruptions back, and provide what raises one that came, to be called where that is safe.

    One that is raised between any two instructions gets lost where a finalizer or C code drops it, and then the work
    goes on. A second one is raised at once. Nothing changes outside the main thread, or where the application has a
    handler of its own.
    """
    came = 0

    def hold(number: int, frame: object) -> None:
        nonlocal came
        if came:
            raise Interrupted(number=number)
        came = number

    def check() -> None:
        if came:
            raise Interrupted(number=came)

    usual = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
        ours = (signal.default_int_handler, _interrupt)
        usual = {number: handler for number, handler in handlers.items() if handler in ours}
    for number in usual:
        signal.signal(number, hold)
    try:
        yield check
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    check()
