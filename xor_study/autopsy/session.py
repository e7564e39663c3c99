"""`with autopsy() as report:` puts the watch in place and takes it away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from xor_study.autopsy.finiteness import looks_finite, tensors_in
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.report import Report, StepSummary
from xor_study.autopsy.watch import Watch, largest, storage_key


@contextmanager
def autopsy(
    *,
    on_event: Literal["continue", "raise"] = "continue",
    allow: Iterable[str] = (),
    keep: int = 20,
) -> Iterator[Report]:
    """Watch all that torch does in this block, and find the first operation that went wrong.

    Args:
        on_event: "continue", or "raise" `NonFiniteError` as soon as a candidate is confirmed.
        allow: operations that may give what they like, such as "aten.log" or "aten.log.default".
        keep: how many of the last steps are summarised.

    Yields:
        A report, complete when the block ends. `report.first` is the first event or None, `report.story` the text.

    Raises:
        NonFiniteError: at an event, where `on_event` says so.
        ValueError: if `on_event` is another word.
    """
    if on_event not in ("continue", "raise"):
        raise ValueError(f"on_event={on_event!r}: must be 'continue' or 'raise'")
    session = _Session(Report(keep), on_event == "raise", frozenset(allow))
    with session.hooks(), session.watch:
        try:
            yield session.report
        except BaseException:
            session.finish(raising=False)
            raise
        session.finish(raising=True)


class _Session:
    """Counts steps and fills the ring buffer, beside a `Watch`."""

    def __init__(self, report: Report, raising: bool, allowed: frozenset[str]) -> None:
        self.report = report
        self._modules = Modules(self._measure)
        self.watch = Watch(report, self._modules, allowed, raising, self._see_loss)
        self._summary = StepSummary(1)
        self._measured: Tensor | None = None
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = [
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        self._modules.start()
        try:
            yield
        finally:
            self._modules.stop()
            for handle in handles:
                handle.remove()

    def finish(self, raising: bool) -> None:
        if self._summary.loss is not None or self._summary.largest:
            self.report.history.append(self._summary)
        self.watch.raising &= raising  # an error that is on its way already is not to be replaced
        self.watch.sweep(final=True)

    def _see_loss(self, loss: Tensor) -> None:
        self._summary.loss = float(loss.detach())

    def _measure(self, name: str, output: Any) -> None:
        """Note the largest value of a module's output, unless it is the very tensor of the module within."""
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            for tensor in tensors_in(output):
                if tensor is not self._measured and tensor.is_floating_point() and tensor.numel():
                    self._measured = tensor
                    value = largest(tensor)
                    self._summary.largest[name] = max(value, self._summary.largest.get(name, 0.0))

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            norms = torch._foreach_norm(gradients)
            self._summary.gradient_norm = torch.stack(norms).norm().item() if norms else None
            if optimizer not in self._steps:  # what was not finite before is not the optimizer's doing
                strange = [p for p in parameters if not looks_finite(p)]
                self.watch.not_finite_before |= {
                    id(p) for p in strange if storage_key(p) not in self.watch.verdicts.values
                }
        self.watch.check_gradients(gradients)
        self.watch.updating = True

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.watch.updating = False
        self.watch.sweep()
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        step = 1 + max(self._steps.values())
        if step != self.watch.step:
            self.report.history.append(self._summary)
            self._summary = StepSummary(step)
            self.watch.step = step
