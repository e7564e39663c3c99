"""From a command line to a checked table of runs.

Choices of groups become Hydra nodes here (`register`), made from the catalogues. A sweep is planned as columns: the
configuration is composed once for each combination of group choices, and the other axes are laid over it as data.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from xor_study.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.catalogue import StudyError, show, suggestion
from xor_study.engines import check_compilable, check_device, check_engine
from xor_study.problems import one_line
from xor_study.spec import DECLARED, FIELDS, GROUPS, KEYS, OWN, distinct_rows, key_of, plain, table_of

CONFIG_NAME, VERSION_BASE = "config", "1.3"
SETTINGS = ("engine", "device", "threads", "log", "shards", "dry_run")
"""What is the same for a whole sweep and no part of a run."""

CALLABLES = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
"""Parts of Hydra's configuration whose values may name any function."""

MOST_SHARDS = 10**5

LOGS = ("epochs", "axon")
"""How the loss of a single run is printed."""

CHOICES = (*GROUPS, "activation")
"""Hydra's config groups of this package."""

MOST_RUNS = 10**7
"""Of one sweep: about the memory that its table takes, 4 GB."""

NAMED: dict[str, Collection[str]] = {"activation.hidden": HIDDEN_ACTIVATIONS, "activation.output": OUTPUT_ACTIVATIONS}
"""Keys that are no group and whose values are names all the same."""

STUDY = "study"
"""The config group of named grids, for sweeps only."""

PROVIDER = "xor_study"
"""Of the choices that are made of the catalogues, to Hydra."""

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
"""Beside this file in a wheel, beside the package in a checkout."""

ALIASES = {
    "learning_rate": "lr",
    "rate": "lr",
    "optimizer.lr": "lr",
    "opt": "optimizer",
    "initializer": "init",
    "initialization": "init",
    "weight_init": "init",
    "loss_fn": "loss",
    "criterion": "loss",
    "hidden_activation": "activation.hidden",
    "output_activation": "activation.output",
    "nonlinearity": "activation.hidden",
    "clipping": "clip",
    "gradient_clipping": "clip",
    "max_norm": "clip.bound",
    "width": "hidden",
    "hidden_size": "hidden",
    "units": "hidden",
    "batch_size": "batch",
    "n_epochs": "epochs",
    "steps": "iterations",
    "precision": "dtype",
    "random_seed": "seed",
    "seeds": "seed",
    "gpu": "device",
}
"""Other names that people use, for the hint in a message; nothing is accepted under them."""


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


def register() -> None:
    """Make a Hydra choice of every entry of the catalogues, holding its parameters with their defaults."""
    store = ConfigStore.instance()
    for group, catalogue in GROUPS.items():
        for name in catalogue:
            parameters = {key: found.default for key, found in catalogue.parameters(name).items()}
            store.store(group=group, name=name, node={"name": name, **parameters}, provider=PROVIDER)
        for name, preset in catalogue.presets.items():
            node = {"name": preset.name, **preset.parameters}
            store.store(group=group, name=name, node=node, provider=PROVIDER)
    for hidden, output in itertools.product(HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS):
        node = {"hidden": hidden, "output": output}
        store.store(group="activation", name=f"{hidden}_{output}", node=node, provider=PROVIDER)


