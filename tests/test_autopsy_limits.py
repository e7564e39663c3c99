"""What an autopsy must survive, must not accuse, and must tell right: threads, subclasses, tracing, errors, origins."""

import contextlib
import dataclasses
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_map

from xor_study.autopsy import NonFiniteError, Report, autopsy
from xor_study.autopsy.deferred import Bounds, Deferred, Read
from xor_study.autopsy.finiteness import State
from xor_study.autopsy.immediate import Immediate

BOTH = pytest.mark.parametrize("checks", ["each", "batched"])


def module_of(path: Path, code: str) -> ModuleType:
    """Write a module and import it from its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(report: Report) -> list[tuple[str, str]]:
    return [(event.operation.split(".")[1], event.phase) for event in report.events]


# --- where code runs --------------------------------------------------------------------------------------------------


@BOTH
def test_a_thread_that_starts_in_the_block_is_watched(checks: Any) -> None:
    net = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def train() -> None:
        torch.log(net(torch.ones(3, 4)) * 0).sum().backward()
        optimizer.step()

    with autopsy(checks=checks) as report:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert found(report)[0] == ("log", "forward")
    assert report.first is not None
    assert "loss" in report.first.reached
    assert report.first.code == "torch.log(net(torch.ones(3, 4)) * 0).sum().backward()"


def test_a_thread_that_outlives_the_block_is_left_alone() -> None:
    ended, done = threading.Event(), threading.Event()

    def work() -> None:
        ended.wait(10)
        torch.zeros(1).log()
        done.set()

    with autopsy() as report:
        threading.Thread(target=work).start()
    before = report.operations
    ended.set()
    assert done.wait(10)
    assert report.operations == before
    assert threading.Thread.start.__module__ == "threading"


def test_a_module_in_a_thread_from_before_the_block_is_named_in_a_note() -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        nn.Linear(2, 2)(torch.ones(1, 2))
        done.set()

    threading.Thread(target=work, name="actor").start()
    with autopsy() as report:
        go.set()
        assert done.wait(10)
    assert any("'actor'" in note and "not watched" in note for note in report.notes)


def test_modules_of_other_threads_are_not_named() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            entered.set()
            leave.wait(10)
            return x

    thread = threading.Thread(target=Slow(), args=(torch.ones(1),))
    thread.start()
    assert entered.wait(10)
    with autopsy() as report:
        torch.log(torch.zeros(3)).sum().item()
    leave.set()
    thread.join()
    assert report.first is not None
    assert report.first.module is None


class Nested(torch.autograd.Function):
    """Its backward runs another backward; beyond a depth of 60 autograd does that in another thread."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int) -> Tensor:  # noqa: D102
        ctx.depth = depth
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:  # noqa: D102
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (Nested.apply(y, ctx.depth - 1) if ctx.depth else y * 2).sum().backward()
        return y.grad, None


@BOTH
def test_a_backward_in_autograds_own_threads_overwrites_no_line(checks: Any) -> None:
    weight, other = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with autopsy(checks=checks) as report:
        late = torch.sqrt(weight).sum()
        Nested.apply(other, 70).sum().backward()
        late.backward()
    assert report.first is not None
    assert report.first.code == "late = torch.sqrt(weight).sum()"


@BOTH
def test_inference_mode_is_no_blind_spot(checks: Any) -> None:
    net = nn.Linear(4, 3)
    with autopsy(checks=checks) as report, torch.inference_mode():
        p = (net(torch.ones(5, 4)) * 1e5).softmax(-1)
        (-torch.log(p.amin(-1))).mean().item()
    assert found(report)[0] == ("log", "forward")


# --- tensors and modes that are not plain ---------------------------------------------------------------------------


