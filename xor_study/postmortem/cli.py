"""The command line: `python -m xor_study.autopsy [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from xor_study import figures
from xor_study.errors import StudyError, in_one_line, show
from xor_study.postmortem.replay import Settings
from xor_study.postmortem.story import Postmortem, examine
from xor_study.sweeps import plan, terminal
from xor_study.training.spec import RunSpec, key_of
from xor_study.training.table import plain

KINDS = (".png", ".pdf")
MOST_SEEDS = 10_000


def main() -> None:
    """Examine the run that the command line asks for; end with exit code 1 and one line if it can't be done."""
    parser = argparse.ArgumentParser(
        prog="python -m xor_study.autopsy",
        description="What became of a run, link by link, and what would have prevented it.",
        epilog="Example: python -m xor_study.autopsy loss=axon_0_6_1 seed=109",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m xor_study.run")
    parser.add_argument("--json", action="store_true", help="print all that is in the story as JSON")
    parser.add_argument("--figure", metavar="PATH", help="draw the last steps: .png, .pdf, or both without a suffix")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="seeds of each switch (default: 100, where they can be compiled; else 0)"
    )
    options = parser.parse_args()
    with in_one_line():
        story = _examined(options)
        print(json.dumps(story.as_dict(), indent=2, allow_nan=False) if options.json else story.text)


def _examined(options: argparse.Namespace) -> Postmortem:
    if options.seeds is not None and not 0 <= options.seeds <= MOST_SEEDS:
        raise StudyError(f"--seeds={options.seeds}: must be in [0, {MOST_SEEDS}]")
    planned = plan.single(options.overrides)
    suffixes = _check_figure(options.figure) if options.figure is not None else ()
    with terminal.progress_bar(1) as follow:
        settings = Settings(planned.engine, planned.device, planned.threads, follow)
        spec = RunSpec.from_row(planned.table.apply(plain).rename(columns=key_of).iloc[0])
        story = examine(spec, " ".join(options.overrides) or "the article's network", settings, options.seeds)
    if suffixes:
        drawn = figures.last_steps(story.title, story.found.history, story.history, story.corners, story.marks)
        figures.save(drawn, Path(options.figure), suffixes)
    return story


def _check_figure(name: str) -> tuple[str, ...]:
    """Return the kinds of file to draw into.

    Raises:
        StudyError: if there is no such kind, or no such folder, or nothing can be written there.
    """
    path = Path(name)
    if not path.name or path.suffix not in ("", *KINDS):
        raise StudyError(f"--figure={show(name)}: must end in {' or '.join(KINDS)}, or have no suffix for both")
    if not path.parent.is_dir():
        raise StudyError(f"--figure={show(name)}: {show(path.parent)} is no folder")
    kinds = (path.suffix,) if path.suffix else KINDS
    for target in (path.with_suffix(kind) for kind in kinds):
        if target.is_dir():
            raise StudyError(f"--figure={show(name)}: {show(target)} is a folder")
    try:
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".xor_study").cleanup()
    except OSError as error:
        raise StudyError(f"--figure={show(name)}: can't write there ({error.strerror})") from error
    return kinds
