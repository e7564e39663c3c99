"""The callback in fits of the real Lightning."""

import doctest
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    from xor_study.autopsy import NonFiniteError, Report
    from xor_study.autopsy.lightning import AutopsyCallback

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = torch.linspace(-1, 1, 48).reshape(12, 4)


class Model(lightning.LightningModule):  # type: ignore[misc]  # untyped where Lightning is missing
    """Fails as `fault` says, in the third batch.

    Args:
        fault: name of one of the branches below.
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.fault = fault
        self.batches = 0

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Return the loss."""
        self.batches += 1
        fault = self.fault if self.batches == 3 else ""
        h = self.net(batch)
        if fault == "forward":
            h = torch.log(h * 0)
        if fault == "exception":
            raise ZeroDivisionError
        if fault == "interruption":
            raise KeyboardInterrupt
        if fault == "backward":
            h = (h * 0).abs().sqrt()
        loss = h.float().square().mean() if fault != "backward" else h.float().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Log a loss."""
        h = self.net(batch)
        if self.fault == "validation":
            h = h / h.new_zeros(())
        self.log("validation_loss", h.float().square().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Adversaries(Model):
    """Two optimizers, stepped by hand."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(fault)
        self.other = nn.Linear(4, 2)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, index: int) -> None:
        """Step both."""
        for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
            optimizer.zero_grad()
            h = net(batch)
            if self.fault == "forward" and net is self.other and index == 1:
                h = torch.log(h * 0)
            self.manual_backward(h.square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one for each net."""
        return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.net, self.other)]


def trainer(callback: AutopsyCallback, folder: Path, **options: Any) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(**{"max_epochs": 2, "default_root_dir": folder, **quiet, **options}, callbacks=[callback])


def fit(folder: Path, model: Model, callback: AutopsyCallback | None = None, **options: Any) -> Report:
    """Fit with a sanity check, validation and checkpoints, and return the report."""
    torch.manual_seed(0)
    callback = callback or AutopsyCallback()
    try:
        trainer(callback, folder, **options).fit(model, DataLoader(DATA, 4), DataLoader(DATA, 4))
    finally:
        assert not _get_current_dispatch_mode_stack()
        assert callback.report is not None
    return callback.report


PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "16-true", "64-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_healthy_fit_is_silent(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = fit(tmp_path, Model(), precision=precision)
    assert report.first is None, report.story
    assert report.operations > 100
    assert report.history[-1].step in (6, 7)
    assert list(tmp_path.rglob("*.ckpt"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("fault", "operation"), [("forward", "aten.log.default"), ("backward", "aten.div.Tensor")])
def test_names_the_line(
    fault: str, operation: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(tmp_path, Model(fault), precision=precision).first
    assert first is not None
    assert (first.operation, first.phase, first.step) == (operation, fault, 3)
    assert first.filename == __file__
    assert first.code == ("h = torch.log(h * 0)" if fault == "forward" else "h = (h * 0).abs().sqrt()")
    assert f"Step 3, {fault}" in capsys.readouterr().err


def test_accumulated_gradients_and_clipping(tmp_path: Path) -> None:
    first = fit(tmp_path, Model("backward"), accumulate_grad_batches=2, gradient_clip_val=1.0).first
    assert first is not None
    assert (first.operation, first.phase, first.step) == ("aten.div.Tensor", "backward", 2)


def test_validation_runs_in_inference_mode(tmp_path: Path) -> None:
    first = fit(tmp_path, Model("validation")).first  # in the sanity check
    assert first is not None
    assert (first.operation, first.step, first.code) == ("aten.div.Tensor", 1, "h = h / h.new_zeros(())")
    later = fit(tmp_path, Model("validation"), num_sanity_val_steps=0).first
    assert later is not None
    assert later.step in (3, 4)  # after an epoch of three steps


@pytest.mark.parametrize(("fault", "step"), [("", None), ("forward", 3)])
def test_two_optimizers(fault: str, step: int | None, tmp_path: Path) -> None:
    """The optimizer with most steps counts: in the second batch the first one has stepped twice."""
    report = fit(tmp_path, Adversaries(fault))
    assert (report.first and report.first.step) == step
    assert report.history[-1].step in (6, 7)


def test_raising_ends_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, model = AutopsyCallback(on_event="raise"), Model("forward")
    with pytest.raises(NonFiniteError) as raised:
        fit(tmp_path, model, callback)
    assert raised.value.report is callback.report
    assert model.batches == 3
    assert capsys.readouterr().err == ""  # the message of the error is the story


def test_exceptions_and_interruptions_close_the_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Model("exception"))
    with pytest.raises(SystemExit):  # Lightning's own way to end
        fit(tmp_path, Model("interruption"))


def test_an_event_before_an_exception_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Model):
        def on_validation_epoch_end(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Failing("validation"))
    assert "aten.div.Tensor" in capsys.readouterr().err


def test_each_entry_point_has_a_report(tmp_path: Path) -> None:
    callback = AutopsyCallback()
    for method in ("validate", "test"):
        getattr(trainer(callback, tmp_path), method)(Model("validation"), DataLoader(DATA, 4), verbose=False)
        assert callback.report is not None
        assert callback.report.first is not None
        getattr(trainer(callback, tmp_path), method)(Model(), DataLoader(DATA, 4), verbose=False)
        assert callback.report.first is None


def test_logs_the_first_event(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Model("forward"), AutopsyCallback(log_event=True), logger=logger, log_every_n_steps=1)
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("autopsy/first_event_step")
    assert [row.split(",")[column] for row in rows if row.split(",")[column]] == ["3"]


def test_says_where_a_resumed_fit_begins(tmp_path: Path) -> None:
    fit(tmp_path, Model(), max_epochs=1)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    callback = AutopsyCallback()
    trainer(callback, tmp_path).fit(Model("forward"), DataLoader(DATA, 4), DataLoader(DATA, 4), ckpt_path=checkpoint)
    assert callback.report is not None
    assert callback.report.first is not None
    assert callback.report.first.step == 3
    assert any("resumed after step 3" in note for note in callback.report.notes)


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="kep"):
        AutopsyCallback(kep=3)


def test_the_older_name_of_the_library(tmp_path: Path) -> None:
    older = pytest.importorskip("pytorch_lightning")

    callback = AutopsyCallback()

    class Net(older.LightningModule):  # type: ignore[misc]  # importorskip gives Any
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return torch.log(self.net(batch) * 0).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    fitting = older.Trainer(max_steps=2, enable_checkpointing=False, callbacks=[callback], **quiet)
    fitting.fit(Net(), DataLoader(DATA, 4))
    assert callback.report is not None
    assert callback.report.first is not None
    assert callback.report.first.code == "return torch.log(self.net(batch) * 0).mean()"


def test_the_example() -> None:
    module = sys.modules[AutopsyCallback.__module__]
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted
    assert results.failed == 0
