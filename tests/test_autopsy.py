"""The autopsy against planted failures, and its rules one by one."""

import importlib.util
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import NEEDS_CUDA
from torch import Tensor, nn

from xor_study.autopsy import NonFiniteError, Report, autopsy

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """Return a package of scripts/, whose modules import each other by its name."""
    folder = ROOT / "scripts" / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted = load("planted")


def here() -> int:
    """Return the caller's line."""
    return inspect.stack()[1].lineno


def watched(training: Any, **options: Any) -> Report:
    torch.manual_seed(0)
    try:
        with autopsy(**options) as report:
            training()
    except torch.linalg.LinAlgError:  # what a matrix of NaN leads to, a step after the event
        pass
    return report


@pytest.mark.parametrize("name", planted.FAILURES)
def test_names_the_planted_line(name: str) -> None:
    training = planted.FAILURES[name]
    culprit = planted.culprit(training)
    first = watched(training).first
    assert first is not None
    assert (first.filename, first.lineno, first.phase) == (culprit.filename, culprit.lineno, culprit.phase)
    assert f"# culprit: {culprit.phase}" in first.code


@pytest.mark.parametrize("name", planted.HEALTHY)
def test_accuses_no_healthy_model(name: str) -> None:
    report = watched(planted.HEALTHY[name])
    assert report.first is None, report.story
    assert report.story.startswith("Nothing went wrong in ")


NOT_TOLD_APART_IN_BATCHES = {
    "negative_power_of_zero",  # swallowed in one part of a tensor
    "power_overflows_beside_a_mask",  # the tensor held an infinity before
    "scaler_cannot_help",  # whether an infinity is GradScaler's doing takes the operation's inputs
}


@pytest.mark.parametrize("name", sorted(planted.FAILURES.keys() - NOT_TOLD_APART_IN_BATCHES))
def test_batched_checks_name_the_same_line(name: str) -> None:
    culprit = planted.culprit(planted.FAILURES[name])
    first = watched(planted.FAILURES[name], checks="batched").first
    assert first is not None
    assert (first.lineno, first.phase) == (culprit.lineno, culprit.phase)


@pytest.mark.parametrize("name", planted.HEALTHY)
def test_batched_checks_accuse_no_healthy_model(name: str) -> None:
    assert watched(planted.HEALTHY[name], checks="batched").first is None


def test_there_are_enough_cases() -> None:
    assert len(planted.FAILURES) >= 70
    assert len(planted.HEALTHY) >= 40


# --- what a report says ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A layer of layers, so that names have a path."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 3) to (n, 2)."""
        return self.body(x)


def test_says_which_values_met() -> None:
    x = torch.tensor([4.0, 0.0, 2.0], requires_grad=True)
    with autopsy() as report:
        y = torch.log(x * 2)
        y.sum().backward()
    first = report.first
    assert first is not None
    assert (first.operation, first.phase, first.module, first.step) == ("aten.log.default", "forward", None, 1)
    (given,) = first.inputs
    assert (given.name, given.shape, given.minimum, given.maximum, given.zero) == ("self", (3,), 0.0, 8.0, 1)
    assert given.offending == (0.0,)
    assert (first.outputs[0].infinite, first.outputs[0].nan) == (1, 0)
    assert first.kind == "infinite"
    assert first.reached == ["loss"]
    assert "y = torch.log(x * 2)" in report.story


def test_says_what_float64_would_have_given() -> None:
    with autopsy() as report:
        torch.tensor([200.0], dtype=torch.float16) * 400
        torch.zeros(1) / torch.zeros(1)
    assert [event.kind for event in report.events] == ["overflow", "NaN"]
    assert report.events[0].inputs[1].minimum == 400


def test_gives_the_values_from_before_an_operation_in_place() -> None:
    x = torch.tensor([2.0, -1.0])
    with autopsy() as report:
        x.log_()
    assert report.first is not None
    assert report.first.inputs[0].minimum == -1.0
    assert report.first.inputs[0].offending == (-1.0,)


