"""`with autopsy() as report:` puts the watch in place and takes it away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from xor_study.autopsy.finiteness import looks_finite, tensors_in
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.near_misses import NearMisses
from xor_study.autopsy.report import Report, StepSummary
from xor_study.autopsy.watch import COMPILED, Watch, storage_key


@contextmanager
def autopsy(
    *,
    on_event: Literal["continue", "raise"] = "continue",
    allow: Iterable[str] = (),
    near_misses: bool = False,
    keep: int = 20,
    checks: Literal["auto", "each", "batched"] = "auto",
    step: Callable[[], Any] | None = None,
) -> Iterator[Report]:
    """Watch all that torch does in this block, and find the first operation that went wrong.

    Steps are counted from 1 by the calls of `torch.optim` optimizers' `step` (of the busiest, where there are
    several): step k ends with the k-th. A step that GradScaler skips counts too. Without such an optimizer all is
    step 1.

    What runs in other threads is not seen, except autograd's own, nor what numpy does to a tensor's memory. Code under
    torch.compile runs uncompiled in the block.

    Args:
        on_event: "continue", or "raise" `NonFiniteError` as soon as a candidate is confirmed.
        allow: operations that may give what they like, such as "aten.log" or "aten.log.default".
        near_misses: whether to note what only comes near; costs some more reductions for every operation.
        keep: how many of the last steps are summarised.
        checks: "each" reads the check of every operation at once; "batched" reads many together, which spares an
            accelerator the waiting, but knows no offending values, judges storages as a whole and has no exact kinds.
            "auto" is "batched" where CUDA is in use when the block is entered, else "each".
        step: for batched checks: does again what the loop does up to the optimizer's step (forward and backward on the
            same batch). It is called after an event, before the parameters change, with the random numbers of the
            step, and its operations are checked one by one, so that the report is as good as that of "each".

    Yields:
        A report, complete when the block ends. `report.first` is the first event or None, `report.story` the text.

    Raises:
        NonFiniteError: at an event, where `on_event` says so.
        ValueError: if `on_event` or `checks` is another word.
    """
    if on_event not in ("continue", "raise"):
        raise ValueError(f"on_event={on_event!r}: must be 'continue' or 'raise'")
    if checks not in ("auto", "each", "batched"):
        raise ValueError(f"checks={checks!r}: must be 'auto', 'each' or 'batched'")
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    batched = checks == "batched" or (checks == "auto" and in_use)
    session = _Session(Report(keep), on_event == "raise", frozenset(allow), near_misses, batched, step)
    with session.hooks(), session.watch:
        try:
            yield session.report
        except BaseException:
            session.finish(raising=False)
            raise
        session.finish(raising=True)


class _Session:
    """Counts steps, fills the ring buffer and has a step done again, beside a `Watch`."""

    def __init__(
        self,
        report: Report,
        raising: bool,
        allowed: frozenset[str],
        near_misses: bool,
        batched: bool,
        again: Callable[[], Any] | None,
    ) -> None:
        self.report = report
        self._modules = Modules(self._measure)
        near = NearMisses(report) if near_misses else None
        self.watch = Watch(report, self._modules, allowed, raising, self._see_loss, batched, near)
        self._allowed = allowed
        self._again = again if batched else None
        self._summary = StepSummary(1)
        self._bounds: list[tuple[str, Tensor, Tensor]] = []
        self._loss: Tensor | None = None
        self._norm: Tensor | None = None
        self._measured: Tensor | None = None
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._skipped = 0
        self._random = _random_state() if self._again else None

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Set all hooks for the time of the block."""
        handles = [
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        self.watch.on_scale_update = self._after_scale_update
        self._modules.start()
        try:
            yield
        finally:
            self._modules.stop()
            for handle in handles:
                handle.remove()

    def finish(self, raising: bool) -> None:
        """Close the report."""
        if self._modules.compiled:
            self.report.note(COMPILED)
        self.watch.raising &= raising  # an error that is on its way already is not to be replaced
        if self._loss is not None or self._bounds:
            self._end_step(self._summary.step)
        self.watch.flush()
        self._do_again()
        self.watch.sweep(final=True)

    def _see_loss(self, loss: Tensor) -> None:
        self._loss = loss.detach()

    def _measure(self, name: str, output: Any) -> None:
        """Note the bounds of a module's output, unless it is the very tensor of the module within."""
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            for tensor in tensors_in(output):
                if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # inside vmap or grad it has no numbers yet
                    continue
                dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested
                if tensor is not self._measured and dense and tensor.is_floating_point() and tensor.numel():
                    self._measured = tensor
                    self._bounds.append((name, *torch.aminmax(tensor)))

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            dense = [gradient for gradient in gradients if gradient.layout == torch.strided]
            norms = [norm.float() for norm in torch._foreach_norm(dense)] if dense else []
            self._norm = torch.stack([norm.to(norms[0].device) for norm in norms]).norm() if norms else None
            if optimizer not in self._steps:  # what was not finite before is not the optimizer's doing
                strange = [p for p in parameters if not looks_finite(p)]
                known = self.watch.verdicts.values
                self.watch.not_finite_before |= {id(p) for p in strange if storage_key(p) not in known}
        self.watch.check_gradients(gradients)
        self._do_again()
        self.watch.updating = True

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.watch.updating = False
        self.watch.flush()
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        self._count()
        self.watch.sweep()

    def _after_scale_update(self) -> None:
        """GradScaler has ended its step; where no optimizer stepped, it skipped one."""
        if self.watch.step == self._summary.step and self._loss is not None:
            self._summary.skipped = True
            self._skipped += 1
            self._count()

    def _count(self) -> None:
        step = 1 + self._skipped + max(self._steps.values(), default=0)
        if step != self.watch.step:
            self.watch.step = step
            self._end_step(step)

    def _end_step(self, following: int) -> None:
        """Put the step's summary into the ring buffer and begin the next one."""
        summary = self._summary
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            summary.loss = float(self._loss) if self._loss is not None else None
            summary.gradient_norm = float(self._norm) if self._norm is not None else None
            bounds = [torch.stack([-low, high]).float().amax() for _, low, high in self._bounds]
            by_device: dict[torch.device, list[int]] = {}
            for index, bound in enumerate(bounds):
                by_device.setdefault(bound.device, []).append(index)
            for indices in by_device.values():
                values = torch.stack([bounds[index] for index in indices]).tolist()
                for index, value in zip(indices, values, strict=True):
                    name = self._bounds[index][0]
                    before = summary.largest.get(name, 0.0)
                    summary.largest[name] = value if value != value else max(before, value)
        self.report.history.append(summary)
        self._summary = StepSummary(following)
        self._bounds, self._loss, self._norm, self._measured = [], None, None, None
        if self._again:
            self._random = _random_state()

    def _do_again(self) -> None:
        """After an event found by batched checks, repeat the step with each operation checked at once."""
        if self._again is None or not self.report.events:
            return
        again, self._again = self._again, None  # once is enough
        present = _random_state()
        self.watch.idle = True
        _set_random_state(self._random)
        try:
            with autopsy(allow=self._allowed, checks="each") as closer, torch.enable_grad():
                again()
        finally:
            _set_random_state(present)
            self.watch.idle = False
        if closer.first is None:
            self.report.note("the step that was done again went well: it is not the same step, or not deterministic")
            return
        for event in closer.events:
            event.step = self.report.events[0].step
        self.report.events[:] = closer.events


def _random_state() -> tuple[Tensor, list[Tensor]]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else []


def _set_random_state(state: tuple[Tensor, list[Tensor]] | None) -> None:
    if state:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])
