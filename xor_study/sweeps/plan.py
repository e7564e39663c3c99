"""From a command line to a checked table of runs.

A sweep is planned as columns: the configuration is composed once for each combination of group choices, and the other
axes are laid over it as data.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from xor_study.engines import check_compilable, check_device, check_engine
from xor_study.errors import StudyError, show
from xor_study.sweeps.compose import (
    CHOICES,
    CONFIG_NAME,
    VERSION_BASE,
    compose,
    composed,
    is_plain,
    is_users,
    leaves,
    no_parameter,
    read_file,
    register,
    study_of,
    values_of,
)
from xor_study.sweeps.overrides import (
    MOST_RUNS,
    axis,
    check_choice,
    check_choices,
    check_log,
    check_mode,
    is_data,
    merged,
    parse,
    refers,
    typed,
)
from xor_study.sweeps.settings import CONFIG_DIR, SETTINGS, STUDY
from xor_study.training.spec import FIELDS, KEYS, OWN, deciding_group, key_of, rules
from xor_study.training.table import distinct_rows, plain, table_of


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        table: the runs, checked and distinct.
        axes: the keys that the command line sweeps over, as given.
        engine, device, threads, log: for all of them.
        shards: jobs that the launcher is given, or None to train in this process.
        dry_run: whether to say what would run, and run nothing.
        duplicates: how many runs were dropped because they were asked for more than once.
    """

    table: pd.DataFrame
    axes: tuple[str, ...]
    engine: str
    device: str
    threads: int | None
    log: str
    shards: int | None
    dry_run: bool
    duplicates: int


@dataclass(frozen=True)
class _Grid:
    """One grid of a plan.

    Attributes:
        table: its checked runs, duplicates included.
        axes: the keys of which it has several values.
        settings: the values of SETTINGS.
    """

    table: pd.DataFrame
    axes: tuple[str, ...]
    settings: Mapping[str, Any]


def plan(loader: ConfigLoader, overrides: Sequence[str], *, sweep: bool, config_name: str = CONFIG_NAME) -> Plan:
    """Return the checked plan of a command line's overrides; nothing is written or trained.

    Args:
        loader: of the Hydra application.
        overrides: as typed, such as "lr=0.1,1" or "study=mechanism". A value beside a study replaces its axis.
        sweep: whether an override may be a sweep.
        config_name: the primary configuration.

    Raises:
        StudyError: if anything is wrong with any run.
    """
    lines = _lines(parse(overrides, loader), loader, config_name, sweep)
    grids = [_grid(loader, line, sweep, config_name) for line in lines]
    settings = _agreed([grid.settings for grid in grids])
    engine, device = settings["engine"], settings["device"]
    check_device(device)
    check_log(settings["log"], sweep)
    check_mode(settings["shards"], settings["dry_run"], sweep)
    check_engine(engine, device, settings["threads"])
    # Grids may overlap, and a list may repeat a value: each run is trained once.
    table = _joined([grid.table for grid in grids]) if len(grids) > 1 else grids[0].table
    cells, _ = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    repeated = pd.DataFrame({"cell": cells, "seed": table["seed"]}).duplicated()
    distinct = table[~repeated].reset_index(drop=True) if repeated.any() else table
    if engine == "lanes":  # asked for by name, so falling back to another engine would be wrong
        check_compilable(distinct, device)
    axes = tuple(dict.fromkeys(axis for grid in grids for axis in grid.axes if not is_users(axis)))
    return Plan(distinct, axes, **settings, duplicates=len(table) - len(distinct))


def _lines(parsed: Sequence[Override], loader: ConfigLoader, config_name: str, sweep: bool) -> list[list[Override]]:
    """Return the overrides of each grid: the studies' grids with what is typed beside them, or all that is typed."""
    beside = [override for override in parsed if override.key_or_group != STUDY]
    for override in parsed:
        if override.key_or_group == STUDY:
            text, names = str(override.input_line), axis(override, allowed=True)
            break
    else:
        name = study_of(loader, config_name, tuple(str(override.input_line) for override in beside))
        if name is None:
            return [beside]
        text, names = f"{STUDY}={name}", [name]
    if not sweep:
        raise StudyError(f"{show(text)}: a study is many runs; add -m (--multirun)")
    grids = [grid for name in names for grid in _grids_of_file(name, loader, config_name)]
    return [merged(parse(typed(grid), loader), beside) for grid in grids]


