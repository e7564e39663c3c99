"""Hydra's configurations: made of files and of the catalogues, composed no more often than needed, read as values."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from xor_study.errors import StudyError, one_line, show, suggestion
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.sweeps.loading import PackagedSearchPath, check_numbers
from xor_study.sweeps.settings import SETTINGS, STUDY, defaults
from xor_study.training.spec import GROUPS, KEYS, guesses

CONFIG_NAME, VERSION_BASE = "config", "1.3"
CHOICES = (*GROUPS, "activation")
"""Hydra's config groups of this package."""

PROVIDER = "xor_study"
"""Of the choices that are made of the catalogues, to Hydra."""


def register() -> None:
    """Make a Hydra choice of every entry of the catalogues, holding its parameters with their defaults."""
    Plugins.instance().register(PackagedSearchPath)
    # Nodes from the catalogues and YAML files mix in one group, and both are listed by tab completion.
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
        StudyError: if a value is missing, refers to something unknown, or is not a single value.
    """
    try:
        nested = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise StudyError(f"{error.full_key}: {one_line(error)}") from error
    assert isinstance(nested, dict)
    # A primary configuration of a user's need not name the settings, of which a later version may have more.
    flat: dict[str, Any] = {name: defaults()[name] for name in SETTINGS}
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
            package = "; its file must begin with '# @package _global_'"
            raise StudyError(f"{key}: unknown key{package if isinstance(value, dict) else hint(key)}")
        if isinstance(value, dict | list):
            raise StudyError(f"{key}={show(value)}: must be one value")
    return {KEYS.get(key, key): value for key, value in flat.items()}


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", STUDY)])


def hint(key: str) -> str:
    """Return the end of a message about an unknown key: the nearest key, or all at top level."""
    known = list(dict.fromkeys([*CHOICES, *KEYS, *SETTINGS, STUDY]))
    near = guesses(key, known)
    return f"; did you mean {' or '.join(near)}?" if near else suggestion(key, sorted(k for k in known if "." not in k))


@lru_cache(maxsize=64)
def is_plain(loader: ConfigLoader, config_name: str) -> bool:
    """Return whether a primary configuration only lists groups and gives single values to keys outside them.

    Then a choice brings its group's node and nothing else, and a value can be laid over the configuration instead of
    being composed into it. Others, of a user, may refer to values, leave them open, or change a group's node.
    """
    read = read_file(loader, config_name)
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


def composed(
    loader: ConfigLoader,
    config_name: str,
    fixed: Sequence[str],
    axes: Mapping[str, Sequence[str]],
    combinations: Sequence[Sequence[str]],
) -> list[DictConfig]:
    """Return the configuration of each of some combinations of choices, one of each axis.

    Composing takes long, so a choice that brings nothing but its own group's node is composed only once, whatever it
    is combined with. A group of the user's may change anything.

    Raises:
        StudyError: if one can't be composed, or if choices of the user's groups differ in what a sweep has only one of.
    """
    chosen = [dict(zip(axes, combination, strict=True)) for combination in combinations]
    if any(is_users(key) for key in (*axes, *(line.partition("=")[0] for line in fixed))):
        configs = [compose(loader, config_name, fixed, choices) for choices in chosen]
        _check_alike(configs, [key for key in axes if is_users(key)])
        return [_without_hydra(config) for config in configs]
    first = tuple((key, choices[0]) for key, choices in axes.items())
    plain_config = is_plain(loader, config_name)
    base, _ = _base(loader, config_name, tuple(fixed), () if plain_config and not fixed else first)
    nodes: dict[tuple[str, str], Any] = {}
    for key, choices in axes.items():
        # Composed with the parameters that are fixed in this group alone: other groups' don't change this node.
        own = tuple(line for line in fixed if line.lstrip("+").startswith(f"{key}."))
        for choice in choices:
            node = _node(loader, config_name, own, () if plain_config else first, key, choice)
            if node is None:
                return [_without_hydra(compose(loader, config_name, fixed, choices)) for choices in chosen]
            nodes[key, choice] = node
    result = []
    for choices_of_one in chosen:
        config = copy.deepcopy(base)  # a node belongs to one configuration: it knows its parent
        with read_write(config):
            for key, choice in choices_of_one.items():
                config[key] = copy.deepcopy(nodes[key, choice])
        result.append(config)
    return result


def is_users(key: str) -> bool:
    """Return whether an override's key, such as "+experiment", is a config group of the user's own."""
    name = key.lstrip("+~").partition("@")[0]
    return name not in ("", *CHOICES, *KEYS, *SETTINGS, STUDY) and not name.startswith(("hydra.", "hydra/"))


def _check_alike(configs: Sequence[DictConfig], groups: Sequence[str]) -> None:
    """Raise StudyError if configurations differ in their settings or choose a study, of which a sweep has one."""
    if not groups:
        return
    for name in SETTINGS:
        values = dict.fromkeys(config.get(name) for config in configs)
        if len(values) > 1:
            raise StudyError(f"{name}: one for the whole sweep, but {groups[0]} sets {', '.join(map(show, values))}")
    for config in configs:
        if config.hydra.runtime.choices.get(STUDY) is not None:
            raise StudyError(f"{groups[0]}: several values, one of which chooses a {STUDY}; give them one by one")


@lru_cache(maxsize=64)
def study_of(loader: ConfigLoader, config_name: str, lines: tuple[str, ...]) -> Any:
    """Return the study that configuration files choose, or None; `lines` are all that is typed beside it."""
    if is_plain(loader, config_name) and not any(is_users(line.partition("=")[0]) for line in lines):
        primary = read_file(loader, config_name)
        assert primary is not None
        listed = OmegaConf.select(primary.config, "defaults") or []
        return next((entry[STUDY] for entry in listed if STUDY in entry), None)
    try:  # MULTIRUN: choices may be missing that the sweep makes
        whole = loader.compute_defaults_list(config_name, list(lines), run_mode=RunMode.MULTIRUN)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None  # composing says what is wrong
    return whole.overrides.known_choices.get(STUDY)


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
    if not fixed and choices.get(key) and is_plain(loader, config_name):
        own, usual = (read_file(loader, f"{key}/{name}") for name in (choice, choices[key]))
        if own and usual and own.provider == usual.provider == PROVIDER and default[key] == usual.config:
            return own.config
    alone = _without_hydra(compose(loader, config_name, fixed, {**dict(first), key: choice}))
    return alone._get_node(key) if _others(alone, key) == _others(default, key) else None


@lru_cache(maxsize=64)
def _base(
    loader: ConfigLoader, config_name: str, fixed: tuple[str, ...] = (), chosen: tuple[tuple[str, str], ...] = ()
) -> tuple[DictConfig, Mapping[str, str]]:
    """Return a configuration without Hydra's own part, and the choice of each group."""
    config = compose(loader, config_name, fixed, dict(chosen))
    return _without_hydra(config), config.hydra.runtime.choices


