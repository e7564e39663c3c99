"""Sweeps are read back from parts, Parquet or CSV: the same counts, each run once, and who made them."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xor_study import RunSpec, StudyError
from xor_study.analysis.cells import CELL, cells
from xor_study.analysis.outcomes import Outcomes, cells_from_json, cells_to_json
from xor_study.files import write_table
from xor_study.sweeps import commands, parts, provenance, reading, records
from xor_study.sweeps.sweep import Sweep
from xor_study.training.table import table_of

SPECS = [
    RunSpec(epochs=1, iterations=30, lr=lr, batch=batch, seed=seed)
    for lr in (1.0, 0.1)
    for batch in (32, "full")
    for seed in range(6)
]


def sweep(folder: Path, specs: list[RunSpec] = SPECS, shards: int | None = 4) -> Sweep:
    return Sweep(table_of(specs), "auto", "cpu", 1, folder, shards)


def train(folder: Path, specs: list[RunSpec] = SPECS, *, form: str = "csv", shard: int | None = None) -> Sweep:
    """Train a sweep or one shard of it, and leave its table if it is finished."""
    one = sweep(folder, specs)
    one.begin("the command", ["lr", "batch"])
    one.train(lambda progress: None, shard)
    if shard is None:
        one.merge(form)
    return one


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


def by_table(folder: Path) -> list[list[object]]:
    """Return the counts of `runs.csv`, in its order."""
    table = cells(records.read_runs(folder), ["lr", "batch"])
    return table.astype(object).to_numpy().tolist()


def by_reading(*folders: Path) -> list[list[object]]:
    return reading.read(folders).outcomes.by(["lr", "batch"]).astype(object).to_numpy().tolist()


def test_parts_say_what_the_table_says_in_its_order(finished: Path) -> None:
    assert by_reading(finished) == by_table(finished)
    assert [row[:2] for row in by_table(finished)] == [[1.0, "32"], [1.0, "full"], [0.1, "32"], [0.1, "full"]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder / "parts"),
        lambda folder: next((folder / "parts").iterdir()).unlink(),
        lambda folder: next((folder / "parts").iterdir()).write_bytes(b"no"),
        lambda folder: (folder / "plan.json").unlink(),
        lambda folder: (folder / "plan.json").write_text("[1"),
    ],
)
def test_without_all_parts_a_finished_sweep_is_read_from_its_table(
    spoil: Callable[[Path], object], finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "sweep"))
    spoil(folder)
    assert by_reading(folder) == by_table(folder)


def test_an_unfinished_sweep_is_read_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError, match="No such file"):
        reading.read([tmp_path])
    sweep(tmp_path).begin("the command", [])
    with pytest.raises(StudyError, match="no run of the sweep is finished yet"):
        reading.read([tmp_path])
    train(tmp_path, shard=1)
    read = reading.read([tmp_path])
    assert 0 < len(read.outcomes) < len(SPECS)
    commands.show([tmp_path])
    assert f"note: unfinished: {len(read.outcomes)} of {len(SPECS)} runs\n" in capsys.readouterr().out


def test_a_run_in_two_folders_or_in_two_parts_counts_once(finished: Path, tmp_path: Path) -> None:
    more = [spec.replace(seed=spec.seed + 3) for spec in SPECS]
    train(tmp_path / "more", more)
    assert sum(row[2] for row in by_reading(finished, tmp_path / "more")) == 4 * 9
    train(tmp_path / "two", shard=0)
    before = by_reading(tmp_path / "two")
    (name,) = parts.names(tmp_path / "two/parts")
    part = parts.Part.decoded((tmp_path / "two/parts" / name).read_bytes())
    data = parts.Part(part.rows, part.cells, part.engines, {"code": "x"}, part.steps, part.losses, part.epoch_losses)
    (tmp_path / "two/parts" / parts.name_of(data.encoded(), "x")).write_bytes(data.encoded())
    assert by_reading(tmp_path / "two") == before


def test_a_shard_reads_only_the_parts_of_its_own_chunks(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "sweep"))
    names: list[str] = []
    read = parts.Parts._read
    monkeypatch.setattr(parts.Parts, "_read", lambda self, name: names.append(name) or read(self, name))
    one = sweep(folder)
    one.train(lambda progress: None, 2)
    own = {chunk.identity for chunk in one.chunks_of(2)}
    assert {parts.chunk_of(name) for name in names} == own
    assert len(own) < len(one.planned.all)
    # Parts of another plan, such as that of the sweep before it grew, may hold any runs.
    grown = sweep(folder, [*SPECS, RunSpec(epochs=1, iterations=30, seed=99)])
    names.clear()
    grown.train(lambda progress: None, 0)
    assert set(names) >= set(parts.names(folder / "parts")) - {
        name for name in parts.names(folder / "parts") if parts.chunk_of(name) in grown.parts.chunks
    }


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_holds_the_same_table(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "sweep"))
    train(folder, form="parquet")
    assert not (folder / "runs.csv").exists()
    expected, found = records.read_runs(finished), records.read_runs(folder)
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        one, other = (table[name].astype(object).where(table[name].notna(), None) for table in (expected, found))
        assert one.tolist() == other.tolist(), name
    shutil.rmtree(folder / "parts")
    assert by_reading(folder) == by_table(finished)
    data = (folder / "runs.parquet").read_bytes()
    train(tmp_path / "again", form="parquet")
    assert (tmp_path / "again/runs.parquet").read_bytes() == data
    train(tmp_path / "again")  # back to CSV, from the same parts
    assert (tmp_path / "again/runs.csv").read_bytes() == (finished / "runs.csv").read_bytes()
    assert not (tmp_path / "again/runs.parquet").exists()


def test_a_table_reads_back_bit_by_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 63, 10_000, dtype=np.uint64)
    values = bits.view(np.float64)
    write_table(tmp_path / "runs.csv", pd.DataFrame({"final_loss": values[np.isfinite(values)]}))
    again = records.read_runs(tmp_path)["final_loss"].to_numpy()
    np.testing.assert_array_equal(again.view(np.uint64), bits[np.isfinite(values)])


def test_runs_of_other_code_are_said(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "sweep"))
    assert set(records.read_runs(folder)["code"]) == {provenance.code()}
    assert sweep(folder).begin("", []) == ["24 of 24 runs are already done"]
    monkeypatch.setattr(provenance, "code", lambda: "0123456789ab")
    monkeypatch.setattr(reading, "code", lambda: "0123456789ab")
    was = records.read_runs(folder)["code"].iloc[0]
    assert f"24 of them were trained with code={was}; their rows record it" in sweep(folder).begin("", [])
    commands.show([folder])
    known = f"code={was}, here 0123456789ab"
    assert f"note: 24 runs were computed by another version of the code ({known})\n" in capsys.readouterr().out


def test_the_code_is_that_of_the_folders_which_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "xor_study"
    shutil.copytree(Path(provenance.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("xor_study.files.__file__", str(package / "files.py"))
    before = provenance.code.__wrapped__()
    assert before == provenance.code()
    (package / "sweeps/runner.py").write_text("# another")
    (package / "model/losses.py").write_bytes((package / "model/losses.py").read_bytes().replace(b"\n", b"\r\n"))
    assert provenance.code.__wrapped__() == before
    (package / "engines/plain.py").write_text("# another")
    assert provenance.code.__wrapped__() != before


def test_cells_survive_json() -> None:
    table = Outcomes.of([records_of([RunSpec(lr=0.1, optimizer="adam"), RunSpec(batch="full")])]).cells
    again = cells_from_json(cells_to_json(table))
    for key in CELL:
        one, other = (frame[key].astype(object).where(frame[key].notna(), None).tolist() for frame in (table, again))
        assert one == (other if key != "batch" else [32, "full"]), key


def records_of(specs: list[RunSpec]) -> pd.DataFrame:
    from xor_study.engines.results import described
    from xor_study.training.table import run_ids

    table = table_of(specs)
    return described(table, run_ids(table)).assign(outcome="solved")


@pytest.mark.parametrize("spread", [1, 10**12])
def test_a_run_that_is_read_twice_is_found_whatever_its_seed(spread: int) -> None:
    table = records_of([RunSpec(lr=lr, seed=seed * spread) for lr in (0.1, 1.0) for seed in range(4)])
    both = Outcomes.of([table, table.iloc[[1, 6]], table.assign(seed=table["seed"] + 4 * spread)])
    assert len(both) == 18
    once = reading._distinct(both)
    assert len(once) == len(set(zip(once.cell.tolist(), once.seed.tolist(), strict=True))) == 16
    assert reading._distinct(once).seed.tolist() == once.seed.tolist()
