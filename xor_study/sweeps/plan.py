"""From a command line to a checked table of runs.

A sweep is planned as columns: the configuration is composed once for each combination of group choices, and the other
axes are laid over it as data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from xor_study.sweeps.axes import UNSET, Design, Until, check_once, range_note, with_baselines
from xor_study.sweeps.compose import (
    CHOICES,
    CONFIG_NAME,
    VERSION_BASE,
    compose,
    composed,
    default_choice,
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
    check_format,
    check_log,
    check_mode,
    check_sweep,
    is_data,
    merged,
    parse,
    refers,
    typed,
)
from xor_study.sweeps.settings import CONFIG_DIR, SETTINGS, STUDY
from xor_study.training.spec import FIELDS, KEYS, OWN, deciding_group, rules
from xor_study.training.table import distinct_rows, plain, table_of


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes:
        table: the runs, checked and distinct.
        axes: the keys that the command line sweeps over, as given.
        engine, device, threads, log: for all of them.
        format: of the table of runs, one of FORMATS.
        shards: jobs that the launcher is given, or None to train in this process.
        dry_run: whether to say what would run, and run nothing.
        note: in the user's words, kept with the sweep.
        duplicates: how many runs were dropped because they were asked for more than once.
        remarks: on how a value was understood, as lines.
        until: how many seeds of each cell are added, where `table` has only the first ones; None where it has all.
    """

    table: pd.DataFrame
    axes: tuple[str, ...]
    engine: str
    device: str
    threads: int | None
    log: str
    shards: int | None
    format: str
    dry_run: bool
    note: str | None
    duplicates: int
    remarks: tuple[str, ...] = ()
    until: Until | None = None


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
    check_format(settings["format"], sweep)
    check_engine(engine, device, settings["threads"])
    # Grids may overlap, and a list may repeat a value: each run is trained once.
    table = _joined([grid.table for grid in grids]) if len(grids) > 1 else grids[0].table
    cells, _ = distinct_rows((table[field] for field in FIELDS if field != "seed"), len(table))
    repeated = pd.DataFrame({"cell": cells, "seed": table["seed"]}).duplicated()
    distinct = table[~repeated].reset_index(drop=True) if repeated.any() else table
    until = _until(lines)
    if until is not None:  # wherever the seed is typed: a round adds seeds to some cells only
        distinct = distinct.take(np.argsort(cells[~repeated.to_numpy()], kind="stable")).reset_index(drop=True)
    if engine == "lanes":  # asked for by name, so falling back to another engine would be wrong
        check_compilable(distinct, device)
    axes = tuple(dict.fromkeys(axis for grid in grids for axis in grid.axes if not is_users(axis)))
    remarks = tuple(dict.fromkeys(filter(None, (range_note(override) for line in lines for override in line))))
    return Plan(distinct, axes, **settings, duplicates=len(table) - len(distinct), remarks=remarks, until=until)


def _until(lines: Sequence[Sequence[Override]]) -> Until | None:
    """Return the rule by which all grids add seeds, or None.

    Raises:
        StudyError: if they differ in it.
    """
    rules = [next((one._value for one in line if isinstance(one._value, Until)), None) for line in lines]
    if any(rule != rules[0] for rule in rules):
        raise StudyError("seed: the grids of a study must agree on until(...)")
    return rules[0]


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
    check_once(parsed)
    given, fixed = _axes(loader, parsed, sweep, config_name)
    axes = with_baselines(given)
    default = partial(default_choice, loader, config_name, fixed)
    seeds = axes.get("seed")
    design = _Product.of({key: values for key, values in axes.items() if key != "seed"}, default)
    levels = design.levels | ({} if seeds is None else {"seed": seeds})
    configs = composed(loader, config_name, fixed, design.choices, design.combinations)
    # Runs that differ only in their seed differ in nothing that must be checked or resolved again.
    if any(_references(config, levels) for config in configs):
        design, seeds = _Product.of(axes, default), None
    frames = []
    for config, rows in zip(configs, design.members, strict=True):
        values, settings = _values(config, levels)
        frames.append(_expand(config, values, {key: design.column(key, rows) for key in design.values}))
    table = table_of(pd.concat(frames, ignore_index=True))
    table = table.take(np.argsort(np.concatenate(design.members))).reset_index(drop=True)
    if seeds is not None:
        order = list(axes)
        inner = math.prod(len(axes[key]) for key in order[order.index("seed") + 1 :])
        table = _with_seeds(table, seeds, inner)
    return _Grid(table, tuple(key for key, values in levels.items() if len(values) > 1), settings)


