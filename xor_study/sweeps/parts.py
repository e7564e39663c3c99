"""Part files: the results of a chunk, saved atomically as a content-addressed file, and their merge into one table.

A part holds run ids, settings, measures, recorded losses and their provenance. The parts are the only record of a
sweep's progress: the table of runs and `losses.npz` are derived from them and the plan, and can be rewritten at any
time. A part's name begins with the identity of its chunk, so that a job reads only the parts of its own chunks.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.analysis.outcomes import Outcomes, cells_from_json, cells_to_json
from xor_study.engines.results import Blocks, Measured, span
from xor_study.errors import StudyError
from xor_study.files import write_atomically
from xor_study.sweeps.chunks import Chunk
from xor_study.training.outcome import NUMBERS, OUTCOMES
from xor_study.training.spec import KEYS
from xor_study.training.table import distinct_rows, plain

FOLDER = "parts"
FORMAT = 2
STEPS = ("solved_step", "first_nonfinite_step")

ROW = np.dtype(
    [("run_id", "S20"), ("cell", "u4"), ("seed", "i8"), ("engine", "u1"), ("outcome", "u1"), ("accuracy", "f8")]
    + [(name, "i8") for name in STEPS]
    + [(name, "f8") for name in NUMBERS]
)
"""What a part holds of a run: cell, engine and outcome by their index in the part's lists, a missing step as 0."""

ARRAYS = {"about", "rows", "steps", "losses", "epoch_losses"}


DAMAGES = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, MemoryError, zipfile.BadZipFile)
"""What reading a file raises that is not a part."""


NO_RUNS = "has none of the runs of this sweep"
"""What is wrong with an intact part of other runs."""


class DamagedError(StudyError):
    """A file is not a part, or not as it was written."""


@dataclass(frozen=True)
class Part:
    """The results of some runs, as they are saved.

    Attributes:
        rows: of type ROW, one for each run.
        cells: the settings of each cell, columns `cells.CELL` as in `runs.csv`.
        engines: what `rows["engine"]` counts.
        provenance: versions, commit and device, by the names of columns of `runs.csv`.
        steps: numbers of the steps whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)).
        epoch_losses: mean of each epoch, shape (runs, epochs).
    """

    rows: NDArray[np.void]
    cells: pd.DataFrame
    engines: tuple[str, ...]
    provenance: Mapping[str, str | None]
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        run_ids: NDArray[np.bytes_],
        measured: Measured,
        provenance: Mapping[str, str | None],
    ) -> Part:
        """Return the part of runs that were measured, given as a checked table."""
        rows = np.zeros(len(run_ids), ROW)
        codes, engines = pd.factorize(measured.engines)
        cell, cells = cells_of(table)
        rows["run_id"], rows["cell"], rows["seed"], rows["engine"] = run_ids, cell, table["seed"], codes
        outcomes = pd.Categorical(measured.measures["outcome"], categories=OUTCOMES)
        rows["outcome"], rows["accuracy"] = outcomes.codes, measured.measures["accuracy"]
        for name in STEPS:
            rows[name] = measured.measures[name].fillna(0).to_numpy(np.int64)
        for name in NUMBERS:
            rows[name] = measured.measures[name]
        return cls(rows, cells, tuple(engines), provenance, measured.steps, measured.losses, measured.epoch_losses)

    def encoded(self) -> memoryview:
        """Return the part as the bytes of an npz file; the same for the same part."""
        # np.savez, not np.savez_compressed: zlib's bytes differ between versions, and the name is their hash.
        about = {"format": FORMAT, "outcomes": OUTCOMES, "engines": self.engines, "made": dict(self.provenance)}
        about["cells"] = cells_to_json(self.cells)
        stream = io.BytesIO()
        np.savez(
            stream,
            about=np.array(json.dumps(about)),
            rows=self.rows,
            steps=self.steps,
            losses=self.losses,
            epoch_losses=self.epoch_losses,
        )
        return stream.getbuffer()

    @classmethod
    def decoded(cls, data: bytes) -> Part:
        """Return the part that some bytes are.

        Raises:
            DamagedError: if they are none.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ARRAYS}
            about = _about(found.pop("about"))
            part = cls(
                cells=cells_from_json(about["cells"]),
                engines=tuple(about["engines"]),
                provenance=about["made"],
                **found,
            )
            part._check()
        except DAMAGES as error:
            raise DamagedError(f"not a part file ({type(error).__name__})") from error
        return part

    def _check(self) -> None:
        """Raise ValueError unless all is as this version of the package writes it."""
        runs = len(self.rows)
        told = [*self.engines, *(value for value in self.provenance.values() if value is not None)]
        sound = (
            all(isinstance(text, str) for text in told)
            and self.rows.dtype == ROW
            and self.rows.ndim == self.steps.ndim == 1
            and self.losses.shape == (runs, len(self.steps))
            and self.epoch_losses.shape[:1] == (runs,)
            and self.losses.dtype.kind == self.epoch_losses.dtype.kind == "f"
            and (self.rows["outcome"] < len(OUTCOMES)).all()
            and (self.rows["engine"] < len(self.engines)).all()
            and (self.rows["cell"] < len(self.cells)).all()
        )
        if not sound:
            raise ValueError


def _about(array: NDArray[Any]) -> dict[str, Any]:
    """Return what a part says of itself.

    Raises:
        ValueError: if another version of this package has written it.
    """
    about: dict[str, Any] = json.loads(array.item())
    if about["format"] != FORMAT or tuple(about["outcomes"]) != OUTCOMES:
        raise ValueError
    return about


def read_all(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs of all intact parts in a folder as in `runs.csv`, and losses as `records.read_losses` does.

    Raises:
        StudyError: if there are none.
    """
    found = Parts(folder, np.zeros(0, "S20"))
    read = [part for part in map(found.intact, names(found.path)) if part is not None]
    if not read:
        raise StudyError(f"{folder}: no run of the sweep is finished yet")
    settings = pd.concat([part.cells.iloc[part.rows["cell"]].assign(seed=part.rows["seed"]) for part in read])
    ids, firsts = np.unique(np.concatenate([part.rows["run_id"] for part in read]), return_index=True)
    every = Parts(folder, ids)
    every.scan()
    merged = every.merged()
    runs = pd.concat([settings.iloc[firsts].reset_index(drop=True), merged.columns(slice(None))], axis=1)
    names_of_runs = ids.astype(str)
    runs.insert(0, "run_id", names_of_runs)
    losses = pd.DataFrame(merged.losses.astype(np.float64), index=names_of_runs, columns=merged.steps)
    return runs.astype({"outcome": object}), losses


