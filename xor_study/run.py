"""The command line: `xor-study`, which is `python -m xor_study` and `python -m xor_study.run`.

The first word may name a command; all else is for the Hydra application. Nothing is imported before it is needed:
`--help`, `--version` and a typo are answered without torch. `autopsy` gives the process to the program that it runs.
"""

from __future__ import annotations

import gc
import io
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xor_study.errors import StudyError, in_one_line, show, suggestion

COMMANDS = {
    "show": "xor_study.sweeps.commands:show_main",
    "compare": "xor_study.sweeps.commands:compare_main",
    "unlock": "xor_study.sweeps.commands:unlock_main",
    "figures": "xor_study.study.drawing:main",
    "postmortem": "xor_study.postmortem.cli:main",
    "reproduce": "xor_study.reproduce:main",
    "conformance": "xor_study.conformance:main",
}
"""Functions that take a command's arguments, by its name."""

AUTOPSY = "autopsy"
"""The command that runs any program, which must end as that program ends."""

_OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w.]*=")
_ONLY_OF_RUNS = {"--json", "--figure", "--seeds"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for; end with exit code 1 and one line if it can't be done.

    Args:
        arguments: without the program's name; None means those of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    word = given[0] if given else ""
    _open_streams()
    if word == AUTOPSY:
        autopsy(given[1:])
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console of any encoding can show any text
    with in_one_line(), _collector_paused():
        if word in COMMANDS:
            pkgutil.resolve_name(COMMANDS[word])(given[1:])
        elif {"-h", "--help"} & set(given):
            _help(given)
        elif "--version" in given:
            from xor_study import __version__

            print(f"xor-study {__version__}")
        elif word and "=" not in "".join(given[:2]) and word[0] not in "-+~":
            raise StudyError(
                f"{show(word)}: unknown command{suggestion(word, [AUTOPSY, *COMMANDS])}; settings are key=value"
            )
        else:
            from xor_study.sweeps import application

            application.main(given)


def _open_streams() -> None:
    """Open those of the standard streams that are closed."""
    # A file that is opened later would get the number of a closed stream, and with it all that is printed.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  # as long as the process


def autopsy(arguments: Sequence[str]) -> None:
    """Run a program under the autopsy; or, as this command did before, explain a run of the study.

    Args:
        arguments: without the command's name.
    """
    from xor_study.autopsy import command

    if _names_a_run(*command.split(arguments)):
        print(f'note: "xor-study {AUTOPSY} {shlex.join(arguments)}" is now "xor-study postmortem"', file=sys.stderr)
        main(["postmortem", *arguments])
    else:
        command.main(arguments)


def _names_a_run(options: list[str], words: list[str]) -> bool:
    """Return whether arguments are those of `postmortem`: with its options, or a setting in place of a program."""
    if {option.partition("=")[0] for option in options} & _ONLY_OF_RUNS:
        return True
    setting = "-m" not in options and bool(words) and _OVERRIDE.match(words[0])
    return bool(setting) and not Path(words[0]).exists()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running until training starts (`runner.collect_again`), or until the end.

    Imports make a million objects, none of them garbage, and looking through them takes a quarter of a command's time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _help(given: Sequence[str]) -> None:
    from xor_study.sweeps import usage

    topics = [word for word in given if not word.startswith("-") and "=" not in word]
    print(usage.choices() if topics == ["choices"] else usage.text(topics))


if __name__ == "__main__":
    main()
