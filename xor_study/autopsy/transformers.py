"""The autopsy as a callback of HF's Trainer: `Trainer(..., callbacks=[AutopsyCallback()])`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

from xor_study.autopsy.callbacks import TrainerBlock, require
from xor_study.autopsy.report import Report

__all__ = ["AutopsyCallback"]

_library: Any = require("transformers", "transformers")


class AutopsyCallback(_library.TrainerCallback):  # type: ignore[misc]  # untyped
    """Watches all of `train`, `evaluate` and `predict`, and prints the story at the end if there is an event.

    The Trainer's events can't surround training: none of them says that an exception has ended it. So the callback
    replaces the three methods of the Trainer instance it was given to by ones that open the block, call the original
    and close the block, whatever happens. It finds that instance in `on_init_end`, among the callers.

    The story is printed on stderr, by each process that has an event.

    Args:
        options: the arguments of `xor_study.autopsy.autopsy`. With `on_event="raise"` the training ends with
            `NonFiniteError` at the first event.

    Raises:
        TypeError: if `autopsy` has no such option.

    Example:
        >>> import tempfile, torch
        >>> from transformers import Trainer, TrainingArguments
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.ones(1))
        ...     def forward(self, x):
        ...         return {"loss": torch.log(self.weight * x).mean()}
        >>> callback = AutopsyCallback()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(folder, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
        ...     trainer = Trainer(Net(), arguments, train_dataset=[{"x": torch.zeros(1)}], callbacks=[callback])
        ...     _ = trainer.train()
        {...}
        >>> callback.report.first.operation, callback.report.first.code
        ('aten.log.default', 'return {"loss": torch.log(self.weight * x).mean()}')
    """

    def __init__(self, **options: Any) -> None:
        self._watching = TrainerBlock(options)

    @property
    def report(self) -> Report | None:
        """The report of the last training, evaluation or prediction; None before the first."""
        return self._watching.report

    def attach(self, trainer: Any) -> None:
        """Watch a Trainer that exists already, in place of `Trainer(callbacks=[...])` and `add_callback`."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        for name in ("train", "evaluate", "predict"):
            setattr(trainer, name, self._watched(trainer, getattr(trainer, name)))

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the Trainer that is being made, and surround its methods."""
        self.attach(_trainer_among(sys._getframe(1)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where a checkpoint has set the Trainer's count of steps.

        Raises:
            RuntimeError: if the Trainer is not watched, since it was given this callback later.
        """
        if not self._watching.is_open:
            raise RuntimeError(
                "an AutopsyCallback that a Trainer gets after it was made must be given by callback.attach(trainer), "
                "not by trainer.add_callback(callback): it couldn't see the end of training at an exception"
            )
        self._watching.note_resumption(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        """Look at the metrics of an evaluation."""
        self._watching.see_metrics(metrics)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        """Look at the metrics of a prediction."""
        self._watching.see_metrics(metrics)

    def _watched(self, trainer: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of a Trainer that is called in a block, unless it is called in one already."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._watching.is_open:  # training evaluates
                return method(*args, **kwargs)
            self._watching.open()
            try:
                result = method(*args, **kwargs)
            except BaseException as error:
                self._close(trainer, error)
                raise
            self._close(trainer, None)
            return result

        return call

    def _close(self, trainer: Any, error: BaseException | None) -> None:
        self._watching.close(error, trainer.args.process_index, trainer.args.world_size)


def _trainer_among(frame: FrameType | None) -> Any:
    """Return the Trainer whose `__init__` is running."""
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, _library.Trainer):
            return candidate
        frame = frame.f_back
    raise RuntimeError("no transformers.Trainer is being made: use callback.attach(trainer)")