def _agreed(settings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the settings that all grids of a study have.

    Raises:
        StudyError: if they differ.
    """
    for name in SETTINGS:
        values = {setting[name] for setting in settings}
        if len(values) > 1:
            raise StudyError(f"{name}: the grids of a study must agree on it, not have {', '.join(map(show, values))}")
    return settings[0]


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return checked tables as one; rows that differ only in their seed are not checked again."""
    rows, positions, start = [], [], 0
    for table in tables:
        row_of, firsts = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
        rows.append(table.take(firsts).apply(plain))
        positions.append(row_of + start)
        start += len(firsts)
    joined = table_of(pd.concat(rows)).take(np.concatenate(positions)).reset_index(drop=True)
    joined["seed"] = np.concatenate([table["seed"] for table in tables])
    return joined


def study_table(overrides: Sequence[str]) -> pd.DataFrame:
    """Return the checked runs of a sweep that is planned outside a Hydra application.

    Raises:
        StudyError: if anything is wrong with any run.
    """
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base=VERSION_BASE):
        return plan(GlobalHydra.instance().config_loader(), overrides, sweep=True).table


def single(overrides: Sequence[str]) -> Plan:
    """Return the checked plan of one run that is planned outside a Hydra application.

    Raises:
        StudyError: if anything is wrong with it, or if an override is of no use to a run that leaves no folder.
    """
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        for override in parse(overrides, loader):
            text = show(override.input_line)
            if override.is_sweep_override() or override.key_or_group == STUDY:
                raise StudyError(f"{text}: several runs; give one")
            if override.is_hydra_override() or override.key_or_group == "log":
                raise StudyError(f"{text}: says what a run prints or leaves in a folder; nothing is to be set here")
        return plan(loader, overrides, sweep=False)


def _grids_of_file(
    name: str, loader: ConfigLoader, config_name: str, within: tuple[str, ...] = ()
) -> list[Mapping[str, Any]]:
    """Return the grids of a study file, or of the studies that it lists."""
    check_choice(STUDY, name, loader)
    if name in within:
        raise StudyError(f"{STUDY}={name}: its file lists itself, by way of {', '.join(within)}")
    content = _content(name, loader, config_name)
    grids, studies = content.get("grids"), content.get("studies")
    if isinstance(grids, list) and grids and all(isinstance(grid, dict) for grid in grids):
        return grids
    if not isinstance(studies, list) or not studies:
        must = "must have `grids`, a list of mappings from keys to values, or `studies`, a list of other files' names"
        raise StudyError(f"{STUDY}={name}: its file {must}")
    return [grid for study in studies for grid in _grids_of_file(str(study), loader, config_name, (*within, name))]


def _content(name: str, loader: ConfigLoader, config_name: str) -> Mapping[str, Any]:
    """Return a study file's only key with its value; nothing if it has several."""
    file = read_file(loader, f"{STUDY}/{name}")
    # Composing takes long and is needed only for a file that is made of others.
    whole = file is not None and "defaults" not in file.config
    config = file.config if file is not None and whole else compose(loader, config_name, [], {STUDY: name})[STUDY]
    content = OmegaConf.to_container(config)
    return (
        {str(key): value for key, value in content.items()} if isinstance(content, dict) and len(content) == 1 else {}
    )


def _grid(loader: ConfigLoader, parsed: Sequence[Override], sweep: bool, config_name: str) -> _Grid:
    """Return the runs of one grid, with its duplicates."""
    axes, fixed = _axes(loader, parsed, sweep, config_name)
    group_axes = {key: axes[key] for key in axes if key in CHOICES or is_users(key)}
    value_axes = {key: axes[key] for key in axes if key not in group_axes}
    strides = _strides(axes)
    configs = composed(loader, config_name, fixed, group_axes)
    # Runs that differ only in their seed differ in nothing that must be checked or resolved again.
    seeds = None if any(_references(config, axes) for config in configs) else value_axes.pop("seed", None)
    frames, positions = [], []
    for config, indices in zip(configs, itertools.product(*map(_indices, group_axes.values())), strict=True):
        values, settings = _values(config, axes)
        frames.append(_expand(config, values, value_axes))
        position = np.array([sum(strides[key] * index for key, index in zip(group_axes, indices, strict=True))])
        for key, given in value_axes.items():
            position = _spread(position, strides[key], len(given))
        positions.append(position)
    table, position = table_of(pd.concat(frames, ignore_index=True)), np.concatenate(positions)
    if seeds is not None:
        table = _with_seeds(table, seeds)
        position = _spread(position, strides["seed"], len(seeds))
    table = table.take(np.argsort(position)).reset_index(drop=True)
    return _Grid(table, tuple(key for key, given in axes.items() if len(given) > 1), settings)


