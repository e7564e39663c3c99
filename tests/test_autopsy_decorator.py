"""`@autopsy`: functions whose calls are watched, and blocks that are left in any order."""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, is_in_torch_dispatch_mode

from xor_study.autopsy import NonFiniteError, autopsy
from xor_study.autopsy.callbacks import TrainerBlock, require


@autopsy
def train(start: float, *, steps: int = 1) -> float:
    """Return the sum of some logarithms."""
    return sum(torch.tensor(start).log().item() for _ in range(steps))


@autopsy(on_event="raise", keep=3)
def checked(start: float) -> float:
    return torch.tensor(start).log().item()


class Model:
    """Has a method that is watched."""

    @autopsy
    def fit(self, start: float) -> "Model":
        """Keep a logarithm."""
        self.loss = torch.tensor(start).log().item()
        return self


def test_each_call_is_a_block_with_a_report() -> None:
    assert train(1.0) == 0
    report = train.report
    assert report is not None
    assert report.first is None
    assert train(0.0, steps=2) == -torch.inf
    assert train.report is not report
    assert train.report is not None
    assert train.report.first is not None
    assert train.report.first.count == 2
    assert train.report.first.source is not None
    assert train.report.first.source.function == "<genexpr>"
    assert not _get_current_dispatch_mode_stack()


def test_options_and_exceptions() -> None:
    assert checked.report is None
    with pytest.raises(NonFiniteError) as raised:
        checked(0.0)
    assert checked.report is raised.value.report
    assert checked.report is not None
    assert checked.report.history.maxlen == 3


def test_a_function_stays_itself() -> None:
    assert train.__name__ == "train"  # type: ignore[attr-defined]  # `Watched` declares the call alone
    assert train.__doc__ == "Return the sum of some logarithms."
    assert str(inspect.signature(train)) == "(start: float, *, steps: int = 1) -> float"
    assert list(inspect.signature(autopsy).parameters)[:2] == ["on_event", "allow"]


def test_methods() -> None:
    model = Model()
    assert model.fit(0.0) is model
    assert model.fit.report is not None
    assert model.fit.report.first is not None
    assert Model.fit.report is model.fit.report


def test_recursion_is_one_block() -> None:
    @autopsy
    def descend(depth: int) -> int:
        torch.zeros(1).log().item()
        return depth and descend(depth - 1)

    descend(3)
    assert descend.report is not None
    assert descend.report.first is not None
    assert descend.report.first.count == 4


def generate() -> Iterator[int]:
    yield 1


async def wait() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("thing", [generate, wait, Model, staticmethod(train)])
def test_refuses_what_does_not_run_when_it_is_called(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"@autopsy can't watch the .*: put `with autopsy"):
        autopsy(thing)
    with pytest.raises(TypeError, match="@autopsy can't watch the "):
        autopsy(keep=3)(thing)


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="kep"):
        autopsy(kep=3)  # type: ignore[call-overload]  # wrong on purpose


def test_a_block_can_be_entered_again() -> None:
    block = autopsy(keep=3)
    with block as first:
        torch.zeros(1).log().item()
    with block as second:
        torch.ones(1).log().item()
    assert first.first is not None
    assert second.first is None


class Silent(TorchDispatchMode):
    """A mode that does nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_block_may_be_left_before_a_mode_that_was_entered_later() -> None:
    block = autopsy()
    mode = Silent()
    report = block.__enter__()
    mode.__enter__()
    torch.zeros(1).log().item()
    block.leave(None)
    assert _get_current_dispatch_mode_stack() == [mode]
    torch.zeros(1).sqrt().neg().log().item()
    mode.__exit__(None, None, None)
    assert [event.operation for event in report.events] == ["aten.log.default"]
    assert not _get_current_dispatch_mode_stack()
    assert not is_in_torch_dispatch_mode()


def test_each_rank_with_an_event_prints_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    block = TrainerBlock({"keep": 3})
    for rank in range(3):
        block.open()
        torch.tensor(float(rank)).log().item()
        block.close(None, rank, ranks=3)
        assert not block.is_open
    assert capsys.readouterr().err.startswith("[rank 0] Step 1, forward: aten.log.default made 1 infinite of 1 ")
    block.close(None, 0, ranks=3)  # again, as a trainer may
    assert capsys.readouterr().err == ""


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(ImportError, match=r"needs no_such_library: pip install 'xor-study\[lightning\]'"):
        require("no_such_library.part", "lightning")
    with pytest.raises(ImportError, match=r"No module named 'xor_study\.no_such_part'"):
        require("xor_study.no_such_part", "lightning")


def test_a_block_can_be_entered_again_within_itself() -> None:
    block = autopsy()
    with block as outer:
        with block as inner:
            pass
        torch.zeros(1).log().sum().item()
    assert inner.first is None
    assert outer.first is not None
    assert outer.first.operation == "aten.log.default"
