"""Hydra's place for this project's sweeper: the whole grid as one plan, trained in a few chunks, in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from xor_study.errors import one_line

if TYPE_CHECKING:
    from xor_study.sweeps.process import Process

# Hydra imports all plugins to complete a word or to list launchers: what trains is imported by who trains.


class XORStudySweeper(Sweeper):
    """Plan all runs of a sweep, check them, then train what is missing: here, or in jobs of Hydra's launcher.

    Args:
        params: overrides that the sweep begins with, as of Hydra's basic sweeper: {"lr": "0.1,1"}.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what `sweep` needs."""
        from xor_study.sweeps import loading

        loader = loading.with_folders(hydra_context.config_loader, loading.strings(config.hydra.searchpath))
        self.hydra_context, self.config = HydraContext(loader, hydra_context.callbacks), config

    def sweep(self, arguments: list[str]) -> Any:
        """Train all runs that the overrides in `arguments` describe.

        Raises:
            StudyError: if any of them can't be done; nothing is written then.
        """
        from xor_study.sweeps import folders, overrides, plan, records, runner, terminal

        assert self.hydra_context is not None
        assert self.config is not None
        hydra, loader = self.config.hydra, self.hydra_context.config_loader
        arguments = overrides.with_params(self.params, arguments)
        planned = plan.plan(loader, arguments, sweep=True, config_name=hydra.job.config_name)
        own = hydra.launcher._target_ == f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"
        if not own and planned.shards is None:
            launcher = hydra.runtime.choices["hydra/launcher"]
            terminal.show_notes([f"hydra/launcher={launcher} makes one job without shards; shards=K makes K"])
        folder = folders.resolve(self.config, planned.table)
        if planned.dry_run:
            runner.dry_run(planned, Path(folder))
            return
        records.check_folder(folders.KEY, folder, sweep=True)
        jobs = planned.shards if planned.shards is not None or own else 1
        launch = None if jobs is None else partial(self._launch, arguments, jobs)
        runner.run_sweep(planned, Path(folder), OmegaConf.to_yaml(self.config), jobs, launch)

    def _launch(self, arguments: list[str], shards: int, folder: Path, identity: str) -> list[str]:
        """Train the shards of a sweep in jobs of the launcher; return what was wrong with which, as lines."""
        from xor_study.sweeps.process import Process

        assert self.hydra_context is not None
        assert self.config is not None
        loader, name = self.hydra_context.config_loader, self.config.hydra.job.config_name
        driver = Process.of(os.getpid())
        task = partial(_shard, loader, arguments, name, str(folder.absolute()), shards, identity, driver)
        callbacks = Callbacks()
        callbacks.callbacks = [_Slim(), *self.hydra_context.callbacks.callbacks]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(loader, callbacks), task_function=task, config=self.config
        )
        _join_cluster(launcher)
        _no_idle_workers(launcher, shards)
        before = set(_submitted(self.config.hydra.launcher))
        try:
            # Without a folder of its own: Hydra would make it where the sweep's folder is not shared.
            jobs = launcher.launch([["hydra.sweep.dir=.", "hydra.sweep.subdir=."]] * shards, initial_job_idx=0)
        except Exception as error:  # whatever a launcher raises for a lost job; the parts show what is missing
            submitted = [path for path in _submitted(self.config.hydra.launcher) if path not in before]
            return _of_slurm(self.config.hydra.launcher, submitted) or [one_line(error)]
        return _problems(jobs)


def _problems(jobs: Sequence[JobReturn | str]) -> list[str]:
    """Return what was wrong with which job of a sweep, as lines."""
    reasons = [job if isinstance(job, str) else _problem(job) for job in jobs]
    return [f"shard {at} of {len(jobs)}: {reason}" for at, reason in enumerate(reasons) if reason]


def _join_cluster(launcher: Any) -> None:
    """Take a setting out of hydra-ray-launcher that Ray refuses when it joins a running cluster."""
    init = getattr(getattr(launcher, "ray_cfg", None), "init", None)
    if init is not None and (init.get("address") or os.environ.get("RAY_ADDRESS")):
        init.setdefault("object_store_memory", None)


def _no_idle_workers(launcher: Any, shards: int) -> None:
    """Let hydra-joblib-launcher start no more workers than there are jobs.

    One that never gets a job does not know the driver, and would outlive one that is killed by five minutes.
    """
    settings = getattr(launcher, "joblib", None)
    if isinstance(settings, dict) and "n_jobs" in settings:
        from joblib import effective_n_jobs

        settings["n_jobs"] = min(effective_n_jobs(int(settings["n_jobs"])), shards)


def _submitted(launcher: DictConfig) -> list[Path]:
    """Return the files of submitit's jobs, in the order of their numbers."""
    folder = launcher.get("submitit_folder")
    if folder is None:
        return []
    from submitit.core.utils import JobPaths

    files = JobPaths.get_first_id_independent_folder(folder).glob("**/*_submitted.pkl")
    return sorted(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _of_slurm(launcher: DictConfig, submitted: Sequence[Path]) -> list[str]:
    """Return what was wrong with the jobs of an array on SLURM, once all have ended.

    Hydra's launcher raises what was wrong with one of them, while others may still run, and without its state.
    """
    if not launcher._target_.endswith("SlurmLauncher"):
        return []
    from submitit import SlurmJob

    reasons: list[JobReturn | str] = []
    for path in submitted:
        job: SlurmJob[JobReturn] = SlurmJob(launcher.submitit_folder, path.name.removesuffix("_submitted.pkl"))
        job.wait()
        if job.paths.result_pickle.exists():
            error = job.exception()
            reasons.append(job.result() if error is None else one_line(error))
        else:
            reasons.append(f"SLURM job {job.job_id}: {job.state}, see {job.paths.stderr}")
    return _problems(reasons)


class _Slim(Callback):
    """Leave the configuration out of what a job returns.

    So a worker hands its result over in one write. Of two, header and rest, one that is killed in between would leave
    joblib waiting for the rest for ever, deaf to Ctrl-C.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Do so, after all other callbacks."""
        job_return.cfg = job_return.hydra_cfg = None


def _problem(job: JobReturn) -> str | None:
    return None if job.status is JobStatus.COMPLETED else one_line(job._return_value)


def _shard(
    loader: ConfigLoader,
    arguments: list[str],
    config_name: str,
    folder: str,
    shards: int,
    identity: str,
    driver: Process,
    config: DictConfig,
) -> None:
    """Train one shard of a sweep: what a launcher's job does, perhaps on another host. `config` says nothing of it."""
    from xor_study.sweeps import plan, runner
    from xor_study.sweeps.process import end_with

    end_with(driver)
    planned = plan.plan(loader, arguments, sweep=True, config_name=config_name)
    runner.run_shard(planned, Path(folder), shards, HydraConfig.get().job.num, identity)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="xor_study",
    node={"_target_": f"{__name__}.{XORStudySweeper.__name__}", "params": None},
    provider="xor_study",
)
