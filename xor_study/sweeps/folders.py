"""The folder of a sweep: what its setting comes to, and the command that resumes what is in it."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from xor_study.errors import StudyError, one_line, show
from xor_study.sweeps.overrides import NAMED, quoted, unquoted
from xor_study.training.spec import GROUPS, KEYS

KEY = "hydra.sweep.dir"

_REFERENCE = re.compile(r"\$\{(?!now:)")
"""To anything but the time."""


def resolve(config: DictConfig, table: pd.DataFrame) -> str:
    """Return the folder of a sweep, and write it into the configuration for the launcher's jobs.

    Args:
        config: Hydra's configuration of the sweep, which knows nothing of the values of the runs.
        table: the planned runs. A value that all of them share may be referred to, as in "sweep_${lr}".

    Raises:
        StudyError: if it refers to a key that has several values.
    """
    given = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore[index, call-overload]
    folder = _laid_over(config, table, given) if _REFERENCE.search(given) else str(config.hydra.sweep.dir)
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(override(folder))
    return folder


def _laid_over(config: DictConfig, table: pd.DataFrame, given: str) -> str:
    """Return the folder of a sweep that is the same for all runs."""
    laid = copy.deepcopy(config)
    distinct = {key: table[field].unique() for key, field in KEYS.items()}
    several = {key: values for key, values in distinct.items() if len(values) > 1}
    try:
        with read_write(laid), open_dict(laid):
            for key, values in distinct.items():
                _lay(laid, key, values[0], several)
            folder = str(laid.hydra.sweep.dir)
            for key, values in several.items():
                _lay(laid, key, values[1], several)
                if laid.hydra.sweep.dir != folder:
                    raise StudyError(f"{KEY}={show(given)}: a sweep has one folder, and {key} has {len(values)} values")
                _lay(laid, key, values[0], several)
    except OmegaConfBaseException as error:
        raise StudyError(f"{KEY}={show(given)}: {one_line(error)}") from error
    return folder


def _lay(config: DictConfig, key: str, value: Any, several: Collection[str]) -> None:
    """Set a key of a configuration to a value from a table; of a group of several choices, the choice too."""
    plain = None if pd.isna(value) else getattr(value, "item", lambda: value)()
    OmegaConf.update(config, f"{key}.name" if key in GROUPS else key, plain, force_add=True)
    if key in several and (key in GROUPS or key in NAMED):
        OmegaConf.update(config, f"hydra.runtime.choices.{key.partition('.')[0]}", plain, force_add=True)


def override(folder: str | Path) -> str:
    """Return the override that sets the folder of a sweep, in quotes where Hydra would read it as anything else."""
    text = f"{KEY}={folder}"
    return text if str(_folder(text)) == str(folder) else f"{KEY}={quoted(str(folder))}"


def _folder(argument: str) -> Any:
    """Return the folder that an override sets, None if it sets anything else."""
    if not argument.lstrip("+").startswith(f"{KEY}="):
        return None
    try:
        return unquoted(OverridesParser.create().parse_override(argument).value())
    except HydraException:
        return ""


def command_in(folder: Path, command: Sequence[str]) -> str:
    """Return the command line that resumes the sweep in a folder: a given one, with this folder.

    Args:
        folder: where the sweep is now.
        command: as it was given, perhaps with a reference to the time, or before the folder was moved.
    """
    named = [_folder(argument) for argument in command]
    words = [
        argument if name is None or str(name) == str(folder) else override(folder)
        for argument, name in zip(command, named, strict=True)
    ]
    return shlex.join(words if any(name is not None for name in named) else [*words, override(folder)])


def moved(folder: Path, command: str) -> str:
    """Return the command line that a plan kept, with the folder that it is in now; as it is if it can't be read."""
    try:
        return command_in(folder, shlex.split(command))
    except ValueError:
        return command
