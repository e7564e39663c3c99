"""Locks between processes that share a folder: who holds what is said, and what a dead holder leaves is taken over."""

import errno
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import RUNS_OF_A_BATCH, Command, start

from xor_study import RunSpec, run
from xor_study.engines import train_batches
from xor_study.sweeps import locks
from xor_study.sweeps.locks import Locks
from xor_study.sweeps.process import Process
from xor_study.training.table import table_of

STUDY = ["-m", "epochs=2", "iterations=100", "optimizer=sgd,adam", "lr=0.1,1", "seed=range(0,100)"]
RUNS = 400
HERE = [*STUDY, "hydra.sweep.dir=sweep"]
FILES = ("runs.csv", "losses.npz")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed sweep."""
    folder = tmp_path_factory.mktemp("reference")
    assert start(HERE, folder).wait() == 0
    return folder / "sweep"


def same(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def wait_until(condition: Callable[[], object], command: Command) -> None:
    while not condition():
        assert command.process.is_alive(), command.err
        time.sleep(0.002)


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Command]:
    """A sweep that is stopped with some of its batches done."""
    command = start(HERE, tmp_path, name="stopped")
    wait_until(lambda: list((tmp_path / "sweep/parts").glob("*.npz")), command)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGSTOP)
    yield command
    command.process.kill()


def test_a_process_that_waits_says_for_whom_and_what_frees_it(
    stopped: Command, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: it trains all other batches meanwhile, and `unlock` lets it finish without the stopped process."""
    pid, host = stopped.process.pid, socket.gethostname()
    held = len(Locks(tmp_path / "sweep/parts").held())
    other = start(HERE, tmp_path, name="other")
    wait_until(lambda: (tmp_path / "other.err").exists() and other.err.endswith("\n"), other)
    line = other.err.splitlines()[-1]
    expected = (
        rf"waiting for (\d) batch(es)? that another process trains; process {pid} on {host} holds (\d) since "
        rf"[-\d]+ [:\d]+; it is stopped: kill -CONT {pid} continues it, xor-study unlock sweep takes over from it"
    )
    match = re.fullmatch(expected, line)
    assert match is not None, line
    assert int(match[1]) == int(match[3]) == held
    done = len(list((tmp_path / "sweep/parts").glob("*.npz")))
    assert done + held == RUNS / RUNS_OF_A_BATCH
    run.main(["unlock", str(tmp_path / "sweep")])
    out = capsys.readouterr().out
    assert out.count(f"process {pid} on {host}") == out.count("stopped: freed") == held
    assert other.wait() == 0
    assert same(tmp_path / "sweep", reference)
    assert pid is not None
    os.kill(pid, signal.SIGCONT)
    assert (stopped.wait(), stopped.complaints) == (0, "")
    assert same(tmp_path / "sweep", reference)


def test_a_batch_is_claimed_when_a_thread_is_free_for_it() -> None:
    """One may be trained and not handed over yet, whatever is compiled ahead; one that is not claimed is left out."""
    tables = [table_of([RunSpec(epochs=1, iterations=50, seed=seed)]) for seed in range(8)]
    ahead: list[int] = []
    taken: set[int] = set()
    trained: list[int] = []

    def begin(key: int) -> bool:
        ahead.append(len(taken) - len(trained))
        if key != 3:
            taken.add(key)
        return key != 3

    for key, _ in train_batches(enumerate(tables), threads=1, advance=lambda steps, measures: None, begin=begin):
        trained.append(key)
    assert trained == [0, 1, 2, 4, 5, 6, 7]
    assert len(ahead) == 8
    assert max(ahead) <= 1


def test_two_processes_take_turns(tmp_path: Path) -> None:
    slow = ["-m", "epochs=10", "iterations=1000", "seed=range(0,160)", "threads=1", "hydra.sweep.dir=sweep"]
    commands = [start(slow, tmp_path, name=name) for name in ("one", "two")]
    trainers: dict[str, int] = {}
    while any(command.process.is_alive() for command in commands):
        for path in (tmp_path / "sweep/parts").glob("*.holder"):
            try:
                trainers[path.name] = json.loads(path.read_text())["pid"]
            except (OSError, ValueError):
                continue  # taken or given back at this moment
    assert [(command.wait(), command.complaints) for command in commands] == [(0, ""), (0, "")]
    counts = [list(trainers.values()).count(command.process.pid) for command in commands]
    assert sum(counts) == len(trainers)
    assert min(counts) >= 3, counts


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock(number: int, reference: Path, tmp_path: Path) -> None:
    commands = [start(HERE, tmp_path, name=name, flock=number) for name in ("one", "two")]
    assert [(command.wait(), command.complaints) for command in commands] == [(0, ""), (0, "")]
    assert same(tmp_path / "sweep", reference)
    assert len(list((tmp_path / "sweep/parts").iterdir())) == RUNS / RUNS_OF_A_BATCH


