"""The Hydra application: a command line is checked before Hydra makes a folder, then Hydra runs it."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xor_study.errors import Parser, StudyError, in_one_line, show
from xor_study.sweeps import axes, compose, loading, overrides, settings
from xor_study.training.spec import KEYS

SWEEPER = "xor_study"
"""Our own in Hydra's group of sweepers."""

ACTIONS = ("run", "multirun", "cfg", "info", "shell_completion")
"""Hydra's flags that exclude each other."""


def main(given: Sequence[str]) -> None:
    """Train what a command line asks for, or do what one of Hydra's flags asks for.

    Args:
        given: the arguments, flags and overrides in any order.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing them
    with in_one_line(HydraException, OmegaConfBaseException, YAMLError):
        arguments = _parsed(given)
        _register()
        flags = _without(given, arguments.overrides)
        if arguments.config_path:  # to Hydra, relative to this module
            arguments.config_path = _config_path(arguments.config_path)
            flags += ["--config-path", arguments.config_path]
        # Hydra reads the command line again by itself, and only with all flags before all overrides.
        sys.argv[1:] = [*flags, *_checked(arguments)]
        hydra.main(
            version_base=compose.VERSION_BASE, config_path=str(settings.CONFIG_DIR), config_name=compose.CONFIG_NAME
        )(_task)()


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """Return a command line by Hydra's own parser.

    Raises:
        StudyError: where argparse would print its usage, and where Hydra would end in a traceback.
    """
    parser = Parser(prog="xor-study", add_help=False, parents=[get_args_parser()], conflict_handler="resolve")
    arguments, unknown = parser.parse_known_intermixed_args(list(given))
    if unknown:
        raise StudyError(_unknown_flag(unknown[0]))
    if sum(bool(getattr(arguments, name)) for name in ACTIONS) > 1:
        parser.error(f"only one of {', '.join('--' + name.replace('_', '-') for name in ACTIONS)} at a time")
    if arguments.resolve and not arguments.cfg:
        parser.error("--resolve goes with --cfg")
    if arguments.experimental_rerun:
        parser.error("--experimental-rerun would run code from a pickle; give the overrides again instead")
    _check_blanks(arguments.overrides)
    return arguments


def _unknown_flag(flag: str) -> str:
    key, _, value = flag.lstrip("-").partition("=")
    if key in (*compose.CHOICES, *KEYS, *settings.SETTINGS, settings.STUDY):
        return f"{show(flag)}: settings have no dashes; write {key}={show(value or 'VALUE')}"
    return f"{show(flag)}: unknown option; see xor-study --help"


def _check_blanks(words: Sequence[str]) -> None:
    """Raise StudyError if a shell has taken an override apart at the blanks around its =."""
    for index, (before, word) in enumerate(itertools.pairwise(words)):
        key, value = before.removesuffix("="), word.removeprefix("=")
        if word == "=":
            value = "".join(words[index + 2 : index + 3])
        apart = word.startswith("=") or (before.endswith("=") and "=" not in word)
        if apart and "=" not in key:
            raise StudyError(f"{show(f'{key} = {value}')}: write {show(f'{key}={value}')}, without blanks around =")


def _without(given: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Return arguments without some of them, which are there in that order."""
    left = list(removed)
    return [word for word in given if not (left and word == left[0] and left.pop(0))]


def _config_path(given: str) -> str:
    """Return the folder of --config-path, relative to where the command is given."""
    folder = Path(given.removeprefix("file://")).absolute()
    if not folder.is_dir():
        raise StudyError(f"--config-path={given}: no such folder in {Path.cwd()}")
    return str(folder)


def _register() -> None:
    """Make the choices and the sweeper known, also where Hydra does not discover an editable install's plugins."""
    plugins = Plugins.instance()
    from hydra_plugins.xor_study_sweeper import XORStudySweeper

    plugins.register(XORStudySweeper)
    compose.register()


def _checked(arguments: argparse.Namespace) -> list[str]:
    """Check a command line that is to train something, before Hydra makes a folder for it; return Hydra's overrides."""
    texts = list(map(axes.readable, arguments.overrides))
    if arguments.hydra_help or arguments.info or arguments.shell_completion:
        return texts
    config_name = arguments.config_name or compose.CONFIG_NAME
    with hydra.initialize_config_dir(
        arguments.config_path or str(settings.CONFIG_DIR), version_base=compose.VERSION_BASE
    ):
        loader = _loader(GlobalHydra.instance().config_loader(), arguments.config_dir, config_name, texts)
        parsed = overrides.parse(texts, loader)
        overrides.check_choices(parsed, loader)
        overrides.check_values(parsed)
        lines = overrides.for_hydra(texts, parsed)
        if _is_sweep(arguments, parsed, loader, config_name, lines):
            return texts if arguments.cfg else lines  # the sweeper plans the rest, also before anything is written
        _check_single(loader, texts, arguments)
    return texts


