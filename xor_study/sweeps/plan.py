"""From a command line to a checked table of runs.

A sweep is planned as columns: the configuration is composed once for each combination of group choices, and the other
axes are laid over it as data.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xor_study.engines import check_compilable, check_device, check_engine
from xor_study.errors import StudyError, one_line, show, suggestion
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.sweeps.compose import (
    CHOICES,
    CONFIG_DIR,
    CONFIG_NAME,
    SETTINGS,
    STUDY,
    VERSION_BASE,
    compose,
    composed,
    hint,
    is_plain,
    leaves,
    no_parameter,
    options,
    read_file,
    register,
    values_of,
)
from xor_study.training.spec import DECLARED, FIELDS, GROUPS, KEYS, OWN, key_of
from xor_study.training.table import distinct_rows, plain, table_of

CALLABLES = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
"""Parts of Hydra's configuration whose values may name any function."""

MOST_SHARDS = 10**5

LOGS = ("epochs", "axon")
"""How the loss of a single run is printed."""


MOST_RUNS = 10**7
"""Of one sweep: about the memory that its table takes, 4 GB."""

NAMED: dict[str, Collection[str]] = {"activation.hidden": HIDDEN_ACTIVATIONS, "activation.output": OUTPUT_ACTIVATIONS}
"""Keys that are no group and whose values are names all the same."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        table: the runs, checked and distinct.
        axes: the keys that the command line sweeps over, as given.
        engine, device, threads, log: for all of them.
        shards: jobs that the launcher is given, or None to train in this process.
        dry_run: whether to say what would run, and run nothing.
        duplicates: how many runs were dropped because they stood twice.
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


def parse(overrides: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Return parsed overrides whose keys exist, later ones of the same key in place of earlier ones.

    Raises:
        StudyError: if one can't be parsed, has an unknown key or another form than key=value.
    """
    parser = OverridesParser.create(config_loader=loader)
    result: dict[str, Override] = {}
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise StudyError(f"{show(text)}: can't be read as key=value; put an odd value in quotes") from error
        key = override.key_or_group
        if override.is_hydra_override():
            _check_harmless(key, text)
        else:
            _check_key(override, text)
        result[key] = override
    return list(result.values())


def _check_harmless(key: str, text: str) -> None:
    """Raise StudyError if an override of Hydra's own configuration would name code to be run."""
    if "_target_" in text or key.lstrip("+~").startswith(CALLABLES):
        raise StudyError(f"{show(text)}: names code to be run, which no setting may; choose with hydra/launcher=...")


def _check_key(override: Override, text: str) -> None:
    key = override.key_or_group
    of_group = key in CHOICES or key == STUDY
    allowed = (OverrideType.CHANGE,) if of_group else (OverrideType.CHANGE, OverrideType.FORCE_ADD)
    if override.type not in allowed or override.package is not None:
        raise StudyError(f"{show(text)}: must be key=value")
    if of_group or key in SETTINGS or key in KEYS:
        return
    group, _, name = key.partition(".")
    if group in GROUPS and name == "name":
        raise StudyError(f"{show(key)}: unknown key; choose with {group}=...")
    raise StudyError(f"{show(key)}: unknown key{hint(key)}")


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
    parsed = parse(overrides, loader)
    own = [override.input_line or "" for override in parsed if override.key_or_group != STUDY]
    lines = [own]
    for override in parsed:
        if override.key_or_group == STUDY:
            lines = [grid + own for grid in _grids(override, loader, config_name, sweep)]
    grids = [_grid(loader, line, sweep, config_name) for line in lines]
    for name in SETTINGS:
        told = {getattr(grid, name) for grid in grids}
        if len(told) > 1:
            raise StudyError(f"{name}: the grids of a study must agree on it, not have {', '.join(map(show, told))}")
    axes = tuple(dict.fromkeys(axis for grid in grids for axis in grid.axes))
    table = _joined([grid.table for grid in grids]) if len(grids) > 1 else grids[0].table
    cells, _ = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    twice = pd.DataFrame({"cell": cells, "seed": table["seed"]}).duplicated()
    distinct = table[~twice].reset_index(drop=True) if twice.any() else table
    check_device(grids[0].device)
    check_log(grids[0].log, sweep)
    check_mode(grids[0].shards, grids[0].dry_run, sweep)
    check_engine(grids[0].engine, grids[0].device, grids[0].threads)
    if grids[0].engine == "lanes":
        check_compilable(distinct, grids[0].device)
    return replace(grids[0], table=distinct, axes=axes, duplicates=len(table) - len(distinct))


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return checked tables as one; rows that differ only in their seed are not checked again."""
    rows, places, start = [], [], 0
    for table in tables:
        row_of, firsts = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
        rows.append(table.take(firsts).apply(plain))
        places.append(row_of + start)
        start += len(firsts)
    joined = table_of(pd.concat(rows)).take(np.concatenate(places)).reset_index(drop=True)
    joined["seed"] = np.concatenate([table["seed"] for table in tables])
    return joined


def study_table(overrides: Sequence[str]) -> pd.DataFrame:
    """Return the checked runs of a sweep that is no Hydra application's.

    Raises:
        StudyError: if anything is wrong with any run.
    """
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base=VERSION_BASE):
        return plan(GlobalHydra.instance().config_loader(), overrides, sweep=True).table


def single(overrides: Sequence[str]) -> Plan:
    """Return the checked plan of one run that is no Hydra application's.

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


