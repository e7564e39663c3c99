"""Locks on files that say who holds them, for processes that share a folder, also from several hosts.

A lock is one of the kernel's (`flock`), which a process that dies leaves free. Where the file system has none, it is a
file that only one process can create, which counts while its holder refreshes it. Correctness does not depend on
either, only that no work is done twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from xor_study.sweeps.process import Process

BEAT, SILENT = 10.0, 60.0
"""Seconds between the signs of life that a holder gives, and those after which it is taken for dead on another host."""

PATIENCE, POLL = 1.0, 0.5
"""Seconds to wait for a lock before saying so, and between two attempts."""

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What `flock` answers on a file system that has none, or whose server does not answer for it."""

FLOCK, HOLDER = ".lock", ".holder"
"""Ends of the names of the files: which the kernel locks, and which says who holds it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        process: None if it has not said so yet.
        since: in seconds since 1970.
        silent: how many seconds ago it gave the last sign of life, by the clock of the folder's file system.
    """

    process: Process | None
    since: float
    silent: float

    @property
    def state(self) -> str:
        """Return "running", "stopped", "dead", or "silent": on another host, and without a sign of life for long."""
        known = self.process and self.process.state
        # A sign from the future is none: a clock was set back.
        return known or ("running" if abs(self.silent) < SILENT else "silent")

    @property
    def pid(self) -> int | None:
        """Return the number of the process, if known."""
        return None if self.process is None else self.process.pid

    def __str__(self) -> str:
        return "a process" if self.process is None else f"process {self.process.pid} on {self.process.host}"

    @property
    def begun(self) -> str:
        """Return since when it holds the lock, as text."""
        return f"since {datetime.fromtimestamp(self.since):%Y-%m-%d %H:%M:%S}"


class Lock:
    """One lock, held or not.

    Args:
        folder: of its files.
        name: of its files, without their ends; may be empty.
        flock: whether the file system has kernel locks.
    """

    def __init__(self, folder: Path, name: str, *, flock: bool) -> None:
        self.files = [folder / f"{name}{end}" for end in (FLOCK, HOLDER)]
        # Released by the thread that writes the part, not by the one that trains.
        self._kernel = FileLock(self.files[0], thread_local=False) if flock else None
        self._over = threading.Event()
        self._record = ""

    def acquire(self) -> bool:
        """Take the lock and return True, or return False if another process holds it."""
        if self._kernel is not None:
            try:
                self._kernel.acquire(timeout=0)
            except Timeout:
                return False
            self.files[1].unlink(missing_ok=True)
        elif (holder := self.holder()) is not None and holder.state in ("dead", "silent"):
            self.free()
        self._record = json.dumps(asdict(Process.of(os.getpid())) | {"since": time.time()})
        try:
            with self.files[1].open("x") as stream:
                stream.write(self._record)
        except FileExistsError:
            return self._kernel is not None  # which counts; someone unlocked and took it at the same moment
        self._over = threading.Event()
        threading.Thread(target=self._beat, args=[self._over], daemon=True).start()
        return True

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.files[1])

    def release(self) -> None:
        """Give it back."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self.files[1].read_text() == self._record:  # or else someone has freed it, and another holds it now
                self.files[1].unlink()
        if self._kernel is not None:
            self._kernel.release()

    def holder(self) -> Holder | None:
        """Return who holds it, or None if it is free. A kernel lock whose holder has not said so counts as free."""
        try:
            # Opened, which on a network file system asks the server: attributes alone may be a minute old.
            with self.files[1].open() as stream:
                text, seen = stream.read(), os.fstat(stream.fileno()).st_mtime
            silent = _now(self.files[1].parent) - seen
        except OSError:
            return None
        try:
            about = json.loads(text)
            since = float(about.pop("since"))
            return Holder(Process(**about), since, silent)
        except (ValueError, TypeError, KeyError, AttributeError):
            return Holder(None, seen, silent)

    def free(self) -> None:
        """Take it away from whoever holds it."""
        for path in self.files:
            path.unlink(missing_ok=True)


def _now(folder: Path) -> float:
    """Return the time by the clock that a folder's files are stamped with, which may be another host's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


@dataclass(frozen=True)
class Locks:
    """The locks in a folder."""

    folder: Path

    @cached_property
    def _flock(self) -> bool:
        """Whether the folder's file system has kernel locks."""
        if sys.platform == "win32":
            return True
        import fcntl

        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_FLOCK:
                    return False
                raise
        return True

    def lock(self, name: str) -> Lock:
        """Return the lock of a name."""
        return Lock(self.folder, name, flock=self._flock)

    def claim(self, name: str) -> Lock | None:
        """Return a lock, taken, or None if another process holds it."""
        lock = self.lock(name)
        return lock if lock.acquire() else None

    def held(self) -> dict[str, Lock]:
        """Return the locks that are held, or were when their holder died, by name."""
        names = sorted(path.name.removesuffix(HOLDER) for path in self.folder.glob(f"*{HOLDER}"))
        return {name: self.lock(name) for name in names}

    def remove(self) -> None:
        """Remove all files, once there is nothing left to lock."""
        for end in (FLOCK, HOLDER):
            for path in self.folder.glob(f"*{end}"):
                path.unlink(missing_ok=True)


def wait_for(locks: Sequence[Lock], ready: Callable[[], bool], what: str, folder: Path) -> None:
    """Wait, and say on stderr which processes for, and what to do if one of them does nothing.

    Args:
        locks: that others hold.
        ready: returns whether the wait is over; called twice a second.
        what: the locks are for, to be shown.
        folder: of the sweep, likewise.
    """
    begun, said = time.monotonic(), set[tuple[str, str]]()
    while not ready():
        time.sleep(POLL)
        holders = [holder for holder in (lock.holder() for lock in locks) if holder is not None]
        states = {(str(holder), holder.state) for holder in holders}
        if time.monotonic() - begun >= PATIENCE and not (said and states <= said):
            said |= states or {("", "")}
            # Not by rich's console, which would write over its own progress bar.
            print("; ".join([f"waiting for {what}", *_descriptions(holders, folder)]), file=sys.stderr, flush=True)


def _descriptions(holders: Sequence[Holder], folder: Path) -> Iterator[str]:
    """Yield what to know of some holders: how many locks each has, and what to do about those that do nothing."""
    counts, firsts = Counter(map(str, holders)), {str(holder): holder for holder in reversed(holders)}
    unlock = f"xor-study unlock {shlex.quote(str(folder))}"
    for name, count in counts.items():
        yield f"{name} holds {count} {firsts[name].begun}"
        if firsts[name].state == "stopped":
            yield f"it is stopped: kill -CONT {firsts[name].pid} continues it, {unlock} takes over from it"
        elif firsts[name].state == "silent":
            yield f"no sign of life for {firsts[name].silent:.0f} s: if it is dead, {unlock} takes over from it"
