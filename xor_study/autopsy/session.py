"""`with autopsy() as report:` sets up the watch, counts steps, and removes it all at the end of the block."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from xor_study.autopsy.decorator import both_forms
from xor_study.autopsy.finiteness import has_numbers, numbers_in, plain_tensors, tensors_in
from xor_study.autopsy.modules import Modules
from xor_study.autopsy.patches import noticing_reads, watching_threads
from xor_study.autopsy.report import COMPILED, Event, Report, StepSummary, json_values
from xor_study.autopsy.watch import Watch

_MOST_BOUNDS = 1000
"""Outputs of modules whose bounds are kept before they are read."""


@both_forms
def autopsy(
    *,
    on_event: Literal["continue", "raise"] = "continue",
    allow: Iterable[str] = (),
    near_misses: bool = False,
    lint: bool = False,
    keep: int = 20,
    checks: Literal["auto", "each", "batched"] = "auto",
    step: Callable[[], Any] | None = None,
    start_step: int = 1,
    every: int = 1,
    log: str | os.PathLike[str] | None = None,
) -> Iterator[Report]:
    """Watch all torch operations in this block, and find the earliest that turned finite inputs into inf or NaN.

    Also a decorator: after `@autopsy` or `@autopsy(...)` on a function, each of its calls is a block of its own, and
    the function's attribute `report` is the report of the last one.

    Steps are counted from 1 by the calls of `torch.optim` optimizers' `step` (of the one with most calls, if there are
    several): step k ends with the k-th call. A step that GradScaler skips counts too. Without such an optimizer
    everything belongs to step 1.

    Threads that are started in the block are watched, too; those that ran before it are not, nor is what numpy does to
    a tensor's memory. Code under torch.compile runs uncompiled in the block. If an exception ends the block, it may
    have come before the repair of a value: what nothing has read by then is in `report.unresolved`, not an event.
    An error of the autopsy itself never ends the program; it is noted in the report.

    Args:
        on_event: "continue", or "raise" to raise `NonFiniteError` as soon as an event is confirmed.
        allow: exempt operations, such as "aten.log" (all overloads) or "aten.log.default".
        near_misses: whether to note values that come near overflow, underflow or saturation as well; this costs a few
            more reductions for every operation, and needs `checks` to be "each".
        lint: whether to name compositions of operations that have a stable form (`report.risks`), such as the log of
            a softmax. It reads no values, so a single healthy step is enough.
        keep: the number of last steps that are summarised.
        checks: "each" reads the check of every operation at once. "batched" reads many together, so that an
            accelerator doesn't wait for each; such checks cannot report offending values, work per storage, and
            attribute every inf under GradScaler to loss scaling. "auto" is "each", and "batched" from the first step
            on at whose start CUDA is in use.
        step: only for batched checks: a function that repeats what the loop does up to the optimizer's step (forward
            and backward on the same batch). It is called once after an event, before the parameters change, with the
            step's random numbers, and its operations are checked one by one, so that the report is as exact as with
            "each".
        start_step: the first step that is watched, from 1. Steps before it cost nothing.
        every: watch only each `every`-th step from `start_step` on. A value that went wrong in a step between them is
            reported as coming from outside, by the first watched operation that reads it; and a step that GradScaler
            skips there is not counted.
        log: a file to which each event is appended as a line of JSON when it is confirmed, so that it is there even if
            the process is killed. What the value reaches later is not in it.

    Yields:
        A report, complete when the block ends. `report.first` is the first event or None, `report.story` the text.

    Raises:
        NonFiniteError: at an event, if `on_event` is "raise".
        ValueError: if an argument is none of the values above.
        OSError: if `log` can't be written.

    Example:
        >>> import torch
        >>> from xor_study.autopsy import autopsy
        >>> weight = torch.zeros(3, requires_grad=True)
        >>> with autopsy() as report:
        ...     loss = torch.log(weight + 1).sum().sqrt()
        ...     loss.backward()
        >>> report.first.operation, report.first.phase, report.first.kind
        ('aten.div.Tensor', 'backward', 'infinite')
        >>> report.first.code
        'loss = torch.log(weight + 1).sum().sqrt()'
        >>> report.first.reached
        ['gradient']
    """
    if on_event not in ("continue", "raise"):
        raise ValueError(f"on_event={on_event!r}: must be 'continue' or 'raise'")
    if checks not in ("auto", "each", "batched"):
        raise ValueError(f"checks={checks!r}: must be 'auto', 'each' or 'batched'")
    for name, number in (("start_step", start_step), ("every", every)):
        if number < 1:
            raise ValueError(f"{name}={number!r}: must be at least 1")
    report, steps = Report(keep), WatchedSteps(start_step, every)
    session = _Session(report, on_event == "raise", frozenset(allow), near_misses, lint, checks, step, steps)
    with log_to(log, report), session.hooks(), session.watching():
        try:
            yield session.report
        except BaseException as error:
            session.finish(error)
            raise
        session.finish()


@contextmanager
def log_to(path: str | os.PathLike[str] | None, report: Report) -> Iterator[None]:
    """Append a report's events to a file in this block, each as a line of JSON as soon as it is confirmed.

    Raises:
        OSError: if the file can't be opened; one that can't be written later is noted in the report.
    """
    if path is None:
        yield
        return

    def write(event: Event) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = {"time": now, "process": os.getpid(), **json_values(event.as_dict())}
        try:
            print(json.dumps(values, allow_nan=False), file=stream, flush=True)
        except OSError as error:
            report.note(f"{os.fspath(path)} lacks events: {error.strerror}")

    with open(path, "a", encoding="utf-8") as stream:  # noqa: PTH123  # os.PathLike is enough
        report.on_event = write
        try:
            yield
        finally:
            report.on_event = None  # a report can be pickled


class WatchedSteps(NamedTuple):
    """Which steps are watched: `start_step` and `every` of `autopsy`."""

    start: int
    every: int

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and step >= self.start and (step - self.start) % self.every == 0

    @property
    def note(self) -> str | None:
        """What a report says of the others, if there are any."""
        if self.start == self.every == 1:
            return None
        which = f"step {self.start} and the later ones"
        if self.every > 1:
            which = f"steps {self.start}, {self.start + self.every}, {self.start + 2 * self.every}, ..."
        return f"only {which} were watched; what went wrong in another step is said to come from outside"


class _Session:
    """Counts steps, summarises each and repeats one after an event, beside a `Watch`.

    Args:
        report: what the block yields.
        raising: whether to raise `NonFiniteError` at an event.
        allowed: names of exempt operations.
        near_misses: whether to note near misses.
        lint: whether to name risky compositions.
        checks: `checks` of `autopsy`.
        repeat: `step` of `autopsy`.
        steps: which steps to watch.
    """

    def __init__(
        self,
        report: Report,
        raising: bool,
        allowed: frozenset[str],
        near_misses: bool,
        lint: bool,
        checks: Literal["auto", "each", "batched"],
        repeat: Callable[[], Any] | None,
        steps: WatchedSteps,
    ) -> None:
        self.report = report
        self._modules = Modules(self._guarded(self._measure), self._guarded(self._see_thread))
        self._auto = checks == "auto"
        batched = checks == "batched" or (self._auto and _cuda_in_use())
        self.watch = Watch(
            report,
            self._modules,
            allowed=allowed,
            raising=raising,
            batched=batched,
            near_misses=near_misses,
            lint=lint,
            on_loss=self._see_loss,
            on_scale_update=self._after_scale_update,
        )
        self._allowed = allowed
        self._repeat = repeat if batched else None
        self._watched = steps
        self._summary = StepSummary(1)
        self._bounds: list[tuple[str, Tensor, Tensor]] = []
        self._loss: Tensor | None = None
        self._norm: Tensor | None = None
        self._measured: ref[Tensor] | None = None
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._skipped = 0
        self._closure = False
        self._random = _random_state() if self._repeat else None
        self._abandoned = False
        _living.add(self)

    def abandon(self) -> None:
        """Watch no more and report nothing: this process is a copy of the one whose report it is."""
        self._abandoned = True
        self.report.on_event = None
        self._modules.stop()
        self.watch.end()
        self.watch.suspend()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Set all hooks, and remove them at the end of the block."""
        handles = [
            register_optimizer_step_pre_hook(self._guarded(self._before_update)),
            register_optimizer_step_post_hook(self._guarded(self._after_update)),
        ]
        self._modules.start()
        try:
            with watching_threads(self.watch), noticing_reads(self.watch.read_by_python):
                yield
        finally:
            self.watch.end()
            self._modules.stop()
            for handle in handles:
                handle.remove()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from the first step on that is to be watched, until the end of the block."""
        if self._summary.step in self._watched:
            self.watch.resume()
        try:
            yield
        finally:
            self.watch.close()

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Return a hook whose own errors are noted, not raised."""

        def guarded(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                self.watch.fail(error)

        return guarded

    def finish(self, error: BaseException | None = None) -> None:
        """Complete the report.

        Args:
            error: the exception that ends the block.
        """
        self._guarded(self._finish)(error)

    def _finish(self, error: BaseException | None) -> None:
        if self._abandoned:
            return
        if self._watched.note:
            self.report.note(self._watched.note)
        for name in sorted(self._allowed - self.watch.names):  # perhaps misspelt
            self.report.note(f"allow: no operation {name} was seen")
        if self._modules.compiled:
            self.report.note(COMPILED)
        if self._loss is not None or self._bounds or self._summary.largest:
            self._end_step(self._summary.step)
        if error is not None:
            self.watch.finish_after(error)
        self.watch.flush()  # events of the last records, which the repetition explains
        self._repeat_step()
        if error is None:
            self.watch.finish()

    def _see_thread(self) -> None:
        """Note a thread whose operations are not seen, because it was started before the block."""
        if self.watch.watching and torch._C._len_torch_dispatch_stack() == 0:
            self.report.note(f"the thread {threading.current_thread().name!r} ran before the block: it was not watched")

    def _see_loss(self, loss: Tensor) -> None:
        self._loss = loss.detach()

    def _measure(self, name: str, output: Any) -> None:
        """Note the bounds of a module's output, unless a module within has returned the same tensor."""
        if not self.watch.watching:
            return
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            for tensor in tensors_in(output):
                if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # has no values inside vmap or grad
                    continue
                if (self._measured is None or tensor is not self._measured()) and has_numbers(tensor):
                    self._measured = ref(tensor)
                    self._bounds.append((name, *torch.aminmax(tensor)))
            if len(self._bounds) >= _MOST_BOUNDS:  # an evaluation without an optimizer's step
                self._merge_bounds()

    def _merge_bounds(self) -> None:
        """Enter the bounds of outputs into the step's summary."""
        _enter_largest(self._bounds, self._summary.largest)
        self._bounds = []

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.watch.watching:
            return
        parameters = [plain for parameter in _parameters(optimizer) for plain in plain_tensors(parameter)]
        # A closure makes the gradients only in the step.
        self._closure = (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None
        if not self._closure:
            self._see_gradients(optimizer)
        # The step is repeated while the parameters are still those that it used.
        self._repeat_step()
        self.watch.note_numbers(_bad_numbers(optimizer))
        # A parameter that is not finite before the first update was so from the start; the optimizer didn't do it.
        self.watch.begin_update([] if optimizer in self._steps else parameters)

    def _see_gradients(self, optimizer: Optimizer) -> None:
        gradients = [plain for p in _parameters(optimizer) if p.grad is not None for plain in plain_tensors(p.grad)]
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            self._norm = _norm(gradients)
        self.watch.check_gradients(gradients)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.watch.watching:
            self.watch.end_update()
            if self._closure:
                self._see_gradients(optimizer)
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        self._count()
        if self.watch.watching:
            self.watch.sweep()

    def _after_scale_update(self) -> None:
        """Count a step that GradScaler ends without an optimizer having stepped: it was skipped."""
        # If an optimizer has stepped, its hook has begun a new step already.
        if self.watch.step == self._summary.step and self._loss is not None:
            self._summary.skipped = True
            self._skipped += 1
            self._count()

    def _count(self) -> None:
        # With several optimizers (a GAN's), the one with most steps counts.
        step = 1 + self._skipped + max(self._steps.values(), default=0)
        if step != self.watch.step:
            self.watch.begin_step(step)
            self._end_step(step)
            if self._auto and _cuda_in_use():
                self.watch.batch()
            if step in self._watched:
                self.watch.resume()
            else:
                self.watch.suspend()

    def _end_step(self, following: int) -> None:
        """Enter the step's summary into the report, if it was watched, and begin the next one."""
        summary = self._summary
        with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowAutograd():
            losses = [loss for loss in plain_tensors(self._loss) if has_numbers(loss)] if self._loss is not None else []
            summary.loss = float(losses[0]) if losses else None
            summary.gradient_norm = float(self._norm) if self._norm is not None else None
            self._merge_bounds()
        if summary.step in self._watched:
            self.report.history.append(summary)
        self._summary = StepSummary(following)
        self._bounds, self._loss, self._norm, self._measured = [], None, None, None
        if self._repeat:
            self._random = _random_state()

    def _repeat_step(self) -> None:
        """After the first event of batched checks, repeat the step with each operation checked at once."""
        if self._repeat is None or not self.report.events:
            return
        repeat, self._repeat = self._repeat, None  # once is enough
        present = _random_state()
        with self.watch.paused():
            _set_random_state(self._random)
            try:
                with autopsy(allow=self._allowed, checks="each") as exact, torch.enable_grad():
                    repeat()
            finally:
                _set_random_state(present)
        if exact.first is None:
            self.report.note("the repeated step stayed finite: it is not the same step, or not deterministic")
            return
        for event in exact.events:
            event.step = self.report.events[0].step
        self.report.events[:] = exact.events


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _bad_numbers(optimizer: Optimizer) -> str:
    """Return which of an optimizer's numbers, such as its learning rate, are not finite, in words."""
    found = [
        f"{name} of {type(optimizer).__name__}'s parameter group {index} is {number}"
        for index, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if name != "params"
        for number in numbers_in(value)
        if not math.isfinite(abs(number))
    ]
    if found and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        found.append("a scheduler of torch.optim.lr_scheduler sets its rates")
    return "; ".join(found)


_living: WeakSet[_Session] = WeakSet()


def _abandon_all() -> None:
    for session in list(_living):
        session.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon_all)


def _norm(gradients: list[Tensor]) -> Tensor | None:
    """Return the norm over all gradients, of shape (), or None if none is dense."""
    dense = [gradient for gradient in gradients if has_numbers(gradient)]
    norms = [norm.float() for norm in torch._foreach_norm(dense)] if dense else []
    return torch.stack([norm.to(norms[0].device) for norm in norms]).norm() if norms else None


def _enter_largest(bounds: list[tuple[str, Tensor, Tensor]], largest: dict[str, float]) -> None:
    """Enter, by module, the largest absolute value of its outputs; NaN if one has one.

    Args:
        bounds: each output's module, smallest and largest element.
        largest: what is known of earlier outputs.
    """
    sizes = [torch.stack([-low, high]).float().amax() for _, low, high in bounds]
    by_device: dict[torch.device, list[int]] = {}
    for index, size in enumerate(sizes):
        by_device.setdefault(size.device, []).append(index)
    for indices in by_device.values():
        # One transfer for each device.
        values = torch.stack([sizes[index] for index in indices]).tolist()
        for index, value in zip(indices, values, strict=True):
            name = bounds[index][0]
            # max() would drop a NaN that comes second
            largest[name] = value if value != value else max(largest.get(name, 0.0), value)


def _cuda_in_use() -> bool:
    # In this order: is_available() alone may start CUDA, after which a forked process can't use it.
    return torch.cuda.is_initialized() and torch.cuda.is_available()  # type: ignore[no-untyped-call]


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if _cuda_in_use() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]] | None) -> None:
    if state:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])