def for_hydra(overrides: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Return a sweep's overrides as Hydra takes them: a parameter of a group as a sweep over one value.

    Hydra composes what is fixed with the default groups before any sweeper sees the choices, and would refuse
    `optimizer=sgd,adam optimizer.weight_decay=0.1` where the default choice has no such parameter.
    """
    parsed = {override.input_line: override for override in parse(overrides, loader)}
    result = []
    for text in overrides:
        override = parsed.get(text)
        key, _, value = text.partition("=")
        fixed_parameter = override is not None and key in KEYS and "." in key and not override.is_sweep_override()
        result.append(f"{key}=choice({value})" if fixed_parameter else text)
    return result


def check_log(log: str, sweep: bool) -> None:
    """Raise StudyError unless a loss can be printed that way."""
    if log not in LOGS:
        raise StudyError(f"log={show(log)}: unknown{suggestion(str(log), LOGS)}")
    if sweep and log != LOGS[0]:
        raise StudyError(f"log={log}: prints the loss of a single run; leave it out of a sweep")


def check_mode(shards: Any, dry_run: Any, sweep: bool) -> None:
    """Raise StudyError unless a command can be run in so many shards, or not at all."""
    if not isinstance(dry_run, bool):
        raise StudyError(f"dry_run={show(dry_run)}: must be true or false")
    if shards is None:
        return
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MOST_SHARDS:
        raise StudyError(f"shards={show(shards)}: must be a whole number in [1, {MOST_SHARDS}]")
    if not sweep:
        raise StudyError(f"shards={shards}: a single run is not divided; add -m (--multirun)")


def _grids(override: Override, loader: ConfigLoader, config_name: str, sweep: bool) -> list[list[str]]:
    """Return the overrides that each grid of the named studies consists of."""
    if not sweep:
        raise StudyError(f"{show(override.input_line)}: a study is many runs; add -m (--multirun)")
    return [grid for name in _axis(override, allowed=True) for grid in _grids_of_file(name, loader, config_name)]


def _grids_of_file(name: str, loader: ConfigLoader, config_name: str, within: tuple[str, ...] = ()) -> list[list[str]]:
    """Return the grids of a study file, or of the studies that it lists."""
    _check_choice(STUDY, name, loader)
    read = read_file(loader, f"{STUDY}/{name}")
    whole = read is not None and "defaults" not in read.config
    config = read.config if read is not None and whole else compose(loader, config_name, [], {STUDY: name})[STUDY]
    found = OmegaConf.to_container(config)
    given = found if isinstance(found, dict) and len(found) == 1 else {}
    grids, studies = given.get("grids"), given.get("studies")
    if isinstance(grids, list) and grids and all(isinstance(grid, dict) for grid in grids):
        return [_line(grid) for grid in grids]
    if not isinstance(studies, list) or not studies:
        must = "must have `grids`, a list of mappings from keys to values, or `studies`, a list of other files' names"
        raise StudyError(f"{STUDY}={name}: its file {must}")
    if name in within:
        raise StudyError(f"{STUDY}={name}: its file lists itself, by way of {', '.join(within)}")
    deeper = (*within, name)
    return [grid for study in studies for grid in _grids_of_file(str(study), loader, config_name, deeper)]


def _line(grid: Mapping[str, Any]) -> list[str]:
    """Return a grid as overrides: a list is an axis, a text is what one would type."""
    typed = {None: "null", True: "true", False: "false"}

    def text(value: Any) -> str:
        return typed[value] if value is None or isinstance(value, bool) else str(value)

    return [
        f"{key}={','.join(map(text, value if isinstance(value, list) else [value]))}" for key, value in grid.items()
    ]


def _grid(loader: ConfigLoader, overrides: Sequence[str], sweep: bool, config_name: str) -> Plan:
    """Return the plan of one grid, with its duplicates."""
    parsed = parse(overrides, loader)
    as_data = is_plain(loader, config_name) and not any(_refers(override) for override in parsed)
    laid = [override for override in parsed if override.is_sweep_override() or (as_data and _is_data(override))]
    fixed = [override.input_line or "" for override in parsed if override not in laid]
    axes = {override.key_or_group: _axis(override, sweep) for override in laid}
    check_choices(parsed, loader)
    for key, given in axes.items():
        for value in given:
            _check_choice(key, value, loader)
    runs = math.prod(len(given) for given in axes.values())
    if runs > MOST_RUNS:
        raise StudyError(f"{' '.join(axes)}: {runs} runs in one sweep, must be at most {MOST_RUNS}")
    group_axes = [key for key in axes if key in CHOICES]
    value_axes = {key: axes[key] for key in axes if key not in CHOICES}
    strides = _strides(axes)
    combinations = list(itertools.product(*(enumerate(axes[key]) for key in group_axes)))
    configs = composed(loader, config_name, fixed, {key: axes[key] for key in group_axes})
    seeds = None if any(_references(config, axes) for config in configs) else value_axes.pop("seed", None)
    frames, places, settings = [], [], {}
    for config, combination in zip(configs, combinations, strict=True):
        for key in [key for key, value in leaves(config) if value == "???" and key in axes]:
            OmegaConf.update(config, key, axes[key][0])  # something, until the axis is laid over it
        values = values_of(config)
        settings = {name: values.pop(name) for name in SETTINGS}
        frames.append(_expand(config, values, value_axes))
        place = np.array([sum(strides[key] * at for key, (at, _) in zip(group_axes, combination, strict=True))])
        for key, given in value_axes.items():
            place = (place[:, None] + strides[key] * np.arange(len(given))).reshape(-1)
        places.append(place)
    table, place = table_of(pd.concat(frames, ignore_index=True)), np.concatenate(places)
    if seeds is not None:  # they differ in nothing that is to be checked again
        for seed in seeds if not all(type(seed) is int for seed in seeds) else (min(seeds), max(seeds)):
            OWN["seed"].check(seed, "seed")
        place = (place[:, None] + strides["seed"] * np.arange(len(seeds))).reshape(-1)
        table = table.take(np.repeat(np.arange(len(table)), len(seeds)))
        table["seed"] = np.tile(np.array(seeds, np.int64), len(table) // len(seeds))
    table = table.take(np.argsort(place)).reset_index(drop=True)
    varied = tuple(key for key, given in axes.items() if len(given) > 1)
    return Plan(table, varied, **settings, duplicates=0)


def _is_data(override: Override) -> bool:
    """Return whether an override is a value that can be laid over any composition, as an axis of one."""
    key, value = override.key_or_group, _plain(override.value())
    own = key in CHOICES or (key in KEYS and "." not in key)
    return own and isinstance(value, str | int | float | None)


def _refers(override: Override) -> bool:
    return not override.is_sweep_override() and "${" in str(override.value())


def _axis(override: Override, allowed: bool) -> list[Any]:
    """Return the values of a sweep in the order given, or the only one."""
    if not override.is_sweep_override():
        return [_plain(override.value())]
    key, text = override.key_or_group, override.input_line or ""
    if not allowed:
        raise StudyError(f"{show(text)}: several values; add -m (--multirun) to run them all")
    if override.is_hydra_override() or key in SETTINGS:
        raise StudyError(f"{show(text)}: {key} has one value for the whole sweep")
    if override.is_interval_sweep() or not override.is_discrete_sweep():
        raise StudyError(
            f"{show(text)}: needs another sweeper; here use a list (a,b,c), range(start,stop,step) or glob(*)"
        )
    given = override._value
    if isinstance(given, Glob) and key not in (*CHOICES, STUDY):
        if key not in NAMED:
            raise StudyError(f"{show(text)}: glob chooses among names ({', '.join([*CHOICES, *NAMED])})")
        override = replace(override, _value=ChoiceSweep(list=given.filter(list(NAMED[key]))))
    try:
        lazy = given.range() if isinstance(given, RangeSweep) and not given.shuffle else None
        iterator = iter(lazy) if lazy is not None else override.sweep_iterator()
        values = [_plain(value) for value in itertools.islice(iterator, MOST_RUNS + 1)]
    except (HydraException, ValueError, ZeroDivisionError) as error:
        raise StudyError(f"{show(text)}: {one_line(error)}") from error
    if not values:
        raise StudyError(f"{show(text)}: an empty sweep, nothing to run")
    if len(values) > MOST_RUNS:
        raise StudyError(f"{show(text)}: more than {MOST_RUNS} values")
    return values


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def check_choices(parsed: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise StudyError unless every group that is set to one choice has it."""
    for override in parsed:
        if not override.is_sweep_override():
            _check_choice(override.key_or_group, _plain(override.value()), loader)


def _check_choice(key: str, value: Any, loader: ConfigLoader) -> None:
    if key in (*CHOICES, STUDY):
        known = options(loader, key)
        if value not in known:
            end = suggestion(str(value), known) if key != "activation" else _activation_hint(str(value), known)
            raise StudyError(f"{key}={show(value)}: unknown{end}")


def _activation_hint(value: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(value if "_" in value else f"{value}_sigmoid", known, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    hidden, output = ", ".join(HIDDEN_ACTIVATIONS), ", ".join(OUTPUT_ACTIVATIONS)
    return f"{guess} (known: HIDDEN_OUTPUT with HIDDEN one of {hidden} and OUTPUT one of {output})"


def _expand(config: DictConfig, values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return the rows of one combination of groups: `values` everywhere, but for the axes."""
    for key, given in axes.items():
        field = KEYS[key]
        if field not in values:
            group, _, name = key.partition(".")
            raise StudyError(no_parameter(group, str(values[group]), name))
        for value in given:
            check_value(field, value, values)
    for field, value in values.items():
        check_value(field, value, values)
    product = list(itertools.product(*axes.values()))
    columns = {field: [value] * len(product) for field, value in values.items()}
    columns |= {KEYS[key]: list(column) for key, column in zip(axes, zip(*product, strict=True), strict=True)}
    columns |= _interpolated(config, axes, columns, len(product))
    return pd.DataFrame(columns, dtype=object)


def check_value(field: str, value: Any, values: Mapping[str, Any]) -> None:
    """Raise StudyError unless a field may be `value` where the groups are as in `values`; None is always allowed."""
    if value is None:
        return
    choices = DECLARED.get(field)
    allowed = OWN[field] if choices is None else choices[values[field.split("_", 1)[0]]]
    allowed.check(value, key_of(field))


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
    mentioned = [key for key in axes if relative or named[key]]
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
    """Return the values that refer to others, as they are written, by field."""
    raw = [(key, value) for key, value in leaves(config) if key in KEYS and key not in axes]
    return {KEYS[key]: value for key, value in raw if isinstance(value, str) and "${" in value}


def _strides(axes: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Return how far apart an axis's values lie in the order of runs: the last axis given varies fastest."""
    strides: dict[str, int] = {}
    stride = 1
    for key in reversed(list(axes)):
        strides[key] = stride
        stride *= len(axes[key])
    return strides
