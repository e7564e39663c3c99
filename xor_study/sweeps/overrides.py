"""What a command line says: overrides, parsed and checked as far as that can be done without planning any run.

Nothing here imports torch or pandas, so a typo is answered at once.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from xor_study.engines.names import check_engine
from xor_study.errors import StudyError, nearest, one_line, show, suggestion
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.sweeps import axes
from xor_study.sweeps.compose import CHOICES, hint, is_users, options
from xor_study.sweeps.settings import FORMATS, LOGS, MOST_SHARDS, SETTINGS, STUDY
from xor_study.training.spec import GROUPS, KEYS, OWN

CALLABLES = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
"""Parts of Hydra's configuration whose values may name any function."""

PARAMS = "hydra.sweeper.params."
"""Keys of overrides that a sweep begins with, usually in a file."""

MOST_RUNS = 10**7
"""Of one sweep: about the memory that its table takes, 4 GB."""

NAMED: dict[str, Collection[str]] = {"activation.hidden": HIDDEN_ACTIVATIONS, "activation.output": OUTPUT_ACTIVATIONS}
"""Keys that are no group and whose values are names all the same."""


def parse(texts: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Return parsed overrides whose keys exist, later ones of the same key in place of earlier ones.

    Raises:
        StudyError: if one can't be parsed, has an unknown key or another form than key=value, or if a study is given
            twice.
    """
    parser = OverridesParser.create(config_loader=loader)  # the loader knows the choices that glob(*) stands for
    result: dict[str, Override] = {}
    for text in texts:
        readable = axes.readable(text)
        try:
            (override,) = parser.parse_overrides([readable])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise StudyError(f"{show(text)}: can't be read as key=value; put an odd value in quotes") from error
        if override.is_sweep_override():
            override.input_line = axes.as_typed(readable)
        override = axes.understood(override, lambda inner: _inner(inner, loader))
        key = override.key_or_group
        if isinstance(override._value, axes.Design):
            result[key] = override
            continue
        if override.is_hydra_override():
            _check_harmless(key, text)
        elif not (is_users(key) and options(loader, key)):
            _check_key(override, text)
        if key == STUDY and key in result:
            both = f"{result[key].input_line} {text}"
            raise StudyError(f"{show(both)}: a study is given once; for both write {STUDY}=A,B")
        result[key] = override
    return list(result.values())


def _inner(text: str, loader: ConfigLoader) -> tuple[str, list[Any]]:
    """Return the key and the values of an axis inside a design."""
    (override,) = parse([text], loader)
    key, values = override.key_or_group, axis(override, allowed=True)
    if key == STUDY or key not in (*CHOICES, *KEYS):
        raise StudyError(f"{show(text)}: {key} has one value for the whole sweep")
    for value in values:
        check_choice(key, value, loader)
    return key, values


def merged(*lines: Sequence[Override]) -> list[Override]:
    """Return overrides of several lines as one: a later one of the same key takes the place of the earlier."""
    result: dict[str, Override] = {}
    for line in lines:
        for override in line:
            if isinstance(override._value, axes.Design):
                result = {key: given for key, given in result.items() if key not in override._value.columns}
        result |= {override.key_or_group: override for override in line}
    return list(result.values())


def _check_harmless(key: str, text: str) -> None:
    """Raise StudyError if an override of Hydra's own configuration would name code to be run."""
    if "_target_" in text or key.lstrip("+~").startswith(CALLABLES):
        raise StudyError(f"{show(text)}: names code to be run, which no setting may; choose with hydra/launcher=...")


def _check_key(override: Override, text: str) -> None:
    key = override.key_or_group
    of_group = key in CHOICES or key == STUDY
    if not (of_group or key in SETTINGS or key in KEYS):
        group, _, name = key.partition(".")
        if group in GROUPS and name == "name":
            raise StudyError(f"{show(key)}: unknown key; choose with {group}=...")
        raise StudyError(f"{show(key)}: unknown key{hint(key)}")
    allowed = (OverrideType.CHANGE,) if of_group else (OverrideType.CHANGE, OverrideType.FORCE_ADD)
    if override.type not in allowed or override.package is not None:
        value = text.partition("=")[2]
        raise StudyError(f"{show(text)}: must be key=value; write {show(f'{key}={value}')}")


def check_values(parsed: Sequence[Override]) -> None:
    """Raise StudyError if a single value that is typed for a field can't be one, whatever the rest of the run is.

    Planning checks all values of all runs; this is so that a typo doesn't wait for its imports.
    """
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or refers(override) or override.value() is None:
            continue
        if KEYS.get(key) in OWN and key not in GROUPS:
            OWN[KEYS[key]].check(unquoted(override.value()), key)
        elif key == "engine":
            check_engine(unquoted(override.value()))


def for_hydra(texts: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Return a sweep's overrides as Hydra takes them: a parameter of a group as a sweep over one value.

    Hydra composes what is fixed with the default groups before any sweeper sees the choices, and would refuse
    `optimizer=sgd,adam optimizer.weight_decay=0.1` where the default choice has no such parameter.
    """
    by_text = {override.input_line: override for override in parsed}
    result = []
    for text in texts:
        override = by_text.get(text)
        key, _, value = text.partition("=")
        fixed_parameter = override is not None and key in KEYS and "." in key and not override.is_sweep_override()
        if override is not None and key.lstrip("+").startswith(PARAMS):
            text = f"++{key.lstrip('+')}={quoted(value) if override.is_sweep_override() else value}"
        result.append(f"{key}=choice({value})" if fixed_parameter else text)
    return result


def quoted(value: str) -> str:
    """Return a text as an override's value that Hydra reads as exactly this text."""
    return str(QuotedString(text=value, quote=Quote.single).with_quotes())


def with_params(params: Mapping[str, Any], typed_lines: Sequence[str]) -> list[str]:
    """Return a sweep's overrides: those of `hydra.sweeper.params`, then those typed, which win.

    Raises:
        StudyError: if one is of Hydra's own configuration, of which a sweep has only one.
    """
    beside = any(line.startswith(f"{STUDY}=") for line in typed_lines)
    grid = {key: value for key, value in _flat(params) if not (beside and key == STUDY)}
    for key in grid:
        if key.lstrip("+").startswith("hydra"):
            raise StudyError(f"{PARAMS}{key}: one for the whole sweep; give it outside of the params")
    return [*typed(grid), *typed_lines]


def _flat(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys with dots: what is typed as hydra.sweeper.params.clip.bound=1 is a mapping in a mapping."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", one) for inner, one in _flat(value))
        else:
            yield key, value


def check_log(log: str, sweep: bool) -> None:
    """Raise StudyError unless a loss can be printed that way."""
    if log not in LOGS:
        raise StudyError(f"log={show(log)}: unknown{suggestion(str(log), LOGS)}")
    if sweep and log != LOGS[0]:
        raise StudyError(f"log={log}: prints the loss of a single run; leave it out of a sweep")


def check_format(form: Any, sweep: bool) -> None:
    """Raise StudyError unless a table of runs can be written in that format."""
    if form not in FORMATS:
        raise StudyError(f"format={show(form)}: unknown{suggestion(str(form), FORMATS)}")
    if form == "parquet":
        if not sweep:
            raise StudyError("format=parquet requires a sweep; add -m (--multirun)")
        if importlib.util.find_spec("pyarrow") is None:
            raise StudyError("format=parquet: needs pyarrow; pip install 'xor-study[parquet]'")


def check_mode(shards: Any, dry_run: Any, sweep: bool) -> None:
    """Raise StudyError unless a command can be run in so many shards, or not at all."""
    if not isinstance(dry_run, bool):
        raise StudyError(f"dry_run={show(dry_run)}: must be true or false")
    if shards is None:
        return
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MOST_SHARDS:
        raise StudyError(f"shards={show(shards)}: must be a whole number in [1, {MOST_SHARDS}]")
    if not sweep:
        raise StudyError(f"shards={shards} requires a sweep; add -m (--multirun)")


def typed(grid: Mapping[str, Any]) -> list[str]:
    """Return a grid of a study file as one would type it: a list is an axis."""
    words = {None: "null", True: "true", False: "false"}

    def text(value: Any) -> str:
        return words[value] if value is None or isinstance(value, bool) else str(value)

    columns = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    designs = [f"{axes.AXES}={value}" for value in columns.pop(axes.AXES, [])]
    return designs + [f"{key}={','.join(map(text, values))}" for key, values in columns.items()]


def is_data(override: Override) -> bool:
    """Return whether an override is a value that can be laid over any composition, as an axis of one."""
    key, value = override.key_or_group, unquoted(override.value())
    top_level = key in CHOICES or (key in KEYS and "." not in key)
    return top_level and isinstance(value, str | int | float | None)


def refers(override: Override) -> bool:
    """Return whether an override's single value refers to others (`${...}`)."""
    return not override.is_sweep_override() and "${" in str(override.value())


def unquoted(value: Any) -> Any:
    """Return a parsed value without the quotes that it was typed with."""
    return value.text if isinstance(value, QuotedString) else value


def axis(override: Override, allowed: bool) -> list[Any]:
    """Return the values of a sweep in the order given, or the only one.

    Raises:
        StudyError: if a sweep is not allowed, is of a kind that can't be enumerated, or is empty or too long.
    """
    if not override.is_sweep_override():
        return [unquoted(override.value())]
    check_sweep(override, allowed)
    text = show(override.input_line)
    try:
        values = list(itertools.islice(_swept(override), MOST_RUNS + 1))
    except (HydraException, ValueError, ZeroDivisionError) as error:
        raise StudyError(f"{text}: {one_line(error)}") from error
    if not values:
        raise StudyError(f"{text}: an empty sweep, nothing to run")
    if len(values) > MOST_RUNS:
        raise StudyError(f"{text}: more than {MOST_RUNS} values")
    return values


def check_sweep(override: Override, allowed: bool) -> None:
    """Raise StudyError if a sweep is not allowed, or is of a kind that can't be enumerated."""
    key, text = override.key_or_group, show(override.input_line)
    if not allowed:
        raise StudyError(f"{text}: several values; add -m (--multirun) to run them all")
    if override.is_hydra_override() or key in SETTINGS:
        raise StudyError(f"{text}: {key} has one value for the whole sweep")
    if override.is_interval_sweep() or not override.is_discrete_sweep():
        raise StudyError(f"{text}: needs another sweeper; here use a list (a,b,c), range(start,stop,step) or glob(*)")
    if isinstance(override._value, Glob) and key not in (*CHOICES, STUDY, *NAMED) and not is_users(key):
        raise StudyError(f"{text}: glob chooses among names ({', '.join([*CHOICES, *NAMED])})")


def _swept(override: Override) -> Iterator[Any]:
    """Yield the values of a sweep, a range's lazily: it may have more values than there is memory for."""
    given, key = override._value, override.key_or_group
    if isinstance(given, Glob) and key in NAMED:
        override = replace(override, _value=ChoiceSweep(list=given.filter(list(NAMED[key]))))
    if isinstance(given, ChoiceSweep | RangeSweep) and given.shuffle:
        values = list(_swept(replace(override, _value=replace(given, shuffle=False))))
        # The same order in every process of a sweep, and when it is resumed.
        yield from random.Random(override.input_line).sample(values, len(values))
    elif isinstance(given, RangeSweep):
        yield from axes.range_values(given)
    else:
        yield from map(unquoted, override.sweep_iterator())


def check_choices(parsed: Sequence[Override], loader: ConfigLoader) -> None:
    """Raise StudyError unless every group that is set to one choice has it."""
    for override in parsed:
        if not override.is_sweep_override() and not override.is_delete():
            check_choice(override.key_or_group, unquoted(override.value()), loader)


def check_choice(key: str, value: Any, loader: ConfigLoader) -> None:
    """Raise StudyError if `key` is a group that has no choice `value`."""
    users = is_users(key) and not isinstance(value, list) and "/" not in str(value)  # else for Hydra to say
    if key in (*CHOICES, STUDY) or users:
        known = options(loader, key)
        if value not in known:
            end = suggestion(str(value), known) if key != "activation" else _activation_hint(str(value), known)
            raise StudyError(f"{key}={show(value)}: unknown{end}")


def _activation_hint(value: str, known: Sequence[str]) -> str:
    name = value if "_" in value else f"{value}_sigmoid"
    guess = "".join(f"; did you mean {near}?" for near in nearest(name, known))
    hidden, output = ", ".join(HIDDEN_ACTIVATIONS), ", ".join(OUTPUT_ACTIVATIONS)
    return f"{guess} (known: HIDDEN_OUTPUT with HIDDEN one of {hidden} and OUTPUT one of {output})"
