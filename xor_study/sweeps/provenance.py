"""Provenance of a result: versions and commit."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import torch


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout this package lies in (with "-dirty" if it differs), or None outside one."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside the checkout of another project, whose commit says nothing about it.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    commit = git("rev-parse", "HEAD")
    sources = [str(package), str(package.parent / "conf"), str(package.parent / "hydra_plugins")]
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", *sources) else commit


def provenance() -> dict[str, str | None]:
    """Return the versions and the commit that a result comes from, as columns of `runs.csv`."""
    from xor_study import __version__

    return {"torch_version": torch.__version__, "package_version": __version__, "git_commit": git_commit()}
