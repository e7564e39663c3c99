"""Sweeps that are killed, interrupted, doubled, spoilt: what is left is never wrong, and the same command resumes.

Every test ends with the table of an undisturbed sweep, byte for byte.
"""

import hashlib
import io
import os
import random
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import RUNS_OF_A_BATCH, Command, start

from xor_study import RunSpec, train
from xor_study.sweeps.records import read_losses, read_runs

STUDY = ["-m", "epochs=2", "iterations=100", "optimizer=sgd,adam", "lr=0.1,1", "seed=range(0,100)"]
RUNS = 400
HERE = [*STUDY, "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of an undisturbed sweep, and the seconds it took."""
    folder = tmp_path_factory.mktemp("reference")
    start(HERE, folder, name="cold").wait()
    shutil.rmtree(folder / "sweep")
    begun = time.monotonic()
    command = start(HERE, folder)
    assert command.wait() == 0, command.err
    assert len(list((folder / "sweep/parts").iterdir())) == RUNS / RUNS_OF_A_BATCH
    return folder / "sweep", time.monotonic() - begun


def wrongs(sweep: Path, reference: Path) -> dict[str, int]:
    """Return how many rows of a sweep are lost, doubled and wrong; all of its files must be those of the reference."""
    table, expected = (pd.read_csv(folder / "runs.csv", dtype=str).set_index("run_id") for folder in (sweep, reference))
    counts = Counter(table.index)
    common = [run for run in expected.index if counts[run] == 1]
    found = {
        "lost": len(expected.index.difference(table.index)),
        "doubled": sum(count - 1 for count in counts.values()),
        "wrong": int((table.loc[common].fillna("") != expected.loc[common].fillna("")).any(axis=1).sum()),
    }
    if not any(found.values()):
        for name in ("runs.csv", "losses.npz"):
            assert (sweep / name).read_bytes() == (reference / name).read_bytes()
        assert not [path.name for path in sweep.rglob(".*.npz.*")], "temporary files"
    return found


NONE = {"lost": 0, "doubled": 0, "wrong": 0}


def finish(folder: Path, reference: Path) -> Command:
    """Give the same command again, and see that it ends as if nothing had happened."""
    command = start(HERE, folder, name="again")
    assert (command.wait(), command.complaints) == (0, "")
    assert wrongs(folder / "sweep", reference) == NONE
    return command


def finished(folder: Path) -> int:
    return len(list((folder / "sweep/parts").glob("*.npz")))


@pytest.mark.parametrize("trial", range(4))
def test_killed_at_any_two_moments(trial: int, reference: tuple[Path, float], tmp_path: Path) -> None:
    moments, written = random.Random(trial), dict[Path, int]()
    for _ in range(2):
        command = start(HERE, tmp_path)
        time.sleep(moments.uniform(0.5, 1) * reference[1])
        command.process.kill()
        assert command.wait() in (0, -signal.SIGKILL)
        written |= {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep/parts").glob("*.npz")}
    finish(tmp_path, reference[0])
    assert {path: path.stat().st_mtime_ns for path in written} == written, "a finished part was written again"


def wait_for_parts(command: Command, count: int) -> None:
    while finished(command.folder) < count:
        assert command.process.is_alive(), command.err
        time.sleep(0.002)


@pytest.mark.parametrize("count", [1, 5, 10])
def test_interrupted(count: int, reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start(HERE, tmp_path)
    wait_for_parts(command, count)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait() == 130
    kept = finished(tmp_path) * RUNS_OF_A_BATCH
    goes_on = shlex.join(["xor-study", *HERE])
    assert command.err == f"interrupted; {kept} of {RUNS} runs are kept in sweep; to resume: {goes_on}\n"
    assert f"{kept} of {RUNS} runs are already done" in finish(tmp_path, reference[0]).out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_asked_to_end(number: signal.Signals, reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start(HERE, tmp_path)
    wait_for_parts(command, 1)
    assert command.process.pid is not None
    os.kill(command.process.pid, number)
    assert command.wait() == 128 + number
    kept = finished(tmp_path) * RUNS_OF_A_BATCH
    again = shlex.join(["xor-study", *HERE])
    told = f"interrupted by {number.name}; {kept} of {RUNS} runs are kept in sweep; to resume: {again}\n"
    assert command.err == told
    finish(tmp_path, reference[0])


def test_a_single_run_asked_to_end(tmp_path: Path) -> None:
    command = start(["epochs=100000", "hydra.run.dir=run"], tmp_path)
    while not (tmp_path / "run").exists():
        assert command.process.is_alive(), command.err
        time.sleep(0.01)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    assert command.err == "interrupted by SIGTERM; no results were written\n"


def test_interrupted_while_it_waits_for_another(reference: tuple[Path, float], tmp_path: Path) -> None:
    """One stands still and has batches claimed; the other does all the rest, waits for these, and is interrupted."""
    one = start(HERE, tmp_path, name="one")
    wait_for_parts(one, 1)
    assert one.process.pid is not None
    os.kill(one.process.pid, signal.SIGSTOP)
    try:
        two, before = start(HERE, tmp_path, name="two"), -1
        while before < finished(tmp_path):
            before = finished(tmp_path)
            time.sleep(2 * reference[1])
        assert two.process.pid is not None
        os.kill(two.process.pid, signal.SIGINT)
        assert two.wait() == 130
    finally:
        os.kill(one.process.pid, signal.SIGCONT)
    assert (one.wait(), one.complaints) == (0, "")
    assert wrongs(tmp_path / "sweep", reference[0]) == NONE


def test_two_processes_share_a_folder(reference: tuple[Path, float], tmp_path: Path) -> None:
    commands = [start(HERE, tmp_path, name=name) for name in ("one", "two")]
    assert [(command.wait(), command.complaints) for command in commands] == [(0, ""), (0, "")]
    assert wrongs(tmp_path / "sweep", reference[0]) == NONE
    assert finished(tmp_path) == RUNS / RUNS_OF_A_BATCH


@pytest.mark.parametrize("largest", [300, 2000, 20_000])
def test_a_full_disk(largest: int, reference: tuple[Path, float], tmp_path: Path) -> None:
    """Of files of 400 bytes (plan), 3 KB (parts) and 140 KB (the table) some can't be written."""
    command = start(HERE, tmp_path, largest_file=largest)
    assert command.wait() == 1
    assert command.err.startswith("error: ")
    assert "File too large" in command.err
    assert command.err.count("\n") == 1
    assert not (tmp_path / "sweep/runs.csv").exists()
    finish(tmp_path, reference[0])


def test_a_folder_that_cannot_hold_parts(reference: tuple[Path, float], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/parts").write_text("in the way")
    command = start(HERE, tmp_path)
    assert command.wait() == 1
    assert command.err == "error: sweep/parts: File exists\n"
    (tmp_path / "sweep/parts").unlink()
    finish(tmp_path, reference[0])


def truncate(part: Path, foreign: Path) -> None:
    part.write_bytes(part.read_bytes()[:1000])


def empty(part: Path, foreign: Path) -> None:
    part.write_bytes(b"")


def alter(part: Path, foreign: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def exchange(part: Path, foreign: Path) -> None:
    part.write_bytes(foreign.read_bytes())


def pickled(part: Path, foreign: Path) -> None:
    """Put a well-named file there whose arrays are pickles."""
    part.unlink()
    stream = io.BytesIO()
    np.savez(stream, rows=np.array([{}], dtype=object))
    name = hashlib.sha256(stream.getvalue()).hexdigest()[:32]
    (part.parent / f"chunk-{name}.npz").write_bytes(stream.getvalue())


def stranger(part: Path, foreign: Path) -> None:
    part.unlink()
    shutil.copy(foreign, part.parent)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (truncate, "checksum mismatch"),
        (empty, "checksum mismatch"),
        (alter, "checksum mismatch"),
        (exchange, "checksum mismatch"),
        (pickled, "not a part file"),
        (stranger, "has none of the runs of this sweep"),
    ],
)
def test_a_spoilt_part_is_found_and_trained_again(
    spoil: Callable[[Path, Path], None], told: str, reference: tuple[Path, float], tmp_path: Path
) -> None:
    other = [argument.replace("seed=range(0,100)", "seed=range(100,110)") for argument in HERE]
    assert start(other, tmp_path).wait() == 0
    (foreign, *_) = (tmp_path / "sweep/parts").iterdir()
    foreign = foreign.rename(tmp_path / foreign.name)
    shutil.rmtree(tmp_path / "sweep")
    shutil.copytree(reference[0], tmp_path / "sweep")
    for part in sorted((tmp_path / "sweep/parts").iterdir())[:3]:
        spoil(part, foreign)
    out = finish(tmp_path, reference[0]).out
    assert told in out
    assert f"{RUNS - 3 * RUNS_OF_A_BATCH} of {RUNS} runs are already done" in out


def test_the_table_can_be_made_again(reference: tuple[Path, float], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "sweep")
    for name in ("runs.csv", "losses.npz", "plan.json"):
        (tmp_path / "sweep" / name).unlink()
    finish(tmp_path, reference[0])


def test_a_clock_that_is_set_back(reference: tuple[Path, float], tmp_path: Path) -> None:
    command = start(HERE, tmp_path, clock=86400 * 365)
    wait_for_parts(command, 5)
    command.process.kill()
    command.wait()
    for path in (tmp_path / "sweep").rglob("*"):
        os.utime(path, (2**32, 2**32))
    assert start(HERE, tmp_path, clock=-86400 * 365 * 20).wait() == 0
    assert wrongs(tmp_path / "sweep", reference[0]) == NONE


def test_a_sweep_may_grow_but_never_mixes(reference: tuple[Path, float], tmp_path: Path) -> None:
    half = [argument.replace("range(0,100)", "range(0,50)") for argument in HERE]
    assert start(half, tmp_path).wait() == 0
    assert f"{RUNS // 2} of {RUNS} runs are already done" in finish(tmp_path, reference[0]).out
    for other in (half, [*HERE, "gain=2"], [*HERE, "optimizer.weight_decay=0.1"]):
        command = start(other, tmp_path)
        assert command.wait() == 1
        assert "runs that this command does not ask for; choose another folder" in command.err
        assert wrongs(tmp_path / "sweep", reference[0]) == NONE


@pytest.mark.parametrize("engine", ["vmap", "plain"])
def test_batches_change_no_bit(engine: str, tmp_path: Path) -> None:
    arguments = ["-m", "epochs=1", "iterations=20", "seed=range(0,40)", f"engine={engine}", "hydra.sweep.dir=sweep"]
    assert start(arguments, tmp_path).wait() == 0
    whole = train([RunSpec(epochs=1, iterations=20, seed=seed) for seed in range(40)], engine=engine)
    assert len(list((tmp_path / "sweep/parts").iterdir())) == 3
    np.testing.assert_array_equal(read_runs(tmp_path / "sweep")["final_loss"], whole.runs["final_loss"])
    np.testing.assert_array_equal(read_losses(tmp_path / "sweep"), whole.losses)


def test_what_another_engine_made_is_kept_and_told(reference: tuple[Path, float], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "sweep")
    lost = sorted((tmp_path / "sweep/parts").iterdir())[0]
    with np.load(lost) as arrays:
        ids = set(arrays["rows"]["run_id"].astype(str))
    lost.unlink()
    command = start([*HERE, "engine=vmap"], tmp_path)
    assert (command.wait(), command.err) == (0, "")
    assert f"{RUNS - RUNS_OF_A_BATCH} of them were trained with engine=lanes; their rows record it" in command.out
    table = pd.read_csv(tmp_path / "sweep/runs.csv", dtype=str)
    assert set(table["run_id"][table["engine"] == "vmap"]) == ids
    assert (table["engine"] == "lanes").sum() == RUNS - RUNS_OF_A_BATCH
