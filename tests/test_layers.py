"""Who may import what: names and pure functions at the bottom, the command line at the top."""

import ast
from pathlib import Path

import pytest

from xor_study.engines.lanes.loops import TRACED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xor_study"

ORDER = [
    "errors",
    "files",
    "autopsy",
    "model",
    "training",
    "engines",
    "analysis",
    "figures",
    "sweeps",
    "study",
    "postmortem",
    "conformance",
    "reproduce",
    "run",
    "__main__",
]
"""Each folder or module may import those above it; docs/architecture.md says what each is for."""

ONLY_IN = {
    "hydra": {"sweeps"},
    "omegaconf": {"sweeps"},
    "matplotlib": {"figures"},
    "rich": {"sweeps"},
    "llvmlite": {"engines"},
    "filelock": {"sweeps"},
    "lightning": {"autopsy"},
    "transformers": {"autopsy"},
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


def folder(path: Path) -> str:
    """Return where a file belongs; what only starts a command line may be in any folder."""
    if path.name == "__main__.py":
        return "__main__"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_folder_is_in_the_order() -> None:
    assert {folder(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "xor_study" and rest and rest[0] in ORDER:
            assert ORDER.index(rest[0]) <= ORDER.index(folder(path)), name
        if top == "xor_study" and rest and rest[0] not in ORDER:
            assert rest == ["__version__"], f"{name}: import from the module that has it"
        assert folder(path) in ONLY_IN.get(top, {folder(path)}), name


def test_the_autopsy_knows_nothing_of_the_rest() -> None:
    names = {name for path in FILES if folder(path) == "autopsy" for name in imports(path)}
    assert all(name.startswith("xor_study.autopsy.") for name in names if name.startswith("xor_study"))


def test_figures_and_claims_know_no_torch() -> None:
    for path in [
        *(PACKAGE / "figures").glob("*.py"),
        *(PACKAGE / "study" / f"{name}.py" for name in ("claims", "report")),
    ]:
        assert not any(name.startswith("torch") for name in imports(path))


def test_a_traced_program_is_made_anew_when_its_sources_change() -> None:
    """The cache's key hashes whole folders: those that hold all modules that the engine imports by any way."""
    seen, todo = set(), {"engines.lanes.loops"}
    while todo:
        module = todo.pop()
        seen.add(module)
        path = PACKAGE / (module.replace(".", "/") + ".py")
        if path.is_file():
            names = {name.removeprefix("xor_study.") for name in imports(path) if name.startswith("xor_study.")}
            todo |= {name for long in names for name in (long, long.rpartition(".")[0]) if name} - seen
    files = {path for path in FILES if str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") in seen}
    own = {folder(path) for path in files if not path.is_relative_to(PACKAGE / "engines/lanes")}
    assert own - {"files"} == {name.removesuffix(".py") for name in TRACED}