def read_outcomes(path: Path) -> tuple[Outcomes, dict[str, str | None]]:
    """Return the outcomes of the runs of a part, and its provenance; the recorded losses are not read.

    Raises:
        DamagedError: if the file is not a part.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about, rows = _about(arrays["about"]), arrays["rows"]
        cells, cell = cells_from_json(about["cells"]), rows["cell"].astype(np.int32)
        if (cell >= len(cells)).any() or (rows["outcome"] >= len(OUTCOMES)).any():
            raise ValueError
        return Outcomes(cells, cell, rows["seed"].copy(), rows["outcome"].copy()), about["made"]
    except DAMAGES as error:
        raise DamagedError(f"not a part file ({type(error).__name__})") from error


@dataclass(frozen=True)
class _Summary:
    """What is kept in memory of a part that was read.

    Attributes:
        rows_of_plan: the row of each of its runs in the plan, -1 for runs that the plan does not have.
        engines, provenance: see `Part`.
        outcomes: of its runs in the plan, as codes.
        steps: whose losses are recorded.
        kind: of the losses.
        epochs: how many means there are.
    """

    rows_of_plan: NDArray[np.intp]
    engines: tuple[str, ...]
    provenance: Mapping[str, str | None]
    outcomes: NDArray[np.uint8]
    steps: NDArray[np.int64]
    kind: np.dtype[Any]
    epochs: int


@dataclass(frozen=True)
class Merged:
    """The results of all runs of a plan, in its order.

    Attributes:
        rows: of type ROW, one for each run.
        maker: which of the makers made each run, shape (runs,).
        makers: engine and provenance, by the names of columns.
        steps, losses, epoch_losses: see `Part`.
    """

    rows: NDArray[np.void]
    maker: NDArray[np.intp]
    makers: Sequence[Mapping[str, str | None]]
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]

    def columns(self, span: slice) -> pd.DataFrame:
        """Return measures, engine and provenance of some runs, as columns of the table of runs."""
        rows, maker = self.rows[span], self.maker[span]
        columns: dict[str, Any] = {
            "outcome": pd.Categorical.from_codes(rows["outcome"], categories=pd.Index(OUTCOMES)),
            "accuracy": np.ascontiguousarray(rows["accuracy"]),
        }
        for name in STEPS:
            columns[name] = pd.arrays.IntegerArray(np.ascontiguousarray(rows[name]), rows[name] == 0)
        columns |= {name: np.ascontiguousarray(rows[name]) for name in NUMBERS}
        for name in dict.fromkeys(name for made in self.makers for name in made):
            codes, values = pd.factorize(np.array([made.get(name) for made in self.makers], dtype=object))
            columns[name] = pd.Categorical.from_codes(codes[maker], categories=pd.Index(values))
        return pd.DataFrame(columns, copy=False)


@dataclass
class Parts:
    """The parts of one plan in a folder.

    Args:
        folder: of the sweep; its parts lie in the folder FOLDER of it.
        run_ids: of the plan's runs, in their order.
        chunks: the rows of the plan's chunks, by identity.

    Attributes:
        not_read: identities of chunks whose parts need not be read.
        done: which of the plan's runs are in a part.
        problems: what is wrong with files in the folder that are not intact parts, by the file's name.
    """

    folder: Path
    run_ids: NDArray[np.bytes_]
    chunks: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)
    not_read: Collection[str] = ()
    done: NDArray[np.bool_] = field(init=False)
    problems: dict[str, str] = field(default_factory=dict)
    _known: dict[str, _Summary] = field(default_factory=dict)
    _writing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.path = self.folder / FOLDER
        self.done = np.zeros(len(self.run_ids), bool)

    def scan(self) -> None:
        """Read the parts that are new since the last scan."""
        for name in names(self.path):
            if name in self._known.keys() | self.problems.keys() | self._writing or chunk_of(name) in self.not_read:
                continue
            part = self.intact(name)
            if part is not None:
                self._remember(name, part, self._rows_of(name, part.rows["run_id"]))

    def intact(self, name: str) -> Part | None:
        """Return a part, or None if it is damaged, which is then noted."""
        try:
            return self._read(name)
        except DamagedError as error:
            self.problems[name] = str(error)
            return None

    def _read(self, name: str) -> Part:
        try:
            data = (self.path / name).read_bytes()
        except IsADirectoryError as error:
            raise DamagedError("is a folder") from error
        if name_of(data, chunk_of(name)) != name:
            raise DamagedError("checksum mismatch")
        return Part.decoded(data)

    def _rows_of(self, name: str, run_ids: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """Return the row of each run of a part in the plan, -1 for runs that the plan does not have."""
        rows = self.chunks.get(chunk_of(name), _NO_ROWS)
        if np.array_equal(self.run_ids[rows], run_ids):
            return rows
        # Of another plan, such as that of the sweep before it grew, or of a chunk that was finished in two parts.
        at = np.searchsorted(self.run_ids, run_ids, sorter=self._order)
        rows = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where(self.run_ids[rows] == run_ids, rows, -1)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """The order that sorts the plan's runs by their ids."""
        return np.argsort(self.run_ids)

    def _remember(self, name: str, part: Part, rows_of_plan: NDArray[np.intp]) -> None:
        outcomes = part.rows["outcome"][rows_of_plan >= 0]
        kind, epochs = part.losses.dtype, part.epoch_losses.shape[1]
        self._known[name] = _Summary(rows_of_plan, part.engines, part.provenance, outcomes, part.steps, kind, epochs)
        self.done[rows_of_plan[rows_of_plan >= 0]] = True
        if not (rows_of_plan >= 0).any():
            self.problems[name] = NO_RUNS

    @property
    def used(self) -> list[str]:
        """Names of the parts that hold runs of the plan."""
        return sorted(name for name, known in self._known.items() if known.outcomes.size)

    @property
    def others(self) -> int:
        """Number of runs in the parts that the plan does not have."""
        return sum(int((known.rows_of_plan < 0).sum()) for known in self._known.values())

    def outcomes(self) -> dict[str, int]:
        """Return the number of finished runs by outcome."""
        counts = np.zeros(len(OUTCOMES), np.int64)
        for known in self._known.values():
            counts += np.bincount(known.outcomes, minlength=len(OUTCOMES))
        return dict(zip(OUTCOMES, counts.tolist(), strict=True))

    def outcome_codes(self) -> NDArray[np.intp]:
        """Return the outcome of each run of a finished plan, as its position in OUTCOMES."""
        codes = np.full(len(self.run_ids), -1)
        for name in reversed(self.used):  # the first part by name counts, as in `merged`
            known = self._known[name]
            codes[known.rows_of_plan[known.rows_of_plan >= 0]] = known.outcomes
        return codes

    def differing_provenance(self, provenance: Mapping[str, str | None], engines: set[str]) -> dict[str, int]:
        """Return how many finished runs have another provenance or engine, by what differs, such as "engine=plain"."""
        counts: Counter[str] = Counter()
        for known in self._known.values():
            of_part = {"engine": ",".join(known.engines), **known.provenance}
            expected = {**provenance, "engine": of_part["engine"] if set(known.engines) <= engines else ""}
            for key, value in of_part.items():
                if value != expected.get(key):
                    counts[f"{key}={value or 'unknown'}"] += int((known.rows_of_plan >= 0).sum())
        return {text: runs for text, runs in counts.items() if runs}

    def add(self, chunk: Chunk, rows: NDArray[np.intp], part: Part) -> None:
        """Save the part of a chunk, with the runs at `rows` of the plan."""
        data = part.encoded()
        name = name_of(data, chunk.identity)
        self._writing.add(name)
        write_atomically(self.path / name, lambda stream: stream.write(data), prefix=f".{chunk.identity}.")
        self.problems.pop(name, None)
        self._remember(name, part, rows)

    def merged(self) -> Merged:
        """Return the results of all runs, in the order of the plan.

        A run may be in two parts if two processes trained it at once; the first part by name counts.

        Raises:
            StudyError: if runs are missing.
        """
        known = {name: self._known[name] for name in self.used}
        summaries, runs = known.values(), len(self.run_ids)
        losses = Blocks(runs, (summary.steps for summary in summaries), (summary.kind for summary in summaries))
        numbers = {name: np.arange(1, summary.epochs + 1) for name, summary in known.items()}
        epoch_losses = Blocks(runs, numbers.values(), [np.dtype(np.float64)])
        rows, maker = np.zeros(runs, ROW), np.full(runs, -1)
        makers: dict[str, int] = {}
        for name, summary in known.items():
            fresh = (summary.rows_of_plan >= 0) & (maker[np.maximum(summary.rows_of_plan, 0)] < 0)
            part, at = self._again(name), summary.rows_of_plan[fresh]
            whole, to = slice(None) if fresh.all() else fresh, span(at)
            rows[to] = part.rows[whole]
            losses.put(at, part.steps, part.losses[whole])
            epoch_losses.put(at, numbers[name], part.epoch_losses[whole])
            texts = [json.dumps({"engine": engine, **part.provenance}) for engine in part.engines]
            codes = np.array([makers.setdefault(text, len(makers)) for text in texts])
            maker[to] = codes[part.rows["engine"][whole]]
        missing = int((maker < 0).sum())
        if missing:
            raise StudyError(f"{self.folder}: {missing} of {runs} runs are missing")
        made = [json.loads(text) for text in makers]
        return Merged(rows, maker, made, losses.columns, losses.values, epoch_losses.values)

    def _again(self, name: str) -> Part:
        try:
            return self._read(name)
        except (DamagedError, OSError) as error:
            raise StudyError(f"{self.path / name}: changed while it was in use") from error


