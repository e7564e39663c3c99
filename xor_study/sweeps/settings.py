"""What a command line can set besides the fields of a run, and where the configuration is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SETTINGS = ("engine", "device", "threads", "log", "shards", "format", "dry_run", "note")
"""What is the same for a whole sweep and not part of a run."""

LOGS = ("epochs", "axon")
"""How the loss of a single run is printed: mean of each epoch, or the running mean that Axon's loop prints."""

FORMATS = {"csv": "runs.csv", "parquet": "runs.parquet"}
"""How a sweep's table of runs is written, and the file's name."""

MOST_SHARDS = 10**5

STUDY = "study"
"""The config group of named grids, for sweeps only."""

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Inside the package in a wheel, beside it in a checkout."""


@cache
def defaults() -> dict[str, Any]:
    """Return the default of each key, from the packaged configuration."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((CONFIG_DIR / "config.yaml").read_text())
    groups = [entry for entry in config["defaults"] if isinstance(entry, dict)]
    return config | {key: value for entry in groups for key, value in entry.items()}
