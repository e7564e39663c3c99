"""Sweeps that leave the process: the launchers' jobs leave parts, the driver merges, and a lost job is named."""

import importlib.util
import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import submitit
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from xor_study import RunSpec, run
from xor_study.engines.results import Progress
from xor_study.sweeps import runner
from xor_study.sweeps.process import Process
from xor_study.sweeps.sweep import Sweep
from xor_study.training.table import table_of

STUDY = ["-m", "epochs=1", "iterations=100", "optimizer=sgd,adam", "seed=range(0,40)"]
LONGER = ["-m", "epochs=1", "iterations=100", "seed=range(0,24)", "engine=plain"]
FILES = ("runs.csv", "losses.npz")


def popen(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command line in a new Python: a forked process would wait for ever for the end of joblib's workers."""
    whole = [sys.executable, "-m", "xor_study.run", *arguments]
    return subprocess.Popen(whole, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command line of ours in a folder, with batches of the usual size: (exit code, output, errors)."""
    if "hydra/launcher=joblib" in arguments:
        process = popen(folder, *arguments)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err
    started = processes.start(arguments, folder, most_runs=None)
    return started.wait(), started.out, started.err


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep without a launcher."""
    folder = tmp_path_factory.mktemp("reference")
    code, _, err = command(folder, *STUDY, "hydra.sweep.dir=sweep")
    assert (code, err) == (0, "")
    return folder / "sweep"


def same(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in FILES)


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None,
    reason="ray is not installed: pip install -c constraints.txt -e '.[ray]'",
)


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", pytest.param("ray", marks=needs_ray)])
def test_a_launcher_makes_the_same_table(launcher: str, reference: Path, tmp_path: Path) -> None:
    shards = 3 if launcher == "basic" else 2  # each of submitit's is a Python that imports everything
    arguments = ["hydra.sweep.dir=sweep", f"shards={shards}", f"hydra/launcher={launcher}"]
    code, out, err = command(tmp_path, *STUDY, *arguments)
    assert code == 0, err
    assert "80 runs: sweep/runs.csv" in out
    assert same(tmp_path / "sweep", reference)
    assert len(list((tmp_path / "sweep/parts").iterdir())) == shards


def test_the_driver_tells_how_far_the_jobs_are(tmp_path: Path) -> None:
    table = table_of([RunSpec(epochs=1, iterations=100, seed=seed) for seed in range(30)])
    driver, job = (Sweep(table, "auto", "cpu", None, tmp_path, shards=3) for _ in range(2))
    driver.begin("", [])
    job.train(lambda progress: None, 0)
    driver.parts.scan()
    told: list[Progress] = []
    with driver.watched(told.append, 0.01):
        for shard, runs in ((1, 20), (2, 30)):
            job.train(lambda progress: None, shard)
            while not told or told[-1].runs_done < runs:
                time.sleep(0.01)
    seen = [(one.runs_done, one.steps_done, sum(one.outcomes.values())) for one in told]
    assert seen == sorted(seen)
    assert set(seen) - {(10, 0, 10)} == {(20, 1000, 20), (30, 2000, 30)}
    assert {(one.runs, one.steps) for one in told} == {(30, 2000)}


def test_a_part_seen_half_there_is_read_again_in_the_end(tmp_path: Path) -> None:
    table = table_of([RunSpec(epochs=1, iterations=20, seed=seed) for seed in range(3)])
    driver, job = (Sweep(table, "auto", "cpu", None, tmp_path, shards=1) for _ in range(2))
    driver.begin("", [])
    job.train(lambda progress: None, 0)
    (part,) = driver.parts.path.glob("*.npz")
    data = part.read_bytes()
    told: list[Progress] = []
    part.write_bytes(data[:100])
    with driver.watched(told.append, 0.01):
        while not told:
            time.sleep(0.01)
    part.write_bytes(data)
    driver.parts.scan()
    assert driver.parts.done.all()


def workers(driver: int) -> list[int]:
    """Return the processes of joblib's pool below a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            loky = b"popen_loky" in (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == driver and loky:
            found.append(int(path.name))
    return found


def test_a_worker_that_is_killed_is_named_and_the_sweep_goes_on(tmp_path: Path) -> None:
    process = popen(
        tmp_path, *LONGER, "hydra.sweep.dir=sweep", "shards=4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    while not list((tmp_path / "sweep/parts").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: shards ")
    assert "of 4 did not finish; A worker process managed by the executor was unexpectedly terminated" in err
    (again,) = [line.partition("; to resume: python -m xor_study.run ")[2] for line in err.splitlines()]
    assert again.startswith("-m epochs=1")
    resumed = processes.start([*LONGER, "hydra.sweep.dir=sweep"], tmp_path)
    assert (resumed.wait(), resumed.err) == (0, "")
    assert "of 24 runs are already done" in resumed.out
    assert processes.start([*LONGER, "hydra.sweep.dir=undisturbed"], tmp_path).wait() == 0
    assert same(tmp_path / "sweep", tmp_path / "undisturbed")


def test_a_result_is_handed_over_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[JobReturn] = []
    instantiate = Plugins.instantiate_launcher

    def watched(self: Plugins, **given: Any) -> Any:
        launcher = instantiate(self, **given)
        launch = launcher.launch
        monkeypatch.setattr(launcher, "launch", lambda *told, **more: jobs.extend(launch(*told, **more)) or jobs)
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", watched)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xor-study", *STUDY, "hydra.sweep.dir=sweep", "shards=2"])
    run.main()
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert max(len(pickle.dumps(job)) for job in jobs) < 4096  # above 16,384 multiprocessing takes two writes


def test_a_job_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Sweep.train

    def fail(self: Sweep, follow: Any, shard: int | None = None) -> None:
        if shard == 1:
            raise OSError(5, "Input/output error", "far/away")
        train(self, follow, shard)

    monkeypatch.setattr(Sweep, "train", fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xor-study", *STUDY, "hydra.sweep.dir=sweep", "shards=4"])
    with pytest.raises(SystemExit, match="1"):
        run.main()
    assert capsys.readouterr().err == (
        "error: shard 1 of 4 did not finish; shard 1 of 4: far/away: Input/output error; "
        f"60 of 80 runs are kept in sweep; to resume: {shlex.join(sys.argv)}\n"
    )


def processes_below(pid: int) -> set[int]:
    """Return the processes that are children of another by any way."""
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return {other for other in every if pid in Process.of(other).ancestors}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_end_with_a_driver_that_is_killed(launcher: str, tmp_path: Path) -> None:
    arguments = [*LONGER, "hydra.sweep.dir=sweep", "shards=4"]
    process = popen(tmp_path, *arguments, f"hydra/launcher={launcher}")
    while not list((tmp_path / "sweep/parts").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    below = [Process.of(pid) for pid in processes_below(process.pid)]
    assert len(below) >= 2
    process.kill()
    process.wait()
    while any(worker.state != "dead" for worker in below):
        time.sleep(0.1)
    kept = len(list((tmp_path / "sweep/parts").glob("*.npz")))
    assert kept < 4
    process.communicate()
    resumed = processes.start([*LONGER, "hydra.sweep.dir=sweep"], tmp_path)
    assert (resumed.wait(), resumed.err) == (0, "")
    assert processes.start([*LONGER, "hydra.sweep.dir=undisturbed"], tmp_path).wait() == 0
    assert same(tmp_path / "sweep", tmp_path / "undisturbed")


def test_a_job_that_does_not_see_the_folder_says_so_and_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a host that lacks the shared file system: the job's folder is another one."""
    run_shard = runner.run_shard

    def elsewhere(planned: Any, folder: Path, *more: Any) -> None:
        run_shard(planned, tmp_path / "not_shared/sweep", *more)

    monkeypatch.setattr(runner, "run_shard", elsewhere)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xor-study", *STUDY, "hydra.sweep.dir=sweep", "shards=1"])
    with pytest.raises(SystemExit, match="1"):
        run.main()
    assert capsys.readouterr().err == (
        f"error: shard 0 of 1 did not finish; shard 0 of 1: {tmp_path}/not_shared/sweep: host {socket.gethostname()} "
        "does not see the sweep in this folder; it must be on a file system that all hosts share; "
        f"0 of 80 runs are kept in sweep; to resume: {shlex.join(sys.argv)}\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


SBATCH = """\
#!{python}
import os, re, subprocess, sys
from pathlib import Path
text = Path(sys.argv[1]).read_text()
array = re.search(r"--array=.?0-(\\d+)", text)
states = dict(entry.split("=") for entry in os.environ["FAKE_STATES"].split())
for task in range(int(array[1]) + 1 if array else 1):
    name = f"77_{{task}}" if array else "77"
    environment = os.environ | {{"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"}}
    if array:
        environment |= {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}}
    state = states.get(str(task), "COMPLETED")
    if state == "COMPLETED":
        null = subprocess.DEVNULL  # submitit reads until both streams are closed
        subprocess.Popen(["bash", "-c", text], env=environment, stdout=null, stderr=null, start_new_session=True)
    with Path(os.environ["FAKE_SLURM"], "states").open("a") as stream:
        stream.write(f"{{name}}|{{'RUNNING' if state == 'COMPLETED' else state}}|node7\\n")
print("Submitted batch job 77")
"""

SRUN = """\
#!{python}
import os, subprocess, sys
from pathlib import Path
words = sys.argv[1:]
name = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
name += "_" + os.environ["SLURM_ARRAY_TASK_ID"] if "SLURM_ARRAY_TASK_ID" in os.environ else ""
out, err = (words[words.index(flag) + 1] for flag in ("--output", "--error"))
paths = [Path(path.replace("%A_%a", name).replace("%j", name).replace("%t", "0")) for path in (out, err)]
paths[0].parent.mkdir(exist_ok=True)
streams = [path.open("a") for path in paths]
sys.exit(subprocess.call(words[words.index("--error") + 2:], stdout=streams[0], stderr=streams[1]))
"""

SACCT = """\
#!/bin/sh
echo "JobID|State|NodeList"
cat "$FAKE_SLURM/states"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of SLURM's commands, which run jobs here and report for the others the states in FAKE_STATES."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)
    monkeypatch.chdir(tmp_path)
    return folder


def on_slurm(monkeypatch: pytest.MonkeyPatch, states: str, shards: int) -> None:
    monkeypatch.setenv("FAKE_STATES", states)
    arguments = [*STUDY, "hydra.sweep.dir=sweep", f"shards={shards}", "hydra/launcher=submitit_slurm"]
    monkeypatch.setattr(sys, "argv", ["xor-study", *arguments])
    run.main()


def test_slurm_makes_the_same_table(slurm: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_slurm(monkeypatch, "", 2)
    assert same(Path("sweep"), reference)


def test_a_job_that_slurm_ended_is_named_with_its_state(
    slurm: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        on_slurm(monkeypatch, "0=OUT_OF_MEMORY 2=TIMEOUT", 3)
    folder = Path("sweep").absolute() / ".submitit"
    assert capsys.readouterr().err == (
        "error: shards 0 and 2 of 3 did not finish; "
        f"shard 0 of 3: SLURM job 77_0: OUT_OF_MEMORY, see {folder}/77_0/77_0_0_log.err; "
        f"shard 2 of 3: SLURM job 77_2: TIMEOUT, see {folder}/77_2/77_2_0_log.err; "
        f"27 of 80 runs are kept in sweep; to resume: {shlex.join(sys.argv)}\n"
    )
    monkeypatch.setattr(sys, "argv", ["xor-study", *STUDY, "hydra.sweep.dir=sweep"])
    run.main()
    assert same(Path("sweep"), reference)


@needs_ray
def test_a_ray_cluster_that_loses_a_node(tmp_path: Path) -> None:
    """Ray starts the lost job again, on the node that is left; if it does not, the same command resumes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    address = f"hydra.launcher.ray.init.address={cluster.address}"
    arguments = [*LONGER, "hydra.sweep.dir=sweep", "shards=2", "hydra/launcher=ray", address]
    try:
        process = popen(tmp_path, *arguments)
        while not list((tmp_path / "sweep/parts").glob("*.npz")):
            assert process.poll() is None
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=180)
        assert "Traceback" not in err
        if process.returncode:
            assert "24 runs are kept in sweep; to resume: " in err
            assert processes.start([*LONGER, "hydra.sweep.dir=sweep"], tmp_path).wait() == 0
    finally:
        cluster.shutdown()
    assert processes.start([*LONGER, "hydra.sweep.dir=undisturbed"], tmp_path).wait() == 0
    assert same(tmp_path / "sweep", tmp_path / "undisturbed")
