"""The pytest plugin, in pytest runs of their own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch._dynamo  # here, since a run in this process forgets what it has imported

import xor_study.autopsy.session

__all__ = ["torch", "xor_study"]

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
NAME = "xor_study.autopsy.pytest_plugin"
PLUGIN = ("-p", NAME, "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def _only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no installed plugin take part, among them the installed version of this one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    """Run pytest with the plugin on a file of tests."""
    pytester.makepyfile(f"import pytest, torch, unittest\n{text}")
    return pytester.runpytest_inprocess(*PLUGIN, "--strict-markers", *arguments)


PASSES = """
def test_quiet():
    scores = torch.tensor([0.0, 1.0])
    assert torch.where(scores > 0, scores.log(), 0).sum() == 0

def test_loss():
    weight = torch.zeros(2, requires_grad=True)
    loss = weight.sqrt().sum()
    loss.backward()
    assert loss.item() == 0
"""


def test_a_test_that_passes_but_makes_an_infinity_fails_with_the_story(pytester: pytest.Pytester) -> None:
    done = run(pytester, PASSES, "--autopsy")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*test_loss*",
            "Step 1, backward: aten.div.Tensor made 2 infinite of 2 elements.",
            "*py:9, in test_loss",
            "*loss = weight.sqrt().sum()",
            "FAILED *::test_loss*",
        ]
    )


def test_nothing_is_watched_unless_asked_for(pytester: pytest.Pytester) -> None:
    run(pytester, PASSES).assert_outcomes(passed=2)


def test_the_setting_is_the_option(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nautopsy = true")
    run(pytester, PASSES).assert_outcomes(passed=1, failed=1)
    run(pytester, PASSES, "-o", "autopsy=false").assert_outcomes(passed=2)


def test_a_failing_test_has_the_story_as_a_section(pytester: pytest.Pytester) -> None:
    text = """
def test_value():
    mean = torch.zeros(0).mean()
    assert mean.item() == 3

def test_other():
    assert torch.ones(1) == 3
"""
    done = run(pytester, text, "--autopsy")
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["*assert nan == 3", "*- Autopsy -*", "Step 1, forward: aten.mean.default made 1 NaN *"])
    assert str(done.stdout).count("- Autopsy -") == 1


def test_markers_allow_switch_off_and_add_up(pytester: pytest.Pytester) -> None:
    text = """
pytestmark = pytest.mark.autopsy(allow=["aten.log"])

@pytest.mark.autopsy(off=True)
def test_off():
    assert torch.zeros(0).mean().isnan()

@pytest.mark.autopsy(allow=["aten.sqrt.default"])
def test_both():
    return_nothing = torch.zeros(1).log().item(), (-torch.ones(1)).sqrt().item()

def test_one():
    return_nothing = torch.zeros(1).log().item(), (-torch.ones(1)).sqrt().item()

@pytest.mark.autopsy(on_event="raise")
def test_raises():
    (-torch.ones(1)).sqrt().item()
    assert False, "not reached"
"""
    done = run(pytester, text, "--autopsy")
    done.assert_outcomes(passed=2, failed=2)
    done.stdout.fnmatch_lines(["*.NonFiniteError: aten.sqrt.default*", "FAILED *::test_one*", "FAILED *::test_raises*"])
    done.stdout.no_fnmatch_line("*called from*site-packages*")
    assert "- Autopsy -" not in str(done.stdout)


def test_a_marker_with_a_wrong_argument_is_refused(pytester: pytest.Pytester) -> None:
    text = """
@pytest.mark.autopsy(alow=["aten.log"])
def test_wrong():
    pass
"""
    run(pytester, text).assert_outcomes(passed=1)
    done = run(pytester, text, "--autopsy")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: *.py::test_wrong: the marker autopsy has no argument alow"])


def test_fixtures_belong_to_the_test(pytester: pytest.Pytester) -> None:
    text = """
@pytest.fixture
def table():
    yield torch.zeros(2).log()

@pytest.fixture
def broken():
    torch.zeros(1).log().item()
    raise LookupError

def test_repaired(table):
    assert torch.where(table > 0, table, 0).sum() == 0

def test_used(table):
    assert table.sum().item() < 0

def test_broken(broken):
    pass
"""
    done = run(pytester, text, "--autopsy")
    done.assert_outcomes(passed=1, failed=1, errors=1)
    done.stdout.fnmatch_lines(["*ERROR at setup of test_broken*", "*LookupError*", "*- Autopsy -*", "*aten.log.*"])
    done.stdout.fnmatch_lines(["*_ test_used _*", "Step 1, forward: aten.log.default made 2 infinite *", "*in table"])


def test_all_kinds_of_tests(pytester: pytest.Pytester) -> None:
    text = """
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_each(start):
    torch.tensor([start]).log().item()

@pytest.mark.xfail
def test_expected():
    torch.zeros(1).log().item()

@pytest.mark.xfail(strict=True)
def test_expected_but_fine():
    torch.ones(1).log().item()

@pytest.mark.skip
def test_skipped(): ...

def test_skips():
    torch.zeros(1).log().item()
    pytest.skip("late")

class TestCase(unittest.TestCase):
    def setUp(self):
        self.one = torch.ones(1)

    def test_fine(self):
        self.assertEqual(self.one.log().item(), 0)

    def test_bad(self):
        (self.one - 1).log().item()

    def test_bad_and_wrong(self):
        self.assertEqual((self.one - 1).log().item(), 0)
"""
    done = run(pytester, text, "--autopsy", "-rA")
    # each[1.0], fine; each[0.0], expected_but_fine, bad, bad_and_wrong
    done.assert_outcomes(passed=2, failed=4, xfailed=1, skipped=2)
    done.stdout.fnmatch_lines(["*_ TestCase.test_bad_and_wrong _*", "*AssertionError: -inf != 0", "*- Autopsy -*"])
    assert str(done.stdout).count("- Autopsy -") == 1


def test_modes_that_fixtures_leave_later_stay(pytester: pytest.Pytester) -> None:
    text = """
from torch.utils._python_dispatch import TorchDispatchMode

class Counter(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func is torch.ops.aten.ones.default
        return func(*args, **(kwargs or {}))

@pytest.fixture(scope="module")
def counter():
    with Counter() as counter:
        yield counter

def test_first(counter):
    torch.ones(2, 3)
    assert counter.seen == 1

def test_second(counter):
    torch.ones(2, 3)
    assert counter.seen == 2
    torch.zeros(1).log().item()

def test_third(counter):
    torch.ones(2, 3)
    assert counter.seen == 3
"""
    run(pytester, text, "--autopsy").assert_outcomes(passed=2, failed=1)


def test_without_the_option_torch_is_not_imported() -> None:
    code = f"""
import sys, pytest
assert pytest.main([*{PLUGIN!r}, "--co", "-q", "--rootdir", ".", "nothing.py"]) == 4
print([name for name in sys.modules if name.startswith(("torch", "xor_study"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "docs")
    assert done.stdout.splitlines()[-1] == "['xor_study', 'xor_study.autopsy', 'xor_study.autopsy.pytest_plugin']", done


def test_the_distribution_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["pytest11"].values()) == [NAME]
