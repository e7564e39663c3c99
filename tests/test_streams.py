"""Commands whose standard streams are closed, or can't show every text, end as usual, without a traceback."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = "-m epochs=1 iterations=20 seed=0,1 hydra.sweep.dir='\"été\"'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has a sweep in a folder of a name outside ASCII."""
    folder = tmp_path_factory.mktemp("streams")
    assert command(folder, STUDY) == (0, "")
    return folder


def command(folder: Path, arguments: str, streams: str = ">out", **environment: str) -> tuple[int, str]:
    """Run a command line with its streams as a shell sets them: (exit code, errors)."""
    line = f"{shlex.quote(sys.executable)} -m xor_study.run {arguments} {streams}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(streams: str, folder: Path) -> None:
    """Nothing that is printed may get into a file that has the number of a closed stream."""
    before = {path: path.read_bytes() for path in (folder / "été").glob("*.csv")}
    for arguments in ("--help", "show été", STUDY):
        assert command(folder, arguments, streams) == (0, "")
    assert command(folder, "show nothing", streams)[0] == 1
    assert {path: path.read_bytes() for path in (folder / "été").glob("*.csv")} == before


@pytest.mark.parametrize("arguments", ["--help choices", "show été", STUDY, f"{STUDY} dry_run=true"])
def test_an_ascii_console(arguments: str, folder: Path) -> None:
    assert command(folder, arguments, PYTHONIOENCODING="ascii", LC_ALL="C") == (0, "")
    text = (folder / "out").read_bytes()
    assert text.isascii()
    if "show" in arguments:
        assert rb"\xe9t\xe9/runs.csv" in text


def test_hydra_is_not_to_print_its_own_errors(folder: Path) -> None:
    code, err = command(folder, f"{STUDY} lr=0.3", HYDRA_FULL_ERROR="0")
    assert code == 1
    assert err.startswith("error: hydra.sweep.dir=été: ")
    assert "choose another folder" in err
    assert err.count("\n") == 1


def test_an_autopsy_keeps_to_standard_error(folder: Path) -> None:
    (folder / "program.py").write_text("import torch\nprint(torch.zeros(1).log().item())\n")
    assert command(folder, "autopsy program.py", ">out 2>&-") == (0, "")
    assert (folder / "out").read_text() == "-inf\n"