class Wrapped(Tensor):
    """A tensor that holds another one, as quantised and sharded tensors do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":  # noqa: ANN001, D102
        made: Wrapped = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # no stub
            cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, Wrapped) else t, (args, kwargs or {}))
        return tree_map(lambda t: Wrapped(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


@BOTH
def test_operations_within_a_tensor_subclass_are_seen(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        assert isinstance(Wrapped(torch.ones(3)) * 2, Wrapped)
    assert report.first is None
    assert report.notes == []
    with autopsy(checks=checks) as report:
        torch.log(Wrapped(torch.zeros(3))).sum()
    assert found(report) == [("log", "forward")]


@BOTH
def test_a_jagged_tensor_with_an_infinity_is_seen_and_survives(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        parts = [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
        y = torch.log(torch.nested.nested_tensor(parts, layout=torch.jagged))
        torch.nan_to_num(torch.nested.to_padded_tensor(y, 0.0), neginf=0.0).sum().item()
    assert report.first is None
    assert report.notes == []


@BOTH
def test_what_has_no_values_is_left_alone(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        with torch.device("meta"):
            nn.Linear(4, 4)(torch.randn(3, 4)).sum().backward()
        with FakeTensorMode():
            net = nn.Linear(4, 4)
            torch.log(net(torch.randn(3, 4)) * 0).sum().backward()
            torch.optim.SGD(net.parameters(), 0.1).step()
        graph = make_fx(lambda x: torch.exp(x) + 1)(torch.ones(3))
        exported = torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),))
    assert "exp" in graph.code
    assert exported.module()(torch.ones(3, 4)).shape == (3, 2)
    assert report.first is None
    assert report.notes == []


def test_an_internal_error_is_noted_once_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Immediate, *args: Any) -> None:
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr(Immediate, "_examine", broken)
    with autopsy() as report:
        for _ in range(20):
            assert torch.isinf(torch.zeros(1).log()).all()
    assert [note for note in report.notes if "broken on purpose" in note] == [report.notes[0]]
    assert report.notes[0].startswith("an internal error of the autopsy: ZeroDivisionError at test_autopsy_limits.py:")
    assert "not watched any more" in report.notes[1]


def test_a_module_that_can_not_be_hashed_is_run() -> None:
    @dataclasses.dataclass
    class Scaled(nn.Module):
        factor: float = 2.0

        def __post_init__(self) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    with autopsy() as report:
        assert Scaled()(torch.ones(2)).tolist() == [2, 2]
        (Scaled()(torch.zeros(2)).log()).sum().item()
    assert found(report) == [("log", "forward")]
    assert report.notes == []


def test_a_thread_that_outlives_the_block_leaves_torch_as_it_was() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    with autopsy():
        thread.start()
    go.set()
    thread.join()
    assert not is_in_torch_dispatch_mode()
    assert "run" not in vars(thread)


def test_blocks_of_two_threads_may_overlap() -> None:
    started, go = threading.Event(), threading.Event()
    reports: list[Report] = []

    def work() -> None:
        with autopsy() as report:
            reports.append(report)
            started.set()
            go.wait(10)
            torch.zeros(1).log().sum().item()

    with autopsy() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(10)
    go.set()
    thread.join()
    assert outer.first is None
    assert found(reports[0]) == [("log", "forward")]
    assert threading.Thread.start.__qualname__ == "Thread.start"
    assert "numpy" not in vars(Tensor)
    assert not is_in_torch_dispatch_mode()


@BOTH
def test_a_block_within_a_block_accuses_nothing(checks: Any) -> None:
    x = torch.tensor([0.0, 1.0])
    with autopsy(checks=checks) as outer:
        with autopsy(checks=checks) as inner:
            torch.where(x > 0, torch.log(x), 0.0).sum()
        torch.log(x - x).sum().item()
    assert inner.first is None
    assert found(outer) == [("log", "forward")]


def test_an_evaluation_without_steps_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xor_study.autopsy.session._MOST_BOUNDS", 5)
    net = nn.Linear(2, 2)
    with autopsy() as report, torch.no_grad():
        for size in range(20):
            net(torch.full((1, 2), float(size)))
        out = net(torch.zeros(1, 2))
        gone = weakref.ref(out)
        del out
        assert gone() is None
    assert report.history[0].largest["Linear"] > 1


def test_a_report_with_a_log_can_be_pickled(tmp_path: Path) -> None:
    with autopsy(log=tmp_path / "events.jsonl") as report:
        torch.zeros(1).log().sum().item()
    assert pickle.loads(pickle.dumps(report)).first.operation == "aten.log.default"  # our own bytes


# --- what is no failure ----------------------------------------------------------------------------------------------


@BOTH
def test_a_cast_to_integers_swallows_nothing(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        distance = torch.arange(4)
        bucket = (torch.log(distance.float()) * 2).to(torch.int64)
        torch.where(distance < 1, distance, bucket).sum().item()
    assert report.first is None


@BOTH
def test_reads_by_python_and_numpy_are_reads(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        zeros = torch.tensor([0.0, 1.0])
        assert np.nanmean((zeros / zeros).numpy()) == 1
        assert (zeros / zeros).tolist()[1] == 1
        assert np.asarray(zeros / zeros)[1] == 1
        np.from_dlpack(zeros / zeros)
    assert report.first is None
    assert "numpy" not in vars(Tensor)


ORDERED = {
    "argsort": lambda logs: logs.argsort(-1),
    "topk": lambda logs: logs.topk(2).indices,
    "sort": lambda logs: logs.sort(-1).indices,
    "min": lambda logs: logs.min(-1).indices,
    "compared": lambda logs: torch.where(logs < -1, 1, 0),
}


@BOTH
@pytest.mark.parametrize("name", ORDERED)
def test_an_infinity_that_is_only_ordered_is_no_failure(name: str, checks: Any) -> None:
    with autopsy(checks=checks) as report:
        assert ORDERED[name](torch.tensor([0.0, 0.5, 1.0]).log()).sum().item() >= 0
    assert report.first is None


def test_nan_that_is_compared_is_a_failure() -> None:
    with autopsy() as report:
        assert not (torch.tensor([-1.0]).log() < 0).item()
    assert found(report) == [("log", "forward")]


def test_values_that_are_saved_are_read(tmp_path: Path) -> None:
    with autopsy() as report:
        torch.save(torch.tensor([0.0, 1.0]).log(), tmp_path / "logs.pt")
    assert report.first is None


def test_a_read_between_two_looks_at_batched_checks_is_a_read() -> None:
    with autopsy(checks="batched") as report:
        logs = torch.zeros(3).log()
        torch.ones(1).add(1).item()  # has the checks read
        assert logs.numpy().shape == (3,)
    assert report.first is None


def test_reads_in_steps_that_are_not_watched_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Deferred, *args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Deferred, "read_by_python", refused)
    with autopsy(checks="batched", start_step=1000) as report:
        assert torch.ones(2).tolist() == [1, 1]
    assert not [note for note in report.notes if "internal error" in note]


def test_a_check_that_another_thread_has_read_is_not_taken_for_another() -> None:
    bounds = Read(5, [Bounds(float("nan"), float("nan"))])
    assert (bounds.of(5).state, bounds.of(4).state) == (State.NAN, State.FINITE)


def test_a_copy_of_the_bad_elements_may_be_dropped() -> None:
    with autopsy() as report:
        ratio = torch.tensor([0.0, 1.0]) / torch.tensor([0.0, 1.0])
        assert len(ratio[torch.isnan(ratio)]) == 1
        ratio[torch.isnan(ratio)] = 0
        assert ratio.sum().item() == 1
    assert report.first is None


@BOTH
def test_an_exception_before_a_repair_proves_nothing(checks: Any) -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(KeyboardInterrupt), autopsy(checks=checks) as report:  # noqa: PT012
        logs = torch.log(x)
        raise KeyboardInterrupt
    assert logs is not None
    assert report.first is None
    assert [event.operation for event in report.unresolved] == ["aten.log.default"]
    assert "An exception ended the block" in report.story


@BOTH
def test_an_operation_that_fails_before_a_repair_and_is_caught_proves_nothing(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                logs = torch.log(torch.tensor([0.0, 1.0]))
                torch.ones(2) @ torch.ones(3)
                torch.where(torch.isinf(logs), 0.0, logs).sum().item()
            del logs
            torch.ones(1).add(1).item()
    assert report.first is None


@BOTH
def test_the_operation_that_refuses_a_bad_value_is_an_effect(checks: Any) -> None:
    matrix = torch.zeros(3, 3)
    with pytest.raises(torch.linalg.LinAlgError), autopsy(checks=checks) as report:
        torch.linalg.eigh(matrix / matrix)
    assert found(report) == [("div", "forward")]
    assert report.events[0].reached == ["error"]
    assert "It reached the error that ended the block." in report.story


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.SGD, {}), (torch.optim.LBFGS, {"max_iter": 2})])
def test_a_closure_belongs_to_its_own_step(kind: Any, options: dict[str, int]) -> None:
    net = nn.Linear(2, 1)
    optimizer = kind(net.parameters(), lr=0.1, **options)
    x = torch.ones(3, 2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        return loss

    with autopsy() as report:
        for _ in range(2):
            optimizer.step(closure)
        optimizer.param_groups[0]["lr"] = float("nan")
        optimizer.step(closure)
    assert report.first is not None
    assert (report.first.phase, report.first.step) == ("optimizer", 3)
    assert report.history[0].gradient_norm is not None
    assert report.first.cause == f"lr of {kind.__name__}'s parameter group 0 is nan"


def test_the_gradient_norm_of_a_closure_is_that_of_its_step() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.sum() * len(report.history)
        loss.backward()
        return loss

    with autopsy() as report:
        for _ in range(4):
            optimizer.step(closure)
    assert [summary.gradient_norm for summary in report.history] == [0, 1, 2, 3]


def test_packages_whose_name_begins_with_torch_are_named_with_the_users_own_call(tmp_path: Path) -> None:
    package = tmp_path / "lib/site-packages/torchfoo/losses.py"
    losses = module_of(package, "import torch\ndef loss(x):\n    return torch.sqrt(x).sum()\n")
    script = module_of(tmp_path / "script.py", "def run(loss, x):\n    loss(x).backward()\n")
    with autopsy() as report:
        script.run(losses.loss, torch.zeros(2, requires_grad=True))
    event = report.first
    assert event is not None
    assert (event.filename, event.lineno, event.phase) == (str(package), 3, "backward")
    assert any(source.filename.endswith("script.py") for source in event.stack)
    assert "called from" in report.story


def test_two_files_with_the_same_function_are_told_apart(tmp_path: Path) -> None:
    code = "import torch\ndef loss(x):\n    return torch.log(x).sum()\n"
    for name in ("one", "two"):
        module = module_of(tmp_path / f"{name}.py", code)
        with autopsy() as report:
            module.loss(torch.zeros(1))
        assert report.first is not None
        assert Path(report.first.filename or "").stem == name


HIDDEN = {
    "exp": lambda x: torch.exp(x * 1e-36),
    "mul": lambda x: x * 10,
    "pow": lambda x: x**2,
    "sum": lambda x: x.sum(-1),
    "cumsum": lambda x: torch.cumsum(x, -1),
    "mm": lambda x: x @ torch.full((3, 1), 5.0),
    "prod": lambda x: x.prod(-1),
}


@BOTH
@pytest.mark.parametrize("name", HIDDEN)
def test_an_overflow_behind_a_mask_is_seen(name: str, checks: Any) -> None:
    mask = torch.tensor([[False, False, True], [False, False, False]])
    with autopsy(checks=checks) as report:
        x = torch.full((2, 3), 2e38).masked_fill(mask, float("-inf"))
        y = HIDDEN[name](x)
        (y - y).sum().item()
    assert found(report)[0] == (name, "forward")


def test_a_mask_alone_hides_nothing() -> None:
    mask = torch.tensor([[False, False, True], [False, False, False]])
    with autopsy() as report:
        x = torch.ones(2, 3).masked_fill(mask, float("-inf"))
        e = torch.exp(x * 2)
        assert (e / e.sum(-1, keepdim=True)).sum().item() == pytest.approx(2)
    assert report.first is None


@BOTH
def test_a_sum_over_a_mask_is_named_instead_of_the_mask(checks: Any) -> None:
    logits = torch.randn(8, 12, requires_grad=True)
    with autopsy(checks=checks) as report:
        masked = logits.index_fill(-1, torch.tensor([0, 11]), float("-inf"))
        F.cross_entropy(masked, torch.ones(8, dtype=torch.long), label_smoothing=0.1).backward()
    assert report.first is not None
    assert (report.first.origin, report.first.code[:15]) == ("spread", "F.cross_entropy")


@BOTH
def test_a_division_by_the_infinity_of_the_line_before_is_an_event(checks: Any) -> None:
    with autopsy(checks=checks) as report:
        peak = torch.ones(1) / torch.zeros(1)
        out = torch.ones(4, requires_grad=True) / peak
        out.sum().backward()
    assert found(report)[0] == ("div", "forward")
    assert report.events[0].reached == ["swallowed"]


def test_uninitialised_memory_is_said_as_such() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.use_deterministic_algorithms(True)  # fills new memory with NaN
            self.background = nn.Parameter(torch.empty(2))
            torch.use_deterministic_algorithms(False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.background]).sum()

    with autopsy() as report:
        Prompted()(torch.ones(2)).backward()
    event = report.first
    assert event is not None
    assert event.origin == "uninitialised"
    assert event.origin_source is not None
    assert "torch.empty(2)" in event.origin_source.code
    assert event.inputs[1].parameter == "Prompted.background"
    assert "tensors[1] = Prompted.background: float32 [2], 2 NaN" in report.story
    assert "was allocated by aten.empty" in report.story


def test_what_reached_the_training_comes_first() -> None:
    with autopsy() as report:
        torch.zeros(1).log()  # nothing reads it
        weight = torch.zeros(1, requires_grad=True)
        torch.sqrt(weight).sum().backward()
    assert [event.severity for event in report.events] == [0, 2]
    assert [event.operation for event in report.find(phase="backward")] == ["aten.div.Tensor"]
    assert report.find(reached="unread") == report.events[1:]
    assert report.find(file="test_autopsy_limits.py") == report.events
    assert report.find(file="elsewhere.py") == report.find(module="Net") == []


def test_events_are_found_by_module() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).log()

    with autopsy() as report:
        nn.Sequential(nn.Linear(2, 2), nn.Sequential(Block()))(torch.ones(1, 2)).sum().backward()
    for pattern in ("Sequential", "Sequential.1", "Sequential.1.0", "Sequential.*.0"):
        assert report.find(module=pattern, phase="forward"), pattern
    assert report.find(module="Sequential.0") == []


RANKS = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from xor_study.autopsy import autopsy

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
with autopsy(checks=sys.argv[4]) as report:
    net = DistributedDataParallel(nn.Linear(4, 1))
    x = net(torch.ones(2, 4))
    loss = (torch.log(x * 0) if rank == 1 else x).sum()
    loss.backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
open(f"{out}.{rank}", "w").write(f"{report.first.origin} {report.first.origin_operation} {report.first.operation}")
"""


