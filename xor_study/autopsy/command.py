"""The command line: `xor-study autopsy [options] train.py [args]`, also `python -m xor_study.autopsy`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from xor_study.autopsy import recording
from xor_study.autopsy.program import Program, ProgramError, show
from xor_study.autopsy.recording import Recording

EVENT_FOUND = 3
"""The exit code with `--fail` if there was an event and the program itself ended with 0."""


class UsageError(ValueError):
    """The command line is wrong; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see xor-study autopsy --help")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options before the program's name."""
    made = _Parser(
        prog="xor-study autopsy",
        usage="xor-study autopsy [options] train.py [args]\n"
        "       xor-study autopsy [options] -m module [args]\n"
        "       torchrun ... -m xor_study.autopsy [options] train.py [args]",
        description="Run a program unchanged, and name the operation that first made inf or NaN, its line, and where "
        "the value went. The story goes to stderr when the program ends, crashes or is interrupted; autopsy.html and "
        "autopsy.json have the details. The exit code is the program's own.",
        allow_abbrev=False,
    )
    _add_options(made)
    return made


def _add_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m does")
    made.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write the report (here)")
    made.add_argument(
        "--fail", action="store_true", help=f"exit code {EVENT_FOUND} at an event, where the program's is 0"
    )
    made.add_argument("--quiet", action="store_true", help="print nothing")
    made.add_argument("--raise", dest="raising", action="store_true", help="raise NonFiniteError at the first event")
    made.add_argument(
        "--log",
        "--log-file",  # torchrun takes --log for the beginning of an option of its own
        type=Path,
        metavar="FILE",
        help="append each event, when it happens, as a line of JSON",
    )
    made.add_argument("--start-step", type=_positive, default=1, metavar="N", help="watch from the N-th step on")
    made.add_argument("--every", type=_positive, default=1, metavar="N", help="watch only each N-th step")
    made.add_argument("--allow", action="append", default=[], metavar="OP", help="exempt an operation, as in aten.log")
    made.add_argument("--near-misses", action="store_true", help="warn of values near overflow or an edge, too")
    made.add_argument(
        "--lint",
        action="store_true",
        help="name compositions that have a stable form, such as the log of a softmax; one watched step is enough",
    )
    made.add_argument("--keep", type=_positive, default=20, metavar="N", help="how many of the last steps to show (20)")
    made.add_argument(
        "--checks",
        choices=("auto", "each", "batched"),
        default="auto",
        help="each: exact; batched: faster on CUDA, with fewer details; auto: batched on CUDA",
    )


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command's options, and the program's name with its arguments."""
    taking = {name for action in parser()._actions if action.nargs != 0 for name in action.option_strings}
    index = 0
    while index < len(arguments) and arguments[index].startswith("-") and arguments[index] != "--":
        index += 2 if arguments[index] in taking else 1
    options, rest = list(arguments[:index]), list(arguments[index:])
    return options, rest[1:] if rest[:1] == ["--"] else rest


def environment_options(text: str) -> argparse.Namespace:
    """Return the options in an environment variable's value.

    Raises:
        UsageError: if it isn't options alone.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{error}; must be 1, 0 or options") from error
    options, rest = split(words)
    unwanted = [word for word in options if word in ("-m", "--fail", "-h", "--help")]
    if unwanted:
        raise UsageError(f"{unwanted[0]} has no effect here")
    parsed = parser().parse_args(options)
    if rest:
        raise UsageError(f"{rest[0]}: must be 1, 0 or options")
    return parsed


def main(arguments: Sequence[str]) -> NoReturn:
    """Run a program under the autopsy, and end the process as it ends.

    Args:
        arguments: without the command's name.
    """
    try:
        given, words = split(arguments)
        options = parser().parse_args(given)
        if not words:
            raise UsageError("which program? xor-study autopsy train.py; see xor-study autopsy --help")
        program = _load(words, options.module)
        session = Recording(options, program.name)
    except (UsageError, ProgramError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(_run(program, session, options.fail))


def _load(words: list[str], module: bool) -> Program:
    try:
        return Program(words[0], words[1:], module)
    except (UsageError, ProgramError, SystemExit):
        raise
    except BaseException as error:
        show(error)
        sys.exit(1)


def _run(program: Program, session: Recording, fail: bool) -> str | int | None:
    """Run the program, report, and return what to exit with."""
    failure: BaseException | None = None
    code: str | int | None = 0
    recording.begin(session)
    try:
        program.run()
    except SystemExit as ended:
        code = ended.code
        failure = ended if code not in (None, 0) else None  # as many scripts end: sys.exit(main())
    except BaseException as error:
        show(error)
        failure, code = error, 130 if isinstance(error, KeyboardInterrupt) else 1
    raised = session.end(failure)
    if code not in (None, 0):
        return code
    if raised:
        return 1
    return EVENT_FOUND if fail and session.report is not None and session.report.events else code


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
