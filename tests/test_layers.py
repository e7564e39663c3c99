"""Who may import what: names and pure functions at the bottom, the command line at the top."""

import ast
from pathlib import Path

import pytest

from xor_study.engines.lanes.loops import TRACED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xor_study"

ORDER = [
    "catalogue",
    "problems",
    "files",
    "autopsy",
    "activations",
    "initializers",
    "losses",
    "optimizers",
    "data",
    "network",
    "spec",
    "training",
    "outcome",
    "engines",
    "batches",
    "parts",
    "records",
    "sweep",
    "statistics",
    "cells",
    "mechanism",
    "conformance",
    "probes",
    "monitors",
    "claims",
    "figures",
    "report",
    "shares",
    "terminal",
    "look",
    "compose",
    "plan",
    "postmortem",
    "runner",
    "reproduce",
    "run",
    "__main__",
]
ONLY_IN = {
    "hydra": {"compose", "plan", "run"},
    "omegaconf": {"compose", "plan", "run"},
    "matplotlib": {"figures"},
    "rich": {"terminal"},
    "llvmlite": {"engines"},
    "filelock": {"parts", "sweep"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """Return where a file belongs; what only starts a command line may stand in any folder."""
    if path.name == "__main__.py":
        return "__main__"
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "xor_study" and rest and rest[0] in ORDER:
            assert ORDER.index(rest[0]) <= ORDER.index(room(path)), name
        if top == "xor_study" and rest and rest[0] not in ORDER:
            assert rest == ["__version__"], f"{name}: import from the module that has it"
        assert room(path) in ONLY_IN.get(top, {room(path)}), name


def test_the_autopsy_knows_nothing_of_the_rest() -> None:
    names = {name for path in FILES if room(path) == "autopsy" for name in imports(path)}
    assert all(name.startswith("xor_study.autopsy.") for name in names if name.startswith("xor_study"))


def test_figures_know_no_torch() -> None:
    for path in [*(PACKAGE / "figures").glob("*.py"), PACKAGE / "claims.py", PACKAGE / "report.py"]:
        assert not any(name.startswith("torch") for name in imports(path))


def test_a_traced_program_is_made_anew_when_its_sources_change() -> None:
    """The cache's key hashes all modules that the engine imports by any way, but for how files are written."""
    found, todo = set(), {"engines.lanes.loops"}
    while todo:
        module = todo.pop()
        found.add(module)
        path = PACKAGE / (module.replace(".", "/") + ".py")
        if path.is_file():
            names = {name.removeprefix("xor_study.") for name in imports(path) if name.startswith("xor_study.")}
            todo |= {name for long in names for name in (long, long.rpartition(".")[0]) if name} - found
    modules = {name for name in found if (PACKAGE / f"{name}.py").is_file()}
    assert modules - {"files"} == set(TRACED)