@dataclass(frozen=True)
class _Product:
    """Every combination of the values of some axes, as columns: the last axis varies fastest.

    Attributes:
        levels: the values of each key, each once, without UNSET.
        codes: for each key, which of its levels each combination has, -1 for UNSET; shape (combinations,).
        choices: the levels of the groups, where UNSET is the default choice.
        combinations: of choices, as far as there are any.
        members: which rows have each combination of choices, in ascending order.
    """

    levels: dict[str, list[Any]]
    codes: dict[str, NDArray[np.int32]]
    choices: dict[str, list[str]]
    combinations: list[list[str]]
    members: list[NDArray[np.intp]]

    @classmethod
    def of(cls, axes: Mapping[str, Sequence[Any] | Design], default: Callable[[str], str]) -> _Product:
        """Return the product of some axes.

        Args:
            axes: lists by key, and designs.
            default: returns the choice of a group that a design leaves unset.
        """
        rows = inner = math.prod(map(len, axes.values()))
        levels, codes = dict[str, list[Any]](), dict[str, NDArray[np.int32]]()
        for name, given in axes.items():
            inner //= len(given)
            at = np.arange(rows) // inner % len(given)
            for key, column in given.columns.items() if isinstance(given, Design) else [(name, given)]:
                own, levels[key] = _coded(column)
                if key in CHOICES and (own < 0).any():
                    levels[key] = [*levels[key], default(key)]
                    own = np.where(own < 0, len(levels[key]) - 1, own)
                codes[key] = own[at].astype(np.int32)
        choices = {key: levels[key] for key in levels if _is_group(key)}
        number = np.zeros(rows, np.intp)
        for key, names in choices.items():
            number = number * len(names) + codes[key]
        _, firsts, counts = np.unique(number, return_index=True, return_counts=True)
        members = np.split(np.argsort(number, kind="stable"), np.cumsum(counts)[:-1])
        combinations = [[names[codes[key][row]] for key, names in choices.items()] for row in firsts]
        return cls(levels, codes, choices, combinations, members)

    @property
    def values(self) -> list[str]:
        """The keys that are no groups."""
        return [key for key in self.levels if not _is_group(key)]

    def column(self, key: str, rows: NDArray[np.intp]) -> tuple[list[Any], NDArray[np.int32]]:
        """Return the levels of a key and which of them some combinations have."""
        return self.levels[key], self.codes[key][rows]


def _is_group(key: str) -> bool:
    return key in CHOICES or is_users(key)


def _coded(column: Sequence[Any]) -> tuple[NDArray[np.intp], list[Any]]:
    """Return which level each value is, -1 for UNSET, and the levels; True is not 1."""
    numbers: dict[Any, int] = {}
    unset = [value is UNSET for value in column]
    typed = [(type(value), str(value), value) for value, missing in zip(column, unset, strict=True) if not missing]
    codes = np.full(len(column), -1)
    codes[~np.array(unset, bool)] = [numbers.setdefault(one[:2], len(numbers)) for one in typed]
    return codes, list({one[:2]: one[2] for one in typed}.values())


def _axes(
    loader: ConfigLoader, parsed: Sequence[Override], sweep: bool, config_name: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of each axis, single values that can be laid over a composition included, and other overrides.

    Raises:
        StudyError: if a choice is unknown, or if there are too many runs.
    """
    as_data = is_plain(loader, config_name) and not any(
        refers(override) or is_users(override.key_or_group) for override in parsed
    )
    axes: dict[str, Any] = {}
    fixed: list[str] = []
    for override in parsed:
        name = override.key_or_group
        if isinstance(override._value, Design):
            check_sweep(override, sweep)
            axes[name] = override._value
            continue
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


def _with_seeds(table: pd.DataFrame, seeds: Sequence[Any], inner: int) -> pd.DataFrame:
    """Return a checked table with every `inner` rows repeated for every seed."""
    if all(type(seed) is int for seed in seeds):
        for seed in (min(seeds), max(seeds)):
            OWN["seed"].check(seed, "seed")
    else:
        seeds = [OWN["seed"].check(seed, "seed") for seed in seeds]
    blocks = np.arange(len(table)).reshape(-1, 1, inner)
    repeated = table.take(np.repeat(blocks, len(seeds), axis=1).reshape(-1)).reset_index(drop=True)
    repeated["seed"] = np.tile(np.repeat(np.array(seeds, np.int64), inner), len(blocks))
    return repeated


def _expand(
    config: DictConfig, values: Mapping[str, Any], axes: Mapping[str, tuple[Sequence[Any], NDArray[np.int32]]]
) -> pd.DataFrame:
    """Return the rows of one combination of groups: `values` everywhere, but for the axes.

    Args:
        config: composed for this combination.
        values: of its fields.
        axes: levels of each key, and which of them each row has, -1 for as it is composed.
    """
    rows = max((len(codes) for _, codes in axes.values()), default=1)
    columns: dict[str, Any] = {field: _filled(value, rows) for field, value in values.items()}
    given = {key: (levels, codes) for key, (levels, codes) in axes.items() if (codes >= 0).any()}
    as_written = dict(leaves(config))
    for key, (levels, codes) in given.items():
        if (codes < 0).any() and "${" in str(as_written.get(key)):
            raise StudyError(f"{key}={as_written[key]}: refers to other values; give the value that ofat is to vary")
        if KEYS[key] not in values:
            group, _, name = key.partition(".")
            raise StudyError(no_parameter(group, str(values[group]), name))
        field = KEYS[key]
        for value in (values[field], *levels):
            if value != value:  # a table would take NaN for a missing value
                rules(field, str(values.get(deciding_group(field) or "")))[0].check(value, key)
        columns[field] = _filled(values[field], len(levels) + 1)
        columns[field][:-1] = levels
        columns[field] = columns[field][codes]
    # Last: a value such as ${lr} must see the axes, which have replaced what was composed.
    columns |= _interpolated(config, {key: levels for key, (levels, _) in given.items()}, columns, rows)
    return pd.DataFrame(columns, dtype=object)


def _filled(value: Any, rows: int) -> NDArray[np.object_]:
    """Return an array of one value, whatever it is."""
    column = np.empty(rows, object)
    column[:] = [value] * rows if isinstance(value, list) else value
    return column


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