def outcomes(table: pd.DataFrame, rows: NDArray[np.void]) -> Outcomes:
    """Return the outcomes of a checked table's runs.

    Args:
        table: of the runs.
        rows: of type ROW, one for each of them.
    """
    cell, cells = cells_of(table)
    return Outcomes(cells, cell.astype(np.int32), table["seed"].to_numpy(np.int64), rows["outcome"])


def cells_of(table: pd.DataFrame) -> tuple[NDArray[np.intp], pd.DataFrame]:
    """Return which cell each run of a checked table belongs to, and the settings of the cells."""
    cell, firsts = distinct_rows((table[KEYS[key]] for key in CELL), len(table))
    return cell, pd.DataFrame({key: plain(table[KEYS[key]].take(firsts)).reset_index(drop=True) for key in CELL})


_NO_ROWS = np.zeros(0, np.intp)


def names(folder: Path) -> list[str]:
    """Return the names of the parts in a folder, sorted."""
    return sorted(path.name for path in folder.glob("*.npz") if not path.name.startswith("."))


def name_of(data: bytes | memoryview, chunk: str) -> str:
    """Return the name of a part with that content, of the chunk with that identity."""
    return f"{chunk}-{hashlib.sha256(data).hexdigest()[:32]}.npz"


def chunk_of(name: str) -> str:
    """Return the identity of the chunk that a part of that name is of."""
    return name.partition("-")[0]
