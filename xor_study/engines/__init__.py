"""Engines: three ways to compute the same training, and `train`, the entry to all of them.

`plain` is the reference, `vmap` runs anywhere, `lanes` is the fastest. What needs torch is imported on first use, so
that checking the name of an engine does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xor_study.engines.names import AUTO, ENGINES, MOST_THREADS, FallbackWarning, check_engine

if TYPE_CHECKING:
    from xor_study.engines.training import check_compilable, check_device, train, train_batches, train_table

__all__ = [
    "AUTO",
    "ENGINES",
    "MOST_THREADS",
    "FallbackWarning",
    "check_compilable",
    "check_device",
    "check_engine",
    "train",
    "train_batches",
    "train_table",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("xor_study.engines.training"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
