"""The documentation: its commands run, its outputs are what they print, its links and docstring examples hold."""

import doctest
import functools
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from xor_study.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"", "bash", "elixir", "mermaid", "python", "text"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


documentation = load("documentation")
BLOCKS = [block for page in documentation.PAGES for block in documentation.blocks(page)]
NOW = [block for block in BLOCKS if not block.mark]


class PageRunner:
    """Runs a page's blocks in their order, for tests of which some may run in another process.

    Args:
        page: whose blocks.
        folder: to run them in.
    """

    def __init__(self, page: Path, folder: Path) -> None:
        self.runner = documentation.Runner(folder, main)
        self.left = [block for block in NOW if block.page == page]

    def run(self, block: object) -> str:
        """Run a block, after those above it that were not run yet, and return what it printed."""
        while self.left[0] is not block:
            self.runner.run(self.left.pop(0))
        return self.runner.run(self.left.pop(0))


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], PageRunner]:
    """Return a function that returns the only runner of a page."""
    return functools.cache(lambda page: PageRunner(page, tmp_path_factory.mktemp(page.stem)))


@pytest.mark.parametrize("block", NOW, ids=lambda block: block.name)
def test_blocks_run_and_print_what_the_page_says(block: object, runners: Callable[[Path], PageRunner]) -> None:
    printed = runners(block.page).run(block)
    if block.output is not None:
        assert documentation.words(documentation.shown(printed, block.output)) == documentation.words(block.output)


def test_every_block_is_run_or_says_why_not() -> None:
    for block in BLOCKS:
        assert block.mark in ("", "slow") or re.fullmatch(r"not run: .+", block.mark), block.name
    for page in documentation.PAGES:
        fences = re.findall(r"(.*)\n```(\w*)\n.*?^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        for before, language in fences:
            assert language in LANGUAGES
            assert language or before.endswith("-->"), f"{page.name}: a block of no language needs a mark"


def test_slow_blocks_ran_when_they_were_last_tried() -> None:
    record = json.loads((ROOT / "results/documentation/slow.json").read_text())
    tried = {entry["command"] for entry in record["commands"] if entry["ok"]}
    for block in BLOCKS:
        if block.mark == "slow":
            lines = block.code.splitlines()
            assert {line.partition("  #")[0].rstrip() for line in lines} <= tried, block.name


@pytest.mark.parametrize("page", documentation.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text())
    for file, anchor in targets:
        target = page.parent / file if file else page
        assert target.exists(), f"{file} in {page.name}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_readme_is_short_and_begins_with_its_two_commands() -> None:
    """.ci/run extracts the test command from the first block."""
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8000
    first = re.search(r"^```\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    assert first is not None
    assert first.start() == text.index("```")
    run, test = first[1].split("\n")
    assert run.startswith("python3 -m venv .venv && ")
    assert test.startswith("python3 -m venv .venv && ")
    assert test.endswith(".venv/bin/python -m pytest")


@pytest.mark.parametrize("page", documentation.PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    """A path may be written without the package's folder."""
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|md|csv|html|toml|c))(?::\d+)?`", page.read_text())
    made = {"runs.csv", "history.csv", "config.yaml"}  # by a run, in its folder
    made |= {"autopsy.html", "train.py"}  # by the autopsy, and by its user
    for name in {name for name in named if "NAME" not in name} - made:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "xor_study", page.parent)), name


OPTIONAL = [ROOT / f"xor_study/autopsy/{name}.py" for name in ("lightning", "transformers")]
"""Their own tests run their examples, where the libraries are installed."""

SOURCES = sorted({*(ROOT / "xor_study").rglob("*.py")} - {*OPTIONAL})
WITH_EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted
    assert results.failed == 0


def test_the_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert all(f"- {page.name}\n" in text for page in (ROOT / "docs").glob("*.md"))
