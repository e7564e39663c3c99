"""How a command ends that can't continue."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from yaml import YAMLError

from xor_study.errors import StudyError, in_one_line, interrupts_held, one_line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StudyError("lr=x: must be a number"), 1, "error: lr=x: must be a number"),
        (FileNotFoundError(2, "No such file or directory", "there/runs.csv"), 1, "error: there/runs.csv: No such file"),
        (ZeroDivisionError("by zero.\nand more"), 1, "error: by zero\n"),
        (YAMLError("line 1\n  column 2"), 1, "error: a configuration file is not valid YAML: line 1 column 2"),
        (KeyboardInterrupt(), 130, "interrupted; no results were written"),
        (KeyboardInterrupt("interrupted; 3 of 4 runs are kept"), 130, "interrupted; 3 of 4 runs are kept"),
    ],
)
def test_a_command_ends_with_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, in_one_line(ZeroDivisionError, YAMLError):
        raise error
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_what_is_not_expected_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), in_one_line():
        raise ZeroDivisionError


def test_the_cause_of_an_error_that_is_not_ours_is_told() -> None:
    error = ValueError("it failed")
    error.__cause__ = OSError("no space")
    assert one_line(error) == "it failed; no space"


@pytest.mark.parametrize("command", ["conformance --versions", "run dry_run=true", "run -m dry_run=true lr=1,2"])
def test_a_reader_that_goes_away_is_no_error(command: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    module, *arguments = command.split()
    whole = [sys.executable, "-m", f"xor_study.{module}", *arguments]
    done = subprocess.run(whole, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.fixture
def usual_handler() -> Iterator[None]:
    """Python's own handler, which is not there where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


class InterruptedFinalizer:
    """What is interrupted where Python drops the exception."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def interrupted_by(interrupt: Callable[[], object], times: int = 1) -> list[str]:
    """Return what was still done of some work that was interrupted so many times."""
    done = []

    def work() -> None:
        with interrupts_held() as check:
            check()
            for _ in range(times):
                interrupt()
            done.append("the rest of a step")
            check()
            done.append("the next step")

    with pytest.raises(KeyboardInterrupt):
        work()
    return done


@pytest.mark.usefixtures("usual_handler")
def test_an_interrupt_is_held_until_a_step_is_done_and_never_lost() -> None:
    assert interrupted_by(InterruptedFinalizer) == ["the rest of a step"]
    assert interrupted_by(lambda: signal.raise_signal(signal.SIGINT)) == ["the rest of a step"]


@pytest.mark.usefixtures("usual_handler")
def test_a_second_interrupt_is_raised_at_once() -> None:
    assert interrupted_by(lambda: signal.raise_signal(signal.SIGINT), times=2) == []


@pytest.mark.usefixtures("usual_handler")
def test_an_interrupt_that_nothing_asked_for_is_raised_in_the_end() -> None:
    done = []

    def work() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


@pytest.mark.usefixtures("usual_handler")
def test_only_the_usual_handler_of_the_main_thread_is_replaced() -> None:
    def handler_within() -> object:
        with interrupts_held():
            return signal.getsignal(signal.SIGINT)

    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(handler_within()))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert handler_within() is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert handler_within() is not signal.default_int_handler
