"""What a block changes in Python and torch while it lasts, because nothing else tells of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)
_READING = ("numpy", "tolist", "__dlpack__", "__reduce_ex__")
"""Methods that give a tensor's values to Python, numpy or a file without an operation; asarray calls `numpy`."""


User = TypeVar("User")


class InThread(TorchDispatchMode):
    """Hands operations on to another mode, which keeps the state of being entered for one thread only."""

    supports_higher_order_operators = True

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` as the other mode does."""
        return self._mode.__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def keep_uncompiled(function: Callable[..., Any]) -> None:
    """Let torch.compile compile neither a function nor what it calls."""
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(function.__code__, skip)


keep_uncompiled(InThread.__torch_dispatch__)


class _Patch(Generic[User]):
    """A change of Python or torch that lasts while anybody uses it: blocks in two threads may overlap in any order.

    Args:
        make: makes the change and returns what undoes it; takes the list of users, which goes on changing.
    """

    def __init__(self, make: Callable[[list[User]], Callable[[], None]]) -> None:
        self._make = make
        self._users: list[User] = []
        self._lock = threading.Lock()

    @contextmanager
    def used_by(self, user: User) -> Iterator[None]:
        """Keep the change in this block."""
        with self._lock:
            self._users.append(user)
            if len(self._users) == 1:
                self._undo = self._make(self._users)
        try:
            yield
        finally:
            with self._lock:
                self._users.remove(user)
                if not self._users:
                    self._undo()


def _patch_threads(modes: list[TorchDispatchMode]) -> Callable[[], None]:
    start = threading.Thread.start
    flags = {name: getattr(_python_dispatch, name, None) for name in _FLAGS}

    def start_watched(thread: threading.Thread) -> None:
        run, entered = thread.run, list(modes)

        def run_watched() -> None:
            del thread.run  # a cycle would keep the thread's tensors after its end
            # Not `with`: at its end, it sets torch's global flags to what they were when the thread began.
            for mode in entered:
                _push_mode(InThread(mode))
            try:
                run()
            finally:
                for _ in entered:
                    _pop_mode()

        thread.run = run_watched  # type: ignore[method-assign]
        start(thread)

    threading.Thread.start = start_watched  # type: ignore[method-assign, assignment]

    def undo() -> None:
        threading.Thread.start = start  # type: ignore[method-assign]
        # Blocks that overlap in two threads restore torch's flags in the wrong order.
        if all(isinstance(mode, InThread) for mode in _python_dispatch._get_current_dispatch_mode_stack()):
            for name, value in flags.items():
                if value is not None:
                    setattr(_python_dispatch, name, value)

    return undo


def _patch_reads(readers: list[Callable[[Tensor], None]]) -> Callable[[], None]:
    own = {name: vars(Tensor).get(name) for name in _READING}

    def noticed(method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            for on_read in list(readers):
                on_read(tensor)
            return method(tensor, *args, **kwargs)

        return read

    for name in _READING:
        setattr(Tensor, name, noticed(getattr(Tensor, name)))

    def undo() -> None:
        for name, method in own.items():
            if method is None:  # inherited from torch's C class
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)

    return undo


watching_threads = _Patch(_patch_threads).used_by
"""Returns a block in which threads that are started run under a mode: modes belong to the thread that enters them."""

noticing_reads = _Patch(_patch_reads).used_by
"""Returns a block in which a function is called with each tensor whose values are given to Python or numpy."""
