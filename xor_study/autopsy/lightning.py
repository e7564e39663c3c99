"""The autopsy as a callback of Lightning's Trainer: `Trainer(callbacks=[AutopsyCallback()])`."""

from __future__ import annotations

from typing import Any

from xor_study.autopsy.callbacks import TrainerBlock, require
from xor_study.autopsy.report import Report

__all__ = ["AutopsyCallback"]


def _bases() -> list[type]:
    """Return the `Callback` of `lightning` and that of `pytorch_lightning`, its older name, or of the one installed."""
    bases, errors = [], []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            bases.append(require(f"{name}.callbacks", "lightning").Callback)
        except ImportError as error:
            errors.append(error)
    if not bases:
        raise errors[0]
    return bases


class AutopsyCallback(*_bases()):  # type: ignore[misc]  # one or two classes
    """Watches all of `fit`, `validate`, `test` and `predict`, and prints the story at the end if there is an event.

    Watching begins when the Trainer sets up (before `configure_model`, the checkpoint and the sanity check) and ends
    when it tears down, at an exception, or at an interruption. The story is printed on stderr, by each rank that has
    an event. Where Trainer starts processes itself (`ddp_spawn`), `report` stays in them.

    Args:
        log_event: whether to log the first event through the Trainer's loggers: its step as the metric
            "autopsy/first_event_step", and to loggers of TensorBoard the story as text.
        options: the arguments of `xor_study.autopsy.autopsy`. With `on_event="raise"` the fit ends with
            `NonFiniteError` at the first event.

    Raises:
        TypeError: if `autopsy` has no such option.

    Example:
        >>> import lightning, torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Model(BoringModel):
        ...     def training_step(self, batch, index):
        ...         return {"loss": torch.log(self(batch) * 0).mean()}
        >>> callback = AutopsyCallback()
        >>> options = {"max_steps": 1, "limit_val_batches": 0, "accelerator": "cpu", "logger": False}
        >>> silent = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.Trainer(callbacks=[callback], **options, **silent)
        >>> trainer.fit(Model())
        >>> callback.report.first.operation, callback.report.first.code
        ('aten.log.default', 'return {"loss": torch.log(self(batch) * 0).mean()}')
    """

    def __init__(self, *, log_event: bool = False, **options: Any) -> None:
        super().__init__()
        self._watching = TrainerBlock(options)
        self._log_event = log_event

    @property
    def report(self) -> Report | None:
        """The report of the last fit, validation, test or prediction; None before the first."""
        return self._watching.report

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to watch."""
        if not self._watching.is_open:  # a learning-rate finder runs a fit within the fit
            self._watching.open()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where a checkpoint has set the Trainer's count of steps."""
        self._watching.note_resumption(trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stop watching."""
        self._close(trainer, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching, at an exception or an interruption."""
        self._close(trainer, exception)

    def _close(self, trainer: Any, error: BaseException | None) -> None:
        if self._watching.is_open:
            try:
                self._watching.close(error, trainer.global_rank, trainer.world_size)
            finally:
                self._log(trainer)

    def _log(self, trainer: Any) -> None:
        first = self.report.first if self.report and self._log_event else None
        if first is None:
            return
        for logger in trainer.loggers:
            logger.log_metrics({"autopsy/first_event_step": first.step}, step=trainer.global_step)
            if add_text := getattr(logger.experiment, "add_text", None):
                add_text("autopsy", f"```\n{self.report}\n```", trainer.global_step)