def test_names_the_module_of_forward_and_backward() -> None:
    net = Net()
    with torch.no_grad():
        net.body[0].bias.fill_(9)  # so that each tanh gives 1, and their sum overflows for all initial weights
        net.body[2].weight.fill_(3e38)
    with autopsy() as report:
        net(torch.ones(2, 3))
    assert report.first is not None
    assert report.first.module == "Net.body.2"

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).sqrt()

    with autopsy() as report:
        nn.Sequential(nn.Linear(3, 3), Root())(torch.ones(1, 3)).sum().backward()
    assert report.first is not None
    assert (report.first.phase, report.first.module) == ("backward", "Sequential.1")


def test_names_the_forward_line_of_a_gradient_and_the_own_line_of_a_hook() -> None:
    x = torch.zeros(2, requires_grad=True)
    with autopsy() as report:
        y = (x * 1.0).sqrt()
        line = here() - 1
        y.sum().backward()
    assert report.first is not None
    assert (report.first.operation, report.first.lineno) == ("aten.div.Tensor", line)
    assert report.first.forward == report.first.source

    def hook(gradient: Tensor) -> Tensor:
        return gradient / 0

    z = torch.ones(2, requires_grad=True)
    with autopsy() as report:
        w = z * 2
        w.register_hook(hook)
        w.sum().backward()
    assert report.first is not None
    assert report.first.source is not None
    assert report.first.source.function == "hook"
    assert report.first.forward is not None
    assert "w.sum()" in report.first.forward.code or "z * 2" in report.first.forward.code


def test_finds_the_line_of_a_write_into_a_slice() -> None:
    x = torch.zeros(3, requires_grad=True)
    with autopsy() as report:
        out = torch.zeros(2, 3)
        out[0] = (x * 2).sqrt()
        line = here() - 1
        (out + 1).sum().backward()
    assert report.first is not None
    assert (report.first.lineno, report.first.phase) == (line, "backward")


def test_counts_steps_by_the_optimizer() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with autopsy(keep=2) as report:
        for step in range(1, 6):
            optimizer.zero_grad()
            loss = net(torch.ones(2, 3)).square().mean() * (math.inf if step == 5 else 1) * 0
            loss.backward()
            optimizer.step()
    assert report.first is not None
    assert report.first.step == 5
    assert [summary.step for summary in report.history] == [4, 5]


def test_keeps_the_last_steps_measures() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, expected = torch.ones(2, 3), []
    with autopsy() as report:
        for _ in range(3):
            optimizer.zero_grad()
            out = net(x)
            loss = out.square().mean()
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
            expected.append((loss.item(), norm, out.detach().abs().max().item()))
            optimizer.step()
    found = [(s.loss, s.gradient_norm, s.largest["Net.body.2"]) for s in report.history]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    assert set(report.history[0].largest) == {"Net.body.0", "Net.body.1", "Net.body.2"}


def test_a_report_goes_into_json() -> None:
    with autopsy() as report:
        torch.zeros(1).log()
    again = json.loads(json.dumps(report.as_dict()))
    assert again["events"][0]["operation"] == "aten.log.default"
    assert again["events"][0]["lineno"] == here() - 3


def test_the_same_line_is_one_event_with_a_count() -> None:
    with autopsy() as report:
        for _ in range(4):
            torch.zeros(1).log()
    assert [event.count for event in report.events] == [4]


# --- in a notebook ---------------------------------------------------------------------------------------------------


PACKAGES = Path(torch.__file__).parents[1]
STANDARD = Path(inspect.__file__).parent
INTERNALS = [
    str(PACKAGES / "IPython/core/interactiveshell.py"),
    str(PACKAGES / "ipykernel/zmqshell.py"),
    str(PACKAGES / "tornado/platform/asyncio.py"),
    str(STANDARD / "asyncio/base_events.py"),
    str(STANDARD / "runpy.py"),
    "<frozen runpy>",
]


def compiled(source: str, filename: str, **names: Any) -> dict[str, Any]:
    """Run source code as if it were in a file of that name, and return its names."""
    exec(compile(source, filename, "exec"), names)
    return names


@pytest.mark.parametrize(
    "cell", ["<ipython-input-1-4d2c1a9e>", "/tmp/ipykernel_123/456.py", "/home/me/tornado/train.py"]
)
def test_a_stack_has_the_cells_and_not_what_runs_them(cell: str) -> None:
    names = {"torch": torch, "inner": lambda: torch.zeros(2).log()}
    run = compiled("def run():\n    return inner()\n", cell, **names)["run"]
    for filename in INTERNALS:
        run = compiled("def call():\n    return run()\n", filename, run=run)["call"]
    with autopsy() as report:
        run()
    assert report.first is not None
    filenames = [source.filename for source in report.first.stack]
    assert filenames[:3] == [__file__, cell, __file__]
    assert not set(filenames) & set(INTERNALS)