def test_what_another_rank_brought_in_is_said(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script)]
    given = [str(tmp_path / "store"), str(tmp_path / "out"), "each"]
    processes = [subprocess.Popen([*command, str(rank), *given]) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    mine, other = ((tmp_path / f"out.{rank}").read_text() for rank in range(2))
    assert mine.startswith("received c10d.allreduce_.default (from rank 1; this is rank 0)")
    assert other == "operation None aten.log.default"


def test_raising_stops_at_the_event_in_a_thread_too() -> None:
    caught: list[Exception] = []

    def work() -> None:
        try:
            torch.log(torch.zeros(1, requires_grad=True)).sum().backward()
        except NonFiniteError as error:
            caught.append(error)

    with autopsy(on_event="raise"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_sites_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xor_study.autopsy.sites._MOST", 100)
    weight = torch.ones(3, requires_grad=True)
    with autopsy() as report:
        for _ in range(300):
            y = weight * 2
        torch.sqrt(y * 0).sum().backward()
    assert report.first is not None
    assert report.first.code == "torch.sqrt(y * 0).sum().backward()"


@pytest.mark.parametrize("shape", [(3_000_000,), (3000, 1000), (2, 1500, 1000)])
def test_summaries_of_large_tensors_count_every_element(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    x.view(-1)[[7, 2_500_000]] = 0.0
    x.view(-1)[9] = -1.0
    with autopsy() as report:
        torch.log(x)
    event = report.first
    assert event is not None
    assert (event.inputs[0].zero, event.inputs[0].minimum, event.inputs[0].maximum) == (2, -1, 1)
    assert (event.outputs[0].infinite, event.outputs[0].nan) == (2, 1)
    assert event.inputs[0].offending == (0, -1, 0)
    assert event.kind == "NaN"


def test_the_kind_of_a_large_product_is_found_from_one_element() -> None:
    left, right = torch.ones(1500, 1500, dtype=torch.float16), torch.ones(1500, 1500, dtype=torch.float16)
    left[3] = 300
    with autopsy() as report:
        left @ (right * 300)
    assert report.first is not None
    assert (report.first.operation, report.first.kind) == ("aten.mm.default", "overflow")
