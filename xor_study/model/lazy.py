"""Modules that are imported when they are first used.

The catalogues declare names and parameters, which a command line needs at once, and formulas, which need torch. Torch
takes a second or more to import: a command that only lists names or finds a typo doesn't wait for it.
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module and imports it when an attribute is asked for.

    `importlib.util.LazyLoader` would put an unfinished module into `sys.modules`, which loads as soon as anything looks
    through all modules, as `inspect` does.

    Args:
        name: of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