def test_a_cell_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPython shows it: from the file's name, or from the number it keeps for a file."""
    shell = SimpleNamespace(compile=SimpleNamespace(_filename_map={"/tmp/ipykernel_123/456.py": 7}))
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    labels = {"<ipython-input-3-4d2c1a9e>": "cell [3]:1", "/tmp/ipykernel_123/456.py": "cell [7]:1"}
    for filename, label in labels.items():
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        with autopsy() as report:
            compiled("torch.zeros(2).log()", filename, torch=torch)
        assert report.first is not None
        assert (report.first.filename, str(report.first.source)) == (filename, label)
        assert f"\n  {label}, in <module>" in report.story
        assert f"at {label}" in repr(report)
    monkeypatch.delitem(sys.modules, "IPython")
    assert str(report.first.source) == "/tmp/ipykernel_123/456.py:1"


def test_representations_are_short_and_say_what_happened() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with autopsy() as report:
        for step in range(3):
            (net(torch.ones(2, 3)) * 0 if step < 2 else net(torch.ones(2, 3))).sum().backward()
            optimizer.step()
    assert repr(report) == f"<Report: 0 events in 3 steps, {report.operations} operations>"
    with autopsy() as report:
        (torch.ones(2) < 1).log()
    line = f"test_autopsy.py:{here() - 1}: (torch.ones(2) < 1).log()"
    assert repr(report) == f"<Report: 1 event; first: aten.log.default (forward, step 1) at {line}>"
    html = report._repr_html_()
    assert "<h1>Step 1, forward: aten.log.default made 2 infinite of 2 elements.</h1>" in html
    assert "(torch.ones(2) &lt; 1).log()" in html


