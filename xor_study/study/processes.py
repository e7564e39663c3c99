"""A pool of processes whose `map` works like the built-in one, and which ends with its parent."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from xor_study.engines import FallbackWarning

Each = Callable[..., Iterable[Any]]
"""`map`, or the `map` of a pool of processes: the results come in the order of the arguments."""


@contextmanager
def processes(jobs: int) -> Iterator[Each]:
    """Provide a `map` that works in `jobs` processes, or in this one if `jobs` is 1.

    Example:
        >>> with processes(1) as each:
        ...     list(each(abs, [-1, 2]))
        [1, 2]
    """
    if jobs == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_process) as pool:
        # Ctrl-C reaches the whole group of processes: only this one may react, or each would print a traceback. The
        # handler is inherited, so they ignore it also while they import, before `_begin_process` runs.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(jobs):
            pool.submit(int)  # starts a process now: it imports while this one prepares what it will work on
        signal.signal(signal.SIGINT, handler)
        with _ended_by_errors():
            yield partial(_each, pool)


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows a handler is not inherited
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FallbackWarning)


def _each(pool: ProcessPoolExecutor, function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
    """Yield the results of calls; unlike `pool.map` it cancels none, which deadlocks a pool whose processes end."""
    waiting = deque([pool.submit(function, *arguments) for arguments in zip(*iterables, strict=True)])
    with _ended_by_errors():
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _ended_by_errors() -> Iterator[None]:
    """End all processes of the pool after an error, before the files that they write to are removed."""
    try:
        yield
    except BaseException:
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        raise