@lru_cache(maxsize=256)
def read_file(loader: ConfigLoader, path: str) -> ConfigResult | None:
    """Return a configuration file as it is written, or what stands for one, if Hydra finds it."""
    source = next((source for source in loader.get_sources() if source.is_config(path)), None)
    if source is None:
        return None
    check_numbers(source, path)
    return source.load_config(path)


def hydras_own(loader: ConfigLoader, config_name: str, key: str) -> Any:
    """Return a value of Hydra's own part of a primary configuration, as it is written there, or None."""
    primary = read_file(loader, config_name)
    return None if primary is None else OmegaConf.select(primary.config, f"hydra.{key}")


def default_choice(loader: ConfigLoader, config_name: str, fixed: Sequence[str], key: str) -> str:
    """Return the choice of a group where none is given.

    Raises:
        StudyError: if the configuration leaves it open.
    """
    choice = _base(loader, config_name, tuple(fixed))[1].get(key)
    if choice is None:
        raise StudyError(f"{key}: the configuration has no choice of it, which ofat would vary; give one beside it")
    return choice


@lru_cache(maxsize=64)
def options(loader: ConfigLoader, key: str) -> list[str]:
    """Return the choices of a group."""
    return list(loader.get_group_options(key))


def _others(config: DictConfig, key: str) -> Any:
    """Return all of a configuration but the node of one group, with references as they are written."""
    return OmegaConf.to_container(OmegaConf.masked_copy(config, [str(k) for k in config if k != key]), resolve=False)


def compose(loader: ConfigLoader, config_name: str, fixed: Sequence[str], chosen: Mapping[str, str]) -> DictConfig:
    """Return a configuration with all of Hydra's own part.

    Raises:
        StudyError: if it can't be composed.
    """
    lines = [*fixed, *(f"{group}={choice}" for group, choice in chosen.items())]
    try:
        config = loader.load_configuration(config_name, lines, run_mode=RunMode.RUN)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise StudyError(_composition_error(loader, config_name, lines, error)) from error
    return config


def _composition_error(loader: ConfigLoader, config_name: str, lines: Sequence[str], error: Exception) -> str:
    """Return why a configuration can't be composed: mostly that a choice does not have the parameter."""
    groups = [line for line in lines if line.partition("=")[0] in CHOICES]
    for line in lines:
        group, _, name = line.partition("=")[0].lstrip("+").partition(".")
        if name and group in GROUPS and f"'{group}.{name}'" in str(error):
            choice = loader.load_configuration(config_name, groups, run_mode=RunMode.RUN)[group]["name"]
            return no_parameter(group, choice, name)
    return one_line(error)


def no_parameter(group: str, choice: str, name: str) -> str:
    """Return the message that a choice has no such parameter, and which it has."""
    known = list(GROUPS[group].parameters(choice)) if choice in GROUPS[group] else []
    has = f"it has {', '.join(f'{group}.{k}' for k in known)}" if known else "it has none"
    return (
        f"{group}.{name}: {group}={choice} has no such parameter ({has})" if choice else f"{group}.{name}: unknown key"
    )


def leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield each value of a composed configuration, as written, with its key."""
    nested = OmegaConf.to_container(config, resolve=False)
    assert isinstance(nested, dict)
    for key, value in nested.items():
        if isinstance(value, dict) and key in CHOICES:
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value