def test_the_package_loads_alone_and_little() -> None:
    program = (
        "import sys\nimport xor_study.autopsy\nassert callable(xor_study.autopsy.autopsy)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in "
        "('xor_study', 'pandas', 'hydra', 'matplotlib', 'scipy', 'numba', 'llvmlite', 'rich')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = ended.stdout.split()
    assert "xor_study.autopsy.watch" in loaded
    assert [name for name in loaded if not name.startswith("xor_study")] == []
    assert len(loaded) <= 20


# --- what is an event and what is not --------------------------------------------------------------------------------


def test_a_value_that_where_removes_is_no_event_and_one_left_over_is() -> None:
    x = torch.tensor([0.0, 1.0])
    with autopsy() as report:
        kept = torch.where(x > 0, x.log() * 2, 0.0)
    assert report.first is None
    assert sum(report.discarded.values()) == 1
    with autopsy() as report:
        kept = kept.log() * 2
    assert report.first is not None
    assert report.first.reached == ["unread"]


def test_arithmetic_that_swallows_an_infinity_is_told() -> None:
    x = torch.full((4,), 300.0, dtype=torch.float16)
    with autopsy() as report:
        y = x * torch.rsqrt(x.pow(2).mean() + 1e-5)
    assert torch.equal(y, torch.zeros_like(y))
    assert report.first is not None
    assert (report.first.operation, report.first.reached) == ("aten.pow.Tensor_Scalar", ["swallowed"])


@pytest.mark.parametrize("make", [lambda: torch.full((3,), math.inf), lambda: torch.zeros(3).fill_(math.nan)])
def test_constants_are_no_event_until_they_reach_a_loss(make: Any) -> None:
    with autopsy() as report:
        made = make()
    assert report.first is None
    weight = torch.ones(3, requires_grad=True)
    with autopsy() as report:
        made = make()
        (weight * made).sum().backward()
    assert report.first is not None
    assert (report.first.origin, report.first.lineno) == ("constant", make.__code__.co_firstlineno)


def test_a_mask_made_before_is_not_accused_where_all_is_masked_the_softmax_is() -> None:
    mask = torch.full((2, 3), -math.inf)
    mask[0] = 0
    with autopsy() as report:
        torch.softmax(torch.randn(2, 3) + mask, -1)
    assert report.first is not None
    assert (report.first.operation, report.first.origin) == ("aten._softmax.default", "operation")


def test_infinite_data_is_not_accused_before_the_operation_that_makes_it_nan() -> None:
    x = torch.tensor([1.0, math.inf])
    with autopsy() as report:
        doubled = x * 2
        (doubled - doubled).sum().item()
    assert report.first is not None
    assert (report.first.operation, report.first.origin) == ("aten.sub.Tensor", "operation")


def test_nan_from_outside_is_told_with_the_line_that_reads_it() -> None:
    x = torch.tensor([1.0, math.nan])
    with autopsy() as report:
        y = x.view(2, 1) + 1
        line = here() - 1
        y.sum().item()
    assert report.first is not None
    assert (report.first.origin, report.first.lineno) == ("outside", line)
    assert "came in from outside" in report.story


def test_a_parameter_that_was_not_finite_is_not_the_optimizers_doing() -> None:
    table = nn.Embedding(4, 2)
    table.weight.data[3] = math.nan
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with autopsy() as report:
        table(torch.tensor([0])).sum().backward()
        optimizer.step()
    assert report.first is not None
    assert (report.first.origin, report.first.reached) == ("outside", ["parameter"])


def test_asking_whether_values_are_finite_is_not_reading_them() -> None:
    with autopsy() as report:
        loss = torch.zeros(1).log()
        assert not torch.isfinite(loss).all()
        assert torch.isinf(loss).all()
        assert not torch.isnan(loss).any()
        repr(loss)
    assert report.first is not None
    assert report.first.reached == ["unread"]


def test_reading_a_finite_part_of_a_tensor_does_not_clear_the_rest() -> None:
    with autopsy() as report:
        whole = torch.tensor([0.0, 1.0]).log()
        assert (whole[1:] + 1).item() == 1
    assert report.first is not None
    with autopsy() as report:
        whole = torch.tensor([0.0, 1.0]).log()
        whole[0] = 7.0  # a repair
        assert whole.sum().item() == 7
    assert report.first is None
    with autopsy() as report:
        whole = torch.tensor([0.0, 1.0]).log()
        whole.fill_(7.0)
    assert report.first is not None
    assert report.first.reached == ["unread"]  # overwritten as a whole before anything read it


def test_overflowing_sums_of_finite_numbers_are_no_events() -> None:
    with autopsy() as report:
        large = torch.full((8,), 1e38) * 1.5
        assert (large * 0).sum().item() == 0
    assert report.first is None


def test_an_optimizer_may_be_written_by_hand() -> None:
    w = torch.ones(2, requires_grad=True)
    with autopsy() as report:
        (w * 1e30).sum().backward()
        with torch.no_grad():
            assert w.grad is not None
            w -= 1e10 * w.grad
            line = here() - 1
    assert report.first is not None
    assert (report.first.lineno, report.first.operation) == (line, "aten.mul.Tensor")
    assert "parameter" in report.first.reached


def test_what_follows_from_an_event_in_later_steps_is_no_other_event() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    with autopsy() as report:
        for step in range(6):
            optimizer.zero_grad()
            (net(torch.ones(2, 3)) * (0 if step == 1 else 1)).square().sum().sqrt().backward()
            optimizer.step()
        torch.zeros(1).log()
    found = [(event.step, event.operation) for event in report.events]
    assert found == [(2, "aten.div.Tensor"), (2, "aten.mul.Tensor"), (7, "aten.log.default")]  # infinity, times 0, ...
    assert report.events[0].reached == ["gradient", "parameter", "loss"]  # the loss of the next step


# --- how it is told what to do ---------------------------------------------------------------------------------------


def test_raises_before_the_parameters_are_spoilt() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def train() -> None:
        with autopsy(on_event="raise"):
            (net(torch.ones(1, 3)) * 0).log().sum().backward()
            optimizer.step()

    with pytest.raises(NonFiniteError, match=r"aten\.log\.default .forward, step 1.") as caught:
        train()
    assert caught.value.event is caught.value.report.first
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_raises_at_the_end_what_nothing_read() -> None:
    with pytest.raises(NonFiniteError), autopsy(on_event="raise"):
        torch.zeros(1).log()


def test_an_error_of_the_users_own_passes_and_the_report_is_complete() -> None:
    reports = []

    def train() -> None:
        with autopsy(on_event="raise") as report:
            reports.append(report)
            torch.zeros(1).log()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train()
    assert reports[0].first is not None
    with autopsy() as later:
        torch.zeros(1) + 1
    assert later.operations == 2


@pytest.mark.parametrize("name", ["aten.log", "aten.log.default"])
def test_operations_can_be_allowed(name: str) -> None:
    with autopsy(allow=[name]) as report:
        torch.zeros(1).log()
        torch.zeros(1).log2()
    assert [event.operation for event in report.events] == ["aten.log2.default"]


def test_blocks_can_be_allowed_and_so_is_their_backward() -> None:
    x = torch.zeros(2, requires_grad=True)
    with autopsy() as report:
        with report.allow():
            y = x.sqrt().sum()
        y.backward()
    assert x.grad is not None
    assert torch.isinf(x.grad).all()
    assert report.first is None


def test_notes_what_comes_near() -> None:
    with autopsy(near_misses=True) as report:
        torch.full((4,), 1e19) * 1e19
        torch.full((4,), 1e-20) * 1e-20
        torch.sigmoid(torch.full((4,), 50.0))
        torch.tanh(torch.tensor([0.1, 0.2, 0.3, 40.0]))
        torch.ones(4) * 3
    assert [(miss.kind, miss.operation, miss.count) for miss in report.near_misses] == [
        ("overflow", "aten.mul.Tensor", 1),
        ("subnormal", "aten.mul.Tensor", 1),
        ("saturated", "aten.sigmoid.default", 1),
    ]
    assert report.first is None


EDGES = {
    "log": (lambda x: x.log(), 1e-31, 1e-29),
    "log in place": (lambda x: (x * 1).log_(), 1e-31, 1e-29),
    "log of half": (lambda x: x.half().log(), 1e-6, 1e-4),
    "log of double": (lambda x: x.double().log(), None, 1e-38),
    "denominator": (lambda x: 1e-9 / x, -1e-31, -1e-29),
    "reciprocal": (lambda x: x.reciprocal() * 1e-9, 1e-31, 1e-29),
    "root": (lambda x: x.requires_grad_().sqrt(), 1e-31, 1e-29),
    "root without a gradient": (lambda x: x.sqrt(), None, 1e-31),
    "exp": (lambda x: x.exp(), 80.5, 79.0),
    "exp of half": (lambda x: x.half().exp(), 10.5, 9.5),
    "log1p": (lambda x: x.log1p(), -1 + 2**-23, -0.99999),
    "acos": (lambda x: x.requires_grad_().acos(), 1 - 2**-24, 0.9999),
    "atanh": (lambda x: x.atanh(), 1 - 2**-24, 0.9999),
    "norm": (lambda x: x[1:].norm(), 1e-20, 1e-18),
}


@pytest.mark.parametrize("name", EDGES)
def test_warns_of_operands_near_an_edge_and_of_none_further_away(name: str) -> None:
    function, near, far = EDGES[name]
    for value, expected in ((near, True), (far, False)):
        if value is None:
            continue
        # 0 itself is an event, not a near miss; here it is a masked element beside the small one.
        x = torch.tensor([1e-3 if value > 0 else -1e-3, value])
        with autopsy(near_misses=True) as report:
            function(x)
        edges = [miss for miss in report.near_misses if miss.kind == "edge"]
        assert bool(edges) is expected, (name, value, report.story)
        if expected:
            assert f"{edges[0].edge} (" in str(edges[0])
            assert edges[0].value == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("name", ["component_of_a_mixture_that_dies", "vectors_that_align"])
def test_the_warning_comes_before_the_failure(name: str) -> None:
    report = watched(planted.DRIFTING[name], near_misses=True)
    culprit = planted.culprit(planted.DRIFTING[name])
    assert report.first is not None
    assert (report.first.lineno, report.first.phase) == (culprit.lineno, culprit.phase)
    edge = next(miss for miss in report.near_misses if miss.kind == "edge")
    assert edge.source is not None
    assert edge.source.lineno == culprit.lineno
    assert report.first.step - edge.step >= 10


def test_edges_are_found_beside_zeros_and_the_smallest_is_kept() -> None:
    with autopsy(near_misses=True) as report:
        for scale in (1.0, 1e-3, 1e-1):
            x = torch.tensor([0.0, -1e-32, 1.0]) * scale
            y = torch.tensor([0.0, 1.0, 1.0]) / x
            torch.where(x != 0, y, torch.zeros(())).sum()
    (miss,) = [miss for miss in report.near_misses if miss.kind == "edge"]
    assert miss.count == 3
    assert miss.value == pytest.approx(1e-35)


def test_an_optimizer_and_a_scaled_loss_may_come_near() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    with autopsy(near_misses=True) as report:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale((model(torch.ones(1, 2)) * 1e5).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        (model(torch.ones(1, 2)) * 1e-18).sum().backward()
        optimizer.step()
    assert report.near_misses == []


def test_the_share_that_is_lost_is_estimated_from_a_sample_of_large_tensors() -> None:
    large = torch.full((1000, 100), 1e-20)
    large[:300] = 1.0
    with autopsy(near_misses=True) as report:
        large * large
        large.t() * 1e-20
        large[:350] * 1e-20  # a seventh of it
    assert [(miss.kind, miss.operation) for miss in report.near_misses] == [("subnormal", "aten.mul.Tensor")] * 2
    assert [miss.value for miss in report.near_misses] == [pytest.approx(0.7, abs=0.03)] * 2


@pytest.mark.parametrize(("option", "word"), [("on_event", "stop"), ("checks", "some")])
def test_unknown_words_are_refused(option: str, word: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}='{word}': must be"), autopsy(**{option: word}):
        pass


def test_an_event_in_a_batch_is_looked_at_again_closely() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = [torch.ones(2, 3), torch.ones(2, 3), torch.full((2, 3), 3e38), torch.ones(2, 3)]
    batch = data[0]
    seen: list[Tensor] = []

    def step() -> None:
        optimizer.zero_grad()
        h = net[1](net[0](batch * 2))
        seen.append(net[1](torch.ones(64)))
        net[2](h).sum().backward()

    with autopsy(checks="batched", step=step) as report:
        for batch in data:  # noqa: B007 - step reads it
            step()
            optimizer.step()
    assert len(seen) == 5  # three good ones would be 4; one more for the step done again
    assert torch.equal(seen[2], seen[3])  # with the same random numbers
    assert report.first is not None
    assert (report.first.operation, report.first.step, report.first.kind) == ("aten.mul.Tensor", 3, "overflow")
    assert report.first.inputs[0].offending == pytest.approx((3e38,) * 3)


# --- all sorts of tensors and callers --------------------------------------------------------------------------------


def test_tensors_without_values_to_check_pass() -> None:
    with autopsy() as report:
        torch.arange(5) // 2
        torch.empty(0, 3).mean(0, keepdim=True).sum(0)[:0] + 1
        torch.ones(2, device="meta") / 0
        torch.tensor([True]).logical_not()
        torch.ones(2, 3).split(1)
    assert [event.operation for event in report.events] == ["aten.mean.dim"]  # the mean of nothing is NaN


def test_sparse_complex_and_half_tensors_are_seen() -> None:
    cases = {
        "sparse": lambda: torch.eye(2).to_sparse() / 0,
        "complex": lambda: torch.ones(2, dtype=torch.complex64) * complex(1e38, 1e38) * 10,
        "bfloat16": lambda: torch.full((2,), 3e38, dtype=torch.bfloat16) * 2,
        "float64": lambda: torch.full((2,), 1e308, dtype=torch.float64) * 10,
    }
    for name, make in cases.items():
        with autopsy() as report:
            kept = make()
        assert report.first is not None, name
        del kept


def test_operations_with_several_outputs_are_seen() -> None:
    with autopsy() as report:
        spread, _ = torch.std_mean(torch.ones(2, 3) / torch.tensor([[1.0], [0.0]]), dim=1)
        assert spread.shape == (2,)
    assert report.first is not None
    assert report.first.operation == "aten.div.Tensor"
    weights = [torch.ones(2), torch.zeros(2), torch.ones(3)]
    with autopsy() as report:
        torch._foreach_reciprocal_(weights)
    assert report.first is not None
    assert report.first.inputs[0].zero == 2


def test_several_optimizers_and_closures() -> None:
    net, other = Net(), Net()
    optimizers = [torch.optim.LBFGS(net.parameters(), max_iter=3), torch.optim.Adam(other.parameters())]

    def closure() -> Tensor:
        optimizers[0].zero_grad()
        loss = net(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    with autopsy() as report:
        for _ in range(2):
            optimizers[0].step(closure)  # type: ignore[arg-type]  # declared to give a float, used with the loss itself
            other(torch.ones(2, 3)).square().mean().backward()
            optimizers[1].step()
        torch.zeros(1).log()
    assert report.first is not None
    assert (report.first.phase, report.first.step) == ("forward", 3)


def test_functional_transforms_are_seen() -> None:
    def loss(x: Tensor) -> Tensor:
        return x.sqrt().sum()

    with autopsy() as report:
        torch.func.vmap(torch.func.grad(loss))(torch.zeros(3, 2))
    assert report.first is not None
    assert report.first.operation.startswith("aten.div")
    net = Net()

    def loss_of_net(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).sub(9).log().sum()

    with autopsy() as report:
        torch.func.vmap(torch.func.grad(loss_of_net), (None, 0))(dict(net.named_parameters()), torch.zeros(2, 1, 3))
    assert report.first is not None
    assert (report.first.operation, report.first.module) == ("aten.log.default", None)


def test_a_scaled_overflow_that_gradscaler_handles_is_told_apart() -> None:
    report = watched(planted.HEALTHY["mixed_precision_with_a_scaled_overflow"])
    assert report.first is None
    assert report.handled
    assert all((event.phase, event.kind) == ("backward", "overflow") for event in report.handled)
    skipped = [summary.skipped for summary in report.history]
    assert 0 < sum(skipped) < len(skipped) == 16
    assert skipped == sorted(skipped, reverse=True)  # first all that are skipped
    assert f"GradScaler handled {len(report.handled)} overflows of the scaled loss (not events)" in report.story


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
def test_compiled_code_is_seen_uncompiled_and_the_report_says_so() -> None:
    net = torch.compile(Net(), backend="eager")
    with autopsy() as report:
        (net(torch.ones(2, 3)) * 0).log().sum().backward()
    assert report.first is not None
    assert report.first.operation == "aten.log.default"
    assert any("ran uncompiled" in note for note in report.notes)
    assert set(report.history[-1].largest) == {"Net.body.0", "Net.body.1", "Net.body.2"}
    with autopsy() as report:
        net(torch.ones(2, 3))
    assert report.first is None
    assert len(report.notes) == 1
    with autopsy() as report:
        torch.zeros(1).log()
    assert report.notes == []


def test_training_is_the_same_with_and_without() -> None:
    def train() -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(net(torch.randn(6, 3)), torch.ones(6, 1)).backward()
            optimizer.step()
        return [value.clone() for value in net.state_dict().values()]

    plain = train()
    cases: list[dict[str, Any]] = [{}, {"near_misses": True}, {"checks": "batched"}]
    for options in cases:
        with autopsy(**options):
            assert all(map(torch.equal, plain, train()))


def test_nothing_stays_behind() -> None:
    from torch.nn.modules import module
    from torch.optim import optimizer
    from torch.utils._python_dispatch import _len_torch_dispatch_stack

    before = [len(module._global_forward_hooks), len(optimizer._global_optimizer_post_hooks)]
    with autopsy():
        assert _len_torch_dispatch_stack() == 1
        Net()(torch.ones(1, 3))
    assert _len_torch_dispatch_stack() == 0
    assert [len(module._global_forward_hooks), len(optimizer._global_optimizer_post_hooks)] == before


@NEEDS_CUDA
@pytest.mark.parametrize("checks", ["auto", "each"])
def test_finds_the_line_on_cuda(checks: Any) -> None:
    x = torch.zeros(3, requires_grad=True, device="cuda")
    with autopsy(checks=checks) as report:
        y = (x * 1.0).sqrt()
        line = here() - 1
        y.sum().backward()
    assert report.first is not None
    assert (report.first.lineno, report.first.phase) == (line, "backward")


@pytest.mark.parametrize("proof", ["failures", "ahead", "rules", "cost"])
def test_the_documentation_shows_the_measured_tables(proof: str) -> None:
    command, *tables = (ROOT / f"results/autopsy/{proof}.md").read_text().strip().split("\n\n")
    page = (ROOT / "docs/autopsy.md").read_text()
    assert len(tables) == {"failures": 3, "ahead": 2, "rules": 2, "cost": 1}[proof]
    assert all(part in page for part in (command, *tables))
