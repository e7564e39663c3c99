"""Which line of the forward each node of autograd's graph belongs to."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from xor_study.autopsy import sources
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.report import Report
from xor_study.autopsy.sources import Site

graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""Returns -1 outside a backward, and in a backward its number."""

next_sequence: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""Returns the sequence number that autograd gives to the next node it makes in this thread."""

_MOST = 200_000
"""Sites that are kept; a loop that never runs its backward would fill the memory."""


class Sites:
    """The line of the forward call that made each node, by the node's sequence number.

    An operation doesn't know its node: autograd makes it before the operation is dispatched. A number that has grown
    since the last look therefore tells that the present operation has made nodes.

    Args:
        modules: which module is running.
        report: whether the user allows everything at present.
    """

    def __init__(self, modules: Modules, report: Report) -> None:
        self.sequence = next_sequence()
        self._modules = modules
        self._report = report
        self._sites: dict[int, Site] = {}

    def enter(self, sequence: int, frame: FrameType) -> None:
        """Note the line that made the nodes since the last call.

        Args:
            sequence: the next node's number.
            frame: the caller of the operation.
        """
        previous = self._sites.get(self.sequence - 1)
        site = self._site(frame)
        if previous:  # nodes that were made after the previous operation was dispatched: CopySlices, views
            self._sites.update(dict.fromkeys(range(self.sequence, sequence - 1), previous))
        if site:
            self._sites[sequence - 1] = site
        self.sequence = sequence
        if len(self._sites) > _MOST:
            for number in list(self._sites)[: _MOST // 2]:
                del self._sites[number]

    def _site(self, frame: FrameType) -> Site | None:
        if graph_task() != -1 and sources.user_frame(frame) is None:  # a backward that is recorded itself
            return self.of_backward()
        # A custom function's forward runs without gradients; its node belongs to the line that called `apply`.
        user = None if torch.is_grad_enabled() else sources.applying_frame(frame)
        user = user or sources.user_frame(frame)
        return Site(user.f_code, user.f_lasti, self._modules.current, self._report.allowing > 0) if user else None

    def of_backward(self) -> Site | None:
        """Return the line of the forward call whose backward is running."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self._sites.get(-1)
        number = int(node._sequence_nr())
        # CopySlices replaces the node of a write into a view, and is numbered one higher.
        return self._sites.get(number - 1 if node.name() == "CopySlices" else number)


def accumulating() -> bool:
    """Return whether autograd is adding to a leaf's gradient."""
    if graph_task() == -1:
        return False
    node: Any = torch._C._current_autograd_node()
    return node is not None and "AccumulateGrad" in node.name()