def _axes(
    loader: ConfigLoader, parsed: Sequence[Override], sweep: bool, config_name: str
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the values of each axis, single values that can be laid over a composition included, and other overrides.

    Raises:
        StudyError: if a choice is unknown, or if there are too many runs.
    """
    as_data = is_plain(loader, config_name) and not any(
        refers(override) or is_users(override.key_or_group) for override in parsed
    )
    axes: dict[str, list[Any]] = {}
    fixed: list[str] = []
    for override in parsed:
        name = override.key_or_group
        key = str(override.get_key_element()) if is_users(name) else name  # such as "+experiment"
        if override.is_sweep_override() or (as_data and is_data(override)):
            axes[key] = axis(override, sweep)
        else:
            fixed.append(override.input_line or "")
        if key in axes:
            for value in axes[key]:
                check_choice(name, value, loader)
        else:
            check_choices([override], loader)
    runs = math.prod(map(len, axes.values()))
    if runs > MOST_RUNS:
        raise StudyError(f"{' '.join(axes)}: {runs} runs in one sweep, must be at most {MOST_RUNS}")
    return axes, fixed


def _values(config: DictConfig, axes: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a composition's fields of a run and its settings."""
    for key, value in list(leaves(config)):
        if value == "???" and key in axes:
            OmegaConf.update(config, key, axes[key][0])  # something, until the axis is laid over it
    values = values_of(config)
    return values, {name: values.pop(name) for name in SETTINGS}


def _indices(values: Sequence[Any]) -> range:
    return range(len(values))


def _spread(position: NDArray[np.intp], stride: int, count: int) -> NDArray[np.intp]:
    """Return the positions of runs in the order of a sweep when each is repeated for the values of one more axis."""
    return (position[:, None] + stride * np.arange(count)).reshape(-1)


def _with_seeds(table: pd.DataFrame, seeds: Sequence[Any]) -> pd.DataFrame:
    """Return a checked table with each row repeated for every seed."""
    if all(type(seed) is int for seed in seeds):
        for seed in (min(seeds), max(seeds)):
            OWN["seed"].check(seed, "seed")
    else:
        seeds = [OWN["seed"].check(seed, "seed") for seed in seeds]
    repeated = table.take(np.repeat(np.arange(len(table)), len(seeds)))
    repeated["seed"] = np.tile(np.array(seeds, np.int64), len(table))
    return repeated


def _expand(config: DictConfig, values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return the rows of one combination of groups: `values` everywhere, but for the axes."""
    for key in axes:
        if KEYS[key] not in values:
            group, _, name = key.partition(".")
            raise StudyError(no_parameter(group, str(values[group]), name))
    given = {field: [value] for field, value in values.items()} | {KEYS[key]: axes[key] for key in axes}
    for field, column in given.items():
        for value in column:
            if value != value:  # a table would take NaN for a missing value
                rules(field, str(values.get(deciding_group(field) or "")))[0].check(value, key_of(field))
    product = list(itertools.product(*axes.values()))
    columns = {field: [value] * len(product) for field, value in values.items()}
    columns |= {KEYS[key]: list(column) for key, column in zip(axes, zip(*product, strict=True), strict=True)}
    # Last: a value such as ${lr} must see the axes, which have replaced what was composed.
    columns |= _interpolated(config, axes, columns, len(product))
    return pd.DataFrame(columns, dtype=object)


def _interpolated(
    config: DictConfig, axes: Mapping[str, Sequence[Any]], columns: Mapping[str, list[Any]], rows: int
) -> dict[str, list[Any]]:
    """Return the columns of values that refer to others (`${...}`), resolved after the axes are laid over them."""
    raw = _references(config, axes)
    if not raw:
        return {}
    result: dict[str, list[Any]] = {field: [] for field in raw}
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    relative = any("${." in text for text in raw.values())
    named = {key: any(re.search(rf"\b{re.escape(key)}\b", text) for text in raw.values()) for key in axes}
    mentioned = [key for key in axes if relative or named[key] or KEYS[key] in raw]
    for row in range(rows):
        combination = tuple(columns[KEYS[key]][row] for key in mentioned)
        if combination not in seen:
            for key, value in zip(mentioned, combination, strict=True):
                OmegaConf.update(config, key, value)
            seen[combination] = values_of(config)
        for field in raw:
            result[field].append(seen[combination][field])
    return result


def _references(config: DictConfig, axes: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the values that refer to others, as they are written, by field; of an axis, all such values as one."""
    raw = [(key, value) for key, value in leaves(config) if key in KEYS and key not in axes]
    worded = [key for key in axes if key in KEYS and str in set(map(type, axes[key]))]
    raw += [(key, " ".join(filter(_is_reference, axes[key]))) for key in worded]
    return {KEYS[key]: value for key, value in raw if _is_reference(value)}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _strides(axes: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Return how far apart an axis's values lie in the order of runs: the last axis given varies fastest."""
    strides: dict[str, int] = {}
    stride = 1
    for key in reversed(list(axes)):
        strides[key] = stride
        stride *= len(axes[key])
    return strides
