"""What a command imports before it answers: nothing that a person would wait for."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "pandas", "scipy", "matplotlib", "rich", "statsmodels", "llvmlite")

ANSWERS = {
    "--version": 0,
    "--help": 0,
    "--help choices": 0,
    "-sc query=bash": 0,
    "shw": 1,
    "lrr=0.1": 1,
    "lr=abc": 1,
    "optimizer=sdg": 1,
    "engine=lame": 1,
    "-m study=nothing": 1,
    "show --help": 0,
    "compare --help": 0,
    "compare folder": 1,
    "figures --help": 0,
    "autopsy --help": 0,
    "autopsy --evry": 1,
    "autopsy missing.py": 1,
    "postmortem --help": 0,
    "reproduce --help": 0,
    "conformance --help": 0,
}

CODE = """
import sys
from xor_study.run import main
try:
    main({arguments!r}.split())
finally:
    loaded = [name for name in {heavy!r} if name in sys.modules]
    print("loaded:", *loaded)
"""


@pytest.mark.parametrize("arguments", ANSWERS)
def test_a_quick_answer_imports_nothing_heavy(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "xor-study optimizer=ad")
    monkeypatch.setenv("COMP_POINT", "22")
    code = CODE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ANSWERS[arguments], done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout
    assert "Traceback" not in done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, xor_study; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