def values_of(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as one flat dictionary: fields of a run and settings.

    Raises:
        StudyError: if a value is missing, refers to something unknown, or is no single value.
    """
    try:
        nested = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise StudyError(f"{error.full_key}: {one_line(error)}") from error
    assert isinstance(nested, dict)
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and key in CHOICES:
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    for group in GROUPS:
        flat[group] = flat.pop(f"{group}.name", None)
        if not isinstance(flat[group], str):
            raise StudyError(f"{group}: its configuration has no name (known: {', '.join(GROUPS[group])})")
    for key, value in flat.items():
        if key not in KEYS and key not in SETTINGS:
            raise StudyError(f"{key}: unknown key{_hint(key)}")
        if isinstance(value, dict | list):
            raise StudyError(f"{key}={show(value)}: must be one value")
    return {KEYS.get(key, key): value for key, value in flat.items()}


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", STUDY)])


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
    raise StudyError(f"{show(key)}: unknown key{_hint(key)}")


def _hint(key: str) -> str:
    """Return the end of a message about an unknown key: the nearest key, or all that stand at top level."""
    known = list(dict.fromkeys([*CHOICES, *KEYS, *SETTINGS, STUDY]))
    guesses = [ALIASES[key]] if key in ALIASES else [k for k in known if key and k.partition(".")[2] == key]
    guesses = guesses or difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key, ALIASES, n=1)
    if guesses:
        return f"; did you mean {' or '.join(dict.fromkeys(ALIASES.get(guess, guess) for guess in guesses))}?"
    return suggestion(key, sorted({k for k in known if "." not in k}))


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
    read = _read(loader, f"{STUDY}/{name}")
    whole = read is not None and "defaults" not in read.config
    config = read.config if read is not None and whole else _compose(loader, config_name, [], {STUDY: name})[STUDY]
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
    as_data = _is_plain(loader, config_name) and not any(_refers(override) for override in parsed)
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
    configs = _composed(loader, config_name, fixed, {key: axes[key] for key in group_axes})
    seeds = None if any(_references(config, axes) for config in configs) else value_axes.pop("seed", None)
    frames, places, settings = [], [], {}
    for config, combination in zip(configs, combinations, strict=True):
        for key in [key for key, value in _leaves(config) if value == "???" and key in axes]:
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


@lru_cache(maxsize=64)
def _is_plain(loader: ConfigLoader, config_name: str) -> bool:
    """Return whether a primary configuration only lists groups and gives single values to keys outside them.

    Then a choice brings its group's node and nothing else, and a value can be laid over the configuration instead of
    being composed into it. Others, of a user, may refer to values, leave them open, or change a group's node.
    """
    read = _read(loader, config_name)
    if read is None or any(read.header.values()):
        return False
    found = OmegaConf.to_container(read.config)
    assert isinstance(found, dict)

    def given(value: Any) -> bool:
        return not isinstance(value, dict | list) and value != "???" and "${" not in str(value)

    def listed(entry: Any) -> bool:
        groups = list(entry.items()) if isinstance(entry, dict) else []
        known = all(key in (*CHOICES, STUDY) or str(key).startswith("override hydra/") for key, _ in groups)
        return entry == "_self_" or (known and all(given(name) for _, name in groups))

    values = {key: value for key, value in found.items() if key not in ("defaults", "hydra")}
    known = all(key in SETTINGS or (key in KEYS and "." not in key) for key in values)
    return known and all(map(given, values.values())) and all(map(listed, found.get("defaults", [])))


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
        known = _options(loader, key)
        if value not in known:
            end = suggestion(str(value), known) if key != "activation" else _activation_hint(str(value), known)
            raise StudyError(f"{key}={show(value)}: unknown{end}")


def _activation_hint(value: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(value if "_" in value else f"{value}_sigmoid", known, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    hidden, output = ", ".join(HIDDEN_ACTIVATIONS), ", ".join(OUTPUT_ACTIVATIONS)
    return f"{guess} (known: HIDDEN_OUTPUT with HIDDEN one of {hidden} and OUTPUT one of {output})"


def _composed(
    loader: ConfigLoader, config_name: str, fixed: Sequence[str], axes: Mapping[str, Sequence[str]]
) -> list[DictConfig]:
    """Return the configuration of each combination of choices, the last axis varying fastest.

    Composing takes long, so a choice that brings nothing but its own group's node is composed only once, whatever it
    is combined with.
    """
    first = tuple((key, choices[0]) for key, choices in axes.items())
    plain_config = _is_plain(loader, config_name)
    base, _ = _base(loader, config_name, tuple(fixed), () if plain_config and not fixed else first)
    nodes: dict[tuple[str, str], Any] = {}
    for key, choices in axes.items():
        own = tuple(line for line in fixed if line.lstrip("+").startswith(f"{key}."))
        for choice in choices:
            node = _node(loader, config_name, own, () if plain_config else first, key, choice)
            if node is None:
                combinations = itertools.product(*axes.values())
                chosen = [dict(zip(axes, combination, strict=True)) for combination in combinations]
                return [_without_hydra(_compose(loader, config_name, fixed, choices)) for choices in chosen]
            nodes[key, choice] = node
    result = []
    for combination in itertools.product(*axes.values()):
        config = copy.deepcopy(base)
        with read_write(config):
            for key, choice in zip(axes, combination, strict=True):
                config[key] = copy.deepcopy(nodes[key, choice])
        result.append(config)
    return result


@lru_cache(maxsize=1024)
def _node(
    loader: ConfigLoader,
    config_name: str,
    fixed: tuple[str, ...],
    first: tuple[tuple[str, str], ...],
    key: str,
    choice: str,
) -> Any:
    """Return what a choice brings, with what is fixed in it; None if it changes anything outside its group.

    `first` are choices of the other groups to compose it with, where the configuration may leave them open.
    """
    default, choices = _base(loader, config_name, (), first)
    if not fixed and choices.get(key) and _is_plain(loader, config_name):
        own, usual = (_read(loader, f"{key}/{name}") for name in (choice, choices[key]))
        if own and usual and own.provider == usual.provider == PROVIDER and default[key] == usual.config:
            return own.config
    alone = _without_hydra(_compose(loader, config_name, fixed, {**dict(first), key: choice}))
    return alone._get_node(key) if _others(alone, key) == _others(default, key) else None


@lru_cache(maxsize=64)
def _base(
    loader: ConfigLoader, config_name: str, fixed: tuple[str, ...] = (), chosen: tuple[tuple[str, str], ...] = ()
) -> tuple[DictConfig, Mapping[str, str]]:
    """Return a configuration without Hydra's own part, and the choice of each group."""
    config = _compose(loader, config_name, fixed, dict(chosen))
    return _without_hydra(config), config.hydra.runtime.choices


@lru_cache(maxsize=256)
def _read(loader: ConfigLoader, path: str) -> ConfigResult | None:
    """Return a configuration file as it is written, or what stands for one, if Hydra finds it."""
    source = next((source for source in loader.get_sources() if source.is_config(path)), None)
    return None if source is None else source.load_config(path)


@lru_cache(maxsize=64)
def _options(loader: ConfigLoader, key: str) -> list[str]:
    """Return the choices of a group."""
    return list(loader.get_group_options(key))


def _others(config: DictConfig, key: str) -> Any:
    """Return all of a configuration but the node of one group, with references as they are written."""
    return OmegaConf.to_container(OmegaConf.masked_copy(config, [str(k) for k in config if k != key]), resolve=False)


def _compose(loader: ConfigLoader, config_name: str, fixed: Sequence[str], chosen: Mapping[str, str]) -> DictConfig:
    lines = [*fixed, *(f"{group}={choice}" for group, choice in chosen.items())]
    try:
        config = loader.load_configuration(config_name, lines, run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise StudyError(_composition_error(loader, config_name, lines, error)) from error
    return config


def _composition_error(loader: ConfigLoader, config_name: str, lines: Sequence[str], error: Exception) -> str:
    """Return why a configuration can't be composed: mostly that a choice does not have the parameter."""
    groups = [line for line in lines if line.partition("=")[0] in CHOICES]
    for line in lines:
        group, _, name = line.partition("=")[0].lstrip("+").partition(".")
        if name and group in GROUPS and f"'{group}.{name}'" in str(error):
            choice = loader.load_configuration(config_name, groups, run_mode=RunMode.RUN)[group]["name"]
            return _no_parameter(group, choice, name)
    return one_line(error)


def _no_parameter(group: str, choice: str, name: str) -> str:
    known = list(GROUPS[group].parameters(choice)) if choice in GROUPS[group] else []
    has = f"it has {', '.join(f'{group}.{k}' for k in known)}" if known else "it has none"
    return (
        f"{group}.{name}: {group}={choice} has no such parameter ({has})" if choice else f"{group}.{name}: unknown key"
    )


def _expand(config: DictConfig, values: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return the rows of one combination of groups: `values` everywhere, but for the axes."""
    for key, given in axes.items():
        field = KEYS[key]
        if field not in values:
            group, _, name = key.partition(".")
            raise StudyError(_no_parameter(group, str(values[group]), name))
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
    leaves = [(key, value) for key, value in _leaves(config) if key in KEYS and key not in axes]
    return {KEYS[key]: value for key, value in leaves if isinstance(value, str) and "${" in value}


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    nested = OmegaConf.to_container(config, resolve=False)
    assert isinstance(nested, dict)
    for key, value in nested.items():
        if isinstance(value, dict) and key in CHOICES:
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value


def _strides(axes: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Return how far apart an axis's values lie in the order of runs: the last axis given varies fastest."""
    strides: dict[str, int] = {}
    stride = 1
    for key in reversed(list(axes)):
        strides[key] = stride
        stride *= len(axes[key])
    return strides
