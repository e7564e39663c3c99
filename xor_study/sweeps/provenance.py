"""Provenance of a result: versions, commit, and a hash of the code that computes."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import torch

from xor_study.files import hash_of_sources

COMPUTING = ("model", "training", "engines")
"""The folders whose code decides the numbers of a run."""


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout this package lies in (with "-dirty" if it differs), or None outside one."""
    package = Path(__file__).resolve().parents[1]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # status would take the lock that a commit needs

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, env=environment
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside the checkout of another project, whose commit says nothing about it.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    commit = git("rev-parse", "HEAD")
    sources = [str(package), str(package.parent / "conf"), str(package.parent / "hydra_plugins")]
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", *sources) else commit


@cache
def code() -> str:
    """Return a hash of the code that decides the numbers of a run: 12 hexadecimal digits.

    It is there where a commit is not: outside of git, in another user's checkout, between two states that differ from
    the same commit.
    """
    return hash_of_sources(COMPUTING)[:12]


def provenance() -> dict[str, str | None]:
    """Return what a result comes from, as columns of the table of runs: versions, commit, code."""
    from xor_study import __version__

    versions = {"torch_version": torch.__version__, "package_version": __version__}
    return {**versions, "git_commit": git_commit(), "code": code()}
