"""Why did the XOR network train to NaN? A reproduction and ablation in PyTorch.

Names are imported when they are first used, so that `xor_study.autopsy` and a command's `--help` load only what they
need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xor_study.engines.results import Progress, Result
    from xor_study.errors import StudyError
    from xor_study.model.network import XORNetwork
    from xor_study.sweeps.resumable import train
    from xor_study.training.spec import RunSpec

    __version__: str

_MODULES = {
    "Progress": "xor_study.engines.results",
    "Result": "xor_study.engines.results",
    "RunSpec": "xor_study.training.spec",
    "StudyError": "xor_study.errors",
    "XORNetwork": "xor_study.model.network",
    "train": "xor_study.sweeps.resumable",
}

__all__ = ["Progress", "Result", "RunSpec", "StudyError", "XORNetwork", "__version__", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xor-study")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0"
