"""How a command ends that can't go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from yaml import YAMLError

from xor_study.catalogue import StudyError
from xor_study.problems import in_one_line, one_line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StudyError("lr=x: must be a number"), 1, "error: lr=x: must be a number"),
        (FileNotFoundError(2, "No such file or directory", "there/runs.csv"), 1, "error: there/runs.csv: No such file"),
        (ZeroDivisionError("by zero.\nand more"), 1, "error: by zero\n"),
        (YAMLError("line 1\n  column 2"), 1, "error: a configuration file is no YAML: line 1 column 2"),
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


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "xor_study.conformance", "--versions"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141
