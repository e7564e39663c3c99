"""Run the code blocks of README, CONTRIBUTING and docs: python scripts/documentation.py {--slow,--update}.

A block in a language of `RUN` is run unless an HTML comment before it says otherwise: `<!-- slow -->` leaves it to
`--slow`, `<!-- not run: REASON -->` to the reader. A block after `<!-- output -->` has what the block before it prints.
`tests/test_docs.py` runs all others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

from xor_study.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "bash")
SCRIPT = "train.py"
"""The file name of Python blocks, in tracebacks and in an autopsy's story."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file it is in.
        line: the number of its first line.
        language: as given after the fence.
        code: its text.
        mark: the comment on the line before it, such as "slow"; or "".
        output: of the block marked as its output, the text; or None.
        span: where that text is in the page.
    """

    page: Path
    line: int
    language: str
    code: str
    mark: str
    output: str | None
    span: tuple[int, int]

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.line}"


_MARK = re.compile(r"<!-- (.*) -->\n\Z")
_OUTPUT = re.compile(r"<!-- output -->\n```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in languages of `RUN`, in order."""
    document = Sybil([CodeBlockParser(language, _nothing) for language in RUN]).parse(page)
    examples = sorted(document.examples(), key=lambda example: example.start)
    ends = [*(example.start for example in examples), len(document.text)][1:]
    return [_block(page, document.text, example, end) for example, end in zip(examples, ends, strict=True)]


def _nothing(example: Example) -> None:
    """Run nothing: only sybil's parser is used, since an example's output is compared here."""


def _block(page: Path, text: str, example: Example, end: int) -> Block:
    mark, output = _MARK.search(text, 0, example.start), _OUTPUT.search(text, example.end, end)
    language = text[example.start :].partition("\n")[0].strip("`")
    printed, span = (output[1], output.span(1)) if output else (None, (0, 0))
    return Block(page, example.line, language, str(example.parsed), mark[1] if mark else "", printed, span)


def run_python(code: str, namespace: dict[str, Any]) -> None:
    """Run a block as if it were the file `SCRIPT`, whose lines an autopsy can show."""
    linecache.cache[SCRIPT] = (len(code), None, code.splitlines(keepends=True), SCRIPT)
    exec(compile(code, SCRIPT, "exec"), namespace)


def run_bash(code: str, folder: Path, main: Callable[[], None]) -> None:
    """Run a block's `xor-study` commands in this process, without importing torch for each, and others in a shell.

    Args:
        code: of the block.
        folder: the working directory.
        main: the command line's entry point, which reads `sys.argv`.
    """
    for line in code.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["xor-study"] and words[1:2] != ["autopsy"]:
            with contextlib.chdir(folder):
                _call(main, words)
        elif words:  # also `autopsy`, which takes the process over
            print(shell(line, folder).replace(f"{folder.resolve()}{os.sep}", ""), end="")


def _call(main: Callable[[], None], words: list[str]) -> None:
    given, sys.argv = sys.argv, words
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"{shlex.join(words)}: exit code {end.code}") from end
    finally:
        sys.argv = given


def shell(code: str, folder: Path) -> str:
    """Run a block in bash, with this Python's commands first on the path, and return all that it prints.

    Raises:
        subprocess.CalledProcessError: if any of its commands fails.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command, environment = ["bash", "-euo", "pipefail", "-c", code], os.environ | {"PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    done.check_returncode()
    return done.stdout


_ABOVE = re.compile(rf"(  |# )called from (?!{re.escape(SCRIPT)}:)")
"""A line of an autopsy's story about what called the block: this file and what runs it."""


class Runner:
    """Runs a page's blocks one after another: they share a folder and, in Python, names.

    Args:
        folder: the working directory; it is given the checkout's `scripts` and `tests`, which commands may name.
        main: the command line's entry point.
    """

    def __init__(self, folder: Path, main: Callable[[], None]) -> None:
        self.folder, self.main = folder, main
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        for name in ("scripts", "tests"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> str:
        """Run a block and return what it printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python":
                (self.folder / SCRIPT).write_text(block.code)  # for commands in later blocks
                with contextlib.chdir(self.folder):
                    run_python(block.code, self.namespace)
            else:
                run_bash(block.code, self.folder, self.main)
        return "".join(line for line in printed.getvalue().splitlines(keepends=True) if not _ABOVE.match(line))


def shown(printed: str, output: str) -> str:
    """Return what a page shows of a printed text: all of it, or as many lines as before if `output` ends with `...`."""
    lines = output.splitlines(keepends=True)
    if lines[-1].strip() != "...":
        return printed
    return "".join([*printed.splitlines(keepends=True)[: len(lines) - 1], lines[-1]])


def words(text: str) -> list[str]:
    """Return a text's words with `#` for each number: other processors round differently."""
    return re.sub(r"-?\d[\d.,e+-]*", "#", text).split()


def update(main: Callable[[], None]) -> Iterator[str]:
    """Write what blocks print into the pages, where a page has it, and yield the names of the blocks that changed."""
    for page in PAGES:
        if not any(block.output is not None for block in blocks(page)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(Path(folder), main)
            printed = [(block, runner.run(block)) for block in blocks(page) if not block.mark]
        text = page.read_text()
        for block, now in reversed(printed):  # from the end, so that earlier spans stay right
            if block.output is None:
                continue
            new = shown(now, block.output)
            if words(new) != words(block.output):
                text = text[: block.span[0]] + new + text[block.span[1] :]
                yield block.name
        page.write_text(text)


def slow() -> dict[str, Any]:
    """Run the slow blocks of all pages in a clone of the last commit, and return the record of all commands."""
    results = []
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "xor_study"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        os.environ["PYTHONPATH"] = str(clone)
        for block in (block for page in PAGES for block in blocks(page) if block.mark == "slow"):
            for line in block.code.replace("\\\n", "").splitlines():
                begun = time.monotonic()
                try:
                    shell(line, clone)
                    succeeded = True
                except subprocess.CalledProcessError:
                    succeeded = False
                command = line.partition("  #")[0].rstrip()
                seconds = round(time.monotonic() - begun, 1)
                results.append({"page": block.page.name, "command": command, "seconds": seconds, "ok": succeeded})
    version = importlib.metadata.version("xor-study")
    return {"version": version, "commit": commit.stdout.strip(), "commands": results}


def main() -> None:
    """Run what is asked for; end with exit code 1 if a command fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="run slow blocks; write results/documentation/slow.json")
    parser.add_argument("--update", action="store_true", help="write outputs into the pages where their words differ")
    options = parser.parse_args()
    if options.update:
        from xor_study.__main__ import main as command

        print(*update(command), sep="\n")
    if options.slow:
        record = slow()
        text = json.dumps(record, indent=1) + "\n"
        path = ROOT / "results/documentation/slow.json"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda stream: stream.write(text.encode()))
        sys.exit(0 if all(entry["ok"] for entry in record["commands"]) else 1)


if __name__ == "__main__":
    main()
