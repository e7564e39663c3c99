"""Part files: the results of a chunk, saved atomically as a content-addressed file, and their merge into one table.

A part holds run ids, measures, recorded losses and their provenance. The parts are the only record of a sweep's
progress: `runs.csv` and `losses.npz` are derived from them and the plan, and can be rewritten at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray

from xor_study.engines.results import Blocks, Measured, span
from xor_study.errors import StudyError
from xor_study.files import sweep_up, write_atomically
from xor_study.sweeps.chunks import Chunk
from xor_study.training.outcome import NUMBERS, OUTCOMES

FOLDER = "parts"
FORMAT = 1
STEPS = ("solved_step", "first_nonfinite_step")

ROW = np.dtype(
    [("run_id", "S20"), ("engine", "u1"), ("outcome", "u1"), ("accuracy", "f8")]
    + [(name, "i8") for name in STEPS]
    + [(name, "f8") for name in NUMBERS]
)
"""What a part holds of a run: engine and outcome by their index in the part's lists, a step that is missing as 0."""

ARRAYS = {"about", "rows", "steps", "losses", "epoch_losses"}


class DamagedError(StudyError):
    """A file is not a part, or not as it was written."""


@dataclass(frozen=True)
class Part:
    """The results of some runs, as they are saved.

    Attributes:
        rows: of type ROW, one for each run.
        engines: what `rows["engine"]` counts.
        provenance: versions, commit and device, by the names of columns of `runs.csv`.
        steps: numbers of the steps whose losses are recorded.
        losses: at these steps, shape (runs, len(steps)).
        epoch_losses: mean of each epoch, shape (runs, epochs).
    """

    rows: NDArray[np.void]
    engines: tuple[str, ...]
    provenance: Mapping[str, str | None]
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, run_ids: NDArray[np.bytes_], measured: Measured, provenance: Mapping[str, str | None]) -> Part:
        """Return the part of runs that were measured."""
        rows = np.zeros(len(run_ids), ROW)
        codes, engines = pd.factorize(measured.engines)
        rows["run_id"], rows["engine"] = run_ids, codes
        outcomes = pd.Categorical(measured.measures["outcome"], categories=OUTCOMES)
        rows["outcome"], rows["accuracy"] = outcomes.codes, measured.measures["accuracy"]
        for name in STEPS:
            rows[name] = measured.measures[name].fillna(0).to_numpy(np.int64)
        for name in NUMBERS:
            rows[name] = measured.measures[name]
        return cls(rows, tuple(engines), provenance, measured.steps, measured.losses, measured.epoch_losses)

    def encoded(self) -> memoryview:
        """Return the part as the bytes of an npz file; the same for the same part."""
        # np.savez, not np.savez_compressed: zlib's bytes differ between versions, and the name is their hash.
        about = {"format": FORMAT, "outcomes": OUTCOMES, "engines": self.engines, "made": dict(self.provenance)}
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
            about = json.loads(found.pop("about").item())
            part = cls(engines=tuple(about["engines"]), provenance=about["made"], **found)
            part._check(about)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, MemoryError, zipfile.BadZipFile) as error:
            raise DamagedError(f"not a part file ({type(error).__name__})") from error
        return part

    def _check(self, about: Mapping[str, Any]) -> None:
        """Raise ValueError unless all is as this version of the package writes it."""
        runs = len(self.rows)
        told = [*self.engines, *(value for value in self.provenance.values() if value is not None)]
        sound = (
            about["format"] == FORMAT
            and tuple(about["outcomes"]) == OUTCOMES
            and all(isinstance(text, str) for text in told)
            and self.rows.dtype == ROW
            and self.rows.ndim == self.steps.ndim == 1
            and self.losses.shape == (runs, len(self.steps))
            and self.epoch_losses.shape[:1] == (runs,)
            and self.losses.dtype.kind == self.epoch_losses.dtype.kind == "f"
            and (self.rows["outcome"] < len(OUTCOMES)).all()
            and (self.rows["engine"] < len(self.engines)).all()
        )
        if not sound:
            raise ValueError


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
        columns: measures, engine and provenance, as columns of `runs.csv`.
        steps, losses, epoch_losses: see `Part`.
    """

    columns: pd.DataFrame
    steps: NDArray[np.int64]
    losses: NDArray[np.floating[Any]]
    epoch_losses: NDArray[np.floating[Any]]


@dataclass
class Parts:
    """The parts of one plan in a folder.

    Args:
        folder: of the sweep; its parts lie in the folder FOLDER of it.
        run_ids: of the plan's runs, in their order.

    Attributes:
        done: which of the plan's runs are in a part.
        problems: what is wrong with files in the folder that are not intact parts, by the file's name.
    """

    folder: Path
    run_ids: NDArray[np.bytes_]
    done: NDArray[np.bool_] = field(init=False)
    problems: dict[str, str] = field(default_factory=dict)
    _known: dict[str, _Summary] = field(default_factory=dict)
    _writing: set[str] = field(default_factory=set)
    _index: pd.Index[Any] | None = None

    def __post_init__(self) -> None:
        self.path = self.folder / FOLDER
        self.done = np.zeros(len(self.run_ids), bool)

    def scan(self) -> None:
        """Read the parts that are new since the last scan."""
        for name in self._names():
            if name not in self._known.keys() | self.problems.keys() | self._writing:
                try:
                    part = self._read(name)
                except DamagedError as error:
                    self.problems[name] = str(error)
                else:
                    self._remember(name, part, self._rows_of(part.rows["run_id"]))

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*.npz") if not path.name.startswith("."))

    def _read(self, name: str) -> Part:
        try:
            data = (self.path / name).read_bytes()
        except IsADirectoryError as error:
            raise DamagedError("is a folder") from error
        if _name(data) != name:
            raise DamagedError("checksum mismatch")
        return Part.decoded(data)

    def _rows_of(self, run_ids: NDArray[np.bytes_]) -> NDArray[np.intp]:
        if self._index is None:
            self._index = pd.Index(self.run_ids.astype(object))
        return self._index.get_indexer(pd.Index(run_ids.astype(object)))

    def _remember(self, name: str, part: Part, rows_of_plan: NDArray[np.intp]) -> None:
        outcomes = part.rows["outcome"][rows_of_plan >= 0]
        kind, epochs = part.losses.dtype, part.epoch_losses.shape[1]
        self._known[name] = _Summary(rows_of_plan, part.engines, part.provenance, outcomes, part.steps, kind, epochs)
        self.done[rows_of_plan[rows_of_plan >= 0]] = True
        if not (rows_of_plan >= 0).any():
            self.problems[name] = "has none of the runs of this sweep"

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

    def claim(self, chunk: Chunk, seconds: float = 0) -> BaseFileLock | None:
        """Return the lock of a chunk, or None if another process holds it for that long; a dead process holds none."""
        # Released by the thread that writes the part, not by the one that trains.
        lock = FileLock(self.path / f"{chunk.identity}.lock", thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            return None
        sweep_up(self.path, f".{chunk.identity}.")
        return lock

    def remove_locks(self) -> None:
        """Remove the lock files once all runs are done: whoever still waits for one has nothing left to train."""
        for path in self.path.glob("*.lock"):
            path.unlink(missing_ok=True)

    def add(self, chunk: Chunk, rows: NDArray[np.intp], part: Part) -> None:
        """Save the part of a chunk, with the runs at `rows` of the plan."""
        data = part.encoded()
        name = _name(data)
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
        known = {name: self._known[name] for name in sorted(self._known) if self._known[name].outcomes.size}
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
        columns = _columns(rows, maker, [json.loads(text) for text in makers])
        return Merged(columns, losses.columns, losses.values, epoch_losses.values)

    def _again(self, name: str) -> Part:
        try:
            return self._read(name)
        except (DamagedError, OSError) as error:
            raise StudyError(f"{self.path / name}: changed while it was in use") from error


def _name(data: bytes | memoryview) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.npz"


def _columns(rows: NDArray[np.void], maker: NDArray[np.intp], makers: list[dict[str, str | None]]) -> pd.DataFrame:
    """Return rows as columns of `runs.csv`, with those of their provenance."""
    columns: dict[str, Any] = {
        "outcome": pd.Categorical.from_codes(rows["outcome"], categories=pd.Index(OUTCOMES)),
        "accuracy": np.ascontiguousarray(rows["accuracy"]),
    }
    for name in STEPS:
        columns[name] = pd.arrays.IntegerArray(np.ascontiguousarray(rows[name]), rows[name] == 0)
    columns |= {name: np.ascontiguousarray(rows[name]) for name in NUMBERS}
    for name in dict.fromkeys(name for made in makers for name in made):
        codes, values = pd.factorize(np.array([made.get(name) for made in makers], dtype=object))
        columns[name] = pd.Categorical.from_codes(codes[maker], categories=pd.Index(values))
    return pd.DataFrame(columns, copy=False)