def test_a_killed_process_leaves_no_lock_without_flock(reference: Path, tmp_path: Path) -> None:
    command = start(HERE, tmp_path, name="killed", flock=errno.ENOSYS)
    wait_until(lambda: list((tmp_path / "sweep/parts").glob("*.holder")), command)
    command.process.kill()
    command.wait()
    again = start(HERE, tmp_path, flock=errno.ENOSYS)
    assert (again.wait(), again.complaints) == (0, "")
    assert same(tmp_path / "sweep", reference)


@pytest.fixture
def soft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Locks:
    """The locks of a folder without flock."""
    monkeypatch.setattr(Locks, "_flock", False)
    return Locks(tmp_path)


def elsewhere(folder: Path, seconds: float) -> Path:
    """Leave the lock of a process of another host whose last sign of life is some seconds old."""
    path = folder / "a.holder"
    path.write_text(json.dumps({"host": "node7", "machine": "another", "pid": 17, "begun": "5", "since": 0.0}))
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.mark.parametrize(("seconds", "taken"), [(0, False), (50, False), (70, True), (-70, True)])
def test_a_lock_of_another_host_counts_while_it_is_refreshed(
    seconds: float, taken: bool, soft: Locks, tmp_path: Path
) -> None:
    elsewhere(tmp_path, seconds)
    assert (soft.claim("a") is not None) == taken


def test_a_holder_refreshes_its_lock(soft: Locks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    lock = soft.claim("a")
    assert lock is not None
    os.utime(tmp_path / "a.holder", (0, 0))
    while (tmp_path / "a.holder").stat().st_mtime == 0:
        time.sleep(0.01)
    assert soft.claim("a") is None
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_freed_is_not_taken_from_its_next_holder(soft: Locks, tmp_path: Path) -> None:
    one = soft.claim("a")
    assert one is not None
    one.free()
    path = elsewhere(tmp_path, 0)
    one.release()
    assert path.exists()


def test_a_process_is_not_a_later_one_of_its_number(tmp_path: Path) -> None:
    own = Process.of(os.getpid())
    assert own.state == "running"
    assert Process(own.host, own.machine, own.pid, own.begun + "0").state == "dead"
    assert Process(own.host, own.machine, 2**22 + 1, "1").state == "dead"
    assert Process(own.host, "another", own.pid, own.begun).state is None
    assert os.getppid() in own.ancestors


def test_unlock_frees_only_what_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    alive = Locks(tmp_path / "parts").claim("b")
    assert alive is not None
    path = elsewhere(tmp_path / "parts", 600)
    run.main(["unlock", str(tmp_path)])
    freed, kept = capsys.readouterr().out.splitlines()
    assert freed == f"batch a: process 17 on node7, since {locks.Holder(None, 0, 0).begun[6:]}, silent: freed"
    assert kept.startswith(f"batch b: process {os.getpid()} on {socket.gethostname()}, since ")
    assert kept.endswith("running: kept; --force frees it, and then it may be trained twice, with the same results")
    assert not path.exists()
    assert Locks(tmp_path / "parts").claim("b") is None
    run.main(["unlock", str(tmp_path), "--force"])
    assert capsys.readouterr().out.endswith("running: freed\n")
    second = Locks(tmp_path / "parts").claim("b")
    assert second is not None
    second.release()
    alive.release()
    run.main(["unlock", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}: nothing is locked\n"


def test_unlock_refuses_what_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run.main(["unlock", str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: not the folder of a sweep (no parts)\n"


def test_a_silent_holder_of_a_kernel_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a dead node whose file server still keeps its lock."""
    monkeypatch.setattr(locks, "PATIENCE", 0)
    monkeypatch.setattr(locks, "POLL", 0)
    held = Locks(tmp_path).claim("a")
    assert held is not None
    elsewhere(tmp_path, 300)
    answers = iter([False, False, False, True])
    locks.wait_for([Locks(tmp_path).lock("a")], lambda: next(answers), "1 batch", tmp_path / "my sweep")
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"waiting for 1 batch; process 17 on node7 holds 1 since [-\d]+ [:\d]+; no sign of life for 30\d s: "
        rf"if it is dead, xor-study unlock '{tmp_path}/my sweep' takes over from it\n",
        err,
    ), err
    held.release()


def test_all_files_are_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    lock = Locks(tmp_path / "sweep").claim("")
    assert lock is not None
    assert {path.name for path in tmp_path.rglob("*")} == {"sweep", ".lock", ".holder"}
    lock.release()
