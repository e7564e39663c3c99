"""Scripts that show an event's failure in isolation, run in processes of their own."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.cond import cond_op

from xor_study.autopsy import Report, autopsy
from xor_study.autopsy.captures import ALL_BYTES, EVENT_BYTES, EVENTS, made_at

INF = float("inf")


def read(tensor: Tensor) -> None:
    """Let a value reach Python, so that it matters."""
    tensor.sum().item()


def log_of_zero() -> None:
    read(torch.tensor([1.0, 0, 2]).log())


def broadcast_division() -> None:
    read(torch.tensor([[1.0], [0]]) / torch.tensor([[0.0, 1]]))


def overflow_of_a_product() -> None:
    read(torch.full((8, 64), 300, dtype=torch.float16) @ torch.full((64, 8), 300, dtype=torch.float16))


def overflow_of_a_large_layer() -> None:
    layer = nn.Linear(2000, 1500).half()
    layer.weight.data[7] = 1
    read(layer(torch.full((4, 2000), 6e4, dtype=torch.float16)))


def large_masked_softmax() -> None:
    scores = torch.randn(100, 8, 90)
    scores[70, 3] = -INF
    read(scores.softmax(-1))


def gradient_of_a_root() -> None:
    x = torch.zeros(5, requires_grad=True)
    (x * x).sqrt().sum().backward()


def gradient_of_eigenvectors() -> None:
    vectors = torch.linalg.eigh(torch.eye(3, requires_grad=True))[1]
    vectors.sum().backward()


def in_place() -> None:
    read(torch.tensor([2.0, -1, 3]).log_())


def promotion_of_a_scalar_tensor() -> None:
    read(torch.full((3,), 6e4, dtype=torch.float16) * torch.tensor(2.0))


def transposed_convolution() -> None:
    read(F.conv2d(torch.full((2, 6, 6, 3), 1e30).permute(0, 3, 1, 2), torch.full((2, 3, 3, 3), 1e30)))


def impossible_alignment() -> None:
    log_probs = torch.zeros(3, 1, 5).log_softmax(2)
    read(F.ctc_loss(log_probs, torch.tensor([[1, 1, 2]]), torch.tensor([3]), torch.tensor([3])))


def complex_reciprocal() -> None:
    read((1 / torch.zeros(3, dtype=torch.complex64)).abs())


def mean_of_nothing() -> None:
    read(torch.zeros(0, 3).mean())


def bfloat16() -> None:
    read(torch.full((70, 2), 3e38, dtype=torch.bfloat16).T.contiguous() * 4)


def cumulative_sum() -> None:
    read(torch.full((100,), 1e38).cumsum(0))


def updated(**options: float) -> None:
    parameters = [nn.Parameter(torch.zeros(4, dtype=torch.float16)) for _ in range(3)]
    parameters[1].grad = torch.tensor([0.0, 1, 0, 2], dtype=torch.float16)
    torch.optim.Adam(parameters, **options).step()


def epsilon_of_an_optimizer() -> None:
    updated()


def epsilon_of_an_optimizer_on_lists() -> None:
    updated(foreach=True)


FAILURES = [
    *(log_of_zero, broadcast_division, overflow_of_a_product, overflow_of_a_large_layer, large_masked_softmax),
    *(gradient_of_a_root, gradient_of_eigenvectors, in_place, promotion_of_a_scalar_tensor, transposed_convolution),
    *(impossible_alignment, complex_reciprocal, mean_of_nothing, bfloat16, cumulative_sum, epsilon_of_an_optimizer),
    epsilon_of_an_optimizer_on_lists,
]


def watched(program: Callable[[], object], **options: str) -> Report:
    torch.manual_seed(0)
    with autopsy(**options) as report:
        program()
    assert report.first is not None
    return report


RUN_EACH = """
import os, runpy, sys, warnings
import torch
warnings.simplefilter("error")
for path in sys.argv[1:]:
    if os.fork() == 0:  # a process of its own, without importing torch in each
        sys.path[0] = os.path.dirname(path)
        output = os.open(path + ".out", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        runpy.run_path(path, run_name="__main__")
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def run(*paths: Path) -> list[tuple[int, str]]:
    """Run scripts where this package is not imported; return what each exits with and prints."""
    command = [sys.executable, "-c", RUN_EACH, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [Path(f"{path}.out").read_text() for path in paths]
    return list(zip(map(int, done.stdout.split()), printed, strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, str]]:
    """Write all scripts and run them; return each one's text, exit code and output."""
    folder = tmp_path_factory.mktemp("scripts")
    paths = {program.__name__: folder / f"{program.__name__}.py" for program in FAILURES}
    for program in FAILURES:
        watched(program).reproduce(paths[program.__name__])
    done = run(*paths.values())
    return {name: (path.read_text(), *outcome) for (name, path), outcome in zip(paths.items(), done, strict=True)}


@pytest.mark.parametrize("program", FAILURES, ids=lambda program: program.__name__)
def test_the_script_shows_the_failure(program: Callable[[], None], outcomes: dict[str, tuple[str, int, str]]) -> None:
    text, code, printed = outcomes[program.__name__]
    assert (code, printed.splitlines()[-1]) == (1, "The failure shows.")
    assert re.search(r"^output: torch\.\w+ \[.*\], \d+ NaN, \d+ infinite$", printed, re.MULTILINE)
    phase = "backward" if "gradient" in program.__name__ else "forward"
    phase = "optimizer" if "optimizer" in program.__name__ else phase
    assert re.match(rf"# aten\.\w+\.\w+ \({phase}, step 1", text)
    assert f"{__file__}:" in text
    assert "xor_study" not in text.replace(__file__, "")
    assert len(text) < 20_000


def test_a_script_of_finite_inputs_does_not_show_it(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    watched(log_of_zero).reproduce(path)
    path.write_text(path.read_text().replace("torch.tensor([0.0]", "torch.tensor([0.5]"))
    ((code, printed),) = run(path)
    assert (code, printed.splitlines()[-1]) == (0, "The failure does not show.")


def test_inputs_are_those_from_before_with_their_strides(tmp_path: Path) -> None:
    watched(in_place).reproduce(tmp_path / "script.py")
    assert "torch.tensor([-1.0], dtype=torch.float32)" in (tmp_path / "script.py").read_text()
    event = watched(transposed_convolution).first
    assert event is not None
    assert not isinstance(event.capture, str)
    (_, image), *_ = event.capture.tensors
    assert image.stride() == (108, 1, 18, 3)
    event.reproduce(tmp_path / "script.py")
    assert ".as_strided((2, 3, 6, 6), (108, 1, 18, 3))" in (tmp_path / "script.py").read_text()


def test_elements_that_were_not_finite_before_are_not_the_culprits() -> None:
    scores, divisors = torch.ones(600_000), torch.ones(600_000)
    scores[:500_000] = -INF
    assert made_at(scores / divisors, [scores, divisors]).tolist() == list(range(8))  # there are no others
    divisors[550_001] = 0
    assert made_at(scores / divisors, [scores, divisors]).tolist() == [550_001]
    divisors[3] = INF  # -inf / inf is NaN
    assert made_at(scores / divisors, [scores, divisors]).tolist() == [3, 550_001]
    assert made_at(torch.ones(3), []) is None


def test_what_an_update_is_added_to_does_not_matter(tmp_path: Path) -> None:
    def step() -> None:
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([parameter], lr=1e38)
        (parameter * 100).sum().backward()
        optimizer.step()

    watched(step).reproduce(tmp_path / "script.py")
    assert (
        "# Zeros stand for self, which was overwritten: what is added to it is at fault."
        in (tmp_path / "script.py").read_text()
    )


def custom_operation() -> None:
    @torch.library.custom_op("xor_study_test::invert", mutates_args=())
    def invert(x: Tensor) -> Tensor:
        return 1 / x

    read(invert(torch.zeros(3)))


def test_a_custom_operation_asks_for_its_module(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    watched(custom_operation).reproduce(path)
    ((code, printed),) = run(path)
    assert code == 2
    assert "xor_study_test::invert is a custom operation: import its module in this script" in printed
    module = "import torch\n@torch.library.custom_op('xor_study_test::invert', mutates_args=())\n"
    (tmp_path / "inverse.py").write_text(f"{module}def invert(x: torch.Tensor) -> torch.Tensor:\n    return 1 / x\n")
    path.write_text(path.read_text().replace("import its module here.\n", "\nimport inverse\n"))
    assert run(path)[0][0] == 1


def higher_order() -> None:
    def divide(x: Tensor) -> Tensor:
        return x / 0

    read(cond_op(True, divide, torch.neg, (torch.ones(2),))[0])


def too_large() -> None:
    read(torch.full((1200, 1200), 1e38).cumsum(1))


def large_in_place() -> None:
    read(torch.zeros(300, 300).log_())


def read_from_outside() -> None:
    read(torch.tensor([float("nan")]) * 2)


def asked_for() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    torch.optim.SGD([parameter], lr=float("nan")).step()


REFUSED = {
    too_large: "too large: at most 4 MiB for an event and 64 MiB for all are kept",
    higher_order: "is a higher-order operator: it was called with Python functions",
    large_in_place: "has overwritten self, and the values from before are not kept",
    read_from_outside: "came in from outside",
    asked_for: "the code itself asks for this value",
}


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.__name__)
def test_says_why_it_can_not(program: Callable[[], None], tmp_path: Path) -> None:
    report = watched(program)
    with pytest.raises(ValueError, match=f"^.* can't be reproduced: .*{REFUSED[program]}"):
        report.reproduce(tmp_path / "script.py")
    assert list(tmp_path.iterdir()) == []


def test_batched_checks_keep_nothing_unless_the_step_is_repeated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batched checks keep no inputs: use checks=\"each\", or give step="):
        watched(gradient_of_a_root, checks="batched").reproduce(tmp_path / "script.py")
    watched(gradient_of_a_root, checks="batched", step=gradient_of_a_root).reproduce(tmp_path / "script.py")
    assert "torch.ops.aten.div.Tensor" in (tmp_path / "script.py").read_text()


def test_nothing_to_reproduce(tmp_path: Path) -> None:
    with autopsy() as report:
        torch.ones(2)
    with pytest.raises(ValueError, match="the report has no event"):
        report.reproduce(tmp_path / "script.py")


def test_what_is_kept_is_bounded() -> None:
    """Each call's matrix takes a whole event's room, and all calls are kept until their values are dropped."""
    side = int((EVENT_BYTES / 4) ** 0.5)

    def sums() -> None:
        matrices = [torch.full((side, side), 1e38).cumsum(1) for _ in range(ALL_BYTES // EVENT_BYTES + 4)]
        for matrix in matrices:
            read(matrix)

    with autopsy() as report:
        sums()
    assert report.first is not None
    assert not isinstance(report.first.capture, str)
    assert report.first.count == ALL_BYTES // EVENT_BYTES + 4

    def lines() -> None:
        code = "\n".join(["x = torch.zeros(3)", *["x.log().sum().item()"] * (EVENTS + 3)])
        exec(compile(code, "lines.py", "exec"), {"torch": torch})

    with autopsy() as report:
        lines()
    kept = [not isinstance(event.capture, str) for event in report.events]
    assert kept == [True] * EVENTS + [False] * 3
    assert report.events[-1].capture == f"only the first {EVENTS} events keep their inputs"


def test_as_dict_has_no_tensors() -> None:
    event = watched(log_of_zero).first
    assert event is not None
    assert "capture" not in event.as_dict()
    assert "capture" not in repr(event)
