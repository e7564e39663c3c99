"""The callback in trainings of the real transformers library."""

import doctest
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries' own imports
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from xor_study.autopsy import NonFiniteError, Report
    from xor_study.autopsy.transformers import AutopsyCallback

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = [{"x": row, "labels": torch.zeros(1)} for row in torch.linspace(-1, 1, 64).reshape(16, 4)]


class Net(nn.Module):
    """Fails as `fault` says, in the third batch of training.

    Args:
        fault: name of one of the branches below.
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.fault = fault
        self.batches = 0

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return loss and logits."""
        self.batches += self.training
        fault = self.fault if self.batches == 3 and self.training else ""
        h = self.layer(x).float()
        if fault == "forward":
            h = torch.log(h * 0)
        if fault == "backward":
            h = (h * 0).abs().sqrt()
        if fault == "exception":
            raise ZeroDivisionError
        if fault == "interruption":
            raise KeyboardInterrupt
        if self.fault == "evaluation" and not self.training:
            h = h / h.new_zeros(())
        return {"loss": h.square().mean() if fault != "backward" else h.mean(), "logits": h}


def trainer(model: nn.Module, folder: Path, callbacks: list[Any], data: Any = DATA, **options: Any) -> Any:
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "seed": 0}
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    arguments = TrainingArguments(str(folder), **{**defaults, **quiet, **options})
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)


def train(folder: Path, model: nn.Module, callback: AutopsyCallback | None = None, **options: Any) -> Report:
    """Train, and return the report."""
    torch.manual_seed(0)
    callback = callback or AutopsyCallback()
    try:
        trainer(model, folder, [callback], **options).train()
    finally:
        assert not _get_current_dispatch_mode_stack()
        assert callback.report is not None
    return callback.report


HEALTHY = [
    {},
    {"bf16": True},
    {"fp16": True},
    {"gradient_accumulation_steps": 2},
    {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    {"optim": "adafactor"},
]


@pytest.mark.parametrize("options", HEALTHY, ids=str)
def test_a_healthy_training_is_silent(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train(tmp_path, Net(), **options)
    assert report.first is None, report.story
    assert report.history[-1].step in (6, 7)
    assert "aten" not in capsys.readouterr().err


@pytest.mark.parametrize("options", HEALTHY[:4], ids=str)
@pytest.mark.parametrize(("fault", "operation"), [("forward", "aten.log.default"), ("backward", "aten.div.Tensor")])
def test_names_the_line(
    fault: str, operation: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, Net(fault), **options).first
    assert first is not None
    step = 2 if "gradient_accumulation_steps" in options else 3
    assert (first.operation, first.phase, first.step, first.module) == (operation, fault, step, "Net")
    assert first.filename == __file__
    assert first.code == ("h = torch.log(h * 0)" if fault == "forward" else "h = (h * 0).abs().sqrt()")
    assert f"Step {step}, {fault}" in capsys.readouterr().err


UNEXPLAINED = rf"_loss is inf without an event; .* came from aten\.div\.Tensor at {re.escape(__file__)}:\d+$"
"""The Trainer computes an evaluation's loss in numpy."""


def test_evaluation_during_training_belongs_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = train(tmp_path, Net("evaluation"), eval_strategy="steps", eval_steps=2)
    (note,) = report.notes
    assert re.match(f"eval{UNEXPLAINED}", note)
    assert note in capsys.readouterr().err


def test_evaluation_and_prediction_alone(tmp_path: Path) -> None:
    callback = AutopsyCallback()
    training = trainer(Net("evaluation"), tmp_path, [callback])
    for method, name in ((training.evaluate, "eval"), (lambda: training.predict(DATA), "test")):
        method()
        assert callback.report is not None
        assert re.match(f"{name}{UNEXPLAINED}", callback.report.notes[0])
    training.train()
    assert callback.report.notes == []


def test_raising_ends_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, model = AutopsyCallback(on_event="raise"), Net("forward")
    with pytest.raises(NonFiniteError) as raised:
        train(tmp_path, model, callback)
    assert raised.value.report is callback.report
    assert model.batches == 3
    assert "aten" not in capsys.readouterr().err


def test_exceptions_and_interruptions_close_the_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, Net("exception"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Net("interruption"))


def test_a_trainer_that_exists_already(tmp_path: Path) -> None:
    callback = AutopsyCallback()
    training = trainer(Net("forward"), tmp_path, [])
    callback.attach(training)
    training.train()
    assert callback.report is not None
    assert callback.report.first is not None
    other = trainer(Net(), tmp_path, [])
    other.add_callback(AutopsyCallback())
    with pytest.raises(RuntimeError, match=r"must be given by callback\.attach\(trainer\)"):
        other.train()


def test_a_class_instead_of_an_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(Net("forward"), tmp_path, [AutopsyCallback]).train()
    assert "aten.log.default" in capsys.readouterr().err


def test_says_where_a_resumed_training_begins(tmp_path: Path) -> None:
    train(tmp_path, Net(), save_strategy="steps", save_steps=2, max_steps=2)
    callback = AutopsyCallback()
    trainer(Net(), tmp_path, [callback]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.report is not None
    assert any("resumed after step 2" in note for note in callback.report.notes)
    assert callback.report.history[-1].step in (4, 5)


class Scaled(GPT2LMHeadModel):  # type: ignore[misc]
    """A language model whose last normalisation overflows in the second step."""

    steps = 0

    def forward(self, **inputs: Any) -> Any:
        """Return loss and logits."""
        self.steps += 1
        if self.steps == 2:
            with torch.no_grad():
                self.transformer.ln_f.weight.fill_(3e38)
        return super().forward(**inputs)


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, Scaled])
def test_a_language_model(kind: type[GPT2LMHeadModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16))
    ids = torch.arange(12) % 50
    data = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones(12).long()} for _ in range(8)]
    report = train(tmp_path, model, data=data, max_steps=3, remove_unused_columns=False)
    if kind is GPT2LMHeadModel:
        assert report.first is None, report.story
    else:
        assert report.first is not None
        assert (report.first.step, report.first.phase) == (2, "forward")
        assert report.first.module == "Scaled.transformer.ln_f"


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="kep"):
        AutopsyCallback(kep=3)


def test_the_example() -> None:
    module = sys.modules[AutopsyCallback.__module__]
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted
    assert results.failed == 0
