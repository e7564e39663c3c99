"""What a block changes in Python and torch while it lasts, because nothing else tells of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

_READING = ("numpy", "tolist", "__dlpack__", "__reduce_ex__")
"""Methods that give a tensor's values to Python, numpy or a file without an operation; asarray calls `numpy`."""


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


@contextmanager
def watching_threads(mode: TorchDispatchMode) -> Iterator[None]:
    """Let threads that are started in this block run under a mode: modes belong to the thread that enters them."""
    start = threading.Thread.start

    def start_watched(thread: threading.Thread) -> None:
        run = thread.run

        def run_watched() -> None:
            del thread.run  # a cycle would keep the thread's tensors after its end
            # Not `with`: at its end, it sets torch's global flags to what they were when the thread began.
            _push_mode(InThread(mode))
            try:
                run()
            finally:
                _pop_mode()

        thread.run = run_watched  # type: ignore[method-assign]
        start(thread)

    threading.Thread.start = start_watched  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


@contextmanager
def noticing_reads(on_read: Callable[[Tensor], None]) -> Iterator[None]:
    """Call a function before a tensor's values are given to Python or numpy.

    Args:
        on_read: takes the tensor.
    """
    own = {name: vars(Tensor).get(name) for name in _READING}
    for name in _READING:
        setattr(Tensor, name, _noticed(getattr(Tensor, name), on_read))
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:  # inherited from torch's C class
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


def _noticed(method: Callable[..., Any], on_read: Callable[[Tensor], None]) -> Callable[..., Any]:
    def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        on_read(tensor)
        return method(tensor, *args, **kwargs)

    return read