def _loader(loader: ConfigLoader, config_dir: str | None, config_name: str, texts: Sequence[str]) -> ConfigLoader:
    """Return a loader that finds all that Hydra's own will, with --config-dir and hydra.searchpath."""
    if config_dir:
        loader = loading.with_folders(loader, (config_dir,), "--config-dir")
    given = [text for text in texts if text.startswith("hydra.searchpath=")][:1]  # as Hydra, which takes the first
    folders = [override.value() for override in overrides.parse(given, loader)]
    folders += [compose.hydras_own(loader, config_name, "searchpath") or []]
    return loading.with_folders(loader, loading.strings(folders[0]))


def _is_sweep(
    arguments: argparse.Namespace,
    parsed: Sequence[Override],
    loader: ConfigLoader,
    config_name: str,
    lines: Sequence[str],
) -> bool:
    """Return whether a command line is a sweep, by itself or by a configuration file.

    Raises:
        StudyError: if it is a dry run of another sweeper, has axes that only ours knows, or if what it fixes can't be
            composed.
    """
    modes = {override.key_or_group: override.value() for override in parsed if not override.is_sweep_override()}
    if modes.get("dry_run") is True and modes.get("hydra/sweeper", SWEEPER) != SWEEPER:
        raise StudyError(f"dry_run=true: only hydra/sweeper={SWEEPER} knows its runs before they run")
    for word in arguments.overrides if modes.get("hydra/sweeper", SWEEPER) != SWEEPER else ():
        if axes.is_ours(word):
            raise StudyError(f"{show(word)}: only hydra/sweeper={SWEEPER} knows this axis")
    if arguments.multirun or "hydra.mode" in modes:
        return bool(arguments.multirun or modes["hydra.mode"] == RunMode.MULTIRUN.name)
    if compose.is_plain(loader, config_name) and not any(compose.is_users(str(key)) for key in modes):
        return bool(compose.hydras_own(loader, config_name, "mode") == RunMode.MULTIRUN.name)
    try:
        config = loader.load_configuration(config_name, list(lines), RunMode.MULTIRUN, validate_sweep_overrides=False)
    except (HydraException, OmegaConfBaseException, ValueError):
        return False  # planning says what is wrong
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def _check_single(loader: ConfigLoader, texts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Check a single run and its folder; end here after a dry run."""
    from xor_study.sweeps import plan, records, runner

    config_name = arguments.config_name or compose.CONFIG_NAME
    planned = plan.plan(loader, texts, sweep=False, config_name=config_name)
    if arguments.cfg:
        return
    if planned.dry_run:
        runner.dry_run(planned)
        sys.exit(0)
    config = loader.load_configuration(config_name, list(texts), run_mode=RunMode.RUN)
    HydraConfig.instance().set_config(config)
    records.check_folder("hydra.run.dir", config.hydra.run.dir)


def _task(config: DictConfig) -> float:
    """Train the single run that a composed configuration describes, in the folder Hydra made for it.

    Returns:
        The final loss, infinite for a run that did not stay finite: what a sweeper such as Optuna's minimizes.
    """
    from xor_study.engines import check_device, check_engine
    from xor_study.sweeps import records, runner
    from xor_study.training.table import table_of

    folder = Path(HydraConfig.get().runtime.output_dir)
    with in_one_line():
        values = compose.values_of(config)
        engine, device, threads, log, shards, form, dry_run, _ = (values.pop(name) for name in settings.SETTINGS)
        check_device(device)
        check_engine(engine, device, threads)
        overrides.check_log(log, sweep=False)
        overrides.check_mode(shards, dry_run, sweep=False)
        overrides.check_format(form, sweep=False)
        table = table_of([values])
        (folder / records.CONFIG).write_text(OmegaConf.to_yaml(config))
        run = runner.run_one(table, engine, device, threads, folder, log).runs.iloc[0]
    return math.inf if run["outcome"] == "nonfinite" else float(run["final_loss"])
