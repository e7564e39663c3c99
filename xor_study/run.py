"""The command line: `python -m xor_study.run [-m] [key=value ...]`, also installed as `xor-study`.

Hydra composes the configuration; this module checks it before Hydra makes a folder, and says what is wrong in one line.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import hydra
import pandas as pd
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xor_study.engines import check_device, check_engine
from xor_study.errors import StudyError, in_one_line
from xor_study.sweeps import commands as look
from xor_study.sweeps import compose, plan, records, runner
from xor_study.training.table import table_of

SWEEPER = "xor_study"
"""Our own in Hydra's group of sweepers."""


def main() -> None:
    """Run what the command line asks for; end with exit code 1 and one line if it can't be done."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise its errors instead of printing them
    with in_one_line(HydraException, OmegaConfBaseException, YAMLError):
        if sys.argv[1:2] and sys.argv[1] in look.COMMANDS:
            look.main(sys.argv[1:])
            return
        parser = get_args_parser()
        arguments = parser.parse_args()
        _check_usage(parser, arguments)
        _register()
        sys.argv[1:] = _check(arguments)
        hydra.main(
            version_base=compose.VERSION_BASE, config_path=str(compose.CONFIG_DIR), config_name=compose.CONFIG_NAME
        )(_task)()


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with argparse's exit code 2 where Hydra would end in a traceback."""
    actions = {name: getattr(arguments, name) for name in ("run", "multirun", "cfg", "info", "shell_completion")}
    if sum(bool(value) for value in actions.values()) > 1:
        parser.error(f"only one of {', '.join('--' + name.replace('_', '-') for name in actions)} at a time")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        parser.error("--resolve goes with --cfg or --help")
    if arguments.experimental_rerun:
        parser.error("--experimental-rerun would run code from a pickle; give the overrides again instead")


def _register() -> None:
    """Make the choices and the sweeper known, also where Hydra does not discover an editable install's plugins."""
    plugins = Plugins.instance()
    from hydra_plugins.xor_study_sweeper import XORStudySweeper

    plugins.register(XORStudySweeper)
    compose.register()


def _check(arguments: argparse.Namespace) -> list[str]:
    """Check a command line that is to train something, before Hydra makes a folder for it, and return it for Hydra."""
    given = sys.argv[1:]
    if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
        return given
    overrides = list(arguments.overrides)
    config_dir = Path(arguments.config_path or compose.CONFIG_DIR).absolute()
    config_name = arguments.config_name or compose.CONFIG_NAME
    with hydra.initialize_config_dir(str(config_dir), version_base=compose.VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        if arguments.config_dir:
            loader = _with_folder(loader, Path(arguments.config_dir))
        parsed = plan.parse(overrides, loader)
        plan.check_choices(parsed, loader)
        modes = {override.key_or_group: override.value() for override in parsed if not override.is_sweep_override()}
        if modes.get("dry_run") is True and modes.get("hydra/sweeper", SWEEPER) != SWEEPER:
            raise StudyError(f"dry_run=true: only hydra/sweeper={SWEEPER} knows its runs before they run")
        if arguments.multirun or modes.get("hydra.mode") == RunMode.MULTIRUN.name:
            # The sweeper plans the rest, also before anything is written.
            rewritten = dict(zip(overrides, plan.for_hydra(overrides, loader), strict=True))
            return [rewritten.get(argument, argument) for argument in given]
        planned = plan.plan(loader, overrides, sweep=False, config_name=config_name)
        if arguments.cfg:
            return given
        if planned.dry_run:
            runner.dry_run(planned)
            sys.exit(0)
        config = loader.load_configuration(config_name, overrides, run_mode=RunMode.RUN)
        HydraConfig.instance().set_config(config)
        records.check_folder("hydra.run.dir", config.hydra.run.dir)
    return given


def _with_folder(loader: ConfigLoader, folder: Path) -> ConfigLoader:
    """Return a loader that also finds what is in `folder`, as Hydra's own with --config-dir."""
    if not folder.is_dir():
        raise StudyError(f"--config-dir={folder}: no such folder")
    paths = loader.get_search_path()
    paths.prepend("command-line", f"file://{folder.absolute()}", anchor="schema")
    return ConfigLoaderImpl(paths)


def _task(config: DictConfig) -> float:
    """Train the single run that a composed configuration describes, in the folder Hydra made for it.

    Returns:
        The final loss, infinite for a run that did not stay finite: what a sweeper such as Optuna's minimizes.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with in_one_line():
        values = compose.values_of(config)
        engine, device, threads, log, shards, dry_run = (values.pop(name) for name in compose.SETTINGS)
        check_device(device)
        check_engine(engine, device, threads)
        plan.check_log(log, sweep=False)
        plan.check_mode(shards, dry_run, sweep=False)
        for field, value in values.items():
            plan.check_value(field, value, values)
        table = table_of(pd.DataFrame([values], dtype=object))
        (folder / records.CONFIG).write_text(OmegaConf.to_yaml(config))
        run = runner.run_one(table, engine, device, threads, folder, log).runs.iloc[0]
    return math.inf if run["outcome"] == "nonfinite" else float(run["final_loss"])


if __name__ == "__main__":
    main()
