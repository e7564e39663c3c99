"""Which `torch.nn.Module` is running, by name, and how large its outputs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class Modules:
    """Keeps the stack of running modules while its hooks are set.

    A module's name is as `torch.utils.module_tracker` forms it: the class of the outermost module that was called, then
    the path within it, such as "Net.layers.2.linear1".

    Args:
        on_output: called with a module's name and output after its forward.
    """

    def __init__(self, on_output: Callable[[str, Any], None]) -> None:
        self.current: str | None = None
        self.compiled = False
        self._stack: list[str | None] = []
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._roots: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
        self._on_output = on_output
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Set the hooks, for all modules."""
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not self._stack and module not in self._roots:
            self._name_all(module)
        name = self._names.get(module)
        if name is None:
            name = self._names[module] = f"{self.current or 'module'}.{type(module).__name__}"
        self._stack.append(self.current)
        self.current = name

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            if output is not None:
                self._on_output(self.current or "", output)
            self.current = self._stack.pop()

    def _name_all(self, root: nn.Module) -> None:
        self._roots[root] = True
        if type(root).__name__ == "OptimizedModule":  # torch.compile's; its class is not imported, that takes seconds
            self.compiled = True
            self._names[root] = type(root).__name__
            root = root._orig_mod  # type: ignore[assignment]
        for name, module in root.named_modules():
            self._names[module] = f"{type(root).__name__}.{name}" if name else type(root).__name__
