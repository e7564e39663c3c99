"""Which line of the forward each node of autograd's graph belongs to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch

from xor_study.autopsy import sources
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.report import Report
from xor_study.autopsy.sources import Site

graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""Returns -1 outside a backward, and in a backward its number."""

next_sequence: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""Returns the sequence number that autograd gives to the next node it makes in this thread."""

_MOST = 50_000
"""Sites that are kept of a thread; a loop that never runs its backward would fill the memory."""

_MOST_THREADS = 64
_MOST_DIFFERENT = 10_000
_SUFFIX = re.compile(r"Backward\d*$")


class _Entry(NamedTuple):
    """A site, and the short name of the operation that was running when it was entered."""

    site: Site
    operation: str


_Entries = dict[int, _Entry]


class _ThreadState(threading.local):
    """What belongs to one thread, because autograd numbers the nodes of each thread by themselves.

    Args:
        threads: where the entries of each thread are registered.
    """

    def __init__(self, threads: list[_Entries]) -> None:
        self.sequence = next_sequence()
        self.entries: _Entries = {}
        threads.append(self.entries)
        if len(threads) > _MOST_THREADS:  # the first is that of the thread that entered the block
            del threads[1]


class Sites:
    """The line of the forward call that made each node, by the node's sequence number.

    An operation doesn't know its node: autograd makes it before the operation is dispatched. A number that has grown
    since the last look therefore tells that the present operation has made nodes.

    Args:
        modules: which module is running.
        report: whether the user allows everything at present.
    """

    def __init__(self, modules: Modules, report: Report) -> None:
        self._modules = modules
        self._report = report
        self._threads: list[_Entries] = []
        self.thread = _ThreadState(self._threads)
        self._different: dict[tuple[int | str | None, ...], Site] = {}

    def enter(self, sequence: int, operation: str, frame: FrameType) -> None:
        """Note the line that made the nodes since the last call.

        Args:
            sequence: the next node's number.
            operation: short name of the operation that is running.
            frame: the caller of the operation.
        """
        state = self.thread
        entries = state.entries
        previous = entries.get(state.sequence - 1)
        site = self._site(frame)
        if previous:  # nodes that were made after the previous operation was dispatched: CopySlices, views
            entries.update(dict.fromkeys(range(state.sequence, sequence - 1), previous))
        if site:
            entries[sequence - 1] = _Entry(site, operation)
        state.sequence = sequence
        if len(entries) > _MOST:
            for number in list(entries)[: _MOST // 2]:
                del entries[number]

    def skip(self) -> None:
        """Leave the nodes that this thread has made since the last call without a line."""
        self.thread.sequence = next_sequence()

    def site_of(self, frame: FrameType, allowed: bool) -> Site:
        """Return the site of a frame outside torch: the same object for the same call."""
        own = sources.own_call(frame)
        own_key = (id(own[0]), own[1]) if own else (None, None)
        module = self._modules.current
        key = (id(frame.f_code), frame.f_lasti, module, allowed, *own_key)
        site = self._different.get(key)
        if site is None:
            if len(self._different) >= _MOST_DIFFERENT:
                self._different.clear()
            # The site keeps its code alive, so the id isn't given to another one.
            site = self._different[key] = Site(frame.f_code, frame.f_lasti, module, allowed, own)
        return site

    def _site(self, frame: FrameType) -> Site | None:
        if graph_task() != -1 and sources.user_frame(frame) is None:  # a backward that is recorded itself
            return self.of_backward()
        # A custom function's forward runs without gradients; its node belongs to the line that called `apply`.
        user = None if torch.is_grad_enabled() else sources.applying_frame(frame)
        user = user or sources.user_frame(frame)
        return self.site_of(user, self._report.allowing > 0) if user else None

    def of_backward(self) -> Site | None:
        """Return the line of the forward call whose backward is running; None if it can't be told."""
        node = torch._C._current_autograd_node()
        if node is None:
            entry = self.thread.entries.get(-1)
            return entry.site if entry else None
        number, name = int(node._sequence_nr()), node.name()
        # CopySlices replaces the node of a write into a view, and is numbered one higher.
        if name == "CopySlices":
            number -= 1
        found = [entries[number] for entries in self._threads if number in entries]
        if len(found) > 1:
            # The node doesn't tell its thread, but its name tells which operation made it.
            found = [entry for entry in found if _normal(entry.operation) == _normal(_SUFFIX.sub("", name))]
        return found[0].site if len(found) == 1 else None


def _normal(name: str) -> str:
    return name.replace("_", "").lower()


def accumulating() -> bool:
    """Return whether autograd is adding to a leaf's gradient."""
    if graph_task() == -1:
        return False
    node: Any = torch._C._current_autograd_node()
    return node is not None and "AccumulateGrad" in node.name()
