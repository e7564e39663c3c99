"""The command `xor-study autopsy`: programs run under it as Python runs them, and it says what went wrong in them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import nn

from xor_study.autopsy import autopsy, command
from xor_study.run import main

Run = Callable[..., CompletedProcess[str]]

FAILS = """
import torch
from torch import nn

net = nn.Linear(2, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(4):
    out = net(torch.ones(3, 2))
    loss = (out - out if step == 2 else out.square() + 1).mean().sqrt()  # culprit
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
HEALTHY = FAILS.replace("step == 2", "step == 9")
CULPRIT = FAILS.splitlines().index(next(line for line in FAILS.splitlines() if "# culprit" in line)) + 1


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs Python in an empty folder, with the command's arguments or others before them."""

    def run_it(
        *arguments: str, before: tuple[str, ...] = ("-m", "xor_study.autopsy"), **more: str
    ) -> CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "XOR_STUDY_AUTOPSY"} | more
        return subprocess.run(
            [sys.executable, *before, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run_it


def write(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return name


def first(tmp_path: Path, name: str = "autopsy.json") -> dict[str, object]:
    event = json.loads((tmp_path / name).read_text())["events"][0]
    assert isinstance(event, dict)
    return event


def test_tells_the_story_of_a_script_that_fails(run: Run, tmp_path: Path) -> None:
    done = run("--fail", write(tmp_path, "train.py", FAILS))
    event = first(tmp_path)
    assert (event["filename"], event["lineno"]) == (str(tmp_path / "train.py"), CULPRIT)
    assert (event["step"], event["phase"], event["operation"]) == (3, "backward", "aten.div.Tensor")
    stack = event["stack"]
    assert isinstance(stack, list)
    assert {source["filename"] for source in stack} == {str(tmp_path / "train.py")}
    assert "Step 3, backward: aten.div.Tensor made 1 infinite of 1 element." in done.stderr
    assert "xor_study" not in done.stderr
    assert "runpy" not in done.stderr
    assert (done.returncode, done.stdout) == (3, "")
    assert "aten.div.Tensor" in (tmp_path / "autopsy.html").read_text()


def test_a_healthy_script_prints_the_same(run: Run, tmp_path: Path) -> None:
    seeded = HEALTHY.replace("net =", "torch.manual_seed(1)\nnet =", 1)
    name = write(tmp_path, "train.py", f"{seeded}\nprint(sum(p.sum().item() for p in net.parameters()))\n")
    plain, watched = run(name, before=()), run("--fail", "--out", "a/b", name)
    assert (watched.stdout, watched.returncode) == (plain.stdout, 0)
    assert float(plain.stdout)
    assert "Nothing went wrong in " in watched.stderr
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["autopsy.html", "autopsy.json"]
    assert not (tmp_path / "autopsy.json").exists()


ABOUT = """
import sys
class Thing: pass
import pickle
main = sys.modules["__main__"]
print(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, sys.path[0], __doc__, main.Thing is Thing)
print(type(pickle.loads(pickle.dumps(Thing()))) is Thing, __builtins__, type(__loader__).__name__, __cached__)
x: print = 3
print(__annotations__, eval("1 and x"))
"""


@pytest.mark.parametrize(
    "arguments", [["sub/about.py", "--every", "a=b"], ["-m", "sub.about", "-m"], ["-m", "sub", "x"]]
)
def test_the_program_finds_what_it_finds_without_us(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    for name in ("about", "__main__", "__init__"):
        write(tmp_path, f"sub/{name}.py", ABOUT if name != "__init__" else "")
    plain, watched = run(*arguments, before=()), run(*arguments)
    assert plain.stdout == watched.stdout
    assert plain.stdout.startswith("__main__ ")
    assert "it never imported torch, so nothing was watched" in watched.stderr
    assert (plain.returncode, watched.returncode) == (0, 0)


RAISES = """
import torch

def inner(x):
    return x @ torch.ones(7, 7)

def outer():
    try:
        inner(torch.ones(3, 3))
    except RuntimeError as error:
        raise ValueError("mine") from error

outer()
"""


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (RAISES, 1),
        ("raise SystemExit(4)\n", 4),
        ("import sys\nsys.exit('a message')\n", 1),
        ("import torch\nx = (1 +\n", 1),
        ("import missing_module\n", 1),
        ("import sys\nsys.excepthook = lambda *given: print('hook', given[0])\n1 / 0\n", 1),
        ("import sys\nsys.excepthook = None\ntry:\n    1 / 0\nfinally:\n    [][0]\n", 1),
    ],
)
def test_errors_and_exit_codes_are_the_programs_own(run: Run, tmp_path: Path, script: str, code: int) -> None:
    name = write(tmp_path, "train.py", script)
    plain, watched = run(name, before=()), run("--quiet", "--fail", name)
    assert (watched.returncode, watched.stdout, watched.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert watched.returncode == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_interrupted_tells_its_story(run: Run, tmp_path: Path, number: signal.Signals) -> None:
    # A shell's background jobs, as tests may be, ignore the keyboard.
    listens = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{FAILS}\n{listens}print('trained', flush=True)\nimport time\ntime.sleep(60)\n"
    command = [sys.executable, "-m", "xor_study.autopsy", write(tmp_path, "train.py", script)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trained\n"
        process.send_signal(number)
        _, told = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert ("KeyboardInterrupt" in told) == (number == signal.SIGINT)
    assert "made 1 infinite of 1 element." in told
    assert first(tmp_path)["lineno"] == CULPRIT


def test_the_log_outlives_a_killed_process(run: Run, tmp_path: Path) -> None:
    script = f"{FAILS}\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    assert run("--log", "events.jsonl", write(tmp_path, "train.py", script)).returncode == -signal.SIGKILL
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (lines[0]["step"], lines[0]["lineno"], lines[0]["outputs"][0]["offending"]) == (3, CULPRIT, ["inf"])
    assert not (tmp_path / "autopsy.json").exists()


def test_raising_ends_the_program_at_the_event(run: Run, tmp_path: Path) -> None:
    done = run("--raise", write(tmp_path, "train.py", f"{FAILS}\nprint('trained')\n"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "NonFiniteError: aten.div.Tensor (backward, step 3)" in done.stderr
    assert done.stderr.count("In float64 it is infinite too") == 1
    assert 'autopsy/watch.py"' not in done.stderr


def test_an_event_that_only_the_end_confirms_raises_too(run: Run, tmp_path: Path) -> None:
    script = write(tmp_path, "train.py", "import sys, torch\nx = torch.zeros(2).log()\nsys.exit()\n")
    done = run("--raise", "--quiet", script)
    assert (done.returncode, done.stderr) == (1, "")
    assert first(tmp_path)["reached"] == ["unread"]


def test_options_reach_the_watch(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path, "train.py", FAILS)
    options = "--allow aten.div --allow=aten.sqrt --keep 2 --start-step 2 --every 2 --checks batched --near-misses"
    run(*options.split(), name)
    report = json.loads((tmp_path / "autopsy.json").read_text())
    assert [summary["step"] for summary in report["history"]] == [2, 4]
    assert report["events"][0]["origin"] == "outside"
    assert not report["events"][0]["outputs"][0]["exact"]
    assert "only steps 2, 4, 6, ... were watched" in report["story"]


def test_lint_names_risky_lines_of_a_healthy_program(run: Run, tmp_path: Path) -> None:
    name = write(tmp_path, "train.py", HEALTHY.replace("optimizer.zero_grad()", "risky = out.sigmoid().log()"))
    done = run("--lint", "--fail", name)
    assert done.returncode == 0
    assert "train.py:10: log of sigmoid" in done.stderr
    assert "F.logsigmoid(x)" in (tmp_path / "autopsy.html").read_text()
    (risk,) = json.loads((tmp_path / "autopsy.json").read_text())["risks"]
    assert (risk["rule"], risk["source"]["lineno"], risk["count"]) == ("log of sigmoid", 10, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which program?"),
        (["--quiet"], "which program?"),
        (["--evry", "3", "train.py"], "unrecognized arguments: --evry"),
        (["--every", "0", "train.py"], "--every: 0: must be a whole number of at least 1"),
        (["--start-step", "x", "train.py"], "--start-step: x: must be a whole number"),
        (["--checks", "all", "train.py"], "--checks: invalid choice: 'all'"),
        (["--out", "train.py", "train.py"], "train.py: File exists; --out chooses another folder"),
        (["--out", "train.py/x", "train.py"], "Not a directory"),
        (["--log", "no/such", "train.py"], "No such file or directory"),
        (["trian.py"], "trian.py: No such file or directory"),
        (["trian.py", "lr=0.1"], "trian.py: No such file or directory"),
        (["."], ".: Is a directory"),
        (["-m", "train.py"], "no module named train.py; for a script, leave out -m: train.py"),
        (["-m", "nothing.such"], "no module named nothing.such"),
        (["-m", "json"], "json is a package without __main__"),
        (["-m", ".train"], "no module named .train"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write(tmp_path, "train.py", HEALTHY)
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["train.py"]


def test_a_folder_that_no_longer_can_be_written_keeps_the_exit_code(run: Run, tmp_path: Path) -> None:
    script = "import torch, os, shutil\ntorch.zeros(1).log()\nshutil.rmtree('out')\nraise SystemExit(7)\n"
    done = run("--out", "out", write(tmp_path, "train.py", script))
    assert done.returncode == 7
    assert "error: FileNotFoundError: " in done.stderr
    assert "; the report was not written" in done.stderr
    assert "aten.log.default made 1 infinite" in done.stderr


CHILDREN = """
import multiprocessing, torch
from torch.utils.data import DataLoader, Dataset

class Thing:
    def __init__(self, number): self.number = number

class Data(Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return torch.full((3,), float(index)).log()

def work(thing, queue): queue.put(Thing(thing.number + 1))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(Thing(1), queue))
    process.start()
    print(queue.get().number)
    process.join()
    for way in ("fork", "spawn"):
        print(sum(x.isinf().sum().item() for x in DataLoader(Data(), 2, num_workers=1, multiprocessing_context=way)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_child_processes_work_and_write_nothing(run: Run, tmp_path: Path) -> None:
    done = run("--log", "events.jsonl", write(tmp_path, "train.py", CHILDREN))
    assert (done.returncode, done.stdout) == (0, "2\n3\n3\n"), done.stderr
    assert (tmp_path / "events.jsonl").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "autopsy.html",
        "autopsy.json",
        "events.jsonl",
        "train.py",
    ]


def test_settings_made_before_torch_is_imported_count(run: Run, tmp_path: Path) -> None:
    script = "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch\nprint(torch.get_num_threads())\n"
    name = write(tmp_path, "train.py", script)
    assert run(name, OMP_NUM_THREADS="2").stdout == "1\n"


# --- by the environment, and with ranks ------------------------------------------------------------------------------


def test_the_environment_switches_it_on_before_torch_is_imported(run: Run, tmp_path: Path) -> None:
    script = f"import xor_study.autopsy\n{FAILS}\nraise ValueError('mine')\n"
    done = run(write(tmp_path, "train.py", script), before=(), XOR_STUDY_AUTOPSY="1")
    assert done.returncode == 1
    assert done.stderr.index("ValueError: mine") < done.stderr.index("Autopsy of train.py, ended by ValueError\nStep 3")
    assert first(tmp_path)["lineno"] == CULPRIT + 1


def test_the_environment_may_give_options(run: Run, tmp_path: Path) -> None:
    script = FAILS.replace("import torch\n", "import torch\nimport xor_study.autopsy\n", 1)
    name = write(tmp_path, "train.py", script)
    done = run(name, before=(), XOR_STUDY_AUTOPSY="--quiet --out 'a folder' --start-step 4")
    assert (done.returncode, done.stderr) == (0, "")
    assert first(tmp_path, "a folder/autopsy.json")["step"] == 4


@pytest.mark.parametrize("value", ["", "0"])
def test_the_environment_may_leave_it_off(run: Run, value: str) -> None:
    code = "import sys, xor_study.autopsy; print('torch' in sys.modules, 'xor_study.autopsy.recording' in sys.modules)"
    assert run("-c", code, before=(), XOR_STUDY_AUTOPSY=value).stdout == "False False\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "yes: must be 1, 0 or options"),
        ("--evry 3", "unrecognized arguments: --evry"),
        ("--fail", "--fail has no effect here"),
        ("--out 'x", "No closing quotation"),
    ],
)
def test_a_wrong_value_in_the_environment_is_one_line(run: Run, tmp_path: Path, value: str, message: str) -> None:
    done = run("-c", "import xor_study.autopsy; print('on')", before=(), XOR_STUDY_AUTOPSY=value)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: XOR_STUDY_AUTOPSY=")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_replaces_what_the_environment_started(run: Run, tmp_path: Path) -> None:
    done = run(write(tmp_path, "train.py", f"import xor_study.autopsy\n{FAILS}"), XOR_STUDY_AUTOPSY="--out other")
    assert done.stderr.count("Autopsy of") == 1
    assert first(tmp_path)["lineno"] == CULPRIT + 1


@pytest.mark.parametrize(("script", "rank", "speaks"), [(HEALTHY, "1", False), (FAILS, "1", True)])
def test_each_rank_writes_its_own_report(run: Run, tmp_path: Path, script: str, rank: str, speaks: bool) -> None:
    done = run("--log-file", "e.jsonl", write(tmp_path, "train.py", script), RANK=rank, WORLD_SIZE="2")
    assert (f"Autopsy of train.py, rank {rank} of 2\n" in done.stderr) == speaks
    assert bool(done.stderr) == speaks
    names = [f"autopsy.rank{rank}.html", f"autopsy.rank{rank}.json", f"e.rank{rank}.jsonl", "train.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


TOGETHER = f"""
import torch.distributed
torch.distributed.init_process_group("gloo")
{FAILS.replace("step == 2", "step == 2 and torch.distributed.get_rank() == 1")}
torch.distributed.destroy_process_group()
"""


def test_torchrun_gives_one_report_a_rank(run: Run, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "xor_study.autopsy")
    done = run("--raise", write(tmp_path, "train.py", TOGETHER), before=torchrun, OMP_NUM_THREADS="1")
    assert done.returncode == 1
    assert first(tmp_path, "autopsy.rank1.json")["step"] == 3
    assert "NonFiniteError: aten.div.Tensor (backward, step 3)" in done.stderr


# --- what the command did before -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["loss=hinge", "seed=1"], False),
        (["loss.clip=none"], False),
        (["--seeds", "5", "loss=hinge"], False),
        (["--figure=x.png", "loss=hinge"], False),
        (["train.py", "loss=hinge"], True),
        (["--out", "a=b", "train.py"], True),
        (["-m", "train", "loss=hinge"], True),
        (["a=b.py", "x"], True),
    ],
)
def test_the_old_form_explains_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    ours: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a=b.py", "")
    given: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(command, "main", lambda words: given.append(("autopsy", words)))
    monkeypatch.setattr("xor_study.postmortem.cli.main", lambda words: given.append(("postmortem", words)))
    main(["autopsy", *arguments])
    assert given == [("autopsy" if ours else "postmortem", arguments)]
    told = capsys.readouterr().err.splitlines()
    assert [line.endswith('is now "xor-study postmortem"') for line in told] == [True] * (not ours)


# --- the new arguments of `autopsy` ----------------------------------------------------------------------------------


def train(steps: int, failing: int, optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        out = net(torch.ones(1, 2)).sum()
        (out * 0 / 0 if step == failing else out).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "steps"), [({"start_step": 3}, [3, 4, 5, 6]), ({"every": 3}, [1, 4]), ({}, [*range(1, 7)])]
)
def test_only_the_steps_that_are_asked_for_are_watched(options: dict[str, Any], steps: list[int]) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with autopsy(**options) as report:
        train(6, 6, optimizer, net)
    assert [summary.step for summary in report.history] == steps
    assert all(summary.loss is not None and summary.gradient_norm is not None for summary in report.history)
    assert bool(report.events) == (6 in steps)
    assert bool(report.notes) == (len(steps) < 6)
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_step_that_is_not_watched_sees_no_mode_and_another_mode_keeps_its_place() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    depths = []
    with autopsy(every=2) as report:
        for _ in range(3):
            net(torch.ones(1, 2)).sum().backward()
            depths.append(torch._C._len_torch_dispatch_stack())
            optimizer.step()
        with FlopCounterMode(display=False) as counter:
            train(4, 0, optimizer, net)
            depths.append(torch._C._len_torch_dispatch_stack())
        train(2, 2, optimizer, net)
    assert depths[:3] == [1, 0, 1]
    assert counter.get_total_flops() > 0
    assert report.first is not None
    assert report.first.step == 9
    assert torch._C._len_torch_dispatch_stack() == 0


def test_after_unwatched_steps_lines_are_right() -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with autopsy(start_step=4) as report:
        train(4, 0, optimizer, net)
        kept = [net(torch.ones(1, 2)).exp() for _ in range(50)]
        weight = torch.zeros(1, requires_grad=True)
        loss = weight.sqrt().sum() + kept[0].sum()
        loss.backward()
    assert report.first is not None
    assert report.first.code == "loss = weight.sqrt().sum() + kept[0].sum()"


def test_the_log_is_appended_to_as_events_are_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("before\n")
    with autopsy(log=path):
        float(torch.zeros(1).log())
        (line,) = path.read_text().splitlines()[1:]
        event = json.loads(line)
        assert (event["operation"], event["process"]) == ("aten.log.default", os.getpid())
        assert event["time"].endswith("+00:00")
        assert event["outputs"][0]["offending"] == ["-inf"]


def test_an_exempt_operation_that_is_never_seen_is_noted() -> None:
    with autopsy(allow=["aten.log", "aten.sqrt.default", "aten.lgo", "log"]) as report:
        torch.ones(1).log().sqrt()
    assert report.notes == ["allow: no operation aten.lgo was seen", "allow: no operation log was seen"]


def test_checks_are_batched_once_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with autopsy() as report:
        train(2, 0, optimizer, net)
        monkeypatch.setattr("xor_study.autopsy.session._cuda_in_use", lambda: True)
        train(1, 1, optimizer, net)
        train(1, 1, optimizer, net)
    assert report.first is not None
    assert report.first.outputs[0].exact
    assert report.first.step == 3
    with autopsy() as report:
        train(2, 2, optimizer, nn.Linear(2, 1))
    assert report.first is not None
    assert not report.first.outputs[0].exact


@pytest.mark.parametrize("options", [{"start_step": 0}, {"every": 0}, {"every": -1}])
def test_steps_that_do_not_exist_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"), autopsy(**options):
        pass


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), autopsy(log=tmp_path / "no/such"):
        pass
