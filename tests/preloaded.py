"""What every process of the tests needs: imports, the plugins that Hydra looks for, and its parser warm."""

import hydra
import torch._dynamo  # the first trace imports it, which takes as long as torch itself
from hydra.core.plugins import Plugins

import hydra_plugins.xor_study_sweeper
import xor_study.engines.lanes
import xor_study.run
from xor_study.sweeps.compose import CONFIG_DIR, register

__all__ = ["hydra_plugins", "torch", "xor_study"]

Plugins.instance()
register()
with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
    hydra.compose("config", ["optimizer=adam", "lr=0.1"])
