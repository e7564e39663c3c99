"""Which `torch.nn.Module` is running, by name, and how large its outputs are."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary


class _Running(threading.local):
    """The modules that are running in one thread: the innermost, and those around it."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.stack: list[str | None] = []


class Modules:
    """Keeps the stack of running modules while its hooks are set.

    A module's name is as `torch.utils.module_tracker` forms it: the class of the outermost module that was called, then
    the path within it, such as "Net.layers.2.linear1".

    Args:
        on_output: called with a module's name and output after its forward.
        on_enter: called in the thread in which a module is called outside any other.
    """

    def __init__(self, on_output: Callable[[str, Any], None], on_enter: Callable[[], None]) -> None:
        self.compiled = False
        self._running = _Running()
        self._names: MutableMapping[nn.Module, str] = WeakIdKeyDictionary()
        self._on_output = on_output
        self._on_enter = on_enter
        self._handles: list[RemovableHandle] = []

    @property
    def current(self) -> str | None:
        """The name of the innermost module that is running in this thread; None outside any."""
        return self._running.current

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

    def parameter_name(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer of a module that has been called, such as "Net.head.weight"."""
        for module, name in list(self._names.items()):
            for own in (module._parameters, module._buffers):
                for key, value in own.items():
                    if value is tensor:
                        return f"{name}.{key}"
        return None

    def _enter(self, module: nn.Module, args: Any) -> None:
        running = self._running
        if not running.stack:
            self._on_enter()
            if module not in self._names:
                self._name_all(module)
        name = self._names.get(module)
        if name is None:
            name = self._names[module] = f"{running.current or 'module'}.{type(module).__name__}"
        running.stack.append(running.current)
        running.current = name

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        running = self._running
        if running.stack:
            if output is not None:
                self._on_output(running.current or "", output)
            running.current = running.stack.pop()

    def _name_all(self, root: nn.Module) -> None:
        if type(root).__name__ == "OptimizedModule":  # torch.compile's; its class is not imported, that takes seconds
            self.compiled = True
            self._names[root] = type(root).__name__
            root = root._orig_mod  # type: ignore[assignment]
        try:
            for name, module in root.named_modules():
                self._names[module] = f"{type(root).__name__}.{name}" if name else type(root).__name__
        except Exception:  # of a class that can't be hashed, for one
            self._names[root] = type(root).__name__
