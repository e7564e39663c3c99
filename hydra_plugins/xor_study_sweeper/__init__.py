"""Hydra's place for this project's sweeper: the whole grid as one plan, trained in a few batches, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from xor_study import plan, records, runner


class XORStudySweeper(Sweeper):
    """Plan all runs of a sweep, check them, then train them together in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what `sweep` needs."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Train all runs that the overrides in `arguments` describe.

        Raises:
            StudyError: if any of them can't be done; nothing is written then.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        planned = plan.plan(
            self.hydra_context.config_loader, arguments, sweep=True, config_name=self.config.hydra.job.config_name
        )
        records.check_folder("hydra.sweep.dir", self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        runner.run_sweep(
            planned.table, planned.axes, planned.engine, planned.device, planned.threads, folder, planned.duplicates
        )


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="xor_study",
    node={"_target_": f"{__name__}.{XORStudySweeper.__name__}"},
    provider="xor_study",
)
