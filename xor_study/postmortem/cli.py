"""The command line: `xor-study postmortem [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xor_study.errors import Parser, StudyError, in_one_line, show

if TYPE_CHECKING:
    from xor_study.postmortem.story import Postmortem

KINDS = (".png", ".pdf")
MOST_SEEDS = 10_000


def main(argv: Sequence[str] | None = None) -> None:
    """Examine a run; end with exit code 1 and one line if that can't be done.

    Args:
        argv: the arguments, without the command's name; those of the process if None.
    """
    parser = Parser(
        prog="xor-study postmortem",
        description="Explain how a run ended, link by link, and what would have prevented its failure.",
        epilog="Example: xor-study postmortem loss=axon_0_6_1 seed=109",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the run's settings, as for xor-study")
    parser.add_argument("--json", action="store_true", help="print the story and the measures behind it as JSON")
    parser.add_argument("--figure", metavar="PATH", help="draw the last steps: .png, .pdf, or both without a suffix")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="seeds per switch (default: 100 if the run can be compiled, else 0)"
    )
    with in_one_line():
        options = parser.parse_args(argv)
        story = _examined(options)
        print(json.dumps(story.as_dict(), indent=2, allow_nan=False) if options.json else story.text)


def _examined(options: argparse.Namespace) -> Postmortem:
    if options.seeds is not None and not 0 <= options.seeds <= MOST_SEEDS:
        raise StudyError(f"--seeds={options.seeds}: must be in [0, {MOST_SEEDS}]")
    suffixes = _check_figure(options.figure) if options.figure is not None else ()
    # These load torch, pandas and hydra: a wrong option is answered before.
    from xor_study.sweeps import plan, terminal

    planned = plan.single(options.overrides)
    from xor_study.postmortem.replay import Settings
    from xor_study.postmortem.story import examine
    from xor_study.training.spec import RunSpec, key_of
    from xor_study.training.table import plain

    with terminal.progress_bar(1) as follow:
        settings = Settings(planned.engine, planned.device, planned.threads, follow)
        spec = RunSpec.from_row(planned.table.apply(plain).rename(columns=key_of).iloc[0])
        story = examine(spec, " ".join(options.overrides) or "the article's network", settings, options.seeds)
    if suffixes:
        _draw(story, Path(options.figure), suffixes)
    return story


def _draw(story: Postmortem, path: Path, suffixes: tuple[str, ...]) -> None:
    from xor_study import figures
    from xor_study.training.spec import KEYS

    values = {key: getattr(story.run.spec, name) for key, name in KEYS.items()}
    title = figures.run_title({**values, "outcome": story.run.outcome})
    drawn = figures.last_steps(title, story.run.history, story.history, story.corners, story.marks)
    figures.save(drawn, path, suffixes, title=title)


def _check_figure(name: str) -> tuple[str, ...]:
    """Return the suffixes of the files to draw.

    Raises:
        StudyError: if there is no such format or folder, or nothing can be written there.
    """
    path = Path(name)
    if not path.name or path.suffix not in ("", *KINDS):
        raise StudyError(f"--figure={show(name)}: must end in {' or '.join(KINDS)}, or have no suffix for both")
    if not path.parent.is_dir():
        raise StudyError(f"--figure={show(name)}: {show(path.parent)} is not a folder")
    suffixes = (path.suffix,) if path.suffix else KINDS
    for target in (path.with_suffix(suffix) for suffix in suffixes):
        if target.is_dir():
            raise StudyError(f"--figure={show(name)}: {show(target)} is a folder")
    try:
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".xor_study").cleanup()
    except OSError as error:
        raise StudyError(f"--figure={show(name)}: can't write there ({error.strerror})") from error
    return suffixes
